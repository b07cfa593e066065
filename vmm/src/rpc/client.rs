//! The other end of a control socket: one action at a time, and what becomes of it. What is said of snapshots, handing
//! over and memory is asked beside its answers.

use std::io::{self, BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use zeroize::Zeroizing;

use super::{
    Action, ConsoleName, DeviceName, DeviceState, LINE_BYTES_MAX, NOT_AN_ACTION, Reply, Status, VmState,
    passing,
};
use crate::config::{Addressing, DiskConfig, DiskLimits, NicConfig, Traffic};

/// The longest that a VMM may take to answer: holding vCPUs waits for device work of theirs, which may wait for a
/// disk.
pub(super) const ANSWER_TIMEOUT_DEFAULT: Duration = Duration::from_secs(10);

/// Why a VMM did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens at the socket: the process is over.
    #[error("connect to the VMM's control socket")]
    Connect(#[source] io::Error),
    /// The connection broke, or the answer took too long.
    #[error("talk to the VMM")]
    Talk(#[source] io::Error),
    /// The answer is longer than [`LINE_BYTES_MAX`].
    #[error("the VMM's answer is longer than {LINE_BYTES_MAX} bytes")]
    TooLong,
    /// The answer is not one.
    #[error("understand the VMM's answer")]
    Parse(#[source] serde_json::Error),
    /// The VMM refused.
    #[error("the VMM refused: {0}")]
    Refused(String),
    /// An answer to something else.
    #[error("the VMM answered something else than was asked")]
    Mismatch,
}

/// A refusal, for whoever reads it. A VMM keeps the program that it was started with, so it may be older than this one and not
/// know what is asked of it, or a part of that.
fn explained(refusal: String) -> String {
    match refusal.strip_prefix(NOT_AN_ACTION) {
        Some(what) => format!(
            "it does not know what it is asked for, as a VMM of an older program: do without, or hand its guest over to this program first (`wisp vmm upgrade`){what}"
        ),
        None => refusal,
    }
}

/// A blocking client of one VMM's control socket.
#[derive(Debug)]
pub struct Client {
    stream: BufReader<UnixStream>,
}

impl AsFd for Client {
    /// Readable when the VMM is gone, between an answer and the next question.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.stream.get_ref().as_fd()
    }
}

impl Client {
    /// Connects to the socket at `path`; each answer may take ten seconds.
    ///
    /// # Errors
    /// Nobody listens there.
    pub fn connect(path: &Path) -> Result<Self, ClientError> {
        Self::new(UnixStream::connect(path).map_err(ClientError::Connect)?)
    }

    /// Talks over an open connection.
    ///
    /// # Errors
    /// The socket's.
    pub fn new(stream: UnixStream) -> Result<Self, ClientError> {
        let client = Self { stream: BufReader::new(stream) };
        client.set_timeout(ANSWER_TIMEOUT_DEFAULT)?;
        Ok(client)
    }

    /// Bounds how long sending, and then each piece of an answer, may take; not zero.
    ///
    /// # Errors
    /// A timeout of zero.
    pub fn set_timeout(&self, timeout: Duration) -> Result<(), ClientError> {
        let stream = self.stream.get_ref();
        stream.set_read_timeout(Some(timeout)).map_err(ClientError::Talk)?;
        stream.set_write_timeout(Some(timeout)).map_err(ClientError::Talk)
    }

    /// Sends one action and returns its reply. After an error other than `Refused` the connection is of no use.
    ///
    /// # Errors
    /// The connection's, or the VMM's refusal.
    pub fn call(&mut self, action: &Action) -> Result<Reply, ClientError> {
        self.call_with(action, &[])
    }

    fn send(&mut self, action: &Action, descriptors: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        // It may hold the key of a disk.
        let mut line = Zeroizing::new(serde_json::to_vec(action).expect("invariant: actions are plain data"));
        line.push(b'\n');
        let stream = self.stream.get_mut();
        let sent = passing::send(stream, &line, descriptors).map_err(ClientError::Talk)?;
        stream.write_all(&line[sent..]).map_err(ClientError::Talk)
    }

    /// The same with descriptors that the action numbers from zero, up to [`super::REQUEST_FDS_MAX`].
    pub(super) fn call_with(
        &mut self,
        action: &Action,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Reply, ClientError> {
        self.send(action, descriptors)?;
        let mut answer = Vec::new();
        let bytes_max = LINE_BYTES_MAX as u64 + 1;
        (&mut self.stream).take(bytes_max).read_until(b'\n', &mut answer).map_err(ClientError::Talk)?;
        match answer.pop() {
            Some(b'\n') => {}
            Some(_) if answer.len() >= LINE_BYTES_MAX => return Err(ClientError::TooLong),
            _ => return Err(ClientError::Talk(io::ErrorKind::UnexpectedEof.into())),
        }
        match serde_json::from_slice(&answer).map_err(ClientError::Parse)? {
            Reply::Error { message } => Err(ClientError::Refused(explained(message))),
            reply => Ok(reply),
        }
    }

    /// Sends one action that leads to a state, and returns it.
    pub(super) fn done(&mut self, action: &Action) -> Result<VmState, ClientError> {
        match self.call(action)? {
            Reply::Done { state } => Ok(state),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// [`Action::Start`]; the state it led to.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn start(&mut self) -> Result<VmState, ClientError> {
        self.done(&Action::Start)
    }

    /// [`Action::Pause`]; the state it led to.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn pause(&mut self) -> Result<VmState, ClientError> {
        self.done(&Action::Pause)
    }

    /// [`Action::Resume`]; the state it led to.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn resume(&mut self) -> Result<VmState, ClientError> {
        self.done(&Action::Resume)
    }

    /// [`Action::Flush`]; the state, which stays paused. It takes as long as the disks do.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn flush(&mut self) -> Result<VmState, ClientError> {
        self.done(&Action::Flush)
    }

    /// [`Action::Readdress`]; the state, which stays as it is.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn readdress(&mut self, mac: [u8; 6], addressing: Addressing) -> Result<VmState, ClientError> {
        self.done(&Action::Readdress { mac, addressing: Box::new(addressing) })
    }

    /// [`Action::AddDisk`], with the files that `disk` numbers from zero.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn add_disk(&mut self, disk: DiskConfig, files: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        self.done_with(&Action::AddDisk { disk: Box::new(disk) }, files)
    }

    /// [`Action::ResizeDisk`], likewise.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn resize_disk(&mut self, disk: DiskConfig, files: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        self.done_with(&Action::ResizeDisk { disk: Box::new(disk) }, files)
    }

    /// The same of a disk whose files are locked; the file of before, if the disk has another one now, whose locks hold while that
    /// is held. A VMM of before hands none over.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn resize_locked_disk(
        &mut self,
        disk: DiskConfig,
        files: &[BorrowedFd<'_>],
    ) -> Result<Vec<OwnedFd>, ClientError> {
        self.handles_with(&Action::ResizeDisk { disk: Box::new(disk) }, files)
    }

    /// [`Action::AddNic`], whose tap's queues are numbered in their order, from zero.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn add_nic(&mut self, nic: NicConfig, tap: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        self.done_with(&Action::AddNic { nic: Box::new(nic) }, tap)
    }

    fn done_with(&mut self, action: &Action, descriptors: &[BorrowedFd<'_>]) -> Result<(), ClientError> {
        match self.call_with(action, descriptors)? {
            Reply::Done { .. } => Ok(()),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// [`Action::Remove`]; how far the device is.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn remove(&mut self, device: DeviceName) -> Result<DeviceState, ClientError> {
        match self.call(&Action::Remove { device })? {
            Reply::Device { state } => Ok(state),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// [`Action::Reshape`]; the state, which stays as it is.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn reshape(&mut self, mac: [u8; 6], traffic: Traffic) -> Result<VmState, ClientError> {
        self.done(&Action::Reshape { mac, traffic })
    }

    /// [`Action::LimitDisk`]; the state, which stays as it is.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn limit_disk(&mut self, serial: String, limits: DiskLimits) -> Result<VmState, ClientError> {
        self.done(&Action::LimitDisk { serial, limits })
    }

    /// [`Action::Stop`]; the state it led to. The process ends on its own afterwards.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn stop(&mut self, force: bool) -> Result<VmState, ClientError> {
        self.done(&Action::Stop { force })
    }

    /// [`Action::Stop`] by force; handles of what takes long to take apart, to be closed where nobody waits. A VMM of before
    /// hands fewer over, or none.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn end(&mut self) -> Result<Vec<OwnedFd>, ClientError> {
        self.handles_with(&Action::Stop { force: true }, &[])
    }

    /// What comes with the reply to an action.
    fn handles_with(
        &mut self,
        action: &Action,
        descriptors: &[BorrowedFd<'_>],
    ) -> Result<Vec<OwnedFd>, ClientError> {
        self.send(action, descriptors)?;
        let stream = self.stream.get_mut();
        // Nothing is in the buffer between calls: a reply is read to its end, and is the last that came.
        let (mut reply, mut handles, mut buffer) = (Vec::new(), Vec::new(), [0; 256]);
        while reply.last() != Some(&b'\n') {
            match passing::receive(stream, &mut buffer, &mut handles).map_err(ClientError::Talk)? {
                0 => return Err(ClientError::Talk(io::ErrorKind::UnexpectedEof.into())),
                count => reply.extend_from_slice(&buffer[..count]),
            }
            if reply.len() > LINE_BYTES_MAX {
                return Err(ClientError::TooLong);
            }
        }
        match serde_json::from_slice(&reply).map_err(ClientError::Parse)? {
            Reply::Error { message } => Err(ClientError::Refused(explained(message))),
            Reply::Done { .. } => Ok(handles),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// [`Action::Status`].
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn status(&mut self) -> Result<Status, ClientError> {
        match self.call(&Action::Status)? {
            Reply::Status(status) => Ok(*status),
            _ => Err(ClientError::Mismatch),
        }
    }

    /// [`Action::Console`]: the newest `bytes_max` bytes of the serial console's output at most.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn console(&mut self, bytes_max: u32) -> Result<String, ClientError> {
        self.console_of(ConsoleName::Serial, bytes_max)
    }

    /// The same of any console.
    ///
    /// # Errors
    /// As [`Self::call`].
    pub fn console_of(&mut self, console: ConsoleName, bytes_max: u32) -> Result<String, ClientError> {
        match self.call(&Action::Console { bytes_max, console })? {
            Reply::Console { text } => Ok(text),
            _ => Err(ClientError::Mismatch),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What the client makes of a VMM that answers `answer` to everything.
    fn status_of(answer: &'static [u8]) -> Result<Status, ClientError> {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = std::thread::spawn(move || {
            let mut theirs = BufReader::new(theirs);
            theirs.read_until(b'\n', &mut Vec::new()).unwrap();
            // The client may hang up in the middle.
            let _ = theirs.get_mut().write_all(answer);
        });
        let mut client = Client::new(ours).unwrap();
        client.set_timeout(Duration::from_millis(200)).unwrap();
        let status = client.status();
        drop(client);
        server.join().unwrap();
        status
    }

    #[test]
    fn broken_answers_are_errors() {
        assert!(matches!(status_of(b"{}\n"), Err(ClientError::Parse(_))));
        assert!(matches!(
            status_of(b"{\"reply\":\"done\",\"state\":\"running\"}\n"),
            Err(ClientError::Mismatch)
        ));
        assert!(matches!(
            status_of(b"{\"reply\":\"error\",\"message\":\"no\"}\n"),
            Err(ClientError::Refused(_))
        ));
        let unknown = status_of(b"{\"reply\":\"error\",\"message\":\"not an action: unknown field `x`\"}\n");
        let said = unknown.unwrap_err().to_string();
        assert!(
            said.contains("as a VMM of an older program") && said.ends_with("): unknown field `x`"),
            "{said}"
        );
        assert!(matches!(status_of(b"{\"reply\""), Err(ClientError::Talk(_))));
        static LONG: [u8; LINE_BYTES_MAX + 2] = [b'x'; LINE_BYTES_MAX + 2];
        assert!(matches!(status_of(&LONG), Err(ClientError::TooLong)));
    }
}
