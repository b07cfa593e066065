//! Images of servers' root disks (Compute API: create image, create server back up). The image is there at once; the host
//! brings the disk's bytes out, a guest that runs standing still for that as briefly as it can, and control takes them.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::find;
use super::form::{check_name, check_properties};
use super::lifecycle::{ask_image, becomes_image, record};
use super::power::action_record;
use crate::Control;
use crate::agent::protocol::DiskShape;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::Server;
use crate::model::identity::{Project, User};
use crate::model::image::{Image, ImageMember, ImageStatus};
use crate::model::random_uuid;
use crate::model::volume::DiskTask;
use crate::policy::require_write;
use crate::service::image::{ImageChange, described_image, new_image};
use crate::service::image_data::deletion;
use crate::service::volume::work::want;
use crate::store::{Cache, Stored, Txn};

/// The longest `backup_type` in characters.
const BACKUP_TYPE_CHARS_MAX: usize = 255;

/// Properties that no image takes over from the one that its server was made of: Nova's
/// `NON_INHERITABLE_IMAGE_PROPERTIES`, `non_inheritable_image_properties` and `SM_SKIP_KEYS`; what an image of a server says
/// anew; and what a volume keeps of its image beside properties.
const NOT_INHERITED: [&str; 22] = [
    "backup_type",
    "bdm_v2",
    "bittorrent",
    "block_device_mapping",
    "cache_in_nova",
    "checksum",
    "cinder_encryption_key_deletion_policy",
    "cinder_encryption_key_id",
    "container_format",
    "disk_format",
    "image_id",
    "image_name",
    "img_signature",
    "img_signature_certificate_uuid",
    "img_signature_hash_method",
    "img_signature_key_type",
    "instance_owner",
    "mappings",
    "min_disk",
    "min_ram",
    "root_device_name",
    "size",
];

/// An image that shall be made of a server.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewServerImage {
    /// Its name.
    pub name: String,
    /// Properties for it.
    pub metadata: BTreeMap<String, String>,
    /// It is one of several that replace one another.
    pub backup: Option<BackupSeries>,
}

/// Images of one server of which only the newest are kept.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct BackupSeries {
    /// What the series is called: `daily`, `weekly`, ….
    pub kind: String,
    /// How many are kept.
    pub rotation: u32,
}

impl NewServerImage {
    pub(super) fn action(&self) -> &'static str {
        if self.backup.is_some() { "createBackup" } else { "createImage" }
    }

    fn rule(&self) -> &'static str {
        if self.backup.is_some() {
            "os_compute_api:os-create-backup"
        } else {
            "os_compute_api:servers:create_image"
        }
    }
}

impl Control {
    /// Makes an image of a server's root disk; its id. The data follows. Of a server that boots from a volume, all volumes
    /// get snapshots, and the image says which.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Invalid`, `QuotaExceeded`; `Conflict` if the server's state does not allow it.
    pub async fn server_image_create(
        &self,
        caller: &Caller,
        id: &str,
        new: &NewServerImage,
    ) -> Result<String> {
        check_name(&new.name)?;
        check_properties(&new.metadata)?;
        if new.backup.as_ref().is_some_and(|series| series.kind.chars().count() > BACKUP_TYPE_CHARS_MAX) {
            let message = format!("A backup_type has at most {BACKUP_TYPE_CHARS_MAX} characters.");
            return Err(Error::invalid("InvalidInput", message));
        }
        self.db.caught_up().await?;
        let image_id = random_uuid();
        self.db
            .transact(|cache| {
                let stored = find(cache, caller, id)?;
                require_write(caller, &stored.row.project_id, new.rule(), "Instance", id)?;
                self.check_property_count(&stored.row.project_id, new.metadata.len())?;
                if stored.row.volumes.iter().any(|attached| attached.boot) {
                    refuse_backup_of_volumes(new)?;
                    return self.image_of_volumes(cache, caller, (&image_id, &stored), new);
                }
                let mut server = stored.row.clone();
                let task = if new.backup.is_some() { "image_backup" } else { "image_snapshot" };
                ask_image(&mut server, new.action(), task, Timestamp::now())?;
                record(&mut server, action_record(caller, new.action()));
                let more = of_disk(caller, &server, new);
                let image = described(cache, caller, image_id.clone(), &server, new, more)?;
                let txn = new_image(cache, Txn::new().update(&stored, &server), &image)?;
                let txn = shared_with_owner(txn, &image, &stored.row);
                let host = server.host.clone().unwrap_or_default();
                let shape = DiskShape::OutgoingRoot { instance: id.to_owned() };
                let rotation = new.backup.as_ref().map(|series| series.rotation);
                let task = DiskTask::UploadRoot { server: id.to_owned(), image: image_id.clone(), rotation };
                Ok(want(cache, txn, &caller.request_id, (&host, &image_id), shape, task))
            })
            .await?;
        Ok(image_id)
    }

