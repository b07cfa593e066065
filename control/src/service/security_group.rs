//! Security groups and their rules: what may reach a port and what it may reach. A group lists what is allowed; all
//! else is dropped.

mod default;
mod rule;
pub mod template;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use self::default::default_key;
pub use self::rule::{ICMP_CODE_ANY, RuleCreate, protocol_number};
use self::rule::{check_rule, resolve, same};
use super::network::{check_text, new_standard, owner_project, touch};
use super::network_resource::{at_once, made, network_resources, new_ids, only, owned, visible};
use super::rbac;
use super::tag::check_tags;
use crate::Control;
use crate::agent::protocol::GroupWanted;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::address_group::AddressGroup;
use crate::model::network::{Port, SecurityGroup, SecurityGroupRule, Standard};
use crate::service::quota::{self, Resource};
use crate::store::{Cache, Stored, Txn};

/// The name of the group that every project has.
pub const DEFAULT_NAME: &str = "default";

/// What a group is made from.
#[derive(Debug, Clone)]
pub struct GroupCreate {
    /// Name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// The owner, if an administrator makes it for another project.
    pub project_id: Option<String>,
    /// Replies to what is allowed are allowed.
    pub stateful: bool,
    /// Tags.
    pub tags: BTreeSet<String>,
}

impl GroupCreate {
    /// One by this name, with everything as it is unless said otherwise.
    pub fn new(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            description: String::new(),
            project_id: None,
            stateful: true,
            tags: BTreeSet::new(),
        }
    }
}

impl Control {
    /// Makes a group; see [`Control::security_group_create_many`].
    ///
    /// # Errors
    /// As there.
    pub async fn security_group_create(
        &self,
        caller: &Caller,
        request: GroupCreate,
    ) -> Result<Arc<Stored<SecurityGroup>>> {
        only(self.security_group_create_many(caller, vec![request]).await?)
    }

    /// Makes groups with the rules that groups begin with; all or none.
    ///
    /// # Errors
    /// `Conflict` for one by the name of the default one, `QuotaExceeded`.
    pub async fn security_group_create_many(
        &self,
        caller: &Caller,
        requests: Vec<GroupCreate>,
    ) -> Result<Vec<Arc<Stored<SecurityGroup>>>> {
        let mut owners = Vec::with_capacity(requests.len());
        for request in &requests {
            let project_id = owner_project(caller, request.project_id.as_deref(), "create_security_group")?;
            self.ensure_default_group(&project_id).await?;
            check_text("name", &request.name)?;
            check_text("description", &request.description)?;
            check_tags(&request.tags)?;
            if request.name == DEFAULT_NAME {
                return Err(Error::conflict(
                    "SecurityGroupDefaultAlreadyExists",
                    "Default security group already exists.",
                ));
            }
            owners.push(project_id);
        }
        let ids = new_ids(requests.len());
        self.db
            .transact(|cache| {
                let mut txn = Txn::new();
                for ((request, project_id), id) in requests.iter().zip(&owners).zip(&ids) {
                    let mut group = group_row(id, project_id, &request.name, &request.description);
                    group.stateful = request.stateful;
                    group.standard.tags.clone_from(&request.tags);
                    let rules = template::rules_of(cache, &group, false);
                    txn = add_rules(txn.create(&group), project_id, &rules, 1);
                }
                at_once(txn)
            })
            .await?;
        made(self.db.cache(), &ids)
    }

    /// All groups of the projects the caller may see.
    pub async fn security_group_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<SecurityGroup>>>> {
        if let Some(project_id) = caller.project_id() {
            self.ensure_default_group(project_id).await?;
        }
        self.network_resources(caller).await
    }

