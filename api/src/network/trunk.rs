//! Trunks on the wire (Network API v2.0: trunks, with their subports).

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::model::network::trunk::{SubPort, Trunk};
use control::service::addressing::mac_text;
use control::service::trunk::{TrunkCreate, TrunkDetails};
use serde::Deserialize;
use serde_json::{Value, json};

use super::bulk::{OneOrMany, Several};
use super::resource::{Resource, delete, list, show};
use super::{Created, Number, invalid, standard_fields, tag, with_fields};
use crate::context::{AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::{Routes, get, put};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    port_id: String,
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    project_id: Option<String>,
    tenant_id: Option<String>,
    admin_state_up: Option<bool>,
    #[serde(default)]
    sub_ports: Vec<SubPortFields>,
    #[serde(default)]
    tags: BTreeSet<String>,
}

impl Several for CreateFields {
    const NAMES: &'static [&'static str; 2] = &["trunk", "trunks"];
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct SubPortFields {
    port_id: String,
    segmentation_type: Option<String>,
    segmentation_id: Option<Number<u16>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateBody {
    trunk: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    name: Option<String>,
    description: Option<String>,
    admin_state_up: Option<bool>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AddBody {
    sub_ports: Vec<SubPortFields>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RemoveBody {
    sub_ports: Vec<RemoveFields>,
}

#[derive(Debug, Deserialize)]
struct RemoveFields {
    port_id: String,
}

/// The routes of trunks.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route("/v2.0/trunks", get(list::<Trunk>).post(create))
        .route("/v2.0/trunks/{id}", get(show::<Trunk>).put(update).delete(delete::<Trunk>))
        .route("/v2.0/trunks/{id}/get_subports", get(sub_ports))
        .route("/v2.0/trunks/{id}/add_subports", put(add))
        .route("/v2.0/trunks/{id}/remove_subports", put(remove))
        .merge(tag::routes::<Trunk>("trunks"))
}

impl TryFrom<SubPortFields> for SubPort {
    type Error = Fault;

    fn try_from(fields: SubPortFields) -> Result<Self, Fault> {
        match (fields.segmentation_type.as_deref(), fields.segmentation_id) {
            (Some("vlan"), Some(Number(vlan))) => Ok(Self { port_id: fields.port_id, vlan }),
            (Some("inherit"), _) => {
                Err(Fault::not_implemented("a subport whose segmentation is that of its network"))
            }
            (None, _) | (_, None) => Err(invalid(
                "Invalid input for operation: Invalid subport details: missing segmentation_type or segmentation_id.",
            )),
            (Some(other), Some(_)) => {
                Err(invalid(format!("Invalid input for operation: Unknown segmentation type: {other}.")))
            }
        }
    }
}

fn read(fields: Vec<SubPortFields>) -> Result<Vec<SubPort>, Fault> {
    fields.into_iter().map(SubPort::try_from).collect()
}

fn sub_port_views(trunk: &Trunk) -> Vec<Value> {
    let view = |sub_port: &SubPort| {
        json!({
            "port_id": sub_port.port_id, "segmentation_type": "vlan", "segmentation_id": sub_port.vlan,
        })
    };
    trunk.sub_ports.iter().map(view).collect()
}

/// What a port that carries others says of them; null of any other.
pub(super) fn details(state: &AppState, port_id: &str) -> Value {
    let Some(TrunkDetails { trunk, macs }) = state.control.trunk_of_port(port_id) else {
        return Value::Null;
    };
    let mut rows = sub_port_views(&trunk.row);
    for (row, mac) in rows.iter_mut().zip(macs) {
        row["mac_address"] = json!(mac_text(mac));
    }
    json!({"trunk_id": trunk.row.standard.id, "sub_ports": rows})
}

fn view(state: &AppState, trunk: &Trunk) -> Value {
    with_fields(
        standard_fields(&trunk.standard),
        json!({
            "name": trunk.standard.name,
            "port_id": trunk.port_id,
            "admin_state_up": trunk.admin_state_up,
            "status": if state.control.trunk_is_active(trunk) { "ACTIVE" } else { "DOWN" },
            "sub_ports": sub_port_views(trunk),
            "tags": trunk.standard.tags,
        }),
    )
}

impl Resource for Trunk {
    const NAMES: [&'static str; 2] = ["trunk", "trunks"];

    fn view(&self, state: &AppState, _: &Caller) -> Value {
        view(state, self)
    }

    async fn delete(control: &Control, caller: &Caller, id: &str) -> Result<(), Error> {
        control.trunk_delete(caller, id).await
    }
}

async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<OneOrMany<CreateFields>>,
) -> Created {
    let fields = body.one()?;
    let request = TrunkCreate {
        name: fields.name,
        description: fields.description,
        project_id: fields.project_id.or(fields.tenant_id),
        port_id: fields.port_id,
        admin_state_up: fields.admin_state_up.unwrap_or(true),
        sub_ports: read(fields.sub_ports)?,
        tags: fields.tags,
    };
    let trunk = state.control.trunk_create(&caller, request).await?;
    Ok((StatusCode::CREATED, Json(json!({"trunk": view(&state, &trunk.row)}))))
}

async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Result<Json<Value>, Fault> {
    let fields = body.trunk;
    let texts = (fields.name.as_deref(), fields.description.as_deref());
    let trunk = state.control.trunk_update(&caller, &id, texts, fields.admin_state_up).await?;
    Ok(Json(json!({"trunk": view(&state, &trunk.row)})))
}

async fn sub_ports(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Json<Value>, Fault> {
    let trunk = state.control.network_resource::<Trunk>(&caller, &id).await?;
    Ok(Json(json!({"sub_ports": sub_port_views(&trunk.row)})))
}

async fn add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<AddBody>,
) -> Result<Json<Value>, Fault> {
    let trunk = state.control.trunk_add(&caller, &id, &read(body.sub_ports)?).await?;
    Ok(Json(view(&state, &trunk.row)))
}

async fn remove(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<RemoveBody>,
) -> Result<Json<Value>, Fault> {
    let ports: Vec<String> = body.sub_ports.into_iter().map(|sub_port| sub_port.port_id).collect();
    let trunk = state.control.trunk_remove(&caller, &id, &ports).await?;
    Ok(Json(view(&state, &trunk.row)))
}
