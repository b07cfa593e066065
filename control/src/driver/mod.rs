//! What an agent drives: the one place where wanted instances become processes, disks and taps ([`host`]), or
//! pretend to ([`fake`]).
//!
//! Must never know: servers' owners, the store, the line to control.

pub mod fail_points;
pub mod fake;
pub mod host;
pub mod process_id;
pub mod provider;
pub mod tunnel;
pub mod volumes;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::protocol::{
    Diagnostics, DiskFound, DiskObserved, DiskWanted, GroupWanted, HostReport, HostTraffic, InstanceObserved,
    InstanceWanted, NetworkWanted, RouterObserved, RouterWanted, ZoneWanted,
};

/// The longest name that the command line gives something, in bytes.
const NAME_BYTES_MAX: usize = 64;

/// Refuses what is no name to give `what` on a command line.
fn check_name(name: &str, what: &str) -> Result<(), String> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if name.is_empty() || name.len() > NAME_BYTES_MAX || !name.bytes().all(plain) {
        return Err(format!(
            "`{name}` is no name of {what}: letters, digits, `-`, `_` and `.`, {NAME_BYTES_MAX} at most"
        ));
    }
    Ok(())
}

/// The most console text one question is answered with, in bytes: all that a VMM keeps.
pub const CONSOLE_BYTES_MAX: u32 = 1 << 20;

/// Called with an instance's id when it is no longer what was last seen (its process ended, a deadline passed):
/// the agent answers by applying that instance again. Cheap, callable from any thread.
pub type Wake = Arc<dyn Fn(&str) + Send + Sync>;

/// The host's wanted networks and groups at one moment, shared by the instances that are being applied.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Surroundings {
    /// The cloud's tag in the names of links, four hexadecimal digits.
    pub cloud_tag: String,
    /// The networks by id.
    pub networks: BTreeMap<String, NetworkWanted>,
    /// The security groups by id.
    pub groups: BTreeMap<String, GroupWanted>,
    /// The routers by id.
    pub routers: BTreeMap<String, RouterWanted>,
}

/// Where an instance stands after [`Driver::apply`].
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// What to report.
    pub observed: InstanceObserved,
    /// Apply again after this time even if nothing happens, because something is still under way.
    pub again_after: Option<Duration>,
}

/// What the driver cannot answer, in one sentence for the person who asked.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    /// No such instance on this host.
    #[error("instance {0} is not on this host")]
    NoInstance(String),
    /// The console log could not be read.
    #[error("the console of instance {instance} could not be read")]
    Console {
        /// The instance.
        instance: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
}

/// One host's means. All calls may block (they run on a bounded pool of threads), none waits for a guest.
///
/// The agent never applies one instance twice at once; different instances are applied at the same time.
pub trait Driver: Send + Sync + 'static {
    /// What the host is and has now.
    fn host_report(&self) -> HostReport;

    /// Finds and takes over what runs from before; called once, before everything else.
    fn adopt(&self, wake: Wake) -> Vec<InstanceObserved>;

    /// Brings the networks in use, the groups' rules and the routers to what is wanted. Called before
    /// the instances that need them and again whenever one changes; repeating it changes nothing.
    fn surround(&self, surroundings: &Arc<Surroundings>) -> Result<(), String>;

    /// Knows other names of networks from now on, and those of `gone` no more; `whole` forgets all that are not told. Does
    /// not block.
    fn know_names(&self, changed: &[ZoneWanted], gone: &[String], whole: bool);

    /// How far the routers are, after [`Driver::surround`].
    fn routers(&self) -> Vec<RouterObserved>;

    /// Looks whether the networks and routers still are as they shall be, and mends what somebody else has changed.
    ///
    /// # Errors
    /// One sentence.
    fn heal(&self) -> Result<(), String>;

    /// Brings one instance to what is wanted and says where it stands. Level-triggered: repeating it changes
    /// nothing; a crash at any point is healed by the next call. A failure is an observed state with a fault.
    /// `report` may be called with states on the way.
    fn apply(
        &self,
        wanted: &InstanceWanted,
        surroundings: &Arc<Surroundings>,
        report: &dyn Fn(InstanceObserved),
    ) -> Applied;

    /// Brings one disk of the volume backend to what is wanted, and says what became of it. Repeating a wish changes
    /// nothing; a crash at any point is healed by the next call.
    fn apply_disk(&self, wanted: &DiskWanted) -> DiskObserved;

    /// The disks of a backend for volumes.
    ///
    /// # Errors
    /// One sentence.
    fn disks(&self, backend: &str) -> Result<Vec<DiskFound>, String>;

    /// The end of an instance's console, at most `bytes_max` and [`CONSOLE_BYTES_MAX`] bytes of it.
    fn console(&self, instance: &str, bytes_max: u32) -> Result<String, DriverError>;

    /// How an instance fares, without waiting for what is being done about it.
    fn diagnostics(&self, instance: &str) -> Result<Diagnostics, DriverError>;

    /// What has passed the host's ports and routers.
    ///
    /// # Errors
    /// One sentence.
    fn traffic(&self) -> Result<HostTraffic, String>;
}

/// The longest id of an instance or an image: a UUID with dashes, with room for other forms.
const ID_BYTES_MAX: usize = 64;

/// Whether an id from control may become part of a path: letters, digits and dashes, nothing else.
pub fn instance_id_is_safe(id: &str) -> bool {
    !id.is_empty()
        && id.len() <= ID_BYTES_MAX
        && id.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
        && !id.starts_with('-')
}

#[cfg(test)]
pub(crate) mod test {
    use std::collections::BTreeMap;

    use vmm::config::DiskLimits;

    use crate::agent::protocol::{InstanceWanted, Power, RootDiskWanted};

    /// A running instance without a network device.
    pub(crate) fn instance_wanted(id: &str) -> InstanceWanted {
        InstanceWanted {
            id: id.into(),
            generation: 1,
            power: Power::Running,
            boot: 1,
            shutdown_timeout_ms: 0,
            vcpus: 1,
            memory_mib: 64,
            root_disk: RootDiskWanted {
                image_id: "image".into(),
                size_bytes: 0,
                volume: None,
                limits: DiskLimits::default(),
            },
            volumes: Vec::new(),
            kernel: None,
            nics: Vec::new(),
            queue_pairs: 1,
            hostname: id.into(),
            metadata: BTreeMap::new(),
            config_drive: false,
        }
    }
}
