//! QoS policies: what is said of the traffic of networks and ports, by rules.

pub(crate) mod held;

use std::sync::Arc;

use net::spec::Direction;

use self::held::{Holder, check_held, check_users};
use super::network::{check_text, new_standard, owner_project, touch};
use super::network_resource::{check_revision, made, network_resources, new_ids, only, visible};
use super::rbac;
use super::tag::check_tags;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::qos::{QosPolicy, QosRule, QosRuleKind};
use crate::model::network::rbac::Access;
use crate::model::network::{Network, Port};
use crate::model::random_uuid;
use crate::model::router::{FloatingIp, Router};
use crate::policy::{self, Target, require, require_admin};
use crate::store::{Cache, Stored, Txn};

/// The code points that traffic can be marked with (Neutron's `VALID_DSCP_MARKS`).
pub const DSCP_MARKS: [u8; 21] =
    [0, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30, 32, 34, 36, 38, 40, 46, 48, 56];

/// What a policy is made from.
#[derive(Debug, Clone, Default)]
pub struct QosPolicyCreate {
    /// Name.
    pub name: String,
    /// Free text.
    pub description: String,
    /// The owner, if it is for another project.
    pub project_id: Option<String>,
    /// Everyone may use it.
    pub shared: bool,
    /// New networks of its project have it.
    pub is_default: bool,
    /// Tags.
    pub tags: std::collections::BTreeSet<String>,
}

/// What of a policy shall change; absent fields stay.
#[derive(Debug, Clone, Default)]
pub struct QosPolicyUpdate {
    /// Name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Everyone may use it.
    pub shared: Option<bool>,
    /// New networks of its project have it.
    pub is_default: Option<bool>,
}

network_resources! {
    QosPolicy: "Qos policy", "get_policy", |row, cache, caller| {
        row.shared
            || caller.may_read(&row.standard.project_id)
            || rbac::is_known(cache, caller, &row.standard.id)
    };
}

super::tag::taggable! {
    QosPolicy: "policy";
}

impl Control {
    /// Makes a policy without rules.
    ///
    /// # Errors
    /// `Forbidden` for members, and for sharing with all unless an administrator does; `Conflict` (`QoSPolicyDefaultAlreadyExists`).
    pub async fn qos_policy_create(
        &self,
        caller: &Caller,
        request: QosPolicyCreate,
    ) -> Result<Arc<Stored<QosPolicy>>> {
        let project_id = owner_project(caller, request.project_id.as_deref(), "create_policy")?;
        require_manager(caller, &project_id, "create_policy")?;
        if request.shared {
            require_admin(caller, "create_policy:shared")?;
        }
        check_text("name", &request.name)?;
        check_text("description", &request.description)?;
        check_tags(&request.tags)?;
        let ids = new_ids(1);
        self.db
            .transact(|cache| {
                let mut standard = new_standard(ids[0].clone(), project_id.clone(), request.name.clone());
                standard.description.clone_from(&request.description);
                standard.tags.clone_from(&request.tags);
                let (shared, is_default) = (request.shared, request.is_default);
                let policy = QosPolicy { standard, shared, is_default, rules: Vec::new() };
                let txn = turn_default(cache, Txn::new(), &policy, false)?;
                let access = Access::AccessAsShared;
                rbac::imply::<QosPolicy>(cache, txn.create(&policy), &policy.standard, access, shared)
            })
            .await?;
        only(made(self.db.cache(), &ids)?)
    }

