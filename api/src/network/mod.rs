//! The network service (Network API v2.0): one file per resource, each with its wire structures and handlers, and
//! here what they share: filtering, sorting, paging and choosing fields over rows as they are shown.

mod extension;
#[expect(clippy::module_inception, reason = "the resource has the name of its service")]
mod network;
mod port;
mod quota;
mod security_group;
mod subnet;

use axum::Json;
use axum::http::StatusCode;
use serde::{Deserialize, Deserializer};
use serde_json::{Map, Value, json};

use crate::context::{Filters, RequestUrl};
use crate::error::Fault;
use crate::openapi::{Routes, get};
use crate::page::{Direction, Page, SortValue};

/// What a handler that makes something answers.
type Created = Result<(StatusCode, Json<Value>), Fault>;

/// Query parameters that say how to list, not what.
const LIST_PARAMETERS: [&str; 7] =
    ["fields", "limit", "marker", "sort_key", "sort_dir", "page_reverse", "project_domain_id"];

/// The routes below `/network`.
pub fn routes() -> Routes {
    Routes::new()
        .route("/v2.0", get(extension::resources))
        .route("/v2.0/extensions", get(extension::list))
        .route("/v2.0/extensions/{alias}", get(extension::show))
        .route("/v2.0/networks", get(network::list).post(network::create))
        .route("/v2.0/networks/{id}", get(network::show).put(network::update).delete(network::delete))
        .route("/v2.0/networks/{id}/tags", get(network::tags).put(network::set_tags))
        .route("/v2.0/subnets", get(subnet::list).post(subnet::create))
        .route("/v2.0/subnets/{id}", get(subnet::show).put(subnet::update).delete(subnet::delete))
        .route("/v2.0/ports", get(port::list).post(port::create))
        .route("/v2.0/ports/{id}", get(port::show).put(port::update).delete(port::delete))
        .route("/v2.0/security-groups", get(security_group::list).post(security_group::create))
        .route(
            "/v2.0/security-groups/{id}",
            get(security_group::show).put(security_group::update).delete(security_group::delete),
        )
        .route("/v2.0/security-group-rules", get(security_group::rule_list).post(security_group::rule_create))
        .route(
            "/v2.0/security-group-rules/{id}",
            get(security_group::rule_show).delete(security_group::rule_delete),
        )
        .route("/v2.0/quotas", get(quota::list))
        .route("/v2.0/quotas/{project_id}", get(quota::show).put(quota::update).delete(quota::reset))
        .route("/v2.0/quotas/{project_id}/default", get(quota::defaults))
        .route("/v2.0/quotas/{project_id}/details", get(quota::details))
}

/// A list as the network service answers it: rows filtered by their own fields, sorted, cut, with only the fields
/// asked for. A filter on a field that rows do not have matches nothing it should not: it is ignored, as Neutron does.
fn listing(
    collection: &str,
    rows: Vec<Value>,
    filters: &Filters,
    url: &RequestUrl,
) -> Result<Json<Value>, Fault> {
    let rows: Vec<Value> = rows.into_iter().filter(|row| wanted(row, filters)).collect();
    let page = Page::of(filters, &[("id", Direction::Ascending)])?;
    let page = Page { limit: page.limit.filter(|limit| *limit > 0), ..page };
    let slice = page.cut(rows, id_of, |row, key| row.get(key).map(sort_value))?;
    let fields: Vec<&str> = filters.all("fields").collect();
    Ok(Json(slice.neutron(collection, url, |row| choose_fields(row, &fields))))
}

/// One row as it is shown, with only the fields asked for.
fn shown(member: &str, row: Value, filters: &Filters) -> Json<Value> {
    let fields: Vec<&str> = filters.all("fields").collect();
    Json(json!({ member: choose_fields(row, &fields) }))
}

fn id_of(row: &Value) -> &str {
    row.get("id").and_then(Value::as_str).unwrap_or_default()
}

fn sort_value(value: &Value) -> SortValue {
    match value {
        Value::Bool(flag) => (*flag).into(),
        Value::Number(number) => number.as_i64().map_or(SortValue::Absent, |n| SortValue::Number(n.into())),
        Value::String(text) => text.as_str().into(),
        _ => SortValue::Absent,
    }
}

fn choose_fields(row: Value, fields: &[&str]) -> Value {
    match row {
        Value::Object(map) if !fields.is_empty() => Value::Object(
            map.into_iter().filter(|(key, _)| fields.contains(&key.as_str())).collect::<Map<_, _>>(),
        ),
        other => other,
    }
}

