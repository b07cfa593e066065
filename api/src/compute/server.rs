//! Servers on the wire: lists, show, change, delete (Compute API: servers).

use axum::Json;
use axum::extract::State;
use control::boolean;
use control::caller::Caller;
use control::model::compute::Server;
use control::policy::require_list;
use control::service::server::{ServerUpdate, ServerView, read::ServerScope, status::status};
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::server_view::{ServerBrief, Shape, ShownServer, brief, full};
use super::{pattern, present, since};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{DONE, Done};
use crate::page::{Direction, NextLink, Page, Slice, SortValue};

/// A list of servers, in either form.
#[derive(Serialize, JsonSchema)]
pub(super) struct Servers<T> {
    servers: Vec<T>,
    #[serde(skip_serializing_if = "Option::is_none")]
    servers_links: Option<NextLink>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneServer {
    server: ShownServer,
}

/// `GET /servers`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Servers<ServerBrief>> {
    require_list(&caller, "os_compute_api:servers:index")?;
    let slice = found(&state, &caller, version, &filters).await?;
    let (servers, servers_links) = slice.with_links(&url, |view| brief(&state, &view.server.row));
    Ok(Json(Servers { servers, servers_links }))
}

/// `GET /servers/detail`.
pub(super) async fn detail(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Servers<ShownServer>> {
    require_list(&caller, "os_compute_api:servers:detail")?;
    let slice = found(&state, &caller, version, &filters).await?;
    let show = |view: ServerView| full(&state, &caller, version, &view, Shape::Detail);
    let (servers, servers_links) = slice.with_links(&url, show);
    Ok(Json(Servers { servers, servers_links }))
}

/// `GET /servers/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
) -> Answer<OneServer> {
    let server = state.control.server_seen(&caller, &id, "os_compute_api:servers:show").await?;
    let view = state.control.server_view(server);
    Ok(Json(OneServer { server: full(&state, &caller, version, &view, Shape::Show) }))
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct UpdateBody {
    server: UpdateFields,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    name: Option<String>,
    #[serde(default, deserialize_with = "present")]
    description: Option<Option<String>>,
    hostname: Option<String>,
    #[serde(rename = "accessIPv4")]
    access_ip_v4: Option<String>,
    #[serde(rename = "accessIPv6")]
    access_ip_v6: Option<String>,
    #[serde(rename = "OS-DCF:diskConfig")]
    disk_config: Option<String>,
}

/// `PUT /servers/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<OneServer> {
    let fields = body.server;
    let too_new = |there: bool, minor: u16| if there { since(version, minor) } else { Ok(()) };
    let unknown = |_| Fault::malformed("Additional properties are not allowed in this microversion.");
    too_new(fields.description.is_some(), 19).map_err(unknown)?;
    too_new(fields.hostname.is_some(), 90).map_err(unknown)?;
    let update = ServerUpdate {
        name: fields.name,
        description: fields.description,
        hostname: hostname(fields.hostname, version)?,
        access_ip_v4: fields.access_ip_v4.map(|text| access_ip(&text, true)).transpose()?,
        access_ip_v6: fields.access_ip_v6.map(|text| access_ip(&text, false)).transpose()?,
        auto_disk_config: fields.disk_config.as_deref().map(auto_disk_config).transpose()?,
    };
    state.control.server_update(&caller, &id, &update).await?;
    let server = state.control.server(&caller, &id).await?;
    let view = state.control.server_view(server);
    Ok(Json(OneServer { server: full(&state, &caller, version, &view, Shape::Updated) }))
}

/// `DELETE /servers/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.server_delete(&caller, &id).await?;
    Ok(DONE)
}

/// An address of that version in its canonical form, or nothing.
pub(super) fn access_ip(text: &str, v4: bool) -> Result<String, Fault> {
    if text.is_empty() {
        return Ok(String::new());
    }
    let address = text.parse::<std::net::IpAddr>().ok().filter(|address| address.is_ipv4() == v4);
    let address =
        address.ok_or_else(|| Fault::malformed(format!("'{text}' is not an address of that version.")))?;
    Ok(address.to_string())
}

