//! Security groups and their rules: what may reach a port and what it may reach. A group lists what is allowed; all
//! else is dropped.

use std::collections::BTreeSet;
use std::sync::Arc;

use ipnet::IpNet;
use net::spec::{Direction, Remote, Rule};

use super::network::{check_text, new_standard, owner_project, touch};
use crate::Control;
use crate::agent::protocol::GroupWanted;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::{Port, SecurityGroup, SecurityGroupRule, Standard};
use crate::model::random_uuid;
use crate::service::quota::{self, Resource};
use crate::store::{Cache, Stored, Txn};

/// The name of the group that every project has.
pub const DEFAULT_NAME: &str = "default";
/// In [`net::spec::Rule::ports`] of an ICMP rule: any code.
pub const ICMP_CODE_ANY: u16 = u16::MAX;

/// What a rule is made from; `api` has read names and numbers, not judged them.
#[derive(Debug, Clone)]
pub struct RuleCreate {
    /// The group.
    pub security_group_id: String,
    /// Seen from the guest.
    pub direction: Direction,
    /// 4 or 6.
    pub ip_version: u8,
    /// A name or a number.
    pub protocol: Option<String>,
    /// First port, or ICMP type.
    pub port_range_min: Option<u16>,
    /// Last port, or ICMP code.
    pub port_range_max: Option<u16>,
    /// The other side by prefix.
    pub remote_ip_prefix: Option<IpNet>,
    /// The other side by group.
    pub remote_group_id: Option<String>,
    /// Free text.
    pub description: String,
}

impl Control {
    /// Makes a group with the two rules that let everything out.
    pub async fn security_group_create(
        &self,
        caller: &Caller,
        project_id: Option<&str>,
        name: &str,
        description: &str,
        stateful: bool,
    ) -> Result<Arc<Stored<SecurityGroup>>> {
        let project_id = owner_project(caller, project_id, "create_security_group")?;
        self.ensure_default_group(&project_id).await?;
        check_text("name", name)?;
        check_text("description", description)?;
        if name == DEFAULT_NAME {
            return Err(Error::conflict(
                "SecurityGroupDefaultAlreadyExists",
                "Default security group already exists.",
            ));
        }
        if !stateful {
            return Err(Error::NotImplemented("a stateless security group"));
        }
        let id = random_uuid();
        self.db
            .transact(|_| {
                let group = group_row(&id, &project_id, name, description);
                let txn = Txn::new().create(&group);
                Ok(add_rules(txn, &project_id, &egress_rules(&id, &project_id), 1))
            })
            .await?;
        self.db.cache().get::<SecurityGroup>(&id).ok_or_else(|| Error::not_found("Security group", id))
    }

    /// All groups of the projects the caller may see.
    pub async fn security_group_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<SecurityGroup>>>> {
        if let Some(project_id) = caller.project_id() {
            self.ensure_default_group(project_id).await?;
        }
        self.db.caught_up().await?;
        let mut groups = self.db.cache().list::<SecurityGroup>();
        groups.retain(|group| caller.may_read(&group.row.standard.project_id));
        Ok(groups)
    }

