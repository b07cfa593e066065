//! Address groups on the wire (Network API v2.0: address-groups).

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::model::network::address_group::AddressGroup;
use control::service::address_group::AddressGroupCreate;
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::resource::{Resource, delete, list, show};
use super::{Created, One, Shown, StandardFields, invalid};
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::answer::Status;
use crate::openapi::{Routes, get, put};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    address_group: CreateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    project_id: Option<String>,
    tenant_id: Option<String>,
    #[serde(default)]
    addresses: Vec<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateBody {
    address_group: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    name: Option<String>,
    description: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddressesBody {
    addresses: Vec<String>,
}

/// The routes of address groups.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route("/v2.0/address-groups", get(list::<AddressGroup>).post(create))
        .route(
            "/v2.0/address-groups/{id}",
            get(show::<AddressGroup>).put(update).delete(delete::<AddressGroup>),
        )
        .route("/v2.0/address-groups/{id}/add_addresses", put(add))
        .route("/v2.0/address-groups/{id}/remove_addresses", put(remove))
}

fn addresses(texts: &[String]) -> Result<BTreeSet<IpNet>, Fault> {
    let read = |text: &String| {
        let prefix = text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from));
        prefix.map(|prefix| prefix.trunc()).map_err(|_| {
            invalid(format!(
                "Invalid input for addresses. Reason: '{text}' is not a valid IP address or CIDR."
            ))
        })
    };
    texts.iter().map(read).collect()
}

/// An address group as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AddressGroup")]
pub(super) struct ShownGroup {
    #[serde(flatten)]
    standard: StandardFields,
    name: String,
    addresses: Vec<String>,
    shared: bool,
}

impl Shown for ShownGroup {
    const NAMES: &'static [&'static str; 2] = &["address_group", "address_groups"];
}

fn view(state: &AppState, caller: &Caller, group: &AddressGroup) -> ShownGroup {
    ShownGroup {
        standard: (&group.standard).into(),
        name: group.standard.name.clone(),
        addresses: group.addresses.iter().map(IpNet::to_string).collect(),
        shared: state.control.is_shared_with(caller, &group.standard.id),
    }
}

impl Resource for AddressGroup {
    type View = ShownGroup;

    fn view(&self, state: &AppState, caller: &Caller) -> ShownGroup {
        view(state, caller, self)
    }

    async fn delete(control: &Control, caller: &Caller, id: &str) -> Result<(), Error> {
        control.address_group_delete(caller, id).await
    }
}

async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<CreateBody>,
) -> Created<One<ShownGroup>> {
    let fields = body.address_group;
    let request = AddressGroupCreate {
        name: fields.name,
        description: fields.description,
        project_id: fields.project_id.or(fields.tenant_id),
        addresses: addresses(&fields.addresses)?,
    };
    let group = state.control.address_group_create(&caller, request).await?;
    Ok(Status(Json(One(view(&state, &caller, &group.row)))))
}

async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownGroup>> {
    let fields = body.address_group;
    let (name, description) = (fields.name.as_deref(), fields.description.as_deref());
    let group = state.control.address_group_update(&caller, &id, name, description).await?;
    Ok(Json(One(view(&state, &caller, &group.row))))
}

async fn add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<AddressesBody>,
) -> Answer<One<ShownGroup>> {
    let group = state.control.address_group_add(&caller, &id, &addresses(&body.addresses)?).await?;
    Ok(Json(One(view(&state, &caller, &group.row))))
}

async fn remove(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<AddressesBody>,
) -> Answer<One<ShownGroup>> {
    let group = state.control.address_group_remove(&caller, &id, &addresses(&body.addresses)?).await?;
    Ok(Json(One(view(&state, &caller, &group.row))))
}
