//! The block storage service (Cinder, Block Storage API v3), microversions 3.0 to 3.71. Its discovery documents are in
//! [`crate::discovery`].
//!
//! One file per resource: wire structures, the conversion from and to what `control` knows, handlers of a few lines.

mod action;
mod attachment;
mod backup;
mod default_type;
mod encryption;
mod filter;
mod group;
mod group_type;
#[cfg(test)]
mod hostile;
mod kind;
mod listing;
mod manageable;
mod message;
mod metadata;
mod qos;
mod quota;
#[cfg(test)]
mod reads;
mod service;
mod snapshot;
mod transfer;
#[expect(clippy::module_inception, reason = "the resource has the name of its service")]
mod volume;
mod volume_view;

use std::collections::BTreeMap;

use axum::Json;
use control::boolean;
use control::caller::Caller;
use control::policy::{self, Target};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use self::metadata::{OfSnapshot, OfVolume, Owned};
use crate::context::{Answer, AppState, Authenticated, Filters};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::{Routes, any, get, post, put};
use crate::page::{Direction, Page, Slice, SortValue};

/// What Cinder has and this cloud has not: any request to it answers 501.
const ABSENT: [&str; 4] = ["cgsnapshots", "clusters", "consistencygroups", "workers"];

/// The routes below `/volume`. A project id after the version is taken out before routing.
pub fn routes() -> Routes {
    let routes = Routes::new()
        .merge(volume_routes())
        .merge(backup_routes())
        .merge(manage_routes())
        .merge(group_routes())
        .merge(type_routes())
        .merge(service_routes());
    ABSENT.iter().fold(routes, |routes, name| {
        routes.route(&format!("/v3/{name}"), any(absent)).route(&format!("/v3/{name}/{{*rest}}"), any(absent))
    })
}

fn volume_routes() -> Routes {
    let routes = Routes::new()
        .route("/v3/volumes", get(volume::list).post(volume::create).put(nowhere).delete(nowhere))
        .route("/v3/volumes/detail", get(volume::list))
        .route("/v3/volumes/summary", get(volume::summary))
        .route("/v3/volumes/{id}", get(volume::show).put(volume::update).delete(volume::delete))
        .route("/v3/volumes/{id}/encryption", get(encryption::show_volume))
        .route("/v3/volumes/{id}/encryption/{key}", get(encryption::volume_item))
        .route("/v3/volumes/{id}/action", post(action::act))
        .route("/v3/snapshots", get(snapshot::list).post(snapshot::create))
        .route("/v3/snapshots/detail", get(snapshot::list))
        .route("/v3/snapshots/{id}", get(snapshot::show).put(snapshot::update).delete(snapshot::delete))
        .route("/v3/snapshots/{id}/action", post(snapshot::act))
        .route("/v3/attachments", get(attachment::list).post(attachment::create))
        .route("/v3/attachments/detail", get(attachment::list))
        .route(
            "/v3/attachments/{id}",
            get(attachment::show).put(attachment::update).delete(attachment::delete),
        )
        .route("/v3/attachments/{id}/action", post(attachment::act))
        .merge(metadata_routes::<OfVolume>("volumes"))
        .merge(metadata_routes::<OfSnapshot>("snapshots"));
    // The older name, and the one of microversion 3.55.
    ["os-volume-transfer", "volume-transfers"].iter().fold(routes, |routes, name| {
        routes
            .route(&format!("/v3/{name}"), get(transfer::list).post(transfer::create))
            .route(&format!("/v3/{name}/detail"), get(transfer::list))
            .route(&format!("/v3/{name}/{{id}}"), get(transfer::show).delete(transfer::delete))
            .route(&format!("/v3/{name}/{{id}}/accept"), post(transfer::accept))
    })
}

fn metadata_routes<O: Owned + 'static>(collection: &str) -> Routes {
    use metadata::{add, list, replace, set, show, unset};
    let path = format!("/v3/{collection}/{{id}}/metadata");
    Routes::new()
        .route(&path, get(list::<O>).post(add::<O>).put(replace::<O>))
        .route(&format!("{path}/{{key}}"), get(show::<O>).put(set::<O>).delete(unset::<O>))
}

