//! What the network service says of hosts and of itself on the wire (Network API v2.0: agents, availability_zones,
//! service-providers, network-ip-availabilities, auto-allocated-topology).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::caller::Caller;
use control::model::network::Network;
use control::service::network_host::{AgentView, SubnetAddresses};
use control::store::Stored;
use serde::Deserialize;
use serde_json::{Value, json};

use crate::context::{AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::network::listing::{listing, shown};
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

fn agent_view(agent: &AgentView) -> Value {
    let host = &agent.host.row;
    // A connected agent is heard at every moment; of another, when it was last is in its row.
    let heard = if agent.alive { jiff::Timestamp::now() } else { host.updated_at };
    json!({
        "id": agent.id(),
        "agent_type": AGENT_TYPE,
        "binary": "wisp",
        "topic": "N/A",
        "host": host.name,
        "availability_zone": host.zone,
        "admin_state_up": !host.network_disabled,
        "alive": agent.alive,
        "description": agent.description,
        "created_at": time_text(host.updated_at),
        "started_at": time_text(host.updated_at),
        "heartbeat_timestamp": time_text(heard),
        "configurations": {},
        "resources_synced": null,
    })
}

async fn agents(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Result<Json<Value>, Fault> {
    let agents = state.control.network_agents(&caller).await?;
    listing("agents", agents.iter().map(agent_view).collect(), &filters, &url)
}

async fn agent(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Result<Json<Value>, Fault> {
    let agent = state.control.network_agent(&caller, &id).await?;
    Ok(shown("agent", agent_view(&agent), &filters))
}

async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Result<Json<Value>, Fault> {
    let UpdateFields { description, admin_state_up } = body.agent;
    let agent =
        state.control.network_agent_update(&caller, &id, description.as_deref(), admin_state_up).await?;
    Ok(Json(json!({"agent": agent_view(&agent)})))
}

/// `DELETE /v2.0/agents/{id}`.
async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<StatusCode, Fault> {
    state.control.network_agent_delete(&caller, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}

async fn zones(
    State(state): State<AppState>,
    _: Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Result<Json<Value>, Fault> {
    let zones = state.control.zones().await?;
    let row = |(name, hosts): (String, Vec<control::service::host::HostView>)| {
        let state = if hosts.iter().any(|host| host.alive) { "available" } else { "unavailable" };
        json!({"id": name, "name": name, "resource": "network", "state": state})
    };
    let Json(mut body) = listing("availability_zones", zones.into_iter().map(row).collect(), &filters, &url)?;
    for row in body["availability_zones"].as_array_mut().into_iter().flatten() {
        if let Some(row) = row.as_object_mut() {
            row.remove("id");
        }
    }
    Ok(Json(body))
}

/// There are none: nothing of the network is done by anybody else.
async fn providers(_: Authenticated, filters: Filters, url: RequestUrl) -> Result<Json<Value>, Fault> {
    listing("service_providers", Vec::new(), &filters, &url)
}

/// Counts in JSON's numbers: what is more than 64 bits hold is the greatest of these.
fn count(number: u128) -> u64 {
    u64::try_from(number).unwrap_or(u64::MAX)
}

fn availability_view(
    network: &Stored<Network>,
    subnets: &[SubnetAddresses],
    ip_version: Option<&str>,
) -> Value {
    let version = |subnet: &SubnetAddresses| if subnet.subnet.row.cidr.addr().is_ipv4() { 4 } else { 6 };
    let wanted: Vec<_> = subnets
        .iter()
        .filter(|subnet| ip_version.is_none_or(|wanted| wanted == version(subnet).to_string()))
        .collect();
    let rows: Vec<_> = wanted
        .iter()
        .map(|subnet| {
            json!({
                "subnet_id": subnet.subnet.row.standard.id,
                "subnet_name": subnet.subnet.row.standard.name,
                "cidr": subnet.subnet.row.cidr,
                "ip_version": version(subnet),
                "total_ips": count(subnet.total),
                "used_ips": count(subnet.used),
            })
        })
        .collect();
    let sum = |of: fn(&SubnetAddresses) -> u128| {
        count(wanted.iter().fold(0, |sum: u128, subnet| sum.saturating_add(of(subnet))))
    };
    json!({
        "id": network.row.standard.id,
        "network_id": network.row.standard.id,
        "network_name": network.row.standard.name,
        "project_id": network.row.standard.project_id,
        "tenant_id": network.row.standard.project_id,
        "total_ips": sum(|subnet| subnet.total),
        "used_ips": sum(|subnet| subnet.used),
        "subnet_ip_availability": rows,
    })
}

fn without_id(mut row: Value) -> Value {
    if let Some(map) = row.as_object_mut() {
        map.remove("id");
    }
    row
}

async fn availabilities(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Result<Json<Value>, Fault> {
    let networks = state.control.addresses_of_networks(&caller).await?;
    let version = filters.get("ip_version");
    let rows = networks.iter().map(|(network, subnets)| availability_view(network, subnets, version));
    let Json(mut body) = listing("network_ip_availabilities", rows.collect(), &filters, &url)?;
    if let Some(rows) = body["network_ip_availabilities"].as_array_mut() {
        rows.iter_mut().for_each(|row| *row = without_id(row.take()));
    }
    Ok(Json(body))
}

async fn availability(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(network_id): Segments<String>,
    filters: Filters,
) -> Result<Json<Value>, Fault> {
    let networks = state.control.addresses_of_networks(&caller).await?;
    let found = networks.iter().find(|(network, _)| network.row.standard.id == network_id);
    let (network, subnets) =
        found.ok_or_else(|| control::error::Error::not_found("Network", network_id.as_str()))?;
    let view = without_id(availability_view(network, subnets, None));
    Ok(shown("network_ip_availability", view, &filters))
}

/// Makes it if it is not there; `?fields=dry-run` asks whether it could be made.
async fn topology(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project_id): Segments<String>,
    filters: Filters,
) -> Result<Json<Value>, Fault> {
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
    Ok(Json(json!({"auto_allocated_topology": {
        "id": id, "project_id": project_id, "tenant_id": project_id,
    }})))
}

/// `DELETE /v2.0/auto-allocated-topology/{project_id}`.
async fn topology_delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(project_id): Segments<String>,
) -> Result<StatusCode, Fault> {
    let project_id = project_meant(&caller, project_id);
    state.control.topology_delete(&caller, &project_id).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Clients that name no project write `None`.
fn project_meant(caller: &Caller, named: String) -> String {
    match caller.project_id() {
        Some(own) if named == "None" => own.to_owned(),
        _ => named,
    }
}
