//! What the service says of itself: ways to import, stores, usage.

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::policy::{Default, Target, own, require, require_admin};
use control::service::quota::Resource;
use serde_json::{Map, Value, json};

use crate::context::{Answer, AppState, Authenticated};
use crate::error::Fault;

/// The stores as everybody sees them.
fn shown(state: &AppState) -> Vec<Value> {
    let stores = state.control.image_store_facts();
    let shown = stores.iter().enumerate().map(|(index, store)| {
        let mut shown = json!({"id": store.id, "description": store.description});
        if index == 0 {
            shown["default"] = json!("true");
        }
        shown
    });
    shown.collect()
}

/// Image API v2: list stores.
pub(super) async fn stores(State(state): State<AppState>, _: Authenticated) -> Answer<Value> {
    Ok(Json(json!({"stores": shown(&state)})))
}

/// Image API v2: list stores detail.
pub(super) async fn stores_detail(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Value> {
    require("stores_info_detail", Default::Service, &caller, &Target::of(&own(&caller)))?;
    let mut stores = shown(&state);
    for (shown, store) in stores.iter_mut().zip(state.control.image_store_facts()) {
        shown["type"] = json!(store.kind);
        shown["weight"] = json!(0);
        shown["properties"] = store.properties.into_iter().collect::<Map<String, Value>>().into();
    }
    Ok(Json(json!({"stores": stores})))
}

/// Image API v2: quota usage.
pub(super) async fn usage(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Value> {
    let project = caller.project_id().ok_or(Error::Forbidden { action: "get_usage" })?;
    let quotas = state.control.quotas_of(project).await?;
    let staged = state.control.image_staging(project).await?;
    let of = |resource: Resource| {
        quotas.get(&resource).map(|quota| (quota.limit_or_minus_one(), quota.used)).unwrap_or((-1, 0))
    };
    let (images_limit, images) = of(Resource::Images);
    let (mib_limit, mib) = of(Resource::ImageMib);
    let line = |limit: i64, usage: u64| json!({"limit": limit, "usage": usage});
    Ok(Json(json!({"usage": {
        "image_size_total": line(mib_limit, mib),
        "image_count_total": line(images_limit, images),
        // What is staged counts against the same limits.
        "image_stage_total": line(mib_limit, staged.mib),
        "image_count_uploading": line(images_limit, staged.uploading),
    }})))
}

/// Image API v2: cache. There is none here, as in a Glance without one.
pub(super) async fn no_cache(Authenticated(caller): Authenticated) -> Result<(), Fault> {
    require_admin(&caller, "cache_image")?;
    Err(Fault::NoRoute)
}
