//! The host driver on a real host: real processes, taps and bridges, in a network namespace of its own. The guest is
//! the tiny one. This program is also the VMM process that the driver starts.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "host_driver/copies.rs"]
mod copies;
#[path = "host_driver/counts.rs"]
mod counts;
#[path = "host_driver/limits.rs"]
mod limits;
#[path = "host_driver/older.rs"]
mod older;
#[path = "host_driver/plug.rs"]
mod plug;
#[path = "host_driver/tunnel.rs"]
mod tunnel;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::net::Ipv4Addr;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use control::agent::protocol::{
    InstanceObserved, InstanceState, InstanceWanted, NetworkWanted, NicWanted, Power, RootDiskWanted,
};
use control::driver::fail_points::{FailPoints, Step};
use control::driver::host::{HostDriver, HostOptions, remove_all};
use control::driver::volumes::{Place, VolumePaths};
use control::driver::{Driver, Surroundings};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use tempfile::TempDir;
use vmm::config::DiskLimits;
use vmm::sandbox::{Namespaces, Sandbox};

fn main() {
    let words: Vec<String> = std::env::args().collect();
    if words.get(1).is_some_and(|word| word == "vmm") {
        return run_vmm(&words);
    }
    let missing = missing();
    if missing.is_none() {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace of our own");
    }
    let trials: [(&str, Body); 22] = [
        ("instance_is_started_paused_resumed_stopped_restarted_and_deleted_without_a_trace", whole_life),
        ("queues_of_an_instance_are_counted_while_it_is_worked_on", counts::while_worked_on),
        ("driver_that_comes_anew_adopts_the_same_process", adoption),
        ("first_boot_that_fails_at_any_step_leaves_nothing", failing_first_boot),
        ("later_boot_that_fails_at_any_step_keeps_the_disk_and_nothing_else", failing_later_boot),
        ("crash_after_any_write_is_healed_by_the_next_apply", crashes),
        ("killed_vmm_is_a_failure_and_can_be_started_again", killed_vmm),
        ("stopped_instance_has_let_go_of_its_disk_and_its_taps", let_go),
        ("broken_image_missing_image_missing_network_and_too_much_memory_are_faults", faults),
        ("guest_that_is_asked_to_end_powers_itself_off", graceful_stop),
        ("cloud_that_is_taken_down_leaves_no_process_and_no_link_and_starts_again", taken_down),
        ("root_disk_comes_out_of_a_guest_that_runs_stands_still_or_is_off", copies::disks_come_out),
        ("copy_of_a_disk_that_fails_at_any_step_leaves_a_running_guest_and_no_file", copies::failing_copies),
        ("guest_that_a_killed_agent_left_standing_still_goes_on", copies::guest_left_still),
        ("devices_come_to_a_guest_that_runs_and_go_from_it", plug::come_and_go),
        ("guest_that_does_not_let_go_keeps_its_device_and_another_agent_knows_of_it", plug::pending),
        ("stop_takes_what_a_guest_does_not_let_go", plug::stop_takes_what_is_pending),
        ("device_that_cannot_come_is_named_and_leaves_nothing", plug::failing_steps),
        ("limits_that_change_hold_a_guest_that_runs_and_what_waited_goes_on", limits::hold_at_once),
        ("vmm_that_knows_of_one_pair_of_queues_gets_a_device_with_one", older::one_pair_is_enough),
        ("agent_that_comes_anew_goes_on_with_devices_at_any_step", plug::agents_that_come_anew),
        ("network_is_joined_to_other_hosts_while_it_has_ports_there", tunnel::stretched),
    ];
    let trials = trials.into_iter().map(|(name, trial)| {
        let missing = missing.clone();
        Trial::ignorable_test(name, move || {
            if let Some(reason) = missing {
                return Ok(Completion::ignored_with(format!("skipped: {reason}")));
            }
            trial(&Host::new().map_err(|error| Failed::from(error.to_string()))?);
            Ok(Completion::Completed)
        })
    });
    let arguments = Arguments::from_args();
    libtest_mimic::run(&arguments, trials.collect()).exit();
}

