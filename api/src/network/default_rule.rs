//! The rules that new security groups begin with, on the wire (Network API v2.0: default-security-group-rules).

use axum::extract::State;
use control::model::network::address_group::DefaultRule;
use control::service::security_group::RuleCreate;
use control::service::security_group::template::DefaultRuleCreate;
use net::spec::Direction;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bulk::{OneOrMany, Several};
use super::security_group::{RuleFields, ethertype};
use super::{Chosen, Created, Listed, Made, One, Shown, listing, shown};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};
use crate::openapi::{Routes, get};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    direction: Direction,
    ethertype: Option<String>,
    protocol: Option<Value>,
    port_range_min: Option<Value>,
    port_range_max: Option<Value>,
    remote_ip_prefix: Option<String>,
    remote_group_id: Option<String>,
    remote_address_group_id: Option<String>,
    description: Option<String>,
    used_in_default_sg: Option<bool>,
    used_in_non_default_sg: Option<bool>,
    // They are the cloud's.
    #[serde(rename = "project_id")]
    _project_id: Option<String>,
    #[serde(rename = "tenant_id")]
    _tenant_id: Option<String>,
}

impl Several for Fields {
    type View = ShownRule;
}

impl TryFrom<Fields> for DefaultRuleCreate {
    type Error = Fault;

    fn try_from(fields: Fields) -> Result<Self, Fault> {
        let rule = RuleFields {
            security_group_id: String::new(),
            direction: fields.direction,
            ethertype: fields.ethertype,
            protocol: fields.protocol,
            port_range_min: fields.port_range_min,
            port_range_max: fields.port_range_max,
            remote_ip_prefix: fields.remote_ip_prefix,
            remote_group_id: fields.remote_group_id,
            remote_address_group_id: fields.remote_address_group_id,
            description: fields.description,
            _project_id: None,
            _tenant_id: None,
        };
        Ok(Self {
            rule: RuleCreate::try_from(rule)?,
            used_in_default_sg: fields.used_in_default_sg.unwrap_or(false),
            used_in_non_default_sg: fields.used_in_non_default_sg.unwrap_or(true),
        })
    }
}

/// The routes of default rules.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route("/v2.0/default-security-group-rules", get(list).post(create))
        .route("/v2.0/default-security-group-rules/{id}", get(show).delete(delete))
}

/// A default rule as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DefaultRule")]
struct ShownRule {
    id: String,
    description: String,
    #[schemars(with = "String")]
    direction: Direction,
    ethertype: &'static str,
    protocol: Option<String>,
    port_range_min: Option<u16>,
    port_range_max: Option<u16>,
    remote_ip_prefix: Option<String>,
    remote_group_id: Option<String>,
    remote_address_group_id: Option<String>,
    used_in_default_sg: bool,
    used_in_non_default_sg: bool,
}

impl Shown for ShownRule {
    const NAMES: &'static [&'static str; 2] =
        &["default_security_group_rule", "default_security_group_rules"];
}

fn view(rule: &DefaultRule) -> ShownRule {
    ShownRule {
        id: rule.id.clone(),
        description: rule.description.clone(),
        direction: rule.direction,
        ethertype: ethertype(rule.ip_version),
        protocol: rule.protocol.clone(),
        port_range_min: rule.port_range_min,
        port_range_max: rule.port_range_max,
        remote_ip_prefix: rule.remote_ip_prefix.map(|prefix| prefix.to_string()),
        remote_group_id: rule.remote_group_id.clone(),
        remote_address_group_id: rule.remote_address_group_id.clone(),
        used_in_default_sg: rule.used_in_default_sg,
        used_in_non_default_sg: rule.used_in_non_default_sg,
    }
}

async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<OneOrMany<Fields>>,
) -> Created<Made<ShownRule>> {
    let (requests, answered) = body.try_map(DefaultRuleCreate::try_from)?;
    let rules = state.control.default_rule_create_many(&caller, requests).await?;
    answered.with(rules.iter().map(view))
}

async fn list(
    State(state): State<AppState>,
    _: Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownRule>> {
    let rules = state.control.default_rules().await?;
    listing(rules.iter().map(view), &filters, &url)
}

async fn show(
    State(state): State<AppState>,
    _: Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<ShownRule>>> {
    let rule = state.control.default_rule(&id).await?;
    Ok(shown(&view(&rule), &filters))
}

async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.default_rule_delete(&caller, &id).await?;
    Ok(DONE)
}
