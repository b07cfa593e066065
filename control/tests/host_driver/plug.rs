//! Disks and network devices that come to an instance which runs and go from it, whatever is cut off meanwhile.

use std::time::{Duration, Instant};

use control::agent::protocol::{
    DevicesObserved, DiskCipher, DiskShape, DiskSource, DiskWanted, InstanceObserved, InstanceState,
    InstanceWanted, Power, VolumeWanted,
};
use control::driver::Driver;
use control::driver::fail_points::Step;
use control::driver::host::HostDriver;
use vmm::config::DiskLimits;
use vmm::rpc::{Client, DeviceName};

use super::{Host, eventually};

impl Host {
    pub(super) fn volume(&self, driver: &HostDriver, id: &str) -> VolumeWanted {
        let shape = DiskShape::Volume { size_bytes: 1 << 20, source: DiskSource::Nothing };
        let wish = DiskWanted {
            id: id.to_owned(),
            generation: 1,
            backend: None,
            cipher: DiskCipher::Clear,
            source_cipher: DiskCipher::Clear,
            shape,
        };
        assert_eq!(driver.apply_disk(&wish).fault, None);
        VolumeWanted {
            id: id.to_owned(),
            backend: None,
            size_bytes: 1 << 20,
            read_only: false,
            limits: DiskLimits::default(),
            cipher: DiskCipher::Clear,
        }
    }

    fn extend(&self, driver: &HostDriver, wanted: &InstanceWanted, size_bytes: u64) {
        let wish = DiskWanted {
            id: wanted.volumes[0].id.clone(),
            generation: 2,
            backend: None,
            cipher: DiskCipher::Clear,
            source_cipher: DiskCipher::Clear,
            shape: DiskShape::Extended { size_bytes },
        };
        assert_eq!(driver.apply_disk(&wish).fault, None);
    }

    /// How large a guest's disk is, as its VMM says.
    fn bytes_of(&self, wanted: &InstanceWanted, serial: &str) -> Option<u64> {
        let socket = self.run().join(&wanted.id).join("control.sock");
        let devices = Client::connect(&socket).unwrap().status().unwrap().devices.unwrap();
        let name = DeviceName::Disk(serial.to_owned());
        devices.into_iter().find(|device| device.device == name)?.bytes
    }

    /// Applies what is wanted now until nothing has to be waited for.
    pub(super) fn settle(&self, driver: &HostDriver, wanted: &mut InstanceWanted) -> InstanceObserved {
        wanted.generation += 1;
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            let applied = driver.apply(wanted, &self.surroundings, &|_| {});
            let observed = applied.observed;
            assert_eq!((observed.state, observed.generation), (InstanceState::Running, wanted.generation));
            match applied.again_after {
                Some(after) if observed.devices.missing.is_empty() => {
                    assert!(Instant::now() < deadline, "{observed:?}");
                    std::thread::sleep(after);
                }
                _ => return observed,
            }
        }
    }

    pub(super) fn taps(&self) -> usize {
        self.traces().iter().filter(|trace| trace.contains("wt") && !trace.starts_with('/')).count()
    }

    /// A guest with one network device that has come far enough to hear of others.
    pub(super) fn running(&self, driver: &HostDriver) -> InstanceWanted {
        let mut wanted = self.wanted();
        wanted.nics.truncate(1);
        assert_eq!(self.apply(driver, &wanted).state, InstanceState::Running);
        let id = wanted.id.clone();
        eventually("the guest is up", || driver.console(&id, 4096).unwrap().contains("disk 1: "));
        wanted
    }

    pub(super) fn delete(&self, driver: &HostDriver, wanted: &mut InstanceWanted) {
        wanted.power = Power::Deleted;
        assert_eq!(self.apply(driver, wanted).state, InstanceState::Deleted);
    }
}

