//! Changes of an image as clients write them: the fields of a new one, and JSON patches in both of Glance's kinds:
//! `application/openstack-images-v2.1-json-patch` (RFC 6902's add, replace and remove of one level) and the older
//! `…-v2.0-json-patch` (draft 4 of it, in which the operation's name holds the path).

use control::service::image::ImageChange;
use serde_json::{Map, Value};

use super::description::read_only;
use crate::error::Fault;

/// RFC 6902.
pub(super) const MEDIA_TYPE: &str = "application/openstack-images-v2.1-json-patch";
/// Its draft 4.
pub(super) const MEDIA_TYPE_DRAFT: &str = "application/openstack-images-v2.0-json-patch";
/// The most operations of one patch: as many as an image can have fields, properties and tags.
const OPERATIONS_MAX: usize = 512;

/// Fields that are not the client's to set.
const READ_ONLY: [&str; 19] = [
    "id",
    "status",
    "size",
    "virtual_size",
    "checksum",
    "os_hash_algo",
    "os_hash_value",
    "created_at",
    "updated_at",
    "deleted_at",
    "deleted",
    "location",
    "direct_url",
    "self",
    "file",
    "schema",
    "stores",
    "locations",
    "validation_data",
];
/// What names that are the service's own begin with.
const RESERVED: &str = "os_glance";

/// Fields that are always there.
const BASE: [&str; 10] = [
    "name",
    "visibility",
    "disk_format",
    "container_format",
    "min_disk",
    "min_ram",
    "protected",
    "os_hidden",
    "owner",
    "tags",
];

/// The kinds of patches.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Draft {
    Four,
    Ten,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Add,
    Replace,
    Remove,
}

const KINDS: [(&str, Kind); 3] = [("add", Kind::Add), ("replace", Kind::Replace), ("remove", Kind::Remove)];

/// The changes that a patch means.
pub(super) fn changes(draft: Draft, body: Value) -> Result<Vec<ImageChange>, Fault> {
    let Value::Array(operations) = body else {
        return Err(Fault::malformed("Request body must be a JSON array of operation objects."));
    };
    if operations.len() > OPERATIONS_MAX {
        return Err(Fault::malformed(format!("a patch has at most {OPERATIONS_MAX} operations")));
    }
    operations.into_iter().map(|operation| one(draft, operation)).collect()
}

fn one(draft: Draft, operation: Value) -> Result<ImageChange, Fault> {
    let Value::Object(mut operation) = operation else {
        return Err(Fault::malformed("Operations must be JSON objects."));
    };
    let (kind, path) = kind_and_path(draft, &operation)?;
    let name = pointed_at(&path)?;
    if name == "locations" || name.starts_with("locations/") {
        return Err(super::description::invisible_locations());
    }
    if is_reserved(&name) {
        return Err(read_only(&name));
    }
    if kind == Kind::Remove {
        return if BASE.contains(&name.as_str()) {
            Err(read_only(&name))
        } else {
            Ok(ImageChange::RemoveProperty(name))
        };
    }
    let value = operation
        .remove("value")
        .ok_or_else(|| Fault::malformed("The operation requires a member named \"value\"."))?;
    match (kind, draft) {
        // Nothing that is there can be added in the old kind.
        (Kind::Add, Draft::Four) if BASE.contains(&name.as_str()) => {
            let message = format!("Property {name} already present.");
            Err(control::error::Error::conflict("Conflict", message).into())
        }
        (Kind::Add, Draft::Four) => change(&name, value, ImageChange::NewProperty),
        (Kind::Add, Draft::Ten) => change(&name, value, ImageChange::AddProperty),
        _ => change(&name, value, ImageChange::ReplaceProperty),
    }
}

