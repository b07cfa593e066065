//! Subnet pools on the wire (Network API v2.0: subnetpools, with onboarding and operations on prefixes).

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::model::network::pool::SubnetPool;
use control::service::subnet_pool::{SubnetPoolCreate, SubnetPoolUpdate};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::resource::{Resource, delete, list, show};
use super::shown::Nothing;
use super::{Created, Number, One, Shown, StandardFields, nullable, read_subnet};
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::answer::Status;
use crate::openapi::{Routes, get, put};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    subnetpool: CreateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    name: String,
    #[serde(default)]
    description: String,
    project_id: Option<String>,
    tenant_id: Option<String>,
    prefixes: Vec<String>,
    min_prefixlen: Option<Number<u8>>,
    max_prefixlen: Option<Number<u8>>,
    default_prefixlen: Option<Number<u8>>,
    default_quota: Option<Number<u64>>,
    address_scope_id: Option<String>,
    is_default: Option<bool>,
    shared: Option<bool>,
    #[serde(default)]
    tags: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateBody {
    subnetpool: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    name: Option<String>,
    description: Option<String>,
    prefixes: Option<Vec<String>>,
    min_prefixlen: Option<Number<u8>>,
    max_prefixlen: Option<Number<u8>>,
    default_prefixlen: Option<Number<u8>>,
    #[serde(default, deserialize_with = "nullable")]
    default_quota: Option<Option<Number<u64>>>,
    #[serde(default, deserialize_with = "nullable")]
    address_scope_id: Option<Option<String>>,
    is_default: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PrefixesBody {
    prefixes: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct OnboardBody {
    network_id: String,
}

/// The routes of subnet pools.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route("/v2.0/subnetpools", get(list::<SubnetPool>).post(create))
        .route("/v2.0/subnetpools/{id}", get(show::<SubnetPool>).put(update).delete(delete::<SubnetPool>))
        .route("/v2.0/subnetpools/{id}/add_prefixes", put(add_prefixes))
        .route("/v2.0/subnetpools/{id}/remove_prefixes", put(remove_prefixes))
        .route("/v2.0/subnetpools/{id}/onboard_network_subnets", put(onboard))
}

fn prefixes(texts: &[String]) -> Result<Vec<IpNet>, Fault> {
    texts.iter().map(|text| read_subnet("prefixes", text)).collect()
}

fn value<T>(number: Option<Number<T>>) -> Option<T> {
    number.map(|number| number.0)
}

/// 0 is no limit, as absence is.
fn quota(number: Option<Number<u64>>) -> Option<u64> {
    value(number).filter(|quota| *quota > 0)
}

impl TryFrom<CreateFields> for SubnetPoolCreate {
    type Error = Fault;

    fn try_from(fields: CreateFields) -> Result<Self, Fault> {
        Ok(Self {
            name: fields.name,
            description: fields.description,
            project_id: fields.project_id.or(fields.tenant_id),
            fields: SubnetPoolUpdate {
                name: None,
                description: None,
                prefixes: Some(prefixes(&fields.prefixes)?),
                min_prefixlen: value(fields.min_prefixlen),
                max_prefixlen: value(fields.max_prefixlen),
                default_prefixlen: value(fields.default_prefixlen),
                default_quota: Some(quota(fields.default_quota)),
                address_scope_id: Some(fields.address_scope_id),
                is_default: fields.is_default,
            },
            shared: fields.shared.unwrap_or(false),
            tags: fields.tags,
        })
    }
}

impl TryFrom<UpdateFields> for SubnetPoolUpdate {
    type Error = Fault;

    fn try_from(fields: UpdateFields) -> Result<Self, Fault> {
        Ok(Self {
            name: fields.name,
            description: fields.description,
            prefixes: fields.prefixes.as_deref().map(prefixes).transpose()?,
            min_prefixlen: value(fields.min_prefixlen),
            max_prefixlen: value(fields.max_prefixlen),
            default_prefixlen: value(fields.default_prefixlen),
            default_quota: fields.default_quota.map(quota),
            address_scope_id: fields.address_scope_id,
            is_default: fields.is_default,
        })
    }
}

/// A subnet pool as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SubnetPool")]
pub(super) struct ShownPool {
    #[serde(flatten)]
    standard: StandardFields,
    name: String,
    prefixes: Vec<String>,
    ip_version: u8,
    min_prefixlen: u8,
    max_prefixlen: u8,
    default_prefixlen: u8,
    default_quota: Option<u64>,
    address_scope_id: Option<String>,
    is_default: bool,
    shared: bool,
    tags: BTreeSet<String>,
}

impl Shown for ShownPool {
    const NAMES: &'static [&'static str; 2] = &["subnetpool", "subnetpools"];
}

/// The prefixes of a pool.
#[derive(Serialize, JsonSchema)]
struct Prefixes {
    prefixes: Vec<String>,
}

impl Prefixes {
    fn of(prefixes: &[IpNet]) -> Self {
        Self { prefixes: prefixes.iter().map(IpNet::to_string).collect() }
    }
}

fn view(state: &AppState, caller: &Caller, pool: &SubnetPool) -> ShownPool {
    ShownPool {
        standard: (&pool.standard).into(),
        name: pool.standard.name.clone(),
        prefixes: pool.prefixes.iter().map(IpNet::to_string).collect(),
        ip_version: pool.ip_version,
        min_prefixlen: pool.min_prefixlen,
        max_prefixlen: pool.max_prefixlen,
        default_prefixlen: pool.default_prefixlen,
        default_quota: pool.default_quota,
        address_scope_id: pool.address_scope_id.clone(),
        is_default: pool.is_default,
        shared: pool.shared || state.control.is_shared_with(caller, &pool.standard.id),
        tags: pool.standard.tags.clone(),
    }
}

impl Resource for SubnetPool {
    type View = ShownPool;

    fn view(&self, state: &AppState, caller: &Caller) -> ShownPool {
        view(state, caller, self)
    }

    async fn delete(control: &Control, caller: &Caller, id: &str) -> Result<(), Error> {
        control.subnet_pool_delete(caller, id).await
    }
}

async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<CreateBody>,
) -> Created<One<ShownPool>> {
    let pool = state.control.subnet_pool_create(&caller, body.subnetpool.try_into()?).await?;
    Ok(Status(Json(One(view(&state, &caller, &pool.row)))))
}

async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownPool>> {
    let pool = state.control.subnet_pool_update(&caller, &id, body.subnetpool.try_into()?).await?;
    Ok(Json(One(view(&state, &caller, &pool.row))))
}

async fn add_prefixes(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<PrefixesBody>,
) -> Answer<Prefixes> {
    let all = state.control.subnet_pool_add_prefixes(&caller, &id, &prefixes(&body.prefixes)?).await?;
    Ok(Json(Prefixes::of(&all)))
}

async fn remove_prefixes(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<PrefixesBody>,
) -> Answer<Prefixes> {
    let left = state.control.subnet_pool_remove_prefixes(&caller, &id, &prefixes(&body.prefixes)?).await?;
    Ok(Json(Prefixes::of(&left)))
}

async fn onboard(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<OnboardBody>,
) -> Answer<Nothing> {
    state.control.subnet_pool_onboard(&caller, &id, &body.network_id).await?;
    Ok(Json(Nothing {}))
}
