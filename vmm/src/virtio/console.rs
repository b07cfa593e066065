//! The console device (VIRTIO 1.3 §5.3): one port, which Linux calls `hvc0`.
//!
//! What the guest writes goes to a log, to the terminal, or to whoever is connected to a socket. A guest's driver waits
//! for what it writes to be taken, so that is taken at once, whoever does not read it: output that a connection has no
//! room for is lost. Input waits here, a little of it; a connection is read only when there is room.
//!
//! Must never know: who is at the other end.

mod socket;

use std::collections::VecDeque;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixListener;
use std::sync::{Arc, Mutex};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::EventFd;

use super::queue::{Chain, Handled, QueueError};
use super::spec::{console as spec, device_type};
use super::state::decode;
use super::{Activation, DeviceState, Error, StateError, VirtioDevice};
use crate::backlog::Backlog;
use crate::ending::EndingSignal;
use crate::panic::PanicWatch;
use crate::serial;

use socket::Socket;

/// Descriptors per queue: Linux has one buffer of output under way, and a few of input.
pub const QUEUE_SIZE_MAX: u16 = 64;
/// The most input that waits for the guest, in bytes; what is typed beyond is lost.
pub const INPUT_BYTES_MAX: usize = 4096;
/// The most bytes of one buffer of output that are heard: twice what any driver writes at once.
pub const OUTPUT_BYTES_MAX: u64 = 64 << 10;
/// How much is copied at once.
const PIECE_BYTES: usize = 4096;
/// Buffers worked off before the event loop serves its other devices.
const BATCH_BUFFERS_MAX: u16 = 16;
/// Bytes of the configuration space: cols u16 @0, rows u16 @2, max_nr_ports u32 @4, emerg_wr u32 @8 (§5.3.4).
const CONFIG_BYTES: usize = 12;

/// Where a console leads.
pub enum Output {
    /// A log, or the terminal.
    Stream(serial::Console),
    /// A listening socket.
    Socket(UnixListener),
}

/// One console.
pub struct Console {
    stream: serial::Console,
    socket: Option<Socket>,
    /// The stream failed before.
    failed: bool,
    watch: Option<PanicWatch>,
    input: VecDeque<u8>,
    config: [u8; CONFIG_BYTES],
    queue_events: Vec<EventFd>,
    active: Option<Activation>,
    chain: Chain,
    held: bool,
}

/// Makes a console that leads to `output`.
///
/// # Errors
/// The kernel gives no event descriptor or timer.
pub fn build_console(output: Output) -> Result<Arc<Mutex<Console>>, Error> {
    let (stream, socket) = match output {
        Output::Stream(stream) => (stream, None),
        Output::Socket(listener) => {
            let backlog = Backlog::new(listener, "a console's socket").map_err(Error::EventFd)?;
            (serial::Console::None, Some(Socket::new(backlog)))
        }
    };
    Ok(Arc::new(Mutex::new(Console {
        stream,
        socket,
        failed: false,
        watch: None,
        input: VecDeque::new(),
        config: [0; CONFIG_BYTES],
        queue_events: super::queue_event_fds(2)?,
        active: None,
        chain: Chain::new(),
        held: false,
    })))
}

impl Console {
    /// Tells `ending` of a kernel that panics while it boots.
    pub fn watch_for_panics(&mut self, ending: EndingSignal) {
        self.watch = Some(PanicWatch::new(ending));
    }

    /// The newest part of the log; empty if it is not kept.
    ///
    /// # Errors
    /// The log file's.
    pub fn tail(&self, bytes_max: u64) -> io::Result<Vec<u8>> {
        self.stream.tail(bytes_max)
    }

    /// Gives the guest input; what exceeds [`INPUT_BYTES_MAX`] is lost. To be called on the event loop's thread.
    pub fn input(&mut self, bytes: &[u8]) {
        let room = INPUT_BYTES_MAX - self.input.len();
        self.input.extend(&bytes[..bytes.len().min(room)]);
        self.work();
    }

    /// Tells the guest how large the terminal is.
    pub fn resize(&mut self, columns: u16, rows: u16) {
        let mut size = [0; 4];
        size[..2].copy_from_slice(&columns.to_le_bytes());
        size[2..].copy_from_slice(&rows.to_le_bytes());
        if self.config[..4] != size {
            self.config[..4].copy_from_slice(&size);
            if let Some(active) = &self.active {
                active.interrupt.config_changed(&self.config);
            }
        }
    }

