//! Servers: what their owners may ask for. Everything here writes down what is wanted and returns; the reconciler and
//! the agents bring it about.

pub mod create;
pub mod diagnostics;
mod disk_config;
mod form;
pub mod image;
mod image_of_volumes;
pub mod interface;
pub mod lifecycle;
pub(crate) mod plug;
pub mod power;
pub(crate) mod queues;
pub mod read;
pub mod remove;
pub mod status;
pub mod update;
pub mod volume;

use std::sync::Arc;

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::Server;
use crate::policy::require_write;
use crate::store::{Cache, Stored};

pub use create::{NewServers, ServerCreated};
pub use lifecycle::Action;
pub use read::{Address, ServerView};
pub use update::ServerUpdate;

/// The server if the caller may see it.
pub(crate) fn find(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<Server>>> {
    let stored = cache.get::<Server>(id).filter(|stored| caller.may_read(&stored.row.project_id));
    stored.ok_or_else(|| Error::not_found("Instance", id))
}

/// The server if the caller may change it, which a lock forbids to all but administrators.
pub(crate) fn find_for_change(
    cache: &Cache,
    caller: &Caller,
    id: &str,
    action: &'static str,
) -> Result<Arc<Stored<Server>>> {
    let stored = find(cache, caller, id)?;
    require_write(caller, &stored.row.project_id, action, "Instance", id)?;
    if stored.row.locked && !caller.is_admin() {
        return Err(Error::conflict("InstanceIsLocked", format!("Instance {id} is locked")));
    }
    Ok(stored)
}

#[cfg(test)]
pub(crate) mod test {
    use std::collections::{BTreeMap, BTreeSet};

    use jiff::Timestamp;

    use crate::agent::protocol::Power;
    use crate::model::compute::{Flavor, Server, VmState};

    /// A flavor of one CPU and 64 MiB.
    pub(crate) fn flavor() -> Flavor {
        Flavor {
            id: "42".to_owned(),
            name: "m1.nano".to_owned(),
            vcpus: 1,
            ram_mib: 64,
            disk_gib: 0,
            ephemeral_gib: 0,
            swap_mib: 0,
            rxtx_factor: 1.0,
            is_public: true,
            description: None,
            extra_specs: BTreeMap::new(),
            access: BTreeSet::new(),
        }
    }

    /// A server that was just asked for.
    pub(crate) fn server() -> Server {
        let now = Timestamp::from_second(1_790_000_000).unwrap();
        Server {
            id: "6a5c1b2e-0000-4000-8000-000000000001".to_owned(),
            project_id: "p".to_owned(),
            user_id: "u".to_owned(),
            name: "s1".to_owned(),
            description: None,
            hostname: "s1".to_owned(),
            flavor: flavor(),
            image_id: "image".to_owned(),
            files: Vec::new(),
            image_properties: BTreeMap::new(),
            kernel: None,
            root_disk_bytes: 0,
            metadata: BTreeMap::new(),
            tags: Vec::new(),
            user_data: None,
            config_drive: false,
            key: None,
            port_ids: Vec::new(),
            nic_tags: BTreeMap::new(),
            fixed_devices: BTreeSet::new(),
            volumes: Vec::new(),
            security_groups: vec!["default".to_owned()],
            launch_index: 0,
            reservation_id: "r-1".to_owned(),
            availability_zone: None,
            wished_host: None,
            scheduler_hints: BTreeMap::new(),
            auto_disk_config: false,
            access_ip_v4: String::new(),
            access_ip_v6: String::new(),
            locked: false,
            locked_reason: None,
            power: Power::Running,
            boot: 1,
            shutdown_timeout_ms: 0,
            discard: false,
            generation: 1,
            host: None,
            observed_generation: 0,
            observed_boot: 0,
            observed: None,
            vm_state: VmState::Building,
            task: Some("scheduling".to_owned()),
            fault: None,
            created_at: now,
            updated_at: now,
            launched_at: None,
            request_id: "req-1".to_owned(),
            actions: Vec::new(),
        }
    }
}
