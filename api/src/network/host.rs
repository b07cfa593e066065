//! What the network service says of hosts and of itself on the wire (Network API v2.0: agents, availability_zones,
//! service-providers, network-ip-availabilities, auto-allocated-topology).

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::model::network::Network;
use control::service::network_host::{AgentView, SubnetAddresses};
use control::store::Stored;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::shown::Nothing;
use super::{Chosen, Listed, One, Shown, listing, shown};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};
use crate::openapi::{Routes, get};

/// What an agent is called by.
const AGENT_TYPE: &str = "Wisp agent";

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateBody {
    agent: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    description: Option<String>,
    admin_state_up: Option<bool>,
}

/// The routes.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route("/v2.0/agents", get(agents))
        .route("/v2.0/agents/{id}", get(agent).put(update).delete(delete))
        .route("/v2.0/availability_zones", get(zones))
        .route("/v2.0/service-providers", get(providers))
        .route("/v2.0/network-ip-availabilities", get(availabilities))
        .route("/v2.0/network-ip-availabilities/{network_id}", get(availability))
        .route("/v2.0/auto-allocated-topology/{project_id}", get(topology).delete(topology_delete))
}

/// Times as Neutron writes those of agents.
fn time_text(time: jiff::Timestamp) -> String {
    time.strftime("%Y-%m-%d %H:%M:%S").to_string()
}

/// An agent as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Agent")]
struct ShownAgent {
    id: String,
    agent_type: &'static str,
    binary: &'static str,
    topic: &'static str,
    host: String,
    availability_zone: String,
    admin_state_up: bool,
    alive: bool,
    description: Option<String>,
    created_at: String,
    started_at: String,
    heartbeat_timestamp: String,
    configurations: Nothing,
    /// Always null.
    resources_synced: Option<bool>,
}

impl Shown for ShownAgent {
    const NAMES: &'static [&'static str; 2] = &["agent", "agents"];
}

fn agent_view(agent: &AgentView) -> ShownAgent {
    let host = &agent.host.row;
    // A connected agent is heard at every moment; of another, when it was last is in its row.
    let heard = if agent.alive { jiff::Timestamp::now() } else { host.updated_at };
    ShownAgent {
        id: agent.id().to_owned(),
        agent_type: AGENT_TYPE,
        binary: "wisp",
        topic: "N/A",
        host: host.name.clone(),
        availability_zone: host.zone.clone(),
        admin_state_up: !host.network_disabled,
        alive: agent.alive,
        description: agent.description.clone(),
        created_at: time_text(host.updated_at),
        started_at: time_text(host.updated_at),
        heartbeat_timestamp: time_text(heard),
        configurations: Nothing {},
        resources_synced: None,
    }
}

async fn agents(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownAgent>> {
    let agents = state.control.network_agents(&caller).await?;
    listing(agents.iter().map(agent_view), &filters, &url)
}

async fn agent(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<ShownAgent>>> {
    let agent = state.control.network_agent(&caller, &id).await?;
    Ok(shown(&agent_view(&agent), &filters))
}

async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownAgent>> {
    let UpdateFields { description, admin_state_up } = body.agent;
    let agent =
        state.control.network_agent_update(&caller, &id, description.as_deref(), admin_state_up).await?;
    Ok(Json(One(agent_view(&agent))))
}

/// `DELETE /v2.0/agents/{id}`.
async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.network_agent_delete(&caller, &id).await?;
    Ok(DONE)
}

/// An availability zone as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AvailabilityZone")]
struct ShownZone {
    name: String,
    resource: &'static str,
    state: &'static str,
}

impl Shown for ShownZone {
    const NAMES: &'static [&'static str; 2] = &["availability_zone", "availability_zones"];
    const ID: &'static str = "name";
}

async fn zones(
    State(state): State<AppState>,
    _: Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownZone>> {
    let zones = state.control.zones().await?;
    let row = |(name, hosts): (String, Vec<control::service::host::HostView>)| {
        let state = if hosts.iter().any(|host| host.alive) { "available" } else { "unavailable" };
        ShownZone { name, resource: "network", state }
    };
    listing(zones.into_iter().map(row), &filters, &url)
}

/// Who does a part of the network for others.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ServiceProvider")]
struct ShownProvider {
    service_type: &'static str,
    name: &'static str,
    default: bool,
}

impl Shown for ShownProvider {
    const NAMES: &'static [&'static str; 2] = &["service_provider", "service_providers"];
    const ID: &'static str = "name";
}

/// There are none: nothing of the network is done by anybody else.
async fn providers(_: Authenticated, filters: Filters, url: RequestUrl) -> Answer<Listed<ShownProvider>> {
    listing([], &filters, &url)
}

