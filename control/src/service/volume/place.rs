//! Where a new volume goes: filters, then the pool with the most free space. Pure, but for who is connected.

use std::collections::BTreeMap;

use crate::Control;
use crate::boolean;
use crate::model::compute::Host;
use crate::model::volume::{Volume, VolumeService};
use crate::store::Cache;

/// The part of the service that has volumes.
pub const BINARY_VOLUME: &str = "cinder-volume";
/// How much more may be promised than there is, since disks take only what was written (Cinder's
/// `max_over_subscription_ratio`).
pub const OVER_SUBSCRIPTION: u64 = 20;

/// One pool, as the choice sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pool {
    /// The host.
    pub host: String,
    /// Its zone.
    pub zone: String,
    /// The backend's name on its host.
    pub backend: String,
    /// Its kind.
    pub protocol: String,
    /// Its agent is connected.
    pub alive: bool,
    /// It takes new volumes.
    pub enabled: bool,
    /// Its size in GiB.
    pub total_gib: u64,
    /// Free space in GiB.
    pub free_gib: u64,
    /// Disks in use can be copied.
    pub copies_in_use: bool,
}

impl Pool {
    /// The name in the protocol: `host@backend#pool`.
    pub fn name(&self) -> String {
        pool_name(&self.host, &self.backend)
    }

    /// Whether somebody means this one: by its name, or by that without the pool.
    pub fn is_called(&self, name: &str) -> bool {
        self.name() == name || format!("{}@{}", self.host, self.backend) == name
    }
}

/// `host@backend#pool`.
fn pool_name(host: &str, backend: &str) -> String {
    format!("{host}@{backend}#{backend}")
}

/// What a volume needs.
#[derive(Debug, Clone, Copy, Default)]
pub struct Need<'a> {
    /// Its size in GiB.
    pub size_gib: u64,
    /// This zone only.
    pub zone: Option<&'a str>,
    /// This host only.
    pub host: Option<&'a str>,
    /// The backend of this name only.
    pub backend: Option<&'a str>,
    /// What its type asks of a backend.
    pub specs: Option<&'a BTreeMap<String, String>>,
}

impl Pool {
    /// What a type's extra specs are compared with (Cinder: capabilities filter).
    fn capability(&self, key: &str) -> Option<String> {
        Some(match key {
            "volume_backend_name" => self.backend.clone(),
            "storage_protocol" => self.protocol.clone(),
            "vendor_name" => "Wisp".to_owned(),
            "multiattach" | "thin_provisioning_support" => "True".to_owned(),
            "thick_provisioning_support" | "QoS_support" | "replication_enabled" | "compression" => {
                "False".to_owned()
            }
            "pool_name" => self.backend.clone(),
            _ => return None,
        })
    }

    /// Whether the pool has what a type's extra specs ask of it: those without a scope, or with that of capabilities.
    pub fn has(&self, specs: &BTreeMap<String, String>) -> bool {
        specs.iter().all(|(key, wanted)| {
            let key = match key.split_once(':') {
                None => key.as_str(),
                Some(("capabilities", key)) => key,
                Some(_) => return true,
            };
            let Some(has) = self.capability(key) else { return false };
            if let Some(wanted) = wanted.strip_prefix("<is>") {
                // Cinder compares what oslo makes of both, which is no of what is neither.
                let [has, wanted] =
                    [has.as_str(), wanted].map(|text| boolean::from_text(text).unwrap_or(false));
                return has == wanted;
            }
            has.eq_ignore_ascii_case(wanted.strip_prefix("s==").unwrap_or(wanted).trim())
        })
    }
}

/// The best of the pools that fit, the first of equal ones; those whose agents are away only if there is no other.
pub fn choose<'p>(pools: &'p [Pool], need: &Need<'_>) -> Option<&'p Pool> {
    let fits = |pool: &&Pool| {
        (pool.enabled || need.host.is_some())
            && need.zone.is_none_or(|zone| zone == pool.zone)
            && need.host.is_none_or(|host| host == pool.host)
            && need.backend.is_none_or(|backend| backend == pool.backend)
            && need.specs.is_none_or(|specs| pool.has(specs))
            && need.size_gib <= pool.total_gib.saturating_mul(OVER_SUBSCRIPTION)
            && pool.free_gib > 0
    };
    pools.iter().rev().filter(fits).max_by_key(|pool| (pool.alive, pool.free_gib))
}

