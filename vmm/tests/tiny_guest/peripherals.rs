//! Devices that a guest has when somebody asks for them. Guests are told what to do at their virtio consoles.

use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::FileExt as _;
use std::os::unix::net::UnixStream;

use vmm::config::{BalloonConfig, ConsoleConfig, Peripherals, PmemConfig, VsockConfig};
use vmm::connector;
use vmm::rpc::{ClientError, ConsoleName};
use vmm::vm::Wanted;

use super::*;

/// A connection to a guest's virtio console.
pub(super) struct Typist {
    stream: BufReader<UnixStream>,
}

impl Typist {
    /// Connects, and waits until the guest serves the console.
    pub(super) fn connect(instance: &Instance) -> Self {
        let stream = UnixStream::connect(instance.directory.path().join("hvc0")).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut typist = Self { stream: BufReader::new(stream) };
        // It may have begun before the connection was there.
        let said = typist.say("print here");
        if said.starts_with("WISP-GUEST console") {
            assert_eq!(typist.line(), "here");
        } else {
            assert_eq!(said, "here");
        }
        typist
    }

    fn line(&mut self) -> String {
        let mut line = String::new();
        self.stream.read_line(&mut line).unwrap();
        line.trim_end().to_owned()
    }

    /// Types a command; what the guest says to it.
    pub(super) fn say(&mut self, command: &str) -> String {
        writeln!(self.stream.get_mut(), "{command}").unwrap();
        self.line()
    }
}

pub(super) fn console_socket(directory: &Path) -> ConsoleConfig {
    ConsoleConfig::Socket(inherit(UnixListener::bind(directory.join("hvc0")).unwrap()))
}

pub(super) fn has_kvm() -> bool {
    let opened = vmm::kvm::Kvm::open();
    opened.inspect_err(|error| skipped(&format!("no KVM: {error}"))).is_ok()
}

fn commands_are_typed_at_the_console(transport: Transport) {
    if !has_kvm() {
        return;
    }
    let instance = Instance::start_with(1 << 20, |config, directory| {
        config.transport = transport;
        config.peripherals.console = Some(console_socket(directory));
    });
    let mut typist = Typist::connect(&instance);
    assert_eq!(typist.say("disk-write 0 5 by hand"), "command: disk-write 0 5 ok");
    assert_eq!(typist.say("disk-read 0 5"), "command: disk-read 0 5 ok by hand");
    let virtio = instance.client().status().unwrap().virtio;
    let of = |kind: &str| virtio.iter().find(|device| device.kind == kind).unwrap();
    let (disk, console) = (of("disk"), of("virtio console"));
    assert!(disk.device.is_some() && disk.driven && console.device.is_none() && console.driven);
    let requests: u64 = disk.queues.iter().map(|queue| queue.requests).sum();
    let read: u64 = disk.queues.iter().map(|queue| queue.to_guest_bytes).sum();
    assert!(requests >= 2 && read > 512, "{virtio:?}");
    assert!(console.queues.iter().any(|queue| queue.from_guest_bytes > 10), "{virtio:?}");
    assert!(console.queues.iter().any(|queue| queue.to_guest_bytes > 10), "{virtio:?}");
    assert_eq!(typist.say("ping 10.0.0.1"), "command: ping 10.0.0.1 failed: no network");
    // Longer than what the guest takes at once, and than what it keeps of a line.
    let long = format!("print {}", "x".repeat(6000));
    assert_eq!(typist.say(&long), format!("{}…", "x".repeat(200)));
    drop(typist);
    let mut typist = Typist::connect(&instance);
    assert_eq!(typist.say("nonsense"), "command: nonsense failed: not a command");
    writeln!(typist.stream.get_mut(), "poweroff").unwrap();
    assert_eq!(instance.end().reason, ExitReason::PoweredOff);
}

#[test]
fn commands_are_typed_at_a_console_on_mmio() {
    commands_are_typed_at_the_console(Transport::Mmio);
}

#[test]
fn commands_are_typed_at_a_console_on_pci() {
    commands_are_typed_at_the_console(Transport::Pci);
}

