//! A server as the wire shows it (Compute API: show server details), in every microversion.

use control::agent::protocol::Power;
use control::caller::Caller;
use control::model::compute::{Flavor, Server, ServerVolume};
use control::service::server::{Address, ServerView, status::status};
use ring::digest::{SHA256, digest};
use serde_json::{Map, Value, json};
use vmm::document::Document;

use super::{bookmark, links, microseconds, seconds};
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
pub(super) fn brief(state: &AppState, server: &Server) -> Value {
    json!({"id": server.id, "name": server.name, "links": links(state, "servers", &server.id)})
}

/// The long form.
pub(super) fn full(
    state: &AppState,
    caller: &Caller,
    version: Microversion,
    view: &ServerView,
    shape: Shape,
) -> Value {
    let server = &view.server.row;
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| {
        body.insert(key.to_owned(), value);
    };
    let whole = shape != Shape::Updated || version.at_least(2, 75);
    base(state, version, view, whole, &mut put);
    since_versions(version, server, shape, &mut put);
    if whole {
        extended(version, view, &mut put);
        if caller.is_admin() {
            administrative(version, view, &mut put);
        } else if version.at_least(2, 90) {
            put("OS-EXT-SRV-ATTR:hostname", json!(server.hostname));
        }
    }
    let seen = status(server);
    if let ("ERROR", Some(fault)) = (seen.status, &server.fault) {
        let mut shown =
            json!({"code": fault.code, "created": seconds(fault.created_at), "message": fault.message});
        if !fault.details.is_empty() && (caller.is_admin() || fault.code != 500) {
            shown["details"] = json!(fault.details);
        }
        put("fault", shown);
    }
    if matches!(seen.status, "ACTIVE" | "BUILD") {
        put("progress", json!(if seen.status == "ACTIVE" { 100 } else { 0 }));
    }
    Value::Object(body)
}

/// What every version and shape has.
fn base(
    state: &AppState,
    version: Microversion,
    view: &ServerView,
    whole: bool,
    put: &mut impl FnMut(&str, Value),
) {
    let server = &view.server.row;
    put("id", json!(server.id));
    put("name", json!(server.name));
    put("status", json!(status(server).status));
    put("tenant_id", json!(server.project_id));
    put("user_id", json!(server.user_id));
    put("metadata", json!(server.metadata));
    put("hostId", json!(host_id(server)));
    put("image", image(state, version, server));
    put("flavor", flavor(state, version, &server.flavor));
    put("created", json!(seconds(server.created_at)));
    put("updated", json!(seconds(server.updated_at)));
    put("addresses", addresses(&view.addresses, whole));
    put("accessIPv4", json!(server.access_ip_v4));
    put("accessIPv6", json!(server.access_ip_v6));
    put("OS-DCF:diskConfig", json!(disk_config(server)));
    put("links", links(state, "servers", &server.id));
}

/// What came with a microversion, for everybody.
fn since_versions(version: Microversion, server: &Server, shape: Shape, put: &mut impl FnMut(&str, Value)) {
    if version.at_least(2, 9) {
        put("locked", json!(server.locked));
    }
    if version.at_least(2, 19) {
        put("description", json!(server.description));
    }
    if version.at_least(2, 26) {
        put("tags", json!(server.tags));
    }
    if version.at_least(2, 63) {
        put("trusted_image_certificates", Value::Null);
    }
    if version.at_least(2, 71) && shape != Shape::Detail {
        put("server_groups", json!([]));
    }
    if version.at_least(2, 73) {
        put("locked_reason", json!(server.locked_reason));
    }
    if version.at_least(2, 96) {
        put("pinned_availability_zone", json!(server.availability_zone));
    }
    if version.at_least(2, 100) {
        put("scheduler_hints", json!(server.scheduler_hints));
    }
}

