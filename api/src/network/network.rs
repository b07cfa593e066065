//! Networks on the wire (Network API v2.0: networks).

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::caller::Caller;
use control::model::network::{Network, NetworkKind};
use control::service::network::{NetworkCreate, NetworkUpdate};
use serde::Deserialize;
use serde_json::{Value, json};

use super::bulk::{OneOrMany, Several};
use super::{Created, Number, listing, nullable, shown, standard_fields, with_fields};
use crate::context::{AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateFields {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    admin_state_up: Option<bool>,
    shared: Option<bool>,
    #[serde(rename = "router:external")]
    external: Option<bool>,
    is_default: Option<bool>,
    mtu: Option<Number<u32>>,
    port_security_enabled: Option<bool>,
    project_id: Option<String>,
    tenant_id: Option<String>,
    #[serde(rename = "provider:network_type")]
    network_type: Option<String>,
    #[serde(rename = "provider:physical_network")]
    physical_network: Option<String>,
    #[serde(rename = "provider:segmentation_id")]
    segmentation_id: Option<Number<u32>>,
    #[serde(default)]
    tags: BTreeSet<String>,
    qos_policy_id: Option<String>,
    #[serde(default)]
    availability_zone_hints: Vec<String>,
    #[serde(default)]
    dns_domain: String,
}

impl Several for CreateFields {
    const NAMES: &'static [&'static str; 2] = &["network", "networks"];
}

impl From<CreateFields> for NetworkCreate {
    fn from(fields: CreateFields) -> Self {
        Self {
            name: fields.name,
            description: fields.description,
            project_id: fields.project_id.or(fields.tenant_id),
            admin_state_up: fields.admin_state_up,
            shared: fields.shared.unwrap_or(false),
            external: fields.external.unwrap_or(false),
            is_default: fields.is_default.unwrap_or(false),
            mtu: fields.mtu.map(|mtu| mtu.0).filter(|mtu| *mtu > 0),
            port_security_enabled: fields.port_security_enabled,
            network_type: fields.network_type,
            physical_network: fields.physical_network,
            segmentation_id: fields.segmentation_id.map(|id| id.0),
            tags: fields.tags,
            qos_policy_id: fields.qos_policy_id,
            zone_hints: fields.availability_zone_hints,
            dns_domain: fields.dns_domain,
        }
    }
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    network: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    name: Option<String>,
    description: Option<String>,
    admin_state_up: Option<bool>,
    shared: Option<bool>,
    #[serde(rename = "router:external")]
    external: Option<bool>,
    is_default: Option<bool>,
    mtu: Option<Number<u32>>,
    port_security_enabled: Option<bool>,
    #[serde(default, deserialize_with = "nullable")]
    qos_policy_id: Option<Option<String>>,
    dns_domain: Option<String>,
}

/// A network as it is shown: provider attributes to administrators only.
fn view(state: &AppState, caller: &Caller, network: &Network) -> Value {
    let mut fields = standard_fields(&network.standard);
    if caller.is_admin() {
        let (network_type, physical, segment) = match &network.kind {
            NetworkKind::Flat { physical_network } => ("flat", Some(physical_network), None),
            NetworkKind::Vlan { physical_network, vlan } => {
                ("vlan", Some(physical_network), Some(u32::from(*vlan)))
            }
            NetworkKind::Vxlan { vni } => ("vxlan", None, Some(*vni)),
        };
        fields.insert("provider:network_type".into(), json!(network_type));
        fields.insert("provider:physical_network".into(), json!(physical));
        fields.insert("provider:segmentation_id".into(), json!(segment));
    }
    with_fields(
        fields,
        json!({
            "name": network.standard.name,
            "admin_state_up": network.admin_state_up,
            "status": if network.admin_state_up { "ACTIVE" } else { "DOWN" },
            "shared": network.shared || state.control.is_shared_with(caller, &network.standard.id),
            "router:external": state.control.is_external(network),
            "is_default": network.is_default,
            "mtu": network.mtu,
            "port_security_enabled": network.port_security_enabled,
            "subnets": state.control.subnet_ids_of(&network.standard.id),
            "tags": network.standard.tags,
            "qos_policy_id": network.qos_policy_id,
            "dns_domain": network.dns_domain,
            "availability_zone_hints": network.zone_hints,
            "availability_zones": [control::service::network::ZONE],
            "ipv4_address_scope": state.control.address_scope_of(&network.standard.id, 4),
            "ipv6_address_scope": state.control.address_scope_of(&network.standard.id, 6),
        }),
    )
}

/// `POST /v2.0/networks`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<OneOrMany<CreateFields>>,
) -> Created {
    let (requests, answered) = body.try_map(|fields| Ok::<_, Fault>(NetworkCreate::from(fields)))?;
    let networks = state.control.network_create_many(&caller, requests).await?;
    answered.with(networks.iter().map(|network| view(&state, &caller, &network.row)).collect())
}

/// `GET /v2.0/networks`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Result<Json<Value>, Fault> {
    let networks = state.control.network_list(&caller).await?;
    listing("networks", networks.iter().map(|n| view(&state, &caller, &n.row)).collect(), &filters, &url)
}

/// `GET /v2.0/networks/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Result<Json<Value>, Fault> {
    let network = state.control.network_get(&caller, &id).await?;
    Ok(shown("network", view(&state, &caller, &network.row), &filters))
}

/// `PUT /v2.0/networks/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Result<Json<Value>, Fault> {
    let fields = body.network;
    let update = NetworkUpdate {
        name: fields.name,
        description: fields.description,
        admin_state_up: fields.admin_state_up,
        shared: fields.shared,
        external: fields.external,
        is_default: fields.is_default,
        mtu: fields.mtu.map(|mtu| mtu.0),
        port_security_enabled: fields.port_security_enabled,
        qos_policy_id: fields.qos_policy_id,
        dns_domain: fields.dns_domain,
    };
    let network = state.control.network_update(&caller, &id, update).await?;
    Ok(Json(json!({"network": view(&state, &caller, &network.row)})))
}

/// `DELETE /v2.0/networks/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<StatusCode, Fault> {
    state.control.network_delete(&caller, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
