//! Groups: volumes that are snapshot together. A group has no disk of its own: what it is doing follows from its volumes.

use std::collections::BTreeSet;
use std::sync::Arc;

use jiff::Timestamp;

use super::group_type::find_type;
use super::{NewVolume, check_text, group_snapshot, invalid_input, kind, remove};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::random_uuid;
use crate::model::volume::{Group, GroupSnapshot, Status, Volume};
use crate::policy::{require_admin, require_list, require_own_project, require_read, require_write};
use crate::service::host::DEFAULT_ZONE;
use crate::service::quota::{Resource, charge};
use crate::store::{Cache, Stored, Txn};

/// The most volumes of a group: its snapshot is one transaction, with four rows for each.
pub const VOLUMES_MAX: usize = 20;
/// The most types of volumes of a group.
const TYPES_MAX: usize = 64;

/// What a new group shall be.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NewGroup {
    /// Name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Its type, by id or by name.
    pub group_type: String,
    /// The types its volumes may have, by id or by name.
    pub volume_types: Vec<String>,
    /// Zone.
    pub zone: Option<String>,
}

/// What to change of a group; `None` leaves it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GroupUpdate {
    /// Name.
    pub name: Option<String>,
    /// Free text.
    pub description: Option<String>,
    /// Volumes that join it.
    pub add: Vec<String>,
    /// Volumes that leave it.
    pub remove: Vec<String>,
}

pub(super) fn invalid_group(message: impl std::fmt::Display) -> Error {
    Error::invalid("InvalidGroup", format!("Invalid Group: {message}"))
}

