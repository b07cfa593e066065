//! One image: making, showing, changing, deleting it.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{IntoResponse, Response};
use control::error::Error;
use control::model::image::{Image, ImageStatus};
use control::service::image::ImageChange;
use control::service::image_import::IMPORT_METHODS;
use serde_json::{Map, Value, json};

use super::{done, patch, time};
use crate::context::{
    Answer, AppState, Authenticated, Body, JSON_BYTES_MAX, Segments, body_bytes, json_message,
};
use crate::error::Fault;

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

pub(super) fn show_image(image: &Image) -> Value {
    // Glance shows properties beside the fields; a field of the same name wins.
    let mut body: Map<String, Value> =
        image.properties.iter().map(|(name, value)| (name.clone(), Value::from(value.as_str()))).collect();
    let own = format!("/v2/images/{}", image.id);
    let fields = json!({
        "id": image.id,
        "name": image.name,
        "status": status(image.status),
        "visibility": image.visibility,
        "os_hidden": image.hidden,
        "protected": image.protected,
        "disk_format": image.disk_format,
        "container_format": image.container_format,
        "size": image.size_bytes,
        "virtual_size": image.virtual_size_bytes,
        "checksum": image.checksum,
        "os_hash_algo": image.sha512.as_ref().map(|_| "sha512"),
        "os_hash_value": image.sha512,
        "min_disk": image.min_disk_gib,
        "min_ram": image.min_ram_mib,
        "owner": image.owner,
        "tags": image.tags,
        "created_at": time(image.created_at),
        "updated_at": time(image.updated_at),
        "file": format!("{own}/file"),
        "self": own,
        "schema": "/v2/schemas/image",
    });
    if let Value::Object(fields) = fields {
        body.extend(fields);
    }
    if !image.stores.is_empty() {
        body.insert("stores".into(), json!(image.stores.join(",")));
    }
    if let Some(task) = &image.import_task {
        body.insert("os_glance_import_task".into(), json!(task));
    }
    if image.imported {
        body.insert("os_glance_importing_to_stores".into(), json!(image.importing_to.join(",")));
        body.insert("os_glance_failed_import".into(), json!(image.failed_import.join(",")));
    }
    Value::Object(body)
}

/// Image API v2: create image.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(mut fields): Body<Map<String, Value>>,
) -> Result<Response, Fault> {
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
    Ok((StatusCode::CREATED, headers, Json(show_image(&stored.row))).into_response())
}

/// Image API v2: show image.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let stored = state.control.image_get(&caller, &id).await?;
    Ok(Json(show_image(&stored.row)))
}

/// Image API v2: update image, by a JSON patch of Glance's own kinds.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    request: Request,
) -> Answer<Value> {
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
) -> Result<Response, Fault> {
    state.control.image_delete(&caller, &id).await?;
    Ok(done())
}

/// Image API v2: deactivate image.
pub(super) async fn deactivate(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Response, Fault> {
    state.control.image_deactivate(&caller, &id, true).await?;
    Ok(done())
}

/// Image API v2: reactivate image.
pub(super) async fn reactivate(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Response, Fault> {
    state.control.image_deactivate(&caller, &id, false).await?;
    Ok(done())
}

/// Image API v2: add image tag.
pub(super) async fn tag(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    state.control.image_tag(&caller, &id, &tag).await?;
    Ok(done())
}

/// Image API v2: delete image tag.
pub(super) async fn untag(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, tag)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    state.control.image_untag(&caller, &id, &tag).await?;
    Ok(done())
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
