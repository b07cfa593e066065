//! Creating servers: everything that can be refused is refused here, before anything is written.
//!
//! One server, with its ports and its quota, is one transaction. Several are one step each, undone together.

mod template;

use std::collections::BTreeMap;

use async_trait::async_trait;
use serde_json::Value;
use vmm::document::Document;

use self::template::Template;
use super::form::check_form;
use super::image_of_volumes::with_volumes_of_image;
use super::volume::{NewDevice, is_one_thing, new_ids};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::{Flavor, Server};
use crate::model::image::{Image, ImageStatus, LocalFile};
use crate::policy::{require_admin, require_own_project};
use crate::service::host::DEFAULT_ZONE;
use crate::service::nic::{NicRequest, NicRequests, ServerOfPorts};
use crate::service::quota::{Resource, charge};
use crate::service::{image, image_access};
use crate::steps::{self, Step};
use crate::store::{Cache, Txn};

/// The longest user data in bytes, in base64 (Compute API: create server, `user_data`).
pub const USER_DATA_BASE64_BYTES_MAX: usize = 65_535;
/// The most servers of one request: each is a transaction, and the request waits for all of them.
pub const COUNT_MAX: u32 = 1000;
/// The most virtual CPUs of one server: an APIC id has eight bits, and the highest means "all".
pub const VCPUS_MAX: u32 = 255;

/// What new servers shall be.
#[derive(Debug, Clone, PartialEq)]
pub struct NewServers {
    /// The name; with several servers each gets its number behind it.
    pub name: String,
    /// Free text.
    pub description: Option<String>,
    /// The guest's host name; made of the name if absent.
    pub hostname: Option<String>,
    /// The flavor's id.
    pub flavor_id: String,
    /// The image's id; empty if it boots from a volume.
    pub image_id: String,
    /// The volumes that it begins with.
    pub devices: Vec<NewDevice>,
    /// The networks.
    pub nics: NicRequests,
    /// Names or ids of security groups for new ports; the project's default one if none are said.
    pub security_groups: Vec<String>,
    /// The caller's key pair, by name.
    pub key_name: Option<String>,
    /// User data, decoded.
    pub user_data: Option<Document>,
    /// Put the metadata on a configuration drive as well; an image may ask for it too
    /// (`img_config_drive=mandatory`).
    pub config_drive: bool,
    /// Properties.
    pub metadata: BTreeMap<String, String>,
    /// Tags.
    pub tags: Vec<String>,
    /// At least so many, or none.
    pub min_count: u32,
    /// At most so many, as far as the quota goes.
    pub max_count: u32,
    /// Wished zone.
    pub availability_zone: Option<String>,
    /// Wished host; for administrators.
    pub host: Option<String>,
    /// Hints to the scheduler.
    pub scheduler_hints: BTreeMap<String, Value>,
    /// Whether `OS-DCF:diskConfig` is `AUTO`; as the image says if absent.
    pub auto_disk_config: Option<bool>,
    /// What the owner calls its IPv4 address.
    pub access_ip_v4: String,
    /// What the owner calls its IPv6 address.
    pub access_ip_v6: String,
}

/// What became of a request.
#[derive(Debug, Clone)]
pub struct ServerCreated {
    /// The servers in order; never empty.
    pub servers: Vec<Server>,
}

impl Control {
    /// Makes servers: all that were asked for and the quota has room for, at least `min_count`, or none.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid` (also for an image, flavor, key or network that is not there), `Conflict`,
    /// `QuotaExceeded`, `NotImplemented` for flavors with ephemeral disk or swap.
    pub async fn servers_create(&self, caller: &Caller, new: NewServers) -> Result<ServerCreated> {
        // What is not there was named in the body, not in the path: the request is wrong.
        self.create_servers(caller, new).await.map_err(|error| match error {
            Error::NotFound { kind, id } => {
                Error::invalid("NotFound", format!("{kind} {id} could not be found."))
            }
            Error::Conflict { reason: reason @ "FixedIpAlreadyInUse", message } => {
                Error::Invalid { reason, message }
            }
            other => other,
        })
    }

