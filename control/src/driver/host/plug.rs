//! Devices that come to an instance which runs, and go from it.
//!
//! What the VMM has is asked of the VMM. What it may have is written down before it is given anything: a crash between
//! two steps leaves nothing that nobody knows of, and the next call goes on.

use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use vmm::config::{DiskConfig, InheritedFd};
use vmm::rpc::{Client, ClientError, DeviceName, DeviceState, DeviceStatus};

use super::directory::{Directory, Record};
use super::{HostDriver, RETRY, Slot, sentence, start};
use crate::agent::protocol::{DevicesObserved, InstanceWanted, NicWanted, VolumeWanted};
use crate::driver::Surroundings;
use crate::driver::fail_points::Step;
use crate::driver::volumes::serial;

/// How soon it is looked whether a guest has let a device go: at first as long as a quick one takes, and longer the
/// longer it has taken.
const LOOK_AGAIN_MIN: Duration = Duration::from_millis(10);

/// Devices that an instance's VMM may have beside those of the wanted state that was applied last.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct Beside {
    /// Volumes.
    pub(super) volumes: Vec<VolumeWanted>,
    /// Network devices.
    pub(super) nics: Vec<NicWanted>,
}

impl Beside {
    /// What `before` and these have that has no place in `wanted`.
    fn without(&self, before: &InstanceWanted, wanted: &InstanceWanted) -> Self {
        let volumes = before.volumes.iter().chain(&self.volumes).cloned();
        let nics = before.nics.iter().chain(&self.nics).cloned();
        Self {
            volumes: no_longer(volumes, &wanted.volumes, |volume| &volume.id),
            nics: no_longer(nics, &wanted.nics, |nic| &nic.port_id),
        }
    }

    fn is_empty(&self) -> bool {
        self.volumes.is_empty() && self.nics.is_empty()
    }
}

/// How far the devices of an instance that runs are, beside what is written down.
#[derive(Debug, Default)]
pub(super) struct Plugging {
    /// What shall come and cannot, each with why.
    missing: BTreeMap<String, String>,
    /// What cannot go while the guest runs.
    fixed: BTreeSet<String>,
    /// Since when the guest has been asked to let something go.
    since: Option<Instant>,
    /// When it was asked last.
    asked: Option<Instant>,
    /// The ports of devices that are leaving whose taps are gone.
    cut: BTreeSet<String>,
    /// When to look again.
    pub(super) again: Option<Duration>,
}

impl Plugging {
    /// Of an instance whose guest has just begun, with the devices that it has: which of them cannot go is known before anybody
    /// may ask for it.
    pub(super) fn begun(wanted: &InstanceWanted, devices: Option<Vec<DeviceStatus>>) -> Self {
        let there = states(devices.into_iter().flatten());
        Self { fixed: fixed(wanted, &Beside::default(), &there), ..Self::default() }
    }

    /// Whether a device that is leaving has no tap any more.
    pub(super) fn is_cut(&self, nic: &NicWanted) -> bool {
        self.cut.contains(&nic.port_id)
    }

    /// Has it looked again whether a guest has let go what it was asked for, if anything.
    fn wait(&mut self, waits: bool) {
        if !waits {
            (self.since, self.asked) = (None, None);
            return;
        }
        let since = self.since.get_or_insert_with(Instant::now);
        self.again = Some((since.elapsed() / 4).clamp(LOOK_AGAIN_MIN, RETRY));
    }
}

fn disk(volume: &VolumeWanted) -> DeviceName {
    DeviceName::Disk(serial(&volume.id))
}

fn nic(nic: &NicWanted) -> DeviceName {
    DeviceName::Nic(nic.mac)
}

/// How the devices of a guest are.
fn states(devices: impl IntoIterator<Item = DeviceStatus>) -> BTreeMap<DeviceName, DeviceState> {
    devices.into_iter().map(|device| (device.device, device.state)).collect()
}

/// What is in `before` and has no place in `wanted`.
fn no_longer<T: Clone>(before: impl Iterator<Item = T>, wanted: &[T], id: impl Fn(&T) -> &str) -> Vec<T> {
    let mut gone: Vec<T> = Vec::new();
    for one in before {
        if wanted.iter().chain(&gone).all(|other| id(other) != id(&one)) {
            gone.push(one);
        }
    }
    gone
}

impl Slot {
    /// What there is to say of the devices of an instance that shall be as `wanted`.
    pub(super) fn devices(&self, wanted: &InstanceWanted) -> DevicesObserved {
        let Some(record) = self.record.as_ref().filter(|_| self.process.is_some()) else {
            return DevicesObserved::default();
        };
        let leaving = record.beside.without(&record.wanted, wanted).volumes;
        DevicesObserved {
            leaving: leaving.into_iter().map(|volume| volume.id).collect(),
            missing: self.plugging.missing.clone(),
            fixed: self.plugging.fixed.clone(),
        }
    }
}

