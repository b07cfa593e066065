//! The tiny guest in whole instances: on /dev/kvm, with taps in a network namespace of the test's own, and with
//! addresses and metadata from the VMM's endpoint.
#![expect(unsafe_code, reason = "interfaces are set up with ioctls that no crate wraps")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail as tests do")]

#[path = "tiny_guest/memory.rs"]
mod memory;
#[path = "tiny_guest/peripherals.rs"]
mod peripherals;
#[path = "tiny_guest/plug.rs"]
mod plug;
#[path = "tiny_guest/samples.rs"]
mod samples;
#[path = "tiny_guest/snapshot.rs"]
mod snapshot;
#[path = "tiny_guest/traffic.rs"]
mod traffic;
#[path = "tiny_guest/upgrade.rs"]
mod upgrade;
#[path = "tiny_guest/waiting.rs"]
mod waiting;
#[path = "tiny_guest/watchdog.rs"]
mod watchdog;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::{AsRawFd, FromRawFd, IntoRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Once;
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use tempfile::TempDir;
use vmm::config::{
    Addressing, Boot, DiskConfig, DiskFormat, EndpointConfig, InheritedFd, Ipv4Config, NicConfig, Traffic,
    Transport, VmmConfig,
};
use vmm::rpc::{Client, ExitReason, ExitReport};
use vmm::run::run_instance;
use vmm::sandbox::Sandbox;

const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 10);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 11);
/// Far longer than anything here takes, even on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

fn inherit(fd: impl IntoRawFd) -> InheritedFd {
    InheritedFd(fd.into_raw_fd())
}

/// A guest and what its parent keeps of it.
struct Instance {
    directory: TempDir,
    thread: JoinHandle<ExitReport>,
}

impl Instance {
    fn start(nics: Vec<NicConfig>, disk_bytes: u64) -> Self {
        Self::start_over(Transport::Auto, nics, disk_bytes)
    }

    fn start_over(transport: Transport, nics: Vec<NicConfig>, disk_bytes: u64) -> Self {
        Self::start_with(disk_bytes, |config, _| {
            config.transport = transport;
            config.nics = nics;
        })
    }

    /// One disk, and what `change` makes of the configuration; it is given the instance's directory.
    fn start_with(disk_bytes: u64, change: impl FnOnce(&mut VmmConfig, &Path)) -> Self {
        let mut kernel = tempfile::tempfile().unwrap();
        kernel.write_all(vmm::guest::TINY).unwrap();
        Self::boot_with(Boot::Kernel { kernel: inherit(kernel), initrd: None }, disk_bytes, change)
    }

    fn start_from(
        boot: Boot,
        memory_mib: u32,
        transport: Transport,
        nics: Vec<NicConfig>,
        disk_bytes: u64,
    ) -> Self {
        Self::boot_with(boot, disk_bytes, |config, _| {
            config.memory_mib = memory_mib;
            config.transport = transport;
            config.nics = nics;
        })
    }

