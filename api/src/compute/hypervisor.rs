//! Hypervisors on the wire (Compute API: hypervisors); administrators only.

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::error::Error;
use control::model::compute::Server;
use control::service::host::HostView;
use control::service::server::read::ServerScope;
use serde_json::{Map, Value, json};

use super::{number_of, pattern, until};
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::page::{Direction, Page};

/// `hypervisor_type`.
const KIND: &str = "wisp";

/// `GET /os-hypervisors`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let hosts = state.control.hosts(&caller).await?;
    listed(&state, &caller, version, &filters, &url, (hosts, brief)).await
}

/// `GET /os-hypervisors/detail`.
pub(super) async fn detail(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let hosts = state.control.hosts_seen(&caller, "os_compute_api:os-hypervisors:list-detail").await?;
    listed(&state, &caller, version, &filters, &url, (hosts, full)).await
}

/// How a host is shown.
type Show = fn(Microversion, &HostView) -> Value;

async fn listed(
    state: &AppState,
    caller: &Caller,
    version: Microversion,
    filters: &Filters,
    url: &RequestUrl,
    (mut hosts, show): (Vec<HostView>, Show),
) -> Answer<Value> {
    let mut with_servers = false;
    if version.at_least(2, 53) {
        with_servers = filters.flag("with_servers")?.unwrap_or(false);
        if let Some(text) = filters.get("hypervisor_hostname_pattern") {
            let wanted = pattern(text)?;
            hosts.retain(|host| wanted.is_match(&host.host.row.name));
            if hosts.is_empty() {
                return Err(Error::not_found("Hypervisor matching", text).into());
            }
        }
    }
    let servers = if with_servers { all_servers(state, caller).await? } else { Vec::new() };
    let page = Page::of(filters, &[("name", Direction::Ascending)])?;
    let slice = page.cut(
        hosts,
        |host| &host.host.row.hypervisor_id,
        |host, key| (key == "name").then(|| host.host.row.name.as_str().into()),
    )?;
    Ok(Json(slice.nova("hypervisors", url, |host| {
        let mut shown = show(version, &host);
        if with_servers {
            add_servers(&mut shown, &host, &servers, version);
        }
        shown
    })))
}

async fn all_servers(state: &AppState, caller: &Caller) -> Result<Vec<Server>, Fault> {
    let servers = state.control.servers(caller, ServerScope::All).await?;
    Ok(servers.iter().map(|server| server.row.clone()).collect())
}

/// Since 2.75 a host without servers says so.
fn add_servers(shown: &mut Value, host: &HostView, servers: &[Server], version: Microversion) {
    let own = servers.iter().filter(|server| server.host.as_deref() == Some(&host.host.row.name));
    let own: Vec<Value> =
        own.map(|server| json!({"uuid": server.id, "name": format!("instance-{}", server.id)})).collect();
    if !own.is_empty() || version.at_least(2, 75) {
        shown["servers"] = Value::Array(own);
    }
}

/// `GET /os-hypervisors/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let host = one(&state, &caller, version, &id, "os_compute_api:os-hypervisors:show").await?;
    let mut shown = full(version, &host);
    if version.at_least(2, 53) && filters.flag("with_servers")? == Some(true) {
        add_servers(&mut shown, &host, &all_servers(&state, &caller).await?, version);
    }
    Ok(Json(json!({"hypervisor": shown})))
}

async fn one(
    state: &AppState,
    caller: &Caller,
    version: Microversion,
    id: &str,
    rule: &'static str,
) -> Result<HostView, Fault> {
    let hosts = state.control.hosts_seen(caller, rule).await?;
    let found = hosts
        .into_iter()
        .find(|host| shown_id(version, &host.host.row.hypervisor_id) == json_id(version, id));
    found.ok_or_else(|| Error::not_found("Compute host", id).into())
}

/// `GET /os-hypervisors/{id}/uptime`; in the details since 2.88.
pub(super) async fn uptime(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    until(version, 88)?;
    let host = one(&state, &caller, version, &id, "os_compute_api:os-hypervisors:uptime").await?;
    let mut shown = brief(version, &host);
    shown["uptime"] = json!(uptime_text(&host));
    Ok(Json(json!({"hypervisor": shown})))
}

/// `GET /os-hypervisors/{pattern}/search`; a query parameter since 2.53.
pub(super) async fn search(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(text): Segments<String>,
) -> Answer<Value> {
    until(version, 53)?;
    let hosts = matching(&state, &caller, &text, "os_compute_api:os-hypervisors:search").await?;
    let shown: Vec<Value> = hosts.iter().map(|host| brief(version, host)).collect();
    Ok(Json(json!({"hypervisors": shown})))
}

/// `GET /os-hypervisors/{pattern}/servers`; a query parameter since 2.53.
pub(super) async fn servers(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(text): Segments<String>,
) -> Answer<Value> {
    until(version, 53)?;
    let hosts = matching(&state, &caller, &text, "os_compute_api:os-hypervisors:servers").await?;
    let servers = all_servers(&state, &caller).await?;
    let with_servers = |host: &HostView| {
        let mut shown = brief(version, host);
        add_servers(&mut shown, host, &servers, version);
        shown
    };
    Ok(Json(json!({"hypervisors": hosts.iter().map(with_servers).collect::<Vec<_>>()})))
}

