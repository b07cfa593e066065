//! The block storage service: volumes, snapshots and all that is made of them. Everything here writes down what is wanted
//! and returns; a host's agent brings it about, and its report ends it ([`work`]).

pub mod attachment;
pub mod backup;
pub mod change;
pub mod create;
pub mod encryption;
pub mod group;
mod group_snapshot;
pub mod group_type;
pub mod kind;
pub mod manage;
pub mod message;
pub mod place;
pub mod qos;
pub mod relocate;
pub mod remove;
pub mod service;
pub mod snapshot;
pub mod transfer;
pub(crate) mod work;

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::volume::{Status, Volume, VolumeAttachment};
use crate::policy::{require_list, require_read, require_write};
use crate::store::{Cache, Stored, Txn};

pub use create::NewVolume;

/// The longest name, property key and property value in characters.
pub const TEXT_CHARS_MAX: usize = 255;
/// The most properties of one volume or snapshot, so that a row stays far below the store's limit.
pub const PROPERTIES_MAX: usize = 128;
/// The largest volume in GiB: what an overlay can be.
pub const SIZE_GIB_MAX: u64 = storage::format::overlay::SIZE_BYTES_MAX >> 30;
/// The most attachments of one volume.
pub const ATTACHMENTS_MAX: usize = 32;

/// The volume if the caller may see it.
pub(crate) fn find(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<Volume>>> {
    let stored = cache.get::<Volume>(id).ok_or_else(|| Error::not_found("Volume", id))?;
    let owner = (stored.row.project_id.as_str(), Some(stored.row.user_id.as_str()));
    // Cinder says of no volume that it is there but hidden.
    require_read(caller, owner, "volume:get", "Volume", id).map_err(|_| Error::not_found("Volume", id))?;
    Ok(stored)
}

/// The volume if the caller may change it.
pub(crate) fn find_for_change(
    cache: &Cache,
    caller: &Caller,
    id: &str,
    action: &'static str,
) -> Result<Arc<Stored<Volume>>> {
    let stored = find(cache, caller, id)?;
    require_write(caller, &stored.row.project_id, action, "Volume", id)?;
    Ok(stored)
}

/// The volume's state does not allow it, as Cinder says so.
pub(crate) fn invalid_volume(message: impl std::fmt::Display) -> Error {
    Error::invalid("InvalidVolume", format!("Invalid volume: {message}"))
}

/// Refuses unless the volume is in one of these states.
pub(crate) fn require_status(volume: &Volume, allowed: &[Status], what: &str) -> Result<()> {
    if allowed.contains(&volume.status) {
        return Ok(());
    }
    let names: Vec<&str> = allowed.iter().map(|status| status.name()).collect();
    Err(invalid_volume(format!(
        "Volume {} status must be {} to {what}, but current status is: {}.",
        volume.id,
        names.join(" or "),
        volume.status.name()
    )))
}

/// Names, and other short text.
pub(crate) fn check_text(what: &str, text: Option<&String>) -> Result<()> {
    match text {
        Some(text) if text.chars().count() > TEXT_CHARS_MAX => Err(invalid_input(format!(
            "Invalid input for field/attribute {what}. Value is too long: it has at most {TEXT_CHARS_MAX} characters."
        ))),
        _ => Ok(()),
    }
}

/// Properties: keys of 1 to 255 characters, values of at most 255.
pub(crate) fn check_properties(properties: &BTreeMap<String, String>) -> Result<()> {
    if properties.len() > PROPERTIES_MAX {
        return Err(invalid_input(format!("At most {PROPERTIES_MAX} properties are allowed.")));
    }
    for (key, value) in properties {
        if key.is_empty() || key.chars().count() > TEXT_CHARS_MAX {
            return Err(invalid_input(format!(
                "Invalid input for field/attribute metadata: a key has 1 to {TEXT_CHARS_MAX} characters."
            )));
        }
        check_text("metadata", Some(value))?;
    }
    Ok(())
}

/// What is wrong with a request's words.
pub(crate) fn invalid_input(message: impl Into<String>) -> Error {
    Error::invalid("InvalidInput", message)
}

/// A volume with what is shown of it.
#[derive(Debug, Clone)]
pub struct VolumeView {
    /// The volume.
    pub volume: Arc<Stored<Volume>>,
    /// Its type's name.
    pub type_name: String,
    /// Its attachments.
    pub attachments: Vec<Arc<Stored<VolumeAttachment>>>,
    /// Its bytes lie encrypted.
    pub encrypted: bool,
}

impl Control {
    /// The volumes that the caller may see: its project's, or all.
    ///
    /// # Errors
    /// `Forbidden`.
    pub async fn volumes(&self, caller: &Caller, all: bool) -> Result<Vec<Arc<Stored<Volume>>>> {
        require_list(caller, "volume:get_all")?;
        self.db.caught_up().await?;
        let every = all && caller.is_admin();
        let project = caller.project_id();
        Ok(self.db.cache().filter::<Volume>(|volume| every || project == Some(volume.project_id.as_str())))
    }

    /// One volume.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn volume(&self, caller: &Caller, id: &str) -> Result<VolumeView> {
        self.db.caught_up().await?;
        Ok(self.volume_view(find(self.db.cache(), caller, id)?))
    }

    /// One that was just made, whoever may see it.
    pub(crate) fn volume_made(&self, id: &str) -> Result<VolumeView> {
        self.stored(id, "Volume").map(|stored| self.volume_view(stored))
    }

    /// What is shown of a volume beside its row.
    pub fn volume_view(&self, volume: Arc<Stored<Volume>>) -> VolumeView {
        let cache = self.db.cache();
        let attachments =
            volume.row.attachments.iter().filter_map(|id| cache.get::<VolumeAttachment>(id)).collect();
        let of_type = cache.get::<crate::model::volume::VolumeType>(&volume.row.type_id);
        VolumeView {
            type_name: of_type.map(|found| found.row.name.clone()).unwrap_or_default(),
            encrypted: volume.row.encryption.is_some(),
            attachments,
            volume,
        }
    }

    /// Changes a volume that the caller may change; `change` decides from the row as it is.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, and what `change` says.
    pub(crate) async fn volume_change(
        &self,
        caller: &Caller,
        id: &str,
        action: &'static str,
        change: impl Fn(&Cache, &mut Volume) -> Result<Txn>,
    ) -> Result<VolumeView> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find_for_change(cache, caller, id, action)?;
                let mut volume = stored.row.clone();
                let txn = change(cache, &mut volume)?;
                if volume == stored.row {
                    return Ok(txn);
                }
                volume.updated_at = Some(jiff::Timestamp::now());
                Ok(txn.update(&stored, &volume))
            })
            .await?;
        self.db.caught_up().await?;
        Ok(self.volume_view(find(self.db.cache(), caller, id)?))
    }
}
