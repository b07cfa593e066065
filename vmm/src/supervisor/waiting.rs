//! The control socket of a VMM that has no guest yet: whoever connects can ask it to have one, and nothing else.

use std::io;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};

use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;

use super::client::Client;
use super::{Error, Supervisor, encode, not_those};
use crate::backlog::Backlog;
use crate::config::VmmConfig;
use crate::inherited::{PassedFds, all};
use crate::rpc::{Action, NOT_AN_ACTION, Reply, Streams};

/// By whom a guest is wanted.
#[derive(Debug)]
pub enum Called {
    /// By who has the other end of this; nobody, once that is closed.
    By(UnixStream),
    /// By whoever connects here, where the guest's control socket is then.
    At(UnixListener),
}

/// A guest as it was asked for.
pub(crate) struct Guest {
    pub(crate) config: VmmConfig,
    pub(crate) streams: Option<Streams>,
    pub(crate) fds: PassedFds,
}

/// Who asked for it.
pub(crate) struct Asked {
    /// Where it was asked for, if others can ask there, too.
    pub(crate) listener: Option<UnixListener>,
    asker: Client,
}

impl Asked {
    /// Leaves the connection open until the process ends: whoever asked knows then that the report is written.
    pub(crate) fn hold(&self) -> io::Result<()> {
        self.asker.stream.try_clone().map(std::mem::forget)
    }

    /// Tells who asked why there is no guest.
    pub(crate) fn refuse(mut self, why: String) {
        self.asker.output = encode(&Reply::Error { message: why });
        // Who does not take it finds the connection closed.
        let _ = self.asker.flush();
    }
}

impl Supervisor {
    /// Tells `asked` that the guest is there, and goes on listening to who asked for it.
    pub(crate) fn answer(&mut self, Asked { mut asker, .. }: Asked) {
        asker.output = encode(&Reply::Done { state: self.machine.state() });
        self.clients.insert(asker.stream.as_raw_fd(), asker);
    }
}

/// Waits until a guest is asked for; why there will be none otherwise.
///
/// # Errors
/// Signals or the socket.
pub(crate) fn wait(called: Called) -> Result<Result<(Guest, Asked), String>, Error> {
    let flags = SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC;
    let mut heard = SigSet::from(Signal::SIGTERM);
    let (mut backlog, mut asker) = match called {
        Called::By(stream) => {
            stream.set_nonblocking(true).map_err(Error::Socket)?;
            (None, Some(Client::new(stream)))
        }
        Called::At(listener) => {
            heard.extend([Signal::SIGINT, Signal::SIGHUP]);
            (Some(Backlog::new(listener, "the control socket").map_err(Error::Socket)?), None)
        }
    };
    let signals = SignalFd::with_flags(&heard, flags).map_err(Error::Signals)?;
    loop {
        if let Some(client) = &mut asker {
            match next(client) {
                Ok(None) => {}
                Ok(Some(guest)) => {
                    let asker = asker.take().expect("invariant: it is the one that asked");
                    let listener = backlog.map(Backlog::into_listener);
                    return Ok(Ok((guest, Asked { listener, asker })));
                }
                Err(error) if backlog.is_none() => {
                    return Ok(Err(format!("nobody is there any more who could want a guest: {error}")));
                }
                Err(error) => {
                    tracing::debug!(%error, "a client of the control socket was cut off");
                    asker = None;
                }
            }
        }
        if asker.is_none()
            && let Some(stream) = backlog.as_mut().and_then(Backlog::accept)
        {
            asker = Some(Client::new(stream));
            continue;
        }
        let awaited = match (&asker, &backlog) {
            (Some(client), _) if client.output.is_empty() => Some((client.stream.as_fd(), PollFlags::IN)),
            (Some(client), _) => Some((client.stream.as_fd(), PollFlags::OUT)),
            (None, Some(backlog)) if !backlog.rests() => Some((backlog.listener().as_fd(), PollFlags::IN)),
            (None, _) => None,
        };
        let is_heard = until_ready(&signals, awaited).map_err(Error::Socket)?;
        if let Some(info) = signals.read_signal().map_err(Error::Signals)? {
            return Ok(Err(format!("it was told to end by signal {}, and had no guest", info.ssi_signo)));
        }
        if let Some(backlog) = backlog.as_mut().filter(|_| !is_heard) {
            backlog.go_on();
        }
    }
}