pub(super) fn come_and_go(host: &Host) {
    let (driver, _ends) = host.driver();
    let volume = host.volume(&driver, "volume-1");
    let before = host.traces();
    let mut wanted = host.running(&driver);
    let pid = host.pid();
    let id = wanted.id.clone();
    let says = |text: &str, count: usize| {
        eventually(text, || driver.console(&id, 1 << 16).unwrap().matches(text).count() == count);
    };
    for round in 1..=2 {
        let mut with = wanted.clone();
        with.volumes.push(volume.clone());
        with.nics.push(host.nic("private", 11));
        let observed = host.settle(&driver, &mut with);
        assert_eq!(observed.devices.missing.len() + observed.devices.leaving.len(), 0, "{observed:?}");
        assert_eq!(observed.devices.fixed, [with.nics[0].port_id.clone()].into(), "those of its start");
        says("disk 2: 1048576 bytes rw serial volume-1", round);
        says("net1: mac fa:16:3e:00:00:0b", round);
        assert_eq!(host.taps(), 2);
        let snapshot = DiskWanted {
            id: format!("snapshot-{round}"),
            generation: 1,
            backend: None,
            cipher: DiskCipher::Clear,
            source_cipher: DiskCipher::Clear,
            shape: DiskShape::Reverted { snapshot: "none".to_owned() },
        };
        let in_use = DiskWanted { id: volume.id.clone(), ..snapshot };
        assert!(driver.apply_disk(&in_use).fault.unwrap().contains("in use"), "its guest may be writing");
        wanted.generation = with.generation;
        let observed = host.settle(&driver, &mut wanted.clone());
        assert_eq!(observed.devices.leaving.len(), 0, "{observed:?}");
        wanted.generation += 1;
        says("disk 2: gone", round);
        says("net 1: gone", round);
        assert_eq!((host.taps(), host.pid()), (1, pid));
        assert!(!driver.apply_disk(&in_use).fault.unwrap_or_default().contains("in use"), "it is free");
    }
    // What came while it ran is there at its next start, and what has grown is known of before.
    wanted.volumes.push(volume);
    host.settle(&driver, &mut wanted);
    host.extend(&driver, &wanted, 2 << 20);
    wanted.volumes[0].size_bytes = 2 << 20;
    host.settle(&driver, &mut wanted);
    assert_eq!(host.bytes_of(&wanted, "volume-1"), Some(2 << 20));
    wanted.boot += 1;
    let observed = host.settle(&driver, &mut wanted);
    assert!(observed.devices.fixed.contains("volume-1"), "{observed:?}");
    says("disk 1: 2097152 bytes rw serial volume-1", 1);
    host.extend(&driver, &wanted, 3 << 20);
    wanted.volumes[0].size_bytes = 3 << 20;
    host.settle(&driver, &mut wanted);
    assert_eq!(host.bytes_of(&wanted, "volume-1"), Some(3 << 20), "on virtio-mmio too");
    host.delete(&driver, &mut wanted);
    assert_eq!(host.traces(), before);
}

pub(super) fn pending(host: &Host) {
    let (driver, _ends) = host.driver();
    let volume = host.volume(&driver, "volume-1");
    let before = host.traces();
    let mut wanted = host.running(&driver);
    wanted.volumes.push(volume);
    host.settle(&driver, &mut wanted);
    let id = wanted.id.clone();
    eventually("it has the disk", || driver.console(&id, 1 << 16).unwrap().contains("disk 2: "));
    wanted.power = Power::Paused;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Paused);
    wanted.volumes.clear();
    wanted.generation += 1;
    let leaving = DevicesObserved { leaving: ["volume-1".to_owned()].into(), ..DevicesObserved::default() };
    for _ in 0..3 {
        let applied = driver.apply(&wanted, &host.surroundings, &|_| {});
        assert_eq!(applied.observed.devices.leaving, leaving.leaving, "it stands still and cannot let go");
        assert!(applied.again_after.is_some());
    }
    drop(driver);
    // An agent that comes anew knows of it, and goes on.
    let (driver, _ends) = host.driver();
    let applied = driver.apply(&wanted, &host.surroundings, &|_| {});
    assert_eq!(applied.observed.devices.leaving, leaving.leaving);
    wanted.power = Power::Running;
    let observed = host.settle(&driver, &mut wanted);
    assert_eq!(observed.devices.leaving.len(), 0);
    wanted.power = Power::Stopped;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Stopped);
    host.delete(&driver, &mut wanted);
    assert_eq!(host.traces(), before);
}

