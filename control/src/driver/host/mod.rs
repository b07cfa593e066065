//! The driver of a real host: instances are VMM processes, disks and taps. What is known of each is on disk in the
//! run directory ([`directory`]), so that an agent that comes after a crash finds everything and kills nothing.
//!
//! Must never know: control, other hosts.

mod cgroup;
mod config_drive;
mod diagnostics;
mod directory;
mod disk;
mod exits;
mod figures;
mod frozen;
mod network;
mod plug;
mod power;
mod removal;
mod resolver;
mod spawn;
mod start;
mod undertaker;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use net::keeper::Namespaces;
use vmm::rpc::{Client, VmState};
use vmm::sandbox::cell::Cell;

use self::cgroup::Cgroups;
use self::directory::{Directory, Record};
use self::exits::Exits;
use self::network::Network;
use self::plug::{Beside, Plugging};
use self::resolver::Resolver;
use self::undertaker::Undertaker;
use super::fail_points::FailPoints;
use super::process_id::{self, ProcessId, has_ended_within};
use super::tunnel::Tunnel;
use super::volumes::{VolumePaths, Volumes};
use super::{Applied, CONSOLE_BYTES_MAX, Driver, DriverError, Surroundings, Wake};
use crate::agent::protocol::{
    Diagnostics, DiskFound, DiskObserved, DiskShape, DiskWanted, HostReport, HostTraffic, InstanceObserved,
    InstanceState, InstanceWanted, NicWanted, Power, RouterObserved, ZoneWanted,
};

pub use self::cgroup::{Limited, LimitsHeld, probe_limits};
pub use self::removal::{Removed, remove_all};
pub use self::resolver::Forwarders;
pub use self::start::probe_protections;

/// Opens an image's file for reading; the error is one sentence.
pub(super) fn open_image(images: &std::path::Path, id: &str) -> Result<std::fs::File, String> {
    disk::open_image(images, id).map_err(|error| sentence(&error))
}

/// After this time something that could not be taken away is tried again.
const RETRY: Duration = Duration::from_secs(5);

/// What a host's driver is told.
#[derive(Debug, Clone)]
pub struct HostOptions {
    /// The host's name.
    pub name: String,
    /// The run directory; a short or relative path, since sockets' paths are at most 107 bytes long.
    pub run: PathBuf,
    /// The directory of the images' files, by their ids.
    pub images: PathBuf,
    /// The program that runs `vmm run`: this one.
    pub program: String,
    /// Where volumes are.
    pub volumes: VolumePaths,
    /// Who makes routers' network namespaces.
    pub namespaces: Namespaces,
    /// The interface of each physical network that the host is on.
    pub interfaces: BTreeMap<String, String>,
    /// How the host's networks get to other hosts, if they do.
    pub tunnel: Option<Tunnel>,
    /// Who knows the names that guests ask for and that are not the cloud's own.
    pub forwarders: Forwarders,
    /// Steps that a test has fail.
    pub fail: FailPoints,
}

/// See the module.
pub struct HostDriver {
    name: String,
    run: PathBuf,
    images: PathBuf,
    program: String,
    fail: FailPoints,
    volumes: Volumes,
    network: Network,
    tunnel: Option<Tunnel>,
    cgroups: Cgroups,
    exits: Exits,
    resolver: Resolver,
    undertaker: Undertaker,
    /// What VMM processes are in; none where the kernel allows none.
    cell: Option<Cell>,
    slots: Mutex<HashMap<String, Arc<Mutex<Slot>>>>,
}

/// What is known of one instance in memory; all of it can be had from its directory again, except why a boot failed
/// of which nothing was left.
#[derive(Default)]
struct Slot {
    record: Option<Record>,
    process: Option<Process>,
    /// The power button was pressed: until when the guest may take.
    stopping: Option<Instant>,
    /// The boot that could not be begun, and why.
    failed: Option<(u64, String)>,
    /// The signal that the last process died of, if that is known.
    killed_by: Option<i32>,
    /// When the last boot began.
    begun: Option<Instant>,
    /// Devices that come and go.
    plugging: Plugging,
}

