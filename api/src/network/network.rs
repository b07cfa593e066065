//! Networks on the wire (Network API v2.0: networks).

use std::collections::BTreeSet;

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::model::network::{Network, NetworkKind};
use control::service::network::{NetworkCreate, NetworkUpdate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bulk::{OneOrMany, Several};
use super::{Chosen, Created, Listed, Made, Number, One, Shown, StandardFields, listing, nullable, shown};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};

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
    type View = ShownNetwork;
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
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Network")]
pub(super) struct ShownNetwork {
    #[serde(flatten)]
    standard: StandardFields,
    name: String,
    admin_state_up: bool,
    status: &'static str,
    shared: bool,
    #[serde(rename = "router:external")]
    external: bool,
    is_default: bool,
    mtu: u32,
    port_security_enabled: bool,
    subnets: Vec<String>,
    tags: BTreeSet<String>,
    qos_policy_id: Option<String>,
    dns_domain: String,
    availability_zone_hints: Vec<String>,
    availability_zones: [&'static str; 1],
    ipv4_address_scope: Option<String>,
    ipv6_address_scope: Option<String>,
    #[serde(rename = "provider:network_type", skip_serializing_if = "Option::is_none")]
    network_type: Option<&'static str>,
    #[serde(rename = "provider:physical_network", skip_serializing_if = "Option::is_none")]
    physical_network: Option<Option<String>>,
    #[serde(rename = "provider:segmentation_id", skip_serializing_if = "Option::is_none")]
    segmentation_id: Option<Option<u32>>,
}

impl Shown for ShownNetwork {
    const NAMES: &'static [&'static str; 2] = &["network", "networks"];
}

fn view(state: &AppState, caller: &Caller, network: &Network) -> ShownNetwork {
    let control = &state.control;
    let (network_type, physical, segment) = match &network.kind {
        NetworkKind::Flat { physical_network } => ("flat", Some(physical_network.clone()), None),
        NetworkKind::Vlan { physical_network, vlan } => {
            ("vlan", Some(physical_network.clone()), Some(u32::from(*vlan)))
        }
        NetworkKind::Vxlan { vni } => ("vxlan", None, Some(*vni)),
    };
    let is_admin = caller.is_admin();
    ShownNetwork {
        standard: (&network.standard).into(),
        name: network.standard.name.clone(),
        admin_state_up: network.admin_state_up,
        status: if network.admin_state_up { "ACTIVE" } else { "DOWN" },
        shared: network.shared || control.is_shared_with(caller, &network.standard.id),
        external: control.is_external(network),
        is_default: network.is_default,
        mtu: network.mtu,
        port_security_enabled: network.port_security_enabled,
        subnets: control.subnet_ids_of(&network.standard.id),
        tags: network.standard.tags.clone(),
        qos_policy_id: network.qos_policy_id.clone(),
        dns_domain: network.dns_domain.clone(),
        availability_zone_hints: network.zone_hints.clone(),
        availability_zones: [control::service::network::ZONE],
        ipv4_address_scope: control.address_scope_of(&network.standard.id, 4),
        ipv6_address_scope: control.address_scope_of(&network.standard.id, 6),
        network_type: is_admin.then_some(network_type),
        physical_network: is_admin.then_some(physical),
        segmentation_id: is_admin.then_some(segment),
    }
}

/// `POST /v2.0/networks`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<OneOrMany<CreateFields>>,
) -> Created<Made<ShownNetwork>> {
    let (requests, answered) = body.try_map(|fields| Ok::<_, Fault>(NetworkCreate::from(fields)))?;
    let networks = state.control.network_create_many(&caller, requests).await?;
    answered.with(networks.iter().map(|network| view(&state, &caller, &network.row)))
}

/// `GET /v2.0/networks`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownNetwork>> {
    let networks = state.control.network_list(&caller).await?;
    listing(networks.iter().map(|network| view(&state, &caller, &network.row)), &filters, &url)
}

/// `GET /v2.0/networks/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<ShownNetwork>>> {
    let network = state.control.network_get(&caller, &id).await?;
    Ok(shown(&view(&state, &caller, &network.row), &filters))
}

/// `PUT /v2.0/networks/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownNetwork>> {
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
    Ok(Json(One(view(&state, &caller, &network.row))))
}

/// `DELETE /v2.0/networks/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.network_delete(&caller, &id).await?;
    Ok(DONE)
}
