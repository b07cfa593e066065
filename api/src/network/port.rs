//! Ports on the wire (Network API v2.0: ports).

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::caller::Caller;
use control::model::network::Port;
use control::service::addressing::mac_text;
use control::service::port::{DhcpOptionWish, FixedIpWish, PortCreate, PortUpdate};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use super::bulk::{OneOrMany, Several};
use super::{
    Created, Number, invalid, listing, nullable, read_mac, shown, standard_fields, trunk, with_fields,
};
use crate::context::{AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateFields {
    network_id: String,
    project_id: Option<String>,
    tenant_id: Option<String>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    mac_address: Option<String>,
    fixed_ips: Option<Vec<FixedIpFields>>,
    #[serde(default)]
    allowed_address_pairs: Vec<PairFields>,
    admin_state_up: Option<bool>,
    security_groups: Option<Vec<String>>,
    port_security_enabled: Option<bool>,
    #[serde(default)]
    device_id: String,
    #[serde(default)]
    device_owner: String,
    #[serde(rename = "binding:host_id")]
    host: Option<String>,
    #[serde(rename = "binding:vnic_type")]
    vnic_type: Option<String>,
    #[serde(default)]
    tags: BTreeSet<String>,
    qos_policy_id: Option<String>,
    extra_dhcp_opts: Option<Vec<DhcpOptionFields>>,
    #[serde(default)]
    dns_name: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct DhcpOptionFields {
    opt_name: String,
    #[serde(default, deserialize_with = "nullable")]
    opt_value: Option<Option<String>>,
    ip_version: Option<Number<u8>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct FixedIpFields {
    subnet_id: Option<String>,
    ip_address: Option<IpAddr>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct PairFields {
    ip_address: String,
    mac_address: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    port: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    name: Option<String>,
    description: Option<String>,
    admin_state_up: Option<bool>,
    security_groups: Option<Vec<String>>,
    port_security_enabled: Option<bool>,
    allowed_address_pairs: Option<Vec<PairFields>>,
    device_id: Option<String>,
    device_owner: Option<String>,
    fixed_ips: Option<Vec<FixedIpFields>>,
    mac_address: Option<String>,
    #[serde(default, rename = "binding:host_id", deserialize_with = "nullable")]
    host: Option<Option<String>>,
    #[serde(rename = "binding:vnic_type")]
    vnic_type: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    qos_policy_id: Option<Option<String>>,
    extra_dhcp_opts: Option<Vec<DhcpOptionFields>>,
    dns_name: Option<String>,
}

impl From<FixedIpFields> for FixedIpWish {
    fn from(ip: FixedIpFields) -> Self {
        Self { subnet_id: ip.subnet_id, ip_address: ip.ip_address }
    }
}

/// Pairs without a MAC address stand for the port's own, which the row writes as zeros.
fn pairs(fields: Vec<PairFields>) -> Result<Vec<(IpNet, [u8; 6])>, Fault> {
    fields
        .into_iter()
        .map(|pair| {
            let text = &pair.ip_address;
            let prefix =
                text.parse::<IpNet>().or_else(|_| text.parse::<IpAddr>().map(IpNet::from)).map_err(|_| {
                    invalid(format!(
                        "Invalid input for allowed_address_pairs. Reason: '{text}' is not a valid IP address."
                    ))
                })?;
            Ok((prefix, pair.mac_address.as_deref().map(read_mac).transpose()?.unwrap_or_default()))
        })
        .collect()
}

/// A value may be null, which takes the option away, but has to be said.
fn dhcp_options(fields: Option<Vec<DhcpOptionFields>>) -> Result<Vec<DhcpOptionWish>, Fault> {
    let wish = |option: DhcpOptionFields| {
        let DhcpOptionFields { opt_name: name, opt_value, ip_version } = option;
        let value = opt_value.ok_or_else(|| {
            invalid(
                "Invalid input for operation: No valid key specs matched for: an option without opt_value.",
            )
        })?;
        Ok(DhcpOptionWish { name, value, ip_version: ip_version.map_or(4, |version| version.0) })
    };
    fields.unwrap_or_default().into_iter().map(wish).collect()
}

impl Several for CreateFields {
    const NAMES: &'static [&'static str; 2] = &["port", "ports"];
}

impl TryFrom<CreateFields> for PortCreate {
    type Error = Fault;

    fn try_from(fields: CreateFields) -> Result<Self, Fault> {
        if fields.vnic_type.as_deref().is_some_and(|kind| kind != "normal") {
            return Err(Fault::not_implemented("a port of another vnic_type than normal"));
        }
        Ok(Self {
            network_id: fields.network_id,
            project_id: fields.project_id.or(fields.tenant_id),
            name: fields.name,
            description: fields.description,
            mac: fields.mac_address.as_deref().map(read_mac).transpose()?,
            fixed_ips: fields.fixed_ips.map(|ips| ips.into_iter().map(FixedIpWish::from).collect()),
            allowed_address_pairs: pairs(fields.allowed_address_pairs)?,
            admin_state_up: fields.admin_state_up,
            security_groups: fields.security_groups,
            port_security_enabled: fields.port_security_enabled,
            device_id: fields.device_id,
            device_owner: fields.device_owner,
            host: fields.host,
            owned_by_server: false,
            tags: fields.tags,
            qos_policy_id: fields.qos_policy_id,
            extra_dhcp_opts: dhcp_options(fields.extra_dhcp_opts)?,
            dns_name: fields.dns_name,
        })
    }
}

/// A port as it is shown: bindings to administrators only.
fn view(state: &AppState, caller: &Caller, port: &Port) -> Value {
    let mut fields = standard_fields(&port.standard);
    if caller.is_admin() {
        let host = port.host.as_deref().unwrap_or_default();
        fields.insert("binding:host_id".into(), json!(host));
        fields.insert("binding:vif_type".into(), json!(if host.is_empty() { "unbound" } else { "bridge" }));
        fields.insert("binding:vif_details".into(), json!({}));
        fields.insert("binding:profile".into(), json!({}));
    }
    let ips: Vec<_> = port
        .fixed_ips
        .iter()
        .map(|ip| json!({"subnet_id": ip.subnet_id, "ip_address": ip.ip_address}))
        .collect();
    let pairs: Vec<_> = port
        .allowed_address_pairs
        .iter()
        .map(|(prefix, mac)| {
            let mac = if *mac == [0; 6] { port.mac } else { *mac };
            let is_host = prefix.prefix_len() == prefix.max_prefix_len();
            let address = if is_host { prefix.addr().to_string() } else { prefix.to_string() };
            json!({"ip_address": address, "mac_address": mac_text(mac)})
        })
        .collect();
    let options: Vec<_> = port
        .extra_dhcp_opts
        .iter()
        .map(|option| {
            json!({"opt_name": option.name, "opt_value": option.value, "ip_version": option.ip_version})
        })
        .collect();
    let names: Vec<_> = state
        .control
        .names_of_port(port)
        .into_iter()
        .map(|name| json!({"hostname": name.hostname, "ip_address": name.address, "fqdn": name.fqdn}))
        .collect();
    with_fields(
        fields,
        json!({
            "name": port.standard.name,
            "network_id": port.network_id,
            "mac_address": mac_text(port.mac),
            "fixed_ips": ips,
            "allowed_address_pairs": pairs,
            "admin_state_up": port.admin_state_up,
            "status": if port.active { "ACTIVE" } else { "DOWN" },
            "security_groups": port.security_groups,
            "port_security_enabled": port.port_security_enabled,
            "device_id": port.device_id,
            "device_owner": port.device_owner,
            "binding:vnic_type": "normal",
            "extra_dhcp_opts": options,
            "dns_name": port.dns_name,
            "dns_assignment": names,
            "trunk_details": trunk::details(state, &port.standard.id),
            "qos_policy_id": port.qos_policy_id,
            "qos_network_policy_id": state.control.qos_policy_of_network(&port.network_id),
            "tags": port.standard.tags,
        }),
    )
}

/// `POST /v2.0/ports`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<OneOrMany<CreateFields>>,
) -> Created {
    let (requests, answered) = body.try_map(PortCreate::try_from)?;
    let ports = state.control.port_create_many(&caller, requests).await?;
    answered.with(ports.iter().map(|port| view(&state, &caller, &port.row)).collect())
}

/// `GET /v2.0/ports`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Result<Json<Value>, Fault> {
    let ports = state.control.port_list(&caller).await?;
    listing("ports", ports.iter().map(|port| view(&state, &caller, &port.row)).collect(), &filters, &url)
}

/// `GET /v2.0/ports/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Result<Json<Value>, Fault> {
    let port = state.control.port_get(&caller, &id).await?;
    Ok(shown("port", view(&state, &caller, &port.row), &filters))
}

