//! Limits of disks that change while their guest runs.

use control::agent::protocol::{InstanceState, InstanceWanted};
use control::driver::Driver;
use vmm::config::{DiskLimits, RateLimit, TransferLimits};
use vmm::rpc::{Client, DeviceName, DeviceStatus};

use super::{Host, eventually};

/// A sector, and the next one some minutes later.
fn one_sector() -> DiskLimits {
    let bytes = Some(RateLimit { per_second: 1, burst: Some(512) });
    DiskLimits { write: TransferLimits { bytes, operations: None }, ..DiskLimits::default() }
}

impl Host {
    /// A disk of a guest, as its VMM says.
    fn disk(&self, wanted: &InstanceWanted, serial: &str) -> DeviceStatus {
        let socket = self.run().join(&wanted.id).join("control.sock");
        let devices = Client::connect(&socket).unwrap().status().unwrap().devices.unwrap();
        let name = DeviceName::Disk(serial.to_owned());
        devices.into_iter().find(|device| device.device == name).unwrap()
    }
}

pub(super) fn hold_at_once(host: &Host) {
    let (driver, _ends) = host.driver();
    let mut wanted = host.wanted();
    wanted.nics.truncate(1);
    wanted.config_drive = false;
    wanted.root_disk.limits = one_sector();
    // Behind the kernel, which is at the beginning of the disk.
    let commands = "#wisp\ndisk-write 0 2000 a\ndisk-write 0 2001 b\n";
    for (path, text) in [("meta_data.json", "{}"), ("user_data", commands)] {
        wanted.metadata.insert(format!("/openstack/latest/{path}"), text.to_owned().into());
    }
    let root = wanted.id.clone();
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running);
    let pid = host.pid();
    let says = |text: &str| driver.console(&wanted.id, 1 << 16).unwrap().contains(text);
    eventually("its limit stops it", || host.disk(&wanted, &root).requests.unwrap().throttled > 0);
    eventually("the first is written", || says("disk-write 0 2000 ok"));
    assert!(!says("disk-write 0 2001 ok"));

    // What came while it ran, and is the same or something else for an agent that comes anew.
    let mut volume = host.volume(&driver, "volume-1");
    volume.limits = one_sector();
    let mut with = wanted.clone();
    with.volumes.push(volume);
    host.settle(&driver, &mut with);
    let held = |serial: &str| host.disk(&wanted, serial).limits.unwrap();
    assert_eq!((held(&root), held("volume-1")), (one_sector(), one_sector()));
    let spec = host.run().join(&wanted.id).join("spec.json");
    let before = std::fs::read(&spec).unwrap();
    with.volumes[0].limits = DiskLimits::default();
    host.settle(&driver, &mut with);
    assert_eq!((held(&root), held("volume-1")), (one_sector(), DiskLimits::default()));
    assert!(!says("disk-write 0 2001 ok"), "its own limit stands");
    // Told, and not written down; then written down, and not told.
    for limits in [DiskLimits::default(), one_sector()] {
        std::fs::write(&spec, &before).unwrap();
        let (driver, _ends) = host.driver();
        with.volumes[0].limits = limits;
        host.settle(&driver, &mut with);
        assert_eq!(held("volume-1"), limits);
    }

    with.root_disk.limits = DiskLimits::default();
    host.settle(&driver, &mut with);
    assert_eq!((held(&root), held("volume-1")), (DiskLimits::default(), one_sector()));
    eventually("what waited goes on", || says("disk-write 0 2001 ok"));
    // What its VMM refuses leaves it as it was, and its other disks too.
    let nothing = Some(RateLimit { per_second: 0, burst: None });
    with.root_disk.limits.read.bytes = nothing;
    with.volumes[0].limits = DiskLimits::default();
    host.settle(&driver, &mut with);
    assert_eq!((held(&root), held("volume-1")), (DiskLimits::default(), DiskLimits::default()));
    assert_eq!(host.pid(), pid, "it is the same process");
    host.delete(&driver, &mut with);
}
