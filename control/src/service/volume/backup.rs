//! Backups: copies of volumes beside them, whole or as differences, and volumes made of them again.

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::change::host_of;
use super::encryption;
use super::work::want;
use super::{NewVolume, check_properties, check_text, find_for_change, invalid_input, invalid_volume};
use crate::Control;
use crate::agent::protocol::DiskShape;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::random_uuid;
use crate::model::volume::{Backup, DiskEncryption, DiskTask, Snapshot, Status, Volume};
use crate::policy::{require_admin, require_list, require_own_project, require_read, require_write};
use crate::service::quota::{Resource, charge};
use crate::store::{Cache, Stored, Txn};

/// What keeps backups in a host's directory, as records of them name it: Cinder's driver of that kind.
pub const DIRECTORY_SERVICE: &str = "cinder.backup.drivers.posix.PosixBackupDriver";
/// The same of those in a bucket.
pub const BUCKET_SERVICE: &str = "cinder.backup.drivers.s3.S3BackupDriver";
/// The longest record in bytes, in base64.
const RECORD_BYTES_MAX: usize = 64 << 10;

/// What a new backup shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewBackup {
    /// Of which volume.
    pub volume_id: String,
    /// Of which snapshot of it.
    pub snapshot_id: Option<String>,
    /// Name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// What the owner calls the place.
    pub container: Option<String>,
    /// Only what differs from the newest backup.
    pub incremental: bool,
    /// Also of a volume that a server has.
    pub force: bool,
    /// Properties.
    pub metadata: BTreeMap<String, String>,
    /// Zone.
    pub zone: Option<String>,
}

/// What a record of a backup holds. Fields that are not ours are left alone.
#[derive(Debug, Serialize, Deserialize)]
struct Record {
    id: String,
    data_id: String,
    host: String,
    volume_id: String,
    size: u64,
    display_name: Option<String>,
    display_description: Option<String>,
    container: Option<String>,
    bytes: u64,
    parent_id: Option<String>,
    #[serde(default)]
    type_id: Option<String>,
    /// With the key as it is sealed: whoever has the record reads nothing without the cloud's master key.
    #[serde(default)]
    encryption: Option<DiskEncryption>,
}