    /// One group the caller may see.
    pub async fn security_group_get(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<SecurityGroup>>> {
        self.db.caught_up().await?;
        visible_group(self.db.cache(), caller, id)
    }

    /// Changes a group's name or description.
    pub async fn security_group_update(
        &self,
        caller: &Caller,
        id: &str,
        name: Option<&str>,
        description: Option<&str>,
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
                let in_use = || Error::conflict("SecurityGroupInUse", format!("Security Group {id} in use."));
                if cache.list::<Port>().iter().any(|port| port.row.security_groups.iter().any(|g| g == id)) {
                    return Err(in_use());
                }
                let (own, others): (Vec<_>, Vec<_>) = cache
                    .list::<SecurityGroupRule>()
                    .into_iter()
                    .partition(|rule| rule.row.security_group_id == id);
                if others.iter().any(|rule| rule.row.remote_group_id.as_deref() == Some(id)) {
                    return Err(in_use());
                }
                let mut txn = Txn::new().delete(&stored);
                if is_default {
                    txn = txn.release(default_key(&stored.row.standard.project_id));
                }
                for rule in &own {
                    txn = txn.delete(rule);
                }
                let count = i64::try_from(own.len()).unwrap_or(i64::MAX);
                Ok(quota::charge(
                    txn,
                    &stored.row.standard.project_id,
                    &[(Resource::SecurityGroups, -1), (Resource::SecurityGroupRules, -count)],
                ))
            })
            .await
    }

    /// Makes a rule in a group of the caller's.
    ///
    /// # Errors
    /// `Invalid` for ranges and prefixes that cannot be, `Conflict` for a rule that exists.
    pub async fn security_group_rule_create(
        &self,
        caller: &Caller,
        request: RuleCreate,
    ) -> Result<Arc<Stored<SecurityGroupRule>>> {
        self.db.caught_up().await?;
        check_text("description", &request.description)?;
        check_rule(&request)?;
        let id = random_uuid();
        self.db
            .transact(|cache| {
                let group =
                    owned_group(cache, caller, &request.security_group_id, "create_security_group_rule")?;
                if let Some(remote) = &request.remote_group_id {
                    visible_group(cache, caller, remote)?;
                }
                let project_id = group.row.standard.project_id.clone();
                let rule = SecurityGroupRule {
                    standard: Standard {
                        description: request.description.clone(),
                        ..new_standard(id.clone(), project_id.clone(), String::new())
                    },
                    security_group_id: request.security_group_id.clone(),
                    direction: request.direction,
                    ip_version: request.ip_version,
                    protocol: request.protocol.clone(),
                    port_range_min: request.port_range_min,
                    port_range_max: request.port_range_max,
                    remote_ip_prefix: request.remote_ip_prefix.map(|prefix| prefix.trunc()),
                    remote_group_id: request.remote_group_id.clone(),
                };
                if let Some(twin) =
                    cache.list::<SecurityGroupRule>().iter().find(|other| same(&other.row, &rule))
                {
                    return Err(Error::conflict(
                        "SecurityGroupRuleExists",
                        format!("Security group rule already exists. Rule id is {}.", twin.row.standard.id),
                    ));
                }
                // The group's row is written too: its deletion and a new rule exclude each other.
                let mut touched = group.row.clone();
                touch(&mut touched.standard);
                Ok(add_rules(Txn::new().update(&group, &touched), &project_id, &[rule], 0))
            })
            .await?;
        self.db
            .cache()
            .get::<SecurityGroupRule>(&id)
            .ok_or_else(|| Error::not_found("Security group rule", id))
    }

    /// All rules of the projects the caller may see.
    pub async fn security_group_rule_list(
        &self,
        caller: &Caller,
    ) -> Result<Vec<Arc<Stored<SecurityGroupRule>>>> {
        if let Some(project_id) = caller.project_id() {
            self.ensure_default_group(project_id).await?;
        }
        self.db.caught_up().await?;
        let mut rules = self.db.cache().list::<SecurityGroupRule>();
        rules.retain(|rule| caller.may_read(&rule.row.standard.project_id));
        Ok(rules)
    }

    /// The rules of one group, for showing it; the caller has been let see the group.
    pub fn security_group_rules_of(&self, group_id: &str) -> Vec<Arc<Stored<SecurityGroupRule>>> {
        let mut rules = self.db.cache().list::<SecurityGroupRule>();
        rules.retain(|rule| rule.row.security_group_id == group_id);
        rules
    }

    /// One rule the caller may see.
    pub async fn security_group_rule_get(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<Arc<Stored<SecurityGroupRule>>> {
        self.db.caught_up().await?;
        self.db
            .cache()
            .get::<SecurityGroupRule>(id)
            .filter(|rule| caller.may_read(&rule.row.standard.project_id))
            .ok_or_else(|| Error::not_found("Security group rule", id))
    }

    /// Deletes a rule.
    pub async fn security_group_rule_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        let rule = self.security_group_rule_get(caller, id).await?;
        if !caller.may_write(&rule.row.standard.project_id) {
            return Err(Error::Forbidden { action: "delete_security_group_rule" });
        }
        self.db
            .transact(|cache| {
                let rule = cache
                    .get::<SecurityGroupRule>(id)
                    .ok_or_else(|| Error::not_found("Security group rule", id))?;
                Ok(quota::charge(
                    Txn::new().delete(&rule),
                    &rule.row.standard.project_id,
                    &[(Resource::SecurityGroupRules, -1)],
                ))
            })
            .await
    }

    /// Makes a project's default group at its first use: everything out, in only from its own members.
    pub(crate) async fn ensure_default_group(&self, project_id: &str) -> Result<String> {
        self.db.caught_up().await?;
        if let Some(id) = default_group(self.db.cache(), project_id) {
            return Ok(id);
        }
        let id = random_uuid();
        self.db
            .transact(|cache| {
                if default_group(cache, project_id).is_some() {
                    return Ok(Txn::new());
                }
                let group = group_row(&id, project_id, DEFAULT_NAME, "Default security group");
                let mut rules = egress_rules(&id, project_id);
                for ip_version in [4, 6] {
                    let mut rule = open_rule(&id, project_id, Direction::Ingress, ip_version);
                    rule.remote_group_id = Some(id.clone());
                    rules.push(rule);
                }
                let txn = Txn::new().create(&group).unique(default_key(project_id));
                Ok(add_rules(txn, project_id, &rules, 1))
            })
            .await?;
        default_group(self.db.cache(), project_id)
            .ok_or_else(|| Error::not_found("Security group", DEFAULT_NAME))
    }

    /// The ids of groups given by id or by name within a project, in their order.
    pub(crate) async fn resolve_groups(&self, project_id: &str, wished: &[String]) -> Result<Vec<String>> {
        let default = self.ensure_default_group(project_id).await?;
        if wished.is_empty() {
            return Ok(vec![default]);
        }
        let groups: Vec<_> = self
            .db
            .cache()
            .list::<SecurityGroup>()
            .into_iter()
            .filter(|group| group.row.standard.project_id == project_id)
            .collect();
        let mut ids: Vec<String> = Vec::with_capacity(wished.len());
        for name in wished {
            let by_id = groups.iter().find(|group| group.row.standard.id == *name);
            let id = match by_id {
                Some(group) => group.row.standard.id.clone(),
                None => {
                    let mut named = groups.iter().filter(|group| group.row.standard.name == *name);
                    match (named.next(), named.next()) {
                        (Some(group), None) => group.row.standard.id.clone(),
                        (Some(_), Some(_)) => {
                            return Err(Error::conflict(
                                "NoUniqueMatch",
                                format!(
                                    "Multiple security groups found matching '{name}'. Use an ID to be more specific."
                                ),
                            ));
                        }
                        (None, _) => {
                            return Err(Error::invalid(
                                "SecurityGroupNotFound",
                                format!("Security group {name} not found for project {project_id}."),
                            ));
                        }
                    }
                }
            };
            if !ids.contains(&id) {
                ids.push(id);
            }
        }
        Ok(ids)
    }
}

