//! Ports on the wire (Network API v2.0: ports).

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::model::network::Port;
use control::service::addressing::mac_text;
use control::service::names::Assignment;
use control::service::port::{DhcpOptionWish, FixedIpWish, PortCreate, PortUpdate};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bulk::{OneOrMany, Several};
use super::shown::Nothing;
use super::{
    Chosen, Created, Listed, Made, Number, One, Shown, StandardFields, invalid, listing, nullable, read_mac,
    shown, trunk,
};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};

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
    type View = ShownPort;
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
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Port")]
pub(super) struct ShownPort {
    #[serde(flatten)]
    standard: StandardFields,
    name: String,
    network_id: String,
    mac_address: String,
    fixed_ips: Vec<ShownFixedIp>,
    allowed_address_pairs: Vec<ShownPair>,
    admin_state_up: bool,
    status: &'static str,
    security_groups: Vec<String>,
    port_security_enabled: bool,
    device_id: String,
    device_owner: String,
    #[serde(rename = "binding:vnic_type")]
    vnic_type: &'static str,
    extra_dhcp_opts: Vec<ShownDhcpOption>,
    dns_name: String,
    dns_assignment: Vec<ShownName>,
    trunk_details: Option<trunk::Details>,
    qos_policy_id: Option<String>,
    qos_network_policy_id: Option<String>,
    tags: BTreeSet<String>,
    #[serde(flatten)]
    binding: Option<ShownBinding>,
}

/// What a port is bound to.
#[derive(Serialize, JsonSchema)]
struct ShownBinding {
    #[serde(rename = "binding:host_id")]
    host: String,
    #[serde(rename = "binding:vif_type")]
    vif_type: &'static str,
    #[serde(rename = "binding:vif_details")]
    vif_details: Nothing,
    #[serde(rename = "binding:profile")]
    profile: Nothing,
}

/// An address of a port.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "FixedIp")]
pub(super) struct ShownFixedIp {
    subnet_id: String,
    ip_address: IpAddr,
}

/// Addresses of a port, as they are shown.
pub(super) fn fixed_ips(port: &Port) -> impl Iterator<Item = ShownFixedIp> {
    port.fixed_ips
        .iter()
        .map(|ip| ShownFixedIp { subnet_id: ip.subnet_id.clone(), ip_address: ip.ip_address })
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "AddressPair")]
struct ShownPair {
    ip_address: String,
    mac_address: String,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DhcpOption")]
struct ShownDhcpOption {
    opt_name: String,
    opt_value: String,
    ip_version: u8,
}

/// A name of a port's (extension dns-integration).
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "DnsAssignment")]
struct ShownName {
    hostname: String,
    ip_address: IpAddr,
    fqdn: String,
}

impl From<Assignment> for ShownName {
    fn from(name: Assignment) -> Self {
        Self { hostname: name.hostname, ip_address: name.address, fqdn: name.fqdn }
    }
}

impl Shown for ShownPort {
    const NAMES: &'static [&'static str; 2] = &["port", "ports"];
}

/// What has a port that a trunk carries (Neutron's `TRUNK_SUBPORT_OWNER`).
const OWNER_CARRIED: &str = "trunk:subport";

fn binding(host: Option<&String>) -> ShownBinding {
    let host = host.cloned().unwrap_or_default();
    let vif_type = if host.is_empty() { "unbound" } else { "bridge" };
    ShownBinding { host, vif_type, vif_details: Nothing {}, profile: Nothing {} }
}

fn view(state: &AppState, caller: &Caller, port: &Port) -> ShownPort {
    let pairs = port.allowed_address_pairs.iter().map(|(prefix, mac)| {
        let mac = if *mac == [0; 6] { port.mac } else { *mac };
        let is_host = prefix.prefix_len() == prefix.max_prefix_len();
        let address = if is_host { prefix.addr().to_string() } else { prefix.to_string() };
        ShownPair { ip_address: address, mac_address: mac_text(mac) }
    });
    let options = port.extra_dhcp_opts.iter().map(|option| ShownDhcpOption {
        opt_name: option.name.clone(),
        opt_value: option.value.clone(),
        ip_version: option.ip_version,
    });
    // In a VLAN of another's, a port is where that one is, and a trunk's.
    let carried = state.control.port_is_carried(port);
    let owner = match carried {
        Some(_) if port.device_owner.is_empty() => OWNER_CARRIED.to_owned(),
        _ => port.device_owner.clone(),
    };
    ShownPort {
        standard: (&port.standard).into(),
        name: port.standard.name.clone(),
        network_id: port.network_id.clone(),
        mac_address: mac_text(port.mac),
        fixed_ips: fixed_ips(port).collect(),
        allowed_address_pairs: pairs.collect(),
        admin_state_up: port.admin_state_up,
        status: if port.active || carried.is_some() { "ACTIVE" } else { "DOWN" },
        security_groups: port.security_groups.clone(),
        port_security_enabled: port.port_security_enabled,
        device_id: port.device_id.clone(),
        device_owner: owner,
        vnic_type: "normal",
        extra_dhcp_opts: options.collect(),
        dns_name: port.dns_name.clone(),
        dns_assignment: state.control.names_of_port(port).into_iter().map(ShownName::from).collect(),
        trunk_details: trunk::details(state, &port.standard.id),
        qos_policy_id: port.qos_policy_id.clone(),
        qos_network_policy_id: state.control.qos_policy_of_network(&port.network_id),
        tags: port.standard.tags.clone(),
        binding: caller.is_admin().then(|| binding(port.host.as_ref().or(carried.as_ref()))),
    }
}

/// `POST /v2.0/ports`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<OneOrMany<CreateFields>>,
) -> Created<Made<ShownPort>> {
    let (requests, answered) = body.try_map(PortCreate::try_from)?;
    let ports = state.control.port_create_many(&caller, requests).await?;
    answered.with(ports.iter().map(|port| view(&state, &caller, &port.row)))
}

/// `GET /v2.0/ports`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownPort>> {
    let ports = state.control.port_list(&caller).await?;
    listing(ports.iter().map(|port| view(&state, &caller, &port.row)), &filters, &url)
}

/// `GET /v2.0/ports/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<ShownPort>>> {
    let port = state.control.port_get(&caller, &id).await?;
    Ok(shown(&view(&state, &caller, &port.row), &filters))
}

/// `PUT /v2.0/ports/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownPort>> {
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
    Ok(Json(One(view(&state, &caller, &port.row))))
}

/// `DELETE /v2.0/ports/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.port_delete(&caller, &id).await?;
    Ok(DONE)
}
