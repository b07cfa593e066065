//! Attachments: which server has a volume. Two ways lead here: the attachments API (microversion 3.27 and later), by which
//! whoever connects says so itself, and servers, whose row and the volume's change in one transaction.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;
use serde_json::Value;

use super::{ATTACHMENTS_MAX, find_for_change, invalid_volume};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::Server;
use crate::model::random_uuid;
use crate::model::volume::{AttachStatus, Status, Volume, VolumeAttachment};
use crate::policy::require_write;
use crate::store::{Cache, Stored, Txn};

/// The most bytes of a connector as JSON, so that a row stays far below the store's limit.
const CONNECTOR_BYTES_MAX: usize = 16 << 10;

/// What a new attachment shall be.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NewAttachment {
    /// The volume.
    pub volume_id: String,
    /// The server.
    pub server_id: Option<String>,
    /// What whoever connects says of itself; without it the volume is only promised.
    pub connector: Option<BTreeMap<String, Value>>,
    /// `rw` or `ro`.
    pub mode: Option<String>,
}

fn find(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<VolumeAttachment>>> {
    let stored = cache.get::<VolumeAttachment>(id).filter(|stored| caller.may_read(&stored.row.project_id));
    stored.ok_or_else(|| Error::not_found("Volume attachment", id))
}

/// Adds an attachment to a volume's row; the attachment's own row is the caller's to create.
pub(crate) fn attach(
    volume: &mut Volume,
    server_id: Option<&str>,
    status: AttachStatus,
) -> Result<VolumeAttachment> {
    let free = match volume.status {
        Status::Available => true,
        Status::Creating | Status::Downloading => status == AttachStatus::Reserved,
        Status::InUse | Status::Reserved | Status::Attaching => volume.multiattach,
        _ => false,
    };
    if !free || (!volume.multiattach && !volume.attachments.is_empty()) {
        return Err(invalid_volume(format!(
            "Volume {} status must be available or downloading to reserve, but the current status is {}.",
            volume.id,
            volume.status.name()
        )));
    }
    if volume.attachments.len() >= ATTACHMENTS_MAX {
        return Err(invalid_volume(format!("a volume has at most {ATTACHMENTS_MAX} attachments.")));
    }
    let id = random_uuid();
    volume.attachments.push(id.clone());
    if !matches!(volume.status, Status::Creating | Status::Downloading | Status::InUse) {
        volume.status = match status {
            AttachStatus::Attached => Status::InUse,
            AttachStatus::Attaching => Status::Attaching,
            _ => Status::Reserved,
        };
    }
    if status == AttachStatus::Attached && !matches!(volume.status, Status::Creating | Status::Downloading) {
        volume.status = Status::InUse;
    }
    let now = Timestamp::now();
    volume.updated_at = Some(now);
    Ok(VolumeAttachment {
        id,
        volume_id: volume.id.clone(),
        project_id: volume.project_id.clone(),
        server_id: server_id.map(str::to_owned),
        host: None,
        mountpoint: None,
        mode: if volume.read_only { "ro" } else { "rw" }.to_owned(),
        status,
        connector: BTreeMap::new(),
        attached_at: (status == AttachStatus::Attached).then_some(now),
        created_at: now,
    })
}

/// Takes an attachment from its volume, in the transaction that takes it from whoever had it.
pub(crate) fn detach(cache: &Cache, txn: Txn, attachment_id: &str, delete: Option<&str>) -> Txn {
    let Some(attachment) = cache.get::<VolumeAttachment>(attachment_id) else { return txn };
    let txn = txn.delete(&attachment);
    let Some(stored) = cache.get::<Volume>(&attachment.row.volume_id) else { return txn };
    let mut volume = stored.row.clone();
    volume.attachments.retain(|id| id != attachment_id);
    settle(cache, &mut volume, attachment.row.status);
    volume.updated_at = Some(Timestamp::now());
    let changed = Stored { row: volume, ..(*stored).clone() };
    match delete {
        // One that does not allow it stays, as with Nova.
        Some(request_id)
            if changed.row.attachments.is_empty()
                && changed.row.snapshots == 0
                && matches!(
                    changed.row.status,
                    Status::Available | Status::Error | Status::Creating | Status::Downloading
                ) =>
        {
            super::remove::want_gone(cache, txn, &changed, request_id)
        }
        _ => txn.update(&stored, &changed.row),
    }
}

/// The state that follows from the attachments that are left, once one that was in this state is gone.
fn settle(cache: &Cache, volume: &mut Volume, gone: AttachStatus) {
    let follows = match volume.status {
        Status::InUse | Status::Reserved | Status::Attaching | Status::Detaching => true,
        // Somebody had it, so it has been made, and what was wrong was its use.
        Status::Error => matches!(gone, AttachStatus::Attached | AttachStatus::Attaching),
        _ => false,
    };
    if !follows {
        return;
    }
    let left: Vec<AttachStatus> = volume
        .attachments
        .iter()
        .filter_map(|id| cache.get::<VolumeAttachment>(id).map(|attachment| attachment.row.status))
        .collect();
    volume.status = if left.contains(&AttachStatus::Attached) {
        Status::InUse
    } else if left.contains(&AttachStatus::Attaching) {
        Status::Attaching
    } else if left.is_empty() {
        Status::Available
    } else {
        Status::Reserved
    };
}

impl Control {
    /// The attachments that the caller may see: its project's, or all.
    ///
    /// # Errors
    /// What the store says.
    pub async fn volume_attachments(
        &self,
        caller: &Caller,
        all: bool,
    ) -> Result<Vec<Arc<Stored<VolumeAttachment>>>> {
        self.db.caught_up().await?;
        let every = all && caller.is_admin();
        let project = caller.project_id();
        Ok(self
            .db
            .cache()
            .filter::<VolumeAttachment>(|one| every || project == Some(one.project_id.as_str())))
    }

    /// One attachment.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn volume_attachment(
        &self,
        caller: &Caller,
        id: &str,
    ) -> Result<Arc<Stored<VolumeAttachment>>> {
        self.db.caught_up().await?;
        find(self.db.cache(), caller, id)
    }

    /// Promises a volume to somebody, or with a connector connects it.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` for a volume that another has.
    pub async fn volume_attachment_create(
        &self,
        caller: &Caller,
        new: NewAttachment,
    ) -> Result<Arc<Stored<VolumeAttachment>>> {
        check_connector(new.connector.as_ref())?;
        self.db.caught_up().await?;
        let id = self
            .db
            .transact_with(|cache| {
                let stored = find_for_change(cache, caller, &new.volume_id, "volume:attachment_create")?;
                let connects = new.connector.as_ref().is_some_and(|connector| !connector.is_empty());
                let status = if connects { AttachStatus::Attaching } else { AttachStatus::Reserved };
                prepare(&stored, &new, status)
            })
            .await?;
        self.volume_attachment(caller, &id).await
    }

    /// Connects: whoever does says of itself what it is.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Invalid`.
    pub async fn volume_attachment_update(
        &self,
        caller: &Caller,
        id: &str,
        connector: BTreeMap<String, Value>,
    ) -> Result<Arc<Stored<VolumeAttachment>>> {
        check_connector(Some(&connector))?;
        self.change_attachment(caller, id, |row| {
            connect(row, &connector);
            row.status = AttachStatus::Attaching;
            Ok(())
        })
        .await?;
        self.volume_attachment(caller, id).await
    }

    /// The volume is in its server now (microversion 3.44).
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` before it is connected.
    pub async fn volume_attachment_complete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.change_attachment(caller, id, |row| {
            if !matches!(row.status, AttachStatus::Attaching | AttachStatus::Attached) {
                return Err(invalid_volume("the attachment is not attaching: nobody has connected."));
            }
            row.status = AttachStatus::Attached;
            row.attached_at = Some(row.attached_at.unwrap_or_else(Timestamp::now));
            Ok(())
        })
        .await
    }

    /// Connects and completes at once, as `os-attach` of the older flow does.
    ///
    /// # Errors
    /// As [`Control::volume_attachment_create`]; `Invalid` for writing to a volume that is read-only.
    pub async fn volume_attach(&self, caller: &Caller, new: NewAttachment) -> Result<()> {
        check_connector(new.connector.as_ref())?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find_for_change(cache, caller, &new.volume_id, "volume:attachment_create")?;
                if stored.row.read_only && new.mode.as_deref() == Some("rw") {
                    return Err(invalid_volume("it is read-only and cannot be attached with mode rw."));
                }
                prepare(&stored, &new, AttachStatus::Attached).map(|(txn, _)| txn)
            })
            .await
    }

    async fn change_attachment(
        &self,
        caller: &Caller,
        id: &str,
        change: impl Fn(&mut VolumeAttachment) -> Result<()>,
    ) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find(cache, caller, id)?;
                let project = &stored.row.project_id;
                require_write(caller, project, "volume:attachment_update", "Volume attachment", id)?;
                let mut row = stored.row.clone();
                change(&mut row)?;
                let mut txn = Txn::new().update(&stored, &row);
                if let Some(volume) = cache.get::<Volume>(&row.volume_id) {
                    let mut changed = volume.row.clone();
                    changed.status = match row.status {
                        AttachStatus::Attached => Status::InUse,
                        AttachStatus::Attaching if changed.status != Status::InUse => Status::Attaching,
                        _ => changed.status,
                    };
                    if changed != volume.row {
                        changed.updated_at = Some(Timestamp::now());
                        txn = txn.update(&volume, &changed);
                    }
                }
                Ok(txn)
            })
            .await
    }

    /// Takes an attachment away. One of a server goes through that server.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Conflict` while a server has the volume.
    pub async fn volume_attachment_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find(cache, caller, id)?;
                let project = &stored.row.project_id;
                require_write(caller, project, "volume:attachment_delete", "Volume attachment", id)?;
                if let Some(server) = stored.row.server_id.as_ref().and_then(|id| cache.get::<Server>(id))
                    && server.row.volumes.iter().any(|attached| attached.attachment_id == id)
                {
                    let message =
                        format!("Detach volume from instance {} using the Compute API", server.row.id);
                    return Err(Error::conflict("ConflictNovaUsingAttachment", message));
                }
                Ok(detach(cache, Txn::new(), id, None))
            })
            .await
    }

    /// Forgets the attachments of a volume, or one of them; what `os-detach` and `os-force_detach` do.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Conflict` while a server has the volume.
    pub async fn volume_detach(&self, caller: &Caller, id: &str, attachment: Option<&str>) -> Result<()> {
        self.db.caught_up().await?;
        let stored = find_for_change(self.db.cache(), caller, id, "volume_extension:volume_actions:detach")?;
        for found in stored.row.attachments.iter().filter(|id| attachment.is_none_or(|one| one == *id)) {
            self.volume_attachment_delete(caller, found).await?;
        }
        Ok(())
    }

    /// Moves a volume by hand between the states of the older flow: reserve, unreserve, begin and roll back detaching.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` from another state.
    pub async fn volume_step(&self, caller: &Caller, id: &str, from: &[Status], to: Status) -> Result<()> {
        let action = "volume_extension:volume_actions:reserve";
        let changed = self.volume_change(caller, id, action, |_, volume| {
            super::require_status(volume, from, "do this")?;
            volume.status = to;
            Ok(Txn::new())
        });
        changed.await.map(drop)
    }
}

