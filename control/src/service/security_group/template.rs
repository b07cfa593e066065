//! The rules that new groups begin with (Network API: default security group rules). Until somebody changes them:
//! everything out, and into default groups what comes from their own members.

use std::sync::Arc;

use net::spec::Direction;

use super::rule::{RuleCreate, check_rule};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::address_group::{AddressGroup, DefaultRule, DefaultRules};
use crate::model::network::{SecurityGroup, SecurityGroupRule, Standard};
use crate::model::random_uuid;
use crate::policy::require_admin;
use crate::service::network::{check_text, new_standard};
use crate::service::network_resource::visible;
use crate::store::{Cache, Stored, Txn};

/// What stands for the new group itself as the other side.
pub const PARENT: &str = "PARENT";
/// The most rules that groups begin with: a group is made with them in one transaction.
pub const DEFAULT_RULES_MAX: usize = 50;
/// The id of the row that holds them all.
const ROW: &str = "default";
/// The ids of those that every cloud begins with.
const FIRST_IDS: [&str; 4] = [
    "00000000-0000-4000-8000-000000000001",
    "00000000-0000-4000-8000-000000000002",
    "00000000-0000-4000-8000-000000000003",
    "00000000-0000-4000-8000-000000000004",
];

/// What a rule is made from.
#[derive(Debug, Clone)]
pub struct DefaultRuleCreate {
    /// What it says; its group is of no account.
    pub rule: RuleCreate,
    /// Default groups begin with it.
    pub used_in_default_sg: bool,
    /// Other groups begin with it.
    pub used_in_non_default_sg: bool,
}

impl Control {
    /// Makes rules that new groups begin with; all or none.
    ///
    /// # Errors
    /// `Forbidden` unless an administrator asks; `Invalid` for what cannot be; `Conflict` for one that exists.
    pub async fn default_rule_create_many(
        &self,
        caller: &Caller,
        requests: Vec<DefaultRuleCreate>,
    ) -> Result<Vec<DefaultRule>> {
        require_admin(caller, "create_default_security_group_rule")?;
        self.db.caught_up().await?;
        for request in &requests {
            check_text("description", &request.rule.description)?;
            check_rule(&request.rule)?;
        }
        self.db
            .transact_with(|cache| {
                let mut rules = all(cache);
                let before = rules.len();
                for request in &requests {
                    let rule = build(cache, caller, request)?;
                    if let Some(at) = rules.iter().position(|other| same(other, &rule)) {
                        return Err(exists(&rules[at], at >= before));
                    }
                    rules.push(rule);
                }
                if rules.len() > DEFAULT_RULES_MAX {
                    return Err(Error::invalid(
                        "InvalidInput",
                        format!("Invalid input for operation: groups begin with at most {DEFAULT_RULES_MAX} rules."),
                    ));
                }
                Ok((write(cache, rules.clone()), rules.split_off(before)))
            })
            .await
    }

    /// The rules that new groups begin with.
    ///
    /// # Errors
    /// What the store says.
    pub async fn default_rules(&self) -> Result<Vec<DefaultRule>> {
        self.db.caught_up().await?;
        Ok(all(self.db.cache()))
    }

    /// One of them.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn default_rule(&self, id: &str) -> Result<DefaultRule> {
        let rules = self.default_rules().await?;
        rules.into_iter().find(|rule| rule.id == id).ok_or_else(|| missing(id))
    }

    /// Deletes one of them; groups that began with it keep what they have.
    ///
    /// # Errors
    /// `Forbidden` unless an administrator asks; `NotFound`.
    pub async fn default_rule_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        require_admin(caller, "delete_default_security_group_rule")?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let mut rules = all(cache);
                let at = rules.iter().position(|rule| rule.id == id).ok_or_else(|| missing(id))?;
                rules.remove(at);
                Ok(write(cache, rules))
            })
            .await
    }
}

fn missing(id: &str) -> Error {
    Error::not_found("Default security group rule", id)
}

/// All rules that groups begin with.
pub(crate) fn all(cache: &Cache) -> Vec<DefaultRule> {
    let stored = cache.get::<DefaultRules>(ROW);
    stored.map_or_else(|| first().into(), |stored| stored.row.rules.clone())
}

