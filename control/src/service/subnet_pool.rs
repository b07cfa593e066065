//! Subnet pools: prefixes that subnets are cut from without overlapping; what subnets gave back is cut again.

use std::sync::Arc;

use ipnet::IpNet;

use super::network::{check_text, new_standard, owner_project, touch};
use super::network_resource::{at_once, made, network_resources, new_ids, only, owned, visible};
use super::prefix::{joined, overlap, without};
use super::rbac;
use super::tag::check_tags;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::pool::{AddressScope, SubnetPool};
use crate::model::network::rbac::Access;
use crate::model::network::{Network, Subnet};
use crate::policy::{require_admin, require_member};
use crate::service::quota::{self, Resource};
use crate::store::{Cache, Stored, Txn};

/// The most prefixes of one pool: each is looked at whenever a subnet is cut.
pub const PREFIXES_MAX: usize = 256;

/// What a pool is made from.
#[derive(Debug, Clone, Default)]
pub struct SubnetPoolCreate {
    /// Name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// The owner, if an administrator makes it for another project.
    pub project_id: Option<String>,
    /// What everything else says.
    pub fields: SubnetPoolUpdate,
    /// Everyone may use it; administrators only.
    pub shared: bool,
    /// Tags.
    pub tags: std::collections::BTreeSet<String>,
}

/// What of a pool shall change; absent fields stay.
#[derive(Debug, Clone, Default)]
pub struct SubnetPoolUpdate {
    /// Name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// All prefixes; those that are there must be among them.
    pub prefixes: Option<Vec<IpNet>>,
    /// The shortest prefix of a subnet.
    pub min_prefixlen: Option<u8>,
    /// The longest.
    pub max_prefixlen: Option<u8>,
    /// That of a subnet which says none.
    pub default_prefixlen: Option<u8>,
    /// Addresses of one project; `None` inside is without limit.
    pub default_quota: Option<Option<u64>>,
    /// The scope; `None` inside is none.
    pub address_scope_id: Option<Option<String>>,
    /// The default of its family; administrators only.
    pub is_default: Option<bool>,
}

network_resources! {
    SubnetPool: "Subnet pool", "get_subnetpool", |row, cache, caller| {
        row.shared
            || caller.may_read(&row.standard.project_id)
            || rbac::is_known(cache, caller, &row.standard.id)
    };
}

super::tag::taggable! {
    SubnetPool: "subnetpool";
}

impl Control {
    /// Makes a pool.
    ///
    /// # Errors
    /// `Invalid` for prefixes and bounds that do not fit, `Conflict` (`AddressScopePrefixConflict`) for prefixes that are
    /// in the scope already, `QuotaExceeded`.
    pub async fn subnet_pool_create(
        &self,
        caller: &Caller,
        request: SubnetPoolCreate,
    ) -> Result<Arc<Stored<SubnetPool>>> {
        let project_id = owner_project(caller, request.project_id.as_deref(), "create_subnetpool")?;
        if request.shared {
            require_admin(caller, "create_subnetpool:shared")?;
        }
        if request.fields.is_default == Some(true) {
            require_admin(caller, "create_subnetpool:is_default")?;
        }
        check_tags(&request.tags)?;
        let prefixes = request.fields.prefixes.as_deref().unwrap_or_default();
        let Some(first) = prefixes.first() else {
            return Err(Error::invalid("EmptySubnetPoolPrefixList", "Empty subnet pool prefix list."));
        };
        let (ip_version, min, max) = if first.addr().is_ipv4() { (4, 8, 32) } else { (6, 64, 128) };
        let min_prefixlen = request.fields.min_prefixlen.unwrap_or(min);
        let ids = new_ids(1);
        self.db
            .transact(|cache| {
                let mut standard = new_standard(ids[0].clone(), project_id.clone(), request.name.clone());
                standard.description.clone_from(&request.description);
                standard.tags.clone_from(&request.tags);
                let mut pool = SubnetPool {
                    standard,
                    prefixes: Vec::new(),
                    ip_version,
                    min_prefixlen,
                    max_prefixlen: max,
                    default_prefixlen: min_prefixlen,
                    default_quota: None,
                    address_scope_id: None,
                    is_default: false,
                    shared: request.shared,
                };
                let txn = apply(cache, caller, Txn::new(), &mut pool, &request.fields)?;
                let txn = txn.create(&pool);
                let access = Access::AccessAsShared;
                let txn = rbac::imply::<SubnetPool>(cache, txn, &pool.standard, access, pool.shared)?;
                Ok(quota::charge(txn, &project_id, &[(Resource::SubnetPools, 1)]))
            })
            .await?;
        only(made(self.db.cache(), &ids)?)
    }