/// The backup if the caller may see it.
pub(crate) fn find(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<Backup>>> {
    let stored = cache.get::<Backup>(id).ok_or_else(|| Error::not_found("Backup", id))?;
    let owner = (stored.row.project_id.as_str(), Some(stored.row.user_id.as_str()));
    require_read(caller, owner, "backup:get", "Backup", id)?;
    Ok(stored)
}

fn find_own(cache: &Cache, caller: &Caller, id: &str, action: &'static str) -> Result<Arc<Stored<Backup>>> {
    let stored = find(cache, caller, id)?;
    require_write(caller, &stored.row.project_id, action, "Backup", id)?;
    Ok(stored)
}

fn invalid_backup(message: impl std::fmt::Display) -> Error {
    Error::invalid("InvalidBackup", format!("Invalid backup: {message}"))
}

impl Control {
    /// The backups that the caller may see: its project's, or all.
    ///
    /// # Errors
    /// `Forbidden`.
    pub async fn volume_backups(&self, caller: &Caller, all: bool) -> Result<Vec<Arc<Stored<Backup>>>> {
        require_list(caller, "backup:get_all")?;
        self.db.caught_up().await?;
        let every = all && caller.is_admin();
        let project = caller.project_id();
        Ok(self.db.cache().filter::<Backup>(|one| every || project == Some(one.project_id.as_str())))
    }

    /// One backup.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn volume_backup(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Backup>>> {
        self.db.caught_up().await?;
        find(self.db.cache(), caller, id)
    }

    /// Backs a volume up.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `QuotaExceeded`; `Invalid` for a volume that is in use, unless with force, and without a
    /// backup to keep the differences to.
    pub async fn volume_backup_create(&self, caller: &Caller, new: NewBackup) -> Result<Arc<Stored<Backup>>> {
        check_text("name", new.name.as_ref())?;
        check_text("description", new.description.as_ref())?;
        check_text("container", new.container.as_ref())?;
        check_properties(&new.metadata)?;
        self.db.caught_up().await?;
        let id = random_uuid();
        self.db
            .transact(|cache| {
                let backup = (id.as_str(), self.settings.backups_in_bucket);
                prepare(cache, caller, &new, backup)
            })
            .await?;
        self.stored(&id, "Backup")
    }

    /// Changes a backup's name, description or properties.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Invalid`.
    pub async fn volume_backup_update(
        &self,
        caller: &Caller,
        id: &str,
        change: impl Fn(&mut Backup),
    ) -> Result<Arc<Stored<Backup>>> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find_own(cache, caller, id, "backup:update")?;
                let mut backup = stored.row.clone();
                change(&mut backup);
                check_text("name", backup.name.as_ref())?;
                check_text("description", backup.description.as_ref())?;
                check_properties(&backup.metadata)?;
                backup.updated_at = Some(Timestamp::now());
                Ok(Txn::new().update(&stored, &backup))
            })
            .await?;
        self.volume_backup(caller, id).await
    }

    /// Sets a backup's state by hand.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`.
    pub async fn volume_backup_reset(&self, caller: &Caller, id: &str, status: Status) -> Result<()> {
        require_admin(caller, "volume_extension:backup_admin_actions:reset_status")?;
        self.volume_backup_update(caller, id, |backup| backup.status = status).await.map(drop)
    }

    /// Deletes a backup; with `force`, an administrator's privilege, in whatever state.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` while others keep differences to it.
    pub async fn volume_backup_delete(&self, caller: &Caller, id: &str, force: bool) -> Result<()> {
        if force {
            require_admin(caller, "volume_extension:backup_admin_actions:force_delete")?;
        }
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find_own(cache, caller, id, "backup:delete")?;
                let backup = &stored.row;
                if !force
                    && !matches!(backup.status, Status::Available | Status::Error | Status::ErrorDeleting)
                {
                    return Err(invalid_backup("Backup status must be available or error"));
                }
                // Those that were taken in before what they keep the differences to are not counted.
                let kept = || cache.find(|other: &Backup| other.parent_id.as_deref() == Some(id)).is_some();
                if backup.dependents > 0 || kept() {
                    return Err(invalid_backup("Incremental backups exist for this backup."));
                }
                let data = backup.data().to_owned();
                let others = cache.find(|other: &Backup| other.id != backup.id && other.data() == data);
                let host = backup.host.clone().filter(|_| others.is_none());
                let Some(host) = host else { return Ok(removal(cache, Txn::new(), &stored)) };
                let row = Backup { status: Status::Deleting, ..backup.clone() };
                let txn = Txn::new().update(&stored, &row);
                let task = DiskTask::DeleteBackup { backup: id.to_owned() };
                Ok(want(cache, txn, &caller.request_id, (&host, &data), DiskShape::BackupDeleted, task))
            })
            .await
    }

    /// Makes a volume what a backup is: one that is there, or a new one. Returns the volume's id and name.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `QuotaExceeded`; `Invalid` for a volume that is too small or in use.
    pub async fn volume_backup_restore(
        &self,
        caller: &Caller,
        id: &str,
        volume_id: Option<&str>,
        name: Option<String>,
    ) -> Result<(String, String)> {
        let project_id = require_own_project(caller, "backup:restore")?.to_owned();
        self.db.caught_up().await?;
        let new_id = random_uuid();
        self.db
            .transact_with(|cache| {
                let stored = find_own(cache, caller, id, "backup:restore")?;
                if stored.row.status != Status::Available {
                    return Err(invalid_backup("Backup status must be available"));
                }
                let backup = Backup { status: Status::Restoring, ..stored.row.clone() };
                let txn = Txn::new().update(&stored, &backup);
                let Some(volume_id) = volume_id else {
                    let name = name.clone().unwrap_or_else(|| format!("restore_backup_{id}"));
                    let new = NewVolume {
                        name: Some(name.clone()),
                        size_gib: Some(backup.size_gib),
                        backup_id: Some(id.to_owned()),
                        metadata: backup.volume_metadata.clone(),
                        ..NewVolume::default()
                    };
                    let (txn, mut volume) =
                        self.volume_prepare(cache, txn, caller, &project_id, &new, &new_id)?;
                    volume.status = Status::RestoringBackup;
                    return Ok((txn.create(&volume), (new_id.clone(), name)));
                };
                let found = find_for_change(cache, caller, volume_id, "backup:restore")?;
                let txn = restore_into(cache, txn, caller, &backup, &found)?;
                Ok((txn, (volume_id.to_owned(), found.row.name.clone().unwrap_or_default())))
            })
            .await
    }

    /// All that is needed to take a backup in again after its row is lost: the service's name, and a record.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`; `Invalid` unless it is available.
    pub async fn volume_backup_export(&self, caller: &Caller, id: &str) -> Result<(&'static str, String)> {
        require_admin(caller, "backup:export-import")?;
        let stored = self.volume_backup(caller, id).await?;
        let backup = &stored.row;
        if backup.status != Status::Available {
            return Err(invalid_backup("Backup status must be available"));
        }
        let record = Record {
            id: backup.id.clone(),
            data_id: backup.data().to_owned(),
            host: backup.host.clone().unwrap_or_default(),
            volume_id: backup.volume_id.clone(),
            size: backup.size_gib,
            display_name: backup.name.clone(),
            display_description: backup.description.clone(),
            container: backup.container.clone(),
            bytes: backup.bytes,
            parent_id: backup.parent_id.clone(),
            type_id: backup.type_id.clone(),
            encryption: backup.encryption.clone(),
        };
        let json = serde_json::to_vec(&record).expect("invariant: a record is plain data");
        let service = if backup.in_bucket { BUCKET_SERVICE } else { DIRECTORY_SERVICE };
        Ok((service, STANDARD.encode(json)))
    }

    /// Takes a backup in again.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `Invalid` for a record that is none, or of a backup that is there.
    pub async fn volume_backup_import(
        &self,
        caller: &Caller,
        service: &str,
        record: &str,
    ) -> Result<Arc<Stored<Backup>>> {
        require_admin(caller, "backup:export-import")?;
        let project_id = require_own_project(caller, "backup:export-import")?.to_owned();
        let in_bucket = match service {
            BUCKET_SERVICE if self.settings.backups_in_bucket => true,
            DIRECTORY_SERVICE => false,
            _ => {
                let message = format!("Invalid input received: no backup service {service} is here.");
                return Err(invalid_input(message));
            }
        };
        let wrong = || invalid_input("Invalid input received: Can't parse backup record.");
        if record.len() > RECORD_BYTES_MAX {
            return Err(wrong());
        }
        let json = STANDARD.decode(record).map_err(|_| wrong())?;
        let record: Record = serde_json::from_slice(&json).map_err(|_| wrong())?;
        for id in [&record.id, &record.data_id] {
            uuid::Uuid::parse_str(id).map_err(|_| wrong())?;
        }
        if !self.volume_key_opens(record.encryption.as_ref()) {
            return Err(invalid_backup("its key was sealed under another cloud's master key."));
        }
        check_text("name", record.display_name.as_ref())?;
        check_text("description", record.display_description.as_ref())?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                if cache.get::<Backup>(&record.id).is_some() {
                    return Err(invalid_backup("Backup already exists in database."));
                }
                // What it is of may be another's: only who has it already may take it in.
                let hosts = self.volume_pools(cache);
                if !hosts.iter().any(|pool| pool.host == record.host) || record.size > super::SIZE_GIB_MAX {
                    return Err(wrong());
                }
                let backup = Backup { in_bucket, ..imported(caller, &project_id, &record) };
                let gib = i64::try_from(backup.size_gib).unwrap_or(i64::MAX);
                let charges = [(Resource::Backups, 1), (Resource::BackupGib, gib)];
                let mut txn = Txn::new().create(&backup);
                if let Some(parent) = backup.parent_id.as_ref().and_then(|id| cache.get::<Backup>(id)) {
                    let row = Backup { dependents: parent.row.dependents + 1, ..parent.row.clone() };
                    txn = txn.update(&parent, &row);
                }
                Ok(charge(txn, &project_id, &charges))
            })
            .await?;
        self.stored(&record.id, "Backup")
    }
}

