//! Routers on the wire (Network API v2.0: routers, extra routes).

use std::collections::BTreeSet;
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::model::router::Router;
use control::service::port::FixedIpWish;
use control::service::router::interface::{InterfaceChange, InterfaceRequest};
use control::service::router::{GatewayWish, RouterCreate, RouterUpdate};
use ipnet::IpNet;
use serde::Deserialize;
use serde_json::{Value, json};

use super::port::FixedIpFields;
use super::resource::Resource;
use super::{Created, invalid, nullable, read_subnet, standard_fields, with_fields};
use crate::context::{AppState, Authenticated, Body, Segments};
use crate::error::Fault;

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

fn view(state: &AppState, router: &Router) -> Value {
    let gateway = router.gateway.as_ref().map(|gateway| {
        let port = state.control.router_gateway_port(router);
        let ips: Vec<_> = port
            .iter()
            .flat_map(|port| &port.row.fixed_ips)
            .map(|ip| json!({"subnet_id": ip.subnet_id, "ip_address": ip.ip_address}))
            .collect();
        json!({
            "network_id": gateway.network_id,
            "enable_snat": gateway.enable_snat,
            "qos_policy_id": gateway.qos_policy_id,
            "external_fixed_ips": ips,
        })
    });
    let routes: Vec<_> =
        router.routes.iter().map(|(to, via)| json!({"destination": to, "nexthop": via})).collect();
    let status = match state.control.router_fault(&router.standard.id) {
        Some(_) => "ERROR",
        None => "ACTIVE",
    };
    with_fields(
        standard_fields(&router.standard),
        json!({
            "name": router.standard.name,
            "admin_state_up": router.admin_state_up,
            "status": status,
            "external_gateway_info": gateway,
            "routes": routes,
            "availability_zone_hints": router.zone_hints,
            "availability_zones": [control::service::network::ZONE],
            "flavor_id": null,
            "tags": router.standard.tags,
        }),
    )
}

impl Resource for Router {
    const NAMES: [&'static str; 2] = ["router", "routers"];

    fn view(&self, state: &AppState, _: &Caller) -> Value {
        view(state, self)
    }

    async fn delete(control: &Control, caller: &Caller, id: &str) -> Result<(), Error> {
        control.router_delete(caller, id).await
    }
}

fn interface_view(change: &InterfaceChange) -> Value {
    json!({
        "id": change.router_id,
        "tenant_id": change.project_id,
        "project_id": change.project_id,
        "port_id": change.port_id,
        "network_id": change.network_id,
        "subnet_id": change.subnet_ids.first(),
        "subnet_ids": change.subnet_ids,
    })
}

/// `POST /v2.0/routers`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<CreateBody>,
) -> Created {
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
    Ok((StatusCode::CREATED, Json(json!({"router": view(&state, &router.row)}))))
}

/// `PUT /v2.0/routers/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Result<Json<Value>, Fault> {
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
    Ok(Json(json!({"router": view(&state, &router.row)})))
}

/// `PUT /v2.0/routers/{id}/add_router_interface`.
pub(super) async fn add_interface(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<InterfaceBody>,
) -> Result<Json<Value>, Fault> {
    let request = InterfaceRequest { subnet_id: body.subnet_id, port_id: body.port_id };
    let change = state.control.router_add_interface(&caller, &id, &request).await?;
    Ok(Json(interface_view(&change)))
}

/// `PUT /v2.0/routers/{id}/remove_router_interface`.
pub(super) async fn remove_interface(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<InterfaceBody>,
) -> Result<Json<Value>, Fault> {
    let request = InterfaceRequest { subnet_id: body.subnet_id, port_id: body.port_id };
    let change = state.control.router_remove_interface(&caller, &id, &request).await?;
    Ok(Json(interface_view(&change)))
}

/// `PUT /v2.0/routers/{id}/add_extraroutes`.
pub(super) async fn add_routes(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<RoutesBody>,
) -> Result<Json<Value>, Fault> {
    let router = state.control.router_add_routes(&caller, &id, &routes(body.router.routes)?).await?;
    Ok(Json(json!({"router": view(&state, &router.row)})))
}

/// `PUT /v2.0/routers/{id}/remove_extraroutes`.
pub(super) async fn remove_routes(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<RoutesBody>,
) -> Result<Json<Value>, Fault> {
    let router = state.control.router_remove_routes(&caller, &id, &routes(body.router.routes)?).await?;
    Ok(Json(json!({"router": view(&state, &router.row)})))
}
