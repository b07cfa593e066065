//! Snapshots: what a volume was at one moment.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::work::want;
use super::{check_properties, check_text, find_for_change, invalid_volume};
use crate::Control;
use crate::agent::protocol::DiskShape;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::random_uuid;
use crate::model::volume::{DiskTask, Snapshot, Status, Volume};
use crate::policy::{require_admin, require_list, require_read, require_write};
use crate::service::quota::{Resource, charge_of_type};
use crate::store::{Cache, Stored, Txn};

/// What a new snapshot shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewSnapshot {
    /// Of which volume.
    pub volume_id: String,
    /// Name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Properties.
    pub metadata: BTreeMap<String, String>,
    /// Also of a volume that a server has.
    pub force: bool,
    /// The group snapshot that it is a part of.
    pub group_snapshot_id: Option<String>,
}

/// The snapshot if the caller may see it.
pub(crate) fn find(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<Snapshot>>> {
    let stored = cache.get::<Snapshot>(id).ok_or_else(|| Error::not_found("Snapshot", id))?;
    let owner = (stored.row.project_id.as_str(), Some(stored.row.user_id.as_str()));
    require_read(caller, owner, "volume:get_snapshot", "Snapshot", id)?;
    Ok(stored)
}

fn find_own(cache: &Cache, caller: &Caller, id: &str, action: &'static str) -> Result<Arc<Stored<Snapshot>>> {
    let stored = find(cache, caller, id)?;
    require_write(caller, &stored.row.project_id, action, "Snapshot", id)?;
    Ok(stored)
}

impl Control {
    /// The snapshots that the caller may see: its project's, or all.
    ///
    /// # Errors
    /// `Forbidden`.
    pub async fn volume_snapshots(&self, caller: &Caller, all: bool) -> Result<Vec<Arc<Stored<Snapshot>>>> {
        require_list(caller, "volume:get_all_snapshots")?;
        self.db.caught_up().await?;
        let every = all && caller.is_admin();
        let project = caller.project_id();
        Ok(self
            .db
            .cache()
            .filter::<Snapshot>(|snapshot| every || project == Some(snapshot.project_id.as_str())))
    }

    /// One snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn volume_snapshot(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Snapshot>>> {
        self.db.caught_up().await?;
        find(self.db.cache(), caller, id)
    }

    /// Makes a snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `QuotaExceeded`; `Invalid` for a volume that is in use, unless with force.
    pub async fn volume_snapshot_create(
        &self,
        caller: &Caller,
        new: NewSnapshot,
    ) -> Result<Arc<Stored<Snapshot>>> {
        self.db.caught_up().await?;
        let id = random_uuid();
        self.db
            .transact(|cache| {
                let volume = find_for_change(cache, caller, &new.volume_id, "volume:create_snapshot")?;
                let mut row = volume.row.clone();
                let txn = prepare(cache, Txn::new(), caller, &new, &mut row, &id)?;
                Ok(txn.update(&volume, &row))
            })
            .await?;
        self.stored(&id, "Snapshot")
    }

    /// Changes a snapshot's name, description or properties.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Invalid`.
    pub async fn volume_snapshot_update(
        &self,
        caller: &Caller,
        id: &str,
        change: impl Fn(&mut Snapshot) -> Result<()>,
    ) -> Result<Arc<Stored<Snapshot>>> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find_own(cache, caller, id, "volume:update_snapshot")?;
                let mut snapshot = stored.row.clone();
                change(&mut snapshot)?;
                check_text("name", snapshot.name.as_ref())?;
                check_text("description", snapshot.description.as_ref())?;
                check_properties(&snapshot.metadata)?;
                if snapshot == stored.row {
                    return Ok(Txn::new());
                }
                snapshot.updated_at = Some(Timestamp::now());
                Ok(Txn::new().update(&stored, &snapshot))
            })
            .await?;
        self.volume_snapshot(caller, id).await
    }

    /// Deletes a snapshot; with `force`, an administrator's privilege, in whatever state.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` in a state that does not allow it.
    pub async fn volume_snapshot_delete(&self, caller: &Caller, id: &str, force: bool) -> Result<()> {
        if force {
            require_admin(caller, "volume_extension:snapshot_admin_actions:force_delete")?;
        }
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find_own(cache, caller, id, "volume:delete_snapshot")?;
                let deletable =
                    matches!(stored.row.status, Status::Available | Status::Error | Status::ErrorDeleting);
                if !force && !deletable {
                    return Err(invalid_snapshot("Volume Snapshot status must be available or error."));
                }
                if stored.row.group_snapshot_id.is_some() {
                    return Err(invalid_snapshot("it is a part of a group snapshot."));
                }
                want_gone(cache, Txn::new(), &stored, &caller.request_id)
            })
            .await
    }

    /// What whoever makes a snapshot outside of this cloud says of it.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` for a snapshot that is not being made or deleted.
    pub async fn volume_snapshot_progress(
        &self,
        caller: &Caller,
        id: &str,
        status: Status,
        progress: Option<&str>,
    ) -> Result<()> {
        self.volume_snapshot_update(caller, id, |snapshot| {
            if !matches!(snapshot.status, Status::Creating | Status::Deleting) {
                return Err(Error::invalid(
                    "InvalidSnapshot",
                    format!(
                        "Provided snapshot status {} not allowed for snapshot with status {}.",
                        status.name(),
                        snapshot.status.name()
                    ),
                ));
            }
            snapshot.status = status;
            snapshot.progress = progress.map(str::to_owned).or(snapshot.progress.take());
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Sets a snapshot's state by hand.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator.
    pub async fn volume_snapshot_reset(&self, caller: &Caller, id: &str, status: Status) -> Result<()> {
        require_admin(caller, "volume_extension:snapshot_admin_actions:reset_status")?;
        self.volume_snapshot_update(caller, id, |snapshot| {
            snapshot.status = status;
            Ok(())
        })
        .await
        .map(drop)
    }
}

fn invalid_snapshot(message: &str) -> Error {
    Error::invalid("InvalidSnapshot", format!("Invalid snapshot: {message}"))
}

/// A transaction with the snapshot, its quota and its host's wish; `volume` counts it.
pub(crate) fn prepare(
    cache: &Cache,
    txn: Txn,
    caller: &Caller,
    new: &NewSnapshot,
    volume: &mut Volume,
    id: &str,
) -> Result<Txn> {
    check_text("name", new.name.as_ref())?;
    check_text("description", new.description.as_ref())?;
    check_properties(&new.metadata)?;
    let free = volume.status == Status::Available || (new.force && volume.status == Status::InUse);
    let Some(host) = volume.host.clone().filter(|_| free) else {
        return Err(invalid_volume(format!(
            "Volume {} status must be available, but current status is: {}.",
            volume.id,
            volume.status.name()
        )));
    };
    volume.snapshots += 1;
    let snapshot = Snapshot {
        id: id.to_owned(),
        project_id: volume.project_id.clone(),
        user_id: caller.user_id.clone(),
        name: new.name.clone(),
        description: new.description.clone(),
        volume_id: volume.id.clone(),
        size_gib: volume.size_gib,
        type_id: volume.type_id.clone(),
        status: Status::Creating,
        metadata: new.metadata.clone(),
        group_snapshot_id: new.group_snapshot_id.clone(),
        progress: None,
        host: Some(host.clone()),
        disk_id: None,
        encryption: volume.encryption.clone(),
        created_at: Timestamp::now(),
        updated_at: None,
    };
    let charges = charges(&snapshot, 1);
    let txn = charge_of_type(txn.create(&snapshot), &snapshot.project_id, &snapshot.type_id, &charges);
    let shape = DiskShape::Snapshot { of: volume.disk().to_owned() };
    let task = DiskTask::CreateSnapshot { snapshot: id.to_owned() };
    Ok(want(cache, txn, &caller.request_id, (&host, id), shape, task))
}

pub(super) fn charges(snapshot: &Snapshot, sign: i64) -> [(Resource, i64); 2] {
    let gib = i64::try_from(snapshot.size_gib).unwrap_or(i64::MAX);
    [(Resource::Snapshots, sign), (Resource::VolumeGib, sign * gib)]
}

/// Has the snapshot's host delete its disk.
pub(crate) fn want_gone(cache: &Cache, txn: Txn, stored: &Stored<Snapshot>, request_id: &str) -> Result<Txn> {
    let Some(host) = stored.row.host.clone() else { return Ok(removal(cache, txn, stored)) };
    let snapshot =
        Snapshot { status: Status::Deleting, updated_at: Some(Timestamp::now()), ..stored.row.clone() };
    let txn = txn.update(stored, &snapshot);
    let task = DiskTask::DeleteSnapshot { snapshot: snapshot.id.clone() };
    Ok(want(cache, txn, request_id, (&host, snapshot.disk()), DiskShape::Deleted, task))
}

/// The row goes, with its place in its volume's count and its quota.
pub(crate) fn removal(cache: &Cache, txn: Txn, stored: &Stored<Snapshot>) -> Txn {
    let snapshot = &stored.row;
    let mut txn = txn.delete(stored);
    if let Some(id) = &snapshot.group_snapshot_id {
        txn = super::group_snapshot::left(cache, txn, id, &snapshot.id);
    }
    if let Some(volume) = cache.get::<Volume>(&snapshot.volume_id) {
        let row = Volume { snapshots: volume.row.snapshots.saturating_sub(1), ..volume.row.clone() };
        txn = txn.update(&volume, &row);
    }
    charge_of_type(txn, &snapshot.project_id, &snapshot.type_id, &charges(snapshot, -1))
}