fn imported(caller: &Caller, project_id: &str, record: &Record) -> Backup {
    let now = Timestamp::now();
    Backup {
        id: record.id.clone(),
        data_id: Some(record.data_id.clone()),
        project_id: project_id.to_owned(),
        user_id: caller.user_id.clone(),
        name: record.display_name.clone(),
        description: record.display_description.clone(),
        volume_metadata: BTreeMap::new(),
        volume_id: record.volume_id.clone(),
        type_id: record.type_id.clone(),
        encryption: record.encryption.clone(),
        snapshot_id: None,
        parent_id: record.parent_id.clone(),
        dependents: 0,
        size_gib: record.size,
        status: Status::Available,
        fail_reason: None,
        container: record.container.clone(),
        bytes: record.bytes,
        metadata: BTreeMap::new(),
        in_bucket: false,
        host: Some(record.host.clone()),
        zone: crate::service::host::DEFAULT_ZONE.to_owned(),
        data_at: now,
        created_at: now,
        updated_at: None,
    }
}

fn prepare(cache: &Cache, caller: &Caller, new: &NewBackup, (id, in_bucket): (&str, bool)) -> Result<Txn> {
    let stored = find_for_change(cache, caller, &new.volume_id, "backup:create")?;
    let volume = &stored.row;
    let host = host_of(volume)?;
    let mut txn = Txn::new();
    let (of, size_gib, encryption) = match &new.snapshot_id {
        Some(snapshot_id) => {
            let snapshot = super::snapshot::find(cache, caller, snapshot_id)?;
            if snapshot.row.volume_id != volume.id || snapshot.row.status != Status::Available {
                return Err(Error::invalid(
                    "InvalidSnapshot",
                    "Invalid snapshot: it is not an available one of the volume to be backed up.",
                ));
            }
            txn = txn.update(&snapshot, &Snapshot { status: Status::BackingUp, ..snapshot.row.clone() });
            (snapshot.row.disk().to_owned(), snapshot.row.size_gib, snapshot.row.encryption.clone())
        }
        None => {
            let free = volume.status == Status::Available || (new.force && volume.status == Status::InUse);
            if !free {
                return Err(invalid_volume(format!(
                    "Volume to be backed up must be available or in-use, but the current status is \"{}\".",
                    volume.status.name()
                )));
            }
            let previous_status = Some(volume.status);
            let row = Volume { status: Status::BackingUp, previous_status, ..volume.clone() };
            txn = txn.update(&stored, &row);
            (volume.disk().to_owned(), volume.size_gib, volume.encryption.clone())
        }
    };
    let parent = newest(cache, volume).filter(|_| new.incremental);
    if new.incremental && parent.is_none() {
        return Err(invalid_backup("No backups available to do an incremental backup."));
    }
    if let Some(parent) = &parent {
        let row = Backup { dependents: parent.row.dependents + 1, ..parent.row.clone() };
        txn = txn.update(parent, &row);
    }
    let now = Timestamp::now();
    let backup = Backup {
        id: id.to_owned(),
        data_id: None,
        project_id: volume.project_id.clone(),
        user_id: caller.user_id.clone(),
        name: new.name.clone(),
        description: new.description.clone(),
        volume_metadata: volume.metadata.clone(),
        volume_id: volume.id.clone(),
        type_id: Some(volume.type_id.clone()),
        encryption,
        snapshot_id: new.snapshot_id.clone(),
        parent_id: parent.as_ref().map(|parent| parent.row.id.clone()),
        dependents: 0,
        size_gib,
        status: Status::Creating,
        fail_reason: None,
        container: new.container.clone(),
        bytes: 0,
        metadata: new.metadata.clone(),
        in_bucket,
        host: Some(host.clone()),
        zone: new.zone.clone().unwrap_or_else(|| volume.zone.clone()),
        data_at: now,
        created_at: now,
        updated_at: None,
    };
    let gib = i64::try_from(size_gib).unwrap_or(i64::MAX);
    let charges = [(Resource::Backups, 1), (Resource::BackupGib, gib)];
    txn = charge(txn.create(&backup), &backup.project_id, &charges);
    let parent = parent.map(|parent| parent.row.data().to_owned());
    let shape = DiskShape::Backup { of, parent };
    let task = DiskTask::CreateBackup { backup: id.to_owned() };
    Ok(want(cache, txn, &caller.request_id, (&host, id), shape, task))
}

