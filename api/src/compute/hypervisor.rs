//! Hypervisors on the wire (Compute API: hypervisors); administrators only.

use axum::Json;
use axum::extract::State;
use control::caller::Caller;
use control::error::Error;
use control::model::compute::Server;
use control::service::host::HostView;
use control::service::server::read::ServerScope;
use schemars::JsonSchema;
use serde::Serialize;

use super::{CountedId, Nothing, before, pattern, until, with};
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::page::{Direction, NextLink, Page};

/// `hypervisor_type`.
const KIND: &str = "wisp";

/// A hypervisor: its short form, and what else was asked for.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "Hypervisor")]
pub(super) struct ShownHypervisor {
    id: CountedId,
    hypervisor_hostname: String,
    state: &'static str,
    status: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    servers: Option<Vec<HostedServer>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    uptime: Option<Option<String>>,
    #[serde(flatten)]
    details: Option<Details>,
}

/// What only the long form has.
#[derive(Serialize, JsonSchema)]
struct Details {
    hypervisor_type: &'static str,
    hypervisor_version: u32,
    host_ip: String,
    service: ServiceOfHost,
    #[serde(flatten)]
    figures: Option<Figures>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu_info: Option<CpuInfo>,
}

#[derive(Serialize, JsonSchema)]
struct ServiceOfHost {
    id: CountedId,
    host: String,
    disabled_reason: Option<String>,
}

/// A server of a host's.
#[derive(Serialize, JsonSchema)]
struct HostedServer {
    uuid: String,
    name: String,
}

/// Of the processors; before microversion 2.28 as text.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
enum CpuInfo {
    Text(String),
    Cpu(Cpu),
}

#[derive(Serialize, JsonSchema)]
struct Cpu {
    arch: &'static str,
    features: Nothing,
    model: String,
    topology: Topology,
    vendor: &'static str,
}

/// Nothing is said of it.
#[derive(Serialize, JsonSchema)]
struct Topology {}