    /// Works off both directions.
    fn work(&mut self) {
        if self.held {
            return;
        }
        let Some(mut active) = self.active.take() else { return };
        match self.transmit(&mut active).and_then(|()| self.receive(&mut active)) {
            Ok(()) => self.active = Some(active),
            Err(error) => super::broken(&active, device_type::CONSOLE, error),
        }
    }

    /// Guest to host.
    fn transmit(&mut self, active: &mut Activation) -> Result<(), QueueError> {
        let Self { chain, stream, socket, failed, watch, .. } = self;
        let queue = &mut active.queues[spec::QUEUE_TX];
        let progress = queue.work_off(chain, BATCH_BUFFERS_MAX, |memory, chain| {
            let length = chain.readable_bytes().min(OUTPUT_BYTES_MAX);
            let mut piece = [0; PIECE_BYTES];
            for start in (0..length).step_by(PIECE_BYTES) {
                let wanted = usize::try_from(length - start).unwrap_or(usize::MAX).min(PIECE_BYTES);
                let count = chain.read_at(memory, start, &mut piece[..wanted]);
                let bytes = &piece[..count];
                if let Some(watch) = watch {
                    watch.hear(bytes);
                }
                if let Some(socket) = socket {
                    socket.send(bytes);
                } else if let Err(error) = stream.write(bytes)
                    && !*failed
                {
                    // Once: the guest decides how often it writes.
                    *failed = true;
                    tracing::warn!(%error, "console output is lost");
                }
            }
            Ok(Handled::Used(0))
        })?;
        active.settle(spec::QUEUE_TX, progress, &self.queue_events)?;
        Ok(())
    }

    /// Host to guest.
    fn receive(&mut self, active: &mut Activation) -> Result<(), QueueError> {
        let Self { chain, input, .. } = self;
        let queue = &mut active.queues[spec::QUEUE_RX];
        let progress = queue.work_off(chain, BATCH_BUFFERS_MAX, |memory, chain| {
            if input.is_empty() {
                return Ok(Handled::Later);
            }
            let (front, _) = input.as_slices();
            let written = chain.write_at(memory, 0, front);
            input.drain(..written);
            // At most INPUT_BYTES_MAX.
            Ok(Handled::Used(written as u32))
        })?;
        active.settle(spec::QUEUE_RX, progress, &self.queue_events)?;
        Ok(())
    }
}

impl VirtioDevice for Console {
    fn device_type(&self) -> u32 {
        device_type::CONSOLE
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX, QUEUE_SIZE_MAX]
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    fn features(&self) -> u64 {
        spec::F_SIZE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        self.active = Some(activation);
    }

    fn reset(&mut self) {
        self.active = None;
    }

    /// The size of the terminal, and what was typed and not taken.
    fn save(&self) -> DeviceState {
        let input: Vec<u8> = self.input.iter().copied().collect();
        DeviceState::of(self.active.as_ref()).with(&(self.config, input))
    }

    fn restore(&mut self, own: &[u8]) -> Result<(), StateError> {
        let (config, input): (_, Vec<u8>) = decode(own)?;
        if input.len() > INPUT_BYTES_MAX {
            return Err(StateError::Invalid("more is typed at its console than waits at one"));
        }
        (self.config, self.input) = (config, input.into());
        Ok(())
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        if !held {
            self.queue_events.iter().for_each(super::kick);
        }
    }
}

impl MutEventSubscriber for Console {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for event in &self.queue_events {
            super::watch(ops, event, EventSet::IN);
        }
        if let Some(socket) = &mut self.socket {
            socket.start(ops);
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        match self.queue_events.iter().find(|event| event.as_raw_fd() == events.fd()) {
            Some(event) => super::drain(event),
            None => {
                if let Some(socket) = &mut self.socket {
                    socket.serve(events, INPUT_BYTES_MAX, &mut self.input, ops);
                }
            }
        }
        self.work();
        if let Some(socket) = &mut self.socket {
            socket.settle(self.input.len() < INPUT_BYTES_MAX, ops);
        }
    }
}