#[test]
fn output_of_a_virtio_console_is_kept_and_told() {
    if !has_kvm() {
        return;
    }
    let instance = Instance::start_with(4096, |config, directory| {
        let log =
            File::options().read(true).write(true).create_new(true).open(directory.join("log")).unwrap();
        config.peripherals.console = Some(ConsoleConfig::Log(inherit(log)));
    });
    instance.line("ready");
    let mut client = instance.client();
    let deadline = Instant::now() + PATIENCE;
    let hello = "WISP-GUEST console\r\n";
    while client.console_of(ConsoleName::Virtio, 100).unwrap() != hello {
        assert!(Instant::now() < deadline);
        std::thread::sleep(Duration::from_millis(2));
    }
    assert_eq!(std::fs::read_to_string(instance.directory.path().join("log")).unwrap(), hello);
    assert!(client.console(100).unwrap().contains("ready"));
    client.stop(true).unwrap();
    instance.end();
}

fn sockets(directory: &Path) -> VsockConfig {
    let path = directory.join("v.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let (ours, theirs) = connector::pair().unwrap();
    std::thread::spawn(move || connector::serve(theirs, &path));
    VsockConfig { cid: 52, listener: Some(inherit(listener)), connector: Some(inherit(ours)) }
}

fn sockets_both_ways(transport: Transport) {
    if !has_kvm() {
        return;
    }
    let instance = Instance::start_with(4096, |config, directory| {
        config.transport = transport;
        config.peripherals = Peripherals {
            console: Some(console_socket(directory)),
            vsock: Some(sockets(directory)),
            ..Peripherals::default()
        };
    });
    assert_eq!(instance.line("vsock"), "vsock: cid 52");
    let path = |name: &str| instance.directory.path().join(name);

    // To the guest: what is said comes back, more of it than any buffer holds.
    let call = |line: &str| {
        let mut stream = BufReader::new(UnixStream::connect(path("v.sock")).unwrap());
        stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        stream.get_mut().write_all(line.as_bytes()).unwrap();
        let mut answer = String::new();
        stream.read_line(&mut answer).unwrap();
        (stream, answer)
    };
    let (mut stream, answer) = call("CONNECT 7\n");
    assert!(answer.starts_with("OK "), "{answer}");
    let text: Vec<u8> = (0..1 << 18).map(|index: u32| (index % 251) as u8).collect();
    let (mut writer, sent) = (stream.get_ref().try_clone().unwrap(), text.clone());
    let writing = std::thread::spawn(move || writer.write_all(&sent));
    let mut back = vec![0; text.len()];
    stream.read_exact(&mut back).unwrap();
    writing.join().unwrap().unwrap();
    assert!(back == text);
    drop(stream);
    assert_eq!(call("CONNECT 8\n").1, "", "nobody is at that port");

    // From the guest.
    let mut typist = Typist::connect(&instance);
    assert_eq!(typist.say("vsock 1234 hello"), "command: vsock 1234 failed: connection refused");
    let listener = UnixListener::bind(path("v.sock_1234")).unwrap();
    let serving = std::thread::spawn(move || {
        let mut bytes = [0; 5];
        let mut stream = listener.accept().unwrap().0;
        stream.read_exact(&mut bytes).unwrap();
        stream.write_all(b"world").unwrap();
        bytes
    });
    assert_eq!(typist.say("vsock 1234 hello"), "command: vsock 1234 ok world");
    assert_eq!(&serving.join().unwrap(), b"hello");
    instance.client().stop(true).unwrap();
    instance.end();
}

#[test]
fn sockets_of_guest_and_host_meet_both_ways_on_mmio() {
    sockets_both_ways(Transport::Mmio);
}

#[test]
fn sockets_of_guest_and_host_meet_both_ways_on_pci() {
    sockets_both_ways(Transport::Pci);
}

#[test]
fn console_and_sockets_of_a_guest_that_goes_on_are_those_that_it_is_given_anew() {
    if !has_kvm() {
        return;
    }
    let given = |config: &mut VmmConfig, directory: &Path, cid: u32| {
        let vsock = Some(VsockConfig { cid, ..sockets(directory) });
        let console = Some(console_socket(directory));
        config.peripherals = Peripherals { console, vsock, ..Peripherals::default() };
    };
    let instance = Instance::start_with(4096, |config, directory| given(config, directory, 52));
    let mut typist = Typist::connect(&instance);
    let call = |instance: &Instance, text: &[u8]| {
        let path = instance.directory.path().join("v.sock");
        let mut stream = BufReader::new(UnixStream::connect(path).unwrap());
        stream.get_ref().set_read_timeout(Some(PATIENCE)).unwrap();
        stream.get_mut().write_all(b"CONNECT 7\n").unwrap();
        stream.read_line(&mut String::new()).unwrap();
        stream.get_mut().write_all(text).unwrap();
        let mut back = vec![0; text.len()];
        stream.read_exact(&mut back).unwrap();
        assert_eq!(back, text);
        stream
    };
    let open = call(&instance, b"before");
    let file = tempfile::tempfile().unwrap();
    instance.client().snapshot(&file, false, false).unwrap();
    assert_eq!(typist.say("print it goes on"), "it goes on");
    instance.client().stop(true).unwrap();
    instance.end();
    drop(open);

    let boot = |file: &File| Boot::Snapshot {
        files: vec![inherit(file.try_clone().unwrap())],
        track: false,
        working_set: None,
    };
    let restored = Instance::boot_with(boot(&file), 4096, |config, directory| {
        config.memory_mib = 0;
        given(config, directory, 52);
    });
    let mut typist = Typist::connect(&restored);
    assert_eq!(typist.say("disk-write 0 1 elsewhere"), "command: disk-write 0 1 ok");
    call(&restored, b"after");
    restored.client().stop(true).unwrap();
    restored.end();

    // Who gives nothing gets a guest whose devices lead nowhere.
    let restored = Instance::boot_with(boot(&file), 4096, |config, _| config.memory_mib = 0);
    restored.client().stop(false).unwrap();
    assert_eq!(restored.end().reason, ExitReason::PoweredOff);
}

#[test]
fn guest_gives_memory_as_its_balloon_asks_and_takes_it_back() {
    if !has_kvm() {
        return;
    }
    for transport in [Transport::Mmio, Transport::Pci] {
        let instance = Instance::start_with(4096, |config, directory| {
            config.transport = transport;
            config.memory_mib = 48;
            config.peripherals.console = Some(console_socket(directory));
            config.peripherals.balloon = Some(BalloonConfig { target_mib: 2, firm: false });
        });
        let (mut client, mut typist) = (instance.client(), Typist::connect(&instance));
        let mut given = |wanted: u32| {
            let deadline = Instant::now() + PATIENCE;
            loop {
                let status = client.status().unwrap().balloon.unwrap();
                if status.given_mib == wanted {
                    return status;
                }
                assert!(Instant::now() < deadline, "{status:?}");
                std::thread::sleep(Duration::from_millis(2));
            }
        };
        given(2);
        assert_eq!(typist.say("touch 8"), "command: touch ok 8");
        instance.client().set_balloon(10).unwrap();
        assert!(given(10).returned_bytes >= 8 << 20);
        instance.client().set_balloon(1).unwrap();
        given(1);
        // What it says of its memory comes a moment after it is asked.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let statistics = given(1).statistics.unwrap_or_default();
            let (free, total) = (statistics.free_bytes.unwrap_or(0), statistics.total_bytes.unwrap_or(0));
            if total > 16 << 20 && total - free == 1 << 20 {
                break;
            }
            assert!(Instant::now() < deadline, "{statistics:?}");
        }
        assert!(typist.say("touch 64").starts_with("command: touch ok "), "it has its memory again");
        let refused = instance.client().set_balloon(u32::MAX);
        assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
        instance.client().stop(true).unwrap();
        instance.end();
    }
}