/// A fully qualified name is a host name only since 2.94.
pub(super) fn hostname(text: Option<String>, version: Microversion) -> Result<Option<String>, Fault> {
    match &text {
        Some(name) if name.contains('.') && !version.at_least(2, 94) => Err(Fault::malformed(format!(
            "Invalid input for field/attribute hostname: {name} has more than one label."
        ))),
        _ => Ok(text),
    }
}

/// `AUTO` or `MANUAL`.
pub(super) fn auto_disk_config(text: &str) -> Result<bool, Fault> {
    match text {
        "AUTO" => Ok(true),
        "MANUAL" => Ok(false),
        _ => Err(Fault::malformed(format!("Invalid input for field/attribute OS-DCF:diskConfig: {text}."))),
    }
}

/// The servers that a list's query asks for.
async fn found(
    state: &AppState,
    caller: &Caller,
    version: Microversion,
    filters: &Filters,
) -> Result<Slice<ServerView>, Fault> {
    let page = Page::of(filters, &[("created_at", Direction::Descending), ("id", Direction::Descending)])?;
    // What is neither yes nor no asks for those that are there, in Nova too.
    let deleted = filters.get("deleted").and_then(boolean::from_text).unwrap_or(false);
    if deleted && caller.is_admin() {
        // Deleted servers leave no row.
        return page.cut(Vec::new(), |view: &ServerView| &view.server.row.id, |_, _| None);
    }
    // Nova gives non-administrators their own project's, whatever they ask for.
    let project = filters.get("project_id").or_else(|| filters.get("tenant_id"));
    let all = all_tenants(filters)?;
    let scope = match project {
        _ if all && !caller.is_admin() => ServerScope::All,
        Some(project) if all => ServerScope::Project(project),
        None if all => ServerScope::All,
        _ => ServerScope::Own,
    };
    let wanted = Query::of(caller, version, filters)?;
    let servers = state.control.servers(caller, scope).await?;
    let servers = servers.into_iter().filter(|server| wanted.takes(&server.row)).collect();
    let views = state.control.server_views(servers).filter(|view| wanted.takes_view(view));
    page.cut(views.collect(), |view| &view.server.row.id, |view, key| sort_value(&view.server.row, key))
}

/// `all_tenants` alone means yes, as in Nova, and so does any number but 0.
fn all_tenants(filters: &Filters) -> Result<bool, Fault> {
    match filters.get("all_tenants").or_else(|| filters.get("all_projects")) {
        Some("") => Ok(true),
        Some(text) if text.parse::<i64>().is_ok_and(|number| number != 0) => Ok(true),
        _ => Ok(filters.flag("all_tenants")?.or(filters.flag("all_projects")?).unwrap_or(false)),
    }
}

fn sort_value(server: &Server, key: &str) -> Option<SortValue> {
    Some(match key {
        "id" | "uuid" => server.id.as_str().into(),
        "created_at" => server.created_at.into(),
        "updated_at" => server.updated_at.into(),
        "launched_at" => server.launched_at.into(),
        "display_name" | "name" => server.name.as_str().into(),
        "hostname" => server.hostname.as_str().into(),
        "host" | "node" => server.host.as_deref().into(),
        "vm_state" => server.vm_state.name().into(),
        "task_state" => server.task.as_deref().into(),
        "image_ref" => server.image_id.as_str().into(),
        "project_id" => server.project_id.as_str().into(),
        "user_id" => server.user_id.as_str().into(),
        "key_name" => server.key.as_ref().map(|(name, _)| name.as_str()).into(),
        "availability_zone" => server.availability_zone.as_deref().into(),
        "display_description" => server.description.as_deref().into(),
        "launch_index" => u64::from(server.launch_index).into(),
        "root_device_name" | "config_drive" | "instance_type_id" => SortValue::Absent,
        _ => return None,
    })
}

/// What a list's query says of the servers it wants.
struct Query<'a> {
    filters: &'a Filters,
    name: Option<regex::Regex>,
    addresses: Vec<regex::Regex>,
    changed_since: Option<Timestamp>,
    changed_before: Option<Timestamp>,
    locked: Option<bool>,
    tags: bool,
    admin: bool,
}