/// What extensions of old added, for everybody.
fn extended(version: Microversion, view: &ServerView, put: &mut impl FnMut(&str, Value)) {
    let server = &view.server.row;
    let seen = status(server);
    put("OS-EXT-AZ:availability_zone", json!(view.zone.as_deref().unwrap_or_default()));
    put("OS-EXT-STS:task_state", json!(seen.task_state));
    put("OS-EXT-STS:vm_state", json!(seen.vm_state));
    put("OS-EXT-STS:power_state", json!(seen.power_state));
    put("OS-SRV-USG:launched_at", json!(server.launched_at.map(microseconds)));
    put("OS-SRV-USG:terminated_at", Value::Null);
    put("config_drive", json!(if server.config_drive { "True" } else { "" }));
    put("key_name", json!(server.key.as_ref().map(|(name, _)| name)));
    let volume = |attached: &ServerVolume| {
        let mut shown = json!({"id": attached.volume_id});
        if version.at_least(2, 3) {
            shown["delete_on_termination"] = json!(attached.delete_on_termination);
        }
        shown
    };
    put("os-extended-volumes:volumes_attached", server.volumes.iter().map(volume).collect());
    // Nova leaves the groups out where a server has none, since it has no devices.
    if !view.security_groups.is_empty() {
        let names: Vec<Value> = view.security_groups.iter().map(|name| json!({"name": name})).collect();
        put("security_groups", Value::Array(names));
    }
}

/// What only administrators see.
fn administrative(version: Microversion, view: &ServerView, put: &mut impl FnMut(&str, Value)) {
    let server = &view.server.row;
    put("OS-EXT-SRV-ATTR:host", json!(server.host));
    put("OS-EXT-SRV-ATTR:hypervisor_hostname", json!(server.host));
    put("OS-EXT-SRV-ATTR:instance_name", json!(format!("instance-{}", server.id)));
    if version.at_least(2, 3) {
        let kernel = server.kernel.as_ref();
        put("OS-EXT-SRV-ATTR:reservation_id", json!(server.reservation_id));
        put("OS-EXT-SRV-ATTR:launch_index", json!(server.launch_index));
        put("OS-EXT-SRV-ATTR:hostname", json!(server.hostname));
        put("OS-EXT-SRV-ATTR:kernel_id", json!(kernel.map_or("", |kernel| &kernel.kernel_id)));
        put(
            "OS-EXT-SRV-ATTR:ramdisk_id",
            json!(kernel.and_then(|kernel| kernel.ramdisk_id.as_deref()).unwrap_or("")),
        );
        put("OS-EXT-SRV-ATTR:root_device_name", json!("/dev/vda"));
        put("OS-EXT-SRV-ATTR:user_data", json!(server.user_data.as_ref().map(encode)));
    }
    if version.at_least(2, 16) {
        put("host_status", json!(host_status(view)));
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

/// `AUTO` or `MANUAL`: what was asked for; no partition is resized from outside the guest either way.
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

fn image(state: &AppState, version: Microversion, server: &Server) -> Value {
    if server.image_id.is_empty() {
        // It boots from a volume.
        return json!("");
    }
    let mut image = json!({"id": server.image_id, "links": bookmark(state, "images", &server.image_id)});
    if version.at_least(2, 98) {
        image["properties"] = json!(server.image_properties);
    }
    image
}

fn flavor(state: &AppState, version: Microversion, flavor: &Flavor) -> Value {
    if !version.at_least(2, 47) {
        return json!({"id": flavor.id, "links": bookmark(state, "flavors", &flavor.id)});
    }
    json!({
        "vcpus": flavor.vcpus,
        "ram": flavor.ram_mib,
        "disk": flavor.disk_gib,
        "ephemeral": flavor.ephemeral_gib,
        "swap": flavor.swap_mib,
        "original_name": flavor.name,
        "extra_specs": flavor.extra_specs,
    })
}

/// Addresses by network; `extended` with the port's MAC address and the kind of address.
pub(super) fn addresses(addresses: &[Address], extended: bool) -> Value {
    let mut networks = Map::new();
    for address in addresses {
        let mut shown = json!({
            "version": if address.address.is_ipv4() { 4 } else { 6 },
            "addr": address.address,
        });
        if extended {
            shown["OS-EXT-IPS:type"] = json!(if address.floating { "floating" } else { "fixed" });
            shown["OS-EXT-IPS-MAC:mac_addr"] = json!(mac_text(address.mac));
        }
        let list = networks.entry(address.network.clone()).or_insert_with(|| json!([]));
        if let Some(list) = list.as_array_mut() {
            list.push(shown);
        }
    }
    Value::Object(networks)
}

/// `fa:16:3e:00:00:01`.
pub(super) fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
