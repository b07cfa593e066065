//! The compute service (Nova), microversions 2.1 to 2.100. Its discovery documents are in [`crate::discovery`].
//!
//! One file per resource: wire structures, the conversion from and to what `control` knows, handlers of a few lines.

mod absent;
mod action;
mod action_record;
mod block_device;
mod diagnostics;
mod flavor;
mod hypervisor;
mod image;
mod interface;
mod keypair;
mod limits;
mod metadata;
mod quota_set;
mod server;
mod server_create;
mod server_view;
mod service;
mod tag;
mod volume_attachment;
mod zone;

use control::boolean;
use control::caller::Caller;
use control::error::Error;
use control::policy;
use jiff::Timestamp;
use ring::digest::{SHA256, digest};
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::Value;

use crate::context::AppState;
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::{Routes, get, post, put};

/// What everybody with a token may read, unless a policy file says otherwise.
fn require_anyone(caller: &Caller, rule: &'static str) -> Result<(), Fault> {
    match policy::said(rule, caller, &policy::Target::of(&policy::own(caller))) {
        Some(false) => Err(Error::Forbidden { action: rule }.into()),
        _ => Ok(()),
    }
}

/// The routes below `/compute`. A project id after the version is taken out before routing.
pub fn routes() -> Routes {
    Routes::new()
        .merge(server_routes())
        .merge(flavor_routes())
        .merge(image_routes())
        .merge(host_routes())
        .merge(project_routes())
}

fn server_routes() -> Routes {
    Routes::new()
        .route("/v2.1/servers", get(server::list).post(server_create::create))
        .route("/v2.1/servers/detail", get(server::detail))
        .route("/v2.1/servers/{id}", get(server::show).put(server::update).delete(server::delete))
        .route("/v2.1/servers/{id}/action", post(action::act))
        .route("/v2.1/servers/{id}/metadata", get(metadata::list).post(metadata::add).put(metadata::replace))
        .route(
            "/v2.1/servers/{id}/metadata/{key}",
            get(metadata::show).put(metadata::set).delete(metadata::unset),
        )
        .route("/v2.1/servers/{id}/tags", get(tag::list).put(tag::replace).delete(tag::clear))
        .route("/v2.1/servers/{id}/tags/{tag}", get(tag::show).put(tag::set).delete(tag::unset))
        .route("/v2.1/servers/{id}/ips", get(interface::addresses))
        .route("/v2.1/servers/{id}/ips/{network}", get(interface::addresses_of))
        .route("/v2.1/servers/{id}/os-interface", get(interface::list).post(interface::attach))
        .route("/v2.1/servers/{id}/os-interface/{port}", get(interface::show).delete(interface::detach))
        .route("/v2.1/servers/{id}/os-security-groups", get(interface::security_groups))
        .route(
            "/v2.1/servers/{id}/os-volume_attachments",
            get(volume_attachment::list).post(volume_attachment::attach),
        )
        .route(
            "/v2.1/servers/{id}/os-volume_attachments/{volume}",
            get(volume_attachment::show).put(volume_attachment::update).delete(volume_attachment::detach),
        )
        .route("/v2.1/servers/{id}/os-instance-actions", get(action_record::list))
        .route("/v2.1/servers/{id}/os-instance-actions/{request}", get(action_record::show))
        .route(
            "/v2.1/servers/{id}/os-server-password",
            get(absent::server_password).delete(absent::server_password_clear),
        )
        .route("/v2.1/servers/{id}/migrations", get(absent::server_migrations))
        .route("/v2.1/servers/{id}/diagnostics", get(diagnostics::show))
        .route("/v2.1/servers/{id}/remote-consoles", post(absent::remote_consoles))
        .route("/v2.1/servers/{id}/topology", get(absent::topology))
}

