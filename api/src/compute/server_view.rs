//! A server as the wire shows it (Compute API: show server details), in every microversion.

use std::collections::BTreeMap;
use std::net::IpAddr;

use control::agent::protocol::Power;
use control::caller::Caller;
use control::model::compute::{Flavor, Server, ServerVolume};
use control::service::server::{Address, ServerView, status::status};
use ring::digest::{SHA256, digest};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;
use vmm::document::Document;

use super::{Link, Nothing, bookmark, links, microseconds, seconds, with};
use crate::context::AppState;
use crate::microversion::Microversion;

/// Which of the shapes that differ in what they hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Shape {
    /// One server.
    Show,
    /// One of a list.
    Detail,
    /// After a change; before 2.75 it holds less.
    Updated,
}

/// The short form of a list.
#[derive(Serialize, JsonSchema)]
pub(super) struct ServerBrief {
    id: String,
    name: String,
    links: [Link; 2],
}

/// A server; its parts are fields beside its own.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Server")]
pub(super) struct ShownServer {
    id: String,
    name: String,
    status: &'static str,
    tenant_id: String,
    user_id: String,
    metadata: BTreeMap<String, String>,
    #[serde(rename = "hostId")]
    host_id: String,
    image: ImageOfServer,
    flavor: FlavorOfServer,
    created: String,
    updated: String,
    addresses: Addresses,
    #[serde(rename = "accessIPv4")]
    access_ip_v4: String,
    #[serde(rename = "accessIPv6")]
    access_ip_v6: String,
    #[serde(rename = "OS-DCF:diskConfig")]
    disk_config: &'static str,
    links: [Link; 2],
    #[serde(flatten)]
    newer: Newer,
    #[serde(flatten)]
    extended: Option<Extended>,
    #[serde(flatten)]
    administrative: Option<Administrative>,
    #[serde(rename = "OS-EXT-SRV-ATTR:hostname", skip_serializing_if = "Option::is_none")]
    hostname: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    fault: Option<ShownFault>,
    #[serde(skip_serializing_if = "Option::is_none")]
    progress: Option<u8>,
}

/// What came with microversions, for everybody.
#[derive(Serialize, JsonSchema)]
struct Newer {
    #[serde(skip_serializing_if = "Option::is_none")]
    locked: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    description: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    tags: Option<Vec<String>>,
    /// Always null.
    #[serde(skip_serializing_if = "Option::is_none")]
    trusted_image_certificates: Option<Option<Nothing>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    server_groups: Option<Nothing>,
    #[serde(skip_serializing_if = "Option::is_none")]
    locked_reason: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pinned_availability_zone: Option<Option<String>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    scheduler_hints: Option<BTreeMap<String, Value>>,
}

/// What extensions of old added, for everybody.
#[derive(Serialize, JsonSchema)]
struct Extended {
    #[serde(rename = "OS-EXT-AZ:availability_zone")]
    availability_zone: String,
    #[serde(rename = "OS-EXT-STS:task_state")]
    task_state: Option<String>,
    #[serde(rename = "OS-EXT-STS:vm_state")]
    vm_state: &'static str,
    #[serde(rename = "OS-EXT-STS:power_state")]
    power_state: u8,
    #[serde(rename = "OS-SRV-USG:launched_at")]
    launched_at: Option<String>,
    /// Always null.
    #[serde(rename = "OS-SRV-USG:terminated_at")]
    terminated_at: Option<String>,
    config_drive: &'static str,
    key_name: Option<String>,
    #[serde(rename = "os-extended-volumes:volumes_attached")]
    volumes_attached: Vec<AttachedVolume>,
    #[serde(skip_serializing_if = "Option::is_none")]
    security_groups: Option<Vec<GroupName>>,
}

#[derive(Serialize, JsonSchema)]
struct AttachedVolume {
    id: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    delete_on_termination: Option<bool>,
}

/// The name of a security group.
#[derive(Serialize, JsonSchema)]
pub(super) struct GroupName {
    pub(super) name: String,
}

/// What only administrators see.
#[derive(Serialize, JsonSchema)]
struct Administrative {
    #[serde(rename = "OS-EXT-SRV-ATTR:host")]
    host: Option<String>,
    #[serde(rename = "OS-EXT-SRV-ATTR:hypervisor_hostname")]
    hypervisor_hostname: Option<String>,
    #[serde(rename = "OS-EXT-SRV-ATTR:instance_name")]
    instance_name: String,
    #[serde(flatten)]
    attributes: Option<Attributes>,
    #[serde(skip_serializing_if = "Option::is_none")]
    host_status: Option<&'static str>,
}

