//! Flavors on the wire (Compute API: flavors, extra specs, access).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::error::Error;
use control::model::compute::Flavor;
use control::service::flavor::{FlavorNew, FlavorScope};
use serde::Deserialize;
use serde_json::{Map, Value, json};

use super::{flag, links, number, require_anyone, since};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::page::{Direction, Page, Slice, SortValue};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    flavor: CreateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    name: String,
    id: Option<Value>,
    #[serde(default, deserialize_with = "number")]
    ram: Option<u32>,
    #[serde(default, deserialize_with = "number")]
    vcpus: Option<u32>,
    #[serde(default, deserialize_with = "number")]
    disk: Option<u32>,
    #[serde(rename = "OS-FLV-EXT-DATA:ephemeral", default, deserialize_with = "number")]
    ephemeral: Option<u32>,
    #[serde(default, deserialize_with = "number")]
    swap: Option<u32>,
    rxtx_factor: Option<Value>,
    #[serde(rename = "os-flavor-access:is_public", default, deserialize_with = "flag")]
    is_public: Option<bool>,
    description: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    flavor: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    description: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ExtraSpecsBody {
    extra_specs: BTreeMap<String, Value>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AccessArgument {
    tenant: String,
}

/// `GET /flavors`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let slice = found(&state, &caller, &filters).await?;
    let brief = |flavor: Flavor| {
        let mut shown =
            json!({"id": flavor.id, "name": flavor.name, "links": links(&state, "flavors", &flavor.id)});
        if version.at_least(2, 55) {
            shown["description"] = json!(flavor.description);
        }
        shown
    };
    Ok(Json(slice.nova("flavors", &url, brief)))
}

/// `GET /flavors/detail`.
pub(super) async fn detail(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let slice = found(&state, &caller, &filters).await?;
    Ok(Json(slice.nova("flavors", &url, |flavor| full(&state, version, &flavor))))
}

async fn found(
    state: &AppState,
    caller: &control::caller::Caller,
    filters: &Filters,
) -> Result<Slice<Flavor>, Fault> {
    let scope = match filters.get("is_public").map(str::to_ascii_lowercase).as_deref() {
        Some("none") => FlavorScope::All,
        _ if filters.flag("is_public")? == Some(false) => FlavorScope::Private,
        _ => FlavorScope::Usable,
    };
    let least = |key| match filters.get(key) {
        Some(text) => {
            text.parse::<u32>().map_err(|_| Fault::malformed(format!("Invalid {key} filter [{text}]")))
        }
        None => Ok(0),
    };
    let (ram, disk) = (least("minRam")?, least("minDisk")?);
    let page = Page::of(filters, &[("flavorid", Direction::Ascending)])?;
    let flavors = state.control.flavors(caller, scope).await?;
    let rows = flavors.iter().map(|stored| stored.row.clone());
    let rows = rows.filter(|flavor| flavor.ram_mib >= ram && flavor.disk_gib >= disk).collect();
    page.cut(
        rows,
        |flavor: &Flavor| &flavor.id,
        |flavor, key| {
            Some(match key {
                "flavorid" | "id" => flavor.id.as_str().into(),
                "name" => flavor.name.as_str().into(),
                "memory_mb" => u64::from(flavor.ram_mib).into(),
                "vcpus" => u64::from(flavor.vcpus).into(),
                "root_gb" => u64::from(flavor.disk_gib).into(),
                "ephemeral_gb" => u64::from(flavor.ephemeral_gib).into(),
                "swap" => u64::from(flavor.swap_mib).into(),
                "is_public" => flavor.is_public.into(),
                "created_at" | "updated_at" | "disabled" | "rxtx_factor" | "vcpu_weight" => SortValue::Absent,
                _ => return None,
            })
        },
    )
}

fn full(state: &AppState, version: Microversion, flavor: &Flavor) -> Value {
    let mut shown = json!({
        "id": flavor.id,
        "name": flavor.name,
        "ram": flavor.ram_mib,
        "disk": flavor.disk_gib,
        "vcpus": flavor.vcpus,
        "swap": if flavor.swap_mib == 0 && !version.at_least(2, 75) { json!("") } else { json!(flavor.swap_mib) },
        "OS-FLV-EXT-DATA:ephemeral": flavor.ephemeral_gib,
        "OS-FLV-DISABLED:disabled": false,
        "os-flavor-access:is_public": flavor.is_public,
        "rxtx_factor": flavor.rxtx_factor,
        "links": links(state, "flavors", &flavor.id),
    });
    if version.at_least(2, 55) {
        shown["description"] = json!(flavor.description);
    }
    if version.at_least(2, 61) {
        shown["extra_specs"] = json!(flavor.extra_specs);
    }
    shown
}

/// `GET /flavors/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let flavor = state.control.flavor(&caller, &id).await?;
    Ok(Json(json!({"flavor": full(&state, version, &flavor.row)})))
}