fn flavor_routes() -> Routes {
    Routes::new()
        .route("/v2.1/flavors", get(flavor::list).post(flavor::create))
        .route("/v2.1/flavors/detail", get(flavor::detail))
        .route("/v2.1/flavors/{id}", get(flavor::show).put(flavor::update).delete(flavor::delete))
        .route("/v2.1/flavors/{id}/action", post(flavor::act))
        .route("/v2.1/flavors/{id}/os-flavor-access", get(flavor::access))
        .route("/v2.1/flavors/{id}/os-extra_specs", get(flavor::extra_specs).post(flavor::set_extra_specs))
        .route(
            "/v2.1/flavors/{id}/os-extra_specs/{key}",
            get(flavor::extra_spec).put(flavor::set_extra_spec).delete(flavor::unset_extra_spec),
        )
}

fn image_routes() -> Routes {
    Routes::new()
        .route("/v2.1/images", get(image::list))
        .route("/v2.1/images/detail", get(image::detail))
        .route("/v2.1/images/{id}", get(image::show).delete(image::delete))
        .route(
            "/v2.1/images/{id}/metadata",
            get(image::metadata).post(image::metadata_add).put(image::metadata_replace),
        )
        .route(
            "/v2.1/images/{id}/metadata/{key}",
            get(image::metadata_show).put(image::metadata_set).delete(image::metadata_unset),
        )
}

fn host_routes() -> Routes {
    Routes::new()
        .route("/v2.1/os-hypervisors", get(hypervisor::list))
        .route("/v2.1/os-hypervisors/detail", get(hypervisor::detail))
        .route("/v2.1/os-hypervisors/statistics", get(hypervisor::statistics))
        .route("/v2.1/os-hypervisors/{id}", get(hypervisor::show))
        .route("/v2.1/os-hypervisors/{id}/uptime", get(hypervisor::uptime))
        .route("/v2.1/os-hypervisors/{id}/search", get(hypervisor::search))
        .route("/v2.1/os-hypervisors/{id}/servers", get(hypervisor::servers))
        .route("/v2.1/os-services", get(service::list))
        .route("/v2.1/os-services/{id}", put(service::update))
        .route("/v2.1/os-availability-zone", get(zone::list))
        .route("/v2.1/os-availability-zone/detail", get(zone::detail))
        .route("/v2.1/os-aggregates", get(absent::aggregates).post(absent::aggregate_create))
        .route("/v2.1/os-migrations", get(absent::migrations))
        .route("/v2.1/os-agents", get(absent::agents))
}

fn project_routes() -> Routes {
    Routes::new()
        .route("/v2.1/os-keypairs", get(keypair::list).post(keypair::create))
        .route("/v2.1/os-keypairs/{name}", get(keypair::show).delete(keypair::delete))
        .route("/v2.1/os-server-groups", get(absent::server_groups).post(absent::server_group_create))
        .route("/v2.1/limits", get(limits::show))
        .route(
            "/v2.1/os-quota-sets/{project}",
            get(quota_set::show).put(quota_set::update).delete(quota_set::reset),
        )
        .route("/v2.1/os-quota-sets/{project}/defaults", get(quota_set::defaults))
        .route("/v2.1/os-quota-sets/{project}/detail", get(quota_set::detail))
        .route("/v2.1/os-simple-tenant-usage", get(absent::usages))
        .route("/v2.1/os-simple-tenant-usage/{project}", get(absent::usages))
        .route("/v2.1/extensions", get(absent::extensions))
}

/// A link to a thing.
#[derive(Serialize, JsonSchema)]
struct Link {
    rel: &'static str,
    href: String,
}

/// `self` and `bookmark` links of one thing.
fn links(state: &AppState, collection: &str, id: &str) -> [Link; 2] {
    let own = format!("{}/compute/v2.1/{collection}/{id}", state.public_url());
    let [bookmark] = bookmark(state, collection, id);
    [Link { rel: "self", href: own }, bookmark]
}

/// Only the `bookmark` link, for things shown inside of others.
fn bookmark(state: &AppState, collection: &str, id: &str) -> [Link; 1] {
    [Link { rel: "bookmark", href: format!("{}/compute/{collection}/{id}", state.public_url()) }]
}

/// The id of something that Nova counted before microversion 2.53 gave it a UUID.
#[derive(Debug, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(untagged)]
enum CountedId {
    Uuid(String),
    Number(u32),
}