/// The same, from microversion 2.3 on.
#[derive(Serialize, JsonSchema)]
struct Attributes {
    #[serde(rename = "OS-EXT-SRV-ATTR:reservation_id")]
    reservation_id: String,
    #[serde(rename = "OS-EXT-SRV-ATTR:launch_index")]
    launch_index: u32,
    #[serde(rename = "OS-EXT-SRV-ATTR:kernel_id")]
    kernel_id: String,
    #[serde(rename = "OS-EXT-SRV-ATTR:ramdisk_id")]
    ramdisk_id: String,
    #[serde(rename = "OS-EXT-SRV-ATTR:root_device_name")]
    root_device_name: &'static str,
    #[serde(rename = "OS-EXT-SRV-ATTR:user_data")]
    user_data: Option<String>,
}

/// Why a server is in ERROR; details are the administrator's, unless the fault is the client's.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "ServerFault")]
struct ShownFault {
    code: u16,
    created: String,
    message: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    details: Option<String>,
}

/// The image that a server was made of; empty where it boots from a volume.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum ImageOfServer {
    None(&'static str),
    Image {
        id: String,
        links: [Link; 1],
        #[serde(skip_serializing_if = "Option::is_none")]
        properties: Option<BTreeMap<String, String>>,
    },
}

/// A server's flavor: a reference, or, from microversion 2.47 on, what it was when the server was made.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum FlavorOfServer {
    Reference {
        id: String,
        links: [Link; 1],
    },
    Copy {
        vcpus: u32,
        ram: u32,
        disk: u32,
        ephemeral: u32,
        swap: u32,
        original_name: String,
        extra_specs: BTreeMap<String, String>,
    },
}

/// Addresses by network.
pub(super) type Addresses = BTreeMap<String, Vec<ShownAddress>>;

/// An address of a server.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Address")]
pub(super) struct ShownAddress {
    version: u8,
    addr: IpAddr,
    #[serde(rename = "OS-EXT-IPS:type", skip_serializing_if = "Option::is_none")]
    kind: Option<&'static str>,
    #[serde(rename = "OS-EXT-IPS-MAC:mac_addr", skip_serializing_if = "Option::is_none")]
    mac: Option<String>,
}

/// The short form.
pub(super) fn brief(state: &AppState, server: &Server) -> ServerBrief {
    let links = links(state, "servers", &server.id);
    ServerBrief { id: server.id.clone(), name: server.name.clone(), links }
}

/// The long form.
pub(super) fn full(
    state: &AppState,
    caller: &Caller,
    version: Microversion,
    view: &ServerView,
    shape: Shape,
) -> ShownServer {
    let server = &view.server.row;
    let whole = shape != Shape::Updated || version.at_least(2, 75);
    let is_admin = caller.is_admin();
    let seen = status(server);
    let fault = server.fault.as_ref().filter(|_| seen.status == "ERROR");
    let named = whole && version.at_least(2, if is_admin { 3 } else { 90 });
    ShownServer {
        id: server.id.clone(),
        name: server.name.clone(),
        status: seen.status,
        tenant_id: server.project_id.clone(),
        user_id: server.user_id.clone(),
        metadata: server.metadata.clone(),
        host_id: host_id(server),
        image: image(state, version, server),
        flavor: flavor(state, version, &server.flavor),
        created: seconds(server.created_at),
        updated: seconds(server.updated_at),
        addresses: addresses(&view.addresses, whole),
        access_ip_v4: server.access_ip_v4.clone(),
        access_ip_v6: server.access_ip_v6.clone(),
        disk_config: disk_config(server),
        links: links(state, "servers", &server.id),
        newer: newer(version, server, shape),
        extended: whole.then(|| extended(version, view)),
        administrative: (whole && is_admin).then(|| administrative(version, view)),
        hostname: named.then(|| server.hostname.clone()),
        fault: fault.map(|fault| ShownFault {
            code: fault.code,
            created: seconds(fault.created_at),
            message: fault.message.clone(),
            details: (!fault.details.is_empty() && (is_admin || fault.code != 500))
                .then(|| fault.details.clone()),
        }),
        progress: match seen.status {
            "ACTIVE" => Some(100),
            "BUILD" => Some(0),
            _ => None,
        },
    }
}

fn newer(version: Microversion, server: &Server, shape: Shape) -> Newer {
    Newer {
        locked: with(version, 9, server.locked),
        description: with(version, 19, server.description.clone()),
        tags: with(version, 26, server.tags.clone()),
        trusted_image_certificates: with(version, 63, None),
        server_groups: with(version, 71, []).filter(|_| shape != Shape::Detail),
        locked_reason: with(version, 73, server.locked_reason.clone()),
        pinned_availability_zone: with(version, 96, server.availability_zone.clone()),
        scheduler_hints: with(version, 100, server.scheduler_hints.clone()),
    }
}

