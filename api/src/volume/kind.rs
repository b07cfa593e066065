//! Volume types (Block Storage API: volume types, their extra specs and access).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::error::Error;
use control::model::volume::VolumeType;
use control::policy::{Default, require_list};
use control::service::volume::kind::TypeChange;
use control::store::Txn;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{lenient_flag, paged, properties, sees, text_or_null, time};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{TAKEN, Taken};
use crate::page::{NextLink, SortValue};

/// What the list is sorted by.
const SORT_KEYS: [&str; 4] = ["id", "name", "is_public", "created_at"];

const ACCESS: &str = "os-volume-type-access:is_public";

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "VolumeType")]
struct Shown {
    id: String,
    name: String,
    description: Option<String>,
    is_public: bool,
    #[serde(rename = "os-volume-type-access:is_public", skip_serializing_if = "Option::is_none")]
    access: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    extra_specs: Option<BTreeMap<String, String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    qos_specs_id: Option<Option<String>>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneType {
    volume_type: Shown,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Types {
    volume_types: Vec<Shown>,
    /// The one collection whose links have a shorter name.
    #[serde(skip_serializing_if = "Option::is_none")]
    volume_type_links: Option<NextLink>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct ExtraSpecs {
    extra_specs: BTreeMap<String, String>,
}

#[derive(Serialize, JsonSchema)]
struct TypeAccess {
    volume_type_id: String,
    project_id: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct AccessList {
    volume_type_access: Vec<TypeAccess>,
}

/// A type inside of the answer about an image of a volume.
#[derive(Serialize, JsonSchema)]
pub(super) struct InnerType {
    id: String,
    name: String,
    description: Option<String>,
    is_public: bool,
    extra_specs: BTreeMap<String, String>,
    qos_specs_id: Option<String>,
    created_at: String,
    updated_at: Option<String>,
    deleted: bool,
    /// Always null.
    deleted_at: Option<String>,
}

fn full(caller: &Caller, kind: &VolumeType) -> Shown {
    let shows_qos = sees(caller, "volume_extension:access_types_qos_specs_id", Default::Admin);
    Shown { qos_specs_id: shows_qos.then(|| kind.qos_id.clone()), ..made(caller, kind) }
}

/// What a creation and a change answer.
fn made(caller: &Caller, kind: &VolumeType) -> Shown {
    let shows_access = sees(caller, "volume_extension:volume_type_access", Default::Member);
    let shows_specs = sees(caller, "volume_extension:access_types_extra_specs", Default::Reader);
    Shown {
        id: kind.id.clone(),
        name: kind.name.clone(),
        description: kind.description.clone(),
        is_public: kind.is_public,
        access: shows_access.then_some(kind.is_public),
        extra_specs: shows_specs.then(|| specs(caller, kind)),
        qos_specs_id: None,
    }
}

/// What is not an administrator's to see is left out, unless a file lets others: how a backend is chosen.
fn specs(caller: &Caller, kind: &VolumeType) -> BTreeMap<String, String> {
    const VISIBLE: [&str; 3] = ["multiattach", "RESKEY:availability_zones", "replication_enabled"];
    let mut specs = kind.extra_specs.clone();
    if !sees(caller, "volume_extension:types_extra_specs:read_sensitive", Default::Admin) {
        specs.retain(|key, _| VISIBLE.contains(&key.as_str()));
    }
    specs
}

pub(super) fn inside(kind: &VolumeType) -> InnerType {
    InnerType {
        id: kind.id.clone(),
        name: kind.name.clone(),
        description: kind.description.clone(),
        is_public: kind.is_public,
        extra_specs: kind.extra_specs.clone(),
        qos_specs_id: kind.qos_id.clone(),
        created_at: time(kind.created_at),
        updated_at: kind.updated_at.map(time),
        deleted: false,
        deleted_at: None,
    }
}

/// `GET /types`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Types> {
    require_list(&caller, "volume_extension:type_get_all")?;
    let mut rows = state.control.volume_types(&caller).await?;
    let is_public = filters.get("is_public").map(str::to_ascii_lowercase);
    match is_public.as_deref() {
        Some("none") if caller.is_admin() => {}
        _ if !caller.is_admin() => {}
        None => rows.retain(|stored| stored.row.is_public),
        Some(_) => {
            let wanted = filters.flag("is_public")?.unwrap_or(true);
            rows.retain(|stored| stored.row.is_public == wanted);
        }
    }
    if let Some(name) = filters.get("name").filter(|_| version.at_least(3, 0)) {
        rows.retain(|stored| stored.row.name == name);
    }
    if let Some(text) = filters.get("extra_specs").filter(|_| version.at_least(3, 52)) {
        let wanted: BTreeMap<String, String> = serde_json::from_str(&text.replace('\'', "\""))
            .map_err(|_| Fault::malformed("Invalid filter extra_specs: it is no dictionary of texts."))?;
        rows.retain(|stored| {
            wanted.iter().all(|(key, value)| stored.row.extra_specs.get(key) == Some(value))
        });
    }
    let slice = paged(
        &filters,
        rows,
        |stored| &stored.row.id,
        &SORT_KEYS,
        |stored, key| {
            Some(match key {
                "id" => SortValue::from(stored.row.id.as_str()),
                "name" => stored.row.name.as_str().into(),
                "is_public" => stored.row.is_public.into(),
                "created_at" => stored.row.created_at.into(),
                _ => return None,
            })
        },
    )?;
    let (volume_types, volume_type_links) = slice.with_links(&url, |stored| full(&caller, &stored.row));
    Ok(Json(Types { volume_types, volume_type_links }))
}

/// `GET /types/{id}`, of which `default` is one.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<OneType> {
    require_list(&caller, "volume_extension:type_get")?;
    let stored = if id == "default" {
        state.control.volume_type_default(&caller).await?
    } else {
        state.control.volume_type(&caller, &id).await?
    };
    Ok(Json(OneType { volume_type: full(&caller, &stored.row) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct TypeBody {
    volume_type: TypeFields,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct TypeFields {
    name: Option<String>,
    #[serde(default)]
    description: Value,
    extra_specs: Option<Value>,
    #[serde(rename = "os-volume-type-access:is_public", default)]
    access: Value,
    #[serde(default)]
    is_public: Value,
}

impl TypeFields {
    fn public(&self) -> Result<Option<bool>, Fault> {
        Ok(lenient_flag(ACCESS, &self.access)?.or(lenient_flag("is_public", &self.is_public)?))
    }
}

/// `POST /types`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<TypeBody>,
) -> Answer<OneType> {
    let fields = body.volume_type;
    let name = fields.name.as_deref().unwrap_or_default();
    let description = text_or_null("description", &fields.description)?;
    let specs = fields.extra_specs.as_ref().map(properties).transpose()?.unwrap_or_default();
    let public = fields.public()?.unwrap_or(true);
    let new = state.control.volume_type_create(&caller, (name, description, public), specs).await?;
    Ok(Json(OneType { volume_type: made(&caller, &new.row) }))
}

/// `PUT /types/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<TypeBody>,
) -> Answer<OneType> {
    let fields = body.volume_type;
    let is_public = fields.public()?;
    let description = match &fields.description {
        Value::Null => None,
        other => Some(text_or_null("description", other)?),
    };
    if fields.name.is_none() && description.is_none() && is_public.is_none() {
        return Err(Fault::malformed(
            "Specify volume type name, description, is_public or a combination thereof.",
        ));
    }
    let change = TypeChange { name: fields.name, description, is_public };
    let stored = state.control.volume_type_update(&caller, &id, change).await?;
    Ok(Json(OneType { volume_type: Shown { access: None, ..made(&caller, &stored.row) } }))
}

/// `DELETE /types/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Taken, Fault> {
    state.control.volume_type_delete(&caller, &id).await?;
    Ok(TAKEN)
}

/// `GET /types/{id}/extra_specs`.
pub(super) async fn extra_specs(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<ExtraSpecs> {
    require_list(&caller, "volume_extension:types_extra_specs:index")?;
    let stored = state.control.volume_type(&caller, &id).await?;
    Ok(Json(ExtraSpecs { extra_specs: specs(&caller, &stored.row) }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecsBody {
    extra_specs: Value,
}

const SPECS: &str = "volume_extension:types_extra_specs:create";

/// `POST /types/{id}/extra_specs`.
pub(super) async fn set_extra_specs(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<SpecsBody>,
) -> Answer<ExtraSpecs> {
    let set = properties(&body.extra_specs)?;
    add_specs(&state, &caller, &id, &set).await?;
    Ok(Json(ExtraSpecs { extra_specs: set }))
}

async fn add_specs(
    state: &AppState,
    caller: &Caller,
    id: &str,
    set: &BTreeMap<String, String>,
) -> Result<(), Fault> {
    let good = |key: &String| {
        !key.is_empty() && key.chars().all(|c| c.is_ascii_alphanumeric() || "-_.: ".contains(c))
    };
    if set.is_empty() || !set.keys().all(good) {
        return Err(Fault::malformed(
            "Key Names can only contain alphanumeric characters, underscores, periods, colons, and hyphens.",
        ));
    }
    let change = |_: &control::store::Cache, kind: &mut VolumeType| {
        kind.extra_specs.extend(set.clone());
        Ok(Txn::new())
    };
    state.control.volume_type_change(caller, id, SPECS, change).await?;
    Ok(())
}

/// `GET /types/{id}/extra_specs/{key}`.
pub(super) async fn extra_spec(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Answer<BTreeMap<String, String>> {
    require_list(&caller, "volume_extension:types_extra_specs:show")?;
    let stored = state.control.volume_type(&caller, &id).await?;
    match specs(&caller, &stored.row).remove(&key) {
        Some(value) => Ok(Json(BTreeMap::from([(key, value)]))),
        None => {
            Err(Error::NotFound { kind: "Volume Type extra spec", id: format!("{id} with key {key}") }.into())
        }
    }
}

/// `PUT /types/{id}/extra_specs/{key}`.
pub(super) async fn set_extra_spec(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
    Body(body): Body<Value>,
) -> Answer<BTreeMap<String, String>> {
    let set = properties(&body)?;
    if set.len() != 1 {
        return Err(Fault::malformed("Request body contains too many items"));
    }
    if !set.contains_key(&key) {
        return Err(Fault::malformed("Request body and URI mismatch"));
    }
    add_specs(&state, &caller, &id, &set).await?;
    Ok(Json(set))
}

/// `DELETE /types/{id}/extra_specs/{key}`.
pub(super) async fn unset_extra_spec(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, key)): Segments<(String, String)>,
) -> Result<Taken, Fault> {
    let change = |_: &control::store::Cache, kind: &mut VolumeType| match kind.extra_specs.remove(&key) {
        Some(_) => Ok(Txn::new()),
        None => Err(Error::NotFound { kind: "Volume Type extra spec", id: format!("{id} with key {key}") }),
    };
    state.control.volume_type_change(&caller, &id, SPECS, change).await?;
    Ok(TAKEN)
}

/// `GET /types/{id}/os-volume-type-access`.
pub(super) async fn access(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<AccessList> {
    control::policy::require_admin(&caller, "volume_extension:volume_type_access:get_all_for_type")?;
    let stored = state.control.volume_type(&caller, &id).await?;
    if stored.row.is_public {
        return Err(
            Error::not_found("Access list not available for public volume types: volume type", id).into()
        );
    }
    let access =
        |project: &String| TypeAccess { volume_type_id: stored.row.id.clone(), project_id: project.clone() };
    Ok(Json(AccessList { volume_type_access: stored.row.access.iter().map(access).collect() }))
}

/// `POST /types/{id}/action`: opens a type to a project, or closes it.
pub(super) async fn act(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Map<String, Value>>,
) -> Result<Taken, Fault> {
    let (name, value) = match body.iter().next() {
        Some(action) if body.len() == 1 => action,
        _ => return Err(Fault::malformed("There is no such action: exactly one is named in a body.")),
    };
    let open = match name.as_str() {
        "addProjectAccess" => true,
        "removeProjectAccess" => false,
        other => return Err(Fault::malformed(format!("There is no such action: {other}"))),
    };
    let project = value["project"].as_str().filter(|project| (1..=36).contains(&project.len()));
    let project = project.ok_or_else(|| Fault::malformed("Invalid input for field/attribute project."))?;
    state.control.volume_type_access(&caller, &id, project, open).await?;
    Ok(TAKEN)
}
