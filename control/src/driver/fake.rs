//! A driver without a host: instances are entries in memory (and, if asked for, one small file each, so that they
//! outlive the agent as real ones do), every change is instant. For machines without /dev/kvm and for tests of
//! scale.
//!
//! Must never know: whether anyone believes it. Its consoles say what it is.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Instant, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use super::volumes::Volumes;
use super::{Applied, CONSOLE_BYTES_MAX, Driver, DriverError, Surroundings, Wake, instance_id_is_safe};
use crate::agent::protocol::{
    Diagnostics, DiskFound, DiskObserved, DiskShape, DiskWanted, HostReport, HostTraffic, InstanceObserved,
    InstanceState, InstanceWanted, PoolReport, Power, RouterObserved, ZoneWanted,
};

/// What a fake host claims to have, unless told otherwise: a common server's size.
const VCPUS: u32 = 64;
/// See [`VCPUS`].
const MEMORY_MIB: u64 = 256 << 10;
/// See [`VCPUS`].
const DISK_GIB: u64 = 4 << 10;

/// One fake host.
pub struct FakeDriver {
    name: String,
    directory: Option<PathBuf>,
    started: Instant,
    instances: Mutex<HashMap<String, FakeInstance>>,
    routers: Mutex<Vec<RouterObserved>>,
    /// Volumes are as real as on any host.
    volumes: Option<Volumes>,
    hot_plug: bool,
    tunnel_address: Option<Ipv4Addr>,
}

/// One fake instance, as it is remembered.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct FakeInstance {
    observed: InstanceObserved,
    hostname: String,
    memory_mib: u32,
    disk_bytes: u64,
    vcpus: u8,
    /// The file that its root disk begins as, and stays.
    #[serde(default)]
    image_id: String,
}

impl FakeDriver {
    /// A host by that name. With a directory, instances are kept there in one file each and found again.
    pub fn new(name: impl Into<String>, directory: Option<PathBuf>) -> io::Result<Self> {
        if let Some(directory) = &directory {
            std::fs::create_dir_all(directory)?;
        }
        Ok(Self {
            name: name.into(),
            directory,
            started: Instant::now(),
            instances: Mutex::new(HashMap::new()),
            routers: Mutex::default(),
            volumes: None,
            hot_plug: true,
            tunnel_address: None,
        })
    }

    /// The same with a place for volumes.
    pub fn with_volumes(self, volumes: Volumes) -> Self {
        Self { volumes: Some(volumes), ..self }
    }

    /// The same, which gives devices to what is off and takes them from it alone, as hosts with guests do.
    #[must_use]
    pub fn without_hot_plug(self) -> Self {
        Self { hot_plug: false, ..self }
    }

    /// The same, which other hosts send frames to.
    #[must_use]
    pub fn with_tunnel_address(self, address: Ipv4Addr) -> Self {
        Self { tunnel_address: Some(address), ..self }
    }

    fn instances(&self) -> MutexGuard<'_, HashMap<String, FakeInstance>> {
        // Every change of the map is one insertion or removal: a panic elsewhere leaves it whole.
        self.instances.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, id: &str) -> Option<PathBuf> {
        self.directory.as_ref().map(|directory| directory.join(format!("{id}.json")))
    }

    fn remember(&self, instance: FakeInstance) -> io::Result<()> {
        if let Some(path) = self.file(&instance.observed.id) {
            let unfinished = path.with_extension("new");
            std::fs::write(&unfinished, serde_json::to_vec(&instance)?)?;
            std::fs::rename(&unfinished, &path)?;
        }
        self.instances().insert(instance.observed.id.clone(), instance);
        Ok(())
    }

    fn image_of(&self, id: &str) -> Result<String, String> {
        let instances = self.instances();
        let found = instances.get(id).map(|instance| instance.image_id.clone());
        found.ok_or_else(|| DriverError::NoInstance(id.into()).to_string())
    }

    fn forget(&self, id: &str) -> io::Result<()> {
        if let Some(path) = self.file(id) {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        self.instances().remove(id);
        Ok(())
    }
}

/// Where a wanted power leads an instance that was in `before` and last booted as `boot_before`.
fn next_state(wanted: &InstanceWanted, before: Option<&InstanceObserved>) -> InstanceState {
    let same_boot = before.is_some_and(|before| before.boot >= wanted.boot);
    match wanted.power {
        Power::Deleted => InstanceState::Deleted,
        Power::Stopped => InstanceState::Stopped,
        // An instance that is off stays off until a start is asked for.
        _ if same_boot && before.is_some_and(|before| before.state == InstanceState::Stopped) => {
            InstanceState::Stopped
        }
        Power::Running => InstanceState::Running,
        Power::Paused => InstanceState::Paused,
    }
}

