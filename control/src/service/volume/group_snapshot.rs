//! Group snapshots: all volumes of a group at one time, each in a snapshot of its own. What one is doing follows from its snapshots.

use std::sync::Arc;

use jiff::Timestamp;

use super::check_text;
use super::group::{VOLUMES_MAX, find_own, follows, invalid_group};
use super::snapshot::{self, NewSnapshot};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::random_uuid;
use crate::model::volume::{GroupSnapshot, Snapshot, Status};
use crate::policy::{require_admin, require_list, require_read, require_write};
use crate::store::{Cache, Stored, Txn};

pub(super) fn find(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<GroupSnapshot>>> {
    let stored = cache.get::<GroupSnapshot>(id).ok_or_else(|| Error::not_found("GroupSnapshot", id))?;
    let owner = (stored.row.project_id.as_str(), None);
    require_read(caller, owner, "group:get_group_snapshot", "GroupSnapshot", id)?;
    Ok(stored)
}

impl Control {
    /// What a group snapshot is doing.
    pub fn volume_group_snapshot_status(&self, snapshot: &GroupSnapshot) -> Status {
        let cache = self.db.cache();
        let parts = snapshot.snapshot_ids.iter();
        follows(snapshot.status, parts.filter_map(|id| cache.get::<Snapshot>(id).map(|one| one.row.status)))
    }

    /// The group snapshots that the caller may see.
    ///
    /// # Errors
    /// `Forbidden`.
    pub async fn volume_group_snapshots(
        &self,
        caller: &Caller,
        all: bool,
    ) -> Result<Vec<Arc<Stored<GroupSnapshot>>>> {
        require_list(caller, "group:get_all_group_snapshots")?;
        self.db.caught_up().await?;
        let every = all && caller.is_admin();
        let project = caller.project_id();
        Ok(self.db.cache().filter::<GroupSnapshot>(|one| every || project == Some(one.project_id.as_str())))
    }

    /// One group snapshot.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn volume_group_snapshot(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<Arc<Stored<GroupSnapshot>>> {
        self.db.caught_up().await?;
        find(self.db.cache(), caller, id)
    }

    /// Snapshots all volumes of a group.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `QuotaExceeded`; `Invalid` for an empty group.
    pub async fn volume_group_snapshot_create(
        &self,
        caller: &Caller,
        group_id: &str,
        name: Option<String>,
        description: Option<String>,
    ) -> Result<Arc<Stored<GroupSnapshot>>> {
        check_text("name", name.as_ref())?;
        check_text("description", description.as_ref())?;
        self.db.caught_up().await?;
        let id = random_uuid();
        let ids: Vec<String> = (0..VOLUMES_MAX).map(|_| random_uuid()).collect();
        self.db
            .transact(|cache| {
                let group = find_own(cache, caller, group_id, "group:create_group_snapshot")?;
                if group.row.volume_ids.is_empty() {
                    return Err(invalid_group("The group is empty: no group snapshot will be created."));
                }
                let mut txn = Txn::new().require(&*group);
                let mut snapshot_ids = Vec::new();
                for (volume_id, snapshot_id) in group.row.volume_ids.iter().zip(&ids) {
                    let volume =
                        super::find_for_change(cache, caller, volume_id, "group:create_group_snapshot")?;
                    let new = NewSnapshot {
                        volume_id: volume_id.clone(),
                        name: name.clone(),
                        description: description.clone(),
                        force: true,
                        group_snapshot_id: Some(id.clone()),
                        ..NewSnapshot::default()
                    };
                    let mut row = volume.row.clone();
                    txn = snapshot::prepare(cache, txn, caller, &new, &mut row, snapshot_id)?
                        .update(&volume, &row);
                    snapshot_ids.push(snapshot_id.clone());
                }
                let row = GroupSnapshot {
                    id: id.clone(),
                    project_id: group.row.project_id.clone(),
                    name: name.clone(),
                    description: description.clone(),
                    group_id: group_id.to_owned(),
                    group_type_id: group.row.group_type_id.clone(),
                    snapshot_ids,
                    status: Status::Available,
                    created_at: Timestamp::now(),
                };
                Ok(txn.create(&row))
            })
            .await?;
        self.stored(&id, "GroupSnapshot")
    }

    /// Deletes a group snapshot with its snapshots.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn volume_group_snapshot_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find(cache, caller, id)?;
                let project = &stored.row.project_id;
                require_write(caller, project, "group:delete_group_snapshot", "GroupSnapshot", id)?;
                let left = stored.row.snapshot_ids.iter().filter_map(|id| cache.get::<Snapshot>(id));
                let left: Vec<_> = left.collect();
                if left.is_empty() {
                    return Ok(Txn::new().delete(&stored));
                }
                let row = GroupSnapshot { status: Status::Deleting, ..stored.row.clone() };
                let txn = Txn::new().update(&stored, &row);
                left.iter().try_fold(txn, |txn, one| snapshot::want_gone(cache, txn, one, &caller.request_id))
            })
            .await
    }

    /// Sets a group snapshot's state by hand.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`.
    pub async fn volume_group_snapshot_reset(&self, caller: &Caller, id: &str, status: Status) -> Result<()> {
        require_admin(caller, "group:reset_group_snapshot_status")?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find(cache, caller, id)?;
                Ok(Txn::new().update(&stored, &GroupSnapshot { status, ..stored.row.clone() }))
            })
            .await
    }
}

/// A snapshot leaves its group snapshot because it is gone; the last one takes that with it.
pub(crate) fn left(cache: &Cache, txn: Txn, group_snapshot_id: &str, snapshot_id: &str) -> Txn {
    let Some(stored) = cache.get::<GroupSnapshot>(group_snapshot_id) else { return txn };
    let mut row = stored.row.clone();
    row.snapshot_ids.retain(|id| id != snapshot_id);
    if row.snapshot_ids.is_empty() {
        return txn.delete(&stored);
    }
    txn.update(&stored, &row)
}
