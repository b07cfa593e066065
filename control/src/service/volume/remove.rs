//! The end of a volume: first it is wanted gone, then, once its host has nothing of it, its row and its quota go.

use super::work::want;
use super::{find_for_change, group, invalid_volume, snapshot};
use crate::Control;
use crate::agent::protocol::DiskShape;
use crate::caller::Caller;
use crate::error::Result;
use crate::model::volume::{DiskTask, DiskWork, Snapshot, Status, Volume};
use crate::policy::require_admin;
use crate::service::quota::{Resource, charge_of_type};
use crate::store::{Cache, Stored, Txn};

/// In which states a volume may be deleted without force.
const DELETABLE: [Status; 6] = [
    Status::Available,
    Status::Error,
    Status::ErrorRestoring,
    Status::ErrorExtending,
    Status::ErrorManaging,
    Status::ErrorDeleting,
];

impl Control {
    /// Deletes a volume; with `cascade` its snapshots too; with `force`, an administrator's privilege, in whatever state.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` for one that is in use, in a group, offered or has snapshots.
    pub async fn volume_delete(&self, caller: &Caller, id: &str, cascade: bool, force: bool) -> Result<()> {
        if force {
            require_admin(caller, "volume_extension:volume_admin_actions:force_delete")?;
        }
        self.db.caught_up().await?;
        if cascade {
            let stored = find_for_change(self.db.cache(), caller, id, "volume:delete")?;
            check(&stored.row, force, true)?;
            for snapshot in self.db.cache().filter::<Snapshot>(|snapshot| snapshot.volume_id == id) {
                self.db
                    .transact(|cache| match cache.get::<Snapshot>(&snapshot.row.id) {
                        Some(stored) => snapshot::want_gone(cache, Txn::new(), &stored, &caller.request_id),
                        None => Ok(Txn::new()),
                    })
                    .await?;
            }
        }
        self.db
            .transact(|cache| {
                let stored = find_for_change(cache, caller, id, "volume:delete")?;
                check(&stored.row, force, cascade)?;
                Ok(want_gone(cache, Txn::new(), &stored, &caller.request_id))
            })
            .await
    }
}

impl Control {
    /// Deletes those of these volumes that are there and that nobody has: what came into being with a server that could
    /// not be made.
    pub(crate) async fn volumes_want_gone(&self, caller: &Caller, ids: &[String]) -> Result<()> {
        for id in ids {
            self.db
                .transact(|cache| match cache.get::<Volume>(id) {
                    Some(stored)
                        if stored.row.attachments.is_empty() && stored.row.status != Status::Deleting =>
                    {
                        Ok(want_gone(cache, Txn::new(), &stored, &caller.request_id))
                    }
                    _ => Ok(Txn::new()),
                })
                .await?;
        }
        Ok(())
    }
}

pub(super) fn check(volume: &Volume, force: bool, cascade: bool) -> Result<()> {
    let deletable = force || DELETABLE.contains(&volume.status);
    let free = volume.attachments.is_empty() && volume.group_id.is_none();
    if deletable && free && (cascade || volume.snapshots == 0) {
        return Ok(());
    }
    Err(invalid_volume(
        "Volume status must be available or error or error_restoring or error_extending or error_managing and must \
         not be migrating, attached, belong to a group, have snapshots, awaiting a transfer, or be disassociated from \
         snapshots after volume transfer.",
    ))
}

/// Has the volume's host delete its disk; one that no host has, or has heard of, is gone at once.
pub(crate) fn want_gone(cache: &Cache, txn: Txn, stored: &Stored<Volume>, request_id: &str) -> Txn {
    let Some(host) = host_that_knows(&stored.row) else { return removal(cache, txn, stored) };
    let volume = Volume { status: Status::Deleting, ..stored.row.clone() };
    let txn = recoding_ends(cache, txn.update(stored, &volume), &host, &volume.id, request_id);
    let task = DiskTask::DeleteVolume { volume: volume.id.clone() };
    want(cache, txn, request_id, (&host, volume.disk()), DiskShape::Deleted, task)
}

/// A disk that should have taken a volume's place is not wanted any more.
fn recoding_ends(cache: &Cache, txn: Txn, host: &str, id: &str, request_id: &str) -> Txn {
    let of_volume = |work: &DiskWork| matches!(&work.task, DiskTask::Recode { volume, .. } if volume == id);
    match cache.find(of_volume).as_ref().and_then(|work| work.row.id.split_once('/')) {
        Some((_, disk)) => want(cache, txn, request_id, (host, disk), DiskShape::Deleted, DiskTask::Clear),
        None => txn,
    }
}

/// The host that has something of a volume, or may have.
pub(crate) fn host_that_knows(volume: &Volume) -> Option<String> {
    volume.host.clone().filter(|_| volume.waits_for.is_none())
}

/// The row goes with all that belongs to it.
pub(crate) fn removal(cache: &Cache, txn: Txn, stored: &Stored<Volume>) -> Txn {
    let txn = row_removal(txn, stored);
    match &stored.row.group_id {
        Some(group_id) => group::left(cache, txn, group_id, &stored.row.id),
        None => txn,
    }
}

/// As [`removal`], where its group is seen to.
pub(crate) fn row_removal(txn: Txn, stored: &Stored<Volume>) -> Txn {
    let volume = &stored.row;
    let txn = txn.delete(stored);
    let gib = i64::try_from(volume.size_gib).unwrap_or(i64::MAX);
    let charges = [(Resource::Volumes, -1), (Resource::VolumeGib, -gib)];
    charge_of_type(txn, &volume.project_id, &volume.type_id, &charges)
}