/// A transaction with a new attachment, and its id.
fn prepare(stored: &Stored<Volume>, new: &NewAttachment, status: AttachStatus) -> Result<(Txn, String)> {
    let mut volume = stored.row.clone();
    let mut row = attach(&mut volume, new.server_id.as_deref(), status)?;
    if let Some(connector) = &new.connector {
        connect(&mut row, connector);
    }
    if let Some(mode) = &new.mode {
        row.mode.clone_from(mode);
    }
    let id = row.id.clone();
    Ok((Txn::new().update(stored, &volume).create(&row), id))
}

fn connect(row: &mut VolumeAttachment, connector: &BTreeMap<String, Value>) {
    let text = |key: &str| connector.get(key).and_then(Value::as_str).map(str::to_owned);
    row.host = text("host").or(row.host.take());
    row.mountpoint = text("mountpoint").or(row.mountpoint.take());
    if let Some(mode) = text("mode") {
        row.mode = mode;
    }
    row.connector.clone_from(connector);
}

fn check_connector(connector: Option<&BTreeMap<String, Value>>) -> Result<()> {
    let bytes =
        connector.and_then(|connector| serde_json::to_vec(connector).ok()).map_or(0, |json| json.len());
    if bytes > CONNECTOR_BYTES_MAX {
        return Err(super::invalid_input(format!("A connector has at most {CONNECTOR_BYTES_MAX} bytes.")));
    }
    Ok(())
}
