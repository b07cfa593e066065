//! The creation of servers on the wire (Compute API: create server).

use std::collections::BTreeMap;
use std::net::IpAddr;

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderName, header};
use base64::Engine as _;
use control::service::nic::{NicRequest, NicRequests};
use control::service::server::NewServers;
use control::service::server::create::USER_DATA_BASE64_BYTES_MAX;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use vmm::document::Document;

use super::block_device::{BlockDevice, devices};
use super::server::{access_ip, auto_disk_config, hostname};
use super::server_view::{GroupName as ShownGroup, disk_config};
use super::{Link, flag, links, number};
use crate::context::{AppState, Authenticated, Body};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::openapi::answer::{Accepted, Status};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    server: Fields,
    #[serde(rename = "os:scheduler_hints")]
    hints: Option<BTreeMap<String, Value>>,
    #[serde(rename = "OS-SCH-HNT:scheduler_hints")]
    hints_extension: Option<BTreeMap<String, Value>>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Fields {
    name: String,
    #[serde(rename = "imageRef", default)]
    image: String,
    #[serde(rename = "flavorRef")]
    flavor: FlavorRef,
    description: Option<String>,
    hostname: Option<String>,
    networks: Option<Networks>,
    security_groups: Option<Vec<GroupName>>,
    key_name: Option<String>,
    user_data: Option<String>,
    #[serde(default)]
    metadata: BTreeMap<String, String>,
    #[serde(default)]
    tags: Vec<String>,
    #[serde(default, deserialize_with = "number")]
    min_count: Option<u32>,
    #[serde(default, deserialize_with = "number")]
    max_count: Option<u32>,
    #[serde(default, deserialize_with = "flag")]
    return_reservation_id: Option<bool>,
    availability_zone: Option<String>,
    host: Option<String>,
    hypervisor_hostname: Option<String>,
    #[serde(default, deserialize_with = "flag")]
    config_drive: Option<bool>,
    /// Taken and not used, as by a Nova with `enable_instance_password` off: nothing here can set a guest's password,
    /// and no answer says one.
    #[serde(rename = "adminPass")]
    _admin_pass: Option<String>,
    #[serde(rename = "OS-DCF:diskConfig")]
    disk_config: Option<String>,
    #[serde(rename = "accessIPv4", default)]
    access_ip_v4: String,
    #[serde(rename = "accessIPv6", default)]
    access_ip_v6: String,
    #[serde(default)]
    personality: Vec<Value>,
    #[serde(default)]
    block_device_mapping: Vec<Value>,
    #[serde(default)]
    block_device_mapping_v2: Vec<BlockDevice>,
    trusted_image_certificates: Option<Vec<String>>,
    #[serde(rename = "os:scheduler_hints")]
    hints: Option<BTreeMap<String, Value>>,
}

/// Flavor ids may be numbers.
#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum FlavorRef {
    Text(String),
    Number(u64),
}

