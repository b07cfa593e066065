//! Where an image's data is (Image API v2.17: locations). Services see it; nobody adds to it, since no store here takes
//! data from somebody else's address.

use std::convert::Infallible;

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::policy::{Default, Target, own, require};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;

/// The digests that validation data may be of, each with its length in hexadecimal digits.
const ALGORITHMS: [(&str, usize); 4] = [("md5", 32), ("sha1", 40), ("sha256", 64), ("sha512", 128)];

/// Where data is.
#[derive(Serialize, JsonSchema)]
pub(super) struct Location {
    url: String,
    metadata: LocationMetadata,
}

#[derive(Serialize, JsonSchema)]
struct LocationMetadata {
    store: String,
}

/// Image API v2.17: get image locations.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Vec<Location>> {
    let stored = state.control.image_get(&caller, &id).await?;
    require("fetch_image_location", Default::Service, &caller, &Target::of(&own(&caller)))?;
    let places = stored.row.stores.iter().map(|store| Location {
        url: state.control.image_location(store, &stored.row),
        metadata: LocationMetadata { store: store.clone() },
    });
    Ok(Json(places.collect()))
}

/// Image API v2.17: add image location.
pub(super) async fn add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Value>,
) -> Result<Infallible, Fault> {
    let wrong =
        |why: &str| Fault::malformed(format!("Provided object does not match schema 'location': {why}"));
    let url = body.get("url").and_then(Value::as_str).ok_or_else(|| wrong("'url' is a required property"))?;
    if let Some(validation) = body.get("validation_data").filter(|data| !data.is_null()) {
        let text = |name: &str| validation.get(name).and_then(Value::as_str);
        let (Some(algorithm), Some(value)) = (text("os_hash_algo"), text("os_hash_value")) else {
            return Err(wrong("os_hash_algo and os_hash_value need each other"));
        };
        let digits = ALGORITHMS.iter().find(|(name, _)| *name == algorithm).map(|(_, digits)| *digits);
        if digits != Some(value.len()) || !value.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(wrong("os_hash_value is not of the size of its os_hash_algo"));
        }
    }
    let stored = state.control.image_get(&caller, &id).await?;
    if !stored.row.owner.as_deref().is_some_and(|owner| caller.may_write(owner)) {
        return Err(Error::Forbidden { action: "add_image_location" }.into());
    }
    if !stored.row.status.is_queued() {
        let message = "Only images in queued status can be given a location.";
        return Err(Error::conflict("Conflict", message).into());
    }
    let scheme = url.split_once(':').map_or("", |(scheme, _)| scheme);
    Err(Fault::malformed(format!("Unknown scheme '{scheme}' found in URI")))
}
