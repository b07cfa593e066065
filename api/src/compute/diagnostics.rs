//! How a server fares (Compute API: servers diagnostics), in the form of before 2.48 and in the one since.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::agent::figures::LinkCounts;
use control::service::server::diagnostics::ServerDiagnostics;
use schemars::JsonSchema;
use serde::Serialize;

use crate::context::{Answer, AppState, Authenticated, Segments};
use crate::microversion::Microversion;

/// The one of the API's closed list that runs guests on KVM.
const DRIVER: &str = "libvirt";

/// What is answered.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Shown {
    /// Until 2.47: names as libvirt's driver gives them, memory in KiB.
    Names(BTreeMap<String, u64>),
    /// Since 2.48.
    Details(Box<Details>),
}

/// A server since 2.48.
#[derive(Debug, Serialize, JsonSchema)]
pub(super) struct Details {
    state: &'static str,
    driver: &'static str,
    hypervisor: Option<String>,
    hypervisor_os: Option<String>,
    uptime: Option<u64>,
    config_drive: bool,
    num_cpus: u64,
    num_nics: u64,
    num_disks: u64,
    memory_details: Memory,
    cpu_details: Vec<Cpu>,
    nic_details: Vec<Nic>,
    disk_details: Vec<Disk>,
}

/// In MiB.
#[derive(Debug, Serialize, JsonSchema)]
struct Memory {
    maximum: Option<u64>,
    used: Option<u64>,
}

/// A virtual CPU, its time in nanoseconds.
#[derive(Debug, Serialize, JsonSchema)]
struct Cpu {
    id: Option<u64>,
    time: Option<u64>,
    utilisation: Option<u64>,
}

/// A network device as its guest sees it.
#[derive(Debug, Serialize, JsonSchema)]
struct Nic {
    mac_address: Option<String>,
    rx_octets: Option<u64>,
    rx_errors: Option<u64>,
    rx_drop: Option<u64>,
    rx_packets: Option<u64>,
    rx_rate: Option<u64>,
    tx_octets: Option<u64>,
    tx_errors: Option<u64>,
    tx_drop: Option<u64>,
    tx_packets: Option<u64>,
    tx_rate: Option<u64>,
}

/// A disk: nothing counts what a guest reads and writes.
#[derive(Debug, Default, Clone, Serialize, JsonSchema)]
struct Disk {
    read_bytes: Option<u64>,
    read_requests: Option<u64>,
    write_bytes: Option<u64>,
    write_requests: Option<u64>,
    errors_count: Option<u64>,
}

/// `GET /servers/{id}/diagnostics`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Shown> {
    let found = state.control.server_diagnostics(&caller, &id).await?;
    Ok(Json(if version.at_least(2, 48) {
        Shown::Details(Box::new(details(&found)))
    } else {
        Shown::Names(names(&found))
    }))
}

fn details(found: &ServerDiagnostics) -> Details {
    let (server, figures) = (&found.server.row, &found.figures);
    let cpus = figures.vcpu_times_ns.iter().zip(0..);
    // A server that is booted from a volume has its root disk among these.
    let boots_from_volume = server.volumes.iter().any(|volume| volume.boot);
    let disks = server.volumes.len() + usize::from(!boots_from_volume) + usize::from(server.config_drive);
    Details {
        state: "running",
        driver: DRIVER,
        hypervisor: Some("kvm".to_owned()),
        hypervisor_os: Some("linux".to_owned()),
        uptime: figures.uptime_s,
        config_drive: server.config_drive,
        num_cpus: figures.vcpu_times_ns.len() as u64,
        num_nics: found.nics.len() as u64,
        num_disks: disks as u64,
        memory_details: Memory {
            maximum: Some(server.flavor.ram_mib.into()),
            used: figures.memory_used_mib.map(|used| used.min(server.flavor.ram_mib.into())),
        },
        cpu_details: cpus.map(|(time, id)| Cpu { id: Some(id), time: *time, utilisation: None }).collect(),
        nic_details: found.nics.iter().map(|(mac, counts)| nic(*mac, *counts)).collect(),
        disk_details: vec![Disk::default(); disks],
    }
}

/// What the host takes from a tap is what the guest sends.
fn nic(mac: [u8; 6], counts: Option<LinkCounts>) -> Nic {
    let [a, b, c, d, e, f] = mac;
    Nic {
        mac_address: Some(format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")),
        rx_octets: counts.map(|counts| counts.sent.bytes),
        rx_errors: counts.map(|counts| counts.send_errors),
        rx_drop: counts.map(|counts| counts.send_drops),
        rx_packets: counts.map(|counts| counts.sent.packets),
        rx_rate: None,
        tx_octets: counts.map(|counts| counts.received.bytes),
        tx_errors: counts.map(|counts| counts.receive_errors),
        tx_drop: counts.map(|counts| counts.receive_drops),
        tx_packets: counts.map(|counts| counts.received.packets),
        tx_rate: None,
    }
}

/// Only what is known has a name.
fn names(found: &ServerDiagnostics) -> BTreeMap<String, u64> {
    let figures = &found.figures;
    let mut names = BTreeMap::from([("memory".to_owned(), u64::from(found.server.row.flavor.ram_mib) << 10)]);
    names.extend(figures.memory_used_mib.map(|used| ("memory-rss".to_owned(), used << 10)));
    for (index, time) in figures.vcpu_times_ns.iter().enumerate() {
        names.extend(time.map(|time| (format!("cpu{index}_time"), time)));
    }
    for (index, (_, counts)) in found.nics.iter().enumerate() {
        let Some(counts) = counts else { continue };
        let device = |what: &str, value: u64| (format!("vnet{index}_{what}"), value);
        names.extend([
            device("rx", counts.sent.bytes),
            device("rx_packets", counts.sent.packets),
            device("rx_errors", counts.send_errors),
            device("rx_drop", counts.send_drops),
            device("tx", counts.received.bytes),
            device("tx_packets", counts.received.packets),
            device("tx_errors", counts.receive_errors),
            device("tx_drop", counts.receive_drops),
        ]);
    }
    names
}