#[derive(Debug, Deserialize)]
#[serde(untagged)]
enum Networks {
    Word(String),
    List(Vec<NetworkEntry>),
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct NetworkEntry {
    uuid: Option<String>,
    port: Option<String>,
    fixed_ip: Option<IpAddr>,
    tag: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct GroupName {
    name: String,
}

/// What comes into being; several are told by their reservation, if that was asked for.
#[derive(Serialize, JsonSchema)]
#[serde(untagged)]
pub(super) enum Begun {
    Server { server: NewServer },
    Reservation { reservation_id: String },
}

#[derive(Serialize, JsonSchema)]
pub(super) struct NewServer {
    id: String,
    links: [Link; 2],
    #[serde(rename = "OS-DCF:diskConfig")]
    disk_config: &'static str,
    security_groups: Vec<ShownGroup>,
}

/// `POST /servers`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<CreateBody>,
) -> Result<([(HeaderName, String); 1], Accepted<Begun>), Fault> {
    let by_reservation = body.server.return_reservation_id.unwrap_or(false);
    let new = body.into_new(version)?;
    let created = state.control.servers_create(&caller, new).await?;
    let first = created.servers.first().ok_or_else(|| Fault::malformed("no server was asked for"))?;
    let location = format!("{}/compute/v2.1/servers/{}", state.public_url(), first.id);
    let answer = if by_reservation {
        Begun::Reservation { reservation_id: first.reservation_id.clone() }
    } else {
        let groups = first.security_groups.iter().map(|name| ShownGroup { name: name.clone() });
        let server = NewServer {
            id: first.id.clone(),
            links: links(&state, "servers", &first.id),
            disk_config: disk_config(first),
            security_groups: groups.collect(),
        };
        Begun::Server { server }
    };
    Ok(([(header::LOCATION, location)], Status(Json(answer))))
}

impl CreateBody {
    fn into_new(self, version: Microversion) -> Result<NewServers, Fault> {
        let fields = self.server;
        fields.refuse_what_is_absent()?;
        fields.refuse_what_is_newer(version)?;
        let hints = self.hints.or(self.hints_extension).or(fields.hints).unwrap_or_default();
        let (image_id, devices) = devices(fields.image, fields.block_device_mapping_v2, version)?;
        let (zone, zone_host) = zone_and_host(fields.availability_zone);
        let count = |count: Option<u32>, otherwise| count.unwrap_or(otherwise);
        let min_count = count(fields.min_count, 1);
        Ok(NewServers {
            name: fields.name,
            description: fields.description,
            hostname: hostname(fields.hostname, version)?,
            flavor_id: match fields.flavor {
                FlavorRef::Text(text) => text.rsplit('/').next().unwrap_or_default().to_owned(),
                FlavorRef::Number(number) => number.to_string(),
            },
            image_id,
            devices,
            nics: nics(fields.networks, version)?,
            security_groups: fields.security_groups.into_iter().flatten().map(|group| group.name).collect(),
            key_name: fields.key_name,
            user_data: fields
                .user_data
                .filter(|text| !text.is_empty())
                .map(|text| user_data(&text))
                .transpose()?,
            config_drive: fields.config_drive.unwrap_or(false),
            metadata: fields.metadata,
            tags: fields.tags,
            min_count,
            max_count: count(fields.max_count, min_count.max(1)),
            availability_zone: zone,
            host: fields.host.or(fields.hypervisor_hostname).or(zone_host),
            scheduler_hints: hints,
            auto_disk_config: fields.disk_config.as_deref().map(auto_disk_config).transpose()?,
            access_ip_v4: access_ip(&fields.access_ip_v4, true)?,
            access_ip_v6: access_ip(&fields.access_ip_v6, false)?,
        })
    }
}

impl Fields {
    /// What the protocol has and Wisp does not.
    fn refuse_what_is_absent(&self) -> Result<(), Fault> {
        let absent = [
            (!self.personality.is_empty(), "injecting files (personality)"),
            (!self.block_device_mapping.is_empty(), "block devices besides the image's own"),
            (self.trusted_image_certificates.is_some(), "validating image certificates"),
        ];
        match absent.iter().find(|(asked, _)| *asked) {
            Some((_, what)) => Err(Fault::not_implemented(what)),
            None => Ok(()),
        }
    }