/// What a trial does.
type Body = fn(&Host);

/// What this machine lacks.
fn missing() -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        return Some("taps and bridges need root".into());
    }
    let closed = ["/dev/kvm", "/dev/net/tun"]
        .into_iter()
        .find(|path| File::options().read(true).write(true).open(path).is_err());
    if let Some(path) = closed {
        return Some(format!("{path} cannot be opened"));
    }
    let status = std::process::Command::new("/proc/self/exe").args(["vmm", "namespace"]).status();
    (!status.is_ok_and(|status| status.success())).then(|| "network namespaces cannot be made".into())
}

/// `vmm run ID --config-fd N …`, as the binary does it.
fn run_vmm(words: &[String]) {
    if words[2] == "namespace" {
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).expect("a network namespace");
        return;
    }
    let number = |option: &str| -> Option<u32> {
        let at = words.iter().position(|word| word == option)?;
        words.get(at + 1)?.parse().ok()
    };
    let config_fd = number("--config-fd").expect("--config-fd");
    let file = File::open(format!("/proc/self/fd/{config_fd}")).expect("the configuration");
    let config = match vmm::run::read_config(file) {
        Ok(config) => config,
        Err(error) => {
            eprintln!("no configuration: {error}");
            std::process::exit(1);
        }
    };
    let is_in_cell = words.iter().any(|word| word == "--cell");
    let namespaces = if is_in_cell { Namespaces::Cell } else { Namespaces::Stay };
    let sandbox = Sandbox { uid: number("--uid"), gid: number("--gid"), namespaces };
    let report = vmm::run::run_instance(&words[3], config, sandbox);
    std::process::exit(vmm::run::exit_code(&report).into());
}

static TAGS: AtomicU16 = AtomicU16::new(1);

/// A host with an image `tiny`, a network with this host as its gateway and one without.
struct Host {
    directory: TempDir,
    fail: FailPoints,
    surroundings: Arc<Surroundings>,
    tag: String,
}

impl Host {
    fn new() -> std::io::Result<Self> {
        // Close to the root: a socket's path is at most 107 bytes.
        let directory = tempfile::Builder::new().prefix("wisp").tempdir_in("/tmp")?;
        std::fs::create_dir(directory.path().join("run"))?;
        std::fs::create_dir(directory.path().join("images"))?;
        std::fs::write(directory.path().join("images/tiny"), vmm::guest::TINY)?;
        std::fs::write(directory.path().join("images/broken"), [0xff; 4096])?;
        let number = TAGS.fetch_add(1, Ordering::Relaxed);
        let tag = format!("{number:04x}");
        let network = |id: &str, host_addresses| NetworkWanted {
            id: format!("{id}-{tag}"),
            mtu: 1500,
            host_addresses,
            vni: None,
            remotes: Vec::new(),
            physical: None,
        };
        let gateway = format!("10.{}.{}.1/24", number >> 8, number & 0xff).parse().unwrap();
        let networks = [network("public", vec![gateway]), network("private", Vec::new())];
        let surroundings = Surroundings {
            cloud_tag: tag.clone(),
            networks: networks.into_iter().map(|network| (network.id.clone(), network)).collect(),
            groups: BTreeMap::new(),
            routers: BTreeMap::new(),
        };
        Ok(Self { directory, fail: FailPoints::default(), surroundings: Arc::new(surroundings), tag })
    }

    fn run(&self) -> PathBuf {
        self.directory.path().join("run")
    }

    /// A driver as an agent would start it, with the ends of processes it notices.
    fn driver(&self) -> (HostDriver, Receiver<String>) {
        let driver = HostDriver::new(HostOptions {
            name: "here".into(),
            run: self.run(),
            images: self.directory.path().join("images"),
            program: "/proc/self/exe".into(),
            volumes: VolumePaths {
                places: vec![Place::Files.into()],
                bucket: None,
                root: self.directory.path().join("volumes"),
                images: self.directory.path().join("images"),
            },
            interfaces: BTreeMap::new(),
            tunnel: Some("127.0.0.1".parse().unwrap()),
            forwarders: control::driver::host::Forwarders::Listed(Vec::new()),
            namespaces: net::keeper::Namespaces::Own,
            fail: self.fail.clone(),
        });
        let driver = driver.unwrap();
        let (sender, ends) = channel();
        driver.adopt(Arc::new(move |id| {
            // The test may be over.
            let _ = sender.send(id.to_string());
        }));
        driver.surround(&self.surroundings).unwrap();
        (driver, ends)
    }