#[test]
fn guest_says_what_is_free_and_that_goes_to_the_host_or_is_left_out_of_its_snapshot() {
    const MIB_PAGES: u64 = 256;
    if !has_kvm() {
        return;
    }
    let given = |config: &mut VmmConfig, directory: &Path| {
        config.peripherals.console = Some(console_socket(directory));
    };
    let instance = Instance::start_with(4096, |config, directory| {
        given(config, directory);
        config.memory_mib = 48;
        config.peripherals.balloon = Some(BalloonConfig { target_mib: 0, firm: false });
    });
    let (mut client, mut typist) = (instance.client(), Typist::connect(&instance));
    assert_eq!(typist.say("touch 8"), "command: touch ok 8");
    let report = client.give_back_free().unwrap();
    assert!(report.hinted_bytes > 16 << 20 && report.returned_bytes == report.hinted_bytes, "{report:?}");
    assert_eq!(client.status().unwrap().balloon.unwrap().returned_bytes, report.returned_bytes);
    assert_eq!(typist.say("touch 8"), "command: touch ok 8", "it has its memory still");

    let (whole, small) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let all = client.snapshot(&whole, false, false).unwrap();
    let hints = Wanted { differences: false, track: true, hints: true };
    let less = client.snapshot_as(&small, hints).unwrap();
    assert!(less.hinted_pages.unwrap() * 4096 == report.hinted_bytes, "{less:?}");
    assert!(less.pages + 7 * MIB_PAGES < all.pages && all.hinted_pages.is_none(), "{less:?} {all:?}");
    vmm::snapshot::verify(&small).unwrap();
    let refused = |result: Result<(), vmm::rpc::ClientError>| result.unwrap_err().to_string();
    let said = refused(client.give_back_free().map(drop));
    assert!(said.contains("is noted for a snapshot with differences"), "{said}");
    let said = refused(client.snapshot_as(&whole, Wanted { differences: true, ..hints }).map(drop));
    assert!(said.contains("leaves out nothing that is free"), "{said}");
    client.pause().unwrap();
    let said = refused(client.snapshot_as(&whole, hints).map(drop));
    assert!(said.contains("only a guest that runs"), "{said}");
    client.stop(true).unwrap();
    instance.end();

    let files = vec![inherit(small.try_clone().unwrap())];
    let boot = Boot::Snapshot { files, track: false, working_set: None };
    let restored = Instance::boot_with(boot, 4096, |config, directory| {
        given(config, directory);
        config.memory_mib = 0;
    });
    let mut typist = Typist::connect(&restored);
    assert_eq!(typist.say("touch 8"), "command: touch ok 8");
    let again = restored.client().give_back_free().unwrap();
    assert_eq!(again.hinted_bytes, report.hinted_bytes, "it answers another that asks");
    assert_eq!(typist.say("touch 8"), "command: touch ok 8");
    restored.client().stop(true).unwrap();
    restored.end();

    let instance = Instance::start(Vec::new(), 4096);
    instance.line("ready");
    let said = refused(instance.client().give_back_free().map(drop));
    assert!(said.contains("has no memory balloon whose driver gives hints"), "{said}");
    instance.client().stop(true).unwrap();
    instance.end();
}

