//! Making volumes: everything that can be refused is refused here, before anything is written; the row, its quota and the
//! host's wish are one transaction.

use std::collections::BTreeMap;

use jiff::Timestamp;

use super::kind::{self, default_type};
use super::message::tell;
use super::place::{Need, backend_name, choose};
use super::work::want;
use super::{
    SIZE_GIB_MAX, VolumeView, check_properties, check_text, encryption, invalid_input, invalid_volume,
};
use crate::Control;
use crate::agent::protocol::{DiskShape, DiskSource};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::image::{Image, ImageStatus, LocalFile};
use crate::model::random_uuid;
use crate::model::volume::{DiskEncryption, DiskTask, Status, Volume, VolumeType};
use crate::policy::require_own_project;
use crate::service::host::DEFAULT_ZONE;
use crate::service::image_access;
use crate::service::image_store::FILE_STORE;
use crate::service::quota::{Resource, charge_of_type, limit};
use crate::service::server::create::bootable_file;
use crate::store::{Cache, Txn};

/// What a new volume shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewVolume {
    /// Name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Size in GiB; what it begins as may say it too.
    pub size_gib: Option<u64>,
    /// Wished zone.
    pub zone: Option<String>,
    /// Its type, by id or by name.
    pub volume_type: Option<String>,
    /// Properties.
    pub metadata: BTreeMap<String, String>,
    /// Begins as this image.
    pub image_id: Option<String>,
    /// Begins as this snapshot.
    pub snapshot_id: Option<String>,
    /// Begins as this volume.
    pub source_volume_id: Option<String>,
    /// Begins as this backup.
    pub backup_id: Option<String>,
    /// Its group.
    pub group_id: Option<String>,
    /// Several servers may have it; before microversion 3.50 not only the type says so.
    pub multiattach: bool,
    /// The host that it has to be on, which no client says.
    pub host: Option<String>,
}

/// What a volume begins as, looked up.
struct Origin {
    source: DiskSource,
    /// What has to be made before hosts find the source.
    waits_for: Option<LocalFile>,
    least_gib: u64,
    host: Option<String>,
    /// The one backend there that has the source; any if absent.
    backend: Option<String>,
    bootable: bool,
    type_id: Option<String>,
    /// How the bytes lie that are copied.
    encryption: Option<DiskEncryption>,
    image_metadata: BTreeMap<String, String>,
}

impl Control {
    /// Makes a volume. One for which no host is found is in `error`, as with Cinder, and says why in a message.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`, `NotFound` for what it shall begin as, `QuotaExceeded`.
    pub async fn volume_create(&self, caller: &Caller, new: NewVolume) -> Result<VolumeView> {
        let project_id = require_own_project(caller, "volume:create")?.to_owned();
        self.db.caught_up().await?;
        let id = random_uuid();
        self.db
            .transact(|cache| {
                let (txn, volume) = self.volume_prepare(cache, Txn::new(), caller, &project_id, &new, &id)?;
                Ok(txn.create(&volume))
            })
            .await?;
        self.volume_made(&id)
    }