/// The group if the caller may see it.
pub(crate) fn find(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<Group>>> {
    let stored = cache.get::<Group>(id).ok_or_else(|| Error::not_found("Group", id))?;
    require_read(caller, (&stored.row.project_id, None), "group:get", "Group", id)?;
    Ok(stored)
}

pub(super) fn find_own(
    cache: &Cache,
    caller: &Caller,
    id: &str,
    action: &'static str,
) -> Result<Arc<Stored<Group>>> {
    let stored = find(cache, caller, id)?;
    require_write(caller, &stored.row.project_id, action, "Group", id)?;
    Ok(stored)
}

/// What follows from the parts: all there, one missing, one failed.
pub(super) fn follows(own: Status, mut parts: impl Iterator<Item = Status>) -> Status {
    if own == Status::Deleting && parts.any(|part| part == Status::ErrorDeleting) {
        return Status::ErrorDeleting;
    }
    if own != Status::Available {
        return own;
    }
    let worst = parts.try_fold(Status::Available, |worst, part| match part {
        Status::Error => Err(Status::Error),
        Status::Creating | Status::Downloading => Ok(Status::Creating),
        _ => Ok(worst),
    });
    worst.unwrap_or_else(|error| error)
}

impl Control {
    /// What a group is doing.
    pub fn volume_group_status(&self, group: &Group) -> Status {
        let cache = self.db.cache();
        let parts =
            group.volume_ids.iter().filter_map(|id| cache.get::<Volume>(id).map(|one| one.row.status));
        follows(group.status, parts)
    }

    /// The groups that the caller may see.
    ///
    /// # Errors
    /// `Forbidden`.
    pub async fn volume_groups(&self, caller: &Caller, all: bool) -> Result<Vec<Arc<Stored<Group>>>> {
        require_list(caller, "group:get_all")?;
        self.db.caught_up().await?;
        let every = all && caller.is_admin();
        let project = caller.project_id();
        Ok(self.db.cache().filter::<Group>(|one| every || project == Some(one.project_id.as_str())))
    }

    /// One group.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn volume_group(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Group>>> {
        self.db.caught_up().await?;
        find(self.db.cache(), caller, id)
    }

    /// Makes an empty group.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound` for a type, `Invalid`, `QuotaExceeded`.
    pub async fn volume_group_create(&self, caller: &Caller, new: NewGroup) -> Result<Arc<Stored<Group>>> {
        let project_id = require_own_project(caller, "group:create")?.to_owned();
        check_text("name", new.name.as_ref())?;
        check_text("description", new.description.as_ref())?;
        if new.volume_types.is_empty() || new.volume_types.len() > TYPES_MAX {
            return Err(invalid_input(format!("volume_types must hold 1 to {TYPES_MAX} types of volumes.")));
        }
        self.db.caught_up().await?;
        let id = random_uuid();
        self.db
            .transact(|cache| {
                let kind = find_type(cache, caller, &new.group_type)?.row.id.clone();
                let types = new.volume_types.iter();
                let types = types.map(|one| Ok(kind::find(cache, caller, one)?.row.id.clone()));
                let mut group = empty(&id, &project_id, (kind, types.collect::<Result<_>>()?));
                group.name.clone_from(&new.name);
                group.description.clone_from(&new.description);
                group.zone = new.zone.clone().unwrap_or(group.zone);
                Ok(charge(Txn::new().create(&group), &project_id, &[(Resource::VolumeGroups, 1)]))
            })
            .await?;
        self.stored(&id, "Group")
    }

    /// Makes a group with a volume for each snapshot of a group snapshot, or for each volume of another group.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, `Invalid`, `QuotaExceeded`.
    pub async fn volume_group_copy(
        &self,
        caller: &Caller,
        (name, description): (Option<String>, Option<String>),
        group_snapshot_id: Option<&str>,
        source_group_id: Option<&str>,
    ) -> Result<Arc<Stored<Group>>> {
        let project_id = require_own_project(caller, "group:create")?.to_owned();
        check_text("name", name.as_ref())?;
        check_text("description", description.as_ref())?;
        self.db.caught_up().await?;
        let id = random_uuid();
        let volume_ids: Vec<String> = (0..VOLUMES_MAX).map(|_| random_uuid()).collect();
        self.db
            .transact(|cache| {
                let (source, news) = match (group_snapshot_id, source_group_id) {
                    (Some(snapshot_id), None) => {
                        let snapshot = group_snapshot::find(cache, caller, snapshot_id)?;
                        let of_snapshot =
                            |id: &String| NewVolume { snapshot_id: Some(id.clone()), ..NewVolume::default() };
                        let news: Vec<_> = snapshot.row.snapshot_ids.iter().map(of_snapshot).collect();
                        (find(cache, caller, &snapshot.row.group_id)?, news)
                    }
                    (None, Some(group_id)) => {
                        let source = find(cache, caller, group_id)?;
                        let of_volume = |id: &String| NewVolume {
                            source_volume_id: Some(id.clone()),
                            ..NewVolume::default()
                        };
                        let news = source.row.volume_ids.iter().map(of_volume).collect();
                        (source, news)
                    }
                    _ => {
                        return Err(invalid_input(
                            "Exactly one of group_snapshot_id and source_group_id is needed.",
                        ));
                    }
                };
                let kinds = (source.row.group_type_id.clone(), source.row.volume_type_ids.clone());
                let mut group = empty(&id, &project_id, kinds);
                group.name.clone_from(&name);
                group.description.clone_from(&description);
                group.group_snapshot_id = group_snapshot_id.map(str::to_owned);
                group.source_group_id = source_group_id.map(str::to_owned);
                let mut txn = charge(Txn::new(), &project_id, &[(Resource::VolumeGroups, 1)]);
                for (new, volume_id) in news.iter().zip(&volume_ids) {
                    let (prepared, mut volume) =
                        self.volume_prepare(cache, txn, caller, &project_id, new, volume_id)?;
                    volume.group_id = Some(id.clone());
                    group.volume_ids.insert(volume_id.clone());
                    txn = prepared.create(&volume);
                }
                Ok(txn.create(&group))
            })
            .await?;
        self.stored(&id, "Group")
    }

    /// Changes a group's description and which volumes it has.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` for a volume that cannot join.
    pub async fn volume_group_update(&self, caller: &Caller, id: &str, update: &GroupUpdate) -> Result<()> {
        check_text("name", update.name.as_ref())?;
        check_text("description", update.description.as_ref())?;
        if update.add.len() + update.remove.len() > VOLUMES_MAX {
            return Err(invalid_input(format!("At most {VOLUMES_MAX} volumes join and leave at once.")));
        }
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find_own(cache, caller, id, "group:update")?;
                let mut group = stored.row.clone();
                let mut txn = Txn::new();
                for volume_id in &update.remove {
                    let missing = || {
                        invalid_input(format!(
                            "Cannot remove volume {volume_id} from group {id}: it has it not."
                        ))
                    };
                    let found = cache.get::<Volume>(volume_id).filter(|_| group.volume_ids.remove(volume_id));
                    let found = found.ok_or_else(missing)?;
                    txn = txn.update(&found, &Volume { group_id: None, ..found.row.clone() });
                }
                for volume_id in &update.add {
                    let found = super::find_for_change(cache, caller, volume_id, "group:update")?;
                    txn = txn.update(&found, &joined(&mut group, &found.row)?);
                }
                group.name = update.name.clone().or(group.name);
                group.description = update.description.clone().or(group.description);
                Ok(if group == stored.row { txn } else { txn.update(&stored, &group) })
            })
            .await
    }

    /// Deletes a group, and with `volumes` what is in it.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Invalid` while it has volumes that shall stay, or snapshots.
    pub async fn volume_group_delete(&self, caller: &Caller, id: &str, volumes: bool) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find_own(cache, caller, id, "group:delete")?;
                let group = &stored.row;
                if !volumes && !group.volume_ids.is_empty() {
                    return Err(invalid_group(format!(
                        "Group {id} still contains volumes. The delete-volumes flag is required to delete it."
                    )));
                }
                if cache.find(|one: &GroupSnapshot| one.group_id == id).is_some() {
                    return Err(invalid_group(format!("Group {id} has dependent group snapshots.")));
                }
                if group.volume_ids.is_empty() {
                    return Ok(removal(Txn::new(), &stored));
                }
                let mut left = Group { status: Status::Deleting, ..group.clone() };
                let mut txn = Txn::new();
                for volume in group.volume_ids.iter().filter_map(|id| cache.get::<Volume>(id)) {
                    if !volume.row.attachments.is_empty() || volume.row.snapshots > 0 {
                        return Err(invalid_group(format!(
                            "Volume {} is attached or has snapshots.",
                            volume.row.id
                        )));
                    }
                    let known = remove::host_that_knows(&volume.row).is_some();
                    txn = if known {
                        remove::want_gone(cache, txn, &volume, &caller.request_id)
                    } else {
                        left.volume_ids.remove(&volume.row.id);
                        remove::row_removal(txn, &volume)
                    };
                }
                Ok(if left.volume_ids.is_empty() {
                    removal(txn, &stored)
                } else {
                    txn.update(&stored, &left)
                })
            })
            .await
    }

    /// Sets a group's state by hand.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`.
    pub async fn volume_group_reset(&self, caller: &Caller, id: &str, status: Status) -> Result<()> {
        require_admin(caller, "group:reset_status")?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find(cache, caller, id)?;
                Ok(Txn::new().update(&stored, &Group { status, ..stored.row.clone() }))
            })
            .await
    }
}

