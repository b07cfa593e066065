//! QoS policies and their rules on the wire (Network API v2.0: qos/policies, their rules of five kinds, by alias too).

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::model::network::qos::{QosPolicy, QosRule};
use control::service::qos::{QosPolicyCreate, QosPolicyUpdate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use self::rule::{
    BandwidthLimit, DscpMarking, MinimumBandwidth, MinimumPacketRate, PacketRateLimit, RuleView, RuleWire,
};
use super::bulk::{OneOrMany, Several};
use super::resource::{Resource, delete, list, show};
use super::{Chosen, Created, Listed, One, Shown, StandardFields, listing, shown, tag};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done, Status};
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
    type View = ShownPolicy;
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
    let [_, many] = *T::View::NAMES;
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

/// A policy as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "QosPolicy")]
pub(super) struct ShownPolicy {
    #[serde(flatten)]
    standard: StandardFields,
    name: String,
    shared: bool,
    is_default: bool,
    rules: Vec<RuleOfPolicy>,
    tags: BTreeSet<String>,
}

/// A rule inside of its policy.
#[derive(Serialize, JsonSchema)]
struct RuleOfPolicy {
    #[serde(flatten)]
    rule: RuleView,
    #[serde(rename = "type")]
    kind: &'static str,
    qos_policy_id: String,
}

impl Shown for ShownPolicy {
    const NAMES: &'static [&'static str; 2] = &["policy", "policies"];
}

fn view(state: &AppState, caller: &Caller, policy: &QosPolicy) -> ShownPolicy {
    let rules = policy.rules.iter().map(|rule| RuleOfPolicy {
        rule: rule::view(rule),
        kind: control::service::qos::type_name(&rule.kind),
        qos_policy_id: policy.standard.id.clone(),
    });
    ShownPolicy {
        standard: (&policy.standard).into(),
        name: policy.standard.name.clone(),
        shared: policy.shared || state.control.is_shared_with(caller, &policy.standard.id),
        is_default: policy.is_default,
        rules: rules.collect(),
        tags: policy.standard.tags.clone(),
    }
}

impl Resource for QosPolicy {
    type View = ShownPolicy;

    fn view(&self, state: &AppState, caller: &Caller) -> ShownPolicy {
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
) -> Created<One<ShownPolicy>> {
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
    Ok(Status(Json(One(view(&state, &caller, &policy.row)))))
}

async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownPolicy>> {
    let UpdateFields { name, description, shared, is_default } = body.policy;
    let update = QosPolicyUpdate { name, description, shared, is_default };
    let policy = state.control.qos_policy_update(&caller, &id, update).await?;
    Ok(Json(One(view(&state, &caller, &policy.row))))
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
) -> Answer<Listed<T::View>> {
    let policy = state.control.network_resource::<QosPolicy>(&caller, &policy_id).await?;
    let rules = policy.row.rules.iter().filter(|rule| T::is_of(&rule.kind));
    listing(rules.map(|rule| T::View::from(rule::view(rule))), &filters, &url)
}

async fn rule_create<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(policy_id): Segments<String>,
    Body(body): Body<OneOrMany<T>>,
) -> Created<One<T::View>> {
    let kind = body.one()?.over(None)?;
    let rule = state.control.qos_rule_create(&caller, &policy_id, kind).await?;
    Ok(Status(Json(One(rule::view(&rule).into()))))
}

async fn rule_show<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((policy_id, id)): Segments<(String, String)>,
    filters: Filters,
) -> Answer<One<Chosen<T::View>>> {
    let rule = found::<T>(&state, &caller, &policy_id, &id).await?;
    Ok(shown(&T::View::from(rule::view(&rule)), &filters))
}

async fn changed<T: RuleWire>(
    state: &AppState,
    caller: &Caller,
    (policy_id, id): (&str, &str),
    body: OneOrMany<T>,
) -> Answer<One<T::View>> {
    let rule = found::<T>(state, caller, policy_id, id).await?;
    let kind = body.one()?.over(Some(&rule.kind))?;
    let rule = state.control.qos_rule_update(caller, policy_id, id, kind).await?;
    Ok(Json(One(rule::view(&rule).into())))
}

async fn rule_update<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((policy_id, id)): Segments<(String, String)>,
    Body(body): Body<OneOrMany<T>>,
) -> Answer<One<T::View>> {
    changed(&state, &caller, (&policy_id, &id), body).await
}

async fn rule_delete<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((policy_id, id)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    let rule = found::<T>(&state, &caller, &policy_id, &id).await?;
    state.control.qos_rule_delete(&caller, &policy_id, &rule).await?;
    Ok(DONE)
}

async fn alias_show<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<T::View>>> {
    let policy = state.control.qos_policy_of_rule(&caller, &id).await?;
    let rule = found::<T>(&state, &caller, &policy.row.standard.id, &id).await?;
    Ok(shown(&T::View::from(rule::view(&rule)), &filters))
}

async fn alias_update<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<OneOrMany<T>>,
) -> Answer<One<T::View>> {
    let policy = state.control.qos_policy_of_rule(&caller, &id).await?;
    changed(&state, &caller, (&policy.row.standard.id, &id), body).await
}

async fn alias_delete<T: RuleWire>(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    let policy = state.control.qos_policy_of_rule(&caller, &id).await?;
    let rule = found::<T>(&state, &caller, &policy.row.standard.id, &id).await?;
    state.control.qos_rule_delete(&caller, &policy.row.standard.id, &rule).await?;
    Ok(DONE)
}
