//! Images as Nova shows them, until clients ask the image service itself (Compute API: images; until microversion 2.35,
//! and their properties until 2.38).

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::caller::Caller;
use control::error::Error;
use control::model::image::{Image, ImageStatus};
use control::service::image::ImageChange;
use control::store::Stored;
use serde_json::{Value, json};

use super::metadata::{MetaBody, MetadataBody};
use super::server::time;
use super::{links, seconds, until};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::image::is_listed;
use crate::microversion::Microversion;
use crate::page::{Direction, Page, Slice, SortValue};

/// The first microversion without images.
const UNTIL: u16 = 36;
/// The first one without their properties.
const METADATA_UNTIL: u16 = 39;

/// `GET /images`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    until(version, UNTIL)?;
    let slice = found(&state, &caller, &filters).await?;
    let brief = |image: Arc<Stored<Image>>| {
        let image = &image.row;
        json!({"id": image.id, "name": image.name, "links": image_links(&state, &image.id)})
    };
    Ok(Json(slice.nova("images", &url, brief)))
}

/// `GET /images/detail`.
pub(super) async fn detail(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    until(version, UNTIL)?;
    let slice = found(&state, &caller, &filters).await?;
    Ok(Json(slice.nova("images", &url, |image| full(&state, &image.row))))
}

/// `GET /images/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    until(version, UNTIL)?;
    let image = state.control.image_get(&caller, &id).await?;
    Ok(Json(json!({"image": full(&state, &image.row)})))
}

/// `DELETE /images/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Result<StatusCode, Fault> {
    until(version, UNTIL)?;
    state.control.image_delete(&caller, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// `GET /images/{id}/metadata`.
pub(super) async fn metadata(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    until(version, METADATA_UNTIL)?;
    let image = state.control.image_get(&caller, &id).await?;
    Ok(Json(json!({"metadata": image.row.properties})))
}

/// `POST /images/{id}/metadata`: the others stay.
pub(super) async fn metadata_add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<MetadataBody>,
) -> Answer<Value> {
    until(version, METADATA_UNTIL)?;
    let image = changed(&state, &caller, &id, body.metadata, false).await?;
    Ok(Json(json!({"metadata": image.row.properties})))
}

/// `PUT /images/{id}/metadata`: the others go.
pub(super) async fn metadata_replace(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<MetadataBody>,
) -> Answer<Value> {
    until(version, METADATA_UNTIL)?;
    let image = changed(&state, &caller, &id, body.metadata, true).await?;
    Ok(Json(json!({"metadata": image.row.properties})))
}

/// `GET /images/{id}/metadata/{key}`.
pub(super) async fn metadata_show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, key)): Segments<(String, String)>,
) -> Answer<Value> {
    until(version, METADATA_UNTIL)?;
    let image = state.control.image_get(&caller, &id).await?;
    let value = image.row.properties.get(&key).ok_or_else(|| Error::not_found("Metadata item", &key))?;
    Ok(Json(json!({"meta": {key: value}})))
}

/// `PUT /images/{id}/metadata/{key}`.
pub(super) async fn metadata_set(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, key)): Segments<(String, String)>,
    Body(body): Body<MetaBody>,
) -> Answer<Value> {
    until(version, METADATA_UNTIL)?;
    if body.meta.len() != 1 || !body.meta.contains_key(&key) {
        return Err(Fault::malformed("Request body and URI mismatch"));
    }
    changed(&state, &caller, &id, body.meta.clone(), false).await?;
    Ok(Json(json!({"meta": body.meta})))
}