/// The rows of the rules that a new group begins with.
pub(crate) fn rules_of(cache: &Cache, group: &SecurityGroup, is_default: bool) -> Vec<SecurityGroupRule> {
    let used =
        |rule: &DefaultRule| if is_default { rule.used_in_default_sg } else { rule.used_in_non_default_sg };
    let rules = all(cache).into_iter().filter(used);
    rules
        .map(|rule| SecurityGroupRule {
            standard: Standard {
                description: rule.description,
                ..new_standard(random_uuid(), group.standard.project_id.clone(), String::new())
            },
            security_group_id: group.standard.id.clone(),
            direction: rule.direction,
            ip_version: rule.ip_version,
            protocol: rule.protocol,
            port_range_min: rule.port_range_min,
            port_range_max: rule.port_range_max,
            remote_ip_prefix: rule.remote_ip_prefix,
            remote_group_id: rule.remote_group_id.map(|remote| match remote.as_str() {
                PARENT => group.standard.id.clone(),
                _ => remote,
            }),
            remote_address_group_id: rule.remote_address_group_id,
        })
        .collect()
}

fn first() -> [DefaultRule; 4] {
    let open = |id: usize, direction, ip_version| DefaultRule {
        id: FIRST_IDS[id].to_owned(),
        description: String::new(),
        direction,
        ip_version,
        protocol: None,
        port_range_min: None,
        port_range_max: None,
        remote_ip_prefix: None,
        remote_group_id: (direction == Direction::Ingress).then(|| PARENT.to_owned()),
        remote_address_group_id: None,
        used_in_default_sg: true,
        used_in_non_default_sg: direction == Direction::Egress,
    };
    [
        open(0, Direction::Egress, 4),
        open(1, Direction::Egress, 6),
        open(2, Direction::Ingress, 4),
        open(3, Direction::Ingress, 6),
    ]
}

fn write(cache: &Cache, rules: Vec<DefaultRule>) -> Txn {
    let stored: Option<Arc<Stored<DefaultRules>>> = cache.get(ROW);
    let row = DefaultRules { id: ROW.to_owned(), rules };
    match stored {
        Some(stored) => Txn::new().update(&stored, &row),
        None => Txn::new().create(&row),
    }
}

fn build(cache: &Cache, caller: &Caller, request: &DefaultRuleCreate) -> Result<DefaultRule> {
    let rule = &request.rule;
    if let Some(remote) = rule.remote_group_id.as_ref().filter(|remote| *remote != PARENT) {
        visible::<SecurityGroup>(cache, caller, remote)?;
    }
    if let Some(remote) = &rule.remote_address_group_id {
        visible::<AddressGroup>(cache, caller, remote)?;
    }
    Ok(DefaultRule {
        id: random_uuid(),
        description: rule.description.clone(),
        direction: rule.direction,
        ip_version: rule.ip_version,
        protocol: rule.protocol.clone(),
        port_range_min: rule.port_range_min,
        port_range_max: rule.port_range_max,
        remote_ip_prefix: rule.remote_ip_prefix.map(|prefix| prefix.trunc()),
        remote_group_id: rule.remote_group_id.clone(),
        remote_address_group_id: rule.remote_address_group_id.clone(),
        used_in_default_sg: request.used_in_default_sg,
        used_in_non_default_sg: request.used_in_non_default_sg,
    })
}

/// Whether two say the same of the same groups, whatever they are called.
fn same(a: &DefaultRule, b: &DefaultRule) -> bool {
    DefaultRule { id: String::new(), description: String::new(), ..a.clone() }
        == DefaultRule { id: String::new(), description: String::new(), ..b.clone() }
}

fn exists(other: &DefaultRule, in_request: bool) -> Error {
    match in_request {
        true => {
            Error::conflict("DuplicateDefaultSgRuleInPost", "Duplicate Default Security Group Rule in POST.")
        }
        false => Error::conflict(
            "DefaultSecurityGroupRuleExists",
            format!("Default Security group rule already exists. Rule id is {}.", other.id),
        ),
    }
}
