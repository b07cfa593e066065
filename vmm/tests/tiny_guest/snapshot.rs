//! The tiny guest paused, saved, and gone on with in other processes' places.

use super::*;

/// A snapshot of `instance` in a file without a name.
fn snapshot(instance: &Instance, differences: bool, track: bool) -> (File, vmm::rpc::SnapshotReport) {
    let file = tempfile::tempfile().unwrap();
    let report = instance.client().snapshot(&file, differences, track).unwrap();
    (file, report)
}

fn go_on(files: &[&File], transport: Transport, nics: Vec<NicConfig>) -> Instance {
    let files = files.iter().map(|file| inherit(file.try_clone().unwrap())).collect();
    Instance::start_from(Boot::Snapshot { files, track: false }, 0, transport, nics, 1 << 20)
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
    println!("{report:?}");
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