    /// One group the caller may see.
    pub async fn security_group_get(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<SecurityGroup>>> {
        self.network_resource(caller, id).await
    }

    /// Changes a group's name or description, or whether it is stateful.
    ///
    /// # Errors
    /// `Conflict` for another name of the default group, and for another kind of one that ports have.
    pub async fn security_group_update(
        &self,
        caller: &Caller,
        id: &str,
        name: Option<&str>,
        description: Option<&str>,
        stateful: Option<bool>,
    ) -> Result<Arc<Stored<SecurityGroup>>> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned_group(cache, caller, id, "update_security_group")?;
                let mut group = stored.row.clone();
                if let Some(name) = name {
                    check_text("name", name)?;
                    if (group.standard.name == DEFAULT_NAME) != (name == DEFAULT_NAME) {
                        return Err(Error::conflict(
                            "SecurityGroupCannotUpdateDefault",
                            "Updating the name of the default security group, or a name to it, is not allowed.",
                        ));
                    }
                    name.clone_into(&mut group.standard.name);
                }
                if let Some(description) = description {
                    check_text("description", description)?;
                    description.clone_into(&mut group.standard.description);
                }
                if stateful.is_some_and(|stateful| stateful != group.stateful) {
                    if has_ports(cache, id) {
                        return Err(in_use(id));
                    }
                    group.stateful = !group.stateful;
                }
                touch(&mut group.standard);
                Ok(Txn::new().update(&stored, &group))
            })
            .await?;
        visible_group(self.db.cache(), caller, id)
    }

    /// Deletes a group with its rules.
    ///
    /// # Errors
    /// `Conflict` for the default group, for a group in use by a port, and for one that other groups' rules name.
    pub async fn security_group_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned_group(cache, caller, id, "delete_security_group")?;
                let is_default = stored.row.standard.name == DEFAULT_NAME;
                if is_default && !caller.is_admin() {
                    return Err(Error::conflict(
                        "SecurityGroupCannotRemoveDefault",
                        "Insufficient rights for removing default security group.",
                    ));
                }
                if has_ports(cache, id) {
                    return Err(in_use(id));
                }
                let (own, others): (Vec<_>, Vec<_>) = cache
                    .list::<SecurityGroupRule>()
                    .into_iter()
                    .partition(|rule| rule.row.security_group_id == id);
                let named = |group: &Option<String>| group.as_deref() == Some(id);
                if others.iter().any(|rule| named(&rule.row.remote_group_id))
                    || template::all(cache).iter().any(|rule| named(&rule.remote_group_id))
                {
                    return Err(in_use(id));
                }
                let mut txn = rbac::forget(cache, Txn::new().delete(&stored), id)?;
                if is_default {
                    txn = txn.release(default_key(&stored.row.standard.project_id));
                }
                for rule in &own {
                    txn = txn.delete(rule);
                }
                let count = i64::try_from(own.len()).unwrap_or(i64::MAX);
                at_once(quota::charge(
                    txn,
                    &stored.row.standard.project_id,
                    &[(Resource::SecurityGroups, -1), (Resource::SecurityGroupRules, -count)],
                ))
            })
            .await
    }

    /// Makes a rule; see [`Control::security_group_rule_create_many`].
    ///
    /// # Errors
    /// As there.
    pub async fn security_group_rule_create(
        &self,
        caller: &Caller,
        request: RuleCreate,
    ) -> Result<Arc<Stored<SecurityGroupRule>>> {
        only(self.security_group_rule_create_many(caller, vec![request]).await?)
    }

    /// Makes rules in groups of the caller's, all or none.
    ///
    /// # Errors
    /// `Invalid` for ranges and prefixes that cannot be, `Conflict` for a rule that exists.
    pub async fn security_group_rule_create_many(
        &self,
        caller: &Caller,
        requests: Vec<RuleCreate>,
    ) -> Result<Vec<Arc<Stored<SecurityGroupRule>>>> {
        self.db.caught_up().await?;
        for request in &requests {
            check_text("description", &request.description)?;
            check_rule(request)?;
        }
        let ids = new_ids(requests.len());
        self.db
            .transact(|cache| {
                let mut txn = Txn::new();
                let mut groups = BTreeMap::new();
                let mut rules: Vec<SecurityGroupRule> = Vec::with_capacity(ids.len());
                for (request, id) in requests.iter().zip(&ids) {
                    let group =
                        owned_group(cache, caller, &request.security_group_id, "create_security_group_rule")?;
                    let rule = build_rule(cache, caller, &group.row, request, id)?;
                    if rules.iter().any(|other| same(other, &rule)) {
                        return Err(Error::conflict(
                            "DuplicateSecurityGroupRuleInPost",
                            "Duplicate Security Group Rule in POST.",
                        ));
                    }
                    txn = add_rules(txn, &rule.standard.project_id, std::slice::from_ref(&rule), 0);
                    groups.insert(group.row.standard.id.clone(), group);
                    rules.push(rule);
                }
                // The groups' rows are written too: their deletion and new rules exclude each other.
                for group in groups.values() {
                    let mut touched = group.row.clone();
                    touch(&mut touched.standard);
                    txn = txn.update(group, &touched);
                }
                at_once(txn)
            })
            .await?;
        made(self.db.cache(), &ids)
    }

    /// All rules of the projects the caller may see.
    pub async fn security_group_rule_list(
        &self,
        caller: &Caller,
    ) -> Result<Vec<Arc<Stored<SecurityGroupRule>>>> {
        if let Some(project_id) = caller.project_id() {
            self.ensure_default_group(project_id).await?;
        }
        self.network_resources(caller).await
    }

    /// The rules of one group, for showing it; the caller has been let see the group.
    pub fn security_group_rules_of(&self, group_id: &str) -> Vec<Arc<Stored<SecurityGroupRule>>> {
        self.db.cache().found_by::<SecurityGroupRule>(group_id)
    }

    /// One rule the caller may see.
    pub async fn security_group_rule_get(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<Arc<Stored<SecurityGroupRule>>> {
        self.network_resource(caller, id).await
    }

    /// Deletes a rule.
    pub async fn security_group_rule_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let rule = owned::<SecurityGroupRule>(cache, caller, id, "delete_security_group_rule")?;
                Ok(quota::charge(
                    Txn::new().delete(&rule),
                    &rule.row.standard.project_id,
                    &[(Resource::SecurityGroupRules, -1)],
                ))
            })
            .await
    }
}

