//! Address groups on the wire (Network API v2.0: address-groups).

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::model::network::address_group::AddressGroup;
use control::service::address_group::AddressGroupCreate;
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use super::resource::{Resource, delete, list, show};
use super::{Created, invalid, standard_fields, with_fields};
use crate::context::{AppState, Authenticated, Body, Segments};
use crate::error::Fault;
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

fn view(state: &AppState, caller: &Caller, group: &AddressGroup) -> Value {
    let shared = state.control.is_shared_with(caller, &group.standard.id);
    with_fields(
        standard_fields(&group.standard),
        json!({"name": group.standard.name, "addresses": group.addresses, "shared": shared}),
    )
}

impl Resource for AddressGroup {
    const NAMES: [&'static str; 2] = ["address_group", "address_groups"];

    fn view(&self, state: &AppState, caller: &Caller) -> Value {
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
) -> Created {
    let fields = body.address_group;
    let request = AddressGroupCreate {
        name: fields.name,
        description: fields.description,
        project_id: fields.project_id.or(fields.tenant_id),
        addresses: addresses(&fields.addresses)?,
    };
    let group = state.control.address_group_create(&caller, request).await?;
    Ok((StatusCode::CREATED, Json(json!({"address_group": view(&state, &caller, &group.row)}))))
}

async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Result<Json<Value>, Fault> {
    let fields = body.address_group;
    let (name, description) = (fields.name.as_deref(), fields.description.as_deref());
    let group = state.control.address_group_update(&caller, &id, name, description).await?;
    Ok(Json(json!({"address_group": view(&state, &caller, &group.row)})))
}

async fn add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<AddressesBody>,
) -> Result<Json<Value>, Fault> {
    let group = state.control.address_group_add(&caller, &id, &addresses(&body.addresses)?).await?;
    Ok(Json(json!({"address_group": view(&state, &caller, &group.row)})))
}

async fn remove(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<AddressesBody>,
) -> Result<Json<Value>, Fault> {
    let group = state.control.address_group_remove(&caller, &id, &addresses(&body.addresses)?).await?;
    Ok(Json(json!({"address_group": view(&state, &caller, &group.row)})))
}