    fn boot_with(boot: Boot, disk_bytes: u64, change: impl FnOnce(&mut VmmConfig, &Path)) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let file = |name: &str| {
            File::options().read(true).write(true).create_new(true).open(directory.path().join(name)).unwrap()
        };
        let disk = file("disk");
        disk.set_len(disk_bytes).unwrap();
        let format = DiskFormat::Raw { file: inherit(disk) };
        let mut config = VmmConfig {
            memory_mib: 32,
            huge_pages: Default::default(),
            upgradable: false,
            vcpus: 1,
            cpu: Default::default(),
            boot,
            transport: Transport::Auto,
            system: None,
            cmdline: String::new(),
            disks: vec![DiskConfig { serial: "root".to_owned(), ..DiskConfig::of(format) }],
            nics: Vec::new(),
            peripherals: Default::default(),
            console_log: Some(inherit(file("console"))),
            control_socket: Some(inherit(UnixListener::bind(directory.path().join("socket")).unwrap())),
            exit_report: Some(inherit(file("report"))),
        };
        change(&mut config, directory.path());
        settle_heaps();
        let thread = std::thread::spawn(move || run_instance("test", config, Sandbox::default()));
        let instance = Self { directory, thread };
        if let Err(error) = instance.client().start() {
            panic!("{error}: {:?}", instance.end());
        }
        instance
    }

    fn client(&self) -> Client {
        Client::connect(&self.directory.path().join("socket")).unwrap()
    }

    fn console(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("console")).unwrap()
    }

    /// Waits until a line of the console begins with `start`, and returns it.
    fn line(&self, start: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let console = self.console();
            // Only whole lines.
            let whole = &console[..console.rfind('\n').map_or(0, |end| end + 1)];
            if let Some(line) = whole.lines().find(|line| line.starts_with(start)) {
                return line.to_owned();
            }
            assert!(
                Instant::now() < deadline && !self.thread.is_finished(),
                "no line {start:?} in:\n{console}"
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(self) -> ExitReport {
        self.thread.join().unwrap()
    }
}

/// Says why a test cannot run here; with `WISP_REQUIRE_ALL=1` that is a failure.
fn skipped(reason: &str) {
    assert!(std::env::var_os("WISP_REQUIRE_ALL").is_none_or(|value| value != "1"), "skipped: {reason}");
    println!("skipped: {reason}");
}

/// Lets the C library look once whether a thread's own heap may become smaller. A thread that is confined would end with
/// that look; a VMM's process has one heap for all threads, but this one has many.
fn settle_heaps() {
    static SETTLED: Once = Once::new();
    SETTLED.call_once(|| {
        // Pieces that are not mapped each by itself, and together more than a heap keeps.
        let thread =
            std::thread::spawn(|| drop([(); 64].map(|()| std::hint::black_box(vec![1_u8; 64 << 10]))));
        thread.join().unwrap();
    });
}

/// Enters a network namespace of this thread's own; false, with the reason, where that is not possible.
fn host_is_able() -> bool {
    if let Err(error) = vmm::kvm::Kvm::open() {
        skipped(&format!("no KVM: {error}"));
        return false;
    }
    if let Err(error) = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET) {
        skipped(&format!("no network namespace: {error}"));
        return false;
    }
    if let Err(error) = File::open("/dev/net/tun") {
        skipped(&format!("no taps: {error}"));
        return false;
    }
    true
}

/// `struct ifreq` (netdevice(7)) with sixteen bytes of payload that matter.
#[repr(C)]
struct InterfaceRequest {
    name: [u8; 16],
    payload: [u8; 24],
}

fn request(name: &str, payload: &[u8]) -> InterfaceRequest {
    let mut request = InterfaceRequest { name: [0; 16], payload: [0; 24] };
    request.name[..name.len()].copy_from_slice(name.as_bytes());
    request.payload[..payload.len()].copy_from_slice(payload);
    request
}

fn ioctl(fd: &impl AsRawFd, number: libc::c_ulong, request: &InterfaceRequest) {
    // SAFETY: every request used here reads or writes at most a `struct ifreq`, which this is.
    let result = unsafe { libc::ioctl(fd.as_raw_fd(), number, std::ptr::from_ref(request)) };
    assert!(result >= 0, "ioctl {number:#x}: {}", io::Error::last_os_error());
}

fn any_socket() -> OwnedFd {
    // SAFETY: no pointers; the descriptor is new and ours.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    assert!(fd >= 0, "{}", io::Error::last_os_error());
    // SAFETY: just opened, owned by nobody else.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn up(name: &str) {
    let flags = libc::IFF_UP as u16;
    ioctl(&any_socket(), libc::SIOCSIFFLAGS, &request(name, &flags.to_ne_bytes()));
}

fn tap(name: &str) -> OwnedFd {
    open_tap(name, 0)
}

/// A tap with two queues.
fn tap_of_two(name: &str) -> [OwnedFd; 2] {
    [(); 2].map(|()| open_tap(name, libc::IFF_MULTI_QUEUE))
}

fn open_tap(name: &str, more_flags: libc::c_int) -> OwnedFd {
    let file = File::options().read(true).write(true).open("/dev/net/tun").unwrap();
    let flags = (libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR | more_flags) as u16;
    ioctl(&file, libc::TUNSETIFF, &request(name, &flags.to_ne_bytes()));
    up(name);
    file.into()
}

fn give_address(name: &str, address: Ipv4Addr) {
    let set = |number, address: Ipv4Addr| {
        let mut payload = [0; 16];
        payload[..2].copy_from_slice(&(libc::AF_INET as u16).to_ne_bytes());
        payload[4..8].copy_from_slice(&address.octets());
        ioctl(&any_socket(), number, &request(name, &payload));
    };
    set(libc::SIOCSIFADDR, address);
    set(libc::SIOCSIFNETMASK, Ipv4Addr::new(255, 255, 255, 0));
}

