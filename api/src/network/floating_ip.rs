//! Floating IPs on the wire (Network API v2.0: floating IPs).

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use axum::Json;
use axum::extract::State;
use control::Control;
use control::caller::Caller;
use control::error::Error;
use control::model::network::Port;
use control::model::router::FloatingIp;
use control::service::addressing::mac_text;
use control::service::router::floating_ip::{FloatingIpCreate, FloatingIpUpdate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::resource::Resource;
use super::{Created, One, Shown, StandardFields, invalid, nullable, port_forwarding};
use crate::context::{Answer, AppState, Authenticated, Body, Segments};
use crate::error::Fault;
use crate::openapi::answer::Status;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    floatingip: CreateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    floating_network_id: String,
    subnet_id: Option<String>,
    floating_ip_address: Option<Ipv4Addr>,
    port_id: Option<String>,
    fixed_ip_address: Option<Ipv4Addr>,
    project_id: Option<String>,
    tenant_id: Option<String>,
    #[serde(default)]
    description: String,
    dns_name: Option<String>,
    dns_domain: Option<String>,
    qos_policy_id: Option<String>,
    #[serde(default)]
    tags: BTreeSet<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    floatingip: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    #[serde(default, deserialize_with = "nullable")]
    port_id: Option<Option<String>>,
    fixed_ip_address: Option<Ipv4Addr>,
    description: Option<String>,
    #[serde(default, deserialize_with = "nullable")]
    qos_policy_id: Option<Option<String>>,
}

/// A floating IP as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "FloatingIp")]
pub(super) struct ShownFloatingIp {
    #[serde(flatten)]
    standard: StandardFields,
    floating_network_id: String,
    floating_ip_address: Ipv4Addr,
    router_id: Option<String>,
    port_id: Option<String>,
    fixed_ip_address: Option<Ipv4Addr>,
    status: &'static str,
    port_details: Option<PortDetails>,
    port_forwardings: Vec<port_forwarding::Summary>,
    dns_name: String,
    dns_domain: String,
    qos_policy_id: Option<String>,
    qos_network_policy_id: Option<String>,
    tags: BTreeSet<String>,
}

/// What is said of the port that an address leads to.
#[derive(Serialize, JsonSchema)]
struct PortDetails {
    name: String,
    network_id: String,
    mac_address: String,
    admin_state_up: bool,
    status: &'static str,
    device_id: String,
    device_owner: String,
}

impl Shown for ShownFloatingIp {
    const NAMES: &'static [&'static str; 2] = &["floatingip", "floatingips"];
}

fn port_details(port: &Port) -> PortDetails {
    PortDetails {
        name: port.standard.name.clone(),
        network_id: port.network_id.clone(),
        mac_address: mac_text(port.mac),
        admin_state_up: port.admin_state_up,
        status: if port.active { "ACTIVE" } else { "DOWN" },
        device_id: port.device_id.clone(),
        device_owner: port.device_owner.clone(),
    }
}

fn view(state: &AppState, floating: &FloatingIp) -> ShownFloatingIp {
    let facts = state.control.floating_ip_facts(floating);
    let forwardings = facts.forwardings.iter().map(|forwarding| port_forwarding::summary(&forwarding.row));
    ShownFloatingIp {
        standard: (&floating.standard).into(),
        floating_network_id: floating.network_id.clone(),
        floating_ip_address: floating.address,
        router_id: floating.router_id.clone(),
        port_id: floating.target.as_ref().map(|target| target.port_id.clone()),
        fixed_ip_address: floating.target.as_ref().map(|target| target.address),
        status: if facts.is_active { "ACTIVE" } else { "DOWN" },
        port_details: facts.port.as_ref().map(|port| port_details(&port.row)),
        port_forwardings: forwardings.collect(),
        dns_name: floating.dns_name.clone(),
        dns_domain: floating.dns_domain.clone(),
        qos_policy_id: floating.qos_policy_id.clone(),
        qos_network_policy_id: state.control.qos_policy_of_network(&floating.network_id),
        tags: floating.standard.tags.clone(),
    }
}

impl Resource for FloatingIp {
    type View = ShownFloatingIp;

    fn view(&self, state: &AppState, _: &Caller) -> ShownFloatingIp {
        view(state, self)
    }

    async fn delete(control: &Control, caller: &Caller, id: &str) -> Result<(), Error> {
        control.floating_ip_delete(caller, id).await
    }
}

/// A name of labels, or a whole domain, which ends with a dot (RFC 1035 §2.3.4); nothing if it is absent.
fn dns_name(field: &str, text: Option<String>, whole: bool) -> Result<String, Fault> {
    const BYTES_MAX: usize = 255;
    const LABEL_BYTES_MAX: usize = 63;
    let text = text.unwrap_or_default();
    let label = |label: &str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let labels = text.strip_suffix('.').unwrap_or(&text);
    let fits = text.len() <= BYTES_MAX && labels.split('.').all(label) && (!whole || text.ends_with('.'));
    if text.is_empty() || fits {
        return Ok(text);
    }
    let what = if whole { "a FQDN" } else { "a valid PQDN or FQDN" };
    Err(invalid(format!("Invalid input for {field}. Reason: '{text}' is not {what}.")))
}

/// `POST /v2.0/floatingips`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<CreateBody>,
) -> Created<One<ShownFloatingIp>> {
    let fields = body.floatingip;
    let request = FloatingIpCreate {
        project_id: fields.project_id.or(fields.tenant_id),
        network_id: fields.floating_network_id,
        subnet_id: fields.subnet_id,
        address: fields.floating_ip_address,
        port_id: fields.port_id,
        fixed_ip_address: fields.fixed_ip_address,
        description: fields.description,
        dns_name: dns_name("dns_name", fields.dns_name, false)?,
        dns_domain: dns_name("dns_domain", fields.dns_domain, true)?,
        qos_policy_id: fields.qos_policy_id,
        tags: fields.tags,
    };
    let floating = state.control.floating_ip_create(&caller, request).await?;
    Ok(Status(Json(One(view(&state, &floating.row)))))
}

/// `PUT /v2.0/floatingips/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownFloatingIp>> {
    let UpdateFields { port_id, fixed_ip_address, description, qos_policy_id } = body.floatingip;
    let update = FloatingIpUpdate { port_id, fixed_ip_address, description, qos_policy_id };
    let floating = state.control.floating_ip_update(&caller, &id, update).await?;
    Ok(Json(One(view(&state, &floating.row))))
}
