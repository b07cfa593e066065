//! Images as Nova shows them, until clients ask the image service itself (Compute API: images; until microversion 2.35,
//! and their properties until 2.38).

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use control::boolean;
use control::caller::Caller;
use control::error::Error;
use control::model::image::{Image, ImageStatus};
use control::service::image::ImageChange;
use control::store::Stored;
use schemars::JsonSchema;
use serde::Serialize;

use super::metadata::{Meta, MetaBody, Metadata, MetadataBody};
use super::server::time;
use super::{Link, links, seconds, until};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::image::is_listed;
use crate::microversion::Microversion;
use crate::openapi::answer::{DONE, Done};
use crate::page::{Direction, NextLink, Page, Slice, SortValue};

/// The first microversion without images.
const UNTIL: u16 = 36;
/// The first one without their properties.
const METADATA_UNTIL: u16 = 39;

/// The short form of a list.
#[derive(Serialize, JsonSchema)]
pub(super) struct ImageBrief {
    id: String,
    name: Option<String>,
    links: [ImageLink; 3],
}

/// An image.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Image")]
pub(super) struct ShownImage {
    id: String,
    name: Option<String>,
    status: &'static str,
    progress: u8,
    #[serde(rename = "OS-EXT-IMG-SIZE:size")]
    size: u64,
    created: String,
    updated: String,
    #[serde(rename = "minDisk")]
    min_disk: u32,
    #[serde(rename = "minRam")]
    min_ram: u32,
    metadata: BTreeMap<String, String>,
    links: [ImageLink; 3],
    #[serde(skip_serializing_if = "Option::is_none")]
    server: Option<ServerOfImage>,
    #[serde(rename = "OS-DCF:diskConfig", skip_serializing_if = "Option::is_none")]
    disk_config: Option<&'static str>,
}

/// The server that an image was made of.
#[derive(Serialize, JsonSchema)]
struct ServerOfImage {
    id: String,
    links: [Link; 2],
}

/// A link; one to another service says what is there.
#[derive(Serialize, JsonSchema)]
pub(super) struct ImageLink {
    rel: &'static str,
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    href: String,
}

/// A list of images, in either form.
#[derive(Serialize, JsonSchema)]
pub(super) struct Images<T> {
    images: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    images_links: Option<NextLink>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneImage {
    image: ShownImage,
}

/// `GET /images`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Images<ImageBrief>> {
    until(version, UNTIL)?;
    let slice = found(&state, &caller, &filters).await?;
    let (images, images_links) = slice.with_links(&url, |image| {
        let image = &image.row;
        let links = image_links(&state, &image.id);
        ImageBrief { id: image.id.clone(), name: image.name.clone(), links }
    });
    Ok(Json(Images { images, images_links }))
}

/// `GET /images/detail`.
pub(super) async fn detail(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Images<ShownImage>> {
    until(version, UNTIL)?;
    let slice = found(&state, &caller, &filters).await?;
    let (images, images_links) = slice.with_links(&url, |image| full(&state, &image.row));
    Ok(Json(Images { images, images_links }))
}

/// `GET /images/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<OneImage> {
    until(version, UNTIL)?;
    let image = state.control.image_get(&caller, &id).await?;
    Ok(Json(OneImage { image: full(&state, &image.row) }))
}

/// `DELETE /images/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    until(version, UNTIL)?;
    state.control.image_delete(&caller, &id).await?;
    Ok(DONE)
}

/// `GET /images/{id}/metadata`.
pub(super) async fn metadata(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Metadata> {
    until(version, METADATA_UNTIL)?;
    let image = state.control.image_get(&caller, &id).await?;
    Ok(Json(Metadata { metadata: image.row.properties.clone() }))
}

/// `POST /images/{id}/metadata`: the others stay.
pub(super) async fn metadata_add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<MetadataBody>,
) -> Answer<Metadata> {
    until(version, METADATA_UNTIL)?;
    let image = changed(&state, &caller, &id, body.metadata, false).await?;
    Ok(Json(Metadata { metadata: image.row.properties.clone() }))
}

/// `PUT /images/{id}/metadata`: the others go.
pub(super) async fn metadata_replace(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<MetadataBody>,
) -> Answer<Metadata> {
    until(version, METADATA_UNTIL)?;
    let image = changed(&state, &caller, &id, body.metadata, true).await?;
    Ok(Json(Metadata { metadata: image.row.properties.clone() }))
}

/// `GET /images/{id}/metadata/{key}`.
pub(super) async fn metadata_show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, key)): Segments<(String, String)>,
) -> Answer<Meta> {
    until(version, METADATA_UNTIL)?;
    let image = state.control.image_get(&caller, &id).await?;
    let value = image.row.properties.get(&key).cloned();
    let value = value.ok_or_else(|| Error::not_found("Metadata item", &key))?;
    Ok(Json(Meta { meta: BTreeMap::from([(key, value)]) }))
}

/// `PUT /images/{id}/metadata/{key}`.
pub(super) async fn metadata_set(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, key)): Segments<(String, String)>,
    Body(body): Body<MetaBody>,
) -> Answer<Meta> {
    until(version, METADATA_UNTIL)?;
    if body.meta.len() != 1 || !body.meta.contains_key(&key) {
        return Err(Fault::malformed("Request body and URI mismatch"));
    }
    changed(&state, &caller, &id, body.meta.clone(), false).await?;
    Ok(Json(Meta { meta: body.meta }))
}

/// `DELETE /images/{id}/metadata/{key}`.
pub(super) async fn metadata_unset(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, key)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    until(version, METADATA_UNTIL)?;
    let image = state.control.image_get(&caller, &id).await?;
    if !image.row.properties.contains_key(&key) {
        return Err(Error::not_found("Metadata item", &key).into());
    }
    state.control.image_update(&caller, &id, vec![ImageChange::RemoveProperty(key)]).await?;
    Ok(DONE)
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

fn full(state: &AppState, image: &Image) -> ShownImage {
    let (status, progress) = status(image.status);
    let property = |name: &str| image.properties.get(name);
    // By oslo's rule, where what is no boolean means no: nova `api/openstack/compute/views/images.py`.
    let auto = |auto: &String| if boolean::from_text(auto) == Some(true) { "AUTO" } else { "MANUAL" };
    ShownImage {
        id: image.id.clone(),
        name: image.name.clone(),
        status,
        progress,
        size: image.size_bytes.unwrap_or(0),
        created: seconds(image.created_at),
        updated: seconds(image.updated_at),
        min_disk: image.min_disk_gib,
        min_ram: image.min_ram_mib,
        metadata: image.properties.clone(),
        links: image_links(state, &image.id),
        server: property("instance_uuid")
            .map(|id| ServerOfImage { id: id.clone(), links: links(state, "servers", id) }),
        disk_config: property("auto_disk_config").map(auto),
    }
}

/// The usual links, and where the image service has it.
fn image_links(state: &AppState, id: &str) -> [ImageLink; 3] {
    let [own, bookmark] =
        links(state, "images", id).map(|Link { rel, href }| ImageLink { rel, kind: None, href });
    let alternate = ImageLink {
        rel: "alternate",
        kind: Some("application/vnd.openstack.image"),
        href: format!("{}/image/images/{id}", state.public_url()),
    };
    [own, bookmark, alternate]
}