fn manage_routes() -> Routes {
    let mut routes = Routes::new();
    for (volumes, snapshots) in
        [("manageable_volumes", "manageable_snapshots"), ("os-volume-manage", "os-snapshot-manage")]
    {
        routes = routes
            .route(&format!("/v3/{volumes}"), get(manageable::volumes).post(manageable::manage))
            .route(&format!("/v3/{volumes}/detail"), get(manageable::volumes))
            .route(&format!("/v3/{snapshots}"), get(manageable::snapshots).post(manageable::manage_snapshot))
            .route(&format!("/v3/{snapshots}/detail"), get(manageable::snapshots));
    }
    routes
}

fn backup_routes() -> Routes {
    Routes::new()
        .route("/v3/backups", get(backup::list).post(backup::create))
        .route("/v3/backups/detail", get(backup::list))
        .route("/v3/backups/import_record", post(backup::import_record))
        .route("/v3/backups/{id}", get(backup::show).put(backup::update).delete(backup::delete))
        .route("/v3/backups/{id}/action", post(backup::act))
        .route("/v3/backups/{id}/restore", post(backup::restore))
        .route("/v3/backups/{id}/export_record", get(backup::export_record))
}

fn group_routes() -> Routes {
    Routes::new()
        .route("/v3/groups", get(group::list).post(group::create))
        .route("/v3/groups/detail", get(group::list))
        .route("/v3/groups/action", post(group::copy))
        .route("/v3/groups/{id}", get(group::show).put(group::update))
        .route("/v3/groups/{id}/action", post(group::act))
        .route("/v3/group_snapshots", get(group::snapshots).post(group::snapshot_create))
        .route("/v3/group_snapshots/detail", get(group::snapshots))
        .route("/v3/group_snapshots/{id}", get(group::snapshot).delete(group::snapshot_delete))
        .route("/v3/group_snapshots/{id}/action", post(group::snapshot_act))
        .route("/v3/group_types", get(group_type::list).post(group_type::create))
        .route(
            "/v3/group_types/{id}",
            get(group_type::show).put(group_type::update).delete(group_type::delete),
        )
        .route("/v3/group_types/{id}/group_specs", get(group_type::specs).post(group_type::set_specs))
        .route(
            "/v3/group_types/{id}/group_specs/{key}",
            get(group_type::spec).put(group_type::set_spec).delete(group_type::unset_spec),
        )
}

fn type_routes() -> Routes {
    Routes::new()
        .route("/v3/types", get(kind::list).post(kind::create))
        .route("/v3/types/{id}", get(kind::show).put(kind::update).delete(kind::delete))
        .route("/v3/types/{id}/extra_specs", get(kind::extra_specs).post(kind::set_extra_specs))
        .route(
            "/v3/types/{id}/extra_specs/{key}",
            get(kind::extra_spec).put(kind::set_extra_spec).delete(kind::unset_extra_spec),
        )
        .route("/v3/types/{id}/os-volume-type-access", get(kind::access))
        .route("/v3/types/{id}/action", post(kind::act))
        .route("/v3/types/{id}/encryption", get(encryption::show).post(encryption::create))
        .route(
            "/v3/types/{id}/encryption/{key}",
            get(encryption::item).put(encryption::update).delete(encryption::delete),
        )
        .route("/v3/default-types", get(default_type::list))
        .route(
            "/v3/default-types/{project}",
            get(default_type::show).put(default_type::set).delete(default_type::unset),
        )
        .route("/v3/qos-specs", get(qos::list).post(qos::create))
        .route("/v3/qos-specs/{id}", get(qos::show).put(qos::update).delete(qos::delete))
        .route("/v3/qos-specs/{id}/delete_keys", put(qos::delete_keys))
        .route("/v3/qos-specs/{id}/associations", get(qos::associations))
        .route("/v3/qos-specs/{id}/associate", get(qos::associate))
        .route("/v3/qos-specs/{id}/disassociate", get(qos::disassociate))
        .route("/v3/qos-specs/{id}/disassociate_all", get(qos::disassociate_all))
}

fn service_routes() -> Routes {
    Routes::new()
        .route("/v3/limits", get(quota::limits))
        .route("/v3/os-quota-sets/{project}", get(quota::show).put(quota::update).delete(quota::reset))
        .route("/v3/os-quota-sets/{project}/defaults", get(quota::defaults))
        .route("/v3/os-quota-class-sets/{class}", get(quota::class).put(quota::class_update))
        .route("/v3/os-services", get(service::list))
        .route("/v3/os-services/{action}", put(service::act))
        .route("/v3/os-hosts", get(service::hosts))
        .route("/v3/os-hosts/{host}", get(service::host))
        .route("/v3/scheduler-stats/get_pools", get(service::pools))
        .route("/v3/capabilities/{host}", get(service::backend))
        .route("/v3/resource_filters", get(service::filters))
        .route("/v3/os-availability-zone", get(service::zones))
        .route("/v3/messages", get(message::list))
        .route("/v3/messages/{id}", get(message::show).delete(message::delete))
        .route("/v3/extensions", get(extensions))
}

