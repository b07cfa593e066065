//! The tiny guest saved, and gone on from where it was, once and many times.

use std::collections::BTreeSet;

use super::*;

/// A snapshot of `instance` in a file without a name.
fn snapshot(instance: &Instance, differences: bool, track: bool) -> (File, vmm::rpc::SnapshotReport) {
    let file = tempfile::tempfile().unwrap();
    let report = instance.client().snapshot(&file, differences, track).unwrap();
    (file, report)
}

fn go_on(files: &[&File], transport: Transport, nics: Vec<NicConfig>) -> Instance {
    let files = files.iter().map(|file| inherit(file.try_clone().unwrap())).collect();
    Instance::start_from(
        Boot::Snapshot { files, track: true, working_set: None },
        0,
        transport,
        nics,
        1 << 20,
    )
}

#[test]
fn guest_goes_on_from_a_snapshot_where_it_was() {
    goes_on(Transport::Auto);
}

#[test]
fn guest_on_pci_goes_on_from_a_snapshot_where_it_was() {
    goes_on(Transport::Pci);
}

fn goes_on(transport: Transport) {
    if !host_is_able() {
        return;
    }
    let (first, second) = (tap("t0"), tap("t1"));
    bridge("b0", &["t0", "t1"]);
    give_address("b0", HOST);
    let instance = Instance::start_over(transport, vec![nic(first, GUEST, "")], 1 << 20);
    instance.line("metadata: key");
    assert_eq!(http("GET", "/disk/0", b"").1, b"1048576\n");
    let (file, report) = snapshot(&instance, false, false);
    assert!(report.paused_us.is_some());
    assert_eq!(http("GET", "/disk/0", b"").1, b"1048576\n", "the first goes on");
    instance.client().stop(true).unwrap();
    instance.end();

    let restored = go_on(&[&file], transport, vec![nic(second, GUEST, "")]);
    let sector: Vec<u8> = (0..512u16).map(|n| (n * 7) as u8).collect();
    assert_eq!(http("PUT", "/disk/0/9", &sector).0, "HTTP/1.1 200 OK");
    assert_eq!(http("GET", "/disk/0/9", b"").1, sector);
    assert!(!restored.console().contains("WISP-GUEST"), "it did not boot: {}", restored.console());
    restored.client().stop(false).unwrap();
    let report = restored.end();
    assert_eq!(report.reason, ExitReason::PoweredOff, "{}", report.message);
}

#[test]
fn guest_goes_on_from_packed_memory_and_what_it_asks_for_first_is_known_the_next_time() {
    if !host_is_able() {
        return;
    }
    let taps = ["t0", "t1", "t2"].map(tap);
    bridge("b0", &["t0", "t1", "t2"]);
    give_address("b0", HOST);
    let [first, second, third] = taps;
    let instance = Instance::start_over(Transport::Auto, vec![nic(first, GUEST, "")], 1 << 20);
    instance.line("metadata: key");
    let (flat, _) = snapshot(&instance, false, false);
    instance.client().stop(true).unwrap();
    instance.end();
    let packed = tempfile::tempfile().unwrap();
    let clone = |file: &File| file.try_clone().unwrap();
    let header =
        vmm::snapshot::rewrite(vec![clone(&flat)], vmm::snapshot::Form::Packed, &packed, &mut |_| ())
            .unwrap();
    let pages = |file: &File| std::os::unix::fs::MetadataExt::blocks(&file.metadata().unwrap()) / 8;
    assert!(pages(&packed) < pages(&flat), "{} {}", pages(&packed), pages(&flat));
    assert_eq!(vmm::snapshot::verify(&packed).unwrap(), header);

    let set = tempfile::tempfile().unwrap();
    let mut known = Vec::new();
    for tap in [second, third] {
        let boot = Boot::Snapshot {
            files: vec![inherit(clone(&packed))],
            track: true,
            working_set: Some(inherit(clone(&set))),
        };
        let restored = Instance::start_from(boot, 0, Transport::Auto, vec![nic(tap, GUEST, "")], 1 << 20);
        let sector = [known.len() as u8; 512];
        assert_eq!(http("PUT", "/disk/0/9", &sector).0, "HTTP/1.1 200 OK");
        assert_eq!(http("GET", "/disk/0/9", b"").1, sector);
        // All of it can be had: a snapshot of one that goes on is as whole as that before.
        let (again, _) = snapshot(&restored, false, false);
        vmm::snapshot::verify(&again).unwrap();
        restored.client().stop(false).unwrap();
        assert_eq!(restored.end().reason, ExitReason::PoweredOff);
        known.push(set.metadata().unwrap().len());
    }
    assert!(known[0] > 40 && known[0] == known[1], "{known:?}");
}

