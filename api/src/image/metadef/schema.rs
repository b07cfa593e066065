//! JSON schemas of metadata definitions.

use serde_json::{Value, json};

/// The schema of that name, without the links of the collections.
pub(in crate::image) fn of(name: &str) -> Option<Value> {
    Some(match name {
        "namespace" => namespace(),
        "namespaces" => super::super::schema::collection("namespaces", namespace()),
        "object" => object(),
        "objects" => super::super::schema::collection("objects", object()),
        "property" => property(),
        "properties" => json!({
            "name": "properties",
            "properties": {"properties": {"type": "object", "additionalProperties": property()}},
        }),
        "tag" => tag(),
        "tags" => super::super::schema::collection("tags", tag()),
        "resource_type" => resource_type(),
        "resource_types" => super::super::schema::collection("resource_type_associations", resource_type()),
        _ => return None,
    })
}

fn text(characters_max: usize) -> Value {
    json!({"type": "string", "maxLength": characters_max})
}

fn fixed() -> Value {
    json!({"type": "string", "readOnly": true})
}

fn definitions() -> Value {
    json!({
        "positiveInteger": {"type": "integer", "minimum": 0},
        "positiveIntegerDefault0": {"allOf": [{"$ref": "#/definitions/positiveInteger"}, {"default": 0}]},
        "stringArray": {"type": "array", "items": {"type": "string"}, "uniqueItems": true},
        "property": {"type": "object", "additionalProperties": {
            "type": "object", "required": ["title", "type"], "properties": property_fields(),
        }},
    })
}

fn property_fields() -> Value {
    let types = json!(["array", "boolean", "integer", "number", "object", "string", null]);
    json!({
        "name": text(80),
        "title": {"type": "string"},
        "description": {"type": "string"},
        "operators": {"type": "array", "items": {"type": "string"}},
        "type": {"type": "string", "enum": types},
        "required": {"$ref": "#/definitions/stringArray"},
        "minimum": {"type": "number"},
        "maximum": {"type": "number"},
        "maxLength": {"$ref": "#/definitions/positiveInteger"},
        "minLength": {"$ref": "#/definitions/positiveIntegerDefault0"},
        "pattern": {"type": "string", "format": "regex"},
        "enum": {"type": "array"},
        "readonly": {"type": "boolean"},
        "default": {},
        "items": {"type": "object", "properties": {
            "type": {"type": "string", "enum": types}, "enum": {"type": "array"},
        }},
        "maxItems": {"$ref": "#/definitions/positiveInteger"},
        "minItems": {"$ref": "#/definitions/positiveIntegerDefault0"},
        "uniqueItems": {"type": "boolean", "default": false},
        "additionalItems": {"type": "boolean"},
    })
}

fn namespace() -> Value {
    let named = json!({"type": "object", "properties": {"name": {"type": "string"}}});
    json!({
        "name": "namespace",
        "properties": {
            "namespace": text(80),
            "display_name": text(80),
            "description": text(500),
            "visibility": {"type": "string", "enum": ["public", "private"]},
            "protected": {"type": "boolean"},
            "owner": text(255),
            "created_at": fixed(),
            "updated_at": fixed(),
            "schema": fixed(),
            "self": fixed(),
            "resource_type_associations": {"type": "array", "items": {"type": "object", "properties": {
                "name": {"type": "string"},
                "prefix": {"type": "string"},
                "properties_target": {"type": "string"},
            }}},
            "properties": {"$ref": "#/definitions/property"},
            "objects": {"type": "array", "items": {"type": "object", "properties": {
                "name": {"type": "string"},
                "description": {"type": "string"},
                "required": {"$ref": "#/definitions/stringArray"},
                "properties": {"$ref": "#/definitions/property"},
            }}},
            "tags": {"type": "array", "items": named},
        },
        "additionalProperties": false,
        "definitions": definitions(),
        "required": ["namespace"],
    })
}

fn object() -> Value {
    json!({
        "name": "object",
        "properties": {
            "name": text(80),
            "description": {"type": "string"},
            "required": {"$ref": "#/definitions/stringArray"},
            "properties": {"$ref": "#/definitions/property"},
            "created_at": fixed(),
            "updated_at": fixed(),
            "schema": fixed(),
            "self": fixed(),
        },
        "additionalProperties": false,
        "definitions": definitions(),
        "required": ["name"],
    })
}

fn property() -> Value {
    json!({
        "name": "property",
        "properties": property_fields(),
        "additionalProperties": false,
        "definitions": definitions(),
        "required": ["type", "title", "name"],
    })
}

fn tag() -> Value {
    json!({
        "name": "tag",
        "properties": {"name": text(80), "created_at": fixed(), "updated_at": fixed()},
        "additionalProperties": false,
        "required": ["name"],
    })
}

fn resource_type() -> Value {
    json!({
        "name": "resource_type_association",
        "properties": {
            "name": text(80),
            "prefix": text(80),
            "properties_target": text(80),
            "created_at": fixed(),
            "updated_at": fixed(),
        },
        "additionalProperties": false,
        "required": ["name"],
    })
}
