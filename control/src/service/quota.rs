//! Quotas: how much a project may have of each thing. Usage is counted by rows that change in the same transaction as
//! what they count, so that two requests at once cannot both take the last one.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash, Hasher};

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::quota::{QuotaLimits, Usage};
use crate::model::volume::VolumeType;
use crate::policy::{self, Target, require};
use crate::service::network::parts;
use crate::store::{Cache, Txn};

/// What is counted. The defaults are those of the OpenStack services.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Resource {
    /// Servers.
    Instances,
    /// Virtual CPUs of all servers.
    Cores,
    /// Memory of all servers in MiB.
    RamMib,
    /// Properties of one server: a limit only, nothing is counted.
    MetadataItems,
    /// Key pairs of one user.
    KeyPairs,
    /// Server groups.
    ServerGroups,
    /// Servers of one group: a limit only.
    ServerGroupMembers,
    /// Networks.
    Networks,
    /// Subnets.
    Subnets,
    /// Subnet pools.
    SubnetPools,
    /// Ports.
    Ports,
    /// Routers.
    Routers,
    /// Floating IPs.
    FloatingIps,
    /// Security groups.
    SecurityGroups,
    /// Rules of all security groups.
    SecurityGroupRules,
    /// Address groups.
    AddressGroups,
    /// RBAC policies.
    RbacPolicies,
    /// Trunks.
    Trunks,
    /// Images.
    Images,
    /// Bytes of all images' data in MiB, rounded up per image.
    ImageMib,
    /// Volumes.
    Volumes,
    /// Snapshots of volumes.
    Snapshots,
    /// Size of all volumes and snapshots in GiB.
    VolumeGib,
    /// Backups.
    Backups,
    /// Size of all backups in GiB.
    BackupGib,
    /// Groups of volumes.
    VolumeGroups,
    /// Size of one volume in GiB: a limit only.
    PerVolumeGib,
}

impl Resource {
    /// All of them.
    pub const ALL: [Self; 27] = [
        Self::Instances,
        Self::Cores,
        Self::RamMib,
        Self::MetadataItems,
        Self::KeyPairs,
        Self::ServerGroups,
        Self::ServerGroupMembers,
        Self::Networks,
        Self::Subnets,
        Self::SubnetPools,
        Self::Ports,
        Self::Routers,
        Self::FloatingIps,
        Self::SecurityGroups,
        Self::SecurityGroupRules,
        Self::AddressGroups,
        Self::RbacPolicies,
        Self::Trunks,
        Self::Images,
        Self::ImageMib,
        Self::Volumes,
        Self::Snapshots,
        Self::VolumeGib,
        Self::Backups,
        Self::BackupGib,
        Self::VolumeGroups,
        Self::PerVolumeGib,
    ];

    /// The name that its service gives the quota, which is also its name in the store.
    pub fn name(self) -> &'static str {
        self.facts().0
    }

    /// How many a project may have if nobody said otherwise.
    pub fn default_limit(self) -> u64 {
        self.facts().1
    }

    fn facts(self) -> (&'static str, u64) {
        match self {
            Self::Instances => ("instances", 10),
            Self::Cores => ("cores", 20),
            Self::RamMib => ("ram", 51_200),
            Self::MetadataItems => ("metadata_items", 128),
            Self::KeyPairs => ("key_pairs", 100),
            Self::ServerGroups => ("server_groups", 10),
            Self::ServerGroupMembers => ("server_group_members", 10),
            Self::Networks => ("network", 100),
            Self::Subnets => ("subnet", 100),
            Self::SubnetPools => ("subnetpool", UNLIMITED),
            Self::Ports => ("port", 500),
            Self::Routers => ("router", 10),
            Self::FloatingIps => ("floatingip", 50),
            Self::SecurityGroups => ("security_group", 10),
            Self::SecurityGroupRules => ("security_group_rule", 100),
            Self::AddressGroups => ("address_group", 10),
            Self::RbacPolicies => ("rbac_policy", 10),
            Self::Trunks => ("trunk", UNLIMITED),
            Self::Images => ("image_count_total", 100),
            Self::ImageMib => ("image_size_total", 1 << 20),
            Self::Volumes => ("volumes", 10),
            Self::Snapshots => ("snapshots", 10),
            Self::VolumeGib => ("gigabytes", 1000),
            Self::Backups => ("backups", 10),
            Self::BackupGib => ("backup_gigabytes", 1000),
            Self::VolumeGroups => ("groups", 10),
            Self::PerVolumeGib => ("per_volume_gigabytes", UNLIMITED),
        }
    }
}