    /// The volume's row, and a transaction with all but that row.
    pub(crate) fn volume_prepare(
        &self,
        cache: &Cache,
        txn: Txn,
        caller: &Caller,
        project_id: &str,
        new: &NewVolume,
        id: &str,
    ) -> Result<(Txn, Volume)> {
        check_text("name", new.name.as_ref())?;
        check_text("description", new.description.as_ref())?;
        check_properties(&new.metadata)?;
        let origin = origin(cache, caller, new)?;
        let size_gib = size(new, &origin)?;
        check_one(cache, project_id, size_gib)?;
        let of_type = volume_type(cache, caller, project_id, new, &origin)?;
        let encryption = match &origin.source {
            DiskSource::Nothing | DiskSource::Image { .. } => self.volume_encryption(&of_type)?,
            DiskSource::Disk { .. } | DiskSource::Backup { .. } => copied_encryption(new, &origin, &of_type)?,
        };
        let need = Need {
            size_gib,
            zone: new.zone.as_deref(),
            host: origin.host.as_deref().or(new.host.as_deref()),
            backend: origin.backend.as_deref(),
            specs: Some(&of_type.extra_specs),
        };
        let pools = self.volume_pools(cache);
        if let Some(zone) = &new.zone
            && zone != DEFAULT_ZONE
            && !pools.iter().any(|pool| pool.zone == *zone)
        {
            return Err(invalid_input(format!("Availability zone '{zone}' is invalid.")));
        }
        let pool = choose(&pools, &need);
        let host = pool.map(|pool| pool.host.clone());
        let mut volume = row(caller, project_id, new, id, (size_gib, &of_type, origin.bootable));
        volume.host.clone_from(&host);
        volume.backend = pool.map(|pool| pool.backend.clone());
        volume.zone =
            pool.map_or_else(|| new.zone.clone().unwrap_or(DEFAULT_ZONE.to_owned()), |p| p.zone.clone());
        volume.encryption = encryption;
        volume.image_metadata = origin.image_metadata;
        let mut txn = txn;
        if let Some(group_id) = &new.group_id {
            let stored = super::group::find(cache, caller, group_id)?;
            let mut group = stored.row.clone();
            volume.group_id = None;
            volume = super::group::joined(&mut group, &volume)?;
            txn = txn.update(&stored, &group);
        }
        let gib = i64::try_from(size_gib).unwrap_or(i64::MAX);
        let charges = [(Resource::Volumes, 1), (Resource::VolumeGib, gib)];
        if let Some(image_id) = &new.image_id {
            // Its data stays from now on: what is deleted after this is not cleared while the volume needs it.
            txn = txn.require_present::<Image>(image_id);
        }
        let txn = kind::given(cache, txn, &of_type)?;
        let mut txn = charge_of_type(txn, project_id, &of_type.id, &charges);
        match &host {
            Some(_) if origin.waits_for.is_some() => {
                volume.status = Status::Downloading;
                volume.waits_for = origin.waits_for;
                volume.request_id.clone_from(&caller.request_id);
            }
            Some(host) => {
                txn = want_made(cache, txn, &caller.request_id, (host, &volume), origin.source);
            }
            None => {
                volume.status = Status::Error;
                let text = "schedule allocate volume:Could not find any available weighted backend.";
                let about = ("VOLUME", id);
                txn = tell(txn, project_id, &caller.request_id, about, "VOLUME_VOLUME_001_001", text);
            }
        }
        Ok((txn, volume))
    }
}

/// Has a host make a volume.
pub(crate) fn want_made(
    cache: &Cache,
    txn: Txn,
    request_id: &str,
    (host, volume): (&str, &Volume),
    source: DiskSource,
) -> Txn {
    let shape = DiskShape::Volume { size_bytes: volume.size_gib << 30, source };
    let task = DiskTask::CreateVolume { volume: volume.id.clone() };
    want(cache, txn, request_id, (host, volume.disk()), shape, task)
}

pub(super) fn row(
    caller: &Caller,
    project_id: &str,
    new: &NewVolume,
    id: &str,
    (size_gib, of_type, bootable): (u64, &VolumeType, bool),
) -> Volume {
    Volume {
        id: id.to_owned(),
        project_id: project_id.to_owned(),
        user_id: caller.user_id.clone(),
        name: new.name.clone(),
        description: new.description.clone(),
        size_gib,
        status: Status::Creating,
        previous_status: None,
        type_id: of_type.id.clone(),
        bootable,
        read_only: false,
        multiattach: new.multiattach || kind::is_multiattach(of_type),
        metadata: new.metadata.clone(),
        admin_metadata: BTreeMap::new(),
        image_metadata: BTreeMap::new(),
        image_id: new.image_id.clone(),
        snapshot_id: new.snapshot_id.clone(),
        source_volume_id: new.source_volume_id.clone(),
        backup_id: new.backup_id.clone(),
        group_id: new.group_id.clone(),
        zone: DEFAULT_ZONE.to_owned(),
        host: None,
        backend: None,
        disk_id: None,
        encryption: None,
        waits_for: None,
        request_id: String::new(),
        migration_status: None,
        attachments: Vec::new(),
        snapshots: 0,
        created_at: Timestamp::now(),
        updated_at: None,
    }
}

/// Refuses one volume that is larger than a project may have one.
pub(crate) fn check_one(cache: &Cache, project_id: &str, size_gib: u64) -> Result<()> {
    match limit(cache, project_id, Resource::PerVolumeGib) {
        Some(limit) if size_gib > limit => Err(Error::QuotaExceeded {
            resource: Resource::PerVolumeGib.name(),
            requested: size_gib,
            used: 0,
            limit,
        }),
        _ => Ok(()),
    }
}

