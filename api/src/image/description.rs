//! One image: making, showing, changing, deleting it.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderName, header};
use control::error::Error;
use control::model::image::{Image, ImageStatus};
use control::service::image::ImageChange;
use control::service::image_import::IMPORT_METHODS;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Map, Value};

use super::{patch, time};
use crate::context::{
    Answer, AppState, Authenticated, Body, JSON_BYTES_MAX, Segments, body_bytes, json_message,
};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done, Status};

pub(super) fn status(status: ImageStatus) -> &'static str {
    match status {
        ImageStatus::Queued => "queued",
        ImageStatus::Saving => "saving",
        ImageStatus::Uploading => "uploading",
        ImageStatus::Importing => "importing",
        ImageStatus::Active => "active",
        ImageStatus::Deactivated => "deactivated",
    }
}

/// An image. Glance shows its properties beside its fields; none has a field's name.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Image")]
pub(super) struct ShownImage {
    #[serde(flatten)]
    properties: BTreeMap<String, String>,
    id: String,
    name: Option<String>,
    status: &'static str,
    visibility: String,
    os_hidden: bool,
    protected: bool,
    disk_format: Option<String>,
    container_format: Option<String>,
    size: Option<u64>,
    virtual_size: Option<u64>,
    checksum: Option<String>,
    os_hash_algo: Option<&'static str>,
    os_hash_value: Option<String>,
    min_disk: u32,
    min_ram: u32,
    owner: Option<String>,
    tags: Vec<String>,
    created_at: String,
    updated_at: String,
    file: String,
    #[serde(rename = "self")]
    own: String,
    schema: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    stores: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    os_glance_import_task: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    os_glance_importing_to_stores: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    os_glance_failed_import: Option<String>,
}

pub(super) fn show_image(image: &Image) -> ShownImage {
    let own = format!("/v2/images/{}", image.id);
    ShownImage {
        properties: image.properties.clone(),
        id: image.id.clone(),
        name: image.name.clone(),
        status: status(image.status),
        visibility: image.visibility.clone(),
        os_hidden: image.hidden,
        protected: image.protected,
        disk_format: image.disk_format.clone(),
        container_format: image.container_format.clone(),
        size: image.size_bytes,
        virtual_size: image.virtual_size_bytes,
        checksum: image.checksum.clone(),
        os_hash_algo: image.sha512.as_ref().map(|_| "sha512"),
        os_hash_value: image.sha512.clone(),
        min_disk: image.min_disk_gib,
        min_ram: image.min_ram_mib,
        owner: image.owner.clone(),
        tags: image.tags.clone(),
        created_at: time(image.created_at),
        updated_at: time(image.updated_at),
        file: format!("{own}/file"),
        own,
        schema: "/v2/schemas/image",
        stores: (!image.stores.is_empty()).then(|| image.stores.join(",")),
        os_glance_import_task: image.import_task.clone(),
        os_glance_importing_to_stores: image.imported.then(|| image.importing_to.join(",")),
        os_glance_failed_import: image.imported.then(|| image.failed_import.join(",")),
    }
}

/// A new image, with where it is and how it may be imported.
type Made = Status<201, ([(HeaderName, String); 3], Json<ShownImage>)>;

/// Image API v2: create image.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(mut fields): Body<Map<String, Value>>,
) -> Result<Made, Fault> {
    let id = match fields.remove("id") {
        None => None,
        Some(Value::String(id))
            if uuid::Uuid::try_parse(&id).is_ok_and(|uuid| uuid.hyphenated().to_string() == id) =>
        {
            Some(id)
        }
        Some(_) => return Err(Fault::malformed("Invalid image id format: a UUID in lower case")),
    };
    let changes =
        fields.into_iter().map(|(name, value)| patch::change(&name, value, ImageChange::AddProperty));
    let changes = changes.collect::<Result<Vec<_>, _>>()?;
    let stored = state.control.image_create(&caller, id, changes).await?;
    let location = format!("{}/image/v2/images/{}", state.public_url(), stored.row.id);
    let headers = [
        (header::LOCATION, location),
        (HeaderName::from_static("openstack-image-import-methods"), IMPORT_METHODS.join(",")),
        (HeaderName::from_static("openstack-image-store-ids"), state.control.image_store_ids().join(",")),
    ];
    Ok(Status((headers, Json(show_image(&stored.row)))))
}

/// Image API v2: show image.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<ShownImage> {
    let stored = state.control.image_get(&caller, &id).await?;
    Ok(Json(show_image(&stored.row)))
}

/// Image API v2: update image, by a JSON patch of Glance's own kinds.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    request: Request,
) -> Answer<ShownImage> {
    let media_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let essence = media_type.map(|value| value.split(';').next().unwrap_or_default().trim());
    let draft = match essence {
        Some(patch::MEDIA_TYPE) => patch::Draft::Ten,
        Some(patch::MEDIA_TYPE_DRAFT) => patch::Draft::Four,
        _ => return Err(Fault::UnsupportedMediaType),
    };
    let bytes = body_bytes(request, JSON_BYTES_MAX).await?;
    let body: Value =
        serde_json::from_slice(&bytes).map_err(|error| Fault::malformed(json_message(&error)))?;
    let stored = state.control.image_update(&caller, &id, patch::changes(draft, body)?).await?;
    Ok(Json(show_image(&stored.row)))
}

/// Image API v2: delete image.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.image_delete(&caller, &id).await?;
    Ok(DONE)
}

/// Image API v2: deactivate image.
pub(super) async fn deactivate(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.image_deactivate(&caller, &id, true).await?;
    Ok(DONE)
}

/// Image API v2: reactivate image.
pub(super) async fn reactivate(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.image_deactivate(&caller, &id, false).await?;
    Ok(DONE)
}

/// Image API v2: add image tag.
pub(super) async fn tag(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    state.control.image_tag(&caller, &id, &tag).await?;
    Ok(DONE)
}

/// Image API v2: delete image tag.
pub(super) async fn untag(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    state.control.image_untag(&caller, &id, &tag).await?;
    Ok(DONE)
}

/// What Glance answers to a change of a field that is not the client's.
pub(super) fn read_only(name: &str) -> Fault {
    tracing::debug!(field = name, "a client tried to set a read-only attribute");
    Error::Forbidden { action: "change of a read-only attribute" }.into()
}

/// What Glance answers to a change of an image's locations, which it shows to nobody.
pub(super) fn invisible_locations() -> Fault {
    Error::Forbidden { action: "update of locations that are invisible" }.into()
}
