//! Security groups and their rules on the wire (Network API v2.0: security-groups, security-group-rules).

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::model::network::{SecurityGroup, SecurityGroupRule};
use control::service::security_group::{GroupCreate, RuleCreate};
use ipnet::IpNet;
use net::spec::Direction;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::bulk::{OneOrMany, Several};
use super::{Chosen, Created, Listed, Made, One, Shown, StandardFields, invalid, listing, shown};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateFields {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    project_id: Option<String>,
    tenant_id: Option<String>,
    stateful: Option<bool>,
    #[serde(default)]
    tags: BTreeSet<String>,
}

impl Several for CreateFields {
    type View = ShownGroup;
}

impl From<CreateFields> for GroupCreate {
    fn from(fields: CreateFields) -> Self {
        Self {
            name: fields.name,
            description: fields.description,
            project_id: fields.project_id.or(fields.tenant_id),
            stateful: fields.stateful.unwrap_or(true),
            tags: fields.tags,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    security_group: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    name: Option<String>,
    description: Option<String>,
    stateful: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RuleFields {
    pub(super) security_group_id: String,
    pub(super) direction: Direction,
    pub(super) ethertype: Option<String>,
    pub(super) protocol: Option<Value>,
    pub(super) port_range_min: Option<Value>,
    pub(super) port_range_max: Option<Value>,
    pub(super) remote_ip_prefix: Option<String>,
    pub(super) remote_group_id: Option<String>,
    pub(super) remote_address_group_id: Option<String>,
    #[serde(default)]
    pub(super) description: Option<String>,
    // A rule belongs to its group's project.
    #[serde(rename = "project_id")]
    pub(super) _project_id: Option<String>,
    #[serde(rename = "tenant_id")]
    pub(super) _tenant_id: Option<String>,
}

/// A port or an ICMP type, as a number or as its text.
fn number(value: Option<Value>) -> Result<Option<u16>, Fault> {
    let (parsed, text) = match &value {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::String(text)) if text.is_empty() => return Ok(None),
        Some(Value::String(text)) => (text.parse().ok(), text.clone()),
        Some(other) => (other.as_u64().and_then(|number| u16::try_from(number).ok()), other.to_string()),
    };
    parsed.map(Some).ok_or_else(|| {
        control::error::Error::invalid(
            "SecurityGroupInvalidPortValue",
            format!("Invalid value for port {text}"),
        )
        .into()
    })
}

impl Several for RuleFields {
    type View = ShownRule;
}

impl TryFrom<RuleFields> for RuleCreate {
    type Error = Fault;

    fn try_from(fields: RuleFields) -> Result<Self, Fault> {
        let ip_version = match fields.ethertype.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None | Some("ipv4") => 4,
            Some("ipv6") => 6,
            Some(other) => {
                return Err(invalid(format!(
                    "Invalid input for ethertype. Reason: '{other}' is not IPv4 or IPv6."
                )));
            }
        };
        let protocol = match fields.protocol {
            None | Some(Value::Null) => None,
            Some(Value::String(name)) if name.eq_ignore_ascii_case("any") || name == "-1" => None,
            Some(Value::String(name)) => Some(name.to_ascii_lowercase()),
            Some(Value::Number(number)) => Some(number.to_string()),
            Some(_) => return Err(invalid("Invalid input for protocol. Reason: it is a name or a number.")),
        };
        let prefix = fields.remote_ip_prefix.map(|text| {
            let net = text.parse::<IpNet>().or_else(|_| text.parse::<std::net::IpAddr>().map(IpNet::from));
            net.map_err(|_| {
                invalid(format!(
                    "Invalid input for remote_ip_prefix. Reason: '{text}' is not a valid IP subnet."
                ))
            })
        });
        Ok(Self {
            security_group_id: fields.security_group_id,
            direction: fields.direction,
            ip_version,
            protocol,
            port_range_min: number(fields.port_range_min)?,
            port_range_max: number(fields.port_range_max)?,
            remote_ip_prefix: prefix.transpose()?,
            remote_group_id: fields.remote_group_id,
            remote_address_group_id: fields.remote_address_group_id,
            description: fields.description.unwrap_or_default(),
        })
    }
}

/// A security group as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SecurityGroup")]
pub(super) struct ShownGroup {
    #[serde(flatten)]
    standard: StandardFields,
    name: String,
    stateful: bool,
    shared: bool,
    security_group_rules: Vec<ShownRule>,
    tags: BTreeSet<String>,
}

impl Shown for ShownGroup {
    const NAMES: &'static [&'static str; 2] = &["security_group", "security_groups"];
}

