//! What the service says of itself: ways to import, stores, usage.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::policy::{Default, Target, own, require, require_admin};
use control::service::quota::Resource;
use schemars::JsonSchema;
use serde::Serialize;

use crate::context::{Answer, AppState, Authenticated};
use crate::error::Fault;

/// A store; what it is of is for administrators.
#[derive(Serialize, JsonSchema)]
struct Store {
    id: String,
    description: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    default: Option<&'static str>,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    weight: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    properties: Option<BTreeMap<String, serde_json::Value>>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Stores {
    stores: Vec<Store>,
}

/// The stores as everybody sees them.
fn shown(state: &AppState) -> Vec<Store> {
    let stores = state.control.image_store_facts().into_iter().enumerate();
    let shown = stores.map(|(index, store)| Store {
        id: store.id.to_string(),
        description: store.description.to_string(),
        default: (index == 0).then_some("true"),
        kind: None,
        weight: None,
        properties: None,
    });
    shown.collect()
}

/// Image API v2: list stores.
pub(super) async fn stores(State(state): State<AppState>, _: Authenticated) -> Answer<Stores> {
    Ok(Json(Stores { stores: shown(&state) }))
}

/// Image API v2: list stores detail.
pub(super) async fn stores_detail(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Stores> {
    require("stores_info_detail", Default::Service, &caller, &Target::of(&own(&caller)))?;
    let mut stores = shown(&state);
    for (shown, store) in stores.iter_mut().zip(state.control.image_store_facts()) {
        shown.kind = Some(store.kind.to_string());
        shown.weight = Some(0);
        shown.properties = Some(store.properties.into_iter().collect());
    }
    Ok(Json(Stores { stores }))
}

/// What a project has of what it may.
#[derive(Serialize, JsonSchema)]
pub(super) struct UsageAnswer {
    usage: Usage,
}

#[derive(Serialize, JsonSchema)]
struct Usage {
    image_size_total: UsageLine,
    image_count_total: UsageLine,
    image_stage_total: UsageLine,
    image_count_uploading: UsageLine,
}

/// A limit of -1 is none.
#[derive(Serialize, JsonSchema)]
struct UsageLine {
    limit: i64,
    usage: u64,
}

/// Image API v2: quota usage.
pub(super) async fn usage(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<UsageAnswer> {
    let project = caller.project_id().ok_or(Error::Forbidden { action: "get_usage" })?;
    let quotas = state.control.quotas_of(project).await?;
    let staged = state.control.image_staging(project).await?;
    let of = |resource: Resource| {
        quotas.get(&resource).map(|quota| (quota.limit_or_minus_one(), quota.used)).unwrap_or((-1, 0))
    };
    let (images_limit, images) = of(Resource::Images);
    let (mib_limit, mib) = of(Resource::ImageMib);
    let line = |limit: i64, usage: u64| UsageLine { limit, usage };
    let usage = Usage {
        image_size_total: line(mib_limit, mib),
        image_count_total: line(images_limit, images),
        // What is staged counts against the same limits.
        image_stage_total: line(mib_limit, staged.mib),
        image_count_uploading: line(images_limit, staged.uploading),
    };
    Ok(Json(UsageAnswer { usage }))
}

/// Image API v2: cache. There is none here, as in a Glance without one.
pub(super) async fn no_cache(Authenticated(caller): Authenticated) -> Fault {
    require_admin(&caller, "cache_image").map_or_else(Into::into, |()| Fault::NoRoute)
}
