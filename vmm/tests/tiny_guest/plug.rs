//! Disks and network devices that come to a guest and go from it while it runs.

use std::os::fd::AsFd as _;
use std::os::unix::fs::{FileExt as _, MetadataExt as _};

use vmm::rpc::{ClientError, DeviceName, DeviceState};

use super::*;

fn disk_config(serial: &str) -> DiskConfig {
    let format = DiskFormat::Raw { file: InheritedFd(0) };
    DiskConfig { serial: serial.to_owned(), ..DiskConfig::of(format) }
}

fn disk(serial: &str) -> DeviceName {
    DeviceName::Disk(serial.to_owned())
}

fn file(bytes: u64) -> File {
    let file = tempfile::tempfile().unwrap();
    file.set_len(bytes).unwrap();
    file
}

/// A network device, and the tap that is passed with it.
fn passed_nic(name: &str, address: Ipv4Addr) -> (NicConfig, OwnedFd) {
    let tap = tap(name);
    let mut config = nic(tap.try_clone().unwrap(), address, "");
    // The number that the configuration of a start would have had.
    // SAFETY: made by `nic`, and owned by nobody else.
    drop(unsafe { OwnedFd::from_raw_fd(config.tap.0) });
    config.tap = InheritedFd(0);
    (config, tap)
}

impl Instance {
    fn state_of(&self, device: &DeviceName) -> DeviceState {
        let devices = self.client().status().unwrap().devices.unwrap();
        let found = devices.into_iter().find(|found| found.device == *device);
        found.map_or(DeviceState::Gone, |found| found.state)
    }

