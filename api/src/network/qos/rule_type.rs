//! The kinds of QoS rules that hold, and what of each (Network API v2.0: qos/rule-types).

use control::error::Error;
use control::policy::require_admin;
use control::service::qos::DSCP_MARKS;
use schemars::JsonSchema;
use serde::Serialize;

use super::super::{Chosen, Listed, One, Shown, listing, shown};
use super::rule::RATE_MAX;
use crate::context::{Answer, Authenticated, Filters, RequestUrl, Segments};

/// The kinds of rules, by their names; whether guests are held to them.
const RULE_TYPES: [(&str, bool); 5] = [
    ("bandwidth_limit", true),
    ("dscp_marking", true),
    ("minimum_bandwidth", false),
    ("minimum_packet_rate", false),
    ("packet_rate_limit", true),
];
/// Asks for all kinds that there are, whether they hold or not.
const ALL_RULES: &str = "all_rules";
/// Who holds them.
const DRIVER: &str = "wisp";

/// A kind of rules as it is shown.
#[derive(Serialize, JsonSchema)]
pub(super) struct RuleType {
    #[serde(rename = "type")]
    kind: &'static str,
    /// Who holds it, with what; where one kind is shown.
    #[serde(skip_serializing_if = "Option::is_none")]
    drivers: Option<Vec<Driver>>,
}

impl Shown for RuleType {
    const NAMES: &'static [&'static str; 2] = &["rule_type", "rule_types"];
    const ID: &'static str = "type";
}

/// Who holds a kind of rules.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RuleDriver")]
struct Driver {
    name: &'static str,
    supported_parameters: Vec<Parameter>,
}

/// What of a kind may be said, with the values.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RuleParameter")]
struct Parameter {
    parameter_name: &'static str,
    parameter_type: &'static str,
    parameter_values: Values,
}

/// The values of a parameter.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
#[schemars(rename = "RuleParameterValues")]
enum Values {
    Range { start: u32, end: u32 },
    Words(Vec<&'static str>),
    Numbers(Vec<u8>),
}

pub(super) async fn list(_: Authenticated, filters: Filters, url: RequestUrl) -> Answer<Listed<RuleType>> {
    let all = filters.get(ALL_RULES) != Some("") && filters.flag(ALL_RULES)? == Some(true);
    let named = RULE_TYPES.into_iter().filter(|(_, held)| all || *held);
    listing(named.map(|(kind, _)| RuleType { kind, drivers: None }), &filters, &url)
}

pub(super) async fn show(
    Authenticated(caller): Authenticated,
    Segments(name): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<RuleType>>> {
    require_admin(&caller, "get_rule_type")?;
    let known = RULE_TYPES.into_iter().find(|(known, _)| *known == name);
    let (kind, held) = known.ok_or_else(|| Error::not_found("Qos rule type", &name))?;
    let driver = || Driver { name: DRIVER, supported_parameters: parameters(kind) };
    let drivers = held.then(driver).into_iter().collect();
    Ok(shown(&RuleType { kind, drivers: Some(drivers) }, &filters))
}

fn parameters(kind: &str) -> Vec<Parameter> {
    let range = |parameter_name| {
        let parameter_values = Values::Range { start: 0, end: RATE_MAX };
        Parameter { parameter_name, parameter_type: "range", parameter_values }
    };
    let choices = |parameter_name, parameter_values| Parameter {
        parameter_name,
        parameter_type: "choices",
        parameter_values,
    };
    let direction = choices("direction", Values::Words(vec!["ingress", "egress"]));
    match kind {
        "bandwidth_limit" => vec![range("max_kbps"), range("max_burst_kbps"), direction],
        "packet_rate_limit" => vec![range("max_kpps"), range("max_burst_kpps"), direction],
        _ => vec![choices("dscp_mark", Values::Numbers(DSCP_MARKS.to_vec()))],
    }
}