    fn nic(&self, network: &str, number: u8) -> NicWanted {
        let address = Ipv4Addr::new(10, 9, 9, number);
        NicWanted {
            port_id: format!("port-{network}-{number}-{}", self.tag),
            network_id: format!("{network}-{}", self.tag),
            mac: [0xfa, 0x16, 0x3e, 0, 0, number],
            address: Some((address, 24)),
            allowed_addresses: BTreeSet::from(["10.9.9.0/24".parse().unwrap()]),
            gateway: Some(Ipv4Addr::new(10, 9, 9, 1)),
            dhcp: true,
            dhcp_server: Some(Ipv4Addr::new(10, 9, 9, 2)),
            dns: Vec::new(),
            routes: Vec::new(),
            mtu: 1500,
            port_security: true,
            groups: BTreeSet::new(),
            domain: String::new(),
            dhcp_options: Vec::new(),
            ipv6: Default::default(),
            ipv6_networks: Vec::new(),
            sub_ports: Vec::new(),
            traffic: Default::default(),
            zone: String::new(),
        }
    }

    fn wanted(&self) -> InstanceWanted {
        InstanceWanted {
            id: format!("instance-{}", self.tag),
            generation: 1,
            power: Power::Running,
            boot: 1,
            shutdown_timeout_ms: 0,
            vcpus: 1,
            memory_mib: 64,
            root_disk: RootDiskWanted {
                image_id: "tiny".into(),
                size_bytes: 1 << 20,
                volume: None,
                limits: DiskLimits::default(),
            },
            volumes: Vec::new(),
            kernel: None,
            nics: vec![self.nic("public", 10), self.nic("private", 11)],
            queue_pairs: 1,
            hostname: "first".into(),
            metadata: BTreeMap::new(),
            config_drive: true,
        }
    }

    fn apply(&self, driver: &HostDriver, wanted: &InstanceWanted) -> InstanceObserved {
        driver.apply(wanted, &self.surroundings, &|_| {}).observed
    }

    /// Everything of this cloud on the host: links and processes, and all files of the run directory.
    fn traces(&self) -> BTreeSet<String> {
        let mut traces: BTreeSet<String> =
            links().into_iter().filter(|name| name.contains(&format!("{}-", self.tag))).collect();
        traces
            .extend(processes(&format!("instance-{}", self.tag)).iter().map(|pid| format!("process {pid}")));
        files(&self.run(), &mut traces);
        traces
    }

    fn pid(&self) -> Option<i32> {
        processes(&format!("instance-{}", self.tag)).first().copied()
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What a failed test left.
        let _ = remove_all(&self.run(), Duration::ZERO);
    }
}

fn links() -> BTreeSet<String> {
    // Of the thread's own namespace, whichever /sys is mounted.
    let text = std::fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    text.lines().skip(2).filter_map(|line| Some(line.split_once(':')?.0.trim().to_string())).collect()
}

/// The VMM processes of an instance that have not ended.
fn processes(instance: &str) -> Vec<i32> {
    let pids = std::fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok());
    let is_of = |pid: &i32| {
        let cmdline = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        cmdline.split(|byte| *byte == 0).collect::<Vec<_>>().starts_with(&[
            b"wisp",
            b"vmm",
            b"run",
            instance.as_bytes(),
        ])
    };
    pids.filter(is_of).collect()
}

fn files(directory: &Path, into: &mut BTreeSet<String>) {
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            files(&path, into);
        }
        into.insert(path.display().to_string());
    }
}