/// What a project has a quota of for each type of volumes too.
const OF_TYPES: [Resource; 3] = [Resource::Volumes, Resource::VolumeGib, Resource::Snapshots];

/// A default that is no limit.
const UNLIMITED: u64 = u64::MAX;

/// The id of the limits that hold for whoever has none of its own.
pub const DEFAULT_CLASS: &str = "class/default";

/// One quota of a project.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    /// How many there may be; `None` is without limit.
    pub limit: Option<u64>,
    /// How many there are.
    pub used: u64,
}

impl Quota {
    /// The limit as OpenStack writes it: −1 for none.
    pub fn limit_or_minus_one(&self) -> i64 {
        self.limit.map_or(-1, |limit| i64::try_from(limit).unwrap_or(i64::MAX))
    }
}

/// Notes in a transaction that `owner` (a project; a user for key pairs) gets so many more of each resource, or fewer.
/// May be called several times for one transaction; `transact` adds the charges up, checks the sums against the
/// limits, and counts them in the same transaction.
pub(crate) fn charge(txn: Txn, owner: &str, changes: &[(Resource, i64)]) -> Txn {
    changes.iter().fold(txn, |txn, (resource, by)| txn.tally(Usage::key(owner, resource.name()), *by))
}

/// As [`charge`], for a quota that a project has of volumes of one type beside the whole one; without limit unless said.
pub(crate) fn charge_of_type(txn: Txn, owner: &str, type_id: &str, changes: &[(Resource, i64)]) -> Txn {
    charge_type_alone(charge(txn, owner, changes), owner, type_id, changes)
}

/// As [`charge_of_type`], of the type's quota and not of the whole one.
pub(crate) fn charge_type_alone(txn: Txn, owner: &str, type_id: &str, changes: &[(Resource, i64)]) -> Txn {
    changes
        .iter()
        .fold(txn, |txn, (resource, by)| txn.tally(Usage::key(owner, &of_type(*resource, type_id)), *by))
}

/// The name of a resource's quota for one type of volumes.
pub(crate) fn of_type(resource: Resource, type_id: &str) -> String {
    format!("{}_{type_id}", resource.name())
}

/// Which queue the writers of this usage row wait in.
pub(crate) fn queue_of(key: &str, queues: usize) -> usize {
    let mut hasher = DefaultHasher::new();
    key.split('/').next().hash(&mut hasher);
    usize::try_from(hasher.finish() % queues as u64).unwrap_or(0)
}

/// Turns the charges of a transaction into its usage rows, and what it notes of networks into theirs; refuses what crosses a limit. Giving back is never refused.
pub(crate) fn settle(cache: &Cache, mut txn: Txn) -> Result<Txn> {
    for (key, by) in txn.take_tallies() {
        if let Some(network_id) = parts::network_of(&key) {
            txn = parts::settle(cache, txn, network_id);
            continue;
        }
        let stored = cache.get::<Usage>(&key);
        let used = stored.as_ref().map_or(0, |stored| stored.row.used);
        let used_then = match u64::try_from(by) {
            Ok(0) => continue,
            Ok(more) => check(cache, &key, used, more)?,
            Err(_) => used.checked_sub(by.unsigned_abs()).unwrap_or_else(|| {
                tracing::error!(quota.usage = key, "more was given back than was taken");
                0
            }),
        };
        let row = Usage { id: key, used: used_then };
        txn = match stored {
            Some(stored) => txn.update(&stored, &row),
            None => txn.create(&row),
        };
    }
    Ok(txn)
}

fn check(cache: &Cache, key: &str, used: u64, more: u64) -> Result<u64> {
    let then = used.saturating_add(more);
    let (owner, name) = key.rsplit_once('/').expect("invariant: a usage key is {owner}/{resource}");
    let of_type = |resource: &Resource| {
        OF_TYPES.contains(resource)
            && name.strip_prefix(resource.name()).is_some_and(|rest| rest.starts_with('_'))
    };
    let mut resources = Resource::ALL.into_iter();
    let resource = resources.find(|resource| resource.name() == name || of_type(resource));
    let resource = resource.expect("invariant: charges are made of resources");
    let limit = if name == resource.name() {
        limit(cache, owner, resource)
    } else {
        limit_of_type(cache, owner, name)
    };
    match limit {
        Some(limit) if then > limit => {
            Err(Error::QuotaExceeded { resource: resource.name(), requested: more, used, limit })
        }
        _ => Ok(then),
    }
}

