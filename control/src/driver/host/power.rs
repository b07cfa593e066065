//! One instance's power: from what it is wanted to do and what its process does, to the next thing done about it.
//! Nothing here waits for a guest: what takes time is looked at again.

use std::collections::BTreeMap;
use std::io;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vmm::rpc::{Action, Client, ClientError, DeviceName, DeviceStatus, ExitReason, VmState};

use super::cgroup::Limits;
use super::directory::{self, Directory};
use super::network::trunk::dropped;
use super::{HostDriver, RETRY, Slot, sentence, start, state_of};
use crate::agent::protocol::{InstanceObserved, InstanceState, InstanceWanted, Power, VolumeWanted};
use crate::driver::process_id::has_ended_within;
use crate::driver::volumes::serial;
use crate::driver::{Applied, Surroundings};

/// The shortest time between two boots that a guest asks for itself: one that resets at once must not keep a host busy.
const RESET_INTERVAL: Duration = Duration::from_secs(1);

/// Whether an instance that has to go down is down.
enum Down {
    Yes,
    In(Duration),
}

enum Next {
    Start,
    Stay(InstanceObserved),
    Wait(Duration),
}

impl HostDriver {
    /// Brings the process down: asks the guest first if that was wanted, never waits for it.
    fn bring_down(
        &self,
        wanted: &InstanceWanted,
        slot: &mut Slot,
        directory: &Directory,
    ) -> io::Result<Down> {
        let Some(process) = &slot.process else { return Ok(Down::Yes) };
        let now = Instant::now();
        match slot.stopping {
            Some(deadline) if now < deadline && wanted.shutdown_timeout_ms > 0 => {
                return Ok(Down::In(deadline - now));
            }
            None if wanted.shutdown_timeout_ms > 0 && press_power_button(&wanted.id, directory) => {
                let patience = Duration::from_millis(u64::from(wanted.shutdown_timeout_ms));
                slot.stopping = Some(now + patience);
                return Ok(Down::In(patience));
            }
            _ => {}
        }
        // The socket is the way that leaves a report; a VMM that does not answer is killed.
        let asked = Client::connect(&directory.control_socket()).and_then(|mut client| {
            client.set_timeout(Duration::from_secs(1))?;
            client.end()
        });
        // Held until the process is over.
        let (is_asked, handles) = (asked.is_ok(), asked.unwrap_or_default());
        if !is_asked || !has_ended_within(&process.pidfd, Duration::from_secs(2))? {
            match rustix::process::pidfd_send_signal(&process.pidfd, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !has_ended_within(&process.pidfd, start::KILL_TIMEOUT)? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the VMM process does not end"));
        }
        handles.into_iter().for_each(|handle| self.undertaker.take(handle));
        Ok(Down::Yes)
    }

    pub(super) fn stop(
        &self,
        wanted: &InstanceWanted,
        surroundings: &Surroundings,
        slot: &mut Slot,
        directory: &Directory,
    ) -> Applied {
        match self.bring_down(wanted, slot, directory) {
            Ok(Down::In(left)) => {
                return Applied {
                    observed: Self::observed(wanted, slot, InstanceState::Stopping),
                    again_after: Some(left),
                };
            }
            Err(error) => {
                let observed =
                    Self::failure(wanted, slot, format!("stop the instance: {}", sentence(&error)));
                return Applied { observed, again_after: Some(RETRY) };
            }
            Ok(Down::Yes) => self.reap(wanted, surroundings, slot, directory),
        }
        self.keep(wanted, slot, directory);
        Applied { observed: Self::observed(wanted, slot, InstanceState::Stopped), again_after: None }
    }

    pub(super) fn delete(
        &self,
        wanted: &InstanceWanted,
        surroundings: &Surroundings,
        slot: &mut Slot,
        directory: &Directory,
    ) -> Applied {
        let stopped = self.stop(wanted, surroundings, slot, directory);
        if stopped.observed.state != InstanceState::Stopped {
            return stopped;
        }
        let nics = slot.record.as_ref().map_or(&wanted.nics, |record| &record.wanted.nics);
        let removed = self
            .network
            .detach(surroundings, nics)
            .map_err(|error| format!("remove the instance's taps: {}", sentence(&error)))
            .and_then(|()| {
                self.undertaker.clear(self.cgroups.remove(&wanted.id));
                directory.remove().map_err(|error| format!("remove the instance's files: {error}"))
            });
        match removed {
            Ok(()) => {
                *slot = Slot::default();
                self.slots().remove(&wanted.id);
                let observed = Self::observed(wanted, slot, InstanceState::Deleted);
                Applied { observed, again_after: None }
            }
            Err(fault) => Applied { observed: Self::failure(wanted, slot, fault), again_after: Some(RETRY) },
        }
    }

    pub(super) fn run(
        &self,
        wanted: &InstanceWanted,
        surroundings: &Surroundings,
        slot: &mut Slot,
        directory: &Directory,
        report: &dyn Fn(InstanceObserved),
    ) -> Applied {
        let done = |observed| Applied { observed, again_after: None };
        let runs_older = slot.record.as_ref().is_none_or(|record| record.boot < wanted.boot);
        if slot.process.is_some() && runs_older {
            match self.bring_down(wanted, slot, directory) {
                Ok(Down::In(left)) => {
                    let observed = Self::observed(wanted, slot, InstanceState::Stopping);
                    return Applied { observed, again_after: Some(left) };
                }
                Ok(Down::Yes) => self.reap(wanted, surroundings, slot, directory),
                Err(error) => {
                    let fault = format!("stop the instance for its restart: {}", sentence(&error));
                    return Applied {
                        observed: Self::failure(wanted, slot, fault),
                        again_after: Some(RETRY),
                    };
                }
            }
        }
        if slot.process.is_some() {
            let observed = self.align(wanted, surroundings, slot, directory);
            return Applied { observed, again_after: slot.plugging.again.take() };
        }
        match self.next_boot(wanted, slot, directory) {
            Next::Stay(observed) => {
                self.keep(wanted, slot, directory);
                return done(observed);
            }
            Next::Wait(left) => {
                let observed = Self::observed(wanted, slot, InstanceState::Preparing);
                return Applied { observed, again_after: Some(left) };
            }
            Next::Start => {}
        }
        let mut preparing = Self::observed(wanted, slot, InstanceState::Preparing);
        preparing.boot = wanted.boot;
        report(preparing);
        let observed = self.begin(wanted, surroundings, slot, directory, report);
        Applied { observed, again_after: slot.plugging.again.take() }
    }

    /// Begins the wanted boot.
    fn begin(
        &self,
        wanted: &InstanceWanted,
        surroundings: &Surroundings,
        slot: &mut Slot,
        directory: &Directory,
        report: &dyn Fn(InstanceObserved),
    ) -> InstanceObserved {
        slot.begun = Some(Instant::now());
        match self.start(wanted, surroundings, directory) {
            Ok((process, record, plugging)) => {
                let id = process.id;
                if let Err(error) = self.exits.watch(&wanted.id, process.pidfd.clone()) {
                    tracing::error!(instance.id = wanted.id, %error, "the end of the instance will not be noticed");
                }
                *slot = Slot {
                    record: Some(record),
                    process: Some(process),
                    begun: slot.begun,
                    plugging,
                    ..Slot::default()
                };
                report(Self::observed(wanted, slot, InstanceState::Running));
                // Not before the guest runs: moving a process between groups can take the kernel many milliseconds.
                let limits = Limits::of(wanted.vcpus, wanted.memory_mib);
                let held = self.cgroups.place(&wanted.id, id.pid, limits);
                tracing::debug!(instance.id = wanted.id, ?held, "limits of its control group");
                self.align(wanted, surroundings, slot, directory)
            }
            Err(fault) => {
                tracing::warn!(instance.id = wanted.id, fault, "the instance could not be started");
                slot.failed = Some((wanted.boot, fault.clone()));
                // Where an earlier boot left disks, the failure is kept with them.
                slot.record = directory.record();
                if let Some(record) = &mut slot.record {
                    record.fault = Some(fault.clone());
                }
                self.keep(wanted, slot, directory);
                let mut observed = Self::failure(wanted, slot, fault);
                observed.boot = wanted.boot;
                observed
            }
        }
    }

    /// What becomes of an instance that shall run and has no process.
    fn next_boot(&self, wanted: &InstanceWanted, slot: &mut Slot, directory: &Directory) -> Next {
        if let Some((_, fault)) = slot.failed.as_ref().filter(|(boot, _)| *boot >= wanted.boot) {
            let mut observed = Self::failure(wanted, slot, fault.clone());
            observed.boot = wanted.boot;
            return Next::Stay(observed);
        }
        let Some(record) = &mut slot.record else { return Next::Start };
        if record.boot < wanted.boot || record.host_boot != directory::host_boot() {
            return Next::Start;
        }
        if let Some(fault) = record.fault.clone() {
            return Next::Stay(Self::failure(wanted, slot, fault));
        }
        if !record.started {
            return Next::Start;
        }
        match directory.exit().map(|report| report.reason) {
            Some(ExitReason::PoweredOff | ExitReason::Killed) => {
                Next::Stay(Self::observed(wanted, slot, InstanceState::Stopped))
            }
            Some(ExitReason::Reset) => {
                let since = slot.begun.map_or(RESET_INTERVAL, |begun| begun.elapsed());
                match RESET_INTERVAL.checked_sub(since) {
                    Some(left) if !left.is_zero() => Next::Wait(left),
                    _ => Next::Start,
                }
            }
            Some(ExitReason::BootFailed | ExitReason::Crashed) | None => {
                let fault = start::died(directory, slot.killed_by);
                record.fault = Some(fault.clone());
                Next::Stay(Self::failure(wanted, slot, fault))
            }
        }
    }

    /// Brings a process that runs the wanted boot to the wanted power.
    fn align(
        &self,
        wanted: &InstanceWanted,
        surroundings: &Surroundings,
        slot: &mut Slot,
        directory: &Directory,
    ) -> InstanceObserved {
        let leaving = self.prepare_plugging(wanted, surroundings, slot, directory);
        self.resolver.serve(wanted, &directory.control_socket());
        let before = slot.record.as_ref().map_or(&[][..], |record| &record.wanted.nics);
        let no_longer_carried = dropped(before, &wanted.nics);
        let updated = self
            .network
            .update(surroundings, &wanted.nics)
            .and_then(|()| self.network.detach(surroundings, &no_longer_carried));
        if let Err(error) = updated {
            tracing::error!(
                instance.id = wanted.id,
                error = sentence(&error),
                "the taps are not what they shall be"
            );
        }
        let told = slot.record.as_ref().map(|record| told(&record.wanted, wanted)).unwrap_or_default();
        let aligned = Client::connect(&directory.control_socket()).and_then(|mut client| {
            let status = client.status()?;
            for action in told.iter().chain(&limited(wanted, status.devices.iter().flatten())) {
                match client.call(action) {
                    // A VMM of before: its guest keeps what held at its start.
                    Err(ClientError::Refused(message)) => {
                        tracing::warn!(instance.id = wanted.id, message, "a device stays as it was");
                    }
                    answer => drop(answer?),
                }
            }
            self.plug(wanted, surroundings, slot, &leaving, (&mut client, status.devices))?;
            let state = match (status.state, wanted.power) {
                (VmState::Created, _) => client.start()?,
                (VmState::Running, Power::Paused) => client.pause()?,
                (VmState::Paused, Power::Running) => client.resume()?,
                (state, _) => state,
            };
            Ok((state, status.first_run_us))
        });
        match aligned {
            Ok((state, first_run_us)) => {
                if let Some(record) = &mut slot.record {
                    record.first_run_us = first_run_us.or(record.first_run_us);
                    record.started = true;
                }
                self.keep(wanted, slot, directory);
                Self::observed(wanted, slot, state_of(state))
            }
            // It is about to end; its end will be noticed.
            Err(ClientError::Connect(_) | ClientError::Talk(_)) => {
                Self::observed(wanted, slot, InstanceState::Running)
            }
            Err(error) => {
                let fault = format!("the VMM does not do what is wanted: {}", sentence(&error));
                Self::failure(wanted, slot, fault)
            }
        }
    }
}

/// What a running VMM has to be told of its network devices: where what is answered or held is not what it was.
fn told(before: &InstanceWanted, wanted: &InstanceWanted) -> Vec<Action> {
    let mut told = Vec::new();
    for nic in &wanted.nics {
        let Some(old) = before.nics.iter().find(|old| old.port_id == nic.port_id) else { continue };
        let mac = nic.mac;
        let addressing = start::addressing(nic, wanted);
        if start::addressing(old, before) != addressing {
            told.push(Action::Readdress { mac, addressing: Box::new(addressing) });
        }
        if old.traffic != nic.traffic {
            told.push(Action::Reshape { mac, traffic: nic.traffic });
        }
    }
    told
}

/// What a running VMM has to be told of its disks, `there` being its devices: where it holds one to something else than is wanted.
/// What it says is compared, and not what is written down, which a crash may have left behind. One of before says nothing and is told
/// nothing: its guest keeps the limits of its start.
fn limited<'a>(wanted: &InstanceWanted, there: impl Iterator<Item = &'a DeviceStatus>) -> Vec<Action> {
    let of_volume = |volume: &VolumeWanted| (serial(&volume.id), volume.limits);
    let root = &wanted.root_disk;
    let root = root.volume.as_ref().map_or_else(|| (serial(&wanted.id), root.limits), of_volume);
    let disks = std::iter::once(root).chain(wanted.volumes.iter().map(of_volume));
    let wanted: BTreeMap<_, _> = disks.map(|(serial, limits)| (DeviceName::Disk(serial), limits)).collect();
    let differing = there.filter_map(|device| {
        let limits =
            *wanted.get(&device.device).filter(|limits| device.limits.is_some_and(|now| now != **limits))?;
        let DeviceName::Disk(serial) = device.device.clone() else { return None };
        Some(Action::LimitDisk { serial, limits })
    });
    differing.collect()
}