/// Waits for something that happens soon.
fn eventually(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "it never happened: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn whole_life(host: &Host) {
    let (driver, _ends) = host.driver();
    let before = host.traces();
    let mut wanted = host.wanted();
    let started = Instant::now();
    let observed = host.apply(&driver, &wanted);
    println!("started in {:?}", started.elapsed());
    assert_eq!(observed.state, InstanceState::Running, "{observed:?}");
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running);
    assert!(observed.fault.is_none());
    eventually("the console speaks", || driver.console(&wanted.id, 1000).unwrap().contains("WISP-GUEST"));
    assert_eq!(host.traces().iter().filter(|trace| trace.contains("wt")).count(), 2, "two taps");
    let pid = host.pid().unwrap();
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    assert!(
        status.contains("PPid:\t1\n") || !status.contains(&format!("PPid:\t{}\n", std::process::id())),
        "{status}"
    );
    assert!(!status.contains("Uid:\t0\t"), "{status}");
    for (power, state) in [(Power::Paused, InstanceState::Paused), (Power::Running, InstanceState::Running)] {
        wanted.power = power;
        wanted.generation += 1;
        let observed = host.apply(&driver, &wanted);
        assert_eq!((observed.state, observed.generation), (state, wanted.generation));
        assert_eq!(host.pid(), Some(pid));
    }
    wanted.power = Power::Stopped;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Stopped);
    assert_eq!(host.pid(), None);
    assert!(driver.console(&wanted.id, 1000).unwrap().contains("WISP-GUEST"), "the log outlives the process");
    wanted.power = Power::Running;
    wanted.boot += 1;
    let observed = host.apply(&driver, &wanted);
    assert_eq!((observed.state, observed.boot), (InstanceState::Running, 2), "{observed:?}");
    let pid = host.pid().unwrap();
    wanted.boot += 1;
    let observed = host.apply(&driver, &wanted);
    assert_eq!((observed.state, observed.boot), (InstanceState::Running, 3), "{observed:?}");
    assert_ne!(host.pid(), Some(pid), "a reboot is a new process");
    wanted.power = Power::Deleted;
    let started = Instant::now();
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
    println!("deleted in {:?}", started.elapsed());
    assert_eq!(host.traces(), before);
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted, "and again");
    assert_eq!(host.traces(), before);
}

fn adoption(host: &Host) {
    let before = {
        let (_driver, _ends) = host.driver();
        host.traces()
    };
    let mut wanted = host.wanted();
    {
        let (driver, _ends) = host.driver();
        assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running);
    }
    let pid = host.pid().unwrap();
    let (driver, ends) = host.driver();
    let observed = host.apply(&driver, &wanted);
    assert_eq!((observed.state, observed.boot), (InstanceState::Running, 1));
    assert_eq!(host.pid(), Some(pid), "nothing was started or killed");
    assert_eq!(host.traces().iter().filter(|trace| trace.contains("wt")).count(), 2, "the taps stayed");
    kill(pid);
    assert_eq!(ends.recv_timeout(Duration::from_secs(10)).unwrap(), wanted.id, "its end is noticed");
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Failed);
    wanted.power = Power::Deleted;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
    assert_eq!(host.traces(), before);
}

fn kill(pid: i32) {
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL).unwrap();
}

/// Whether nobody has a file open but who asks: then, and only then, a lease for writing is granted (fcntl(2)).
fn is_nobodys(path: &Path) -> bool {
    use std::os::fd::AsRawFd as _;
    let file = File::options().read(true).write(true).open(path).unwrap();
    // SAFETY: takes an open descriptor and numbers.
    #[expect(unsafe_code, reason = "no safe wrapper asks for a lease")]
    let leased = |kind: i32| unsafe { libc::fcntl(file.as_raw_fd(), libc::F_SETLEASE, kind) };
    leased(libc::F_WRLCK) == 0 && leased(libc::F_UNLCK) == 0
}

