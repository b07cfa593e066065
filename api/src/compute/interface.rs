//! A server's addresses, network devices and security groups on the wire (Compute API: server IPs, port interfaces,
//! security groups of a server).

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::model::compute::Server;
use control::model::network::Port;
use control::service::server::interface::NewInterface;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::server_view::{Addresses, ShownAddress, addresses as addresses_view, mac_text};
use super::volume_attachment::newer;
use super::{Nothing, with};
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{TAKEN, Taken};

#[derive(Serialize, JsonSchema)]
pub(super) struct AddressesAnswer {
    addresses: Addresses,
}

/// A port that a server has.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "InterfaceAttachment")]
struct ShownInterface {
    port_state: &'static str,
    fixed_ips: Vec<ShownFixedIp>,
    port_id: String,
    net_id: String,
    mac_addr: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    tag: Option<Option<String>>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "FixedIp")]
struct ShownFixedIp {
    subnet_id: String,
    ip_address: IpAddr,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct Interfaces {
    interface_attachments: Vec<ShownInterface>,
}

#[derive(Serialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub(super) struct OneInterface {
    interface_attachment: ShownInterface,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct SecurityGroups {
    security_groups: Vec<ShownGroup>,
}

/// A security group; its rules are told by the network service alone.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "SecurityGroup")]
struct ShownGroup {
    id: String,
    name: String,
    description: String,
    tenant_id: String,
    rules: Nothing,
}

/// `GET /servers/{id}/ips`.
pub(super) async fn addresses(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<AddressesAnswer> {
    let view =
        state.control.server_view(state.control.server_seen(&caller, &id, "os_compute_api:ips:index").await?);
    Ok(Json(AddressesAnswer { addresses: addresses_view(&view.addresses, false) }))
}

/// `GET /servers/{id}/ips/{network}`.
pub(super) async fn addresses_of(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, network)): Segments<(String, String)>,
) -> Answer<BTreeMap<String, Vec<ShownAddress>>> {
    let view =
        state.control.server_view(state.control.server_seen(&caller, &id, "os_compute_api:ips:show").await?);
    let list = addresses_view(&view.addresses, false).remove(&network);
    let list = list.ok_or_else(|| Error::not_found("Network", &network))?;
    Ok(Json(BTreeMap::from([(network, list)])))
}

/// `GET /servers/{id}/os-interface`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Interfaces> {
    let server = state.control.server_seen(&caller, &id, "os_compute_api:os-attach-interfaces:list").await?;
    let ports = state.control.server_ports(&caller, &id).await?;
    let shown = ports.iter().map(|port| attachment(version, &server.row, &port.row));
    Ok(Json(Interfaces { interface_attachments: shown.collect() }))
}

/// `GET /servers/{id}/os-interface/{port}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments((id, port_id)): Segments<(String, String)>,
) -> Answer<OneInterface> {
    let server = state.control.server_seen(&caller, &id, "os_compute_api:os-attach-interfaces:show").await?;
    let ports = state.control.server_ports(&caller, &id).await?;
    let port = ports.iter().find(|port| port.row.standard.id == port_id);
    let port = port.ok_or_else(|| Error::not_found("Port", &port_id))?;
    Ok(Json(OneInterface { interface_attachment: attachment(version, &server.row, &port.row) }))
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
) -> Answer<OneInterface> {
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
    Ok(Json(OneInterface { interface_attachment: attachment(version, &server.row, &port.row) }))
}

/// `DELETE /servers/{id}/os-interface/{port}`.
pub(super) async fn detach(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, port_id)): Segments<(String, String)>,
) -> Result<Taken, Fault> {
    state.control.server_interface_detach(&caller, &id, &port_id).await?;
    Ok(TAKEN)
}

fn attachment(version: Microversion, server: &Server, port: &Port) -> ShownInterface {
    let fixed = port
        .fixed_ips
        .iter()
        .map(|ip| ShownFixedIp { subnet_id: ip.subnet_id.clone(), ip_address: ip.ip_address });
    ShownInterface {
        port_state: if port.active { "ACTIVE" } else { "DOWN" },
        fixed_ips: fixed.collect(),
        port_id: port.standard.id.clone(),
        net_id: port.network_id.clone(),
        mac_addr: mac_text(port.mac),
        tag: with(version, 70, server.nic_tags.get(&port.standard.id).cloned()),
    }
}

/// `GET /servers/{id}/os-security-groups`.
pub(super) async fn security_groups(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<SecurityGroups> {
    state.control.server_seen(&caller, &id, "os_compute_api:os-security-groups:list").await?;
    let groups = state.control.server_security_groups(&caller, &id).await?;
    let shown = groups.iter().map(|group| {
        let group = &group.row.standard;
        ShownGroup {
            id: group.id.clone(),
            name: group.name.clone(),
            description: group.description.clone(),
            tenant_id: group.project_id.clone(),
            rules: [],
        }
    });
    Ok(Json(SecurityGroups { security_groups: shown.collect() }))
}
