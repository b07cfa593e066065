//! What hosts have to do about disks: a wish is a row, and the host's report about it changes what it was for in the
//! transaction that takes the wish away. So a crash between the two repeats the report, and nothing is done twice.

use std::collections::BTreeSet;

use jiff::Timestamp;

use super::message::tell;
use super::{relocate, remove, snapshot};
use crate::Control;
use crate::agent::protocol::{DiskObserved, DiskShape};
use crate::error::Result;
use crate::model::compute::{ActionRecord, Server};
use crate::model::image::{Image, ImageStatus};
use crate::model::volume::{
    AttachStatus, Backup, DiskEncryption, DiskTask, DiskWork, Snapshot, Status, Volume, VolumeAttachment,
    VolumeType,
};
use crate::service::image_data::deletion;
use crate::service::quota::{Resource, charge_of_type};
use crate::service::server::image::{brought_out, root_uploaded};
use crate::service::server::lifecycle::record;
use crate::store::{Cache, Stored, Txn};

/// Wants `shape` of a host's disk; an older wish about the same disk is over, and whoever waited for it waits no more.
pub(crate) fn want(
    cache: &Cache,
    txn: Txn,
    request_id: &str,
    (host, disk): (&str, &str),
    shape: DiskShape,
    task: DiskTask,
) -> Txn {
    let id = format!("{host}/{disk}");
    let now = u64::try_from(Timestamp::now().as_microsecond()).unwrap_or_default();
    let older = cache.get::<DiskWork>(&id);
    let generation = older.as_ref().map_or(now, |older| now.max(older.row.generation + 1));
    let work = DiskWork { id, generation, shape, task, request_id: request_id.to_owned() };
    match older {
        Some(older) => let_go(cache, txn.update(&older, &work), &older.row.task),
        None => txn.create(&work),
    }
}

/// What a wish that nobody reports on any more held beside the rows that the newer one is about: a backup that was being
/// restored, the quota of what a volume should have grown by.
fn let_go(cache: &Cache, txn: Txn, task: &DiskTask) -> Txn {
    let done = Done { cache, request_id: "", fault: None };
    match task {
        DiskTask::CreateVolume { volume } => match cache.get::<Volume>(volume) {
            Some(volume) => done.backup_free_of(txn, &volume.row),
            None => txn,
        },
        DiskTask::Restore { backup, .. } => done.backup_free(txn, backup),
        DiskTask::Revert { snapshot, .. } => done.snapshot_free(txn, snapshot, Status::Restoring),
        DiskTask::Extend { volume, size_gib } => match cache.get::<Volume>(volume) {
            Some(volume) => not_extended(txn, &volume.row, *size_gib),
            None => txn,
        },
        DiskTask::CreateBackup { backup } => match cache.get::<Backup>(backup) {
            Some(backup) => done.source_free(txn, &backup.row),
            None => txn,
        },
        DiskTask::Move { volume, type_id: Some(type_id), .. } | DiskTask::Recode { volume, type_id, .. } => {
            match cache.get::<Volume>(volume) {
                Some(volume) => relocate::of_type(txn, &volume.row, type_id, -1),
                None => txn,
            }
        }
        DiskTask::DeleteVolume { .. }
        | DiskTask::CreateSnapshot { .. }
        | DiskTask::DeleteSnapshot { .. }
        | DiskTask::Upload { .. }
        | DiskTask::UploadRoot { .. }
        | DiskTask::Move { type_id: None, .. }
        | DiskTask::Clear
        | DiskTask::DeleteBackup { .. } => txn,
    }
}

/// Gives back what a volume was charged for growing.
fn not_extended(txn: Txn, volume: &Volume, size_gib: u64) -> Txn {
    let back = i64::try_from(size_gib.saturating_sub(volume.size_gib)).unwrap_or(i64::MAX);
    charge_of_type(txn, &volume.project_id, &volume.type_id, &[(Resource::VolumeGib, -back)])
}

/// What is still to be done after a report, outside of its transaction.
enum Next {
    Nothing,
    TakeImage { host: String, work: Box<DiskWork> },
}