pub(super) fn stop_takes_what_is_pending(host: &Host) {
    let (driver, _ends) = host.driver();
    let volume = host.volume(&driver, "volume-1");
    let mut wanted = host.running(&driver);
    wanted.volumes.push(volume);
    host.settle(&driver, &mut wanted);
    wanted.power = Power::Paused;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Paused);
    // Both at once: it is still there until the process has ended.
    wanted.volumes.clear();
    wanted.power = Power::Stopped;
    wanted.generation += 1;
    let observed = host.apply(&driver, &wanted);
    assert_eq!((observed.state, observed.devices), (InstanceState::Stopped, DevicesObserved::default()));
    host.delete(&driver, &mut wanted);
}

pub(super) fn failing_steps(host: &Host) {
    let (driver, _ends) = host.driver();
    let volume = host.volume(&driver, "volume-1");
    let mut wanted = host.running(&driver);
    let before = host.traces();
    for step in [Step::PlugOpen, Step::PlugNetwork] {
        let mut with = wanted.clone();
        with.generation += 1;
        match step {
            Step::PlugOpen => with.volumes.push(volume.clone()),
            _ => with.nics.push(host.nic("private", 11)),
        }
        host.fail.only(step);
        let applied = driver.apply(&with, &host.surroundings, &|_| {});
        assert_eq!(applied.observed.state, InstanceState::Running, "the guest goes on");
        let missing: Vec<_> = applied.observed.devices.missing.values().cloned().collect();
        assert!(missing.len() == 1 && missing[0].contains(&format!("{step:?}")), "{missing:?}");
        host.fail.clear();
        wanted.generation = with.generation;
        let observed = host.settle(&driver, &mut wanted);
        assert_eq!(observed.devices.missing.len(), 0);
        assert_eq!(host.traces(), before, "{step:?}");
    }
    let missing = VolumeWanted { id: "volume-2".to_owned(), ..volume };
    wanted.volumes.push(missing);
    wanted.generation += 1;
    let observed = host.apply(&driver, &wanted);
    assert!(observed.devices.missing["volume-2"].contains("open volume"), "{observed:?}");
    wanted.volumes.clear();
    host.settle(&driver, &mut wanted);
    host.delete(&driver, &mut wanted);
}

/// A driver that ends between any two steps, by what it leaves: what it wrote down before it gave a device, or after.
pub(super) fn agents_that_come_anew(host: &Host) {
    let (driver, _ends) = host.driver();
    let volume = host.volume(&driver, "volume-1");
    let mut wanted = host.running(&driver);
    let pid = host.pid();
    let spec = host.run().join(&wanted.id).join("spec.json");
    let kept = std::fs::read(&spec).unwrap();
    let mut beside: serde_json::Value = serde_json::from_slice(&kept).unwrap();
    let mut with = wanted.clone();
    with.volumes.push(volume);
    with.nics.push(host.nic("private", 11));
    beside["beside"] = serde_json::json!({"volumes": with.volumes, "nics": [with.nics[1].clone()]});
    host.settle(&driver, &mut with);
    let id = wanted.id.clone();
    eventually("it has both", || driver.console(&id, 1 << 16).unwrap().contains("net1: address"));
    drop(driver);
    // Given, and the record is as it was before that.
    std::fs::write(&spec, beside.to_string()).unwrap();
    let (driver, _ends) = host.driver();
    assert_eq!(host.taps(), 2, "what its guest may have stays");
    let observed = host.settle(&driver, &mut with);
    assert_eq!(observed.devices.missing.len() + observed.devices.leaving.len(), 0, "{observed:?}");
    drop(driver);
    // The same, and it is not wanted any more.
    std::fs::write(&spec, beside.to_string()).unwrap();
    let (driver, _ends) = host.driver();
    wanted.generation = with.generation;
    host.settle(&driver, &mut wanted);
    assert_eq!((host.taps(), host.pid()), (1, pid));
    drop(driver);
    // Written down, and not given.
    std::fs::write(&spec, beside.to_string()).unwrap();
    let (driver, _ends) = host.driver();
    with.generation = wanted.generation;
    let observed = host.settle(&driver, &mut with);
    assert_eq!(observed.devices.missing.len() + observed.devices.leaving.len(), 0, "{observed:?}");
    let console = |text: &str| driver.console(&id, 1 << 16).unwrap().matches(text).count();
    eventually("it has the disk again", || console("disk 2: 1048576 bytes") == 2);
    assert_eq!((host.taps(), host.pid()), (2, pid));
    host.delete(&driver, &mut with);
}
