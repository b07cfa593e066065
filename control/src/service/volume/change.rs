//! Changing a volume that is there: its description, its size, its type, its state by hand, what it is again, and the
//! image that is made of it.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::encryption;
use super::kind::{self, is_multiattach};
use super::place::backend_name;
use super::work::want;
use super::{
    SIZE_GIB_MAX, VolumeView, check_properties, check_text, find_for_change, invalid_input, invalid_volume,
    relocate, require_status,
};
use crate::Control;
use crate::agent::protocol::DiskShape;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::image::Image;
use crate::model::random_uuid;
use crate::model::volume::{DiskTask, Snapshot, Status, Volume};
use crate::policy::require_admin;
use crate::service::image::{ImageChange, described_image, new_image};
use crate::service::quota::{Resource, charge_of_type};
use crate::store::{Stored, Txn};

/// What to change of a volume's description; `None` leaves it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct VolumeUpdate {
    /// Name; the inner `None` clears it.
    pub name: Option<Option<String>>,
    /// Free text; the inner `None` clears it.
    pub description: Option<Option<String>>,
    /// All properties.
    pub metadata: Option<BTreeMap<String, String>>,
}

/// Which of a volume's properties.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Properties {
    /// The owner's.
    Own,
    /// What it keeps of its image.
    Image,
}

impl Properties {
    fn of(self, volume: &mut Volume) -> &mut BTreeMap<String, String> {
        match self {
            Self::Own => &mut volume.metadata,
            Self::Image => &mut volume.image_metadata,
        }
    }
}

impl Control {
    /// Changes a volume's description.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Invalid`.
    pub async fn volume_update(&self, caller: &Caller, id: &str, update: VolumeUpdate) -> Result<VolumeView> {
        self.volume_change(caller, id, "volume:update", |_, volume| {
            if let Some(name) = &update.name {
                check_text("name", name.as_ref())?;
                volume.name.clone_from(name);
            }
            if let Some(description) = &update.description {
                check_text("description", description.as_ref())?;
                volume.description.clone_from(description);
            }
            if let Some(metadata) = &update.metadata {
                check_properties(metadata)?;
                volume.metadata.clone_from(metadata);
            }
            Ok(Txn::new())
        })
        .await
    }

    /// Adds properties, or with `replace` has no others.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Invalid`.
    pub async fn volume_properties_set(
        &self,
        caller: &Caller,
        id: &str,
        which: Properties,
        set: BTreeMap<String, String>,
        replace: bool,
    ) -> Result<VolumeView> {
        self.volume_change(caller, id, "volume:create_volume_metadata", |_, volume| {
            let properties = which.of(volume);
            if replace {
                properties.clear();
            }
            properties.extend(set.clone());
            check_properties(properties)?;
            Ok(Txn::new())
        })
        .await
    }

    /// Takes a property away.
    ///
    /// # Errors
    /// `NotFound`, also for the property; `Forbidden`.
    pub async fn volume_property_unset(
        &self,
        caller: &Caller,
        id: &str,
        which: Properties,
        key: &str,
    ) -> Result<VolumeView> {
        self.volume_change(caller, id, "volume:delete_volume_metadata", |_, volume| {
            match which.of(volume).remove(key) {
                Some(_) => Ok(Txn::new()),
                None => Err(Error::NotFound { kind: "Metadata item", id: key.to_owned() }),
            }
        })
        .await
    }

