//! A virtio socket device: echo on a port, and connections to the host that a command asks for.
//!
//! Must never know: what is said over a connection.

use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::fmt;

use virtio_drivers::device::socket::{
    SocketError, VirtIOSocket, VsockAddr, VsockConnectionManager, VsockEvent, VsockEventType,
};

use crate::machine::Machine;
use crate::memory::Identity;
use crate::transport::{Acknowledge, Transport};

/// The port on which what comes is sent back, as in TCP (RFC 862).
const ECHO_PORT: u32 = 7;
/// The host's address (VIRTIO 1.3 §5.10.4).
const HOST: u64 = 2;
/// The first port of our own connections.
const PORT_START: u32 = 1 << 16;
/// Bytes buffered for each connection.
const BUFFER_BYTES: u32 = 16 << 10;
/// How long an answer may take, in nanoseconds.
const PATIENCE_NS: u64 = 5_000_000_000;

/// Why nothing came back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// There is no device.
    NoDevice,
    /// Nobody is there, or who was there hung up.
    Refused,
    /// It took too long.
    Timeout,
    /// The device failed.
    Device(virtio_drivers::Error),
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::NoDevice => f.write_str("no socket device"),
            Error::Refused => f.write_str("connection refused"),
            Error::Timeout => f.write_str("timeout"),
            Error::Device(error) => write!(f, "device: {error}"),
        }
    }
}

type Manager = VsockConnectionManager<Identity, Transport>;

/// One device.
pub struct Vsock {
    manager: RefCell<Manager>,
    acknowledge: Acknowledge,
    /// What is to be sent back, and to whom, as soon as there is room for it.
    echoes: RefCell<Vec<(VsockAddr, Vec<u8>)>>,
    next_port: Cell<u32>,
    /// What became of the connection of our own that there is.
    own: RefCell<Option<Own>>,
}

struct Own {
    port: u32,
    connected: bool,
    over: bool,
    received: Vec<u8>,
}

impl Vsock {
    /// Sets the device up and listens.
    pub fn new(transport: Transport) -> Result<Self, virtio_drivers::Error> {
        let acknowledge = transport.acknowledge();
        let mut manager = Manager::new_with_capacity(VirtIOSocket::new(transport)?, BUFFER_BYTES);
        manager.listen(ECHO_PORT);
        Ok(Vsock {
            manager: RefCell::new(manager),
            acknowledge,
            echoes: RefCell::default(),
            next_port: Cell::new(PORT_START),
            own: RefCell::new(None),
        })
    }

    /// Our own address.
    pub fn cid(&self) -> u64 {
        self.manager.borrow().guest_cid()
    }

    /// Acknowledges an interrupt, if it is this device's.
    pub fn acknowledge(&self) {
        self.acknowledge.give();
    }

    fn next(&self) -> Option<VsockEvent> {
        // What cannot be understood is nobody's.
        self.manager.borrow_mut().poll().ok().flatten()
    }

    fn take(&self, event: &VsockEvent) {
        let port = event.destination.port;
        let mut own = self.own.borrow_mut();
        let own = own.as_mut().filter(|own| own.port == port);
        match event.event_type {
            VsockEventType::Connected => own.into_iter().for_each(|own| own.connected = true),
            VsockEventType::Disconnected { .. } => {
                own.into_iter().for_each(|own| own.over = true);
                self.echoes.borrow_mut().retain(|(peer, _)| *peer != event.source || port != ECHO_PORT);
            }
            VsockEventType::Received { length } => {
                let mut bytes = vec![0; length];
                let received = self.manager.borrow_mut().recv(event.source, port, &mut bytes);
                bytes.truncate(received.unwrap_or(0));
                match own {
                    Some(own) => own.received.extend(bytes),
                    None => self.echoes.borrow_mut().push((event.source, bytes)),
                }
            }
            _ => {}
        }
    }

    /// Sends back what there is room for.
    fn echo(&self) {
        let mut manager = self.manager.borrow_mut();
        self.echoes.borrow_mut().retain(|(peer, bytes)| {
            let full = virtio_drivers::Error::SocketDeviceError(SocketError::InsufficientBufferSpaceInPeer);
            manager.send(*peer, ECHO_PORT, bytes) == Err(full)
        });
    }
}

/// Serves the device, for good.
pub async fn serve(machine: &'static Machine, vsock: Rc<Vsock>) {
    loop {
        let event = machine.wait(|| vsock.next()).await;
        vsock.take(&event);
        vsock.echo();
        machine.stir();
    }
}

/// Connects to `port` of the host, sends `text`, and gives what came back, as much of it.
pub async fn ask(machine: &'static Machine, port: u32, text: &[u8]) -> Result<Vec<u8>, Error> {
    let vsock = machine.vsock().ok_or(Error::NoDevice)?;
    let ours = vsock.next_port.get();
    vsock.next_port.set(ours + 1);
    let peer = VsockAddr { cid: HOST, port };
    vsock.own.replace(Some(Own { port: ours, connected: false, over: false, received: Vec::new() }));
    vsock.manager.borrow_mut().connect(peer, ours).map_err(Error::Device)?;
    let deadline = machine.clock.now_ns() + PATIENCE_NS;
    let when = |is: fn(&Own, usize) -> bool| {
        let vsock = vsock.clone();
        move || vsock.own.borrow().as_ref().is_some_and(|own| own.over || is(own, text.len())).then_some(())
    };
    machine.wait_until(deadline, when(|own, _| own.connected)).await.ok_or(Error::Timeout)?;
    let refused = vsock.own.borrow().as_ref().is_none_or(|own| own.over);
    if refused {
        return Err(Error::Refused);
    }
    vsock.manager.borrow_mut().send(peer, ours, text).map_err(Error::Device)?;
    let came = machine.wait_until(deadline, when(|own, length| own.received.len() >= length)).await;
    let own = vsock.own.take();
    // It may be over by now.
    let _ = vsock.manager.borrow_mut().force_close(peer, ours);
    came.and(own).map(|own| own.received).ok_or(Error::Timeout)
}