    /// The bytes are on their way into the image.
    pub(crate) async fn server_image_uploading(&self, id: &str) -> Result<()> {
        self.db.transact(|cache| Ok(in_task(cache, Txn::new(), id, "image_uploading"))).await
    }

    /// Deletes the oldest of a server's backups of the image's kind, until no more than `rotation` are there. One that is
    /// protected stays.
    pub(crate) async fn server_backups_rotate(&self, id: &str, image: &str, rotation: u32) -> Result<()> {
        self.db.caught_up().await?;
        let Some(newest) = self.db.get::<Image>(image) else { return Ok(()) };
        for image_id in superseded(self.db.cache(), id, &newest.row, rotation) {
            let gone = self.db.transact_with(|cache| match cache.get::<Image>(&image_id) {
                Some(stored) if !stored.row.protected => {
                    Ok((deletion(cache, &stored), Some(stored.row.clone())))
                }
                _ => Ok((Txn::new(), None)),
            });
            if let Some(gone) = gone.await? {
                self.image_cleared(&gone).await?;
            }
        }
        Ok(())
    }
}

fn refuse_backup_of_volumes(new: &NewServerImage) -> Result<()> {
    match new.backup {
        Some(_) => {
            Err(Error::invalid("InvalidRequest", "Backup is not supported for volume-backed instances."))
        }
        None => Ok(()),
    }
}

/// The image as it is described before there is data, in Nova's words, with properties of its own kind.
pub(super) fn described(
    cache: &Cache,
    caller: &Caller,
    id: String,
    server: &Server,
    new: &NewServerImage,
    more: BTreeMap<String, String>,
) -> Result<Image> {
    let source = cache.get::<Image>(&server.image_id);
    let own = caller.project_id() == Some(server.project_id.as_str());
    let min_disk = source.as_ref().map_or(0, |source| source.row.min_disk_gib).max(server.flavor.disk_gib);
    let mut changes = vec![
        ImageChange::Name(Some(new.name.clone())),
        ImageChange::Visibility(if own { "private" } else { "shared" }.to_owned()),
        ImageChange::DiskFormat(Some("raw".to_owned())),
        ImageChange::ContainerFormat(Some("bare".to_owned())),
        ImageChange::MinDisk(min_disk),
        ImageChange::MinRam(source.as_ref().map_or(0, |source| source.row.min_ram_mib)),
    ];
    let properties = properties(cache, caller, server, new, more);
    changes.extend(properties.into_iter().map(|(name, value)| ImageChange::AddProperty(name, value)));
    described_image(caller, id, changes)
}

/// What Nova's images of servers say of themselves: what their source said, then what is known of the server, then what
/// the request says.
fn properties(
    cache: &Cache,
    caller: &Caller,
    server: &Server,
    new: &NewServerImage,
    more: BTreeMap<String, String>,
) -> BTreeMap<String, String> {
    let inherited = server.image_properties.iter();
    let inherited =
        inherited.filter(|(name, _)| !NOT_INHERITED.contains(&name.as_str()) && !is_reserved(name));
    let mut properties: BTreeMap<_, _> =
        inherited.map(|(name, value)| (name.clone(), value.clone())).collect();
    if !server.image_id.is_empty() {
        properties.entry("base_image_ref".to_owned()).or_insert_with(|| server.image_id.clone());
    }
    let user = cache.get::<User>(&server.user_id).map(|user| user.row.name.clone());
    let project = cache.get::<Project>(&server.project_id).map(|project| project.row.name.clone());
    let foreign = caller.project_id() != Some(server.project_id.as_str());
    let said = [
        ("instance_owner", foreign.then(|| server.project_id.clone())),
        ("owner_project_name", project),
        ("owner_user_name", user),
    ];
    properties.extend(said.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?))));
    properties.extend(more);
    let given = new.metadata.iter().filter(|(name, _)| !is_reserved(name));
    properties.extend(given.map(|(name, value)| (name.clone(), value.clone())));
    properties
}