#[test]
fn file_is_memory_that_a_guest_reads_and_writes_unless_it_is_read_only() {
    if !has_kvm() {
        return;
    }
    let file = |text: &str| {
        let file = tempfile::tempfile().unwrap();
        file.set_len(3 << 20).unwrap();
        file.write_all_at(text.as_bytes(), 4096).unwrap();
        file
    };
    let (first, second) = (file("first"), file("second"));
    let given = |config: &mut VmmConfig, directory: &Path| {
        config.peripherals.console = Some(console_socket(directory));
        let pmem =
            |file: &File, read_only| PmemConfig { file: inherit(file.try_clone().unwrap()), read_only };
        config.peripherals.pmem = vec![pmem(&first, false), pmem(&second, true)];
    };
    let instance = Instance::start_with(4096, given);
    let mut typist = Typist::connect(&instance);
    assert_eq!(instance.line("pmem 1"), format!("pmem 1: {} bytes", 4 << 20));
    assert_eq!(typist.say("pmem-read 0 4096"), "command: pmem-read 0 4096 ok first");
    assert_eq!(typist.say("pmem-read 1 4096"), "command: pmem-read 1 4096 ok second");
    for (index, wanted) in [(0, "mine"), (1, "second")] {
        assert_eq!(
            typist.say(&format!("pmem-write {index} 4096 mine\0")),
            format!("command: pmem-write {index} 4096 ok")
        );
        let read = typist.say(&format!("pmem-read {index} 4096"));
        assert!(read.starts_with(&format!("command: pmem-read {index} 4096 ok {wanted}")), "{read}");
    }
    let text = |file: &File| {
        let mut bytes = [0; 4];
        file.read_exact_at(&mut bytes, 4096).unwrap();
        bytes
    };
    assert_eq!((&text(&first), &text(&second)), (b"mine", b"seco"));
    assert_eq!(typist.say("pmem-read 2 0"), "command: pmem-read 2 0 failed: no such memory");

    // It goes on from a snapshot with the same files, and with no others.
    let snapshot = tempfile::tempfile().unwrap();
    instance.client().snapshot(&snapshot, false, false).unwrap();
    instance.client().stop(true).unwrap();
    instance.end();
    let boot = || Boot::Snapshot {
        files: vec![inherit(snapshot.try_clone().unwrap())],
        track: false,
        working_set: None,
    };
    let restored = Instance::boot_with(boot(), 4096, |config, directory| {
        config.memory_mib = 0;
        given(config, directory);
    });
    let mut typist = Typist::connect(&restored);
    assert!(typist.say("pmem-read 0 4096").starts_with("command: pmem-read 0 4096 ok mine"));
    restored.client().stop(true).unwrap();
    restored.end();
}