    /// Changes a policy.
    ///
    /// # Errors
    /// As [`Control::qos_policy_create`]; `Conflict` (`RbacPolicyInUse`) for no longer sharing what is used.
    pub async fn qos_policy_update(
        &self,
        caller: &Caller,
        id: &str,
        update: QosPolicyUpdate,
    ) -> Result<Arc<Stored<QosPolicy>>> {
        if update.shared.is_some() {
            require_admin(caller, "update_policy:shared")?;
        }
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = managed(cache, caller, id, "update_policy")?;
                let mut policy = stored.row.clone();
                if let Some(name) = &update.name {
                    check_text("name", name)?;
                    policy.standard.name.clone_from(name);
                }
                if let Some(description) = &update.description {
                    check_text("description", description)?;
                    policy.standard.description.clone_from(description);
                }
                policy.shared = update.shared.unwrap_or(policy.shared);
                policy.is_default = update.is_default.unwrap_or(policy.is_default);
                touch(&mut policy.standard);
                let txn =
                    turn_default(cache, Txn::new().update(&stored, &policy), &policy, stored.row.is_default)?;
                let access = Access::AccessAsShared;
                rbac::imply::<QosPolicy>(cache, txn, &policy.standard, access, policy.shared)
            })
            .await?;
        self.network_resource(caller, id).await
    }

    /// Deletes a policy with its rules.
    ///
    /// # Errors
    /// `Conflict` (`QosPolicyInUse`) while a network, a port, a floating IP or a router has it.
    pub async fn qos_policy_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = managed(cache, caller, id, "delete_policy")?;
                let has = |policy: &Option<String>| policy.as_deref() == Some(id);
                let network = cache.find::<Network>(|network| has(&network.qos_policy_id));
                let port = cache.find::<Port>(|port| has(&port.qos_policy_id));
                let floating = cache.find::<FloatingIp>(|floating| has(&floating.qos_policy_id));
                let router = cache.find::<Router>(|router| {
                    router.gateway.as_ref().is_some_and(|gateway| has(&gateway.qos_policy_id))
                });
                let users = [
                    network.map(|network| ("network", network.row.standard.id.clone())),
                    port.map(|port| ("port", port.row.standard.id.clone())),
                    floating.map(|floating| ("floating IP", floating.row.standard.id.clone())),
                    router.map(|router| ("router", router.row.standard.id.clone())),
                ];
                if let Some((kind, user)) = users.into_iter().flatten().next() {
                    let message = format!("QoS Policy {id} is used by {kind} {user}.");
                    return Err(Error::conflict("QosPolicyInUse", message));
                }
                let mut txn = Txn::new().delete(&stored);
                if stored.row.is_default {
                    txn = txn.release(default_key(&stored.row.standard.project_id));
                }
                rbac::forget(cache, txn, id)
            })
            .await
    }

    /// Adds a rule to a policy.
    ///
    /// # Errors
    /// `Conflict` (`QoSRulesConflict`, `QoSRuleParameterConflict`) where the policy says another thing of the same, and
    /// (`QosRuleNotSupported`, `QosRuleNotSupportedByNetwork`) where who has the policy cannot be held to it.
    pub async fn qos_rule_create(
        &self,
        caller: &Caller,
        policy_id: &str,
        kind: QosRuleKind,
    ) -> Result<QosRule> {
        let rule = QosRule { id: random_uuid(), kind };
        self.qos_rules_change(caller, policy_id, actions(&rule.kind)[0], |cache, policy| {
            check_rule(policy, &rule)?;
            policy.rules.push(rule.clone());
            check_users(cache, policy)?;
            Ok(rule.clone())
        })
        .await
    }

    /// Changes a rule of a policy to say this, of the same kind.
    ///
    /// # Errors
    /// `NotFound`; as [`Control::qos_rule_create`].
    pub async fn qos_rule_update(
        &self,
        caller: &Caller,
        policy_id: &str,
        rule_id: &str,
        kind: QosRuleKind,
    ) -> Result<QosRule> {
        let rule = QosRule { id: rule_id.to_owned(), kind };
        self.qos_rules_change(caller, policy_id, actions(&rule.kind)[1], |cache, policy| {
            let at = position(policy, &rule)?;
            check_rule(policy, &rule)?;
            policy.rules[at] = rule.clone();
            check_users(cache, policy)?;
            Ok(rule.clone())
        })
        .await
    }

    /// Takes a rule from a policy.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn qos_rule_delete(&self, caller: &Caller, policy_id: &str, rule: &QosRule) -> Result<()> {
        self.qos_rules_change(caller, policy_id, actions(&rule.kind)[2], |_, policy| {
            let at = position(policy, rule)?;
            Ok(policy.rules.remove(at))
        })
        .await
        .map(drop)
    }

    /// The policy that a rule is of.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn qos_policy_of_rule(&self, caller: &Caller, rule_id: &str) -> Result<Arc<Stored<QosPolicy>>> {
        let policies = self.network_resources::<QosPolicy>(caller).await?;
        let mut policies = policies.into_iter();
        policies
            .find(|policy| policy.row.rules.iter().any(|rule| rule.id == rule_id))
            .ok_or_else(|| Error::not_found("Qos rule", rule_id))
    }

    async fn qos_rules_change(
        &self,
        caller: &Caller,
        policy_id: &str,
        action: &'static str,
        change: impl Fn(&Cache, &mut QosPolicy) -> Result<QosRule>,
    ) -> Result<QosRule> {
        self.db.caught_up().await?;
        self.db
            .transact_with(|cache| {
                let stored = managed(cache, caller, policy_id, action)?;
                let mut policy = stored.row.clone();
                let rule = change(cache, &mut policy)?;
                touch(&mut policy.standard);
                Ok((Txn::new().update(&stored, &policy), rule))
            })
            .await
    }

    /// The policy of a network, for showing its ports.
    pub fn qos_policy_of_network(&self, network_id: &str) -> Option<String> {
        self.db.cache().get::<Network>(network_id)?.row.qos_policy_id.clone()
    }
}