/// `DELETE /images/{id}/metadata/{key}`.
pub(super) async fn metadata_unset(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, key)): Segments<(String, String)>,
) -> Result<StatusCode, Fault> {
    until(version, METADATA_UNTIL)?;
    let image = state.control.image_get(&caller, &id).await?;
    if !image.row.properties.contains_key(&key) {
        return Err(Error::not_found("Metadata item", &key).into());
    }
    state.control.image_update(&caller, &id, vec![ImageChange::RemoveProperty(key)]).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn changed(
    state: &AppState,
    caller: &Caller,
    id: &str,
    set: BTreeMap<String, String>,
    alone: bool,
) -> Result<Arc<Stored<Image>>, Fault> {
    let image = state.control.image_get(caller, id).await?;
    let gone = image.row.properties.keys().filter(|name| alone && !set.contains_key(*name));
    let gone: Vec<_> = gone.map(|name| ImageChange::RemoveProperty(name.clone())).collect();
    let set = set.into_iter().map(|(name, value)| ImageChange::AddProperty(name, value));
    Ok(state.control.image_update(caller, id, gone.into_iter().chain(set).collect()).await?)
}

async fn found(
    state: &AppState,
    caller: &Caller,
    filters: &Filters,
) -> Result<Slice<Arc<Stored<Image>>>, Fault> {
    let page = Page::of(filters, &[("created_at", Direction::Descending)])?;
    let least = |key: &str| match filters.get(key) {
        Some(text) => {
            text.parse::<u32>().map_err(|_| Fault::malformed(format!("Invalid {key} filter [{text}]")))
        }
        None => Ok(0),
    };
    let (memory, disk) = (least("minRam")?, least("minDisk")?);
    let since = time(filters, "changes-since")?;
    // A server is named by its id, or by where it is.
    let server = filters.get("server").and_then(|server| server.rsplit('/').next());
    let mut rows = state.control.image_list(caller).await?;
    rows.retain(|stored| {
        let image = &stored.row;
        let has = |name: &str, wanted: Option<&str>| {
            wanted.is_none_or(|wanted| image.properties.get(name).is_some_and(|value| value == wanted))
        };
        !image.hidden
            && is_listed(state, caller, &Filters::default(), image)
            && filters.get("name").is_none_or(|name| image.name.as_deref() == Some(name))
            && filters.get("status").is_none_or(|wanted| wanted.eq_ignore_ascii_case(status(image.status).0))
            && has("instance_uuid", server)
            && filters.get("type").is_none_or(|kind| {
                image.properties.get("image_type").map_or(kind == "base", |own| own == kind)
            })
            && image.min_ram_mib >= memory
            && image.min_disk_gib >= disk
            && since.is_none_or(|since| image.updated_at >= since)
    });
    page.cut(
        rows,
        |stored| &stored.row.id,
        |stored, key| {
            let image = &stored.row;
            Some(match key {
                "created_at" => image.created_at.into(),
                "updated_at" => image.updated_at.into(),
                "id" => image.id.as_str().into(),
                "name" => image.name.as_deref().map_or(SortValue::Absent, SortValue::from),
                _ => return None,
            })
        },
    )
}

/// The state in Nova's words, and how far it is in percent (`nova.api.openstack.compute.views.images`).
fn status(status: ImageStatus) -> (&'static str, u8) {
    match status {
        ImageStatus::Active => ("ACTIVE", 100),
        ImageStatus::Queued => ("SAVING", 25),
        ImageStatus::Saving => ("SAVING", 50),
        ImageStatus::Uploading | ImageStatus::Importing | ImageStatus::Deactivated => ("UNKNOWN", 0),
    }
}

fn full(state: &AppState, image: &Image) -> Value {
    let (status, progress) = status(image.status);
    let mut shown = json!({
        "OS-EXT-IMG-SIZE:size": image.size_bytes.unwrap_or(0),
        "created": seconds(image.created_at),
        "id": image.id,
        "links": image_links(state, &image.id),
        "metadata": image.properties,
        "minDisk": image.min_disk_gib,
        "minRam": image.min_ram_mib,
        "name": image.name,
        "progress": progress,
        "status": status,
        "updated": seconds(image.updated_at),
    });
    if let Some(server) = image.properties.get("instance_uuid") {
        shown["server"] = json!({"id": server, "links": links(state, "servers", server)});
    }
    if let Some(auto) = image.properties.get("auto_disk_config") {
        shown["OS-DCF:diskConfig"] = json!(if auto.eq_ignore_ascii_case("true") { "AUTO" } else { "MANUAL" });
    }
    shown
}

/// The usual links, and where the image service has it.
fn image_links(state: &AppState, id: &str) -> Value {
    let mut all = links(state, "images", id);
    let alternate = json!({
        "rel": "alternate",
        "type": "application/vnd.openstack.image",
        "href": format!("{}/image/images/{id}", state.public_url()),
    });
    if let Some(all) = all.as_array_mut() {
        all.push(alternate);
    }
    all
}