impl Control {
    /// Takes in what a host says of a disk.
    pub(crate) async fn disk_observed(
        self: &std::sync::Arc<Self>,
        host: &str,
        report: &DiskObserved,
    ) -> Result<()> {
        let next = self
            .db
            .transact_with(|cache| {
                let work = cache.get::<DiskWork>(&format!("{host}/{}", report.id));
                let Some(work) = work.filter(|work| work.row.generation == report.generation) else {
                    return Ok((Txn::new(), Next::Nothing));
                };
                if work.row.task.image().is_some() && report.fault.is_none() {
                    let next = Next::TakeImage { host: host.to_owned(), work: Box::new(work.row.clone()) };
                    return Ok((brought_out(cache, Txn::new(), &work.row.task), next));
                }
                let txn = Txn::new().delete(&work);
                Ok((finish(cache, txn, &work, report), Next::Nothing))
            })
            .await?;
        if let Next::TakeImage { host, work } = next {
            // A task of its own: an image takes its time, and reports do not wait for it.
            let control = self.clone();
            tokio::spawn(async move { control.disk_image_take(&host, &work).await });
        }
        Ok(())
    }
}

/// What becomes of the rows that a wish was about.
fn finish(cache: &Cache, txn: Txn, work: &Stored<DiskWork>, report: &DiskObserved) -> Txn {
    if let Some(fault) = &report.fault {
        tracing::warn!(disk.id = report.id, fault, "a host could not do what is wanted of a disk");
    }
    let done = Done { cache, request_id: &work.row.request_id, fault: report.fault.as_deref() };
    match &work.row.task {
        DiskTask::CreateVolume { volume } => done.created(txn, volume),
        DiskTask::Extend { volume, size_gib } => done.extended(txn, volume, *size_gib),
        DiskTask::DeleteVolume { volume } => done.deleted(txn, volume),
        DiskTask::Revert { volume, snapshot, encryption } => {
            done.reverted(txn, volume, snapshot, encryption.as_deref())
        }
        DiskTask::Move { volume, backend, type_id } => {
            done.moved(txn, volume, backend, type_id.as_deref(), None)
        }
        // The wish goes, or is the next one about the same disk.
        DiskTask::Recode { volume, backend, type_id, encryption } => {
            done.recoded(work, volume, (backend, type_id), encryption.as_deref())
        }
        DiskTask::CreateSnapshot { snapshot } => done.snapshot_made(txn, snapshot),
        DiskTask::DeleteSnapshot { snapshot } => done.snapshot_gone(txn, snapshot),
        DiskTask::Upload { volume, image } => done.uploaded(txn, volume, image),
        DiskTask::UploadRoot { server, image, .. } => {
            root_uploaded(cache, txn, (server, image), &work.row.request_id, report.fault.as_deref())
        }
        DiskTask::Clear => txn,
        DiskTask::CreateBackup { backup } => done.backup_made(txn, backup, report.bytes),
        DiskTask::Restore { backup, volume, encryption } => {
            done.restored(txn, backup, volume, encryption.as_deref())
        }
        DiskTask::DeleteBackup { backup } => done.backup_gone(txn, backup),
    }
}

/// The end of an upload, whose data control has taken, or could not take.
pub(crate) fn upload_ended(cache: &Cache, work: &Stored<DiskWork>, host: &str, fault: Option<&str>) -> Txn {
    let request_id = &work.row.request_id;
    let (txn, image) = match &work.row.task {
        DiskTask::Upload { volume, image } => {
            (Done { cache, request_id, fault }.uploaded(Txn::new(), volume, image), image)
        }
        DiskTask::UploadRoot { server, image, .. } => {
            (root_uploaded(cache, Txn::new(), (server, image), request_id, fault), image)
        }
        _ => return Txn::new(),
    };
    want(cache, txn, request_id, (host, image), DiskShape::OutgoingDeleted, DiskTask::Clear)
}

struct Done<'a> {
    cache: &'a Cache,
    request_id: &'a str,
    fault: Option<&'a str>,
}