/// What a host has until 2.88. What is used includes what the host keeps for itself, as Nova counts.
#[derive(Default, Serialize, JsonSchema)]
struct Figures {
    vcpus: i64,
    vcpus_used: i64,
    memory_mb: i64,
    memory_mb_used: i64,
    free_ram_mb: i64,
    local_gb: i64,
    local_gb_used: i64,
    free_disk_gb: i64,
    disk_available_least: i64,
    running_vms: i64,
    /// Always 0: builds and other work under way are not counted on hosts.
    current_workload: i64,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Hypervisors {
    hypervisors: Vec<ShownHypervisor>,
    #[serde(skip_serializing_if = "Option::is_none")]
    hypervisors_links: Option<NextLink>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneHypervisor {
    hypervisor: ShownHypervisor,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct StatisticsAnswer {
    hypervisor_statistics: Statistics,
}

#[derive(Serialize, JsonSchema)]
struct Statistics {
    count: usize,
    #[serde(flatten)]
    figures: Figures,
}

/// `GET /os-hypervisors`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Hypervisors> {
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
) -> Answer<Hypervisors> {
    let hosts = state.control.hosts_seen(&caller, "os_compute_api:os-hypervisors:list-detail").await?;
    listed(&state, &caller, version, &filters, &url, (hosts, full)).await
}

/// How a host is shown.
type Show = fn(Microversion, &HostView) -> ShownHypervisor;

async fn listed(
    state: &AppState,
    caller: &Caller,
    version: Microversion,
    filters: &Filters,
    url: &RequestUrl,
    (mut hosts, show): (Vec<HostView>, Show),
) -> Answer<Hypervisors> {
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
    let (hypervisors, hypervisors_links) = slice.with_links(url, |host| {
        let mut shown = show(version, &host);
        if with_servers {
            shown.servers = servers_of(&host, &servers, version);
        }
        shown
    });
    Ok(Json(Hypervisors { hypervisors, hypervisors_links }))
}

async fn all_servers(state: &AppState, caller: &Caller) -> Result<Vec<Server>, Fault> {
    let servers = state.control.servers(caller, ServerScope::All).await?;
    Ok(servers.iter().map(|server| server.row.clone()).collect())
}

/// Since 2.75 a host without servers says so.
fn servers_of(host: &HostView, servers: &[Server], version: Microversion) -> Option<Vec<HostedServer>> {
    let own = servers.iter().filter(|server| server.host.as_deref() == Some(&host.host.row.name));
    let shown =
        |server: &Server| HostedServer { uuid: server.id.clone(), name: format!("instance-{}", server.id) };
    let own: Vec<_> = own.map(shown).collect();
    (!own.is_empty() || version.at_least(2, 75)).then_some(own)
}

/// `GET /os-hypervisors/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    Segments(id): Segments<String>,
) -> Answer<OneHypervisor> {
    let host = one(&state, &caller, version, &id, "os_compute_api:os-hypervisors:show").await?;
    let mut shown = full(version, &host);
    if version.at_least(2, 53) && filters.flag("with_servers")? == Some(true) {
        shown.servers = servers_of(&host, &all_servers(&state, &caller).await?, version);
    }
    Ok(Json(OneHypervisor { hypervisor: shown }))
}

async fn one(
    state: &AppState,
    caller: &Caller,
    version: Microversion,
    id: &str,
    rule: &'static str,
) -> Result<HostView, Fault> {
    let hosts = state.control.hosts_seen(caller, rule).await?;
    let wanted = CountedId::said(version, id);
    let found = hosts
        .into_iter()
        .find(|host| Some(CountedId::shown(version, &host.host.row.hypervisor_id)) == wanted);
    found.ok_or_else(|| Error::not_found("Compute host", id).into())
}

/// `GET /os-hypervisors/{id}/uptime`; in the details since 2.88.
pub(super) async fn uptime(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<OneHypervisor> {
    until(version, 88)?;
    let host = one(&state, &caller, version, &id, "os_compute_api:os-hypervisors:uptime").await?;
    let mut shown = brief(version, &host);
    shown.uptime = Some(uptime_text(&host));
    Ok(Json(OneHypervisor { hypervisor: shown }))
}

/// `GET /os-hypervisors/{pattern}/search`; a query parameter since 2.53.
pub(super) async fn search(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(text): Segments<String>,
) -> Answer<Hypervisors> {
    until(version, 53)?;
    let hosts = matching(&state, &caller, &text, "os_compute_api:os-hypervisors:search").await?;
    let hypervisors = hosts.iter().map(|host| brief(version, host)).collect();
    Ok(Json(Hypervisors { hypervisors, hypervisors_links: None }))
}

/// `GET /os-hypervisors/{pattern}/servers`; a query parameter since 2.53.
pub(super) async fn servers(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(text): Segments<String>,
) -> Answer<Hypervisors> {
    until(version, 53)?;
    let hosts = matching(&state, &caller, &text, "os_compute_api:os-hypervisors:servers").await?;
    let servers = all_servers(&state, &caller).await?;
    let with_servers = |host: &HostView| {
        let servers = servers_of(host, &servers, version);
        ShownHypervisor { servers, ..brief(version, host) }
    };
    let hypervisors = hosts.iter().map(with_servers).collect();
    Ok(Json(Hypervisors { hypervisors, hypervisors_links: None }))
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
) -> Answer<StatisticsAnswer> {
    until(version, 88)?;
    let hosts = state.control.hosts_seen(&caller, "os_compute_api:os-hypervisors:statistics").await?;
    let up: Vec<&HostView> = hosts.iter().filter(|host| host.host.row.disabled.is_none()).collect();
    let figures = up.iter().fold(Figures::default(), |sum, host| sum.plus(&Figures::of(host)));
    let statistics = Statistics { count: up.len(), figures };
    Ok(Json(StatisticsAnswer { hypervisor_statistics: statistics }))
}

impl Figures {
    fn of(host: &HostView) -> Self {
        let report = &host.host.row.report;
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        let used_memory =
            whole(host.claimed.memory_mib + control::scheduler::Allocation::default().reserved_memory_mib);
        Self {
            vcpus: i64::from(report.vcpus),
            vcpus_used: whole(host.claimed.vcpus),
            memory_mb: whole(report.memory_mib),
            memory_mb_used: used_memory,
            free_ram_mb: whole(report.memory_mib) - used_memory,
            local_gb: whole(report.disk_gib),
            local_gb_used: whole(host.claimed.disk_gib),
            free_disk_gb: whole(report.disk_gib) - whole(host.claimed.disk_gib),
            disk_available_least: whole(report.disk_free_gib),
            running_vms: whole(host.servers as u64),
            current_workload: 0,
        }
    }

    fn plus(&self, other: &Self) -> Self {
        Self {
            vcpus: self.vcpus + other.vcpus,
            vcpus_used: self.vcpus_used + other.vcpus_used,
            memory_mb: self.memory_mb + other.memory_mb,
            memory_mb_used: self.memory_mb_used + other.memory_mb_used,
            free_ram_mb: self.free_ram_mb + other.free_ram_mb,
            local_gb: self.local_gb + other.local_gb,
            local_gb_used: self.local_gb_used + other.local_gb_used,
            free_disk_gb: self.free_disk_gb + other.free_disk_gb,
            disk_available_least: self.disk_available_least + other.disk_available_least,
            running_vms: self.running_vms + other.running_vms,
            current_workload: self.current_workload + other.current_workload,
        }
    }
}

fn brief(version: Microversion, host: &HostView) -> ShownHypervisor {
    let row = &host.host.row;
    ShownHypervisor {
        id: CountedId::shown(version, &row.hypervisor_id),
        hypervisor_hostname: row.name.clone(),
        state: if host.alive { "up" } else { "down" },
        status: if row.disabled.is_none() { "enabled" } else { "disabled" },
        servers: None,
        uptime: None,
        details: None,
    }
}

fn full(version: Microversion, host: &HostView) -> ShownHypervisor {
    let row = &host.host.row;
    let service = ServiceOfHost {
        id: CountedId::shown(version, &row.service_id),
        host: row.name.clone(),
        disabled_reason: row.disabled.clone(),
    };
    let details = Details {
        hypervisor_type: KIND,
        hypervisor_version: version_number(),
        host_ip: row.report.address.to_string(),
        service,
        figures: before(version, 88, Figures::of(host)),
        cpu_info: before(version, 88, cpu_info(version, host)),
    };
    ShownHypervisor {
        uptime: with(version, 88, uptime_text(host)),
        details: Some(details),
        ..brief(version, host)
    }
}

fn cpu_info(version: Microversion, host: &HostView) -> CpuInfo {
    let model = host.host.row.report.cpu_model.clone();
    let cpu = Cpu { arch: "x86_64", features: [], model, topology: Topology {}, vendor: "" };
    match version.at_least(2, 28) {
        true => CpuInfo::Cpu(cpu),
        false => CpuInfo::Text(serde_json::to_string(&cpu).expect("texts and lists become JSON")),
    }
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
