//! Subnets on the wire (Network API v2.0: subnets).

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use control::model::network::{Ipv6Mode, Subnet};
use control::service::subnet::{Gateway, SubnetCreate, SubnetUpdate};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::bulk::{OneOrMany, Several};
use super::{
    Chosen, Created, Listed, Made, Number, One, Shown, StandardFields, invalid, listing, nullable, shown,
};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateFields {
    network_id: String,
    cidr: Option<String>,
    ip_version: Option<Number<u8>>,
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    #[serde(default, deserialize_with = "nullable")]
    gateway_ip: Option<Option<IpAddr>>,
    enable_dhcp: Option<bool>,
    allocation_pools: Option<Vec<PoolFields>>,
    #[serde(default)]
    dns_nameservers: Vec<IpAddr>,
    #[serde(default)]
    host_routes: Vec<RouteFields>,
    // The subnet belongs to its network's project, as Neutron has it for everyone but administrators.
    #[serde(rename = "project_id")]
    _project_id: Option<String>,
    #[serde(rename = "tenant_id")]
    _tenant_id: Option<String>,
    subnetpool_id: Option<String>,
    prefixlen: Option<Number<u8>>,
    use_default_subnetpool: Option<bool>,
    ipv6_address_mode: Option<Ipv6Mode>,
    ipv6_ra_mode: Option<Ipv6Mode>,
    #[serde(default)]
    service_types: Vec<String>,
    #[serde(default)]
    tags: BTreeSet<String>,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "AllocationPool")]
struct PoolFields {
    start: IpAddr,
    end: IpAddr,
}

#[derive(Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
#[schemars(rename = "HostRoute")]
struct RouteFields {
    #[schemars(with = "String")]
    destination: IpNet,
    nexthop: IpAddr,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    subnet: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    name: Option<String>,
    description: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    gateway_ip: Option<Option<IpAddr>>,
    enable_dhcp: Option<bool>,
    allocation_pools: Option<Vec<PoolFields>>,
    dns_nameservers: Option<Vec<IpAddr>>,
    host_routes: Option<Vec<RouteFields>>,
    service_types: Option<Vec<String>>,
}

fn gateway(field: Option<Option<IpAddr>>) -> Gateway {
    match field {
        None => Gateway::First,
        Some(None) => Gateway::None,
        Some(Some(address)) => Gateway::Address(address),
    }
}

fn pools(fields: Vec<PoolFields>) -> Vec<(IpAddr, IpAddr)> {
    fields.into_iter().map(|pool| (pool.start, pool.end)).collect()
}

fn routes(fields: Vec<RouteFields>) -> Vec<(IpNet, IpAddr)> {
    fields.into_iter().map(|route| (route.destination, route.nexthop)).collect()
}

impl Several for CreateFields {
    type View = ShownSubnet;
}

impl TryFrom<CreateFields> for SubnetCreate {
    type Error = Fault;

    fn try_from(fields: CreateFields) -> Result<Self, Fault> {
        let read = |text: String| {
            text.parse::<IpNet>().map_err(|_| {
                invalid(format!("Invalid input for cidr. Reason: '{text}' is not a valid IP subnet."))
            })
        };
        let ip_version = fields.ip_version.map(|version| version.0);
        let cidr = fields.cidr.map(read).transpose()?;
        let version = cidr.map(|cidr| if cidr.addr().is_ipv4() { 4 } else { 6 });
        if let (Some(said), Some(version), Some(cidr)) = (ip_version, version, cidr)
            && said != version
        {
            return Err(invalid(format!(
                "Invalid input for operation: ip_version {said} does not match the cidr {cidr}."
            )));
        }
        Ok(Self {
            network_id: fields.network_id,
            cidr,
            ip_version,
            subnetpool_id: fields.subnetpool_id,
            use_default_subnetpool: fields.use_default_subnetpool.unwrap_or(false),
            prefixlen: fields.prefixlen.map(|length| length.0),
            name: fields.name,
            description: fields.description,
            gateway: gateway(fields.gateway_ip),
            enable_dhcp: fields.enable_dhcp.unwrap_or(true),
            allocation_pools: fields.allocation_pools.map(pools),
            dns_nameservers: fields.dns_nameservers,
            host_routes: routes(fields.host_routes),
            ipv6_ra_mode: fields.ipv6_ra_mode,
            ipv6_address_mode: fields.ipv6_address_mode,
            service_types: fields.service_types,
            tags: fields.tags,
        })
    }
}