/// `POST /flavors`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<CreateBody>,
) -> Answer<Value> {
    let fields = body.flavor;
    if fields.description.is_some() && !version.at_least(2, 55) {
        return Err(Fault::malformed("Additional properties are not allowed ('description' was unexpected)"));
    }
    let required = |value: Option<u32>, name: &str| {
        value.ok_or_else(|| {
            Fault::malformed(format!(
                "Invalid input for field/attribute flavor. '{name}' is a required property"
            ))
        })
    };
    let id = match fields.id {
        None | Some(Value::Null) => None,
        Some(Value::Number(number)) => Some(number.to_string()),
        Some(Value::String(text)) if text == "auto" => None,
        Some(Value::String(text)) => Some(text),
        Some(_) => return Err(Fault::malformed("Invalid input for field/attribute id.")),
    };
    let rxtx_factor = match fields.rxtx_factor {
        None | Some(Value::Null) => 1.0,
        Some(Value::String(text)) => text.parse().unwrap_or(f64::NAN),
        Some(other) => other.as_f64().unwrap_or(f64::NAN),
    };
    let new = FlavorNew {
        id,
        name: fields.name,
        vcpus: required(fields.vcpus, "vcpus")?,
        ram_mib: required(fields.ram, "ram")?,
        disk_gib: required(fields.disk, "disk")?,
        ephemeral_gib: fields.ephemeral.unwrap_or(0),
        swap_mib: fields.swap.unwrap_or(0),
        rxtx_factor,
        is_public: fields.is_public.unwrap_or(true),
        description: fields.description,
    };
    let flavor = state.control.flavor_create(&caller, new).await?;
    Ok(Json(json!({"flavor": full(&state, version, &flavor)})))
}

/// `PUT /flavors/{id}`: the description only.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<Value> {
    since(version, 55)?;
    let flavor = state.control.flavor_describe(&caller, &id, body.flavor.description).await?;
    Ok(Json(json!({"flavor": full(&state, version, &flavor)})))
}

/// `DELETE /flavors/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<StatusCode, Fault> {
    state.control.flavor_delete(&caller, &id).await?;
    Ok(StatusCode::ACCEPTED)
}

/// `POST /flavors/{id}/action`: who may use it.
pub(super) async fn act(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Map<String, Value>>,
) -> Answer<Value> {
    let mut entries = body.into_iter();
    let (Some((name, argument)), None) = (entries.next(), entries.next()) else {
        return Err(Fault::malformed("The body has exactly one member."));
    };
    let allowed = match name.as_str() {
        "addTenantAccess" => true,
        "removeTenantAccess" => false,
        other => return Err(Fault::malformed(format!("There is no such action: {other}"))),
    };
    let argument: AccessArgument = serde_json::from_value(argument)
        .map_err(|error| Fault::malformed(format!("Invalid input: {error}")))?;
    let flavor = state.control.flavor_set_access(&caller, &id, &argument.tenant, allowed).await?;
    Ok(Json(json!({"flavor_access": access_of(&flavor)})))
}

/// `GET /flavors/{id}/os-flavor-access`.
pub(super) async fn access(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    control::policy::require_admin(&caller, "os_compute_api:os-flavor-access")?;
    let flavor = state.control.flavor(&caller, &id).await?;
    if flavor.row.is_public {
        return Err(Error::not_found("Access list of public flavor", id).into());
    }
    Ok(Json(json!({"flavor_access": access_of(&flavor.row)})))
}

fn access_of(flavor: &Flavor) -> Value {
    flavor.access.iter().map(|project| json!({"flavor_id": flavor.id, "tenant_id": project})).collect()
}

/// `GET /flavors/{id}/os-extra_specs`.
pub(super) async fn extra_specs(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    require_anyone(&caller, "os_compute_api:os-flavor-extra-specs:index")?;
    let flavor = state.control.flavor(&caller, &id).await?;
    Ok(Json(json!({"extra_specs": flavor.row.extra_specs})))
}

/// `POST /flavors/{id}/os-extra_specs`.
pub(super) async fn set_extra_specs(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<ExtraSpecsBody>,
) -> Answer<Value> {
    let specs: Vec<(String, String)> = body
        .extra_specs
        .into_iter()
        .map(|(key, value)| Ok((key, text(value)?)))
        .collect::<Result<_, Fault>>()?;
    state.control.flavor_set_extra_specs(&caller, &id, &specs).await?;
    Ok(Json(json!({"extra_specs": specs.into_iter().collect::<BTreeMap<_, _>>()})))
}

/// `GET /flavors/{id}/os-extra_specs/{key}`.
pub(super) async fn extra_spec(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Answer<Value> {
    require_anyone(&caller, "os_compute_api:os-flavor-extra-specs:show")?;
    let flavor = state.control.flavor(&caller, &id).await?;
    let value = flavor.row.extra_specs.get(&key).ok_or_else(|| Error::not_found("Extra spec", &key))?;
    Ok(Json(json!({key: value})))
}

/// `PUT /flavors/{id}/os-extra_specs/{key}`.
pub(super) async fn set_extra_spec(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
    Body(mut body): Body<BTreeMap<String, Value>>,
) -> Answer<Value> {
    let value = body.remove(&key).filter(|_| body.is_empty());
    let value = text(value.ok_or_else(|| Fault::malformed("Request body and URI mismatch"))?)?;
    state.control.flavor_set_extra_specs(&caller, &id, &[(key.clone(), value.clone())]).await?;
    Ok(Json(json!({key: value})))
}

/// `DELETE /flavors/{id}/os-extra_specs/{key}`.
pub(super) async fn unset_extra_spec(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Result<StatusCode, Fault> {
    state.control.flavor_unset_extra_spec(&caller, &id, &key).await?;
    Ok(StatusCode::OK)
}

/// Values are text; numbers and booleans are taken as theirs.
fn text(value: Value) -> Result<String, Fault> {
    match value {
        Value::String(text) => Ok(text),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(flag) => Ok(flag.to_string()),
        _ => Err(Fault::malformed("Invalid input for field/attribute extra_specs: values are text.")),
    }
}
