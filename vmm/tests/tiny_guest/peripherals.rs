//! Devices that a guest has when somebody asks for them. Guests are told what to do at their virtio consoles.

use std::io::{BufRead as _, BufReader};
use std::os::unix::net::UnixStream;

use vmm::config::{ConsoleConfig, Peripherals, VsockConfig};
use vmm::connector;
use vmm::rpc::ConsoleName;

use super::*;

/// A connection to a guest's virtio console.
struct Typist {
    stream: BufReader<UnixStream>,
}

impl Typist {
    /// Connects, and waits until the guest serves the console.
    fn connect(instance: &Instance) -> Self {
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
    fn say(&mut self, command: &str) -> String {
        writeln!(self.stream.get_mut(), "{command}").unwrap();
        self.line()
    }
}

fn console_socket(directory: &Path) -> ConsoleConfig {
    ConsoleConfig::Socket(inherit(UnixListener::bind(directory.join("hvc0")).unwrap()))
}

fn has_kvm() -> bool {
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
        config.peripherals =
            Peripherals { console: Some(console_socket(directory)), vsock: Some(sockets(directory)) };
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
