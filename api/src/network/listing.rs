//! Lists of the network service: filtering, sorting, paging and choosing fields over rows as they are shown.
//!
//! Must never know: any one resource.

use std::borrow::Cow;

use axum::Json;
use control::boolean;
use jiff::Timestamp;
use jiff::civil::DateTime;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::Value;

use super::invalid;
use super::shown::{Chosen, One, Shown};
use crate::context::{Answer, Filters, RequestUrl};
use crate::error::Fault;
use crate::page::{Direction, NeutronLink, Page, SortValue};

/// Query parameters that say how to list, not what.
const LIST_PARAMETERS: [&str; 8] =
    ["fields", "limit", "marker", "sort_key", "sort_dir", "page_reverse", "project_domain_id", CHANGED_SINCE];
/// What a list of rows that changed from a time on is asked by (Network API: time stamp filtering).
const CHANGED_SINCE: &str = "changed_since";

/// A page of rows, with only the fields asked for, and links to the pages around it.
#[derive(Debug)]
pub(super) struct Listed<T> {
    rows: Vec<Chosen<T>>,
    links: Vec<NeutronLink>,
}

impl<T: Shown> Serialize for Listed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        map.serialize_entry(T::NAMES[1], &self.rows)?;
        if !self.links.is_empty() {
            map.serialize_entry(&format!("{}_links", T::NAMES[1]), &self.links)?;
        }
        map.end()
    }
}

impl<T: Shown> JsonSchema for Listed<T> {
    fn inline_schema() -> bool {
        true
    }

    fn schema_name() -> Cow<'static, str> {
        T::NAMES[1].into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let rows = generator.subschema_for::<Vec<Chosen<T>>>();
        let links = generator.subschema_for::<Vec<NeutronLink>>();
        let many = T::NAMES[1];
        json_schema!({
            "type": "object",
            "properties": {many: rows, format!("{many}_links"): links},
            "required": [many],
        })
    }
}

/// A list as the network service answers it: rows filtered by their own fields, sorted, cut, with only the fields
/// asked for. A filter on a field that rows do not have matches nothing it should not: it is ignored, as Neutron does.
pub(super) fn listing<T: Shown>(
    rows: impl IntoIterator<Item = T>,
    filters: &Filters,
    url: &RequestUrl,
) -> Answer<Listed<T>> {
    if filters.all("sort_key").count() != filters.all("sort_dir").count() {
        return Err(Fault::malformed("The number of sort_keys and sort_dirs must be same"));
    }
    let since = filters.get(CHANGED_SINCE).map(read_time).transpose()?;
    let changed = |row: &Value| since.is_none_or(|since| changed_at(row).is_none_or(|at| at >= since));
    let mut rows = rows.into_iter().map(|row| whole(&row)).peekable();
    rows.peek().map_or(Ok(()), |row| check_flags(row, filters))?;
    let rows: Vec<Value> = rows.filter(|row| changed(row) && wanted(row, filters, T::ID)).collect();
    let page = Page::of(filters, &[("id", Direction::Ascending)])?;
    let page = Page { limit: page.limit.filter(|limit| *limit > 0), ..page };
    let slice = page.cut(
        rows,
        |row| field(row, "id", T::ID).and_then(Value::as_str).unwrap_or_default(),
        |row, key| field(row, key, T::ID).map(sort_value),
    )?;
    let fields: Vec<&str> = filters.all("fields").collect();
    let (rows, links) = slice.with_neutron_links(url, |row| Chosen::of(row, &fields));
    Ok(Json(Listed { rows, links }))
}

/// One row as it is shown, with only the fields asked for.
pub(super) fn shown<T: Shown>(row: &T, filters: &Filters) -> Json<One<Chosen<T>>> {
    let fields: Vec<&str> = filters.all("fields").collect();
    Json(One(Chosen::of(whole(row), &fields)))
}

/// A row with all its fields.
fn whole(row: &impl Serialize) -> Value {
    serde_json::to_value(row).expect("what is shown has texts for keys, and nothing in it fails")
}

/// A time with or without a zone; in UTC if it has none.
fn read_time(text: &str) -> Result<Timestamp, Fault> {
    let zoned = text.parse::<Timestamp>().ok();
    let plain =
        || text.parse::<DateTime>().ok()?.to_zoned(jiff::tz::TimeZone::UTC).ok().map(|time| time.timestamp());
    zoned.or_else(plain).ok_or_else(|| {
        invalid(format!("Invalid input for operation: The input {CHANGED_SINCE} must be in the following format: YYYY-MM-DDTHH:MM:SS[Z|[+-]hh:mm]."))
    })
}

fn changed_at(row: &Value) -> Option<Timestamp> {
    row.get("updated_at")?.as_str()?.parse().ok()
}

/// A field of a row; `id` is the one that tells it from the others, whatever that is called.
fn field<'a>(row: &'a Value, key: &str, id: &str) -> Option<&'a Value> {
    row.get(if key == "id" { id } else { key })
}

