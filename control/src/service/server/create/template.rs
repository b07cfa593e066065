//! What all servers of a request have in common: looked up once, refused where it does not fit, and made into their rows.

use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use super::super::form::hostname_of;
use super::super::lifecycle::record;
use super::super::power::action_record;
use super::super::volume::boot_source;
use super::super::{disk_config, queues};
use super::{NewServers, VCPUS_MAX, bootable_file, usable_image};
use crate::agent::protocol::Power;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::{Flavor, Host, Server, ServerKernel, VmState};
use crate::model::image::{Image, LocalFile};
use crate::model::random_uuid;
use crate::service::host::DEFAULT_ZONE;
use crate::service::{flavor, image, keypair};
use crate::store::Cache;

/// What was looked up for a request.
pub(super) struct Template {
    project_id: String,
    pub(super) flavor: Flavor,
    image_id: String,
    image_properties: BTreeMap<String, String>,
    kernel: Option<ServerKernel>,
    files: Vec<LocalFile>,
    key: Option<(String, String)>,
    availability_zone: Option<String>,
    auto_disk_config: bool,
    reservation_id: String,
}

impl Template {
    /// Looks everything up that `new` names, but networks and groups.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` or `NotImplemented` for what is not there or does not fit.
    pub(super) fn prepare(
        cache: &Cache,
        caller: &Caller,
        project_id: &str,
        new: &NewServers,
    ) -> Result<Self> {
        let flavor = flavor::find(cache, caller, &new.flavor_id).map_err(|_| {
            Error::invalid("FlavorNotFound", format!("Flavor {} could not be found.", new.flavor_id))
        })?;
        let flavor = flavor.row.clone();
        if flavor.ephemeral_gib > 0 || flavor.swap_mib > 0 {
            return Err(Error::NotImplemented("a flavor with ephemeral disk or swap"));
        }
        if flavor.vcpus > VCPUS_MAX {
            return Err(invalid(format!("A server has at most {VCPUS_MAX} virtual CPUs.")));
        }
        let (image, image_properties) = boot_source(cache, caller, new, &flavor)?;
        queues::check_agreement(&flavor.extra_specs, &image_properties)
            .map_err(|message| Error::invalid("FlavorImageConflict", message))?;
        let (kernel, files) = files_of(cache, caller, image.as_ref(), &image_properties)?;
        let image_id = image.map(|image| image.id).unwrap_or_default();
        let auto_disk_config = disk_config::of_new(new.auto_disk_config, &image_id, &image_properties)?;
        let key = match &new.key_name {
            Some(name) => {
                let stored = keypair::find(cache, &caller.user_id, name)
                    .map_err(|_| Error::invalid("KeypairNotFound", "Invalid key_name provided."))?;
                Some((name.clone(), stored.row.public_key.clone()))
            }
            None => None,
        };
        let hosts = cache.list::<Host>();
        if let Some(zone) = &new.availability_zone
            && zone != DEFAULT_ZONE
            && !hosts.iter().any(|host| host.row.zone == *zone)
        {
            let message = "The requested availability zone is not available";
            return Err(Error::invalid("AvailabilityZoneNotFound", message));
        }
        if let Some(wished) = &new.host
            && !hosts.iter().any(|host| host.row.name == *wished)
        {
            return Err(Error::invalid(
                "ComputeHostNotFound",
                format!("Compute host {wished} could not be found."),
            ));
        }
        Ok(Self {
            project_id: project_id.to_owned(),
            flavor,
            image_id,
            image_properties,
            kernel,
            files,
            key,
            availability_zone: new.availability_zone.clone(),
            auto_disk_config,
            reservation_id: format!("r-{}", &crate::model::random_hex_id()[..8]),
        })
    }