    /// Asks for a device until it is gone.
    fn take(&self, device: &DeviceName) {
        let first = self.client().remove(device.clone()).unwrap();
        assert!(matches!(first, DeviceState::Leaving | DeviceState::Gone), "{first:?}");
        let deadline = Instant::now() + PATIENCE;
        while self.state_of(device) != DeviceState::Gone {
            assert!(Instant::now() < deadline, "{device:?} never goes:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(2));
        }
        assert_eq!(self.client().remove(device.clone()).unwrap(), DeviceState::Gone, "again");
    }

    /// Waits until `start` begins so many lines of the console.
    fn lines(&self, start: &str, count: usize) {
        let deadline = Instant::now() + PATIENCE;
        while self.console().lines().filter(|line| line.starts_with(start)).count() < count {
            assert!(Instant::now() < deadline, "not {count} lines {start:?} in:\n{}", self.console());
            std::thread::sleep(Duration::from_millis(2));
        }
    }
}

#[test]
fn disk_that_became_larger_is_so_for_its_guest_and_keeps_what_it_has() {
    if !host_is_able() {
        return;
    }
    let tap = tap("t0");
    give_address("t0", HOST);
    let instance = Instance::start(vec![nic(tap, GUEST, "")], 4096);
    instance.line("ready");
    let (data, mut client) = (file(4096), instance.client());
    client.add_disk(disk_config("data"), &[data.as_fd()]).unwrap();
    instance.line("disk 1: 4096 bytes");
    assert_eq!(http("PUT", "/disk/1/7", b"kept").0, "HTTP/1.1 200 OK");
    let bytes = |instance: &Instance| {
        let devices = instance.client().status().unwrap().devices.unwrap();
        devices.into_iter().find(|found| found.device == disk("data")).unwrap().bytes
    };
    assert_eq!(bytes(&instance), Some(4096));
    for (size, has_another) in [(8192, true), (8192, false)] {
        data.set_len(size).unwrap();
        let before = client.resize_locked_disk(disk_config("data"), &[data.as_fd()]).unwrap();
        assert_eq!(before.len(), usize::from(has_another));
        for file in before {
            assert_eq!(File::from(file).metadata().unwrap().ino(), data.metadata().unwrap().ino());
        }
        assert_eq!(bytes(&instance), Some(size));
        assert_eq!(http("GET", "/disk/1/7", b"").1[..4], *b"kept");
    }
    // A serial number is taken whole or not at all, and what is refused says how long one may be.
    let longest = "12345678901234567890";
    let refused = client.add_disk(disk_config(&format!("{longest}1")), &[data.as_fd()]).unwrap_err();
    let said = refused.to_string();
    assert!(matches!(refused, ClientError::Refused(_)) && said.contains("up to 20 bytes"), "{said}");
    assert_eq!(instance.state_of(&disk(longest)), DeviceState::Gone);
    for (serial, size) in [("data", 4096), ("other", 1 << 20)] {
        data.set_len(size).unwrap();
        let refused = client.resize_disk(disk_config(serial), &[data.as_fd()]);
        assert!(matches!(refused, Err(ClientError::Refused(_))), "{refused:?}");
        assert_eq!(bytes(&instance), Some(8192));
    }
    client.stop(true).unwrap();
    instance.end();
}

fn disk_comes_and_goes(transport: Transport) {
    if !host_is_able() {
        return;
    }
    let tap = tap("t0");
    give_address("t0", HOST);
    let instance = Instance::start_over(transport, vec![nic(tap, GUEST, "")], 1 << 20);
    instance.line("ready");
    let (data, sector) = (file(1 << 20), [0x5a; 512]);
    for round in 1..=3 {
        instance.client().add_disk(disk_config("data"), &[data.as_fd()]).unwrap();
        instance.lines("disk 1: 1048576 bytes rw serial data", round);
        assert_eq!(instance.state_of(&disk("data")), DeviceState::Present);
        if round > 1 {
            assert_eq!(http("GET", "/disk/1/9", b"").1, sector);
        }
        assert_eq!(http("PUT", "/disk/1/9", &sector).0, "HTTP/1.1 200 OK");
        instance.take(&disk("data"));
        instance.lines("disk 1: gone", round);
        assert_eq!(http("GET", "/disk/1/9", b"").0, "HTTP/1.1 404 Not Found");
        let mut written = [0; 512];
        data.read_exact_at(&mut written, 9 * 512).unwrap();
        assert_eq!(written, sector);
    }
    instance.client().stop(true).unwrap();
    instance.end();
}

#[test]
fn disk_comes_to_a_guest_on_mmio_is_used_and_goes_again() {
    disk_comes_and_goes(Transport::Mmio);
}

#[test]
fn disk_comes_to_a_guest_on_pci_is_used_and_goes_again() {
    disk_comes_and_goes(Transport::Pci);
}

#[test]
fn network_device_comes_to_a_guest_without_one_carries_frames_and_goes_again() {
    if !host_is_able() {
        return;
    }
    let instance = Instance::start(Vec::new(), 4096);
    instance.line("ready without network");
    for round in 1..=2 {
        let (config, tap) = passed_nic("t0", GUEST);
        let device = DeviceName::Nic(config.mac);
        instance.client().add_nic(config, &[tap.as_fd()]).unwrap();
        drop(tap);
        give_address("t0", HOST);
        instance.lines("net: address 10.99.0.10/24", round);
        assert_eq!(http("GET", "/disk/0", b"").1, b"4096\n");
        instance.take(&device);
        instance.lines("net 0: gone", round);
    }
    instance.client().stop(true).unwrap();
    instance.end();
}

#[test]
fn second_network_device_comes_and_goes_beside_the_first() {
    if !host_is_able() {
        return;
    }
    let first = tap("t0");
    give_address("t0", HOST);
    let instance = Instance::start_over(Transport::Pci, vec![nic(first, GUEST, "")], 4096);
    instance.line("ready");
    let (config, tap) = passed_nic("t1", OTHER);
    let device = DeviceName::Nic(config.mac);
    instance.client().add_nic(config, &[tap.as_fd()]).unwrap();
    instance.line("net1: address 10.99.0.11/24");
    instance.take(&device);
    instance.line("net 1: gone");
    assert_eq!(http("GET", "/disk/0", b"").1, b"4096\n", "the first goes on");
    instance.client().stop(true).unwrap();
    instance.end();
}

#[test]
fn guest_that_stands_still_keeps_its_disk_until_it_goes_on() {
    if let Err(error) = vmm::kvm::Kvm::open() {
        return skipped(&format!("no KVM: {error}"));
    }
    let instance = Instance::start(Vec::new(), 4096);
    instance.line("ready");
    let mut client = instance.client();
    client.pause().unwrap();
    client.add_disk(disk_config("data"), &[file(8192).as_fd()]).unwrap();
    std::thread::sleep(Duration::from_millis(50));
    assert!(!instance.console().contains("disk 1"));
    client.resume().unwrap();
    instance.line("disk 1: 8192 bytes");
    client.pause().unwrap();
    for _ in 0..3 {
        assert_eq!(client.remove(disk("data")).unwrap(), DeviceState::Leaving);
    }
    assert_eq!(instance.state_of(&disk("data")), DeviceState::Leaving);
    client.resume().unwrap();
    instance.take(&disk("data"));
    instance.line("disk 1: gone");
    client.stop(true).unwrap();
    instance.end();
}

#[test]
fn refused_devices_change_nothing_and_slots_run_out_by_name() {
    if let Err(error) = vmm::kvm::Kvm::open() {
        return skipped(&format!("no KVM: {error}"));
    }
    let instance = Instance::start(Vec::new(), 4096);
    instance.line("ready");
    let mut client = instance.client();
    let before = client.status().unwrap().devices;
    let says = |refused: Result<(), ClientError>| match refused {
        Err(ClientError::Refused(message)) => message,
        other => panic!("{other:?}"),
    };
    let data = file(4096);
    let fds = [data.as_fd(), data.as_fd()];
    assert!(says(client.add_disk(disk_config(""), &fds[..1])).contains("serial number"));
    assert!(says(client.add_disk(disk_config("root"), &fds[..1])).contains("already"));
    for wrong in [&fds[..0], &fds[..2]] {
        assert!(says(client.add_disk(disk_config("data"), wrong)).contains("descriptors"));
    }
    let empty = DiskConfig { format: DiskFormat::Layers { files: Vec::new() }, ..disk_config("data") };
    assert!(!says(client.add_disk(empty, &[])).is_empty());
    let fixed = client.remove(disk("root"));
    assert!(matches!(&fixed, Err(ClientError::Refused(why)) if why.contains("virtio-mmio")), "{fixed:?}");
    assert_eq!(client.status().unwrap().devices, before);

    for index in 0..31 {
        client.add_disk(disk_config(&format!("data{index}")), &fds[..1]).unwrap();
    }
    assert!(says(client.add_disk(disk_config("data"), &fds[..1])).contains("31 devices"));
    // More than this guest takes: what it has no driver for goes at once.
    for index in 0..31 {
        instance.take(&disk(&format!("data{index}")));
    }
    assert_eq!(client.status().unwrap().devices, before);
    client.stop(true).unwrap();
    instance.end();
}
