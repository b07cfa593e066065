//! Whole instances on /dev/kvm, each on a thread of its own, confined as in its own process.
#![expect(unsafe_code, reason = "guests' code is found by its symbols")]

use std::arch::global_asm;
use std::fs::File;
use std::io::{Read, Write};
use std::os::fd::{IntoRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use super::*;
use crate::boot::tests::elf;
use crate::config::{InheritedFd, Transport};
use crate::rpc::{Client, ClientError, VmState};
use crate::testing::skipped;

// Guests entered in 64-bit mode at ring 0; each is position-independent.
global_asm!(
    ".pushsection .rodata",
    ".macro guest name",
    ".globl wisp_test_\\name\\()_start",
    "wisp_test_\\name\\()_start:",
    ".endm",
    ".macro end name",
    ".globl wisp_test_\\name\\()_end",
    "wisp_test_\\name\\()_end:",
    ".endm",
    ".macro poweroff",
    "mov dx, 0x604",
    "mov ax, 0x3400",
    "out dx, ax",
    "9: hlt",
    "jmp 9b",
    ".endm",
    // Writes without end.
    "guest chatter",
    "mov dx, 0x3f8",
    "mov al, 'x'",
    "2: out dx, al",
    "jmp 2b",
    "end chatter",
    // Enables the power button, says so, waits for it by asking, powers off.
    "guest button",
    "mov dx, 0x602",
    "mov ax, 0x100",
    "out dx, ax",
    "mov dx, 0x3f8",
    "mov al, 'b'",
    "out dx, al",
    "mov dx, 0x600",
    "2: in ax, dx",
    "test ax, 0x100",
    "jz 2b",
    "poweroff",
    "end button",
    // Sleeps without interrupts.
    "guest asleep",
    "mov dx, 0x3f8",
    "mov al, 's'",
    "out dx, al",
    "2: hlt",
    "jmp 2b",
    "end asleep",
    // An exception without a handler.
    "guest fault",
    "ud2",
    "end fault",
    // String output, in one exit where the processor can.
    "guest string",
    "lea rsi, [rip + 3f]",
    "mov ecx, 13",
    "mov dx, 0x3f8",
    "cld",
    "rep outsb",
    "poweroff",
    "3: .ascii \"string output\"",
    "end string",
    // Wakes processor 1, which writes and sets a flag in real mode, and powers off.
    "guest wake",
    "mov qword ptr [0xa018], 0x30003",
    "mov eax, 0xfee00093",
    "mov [0x30fb8], rax",
    "lea rsi, [rip + 4f]",
    "mov edi, 0x10000",
    "mov ecx, 64",
    "cld",
    "rep movsb",
    "mov ebx, 0xfee00300",
    "mov dword ptr [rbx + 0x10], 0x1000000",
    "mov dword ptr [rbx], 0xc500",
    "mov dword ptr [rbx], 0x610",
    "2: cmp byte ptr [0x10800], 1",
    "jne 2b",
    "poweroff",
    ".code16",
    "4: mov dx, 0x3f8",
    "mov al, 'A'",
    "out dx, al",
    "mov byte ptr cs:[0x800], 1",
    "3: hlt",
    "jmp 3b",
    ".code64",
    "end wake",
    // Asks for a reset, as a kernel does after a panic.
    "guest reset",
    "mov al, 0xfe",
    "out 0x64, al",
    "9: hlt",
    "jmp 9b",
    "end reset",
    // A kernel instruction that some software KVM cannot emulate.
    "guest exotic",
    "lock cmpxchg16b [rsp - 16]",
    "poweroff",
    "end exotic",
    ".popsection",
);

macro_rules! guest {
    ($start:ident, $end:ident) => {{
        unsafe extern "C" {
            static $start: u8;
            static $end: u8;
        }
        // SAFETY: both symbols are in this file's assembly, the start first, with read-only bytes between them.
        let code = unsafe {
            let (start, end) = (&raw const $start, &raw const $end);
            std::slice::from_raw_parts(start, end.offset_from_unsigned(start))
        };
        elf(code, false)
    }};
}

/// An instance on a thread, with what a parent keeps of it.
struct Instance {
    directory: TempDir,
    thread: JoinHandle<ExitReport>,
}

fn inherit(fd: impl IntoRawFd) -> InheritedFd {
    let fd: RawFd = fd.into_raw_fd();
    InheritedFd(fd)
}

impl Instance {
    /// Starts `kernel`'s VMM; the guest itself waits for `Start`. `None` where there is no KVM.
    fn new(kernel: &[u8], vcpus: u8) -> Option<Self> {
        Self::with(kernel, vcpus, |_| {})
    }

    fn with(kernel: &[u8], vcpus: u8, change: impl FnOnce(&mut VmmConfig)) -> Option<Self> {
        if let Err(error) = crate::kvm::Kvm::open() {
            skipped(&chain(&error));
            return None;
        }
        let directory = tempfile::tempdir().unwrap();
        let open = |name: &str| {
            File::options().read(true).write(true).create_new(true).open(directory.path().join(name)).unwrap()
        };
        let mut kernel_file = open("kernel");
        kernel_file.write_all(kernel).unwrap();
        let mut config = VmmConfig {
            memory_mib: 32,
            huge_pages: Default::default(),
            upgradable: false,
            vcpus,
            cpu: Default::default(),
            boot: Boot::Kernel { kernel: inherit(kernel_file), initrd: None },
            transport: Default::default(),
            system: None,
            cmdline: String::new(),
            disks: Vec::new(),
            nics: Vec::new(),
            peripherals: Default::default(),
            console_log: Some(inherit(open("console"))),
            control_socket: Some(inherit(UnixListener::bind(directory.path().join("socket")).unwrap())),
            exit_report: Some(inherit(open("report"))),
        };
        change(&mut config);
        let thread = std::thread::spawn(move || run_instance("test", config, Sandbox::default()));
        Some(Self { directory, thread })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn client(&self) -> Client {
        Client::connect(&self.path("socket")).unwrap_or_else(|error| {
            let report = std::fs::read_to_string(self.path("report"));
            panic!("{}; its report: {report:?}", chain(&error))
        })
    }

    fn console(&self) -> String {
        std::fs::read_to_string(self.path("console")).unwrap()
    }

    /// Waits for the end; the report in the file is the one returned.
    fn end(self) -> (ExitReport, String) {
        let console = self.path("console");
        let report = self.path("report");
        let said = self.thread.join().unwrap();
        let written: ExitReport = serde_json::from_slice(&std::fs::read(report).unwrap()).unwrap();
        assert_eq!(written, said);
        (said, std::fs::read_to_string(console).unwrap())
    }
}

/// Waits for what happens soon on any host.
fn eventually(what: &str, mut happened: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !happened() {
        assert!(Instant::now() < deadline, "never: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn tiny_guest_speaks_and_runs_until_it_is_stopped() {
    let Some(instance) = Instance::new(crate::guest::TINY, 1) else { return };
    let mut client = instance.client();
    client.start().unwrap();
    eventually("first words", || instance.console().contains("WISP-GUEST"));
    assert_eq!(client.stop(true).unwrap(), VmState::Stopped);
    let (report, _) = instance.end();
    assert_ne!(report.reason, ExitReason::BootFailed, "{}", report.message);
    assert!(report.first_run_us.is_some());
}

#[test]
fn tiny_guest_on_a_disk_boots_from_it() {
    let disk = tempfile::tempfile().unwrap();
    disk.write_all_at(crate::guest::TINY, 0).unwrap();
    disk.set_len(1 << 20).unwrap();
    let instance = Instance::with(b"", 1, |config| {
        config.boot = Boot::Disk;
        let format = DiskFormat::Raw { file: inherit(disk) };
        config.disks = vec![DiskConfig::of(format)];
    });
    let Some(instance) = instance else { return };
    let mut client = instance.client();
    client.start().unwrap();
    eventually("first words", || instance.console().contains("WISP-GUEST"));
    assert_eq!(client.stop(true).unwrap(), VmState::Stopped);
    instance.end();
}

#[test]
fn guest_boots_from_an_encrypted_disk_with_its_key_and_without_it_finds_nothing() {
    use storage::format::{Disk as _, DiskKey, EncryptedDisk, RawFile};
    let disk = tempfile::tempfile().unwrap();
    let key = DiskKey::random(512).unwrap();
    let clear = EncryptedDisk::new(RawFile::new(disk.try_clone().unwrap(), 1 << 20), &key);
    clear.write_at(crate::guest::TINY, 0).unwrap();
    disk.set_len(1 << 20).unwrap();
    for key in [Some(key), None] {
        let with_key = key.is_some();
        let file = disk.try_clone().unwrap();
        let instance = Instance::with(b"", 1, |config| {
            config.boot = Boot::Disk;
            let format = DiskFormat::Raw { file: inherit(file) };
            config.disks = vec![DiskConfig { key, ..DiskConfig::of(format) }];
        });
        let Some(instance) = instance else { return };
        if with_key {
            let mut client = instance.client();
            client.start().unwrap();
            eventually("first words", || instance.console().contains("WISP-GUEST"));
            assert_eq!(client.stop(true).unwrap(), VmState::Stopped);
        }
        let (report, _) = instance.end();
        assert_eq!(report.reason == ExitReason::BootFailed, !with_key, "{}", report.message);
    }
}

#[test]
fn overlay_over_a_base_with_a_kernel_boots_from_it() {
    let (base, overlay) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    base.write_all_at(crate::guest::TINY, 0).unwrap();
    base.set_len(1 << 20).unwrap();
    Overlay::create(&overlay, 1 << 20, 2 << 20).unwrap();
    let instance = Instance::with(b"", 1, |config| {
        config.boot = Boot::Disk;
        let format = DiskFormat::Overlay { file: inherit(overlay), base: inherit(base) };
        config.disks = vec![DiskConfig::of(format)];
    });
    let Some(instance) = instance else { return };
    let mut client = instance.client();
    client.start().unwrap();
    eventually("its disk", || instance.console().contains("disk 0: 2097152 bytes"));
    assert_eq!(client.stop(true).unwrap(), VmState::Stopped);
    instance.end();
}

#[test]
fn disk_without_a_kernel_fails_to_boot_with_one_sentence() {
    let disk = tempfile::tempfile().unwrap();
    disk.set_len(1 << 20).unwrap();
    let instance = Instance::with(b"", 1, |config| {
        config.boot = Boot::Disk;
        let format = DiskFormat::Raw { file: inherit(disk) };
        config.disks = vec![DiskConfig::of(format)];
    });
    let Some(instance) = instance else { return };
    let (report, _) = instance.end();
    assert_eq!((report.reason, exit_code(&report)), (ExitReason::BootFailed, 1));
    assert!(
        report.message.contains("the first disk has no partition table and no filesystem"),
        "{}",
        report.message
    );
}

#[test]
fn broken_kernel_fails_to_boot_with_one_sentence() {
    let Some(instance) = Instance::new(b"#!/bin/sh\n", 1) else { return };
    let (report, console) = instance.end();
    assert_eq!(report.reason, ExitReason::BootFailed);
    let start = "the kernel is neither an ELF image for x86-64 nor a bzImage but ";
    assert!(report.message.starts_with(start), "{}", report.message);
    assert_eq!((report.first_run_us, console.as_str()), (None, ""));
}

#[test]
fn paused_guest_stands_still_and_goes_on_when_resumed() {
    let Some(instance) = Instance::new(&guest!(wisp_test_chatter_start, wisp_test_chatter_end), 1) else {
        return;
    };
    let mut client = instance.client();
    assert_eq!(client.status().unwrap().state, VmState::Created);
    assert!(matches!(client.pause(), Err(ClientError::Refused(_))));
    assert_eq!(client.start().unwrap(), VmState::Running);
    assert!(matches!(client.flush(), Err(ClientError::Refused(_))), "its disks do not stand still");
    let bytes = |client: &mut Client| client.status().unwrap().console_bytes;
    for _ in 0..5 {
        let before = bytes(&mut client);
        eventually("output", || bytes(&mut client) > before);
        assert_eq!(client.pause().unwrap(), VmState::Paused);
        let held = bytes(&mut client);
        std::thread::sleep(Duration::from_millis(20));
        assert_eq!(bytes(&mut client), held);
        assert_eq!(client.flush().unwrap(), VmState::Paused);
        assert!(matches!(client.stop(false), Err(ClientError::Refused(_))));
        assert_eq!(client.resume().unwrap(), VmState::Running);
    }
    assert!(client.console(5).unwrap() == "xxxxx");
    assert_eq!(client.stop(true).unwrap(), VmState::Stopped);
    let (report, _) = instance.end();
    assert_eq!(report.reason, ExitReason::Killed);
}

#[test]
fn sleeping_guest_is_paused_and_stopped_at_once() {
    let Some(instance) = Instance::new(&guest!(wisp_test_asleep_start, wisp_test_asleep_end), 2) else {
        return;
    };
    let mut client = instance.client();
    client.start().unwrap();
    eventually("sleep", || instance.console() == "s");
    assert_eq!(client.pause().unwrap(), VmState::Paused);
    assert_eq!(client.resume().unwrap(), VmState::Running);
    client.stop(true).unwrap();
    assert_eq!(instance.end().0.reason, ExitReason::Killed);
}

#[test]
fn power_button_reaches_the_guest_which_powers_off() {
    let Some(instance) = Instance::new(&guest!(wisp_test_button_start, wisp_test_button_end), 1) else {
        return;
    };
    let mut client = instance.client();
    client.start().unwrap();
    eventually("ready", || instance.console() == "b");
    assert_eq!(client.stop(false).unwrap(), VmState::Stopping);
    let (report, _) = instance.end();
    assert_eq!((report.reason, exit_code(&report)), (ExitReason::PoweredOff, 0));
}

#[test]
fn string_output_arrives_whole() {
    let Some(instance) = Instance::new(&guest!(wisp_test_string_start, wisp_test_string_end), 1) else {
        return;
    };
    instance.client().start().unwrap();
    let (report, console) = instance.end();
    assert_eq!((report.reason, console.as_str()), (ExitReason::PoweredOff, "string output"));
}

/// What is said where the processor does not keep its state over a triple fault.
const FORGETFUL: &str = "the guest crashed: a triple fault; this processor does not tell where";

#[test]
fn triple_fault_is_a_crash_that_says_where() {
    let Some(instance) = Instance::new(&guest!(wisp_test_fault_start, wisp_test_fault_end), 1) else {
        return;
    };
    instance.client().start().unwrap();
    let (report, _) = instance.end();
    assert_eq!((report.reason, exit_code(&report)), (ExitReason::Crashed, 1));
    let places = ["the guest crashed: a triple fault at 0x100000 in 64-bit mode, its kernel", FORGETFUL];
    assert!(places.contains(&report.message.as_str()), "{}", report.message);
}

#[test]
fn linux_on_a_software_kvm_is_refused_with_the_command_that_works() {
    let mut kernel = guest!(wisp_test_string_start, wisp_test_string_end);
    // The first note becomes one that every vmlinux has: PT_NOTE of no bytes now covers one at the image's end.
    let note = *b"\x06\0\0\0\0\0\0\0\x00\x01\0\0Linux\0\0\0";
    let notes = 64 + 56;
    let offset = (kernel.len() as u64).to_le_bytes();
    kernel[notes + 8..notes + 16].copy_from_slice(&offset);
    kernel[notes + 32..notes + 40].copy_from_slice(&(note.len() as u64).to_le_bytes());
    kernel.extend(note);
    let Some(instance) = Instance::new(&kernel, 1) else { return };
    if crate::kvm::HostKind::detect() == crate::kvm::HostKind::Hardware {
        instance.client().start().unwrap();
        assert_eq!(instance.end().0.reason, ExitReason::PoweredOff);
        return;
    }
    let (report, _) = instance.end();
    assert_eq!(report.reason, ExitReason::BootFailed);
    for part in ["is Linux", "kvm_pvm", "cannot run user programs", "wisp lab -- wisp vmm boot"] {
        assert!(report.message.contains(part), "{part}: {}", report.message);
    }
}

#[test]
fn guest_that_resets_without_using_its_disk_is_told_which_driver_it_lacks() {
    for (transport, module) in [(Transport::Pci, "virtio_pci"), (Transport::Mmio, "virtio_mmio")] {
        let disk = tempfile::tempfile().unwrap();
        disk.set_len(4096).unwrap();
        let kernel = guest!(wisp_test_reset_start, wisp_test_reset_end);
        let instance = Instance::with(&kernel, 1, |config| {
            config.transport = transport;
            let format = DiskFormat::Raw { file: inherit(disk) };
            config.disks = vec![DiskConfig::of(format)];
        });
        let Some(instance) = instance else { return };
        instance.client().start().unwrap();
        let (report, _) = instance.end();
        assert_eq!(report.reason, ExitReason::Reset);
        let start = "the guest asked for a reset; it had used none of its 1 disks";
        assert!(report.message.starts_with(start) && report.message.contains(module), "{}", report.message);
    }
}

#[test]
fn second_processor_starts_when_it_is_woken() {
    let Some(instance) = Instance::new(&guest!(wisp_test_wake_start, wisp_test_wake_end), 2) else { return };
    instance.client().start().unwrap();
    let (report, console) = instance.end();
    assert_eq!((report.reason, console.as_str()), (ExitReason::PoweredOff, "A"));
}

#[test]
fn instruction_that_this_host_cannot_run_is_named_as_the_hosts_limit() {
    let Some(instance) = Instance::new(&guest!(wisp_test_exotic_start, wisp_test_exotic_end), 1) else {
        return;
    };
    instance.client().start().unwrap();
    let (report, _) = instance.end();
    if crate::kvm::HostKind::detect() == crate::kvm::HostKind::Hardware {
        assert_eq!(report.reason, ExitReason::PoweredOff);
        return;
    }
    assert_eq!(report.reason, ExitReason::Crashed);
    for part in
        ["(f0 48 0f c7 4c 24 f0", "at 0x100000 in 64-bit mode", "cannot run an unmodified Linux", "wisp lab"]
    {
        assert!(report.message.contains(part), "{part}: {}", report.message);
    }
}

#[test]
fn misbehaving_clients_are_cut_off_and_others_are_served() {
    let Some(instance) = Instance::new(&guest!(wisp_test_chatter_start, wisp_test_chatter_end), 1) else {
        return;
    };
    let connect = || UnixStream::connect(instance.path("socket")).unwrap();
    let mut long = connect();
    long.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    // Writing fails once it is cut off.
    let _ = long.write_all(&vec![b'x'; 1 << 20]);
    assert!(matches!(long.read(&mut [0; 16]), Ok(0) | Err(_)));
    let mut wrong = connect();
    wrong.write_all(b"{\"action\":\"fly\"}\nnonsense\n").unwrap();
    let mut client = instance.client();
    client.start().unwrap();
    // One that asks for much and reads nothing.
    let mut deaf = connect();
    deaf.set_nonblocking(true).unwrap();
    while deaf.write(b"{\"action\":\"console\",\"bytes_max\":1000000}\n").is_ok() {}
    // More than are served at a time: the rest wait until someone leaves.
    let crowd: Vec<_> = (0..20).map(|_| connect()).collect();
    assert_eq!(client.status().unwrap().state, VmState::Running);
    drop(crowd);
    assert_eq!(instance.client().status().unwrap().state, VmState::Running);
    let mut answers = [0; 4];
    wrong.read_exact(&mut answers).unwrap();
    assert_eq!(&answers, b"{\"re");
    instance.client().stop(true).unwrap();
    instance.end();
}

#[test]
fn configurations_too_long_or_wrong_are_refused() {
    let file = |text: &[u8]| {
        let file = tempfile::tempfile().unwrap();
        file.write_all_at(text, 0).unwrap();
        file
    };
    assert!(matches!(read_config(file(b"{}")), Err(Error::ParseConfig(_))));
    let long = vec![b' '; usize::try_from(CONFIG_BYTES_MAX).unwrap() + 1];
    assert!(matches!(read_config(file(&long)), Err(Error::ReadConfig(_))));
    let config = br#"{"memory_mib":1,"vcpus":1,"boot":"disk","console_log":null,"control_socket":null,"exit_report":null}"#;
    assert_eq!(read_config(file(config)).unwrap().boot, Boot::Disk);
}
