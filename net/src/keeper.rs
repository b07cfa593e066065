//! Who makes routers' namespaces in the place of whoever uses them: one process with `CAP_SYS_ADMIN` that knows
//! nothing but names, and a line to it for one that has no such right.
//!
//! The line is a pair of `SOCK_SEQPACKET` sockets, one question and its answer at a time:
//!
//! | message | bytes |
//! |---|---|
//! | question | `c` (create), `o` (open) or `r` (remove), then the namespace's name |
//! | answer | `+`, or `0` if there is none of that name, or `-` and why |
//!
//! An answer to `c` and `o` brings three descriptors: the namespace, its rtnetlink and its nfnetlink socket.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType,
};

use crate::namespace::{self, Namespace};

/// The longest message in bytes: an error that is longer is cut.
const MESSAGE_MAX: usize = 1024;

/// What went wrong between us and the keeper.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// In this process.
    #[error(transparent)]
    Own(#[from] namespace::Error),
    /// At the keeper's.
    #[error("the keeper of namespaces: {0}")]
    Refused(String),
    /// The line.
    #[error("ask the keeper of namespaces")]
    Line(#[source] io::Error),
    /// An answer that is none.
    #[error("the keeper of namespaces answered something else than was asked")]
    Malformed,
}

/// Who makes, opens and removes namespaces. Cheap to clone.
#[derive(Debug, Clone)]
pub enum Namespaces {
    /// This process, which needs `CAP_SYS_ADMIN` for it.
    Own,
    /// The keeper at the other end of this line.
    Kept(Arc<Mutex<OwnedFd>>),
}

impl Namespaces {
    /// Those of the keeper at the other end of a line.
    #[must_use]
    pub fn kept(line: OwnedFd) -> Self {
        Self::Kept(Arc::new(Mutex::new(line)))
    }

    /// As [`namespace::create`].
    ///
    /// # Errors
    /// As [`Error`] says; then there is none of that name.
    pub fn create(&self, name: &str) -> Result<Namespace, Error> {
        match self {
            Self::Own => Ok(namespace::create(name)?),
            Self::Kept(line) => {
                ask(line, b'c', name)?.namespace().and_then(|found| found.ok_or(Error::Malformed))
            }
        }
    }

    /// Opens a namespace, if it is there.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn open(&self, name: &str) -> Result<Option<Namespace>, Error> {
        match self {
            Self::Own => match namespace::open(name) {
                Ok(namespace) => Ok(Some(namespace)),
                Err(namespace::Error::Missing(_)) => Ok(None),
                Err(error) => Err(error.into()),
            },
            Self::Kept(line) => ask(line, b'o', name)?.namespace(),
        }
    }

    /// As [`namespace::remove`].
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn remove(&self, name: &str) -> Result<(), Error> {
        match self {
            Self::Own => Ok(namespace::remove(name)?),
            Self::Kept(line) => ask(line, b'r', name).map(drop),
        }
    }
}

/// Makes a line: the keeper's end, and the one of whoever asks it.
///
/// # Errors
/// If the process can open no more files.
pub fn line() -> io::Result<(OwnedFd, OwnedFd)> {
    let (domain, kind) = (AddressFamily::UNIX, SocketType::SEQPACKET);
    Ok(rustix::net::socketpair(domain, kind, SocketFlags::CLOEXEC, None)?)
}

/// Answers until the other end is closed.
///
/// # Errors
/// If the line fails.
pub fn serve(line: &OwnedFd) -> io::Result<()> {
    loop {
        let Some((question, _)) = receive(line)? else { return Ok(()) };
        let (text, descriptors) = match answer(&question) {
            Ok(descriptors) => (b"+".to_vec(), descriptors),
            Err(namespace::Error::Missing(_)) => (b"0".to_vec(), Vec::new()),
            Err(error) => {
                let mut text = [b"-", sentence(&error).as_bytes()].concat();
                text.truncate(MESSAGE_MAX);
                (text, Vec::new())
            }
        };
        match send(line, &text, &descriptors) {
            // Whoever asked has ended meanwhile.
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            sent => sent?,
        }
    }
}

fn answer(question: &[u8]) -> Result<Vec<OwnedFd>, namespace::Error> {
    let (kind, name) = question.split_first().unwrap_or((&0, &[]));
    let name = String::from_utf8_lossy(name);
    let descriptors = |namespace: Namespace| vec![namespace.handle, namespace.links, namespace.filters];
    match kind {
        b'c' => namespace::create(&name).map(descriptors),
        b'o' => namespace::open(&name).map(descriptors),
        b'r' => namespace::remove(&name).map(|()| Vec::new()),
        _ => Err(namespace::Error::Name(name.chars().take(64).collect())),
    }
}

