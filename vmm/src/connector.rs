//! Connections to the host's Unix sockets on behalf of a guest. A confined VMM can neither make sockets nor name files, so
//! a process beside it does that and nothing else: it is told a port, and connects to the socket of that port, whose name
//! begins as it was told at its start.
//!
//! Over a socket pair that keeps messages apart, in little-endian numbers of 32 bits:
//! ```text
//! from the VMM     number of the request, port
//! to the VMM       number of the request, 0 with the connection's descriptor (SCM_RIGHTS), or else an error of errno(3)
//! ```
//! Must never know: what a connection is for.

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;

use nix::sys::resource::{Resource, setrlimit};
use rustix::io::Errno;
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
};

use crate::rpc::passing;

/// Bytes of a message either way.
pub(crate) const MESSAGE_BYTES: usize = 8;

/// Why nothing is connected.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A socket pair.
    #[error("make a pair of sockets")]
    Pair(#[source] io::Error),
    /// The process cannot be confined.
    #[error("confine the connecting process: {0}")]
    Confine(&'static str),
    /// The VMM cannot be heard.
    #[error("hear the VMM")]
    Talk(#[source] io::Error),
}

/// Both ends: the VMM's, and that of [`serve`].
///
/// # Errors
/// The kernel's.
pub fn pair() -> Result<(OwnedFd, OwnedFd), Error> {
    let made =
        rustix::net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None);
    made.map_err(|errno| Error::Pair(errno.into()))
}

/// Connects as the VMM at the other end of `socket` asks, to `path` followed by `_` and the port, until that end closes.
///
/// # Errors
/// The socket's.
pub fn serve(socket: OwnedFd, path: &Path) -> Result<(), Error> {
    let socket = UnixStream::from(socket);
    let mut message = [0; MESSAGE_BYTES];
    loop {
        let mut none = Vec::new();
        match passing::receive(&socket, &mut message, &mut none) {
            Ok(0) => return Ok(()),
            Ok(MESSAGE_BYTES) => {}
            Ok(_) => continue,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => return Err(Error::Talk(error)),
        }
        let (number, port) = split(message);
        let connected = connect(path, port);
        let error = connected.as_ref().err().map_or(0, |errno| errno.raw_os_error().unsigned_abs());
        let answer = join(number, error);
        let descriptors = connected.iter().map(|connection| connection.as_fd()).collect::<Vec<_>>();
        match passing::send(&socket, &answer, &descriptors) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => return Ok(()),
            Err(error) => return Err(Error::Talk(error)),
        }
    }
}

/// A connection to the socket of `port`; where nobody accepts, that is an error at once.
fn connect(path: &Path, port: u32) -> Result<OwnedFd, Errno> {
    let mut name = OsString::from(path);
    name.push(format!("_{port}"));
    let address = SocketAddrUnix::new(Path::new(&name))?;
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
    rustix::net::connect(&socket, &address)?;
    Ok(socket)
}

/// Two numbers from a message.
pub(crate) fn split(message: [u8; MESSAGE_BYTES]) -> (u32, u32) {
    let [a, b, c, d, e, f, g, h] = message;
    (u32::from_le_bytes([a, b, c, d]), u32::from_le_bytes([e, f, g, h]))
}

/// A message of two numbers.
pub(crate) fn join(first: u32, second: u32) -> [u8; MESSAGE_BYTES] {
    let mut message = [0; MESSAGE_BYTES];
    message[..4].copy_from_slice(&first.to_le_bytes());
    message[4..].copy_from_slice(&second.to_le_bytes());
    message
}

/// System calls of a process that does nothing but [`serve`]; sockets are of one kind.
const ALLOWED: [libc::c_long; 16] = [
    libc::SYS_connect,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_close,
    // The last words of a panic, and of an error.
    libc::SYS_write,
    libc::SYS_writev,
    // Memory and signals.
    libc::SYS_brk,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    libc::SYS_futex,
    libc::SYS_sigaltstack,
    libc::SYS_rt_sigprocmask,
    libc::SYS_rt_sigreturn,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// Confines the calling thread, and those that it makes, to what [`serve`] needs.
///
/// # Errors
/// The kernel's; the process must not go on then.
pub fn confine() -> Result<(), Error> {
    setrlimit(Resource::RLIMIT_CORE, 0, 0).map_err(|_| Error::Confine("forbid core dumps"))?;
    let filter = filter().map_err(|_| Error::Confine("make a filter of system calls"))?;
    seccompiler::apply_filter(&filter).map_err(|_| Error::Confine("filter system calls"))
}

fn filter() -> Result<BpfProgram, seccompiler::BackendError> {
    let only = |argument: u8, operator: SeccompCmpOp, value: libc::c_int| {
        let value = u64::from(value.unsigned_abs());
        let condition = SeccompCondition::new(argument, SeccompCmpArgLen::Dword, operator, value)?;
        Ok::<_, seccompiler::BackendError>(vec![SeccompRule::new(vec![condition])?])
    };
    let mut rules: std::collections::BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    rules.insert(libc::SYS_socket, only(0, SeccompCmpOp::Eq, libc::AF_UNIX)?);
    let executable = u64::from(libc::PROT_EXEC.unsigned_abs());
    rules.insert(libc::SYS_mmap, only(2, SeccompCmpOp::MaskedEq(executable), 0)?);
    let arch = std::env::consts::ARCH.try_into()?;
    let denied = SeccompAction::Errno(libc::ENOSYS.unsigned_abs());
    SeccompFilter::new(rules, denied, SeccompAction::Allow, arch)?.try_into()
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// On a thread of its own, which is confined.
    #[test]
    fn connections_are_passed_in_and_errors_told_while_nothing_else_can_be_opened() {
        let directory = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(directory.path().join("v.sock_52")).unwrap();
        let (ours, theirs) = pair().unwrap();
        let path = directory.path().join("v.sock");
        let server = std::thread::spawn(move || {
            confine().unwrap();
            assert!(std::fs::File::open("/dev/null").is_err());
            assert!(std::net::UdpSocket::bind("127.0.0.1:0").is_err());
            serve(theirs, &path).unwrap();
        });
        let ours = UnixStream::from(ours);
        let ask = |number, port| {
            passing::send(&ours, &join(number, port), &[]).unwrap();
            let (mut message, mut passed) = ([0; MESSAGE_BYTES], Vec::new());
            assert_eq!(passing::receive(&ours, &mut message, &mut passed).unwrap(), MESSAGE_BYTES);
            (split(message), passed)
        };
        let (answer, mut passed) = ask(7, 52);
        assert_eq!((answer, passed.len()), ((7, 0), 1));
        UnixStream::from(passed.pop().unwrap()).write_all(b"guest").unwrap();
        let mut heard = String::new();
        listener.accept().unwrap().0.read_to_string(&mut heard).unwrap();
        assert_eq!(heard, "guest");

        let (answer, passed) = ask(8, 53);
        assert_eq!((answer, passed.len()), ((8, libc::ENOENT.unsigned_abs()), 0));
        drop(listener);
        assert_eq!(ask(u32::MAX, 52).0, (u32::MAX, libc::ECONNREFUSED.unsigned_abs()));
        // What is no message is passed over.
        passing::send(&ours, b"abc", &[]).unwrap();
        assert_eq!(ask(9, u32::MAX).0.0, 9);
        drop(ours);
        server.join().unwrap();
    }
}