    /// Says whether servers can boot from it.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn volume_set_bootable(&self, caller: &Caller, id: &str, bootable: bool) -> Result<()> {
        let action = "volume_extension:volume_actions:set_bootable";
        let changed = self.volume_change(caller, id, action, |_, volume| {
            volume.bootable = bootable;
            Ok(Txn::new())
        });
        changed.await.map(drop)
    }

    /// Says whether guests may write to it; for a server that has it already, from its next start on.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` unless it is available.
    pub async fn volume_set_read_only(&self, caller: &Caller, id: &str, read_only: bool) -> Result<()> {
        let action = "volume:update_readonly_flag";
        let changed = self.volume_change(caller, id, action, |_, volume| {
            require_status(volume, &[Status::Available], "update readonly flag")?;
            volume.read_only = read_only;
            volume.admin_metadata.insert("readonly".to_owned(), python_flag(read_only).to_owned());
            Ok(Txn::new())
        });
        changed.await.map(drop)
    }

    /// Sets the states by hand.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`.
    pub async fn volume_reset(
        &self,
        caller: &Caller,
        id: &str,
        status: Option<Status>,
        detached: bool,
        migration_status: Option<&str>,
    ) -> Result<()> {
        let action = "volume_extension:volume_admin_actions:reset_status";
        require_admin(caller, action)?;
        let changed = self.volume_change(caller, id, action, |_, volume| {
            volume.status = status.unwrap_or(volume.status);
            if detached && !volume.attachments.is_empty() {
                return Err(invalid_volume(
                    "Cannot reset-state to detached while there are attachments: delete these instead.",
                ));
            }
            match migration_status {
                Some("none") => volume.migration_status = None,
                Some(other) => volume.migration_status = Some(other.to_owned()),
                None => {}
            }
            Ok(Txn::new())
        });
        changed.await.map(drop)
    }

    /// Makes a volume larger; `in_use` as well, from microversion 3.42 on.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `QuotaExceeded`; `Invalid` for a size that is not larger, or in another state.
    pub async fn volume_extend(&self, caller: &Caller, id: &str, size_gib: u64, in_use: bool) -> Result<()> {
        let changed = self.volume_change(caller, id, "volume:extend", |cache, volume| {
            let allowed: &[Status] =
                if in_use { &[Status::Available, Status::InUse] } else { &[Status::Available] };
            require_status(volume, allowed, "extend")?;
            if size_gib <= volume.size_gib {
                return Err(invalid_input(format!(
                    "Invalid input received: New size for extend must be greater than current size. (current: {}, \
                     extended: {size_gib}).",
                    volume.size_gib
                )));
            }
            if size_gib > SIZE_GIB_MAX {
                return Err(invalid_input(format!("Invalid input received: a volume has at most {SIZE_GIB_MAX} GiB.")));
            }
            super::create::check_one(cache, &volume.project_id, size_gib)?;
            let host = host_of(volume)?;
            let more = i64::try_from(size_gib - volume.size_gib).unwrap_or(i64::MAX);
            let charges = [(Resource::VolumeGib, more)];
            let txn = charge_of_type(Txn::new(), &volume.project_id, &volume.type_id, &charges);
            volume.previous_status = Some(volume.status);
            volume.status = Status::Extending;
            let shape = DiskShape::Extended { size_bytes: size_gib << 30 };
            let task = DiskTask::Extend { volume: volume.id.clone(), size_gib };
            Ok(want(cache, txn, &caller.request_id, (&host, volume.disk()), shape, task))
        });
        changed.await.map(drop)
    }

    /// Makes a volume what its newest snapshot is.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` for another snapshot or in another state.
    pub async fn volume_revert(&self, caller: &Caller, id: &str, snapshot_id: &str) -> Result<()> {
        let changed = self.volume_change(caller, id, "volume:revert_to_snapshot", |cache, volume| {
            let snapshot = super::snapshot::find(cache, caller, snapshot_id)?;
            let newest = cache
                .filter(|one: &Snapshot| one.volume_id == volume.id)
                .into_iter()
                .max_by_key(|one| one.row.created_at);
            if newest.is_none_or(|newest| newest.row.id != snapshot_id) {
                return Err(Error::invalid(
                    "InvalidSnapshot",
                    format!(
                        "Invalid snapshot: Specified snapshot id {snapshot_id} must be the latest one of volume {id}"
                    ),
                ));
            }
            require_status(volume, &[Status::Available], "revert to a snapshot")?;
            if snapshot.row.status != Status::Available {
                return Err(Error::invalid("InvalidSnapshot", "Invalid snapshot: it is not available."));
            }
            let host = host_of(volume)?;
            volume.previous_status = Some(volume.status);
            volume.status = Status::Reverting;
            let restoring = Snapshot { status: Status::Restoring, ..snapshot.row.clone() };
            let txn = Txn::new().update(&snapshot, &restoring);
            let shape = DiskShape::Reverted { snapshot: snapshot.row.disk().to_owned() };
            let task = DiskTask::Revert {
                volume: volume.id.clone(),
                snapshot: snapshot_id.to_owned(),
                encryption: snapshot.row.encryption.clone().map(Box::new),
            };
            Ok(want(cache, txn, &caller.request_id, (&host, volume.disk()), shape, task))
        });
        changed.await.map(drop)
    }

    /// Gives a volume another type; with `may_move` in another backend, where its own does not have what the type asks for,
    /// and with another disk, where the type says otherwise how that is encrypted.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `QuotaExceeded`; `Invalid` in a state that does not allow it, or for a type that asks
    /// for another backend or disk.
    pub async fn volume_retype(&self, caller: &Caller, id: &str, wished: &str, may_move: bool) -> Result<()> {
        let changed = self.volume_change(caller, id, "volume:retype", |cache, volume| {
            require_status(volume, &[Status::Available, Status::InUse], "retype")?;
            let kind = kind::find(cache, caller, wished).map_err(|_| {
                invalid_input(format!("Invalid input received: Invalid volume_type passed: '{wished}'."))
            })?;
            let kind = &kind.row;
            let recoded = !encryption::fits(volume.encryption.as_ref(), kind.encryption.as_ref());
            if kind.id == volume.type_id && !recoded {
                return Ok(Txn::new());
            }
            let in_use = volume.status == Status::InUse;
            if in_use && is_multiattach(kind) != volume.multiattach {
                return Err(invalid_input(
                    "Invalid input received: Retyping to/from multiattach volume type requires the volume to be available.",
                ));
            }
            let pools = self.volume_pools(cache);
            let backend = backend_name(cache, volume);
            let fits = pools.iter().any(|pool| {
                Some(&pool.host) == volume.host.as_ref()
                    && Some(&pool.backend) == backend.as_ref()
                    && pool.has(&kind.extra_specs)
            });
            if (recoded || !fits) && may_move {
                let txn = if recoded {
                    let own = backend.filter(|_| fits);
                    let encryption = self.volume_encryption(kind)?;
                    relocate::recode(cache, caller, volume, kind, (&pools, own.as_deref()), encryption)?
                } else {
                    relocate::to_type(cache, caller, volume, kind, &pools)?
                };
                return kind::given(cache, txn, kind);
            }
            if recoded || !fits {
                return Err(invalid_volume("no valid host was found for the new type without moving the volume"));
            }
            let gib = i64::try_from(volume.size_gib).unwrap_or(i64::MAX);
            let old = [(Resource::Volumes, -1), (Resource::VolumeGib, -gib)];
            let new = [(Resource::Volumes, 1), (Resource::VolumeGib, gib)];
            let txn = kind::given(cache, Txn::new(), kind)?;
            let txn = charge_of_type(txn, &volume.project_id, &volume.type_id, &old);
            let txn = charge_of_type(txn, &volume.project_id, &kind.id, &new);
            volume.type_id.clone_from(&kind.id);
            volume.multiattach = is_multiattach(kind);
            Ok(txn)
        });
        changed.await.map(drop)
    }

    /// Makes an image of a volume: the image is there at once, its data follows.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` for one that is in use, unless with force.
    pub async fn volume_upload(
        &self,
        caller: &Caller,
        id: &str,
        force: bool,
        described: Vec<ImageChange>,
    ) -> Result<(VolumeView, Arc<Stored<Image>>)> {
        self.db.caught_up().await?;
        let allowed: &[Status] =
            if force { &[Status::Available, Status::InUse] } else { &[Status::Available] };
        let action = "volume_extension:volume_actions:upload_image";
        require_status(&find_for_change(self.db.cache(), caller, id, action)?.row, allowed, "copy to image")?;
        let image = described_image(caller, random_uuid(), described)?;
        let view = self
            .volume_change(caller, id, action, |cache, volume| {
                require_status(volume, allowed, "copy to image")?;
                let host = host_of(volume)?;
                volume.previous_status = Some(volume.status);
                volume.status = Status::Uploading;
                let shape = DiskShape::Outgoing { of: volume.disk().to_owned() };
                let task = DiskTask::Upload { volume: volume.id.clone(), image: image.id.clone() };
                let txn = new_image(cache, Txn::new(), &image)?;
                Ok(want(cache, txn, &caller.request_id, (&host, &image.id), shape, task))
            })
            .await?;
        let image = self.image_stored(&image.id)?;
        Ok((view, image))
    }
}

/// `True` or `False`, as Cinder's database writes them.
pub fn python_flag(flag: bool) -> &'static str {
    if flag { "True" } else { "False" }
}

/// The host that has the volume.
pub(crate) fn host_of(volume: &Volume) -> Result<String> {
    volume.host.clone().ok_or_else(|| invalid_volume(format!("Volume {} is on no host.", volume.id)))
}
