//! QoS policies and their rules on the wire (Network API v2.0: qos/policies, their rules of five kinds, by alias too).

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::model::network::qos::{QosPolicy, QosRule};
use control::service::qos::{QosPolicyCreate, QosPolicyUpdate};
use serde::Deserialize;
use serde_json::{Value, json};

use self::rule::{
    BandwidthLimit, DscpMarking, MinimumBandwidth, MinimumPacketRate, PacketRateLimit, RuleWire,
};
use super::bulk::{OneOrMany, Several};
use super::resource::{Resource, delete, list, show};
use super::{Created, standard_fields, tag, with_fields};
use crate::context::{AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::network::listing::{listing, shown};
use crate::openapi::{Routes, get};

mod rule;
mod rule_type;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    project_id: Option<String>,
    tenant_id: Option<String>,
    shared: Option<bool>,
    is_default: Option<bool>,
    #[serde(default)]
    tags: BTreeSet<String>,
}

impl Several for CreateFields {
    const NAMES: &'static [&'static str; 2] = &["policy", "policies"];
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateBody {
    policy: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    name: Option<String>,
    description: Option<String>,
    shared: Option<bool>,
    is_default: Option<bool>,
}

/// The routes of policies and rules.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route("/v2.0/qos/policies", get(list::<QosPolicy>).post(create))
        .route("/v2.0/qos/policies/{id}", get(show::<QosPolicy>).put(update).delete(delete::<QosPolicy>))
        .route("/v2.0/qos/rule-types", get(rule_type::list))
        .route("/v2.0/qos/rule-types/{type}", get(rule_type::show))
        .merge(rule_routes::<BandwidthLimit>())
        .merge(rule_routes::<DscpMarking>())
        .merge(rule_routes::<MinimumBandwidth>())
        .merge(rule_routes::<MinimumPacketRate>())
        .merge(rule_routes::<PacketRateLimit>())
        .merge(tag::routes::<QosPolicy>("qos/policies"))
}

fn rule_routes<T: RuleWire>() -> Routes {
    let [_, many] = *T::NAMES;
    let of_policy = format!("/v2.0/qos/policies/{{policy_id}}/{many}");
    Routes::new()
        .route(&of_policy, get(rule_list::<T>).post(rule_create::<T>))
        .route(
            &format!("{of_policy}/{{id}}"),
            get(rule_show::<T>).put(rule_update::<T>).delete(rule_delete::<T>),
        )
        .route(
            &format!("/v2.0/qos/alias_{many}/{{id}}"),
            get(alias_show::<T>).put(alias_update::<T>).delete(alias_delete::<T>),
        )
}

fn view(state: &AppState, caller: &Caller, policy: &QosPolicy) -> Value {
    let rules: Vec<Value> = policy
        .rules
        .iter()
        .map(|rule| {
            let mut row = rule::view(rule);
            row["type"] = json!(control::service::qos::type_name(&rule.kind));
            row["qos_policy_id"] = json!(policy.standard.id);
            row
        })
        .collect();
    with_fields(
        standard_fields(&policy.standard),
        json!({
            "name": policy.standard.name,
            "shared": policy.shared || state.control.is_shared_with(caller, &policy.standard.id),
            "is_default": policy.is_default,
            "rules": rules,
            "tags": policy.standard.tags,
        }),
    )
}

impl Resource for QosPolicy {
    const NAMES: [&'static str; 2] = ["policy", "policies"];

    fn view(&self, state: &AppState, caller: &Caller) -> Value {
        view(state, caller, self)
    }

    async fn delete(control: &Control, caller: &Caller, id: &str) -> Result<(), Error> {
        control.qos_policy_delete(caller, id).await
    }
}

async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<OneOrMany<CreateFields>>,
) -> Created {
    let fields = body.one()?;
    let request = QosPolicyCreate {
        name: fields.name,
        description: fields.description,
        project_id: fields.project_id.or(fields.tenant_id),
        shared: fields.shared.unwrap_or(false),
        is_default: fields.is_default.unwrap_or(false),
        tags: fields.tags,
    };
    let policy = state.control.qos_policy_create(&caller, request).await?;
    Ok((StatusCode::CREATED, Json(json!({"policy": view(&state, &caller, &policy.row)}))))
}

