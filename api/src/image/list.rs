//! The list of images with its filters (Image API v2: list images).

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::model::image::Image;
use jiff::Timestamp;
use serde_json::{Map, Value, json};

use super::description::{show_image, status};
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl};
use crate::error::Fault;
use crate::page::{Direction, Page, SortValue};

/// Parameters that choose the page or which images are looked at, not by a column.
const NOT_COLUMNS: [&str; 8] =
    ["limit", "marker", "sort", "sort_key", "sort_dir", "member_status", "visibility", "os_hidden"];

pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let page = Page::of(&filters, &[("created_at", Direction::Descending)])?;
    let hidden = filters.flag("os_hidden")?.unwrap_or(false);
    let mut rows = Vec::new();
    for stored in state.control.image_list(&caller).await? {
        let image = &stored.row;
        if image.hidden == hidden
            && is_listed(&state, &caller, &filters, image)
            && matches_columns(&filters, image)?
        {
            rows.push(stored);
        }
    }
    let slice = page.cut(rows, |stored| &stored.row.id, |stored, key| sort_value(&stored.row, key))?;
    let mut body = Map::new();
    // Glance's links are paths below the service's own root.
    let below = |target: String| target.trim_start_matches("/image").to_owned();
    body.insert("first".into(), json!(below(url.target_with_marker(None))));
    if let Some(next) = &slice.next {
        body.insert("next".into(), json!(below(url.target_with_marker(Some(next)))));
    }
    body.insert("schema".into(), json!("/v2/schemas/images"));
    body.insert("images".into(), slice.rows.iter().map(|stored| show_image(&stored.row)).collect());
    Ok(Json(Value::Object(body)))
}

/// Whether a list without further columns shows an image: community images only if asked for by that visibility,
/// shared ones only once accepted.
fn is_listed(state: &AppState, caller: &Caller, filters: &Filters, image: &Image) -> bool {
    let own = image.owner.as_deref().is_some_and(|owner| caller.project_id() == Some(owner));
    match filters.get("visibility") {
        Some("all") => true,
        Some(wanted) if wanted != image.visibility => false,
        Some("shared") | None if image.visibility == "shared" && !own => {
            let membership = state.control.image_membership(caller, &image.id);
            match (membership, filters.get("member_status").unwrap_or("accepted")) {
                (Some(_), "all") => true,
                (Some(member), wanted) => member.row.status == wanted,
                (None, _) => caller.is_admin(),
            }
        }
        None => own || image.visibility != "community",
        Some(_) => true,
    }
}

fn matches_columns(filters: &Filters, image: &Image) -> Result<bool, Fault> {
    for (key, wanted) in filters.pairs().iter().filter(|(key, _)| !NOT_COLUMNS.contains(&key.as_str())) {
        let matches = match key.as_str() {
            "id" => any_of(wanted, &image.id),
            "name" => any_of(wanted, image.name.as_deref().unwrap_or_default()),
            "status" => any_of(wanted, status(image.status)),
            "disk_format" => any_of(wanted, image.disk_format.as_deref().unwrap_or_default()),
            "container_format" => any_of(wanted, image.container_format.as_deref().unwrap_or_default()),
            "owner" => image.owner.as_deref() == Some(wanted),
            "checksum" => image.checksum.as_deref() == Some(wanted),
            "os_hash_value" => image.sha512.as_deref() == Some(wanted),
            "tag" => image.tags.contains(wanted),
            "protected" => filters.allow_flag("protected", image.protected)?,
            "min_disk" => wanted.parse() == Ok(image.min_disk_gib),
            "min_ram" => wanted.parse() == Ok(image.min_ram_mib),
            "size_min" => image.size_bytes.unwrap_or(0) >= bytes(key, wanted)?,
            "size_max" => image.size_bytes.unwrap_or(0) <= bytes(key, wanted)?,
            "created_at" => compare(key, wanted, image.created_at)?,
            "updated_at" => compare(key, wanted, image.updated_at)?,
            property => image.properties.get(property) == Some(wanted),
        };
        if !matches {
            return Ok(false);
        }
    }
    Ok(true)
}

/// `in:a,b` or one value; a value with a comma stands in quotes.
fn any_of(wanted: &str, value: &str) -> bool {
    match wanted.strip_prefix("in:") {
        Some(list) => list.split(',').any(|entry| entry.trim_matches('"') == value),
        None => wanted == value,
    }
}

fn bytes(key: &str, wanted: &str) -> Result<u64, Fault> {
    wanted.parse().map_err(|_| Fault::malformed(format!("{key} is not a number of bytes: {wanted}")))
}

fn compare(key: &str, wanted: &str, at: Timestamp) -> Result<bool, Fault> {
    let (operator, time) = match wanted.split_once(':') {
        Some((operator @ ("gt" | "gte" | "lt" | "lte" | "eq" | "neq"), time)) => (operator, time),
        _ => ("eq", wanted),
    };
    let zoned = if time.ends_with('Z') || time.contains('+') { time.to_owned() } else { format!("{time}Z") };
    let time: Timestamp =
        zoned.parse().map_err(|_| Fault::malformed(format!("{key} is not a time: {time}")))?;
    // Clients know whole seconds only.
    let (at, time) = (at.as_second(), time.as_second());
    Ok(match operator {
        "gt" => at > time,
        "gte" => at >= time,
        "lt" => at < time,
        "lte" => at <= time,
        "neq" => at != time,
        _ => at == time,
    })
}

fn sort_value(image: &Image, key: &str) -> Option<SortValue> {
    Some(match key {
        "id" => image.id.as_str().into(),
        "name" => image.name.as_deref().into(),
        "status" => status(image.status).into(),
        "disk_format" => image.disk_format.as_deref().into(),
        "container_format" => image.container_format.as_deref().into(),
        "size" => image.size_bytes.into(),
        "created_at" => image.created_at.into(),
        "updated_at" => image.updated_at.into(),
        _ => return None,
    })
}
