//! Which prefix a new subnet has: the one that is asked for, or one cut from a pool.

use std::sync::Arc;

use ipnet::IpNet;

use super::SubnetCreate;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::pool::SubnetPool;
use crate::model::network::{Network, Subnet};
use crate::service::network_resource::visible;
use crate::service::prefix::{is_free, next_free};
use crate::service::subnet_pool::version_of;
use crate::store::{Cache, Stored};

/// A prefix, and the pool it is of.
pub(super) struct Choice {
    pub(super) cidr: IpNet,
    pub(super) pool: Option<Arc<Stored<SubnetPool>>>,
}

/// Chooses; `siblings` are made in the same transaction.
pub(super) fn choose(
    cache: &Cache,
    caller: &Caller,
    siblings: &[Subnet],
    network: &Network,
    request: &SubnetCreate,
) -> Result<Choice> {
    let bad = |message: &str| Error::invalid("BadRequest", format!("Bad subnets request: {message}."));
    if request.cidr.is_some() && request.prefixlen.is_some() {
        return Err(bad("cidr and prefixlen must not be supplied together"));
    }
    let pool = find_pool(cache, caller, request)?;
    let stored = cache.list::<Subnet>();
    let all: Vec<&Subnet> = stored.iter().map(|stored| &stored.row).chain(siblings).collect();
    let Some(pool) = pool else {
        let cidr =
            request.cidr.ok_or_else(|| bad("a subnetpool must be specified in the absence of a cidr"))?;
        check_affinity(cache, &all, network, version_of(&cidr), None)?;
        return Ok(Choice { cidr: cidr.trunc(), pool: None });
    };
    let version = pool.row.ip_version;
    let asked = request.cidr.map(|cidr| version_of(&cidr)).or(request.ip_version);
    if let Some(asked) = asked.filter(|asked| *asked != version) {
        return Err(bad(&format!("Cannot allocate IPv{asked} subnet from IPv{version} subnet pool")));
    }
    if request.cidr.is_none() && request.allocation_pools.is_some() {
        return Err(bad("allocation_pools allowed only for specific subnet requests"));
    }
    check_affinity(cache, &all, network, version, Some(&pool.row))?;
    let length = match request.cidr {
        Some(cidr) => cidr.prefix_len(),
        None => request.prefixlen.unwrap_or(pool.row.default_prefixlen),
    };
    check_length(&pool.row, length)?;
    let is_of = |subnet: &&&Subnet| subnet.subnetpool_id.as_ref() == Some(&pool.row.standard.id);
    check_quota(&pool.row, all.iter().filter(is_of), &network.standard.project_id, length)?;
    let taken: Vec<IpNet> = all.iter().filter(is_of).map(|subnet| subnet.cidr).collect();
    let failed =
        |why: &str| Error::conflict("SubnetAllocationError", format!("Failed to allocate subnet: {why}."));
    let cidr = match request.cidr.map(|cidr| cidr.trunc()) {
        Some(cidr) if is_free(&pool.row.prefixes, &taken, &cidr) => cidr,
        Some(_) => return Err(failed("Cannot allocate requested subnet from the available set of prefixes")),
        None => next_free(&pool.row.prefixes, &taken, length)
            .ok_or_else(|| failed(&format!("Insufficient prefix space to allocate subnet size /{length}")))?,
    };
    Ok(Choice { cidr, pool: Some(pool) })
}

fn find_pool(
    cache: &Cache,
    caller: &Caller,
    request: &SubnetCreate,
) -> Result<Option<Arc<Stored<SubnetPool>>>> {
    let bad = |message: &str| Error::invalid("BadRequest", format!("Bad subnets request: {message}."));
    match &request.subnetpool_id {
        Some(_) if request.use_default_subnetpool => {
            Err(bad("subnetpool_id and use_default_subnetpool cannot both be specified"))
        }
        Some(id) if id == "prefix_delegation" => {
            Err(Error::NotImplemented("a subnet whose prefix comes from somebody else (prefix delegation)"))
        }
        Some(id) => visible(cache, caller, id).map(Some),
        None if !request.use_default_subnetpool => Ok(None),
        None => {
            let version = request.cidr.map(|cidr| version_of(&cidr)).or(request.ip_version).unwrap_or(4);
            let pool = cache.find::<SubnetPool>(|pool| pool.is_default && pool.ip_version == version);
            pool.map(Some).ok_or_else(|| bad(&format!("No default subnetpool found for IPv{version}")))
        }
    }
}

/// All subnets of one family on a network are of one pool, or of pools in one scope.
fn check_affinity(
    cache: &Cache,
    all: &[&Subnet],
    network: &Network,
    version: u8,
    pool: Option<&SubnetPool>,
) -> Result<()> {
    let others = all
        .iter()
        .filter(|other| other.network_id == network.standard.id && version_of(&other.cidr) == version);
    for other in others {
        let other_pool = other.subnetpool_id.as_ref().and_then(|id| cache.get::<SubnetPool>(id));
        let scope = other_pool.as_ref().and_then(|pool| pool.row.address_scope_id.as_ref());
        if other.subnetpool_id.as_deref() == pool.map(|pool| pool.standard.id.as_str()) {
            continue;
        }
        if scope.is_none() {
            return Err(Error::invalid(
                "NetworkSubnetPoolAffinityError",
                "Subnets hosted on the same network must be allocated from the same subnet pool.",
            ));
        }
        if pool.and_then(|pool| pool.address_scope_id.as_ref()) != scope {
            return Err(Error::invalid(
                "NetworkAddressScopeAffinityError",
                "Subnets of the same address family hosted on the same network must all participate in the same \
                 address scope.",
            ));
        }
    }
    Ok(())
}

fn check_length(pool: &SubnetPool, length: u8) -> Result<()> {
    if length < pool.min_prefixlen {
        let message = format!(
            "Unable to allocate subnet with prefix length {length}, minimum allowed prefix is {}.",
            pool.min_prefixlen
        );
        return Err(Error::invalid("MinPrefixSubnetAllocationError", message));
    }
    if length > pool.max_prefixlen {
        let message = format!(
            "Unable to allocate subnet with prefix length {length}, maximum allowed prefix is {}.",
            pool.max_prefixlen
        );
        return Err(Error::invalid("MaxPrefixSubnetAllocationError", message));
    }
    Ok(())
}

/// What a project has of a pool is counted in addresses, of IPv6 in prefixes of 64 bits.
fn check_quota<'a>(
    pool: &SubnetPool,
    subnets: impl Iterator<Item = &'a &'a Subnet>,
    project_id: &str,
    length: u8,
) -> Result<()> {
    let Some(quota) = pool.default_quota.filter(|quota| *quota > 0) else { return Ok(()) };
    let unit = if pool.ip_version == 4 { 32 } else { 64 };
    // Longer ones than the unit are less than one; they count as one.
    let units =
        |length: u8| 1_u64.checked_shl(u32::from(u8::saturating_sub(unit, length))).unwrap_or(u64::MAX);
    let own = subnets.filter(|subnet| subnet.standard.project_id == project_id);
    let used = own.fold(0_u64, |sum, subnet| sum.saturating_add(units(subnet.cidr.prefix_len())));
    if used.saturating_add(units(length)) > quota {
        return Err(Error::conflict(
            "SubnetPoolQuotaExceeded",
            "Per-project subnet pool prefix quota exceeded.",
        ));
    }
    Ok(())
}