impl CountedId {
    /// The id as it is shown in this microversion.
    fn shown(version: Microversion, id: &str) -> Self {
        if version.at_least(2, 53) { Self::Uuid(id.to_owned()) } else { Self::Number(number_of(id)) }
    }

    /// What a path says; what is no number is no id before 2.53.
    fn said(version: Microversion, id: &str) -> Option<Self> {
        if version.at_least(2, 53) {
            Some(Self::Uuid(id.to_owned()))
        } else {
            id.parse().ok().map(Self::Number)
        }
    }
}

/// A list that never holds anything.
type Nothing = [&'static str; 0];

/// What is shown from `2.minor` on.
fn with<T>(version: Microversion, minor: u16, value: T) -> Option<T> {
    version.at_least(2, minor).then_some(value)
}

/// What was shown until `2.minor`.
fn before<T>(version: Microversion, minor: u16, value: T) -> Option<T> {
    (!version.at_least(2, minor)).then_some(value)
}

/// A time to the second, with its zone: `2026-01-02T03:04:05Z`.
fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// A time to the microsecond, without a zone, as Nova's database writes it: `2026-01-02T03:04:05.000006`.
pub(crate) fn microseconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string()
}

/// A number for what Nova counted before microversion 2.53 gave it a UUID: always the same for the same id.
fn number_of(id: &str) -> u32 {
    let hash = digest(&SHA256, id.as_bytes());
    let bytes = hash.as_ref().first_chunk().expect("invariant: SHA-256 has 32 bytes");
    u32::from_be_bytes(*bytes) >> 1
}

/// What came with `2.minor` is not there before.
fn since(version: Microversion, minor: u16) -> Result<(), Fault> {
    if version.at_least(2, minor) { Ok(()) } else { Err(Fault::NoRoute) }
}

/// What went with `2.minor` is not there from then on.
fn until(version: Microversion, minor: u16) -> Result<(), Fault> {
    if version.at_least(2, minor) { Err(Fault::NoRoute) } else { Ok(()) }
}

/// Nova takes numbers as numbers and as text.
fn number<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u32>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Either {
        Number(u32),
        Text(String),
        Null(()),
    }
    match Either::deserialize(deserializer)? {
        Either::Number(number) => Ok(Some(number)),
        Either::Text(text) if text.is_empty() => Ok(None),
        Either::Text(text) => text.parse().map(Some).map_err(serde::de::Error::custom),
        Either::Null(()) => Ok(None),
    }
}

/// Nova takes booleans as booleans and as text. Its schema (`parameter_types.boolean`) lists the texts: oslo's words without the
/// single letters.
fn flag<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<bool>, D::Error> {
    match Value::deserialize(deserializer)? {
        Value::Null => Ok(None),
        Value::Bool(flag) => Ok(Some(flag)),
        Value::String(text) => {
            let listed = text.len() > 1 || text.bytes().all(|byte| byte.is_ascii_digit());
            let flag = boolean::from_text(&text).filter(|_| listed && text.trim() == text);
            flag.map(Some).ok_or_else(|| serde::de::Error::custom(format!("'{text}' is not a boolean")))
        }
        _ => Err(serde::de::Error::custom("a boolean is expected")),
    }
}

/// Tells a field that is `null` from one that is not there.
#[expect(clippy::option_option, reason = "absent, null and a value are three things on the wire")]
fn present<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

/// Of `rows` those that a regular expression finds, as Nova's database does; bounded in what it may cost.
fn pattern(text: &str) -> Result<regex::Regex, Fault> {
    /// More than any name needs; the matcher is linear in it.
    const BYTES_MAX: usize = 255;
    if text.len() > BYTES_MAX {
        return Err(Fault::malformed(format!("A pattern has at most {BYTES_MAX} bytes.")));
    }
    regex::RegexBuilder::new(text)
        .case_insensitive(true)
        .size_limit(1 << 20)
        .build()
        .or_else(|_| regex::RegexBuilder::new(&regex::escape(text)).case_insensitive(true).build())
        .map_err(|_| Fault::malformed("The pattern is too large."))
}

#[cfg(test)]
mod tests;