/// What has an empty id in the place of one.
async fn nowhere(_: Authenticated) -> Fault {
    Fault::NoRoute
}

async fn absent(_: Authenticated) -> Fault {
    Fault::not_implemented("this part of block storage")
}

#[derive(Serialize, JsonSchema)]
struct Extension {
    name: &'static str,
    alias: &'static str,
    description: &'static str,
    links: [Link; 0],
    updated: &'static str,
}

#[derive(Serialize, JsonSchema)]
struct Extensions {
    extensions: Vec<Extension>,
}

/// Block Storage API v3: list known API extensions.
async fn extensions(_: Authenticated) -> Answer<Extensions> {
    const EXTENSIONS: [(&str, &str); 8] = [
        ("Hosts", "os-hosts"),
        ("Services", "os-services"),
        ("Quotas", "os-quota-sets"),
        ("AvailabilityZones", "os-availability-zone"),
        ("TypesManage", "os-types-manage"),
        ("TypesExtraSpecs", "os-types-extra-specs"),
        ("VolumeActions", "os-volume-actions"),
        ("Qos_specs_manage", "qos-specs"),
    ];
    let updated = "2016-02-08T00:00:00+00:00";
    let shown =
        EXTENSIONS.map(|(name, alias)| Extension { name, alias, description: name, links: [], updated });
    Ok(Json(Extensions { extensions: shown.into() }))
}

/// A time to the microsecond, without a zone, as Cinder's database writes it: `2026-01-02T03:04:05.000006`.
fn time(time: Timestamp) -> String {
    crate::compute::microseconds(time)
}

/// Where one thing is.
#[derive(Serialize, JsonSchema)]
struct Link {
    rel: &'static str,
    href: String,
}

/// `self` and `bookmark` links of one thing.
fn links(state: &AppState, collection: &str, id: &str) -> [Link; 2] {
    let url = state.public_url();
    let link = |rel, version: &str| Link { rel, href: format!("{url}/volume{version}/{collection}/{id}") };
    [link("self", "/v3"), link("bookmark", "")]
}

/// A value that a version came with: absent before.
fn with<T>(version: Microversion, minor: u16, value: T) -> Option<T> {
    version.at_least(3, minor).then_some(value)
}

/// Whether the caller is shown what a rule guards that is about no one thing.
fn sees(caller: &Caller, rule: &str, default: policy::Default) -> bool {
    policy::allowed(rule, default, caller, &Target::of(&policy::own(caller)))
}

/// What came with `3.minor` is not there before.
fn since(version: Microversion, minor: u16) -> Result<(), Fault> {
    if version.at_least(3, minor) { Ok(()) } else { Err(Fault::NoRoute) }
}

/// Pages as Cinder cuts them: newest first, `offset` after the marker, a marker that is nowhere answers 404, and a page that
/// is full has a link to the next one.
fn paged<T>(
    filters: &Filters,
    rows: Vec<T>,
    id: impl Fn(&T) -> &str,
    keys: &[&str],
    value: impl Fn(&T, &str) -> Option<SortValue>,
) -> Result<Slice<T>, Fault> {
    let mut page = Page::of(filters, &[("created_at", Direction::Descending)])?;
    if let Some((key, _)) = page.sort.iter().find(|(key, _)| !keys.contains(&key.as_str())) {
        return Err(Fault::malformed(format!("Invalid sort key: {key}")));
    }
    if let Some(marker) = &page.marker
        && !rows.iter().any(|row| id(row) == marker)
    {
        return Err(control::error::Error::not_found("Marker", marker.clone()).into());
    }
    let offset = match filters.get("offset") {
        None | Some("") => 0,
        Some(text) => text
            .parse::<u32>()
            .map_err(|_| Fault::malformed(format!("Invalid input for offset: '{text}' is no such integer")))?
            as usize,
    };
    let limit = page.limit;
    page.limit = limit.map(|limit| limit.saturating_add(offset));
    let mut slice = page.cut(rows, &id, value)?;
    slice.rows.drain(..offset.min(slice.rows.len()));
    if limit.is_some_and(|limit| limit > 0 && slice.rows.len() == limit) {
        slice.next = slice.rows.last().map(|row| id(row).to_owned());
    }
    Ok(slice)
}