    /// Changes a pool.
    ///
    /// # Errors
    /// As [`Control::subnet_pool_create`]; `Invalid` (`IllegalSubnetPoolPrefixUpdate`) for leaving prefixes out.
    pub async fn subnet_pool_update(
        &self,
        caller: &Caller,
        id: &str,
        update: SubnetPoolUpdate,
    ) -> Result<Arc<Stored<SubnetPool>>> {
        if update.is_default.is_some() {
            require_admin(caller, "update_subnetpool:is_default")?;
        }
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<SubnetPool>(cache, caller, id, "update_subnetpool")?;
                let mut pool = stored.row.clone();
                let txn = apply(cache, caller, Txn::new(), &mut pool, &update)?;
                touch(&mut pool.standard);
                Ok(txn.update(&stored, &pool))
            })
            .await?;
        self.network_resource(caller, id).await
    }

    /// Deletes a pool.
    ///
    /// # Errors
    /// `Invalid` (`SubnetPoolDeleteError`) while subnets are of it.
    pub async fn subnet_pool_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<SubnetPool>(cache, caller, id, "delete_subnetpool")?;
                if !subnets_of(cache, id).is_empty() {
                    return Err(Error::invalid(
                        "SubnetPoolDeleteError",
                        "Unable to delete subnet pool: Subnet pool has existing allocations.",
                    ));
                }
                let project_id = &stored.row.standard.project_id;
                let mut txn = rbac::forget(cache, Txn::new().delete(&stored), id)?;
                if stored.row.is_default {
                    txn = txn.release(default_key(stored.row.ip_version));
                }
                Ok(quota::charge(txn, project_id, &[(Resource::SubnetPools, -1)]))
            })
            .await
    }

    /// Adds prefixes to a pool; all of its prefixes then.
    ///
    /// # Errors
    /// As [`Control::subnet_pool_update`].
    pub async fn subnet_pool_add_prefixes(
        &self,
        caller: &Caller,
        id: &str,
        prefixes: &[IpNet],
    ) -> Result<Vec<IpNet>> {
        self.db.caught_up().await?;
        self.db
            .transact_with(|cache| {
                let stored = owned::<SubnetPool>(cache, caller, id, "add_prefixes")?;
                let mut pool = stored.row.clone();
                let all = [&pool.prefixes, prefixes].concat();
                let update = SubnetPoolUpdate { prefixes: Some(all), ..SubnetPoolUpdate::default() };
                let txn = apply(cache, caller, Txn::new(), &mut pool, &update)?;
                touch(&mut pool.standard);
                Ok((txn.update(&stored, &pool), pool.prefixes))
            })
            .await
    }

    /// Takes prefixes from a pool; what is left of it then.
    ///
    /// # Errors
    /// `Invalid` (`IllegalSubnetPoolPrefixUpdate`) where subnets are of them.
    pub async fn subnet_pool_remove_prefixes(
        &self,
        caller: &Caller,
        id: &str,
        prefixes: &[IpNet],
    ) -> Result<Vec<IpNet>> {
        self.db.caught_up().await?;
        self.db
            .transact_with(|cache| {
                let stored = owned::<SubnetPool>(cache, caller, id, "remove_prefixes")?;
                let used = subnets_of(cache, id);
                if used.iter().any(|subnet| prefixes.iter().any(|prefix| overlap(prefix, &subnet.row.cidr))) {
                    return Err(Error::invalid(
                        "IllegalSubnetPoolPrefixUpdate",
                        "Illegal update to prefixes: One or more the prefixes to be removed is in use by a subnet.",
                    ));
                }
                let mut pool = stored.row.clone();
                pool.prefixes = without(&pool.prefixes, prefixes);
                check_count(&pool.prefixes)?;
                touch(&mut pool.standard);
                Ok((Txn::new().update(&stored, &pool), pool.prefixes))
            })
            .await
    }

    /// Makes the subnets of a network, of the pool's family, subnets of the pool, and their prefixes its own.
    ///
    /// # Errors
    /// `Invalid` (`IllegalSubnetPoolUpdate`) where they overlap with what is cut from the pool already.
    pub async fn subnet_pool_onboard(&self, caller: &Caller, id: &str, network_id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned::<SubnetPool>(cache, caller, id, "onboard_network_subnets")?;
                let network = visible::<Network>(cache, caller, network_id)?;
                require_member(caller, &network.row.standard.project_id, "onboard_network_subnets")?;
                let mut pool = stored.row.clone();
                let is_of = |subnet: &Subnet| {
                    subnet.network_id == network_id && version_of(&subnet.cidr) == pool.ip_version
                };
                let subnets = cache.filter::<Subnet>(is_of);
                let used = subnets_of(cache, id);
                let mut txn = Txn::new();
                let mut prefixes = pool.prefixes.clone();
                for subnet in subnets.iter().filter(|subnet| subnet.row.subnetpool_id.as_deref() != Some(id)) {
                    if used.iter().any(|other| overlap(&other.row.cidr, &subnet.row.cidr)) {
                        return Err(Error::invalid(
                            "IllegalSubnetPoolUpdate",
                            format!(
                                "Illegal subnetpool update : Onboarding subnet {} overlaps with allocated prefixes in \
                                 subnet pool {id}.",
                                subnet.row.standard.id
                            ),
                        ));
                    }
                    prefixes.push(subnet.row.cidr);
                    let mut changed = subnet.row.clone();
                    changed.subnetpool_id = Some(id.to_owned());
                    touch(&mut changed.standard);
                    txn = txn.update(subnet, &changed);
                }
                let update = SubnetPoolUpdate { prefixes: Some(prefixes), ..SubnetPoolUpdate::default() };
                txn = apply(cache, caller, txn, &mut pool, &update)?;
                touch(&mut pool.standard);
                at_once(txn.update(&stored, &pool))
            })
            .await
    }
}