/// `linux/sockios.h`: make a bridge, add an interface to one.
const SIOCBRADDBR: libc::c_ulong = 0x89a0;
const SIOCBRADDIF: libc::c_ulong = 0x89a2;

fn bridge(name: &str, ports: &[&str]) {
    let socket = any_socket();
    ioctl(&socket, SIOCBRADDBR, &request(name, &[]));
    for port in ports {
        let name_of_port = std::ffi::CString::new(*port).unwrap();
        // SAFETY: a NUL-terminated name.
        let index = unsafe { libc::if_nametoindex(name_of_port.as_ptr()) };
        ioctl(&socket, SIOCBRADDIF, &request(name, &index.to_ne_bytes()));
    }
    up(name);
}

fn nic(tap: OwnedFd, address: Ipv4Addr, user_data: &str) -> NicConfig {
    nic_of("0b2f1f0e-1111-4222-8333-444455556666", tap, address, user_data)
}

/// A network device of the instance with this id.
fn nic_of(uuid: &str, tap: OwnedFd, address: Ipv4Addr, user_data: &str) -> NicConfig {
    let document = format!(
        r#"{{"uuid":"{uuid}","hostname":"tiny.wisp","public_keys":{{"alice":"ssh-ed25519 AAAAC3 alice"}},
        "meta":{{"a":[1,null,true]}}}}"#
    );
    let metadata = BTreeMap::from([
        ("/openstack/latest/meta_data.json".to_owned(), document.into()),
        ("/openstack/latest/user_data".to_owned(), user_data.into()),
    ]);
    NicConfig {
        tap: inherit(tap),
        more_queues: Vec::new(),
        mac: [0x02, 0x57, 0x49, 0x53, 0x50, address.octets()[3]],
        mtu: 1450,
        endpoint: Some(EndpointConfig {
            addressing: Addressing {
                ipv4: Some(Ipv4Config {
                    address,
                    prefix_len: 24,
                    gateway: Some(HOST),
                    dhcp_server: Ipv4Addr::new(10, 99, 0, 2),
                    dns: Vec::new(),
                    routes: Vec::new(),
                    options: Vec::new(),
                }),
                hostname: "tiny".to_owned(),
                domain: "wisp".to_owned(),
                lease_s: 3600,
                ..Addressing::default()
            },
            metadata,
        }),
        traffic: Traffic::default(),
    }
}

fn connect(port: u16) -> TcpStream {
    connect_to(GUEST, port)
}

fn connect_to(guest: Ipv4Addr, port: u16) -> TcpStream {
    let stream = TcpStream::connect_timeout(&SocketAddr::from((guest, port)), PATIENCE).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// One HTTP request; the status line and the body of the answer.
fn http(method: &str, target: &str, body: &[u8]) -> (String, Vec<u8>) {
    http_of(GUEST, method, target, body)
}

fn http_of(guest: Ipv4Addr, method: &str, target: &str, body: &[u8]) -> (String, Vec<u8>) {
    let mut stream = connect_to(guest, 80);
    write!(stream, "{method} {target} HTTP/1.1\r\nHost: {guest}\r\nContent-Length: {}\r\n\r\n", body.len())
        .unwrap();
    stream.write_all(body).unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).unwrap();
    let end = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n").unwrap();
    let head = String::from_utf8(answer[..end].to_vec()).unwrap();
    (head.lines().next().unwrap().to_owned(), answer[end + 4..].to_vec())
}

/// What a guest says of itself: generation id, a number drawn, the time.
fn identity(guest: Ipv4Addr) -> (String, u64, Duration) {
    let text = String::from_utf8(http_of(guest, "GET", "/identity", b"").1).unwrap();
    let parts: Vec<&str> = text.split_whitespace().collect();
    let number = u64::from_str_radix(parts[1], 16).unwrap();
    (parts[0].to_owned(), number, Duration::from_nanos(parts[2].parse().unwrap()))
}

fn assert_clock_is_right(told: Duration) {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    assert!(now.abs_diff(told) < Duration::from_secs(2), "it is {now:?}, and a guest says {told:?}");
}

#[test]
fn guest_gets_address_and_metadata_serves_its_network_and_obeys_the_power_button() {
    whole_guest(Transport::Auto);
}

