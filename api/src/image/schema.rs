//! JSON schemas of what the service answers, which some clients build their models of, and how images can be imported.

use axum::Json;
use control::service::image::{CONTAINER_FORMATS, DISK_FORMATS, MEMBER_STATUSES, VISIBILITIES};
use serde_json::{Value, json};

use crate::context::{Answer, Authenticated, Segments};
use crate::error::Fault;

/// Image API v2: show image schema and kin.
pub(super) async fn show(_: Authenticated, Segments(name): Segments<String>) -> Answer<Value> {
    let list = |name: &str, item: Value| {
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
    };
    match name.as_str() {
        "image" => Ok(Json(image())),
        "images" => Ok(Json(list("images", image()))),
        "member" => Ok(Json(member())),
        "members" => Ok(Json(list("members", member()))),
        _ => Err(Fault::NoRoute),
    }
}

/// Image API v2: import methods and values discovery. There are none.
pub(super) async fn import(_: Authenticated) -> Answer<Value> {
    let methods = json!({"description": "Import methods available.", "type": "array", "value": []});
    Ok(Json(json!({"import-methods": methods})))
}

fn text(description: &str, characters_max: usize) -> Value {
    json!({"type": ["null", "string"], "description": description, "maxLength": characters_max})
}

fn image() -> Value {
    let number = json!({"type": "integer", "minimum": 0, "maximum": i32::MAX});
    let fixed = |kind: &str| json!({"type": ["null", kind], "readOnly": true});
    json!({
        "name": "image",
        "properties": {
            "id": {"type": "string", "description": "An identifier for the image",
                   "pattern": "^([0-9a-f]){8}-([0-9a-f]){4}-([0-9a-f]){4}-([0-9a-f]){4}-([0-9a-f]){12}$"},
            "name": text("Descriptive name for the image", 255),
            "status": fixed("string"),
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
