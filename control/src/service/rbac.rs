//! RBAC policies: whom a project's networks, groups, pools and scopes are shared with. What is shared with all is also said
//! by the object's own row (`shared`, `external`), and both change in one transaction.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::network_resource::{NetworkResource, at_once, owned, visible};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::address_group::AddressGroup;
use crate::model::network::pool::{AddressScope, SubnetPool};
use crate::model::network::qos::QosPolicy;
use crate::model::network::rbac::{Access, ObjectType, RbacPolicy};
use crate::model::network::{Network, Port, SecurityGroup, SecurityGroupRule, Standard, Subnet};
use crate::model::random_uuid;
use crate::model::router::{FloatingIp, Router};
use crate::policy::{Target, require_admin, require_member, said};
use crate::service::network::{owner_project, touch};
use crate::service::quota::{self, Resource};
use crate::store::{Cache, Stored, Txn};

/// All projects, as the target of a policy.
pub const EVERYONE: &str = "*";

/// What can be shared.
pub(crate) trait Shareable: NetworkResource {
    /// Its kind in policies.
    const TYPE: ObjectType;

    /// Where the row itself says that it is shared with all, if it does.
    fn flag(&mut self, access: Access) -> Option<&mut bool>;

    /// The projects that use it.
    fn users(cache: &Cache, id: &str) -> BTreeSet<String>;
}

/// What a policy is made from.
#[derive(Debug, Clone)]
pub struct RbacCreate {
    /// The owner, if an administrator makes it for another project.
    pub project_id: Option<String>,
    /// What kind of thing.
    pub object_type: ObjectType,
    /// Which one.
    pub object_id: String,
    /// What for.
    pub action: Access,
    /// With which project, or [`EVERYONE`].
    pub target: String,
}

impl Control {
    /// Makes a policy.
    ///
    /// # Errors
    /// `NotFound` for the object; `Invalid` for one of another project's, or an action that its kind does not have;
    /// `Conflict` (`DuplicateRbacPolicy`); `QuotaExceeded`.
    pub async fn rbac_create(&self, caller: &Caller, request: RbacCreate) -> Result<RbacPolicy> {
        let project_id = owner_project(caller, request.project_id.as_deref(), "create_rbac_policy")?;
        if request.target == EVERYONE {
            require_admin(caller, "create_rbac_policy:target_tenant")?;
        }
        check_action(&request)?;
        self.db.caught_up().await?;
        let id = random_uuid();
        self.db
            .transact_with(|cache| {
                let policy = RbacPolicy {
                    key: format!("{}/{id}", request.object_id),
                    id: id.clone(),
                    project_id: project_id.clone(),
                    object_type: request.object_type,
                    object_id: request.object_id.clone(),
                    action: request.action,
                    target: request.target.clone(),
                    implied: false,
                };
                let txn = by_type(request.object_type, |kind| kind.say(cache, caller, &policy))?;
                Ok((add(cache, txn, &policy)?, policy))
            })
            .await
    }

    /// All policies of the projects the caller may see.
    ///
    /// # Errors
    /// What the store says.
    pub async fn rbac_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<RbacPolicy>>>> {
        self.db.caught_up().await?;
        Ok(self.db.cache().filter::<RbacPolicy>(|policy| sees(caller, policy)))
    }

    /// One policy the caller may see.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn rbac_get(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<RbacPolicy>>> {
        self.db.caught_up().await?;
        find(self.db.cache(), caller, id)
    }

    /// Gives a policy another target.
    ///
    /// # Errors
    /// `Conflict` (`RbacPolicyInUse`) while the target uses the object by it.
    pub async fn rbac_update(&self, caller: &Caller, id: &str, target: &str) -> Result<RbacPolicy> {
        if target == EVERYONE {
            require_admin(caller, "update_rbac_policy:target_tenant")?;
        }
        self.db.caught_up().await?;
        self.db
            .transact_with(|cache| {
                let stored = find(cache, caller, id)?;
                require_member(caller, &stored.row.project_id, "update_rbac_policy")?;
                let policy = RbacPolicy { target: target.to_owned(), ..stored.row.clone() };
                if policy == stored.row {
                    return Ok((Txn::new(), policy));
                }
                check_unused(cache, &stored.row, Some(target))?;
                check_new(cache, &policy)?;
                let txn = by_type(policy.object_type, |kind| kind.turn(cache, &stored.row, &policy))?;
                let txn = txn.update(&stored, &policy).release(unique(&stored.row)).unique(unique(&policy));
                Ok((txn, policy))
            })
            .await
    }

    /// Deletes a policy.
    ///
    /// # Errors
    /// `Conflict` (`RbacPolicyInUse`) while its target uses the object by it.
    pub async fn rbac_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find(cache, caller, id)?;
                require_member(caller, &stored.row.project_id, "delete_rbac_policy")?;
                check_unused(cache, &stored.row, None)?;
                let txn = by_type(stored.row.object_type, |kind| kind.unsay(cache, &stored.row))?;
                Ok(remove(txn, &stored))
            })
            .await
    }

    /// Whether a thing is shared with the caller's project by a policy, for showing it.
    pub fn is_shared_with(&self, caller: &Caller, object_id: &str) -> bool {
        is_granted(self.db.cache(), caller, object_id, Access::AccessAsShared)
    }

    /// Whether a network leads outside for anybody, for showing it.
    pub fn is_external(&self, network: &Network) -> bool {
        let policies = self.db.cache().list_under::<RbacPolicy>(&format!("{}/", network.standard.id));
        network.external || policies.iter().any(|policy| policy.row.action == Access::AccessAsExternal)
    }
}