/// The subnets that are of a pool.
pub(crate) fn subnets_of(cache: &Cache, pool_id: &str) -> Vec<Arc<Stored<Subnet>>> {
    cache.filter::<Subnet>(|subnet| subnet.subnetpool_id.as_deref() == Some(pool_id))
}

/// The version of IP of a prefix.
pub(crate) fn version_of(prefix: &IpNet) -> u8 {
    if prefix.addr().is_ipv4() { 4 } else { 6 }
}

/// Changes a pool as is wished, and adds to the transaction that nobody changes what that was decided from.
fn apply(
    cache: &Cache,
    caller: &Caller,
    mut txn: Txn,
    pool: &mut SubnetPool,
    update: &SubnetPoolUpdate,
) -> Result<Txn> {
    if let Some(name) = &update.name {
        pool.standard.name.clone_from(name);
    }
    if let Some(description) = &update.description {
        pool.standard.description.clone_from(description);
    }
    check_text("name", &pool.standard.name)?;
    check_text("description", &pool.standard.description)?;
    if let Some(prefixes) = &update.prefixes {
        pool.prefixes = checked_prefixes(pool, prefixes)?;
    }
    pool.min_prefixlen = update.min_prefixlen.unwrap_or(pool.min_prefixlen);
    pool.max_prefixlen = update.max_prefixlen.unwrap_or(pool.max_prefixlen);
    pool.default_prefixlen = update.default_prefixlen.unwrap_or(pool.default_prefixlen);
    check_bounds(pool)?;
    if let Some(quota) = update.default_quota {
        pool.default_quota = quota;
    }
    if update.is_default == Some(true) && !pool.is_default {
        let version = pool.ip_version;
        if cache.find::<SubnetPool>(|other| other.is_default && other.ip_version == version).is_some() {
            return Err(Error::invalid(
                "InvalidInput",
                "Invalid input for operation: A default subnetpool for this IP family has already been set. Only one \
                 default may exist per IP family.",
            ));
        }
        txn = txn.unique(default_key(version));
    } else if update.is_default == Some(false) && pool.is_default {
        txn = txn.release(default_key(pool.ip_version));
    }
    pool.is_default = update.is_default.unwrap_or(pool.is_default);
    if let Some(scope) = &update.address_scope_id {
        pool.address_scope_id.clone_from(scope);
    }
    if pool.address_scope_id.is_some() && (update.address_scope_id.is_some() || update.prefixes.is_some()) {
        let scope = check_scope(cache, caller, pool)?;
        // The scope's row is written too, so that two overlapping pools at once cannot both come into it.
        txn = txn.update(&scope, &scope.row);
    }
    Ok(txn)
}