    fn refuse_what_is_newer(&self, version: Microversion) -> Result<(), Fault> {
        let newer = [
            (self.description.is_some(), 19, "description"),
            (!self.tags.is_empty(), 52, "tags"),
            (self.host.is_some(), 74, "host"),
            (self.hypervisor_hostname.is_some(), 74, "hypervisor_hostname"),
            (self.hostname.is_some(), 90, "hostname"),
        ];
        match newer.iter().find(|(there, minor, _)| *there && !version.at_least(2, *minor)) {
            Some((_, minor, name)) => Err(Fault::malformed(format!(
                "Invalid input for field/attribute server. Additional properties are not allowed ('{name}' was \
                 unexpected); it came with microversion 2.{minor}."
            ))),
            None => Ok(()),
        }
    }
}

fn nics(networks: Option<Networks>, version: Microversion) -> Result<NicRequests, Fault> {
    let words = version.at_least(2, 37);
    match networks {
        None if words => Err(Fault::malformed(
            "Invalid input for field/attribute server. 'networks' is a required property",
        )),
        None => Ok(NicRequests::Unsaid),
        Some(Networks::Word(word)) if words && word == "auto" => Ok(NicRequests::Auto),
        Some(Networks::Word(word)) if words && word == "none" => Ok(NicRequests::None),
        Some(Networks::Word(word)) => {
            Err(Fault::malformed(format!("Invalid input for field/attribute networks. Value: {word}.")))
        }
        // Before 2.37 an empty list says nothing.
        Some(Networks::List(list)) if list.is_empty() => Ok(NicRequests::Unsaid),
        Some(Networks::List(list)) => list
            .into_iter()
            .map(|entry| nic(entry, version))
            .collect::<Result<Vec<_>, _>>()
            .map(NicRequests::Listed),
    }
}

fn nic(entry: NetworkEntry, version: Microversion) -> Result<NicRequest, Fault> {
    // Tags came with 2.32, and were left out from 2.37 to 2.41 by mistake.
    let tags = version.at_least(2, 42) || version.at_least(2, 32) && !version.at_least(2, 37);
    if entry.tag.is_some() && !tags {
        return Err(Fault::malformed(
            "Invalid input for field/attribute 0. Additional properties are not allowed ('tag' was unexpected)",
        ));
    }
    let tag = entry.tag;
    match (entry.port, entry.uuid) {
        (Some(id), _) => match entry.fixed_ip {
            Some(address) => Err(Fault::malformed(format!(
                "Specified Fixed IP '{address}' cannot be used with port '{id}': the two cannot be specified together."
            ))),
            None => Ok(NicRequest::Port { id, tag }),
        },
        (None, Some(id)) => Ok(NicRequest::Network { id, fixed_ip: entry.fixed_ip, tag }),
        (None, None) => Err(Fault::malformed("Bad networks format: network uuid or port is missing.")),
    }
}

/// `zone`, or an administrator's `zone:host` and `zone:host:node`.
fn zone_and_host(text: Option<String>) -> (Option<String>, Option<String>) {
    let Some(text) = text.filter(|text| !text.is_empty()) else { return (None, None) };
    let mut parts = text.splitn(3, ':');
    let some = |part: Option<&str>| part.filter(|part| !part.is_empty()).map(str::to_owned);
    let zone = some(parts.next());
    let host = some(parts.next());
    let node = some(parts.next());
    (zone, host.or(node))
}

fn user_data(text: &str) -> Result<Document, Fault> {
    if text.len() > USER_DATA_BASE64_BYTES_MAX {
        return Err(Fault::malformed(format!(
            "Invalid input for field/attribute user_data. It is longer than {USER_DATA_BASE64_BYTES_MAX} bytes in base64."
        )));
    }
    // Python's encoders break lines.
    let joined: String = text.split_ascii_whitespace().collect();
    base64::engine::general_purpose::STANDARD
        .decode(joined)
        .map(Document::from)
        .map_err(|_| Fault::malformed("Invalid input for field/attribute user_data. It is not base64."))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const IMAGE: &str = "0b5e0a7e-2c4b-4c8e-9a55-d1f5ed22e7a9";

    fn parsed(server: Value, minor: u16) -> Result<NewServers, Fault> {
        let body: CreateBody = serde_json::from_value(json!({ "server": server }))
            .map_err(|error| Fault::malformed(error.to_string()))?;
        body.into_new(Microversion::new(2, minor))
    }

    /// What the openstack command sends for a plain boot.
    fn plain() -> Value {
        json!({
            "name": "s1", "imageRef": IMAGE, "flavorRef": "1", "max_count": 1, "min_count": 1,
            "block_device_mapping_v2": [{
                "uuid": IMAGE, "boot_index": 0, "source_type": "image", "destination_type": "local",
                "delete_on_termination": true,
            }],
            "networks": [{"uuid": "net"}],
        })
    }

    fn with(key: &str, value: Value) -> Value {
        let mut server = plain();
        server[key] = value;
        server
    }

    #[test]
    fn plain_boot_of_the_command_is_understood() {
        let new = parsed(plain(), 100).unwrap();
        assert_eq!((new.image_id.as_str(), new.min_count, new.max_count), (IMAGE, 1, 1));
        assert_eq!(new.nics, NicRequests::Listed(vec![NicRequest::on("net")]));
    }

    #[test]
    fn networks_are_words_only_since_2_37_and_required_since_then() {
        assert_eq!(parsed(with("networks", json!("auto")), 37).unwrap().nics, NicRequests::Auto);
        assert_eq!(parsed(with("networks", json!("none")), 100).unwrap().nics, NicRequests::None);
        assert!(parsed(with("networks", json!("auto")), 36).is_err());
        assert_eq!(parsed(with("networks", Value::Null), 1).unwrap().nics, NicRequests::Unsaid);
        assert!(parsed(with("networks", Value::Null), 37).is_err());
    }

    #[test]
    fn local_disks_and_other_absent_things_are_not_implemented() {
        let mut swap = plain();
        let blank = json!({
            "source_type": "blank", "destination_type": "local", "boot_index": -1, "guest_format": "swap",
        });
        swap["block_device_mapping_v2"].as_array_mut().unwrap().push(blank);
        for server in [swap, with("personality", json!([{}]))] {
            let refused = parsed(server, 100).unwrap_err();
            assert!(matches!(refused, Fault::Control(control::error::Error::NotImplemented(_))), "{refused}");
        }
    }

    #[test]
    fn disk_of_a_destination_that_is_none_is_malformed() {
        let mut server = plain();
        let elsewhere = json!({"source_type": "volume", "uuid": "v", "destination_type": "elsewhere"});
        server["block_device_mapping_v2"].as_array_mut().unwrap().push(elsewhere);
        let refused = parsed(server, 100).unwrap_err();
        assert!(refused.to_string().contains("elsewhere"), "{refused}");
    }

    #[test]
    fn what_nova_refuses_is_malformed() {
        let long = "A".repeat(USER_DATA_BASE64_BYTES_MAX + 1);
        for (key, value) in [
            ("user_data", json!("!!")),
            ("user_data", json!(long)),
            ("nonsense", json!(1)),
            ("accessIPv4", json!("::1")),
            ("networks", json!([{}])),
            ("metadata", json!({"a": 1})),
            ("min_count", json!("x")),
        ] {
            assert!(matches!(parsed(with(key, value), 100), Err(Fault::Malformed(_))), "{key}");
        }
        assert!(parsed(with("description", json!("d")), 18).is_err());
    }

    #[test]
    fn user_data_may_be_compressed_and_a_configuration_drive_asked_for() {
        let mut server = with("user_data", json!("H4sIAAAA/w=="));
        server["config_drive"] = json!("True");
        let new = parsed(server, 100).unwrap();
        assert_eq!(new.user_data.unwrap().as_bytes(), [0x1f, 0x8b, 8, 0, 0, 0, 0xff]);
        assert!(new.config_drive);
    }

    #[test]
    fn user_data_is_decoded_and_zone_may_name_a_host() {
        let mut server = with("user_data", json!("I2Nsb3VkLWNvbmZpZwo="));
        server["availability_zone"] = json!("nova:h1");
        let new = parsed(server, 1).unwrap();
        assert_eq!(new.user_data, Some(Document::from("#cloud-config\n")));
        assert!(!new.config_drive);
        assert_eq!((new.availability_zone.as_deref(), new.host.as_deref()), (Some("nova"), Some("h1")));
    }
}