fn size(new: &NewVolume, origin: &Origin) -> Result<u64> {
    let size_gib = new.size_gib.unwrap_or(origin.least_gib);
    if size_gib == 0 {
        return Err(invalid_input(
            "Invalid input received: Volume size must be an integer and greater than 0.",
        ));
    }
    if size_gib > SIZE_GIB_MAX {
        return Err(invalid_input(format!(
            "Invalid input received: a volume has at most {SIZE_GIB_MAX} GiB."
        )));
    }
    if size_gib >= origin.least_gib {
        return Ok(size_gib);
    }
    let least = origin.least_gib;
    Err(invalid_input(match &origin.source {
        DiskSource::Image { .. } => format!(
            "Invalid input received: Size of specified image {least}GB is larger than volume size {size_gib}GB."
        ),
        _ if new.snapshot_id.is_some() => format!(
            "Invalid input received: Volume size {size_gib}GB cannot be smaller than the snapshot size {least}GB. \
             They must be >= original snapshot size."
        ),
        _ => format!(
            "Invalid input received: Volume size '{size_gib}'GB cannot be smaller than original volume size {least}GB. \
             They must be >= original volume size."
        ),
    }))
}

fn volume_type(
    cache: &Cache,
    caller: &Caller,
    project_id: &str,
    new: &NewVolume,
    origin: &Origin,
) -> Result<VolumeType> {
    if let Some(wished) = &new.volume_type {
        let found = kind::find(cache, caller, wished)?;
        return Ok(found.row.clone());
    }
    let inherited = origin.type_id.as_ref().and_then(|id| cache.get::<VolumeType>(id));
    inherited.map_or_else(|| default_type(cache, project_id), |found| Ok(found.row.clone()))
}

/// How a volume that begins as a copy is encrypted: as what it is copied from.
fn copied_encryption(
    new: &NewVolume,
    origin: &Origin,
    of_type: &VolumeType,
) -> Result<Option<DiskEncryption>> {
    if encryption::fits(origin.encryption.as_ref(), of_type.encryption.as_ref()) {
        return Ok(origin.encryption.clone());
    }
    let advice = match (&new.snapshot_id, &new.source_volume_id) {
        (Some(_), _) => "recommend omitting the type argument",
        (_, Some(_)) => "either match source volume, or omit type argument",
        _ => "it has to say of encryption what the type of the volume said that was backed up",
    };
    Err(invalid_input(format!(
        "Invalid input received: Invalid volume_type provided: {} (requested type is not compatible; {advice}).",
        of_type.name
    )))
}

/// What the volume begins as. Several say so at once only where one follows from the other.
fn origin(cache: &Cache, caller: &Caller, new: &NewVolume) -> Result<Origin> {
    let said = [&new.snapshot_id, &new.source_volume_id, &new.image_id, &new.backup_id];
    if said.iter().filter(|one| one.is_some()).count() > 1 {
        return Err(invalid_input(
            "Invalid input received: May specify only one of snapshot, imageRef, backup or source volume",
        ));
    }
    if let Some(id) = &new.snapshot_id {
        return from_snapshot(cache, caller, id);
    }
    if let Some(id) = &new.source_volume_id {
        return from_volume(cache, caller, id);
    }
    if let Some(id) = &new.image_id {
        return from_image(cache, caller, id);
    }
    if let Some(id) = &new.backup_id {
        return from_backup(cache, caller, id);
    }
    Ok(Origin {
        source: DiskSource::Nothing,
        waits_for: None,
        least_gib: 0,
        host: None,
        backend: None,
        bootable: false,
        type_id: None,
        encryption: None,
        image_metadata: BTreeMap::new(),
    })
}