/// A rule as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SecurityGroupRule")]
pub(super) struct ShownRule {
    #[serde(flatten)]
    standard: StandardFields,
    security_group_id: String,
    #[schemars(with = "String")]
    direction: Direction,
    ethertype: &'static str,
    protocol: Option<String>,
    port_range_min: Option<u16>,
    port_range_max: Option<u16>,
    remote_ip_prefix: Option<String>,
    remote_group_id: Option<String>,
    remote_address_group_id: Option<String>,
    normalized_cidr: Option<String>,
    belongs_to_default_sg: bool,
    tags: BTreeSet<String>,
}

impl Shown for ShownRule {
    const NAMES: &'static [&'static str; 2] = &["security_group_rule", "security_group_rules"];
}

/// What rules call a version of IP.
pub(super) fn ethertype(ip_version: u8) -> &'static str {
    if ip_version == 4 { "IPv4" } else { "IPv6" }
}

fn view(state: &AppState, caller: &Caller, group: &SecurityGroup) -> ShownGroup {
    let rules = state.control.security_group_rules_of(&group.standard.id);
    ShownGroup {
        standard: (&group.standard).into(),
        name: group.standard.name.clone(),
        stateful: group.stateful,
        shared: state.control.is_shared_with(caller, &group.standard.id),
        security_group_rules: rules.iter().map(|rule| rule_view(state, &rule.row)).collect(),
        tags: group.standard.tags.clone(),
    }
}

fn rule_view(state: &AppState, rule: &SecurityGroupRule) -> ShownRule {
    let prefix = rule.remote_ip_prefix.map(|prefix| prefix.to_string());
    ShownRule {
        standard: (&rule.standard).into(),
        security_group_id: rule.security_group_id.clone(),
        direction: rule.direction,
        ethertype: ethertype(rule.ip_version),
        protocol: rule.protocol.clone(),
        port_range_min: rule.port_range_min,
        port_range_max: rule.port_range_max,
        remote_ip_prefix: prefix.clone(),
        remote_group_id: rule.remote_group_id.clone(),
        remote_address_group_id: rule.remote_address_group_id.clone(),
        normalized_cidr: prefix,
        belongs_to_default_sg: state.control.is_default_group(&rule.security_group_id),
        tags: rule.standard.tags.clone(),
    }
}

/// `POST /v2.0/security-groups`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<OneOrMany<CreateFields>>,
) -> Created<Made<ShownGroup>> {
    let (requests, answered) = body.try_map(|fields| Ok::<_, Fault>(GroupCreate::from(fields)))?;
    let groups = state.control.security_group_create_many(&caller, requests).await?;
    answered.with(groups.iter().map(|group| view(&state, &caller, &group.row)))
}

/// `GET /v2.0/security-groups`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownGroup>> {
    let groups = state.control.security_group_list(&caller).await?;
    listing(groups.iter().map(|group| view(&state, &caller, &group.row)), &filters, &url)
}

/// `GET /v2.0/security-groups/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<ShownGroup>>> {
    let group = state.control.security_group_get(&caller, &id).await?;
    Ok(shown(&view(&state, &caller, &group.row), &filters))
}

/// `PUT /v2.0/security-groups/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownGroup>> {
    let fields = body.security_group;
    let group = state
        .control
        .security_group_update(
            &caller,
            &id,
            fields.name.as_deref(),
            fields.description.as_deref(),
            fields.stateful,
        )
        .await?;
    Ok(Json(One(view(&state, &caller, &group.row))))
}

/// `DELETE /v2.0/security-groups/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.security_group_delete(&caller, &id).await?;
    Ok(DONE)
}

/// `POST /v2.0/security-group-rules`.
pub(super) async fn rule_create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<OneOrMany<RuleFields>>,
) -> Created<Made<ShownRule>> {
    let (requests, answered) = body.try_map(RuleCreate::try_from)?;
    let rules = state.control.security_group_rule_create_many(&caller, requests).await?;
    answered.with(rules.iter().map(|rule| rule_view(&state, &rule.row)))
}

/// `GET /v2.0/security-group-rules`.
pub(super) async fn rule_list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownRule>> {
    let rules = state.control.security_group_rule_list(&caller).await?;
    listing(rules.iter().map(|rule| rule_view(&state, &rule.row)), &filters, &url)
}

/// `GET /v2.0/security-group-rules/{id}`.
pub(super) async fn rule_show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<ShownRule>>> {
    let rule = state.control.security_group_rule_get(&caller, &id).await?;
    Ok(shown(&rule_view(&state, &rule.row), &filters))
}

/// `DELETE /v2.0/security-group-rules/{id}`.
pub(super) async fn rule_delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.security_group_rule_delete(&caller, &id).await?;
    Ok(DONE)
}
