//! The machine's end: who asks for it, and how it comes about.
//!
//! Asked for by SIGTERM, by three keys (SIGINT), by the power failing (SIGPWR), or by the power button, which is a key of
//! an input device.

use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd as _;
use std::time::Duration;

use nix::fcntl::OFlag;
use nix::mount::{MsFlags, mount};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::console::Console;

/// How long the programs that are left may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(2);
/// Between looks at whether they have.
const LOOK_INTERVAL: Duration = Duration::from_millis(20);
/// Input devices that are looked at for a button: a machine here has one or two.
const BUTTONS_MAX: usize = 8;
/// Bytes of `struct input_event`: a time, a type at 16, a code at 18, a value at 20.
const EVENT_BYTES: usize = 24;
/// `EV_KEY`, `KEY_POWER`, pressed.
const POWER_PRESSED: [u8; 8] = [1, 0, 116, 0, 1, 0, 0, 0];

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Event {
    /// A program may have ended.
    Child,
    /// The machine is to end.
    End,
    /// Neither, for too long.
    Timeout,
}

/// What this program is told: by signals, and by buttons.
pub(crate) struct Signals {
    signals: Option<SignalFd>,
    buttons: Vec<File>,
}

impl Signals {
    /// Takes signals from now on; those that came before are lost.
    pub(crate) fn block() -> Self {
        let mut set = SigSet::empty();
        for signal in [Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGPWR] {
            set.add(signal);
        }
        let blocked = set.thread_block();
        let signals =
            blocked.and_then(|()| SignalFd::with_flags(&set, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC));
        let entries = fs::read_dir("/dev/input").into_iter().flatten().flatten();
        let open = |path| {
            use std::os::unix::fs::OpenOptionsExt as _;
            File::options().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path).ok()
        };
        let buttons = entries.filter_map(|entry| open(entry.path())).take(BUTTONS_MAX).collect();
        Self { signals: signals.ok(), buttons }
    }

    /// Waits for something to happen, or so long.
    pub(crate) fn wait(&self, timeout: Option<Duration>) -> Event {
        // Without signals, it is looked at whether something has ended.
        let timeout = if self.signals.is_some() { timeout } else { Some(LOOK_INTERVAL) };
        let timeout =
            timeout.map_or(PollTimeout::NONE, |timeout| timeout.try_into().unwrap_or(PollTimeout::MAX));
        let files = self.signals.iter().map(SignalFd::as_fd).chain(self.buttons.iter().map(File::as_fd));
        let mut files: Vec<PollFd<'_>> = files.map(|file| PollFd::new(file, PollFlags::POLLIN)).collect();
        match poll(&mut files, timeout) {
            Ok(0) if self.signals.is_some() => return Event::Timeout,
            Ok(_) => {}
            Err(_) => return Event::Child,
        }
        let asked = self.signals.iter().any(|signals| {
            // All that are there: several of one kind are one.
            std::iter::from_fn(|| signals.read_signal().ok().flatten())
                .filter(|told| told.ssi_signo != Signal::SIGCHLD as u32)
                .count()
                > 0
        });
        let pressed = self.buttons.iter().filter(|button| is_pressed(button)).count() > 0;
        if asked || pressed { Event::End } else { Event::Child }
    }
}

/// Whether the power button was pressed.
fn is_pressed(mut button: &File) -> bool {
    let mut events = [0; EVENT_BYTES * 16];
    match button.read(&mut events) {
        Ok(count) => events[..count].chunks_exact(EVENT_BYTES).any(|event| event[16..] == POWER_PRESSED),
        Err(_) => false,
    }
}

/// Ends what is left, writes what is not written, and powers off.
pub(crate) fn power_off(console: &mut Console) -> ! {
    let everybody = Pid::from_raw(-1);
    for (signal, timeout) in [(Signal::SIGTERM, END_TIMEOUT), (Signal::SIGKILL, END_TIMEOUT)] {
        let _ = kill(everybody, signal);
        let mut left = timeout;
        while left > Duration::ZERO && !all_ended() {
            std::thread::sleep(LOOK_INTERVAL);
            left = left.saturating_sub(LOOK_INTERVAL);
        }
    }
    nix::unistd::sync();
    let read_only = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    if let Err(error) = mount(None::<&str>, "/", None::<&str>, read_only, None::<&str>) {
        console.say(&format!("the root stays writable: {error}"));
    }
    loop {
        let Err(error) = reboot(RebootMode::RB_POWER_OFF);
        console.say(&format!("the machine cannot be powered off: {error}"));
        std::thread::sleep(END_TIMEOUT);
    }
}

/// Whether no program is left.
fn all_ended() -> bool {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => return false,
            Ok(_) => {}
            Err(_) => return true,
        }
    }
}