impl HostDriver {
    /// Writes down what the VMM may have once it was given what is wanted; what of that shall leave. Taps of what is not
    /// wanted go at once, so that the guest neither hears nor says anything there any more.
    pub(super) fn prepare_plugging(
        &self,
        wanted: &InstanceWanted,
        surroundings: &Surroundings,
        slot: &mut Slot,
        directory: &Directory,
    ) -> Beside {
        let Some(record) = &mut slot.record else { return Beside::default() };
        let leaving = record.beside.without(&record.wanted, wanted);
        let beside = record.beside.without(&wanted.without_keys(), &record.wanted);
        if beside != record.beside {
            record.beside = beside;
            if let Err(error) = directory.write_record(record) {
                tracing::warn!(instance.id = wanted.id, %error, "cannot write the instance down");
            }
        }
        self.claim(record);
        let fresh: Vec<_> = leaving.nics.iter().filter(|nic| !slot.plugging.is_cut(nic)).cloned().collect();
        if let Err(error) = self.network.detach(surroundings, &fresh) {
            tracing::error!(instance.id = wanted.id, error = sentence(&error), "cannot remove taps");
        }
        slot.plugging.cut = leaving.nics.iter().map(|nic| nic.port_id.clone()).collect();
        leaving
    }

    /// Notes whatever volumes the VMM of an instance may be writing to.
    pub(super) fn claim(&self, record: &Record) {
        let mut all = record.wanted.clone();
        all.volumes.extend(record.beside.volumes.iter().cloned());
        self.volumes.claim(&all);
    }

    /// Gives the guest the devices that it shall have, and asks for those that are `leaving`; `there` are those that it has.
    ///
    /// # Errors
    /// The VMM cannot be talked to.
    pub(super) fn plug(
        &self,
        wanted: &InstanceWanted,
        surroundings: &Surroundings,
        slot: &mut Slot,
        leaving: &Beside,
        (client, there): (&mut Client, Option<Vec<DeviceStatus>>),
    ) -> Result<(), ClientError> {
        let Some(there) = there else {
            without_plug(wanted, slot, leaving);
            return Ok(());
        };
        self.resize(wanted, client, &there)?;
        let mut there = states(there);
        slot.plugging.fixed = fixed(wanted, leaving, &there);
        let left = take_back(leaving, &mut slot.plugging, client, &mut there)?;
        let mut missing = BTreeMap::new();
        for volume in &wanted.volumes {
            if !there.contains_key(&disk(volume))
                && let Err(why) = self.give_disk(volume, client)?
            {
                missing.insert(volume.id.clone(), why);
            }
        }
        for new in &wanted.nics {
            if !there.contains_key(&nic(new))
                && let Err(why) = self.give_nic(new, wanted, surroundings, client)?
            {
                missing.insert(new.port_id.clone(), why);
            }
        }
        for (id, why) in &missing {
            tracing::warn!(instance.id = wanted.id, device.id = id, why, "a device cannot be plugged");
        }
        // One that comes back waits until it has gone.
        let is_waited_for = |name: DeviceName| there.get(&name) == Some(&DeviceState::Leaving);
        let waits = wanted.volumes.iter().map(disk).chain(wanted.nics.iter().map(nic)).any(is_waited_for);
        let plugging = &mut slot.plugging;
        plugging.again = (!missing.is_empty()).then_some(RETRY);
        plugging.missing = missing;
        plugging.wait(!left.is_empty() || waits);
        if let Some(record) = &mut slot.record {
            record.beside = left;
        }
        Ok(())
    }

    fn give_disk(
        &self,
        volume: &VolumeWanted,
        client: &mut Client,
    ) -> Result<Result<(), String>, ClientError> {
        if let Err(why) = self.check(Step::PlugOpen) {
            return Ok(Err(why));
        }
        self.pass_disk(volume, |config, files| client.add_disk(config, files))
    }

    /// Tells the guest of volumes that have become larger.
    fn resize(
        &self,
        wanted: &InstanceWanted,
        client: &mut Client,
        there: &[DeviceStatus],
    ) -> Result<(), ClientError> {
        for volume in wanted.root_disk.volume.iter().chain(&wanted.volumes) {
            let name = disk(volume);
            let known = there.iter().find(|device| device.device == name).and_then(|device| device.bytes);
            if known.is_none_or(|known| known >= volume.size_bytes) {
                continue;
            }
            let told = self.pass_disk(volume, |config, files| client.resize_disk(config, files))?;
            if let Err(why) = told {
                tracing::warn!(instance.id = wanted.id, disk.id = volume.id, why, "a disk stays small");
            }
        }
        Ok(())
    }

