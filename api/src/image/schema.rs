//! JSON schemas of what the service answers, which some clients build their models of.

use axum::Json;
use control::service::image::{CONTAINER_FORMATS, DISK_FORMATS, MEMBER_STATUSES, VISIBILITIES};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::{Value, json};

use crate::context::{Answer, Authenticated, Segments};
use crate::error::Fault;

/// A JSON schema.
#[derive(Serialize, JsonSchema)]
#[schemars(extend("type" = "object"))]
pub(super) struct Schema(Value);

/// Image API v2: show image schema and kin.
pub(super) async fn show(_: Authenticated, Segments(name): Segments<String>) -> Answer<Schema> {
    Ok(Json(Schema(match name.as_str() {
        "image" => image(),
        "images" => collection("images", image()),
        "member" => member(),
        "members" => collection("members", member()),
        "task" => task(true),
        "tasks" => collection("tasks", task(false)),
        _ => return Err(Fault::NoRoute),
    })))
}

/// Image API v2: show metadata definition schemas.
pub(super) async fn show_metadef(_: Authenticated, Segments(name): Segments<String>) -> Answer<Schema> {
    super::metadef::schema::of(&name).map(|schema| Json(Schema(schema))).ok_or(Fault::NoRoute)
}

/// The schema of a page of what `item` describes.
pub(super) fn collection(name: &str, item: Value) -> Value {
    json!({
        "name": name,
        "properties": {
            name: {"type": "array", "items": item},
            "first": {"type": "string"},
            "next": {"type": "string"},
            "schema": {"type": "string"},
        },
        "links": [{"rel": "first", "href": "{first}"}, {"rel": "next", "href": "{next}"},
                  {"rel": "describedby", "href": "{schema}"}],
    })
}

fn task(whole: bool) -> Value {
    let fixed = json!({"type": "string", "readOnly": true});
    let mut schema = json!({
        "name": "task",
        "properties": {
            "id": {"type": "string", "description": "An identifier for the task", "pattern": UUID},
            "type": {"type": "string", "description": "What the task does",
                     "enum": ["import", "api_image_import", "location_import"]},
            "status": {"type": "string", "description": "How far it is",
                       "enum": ["pending", "processing", "success", "failure"]},
            "owner": {"type": "string", "description": "The project it belongs to"},
            "image_id": {"type": "string", "description": "The image it is about"},
            "request_id": {"type": "string", "description": "The request that asked for it"},
            "user_id": {"type": "string", "description": "Who asked for it"},
            "expires_at": {"type": ["null", "string"], "description": "When its record goes"},
            "created_at": fixed,
            "updated_at": fixed,
            "self": fixed,
            "schema": fixed,
        },
        "additionalProperties": false,
    });
    if whole {
        let object = json!({"type": ["null", "object"]});
        schema["properties"]["input"] = object.clone();
        schema["properties"]["result"] = object;
        schema["properties"]["message"] = json!({"type": "string", "description": "What went wrong"});
    }
    schema
}

/// What an id looks like.
const UUID: &str = "^([0-9a-fA-F]){8}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){4}-([0-9a-fA-F]){12}$";

fn text(description: &str, characters_max: usize) -> Value {
    json!({"type": ["null", "string"], "description": description, "maxLength": characters_max})
}

fn image() -> Value {
    let number = json!({"type": "integer", "minimum": 0, "maximum": i32::MAX});
    let fixed = |kind: &str| json!({"type": ["null", kind], "readOnly": true});
    json!({
        "name": "image",
        "properties": {
            "id": {"type": "string", "description": "An identifier for the image", "pattern": UUID},
            "name": text("Descriptive name for the image", 255),
            "status": {"type": "string", "readOnly": true, "enum": [
                "queued", "saving", "active", "killed", "deleted", "uploading", "importing",
                "pending_delete", "deactivated",
            ]},
            "visibility": {"type": "string", "enum": VISIBILITIES},
            "os_hidden": {"type": "boolean"},
            "protected": {"type": "boolean"},
            "disk_format": {"type": ["null", "string"], "enum": formats(&DISK_FORMATS)},
            "container_format": {"type": ["null", "string"], "enum": formats(&CONTAINER_FORMATS)},
            "size": fixed("integer"),
            "virtual_size": fixed("integer"),
            "checksum": fixed("string"),
            "os_hash_algo": fixed("string"),
            "os_hash_value": fixed("string"),
            "min_disk": number,
            "min_ram": number,
            "owner": text("Owner of the image", 255),
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 255}},
            "created_at": fixed("string"),
            "updated_at": fixed("string"),
            "file": fixed("string"),
            "self": fixed("string"),
            "schema": fixed("string"),
            "stores": fixed("string"),
            "kernel_id": {"type": ["null", "string"], "is_base": false},
            "ramdisk_id": {"type": ["null", "string"], "is_base": false},
        },
        "additionalProperties": {"type": "string"},
        "links": [{"rel": "self", "href": "{self}"}, {"rel": "enclosure", "href": "{file}"},
                  {"rel": "describedby", "href": "{schema}"}],
    })
}

fn formats(known: &[&'static str]) -> Vec<Option<&'static str>> {
    std::iter::once(None).chain(known.iter().copied().map(Some)).collect()
}

fn member() -> Value {
    json!({
        "name": "member",
        "properties": {
            "image_id": {"type": "string"},
            "member_id": {"type": "string"},
            "status": {"type": "string", "enum": MEMBER_STATUSES},
            "created_at": {"type": "string"},
            "updated_at": {"type": "string"},
            "schema": {"type": "string"},
        },
    })
}
