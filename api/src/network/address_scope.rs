//! Address scopes on the wire (Network API v2.0: address-scopes).

use axum::Json;
use axum::extract::State;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::model::network::pool::AddressScope;
use control::service::address_scope::AddressScopeCreate;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::resource::{Resource, delete, list, show};
use super::{Created, Number, One, OwnerFields, Shown};
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::openapi::answer::Status;
use crate::openapi::{Routes, get};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    address_scope: CreateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    #[serde(default)]
    name: String,
    ip_version: Option<Number<u8>>,
    shared: Option<bool>,
    project_id: Option<String>,
    tenant_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateBody {
    address_scope: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    name: Option<String>,
    shared: Option<bool>,
}

/// The routes of address scopes.
pub(super) fn routes() -> Routes {
    Routes::new().route("/v2.0/address-scopes", get(list::<AddressScope>).post(create)).route(
        "/v2.0/address-scopes/{id}",
        get(show::<AddressScope>).put(update).delete(delete::<AddressScope>),
    )
}

/// An address scope as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AddressScope")]
pub(super) struct ShownScope {
    #[serde(flatten)]
    owner: OwnerFields,
    name: String,
    ip_version: u8,
    shared: bool,
}

impl Shown for ShownScope {
    const NAMES: &'static [&'static str; 2] = &["address_scope", "address_scopes"];
}

fn view(state: &AppState, caller: &Caller, scope: &AddressScope) -> ShownScope {
    ShownScope {
        owner: (&scope.standard).into(),
        name: scope.standard.name.clone(),
        ip_version: scope.ip_version,
        shared: scope.shared || state.control.is_shared_with(caller, &scope.standard.id),
    }
}

impl Resource for AddressScope {
    type View = ShownScope;

    fn view(&self, state: &AppState, caller: &Caller) -> ShownScope {
        view(state, caller, self)
    }

    async fn delete(control: &Control, caller: &Caller, id: &str) -> Result<(), Error> {
        control.address_scope_delete(caller, id).await
    }
}

async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<CreateBody>,
) -> Created<One<ShownScope>> {
    let fields = body.address_scope;
    let request = AddressScopeCreate {
        name: fields.name,
        project_id: fields.project_id.or(fields.tenant_id),
        ip_version: fields.ip_version.map_or(4, |version| version.0),
        shared: fields.shared.unwrap_or(false),
    };
    let scope = state.control.address_scope_create(&caller, request).await?;
    Ok(Status(Json(One(view(&state, &caller, &scope.row)))))
}

async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownScope>> {
    let fields = body.address_scope;
    let scope =
        state.control.address_scope_update(&caller, &id, fields.name.as_deref(), fields.shared).await?;
    Ok(Json(One(view(&state, &caller, &scope.row))))
}
