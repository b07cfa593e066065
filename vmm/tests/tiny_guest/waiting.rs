//! The tiny guest in VMMs that wait for it: all that a guest of its own process has, and no more.

use std::os::fd::AsFd as _;
use std::os::unix::net::UnixStream;

use vmm::rpc::{ClientError, Streams, VmState};
use vmm::vm::MainConsole;
use vmm::waiting::{Called, Expected, wait_for_guest};

use super::*;

/// A VMM that waits for a guest, perhaps of so many MiB, and the other end of its line.
fn waits(memory_mib: Option<u32>) -> (JoinHandle<ExitReport>, Client) {
    let (ours, theirs) = UnixStream::pair().unwrap();
    settle_heaps();
    let expected = Expected { disks: 1, memory_mib };
    let thread = std::thread::spawn(move || wait_for_guest(Called::By(theirs), expected, Sandbox::default()));
    let client = Client::new(ours).unwrap();
    client.set_timeout(PATIENCE).unwrap();
    (thread, client)
}

fn config(boot: Boot) -> VmmConfig {
    let memory_mib = if matches!(boot, Boot::Snapshot { .. }) { 0 } else { 32 };
    let vcpus = u8::from(memory_mib > 0);
    let told = serde_json::json!({"memory_mib": memory_mib, "vcpus": vcpus, "boot": boot});
    serde_json::from_value(told).unwrap()
}

fn kernel() -> File {
    let mut kernel = tempfile::tempfile().unwrap();
    kernel.write_all(vmm::guest::TINY).unwrap();
    kernel
}

/// Reads what a guest says until it has said this.
fn hear(console: &mut io::PipeReader, mark: &str) -> String {
    let mut heard = String::new();
    while !heard.contains(mark) {
        let mut buffer = [0; 4096];
        let count = console.read(&mut buffer).unwrap();
        assert!(count > 0, "it never says {mark:?}: {heard}");
        heard.push_str(&String::from_utf8_lossy(&buffer[..count]));
    }
    heard
}

const STREAMS: Streams =
    Streams { input: InheritedFd(1), output: InheritedFd(2), console: MainConsole::Serial };

#[test]
fn guest_boots_where_it_was_waited_for_and_another_goes_on_from_it() {
    boots_and_goes_on(None, true);
}

#[test]
fn so_it_does_with_memory_that_was_known_or_was_guessed_wrong() {
    for expected_mib in [32, 64] {
        for upgradable in [false, true] {
            boots_and_goes_on(Some(expected_mib), upgradable);
        }
    }
}

/// A guest of 32 MiB, in VMMs that wait for such a one or for another.
fn boots_and_goes_on(expected_mib: Option<u32>, upgradable: bool) {
    let (thread, mut vmm) = waits(expected_mib);
    let (kernel, silent) = (kernel(), File::open("/dev/null").unwrap());
    let (disk, report) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    disk.set_len(1 << 20).unwrap();
    let (mut heard, output) = io::pipe().unwrap();
    let mut told = config(Boot::Kernel { kernel: InheritedFd(0), initrd: None });
    told.disks = vec![DiskConfig::of(DiskFormat::Raw { file: InheritedFd(3) })];
    told.exit_report = Some(InheritedFd(4));
    told.upgradable = upgradable;
    let files = [kernel.as_fd(), silent.as_fd(), output.as_fd(), disk.as_fd(), report.as_fd()];
    assert_eq!(vmm.configure(told, Some(STREAMS), &files).unwrap(), VmState::Created);
    assert_eq!(vmm.start().unwrap(), VmState::Running);
    let said = hear(&mut heard, "ready without network");
    assert!(said.contains("WISP-GUEST") && said.contains("disk 0: 1048576 bytes"), "{said}");
    // It is as any guest: it can be asked all there is, and not to be another.
    let snapshot = tempfile::tempfile().unwrap();
    vmm.snapshot(&snapshot, false, false).unwrap();
    let again = config(Boot::Kernel { kernel: InheritedFd(0), initrd: None });
    let refused = vmm.configure(again, None, &[kernel.as_fd()]).unwrap_err();
    assert!(matches!(&refused, ClientError::Refused(why) if why.contains("has its guest")), "{refused}");
    vmm.stop(true).unwrap();
    let ended = thread.join().unwrap();
    assert_eq!(ended.reason, ExitReason::Killed);
    let mut written = String::new();
    { &report }.read_to_string(&mut written).unwrap();
    assert_eq!(serde_json::from_str::<ExitReport>(&written).unwrap(), ended);

    let (thread, mut vmm) = waits(expected_mib);
    let (mut heard, output) = io::pipe().unwrap();
    let boot = Boot::Snapshot { files: vec![InheritedFd(0)], track: false, working_set: None };
    let mut told = config(boot);
    told.disks = vec![DiskConfig::of(DiskFormat::Raw { file: InheritedFd(3) })];
    let files = [snapshot.as_fd(), silent.as_fd(), output.as_fd(), disk.as_fd()];
    vmm.configure(told, Some(STREAMS), &files).unwrap();
    vmm.start().unwrap();
    hear(&mut heard, "generation:");
    vmm.stop(true).unwrap();
    assert_eq!(thread.join().unwrap().reason, ExitReason::Killed);
}

#[test]
fn guest_that_cannot_be_made_ends_its_vmm_and_who_asked_is_told_why() {
    let (thread, mut vmm) = waits(None);
    let mut text = tempfile::tempfile().unwrap();
    text.write_all(b"no kernel\n").unwrap();
    let told = config(Boot::Kernel { kernel: InheritedFd(0), initrd: None });
    let refused = vmm.configure(told, None, &[text.as_fd()]).unwrap_err();
    assert!(
        matches!(&refused, ClientError::Refused(why) if why.contains("neither an ELF image")),
        "{refused}"
    );
    let ended = thread.join().unwrap();
    assert_eq!(ended.reason, ExitReason::BootFailed);
    assert!(ended.message.contains("neither an ELF image"), "{}", ended.message);
}

#[test]
fn vmm_that_nobody_can_give_a_guest_any_more_ends() {
    let (thread, vmm) = waits(None);
    drop(vmm);
    let ended = thread.join().unwrap();
    assert_eq!(ended.reason, ExitReason::Killed);
    assert!(ended.message.contains("nobody is there any more"), "{}", ended.message);
}