async fn matching(
    state: &AppState,
    caller: &Caller,
    text: &str,
    rule: &'static str,
) -> Result<Vec<HostView>, Fault> {
    let wanted = pattern(text)?;
    let mut hosts = state.control.hosts_seen(caller, rule).await?;
    hosts.retain(|host| wanted.is_match(&host.host.row.name));
    if hosts.is_empty() { Err(Error::not_found("Hypervisor matching", text).into()) } else { Ok(hosts) }
}

/// `GET /os-hypervisors/statistics`; gone since 2.88.
pub(super) async fn statistics(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
) -> Answer<Value> {
    until(version, 88)?;
    let hosts = state.control.hosts_seen(&caller, "os_compute_api:os-hypervisors:statistics").await?;
    let up: Vec<&HostView> = hosts.iter().filter(|host| host.host.row.disabled.is_none()).collect();
    let mut sums: Map<String, Value> = Map::new();
    sums.insert("count".to_owned(), json!(up.len()));
    for name in FIGURES {
        let sum: i64 = up.iter().map(|host| figure(host, name)).sum();
        sums.insert(name.to_owned(), json!(sum));
    }
    Ok(Json(json!({"hypervisor_statistics": sums})))
}

/// The figures of a host until 2.88.
const FIGURES: [&str; 11] = [
    "vcpus",
    "vcpus_used",
    "memory_mb",
    "memory_mb_used",
    "free_ram_mb",
    "local_gb",
    "local_gb_used",
    "free_disk_gb",
    "disk_available_least",
    "running_vms",
    "current_workload",
];

/// One of [`FIGURES`]. What is used includes what the host keeps for itself, as Nova counts.
fn figure(host: &HostView, name: &str) -> i64 {
    let report = &host.host.row.report;
    let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let used_memory =
        whole(host.claimed.memory_mib + control::scheduler::Allocation::default().reserved_memory_mib);
    match name {
        "vcpus" => i64::from(report.vcpus),
        "vcpus_used" => whole(host.claimed.vcpus),
        "memory_mb" => whole(report.memory_mib),
        "memory_mb_used" => used_memory,
        "free_ram_mb" => whole(report.memory_mib) - used_memory,
        "local_gb" => whole(report.disk_gib),
        "local_gb_used" => whole(host.claimed.disk_gib),
        "free_disk_gb" => whole(report.disk_gib) - whole(host.claimed.disk_gib),
        "disk_available_least" => whole(report.disk_free_gib),
        "running_vms" => whole(host.servers as u64),
        // Builds and other work under way is not counted on hosts.
        _ => 0,
    }
}

fn shown_id(version: Microversion, id: &str) -> Value {
    if version.at_least(2, 53) { json!(id) } else { json!(number_of(id)) }
}

/// An id of the path as [`shown_id`] shows it; what is no number is no id before 2.53.
fn json_id(version: Microversion, id: &str) -> Value {
    if version.at_least(2, 53) {
        json!(id)
    } else {
        id.parse::<u32>().map_or(Value::Null, |number| json!(number))
    }
}

fn brief(version: Microversion, host: &HostView) -> Value {
    let row = &host.host.row;
    json!({
        "id": shown_id(version, &row.hypervisor_id),
        "hypervisor_hostname": row.name,
        "state": if host.alive { "up" } else { "down" },
        "status": if row.disabled.is_none() { "enabled" } else { "disabled" },
    })
}

fn full(version: Microversion, host: &HostView) -> Value {
    let row = &host.host.row;
    let mut shown = brief(version, host);
    shown["hypervisor_type"] = json!(KIND);
    shown["hypervisor_version"] = json!(version_number());
    shown["host_ip"] = json!(row.report.address);
    shown["service"] = json!({
        "id": shown_id(version, &row.service_id),
        "host": row.name,
        "disabled_reason": row.disabled,
    });
    if version.at_least(2, 88) {
        shown["uptime"] = json!(uptime_text(host));
        return shown;
    }
    for name in FIGURES {
        shown[name] = json!(figure(host, name));
    }
    let cpu = json!({"arch": "x86_64", "model": row.report.cpu_model, "vendor": "", "features": [], "topology": {}});
    shown["cpu_info"] = if version.at_least(2, 28) { cpu } else { json!(cpu.to_string()) };
    shown
}

/// Wisp's own version as Nova writes versions: a million for each major, a thousand for each minor.
fn version_number() -> u32 {
    let parts = env!("CARGO_PKG_VERSION").split('.').map(|part| part.parse::<u32>().unwrap_or(0));
    parts.take(3).fold(0, |number, part| number * 1000 + part)
}

/// As `uptime(1)` says it, as far as it is known.
fn uptime_text(host: &HostView) -> Option<String> {
    let seconds = host.alive.then_some(host.host.row.report.uptime_s)?;
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    Some(format!(" up {days} days, {hours:02}:{minutes:02}"))
}