/// The backup that differences are kept to.
fn newest(cache: &Cache, volume: &Volume) -> Option<Arc<Stored<Backup>>> {
    let whole = cache.filter(|one: &Backup| {
        one.volume_id == volume.id && one.status == Status::Available && one.host == volume.host
    });
    whole.into_iter().max_by_key(|one| one.row.data_at)
}

fn restore_into(
    cache: &Cache,
    txn: Txn,
    caller: &Caller,
    backup: &Backup,
    found: &Stored<Volume>,
) -> Result<Txn> {
    if found.row.status != Status::Available {
        return Err(invalid_volume("Volume to be restored to must be available"));
    }
    if found.row.size_gib < backup.size_gib {
        return Err(invalid_volume(format!(
            "volume size {} is too small to restore backup of size {}.",
            found.row.size_gib, backup.size_gib
        )));
    }
    let spec = backup.encryption.as_ref().map(|encryption| &encryption.spec);
    if !encryption::fits(found.row.encryption.as_ref(), spec) {
        return Err(invalid_volume(
            "its type does not say of encryption what that of the backup's volume said.",
        ));
    }
    let host = host_of(&found.row)?;
    if Some(&host) != backup.host.as_ref() {
        return Err(invalid_volume("it is on another host than the backup."));
    }
    let volume = Volume { status: Status::RestoringBackup, ..found.row.clone() };
    let txn = txn.update(found, &volume);
    let shape = DiskShape::Restored { backup: backup.data().to_owned(), size_bytes: volume.size_gib << 30 };
    let encryption = backup.encryption.clone().map(Box::new);
    let task = DiskTask::Restore { backup: backup.id.clone(), volume: volume.id.clone(), encryption };
    Ok(want(cache, txn, &caller.request_id, (&host, volume.disk()), shape, task))
}

/// The row goes, with its place in its parent's count and its quota.
pub(crate) fn removal(cache: &Cache, txn: Txn, stored: &Stored<Backup>) -> Txn {
    let backup = &stored.row;
    let mut txn = txn.delete(stored);
    if let Some(parent) = backup.parent_id.as_ref().and_then(|id| cache.get::<Backup>(id)) {
        let row = Backup { dependents: parent.row.dependents.saturating_sub(1), ..parent.row.clone() };
        txn = txn.update(&parent, &row);
    }
    let gib = i64::try_from(backup.size_gib).unwrap_or(i64::MAX);
    charge(txn, &backup.project_id, &[(Resource::Backups, -1), (Resource::BackupGib, -gib)])
}