fn kind_and_path(draft: Draft, operation: &Map<String, Value>) -> Result<(Kind, String), Fault> {
    let (kind, path) = match draft {
        Draft::Ten => {
            let op = operation.get("op").and_then(Value::as_str).unwrap_or_default();
            let kind = KINDS.iter().find(|(name, _)| *name == op).ok_or_else(|| {
                Fault::malformed(format!(
                    "Invalid operation: `{op}`. It must be one of the following: add, remove, replace."
                ))
            })?;
            (kind.1, operation.get("path"))
        }
        Draft::Four => {
            let mut said = KINDS.iter().filter(|(name, _)| operation.contains_key(*name));
            let (Some((name, kind)), None) = (said.next(), said.next()) else {
                return Err(Fault::malformed(
                    "Operation objects must contain exactly one member named \"add\", \"remove\", or \"replace\".",
                ));
            };
            (*kind, operation.get(*name))
        }
    };
    let path = path
        .and_then(Value::as_str)
        .ok_or_else(|| Fault::malformed("Unable to find 'path' in JSON Schema change"))?;
    Ok((kind, path.to_owned()))
}

/// The name that a JSON pointer of one level means (RFC 6901). A slash in it was `~1`.
fn pointed_at(path: &str) -> Result<String, Fault> {
    let bad = || Fault::malformed(format!("Pointer `{path}` is not one that can be used here."));
    let name = path.strip_prefix('/').filter(|name| !name.trim().is_empty()).ok_or_else(bad)?;
    if name.ends_with('/') || name.split('/').any(|part| part.trim().is_empty()) {
        return Err(bad());
    }
    let mut rest = name;
    while let Some(at) = rest.find('~') {
        if !matches!(rest.as_bytes().get(at + 1), Some(b'0' | b'1')) {
            return Err(bad());
        }
        rest = &rest[at + 2..];
    }
    if name.contains('/') && !name.starts_with("locations/") {
        return Err(Fault::malformed(format!("Invalid JSON pointer for this resource: '{path}'")));
    }
    Ok(name.replace("~1", "/").replace("~0", "~").trim().to_owned())
}

fn is_reserved(name: &str) -> bool {
    READ_ONLY.contains(&name) || name.starts_with(RESERVED)
}

/// The change that one field and its value mean; `property` is what it is if the field is none of Glance's own.
pub(super) fn change(
    name: &str,
    value: Value,
    property: impl FnOnce(String, String) -> ImageChange,
) -> Result<ImageChange, Fault> {
    let wrong = |kind: &str| {
        Fault::malformed(format!("Provided object does not match schema 'image': {name} is not {kind}"))
    };
    let text = |value: Value| match value {
        Value::String(text) => Ok(text),
        _ => Err(wrong("of type 'string'")),
    };
    let optional = |value: Value| match value {
        Value::Null => Ok(None),
        other => text(other).map(Some),
    };
    let flag = |value: Value| value.as_bool().ok_or_else(|| wrong("of type 'boolean'"));
    let number = |value: Value| {
        let number =
            value.as_u64().and_then(|number| i32::try_from(number).ok()).and_then(|n| u32::try_from(n).ok());
        number.ok_or_else(|| wrong("an integer between 0 and 2147483647"))
    };
    if is_reserved(name) {
        return Err(read_only(name));
    }
    Ok(match name {
        "name" => ImageChange::Name(optional(value)?),
        "visibility" => ImageChange::Visibility(text(value)?),
        "disk_format" => ImageChange::DiskFormat(optional(value)?),
        "container_format" => ImageChange::ContainerFormat(optional(value)?),
        "min_disk" => ImageChange::MinDisk(number(value)?),
        "min_ram" => ImageChange::MinRam(number(value)?),
        "protected" => ImageChange::Protected(flag(value)?),
        "os_hidden" => ImageChange::Hidden(flag(value)?),
        "owner" => ImageChange::Owner(text(value)?),
        "tags" => match value {
            Value::Array(tags) => ImageChange::Tags(tags.into_iter().map(text).collect::<Result<_, _>>()?),
            _ => return Err(wrong("of type 'array'")),
        },
        _ => property(name.to_owned(), text(value)?),
    })
}
