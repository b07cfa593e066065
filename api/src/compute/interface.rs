//! A server's addresses, network devices and security groups on the wire (Compute API: server IPs, port interfaces,
//! security groups of a server).

use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::error::Error;
use control::model::compute::Server;
use control::model::network::Port;
use control::service::server::interface::NewInterface;
use serde::Deserialize;
use serde_json::{Value, json};

use super::server_view::{addresses as addresses_view, mac_text};
use super::volume_attachment::newer;
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;

/// `GET /servers/{id}/ips`.
pub(super) async fn addresses(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let view =
        state.control.server_view(state.control.server_seen(&caller, &id, "os_compute_api:ips:index").await?);
    Ok(Json(json!({"addresses": addresses_view(&view.addresses, false)})))
}

/// `GET /servers/{id}/ips/{network}`.
pub(super) async fn addresses_of(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, network)): Segments<(String, String)>,
) -> Answer<Value> {
    let view =
        state.control.server_view(state.control.server_seen(&caller, &id, "os_compute_api:ips:show").await?);
    let shown = addresses_view(&view.addresses, false);
    let list = shown.get(&network).ok_or_else(|| Error::not_found("Network", &network))?;
    Ok(Json(json!({network: list})))
}

/// `GET /servers/{id}/os-interface`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let server = state.control.server_seen(&caller, &id, "os_compute_api:os-attach-interfaces:list").await?;
    let ports = state.control.server_ports(&caller, &id).await?;
    let shown: Vec<Value> = ports.iter().map(|port| attachment(version, &server.row, &port.row)).collect();
    Ok(Json(json!({"interfaceAttachments": shown})))
}

/// `GET /servers/{id}/os-interface/{port}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, port_id)): Segments<(String, String)>,
) -> Answer<Value> {
    let server = state.control.server_seen(&caller, &id, "os_compute_api:os-attach-interfaces:show").await?;
    let ports = state.control.server_ports(&caller, &id).await?;
    let port = ports.iter().find(|port| port.row.standard.id == port_id);
    let port = port.ok_or_else(|| Error::not_found("Port", &port_id))?;
    Ok(Json(json!({"interfaceAttachment": attachment(version, &server.row, &port.row)})))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct AttachBody {
    #[serde(rename = "interfaceAttachment")]
    attachment: AttachFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct AttachFields {
    net_id: Option<String>,
    port_id: Option<String>,
    fixed_ips: Option<[FixedIpFields; 1]>,
    tag: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FixedIpFields {
    ip_address: IpAddr,
}

/// `POST /servers/{id}/os-interface`.
pub(super) async fn attach(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<AttachBody>,
) -> Answer<Value> {
    let AttachFields { net_id, port_id, fixed_ips, tag } = body.attachment;
    newer(version, tag.is_some(), 49, "tag")?;
    let fixed_ip = fixed_ips.map(|[ip]| ip.ip_address);
    if net_id.is_some() && port_id.is_some() {
        return Err(Fault::malformed("Must not input both network_id and port_id"));
    }
    if fixed_ip.is_some() && net_id.is_none() {
        return Err(Fault::malformed("Must input network_id when request IP address"));
    }
    let new = NewInterface { network_id: net_id, port_id, fixed_ip, tag };
    let port = state.control.server_interface_attach(&caller, &id, &new).await?;
    let server = state.control.server(&caller, &id).await?;
    Ok(Json(json!({"interfaceAttachment": attachment(version, &server.row, &port.row)})))
}

/// `DELETE /servers/{id}/os-interface/{port}`.
pub(super) async fn detach(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, port_id)): Segments<(String, String)>,
) -> Result<StatusCode, Fault> {
    state.control.server_interface_detach(&caller, &id, &port_id).await?;
    Ok(StatusCode::ACCEPTED)
}

fn attachment(version: Microversion, server: &Server, port: &Port) -> Value {
    let fixed =
        port.fixed_ips.iter().map(|ip| json!({"subnet_id": ip.subnet_id, "ip_address": ip.ip_address}));
    let mut shown = json!({
        "port_state": if port.active { "ACTIVE" } else { "DOWN" },
        "fixed_ips": fixed.collect::<Vec<_>>(),
        "port_id": port.standard.id,
        "net_id": port.network_id,
        "mac_addr": mac_text(port.mac),
    });
    if version.at_least(2, 70) {
        shown["tag"] = json!(server.nic_tags.get(&port.standard.id));
    }
    shown
}

/// `GET /servers/{id}/os-security-groups`.
pub(super) async fn security_groups(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    state.control.server_seen(&caller, &id, "os_compute_api:os-security-groups:list").await?;
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
