//! Sockets of devices in a process that has no descriptor left.

use std::io::{ErrorKind, Read as _, Write as _};
use std::os::fd::AsRawFd as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, getrlimit, setrlimit};

use super::super::console::{Output, build_console};
use super::super::mock::MockGuest;
use super::super::vsock::build_vsock;

/// Runs `body` in a process of its own, in which the test of this name is called again, with a socket.
fn alone(name: &str, body: impl FnOnce(UnixListener, &Path)) {
    const ASKED: &str = "WISP_TEST_EXHAUSTED";
    if std::env::var_os(ASKED).is_some() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("socket");
        return body(UnixListener::bind(&path).unwrap(), &path);
    }
    let this = std::env::current_exe().unwrap();
    let name = format!("virtio::tests::exhausted::{name}");
    let ran = Command::new(this).args([&name, "--exact"]).env(ASKED, "1").output().unwrap();
    let said = String::from_utf8_lossy(&ran.stdout);
    assert!(ran.status.success() && said.contains("1 passed"), "{said}");
}

/// Whoever connects while there is no descriptor is served once there is one, and until then nothing spins. Served, the first
/// of two is hung up on: it talks nonsense, and a console is then the second's.
fn rests(guest: &mut MockGuest, path: &Path) {
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE).unwrap();
    for _ in 0..2 {
        let [mut first, _second] = [(); 2].map(|()| UnixStream::connect(path).unwrap());
        first.write_all(b"nonsense\n").unwrap();
        first.set_nonblocking(true).unwrap();
        let is_served = |mut stream: &UnixStream| match stream.read(&mut [0]) {
            Err(error) => error.kind() != ErrorKind::WouldBlock,
            Ok(count) => count == 0,
        };
        let next = first.try_clone().unwrap().as_raw_fd();
        setrlimit(Resource::RLIMIT_NOFILE, next.try_into().unwrap(), hard).unwrap();
        assert!(guest.run(), "the event loop comes to rest");
        assert!(!is_served(&first));
        setrlimit(Resource::RLIMIT_NOFILE, soft, hard).unwrap();
        let deadline = Instant::now() + Duration::from_secs(30);
        while !is_served(&first) {
            assert!(Instant::now() < deadline, "nobody is served");
            guest.wait(100);
        }
        assert!(guest.run(), "it comes to rest again");
    }
}

#[test]
fn console_rests_until_it_can_take_who_connects() {
    alone("console_rests_until_it_can_take_who_connects", |listener, path| {
        rests(&mut MockGuest::new(build_console(Output::Socket(listener)).unwrap()).unwrap(), path);
    });
}

#[test]
fn vsock_rests_until_it_can_take_who_connects() {
    alone("vsock_rests_until_it_can_take_who_connects", |listener, path| {
        rests(&mut MockGuest::new(build_vsock(3, Some(listener), None).unwrap()).unwrap(), path);
    });
}