/// Presses the power button of a guest that runs; returns whether there is anything to wait for.
fn press_power_button(id: &str, directory: &Directory) -> bool {
    let pressed = Client::connect(&directory.control_socket()).and_then(|mut client| {
        let state = client.status()?.state;
        if state == VmState::Running {
            client.stop(false)?;
        }
        Ok(matches!(state, VmState::Running | VmState::Stopping))
    });
    pressed.unwrap_or_else(|error| {
        tracing::debug!(instance.id = id, error = sentence(&error), "the guest cannot be asked to end");
        false
    })
}

#[cfg(test)]
mod tests {
    use vmm::config::{DiskLimits, RateLimit, TransferLimits};
    use vmm::rpc::DeviceState;

    use super::*;
    use crate::agent::protocol::DiskCipher;
    use crate::driver::test::instance_wanted;

    fn limits(per_second: u64) -> DiskLimits {
        let operations = Some(RateLimit { per_second, burst: None });
        DiskLimits { total: TransferLimits { bytes: None, operations }, ..DiskLimits::default() }
    }

    fn volume(id: &str, limits: DiskLimits) -> VolumeWanted {
        let cipher = DiskCipher::Clear;
        VolumeWanted { id: id.to_owned(), backend: None, size_bytes: 512, read_only: false, limits, cipher }
    }