impl<'a> Query<'a> {
    fn of(caller: &Caller, version: Microversion, filters: &'a Filters) -> Result<Self, Fault> {
        let addresses = ["ip", "ip6"].iter().filter_map(|key| filters.get(key)).map(pattern);
        let changed_before = if version.at_least(2, 66) { time(filters, "changes-before")? } else { None };
        Ok(Self {
            filters,
            name: filters.get("name").map(pattern).transpose()?,
            addresses: addresses.collect::<Result<_, _>>()?,
            changed_since: time(filters, "changes-since")?,
            changed_before,
            locked: if version.at_least(2, 73) { filters.flag("locked")? } else { None },
            tags: version.at_least(2, 26),
            admin: caller.is_admin(),
        })
    }

    fn takes(&self, server: &Server) -> bool {
        let filters = self.filters;
        let seen = status(server);
        let everyone = self.name.as_ref().is_none_or(|name| name.is_match(&server.name))
            && (!filters.has("status")
                || filters.all("status").any(|text| text.eq_ignore_ascii_case(seen.status)))
            && filters.allow("flavor", &server.flavor.id)
            && filters.get("image").is_none_or(|image| image == server.image_id)
            && filters.allow("uuid", &server.id)
            && filters.allow("reservation_id", &server.reservation_id)
            && self.changed_since.is_none_or(|since| server.updated_at >= since)
            && self.changed_before.is_none_or(|before| server.updated_at <= before)
            && self.locked.is_none_or(|locked| locked == server.locked)
            && (!self.tags || self.takes_tags(&server.tags));
        everyone && (!self.admin || self.takes_as_administrator(server))
    }

    /// Filters that Nova ignores unless an administrator asks.
    fn takes_as_administrator(&self, server: &Server) -> bool {
        let filters = self.filters;
        let seen = status(server);
        let host = server.host.as_deref().unwrap_or_default();
        filters.allow("host", host)
            && filters.allow("node", host)
            && filters.allow("user_id", &server.user_id)
            && filters.allow("key_name", server.key.as_ref().map_or("", |(name, _)| name))
            && filters.allow("hostname", &server.hostname)
            && filters.allow("vm_state", seen.vm_state)
            && filters.allow("task_state", seen.task_state.unwrap_or_default())
            && filters.allow("power_state", &seen.power_state.to_string())
            && filters.allow("launch_index", &server.launch_index.to_string())
            && filters.get("description").is_none_or(|text| server.description.as_deref() == Some(text))
    }

    fn takes_tags(&self, tags: &[String]) -> bool {
        let has = |tag: &str| tags.iter().any(|own| own == tag);
        let list = |key| self.filters.get(key).map(|text| text.split(','));
        list("tags").is_none_or(|mut wanted| wanted.all(has))
            && list("tags-any").is_none_or(|mut wanted| wanted.any(has))
            && list("not-tags").is_none_or(|mut refused| !refused.all(has))
            && list("not-tags-any").is_none_or(|mut refused| !refused.any(has))
    }

    fn takes_view(&self, view: &ServerView) -> bool {
        let zone = view.zone.as_deref().unwrap_or_default();
        let at = |wanted: &regex::Regex| {
            view.addresses.iter().any(|own| wanted.is_match(&own.address.to_string()))
        };
        self.filters.allow("availability_zone", zone) && self.addresses.iter().all(at)
    }
}

/// A time in any form that ISO 8601 clients send; without a zone it is UTC.
pub(super) fn time(filters: &Filters, key: &str) -> Result<Option<Timestamp>, Fault> {
    let Some(text) = filters.get(key) else { return Ok(None) };
    let zoned = text.parse::<Timestamp>().or_else(|_| format!("{text}Z").parse::<Timestamp>());
    zoned.map(Some).map_err(|_| {
        Fault::malformed(format!("Invalid input for query parameters {key}: '{text}' is not a time."))
    })
}