/// How many of a resource `owner` may have; `None` is without limit.
pub(crate) fn limit(cache: &Cache, owner: &str, resource: Resource) -> Option<u64> {
    let said = |id: &str| cache.get::<QuotaLimits>(id)?.row.limits.get(resource.name()).copied();
    match said(owner).or_else(|| said(DEFAULT_CLASS)) {
        Some(limit) => u64::try_from(limit).ok(),
        None => Some(resource.default_limit()).filter(|limit| *limit != UNLIMITED),
    }
}

/// How much `owner` may have of volumes of one type; `None` is without limit.
fn limit_of_type(cache: &Cache, owner: &str, name: &str) -> Option<u64> {
    let said = |id: &str| cache.get::<QuotaLimits>(id)?.row.limits.get(name).copied();
    said(owner).or_else(|| said(DEFAULT_CLASS)).and_then(|limit| u64::try_from(limit).ok())
}

impl Control {
    /// The quotas that a project has of volumes of each type: by the protocol's name (`volumes_TYPE`).
    ///
    /// # Errors
    /// What the store says.
    pub async fn quotas_of_types(&self, project_id: &str) -> Result<BTreeMap<String, Quota>> {
        self.db.caught_up().await?;
        Ok(self.of_each_type(project_id))
    }

    /// As [`Control::quotas_of_types`], the limits that hold for whoever has none of its own.
    ///
    /// # Errors
    /// What the store says.
    pub async fn quota_defaults_of_types(&self) -> Result<BTreeMap<String, Quota>> {
        self.db.caught_up().await?;
        Ok(self.of_each_type(DEFAULT_CLASS))
    }

    fn of_each_type(&self, project_id: &str) -> BTreeMap<String, Quota> {
        let cache = self.db.cache();
        let mut quotas = BTreeMap::new();
        for stored in cache.list::<VolumeType>() {
            for resource in OF_TYPES {
                let key = of_type(resource, &stored.row.id);
                let usage = cache.get::<Usage>(&Usage::key(project_id, &key));
                let used = usage.map_or(0, |usage| usage.row.used);
                let quota = Quota { limit: limit_of_type(cache, project_id, &key), used };
                quotas.insert(of_type(resource, &stored.row.name), quota);
            }
        }
        quotas
    }

    /// Changes limits that a project has of volumes of a type, by the protocol's names.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `Invalid` below −1 or for a type that is not there.
    pub async fn quota_set_of_types(
        &self,
        caller: &Caller,
        project_id: &str,
        limits: &[(String, i64)],
    ) -> Result<()> {
        crate::policy::require_admin(caller, "quotas:update")?;
        self.db.caught_up().await?;
        let types = self.db.list::<VolumeType>();
        let mut keys = Vec::new();
        for (name, limit) in limits {
            let key = types.iter().find_map(|stored| {
                OF_TYPES
                    .into_iter()
                    .find(|resource| of_type(*resource, &stored.row.name) == *name)
                    .map(|resource| of_type(resource, &stored.row.id))
            });
            match key {
                Some(key) if *limit >= -1 => keys.push((key, *limit)),
                Some(_) => {
                    let message = format!("Quota limit {limit} for {name} must be -1 or greater.");
                    return Err(Error::invalid("InvalidQuotaValue", message));
                }
                None => return Err(Error::invalid("BadKey", format!("Bad key(s) in quota set: {name}"))),
            }
        }
        self.change_limits(project_id, |row| row.extend(keys.iter().cloned())).await
    }

    /// The quotas of a project, all of them, each with what is used, by the rule that a service has for showing them.
    ///
    /// # Errors
    /// `Forbidden`: by default for another project unless the caller is an administrator.
    pub async fn quotas(
        &self,
        caller: &Caller,
        project_id: &str,
        rule: &'static str,
    ) -> Result<BTreeMap<Resource, Quota>> {
        let keys = [("project_id", project_id)];
        require(rule, policy::Default::Reader, caller, &Target::of(&keys))?;
        self.quotas_of(project_id).await
    }

    /// As [`Control::quotas`], whoever asks: for what has been allowed by a rule of its own.
    ///
    /// # Errors
    /// What the store says.
    pub async fn quotas_of(&self, project_id: &str) -> Result<BTreeMap<Resource, Quota>> {
        self.db.caught_up().await?;
        Ok(Resource::ALL.into_iter().map(|resource| (resource, self.quota(project_id, resource))).collect())
    }