/// A group the caller may see.
pub(crate) fn visible_group(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<SecurityGroup>>> {
    cache
        .get::<SecurityGroup>(id)
        .filter(|group| caller.may_read(&group.row.standard.project_id))
        .ok_or_else(|| Error::not_found("Security group", id))
}

fn owned_group(
    cache: &Cache,
    caller: &Caller,
    id: &str,
    action: &'static str,
) -> Result<Arc<Stored<SecurityGroup>>> {
    let group = visible_group(cache, caller, id)?;
    if caller.may_write(&group.row.standard.project_id) {
        Ok(group)
    } else {
        Err(Error::Forbidden { action })
    }
}

/// The groups with these ids as an agent enforces them: remote groups resolved to their members' addresses.
pub(crate) fn groups_wanted(cache: &Cache, ids: &BTreeSet<String>) -> Vec<GroupWanted> {
    let rules = cache.list::<SecurityGroupRule>();
    let ports = cache.list::<Port>();
    ids.iter()
        .map(|id| GroupWanted {
            id: id.clone(),
            rules: rules
                .iter()
                .filter(|rule| rule.row.security_group_id == *id)
                .filter_map(|rule| resolve(&rule.row, &ports))
                .collect(),
        })
        .collect()
}

/// A rule as the host's filter knows it; none for a protocol that stands in the store but not in our table.
fn resolve(rule: &SecurityGroupRule, ports: &[Arc<Stored<Port>>]) -> Option<Rule> {
    let protocol = match &rule.protocol {
        None => None,
        Some(name) => Some(protocol_number(name, rule.ip_version)?),
    };
    let remote = match (&rule.remote_group_id, rule.remote_ip_prefix) {
        (Some(group), _) => Remote::Members(
            ports
                .iter()
                .filter(|port| port.row.security_groups.contains(group))
                .flat_map(|port| &port.row.fixed_ips)
                .filter(|ip| ip.ip_address.is_ipv4() == (rule.ip_version == 4))
                .map(|ip| IpNet::from(ip.ip_address))
                .collect(),
        ),
        (None, Some(prefix)) if prefix.prefix_len() > 0 => Remote::Prefix(prefix),
        (None, _) => Remote::Any,
    };
    let ports = match (rule.port_range_min, rule.port_range_max) {
        (Some(kind), None) if is_icmp(protocol) => Some((kind, ICMP_CODE_ANY)),
        (Some(min), max) => Some((min, max.unwrap_or(min))),
        (None, _) => None,
    };
    Some(Rule { direction: rule.direction, ip_version: rule.ip_version, protocol, ports, remote })
}

fn is_icmp(protocol: Option<u8>) -> bool {
    matches!(protocol, Some(1 | 58))
}

/// The number of a protocol by name (Neutron's `IP_PROTOCOL_MAP`) or by number.
pub fn protocol_number(name: &str, ip_version: u8) -> Option<u8> {
    Some(match name.to_ascii_lowercase().as_str() {
        "icmp" if ip_version == 6 => 58,
        "icmp" => 1,
        "icmpv6" | "ipv6-icmp" => 58,
        "igmp" => 2,
        "ipip" | "ipv6-encap" => return Some(if name.eq_ignore_ascii_case("ipip") { 4 } else { 41 }),
        "tcp" => 6,
        "egp" => 8,
        "udp" => 17,
        "dccp" => 33,
        "ipv6-route" => 43,
        "ipv6-frag" => 44,
        "rsvp" => 46,
        "gre" => 47,
        "esp" => 50,
        "ah" => 51,
        "ipv6-nonxt" => 59,
        "ipv6-opts" => 60,
        "ospf" => 89,
        "pgm" => 113,
        "vrrp" => 112,
        "sctp" => 132,
        "udplite" => 136,
        number => number.parse().ok()?,
    })
}

fn check_rule(rule: &RuleCreate) -> Result<()> {
    let invalid = |reason, message: String| Err(Error::invalid(reason, message));
    if rule.remote_ip_prefix.is_some() && rule.remote_group_id.is_some() {
        return invalid(
            "SecurityGroupMultipleRemoteEntites",
            "Only one of remote_ip_prefix or remote_group_id may be provided.".into(),
        );
    }
    if let Some(prefix) = rule.remote_ip_prefix
        && prefix.addr().is_ipv4() != (rule.ip_version == 4)
    {
        return invalid(
            "SecurityGroupRuleParameterConflict",
            format!("Conflicting value ethertype IPv{} for CIDR {prefix}.", rule.ip_version),
        );
    }
    let protocol = match &rule.protocol {
        None => None,
        Some(name) => match protocol_number(name, rule.ip_version) {
            Some(number) => Some(number),
            None => {
                return invalid(
                    "SecurityGroupRuleInvalidProtocol",
                    format!("Security group rule protocol {name} not supported."),
                );
            }
        },
    };
    let has_ports = rule.port_range_min.is_some() || rule.port_range_max.is_some();
    match protocol {
        None if has_ports => invalid(
            "SecurityGroupProtocolRequiredWithPorts",
            "Must also specify protocol if port range is given.".into(),
        ),
        Some(1 | 58) => {
            for (field, value) in [("type", rule.port_range_min), ("code", rule.port_range_max)] {
                if value.is_some_and(|value| value > 255) {
                    return invalid(
                        "SecurityGroupInvalidIcmpValue",
                        format!("Invalid value for ICMP {field}: it must be 0 to 255."),
                    );
                }
            }
            if rule.port_range_max.is_some() && rule.port_range_min.is_none() {
                return invalid(
                    "SecurityGroupMissingIcmpType",
                    "ICMP code is provided but ICMP type is missing.".into(),
                );
            }
            Ok(())
        }
        Some(6 | 17 | 33 | 132 | 136) if has_ports => match (rule.port_range_min, rule.port_range_max) {
            (Some(min), Some(max)) if min <= max && (min > 0 || protocol != Some(6)) => Ok(()),
            _ => invalid(
                "SecurityGroupInvalidPortRange",
                "For TCP/UDP protocols, port_range_min must be <= port_range_max, and both must be given."
                    .into(),
            ),
        },
        Some(number) if has_ports => invalid(
            "SecurityGroupInvalidProtocolForPort",
            format!(
                "Invalid protocol {number} for port range, only supported for TCP, UDP, UDPLITE, SCTP and DCCP."
            ),
        ),
        _ => Ok(()),
    }
}

fn same(a: &SecurityGroupRule, b: &SecurityGroupRule) -> bool {
    a.security_group_id == b.security_group_id
        && a.direction == b.direction
        && a.ip_version == b.ip_version
        && a.protocol == b.protocol
        && a.port_range_min == b.port_range_min
        && a.port_range_max == b.port_range_max
        && a.remote_ip_prefix == b.remote_ip_prefix
        && a.remote_group_id == b.remote_group_id
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

fn egress_rules(group_id: &str, project_id: &str) -> Vec<SecurityGroupRule> {
    [4, 6].map(|ip_version| open_rule(group_id, project_id, Direction::Egress, ip_version)).into()
}

fn open_rule(group_id: &str, project_id: &str, direction: Direction, ip_version: u8) -> SecurityGroupRule {
    SecurityGroupRule {
        standard: new_standard(random_uuid(), project_id.to_owned(), String::new()),
        security_group_id: group_id.to_owned(),
        direction,
        ip_version,
        protocol: None,
        port_range_min: None,
        port_range_max: None,
        remote_ip_prefix: None,
        remote_group_id: None,
    }
}

fn default_key(project_id: &str) -> String {
    format!("unique/default-security-group/{project_id}")
}

fn default_group(cache: &Cache, project_id: &str) -> Option<String> {
    cache
        .list::<SecurityGroup>()
        .iter()
        .find(|group| group.row.standard.project_id == project_id && group.row.standard.name == DEFAULT_NAME)
        .map(|group| group.row.standard.id.clone())
}