#[test]
fn guest_on_pci_does_the_same() {
    whole_guest(Transport::Pci);
}

fn whole_guest(transport: Transport) {
    if !host_is_able() {
        return;
    }
    let tap = tap("t0");
    give_address("t0", HOST);
    let script =
        format!("#wisp\nping {HOST}\ndisk-write 0 5 kept by the disk\ndisk-read 0 5\nno such thing\n");
    let instance = Instance::start_over(transport, vec![nic(tap, GUEST, &script)], 1 << 20);

    assert!(instance.console().is_empty() || "WISP-GUEST".starts_with(&instance.console()[..1]));
    instance.line("ready");
    assert!(instance.console().starts_with("WISP-GUEST"));
    assert_eq!(instance.line("net: address"), "net: address 10.99.0.10/24 gateway 10.99.0.1 mtu 1450");
    assert_eq!(instance.line("disk 0"), "disk 0: 1048576 bytes rw serial root");
    assert_eq!(instance.line("metadata: uuid"), "metadata: uuid 0b2f1f0e-1111-4222-8333-444455556666");
    assert_eq!(instance.line("metadata: hostname"), "metadata: hostname tiny.wisp");
    assert_eq!(instance.line("metadata: key"), "metadata: key alice ssh-ed25519 AAAAC3 alice");
    assert_eq!(instance.line("metadata: user-data"), "metadata: user-data #wisp");
    let ping = instance.line("command: ping");
    assert!(ping.starts_with("command: ping 10.99.0.1 ok "), "{ping}");
    assert_eq!(instance.line("command: disk-read"), "command: disk-read 0 5 ok kept by the disk");
    assert_eq!(instance.line("command: no"), "command: no such thing failed: not a command");

    let (status, page) = http("GET", "/", b"");
    assert_eq!(status, "HTTP/1.1 200 OK");
    assert!(String::from_utf8(page).unwrap().contains("Hello from tiny.wisp"));
    let sector: Vec<u8> = (0..512u16).map(|n| (n * 7) as u8).collect();
    assert_eq!(http("PUT", "/disk/0/9", &sector).0, "HTTP/1.1 200 OK");
    assert_eq!(http("GET", "/disk/0/9", b"").1, sector);
    assert_eq!(http("GET", "/disk/0/2048", b"").0, "HTTP/1.1 404 Not Found");
    assert_eq!(http("GET", "/disk/0", b"").1, b"1048576\n");

    let mut echo = connect(7);
    echo.write_all(b"hello").unwrap();
    echo.shutdown(Shutdown::Write).unwrap();
    let mut heard = Vec::new();
    echo.read_to_end(&mut heard).unwrap();
    assert_eq!(heard, b"hello");

    instance.client().stop(false).unwrap();
    let report = instance.end();
    assert_eq!(report.reason, ExitReason::PoweredOff, "{}", report.message);
}

#[test]
fn guests_on_a_bridge_where_the_host_has_no_address_reach_each_other() {
    if !host_is_able() {
        return;
    }
    let (first, second) = (tap("t0"), tap("t1"));
    bridge("b0", &["t0", "t1"]);
    let first = Instance::start(vec![nic(first, GUEST, "")], 4096);
    let script = format!("#wisp\nping {GUEST} 10\nfetch http://{GUEST}/disk\npoweroff\n");
    let second = Instance::start(vec![nic(second, OTHER, &script)], 4096);
    let line = second.line("command: ping 10.99.0.10");
    assert!(line.starts_with("command: ping 10.99.0.10 10 ok "), "{line}");
    let console = second.directory.path().join("console");
    let console = File::open(console).unwrap();
    assert_eq!(second.end().reason, ExitReason::PoweredOff);
    let console = io::read_to_string(console).unwrap();
    assert!(console.contains("command: fetch http://10.99.0.10/disk ok 200 0 4096 rw root"), "{console}");
    first.client().stop(true).unwrap();
    first.end();
}

#[test]
fn guest_without_network_says_so_and_powers_off_by_the_button() {
    if let Err(error) = vmm::kvm::Kvm::open() {
        skipped(&format!("no KVM: {error}"));
        return;
    }
    let instance = Instance::start(Vec::new(), 4096);
    assert_eq!(instance.line("ready"), "ready without network");
    instance.client().stop(false).unwrap();
    let report = instance.end();
    assert_eq!(report.reason, ExitReason::PoweredOff, "{}", report.message);
}