/// A subnet as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Subnet")]
pub(super) struct ShownSubnet {
    #[serde(flatten)]
    standard: StandardFields,
    name: String,
    network_id: String,
    cidr: String,
    ip_version: u8,
    gateway_ip: Option<IpAddr>,
    enable_dhcp: bool,
    allocation_pools: Vec<PoolFields>,
    dns_nameservers: Vec<IpAddr>,
    host_routes: Vec<RouteFields>,
    tags: BTreeSet<String>,
    ipv6_address_mode: Option<&'static str>,
    ipv6_ra_mode: Option<&'static str>,
    subnetpool_id: Option<String>,
    service_types: Vec<String>,
}

impl Shown for ShownSubnet {
    const NAMES: &'static [&'static str; 2] = &["subnet", "subnets"];
}

fn view(subnet: &Subnet) -> ShownSubnet {
    let pools = subnet.allocation_pools.iter().map(|&(start, end)| PoolFields { start, end });
    let routes =
        subnet.host_routes.iter().map(|&(destination, nexthop)| RouteFields { destination, nexthop });
    ShownSubnet {
        standard: (&subnet.standard).into(),
        name: subnet.standard.name.clone(),
        network_id: subnet.network_id.clone(),
        cidr: subnet.cidr.to_string(),
        ip_version: if subnet.cidr.addr().is_ipv4() { 4 } else { 6 },
        gateway_ip: subnet.gateway_ip,
        enable_dhcp: subnet.enable_dhcp,
        allocation_pools: pools.collect(),
        dns_nameservers: subnet.dns_nameservers.clone(),
        host_routes: routes.collect(),
        tags: subnet.standard.tags.clone(),
        ipv6_address_mode: subnet.ipv6_address_mode.map(Ipv6Mode::name),
        ipv6_ra_mode: subnet.ipv6_ra_mode.map(Ipv6Mode::name),
        subnetpool_id: subnet.subnetpool_id.clone(),
        service_types: subnet.service_types.clone(),
    }
}

/// `POST /v2.0/subnets`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<OneOrMany<CreateFields>>,
) -> Created<Made<ShownSubnet>> {
    let (requests, answered) = body.try_map(SubnetCreate::try_from)?;
    let subnets = state.control.subnet_create_many(&caller, requests).await?;
    answered.with(subnets.iter().map(|subnet| view(&subnet.row)))
}

/// `GET /v2.0/subnets`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownSubnet>> {
    let subnets = state.control.subnet_list(&caller).await?;
    listing(subnets.iter().map(|subnet| view(&subnet.row)), &filters, &url)
}

/// `GET /v2.0/subnets/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<ShownSubnet>>> {
    let subnet = state.control.subnet_get(&caller, &id).await?;
    Ok(shown(&view(&subnet.row), &filters))
}

/// `PUT /v2.0/subnets/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownSubnet>> {
    let fields = body.subnet;
    let update = SubnetUpdate {
        name: fields.name,
        description: fields.description,
        gateway: fields.gateway_ip.map(|field| gateway(Some(field))),
        enable_dhcp: fields.enable_dhcp,
        allocation_pools: fields.allocation_pools.map(pools),
        dns_nameservers: fields.dns_nameservers,
        host_routes: fields.host_routes.map(routes),
        service_types: fields.service_types,
    };
    let subnet = state.control.subnet_update(&caller, &id, update).await?;
    Ok(Json(One(view(&subnet.row))))
}

/// `DELETE /v2.0/subnets/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.subnet_delete(&caller, &id).await?;
    Ok(DONE)
}