    /// Opens a volume's files and passes them to a VMM.
    fn pass_disk(
        &self,
        volume: &VolumeWanted,
        pass: impl FnOnce(DiskConfig, &[BorrowedFd<'_>]) -> Result<(), ClientError>,
    ) -> Result<Result<(), String>, ClientError> {
        let mut files: Vec<OwnedFd> = Vec::new();
        let opened = self.volumes.export(volume, |file| {
            files.push(file.into());
            InheritedFd(i32::try_from(files.len() - 1).expect("invariant: a volume has a few files"))
        });
        let config = match opened {
            Ok(config) => config,
            Err(error) => return Ok(Err(format!("open volume {}: {error}", volume.id))),
        };
        let borrowed: Vec<_> = files.iter().map(OwnedFd::as_fd).collect();
        unless_refused(pass(config, &borrowed))
    }

    fn give_nic(
        &self,
        new: &NicWanted,
        wanted: &InstanceWanted,
        surroundings: &Surroundings,
        client: &mut Client,
    ) -> Result<Result<(), String>, ClientError> {
        let told = self.pass_nic(new, wanted, (surroundings, wanted.queue_pairs), client)?;
        if told.is_ok() || wanted.queue_pairs == 1 {
            return Ok(told);
        }
        // A VMM of before, which goes on after an upgrade, knows of one queue and no more. It keeps what came with a request that it
        // does not understand as long as the connection is there, and a tap of which somebody has queues is not opened. By its
        // answer on another connection it has heard that the first one is over, since it hears what comes in its order.
        let Ok(directory) = Directory::of(&self.run, &wanted.id) else { return Ok(told) };
        *client = Client::connect(&directory.control_socket())?;
        client.status()?;
        self.pass_nic(new, wanted, (surroundings, 1), client)
    }

    /// Makes a device's tap, opens so many queues of it and passes them to a VMM.
    fn pass_nic(
        &self,
        new: &NicWanted,
        wanted: &InstanceWanted,
        (surroundings, queues): (&Surroundings, u16),
        client: &mut Client,
    ) -> Result<Result<(), String>, ClientError> {
        let attached = self.network.attach(surroundings, (std::slice::from_ref(new), queues));
        let tap = match attached.map(|mut taps| taps.pop()) {
            Ok(Some(tap)) => tap,
            Ok(None) => return Ok(Err("the network has no tap for it".to_owned())),
            Err(error) => return Ok(Err(format!("attach to the network: {}", sentence(&error)))),
        };
        if let Err(why) = self.check(Step::PlugNetwork) {
            return Ok(Err(why));
        }
        let config = start::nic_config(new, wanted, (0..).map(InheritedFd).take(tap.len()).collect());
        let borrowed: Vec<_> = tap.iter().map(OwnedFd::as_fd).collect();
        unless_refused(client.add_nic(config, &borrowed))
    }
}

/// Asks for what is leaving; what of that the guest has still, and with it whatever it has as `there`.
fn take_back(
    leaving: &Beside,
    plugging: &mut Plugging,
    client: &mut Client,
    there: &mut BTreeMap<DeviceName, DeviceState>,
) -> Result<Beside, ClientError> {
    let due = plugging.asked.is_none_or(|asked| asked.elapsed() >= RETRY);
    let mut is_gone = |name: DeviceName| -> Result<bool, ClientError> {
        let state = match there.get(&name) {
            None => return Ok(true),
            Some(DeviceState::Leaving) if !due => return Ok(false),
            Some(DeviceState::Fixed) => return Ok(false),
            Some(_) => {
                plugging.asked = Some(Instant::now());
                client.remove(name.clone())?
            }
        };
        let gone = state == DeviceState::Gone;
        if gone {
            there.remove(&name);
        } else {
            there.insert(name, state);
        }
        Ok(gone)
    };
    let mut left = Beside::default();
    for volume in &leaving.volumes {
        if !is_gone(disk(volume))? {
            left.volumes.push(volume.clone());
        }
    }
    for old in &leaving.nics {
        if !is_gone(nic(old))? {
            left.nics.push(old.clone());
        }
    }
    Ok(left)
}

/// A VMM of a version before: its guest has what it had at its start until it ends.
fn without_plug(wanted: &InstanceWanted, slot: &mut Slot, leaving: &Beside) {
    let Some(record) = &mut slot.record else { return };
    let coming = Beside::default().without(wanted, &record.wanted);
    let why = "its VMM is of a version that cannot plug devices: stop it, then do this";
    let ids =
        coming.volumes.iter().map(|volume| &volume.id).chain(coming.nics.iter().map(|nic| &nic.port_id));
    slot.plugging.missing = ids.map(|id| (id.clone(), why.to_owned())).collect();
    record.beside = leaving.clone();
}

/// What of the wanted devices, and of the volumes that are leaving, cannot go while the guest runs.
fn fixed(
    wanted: &InstanceWanted,
    leaving: &Beside,
    there: &BTreeMap<DeviceName, DeviceState>,
) -> BTreeSet<String> {
    let is_fixed = |name: &DeviceName| there.get(name) == Some(&DeviceState::Fixed);
    let volumes = wanted.volumes.iter().chain(&leaving.volumes);
    let volumes = volumes.filter(|volume| is_fixed(&disk(volume))).map(|volume| &volume.id);
    let nics = wanted.nics.iter().filter(|new| is_fixed(&nic(new))).map(|new| &new.port_id);
    volumes.chain(nics).cloned().collect()
}

fn unless_refused(added: Result<(), ClientError>) -> Result<Result<(), String>, ClientError> {
    match added {
        Ok(()) => Ok(Ok(())),
        Err(ClientError::Refused(message)) => Ok(Err(format!("the VMM refused: {message}"))),
        Err(error) => Err(error),
    }
}