fn from_snapshot(cache: &Cache, caller: &Caller, id: &str) -> Result<Origin> {
    let snapshot = super::snapshot::find(cache, caller, id)?;
    if snapshot.row.status != Status::Available {
        return Err(Error::invalid(
            "InvalidSnapshot",
            format!(
                "Invalid snapshot: Originating snapshot status must be one of available values; it is {}",
                snapshot.row.status.name()
            ),
        ));
    }
    let volume = cache.get::<Volume>(&snapshot.row.volume_id);
    Ok(Origin {
        source: DiskSource::Disk { id: snapshot.row.disk().to_owned() },
        waits_for: None,
        least_gib: snapshot.row.size_gib,
        host: snapshot.row.host.clone(),
        backend: volume.as_ref().and_then(|volume| backend_name(cache, &volume.row)),
        bootable: volume.as_ref().is_some_and(|volume| volume.row.bootable),
        type_id: Some(snapshot.row.type_id.clone()),
        encryption: snapshot.row.encryption.clone(),
        image_metadata: volume.map(|volume| volume.row.image_metadata.clone()).unwrap_or_default(),
    })
}

fn from_volume(cache: &Cache, caller: &Caller, id: &str) -> Result<Origin> {
    let volume = super::find(cache, caller, id)?;
    if !matches!(volume.row.status, Status::Available | Status::InUse) {
        return Err(invalid_volume(format!(
            "Originating volume status must be one of available, in-use values; it is {}",
            volume.row.status.name()
        )));
    }
    Ok(Origin {
        source: DiskSource::Disk { id: volume.row.disk().to_owned() },
        waits_for: None,
        least_gib: volume.row.size_gib,
        host: volume.row.host.clone(),
        backend: backend_name(cache, &volume.row),
        bootable: volume.row.bootable,
        type_id: Some(volume.row.type_id.clone()),
        encryption: volume.row.encryption.clone(),
        image_metadata: volume.row.image_metadata.clone(),
    })
}

fn from_backup(cache: &Cache, caller: &Caller, id: &str) -> Result<Origin> {
    let found = super::backup::find(cache, caller, id)?;
    if found.row.status != Status::Available {
        let message =
            format!("Invalid backup: Backup status must be available; it is {}", found.row.status.name());
        return Err(Error::invalid("InvalidBackup", message));
    }
    Ok(Origin {
        source: DiskSource::Backup { id: found.row.data().to_owned() },
        waits_for: None,
        least_gib: found.row.size_gib,
        host: found.row.host.clone(),
        backend: None,
        bootable: false,
        // What lies encrypted fits its type alone.
        type_id: found.row.type_id.clone().filter(|_| found.row.encryption.is_some()),
        encryption: found.row.encryption.clone(),
        image_metadata: BTreeMap::new(),
    })
}

fn from_image(cache: &Cache, caller: &Caller, id: &str) -> Result<Origin> {
    let found = cache.get::<Image>(id).filter(|found| image_access::may_see(cache, caller, &found.row));
    let found = found.ok_or_else(|| {
        Error::invalid(
            "ImageNotFound",
            format!("Invalid image identifier or unable to access requested image: {id}"),
        )
    })?;
    let image = &found.row;
    if image.status != ImageStatus::Active {
        return Err(invalid_input(format!("Invalid input received: Image {id} is not active.")));
    }
    let bytes = image.size_bytes.unwrap_or(0);
    let file = bootable_file(image)?;
    // Those of the first version have no store: they are where hosts look.
    let is_here = file.stores.is_empty() || file.stores.iter().any(|store| store == FILE_STORE);
    Ok(Origin {
        source: DiskSource::Image { image_id: file.name.clone() },
        waits_for: (file.qcow2 || file.container || !is_here).then_some(file),
        least_gib: bytes.div_ceil(1 << 30).max(u64::from(image.min_disk_gib)),
        host: None,
        backend: None,
        bootable: true,
        type_id: None,
        encryption: None,
        image_metadata: image_metadata(image),
    })
}

/// What a volume keeps of its image (Block Storage API: `volume_image_metadata`).
pub(crate) fn image_metadata(image: &Image) -> BTreeMap<String, String> {
    let mut kept = image.properties.clone();
    let mut put = |key: &str, value: Option<String>| {
        if let Some(value) = value {
            kept.insert(key.to_owned(), value);
        }
    };
    put("image_id", Some(image.id.clone()));
    put("image_name", image.name.clone());
    put("checksum", image.checksum.clone());
    put("container_format", image.container_format.clone());
    put("disk_format", image.disk_format.clone());
    put("min_disk", Some(image.min_disk_gib.to_string()));
    put("min_ram", Some(image.min_ram_mib.to_string()));
    put("size", image.size_bytes.map(|size| size.to_string()));
    kept
}
