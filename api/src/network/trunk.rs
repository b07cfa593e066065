//! Trunks on the wire (Network API v2.0: trunks, with their subports).

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::model::network::trunk::{SubPort, Trunk};
use control::service::addressing::mac_text;
use control::service::trunk::{TrunkCreate, TrunkDetails};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bulk::{OneOrMany, Several};
use super::resource::{Resource, delete, list, show};
use super::{Created, Number, One, Shown, StandardFields, invalid, tag};
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::answer::Status;
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
    type View = ShownTrunk;
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

/// A trunk as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Trunk")]
pub(super) struct ShownTrunk {
    #[serde(flatten)]
    standard: StandardFields,
    name: String,
    port_id: String,
    admin_state_up: bool,
    status: &'static str,
    sub_ports: Vec<ShownSubPort>,
    tags: BTreeSet<String>,
}

/// A subport as it is shown; its MAC address where its trunk's port is.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SubPort")]
struct ShownSubPort {
    port_id: String,
    segmentation_type: &'static str,
    segmentation_id: u16,
    #[serde(skip_serializing_if = "Option::is_none")]
    mac_address: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct SubPorts {
    sub_ports: Vec<ShownSubPort>,
}

/// What a port that carries others says of them.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "TrunkDetails")]
pub(super) struct Details {
    trunk_id: String,
    sub_ports: Vec<ShownSubPort>,
}

impl Shown for ShownTrunk {
    const NAMES: &'static [&'static str; 2] = &["trunk", "trunks"];
}

fn sub_port_views(trunk: &Trunk) -> Vec<ShownSubPort> {
    let view = |sub_port: &SubPort| ShownSubPort {
        port_id: sub_port.port_id.clone(),
        segmentation_type: "vlan",
        segmentation_id: sub_port.vlan,
        mac_address: None,
    };
    trunk.sub_ports.iter().map(view).collect()
}

/// What a port that carries others says of them; nothing of any other.
pub(super) fn details(state: &AppState, port_id: &str) -> Option<Details> {
    let TrunkDetails { trunk, macs } = state.control.trunk_of_port(port_id)?;
    let mut sub_ports = sub_port_views(&trunk.row);
    for (row, mac) in sub_ports.iter_mut().zip(macs) {
        row.mac_address = Some(mac_text(mac));
    }
    Some(Details { trunk_id: trunk.row.standard.id.clone(), sub_ports })
}

fn view(state: &AppState, trunk: &Trunk) -> ShownTrunk {
    ShownTrunk {
        standard: (&trunk.standard).into(),
        name: trunk.standard.name.clone(),
        port_id: trunk.port_id.clone(),
        admin_state_up: trunk.admin_state_up,
        status: if state.control.trunk_is_active(trunk) { "ACTIVE" } else { "DOWN" },
        sub_ports: sub_port_views(trunk),
        tags: trunk.standard.tags.clone(),
    }
}

impl Resource for Trunk {
    type View = ShownTrunk;

    fn view(&self, state: &AppState, _: &Caller) -> ShownTrunk {
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
) -> Created<One<ShownTrunk>> {
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
    Ok(Status(Json(One(view(&state, &trunk.row)))))
}

async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownTrunk>> {
    let fields = body.trunk;
    let texts = (fields.name.as_deref(), fields.description.as_deref());
    let trunk = state.control.trunk_update(&caller, &id, texts, fields.admin_state_up).await?;
    Ok(Json(One(view(&state, &trunk.row))))
}

async fn sub_ports(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<SubPorts> {
    let trunk = state.control.network_resource::<Trunk>(&caller, &id).await?;
    Ok(Json(SubPorts { sub_ports: sub_port_views(&trunk.row) }))
}

async fn add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<AddBody>,
) -> Answer<ShownTrunk> {
    let trunk = state.control.trunk_add(&caller, &id, &read(body.sub_ports)?).await?;
    Ok(Json(view(&state, &trunk.row)))
}

async fn remove(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<RemoveBody>,
) -> Answer<ShownTrunk> {
    let ports: Vec<String> = body.sub_ports.into_iter().map(|sub_port| sub_port.port_id).collect();
    let trunk = state.control.trunk_remove(&caller, &id, &ports).await?;
    Ok(Json(view(&state, &trunk.row)))
}
