//! TCP connections that tasks wait on.
//!
//! Must never know: what is said over them.

use alloc::rc::Rc;
use alloc::vec;
use core::fmt;
use core::net::IpAddr;

use smoltcp::iface::SocketHandle;
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;

use crate::machine::Machine;
use crate::stack::Stack;

/// How long an established connection may be silent when something is expected of it.
const SILENCE_MAX: Duration = Duration::from_secs(30);
/// How long the goodbye of a connection may take, in nanoseconds; afterwards it is cut.
const GOODBYE_NS_MAX: u64 = 2_000_000_000;

/// Why nothing comes over a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// It was refused, reset, or timed out.
    Closed,
    /// There is no address or no route.
    Unreachable,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Closed => "connection refused, reset or timed out",
            Error::Unreachable => "no route",
        })
    }
}

/// One connection at a time, on one socket.
pub struct Connection {
    machine: &'static Machine,
    stack: Rc<Stack>,
    socket: SocketHandle,
}

impl Connection {
    /// A socket with buffers of `receive` and `send` bytes.
    pub fn new(machine: &'static Machine, stack: &Rc<Stack>, receive: usize, send: usize) -> Self {
        let mut socket = Socket::new(SocketBuffer::new(vec![0; receive]), SocketBuffer::new(vec![0; send]));
        // Answers are short and whole: waiting for more to send helps nobody.
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(None);
        Connection { machine, stack: stack.clone(), socket: stack.add(socket) }
    }

    fn with<R>(&self, act: impl FnOnce(&mut Socket<'static>) -> R) -> R {
        self.stack.with(self.socket, |socket, _| act(socket))
    }

    /// Waits for a connection to `port`.
    pub async fn accept(&mut self, port: u16) {
        self.with(|socket| {
            socket.set_timeout(None);
            socket.listen(port).expect("invariant: the socket is closed and the port is not 0");
        });
        self.machine
            .wait(|| {
                self.with(|socket| {
                    (!matches!(socket.state(), State::Listen | State::SynReceived)).then_some(())
                })
            })
            .await;
        self.with(|socket| socket.set_timeout(Some(SILENCE_MAX)));
    }

    /// Connects; gives up after `timeout_s` seconds.
    pub async fn connect(&mut self, address: IpAddr, port: u16, timeout_s: u64) -> Result<(), Error> {
        let local = self.stack.ephemeral_port();
        if let IpAddr::V4(address) = address {
            self.stack.seek(address, &self.machine.clock);
        }
        self.stack.with(self.socket, |socket: &mut Socket<'static>, context| {
            socket.set_timeout(Some(Duration::from_secs(timeout_s)));
            socket.connect(context, (address, port), local).map_err(|_| Error::Unreachable)
        })?;
        let established = || {
            self.with(|socket| match socket.state() {
                State::SynSent => None,
                State::Closed => Some(Err(Error::Closed)),
                _ => Some(Ok(())),
            })
        };
        // The socket's own timeout does not run while the neighbour's address is asked for.
        let deadline = self.machine.clock.now_ns() + timeout_s * 1_000_000_000;
        self.machine.wait_until(deadline, established).await.unwrap_or(Err(Error::Closed))
    }

    /// Waits for bytes and takes up to `into.len()` of them; 0 at the end of what the peer says.
    pub async fn read(&mut self, into: &mut [u8]) -> Result<usize, Error> {
        self.machine
            .wait(|| {
                self.with(|socket| match () {
                    () if socket.can_recv() => Some(socket.recv_slice(into).map_err(|_| Error::Closed)),
                    () if socket.state() == State::Closed => Some(Err(Error::Closed)),
                    () if !socket.may_recv() => Some(Ok(0)),
                    () => None,
                })
            })
            .await
    }

    /// Hands all of `bytes` to the stack, waiting for room.
    pub async fn write(&mut self, mut bytes: &[u8]) -> Result<(), Error> {
        self.machine
            .wait(|| {
                self.with(|socket| {
                    if !socket.may_send() {
                        return Some(Err(Error::Closed));
                    }
                    let sent = socket.send_slice(bytes).unwrap_or(0);
                    bytes = &bytes[sent..];
                    bytes.is_empty().then_some(Ok(()))
                })
            })
            .await
    }

    /// Says goodbye and waits until everything has arrived; then the socket is free for the next connection.
    pub async fn close(&mut self) {
        self.with(Socket::close);
        let deadline = self.machine.clock.now_ns() + GOODBYE_NS_MAX;
        let gone =
            || self.with(|socket| matches!(socket.state(), State::Closed | State::TimeWait).then_some(()));
        self.machine.wait_until(deadline, gone).await;
        // Waiting for stray segments would keep the socket for seconds; a port that listens does not need it.
        self.with(Socket::abort);
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.stack.remove(self.socket);
    }
}