impl Done<'_> {
    fn volume(&self, txn: Txn, id: &str, change: impl FnOnce(&mut Volume)) -> Txn {
        let Some(stored) = self.cache.get::<Volume>(id) else { return txn };
        let mut volume = stored.row.clone();
        change(&mut volume);
        volume.updated_at = Some(Timestamp::now());
        txn.update(&stored, &volume)
    }

    fn tell(&self, txn: Txn, kind: &str, id: &str, project_id: &str, event: &str) -> Txn {
        match self.fault {
            Some(fault) => tell(txn, project_id, self.request_id, (kind, id), event, fault),
            None => txn,
        }
    }

    fn tell_of_volume(&self, txn: Txn, id: &str, event: &str) -> Txn {
        match self.cache.get::<Volume>(id) {
            Some(volume) => self.tell(txn, "VOLUME", id, &volume.row.project_id, event),
            None => txn,
        }
    }

    /// A volume is there: free, or whoever waited for it has it.
    fn created(&self, mut txn: Txn, id: &str) -> Txn {
        let Some(stored) = self.cache.get::<Volume>(id) else { return txn };
        let made = self.fault.is_none();
        if made {
            for attachment in
                stored.row.attachments.iter().filter_map(|id| self.cache.get::<VolumeAttachment>(id))
            {
                let row = VolumeAttachment {
                    status: AttachStatus::Attached,
                    attached_at: Some(Timestamp::now()),
                    ..attachment.row.clone()
                };
                txn = txn.update(&attachment, &row);
            }
        }
        let status = match made {
            false => Status::Error,
            true if stored.row.attachments.is_empty() => Status::Available,
            true => Status::InUse,
        };
        txn = self.backup_free_of(txn, &stored.row);
        let txn = self.volume(txn, id, |volume| volume.status = status);
        self.tell_of_volume(txn, id, "VOLUME_VOLUME_001_002")
    }

    fn extended(&self, txn: Txn, id: &str, size_gib: u64) -> Txn {
        let Some(stored) = self.cache.get::<Volume>(id) else { return txn };
        if self.fault.is_none() {
            let txn = self.server_told(txn, &stored.row);
            return self.volume(txn, id, |volume| {
                volume.size_gib = size_gib;
                volume.status = volume.previous_status.take().unwrap_or(Status::Available);
            });
        }
        let txn = not_extended(txn, &stored.row, size_gib);
        let txn = self.volume(txn, id, |volume| volume.status = Status::ErrorExtending);
        self.tell_of_volume(txn, id, "VOLUME_VOLUME_006_002")
    }

    /// Servers that have a volume are told that it has grown, as Cinder tells Nova.
    fn server_told(&self, txn: Txn, volume: &Volume) -> Txn {
        let attachments = volume.attachments.iter().filter_map(|id| self.cache.get::<VolumeAttachment>(id));
        // One that has it twice is told once.
        let servers: BTreeSet<String> =
            attachments.filter_map(|attachment| attachment.row.server_id.clone()).collect();
        let servers = servers.iter().filter_map(|id| self.cache.get::<Server>(id));
        servers.fold(txn, |txn, stored| {
            let now = Timestamp::now();
            let mut server = stored.row.clone();
            let action = ActionRecord {
                action: "extend_volume".to_owned(),
                request_id: self.request_id.to_owned(),
                user_id: volume.user_id.clone(),
                project_id: volume.project_id.clone(),
                started_at: now,
                message: None,
                finished_at: Some(now),
            };
            record(&mut server, action);
            txn.update(&stored, &server)
        })
    }

    fn deleted(&self, txn: Txn, id: &str) -> Txn {
        let Some(stored) = self.cache.get::<Volume>(id) else { return txn };
        if self.fault.is_none() {
            return remove::removal(self.cache, txn, &stored);
        }
        let txn = self.volume(txn, id, |volume| volume.status = Status::ErrorDeleting);
        self.tell_of_volume(txn, id, "VOLUME_VOLUME_004_003")
    }

    /// The volume's disk is the snapshot's, with its key, or what it was.
    fn reverted(&self, txn: Txn, id: &str, snapshot_id: &str, encryption: Option<&DiskEncryption>) -> Txn {
        let status = if self.fault.is_none() { Status::Available } else { Status::Error };
        let txn = self.volume(txn, id, |volume| {
            if self.fault.is_none() {
                volume.encryption = encryption.cloned();
            }
            volume.previous_status = None;
            volume.status = status;
        });
        let txn = self.snapshot_free(txn, snapshot_id, Status::Restoring);
        self.tell_of_volume(txn, id, "VOLUME_VOLUME_017_002")
    }

    /// A volume has another disk, and the one that it had goes; or it has that still, and of the other one nothing is left.
    /// Whoever has done something else with the volume meanwhile has done it with the disk that it had.
    fn recoded(
        &self,
        work: &Stored<DiskWork>,
        id: &str,
        (backend, type_id): (&str, &str),
        encryption: Option<&DiskEncryption>,
    ) -> Txn {
        let (host, disk) = work.row.id.split_once('/').unwrap_or_default();
        let volume = self.cache.get::<Volume>(id).filter(|volume| volume.row.status == Status::Retyping);
        let clear = |txn, disk| {
            want(self.cache, txn, self.request_id, (host, disk), DiskShape::Deleted, DiskTask::Clear)
        };
        match volume {
            None if self.fault.is_none() => clear(Txn::new(), disk),
            None => let_go(self.cache, Txn::new().delete(work), &work.row.task),
            Some(volume) => {
                let txn = Txn::new().delete(work);
                let txn = if self.fault.is_none() { clear(txn, volume.row.disk()) } else { txn };
                self.moved(txn, id, backend, Some(type_id), Some((disk, encryption)))
            }
        }
    }

    /// A volume is in another backend, and perhaps of another type and another disk; or it is where and what it was.
    fn moved(
        &self,
        txn: Txn,
        id: &str,
        backend: &str,
        type_id: Option<&str>,
        disk: Option<(&str, Option<&DiskEncryption>)>,
    ) -> Txn {
        let Some(stored) = self.cache.get::<Volume>(id) else { return txn };
        let moved = self.fault.is_none();
        let txn = match type_id {
            Some(new) => {
                let old = stored.row.type_id.as_str();
                relocate::of_type(txn, &stored.row, if moved { old } else { new }, -1)
            }
            None => txn,
        };
        let multiattach = type_id
            .and_then(|id| self.cache.get::<VolumeType>(id))
            .map(|kind| super::kind::is_multiattach(&kind.row));
        let txn = self.volume(txn, id, |volume| {
            volume.status = volume.previous_status.take().unwrap_or(Status::Available);
            volume.migration_status = Some(if moved { "success" } else { "error" }.to_owned());
            if moved {
                volume.backend = Some(backend.to_owned());
                volume.type_id = type_id.unwrap_or(&volume.type_id).to_owned();
                volume.multiattach = multiattach.unwrap_or(volume.multiattach);
                if let Some((disk, encryption)) = disk {
                    volume.disk_id = Some(disk.to_owned());
                    volume.encryption = encryption.cloned();
                }
            }
        });
        self.tell_of_volume(txn, id, "VOLUME_VOLUME_012_003")
    }

    fn snapshot_made(&self, txn: Txn, id: &str) -> Txn {
        let Some(stored) = self.cache.get::<Snapshot>(id) else { return txn };
        let status = if self.fault.is_none() { Status::Available } else { Status::Error };
        let row = Snapshot { status, updated_at: Some(Timestamp::now()), ..stored.row.clone() };
        let txn = txn.update(&stored, &row);
        self.tell(txn, "VOLUME_SNAPSHOT", id, &row.project_id, "VOLUME_VOLUME_SNAPSHOT_015_001")
    }

    fn snapshot_gone(&self, txn: Txn, id: &str) -> Txn {
        let Some(stored) = self.cache.get::<Snapshot>(id) else { return txn };
        if self.fault.is_none() {
            return snapshot::removal(self.cache, txn, &stored);
        }
        let row = Snapshot { status: Status::ErrorDeleting, ..stored.row.clone() };
        let txn = txn.update(&stored, &row);
        self.tell(txn, "VOLUME_SNAPSHOT", id, &row.project_id, "VOLUME_VOLUME_SNAPSHOT_010_003")
    }

    fn backup(&self, txn: Txn, id: &str, change: impl FnOnce(&mut Backup)) -> Txn {
        let Some(stored) = self.cache.get::<Backup>(id) else { return txn };
        let mut backup = stored.row.clone();
        change(&mut backup);
        backup.updated_at = Some(Timestamp::now());
        txn.update(&stored, &backup)
    }

    /// A backup that a volume was made of is free again.
    fn backup_free(&self, txn: Txn, id: &str) -> Txn {
        match self.cache.get::<Backup>(id) {
            Some(stored) if stored.row.status == Status::Restoring => {
                self.backup(txn, id, |backup| backup.status = Status::Available)
            }
            _ => txn,
        }
    }

    /// As [`Done::backup_free`], of the backup that a volume begins as.
    fn backup_free_of(&self, txn: Txn, volume: &Volume) -> Txn {
        match &volume.backup_id {
            // Only while it is made: the backup may serve another since.
            Some(backup) if matches!(volume.status, Status::Creating | Status::RestoringBackup) => {
                self.backup_free(txn, backup)
            }
            _ => txn,
        }
    }

    /// A snapshot that served somebody is free again, unless something else has become of it.
    fn snapshot_free(&self, txn: Txn, id: &str, from: Status) -> Txn {
        match self.cache.get::<Snapshot>(id) {
            Some(stored) if stored.row.status == from => {
                let row = Snapshot { status: Status::Available, ..stored.row.clone() };
                txn.update(&stored, &row)
            }
            _ => txn,
        }
    }

    /// What was backed up is free again.
    fn source_free(&self, txn: Txn, backup: &Backup) -> Txn {
        if let Some(snapshot) = &backup.snapshot_id {
            return self.snapshot_free(txn, snapshot, Status::BackingUp);
        }
        match self.cache.get::<Volume>(&backup.volume_id) {
            Some(stored) if stored.row.status == Status::BackingUp => {
                self.volume(txn, &backup.volume_id, |volume| {
                    volume.status = volume.previous_status.take().unwrap_or(Status::Available);
                })
            }
            _ => txn,
        }
    }

    fn backup_made(&self, txn: Txn, id: &str, bytes: Option<u64>) -> Txn {
        let Some(stored) = self.cache.get::<Backup>(id) else { return txn };
        let fault = self.fault.map(|fault| fault.chars().take(super::TEXT_CHARS_MAX).collect());
        let txn = self.backup(txn, id, |backup| {
            backup.status = if fault.is_some() { Status::Error } else { Status::Available };
            backup.fail_reason = fault;
            backup.bytes = bytes.unwrap_or(0);
        });
        let txn = self.tell(txn, "VOLUME_BACKUP", id, &stored.row.project_id, "VOLUME_VOLUME_BACKUP_013_001");
        self.source_free(txn, &stored.row)
    }

    /// The volume's disk is what the backup keeps, with its key, or what it was.
    fn restored(&self, txn: Txn, backup: &str, volume: &str, encryption: Option<&DiskEncryption>) -> Txn {
        let status = if self.fault.is_none() { Status::Available } else { Status::ErrorRestoring };
        let txn = self.volume(txn, volume, |volume| {
            volume.status = status;
            if self.fault.is_none() {
                volume.encryption = encryption.cloned();
            }
        });
        let txn = self.backup_free(txn, backup);
        self.tell_of_volume(txn, volume, "VOLUME_VOLUME_BACKUP_014_001")
    }

    fn backup_gone(&self, txn: Txn, id: &str) -> Txn {
        let Some(stored) = self.cache.get::<Backup>(id) else { return txn };
        if self.fault.is_none() {
            return super::backup::removal(self.cache, txn, &stored);
        }
        self.backup(txn, id, |backup| backup.status = Status::ErrorDeleting)
    }

    /// A volume has become an image; or it has not, and of the image nothing is left.
    fn uploaded(&self, mut txn: Txn, id: &str, image: &str) -> Txn {
        if self.cache.get::<Volume>(id).is_some_and(|volume| volume.row.status == Status::Uploading) {
            txn = self.volume(txn, id, |volume| {
                volume.status = volume.previous_status.take().unwrap_or(Status::Available);
            });
        }
        if self.fault.is_none() {
            return txn;
        }
        if let Some(image) = self.cache.get::<Image>(image)
            && image.row.status == ImageStatus::Queued
        {
            txn = txn.and(deletion(self.cache, &image));
        }
        self.tell_of_volume(txn, id, "VOLUME_VOLUME_003_004")
    }
}
