//! The driver of a real host: instances are VMM processes, disks and taps. What is known of each is on disk in the
//! run directory ([`directory`]), so that an agent that comes after a crash finds everything and kills nothing.
//!
//! Must never know: control, other hosts.

mod cgroup;
mod directory;
mod disk;
mod exits;
mod figures;
mod network;
mod removal;
mod spawn;
mod start;

use std::collections::HashMap;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use vmm::rpc::{Client, ClientError, ExitReason, VmState};

use self::cgroup::Cgroups;
use self::directory::{Directory, Record};
use self::exits::Exits;
use self::network::Network;
use super::fail_points::FailPoints;
use super::process_id::{ProcessId, has_ended_within};
use super::{Applied, CONSOLE_BYTES_MAX, Driver, DriverError, Surroundings, Wake};
use crate::agent::protocol::{HostReport, InstanceObserved, InstanceState, InstanceWanted, NicWanted, Power};

pub use self::removal::{Removed, remove_all};

/// After this time something that could not be taken away is tried again.
const RETRY: Duration = Duration::from_secs(5);
/// The shortest time between two boots that a guest asks for itself: one that resets at once must not keep a host busy.
const RESET_INTERVAL: Duration = Duration::from_secs(1);

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
    network: Network,
    cgroups: Cgroups,
    exits: Exits,
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
    /// When the last boot began.
    begun: Option<Instant>,
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
fn sentence(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(error.source(), |cause| cause.source());
    causes.fold(error.to_string(), |text, cause| format!("{text}: {cause}"))
}

/// Whether an instance that has to go down is down.
enum Down {
    Yes,
    In(Duration),
}

impl HostDriver {
    /// Opens the run directory, which exists. Changes nothing.
    pub fn new(options: HostOptions) -> io::Result<Self> {
        Ok(Self {
            network: Network::new(&options.run),
            cgroups: Cgroups::find(),
            exits: Exits::start()?,
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
                self.cgroups.remove(id);
            }
            return None;
        };
        let process = directory.process().and_then(|process| adopt_process(id, process));
        if let Some(process) = &process
            && let Err(error) = self.exits.watch(id, process.pidfd.clone())
        {
            tracing::error!(instance.id = id, %error, "the end of the instance will not be noticed");
        }
        if process.is_none() {
            // What an end that nobody saw left; its taps go when the network is next looked at.
            let _ = directory.remove_run();
            self.cgroups.remove(id);
        }
        let mut slot = Slot { record: Some(record), process, ..Slot::default() };
        let observed = self.observe(id, &mut slot, &directory);
        self.slots().insert(id.to_string(), Arc::new(Mutex::new(slot)));
        observed
    }

    /// What an instance does now, as far as it can be seen without changing anything.
    fn observe(&self, id: &str, slot: &mut Slot, directory: &Directory) -> Option<InstanceObserved> {
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
        if slot.process.as_ref().is_some_and(Process::has_ended) {
            slot.process = None;
            slot.stopping = None;
            let nics = slot.record.as_ref().map_or(&wanted.nics, |record| &record.wanted.nics);
            if let Err(error) = self.network.detach(surroundings, nics) {
                tracing::warn!(instance.id = wanted.id, error = sentence(&error), "cannot remove taps");
            }
            self.cgroups.remove(&wanted.id);
            if let Err(error) = directory.remove_run() {
                tracing::warn!(instance.id = wanted.id, %error, "cannot remove the control socket");
            }
        }
    }

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
            client.stop(true)
        });
        if asked.is_err() || !has_ended_within(&process.pidfd, Duration::from_secs(2))? {
            match rustix::process::pidfd_send_signal(&process.pidfd, Signal::KILL) {
                Ok(()) | Err(rustix::io::Errno::SRCH) => {}
                Err(error) => return Err(error.into()),
            }
        }
        if !has_ended_within(&process.pidfd, start::KILL_TIMEOUT)? {
            return Err(io::Error::new(io::ErrorKind::TimedOut, "the VMM process does not end"));
        }
        Ok(Down::Yes)
    }

    fn stop(
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

    fn delete(
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
                self.cgroups.remove(&wanted.id);
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

    fn run(
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
            return done(self.align(wanted, surroundings, slot, directory));
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
        done(self.begin(wanted, surroundings, slot, directory, report))
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
            Ok((process, record)) => {
                let id = process.id;
                if let Err(error) = self.exits.watch(&wanted.id, process.pidfd.clone()) {
                    tracing::error!(instance.id = wanted.id, %error, "the end of the instance will not be noticed");
                }
                *slot = Slot {
                    record: Some(record),
                    process: Some(process),
                    begun: slot.begun,
                    ..Slot::default()
                };
                report(Self::observed(wanted, slot, InstanceState::Running));
                // Not before the guest runs: moving a process between groups can take the kernel many milliseconds.
                self.cgroups.place(&wanted.id, id.pid);
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
                let fault = start::died(directory);
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
        let before = slot.record.as_ref().map(|record| record.wanted.nics.clone()).unwrap_or_default();
        let is_gone = |nic: &NicWanted| wanted.nics.iter().all(|wanted| wanted.port_id != nic.port_id);
        let gone: Vec<_> = before.into_iter().filter(is_gone).collect();
        let updated = self
            .network
            .update(surroundings, &wanted.nics)
            .and_then(|()| self.network.detach(surroundings, &gone));
        if let Err(error) = updated {
            tracing::error!(
                instance.id = wanted.id,
                error = sentence(&error),
                "the taps are not what they shall be"
            );
        }
        let aligned = Client::connect(&directory.control_socket()).and_then(|mut client| {
            let status = client.status()?;
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

    /// Writes down how far an instance with a directory has come.
    fn keep(&self, wanted: &InstanceWanted, slot: &mut Slot, directory: &Directory) {
        let Some(record) = &mut slot.record else { return };
        record.wanted = wanted.clone();
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
            Some(slot.record.as_ref()?.wanted.nics.clone())
        });
        nics.flatten().collect()
    }
}

enum Next {
    Start,
    Stay(InstanceObserved),
    Wait(Duration),
}

fn state_of(state: VmState) -> InstanceState {
    match state {
        VmState::Created => InstanceState::Preparing,
        VmState::Running => InstanceState::Running,
        VmState::Paused => InstanceState::Paused,
        VmState::Stopping | VmState::Stopped => InstanceState::Stopping,
    }
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
        figures::host_report(&self.name, &self.run)
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