fn default_key(version: u8) -> String {
    format!("unique/default-subnet-pool/{version}")
}

fn checked_prefixes(pool: &SubnetPool, prefixes: &[IpNet]) -> Result<Vec<IpNet>> {
    if prefixes.iter().any(|prefix| version_of(prefix) != pool.ip_version) {
        return Err(Error::invalid(
            "PrefixVersionMismatch",
            "Cannot mix IPv4 and IPv6 prefixes in a subnet pool.",
        ));
    }
    let all = joined(prefixes);
    check_count(&all)?;
    if !without(&pool.prefixes, &all).is_empty() {
        return Err(Error::invalid(
            "IllegalSubnetPoolPrefixUpdate",
            "Illegal update to prefixes: Existing prefixes must be a subset of the new prefixes.",
        ));
    }
    Ok(all)
}

fn check_count(prefixes: &[IpNet]) -> Result<()> {
    if prefixes.len() > PREFIXES_MAX {
        let message =
            format!("Invalid input for operation: a subnet pool has at most {PREFIXES_MAX} prefixes.");
        return Err(Error::invalid("InvalidInput", message));
    }
    Ok(())
}

fn check_bounds(pool: &SubnetPool) -> Result<()> {
    let bits = if pool.ip_version == 4 { 32 } else { 128 };
    let (min, max, default) = (pool.min_prefixlen, pool.max_prefixlen, pool.default_prefixlen);
    let illegal = |kind: &str, length: u8, base_kind: &str, base: u8| {
        let message =
            format!("Illegal prefix bounds: {kind}_prefixlen={length}, {base_kind}_prefixlen={base}.");
        Err(Error::invalid("IllegalSubnetPoolPrefixBounds", message))
    };
    match () {
        () if max > bits => illegal("max", max, "ip_version_max", bits),
        () if min > max => illegal("min", min, "max", max),
        () if default < min => illegal("default", default, "min", min),
        () if default > max => illegal("default", default, "max", max),
        () => Ok(()),
    }
}

/// The scope of a pool, if the pool may be in it.
fn check_scope(cache: &Cache, caller: &Caller, pool: &SubnetPool) -> Result<Arc<Stored<AddressScope>>> {
    let (id, scope_id) = (&pool.standard.id, pool.address_scope_id.clone().unwrap_or_default());
    let scope = visible::<AddressScope>(cache, caller, &scope_id)?;
    let illegal = |reason, why: &str| {
        let message =
            format!("Illegal subnetpool association: subnetpool {id} {why} address scope {scope_id}.");
        Err(Error::invalid(reason, message))
    };
    let shared = scope.row.shared || rbac::is_granted(cache, caller, &scope_id, Access::AccessAsShared);
    if scope.row.standard.project_id != pool.standard.project_id && !shared && !caller.is_admin() {
        return illegal("IllegalSubnetPoolAssociationToAddressScope", "cannot be associated with");
    }
    if scope.row.ip_version != pool.ip_version {
        return illegal(
            "IllegalSubnetPoolIpVersionAssociationToAddressScope",
            "is of another IP version than",
        );
    }
    let others = cache.filter::<SubnetPool>(|other| {
        other.standard.id != *id && other.address_scope_id == pool.address_scope_id
    });
    let mut prefixes = others.iter().flat_map(|other| &other.row.prefixes);
    if prefixes.any(|other| pool.prefixes.iter().any(|own| overlap(own, other))) {
        return Err(Error::conflict(
            "AddressScopePrefixConflict",
            "Failed to associate address scope: subnetpools within an address scope must have unique prefixes.",
        ));
    }
    Ok(scope)
}