impl Driver for FakeDriver {
    fn host_report(&self) -> HostReport {
        let used: u64 = self.instances().values().map(|instance| instance.disk_bytes).sum();
        HostReport {
            name: self.name.clone(),
            driver: "fake".into(),
            vcpus: VCPUS,
            memory_mib: MEMORY_MIB,
            disk_gib: DISK_GIB,
            disk_free_gib: DISK_GIB.saturating_sub(used >> 30),
            cpu_model: "none (fake driver)".into(),
            address: "127.0.0.1".into(),
            uptime_s: self.started.elapsed().as_secs(),
            hot_plug: self.hot_plug,
            carries_vlans: true,
            tunnel_address: self.tunnel_address,
            // No guest writes to its disks.
            pools: self.volumes.as_ref().map_or_else(Vec::new, |volumes| {
                let copied = |pool| PoolReport { copies_in_use: true, ..pool };
                volumes.report().into_iter().map(copied).collect()
            }),
        }
    }

    fn adopt(&self, _wake: Wake) -> Vec<InstanceObserved> {
        let Some(directory) = &self.directory else { return Vec::new() };
        let files = match std::fs::read_dir(directory) {
            Ok(files) => files,
            Err(error) => {
                tracing::warn!(%error, "the fake instances from before cannot be read");
                return Vec::new();
            }
        };
        let paths = files.filter_map(|file| Some(file.ok()?.path()));
        for path in paths.filter(|path| path.extension().is_some_and(|extension| extension == "json")) {
            let read =
                std::fs::read(&path).and_then(|bytes| Ok(serde_json::from_slice::<FakeInstance>(&bytes)?));
            match read {
                Ok(instance) => {
                    self.instances().insert(instance.observed.id.clone(), instance);
                }
                Err(error) => {
                    tracing::warn!(%error, path = %path.display(), "a fake instance from before cannot be read");
                }
            }
        }
        self.instances().values().map(|instance| instance.observed.clone()).collect()
    }

    fn surround(&self, surroundings: &Arc<Surroundings>) -> Result<(), String> {
        let routers = surroundings.routers.values().map(RouterObserved::whole).collect();
        *self.routers.lock().unwrap_or_else(PoisonError::into_inner) = routers;
        Ok(())
    }

    fn heal(&self) -> Result<(), String> {
        Ok(())
    }

    fn know_names(&self, _changed: &[ZoneWanted], _gone: &[String], _whole: bool) {}

