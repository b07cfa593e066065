//! The tiny guest handed over from one VMM to the next while it serves, and left where it is when that fails.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use vmm::config::{DiskLimits, RateLimit, TransferLimits};
use vmm::handover::{HELLO, take_over};
use vmm::rpc::{ClientError, DeviceName, VmState};

use super::*;

/// A successor that listens: its thread, and the line that a VMM is given.
fn successor() -> (JoinHandle<ExitReport>, UnixStream) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    settle_heaps();
    let thread = std::thread::spawn(move || take_over(theirs, 1, Sandbox::default()));
    (thread, greeted(ours))
}

fn greeted(mut line: UnixStream) -> UnixStream {
    line.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut hello = [0; HELLO.len()];
    line.read_exact(&mut hello).unwrap();
    assert_eq!(hello, HELLO);
    line
}

impl Instance {
    fn hand_over(&self, line: &UnixStream) -> Result<(), ClientError> {
        self.client().hand_over(line.as_fd(), PATIENCE)
    }

    /// Waits until a request to a disk waits for a limit.
    fn wait_for_a_limit(&self) {
        let deadline = Instant::now() + PATIENCE;
        let waits =
            |device: vmm::rpc::DeviceStatus| device.requests.is_some_and(|counts| counts.throttled > 0);
        while !self.client().status().unwrap().devices.unwrap().into_iter().any(waits) {
            assert!(Instant::now() < deadline, "nothing waits:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// The guest in another VMM; the one before has ended, and has written no report.
    fn upgrade(mut self) -> Self {
        let (thread, line) = successor();
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.hand_over(&line) {
                // Its link is down, by which it learns that it is another.
                Err(ClientError::Refused(why)) if why.contains("in a moment") => {
                    assert!(Instant::now() < deadline, "{why}");
                    std::thread::sleep(Duration::from_millis(5));
                }
                handed => break handed.unwrap(),
            }
        }
        drop(line);
        let before = std::mem::replace(&mut self.thread, thread).join().unwrap();
        assert_eq!(before.message, "the guest was handed over to another process");
        assert_eq!(std::fs::read(self.directory.path().join("report")).unwrap(), b"");
        self
    }
}

/// A guest that may be handed over, on a tap of two queues at which the host has an address.
fn upgradable(transport: Transport) -> Instance {
    let [tap, more] = tap_of_two("t0");
    give_address("t0", HOST);
    let instance = Instance::start_with(1 << 20, |config, _| {
        config.transport = transport;
        config.upgradable = true;
        config.nics = vec![NicConfig { more_queues: vec![inherit(more)], ..nic(tap, GUEST, "") }];
    });
    instance.line("metadata: key");
    instance
}

#[test]
fn guest_goes_from_process_to_process_and_serves_on() {
    goes_on(Transport::Auto);
}

#[test]
fn guest_on_pci_does_the_same() {
    goes_on(Transport::Pci);
}

fn goes_on(transport: Transport) {
    const TIMES: u8 = 4;
    if !host_is_able() {
        return;
    }
    let mut instance = upgradable(transport);
    let began = instance.client().status().unwrap();
    let (generation, ..) = identity(GUEST);
    let mut echo = connect(7);
    for time in 1..=TIMES {
        let sector = [time; 512];
        assert_eq!(http("PUT", &format!("/disk/0/{time}"), &sector).0, "HTTP/1.1 200 OK");
        instance = instance.upgrade();
        // Connections go on, too.
        echo.write_all(&[time; 3]).unwrap();
        let mut heard = [0; 3];
        echo.read_exact(&mut heard).unwrap();
        assert_eq!(heard, [time; 3]);
        assert_eq!(http("GET", &format!("/disk/0/{time}"), b"").1, sector);
        let (same, _, told) = identity(GUEST);
        assert_eq!(same, generation, "it is no other guest");
        assert_clock_is_right(told);
        let status = instance.client().status().unwrap();
        let upgraded = status.upgraded.unwrap();
        println!("stood still for {:?} us", upgraded.standstill_us.unwrap());
        assert_eq!((upgraded.times, status.state), (u32::from(time), VmState::Running));
        assert_eq!(status.first_run_us, began.first_run_us);
        assert!(status.console_bytes >= began.console_bytes);
    }
    let console = instance.console();
    assert_eq!(console.matches("WISP-GUEST").count(), 1, "{console}");
    assert!(!console.contains("renewed"), "its link did not go down: {console}");
    drop(echo);
    instance.client().stop(false).unwrap();
    let report = File::open(instance.directory.path().join("report")).unwrap();
    assert_eq!(instance.end().reason, ExitReason::PoweredOff);
    assert!(io::read_to_string(report).unwrap().contains("powered_off"), "its owner hears from the last one");
}

#[test]
fn limits_that_its_disk_got_go_with_it_and_what_they_stopped_goes_on_without_them() {
    const OK: &str = "HTTP/1.1 200 OK";
    if !host_is_able() {
        return;
    }
    let instance = upgradable(Transport::Pci);
    // The second sector is some minutes behind the first.
    let bytes = Some(RateLimit { per_second: 1, burst: Some(512) });
    let limits = DiskLimits { write: TransferLimits { bytes, operations: None }, ..DiskLimits::default() };
    instance.client().limit_disk("root".to_owned(), limits).unwrap();
    assert_eq!(http("PUT", "/disk/0/1", &[1; 512]).0, OK);
    let stopped = std::thread::spawn(|| http("PUT", "/disk/0/2", &[2; 512]).0);
    instance.wait_for_a_limit();
    let instance = instance.upgrade();
    instance.wait_for_a_limit();
    assert!(!stopped.is_finished());
    let root = DeviceName::Disk("root".to_owned());
    let held = || {
        let devices = instance.client().status().unwrap().devices.unwrap();
        devices.into_iter().find(|device| device.device == root).and_then(|device| device.limits)
    };
    assert_eq!(held(), Some(limits));
    let refused = instance.client().limit_disk("other".to_owned(), limits).unwrap_err().to_string();
    assert!(refused.contains("no such disk"), "{refused}");
    instance.client().limit_disk("root".to_owned(), DiskLimits::default()).unwrap();
    assert_eq!(held(), Some(DiskLimits::default()));
    assert_eq!(stopped.join().unwrap(), OK);
    assert_eq!(http("PUT", "/disk/0/3", &[3; 512]).0, OK);
    assert_eq!(http("GET", "/disk/0/2", b"").1, [2; 512]);
    let devices = instance.client().status().unwrap().devices.unwrap();
    let counts = devices.iter().find_map(|device| device.requests).unwrap();
    assert!(counts.flushes > 0 && counts.failures == 0, "{counts:?}");
    instance.client().stop(true).unwrap();
    instance.end();
}

#[test]
fn guest_stays_where_it_is_whenever_the_successor_fails() {
    if !host_is_able() {
        return;
    }
    let instance = upgradable(Transport::Auto);
    let mut written = 0_u8;
    let mut serves_on = |instance: &Instance| {
        written += 1;
        assert_eq!(http("PUT", "/disk/0/9", &[written; 512]).0, "HTTP/1.1 200 OK");
        assert_eq!(http("GET", "/disk/0/9", b"").1, [written; 512]);
        let status = instance.client().status().unwrap();
        assert_eq!((status.state, status.upgraded), (VmState::Running, None));
    };
    let refused = |line: UnixStream, patience| {
        instance.client().hand_over(line.as_fd(), patience).unwrap_err().to_string()
    };
    // It is gone before anything is sent; after the first bytes; when all has come; it answers what is no answer.
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(theirs);
    let gone = refused(ours, PATIENCE);
    assert!(gone.contains("send the guest to its successor"), "{gone}");
    serves_on(&instance);
    for (bytes, answer) in
        [(100, &[][..]), (5000, &[]), (1 << 20, &[0xff; 4]), (1 << 20, &[3, 0, 0, 0, b'n'])]
    {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let failing = std::thread::spawn(move || {
            theirs.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
            let mut some = vec![0; bytes];
            // As much as comes.
            let _ = theirs.read_exact(&mut some);
            theirs.write_all(answer).unwrap();
        });
        println!("{}", refused(ours, PATIENCE));
        failing.join().unwrap();
        serves_on(&instance);
    }
    // It says nothing at all.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let silent = refused(ours, Duration::from_millis(100));
    assert!(silent.contains("hear whether") && silent.contains("timed out"), "{silent}");
    drop(theirs);
    serves_on(&instance);
    // It can have the guest, and is gone when it would be given it.
    let (ours, theirs) = UnixStream::pair().unwrap();
    let failing = std::thread::spawn(move || {
        theirs.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
        let mut reader = &theirs;
        let _ = reader.read_exact(&mut vec![0; 1 << 20]);
        theirs.shutdown(Shutdown::Read).unwrap();
        (&theirs).write_all(&[0; 4]).unwrap();
        theirs
    });
    let gone = refused(ours, PATIENCE);
    assert!(gone.contains("give the guest to its successor"), "{gone}");
    drop(failing.join().unwrap());
    serves_on(&instance);
    // One that is there takes it all the same, paused as it is, and has it go on when it is asked to.
    instance.client().pause().unwrap();
    let instance = instance.upgrade();
    let status = instance.client().status().unwrap();
    assert_eq!((status.state, status.upgraded.unwrap().standstill_us), (VmState::Paused, None));
    instance.client().resume().unwrap();
    assert_eq!(http("GET", "/disk/0/9", b"").1, [written; 512]);
    instance.client().stop(true).unwrap();
    instance.end();
}

#[test]
fn guest_that_went_on_from_a_snapshot_is_handed_over_too() {
    if !host_is_able() {
        return;
    }
    let (first, second) = (tap("t0"), tap("t1"));
    bridge("b0", &["t0", "t1"]);
    give_address("b0", HOST);
    let instance = Instance::start(vec![nic(first, GUEST, "")], 1 << 20);
    instance.line("metadata: key");
    let file = tempfile::tempfile().unwrap();
    instance.client().snapshot(&file, false, false).unwrap();
    instance.client().stop(true).unwrap();
    instance.end();
    let boot = Boot::Snapshot { files: vec![inherit(file)], track: true, working_set: None };
    let restored = Instance::boot_with(boot, 1 << 20, |config, _| {
        config.memory_mib = 0;
        config.upgradable = true;
        config.nics = vec![nic(second, GUEST, "")];
    });
    restored.line("renewed");
    let (generation, ..) = identity(GUEST);
    let restored = restored.upgrade();
    assert_eq!(identity(GUEST).0, generation);
    // What is noted of its writes begins anew.
    let file = tempfile::tempfile().unwrap();
    let refused = restored.client().snapshot(&file, true, false).unwrap_err().to_string();
    assert!(refused.contains("take a full snapshot"), "{refused}");
    restored.client().snapshot(&file, false, false).unwrap();
    vmm::snapshot::verify(&file).unwrap();
    restored.client().stop(true).unwrap();
    restored.end();
}

#[test]
fn guest_whose_memory_is_its_processs_own_is_not_handed_over() {
    if let Err(error) = vmm::kvm::Kvm::open() {
        skipped(&format!("no KVM: {error}"));
        return;
    }
    let instance = Instance::start(Vec::new(), 4096);
    instance.line("ready");
    let refused = instance.hand_over(&UnixStream::pair().unwrap().0).unwrap_err().to_string();
    assert!(refused.contains("`--upgradable` at its start"), "{refused}");
    instance.client().stop(true).unwrap();
    instance.end();
}
