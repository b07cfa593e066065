//! The main thread's part of a running machine: it serves the control socket, hears the guest's end and the process's
//! signals, and feeds the console. Everything it does is an event; between events it sleeps.
//!
//! Must never know: how devices work.

mod client;
mod devices;
mod handover;
mod input;
mod memory;
mod snapshot;
mod waiting;
mod watchdog;

use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};

use crate::backlog::Backlog;
use crate::ending::EndingSignal;
use crate::lifecycle::Event;
use crate::rpc::{Action, ConsoleName, ExitReason, LINE_BYTES_MAX, NOT_AN_ACTION, Reply, Status, VmState};
use crate::run::chain;
use crate::sandbox::Held;
use crate::vm::{Machine, Wanted};

use self::client::Client;
use self::input::Input;

pub use self::input::ReadFd;
pub use self::waiting::Called;
pub(crate) use self::waiting::{Guest, wait};

/// The most connections at a time: one agent, with room for people who look. Further ones wait in the backlog.
const CLIENTS_MAX: usize = 8;
/// How much is read from a client or the terminal at once.
const READ_BYTES: usize = 4096;

/// Why the supervisor cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// SIGTERM and SIGINT cannot be received.
    #[error("receive signals")]
    Signals(#[source] nix::Error),
    /// The socket cannot be made non-blocking, or there is no timer for it.
    #[error("prepare the control socket")]
    Socket(#[source] io::Error),
}

/// Blocks the signals that ask a process to end, and the one by which a terminal says that its size changed; to be called
/// before any thread is made. An instance's process hears SIGTERM only: what is typed or hung up at some terminal is not
/// meant for it.
///
/// # Errors
/// The kernel's.
pub fn block_signals() -> Result<(), Error> {
    let all = SigSet::from_iter([Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGWINCH]);
    all.thread_block().map_err(Error::Signals)
}

/// The event subscriber described above.
pub struct Supervisor {
    machine: Machine,
    ending: EndingSignal,
    signals: SignalFd,
    backlog: Option<Backlog>,
    clients: BTreeMap<RawFd, Client>,
    input: Option<Input>,
    /// The client that hears of the guest's questions about names.
    resolver: Option<RawFd>,
    /// What confines the process.
    held: Held,
}

impl Supervisor {
    /// Takes charge of `machine`. As somebody's foreground process it hears what is typed and hung up at the terminal.
    ///
    /// # Errors
    /// Signals or the socket.
    pub fn new(
        machine: Machine,
        ending: EndingSignal,
        listener: Option<UnixListener>,
        foreground: bool,
    ) -> Result<Self, Error> {
        let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
        let mut heard = SigSet::from(Signal::SIGTERM);
        if foreground {
            heard.extend([Signal::SIGINT, Signal::SIGHUP, Signal::SIGWINCH]);
        }
        let signals = SignalFd::with_flags(&heard, flags).map_err(Error::Signals)?;
        let backlog = listener.map(|listener| Backlog::new(listener, "the control socket"));
        let backlog = backlog.transpose().map_err(Error::Socket)?;
        let (clients, held) = (BTreeMap::new(), Held::default());
        Ok(Self { machine, ending, signals, backlog, clients, input: None, resolver: None, held })
    }

    /// Has the status tell of what confines the process.
    pub fn set_protections(&mut self, held: Held) {
        self.held = held;
    }

    /// The machine.
    #[must_use]
    pub fn machine(&self) -> &Machine {
        &self.machine
    }

    /// The machine, to be started.
    #[must_use]
    pub fn machine_mut(&mut self) -> &mut Machine {
        &mut self.machine
    }

    /// Gives the machine back.
    #[must_use]
    pub fn into_machine(self) -> Machine {
        self.machine
    }

    fn accept(&mut self, ops: &mut EventOps<'_>) {
        while self.clients.len() < CLIENTS_MAX {
            let Some(backlog) = &mut self.backlog else { return };
            let Some(stream) = backlog.accept() else {
                let rests = backlog.rests();
                return self.listen(ops, !rests);
            };
            let fd = stream.as_raw_fd();
            if ops.add(Events::new(&stream, EventSet::IN)).is_ok() {
                self.clients.insert(fd, Client::new(stream));
            }
        }
        // Full: no more wake-ups until someone leaves.
        self.listen(ops, false);
    }

    fn listen(&self, ops: &mut EventOps<'_>, on: bool) {
        if let Some(listener) = &self.backlog {
            let set = if on { EventSet::IN } else { EventSet::empty() };
            if let Err(error) = ops.modify(Events::new(listener, set)) {
                tracing::error!(?error, "the control socket is no longer watched");
            }
        }
    }

    fn serve(&mut self, fd: RawFd, ops: &mut EventOps<'_>) {
        let Some(mut client) = self.clients.remove(&fd) else { return };
        match self.exchange(&mut client) {
            Ok(()) => {
                let set = if client.output.is_empty() { EventSet::IN } else { EventSet::OUT };
                if ops.modify(Events::new(&client.stream, set)).is_ok() {
                    self.clients.insert(fd, client);
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "a client of the control socket was cut off"),
        }
        self.resolver = self.resolver.filter(|resolver| *resolver != fd);
        if let Err(error) = ops.remove(Events::empty(&client.stream)) {
            tracing::error!(?error, "a closed connection is still watched");
        }
        self.listen(ops, true);
    }

    /// Reads, answers, writes, as far as it goes without waiting. A client that does not read its replies is not
    /// read from either.
    fn exchange(&mut self, client: &mut Client) -> io::Result<()> {
        loop {
            if !client.flush()? || self.machine.is_handed_over() {
                return Ok(());
            }
            let fd = client.stream.as_raw_fd();
            if self.resolver == Some(fd)
                && let Some(question) = self.machine.questions().pop(Instant::now())
            {
                client.output = encode(&Reply::Question(question));
                continue;
            }
            let Some(line) = client.next_line()? else { return Ok(()) };
            let reply = match serde_json::from_slice(&line) {
                Ok(Action::Resolve) => {
                    self.resolver = Some(fd);
                    Reply::Done { state: self.machine.state() }
                }
                Ok(Action::Answer { mac, vlan, number, message }) => {
                    self.machine.answer((mac, vlan), number, message.as_bytes());
                    continue;
                }
                Ok(Action::ResizeDisk { disk }) => {
                    let (reply, before) = self.resize_disk(*disk, std::mem::take(&mut client.descriptors));
                    client.handles = before.into_iter().collect();
                    reply
                }
                Ok(action) => {
                    client.handles = self.handles_for(&action);
                    self.act(action, std::mem::take(&mut client.descriptors))
                }
                Err(error) => {
                    client.descriptors.clear();
                    Reply::Error { message: format!("{NOT_AN_ACTION}: {error}") }
                }
            };
            client.output = encode(&reply);
        }
    }

    fn act(&mut self, action: Action, passed: Vec<OwnedFd>) -> Reply {
        let event = match action {
            Action::Configure { .. } => {
                return Reply::Error { message: "this VMM has its guest".to_owned() };
            }
            Action::Start => Event::Start,
            Action::Pause => Event::Pause,
            Action::Resume => Event::Resume,
            Action::Stop { force: false } => Event::PowerButton,
            Action::Stop { force: true } => Event::Kill,
            Action::Status => {
                return Reply::Status(Box::new(Status {
                    state: self.machine.state(),
                    first_run_us: self.machine.first_run_us(),
                    console_bytes: self.machine.serial().console_bytes(),
                    devices: Some(self.machine.devices().status()),
                    virtio: self.machine.devices().traffic(),
                    balloon: self.machine.peripherals().balloon().map(|mut balloon| balloon.status()),
                    memory: self.machine.peripherals().mem().map(|mem| mem.status()),
                    watchdog: self.machine.watchdog().map(|watchdog| watchdog.status()),
                    upgraded: self.machine.upgraded(),
                    protections: Some(self.held.protections.clone()),
                }));
            }
            Action::SetBalloon { target_mib } => return self.set_balloon(target_mib),
            Action::SetMemory { requested_mib } => return self.set_memory(requested_mib),
            Action::AddDisk { disk } => return self.add_disk(*disk, passed),
            Action::AddNic { nic } => return self.add_nic(*nic, passed),
            Action::Remove { device } => {
                return match self.machine.devices_mut().remove(&device) {
                    Ok(state) => Reply::Device { state },
                    Err(error) => Reply::Error { message: chain(&error) },
                };
            }
            Action::LimitDisk { serial, limits } => {
                return match self.machine.devices_mut().limit_disk(&serial, &limits) {
                    Ok(()) => Reply::Done { state: self.machine.state() },
                    Err(error) => Reply::Error { message: chain(&error) },
                };
            }
            Action::GiveBackFree => return self.give_back_free(),
            Action::Snapshot { file, differences, track, hints } => {
                return self.snapshot(file, Wanted { differences, track, hints }, passed);
            }
            Action::HandOver { to, patience_ms } => return self.hand_over(to, patience_ms, passed),
            Action::Console { bytes_max, console } => return self.console(console, u64::from(bytes_max)),
            Action::Flush => return self.flush(),
            // Taken where the connection is known.
            Action::Resolve | Action::Answer { .. } | Action::ResizeDisk { .. } => {
                return Reply::Done { state: self.machine.state() };
            }
            Action::Readdress { mac, addressing } => {
                return if self.machine.readdress(mac, &addressing) {
                    Reply::Done { state: self.machine.state() }
                } else {
                    Reply::Error {
                        message: "no network device with that MAC address answers anything".to_owned(),
                    }
                };
            }
            Action::Reshape { mac, traffic } => {
                return match self.machine.reshape(mac, &traffic) {
                    Ok(true) => Reply::Done { state: self.machine.state() },
                    Ok(false) => {
                        Reply::Error { message: "no network device has that MAC address".to_owned() }
                    }
                    Err(error) => Reply::Error { message: error.to_string() },
                };
            }
        };
        match self.machine.apply(event) {
            Ok(state) => {
                if state == VmState::Stopped {
                    self.ending.say(ExitReason::Killed, "the guest was stopped on request");
                }
                Reply::Done { state }
            }
            Err(refused) => Reply::Error { message: refused.to_string() },
        }
    }

    /// Who ends a guest by force gets handles of what the kernel takes long to take apart; see [`Action::Stop`].
    fn handles_for(&self, action: &Action) -> Vec<OwnedFd> {
        if !matches!(action, Action::Stop { force: true }) {
            return Vec::new();
        }
        let room = self.held.room.as_ref().map(OwnedFd::try_clone);
        let handles = [Some(self.machine.handle()), room].into_iter().flatten();
        handles
            .filter_map(|handle| {
                handle.inspect_err(|error| tracing::debug!(%error, "one handle less to hand over")).ok()
            })
            .collect()
    }

    /// The disks of a guest that stands still, made what it wrote.
    fn flush(&self) -> Reply {
        let state = self.machine.state();
        if state != VmState::Paused {
            return Reply::Error {
                message: "the guest is not paused, so its disks do not stand still".to_owned(),
            };
        }
        match self.machine.flush_disks() {
            Ok(()) => Reply::Done { state },
            Err(error) => Reply::Error { message: format!("write the guest's disks out: {error}") },
        }
    }

    /// The console's end, as much of it as fits into one reply.
    fn console(&self, console: ConsoleName, bytes_max: u64) -> Reply {
        let tail = match console {
            ConsoleName::Serial => self.machine.serial().console_tail(bytes_max),
            ConsoleName::Virtio => {
                self.machine.peripherals().console().map_or(Ok(Vec::new()), |console| console.tail(bytes_max))
            }
        };
        match tail {
            Ok(bytes) => {
                let mut text = String::from_utf8_lossy(&bytes).into_owned();
                // Escaping can make a control character six bytes long.
                while text.len() > LINE_BYTES_MAX / 8
                    && serde_json::to_string(&text).is_ok_and(|json| json.len() > LINE_BYTES_MAX - 64)
                {
                    let mut cut = text.len() / 2;
                    while !text.is_char_boundary(cut) {
                        cut += 1;
                    }
                    text.drain(..cut);
                }
                Reply::Console { text }
            }
            Err(error) => Reply::Error { message: format!("read the console log: {error}") },
        }
    }

    fn take_signal(&mut self) {
        while let Ok(Some(info)) = self.signals.read_signal() {
            if info.ssi_signo == Signal::SIGWINCH as u32 {
                self.take_size();
                continue;
            }
            self.ending
                .say(ExitReason::Killed, format!("the VMM was told to end by signal {}", info.ssi_signo));
        }
    }
}

fn not_those() -> Reply {
    Reply::Error { message: "the descriptors that came are not those that are named".to_owned() }
}

/// One reply as a line.
fn encode(reply: &Reply) -> Vec<u8> {
    let mut line = serde_json::to_vec(reply).expect("invariant: replies are plain data");
    line.push(b'\n');
    line
}

impl MutEventSubscriber for Supervisor {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        let mut watch = |fd: RawFd, what: &str| {
            if let Err(error) = ops.add(Events::new_raw(fd, EventSet::IN)) {
                // A regular file as standard input cannot be watched; a guest without input is fine.
                tracing::debug!(?error, "not watched: {what}");
            }
        };
        watch(self.ending.event().as_raw_fd(), "the guest's end");
        watch(self.signals.as_raw_fd(), "signals");
        watch(self.machine.devices().let_go(), "devices that the guest lets go");
        watch(self.machine.questions().bell().as_raw_fd(), "the guest's questions");
        if let Some(timer) = self.machine.watchdog_timer() {
            watch(timer, "the guest's watchdog");
        }
        if let Some(backlog) = &self.backlog {
            watch(backlog.as_raw_fd(), "the control socket");
            watch(backlog.timer().as_raw_fd(), "the control socket's rest");
        }
        if let Some(input) = &self.input {
            watch(input.source.as_raw_fd(), "console input");
        }
        // Whoever asked for the guest is told at once that it is there, and may have asked for more by now.
        for client in self.clients.values() {
            if let Err(error) = ops.add(Events::new(&client.stream, EventSet::IN | EventSet::OUT)) {
                tracing::error!(?error, "who asked for the guest is not heard any more");
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let fd = events.fd();
        if fd == self.ending.event().as_raw_fd() {
            // Read so that the loop can sleep; whoever runs the loop looks at what was said.
            let _ = self.ending.event().read();
            if self.ending.said().is_some() {
                let _ = self.machine.apply(Event::End);
            }
        } else if self.machine.is_handed_over() {
            // What else happens is for the successor.
        } else if fd == self.signals.as_raw_fd() {
            self.take_signal();
        } else if fd == self.machine.devices().let_go() {
            self.machine.devices_mut().settle();
        } else if fd == self.machine.questions().bell().as_raw_fd() {
            let _ = self.machine.questions().bell().read();
            if let Some(resolver) = self.resolver {
                self.serve(resolver, ops);
            }
        } else if self.machine.watchdog_timer() == Some(fd) {
            self.look_at_watchdog();
        } else if self.backlog.as_mut().is_some_and(|backlog| backlog.is_called(fd)) {
            self.accept(ops);
        } else if self.input.as_ref().is_some_and(|input| input.source.as_raw_fd() == fd) {
            self.take_input(ops);
        } else {
            self.serve(fd, ops);
        }
    }
}
