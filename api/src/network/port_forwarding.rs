//! Port forwardings of floating IPs on the wire (Network API v2.0: floating IPs port forwarding).

use std::net::Ipv4Addr;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::model::router::{PortForwarding, Transport};
use control::service::router::forwarding::ForwardingRequest;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Created, invalid, listing, shown};
use crate::context::{AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ForwardingBody {
    port_forwarding: Fields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    protocol: Option<String>,
    external_port: Option<u16>,
    external_port_range: Option<String>,
    internal_port: Option<u16>,
    internal_port_range: Option<String>,
    internal_port_id: Option<String>,
    internal_ip_address: Option<Ipv4Addr>,
    description: Option<String>,
}

/// `80`, or `80:90`.
fn range(name: &str, single: Option<u16>, text: Option<&str>) -> Result<Option<(u16, u16)>, Fault> {
    let wrong = || invalid(format!("Invalid input for {name}. Reason: it is not a port or FIRST:LAST."));
    let Some(text) = text else { return Ok(single.map(|port| (port, port))) };
    if single.is_some() {
        return Err(invalid(format!(
            "Invalid input for {name}. Reason: it is given as a port and as a range."
        )));
    }
    let (first, last) = text.split_once(':').unwrap_or((text, text));
    let port = |text: &str| text.parse::<u16>().map_err(|_| wrong());
    Ok(Some((port(first)?, port(last)?)))
}

impl TryFrom<Fields> for ForwardingRequest {
    type Error = Fault;

    fn try_from(fields: Fields) -> Result<Self, Fault> {
        let transport = match fields.protocol.as_deref().map(str::to_ascii_lowercase).as_deref() {
            None => None,
            Some("tcp") => Some(Transport::Tcp),
            Some("udp") => Some(Transport::Udp),
            Some(other) => {
                return Err(invalid(format!(
                    "Invalid input for protocol. Reason: '{other}' is not in ['tcp', 'udp']."
                )));
            }
        };
        Ok(Self {
            transport,
            external: range("external_port", fields.external_port, fields.external_port_range.as_deref())?,
            internal: range("internal_port", fields.internal_port, fields.internal_port_range.as_deref())?,
            internal_port_id: fields.internal_port_id,
            internal_address: fields.internal_ip_address,
            description: fields.description,
        })
    }
}

/// As a floating IP lists it.
pub(super) fn summary(forwarding: &PortForwarding) -> Value {
    let text = |(first, last): (u16, u16)| format!("{first}:{last}");
    let mut shown = json!({
        "protocol": forwarding.transport.name(),
        "internal_ip_address": forwarding.internal_address,
    });
    if forwarding.external.0 == forwarding.external.1 {
        shown["external_port"] = json!(forwarding.external.0);
    } else {
        shown["external_port_range"] = json!(text(forwarding.external));
    }
    if forwarding.internal.0 == forwarding.internal.1 {
        shown["internal_port"] = json!(forwarding.internal.0);
    } else {
        shown["internal_port_range"] = json!(text(forwarding.internal));
    }
    shown
}

fn view(forwarding: &PortForwarding) -> Value {
    let text = |(first, last): (u16, u16)| format!("{first}:{last}");
    let mut shown = summary(forwarding);
    shown["id"] = json!(forwarding.standard.id);
    shown["internal_port_id"] = json!(forwarding.internal_port_id);
    shown["external_port_range"] = json!(text(forwarding.external));
    shown["internal_port_range"] = json!(text(forwarding.internal));
    shown["description"] = json!(forwarding.standard.description);
    shown
}

/// `POST /v2.0/floatingips/{id}/port_forwardings`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(floating_ip_id): Segments<String>,
    Body(body): Body<ForwardingBody>,
) -> Created {
    let request = body.port_forwarding.try_into()?;
    let forwarding = state.control.forwarding_create(&caller, &floating_ip_id, request).await?;
    Ok((StatusCode::CREATED, Json(json!({"port_forwarding": view(&forwarding.row)}))))
}

/// `GET /v2.0/floatingips/{id}/port_forwardings`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(floating_ip_id): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Result<Json<Value>, Fault> {
    let all = state.control.forwarding_list(&caller, &floating_ip_id).await?;
    listing("port_forwardings", all.iter().map(|forwarding| view(&forwarding.row)).collect(), &filters, &url)
}

/// `GET /v2.0/floatingips/{id}/port_forwardings/{forwarding_id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((floating_ip_id, id)): Segments<(String, String)>,
    filters: Filters,
) -> Result<Json<Value>, Fault> {
    let forwarding = state.control.forwarding_get(&caller, &floating_ip_id, &id).await?;
    Ok(shown("port_forwarding", view(&forwarding.row), &filters))
}

/// `PUT /v2.0/floatingips/{id}/port_forwardings/{forwarding_id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((floating_ip_id, id)): Segments<(String, String)>,
    Body(body): Body<ForwardingBody>,
) -> Result<Json<Value>, Fault> {
    let request = body.port_forwarding.try_into()?;
    let forwarding = state.control.forwarding_update(&caller, &floating_ip_id, &id, request).await?;
    Ok(Json(json!({"port_forwarding": view(&forwarding.row)})))
}

/// `DELETE /v2.0/floatingips/{id}/port_forwardings/{forwarding_id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((floating_ip_id, id)): Segments<(String, String)>,
) -> Result<StatusCode, Fault> {
    state.control.forwarding_delete(&caller, &floating_ip_id, &id).await?;
    Ok(StatusCode::NO_CONTENT)
}