#[test]
fn twenty_forks_of_one_guest_are_twenty_guests() {
    const FORKS: u8 = 20;
    if !host_is_able() {
        return;
    }
    let taps: Vec<(String, OwnedFd)> =
        (0..=FORKS).map(|number| (format!("t{number}"), tap(&format!("t{number}")))).collect();
    let names: Vec<&str> = taps.iter().map(|(name, _)| &**name).collect();
    bridge("b0", &names);
    give_address("b0", HOST);
    let mut taps = taps.into_iter().map(|(_, tap)| tap);
    let first = Instance::start(vec![nic(taps.next().unwrap(), GUEST, "")], 1 << 20);
    first.line("metadata: key");
    let (generation, _, time) = identity(GUEST);
    assert_clock_is_right(time);
    let (file, _) = snapshot(&first, false, false);
    // So that a clock that goes on from the snapshot is wrong.
    std::thread::sleep(Duration::from_millis(2200));

    let mut forks = Vec::new();
    for (number, tap) in (0..FORKS).zip(taps) {
        let address = Ipv4Addr::new(10, 99, 0, 100 + number);
        let uuid = format!("0b2f1f0e-1111-4222-8333-4444555566{number:02}");
        let fork = go_on(&[&file], Transport::Auto, vec![nic_of(&uuid, tap, address, "")]);
        forks.push((fork, address, uuid));
    }
    let (mut generations, mut numbers) = (BTreeSet::from([generation]), BTreeSet::new());
    for (fork, address, uuid) in &forks {
        fork.line("renewed");
        assert_eq!(fork.line("metadata: uuid"), format!("metadata: uuid {uuid}"));
        let (generation, number, time) = identity(*address);
        assert_clock_is_right(time);
        generations.insert(generation);
        // The first eight numbers of each stream.
        numbers.insert(number);
        numbers.extend((1..8).map(|_| identity(*address).1));
    }
    assert_eq!(generations.len(), 1 + usize::from(FORKS), "{generations:?}");
    assert_eq!(numbers.len(), 8 * usize::from(FORKS));
    assert_eq!(http("GET", "/disk/0", b"").1, b"1048576\n", "the first is there as before");
    for (fork, ..) in forks {
        fork.client().stop(true).unwrap();
        fork.end();
    }
    first.client().stop(true).unwrap();
    first.end();
}

