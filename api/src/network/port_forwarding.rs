//! Port forwardings of floating IPs on the wire (Network API v2.0: floating IPs port forwarding).

use std::net::Ipv4Addr;

use axum::Json;
use axum::extract::State;
use control::model::router::{PortForwarding, Transport};
use control::service::router::forwarding::ForwardingRequest;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Chosen, Created, Listed, One, Shown, invalid, listing, shown};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done, Status};

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

/// A port forwarding as its floating IP lists it: single ports as such, several as a range.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PortForwardingSummary")]
pub(super) struct Summary {
    protocol: &'static str,
    internal_ip_address: Ipv4Addr,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    external_port_range: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    internal_port: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    internal_port_range: Option<String>,
}

/// A port forwarding as it is shown: with ranges always, and with single ports too where it has these.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "PortForwarding")]
pub(super) struct ShownForwarding {
    #[serde(flatten)]
    summary: Summary,
    id: String,
    internal_port_id: String,
    description: String,
}

impl Shown for ShownForwarding {
    const NAMES: &'static [&'static str; 2] = &["port_forwarding", "port_forwardings"];
}

fn single((first, last): (u16, u16)) -> Option<u16> {
    (first == last).then_some(first)
}

fn range_text((first, last): (u16, u16)) -> String {
    format!("{first}:{last}")
}

/// As a floating IP lists it.
pub(super) fn summary(forwarding: &PortForwarding) -> Summary {
    let range = |ports| single(ports).is_none().then(|| range_text(ports));
    Summary {
        protocol: forwarding.transport.name(),
        internal_ip_address: forwarding.internal_address,
        external_port: single(forwarding.external),
        external_port_range: range(forwarding.external),
        internal_port: single(forwarding.internal),
        internal_port_range: range(forwarding.internal),
    }
}

fn view(forwarding: &PortForwarding) -> ShownForwarding {
    let summary = Summary {
        external_port_range: Some(range_text(forwarding.external)),
        internal_port_range: Some(range_text(forwarding.internal)),
        ..summary(forwarding)
    };
    ShownForwarding {
        summary,
        id: forwarding.standard.id.clone(),
        internal_port_id: forwarding.internal_port_id.clone(),
        description: forwarding.standard.description.clone(),
    }
}

/// `POST /v2.0/floatingips/{id}/port_forwardings`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(floating_ip_id): Segments<String>,
    Body(body): Body<ForwardingBody>,
) -> Created<One<ShownForwarding>> {
    let request = body.port_forwarding.try_into()?;
    let forwarding = state.control.forwarding_create(&caller, &floating_ip_id, request).await?;
    Ok(Status(Json(One(view(&forwarding.row)))))
}

/// `GET /v2.0/floatingips/{id}/port_forwardings`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(floating_ip_id): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownForwarding>> {
    let all = state.control.forwarding_list(&caller, &floating_ip_id).await?;
    listing(all.iter().map(|forwarding| view(&forwarding.row)), &filters, &url)
}

/// `GET /v2.0/floatingips/{id}/port_forwardings/{forwarding_id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((floating_ip_id, id)): Segments<(String, String)>,
    filters: Filters,
) -> Answer<One<Chosen<ShownForwarding>>> {
    let forwarding = state.control.forwarding_get(&caller, &floating_ip_id, &id).await?;
    Ok(shown(&view(&forwarding.row), &filters))
}

/// `PUT /v2.0/floatingips/{id}/port_forwardings/{forwarding_id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((floating_ip_id, id)): Segments<(String, String)>,
    Body(body): Body<ForwardingBody>,
) -> Answer<One<ShownForwarding>> {
    let request = body.port_forwarding.try_into()?;
    let forwarding = state.control.forwarding_update(&caller, &floating_ip_id, &id, request).await?;
    Ok(Json(One(view(&forwarding.row))))
}

/// `DELETE /v2.0/floatingips/{id}/port_forwardings/{forwarding_id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((floating_ip_id, id)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    state.control.forwarding_delete(&caller, &floating_ip_id, &id).await?;
    Ok(DONE)
}