network_resources! {
    SecurityGroup: "Security group", "get_security_group", |row, cache, caller| {
        caller.may_read(&row.standard.project_id) || rbac::is_known(cache, caller, &row.standard.id)
    };
    SecurityGroupRule: "Security group rule", "get_security_group_rule";
}

/// A group the caller may see.
pub(crate) fn visible_group(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<SecurityGroup>>> {
    visible(cache, caller, id)
}

fn owned_group(
    cache: &Cache,
    caller: &Caller,
    id: &str,
    action: &'static str,
) -> Result<Arc<Stored<SecurityGroup>>> {
    owned(cache, caller, id, action)
}

/// The row of a new rule, which no rule of its group says already.
fn build_rule(
    cache: &Cache,
    caller: &Caller,
    group: &SecurityGroup,
    request: &RuleCreate,
    id: &str,
) -> Result<SecurityGroupRule> {
    if let Some(remote) = &request.remote_group_id {
        visible_group(cache, caller, remote)?;
    }
    if let Some(remote) = &request.remote_address_group_id {
        visible::<AddressGroup>(cache, caller, remote)?;
    }
    let rule = SecurityGroupRule {
        standard: Standard {
            description: request.description.clone(),
            ..new_standard(id.to_owned(), group.standard.project_id.clone(), String::new())
        },
        security_group_id: request.security_group_id.clone(),
        direction: request.direction,
        ip_version: request.ip_version,
        protocol: request.protocol.clone(),
        port_range_min: request.port_range_min,
        port_range_max: request.port_range_max,
        remote_ip_prefix: request.remote_ip_prefix.map(|prefix| prefix.trunc()),
        remote_group_id: request.remote_group_id.clone(),
        remote_address_group_id: request.remote_address_group_id.clone(),
    };
    let others = cache.found_by::<SecurityGroupRule>(&rule.security_group_id);
    match others.iter().find(|other| same(&other.row, &rule)) {
        Some(twin) => Err(Error::conflict(
            "SecurityGroupRuleExists",
            format!("Security group rule already exists. Rule id is {}.", twin.row.standard.id),
        )),
        None => Ok(rule),
    }
}

/// The groups with these ids as an agent enforces them: remote groups resolved to their members' addresses.
pub(crate) fn groups_wanted(cache: &Cache, ids: &BTreeSet<String>) -> Vec<GroupWanted> {
    let rules = cache.list::<SecurityGroupRule>();
    let ports = cache.list::<Port>();
    ids.iter()
        .map(|id| GroupWanted {
            id: id.clone(),
            stateless: cache.get::<SecurityGroup>(id).is_some_and(|group| !group.row.stateful),
            rules: rules
                .iter()
                .filter(|rule| rule.row.security_group_id == *id)
                .flat_map(|rule| resolve(&rule.row, &ports, cache))
                .collect(),
        })
        .collect()
}

fn in_use(id: &str) -> Error {
    Error::conflict("SecurityGroupInUse", format!("Security Group {id} in use."))
}

fn has_ports(cache: &Cache, id: &str) -> bool {
    let ports = cache.found_by::<Port>(id);
    ports.iter().any(|port| port.row.security_groups.iter().any(|group| group == id))
}

/// A port's groups are all stateful or all stateless.
///
/// # Errors
/// `Conflict` otherwise, in Neutron's words.
pub(crate) fn check_kinds(cache: &Cache, groups: &[String]) -> Result<()> {
    let kinds: BTreeSet<bool> = groups
        .iter()
        .filter_map(|id| cache.get::<SecurityGroup>(id))
        .map(|group| group.row.stateful)
        .collect();
    if kinds.len() < 2 {
        return Ok(());
    }
    Err(Error::conflict(
        "SecurityGroupConflict",
        "Error Cannot apply both stateful and stateless security groups on the same port at the same time while \
         attempting the operation.",
    ))
}

/// Adds rules, and a group where one is made with them, to a transaction.
fn add_rules(mut txn: Txn, project_id: &str, rules: &[SecurityGroupRule], groups: i64) -> Txn {
    for rule in rules {
        txn = txn.create(rule);
    }
    let count = i64::try_from(rules.len()).unwrap_or(i64::MAX);
    quota::charge(
        txn,
        project_id,
        &[(Resource::SecurityGroups, groups), (Resource::SecurityGroupRules, count)],
    )
}

fn group_row(id: &str, project_id: &str, name: &str, description: &str) -> SecurityGroup {
    SecurityGroup {
        standard: Standard {
            description: description.to_owned(),
            ..new_standard(id.to_owned(), project_id.to_owned(), name.to_owned())
        },
        stateful: true,
    }
}
