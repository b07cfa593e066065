//! A VMM of an older program, as far as its control socket tells: one that goes on after its host's programs are newer ones.

use std::collections::BTreeMap;
use std::io::{BufRead as _, BufReader, IoSlice, IoSliceMut, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use control::driver::Driver;
use rustix::buffer::spare_capacity;
use rustix::event::Timespec;
use rustix::event::epoll::{self, CreateFlags, EventData, EventFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use vmm::rpc::{Client, DeviceName, NOT_AN_ACTION, REQUEST_FDS_MAX};

use super::{Host, eventually};

/// How long the VMM behind may take to answer.
const PATIENCE: Duration = Duration::from_secs(20);
/// How soon it is noticed that nobody needs it any more.
const LOOK_INTERVAL: Timespec = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };

/// How many events are heard of at once; further ones wait.
const EVENTS_MAX: usize = 16;

/// Requests for network devices, as they came: how many descriptors were passed, and whether it knew all words.
type Asked = Arc<Mutex<Vec<(usize, bool)>>>;

/// Listens where a VMM did, and asks that VMM: all but for several pairs of queues, of which it does not know the word.
struct Older {
    behind: PathBuf,
    asked: Asked,
    is_over: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Older {
    fn in_front_of(socket: &Path) -> Self {
        let behind = socket.with_file_name("newer.sock");
        std::fs::rename(socket, &behind).unwrap();
        let listener = UnixListener::bind(socket).unwrap();
        let (asked, is_over) = (Asked::default(), Arc::new(AtomicBool::new(false)));
        let thread = std::thread::spawn({
            let (behind, asked, is_over) = (behind.clone(), asked.clone(), is_over.clone());
            move || serve(&listener, &behind, &asked, &is_over)
        });
        Self { behind, asked, is_over, thread: Some(thread) }
    }

    fn asked(&self) -> Vec<(usize, bool)> {
        self.asked.lock().unwrap().clone()
    }
}

impl Drop for Older {
    fn drop(&mut self) {
        self.is_over.store(true, Ordering::Relaxed);
        let ended = self.thread.take().expect("invariant: taken here").join();
        assert!(ended.is_ok() || std::thread::panicking(), "the older VMM has failed");
    }
}

/// One event loop for all connections, as a VMM has: what happened first is heard first (epoll(7)).
fn serve(listener: &UnixListener, behind: &Path, asked: &Asked, is_over: &AtomicBool) {
    /// The listener's number; those of connections follow.
    const LISTENER: u64 = 0;
    let (mut connections, mut last) = (BTreeMap::new(), LISTENER);
    let loops = epoll::create(CreateFlags::CLOEXEC).unwrap();
    epoll::add(&loops, listener, EventData::new_u64(LISTENER), EventFlags::IN).unwrap();
    while !is_over.load(Ordering::Relaxed) {
        let mut events = Vec::with_capacity(EVENTS_MAX);
        epoll::wait(&loops, spare_capacity(&mut events), Some(&LOOK_INTERVAL)).unwrap();
        for number in events.into_iter().map(|event| event.data.u64()) {
            if number == LISTENER {
                let (stream, _) = listener.accept().unwrap();
                let newer = UnixStream::connect(behind).unwrap();
                newer.set_read_timeout(Some(PATIENCE)).unwrap();
                last += 1;
                epoll::add(&loops, &stream, EventData::new_u64(last), EventFlags::IN).unwrap();
                let (kept, line) = (Vec::new(), Vec::new());
                connections.insert(last, Connection { stream, newer: BufReader::new(newer), kept, line });
            } else if connections.get_mut(&number).is_some_and(|one| !one.serve(asked)) {
                connections.remove(&number);
            }
        }
    }
}

struct Connection {
    stream: UnixStream,
    newer: BufReader<UnixStream>,
    /// What came with the request. What came with one that it does not understand stays until the other end hangs up.
    kept: Vec<OwnedFd>,
    line: Vec<u8>,
}

impl Connection {
    /// Reads what is there, and answers a whole line. False where the other end has hung up.
    fn serve(&mut self, asked: &Asked) -> bool {
        let mut buffer = [0; 1 << 16];
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REQUEST_FDS_MAX))];
        let mut ancillary = RecvAncillaryBuffer::new(&mut space);
        let mut parts = [IoSliceMut::new(&mut buffer)];
        let Ok(received) = recvmsg(&self.stream, &mut parts, &mut ancillary, RecvFlags::CMSG_CLOEXEC) else {
            return false;
        };
        for message in ancillary.drain() {
            if let RecvAncillaryMessage::ScmRights(passed) = message {
                self.kept.extend(passed);
            }
        }
        self.line.extend_from_slice(&buffer[..received.bytes]);
        if self.line.last() == Some(&b'\n') {
            let reply = self.reply(asked);
            self.line.clear();
            return self.stream.write_all(&reply).is_ok();
        }
        received.bytes > 0
    }

    fn reply(&mut self, asked: &Asked) -> Vec<u8> {
        let action: serde_json::Value = serde_json::from_slice(&self.line).unwrap();
        let is_known = action["nic"].get("more_queues").is_none();
        if action["action"] == "add_nic" {
            asked.lock().unwrap().push((self.kept.len(), is_known));
        }
        if !is_known {
            let message = format!("{NOT_AN_ACTION}: unknown field `more_queues`");
            let reply = serde_json::json!({"reply": "error", "message": message});
            return format!("{reply}\n").into_bytes();
        }
        let passed = std::mem::take(&mut self.kept);
        let passed: Vec<_> = passed.iter().map(OwnedFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REQUEST_FDS_MAX))];
        let mut ancillary = SendAncillaryBuffer::new(&mut space);
        assert!(passed.is_empty() || ancillary.push(SendAncillaryMessage::ScmRights(&passed)));
        let newer = self.newer.get_mut();
        let sent =
            sendmsg(&*newer, &[IoSlice::new(&self.line)], &mut ancillary, SendFlags::NOSIGNAL).unwrap();
        newer.write_all(&self.line[sent..]).unwrap();
        let mut reply = Vec::new();
        self.newer.read_until(b'\n', &mut reply).unwrap();
        reply
    }
}