fn empty(id: &str, project_id: &str, (group_type_id, volume_type_ids): (String, Vec<String>)) -> Group {
    Group {
        id: id.to_owned(),
        project_id: project_id.to_owned(),
        name: None,
        description: None,
        group_type_id,
        volume_type_ids,
        volume_ids: BTreeSet::new(),
        group_snapshot_id: None,
        source_group_id: None,
        zone: DEFAULT_ZONE.to_owned(),
        status: Status::Available,
        created_at: Timestamp::now(),
    }
}

/// The volume as it is once it has joined; the group counts it.
pub(crate) fn joined(group: &mut Group, volume: &Volume) -> Result<Volume> {
    let refuse =
        |why: String| invalid_input(format!("Cannot add volume {} to group {}: {why}", volume.id, group.id));
    if volume.group_id.is_some() {
        return Err(refuse("it is in a group already.".to_owned()));
    }
    if !group.volume_type_ids.contains(&volume.type_id) {
        return Err(refuse("the group does not support its type.".to_owned()));
    }
    if !matches!(volume.status, Status::Available | Status::InUse | Status::Creating) {
        return Err(refuse(format!("it is in an invalid state: {}.", volume.status.name())));
    }
    if group.volume_ids.len() >= VOLUMES_MAX {
        return Err(refuse(format!("a group has at most {VOLUMES_MAX} volumes.")));
    }
    group.volume_ids.insert(volume.id.clone());
    Ok(Volume { group_id: Some(group.id.clone()), ..volume.clone() })
}

/// The row goes with its quota.
fn removal(txn: Txn, stored: &Stored<Group>) -> Txn {
    charge(txn.delete(stored), &stored.row.project_id, &[(Resource::VolumeGroups, -1)])
}

/// A volume leaves a group because it is gone; the last one takes a group that is being deleted with it.
pub(crate) fn left(cache: &Cache, txn: Txn, group_id: &str, volume_id: &str) -> Txn {
    let Some(stored) = cache.get::<Group>(group_id) else { return txn };
    let mut group = stored.row.clone();
    group.volume_ids.remove(volume_id);
    if group.volume_ids.is_empty() && group.status == Status::Deleting {
        return removal(txn, &stored);
    }
    if group == stored.row { txn } else { txn.update(&stored, &group) }
}