struct Answer {
    is_there: bool,
    descriptors: Vec<OwnedFd>,
}

impl Answer {
    fn namespace(self) -> Result<Option<Namespace>, Error> {
        if !self.is_there {
            return Ok(None);
        }
        let [handle, links, filters] = self.descriptors.try_into().map_err(|_| Error::Malformed)?;
        Ok(Some(Namespace { handle, links, filters }))
    }
}

fn ask(line: &Mutex<OwnedFd>, kind: u8, name: &str) -> Result<Answer, Error> {
    // A panic between a question and its answer would leave the answer for the next one to read.
    let line = line.lock().unwrap_or_else(PoisonError::into_inner);
    send(&line, &[&[kind], name.as_bytes()].concat(), &[]).map_err(Error::Line)?;
    let received = receive(&line).map_err(Error::Line)?;
    let (text, descriptors) = received.ok_or_else(|| Error::Line(io::ErrorKind::UnexpectedEof.into()))?;
    match text.split_first() {
        Some((b'+', _)) => Ok(Answer { is_there: true, descriptors }),
        Some((b'0', _)) => Ok(Answer { is_there: false, descriptors: Vec::new() }),
        Some((b'-', reason)) => Err(Error::Refused(String::from_utf8_lossy(reason).into_owned())),
        _ => Err(Error::Malformed),
    }
}

fn send(line: &OwnedFd, bytes: &[u8], descriptors: &[OwnedFd]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    let borrowed: Vec<_> = descriptors.iter().map(AsFd::as_fd).collect();
    if !borrowed.is_empty() && !ancillary.push(SendAncillaryMessage::ScmRights(&borrowed)) {
        return Err(io::Error::other("more descriptors than an answer has"));
    }
    rustix::net::sendmsg(line, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// The next message, or nothing if the other end is closed.
fn receive(line: &OwnedFd) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MESSAGE_MAX];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(3))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let mut parts = [IoSliceMut::new(&mut bytes)];
        match rustix::net::recvmsg(line, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    if received.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(received.bytes);
    let descriptors = ancillary.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    let descriptors = descriptors.flatten().collect();
    Ok(Some((bytes, descriptors)))
}

/// An error with its causes as one sentence.
pub(crate) fn sentence(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::names::OwnerTag;
    use crate::netlink;

    /// Of a tag that no cloud's tests have, with the process's number, since namespaces have names for all of the host.
    fn name(number: u32) -> String {
        OwnerTag::new(0x7e58).namespace(std::process::id() << 8 | number)
    }

    #[test]
    fn kept_namespace_is_made_opened_and_removed() {
        crate::testing::in_own_network(|| {
            let (ours, theirs) = line().unwrap();
            let keeper = std::thread::spawn(move || serve(&theirs).unwrap());
            let namespaces = Namespaces::kept(ours);
            let name = name(1);
            assert!(namespaces.open(&name).unwrap().is_none());
            let made = namespaces.create(&name).unwrap();
            let mut links = netlink::Client::of(made.links);
            assert_eq!(links.links().unwrap().keys().collect::<Vec<_>>(), ["lo"]);
            assert!(namespace::names().unwrap().contains(&name));
            assert!(namespaces.open(&name).unwrap().is_some());
            let again = namespaces.create(&name).unwrap_err().to_string();
            assert!(again.contains("make network namespace"), "{again}");
            namespaces.remove(&name).unwrap();
            namespaces.remove(&name).unwrap();
            assert!(namespaces.open(&name).unwrap().is_none());
            assert!(!namespace::names().unwrap().contains(&name));
            drop(namespaces);
            keeper.join().unwrap();
        });
    }

    #[test]
    fn names_that_lead_elsewhere_are_refused() {
        for name in ["../../etc/passwd", "", "eth0", "wn7e58-0000000/"] {
            for question in [b'c', b'o', b'r', b'x'] {
                let refused = answer(&[&[question], name.as_bytes()].concat());
                assert!(matches!(refused, Err(namespace::Error::Name(_))), "{name}");
            }
        }
    }

    #[test]
    fn name_whose_making_was_cut_off_is_taken_over() {
        crate::testing::in_own_network(|| {
            let name = name(2);
            std::fs::create_dir_all(namespace::DIRECTORY).unwrap();
            std::fs::write(format!("{}/{name}", namespace::DIRECTORY), "").unwrap();
            assert!(Namespaces::Own.open(&name).unwrap().is_none());
            Namespaces::Own.create(&name).unwrap();
            Namespaces::Own.remove(&name).unwrap();
            assert!(!namespace::names().unwrap().contains(&name));
        });
    }
}