/// The queues that the VMM did not understand are free again when the tap is opened with one.
pub(super) fn one_pair_is_enough(host: &Host) {
    let (driver, _ends) = host.driver();
    let before = host.traces();
    let mut wanted = host.running(&driver);
    let older = Older::in_front_of(&host.run().join(&wanted.id).join("control.sock"));
    wanted.queue_pairs = 2;
    wanted.nics.push(host.nic("private", 11));
    let observed = host.settle(&driver, &mut wanted);
    assert_eq!(observed.devices.missing.len() + observed.devices.leaving.len(), 0, "{observed:?}");
    assert_eq!(older.asked(), [(2, false), (1, true)]);
    let id = wanted.id.clone();
    eventually("the guest has it", || {
        driver.console(&id, 1 << 16).unwrap().contains("net1: mac fa:16:3e:00:00:0b")
    });
    let devices = Client::connect(&older.behind).unwrap().status().unwrap().devices.unwrap();
    let pairs = |mac| {
        let device = devices.iter().find(|device| device.device == DeviceName::Nic(mac)).unwrap();
        device.nic.as_ref().unwrap().pairs.len()
    };
    assert_eq!(wanted.nics.iter().map(|nic| pairs(nic.mac)).collect::<Vec<_>>(), [1, 1]);
    // Nothing is left to be done, and it goes as it came.
    host.settle(&driver, &mut wanted);
    assert_eq!(older.asked().len(), 2);
    wanted.nics.pop();
    host.settle(&driver, &mut wanted);
    eventually("the guest has let it go", || driver.console(&id, 1 << 16).unwrap().contains("net 1: gone"));
    assert_eq!(host.taps(), 1);
    host.delete(&driver, &mut wanted);
    assert_eq!(host.traces(), before);
}