/// A policy that a manager of its project changes.
fn managed(cache: &Cache, caller: &Caller, id: &str, action: &'static str) -> Result<Arc<Stored<QosPolicy>>> {
    let stored = visible::<QosPolicy>(cache, caller, id)?;
    require_manager(caller, &stored.row.standard.project_id, action)?;
    check_revision(caller, &stored.row.standard)?;
    Ok(stored)
}

fn require_manager(caller: &Caller, project_id: &str, action: &'static str) -> Result<()> {
    require(action, policy::Default::Manager, caller, &Target::of(&[("project_id", project_id)]))
}

/// The rules of making, changing and deleting a rule of this kind.
fn actions(kind: &QosRuleKind) -> [&'static str; 3] {
    match kind {
        QosRuleKind::BandwidthLimit { .. } => [
            "create_policy_bandwidth_limit_rule",
            "update_policy_bandwidth_limit_rule",
            "delete_policy_bandwidth_limit_rule",
        ],
        QosRuleKind::DscpMarking { .. } => [
            "create_policy_dscp_marking_rule",
            "update_policy_dscp_marking_rule",
            "delete_policy_dscp_marking_rule",
        ],
        QosRuleKind::MinimumBandwidth { .. } => [
            "create_policy_minimum_bandwidth_rule",
            "update_policy_minimum_bandwidth_rule",
            "delete_policy_minimum_bandwidth_rule",
        ],
        QosRuleKind::PacketRateLimit { .. } => [
            "create_policy_packet_rate_limit_rule",
            "update_policy_packet_rate_limit_rule",
            "delete_policy_packet_rate_limit_rule",
        ],
        QosRuleKind::MinimumPacketRate { .. } => [
            "create_policy_minimum_packet_rate_rule",
            "update_policy_minimum_packet_rate_rule",
            "delete_policy_minimum_packet_rate_rule",
        ],
    }
}

/// Adds to a transaction that something has a policy: the policy is there, is one the caller may use, and stays while it
/// is used, and its rules can be held there. Each policy once in a transaction.
pub(crate) fn used<'a>(
    cache: &Cache,
    caller: &Caller,
    txn: Txn,
    policies: impl IntoIterator<Item = (Holder<'a>, &'a String)>,
) -> Result<Txn> {
    let mut seen = std::collections::BTreeSet::new();
    policies.into_iter().try_fold(txn, |txn, (holder, id)| {
        let stored = visible::<QosPolicy>(cache, caller, id)?;
        check_held(&stored.row, holder)?;
        Ok(if seen.insert(id) { txn.update(&stored, &stored.row) } else { txn })
    })
}

/// The policy of new networks of a project.
pub(crate) fn default_of(cache: &Cache, project_id: &str) -> Option<String> {
    let is_default = |policy: &QosPolicy| policy.is_default && policy.standard.project_id == project_id;
    cache.find::<QosPolicy>(is_default).map(|policy| policy.row.standard.id.clone())
}

fn default_key(project_id: &str) -> String {
    format!("unique/default-qos-policy/{project_id}")
}

