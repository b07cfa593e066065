//! The kinds of QoS rules that hold, and what of each (Network API v2.0: qos/rule-types).

use axum::Json;
use control::error::Error;
use control::policy::require_admin;
use control::service::qos::DSCP_MARKS;
use serde_json::{Value, json};

use super::super::listing::{listing, shown};
use super::rule::RATE_MAX;
use crate::context::{Authenticated, Filters, RequestUrl, Segments};
use crate::error::Fault;

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

pub(super) async fn list(_: Authenticated, filters: Filters, url: RequestUrl) -> Result<Json<Value>, Fault> {
    let all = filters.get(ALL_RULES).is_some_and(|text| text.eq_ignore_ascii_case("true"));
    let named = RULE_TYPES.iter().filter(|(_, held)| all || *held);
    let rows = named.map(|(name, _)| json!({"id": name, "type": name}));
    let Json(mut body) = listing("rule_types", rows.collect(), &filters, &url)?;
    for row in body["rule_types"].as_array_mut().into_iter().flatten() {
        if let Some(row) = row.as_object_mut() {
            row.remove("id");
        }
    }
    Ok(Json(body))
}

pub(super) async fn show(
    Authenticated(caller): Authenticated,
    Segments(name): Segments<String>,
    filters: Filters,
) -> Result<Json<Value>, Fault> {
    require_admin(&caller, "get_rule_type")?;
    let known = RULE_TYPES.iter().find(|(known, _)| *known == name);
    let (name, held) = known.ok_or_else(|| Error::not_found("Qos rule type", &name))?;
    let drivers = match held {
        true => json!([{"name": DRIVER, "supported_parameters": parameters(name)}]),
        false => json!([]),
    };
    Ok(shown("rule_type", json!({"type": name, "drivers": drivers}), &filters))
}

/// What of a kind may be said, with the values.
fn parameters(name: &str) -> Value {
    let range = |name: &str| {
        json!({
            "parameter_name": name, "parameter_type": "range", "parameter_values": {"start": 0, "end": RATE_MAX},
        })
    };
    let direction = json!({
        "parameter_name": "direction", "parameter_type": "choices", "parameter_values": ["ingress", "egress"],
    });
    match name {
        "bandwidth_limit" => json!([range("max_kbps"), range("max_burst_kbps"), direction]),
        "packet_rate_limit" => json!([range("max_kpps"), range("max_burst_kpps"), direction]),
        _ => json!([{
            "parameter_name": "dscp_mark", "parameter_type": "choices", "parameter_values": DSCP_MARKS,
        }]),
    }
}
