//! A server's addresses, ports and security groups on the wire (Compute API: server IPs, port interfaces, security
//! groups of a server).

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::model::network::Port;
use serde_json::{Value, json};

use super::server_view::{addresses as addresses_view, mac_text};
use crate::context::{Answer, AppState, Authenticated, Segments};

/// `GET /servers/{id}/ips`.
pub(super) async fn addresses(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let view = state.control.server_view(state.control.server(&caller, &id).await?);
    Ok(Json(json!({"addresses": addresses_view(&view.addresses, false)})))
}

/// `GET /servers/{id}/ips/{network}`.
pub(super) async fn addresses_of(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, network)): Segments<(String, String)>,
) -> Answer<Value> {
    let view = state.control.server_view(state.control.server(&caller, &id).await?);
    let shown = addresses_view(&view.addresses, false);
    let list = shown.get(&network).ok_or_else(|| Error::not_found("Network", &network))?;
    Ok(Json(json!({network: list})))
}

/// `GET /servers/{id}/os-interface`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let ports = state.control.server_ports(&caller, &id).await?;
    let shown: Vec<Value> = ports.iter().map(|port| attachment(&port.row)).collect();
    Ok(Json(json!({"interfaceAttachments": shown})))
}

/// `GET /servers/{id}/os-interface/{port}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, port_id)): Segments<(String, String)>,
) -> Answer<Value> {
    let ports = state.control.server_ports(&caller, &id).await?;
    let port = ports.iter().find(|port| port.row.standard.id == port_id);
    let port = port.ok_or_else(|| Error::not_found("Port", &port_id))?;
    Ok(Json(json!({"interfaceAttachment": attachment(&port.row)})))
}

fn attachment(port: &Port) -> Value {
    let fixed =
        port.fixed_ips.iter().map(|ip| json!({"subnet_id": ip.subnet_id, "ip_address": ip.ip_address}));
    json!({
        "port_state": if port.active { "ACTIVE" } else { "DOWN" },
        "fixed_ips": fixed.collect::<Vec<_>>(),
        "port_id": port.standard.id,
        "net_id": port.network_id,
        "mac_addr": mac_text(port.mac),
    })
}

/// `GET /servers/{id}/os-security-groups`.
pub(super) async fn security_groups(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let groups = state.control.server_security_groups(&caller, &id).await?;
    let shown: Vec<Value> = groups
        .iter()
        .map(|group| {
            let group = &group.row.standard;
            json!({
                "id": group.id,
                "name": group.name,
                "description": group.description,
                "tenant_id": group.project_id,
                "rules": [],
            })
        })
        .collect();
    Ok(Json(json!({"security_groups": shown})))
}