    fn routers(&self) -> Vec<RouterObserved> {
        self.routers.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn apply(
        &self,
        wanted: &InstanceWanted,
        _surroundings: &Arc<Surroundings>,
        _report: &dyn Fn(InstanceObserved),
    ) -> Applied {
        let before = self.instances().get(&wanted.id).map(|instance| instance.observed.clone());
        let state = next_state(wanted, before.as_ref());
        let boots = matches!(state, InstanceState::Running | InstanceState::Paused);
        let first_run_us = match before.as_ref() {
            Some(before) if before.boot >= wanted.boot && before.first_run_us.is_some() => {
                before.first_run_us
            }
            _ if boots => Some(now_us()),
            _ => None,
        };
        let mut observed = InstanceObserved {
            id: wanted.id.clone(),
            generation: wanted.generation,
            boot: wanted.boot,
            state,
            first_run_us,
            fault: None,
            devices: Default::default(),
        };
        let done = if !instance_id_is_safe(&wanted.id) {
            Err(io::Error::new(io::ErrorKind::InvalidInput, "the instance's id is not one"))
        } else if state == InstanceState::Deleted {
            self.forget(&wanted.id)
        } else {
            self.remember(FakeInstance {
                observed: observed.clone(),
                hostname: wanted.hostname.clone(),
                memory_mib: wanted.memory_mib,
                disk_bytes: wanted.root_disk.size_bytes,
                vcpus: wanted.vcpus,
                image_id: wanted.root_disk.image_id.clone(),
            })
        };
        if let Err(error) = done {
            observed.state = InstanceState::Failed;
            observed.fault = Some(format!("the fake driver could not keep the instance's file: {error}"));
        }
        Applied { observed, again_after: None }
    }

    fn disks(&self, backend: &str) -> Result<Vec<DiskFound>, String> {
        self.volumes.as_ref().map_or_else(|| Ok(Vec::new()), |volumes| volumes.disks(backend))
    }

    fn apply_disk(&self, wanted: &DiskWanted) -> DiskObserved {
        match (&self.volumes, &wanted.shape) {
            (Some(volumes), DiskShape::OutgoingRoot { instance }) => {
                volumes.bring_out_root(wanted, || volumes.image(&self.image_of(instance)?))
            }
            (Some(volumes), _) => volumes.apply(wanted),
            (None, _) => DiskObserved {
                id: wanted.id.clone(),
                generation: wanted.generation,
                bytes: None,
                fault: Some("this host has no place for volumes".to_owned()),
            },
        }
    }

    /// Nothing is known of a guest that is not there.
    fn diagnostics(&self, instance: &str) -> Result<Diagnostics, DriverError> {
        let instances = self.instances();
        let found = instances.get(instance).ok_or_else(|| DriverError::NoInstance(instance.into()))?;
        let first_run_us = found.observed.first_run_us;
        Ok(Diagnostics {
            uptime_s: first_run_us.map(|first| now_us().saturating_sub(first) / 1_000_000),
            vcpu_times_ns: vec![None; found.vcpus.into()],
            ..Diagnostics::default()
        })
    }

    fn traffic(&self) -> Result<HostTraffic, String> {
        Ok(HostTraffic::default())
    }

    fn console(&self, instance: &str, bytes_max: u32) -> Result<String, DriverError> {
        let instances = self.instances();
        let found = instances.get(instance).ok_or_else(|| DriverError::NoInstance(instance.into()))?;
        let text = format!(
            "This is the fake driver of Wisp on {}: no guest runs here.\r\n\
             {} has {} vCPUs and {} MiB of memory.\r\n\
             It was started {} times.\r\n",
            self.name,
            found.hostname,
            found.vcpus,
            found.memory_mib,
            found.observed.boot.max(1),
        );
        // The text is made here and of ASCII except for the host name: cut at a character.
        let keep = bytes_max.min(CONSOLE_BYTES_MAX) as usize;
        let mut from = text.len().saturating_sub(keep);
        while !text.is_char_boundary(from) {
            from += 1;
        }
        Ok(text[from..].to_string())
    }
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::driver::test::instance_wanted;

    fn apply(driver: &FakeDriver, wanted: &InstanceWanted) -> InstanceObserved {
        driver.apply(wanted, &Arc::default(), &|_| {}).observed
    }

    #[test]
    fn every_power_is_reached_and_answers_its_generation() {
        let driver = FakeDriver::new("fake-0", None).unwrap();
        let mut wanted = instance_wanted("a");
        for (power, state) in [
            (Power::Running, InstanceState::Running),
            (Power::Paused, InstanceState::Paused),
            (Power::Running, InstanceState::Running),
            (Power::Stopped, InstanceState::Stopped),
        ] {
            wanted.generation += 1;
            wanted.power = power;
            let observed = apply(&driver, &wanted);
            assert_eq!((observed.state, observed.generation), (state, wanted.generation));
        }
        wanted.power = Power::Running;
        assert_eq!(apply(&driver, &wanted).state, InstanceState::Stopped, "no start was asked for");
        wanted.boot += 1;
        assert_eq!(apply(&driver, &wanted).state, InstanceState::Running);
        wanted.power = Power::Deleted;
        assert_eq!(apply(&driver, &wanted).state, InstanceState::Deleted);
        assert!(driver.console("a", 100).is_err());
    }

    #[test]
    fn instances_outlive_the_driver_in_their_directory_and_deleted_ones_leave_nothing() {
        let directory = tempfile::tempdir().unwrap();
        let new = || FakeDriver::new("fake-0", Some(directory.path().into())).unwrap();
        let mut wanted = instance_wanted("a");
        let observed = apply(&new(), &wanted);
        let driver = new();
        assert_eq!(driver.adopt(Arc::new(|_| {})), vec![observed.clone()]);
        assert_eq!(apply(&driver, &wanted), observed, "nothing changes, not even the time of the first run");
        wanted.power = Power::Deleted;
        apply(&driver, &wanted);
        assert_eq!(std::fs::read_dir(directory.path()).unwrap().count(), 0);
    }

    #[test]
    fn console_says_what_it_is_and_is_cut_to_what_was_asked_for() {
        let driver = FakeDriver::new("fake-0", None).unwrap();
        apply(&driver, &instance_wanted("a"));
        assert!(driver.console("a", u32::MAX).unwrap().contains("fake driver"));
        assert_eq!(driver.console("a", 7).unwrap().len(), 7);
        assert_eq!(driver.console("a", 0).unwrap(), "");
    }

    #[test]
    fn id_that_is_a_path_is_refused() {
        let directory = tempfile::tempdir().unwrap();
        let driver = FakeDriver::new("fake-0", Some(directory.path().join("in"))).unwrap();
        assert_eq!(apply(&driver, &instance_wanted("../a")).state, InstanceState::Failed);
        assert!(!directory.path().join("a.json").exists());
    }
}