fn turn_default(cache: &Cache, txn: Txn, policy: &QosPolicy, before: bool) -> Result<Txn> {
    let project_id = &policy.standard.project_id;
    match (before, policy.is_default) {
        (false, true) if default_of(cache, project_id).is_some() => Err(Error::conflict(
            "QoSPolicyDefaultAlreadyExists",
            format!("A default QoS policy exists for project {project_id}."),
        )),
        (false, true) => Ok(txn.unique(default_key(project_id))),
        (true, false) => Ok(txn.release(default_key(project_id))),
        _ => Ok(txn),
    }
}

/// Where a policy has the rule of this id and kind.
fn position(policy: &QosPolicy, rule: &QosRule) -> Result<usize> {
    let is_it = |other: &QosRule| other.id == rule.id && type_name(&other.kind) == type_name(&rule.kind);
    policy.rules.iter().position(is_it).ok_or_else(|| Error::not_found("Qos rule", &rule.id))
}

/// Refuses a rule where the policy has another of its kind and direction, and least rates above greatest ones.
fn check_rule(policy: &QosPolicy, rule: &QosRule) -> Result<()> {
    if let QosRuleKind::DscpMarking { dscp_mark } = rule.kind
        && !DSCP_MARKS.contains(&dscp_mark)
    {
        let message = format!("Invalid input for dscp_mark. Reason: '{dscp_mark}' is not in {DSCP_MARKS:?}.");
        return Err(Error::invalid("HTTPBadRequest", message));
    }
    for other in policy.rules.iter().filter(|other| other.id != rule.id) {
        if clash(&rule.kind, &other.kind) {
            return Err(Error::conflict(
                "QoSRulesConflict",
                format!(
                    "Rule {} conflicts with rule {} which already exists in QoS Policy {}.",
                    type_name(&rule.kind),
                    other.id,
                    policy.standard.id
                ),
            ));
        }
        if crosses(&rule.kind, &other.kind) || crosses(&other.kind, &rule.kind) {
            return Err(Error::conflict(
                "QoSRuleParameterConflict",
                format!(
                    "Unable to add the rule to the policy {} as the existing rule of type {} has a value that does \
                     not go with it.",
                    policy.standard.id,
                    type_name(&other.kind)
                ),
            ));
        }
    }
    Ok(())
}

/// The name of a kind of rule (`bandwidth_limit`).
pub fn type_name(kind: &QosRuleKind) -> &'static str {
    match kind {
        QosRuleKind::BandwidthLimit { .. } => "bandwidth_limit",
        QosRuleKind::DscpMarking { .. } => "dscp_marking",
        QosRuleKind::MinimumBandwidth { .. } => "minimum_bandwidth",
        QosRuleKind::PacketRateLimit { .. } => "packet_rate_limit",
        QosRuleKind::MinimumPacketRate { .. } => "minimum_packet_rate",
    }
}

fn direction(kind: &QosRuleKind) -> Option<Direction> {
    match kind {
        QosRuleKind::BandwidthLimit { direction, .. }
        | QosRuleKind::MinimumBandwidth { direction, .. }
        | QosRuleKind::PacketRateLimit { direction, .. } => Some(*direction),
        QosRuleKind::MinimumPacketRate { direction, .. } => *direction,
        QosRuleKind::DscpMarking { .. } => None,
    }
}

/// Whether two say the same thing of the same traffic.
fn clash(a: &QosRuleKind, b: &QosRuleKind) -> bool {
    let (one, other) = (direction(a), direction(b));
    type_name(a) == type_name(b) && (one == other || one.is_none() || other.is_none())
}

/// Whether at least what `low` says is more than at most what `high` says.
fn crosses(low: &QosRuleKind, high: &QosRuleKind) -> bool {
    let same = direction(low).is_none() || direction(low) == direction(high);
    match (low, high) {
        (
            QosRuleKind::MinimumBandwidth { min_kbps: low, .. },
            QosRuleKind::BandwidthLimit { max_kbps: high, .. },
        )
        | (
            QosRuleKind::MinimumPacketRate { min_kpps: low, .. },
            QosRuleKind::PacketRateLimit { max_kpps: high, .. },
        ) => same && low > high,
        _ => false,
    }
}