/// Waits for a signal, or what is awaited; where nothing is, for a second. Whether there is something.
fn until_ready(signals: &SignalFd, awaited: Option<(BorrowedFd<'_>, PollFlags)>) -> io::Result<bool> {
    let rest = awaited.is_none().then_some(Timespec { tv_sec: 1, tv_nsec: 0 });
    let mut polled = vec![PollFd::from_borrowed_fd(signals.as_fd(), PollFlags::IN)];
    polled.extend(awaited.map(|(fd, flags)| PollFd::from_borrowed_fd(fd, flags)));
    match poll(&mut polled, rest.as_ref()) {
        Ok(ready) => Ok(ready > 0),
        Err(Errno::INTR) => Ok(true),
        Err(errno) => Err(errno.into()),
    }
}

/// What `client` wants a guest to be, once it has said so; everything else it is refused.
fn next(client: &mut Client) -> io::Result<Option<Guest>> {
    loop {
        if !client.flush()? {
            return Ok(None);
        }
        let Some(line) = client.next_line()? else { return Ok(None) };
        let passed = std::mem::take(&mut client.descriptors);
        let reply = match serde_json::from_slice(&line) {
            Ok(Action::Configure { config, streams }) => match passed_for(&config, streams, passed) {
                Some(fds) => return Ok(Some(Guest { config: *config, streams, fds })),
                None => not_those(),
            },
            Ok(_) => {
                Reply::Error { message: "this VMM waits for its guest: nothing else comes first".to_owned() }
            }
            Err(error) => Reply::Error { message: format!("{NOT_AN_ACTION}: {error}") },
        };
        client.output = encode(&reply);
    }
}

fn passed_for(config: &VmmConfig, streams: Option<Streams>, passed: Vec<OwnedFd>) -> Option<PassedFds> {
    let mut named = all(config);
    named.extend(streams.into_iter().flat_map(|streams| [streams.input, streams.output]));
    PassedFds::new(passed, &named)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead as _, BufReader, Write as _};
    use std::time::Duration;

    use super::*;
    use crate::config::{Boot, InheritedFd};

    const PATIENCE: Duration = Duration::from_secs(30);

    fn config() -> VmmConfig {
        serde_json::from_value(serde_json::json!({
            "memory_mib": 1, "vcpus": 1, "boot": {"kernel": {"kernel": 0}}
        }))
        .unwrap()
    }

    /// What is answered to `lines`, each of which comes without descriptors, before `then` is.
    fn answers(
        called: impl FnOnce(UnixStream) -> Called,
        lines: &[&str],
    ) -> (Vec<String>, Called, UnixStream) {
        let (ours, theirs) = UnixStream::pair().unwrap();
        ours.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut writer = ours.try_clone().unwrap();
        lines.iter().for_each(|line| writeln!(writer, "{line}").unwrap());
        let mut client = Client::new(theirs.try_clone().unwrap());
        theirs.set_nonblocking(true).unwrap();
        assert!(next(&mut client).unwrap().is_none());
        let mut reader = BufReader::new(&ours);
        let answers = lines.iter().map(|_| {
            let mut answer = String::new();
            reader.read_line(&mut answer).unwrap();
            answer
        });
        (answers.collect(), called(theirs), ours.try_clone().unwrap())
    }

    #[test]
    fn nothing_comes_before_a_guest_with_the_files_that_it_names() {
        let guest = serde_json::to_string(&Action::Configure { config: Box::new(config()), streams: None });
        let lines = [r#"{"action":"status"}"#, r#"{"action":"start"}"#, "{}", &guest.unwrap()];
        let (said, called, ours) = answers(Called::By, &lines);
        assert!(said[..2].iter().all(|said| said.contains("waits for its guest")), "{said:?}");
        assert!(said[2].contains("not an action"), "{said:?}");
        assert!(said[3].contains("not those that are named"), "{said:?}");

        // It is still wanted, and comes with what it names.
        let mut asker = crate::rpc::Client::new(ours).unwrap();
        let kernel = std::fs::File::open("/dev/null").unwrap();
        let thread = std::thread::spawn(move || asker.configure(config(), None, &[kernel.as_fd()]).is_ok());
        let (guest, asked) = wait(called).unwrap().expect("a guest");
        assert_eq!(guest.config.boot, Boot::Kernel { kernel: InheritedFd(0), initrd: None });
        assert!(asked.listener.is_none());
        asked.refuse("no".to_owned());
        assert!(!thread.join().unwrap());
    }

    #[test]
    fn who_is_gone_wants_no_guest() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        drop(ours);
        let why = wait(Called::By(theirs)).unwrap().err().expect("no guest");
        assert!(why.contains("nobody is there any more"), "{why}");
    }

    #[test]
    fn whoever_connects_can_want_one_after_another_that_left() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let thread = std::thread::spawn(move || {
            drop(UnixStream::connect(&path).unwrap());
            let mut broken = UnixStream::connect(&path).unwrap();
            broken.write_all(b"{\"action\"").unwrap();
            drop(broken);
            let kernel = std::fs::File::open("/dev/null").unwrap();
            let mut asker = crate::rpc::Client::connect(&path).unwrap();
            asker.configure(config(), None, &[kernel.as_fd()]).unwrap_err().to_string()
        });
        let (_, asked) = wait(Called::At(listener)).unwrap().expect("a guest");
        assert!(asked.listener.is_some());
        asked.refuse("not this one".to_owned());
        assert!(thread.join().unwrap().contains("not this one"));
    }
}
