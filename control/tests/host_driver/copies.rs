//! Root disks brought out of the host while their guests run, stand still, or are off.

use std::collections::BTreeSet;
use std::path::PathBuf;

use control::agent::protocol::{
    DiskCipher, DiskObserved, DiskShape, DiskWanted, InstanceState, InstanceWanted, Power,
};
use control::driver::Driver;
use control::driver::fail_points::Step;
use control::driver::host::HostDriver;
use vmm::rpc::{Client, VmState};

use super::{Host, eventually, files};

/// A sector behind the image's end.
const SECTOR: usize = 1000;

impl Host {
    fn outgoing(&self) -> PathBuf {
        self.directory.path().join("volumes/outgoing")
    }

    fn names_outgoing(&self) -> BTreeSet<String> {
        let mut names = BTreeSet::new();
        files(&self.outgoing(), &mut names);
        names
    }

    /// Asks for a disk's bytes, by a wish of that generation.
    fn bring_out(&self, driver: &HostDriver, instance: &str, generation: u64) -> DiskObserved {
        let shape = DiskShape::OutgoingRoot { instance: instance.to_owned() };
        wish(driver, generation, shape)
    }

    fn state(&self, wanted: &InstanceWanted) -> VmState {
        let mut client = Client::connect(&self.run().join(&wanted.id).join("control.sock")).unwrap();
        client.status().unwrap().state
    }

    /// A guest that writes to its disk and says so.
    fn writing(&self, driver: &HostDriver) -> InstanceWanted {
        let mut wanted = self.wanted();
        let text = format!("#wisp\ndisk-write 0 {SECTOR} kept\n");
        wanted.metadata.insert("/openstack/latest/meta_data.json".to_owned(), "{}".into());
        wanted.metadata.insert("/openstack/latest/user_data".to_owned(), text.as_str().into());
        assert_eq!(self.apply(driver, &wanted).state, InstanceState::Running);
        let done = format!("command: disk-write 0 {SECTOR} ok");
        eventually("the guest writes", || driver.console(&wanted.id, 4096).unwrap().contains(&done));
        wanted
    }
}

fn wish(driver: &HostDriver, generation: u64, shape: DiskShape) -> DiskObserved {
    let id = "copy".to_owned();
    let (cipher, source_cipher) = (DiskCipher::Clear, DiskCipher::Clear);
    driver.apply_disk(&DiskWanted { id, generation, backend: None, cipher, source_cipher, shape })
}

pub(super) fn disks_come_out(host: &Host) {
    let (driver, _ends) = host.driver();
    let mut wanted = host.writing(&driver);
    let before = host.traces();
    for (generation, power) in [(1, Power::Running), (2, Power::Paused), (3, Power::Stopped)] {
        wanted.power = power;
        wanted.generation += 1;
        host.apply(&driver, &wanted);
        let observed = host.bring_out(&driver, &wanted.id, generation);
        assert_eq!((observed.generation, &observed.fault), (generation, &None), "{power:?}");
        let bytes = std::fs::read(host.outgoing().join("copy")).unwrap();
        assert_eq!(bytes.len(), 1 << 20);
        assert!(bytes.starts_with(vmm::guest::TINY), "{power:?}: it does not begin as the image");
        assert_eq!(&bytes[512 * SECTOR..512 * SECTOR + 5], b"kept\0", "{power:?}");
        match power {
            Power::Running => assert_eq!(host.state(&wanted), VmState::Running, "it goes on"),
            Power::Paused => assert_eq!(host.state(&wanted), VmState::Paused, "its owner paused it"),
            _ => assert_eq!(host.pid(), None),
        }
        if power != Power::Stopped {
            assert_eq!(host.traces(), before, "{power:?}");
        }
        assert_eq!(host.bring_out(&driver, &wanted.id, generation).fault, None, "again");
        assert_eq!(wish(&driver, generation, DiskShape::OutgoingDeleted).fault, None);
        assert_eq!(host.names_outgoing(), BTreeSet::new());
    }
    let unknown = host.bring_out(&driver, "unknown", 4).fault.unwrap();
    assert_eq!(unknown, "instance unknown is not on this host");
    wanted.power = Power::Deleted;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
}

pub(super) fn failing_copies(host: &Host) {
    let (driver, _ends) = host.driver();
    let mut wanted = host.writing(&driver);
    let before = host.traces();
    for (generation, step) in (1..).zip(Step::OF_A_COPY) {
        host.fail.only(step);
        let fault = host.bring_out(&driver, &wanted.id, generation).fault.unwrap();
        assert!(fault.contains(&format!("{step:?}")), "{fault}");
        assert_eq!(host.state(&wanted), VmState::Running, "{step:?}: the guest goes on");
        assert_eq!((host.traces(), host.names_outgoing()), (before.clone(), BTreeSet::new()), "{step:?}");
    }
    host.fail.clear();
    assert_eq!(host.bring_out(&driver, &wanted.id, 9).fault, None);
    wanted.power = Power::Deleted;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
}

pub(super) fn guest_left_still(host: &Host) {
    let (driver, _ends) = host.driver();
    let mut wanted = host.writing(&driver);
    // As an agent leaves it that is killed in the midst of a copy.
    let mut client = Client::connect(&host.run().join(&wanted.id).join("control.sock")).unwrap();
    assert_eq!(client.pause().unwrap(), VmState::Paused);
    drop(driver);
    std::fs::write(host.run().join(&wanted.id).join("disk/root.frozen"), "half").unwrap();
    std::fs::write(host.outgoing().join("copy.new"), "half").unwrap();
    let (driver, _ends) = host.driver();
    // The wish comes again, and before the instance: it is served, and the guest is woken.
    assert_eq!(host.bring_out(&driver, &wanted.id, 1).fault, None);
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Running);
    assert_eq!(host.state(&wanted), VmState::Running);
    assert_eq!(wish(&driver, 1, DiskShape::OutgoingDeleted).fault, None);
    assert_eq!(host.names_outgoing(), BTreeSet::new());
    assert!(!host.run().join(&wanted.id).join("disk/root.frozen").exists());
    wanted.power = Power::Deleted;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
}