fn wanted(row: &Value, filters: &Filters) -> bool {
    let mut keys: Vec<&str> = filters.pairs().iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter().filter(|key| !LIST_PARAMETERS.contains(key)).all(|key| match key {
        "tags" => tag_filter(row, filters, key, true),
        "tags-any" => tag_filter(row, filters, key, false),
        "not-tags" => !tag_filter(row, filters, key, true),
        "not-tags-any" => !tag_filter(row, filters, key, false),
        _ => row.get(key).is_none_or(|value| filters.all(key).any(|text| matches_text(value, text))),
    })
}

fn tag_filter(row: &Value, filters: &Filters, key: &str, all: bool) -> bool {
    let has = |tag: &str| row["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == tag));
    let mut tags = filters.all(key).flat_map(|list| list.split(','));
    if all { tags.all(has) } else { tags.any(has) }
}

/// Whether a shown value is what a query's text says: lists match by any element, elements that are objects
/// (`fixed_ips`) by `member=value`.
fn matches_text(value: &Value, text: &str) -> bool {
    match value {
        Value::Bool(flag) => matches!(
            (flag, text.to_ascii_lowercase().as_str()),
            (true, "true" | "1" | "yes") | (false, "false" | "0" | "no")
        ),
        Value::Number(number) => number.to_string() == text,
        Value::String(own) => own == text,
        Value::Null => text.is_empty(),
        Value::Array(items) => items.iter().any(|item| matches_text(item, text)),
        Value::Object(members) => text
            .split_once('=')
            .is_some_and(|(key, wanted)| members.get(key).is_some_and(|value| matches_text(value, wanted))),
    }
}

/// For fields where `null` says something else than absence.
fn nullable<'de, T: Deserialize<'de>, D: Deserializer<'de>>(input: D) -> Result<Option<Option<T>>, D::Error> {
    Option::<T>::deserialize(input).map(Some)
}

/// The fields that every row of this service is shown with.
fn standard_fields(standard: &control::model::network::Standard) -> Map<String, Value> {
    let mut map = Map::new();
    map.insert("id".into(), json!(standard.id));
    map.insert("project_id".into(), json!(standard.project_id));
    map.insert("tenant_id".into(), json!(standard.project_id));
    map.insert("description".into(), json!(standard.description));
    map.insert("revision_number".into(), json!(standard.revision));
    map.insert("created_at".into(), json!(time_text(standard.created_at)));
    map.insert("updated_at".into(), json!(time_text(standard.updated_at)));
    map
}

/// Times as Neutron writes them: whole seconds.
fn time_text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Merges a row's own fields into those that every row has.
fn with_fields(mut map: Map<String, Value>, own: Value) -> Value {
    if let Value::Object(own) = own {
        map.extend(own);
    }
    Value::Object(map)
}

/// A MAC address, or a fault in Neutron's words.
fn read_mac(text: &str) -> Result<[u8; 6], Fault> {
    control::service::addressing::parse_mac(text).ok_or_else(|| {
        invalid(format!("Invalid input for mac_address. Reason: '{text}' is not a valid MAC address."))
    })
}

/// `InvalidInput`, Neutron's name for a value that cannot be.
fn invalid(message: impl Into<String>) -> Fault {
    control::error::Error::invalid("InvalidInput", message).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn filters(query: &str) -> Filters {
        Filters::of(&format!("/x?{query}").parse().unwrap()).unwrap()
    }

    #[test]
    fn rows_are_filtered_by_any_value_of_each_key() {
        let row = json!({
            "name": "a", "admin_state_up": true, "mtu": 1450, "tags": ["t1", "t2"],
            "fixed_ips": [{"subnet_id": "s", "ip_address": "10.0.0.5"}], "device_id": ""
        });
        for (query, expected) in [
            ("name=a", true),
            ("name=b&name=a", true),
            ("name=b", false),
            ("admin_state_up=True&mtu=1450", true),
            ("fixed_ips=ip_address%3D10.0.0.5", true),
            ("fixed_ips=ip_address%3D10.0.0.6", false),
            ("tags=t1,t2", true),
            ("tags=t1,t3", false),
            ("tags-any=t1,t3", true),
            ("not-tags=t1", false),
            ("unknown=1", true),
            ("fields=id&limit=3", true),
        ] {
            assert_eq!(wanted(&row, &filters(query)), expected, "{query}");
        }
    }
}
