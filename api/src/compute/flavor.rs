//! Flavors on the wire (Compute API: flavors, extra specs, access).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::model::compute::Flavor;
use control::service::flavor::{FlavorNew, FlavorScope};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Link, flag, links, number, require_anyone, since, with};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{TAKEN, Taken};
use crate::page::{Direction, NextLink, Page, Slice, SortValue};

/// The short form of a list.
#[derive(Serialize, JsonSchema)]
pub(super) struct FlavorBrief {
    id: String,
    name: String,
    links: [Link; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<Option<String>>,
}

/// A flavor.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Flavor")]
pub(super) struct ShownFlavor {
    id: String,
    name: String,
    ram: u32,
    disk: u32,
    vcpus: u32,
    swap: Swap,
    #[serde(rename = "OS-FLV-EXT-DATA:ephemeral")]
    ephemeral: u32,
    /// Always false.
    #[serde(rename = "OS-FLV-DISABLED:disabled")]
    disabled: bool,
    #[serde(rename = "os-flavor-access:is_public")]
    is_public: bool,
    rxtx_factor: f64,
    links: [Link; 2],
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extra_specs: Option<BTreeMap<String, String>>,
}

/// In MiB; before microversion 2.75 none is an empty text.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum Swap {
    None(&'static str),
    Mib(u32),
}

/// A list of flavors, in either form.
#[derive(Serialize, JsonSchema)]
pub(super) struct Flavors<T> {
    flavors: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    flavors_links: Option<NextLink>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneFlavor {
    flavor: ShownFlavor,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ExtraSpecs {
    extra_specs: BTreeMap<String, String>,
}

/// The projects that may use a flavor.
#[derive(Serialize, JsonSchema)]
pub(super) struct AccessList {
    flavor_access: Vec<Access>,
}

#[derive(Serialize, JsonSchema)]
struct Access {
    flavor_id: String,
    tenant_id: String,
}

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
) -> Answer<Flavors<FlavorBrief>> {
    let slice = found(&state, &caller, &filters).await?;
    let (flavors, flavors_links) = slice.with_links(&url, |flavor| FlavorBrief {
        links: links(&state, "flavors", &flavor.id),
        id: flavor.id,
        name: flavor.name,
        description: with(version, 55, flavor.description),
    });
    Ok(Json(Flavors { flavors, flavors_links }))
}

/// `GET /flavors/detail`.
pub(super) async fn detail(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Flavors<ShownFlavor>> {
    let slice = found(&state, &caller, &filters).await?;
    let (flavors, flavors_links) = slice.with_links(&url, |flavor| full(&state, version, &flavor));
    Ok(Json(Flavors { flavors, flavors_links }))
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

fn full(state: &AppState, version: Microversion, flavor: &Flavor) -> ShownFlavor {
    let swap = match flavor.swap_mib {
        0 if !version.at_least(2, 75) => Swap::None(""),
        mib => Swap::Mib(mib),
    };
    ShownFlavor {
        id: flavor.id.clone(),
        name: flavor.name.clone(),
        ram: flavor.ram_mib,
        disk: flavor.disk_gib,
        vcpus: flavor.vcpus,
        swap,
        ephemeral: flavor.ephemeral_gib,
        disabled: false,
        is_public: flavor.is_public,
        rxtx_factor: flavor.rxtx_factor,
        links: links(state, "flavors", &flavor.id),
        description: with(version, 55, flavor.description.clone()),
        extra_specs: with(version, 61, flavor.extra_specs.clone()),
    }
}

/// `GET /flavors/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<OneFlavor> {
    let flavor = state.control.flavor(&caller, &id).await?;
    Ok(Json(OneFlavor { flavor: full(&state, version, &flavor.row) }))
}

/// `POST /flavors`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<CreateBody>,
) -> Answer<OneFlavor> {
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
    Ok(Json(OneFlavor { flavor: full(&state, version, &flavor) }))
}

/// `PUT /flavors/{id}`: the description only.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<OneFlavor> {
    since(version, 55)?;
    let flavor = state.control.flavor_describe(&caller, &id, body.flavor.description).await?;
    Ok(Json(OneFlavor { flavor: full(&state, version, &flavor) }))
}

/// `DELETE /flavors/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Taken, Fault> {
    state.control.flavor_delete(&caller, &id).await?;
    Ok(TAKEN)
}

/// `POST /flavors/{id}/action`: who may use it.
pub(super) async fn act(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Map<String, Value>>,
) -> Answer<AccessList> {
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
    Ok(Json(access_of(&flavor)))
}

/// `GET /flavors/{id}/os-flavor-access`.
pub(super) async fn access(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<AccessList> {
    control::policy::require_admin(&caller, "os_compute_api:os-flavor-access")?;
    let flavor = state.control.flavor(&caller, &id).await?;
    if flavor.row.is_public {
        return Err(Error::not_found("Access list of public flavor", id).into());
    }
    Ok(Json(access_of(&flavor.row)))
}

fn access_of(flavor: &Flavor) -> AccessList {
    let access = |project: &String| Access { flavor_id: flavor.id.clone(), tenant_id: project.clone() };
    AccessList { flavor_access: flavor.access.iter().map(access).collect() }
}

/// `GET /flavors/{id}/os-extra_specs`.
pub(super) async fn extra_specs(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<ExtraSpecs> {
    require_anyone(&caller, "os_compute_api:os-flavor-extra-specs:index")?;
    let flavor = state.control.flavor(&caller, &id).await?;
    Ok(Json(ExtraSpecs { extra_specs: flavor.row.extra_specs.clone() }))
}

/// `POST /flavors/{id}/os-extra_specs`.
pub(super) async fn set_extra_specs(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<ExtraSpecsBody>,
) -> Answer<ExtraSpecs> {
    let specs: Vec<(String, String)> = body
        .extra_specs
        .into_iter()
        .map(|(key, value)| Ok((key, text(value)?)))
        .collect::<Result<_, Fault>>()?;
    state.control.flavor_set_extra_specs(&caller, &id, &specs).await?;
    Ok(Json(ExtraSpecs { extra_specs: specs.into_iter().collect() }))
}

/// `GET /flavors/{id}/os-extra_specs/{key}`.
pub(super) async fn extra_spec(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Answer<BTreeMap<String, String>> {
    require_anyone(&caller, "os_compute_api:os-flavor-extra-specs:show")?;
    let flavor = state.control.flavor(&caller, &id).await?;
    let value = flavor.row.extra_specs.get(&key).cloned();
    let value = value.ok_or_else(|| Error::not_found("Extra spec", &key))?;
    Ok(Json(BTreeMap::from([(key, value)])))
}

/// `PUT /flavors/{id}/os-extra_specs/{key}`.
pub(super) async fn set_extra_spec(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
    Body(mut body): Body<BTreeMap<String, Value>>,
) -> Answer<BTreeMap<String, String>> {
    let value = body.remove(&key).filter(|_| body.is_empty());
    let value = text(value.ok_or_else(|| Fault::malformed("Request body and URI mismatch"))?)?;
    state.control.flavor_set_extra_specs(&caller, &id, &[(key.clone(), value.clone())]).await?;
    Ok(Json(BTreeMap::from([(key, value)])))
}

/// `DELETE /flavors/{id}/os-extra_specs/{key}`.
pub(super) async fn unset_extra_spec(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Result<(), Fault> {
    Ok(state.control.flavor_unset_extra_spec(&caller, &id, &key).await?)
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