    async fn create_servers(&self, caller: &Caller, new: NewServers) -> Result<ServerCreated> {
        let project_id = require_own_project(caller, "os_compute_api:servers:create")?.to_owned();
        if new.host.is_some() {
            require_admin(caller, "os_compute_api:servers:create:forced_host")?;
        }
        check_form(&new)?;
        self.db.caught_up().await?;
        self.check_property_count(&project_id, new.metadata.len())?;
        let cache = self.db.cache();
        let new = with_volumes_of_image(cache, caller, new)?;
        let template = Template::prepare(cache, caller, &project_id, &new)?;
        let nics = self.resolve_nics(caller, &project_id, &new.nics).await?;
        let group_ids = self.resolve_groups(&project_id, &new.security_groups).await?;
        let count = self.count_within_quota(&project_id, &template.flavor, new.min_count, new.max_count)?;
        if count > 1 && new.devices.iter().any(is_one_thing) {
            let message = "Cannot attach one or more volumes to multiple instances";
            return Err(Error::invalid("MultipleVolumes", message));
        }
        if count > 1 && nics.iter().any(names_one_thing) {
            let message = "Unable to launch multiple instances with a single configured port ID or fixed IP address. \
                           Please launch your instances one by one with different ports.";
            return Err(Error::invalid("MultiplePortsNotApplicable", message));
        }
        let devices = new.devices.as_slice();
        let request = Creating { control: self, caller, nics: &nics, group_ids: &group_ids, devices };
        let numbered = new.max_count > 1;
        let makes: Vec<Make<'_>> = (0..count)
            .map(|index| Make {
                request: &request,
                server: template.server(caller, &new, index, numbered),
                volume_ids: new_ids(devices),
            })
            .collect();
        let steps: Vec<&dyn Step<Vec<Server>>> =
            makes.iter().map(|make| make as &dyn Step<Vec<Server>>).collect();
        let mut servers = Vec::with_capacity(makes.len());
        steps::run(&steps, &mut servers).await?;
        Ok(ServerCreated { servers })
    }

    /// How many of the servers asked for the project's quotas have room for.
    fn count_within_quota(&self, project_id: &str, flavor: &Flavor, least: u32, most: u32) -> Result<u32> {
        let mut count = most;
        for (resource, each) in costs(flavor) {
            let quota = self.quota(project_id, resource);
            let Some(limit) = quota.limit else { continue };
            let room = limit.saturating_sub(quota.used) / each.max(1);
            count = count.min(u32::try_from(room).unwrap_or(u32::MAX));
            if count < least {
                let requested = each.saturating_mul(u64::from(least));
                return Err(Error::QuotaExceeded {
                    resource: resource.name(),
                    requested,
                    used: quota.used,
                    limit,
                });
            }
        }
        Ok(count)
    }
}

/// What one server takes from its project's quotas.
pub(crate) fn costs(flavor: &Flavor) -> [(Resource, u64); 3] {
    [
        (Resource::Instances, 1),
        (Resource::Cores, u64::from(flavor.vcpus)),
        (Resource::RamMib, u64::from(flavor.ram_mib)),
    ]
}

/// Adds what one server takes from its project's quotas to a transaction, or gives it back.
pub(crate) fn charge_server(txn: Txn, server: &Server, sign: i64) -> Txn {
    let changes =
        costs(&server.flavor).map(|(resource, by)| (resource, sign * i64::try_from(by).unwrap_or(i64::MAX)));
    charge(txn, &server.project_id, &changes)
}

/// What all servers of a request share.
struct Creating<'a> {
    control: &'a Control,
    caller: &'a Caller,
    nics: &'a [NicRequest],
    group_ids: &'a [String],
    devices: &'a [NewDevice],
}

/// One server of a request: its row, its ports and its quota, and their undoing.
struct Make<'a> {
    request: &'a Creating<'a>,
    server: Server,
    /// The ids of the volumes that come into being with it.
    volume_ids: Vec<String>,
}