/// The kernel takes the VM apart off the path; what the process had is free when the stop returns all the same, and the
/// next process can have it at once.
fn let_go(host: &Host) {
    let (driver, _ends) = host.driver();
    let before = host.traces();
    let mut wanted = host.wanted();
    let mut took = Vec::new();
    for boot in 1..=8 {
        wanted.power = Power::Running;
        wanted.boot = boot;
        assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running);
        eventually("the guest speaks", || driver.console(&wanted.id, 1000).unwrap().contains("WISP-GUEST"));
        let disks = host.run().join(&wanted.id).join("disk");
        let roots = ["root.raw", "root.overlay"].map(|name| disks.join(name));
        let root = roots.iter().find(|path| path.exists()).unwrap();
        assert!(!is_nobodys(root), "the VMM has it");
        wanted.power = Power::Stopped;
        let started = Instant::now();
        assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Stopped);
        took.push(started.elapsed());
        assert!(is_nobodys(root), "the disk is in use after the stop");
        assert_eq!(host.pid(), None);
        assert!(host.traces().iter().all(|trace| !trace.contains("wt")), "no tap is left");
    }
    took.sort();
    println!("stopped in {:?}, the median of {}", took[took.len() / 2], took.len());
    wanted.power = Power::Deleted;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
    assert_eq!(host.traces(), before);
}

fn failing_first_boot(host: &Host) {
    let (driver, _ends) = host.driver();
    let before = host.traces();
    let mut wanted = host.wanted();
    for step in Step::ALL {
        host.fail.only(step);
        let observed = host.apply(&driver, &wanted);
        assert_eq!(observed.state, InstanceState::Failed, "{step:?}");
        assert_eq!(observed.boot, wanted.boot, "{step:?}");
        assert!(observed.fault.unwrap().contains(&format!("{step:?}")));
        assert_eq!(host.traces(), before, "after {step:?} failed");
        let again = host.apply(&driver, &wanted);
        assert_eq!(again.state, InstanceState::Failed, "it is not tried again unasked");
        wanted.boot += 1;
    }
    host.fail.clear();
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running, "asked again, it starts");
    wanted.power = Power::Deleted;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
    assert_eq!(host.traces(), before);
}

fn failing_later_boot(host: &Host) {
    let (driver, _ends) = host.driver();
    let before = host.traces();
    let mut wanted = host.wanted();
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running);
    let disks = host.run().join(&wanted.id).join("disk");
    let disk =
        ["root.raw", "root.overlay"].into_iter().map(|name| disks.join(name)).find(|path| path.exists());
    let disk = disk.unwrap();
    let before_stop = std::fs::metadata(&disk).unwrap().ino();
    wanted.power = Power::Stopped;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Stopped);
    wanted.power = Power::Running;
    for step in Step::ALL {
        wanted.boot += 1;
        host.fail.only(step);
        assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Failed, "{step:?}");
        let left: Vec<_> = host.traces().into_iter().filter(|trace| !trace.starts_with('/')).collect();
        assert_eq!(
            left.iter().filter(|trace| trace.contains("wt") || trace.contains("process")).count(),
            0,
            "{left:?}"
        );
    }
    host.fail.clear();
    wanted.boot += 1;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running);
    assert_eq!(std::fs::metadata(&disk).unwrap().ino(), before_stop, "the disk is the same");
    wanted.power = Power::Deleted;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
    assert_eq!(host.traces(), before);
}

fn crashes(host: &Host) {
    let (driver, _ends) = host.driver();
    let before = host.traces();
    let mut wanted = host.wanted();
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running);
    let directory = host.run().join(&wanted.id);
    let pid = host.pid().unwrap();
    // As an agent leaves it that died before the process was written down: the process has ended by itself.
    drop(driver);
    kill(pid);
    eventually("it ends", || host.pid().is_none());
    let mut record: serde_json::Value =
        serde_json::from_slice(&std::fs::read(directory.join("spec.json")).unwrap()).unwrap();
    record["started"] = false.into();
    std::fs::write(directory.join("spec.json"), record.to_string()).unwrap();
    for lost in
        [&["pid"][..], &["pid", "exit.json"], &["pid", "exit.json", "control.sock", "console.log", "vmm.log"]]
    {
        for name in lost {
            let _ = std::fs::remove_file(directory.join(name));
        }
        let (driver, _ends) = host.driver();
        assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running, "without {lost:?}");
        drop(driver);
        kill(host.pid().unwrap());
        eventually("it ends", || host.pid().is_none());
        std::fs::write(directory.join("spec.json"), record.to_string()).unwrap();
    }
    // As it is left before anything was written down.
    std::fs::remove_dir_all(&directory).unwrap();
    std::fs::create_dir(&directory).unwrap();
    let (driver, _ends) = host.driver();
    assert!(!directory.exists(), "an empty directory is swept");
    wanted.power = Power::Deleted;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
    assert_eq!(host.traces(), before);
}