/// A whole number of at least 1, also as text; none if it is null.
fn size(value: &Value) -> Result<Option<u64>, Fault> {
    let number = match value {
        Value::Null => return Ok(None),
        Value::Number(number) => number.as_u64(),
        Value::String(text) if text.len() <= 20 => text.parse().ok(),
        _ => None,
    };
    match number {
        Some(number) if number > 0 => Ok(Some(number)),
        _ => Err(Fault::malformed(format!(
            "Invalid input received: a size must be an integer and greater than 0; it is {value}."
        ))),
    }
}

/// A yes or no of a body, by oslo's rule; none if it is null. (The schemas of Cinder that list its words list them in some
/// cases only.)
fn lenient_flag(key: &str, value: &Value) -> Result<Option<bool>, Fault> {
    let text = match value {
        Value::Null => return Ok(None),
        Value::Bool(flag) => return Ok(Some(*flag)),
        Value::String(text) => text.clone(),
        Value::Number(number) => number.to_string(),
        _ => String::new(),
    };
    boolean::from_text(&text).map(Some).ok_or_else(|| {
        Fault::malformed(format!(
            "Invalid input for field/attribute {key}. Value: {value}. It is no boolean."
        ))
    })
}

/// A text, or null.
fn text_or_null(key: &str, value: &Value) -> Result<Option<String>, Fault> {
    match value {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone())),
        other => Err(Fault::malformed(format!(
            "Invalid input for field/attribute {key}. Value: {other}. It is not of type 'string', 'null'."
        ))),
    }
}

/// An object of texts.
fn properties(value: &Value) -> Result<BTreeMap<String, String>, Fault> {
    let wrong = |value: &Value| {
        Fault::malformed(format!(
            "Invalid input for field/attribute metadata. Value: {value}. It is no object of texts."
        ))
    };
    let object = value.as_object().ok_or_else(|| wrong(value))?;
    object
        .iter()
        .map(|(key, value)| Ok((key.clone(), value.as_str().ok_or_else(|| wrong(value))?.to_owned())))
        .collect()
}

#[cfg(test)]
mod tests {
    use axum::http::Method;
    use serde_json::{Value, json};

    use crate::harness::Harness;

    #[tokio::test]
    async fn quotas_are_there_with_and_without_a_project_in_the_path_and_consistency_groups_are_not() {
        let cloud = Harness::new().await;
        let token = cloud.admin_token().await;
        let caller = cloud.control.token_caller(&token, String::new()).await.unwrap();
        let id = caller.project_id().unwrap();
        let set = format!("/volume/v3/{id}/os-quota-sets/{id}");
        let changed = cloud.admin(Method::PUT, &set, json!({"quota_set": {"volumes": 20}})).await;
        assert_eq!(changed.json()["quota_set"]["volumes"], 20);
        let shown =
            cloud.admin(Method::GET, &format!("/volume/v3/os-quota-sets/{id}?usage=True"), Value::Null).await;
        assert_eq!(shown.json()["quota_set"]["volumes"], json!({"limit": 20, "in_use": 0, "reserved": 0}));
        assert_eq!(cloud.admin(Method::DELETE, &set, Value::Null).await.status, 200);
        let limits = cloud.admin(Method::GET, "/volume/v3/limits", Value::Null).await.json();
        assert_eq!(limits["limits"]["absolute"]["maxTotalVolumes"], 10);
        let refused = cloud.admin(Method::PUT, &set, json!({"quota_set": {"bananas": 1}})).await;
        assert_eq!(
            (refused.status.as_u16(), refused.json()["badRequest"]["code"].clone()),
            (400, json!(400))
        );
        let absent = cloud.admin(Method::GET, "/volume/v3/consistencygroups/detail", Value::Null).await;
        assert_eq!(
            (absent.status.as_u16(), absent.json()["notImplemented"]["code"].clone()),
            (501, json!(501))
        );
        let other = "/volume/v3/0123456789abcdef0123456789abcdef/limits";
        assert_eq!(cloud.get(other, &[("x-auth-token", "nonsense")]).await.status, 401);
    }
}