    /// The row of the server with that index, before its ports and volumes; `numbered`: its name ends with its number.
    pub(super) fn server(&self, caller: &Caller, new: &NewServers, index: u32, numbered: bool) -> Server {
        let id = random_uuid();
        let number = |text: &str| if numbered { format!("{text}-{}", index + 1) } else { text.to_owned() };
        let name = number(new.name.trim());
        let hostname = match &new.hostname {
            Some(hostname) => number(hostname),
            None => hostname_of(&name, &id),
        };
        let now = Timestamp::now();
        let mut tags = new.tags.clone();
        tags.sort();
        tags.dedup();
        let groups = &new.security_groups;
        let mut server = Server {
            id,
            project_id: self.project_id.clone(),
            user_id: caller.user_id.clone(),
            name,
            description: new.description.clone(),
            hostname,
            flavor: self.flavor.clone(),
            image_id: self.image_id.clone(),
            image_properties: self.image_properties.clone(),
            kernel: self.kernel.clone(),
            files: self.files.clone(),
            root_disk_bytes: u64::from(self.flavor.disk_gib) << 30,
            metadata: new.metadata.clone(),
            tags,
            user_data: new.user_data.clone(),
            config_drive: new.config_drive || asks_for_drive(&self.image_properties),
            key: self.key.clone(),
            port_ids: Vec::new(),
            nic_tags: BTreeMap::new(),
            fixed_devices: BTreeSet::new(),
            volumes: Vec::new(),
            security_groups: if groups.is_empty() { vec!["default".to_owned()] } else { groups.clone() },
            launch_index: index,
            reservation_id: self.reservation_id.clone(),
            availability_zone: self.availability_zone.clone(),
            wished_host: new.host.clone(),
            scheduler_hints: new.scheduler_hints.clone(),
            auto_disk_config: self.auto_disk_config,
            access_ip_v4: new.access_ip_v4.clone(),
            access_ip_v6: new.access_ip_v6.clone(),
            locked: false,
            locked_reason: None,
            power: Power::Running,
            boot: 1,
            shutdown_timeout_ms: 0,
            discard: false,
            generation: 1,
            host: None,
            observed_generation: 0,
            observed_boot: 0,
            observed: None,
            vm_state: VmState::Building,
            task: Some("scheduling".to_owned()),
            fault: None,
            created_at: now,
            updated_at: now,
            launched_at: None,
            request_id: caller.request_id.clone(),
            actions: Vec::new(),
        };
        record(&mut server, action_record(caller, "create"));
        server
    }
}

/// Whether the image's guests need a configuration drive (Glance: useful image properties).
fn asks_for_drive(properties: &BTreeMap<String, String>) -> bool {
    properties.get("img_config_drive").is_some_and(|wish| wish == "mandatory")
}

/// The kernel that the image's properties name (Image API: `kernel_id`, `ramdisk_id`, `os_command_line`), and the files
/// that a server is made of: its image's, if it does not boot from a volume, its kernel's, its ramdisk's.
fn files_of(
    cache: &Cache,
    caller: &Caller,
    image: Option<&Image>,
    properties: &BTreeMap<String, String>,
) -> Result<(Option<ServerKernel>, Vec<LocalFile>)> {
    let property = |name: &str| properties.get(name).filter(|value| !value.is_empty());
    let mut files: Vec<LocalFile> = image.map(bootable_file).transpose()?.into_iter().collect();
    let container = image.map_or_else(
        || properties.get("container_format").is_some_and(|format| format == image::CONTAINER),
        |image| image.container_format.as_deref() == Some(image::CONTAINER),
    );
    let Some(kernel_id) = property("kernel_id") else {
        if container {
            let message = "A container image has no kernel to boot: build one with `wisp guest kernel --out FILE`, upload it \
                           with `openstack image create --disk-format aki --container-format aki --file FILE kernel`, and \
                           name it with `openstack image set --property kernel_id=ID IMAGE`.";
            return Err(Error::invalid("ImageUnacceptable", message));
        }
        return Ok((None, files));
    };
    let kernel_file = bootable_file(&usable_image(cache, caller, kernel_id)?)?;
    if image.is_none() {
        // Each has its place.
        files.push(kernel_file.clone());
    }
    files.push(kernel_file);
    let ramdisk_id = property("ramdisk_id");
    if let Some(ramdisk_id) = ramdisk_id {
        files.push(bootable_file(&usable_image(cache, caller, ramdisk_id)?)?);
    }
    let kernel = ServerKernel {
        kernel_id: kernel_id.clone(),
        ramdisk_id: ramdisk_id.cloned(),
        cmdline: match (container, property("os_command_line").map_or("", String::as_str)) {
            (true, own) => format!("{} {own}", container_command_line()).trim_end().to_owned(),
            (false, own) => own.to_owned(),
        },
    };
    Ok((Some(kernel), files))
}

/// What a kernel is told so that it boots a container image's disk; what the image's owner says comes behind, and wins.
fn container_command_line() -> String {
    format!("root=/dev/vda rw init={} ip=dhcp quiet", storage::container::INIT_PATH)
}

fn invalid(message: impl Into<String>) -> Error {
    Error::invalid("InvalidInput", message)
}