fn extended(version: Microversion, view: &ServerView) -> Extended {
    let server = &view.server.row;
    let seen = status(server);
    let volume = |attached: &ServerVolume| AttachedVolume {
        id: attached.volume_id.clone(),
        delete_on_termination: with(version, 3, attached.delete_on_termination),
    };
    let names = view.security_groups.iter().map(|name| GroupName { name: name.clone() });
    Extended {
        availability_zone: view.zone.clone().unwrap_or_default(),
        task_state: seen.task_state.map(str::to_owned),
        vm_state: seen.vm_state,
        power_state: seen.power_state,
        launched_at: server.launched_at.map(microseconds),
        terminated_at: None,
        config_drive: if server.config_drive { "True" } else { "" },
        key_name: server.key.as_ref().map(|(name, _)| name.clone()),
        volumes_attached: server.volumes.iter().map(volume).collect(),
        // Nova leaves the groups out where a server has none, since it has no devices.
        security_groups: (!view.security_groups.is_empty()).then(|| names.collect()),
    }
}

fn administrative(version: Microversion, view: &ServerView) -> Administrative {
    let server = &view.server.row;
    let kernel = server.kernel.as_ref();
    let attributes = Attributes {
        reservation_id: server.reservation_id.clone(),
        launch_index: server.launch_index,
        kernel_id: kernel.map(|kernel| kernel.kernel_id.clone()).unwrap_or_default(),
        ramdisk_id: kernel.and_then(|kernel| kernel.ramdisk_id.clone()).unwrap_or_default(),
        root_device_name: "/dev/vda",
        user_data: server.user_data.as_ref().map(encode),
    };
    Administrative {
        host: server.host.clone(),
        hypervisor_hostname: server.host.clone(),
        instance_name: format!("instance-{}", server.id),
        attributes: with(version, 3, attributes),
        host_status: with(version, 16, host_status(view)),
    }
}

fn host_status(view: &ServerView) -> &'static str {
    match view.host_alive {
        None => "",
        Some(false) => "DOWN",
        Some(true) if view.host_disabled => "MAINTENANCE",
        Some(true) => "UP",
    }
}

fn encode(data: &Document) -> String {
    use base64::Engine as _;
    base64::engine::general_purpose::STANDARD.encode(data)
}

/// `AUTO` or `MANUAL`: what was asked for, or its image said; no partition is resized from outside the guest either way.
pub(super) fn disk_config(server: &Server) -> &'static str {
    if server.auto_disk_config { "AUTO" } else { "MANUAL" }
}

/// A name for the host that says nothing of it but whether two servers of one project share it.
pub(super) fn host_id(server: &Server) -> String {
    let host = match &server.host {
        Some(host) if server.power != Power::Deleted => host,
        _ => return String::new(),
    };
    let hash = digest(&SHA256, format!("{}{host}", server.project_id).as_bytes());
    // As long as Nova's, which is a SHA-224.
    hash.as_ref()[..28].iter().map(|byte| format!("{byte:02x}")).collect()
}

fn image(state: &AppState, version: Microversion, server: &Server) -> ImageOfServer {
    if server.image_id.is_empty() {
        return ImageOfServer::None("");
    }
    ImageOfServer::Image {
        id: server.image_id.clone(),
        links: bookmark(state, "images", &server.image_id),
        properties: with(version, 98, server.image_properties.clone()),
    }
}

fn flavor(state: &AppState, version: Microversion, flavor: &Flavor) -> FlavorOfServer {
    if !version.at_least(2, 47) {
        let links = bookmark(state, "flavors", &flavor.id);
        return FlavorOfServer::Reference { id: flavor.id.clone(), links };
    }
    FlavorOfServer::Copy {
        vcpus: flavor.vcpus,
        ram: flavor.ram_mib,
        disk: flavor.disk_gib,
        ephemeral: flavor.ephemeral_gib,
        swap: flavor.swap_mib,
        original_name: flavor.name.clone(),
        extra_specs: flavor.extra_specs.clone(),
    }
}

/// Addresses by network; `extended` with the port's MAC address and the kind of address.
pub(super) fn addresses(addresses: &[Address], extended: bool) -> Addresses {
    let mut networks = Addresses::new();
    for address in addresses {
        let kind = if address.floating { "floating" } else { "fixed" };
        let shown = ShownAddress {
            version: if address.address.is_ipv4() { 4 } else { 6 },
            addr: address.address,
            kind: extended.then_some(kind),
            mac: extended.then(|| mac_text(address.mac)),
        };
        networks.entry(address.network.clone()).or_default().push(shown);
    }
    networks
}

/// `fa:16:3e:00:00:01`.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