    /// One quota of a project, or of a user for key pairs.
    pub(crate) fn quota(&self, owner: &str, resource: Resource) -> Quota {
        let cache = self.db.cache();
        let usage = cache.get::<Usage>(&Usage::key(owner, resource.name()));
        Quota { limit: limit(cache, owner, resource), used: usage.map_or(0, |stored| stored.row.used) }
    }

    /// The limits that hold for whoever has none of its own.
    ///
    /// # Errors
    /// What the store says.
    pub async fn quota_defaults(&self) -> Result<BTreeMap<Resource, Quota>> {
        self.db.caught_up().await?;
        let cache = self.db.cache();
        let of = |resource| (resource, Quota { limit: limit(cache, DEFAULT_CLASS, resource), used: 0 });
        Ok(Resource::ALL.into_iter().map(of).collect())
    }

    /// Changes limits of a project; −1 is without limit. Less than what is used is allowed: nothing new fits then.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `Invalid` below −1.
    pub async fn quota_set(
        &self,
        caller: &Caller,
        project_id: &str,
        limits: &[(Resource, i64)],
    ) -> Result<()> {
        if !caller.is_admin() {
            return Err(Error::Forbidden { action: "quotas:update" });
        }
        if let Some((resource, limit)) = limits.iter().find(|(_, limit)| *limit < -1) {
            let message = format!("Quota limit {limit} for {} must be -1 or greater.", resource.name());
            return Err(Error::invalid("InvalidQuotaValue", message));
        }
        self.change_limits(project_id, |row| {
            row.extend(limits.iter().map(|(resource, limit)| (resource.name().to_owned(), *limit)));
        })
        .await
    }

    /// Puts these limits of a project back to the defaults.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator.
    pub async fn quota_reset(&self, caller: &Caller, project_id: &str, resources: &[Resource]) -> Result<()> {
        if !caller.is_admin() {
            return Err(Error::Forbidden { action: "quotas:delete" });
        }
        let is_of = |name: &str, resource: &Resource| match name.strip_prefix(resource.name()) {
            Some("") => true,
            Some(rest) => OF_TYPES.contains(resource) && rest.starts_with('_'),
            None => false,
        };
        self.change_limits(project_id, |row| {
            row.retain(|name, _| !resources.iter().any(|resource| is_of(name, resource)));
        })
        .await
    }

    async fn change_limits(
        &self,
        project_id: &str,
        change: impl Fn(&mut BTreeMap<String, i64>),
    ) -> Result<()> {
        self.db
            .transact(|cache| {
                let stored = cache.get::<QuotaLimits>(project_id);
                let mut limits = stored.as_ref().map(|stored| stored.row.limits.clone()).unwrap_or_default();
                change(&mut limits);
                let row = QuotaLimits { id: project_id.to_owned(), limits };
                Ok(match stored {
                    Some(stored) => Txn::new().update(&stored, &row),
                    None => Txn::new().create(&row),
                })
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::Settings;
    use crate::caller::{RoleLevel, Scope};
    use crate::store::RedbStore;

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn many_at_once_get_exactly_what_there_is_and_give_it_back() {
        let directory = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&directory.path().join("store.redb")).unwrap();
        let control =
            Control::open(Arc::new(store), Settings::new("http://h", directory.path())).await.unwrap();
        let admin = Caller {
            user_id: "u".into(),
            scope: Scope::Project("p".into()),
            role: Some(RoleLevel::Admin),
            request_id: String::new(),
            ..Caller::default()
        };
        control.quota_set(&admin, "p", &[(Resource::Images, 10)]).await.unwrap();
        let creates = (0..40).map(|_| {
            let (control, admin) = (control.clone(), admin.clone());
            tokio::spawn(async move { control.image_create(&admin, None, Vec::new()).await })
        });
        let mut made = Vec::new();
        for create in creates.collect::<Vec<_>>() {
            match create.await.unwrap() {
                Ok(image) => made.push(image.row.id.clone()),
                Err(error) => {
                    assert!(matches!(error, Error::QuotaExceeded { used: 10, limit: 10, .. }), "{error}")
                }
            }
        }
        assert_eq!(made.len(), 10);
        assert_eq!(control.quotas_of("p").await.unwrap()[&Resource::Images].used, 10);
        for id in &made {
            control.image_delete(&admin, id).await.unwrap();
        }
        assert_eq!(control.quotas_of("p").await.unwrap()[&Resource::Images].used, 0);
        control.quota_reset(&admin, "p", &Resource::ALL).await.unwrap();
        assert_eq!(control.quota("p", Resource::Images).limit, Some(100));
        assert!(control.quota_set(&admin, "p", &[(Resource::Images, -2)]).await.is_err());
    }
}