fn sees(caller: &Caller, policy: &RbacPolicy) -> bool {
    let keys = [("project_id", policy.project_id.as_str())];
    caller.may_read(&policy.project_id) && said("get_rbac_policy", caller, &Target::of(&keys)).unwrap_or(true)
}

fn find(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<RbacPolicy>>> {
    cache
        .find::<RbacPolicy>(|policy| policy.id == id && sees(caller, policy))
        .ok_or_else(|| Error::not_found("Rbac policy", id))
}

/// Whether a policy lets the caller's project do this with an object.
pub(crate) fn is_granted(cache: &Cache, caller: &Caller, object_id: &str, access: Access) -> bool {
    policies_of(cache, object_id).iter().any(|policy| {
        policy.row.action == access
            && (policy.row.target == EVERYONE || caller.project_id() == Some(&policy.row.target))
    })
}

/// Whether a policy lets the caller's project see an object, whatever for.
pub(crate) fn is_known(cache: &Cache, caller: &Caller, object_id: &str) -> bool {
    caller.role.is_some()
        && [Access::AccessAsShared, Access::AccessAsExternal]
            .into_iter()
            .any(|access| is_granted(cache, caller, object_id, access))
}

fn policies_of(cache: &Cache, object_id: &str) -> Vec<Arc<Stored<RbacPolicy>>> {
    cache.list_under::<RbacPolicy>(&format!("{object_id}/"))
}

fn unique(policy: &RbacPolicy) -> String {
    format!("unique/rbac/{}/{:?}/{}", policy.object_id, policy.action, policy.target)
}

/// Adds to the transaction that an object is, or is no longer, shared with all as its own row says.
pub(crate) fn imply<T: Shareable>(
    cache: &Cache,
    txn: Txn,
    standard: &Standard,
    action: Access,
    shared: bool,
) -> Result<Txn> {
    let id = random_uuid();
    let policy = RbacPolicy {
        key: format!("{}/{id}", standard.id),
        id,
        project_id: standard.project_id.clone(),
        object_type: T::TYPE,
        object_id: standard.id.clone(),
        action,
        target: EVERYONE.to_owned(),
        implied: true,
    };
    let there = policies_of(cache, &standard.id)
        .into_iter()
        .find(|stored| stored.row.action == action && stored.row.target == EVERYONE);
    match (there, shared) {
        (None, true) => Ok(txn.create(&policy).unique(unique(&policy))),
        (Some(stored), false) => {
            check_unused(cache, &stored.row, None)?;
            Ok(remove(txn, &stored))
        }
        _ => Ok(txn),
    }
}

/// Adds to the transaction in which an object goes that its policies go with it.
pub(crate) fn forget(cache: &Cache, txn: Txn, object_id: &str) -> Result<Txn> {
    at_once(policies_of(cache, object_id).iter().fold(txn, |txn, policy| remove(txn, policy)))
}

fn add(cache: &Cache, txn: Txn, policy: &RbacPolicy) -> Result<Txn> {
    check_new(cache, policy)?;
    let txn = txn.create(policy).unique(unique(policy));
    Ok(quota::charge(txn, &policy.project_id, &[(Resource::RbacPolicies, 1)]))
}

fn check_new(cache: &Cache, policy: &RbacPolicy) -> Result<()> {
    let is_same = |other: &RbacPolicy| {
        other.action == policy.action && other.target == policy.target && other.id != policy.id
    };
    if policies_of(cache, &policy.object_id).iter().any(|other| is_same(&other.row)) {
        return Err(Error::conflict(
            "DuplicateRbacPolicy",
            "An RBAC policy already exists with those values.",
        ));
    }
    Ok(())
}

fn remove(txn: Txn, stored: &Stored<RbacPolicy>) -> Txn {
    let txn = txn.delete(stored).release(unique(&stored.row));
    match stored.row.implied {
        true => txn,
        false => quota::charge(txn, &stored.row.project_id, &[(Resource::RbacPolicies, -1)]),
    }
}

fn check_action(request: &RbacCreate) -> Result<()> {
    if request.action == Access::AccessAsExternal && request.object_type != ObjectType::Network {
        return Err(Error::invalid(
            "InvalidActionForType",
            "Invalid action 'access_as_external' for this object type. Valid actions: ('access_as_shared',).",
        ));
    }
    Ok(())
}

/// Refuses to take away what somebody uses an object by, unless another policy, or its new target, lets them.
fn check_unused(cache: &Cache, policy: &RbacPolicy, new_target: Option<&str>) -> Result<()> {
    let others = policies_of(cache, &policy.object_id);
    let mut left: BTreeSet<&str> = others
        .iter()
        .filter(|other| other.row.id != policy.id && other.row.action == policy.action)
        .map(|other| other.row.target.as_str())
        .collect();
    left.extend(new_target);
    let users = match policy.action {
        Access::AccessAsShared => {
            by_type(policy.object_type, |kind| Ok(kind.users(cache, &policy.object_id)))?
        }
        Access::AccessAsExternal => leaving_by(cache, &policy.object_id),
    };
    let held = |project: &&String| {
        (policy.target == EVERYONE || policy.target == **project)
            && !left.contains(EVERYONE)
            && !left.contains(project.as_str())
    };
    match users.iter().find(held) {
        Some(project) => Err(Error::conflict(
            "RbacPolicyInUse",
            format!(
                "RBAC policy on object {} cannot be removed because other objects depend on it.\nDetails: \
                 project_id={project}",
                policy.object_id
            ),
        )),
        None => Ok(()),
    }
}

/// The projects, besides its own, whose routers or floating IPs are on a network as one that leads outside.
fn leaving_by(cache: &Cache, network_id: &str) -> BTreeSet<String> {
    let on_it =
        |router: &Router| router.gateway.as_ref().is_some_and(|gateway| gateway.network_id == network_id);
    let routers = cache.filter(on_it);
    let floating = cache.filter::<FloatingIp>(|floating| floating.network_id == network_id);
    let standards = routers.iter().map(|router| &router.row.standard);
    let standards = standards.chain(floating.iter().map(|floating| &floating.row.standard));
    let mut projects: BTreeSet<String> = standards.map(|standard| standard.project_id.clone()).collect();
    if let Some(network) = cache.get::<Network>(network_id) {
        projects.remove(&network.row.standard.project_id);
    }
    projects
}

/// What can be done with an object of a kind that is only known when a policy is read.
trait Kind {
    /// That the object is there, is the caller's to share, and says itself that it is shared with all if it is.
    fn say(&self, cache: &Cache, caller: &Caller, policy: &RbacPolicy) -> Result<Txn>;
    /// That the object no longer says so.
    fn unsay(&self, cache: &Cache, policy: &RbacPolicy) -> Result<Txn>;
    /// That it says what the policy now does.
    fn turn(&self, cache: &Cache, before: &RbacPolicy, after: &RbacPolicy) -> Result<Txn>;
    /// The projects that use it, besides its own.
    fn users(&self, cache: &Cache, id: &str) -> BTreeSet<String>;
}

struct Of<T>(std::marker::PhantomData<T>);

fn by_type<R>(object_type: ObjectType, with: impl FnOnce(&dyn Kind) -> Result<R>) -> Result<R> {
    fn of<T: Shareable>() -> Of<T> {
        Of(std::marker::PhantomData)
    }
    match object_type {
        ObjectType::Network => with(&of::<Network>()),
        ObjectType::SecurityGroup => with(&of::<SecurityGroup>()),
        ObjectType::AddressScope => with(&of::<AddressScope>()),
        ObjectType::Subnetpool => with(&of::<SubnetPool>()),
        ObjectType::AddressGroup => with(&of::<AddressGroup>()),
        ObjectType::QosPolicy => with(&of::<QosPolicy>()),
    }
}

/// The object's row with its flag set, in a transaction that fails if the object changes meanwhile.
fn flagged<T: Shareable>(stored: &Stored<T>, action: Access, shared: Option<bool>) -> Txn {
    let mut row = stored.row.clone();
    match (row.flag(action), shared) {
        (Some(flag), Some(shared)) if *flag != shared => {
            *flag = shared;
            touch(row.standard_mut());
            Txn::new().update(stored, &row)
        }
        _ => Txn::new().require(stored),
    }
}

impl<T: Shareable> Kind for Of<T> {
    fn say(&self, cache: &Cache, caller: &Caller, policy: &RbacPolicy) -> Result<Txn> {
        let stored = visible::<T>(cache, caller, &policy.object_id)?;
        if owned::<T>(cache, caller, &policy.object_id, "create_rbac_policy").is_err() {
            return Err(Error::invalid(
                "InvalidInput",
                "Invalid input for operation: Only admins can manipulate policies on objects they do not own.",
            ));
        }
        Ok(flagged(&stored, policy.action, (policy.target == EVERYONE).then_some(true)))
    }

    fn unsay(&self, cache: &Cache, policy: &RbacPolicy) -> Result<Txn> {
        let stored = cache.get::<T>(&policy.object_id);
        let shared = (policy.target == EVERYONE).then_some(false);
        Ok(stored.map_or_else(Txn::new, |stored| flagged(&stored, policy.action, shared)))
    }

    fn turn(&self, cache: &Cache, before: &RbacPolicy, after: &RbacPolicy) -> Result<Txn> {
        let stored = cache.get::<T>(&after.object_id);
        let shared = match (before.target == EVERYONE, after.target == EVERYONE) {
            (true, false) => Some(false),
            (false, true) => Some(true),
            _ => None,
        };
        Ok(stored.map_or_else(Txn::new, |stored| flagged(&stored, after.action, shared)))
    }

    fn users(&self, cache: &Cache, id: &str) -> BTreeSet<String> {
        let mut users = T::users(cache, id);
        if let Some(stored) = cache.get::<T>(id) {
            users.remove(&stored.row.standard().project_id);
        }
        users
    }
}

fn projects<T: NetworkResource>(cache: &Cache, uses: impl FnMut(&T) -> bool) -> BTreeSet<String> {
    cache.filter::<T>(uses).iter().map(|stored| stored.row.standard().project_id.clone()).collect()
}

impl Shareable for Network {
    const TYPE: ObjectType = ObjectType::Network;

    fn flag(&mut self, access: Access) -> Option<&mut bool> {
        Some(match access {
            Access::AccessAsShared => &mut self.shared,
            Access::AccessAsExternal => &mut self.external,
        })
    }

    fn users(cache: &Cache, id: &str) -> BTreeSet<String> {
        projects::<Port>(cache, |port| port.network_id == id)
    }
}

impl Shareable for SecurityGroup {
    const TYPE: ObjectType = ObjectType::SecurityGroup;

    fn flag(&mut self, _: Access) -> Option<&mut bool> {
        None
    }

    fn users(cache: &Cache, id: &str) -> BTreeSet<String> {
        let mut users = projects::<Port>(cache, |port| port.security_groups.iter().any(|group| group == id));
        users
            .extend(projects::<SecurityGroupRule>(cache, |rule| rule.remote_group_id.as_deref() == Some(id)));
        users
    }
}

impl Shareable for AddressScope {
    const TYPE: ObjectType = ObjectType::AddressScope;

    fn flag(&mut self, _: Access) -> Option<&mut bool> {
        Some(&mut self.shared)
    }

    fn users(cache: &Cache, id: &str) -> BTreeSet<String> {
        projects::<SubnetPool>(cache, |pool| pool.address_scope_id.as_deref() == Some(id))
    }
}

impl Shareable for SubnetPool {
    const TYPE: ObjectType = ObjectType::Subnetpool;

    fn flag(&mut self, _: Access) -> Option<&mut bool> {
        Some(&mut self.shared)
    }

    fn users(cache: &Cache, id: &str) -> BTreeSet<String> {
        projects::<Subnet>(cache, |subnet| subnet.subnetpool_id.as_deref() == Some(id))
    }
}

impl Shareable for AddressGroup {
    const TYPE: ObjectType = ObjectType::AddressGroup;

    fn flag(&mut self, _: Access) -> Option<&mut bool> {
        None
    }

    fn users(cache: &Cache, id: &str) -> BTreeSet<String> {
        projects::<SecurityGroupRule>(cache, |rule| rule.remote_address_group_id.as_deref() == Some(id))
    }
}

impl Shareable for QosPolicy {
    const TYPE: ObjectType = ObjectType::QosPolicy;

    fn flag(&mut self, _: Access) -> Option<&mut bool> {
        Some(&mut self.shared)
    }

    fn users(cache: &Cache, id: &str) -> BTreeSet<String> {
        let mut users = projects::<Port>(cache, |port| port.qos_policy_id.as_deref() == Some(id));
        users.extend(projects::<Network>(cache, |network| network.qos_policy_id.as_deref() == Some(id)));
        users.extend(projects::<FloatingIp>(cache, |floating| floating.qos_policy_id.as_deref() == Some(id)));
        users.extend(projects::<Router>(cache, |router| {
            router.gateway.as_ref().is_some_and(|gateway| gateway.qos_policy_id.as_deref() == Some(id))
        }));
        users
    }
}