#[test]
fn differences_are_what_the_guest_wrote_since_and_a_chain_of_them_is_the_newest() {
    if !host_is_able() {
        return;
    }
    let (first, second) = (tap("t0"), tap("t1"));
    bridge("b0", &["t0", "t1"]);
    give_address("b0", HOST);
    let instance = Instance::start(vec![nic(first, GUEST, "")], 1 << 20);
    instance.line("metadata: key");
    let file = tempfile::tempfile().unwrap();
    let refused = instance.client().snapshot(&file, true, false).unwrap_err().to_string();
    assert!(refused.contains("take a full snapshot"), "{refused}");
    let (full, report) = snapshot(&instance, false, true);
    let (one, first_report) = snapshot(&instance, true, false);
    assert!(first_report.pages < report.pages, "{first_report:?} of {report:?}");
    for _ in 0..3 {
        http("GET", "/", b"");
    }
    let (two, _) = snapshot(&instance, true, false);
    let uptime = |page: Vec<u8>| {
        let page = String::from_utf8(page).unwrap();
        let text = page.split("uptime</dt><dd>").nth(1).unwrap().split(' ').next().unwrap().to_owned();
        text.parse::<f64>().unwrap()
    };
    instance.client().stop(true).unwrap();
    instance.end();

    for (files, message) in [
        (vec![&one], "and what comes before it is nothing"),
        (vec![&full, &two], "has the differences to"),
        (vec![&full, &full], "a full snapshot behind another"),
    ] {
        let files = files.into_iter().map(|file| file.try_clone().unwrap()).collect();
        let error = vmm::snapshot::Snapshot::open(files, None).err().unwrap().to_string();
        assert!(error.contains(message), "{error}");
    }
    let restored = go_on(&[&full, &one, &two], Transport::Auto, vec![nic(second, GUEST, "")]);
    restored.line("renewed");
    assert!(uptime(http("GET", "/", b"").1) > 0.0);
    let (three, report) = snapshot(&restored, true, false);
    println!("{} pages since it went on", report.pages);
    restored.client().stop(false).unwrap();
    assert_eq!(restored.end().reason, ExitReason::PoweredOff);
    let files = [full, one, two, three].map(|file| file.try_clone().unwrap()).into();
    vmm::snapshot::Snapshot::open(files, None).unwrap();
}

#[test]
fn snapshot_is_refused_where_something_is_missing_or_damaged() {
    if let Err(error) = vmm::kvm::Kvm::open() {
        skipped(&format!("no KVM: {error}"));
        return;
    }
    let instance = Instance::start(Vec::new(), 4096);
    instance.line("ready");
    let (file, _) = snapshot(&instance, false, false);
    instance.client().pause().unwrap();
    let (paused, report) = snapshot(&instance, false, false);
    assert_eq!((report.paused_us, report.state), (None, vmm::rpc::VmState::Paused));
    vmm::snapshot::verify(&paused).unwrap();
    instance.client().stop(true).unwrap();
    instance.end();

    let refused = |file: &File, memory_mib: u32, disk: bool| {
        let boot = Boot::Snapshot {
            files: vec![inherit(file.try_clone().unwrap())],
            track: false,
            working_set: None,
        };
        let format = DiskFormat::Raw { file: inherit(tempfile::tempfile().unwrap()) };
        let disks = if disk { vec![DiskConfig::of(format)] } else { Vec::new() };
        let config = VmmConfig { memory_mib, boot, disks, ..empty() };
        settle_heaps();
        run_instance("test", config, Sandbox::default()).message
    };
    let said = std::thread::scope(|scope| {
        let run = |memory_mib, disk| {
            let (refused, file) = (&refused, &file);
            scope.spawn(move || refused(file, memory_mib, disk)).join().unwrap()
        };
        [run(64, true), run(0, false), run(0, true)]
    });
    assert!(said[0].contains("has 32 MiB of memory and 1 vCPUs"), "{}", said[0]);
    assert!(said[1].contains("has 1 disks, and 0 were given"), "{}", said[1]);
    assert!(said[2].contains("has 0 bytes, and its guest knows of 4096"), "{}", said[2]);
}

fn empty() -> VmmConfig {
    VmmConfig {
        memory_mib: 0,
        huge_pages: Default::default(),
        upgradable: false,
        vcpus: 0,
        cpu: Default::default(),
        boot: Boot::Disk,
        transport: Transport::Auto,
        system: None,
        cmdline: String::new(),
        disks: Vec::new(),
        nics: Vec::new(),
        peripherals: Default::default(),
        console_log: None,
        control_socket: None,
        exit_report: None,
    }
}