async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Result<Json<Value>, Fault> {
    let UpdateFields { name, description, shared, is_default } = body.policy;
    let update = QosPolicyUpdate { name, description, shared, is_default };
    let policy = state.control.qos_policy_update(&caller, &id, update).await?;
    Ok(Json(json!({"policy": view(&state, &caller, &policy.row)})))
}

/// A rule of a policy, of the kind that the path says.
async fn found<T: RuleWire>(
    state: &AppState,
    caller: &Caller,
    policy_id: &str,
    id: &str,
) -> Result<QosRule, Fault> {
    let policy = state.control.network_resource::<QosPolicy>(caller, policy_id).await?;
    let rule = policy.row.rules.iter().find(|rule| rule.id == id && T::is_of(&rule.kind)).cloned();
    rule.ok_or_else(|| control::error::Error::not_found("Qos rule", id).into())
}

async fn rule_list<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(policy_id): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Result<Json<Value>, Fault> {
    let policy = state.control.network_resource::<QosPolicy>(&caller, &policy_id).await?;
    let rules = policy.row.rules.iter().filter(|rule| T::is_of(&rule.kind)).map(rule::view);
    listing(T::NAMES[1], rules.collect(), &filters, &url)
}

async fn rule_create<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(policy_id): Segments<String>,
    Body(body): Body<OneOrMany<T>>,
) -> Created {
    let kind = body.one()?.over(None)?;
    let rule = state.control.qos_rule_create(&caller, &policy_id, kind).await?;
    Ok((StatusCode::CREATED, Json(json!({ T::NAMES[0]: rule::view(&rule) }))))
}

async fn rule_show<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((policy_id, id)): Segments<(String, String)>,
    filters: Filters,
) -> Result<Json<Value>, Fault> {
    let rule = found::<T>(&state, &caller, &policy_id, &id).await?;
    Ok(shown(T::NAMES[0], rule::view(&rule), &filters))
}

async fn changed<T: RuleWire>(
    state: &AppState,
    caller: &Caller,
    (policy_id, id): (&str, &str),
    body: OneOrMany<T>,
) -> Result<Json<Value>, Fault> {
    let rule = found::<T>(state, caller, policy_id, id).await?;
    let kind = body.one()?.over(Some(&rule.kind))?;
    let rule = state.control.qos_rule_update(caller, policy_id, id, kind).await?;
    Ok(Json(json!({ T::NAMES[0]: rule::view(&rule) })))
}

async fn rule_update<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((policy_id, id)): Segments<(String, String)>,
    Body(body): Body<OneOrMany<T>>,
) -> Result<Json<Value>, Fault> {
    changed(&state, &caller, (&policy_id, &id), body).await
}

async fn rule_delete<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((policy_id, id)): Segments<(String, String)>,
) -> Result<StatusCode, Fault> {
    let rule = found::<T>(&state, &caller, &policy_id, &id).await?;
    state.control.qos_rule_delete(&caller, &policy_id, &rule).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn alias_show<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Result<Json<Value>, Fault> {
    let policy = state.control.qos_policy_of_rule(&caller, &id).await?;
    let rule = found::<T>(&state, &caller, &policy.row.standard.id, &id).await?;
    Ok(shown(T::NAMES[0], rule::view(&rule), &filters))
}

async fn alias_update<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<OneOrMany<T>>,
) -> Result<Json<Value>, Fault> {
    let policy = state.control.qos_policy_of_rule(&caller, &id).await?;
    changed(&state, &caller, (&policy.row.standard.id, &id), body).await
}

async fn alias_delete<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<StatusCode, Fault> {
    let policy = state.control.qos_policy_of_rule(&caller, &id).await?;
    let rule = found::<T>(&state, &caller, &policy.row.standard.id, &id).await?;
    state.control.qos_rule_delete(&caller, &policy.row.standard.id, &rule).await?;
    Ok(StatusCode::NO_CONTENT)
}