/// A VMM process.
#[derive(Debug, Clone)]
struct Process {
    id: ProcessId,
    pidfd: Arc<OwnedFd>,
}

impl Process {
    fn has_ended(&self) -> bool {
        // A handle that cannot be asked is one of a process that we cannot know to live.
        has_ended_within(&self.pidfd, Duration::ZERO).unwrap_or(true)
    }
}

/// An error with its causes as one sentence.
pub(super) fn sentence(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

impl HostDriver {
    /// Opens the run directory, which exists. Changes nothing.
    pub fn new(options: HostOptions) -> io::Result<Self> {
        Ok(Self {
            network: Network::new(&options.run, options.namespaces, options.interfaces, options.tunnel),
            tunnel: options.tunnel,
            cgroups: Cgroups::find(),
            exits: Exits::start()?,
            resolver: Resolver::start(options.forwarders)?,
            undertaker: Undertaker::start()?,
            cell: start::cell(),
            volumes: Volumes::open(options.volumes).map_err(|error| io::Error::other(sentence(&error)))?,
            name: options.name,
            run: options.run,
            images: options.images,
            program: options.program,
            fail: options.fail,
            slots: Mutex::default(),
        })
    }

    fn slots(&self) -> MutexGuard<'_, HashMap<String, Arc<Mutex<Slot>>>> {
        // Entries are inserted and removed whole.
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn slot(&self, id: &str) -> Arc<Mutex<Slot>> {
        self.slots().entry(id.to_string()).or_default().clone()
    }

    /// Finds one instance again: its process if it still runs, its record if it is whole.
    fn adopt_one(&self, id: &str) -> Option<InstanceObserved> {
        let directory = Directory::of(&self.run, id).ok()?;
        let Some(record) = directory.record() else {
            // A start that was cut off. Its process, if any, was never told what to be, and has ended; a disk is kept.
            if !disk::exists(&directory.disks()) {
                let _ = directory.remove();
                self.undertaker.clear(self.cgroups.remove(id));
            }
            return None;
        };
        let process = directory.process().and_then(|process| adopt_process(id, process));
        if process.is_some() {
            self.claim(&record);
            self.resolver.serve(&record.wanted, &directory.control_socket());
        }
        if let Some(process) = &process
            && let Err(error) = self.exits.watch(id, process.pidfd.clone())
        {
            tracing::error!(instance.id = id, %error, "the end of the instance will not be noticed");
        }
        if process.is_none() {
            // What an end that nobody saw left; its taps go when the network is next looked at.
            let _ = directory.remove_run();
            self.undertaker.clear(self.cgroups.remove(id));
        }
        let mut slot = Slot { record: Some(record), process, ..Slot::default() };
        let observed = self.observe(id, &mut slot, &directory);
        self.slots().insert(id.to_string(), Arc::new(Mutex::new(slot)));
        observed
    }

    /// What an instance does now, as far as it can be seen without changing anything.
    fn observe(&self, id: &str, slot: &mut Slot, directory: &Directory) -> Option<InstanceObserved> {
        let devices = slot.devices(&slot.record.as_ref()?.wanted);
        let record = slot.record.as_mut()?;
        let status = slot.process.as_ref().and_then(|_| {
            let status = Client::connect(&directory.control_socket()).and_then(|mut client| client.status());
            status
                .inspect_err(|error| tracing::warn!(instance.id = id, error = sentence(error), "no status"))
                .ok()
        });
        if let Some(first_run_us) = status.as_ref().and_then(|status| status.first_run_us) {
            record.first_run_us = Some(first_run_us);
        }
        let state = match (&slot.process, status) {
            (Some(_), Some(status)) => state_of(status.state),
            (Some(_), None) => InstanceState::Running,
            (None, _) if record.fault.is_some() => InstanceState::Failed,
            (None, _) => InstanceState::Stopped,
        };
        Some(InstanceObserved {
            id: id.into(),
            generation: record.wanted.generation,
            boot: record.boot,
            state,
            first_run_us: record.first_run_us,
            fault: record.fault.clone(),
            devices,
        })
    }

    fn observed(wanted: &InstanceWanted, slot: &Slot, state: InstanceState) -> InstanceObserved {
        InstanceObserved {
            id: wanted.id.clone(),
            generation: wanted.generation,
            boot: slot.record.as_ref().map_or(wanted.boot, |record| record.boot),
            state,
            first_run_us: slot.record.as_ref().and_then(|record| record.first_run_us),
            fault: None,
            devices: slot.devices(wanted),
        }
    }

    fn failure(wanted: &InstanceWanted, slot: &Slot, fault: String) -> InstanceObserved {
        let mut observed = Self::observed(wanted, slot, InstanceState::Failed);
        observed.fault = Some(fault);
        observed
    }

    /// Takes notice of a process that has ended: what was made for it alone goes.
    fn reap(
        &self,
        wanted: &InstanceWanted,
        surroundings: &Surroundings,
        slot: &mut Slot,
        directory: &Directory,
    ) {
        if let Some(ended) = slot.process.take_if(|process| process.has_ended()) {
            slot.killed_by = process_id::killed_by(&ended.pidfd);
            slot.stopping = None;
            self.resolver.forget(&wanted.id);
            slot.plugging = Plugging::default();
            let record = slot.record.as_ref();
            let mut nics = record.map_or(&wanted.nics, |record| &record.wanted.nics).clone();
            nics.extend(record.into_iter().flat_map(|record| record.beside.nics.clone()));
            if let Err(error) = self.network.detach(surroundings, &nics) {
                tracing::warn!(instance.id = wanted.id, error = sentence(&error), "cannot remove taps");
            }
            self.undertaker.clear(self.cgroups.remove(&wanted.id));
            self.volumes.release(&wanted.id);
            if let Err(error) = directory.remove_run() {
                tracing::warn!(instance.id = wanted.id, %error, "cannot remove the control socket");
            }
        }
    }

    /// Writes down how far an instance with a directory has come.
    fn keep(&self, wanted: &InstanceWanted, slot: &mut Slot, directory: &Directory) {
        let Some(record) = &mut slot.record else { return };
        record.wanted = wanted.without_keys();
        if slot.process.is_some() {
            self.claim(record);
        } else {
            record.beside = Beside::default();
        }
        if directory.record().as_ref() != Some(record)
            && let Err(error) = directory.write_record(record)
        {
            tracing::warn!(instance.id = wanted.id, %error, "cannot write the instance down");
        }
    }

    /// The devices of all instances that have a process.
    fn running_nics(&self) -> Vec<NicWanted> {
        let slots: Vec<_> = self.slots().values().cloned().collect();
        let nics = slots.iter().filter_map(|slot| {
            // One that is being applied right now keeps its own taps.
            let slot = slot.try_lock().ok()?;
            slot.process.as_ref()?;
            let record = slot.record.as_ref()?;
            let beside = record.beside.nics.iter().filter(|nic| !slot.plugging.is_cut(nic));
            Some(record.wanted.nics.iter().chain(beside).cloned().collect::<Vec<_>>())
        });
        nics.flatten().collect()
    }
}

fn state_of(state: VmState) -> InstanceState {
    match state {
        VmState::Created => InstanceState::Preparing,
        VmState::Running => InstanceState::Running,
        VmState::Paused => InstanceState::Paused,
        VmState::Stopping | VmState::Stopped => InstanceState::Stopping,
    }
}

/// The handle of a process that still is the VMM of this instance.
fn adopt_process(id: &str, process: ProcessId) -> Option<Process> {
    let pidfd = process.open()?;
    let cmdline = std::fs::read(format!("/proc/{}/cmdline", process.pid)).ok()?;
    let mut words = cmdline.split(|byte| *byte == 0).skip(1);
    let is_ours = words.next()? == b"vmm" && words.next()? == b"run" && words.next()? == id.as_bytes();
    let process = Process { id: process, pidfd: Arc::new(pidfd) };
    (is_ours && !process.has_ended()).then_some(process)
}

impl Driver for HostDriver {
    fn host_report(&self) -> HostReport {
        HostReport {
            pools: self.volumes.report(),
            carries_vlans: self.network.carries_vlans(),
            tunnel_address: self.tunnel.map(|tunnel| tunnel.address),
            ..figures::host_report(&self.name, &self.run)
        }
    }

    fn adopt(&self, wake: Wake) -> Vec<InstanceObserved> {
        self.exits.tell(wake);
        match Directory::ids(&self.run) {
            Ok(ids) => ids.iter().filter_map(|id| self.adopt_one(id)).collect(),
            Err(error) => {
                tracing::error!(%error, "the run directory cannot be read");
                Vec::new()
            }
        }
    }

    fn surround(&self, surroundings: &Arc<Surroundings>) -> Result<(), String> {
        self.network.surround(surroundings, &self.running_nics()).map_err(|error| sentence(&error))
    }

    fn know_names(&self, changed: &[ZoneWanted], gone: &[String], whole: bool) {
        self.resolver.know(changed, gone, whole);
    }

    fn routers(&self) -> Vec<RouterObserved> {
        self.network.routers()
    }

    fn heal(&self) -> Result<(), String> {
        self.network.heal().map_err(|error| sentence(&error))
    }

    fn apply(
        &self,
        wanted: &InstanceWanted,
        surroundings: &Arc<Surroundings>,
        report: &dyn Fn(InstanceObserved),
    ) -> Applied {
        let slot = self.slot(&wanted.id);
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = match Directory::of(&self.run, &wanted.id) {
            Ok(directory) => directory,
            Err(error) => {
                let observed = Self::failure(wanted, &slot, error.to_string());
                return Applied { observed, again_after: None };
            }
        };
        self.reap(wanted, surroundings, &mut slot, &directory);
        match wanted.power {
            Power::Deleted => self.delete(wanted, surroundings, &mut slot, &directory),
            Power::Stopped => self.stop(wanted, surroundings, &mut slot, &directory),
            Power::Running | Power::Paused => self.run(wanted, surroundings, &mut slot, &directory, report),
        }
    }

    fn disks(&self, backend: &str) -> Result<Vec<DiskFound>, String> {
        self.volumes.disks(backend)
    }

    fn apply_disk(&self, wanted: &DiskWanted) -> DiskObserved {
        match &wanted.shape {
            DiskShape::OutgoingRoot { instance } => {
                self.volumes.bring_out_root(wanted, || self.freeze_root(instance))
            }
            _ => self.volumes.apply(wanted),
        }
    }

    fn diagnostics(&self, instance: &str) -> Result<Diagnostics, DriverError> {
        self.diagnose(instance)
    }

    fn traffic(&self) -> Result<HostTraffic, String> {
        let traffic = self.network.traffic().map_err(|error| sentence(&error))?;
        Ok(HostTraffic { queues: self.queue_counts(), ..traffic })
    }

    fn console(&self, instance: &str, bytes_max: u32) -> Result<String, DriverError> {
        let directory =
            Directory::of(&self.run, instance).map_err(|_| DriverError::NoInstance(instance.into()))?;
        if !directory.path().is_dir() {
            return Err(DriverError::NoInstance(instance.into()));
        }
        let bytes_max = bytes_max.min(CONSOLE_BYTES_MAX);
        let asked =
            Client::connect(&directory.control_socket()).and_then(|mut client| client.console(bytes_max));
        if let Ok(text) = asked {
            return Ok(text);
        }
        let bytes = directory
            .console()
            .map_err(|source| DriverError::Console { instance: instance.into(), source })?;
        let from = bytes.len().saturating_sub(bytes_max as usize);
        Ok(String::from_utf8_lossy(&bytes[from..]).into_owned())
    }
}
