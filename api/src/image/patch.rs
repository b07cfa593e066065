//! Changes of an image as clients write them: the fields of a new one, and JSON patches
//! (`application/openstack-images-v2.1-json-patch`: RFC 6902's add, replace and remove of one level).

use control::service::image::ImageChange;
use serde::Deserialize;
use serde_json::Value;

use super::description::read_only;
use crate::error::Fault;

/// The one kind of patch that is taken.
pub(super) const MEDIA_TYPE: &str = "application/openstack-images-v2.1-json-patch";

/// Fields that are not the client's to set.
const READ_ONLY: [&str; 17] = [
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
    "direct_url",
    "self",
    "file",
    "schema",
    "stores",
    "locations",
];

/// Fields that are always there.
const BASE: [&str; 11] = [
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
    "id",
];

/// One operation of a patch.
#[derive(Debug, Deserialize)]
pub(super) struct Operation {
    op: Kind,
    path: String,
    #[serde(default)]
    value: Option<Value>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Add,
    Replace,
    Remove,
}

/// The changes that a patch means.
pub(super) fn changes(operations: Vec<Operation>) -> Result<Vec<ImageChange>, Fault> {
    operations.into_iter().map(one).collect()
}

fn one(operation: Operation) -> Result<ImageChange, Fault> {
    let Operation { op, path, value } = operation;
    let name = path
        .strip_prefix('/')
        .filter(|name| !name.is_empty() && !name.contains('/'))
        .ok_or_else(|| Fault::malformed(format!("Invalid JSON pointer for this resource: '{path}'")))?;
    let name = name.replace("~1", "/").replace("~0", "~");
    match op {
        Kind::Remove if READ_ONLY.contains(&name.as_str()) || BASE.contains(&name.as_str()) => {
            Err(read_only(&name))
        }
        Kind::Remove => Ok(ImageChange::RemoveProperty(name)),
        Kind::Add => change(&name, value.unwrap_or(Value::Null), ImageChange::AddProperty),
        Kind::Replace => change(&name, value.unwrap_or(Value::Null), ImageChange::ReplaceProperty),
    }
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
    if READ_ONLY.contains(&name) {
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