fn killed_vmm(host: &Host) {
    let (driver, ends) = host.driver();
    let before = host.traces();
    let mut wanted = host.wanted();
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running);
    kill(host.pid().unwrap());
    ends.recv_timeout(Duration::from_secs(10)).unwrap();
    let observed = host.apply(&driver, &wanted);
    assert_eq!(observed.state, InstanceState::Failed);
    assert!(observed.fault.unwrap().contains("the VMM process died"));
    let left = host.traces();
    assert!(!left.iter().any(|trace| trace.contains("wt") || trace.contains("process")), "{left:?}");
    wanted.boot += 1;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running);
    wanted.power = Power::Deleted;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
    assert_eq!(host.traces(), before);
}

/// What makes an instance impossible.
type Spoil = fn(&mut InstanceWanted);

fn faults(host: &Host) {
    let (driver, _ends) = host.driver();
    let before = host.traces();
    let cases: [(&str, Spoil); 5] = [
        ("could not be booted", |wanted| wanted.root_disk.image_id = "broken".into()),
        ("open the image nowhere", |wanted| wanted.root_disk.image_id = "nowhere".into()),
        ("open the image ../run", |wanted| wanted.root_disk.image_id = "../run".into()),
        ("network gone is gone", |wanted| wanted.nics[1].network_id = "gone".into()),
        ("memory", |wanted| wanted.memory_mib = vmm::config::MEMORY_MIB_MAX + 1),
    ];
    for (expected, spoil) in cases {
        let mut wanted = host.wanted();
        spoil(&mut wanted);
        let observed = host.apply(&driver, &wanted);
        assert_eq!(observed.state, InstanceState::Failed, "{expected}");
        let fault = observed.fault.unwrap();
        println!("{fault}");
        assert!(fault.contains(expected), "{fault}");
        assert_eq!(host.traces(), before, "{expected}");
        wanted.power = Power::Deleted;
        assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
    }
}

fn graceful_stop(host: &Host) {
    let (driver, ends) = host.driver();
    let mut wanted = host.wanted();
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running);
    eventually("the console speaks", || driver.console(&wanted.id, 1000).unwrap().contains("WISP-GUEST"));
    std::thread::sleep(Duration::from_millis(500));
    wanted.power = Power::Stopped;
    wanted.shutdown_timeout_ms = 20_000;
    let applied = driver.apply(&wanted, &host.surroundings, &|_| {});
    assert_eq!(applied.observed.state, InstanceState::Stopping);
    assert!(applied.again_after.is_some_and(|after| after <= Duration::from_secs(20)));
    let pressed = Instant::now();
    ends.recv_timeout(Duration::from_secs(15)).expect("the guest ends by itself");
    println!("powered off after {:?}", pressed.elapsed());
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Stopped);
    wanted.power = Power::Deleted;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
}

fn taken_down(host: &Host) {
    let mut wanted = host.wanted();
    {
        let (driver, _ends) = host.driver();
        assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running);
    }
    let removed = remove_all(&host.run(), Duration::from_secs(20)).unwrap();
    assert_eq!(removed.instances.len(), 1);
    assert_eq!(removed.links.len(), 4, "two taps and two bridges: {:?}", removed.links);
    assert_eq!(host.traces().iter().find(|trace| !trace.starts_with('/')), None);
    assert_eq!(remove_all(&host.run(), Duration::ZERO).unwrap(), Default::default(), "nothing more");
    let (driver, _ends) = host.driver();
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running, "as after a host's reboot");
    wanted.power = Power::Deleted;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
}