    fn device(device: DeviceName, limits: Option<DiskLimits>) -> DeviceStatus {
        let state = DeviceState::Present;
        DeviceStatus { device, state, bytes: Some(512), engine: None, requests: None, limits, nic: None }
    }

    fn disk(serial: &str, limits: Option<DiskLimits>) -> DeviceStatus {
        device(DeviceName::Disk(serial.to_owned()), limits)
    }

    #[test]
    fn vmm_is_told_of_disks_that_it_holds_to_something_else_and_says_so() {
        let mut wanted = instance_wanted("own");
        wanted.root_disk.limits = limits(1);
        let ids = ["same", "changed", "freed", "held", "of-before", "not-there"];
        let limited = [limits(2), limits(3), DiskLimits::default(), limits(4), limits(5), limits(6)];
        wanted.volumes = ids.iter().zip(limited).map(|(id, limits)| volume(id, limits)).collect();
        let none = DiskLimits::default();
        let there = [
            disk("own", Some(none)),
            disk("same", Some(limits(2))),
            disk("changed", Some(limits(2))),
            disk("freed", Some(limits(2))),
            disk("held", Some(none)),
            disk("of-before", None),
            disk("config-drive", Some(limits(9))),
            device(DeviceName::Nic([2; 6]), None),
        ];
        let told = |wanted: &InstanceWanted| super::limited(wanted, there.iter());
        let one = |serial: &str, limits| Action::LimitDisk { serial: serial.to_owned(), limits };
        let of_volumes = [one("changed", limits(3)), one("freed", none), one("held", limits(4))];
        let expected: Vec<_> = std::iter::once(one("own", limits(1))).chain(of_volumes.clone()).collect();
        assert_eq!(told(&wanted), expected);
        // The flavor's are for a copy of an image.
        wanted.root_disk.volume = Some(volume("same", limits(2)));
        assert_eq!(told(&wanted), of_volumes);
        let held = super::limited(&instance_wanted("own"), [disk("own", Some(none))].iter());
        assert_eq!(held, []);
    }

    #[test]
    fn disk_is_found_by_what_of_its_id_fits_a_serial_number() {
        let id = "0a4e8b6e-3a4e-4f0e-9d0c-4f1f4f6d7a10";
        let mut wanted = instance_wanted(id);
        wanted.root_disk.limits = limits(1);
        let told = super::limited(&wanted, [disk(&id[..20], Some(DiskLimits::default()))].iter());
        assert_eq!(told, [Action::LimitDisk { serial: id[..20].to_owned(), limits: limits(1) }]);
    }
}
