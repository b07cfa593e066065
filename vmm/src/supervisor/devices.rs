//! Disks and network devices that come while the guest runs, as the control socket asks for them.

use std::os::fd::OwnedFd;

use super::{Supervisor, not_those};
use crate::config::{DiskConfig, NicConfig};
use crate::inherited::{PassedFds, of_disk};
use crate::plugged;
use crate::rpc::Reply;
use crate::run::{chain, open_disk};
use crate::vm::{Machine, NicSpec};

impl Supervisor {
    pub(super) fn add_disk(&mut self, disk: DiskConfig, passed: Vec<OwnedFd>) -> Reply {
        let Some(mut passed) = PassedFds::new(passed, &of_disk(&disk)) else { return not_those() };
        let index = self.machine.devices().status().len();
        let opened = open_disk(index, disk, &mut passed, self.machine.is_upgradable());
        let opened = opened.map_err(|error| chain(&error));
        self.added(opened, |machine, spec| machine.add_disk(spec))
    }

    /// The reply, and with it the file of before, if the disk has another one now.
    pub(super) fn resize_disk(&mut self, disk: DiskConfig, passed: Vec<OwnedFd>) -> (Reply, Option<OwnedFd>) {
        let Some(mut passed) = PassedFds::new(passed, &of_disk(&disk)) else { return (not_those(), None) };
        let serial = disk.serial.clone();
        // What one process holds of a layer in memory the next one must find in its file.
        let written = self.machine.devices().write_out_disk(&serial).map_err(|error| chain(&error));
        let keep = self.machine.is_upgradable();
        let opened =
            written.and_then(|()| open_disk(0, disk, &mut passed, keep).map_err(|error| chain(&error)));
        let mut before = None;
        let reply = self.added(opened, |machine, spec| {
            before = machine.devices_mut().replace_disk(&serial, spec)?;
            Ok(())
        });
        (reply, before)
    }

    pub(super) fn add_nic(&mut self, nic: NicConfig, passed: Vec<OwnedFd>) -> Reply {
        let queues: Vec<_> = nic.queues().collect();
        let Some(mut passed) = PassedFds::new(passed, &queues) else { return not_those() };
        let spec = NicSpec::new(nic, &mut passed, self.machine.is_upgradable());
        self.added(spec.map_err(|error| chain(&error)), |machine, spec| machine.add_nic(spec))
    }

    fn added<S>(
        &mut self,
        spec: Result<S, String>,
        add: impl FnOnce(&mut Machine, S) -> Result<(), plugged::Error>,
    ) -> Reply {
        match spec.and_then(|spec| add(&mut self.machine, spec).map_err(|error| chain(&error))) {
            Ok(()) => Reply::Done { state: self.machine.state() },
            Err(message) => Reply::Error { message },
        }
    }
}