/// What an image of a server's own disk says besides.
fn of_disk(caller: &Caller, server: &Server, new: &NewServerImage) -> BTreeMap<String, String> {
    let kind = new.backup.as_ref().map(|series| series.kind.as_str());
    let said = [
        ("image_type", Some(if kind.is_some() { "backup" } else { "snapshot" })),
        ("backup_type", kind),
        ("image_location", Some("snapshot")),
        ("image_state", Some("available")),
        ("instance_uuid", Some(server.id.as_str())),
        ("owner_id", Some(server.project_id.as_str())),
        ("user_id", Some(caller.user_id.as_str())),
    ];
    said.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?.to_owned()))).collect()
}

/// What Glance keeps for itself.
fn is_reserved(name: &str) -> bool {
    name.starts_with("os_glance")
}

/// The owner of a server of which somebody else has made an image is a member of that.
pub(super) fn shared_with_owner(txn: Txn, image: &Image, server: &Server) -> Txn {
    if image.owner.as_ref() == Some(&server.project_id) {
        return txn;
    }
    txn.create(&ImageMember {
        id: ImageMember::key(&image.id, &server.project_id),
        image_id: image.id.clone(),
        project_id: server.project_id.clone(),
        status: "pending".to_owned(),
        created_at: image.created_at,
        updated_at: image.updated_at,
    })
}

/// The host has brought a disk out.
pub(crate) fn brought_out(cache: &Cache, txn: Txn, task: &DiskTask) -> Txn {
    match task {
        DiskTask::UploadRoot { server, .. } => in_task(cache, txn, server, "image_pending_upload"),
        _ => txn,
    }
}

/// A server whose image is being made is further. One that has come to something else stays that.
fn in_task(cache: &Cache, txn: Txn, id: &str, task: &str) -> Txn {
    match cache.get::<Server>(id).filter(|stored| becomes_image(&stored.row)) {
        Some(stored) if stored.row.task.as_deref() != Some(task) => {
            let now = Timestamp::now();
            let server = Server { task: Some(task.to_owned()), updated_at: now, ..stored.row.clone() };
            txn.update(&stored, &server)
        }
        _ => txn,
    }
}

/// A server's disk has become an image; or it has not, and of the image nothing is left.
pub(crate) fn root_uploaded(
    cache: &Cache,
    txn: Txn,
    (server, image): (&str, &str),
    request_id: &str,
    fault: Option<&str>,
) -> Txn {
    let txn = ended(cache, txn, server, request_id, fault.is_some());
    if fault.is_none() {
        return txn;
    }
    match cache.get::<Image>(image) {
        Some(image) if image.row.status == ImageStatus::Queued => txn.and(deletion(cache, &image)),
        _ => txn,
    }
}

/// The server is free again, and its action says that it is over, or has failed.
fn ended(cache: &Cache, txn: Txn, id: &str, request_id: &str, failed: bool) -> Txn {
    let Some(stored) = cache.get::<Server>(id) else { return txn };
    let mut server = stored.row.clone();
    if becomes_image(&server) {
        server.task = None;
    }
    let of_image = |action: &str| matches!(action, "createImage" | "createBackup");
    let mut actions = server.actions.iter_mut().rev();
    if let Some(action) = actions.find(|record| record.request_id == request_id && of_image(&record.action)) {
        action.message = failed.then(|| "Error".to_owned());
        action.finished_at = Some(Timestamp::now());
    }
    server.updated_at = Timestamp::now();
    txn.update(&stored, &server)
}

/// The ids of those images that are too many of a server's backups of the kind of `newest`, the oldest first.
fn superseded(cache: &Cache, server: &str, newest: &Image, rotation: u32) -> Vec<String> {
    let is = |image: &Image, name: &str, value: Option<&String>| image.properties.get(name) == value;
    let mut backups: Vec<Arc<Stored<Image>>> = cache.filter(|image: &Image| {
        image.owner == newest.owner
            && is(image, "image_type", Some(&"backup".to_owned()))
            && is(image, "instance_uuid", Some(&server.to_owned()))
            && is(image, "backup_type", newest.properties.get("backup_type"))
    });
    backups.sort_by_key(|image| (image.row.created_at, image.row.id.clone()));
    let kept = usize::try_from(rotation).unwrap_or(usize::MAX).min(backups.len());
    backups.truncate(backups.len() - kept);
    backups.iter().map(|image| image.row.id.clone()).collect()
}