fn sort_value(value: &Value) -> SortValue {
    match value {
        Value::Bool(flag) => (*flag).into(),
        Value::Number(number) => number.as_i64().map_or(SortValue::Absent, |n| SortValue::Number(n.into())),
        Value::String(text) => text.as_str().into(),
        _ => SortValue::Absent,
    }
}

/// Refuses a filter that is neither yes nor no where rows have a yes or no, as Neutron does (neutron-lib, `convert_to_boolean`).
fn check_flags(row: &Value, filters: &Filters) -> Result<(), Fault> {
    let is_neither = |(key, text): &&(String, String)| {
        row.get(key).is_some_and(Value::is_boolean) && !text.is_empty() && boolean::from_text(text).is_none()
    };
    match filters.pairs().iter().find(is_neither) {
        Some((_, text)) => {
            Err(invalid(format!("Invalid input for operation: '{text}' cannot be converted to boolean.")))
        }
        None => Ok(()),
    }
}

fn wanted(row: &Value, filters: &Filters, id: &str) -> bool {
    let mut keys: Vec<&str> = filters.pairs().iter().map(|(key, _)| key.as_str()).collect();
    keys.sort_unstable();
    keys.dedup();
    keys.into_iter().filter(|key| !LIST_PARAMETERS.contains(key)).all(|key| match key {
        "tags" => tag_filter(row, filters, key, true),
        "tags-any" => tag_filter(row, filters, key, false),
        "not-tags" => !tag_filter(row, filters, key, true),
        "not-tags-any" => !tag_filter(row, filters, key, false),
        _ => {
            field(row, key, id).is_none_or(|value| matches_any(value, &filters.all(key).collect::<Vec<_>>()))
        }
    })
}

fn tag_filter(row: &Value, filters: &Filters, key: &str, all: bool) -> bool {
    let has = |tag: &str| row["tags"].as_array().is_some_and(|tags| tags.iter().any(|t| t == tag));
    let mut tags = filters.all(key).flat_map(|list| list.split(','));
    if all { tags.all(has) } else { tags.any(has) }
}

/// Whether a shown value is what any of a query's texts says. Texts about members of objects (`fixed_ips`) must hold for
/// each member they name.
fn matches_any(value: &Value, texts: &[&str]) -> bool {
    if value.is_boolean() && texts.iter().all(|text| text.is_empty()) {
        // Neutron leaves out what is empty.
        return true;
    }
    let is_objects = value.as_array().is_some_and(|items| items.first().is_some_and(Value::is_object));
    if !is_objects {
        return texts.iter().any(|text| matches_text(value, text));
    }
    let member = |text: &str| text.split_once('=').map(|(member, _)| member.to_owned());
    texts.iter().all(|text| {
        let same = texts.iter().filter(|other| member(other) == member(text));
        same.into_iter().any(|other| matches_text(value, other))
    })
}

/// Whether a shown value is what a query's text says: lists match by any element, elements that are objects
/// (`fixed_ips`) by `member=value`.
fn matches_text(value: &Value, text: &str) -> bool {
    match value {
        Value::Bool(flag) => boolean::from_text(text) == Some(*flag),
        Value::Number(number) => number.to_string() == text,
        Value::String(own) => own == text,
        Value::Null => text.is_empty(),
        Value::Array(items) => items.iter().any(|item| matches_text(item, text)),
        Value::Object(members) => {
            text.split_once('=').is_some_and(|(key, wanted)| match key.strip_suffix("_substr") {
                Some(key) => members.get(key).and_then(Value::as_str).is_some_and(|own| own.contains(wanted)),
                None => members.get(key).is_some_and(|value| matches_text(value, wanted)),
            })
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

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
            ("admin_state_up=y", true),
            ("admin_state_up=Off", false),
            ("admin_state_up=", true),
            ("admin_state_up=0&admin_state_up=1", true),
            ("fixed_ips=ip_address%3D10.0.0.5", true),
            ("fixed_ips=ip_address%3D10.0.0.6", false),
            ("fixed_ips=ip_address%3D10.0.0.6&fixed_ips=ip_address%3D10.0.0.5", true),
            ("fixed_ips=ip_address%3D10.0.0.5&fixed_ips=subnet_id%3Dother", false),
            ("fixed_ips=ip_address_substr%3D0.0.5", true),
            ("fixed_ips=ip_address_substr%3D0.0.6", false),
            ("tags=t1,t2", true),
            ("tags=t1,t3", false),
            ("tags-any=t1,t3", true),
            ("not-tags=t1", false),
            ("unknown=1", true),
            ("fields=id&limit=3", true),
        ] {
            assert_eq!(wanted(&row, &filters(query), "id"), expected, "{query}");
        }
    }

    #[test]
    fn filter_that_is_neither_yes_nor_no_is_refused_where_rows_have_either() {
        let row = json!({"name": "a", "shared": false});
        for query in ["shared=no&name=maybe", "shared=", "other=maybe", ""] {
            assert!(check_flags(&row, &filters(query)).is_ok(), "{query}");
        }
        for query in ["shared=maybe", "shared=True&shared=2"] {
            assert!(check_flags(&row, &filters(query)).is_err(), "{query}");
        }
    }
}