/// `PUT /v2.0/ports/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Result<Json<Value>, Fault> {
    let fields = body.port;
    if fields.vnic_type.as_deref().is_some_and(|kind| kind != "normal") {
        return Err(Fault::not_implemented("a port of another vnic_type than normal"));
    }
    let update = PortUpdate {
        name: fields.name,
        description: fields.description,
        admin_state_up: fields.admin_state_up,
        security_groups: fields.security_groups,
        port_security_enabled: fields.port_security_enabled,
        allowed_address_pairs: fields.allowed_address_pairs.map(pairs).transpose()?,
        device_id: fields.device_id,
        device_owner: fields.device_owner,
        qos_policy_id: fields.qos_policy_id,
        fixed_ips: fields.fixed_ips.map(|ips| ips.into_iter().map(FixedIpWish::from).collect()),
        mac: fields.mac_address.as_deref().map(read_mac).transpose()?,
        host: fields.host.map(Option::unwrap_or_default),
        extra_dhcp_opts: dhcp_options(fields.extra_dhcp_opts)?,
        dns_name: fields.dns_name,
    };
    let port = state.control.port_update(&caller, &id, update).await?;
    Ok(Json(json!({"port": view(&state, &caller, &port.row)})))
}

/// `DELETE /v2.0/ports/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<StatusCode, Fault> {
    state.control.port_delete(&caller, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
