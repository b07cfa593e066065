//! Routers on the wire (Network API v2.0: routers, extra routes).

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::model::router::Router;
use control::service::port::FixedIpWish;
use control::service::router::interface::{InterfaceChange, InterfaceRequest};
use control::service::router::{GatewayWish, RouterCreate, RouterUpdate};
use ipnet::IpNet;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::port::{FixedIpFields, ShownFixedIp, fixed_ips};
use super::resource::Resource;
use super::{Created, One, Shown, StandardFields, invalid, nullable, read_subnet};
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::answer::Status;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    router: CreateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    #[serde(default)]
    name: String,
    #[serde(default)]
    description: String,
    admin_state_up: Option<bool>,
    project_id: Option<String>,
    tenant_id: Option<String>,
    external_gateway_info: Option<GatewayFields>,
    distributed: Option<bool>,
    ha: Option<bool>,
    #[serde(default)]
    availability_zone_hints: Vec<String>,
    #[serde(default)]
    tags: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GatewayFields {
    network_id: Option<String>,
    enable_snat: Option<bool>,
    external_fixed_ips: Option<Vec<FixedIpFields>>,
    #[serde(default, deserialize_with = "nullable")]
    qos_policy_id: Option<Option<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    router: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    name: Option<String>,
    description: Option<String>,
    admin_state_up: Option<bool>,
    #[serde(default, deserialize_with = "nullable")]
    external_gateway_info: Option<Option<GatewayFields>>,
    distributed: Option<bool>,
    ha: Option<bool>,
    #[serde(default, deserialize_with = "nullable")]
    routes: Option<Option<Vec<RouteFields>>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RouteFields {
    destination: String,
    nexthop: String,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct RoutesBody {
    router: RoutesFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct RoutesFields {
    routes: Vec<RouteFields>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct InterfaceBody {
    subnet_id: Option<String>,
    port_id: Option<String>,
}

/// A way out; without a network it is none.
fn gateway(fields: Option<GatewayFields>) -> Result<Option<GatewayWish>, Fault> {
    let Some(GatewayFields { network_id, enable_snat, external_fixed_ips, qos_policy_id }) = fields else {
        return Ok(None);
    };
    let Some(network_id) = network_id else {
        if enable_snat.is_some() || external_fixed_ips.is_some() {
            return Err(invalid(
                "Invalid input for external_gateway_info. Reason: Validation of dictionary's keys failed: \
                 network_id is required.",
            ));
        }
        return Ok(None);
    };
    let fixed_ips = external_fixed_ips.map(|ips| ips.into_iter().map(FixedIpWish::from).collect());
    Ok(Some(GatewayWish { network_id, enable_snat, fixed_ips, qos_policy_id }))
}

fn routes(fields: Vec<RouteFields>) -> Result<Vec<(IpNet, IpAddr)>, Fault> {
    fields
        .into_iter()
        .map(|RouteFields { destination, nexthop }| {
            let to = read_subnet("routes", &destination)?;
            let via = nexthop.parse().map_err(|_| {
                invalid(format!("Invalid input for routes. Reason: '{nexthop}' is not a valid IP address."))
            })?;
            Ok((to, via))
        })
        .collect()
}

/// Routers of several hosts at once are not there.
fn refuse_spread(distributed: Option<bool>, ha: Option<bool>) -> Result<(), Fault> {
    match (distributed, ha) {
        (Some(true), _) => Err(Fault::not_implemented("a distributed router")),
        (_, Some(true)) => Err(Fault::not_implemented("a highly available router")),
        _ => Ok(()),
    }
}

/// A router as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Router")]
pub(super) struct ShownRouter {
    #[serde(flatten)]
    standard: StandardFields,
    name: String,
    admin_state_up: bool,
    status: &'static str,
    external_gateway_info: Option<ShownGateway>,
    routes: Vec<ShownRoute>,
    availability_zone_hints: Vec<String>,
    availability_zones: [&'static str; 1],
    /// Always null.
    flavor_id: Option<String>,
    tags: BTreeSet<String>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Gateway")]
struct ShownGateway {
    network_id: String,
    enable_snat: bool,
    qos_policy_id: Option<String>,
    external_fixed_ips: Vec<ShownFixedIp>,
}

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Route")]
struct ShownRoute {
    destination: String,
    nexthop: IpAddr,
}

impl Shown for ShownRouter {
    const NAMES: &'static [&'static str; 2] = &["router", "routers"];
}

fn view(state: &AppState, router: &Router) -> ShownRouter {
    let gateway = router.gateway.as_ref().map(|gateway| {
        let port = state.control.router_gateway_port(router);
        ShownGateway {
            network_id: gateway.network_id.clone(),
            enable_snat: gateway.enable_snat,
            qos_policy_id: gateway.qos_policy_id.clone(),
            external_fixed_ips: port.iter().flat_map(|port| fixed_ips(&port.row)).collect(),
        }
    });
    let route = |(to, via): &(IpNet, IpAddr)| ShownRoute { destination: to.to_string(), nexthop: *via };
    let status = match state.control.router_fault(&router.standard.id) {
        Some(_) => "ERROR",
        None => "ACTIVE",
    };
    ShownRouter {
        standard: (&router.standard).into(),
        name: router.standard.name.clone(),
        admin_state_up: router.admin_state_up,
        status,
        external_gateway_info: gateway,
        routes: router.routes.iter().map(route).collect(),
        availability_zone_hints: router.zone_hints.clone(),
        availability_zones: [control::service::network::ZONE],
        flavor_id: None,
        tags: router.standard.tags.clone(),
    }
}

impl Resource for Router {
    type View = ShownRouter;

    fn view(&self, state: &AppState, _: &Caller) -> ShownRouter {
        view(state, self)
    }

    async fn delete(control: &Control, caller: &Caller, id: &str) -> Result<(), Error> {
        control.router_delete(caller, id).await
    }
}

/// What became of a router's interface.
#[derive(Serialize, JsonSchema)]
pub(super) struct InterfaceView {
    id: String,
    tenant_id: String,
    project_id: String,
    port_id: String,
    network_id: String,
    subnet_id: Option<String>,
    subnet_ids: Vec<String>,
}

fn interface_view(change: InterfaceChange) -> InterfaceView {
    InterfaceView {
        id: change.router_id,
        tenant_id: change.project_id.clone(),
        project_id: change.project_id,
        port_id: change.port_id,
        network_id: change.network_id,
        subnet_id: change.subnet_ids.first().cloned(),
        subnet_ids: change.subnet_ids,
    }
}

/// `POST /v2.0/routers`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<CreateBody>,
) -> Created<One<ShownRouter>> {
    let fields = body.router;
    refuse_spread(fields.distributed, fields.ha)?;
    let request = RouterCreate {
        project_id: fields.project_id.or(fields.tenant_id),
        name: fields.name,
        description: fields.description,
        admin_state_up: fields.admin_state_up,
        gateway: gateway(fields.external_gateway_info)?,
        zone_hints: fields.availability_zone_hints,
        tags: fields.tags,
    };
    let router = state.control.router_create(&caller, request).await?;
    Ok(Status(Json(One(view(&state, &router.row)))))
}

/// `PUT /v2.0/routers/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownRouter>> {
    let fields = body.router;
    refuse_spread(fields.distributed, fields.ha)?;
    let update = RouterUpdate {
        name: fields.name,
        description: fields.description,
        admin_state_up: fields.admin_state_up,
        gateway: fields.external_gateway_info.map(gateway).transpose()?,
        routes: fields.routes.map(|list| routes(list.unwrap_or_default())).transpose()?,
    };
    let router = state.control.router_update(&caller, &id, update).await?;
    Ok(Json(One(view(&state, &router.row))))
}

/// `PUT /v2.0/routers/{id}/add_router_interface`.
pub(super) async fn add_interface(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<InterfaceBody>,
) -> Answer<InterfaceView> {
    let request = InterfaceRequest { subnet_id: body.subnet_id, port_id: body.port_id };
    let change = state.control.router_add_interface(&caller, &id, &request).await?;
    Ok(Json(interface_view(change)))
}

/// `PUT /v2.0/routers/{id}/remove_router_interface`.
pub(super) async fn remove_interface(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<InterfaceBody>,
) -> Answer<InterfaceView> {
    let request = InterfaceRequest { subnet_id: body.subnet_id, port_id: body.port_id };
    let change = state.control.router_remove_interface(&caller, &id, &request).await?;
    Ok(Json(interface_view(change)))
}

/// `PUT /v2.0/routers/{id}/add_extraroutes`.
pub(super) async fn add_routes(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<RoutesBody>,
) -> Answer<One<ShownRouter>> {
    let router = state.control.router_add_routes(&caller, &id, &routes(body.router.routes)?).await?;
    Ok(Json(One(view(&state, &router.row))))
}

/// `PUT /v2.0/routers/{id}/remove_extraroutes`.
pub(super) async fn remove_routes(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<RoutesBody>,
) -> Answer<One<ShownRouter>> {
    let router = state.control.router_remove_routes(&caller, &id, &routes(body.router.routes)?).await?;
    Ok(Json(One(view(&state, &router.row))))
}