#[async_trait]
impl Step<Vec<Server>> for Make<'_> {
    fn name(&self) -> &'static str {
        "create server"
    }

    async fn act(&self, made: &mut Vec<Server>) -> Result<()> {
        let Creating { control, caller, nics, group_ids, devices } = *self.request;
        let ports_of = ServerOfPorts {
            id: &self.server.id,
            project_id: &self.server.project_id,
            zone: self.server.availability_zone.as_deref().unwrap_or(DEFAULT_ZONE),
            hostname: &self.server.hostname,
            host: None,
            groups: group_ids,
        };
        let server = control
            .db
            .transact_with(|cache| {
                let (txn, port_ids) = Control::add_server_ports(cache, Txn::new(), caller, &ports_of, nics)?;
                let tags = nics.iter().map(NicRequest::tag);
                let tags =
                    port_ids.iter().zip(tags).filter_map(|(id, tag)| Some((id.clone(), tag?.to_owned())));
                let mut server = Server { nic_tags: tags.collect(), port_ids, ..self.server.clone() };
                let volumes = (&mut server, devices, self.volume_ids.as_slice());
                let txn = control.add_server_volumes(cache, txn, caller, volumes)?;
                Ok((charge_server(txn.create(&server), &server, 1), server))
            })
            .await?;
        made.push(server);
        Ok(())
    }

    async fn undo(&self, made: &mut Vec<Server>) -> Result<()> {
        made.retain(|server| server.id != self.server.id);
        let control = self.request.control;
        control.server_want_deleted(&self.server.id, None).await?;
        control.volumes_want_gone(self.request.caller, &self.volume_ids).await
    }
}

fn names_one_thing(nic: &NicRequest) -> bool {
    match nic {
        NicRequest::Port { .. } => true,
        NicRequest::Network { fixed_ip, .. } => fixed_ip.is_some(),
    }
}

/// The image if the caller may boot from it now.
pub(super) fn usable_image(cache: &Cache, caller: &Caller, id: &str) -> Result<Image> {
    let stored = cache.get::<Image>(id).filter(|stored| image_access::may_see(cache, caller, &stored.row));
    let Some(stored) = stored else {
        return Err(Error::invalid(
            "ImageNotFound",
            format!("Can not find requested image: {id} could not be found."),
        ));
    };
    if stored.row.status != ImageStatus::Active {
        return Err(Error::invalid("ImageNotActive", format!("Image {id} is not active.")));
    }
    Ok(stored.row.clone())
}

pub(super) fn check_size(flavor: &Flavor, image: &Image) -> Result<()> {
    if flavor.ram_mib < image.min_ram_mib {
        return Err(Error::invalid(
            "FlavorMemoryTooSmall",
            "Flavor's memory is too small for requested image.",
        ));
    }
    let disk_bytes = u64::from(flavor.disk_gib) << 30;
    let least =
        (u64::from(image.min_disk_gib) << 30).max(image.virtual_size_bytes.or(image.size_bytes).unwrap_or(0));
    if flavor.disk_gib > 0 && disk_bytes < least {
        let message = format!(
            "Flavor's disk is too small for requested image. Flavor disk is {disk_bytes} bytes, image is {least} bytes."
        );
        return Err(Error::invalid("FlavorDiskSmallerThanImage", message));
    }
    Ok(())
}

/// The file that a host needs of an image; refused by name where no disk can be made of its format.
pub(crate) fn bootable_file(image: &Image) -> Result<LocalFile> {
    let format = image.disk_format.as_deref().unwrap_or("raw");
    let container = image.container_format.as_deref().unwrap_or("bare");
    let disk = ["raw", "qcow2", "ami", "aki", "ari", "iso"].contains(&format);
    // What an archive of a container image is in besides says nothing.
    let disk = if container == image::CONTAINER { format == "raw" } else { disk };
    if !disk || !["bare", "ami", "aki", "ari", image::CONTAINER].contains(&container) {
        let message = format!(
            "Image {} is unacceptable: a server cannot be made of disk_format {format} in container_format {container}.",
            image.id
        );
        return Err(Error::invalid("ImageUnacceptable", message));
    }
    Ok(image::local_file(image, format == "qcow2"))
}