/// Counts in JSON's numbers: what is more than 64 bits hold is the greatest of these.
fn count(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

/// How many addresses a network has, as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "NetworkIpAvailability")]
struct ShownAvailability {
    network_id: String,
    network_name: String,
    project_id: String,
    tenant_id: String,
    total_ips: u64,
    used_ips: u64,
    subnet_ip_availability: Vec<SubnetAvailability>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SubnetIpAvailability")]
struct SubnetAvailability {
    subnet_id: String,
    subnet_name: String,
    cidr: String,
    ip_version: u8,
    total_ips: u64,
    used_ips: u64,
}

impl Shown for ShownAvailability {
    const NAMES: &'static [&'static str; 2] = &["network_ip_availability", "network_ip_availabilities"];
    const ID: &'static str = "network_id";
}

fn availability_view(
    network: &Stored<Network>,
    subnets: &[SubnetAddresses],
    ip_version: Option<&str>,
) -> ShownAvailability {
    let version = |subnet: &SubnetAddresses| if subnet.subnet.row.cidr.addr().is_ipv4() { 4 } else { 6 };
    let wanted: Vec<_> = subnets
        .iter()
        .filter(|subnet| ip_version.is_none_or(|wanted| wanted == version(subnet).to_string()))
        .collect();
    let rows = wanted.iter().map(|subnet| SubnetAvailability {
        subnet_id: subnet.subnet.row.standard.id.clone(),
        subnet_name: subnet.subnet.row.standard.name.clone(),
        cidr: subnet.subnet.row.cidr.to_string(),
        ip_version: version(subnet),
        total_ips: count(subnet.total),
        used_ips: count(subnet.used),
    });
    let sum = |of: fn(&SubnetAddresses) -> u128| {
        count(wanted.iter().fold(0, |sum: u128, subnet| sum.saturating_add(of(subnet))))
    };
    let standard = &network.row.standard;
    ShownAvailability {
        network_id: standard.id.clone(),
        network_name: standard.name.clone(),
        project_id: standard.project_id.clone(),
        tenant_id: standard.project_id.clone(),
        total_ips: sum(|subnet| subnet.total),
        used_ips: sum(|subnet| subnet.used),
        subnet_ip_availability: rows.collect(),
    }
}

async fn availabilities(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownAvailability>> {
    let networks = state.control.addresses_of_networks(&caller).await?;
    let version = filters.get("ip_version");
    let rows = networks.iter().map(|(network, subnets)| availability_view(network, subnets, version));
    listing(rows, &filters, &url)
}

async fn availability(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(network_id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<ShownAvailability>>> {
    let networks = state.control.addresses_of_networks(&caller).await?;
    let found = networks.iter().find(|(network, _)| network.row.standard.id == network_id);
    let (network, subnets) =
        found.ok_or_else(|| control::error::Error::not_found("Network", network_id.as_str()))?;
    Ok(shown(&availability_view(network, subnets, None), &filters))
}

/// What a project's servers are on by default.
#[derive(Serialize, JsonSchema)]
struct Topology {
    id: String,
    project_id: String,
    tenant_id: String,
}

impl Shown for Topology {
    const NAMES: &'static [&'static str; 2] = &["auto_allocated_topology", "auto_allocated_topologies"];
}

/// Makes it if it is not there; `?fields=dry-run` asks whether it could be made.
async fn topology(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project_id): Segments<String>,
    filters: Filters,
) -> Answer<One<Topology>> {
    let project_id = project_meant(&caller, project_id);
    let fields: Vec<_> = filters.all("fields").collect();
    let id = match fields.as_slice() {
        [] => state.control.topology(&caller, &project_id).await?,
        fields if fields.contains(&"dry-run") => {
            state.control.topology_check(&caller, &project_id).await?;
            "dry-run=pass".to_owned()
        }
        _ => {
            let message = "Bad auto_allocate request: Unrecognized field.";
            return Err(control::error::Error::invalid("BadRequest", message).into());
        }
    };
    Ok(Json(One(Topology { id, tenant_id: project_id.clone(), project_id })))
}

/// `DELETE /v2.0/auto-allocated-topology/{project_id}`.
async fn topology_delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project_id): Segments<String>,
) -> Result<Done, Fault> {
    let project_id = project_meant(&caller, project_id);
    state.control.topology_delete(&caller, &project_id).await?;
    Ok(DONE)
}

/// Clients that name no project write `None`.
fn project_meant(caller: &Caller, named: String) -> String {
    match caller.project_id() {
        Some(own) if named == "None" => own.to_owned(),
        _ => named,
    }
}