/// Whether an administrator has closed a part of the service on a host; why.
pub(crate) fn disabled(cache: &Cache, binary: &str, host: &str) -> Option<String> {
    cache.get::<VolumeService>(&format!("{binary}/{host}")).and_then(|stored| stored.row.disabled.clone())
}

/// The name of the backend that has a volume, if its host has said what it has.
pub(crate) fn backend_name(cache: &Cache, volume: &Volume) -> Option<String> {
    volume.backend.clone().or_else(|| {
        let host = cache.get::<Host>(volume.host.as_deref()?)?;
        host.row.report.pools.first().map(|pool| pool.backend.clone())
    })
}

impl Control {
    /// The whole name of the pool that has a volume, if a host has it; the host's, if that has reported none.
    pub fn volume_pool_name(&self, volume: &Volume) -> Option<String> {
        let host = volume.host.as_deref()?;
        let backend = backend_name(self.db.cache(), volume);
        Some(backend.map_or_else(|| host.to_owned(), |backend| pool_name(host, &backend)))
    }

    /// All pools, in the order of their hosts' names.
    pub fn volume_pools(&self, cache: &Cache) -> Vec<Pool> {
        let hosts = cache.list::<Host>();
        let mut pools = Vec::new();
        for stored in &hosts {
            let host = &stored.row;
            let alive = self.host_is_alive(&host.name);
            pools.extend(host.report.pools.iter().map(|pool| Pool {
                host: host.name.clone(),
                zone: host.zone.clone(),
                backend: pool.backend.clone(),
                protocol: pool.protocol.clone(),
                alive,
                enabled: disabled(cache, BINARY_VOLUME, &format!("{}@{}", host.name, pool.backend)).is_none(),
                total_gib: pool.total_gib,
                free_gib: pool.free_gib,
                copies_in_use: pool.copies_in_use,
            }));
        }
        pools
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(host: &str, free_gib: u64) -> Pool {
        Pool {
            host: host.to_owned(),
            zone: "nova".to_owned(),
            backend: "file".to_owned(),
            protocol: "file".to_owned(),
            alive: true,
            enabled: true,
            total_gib: 100,
            free_gib,
            copies_in_use: false,
        }
    }

    #[test]
    fn most_free_space_wins_among_what_fits() {
        let closed = Pool { enabled: false, ..pool("c", 90) };
        let away = Pool { alive: false, ..pool("d", 95) };
        let full = pool("e", 0);
        let pools = [pool("a", 10), pool("b", 20), closed, away, full];
        let chosen = |need: Need<'_>| choose(&pools, &need).map(|pool| pool.host.as_str());
        assert_eq!(chosen(Need { size_gib: 1, ..Need::default() }), Some("b"));
        assert_eq!(chosen(Need { size_gib: 1, host: Some("a"), ..Need::default() }), Some("a"));
        assert_eq!(chosen(Need { size_gib: 1, host: Some("c"), ..Need::default() }), Some("c"));
        assert_eq!(chosen(Need { size_gib: 1, zone: Some("other"), ..Need::default() }), None);
        let specs = |key: &str, value: &str| BTreeMap::from([(key.to_owned(), value.to_owned())]);
        for (key, value, fits) in [
            ("volume_backend_name", "file", true),
            ("volume_backend_name", "lvm", false),
            ("capabilities:multiattach", "<is> True", true),
            ("multiattach", "<is> yes", true),
            ("multiattach", "<is> f", false),
            ("multiattach", "<is> maybe", false),
            ("volume_backend_name", "<is> false", true),
            ("unknown", "1", false),
            ("other:scope", "1", true),
        ] {
            let specs = specs(key, value);
            assert_eq!(chosen(Need { specs: Some(&specs), ..Need::default() }).is_some(), fits, "{key}");
        }
        assert_eq!(chosen(Need { size_gib: 2001, ..Need::default() }), None, "thin has its limit");
    }
}
