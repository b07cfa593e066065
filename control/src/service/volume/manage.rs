//! Taking over disks that a backend has and nobody's rows know, and giving volumes and snapshots up (Block Storage API:
//! manageable volumes, manageable snapshots).

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use jiff::Timestamp;

use super::create::{NewVolume, check_one, row};
use super::place::{Pool, backend_name};
use super::{check_properties, check_text, find_for_change, invalid_input, invalid_volume, kind, remove};
use crate::Control;
use crate::agent::link::QueryError;
use crate::agent::protocol::{Answer, DiskFound, Query};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::volume::{DiskWork, Snapshot, Status, Volume};
use crate::policy::{require_admin, require_own_project};
use crate::service::quota::{Resource, charge_of_type};
use crate::store::{Cache, Stored, Txn};

/// A disk of a backend, as those see it who may take it over.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Manageable {
    /// Its name in the backend.
    pub name: String,
    /// Its size in whole GiB, rounded up.
    pub size_gib: u64,
    /// The volume, or the snapshot, that it is already, with that one's volume.
    pub taken: Option<(String, Option<String>)>,
}

/// A disk to take over.
#[derive(Debug, Clone, Default)]
pub struct NewManaged {
    /// Its name in the backend.
    pub disk: String,
    /// The pool: `host@backend#pool`, or without the pool.
    pub pool: String,
    /// As for a new volume.
    pub name: Option<String>,
    /// As for a new volume.
    pub description: Option<String>,
    /// The type's id or name; the default one if absent.
    pub volume_type: Option<String>,
    /// As for a new volume.
    pub metadata: BTreeMap<String, String>,
    /// A server can boot from it.
    pub bootable: bool,
}

/// A snapshot's disk to take over.
#[derive(Debug, Clone, Default)]
pub struct NewManagedSnapshot {
    /// Its name in the backend.
    pub disk: String,
    /// The volume that it is of.
    pub volume_id: String,
    /// As for a new snapshot.
    pub name: Option<String>,
    /// As for a new snapshot.
    pub description: Option<String>,
    /// As for a new snapshot.
    pub metadata: BTreeMap<String, String>,
}

impl Control {
    fn volume_pool(&self, name: &str) -> Result<Pool> {
        let pools = self.volume_pools(self.db.cache());
        let found = pools.into_iter().find(|pool| pool.is_called(name));
        found.ok_or_else(|| {
            let message =
                format!("Invalid input received: no pool of volumes is called {name}; `volume backend pool list` shows them.");
            invalid_input(message)
        })
    }

    async fn disks_of(&self, pool: &Pool) -> Result<Vec<DiskFound>> {
        let query = Query::Disks { backend: pool.backend.clone() };
        match self.agents().query(&pool.host, query).await {
            Ok(Answer::Disks { disks }) => Ok(disks),
            Ok(_) => Err(Error::Unavailable(format!("Host {} gave another answer.", pool.host))),
            Err(QueryError::Refused(why)) => Err(invalid_volume(why)),
            Err(error) => Err(Error::Unavailable(format!("Unable to list the disks: {error}."))),
        }
    }

    /// The disks of a pool that volumes can be made of (`snapshots` for those that snapshots can), taken ones too.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `Invalid` for a pool that is none; `Unavailable` if its host does
    /// not answer.
    pub async fn volume_manageable(
        &self,
        caller: &Caller,
        pool: &str,
        snapshots: bool,
    ) -> Result<Vec<Manageable>> {
        let action =
            if snapshots { "snapshot_extension:list_manageable" } else { "volume_extension:list_manageable" };
        require_admin(caller, action)?;
        self.db.caught_up().await?;
        let pool = self.volume_pool(pool)?;
        let disks = self.disks_of(&pool).await?;
        let taken = taken(self.db.cache(), &pool);
        let shown = disks.into_iter().filter_map(|disk| {
            let owner = taken.get(&disk.id).cloned();
            // What is a volume cannot become a snapshot, and the other way round; what is neither can become both.
            let fits = owner.as_ref().is_none_or(|(_, volume)| volume.is_some() == snapshots);
            fits.then(|| Manageable { name: disk.id, size_gib: gib(disk.size_bytes), taken: owner })
        });
        Ok(shown.collect())
    }

    /// Makes a volume of a disk that is there. Its id follows from the disk, so that two cannot take one.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `Invalid` for a disk or a pool that is none, and for a disk that
    /// is taken; `QuotaExceeded`; `Unavailable` if the host does not answer.
    pub async fn volume_manage(&self, caller: &Caller, new: &NewManaged) -> Result<Arc<Stored<Volume>>> {
        require_admin(caller, "volume_extension:volume_manage")?;
        let project_id = require_own_project(caller, "volume_extension:volume_manage")?.to_owned();
        check_text("name", new.name.as_ref())?;
        check_text("description", new.description.as_ref())?;
        check_properties(&new.metadata)?;
        self.db.caught_up().await?;
        let pool = self.volume_pool(&new.pool)?;
        let size_gib = self.size_of(&pool, &new.disk).await?;
        let id = id_of(&pool, &new.disk);
        let of_type = match &new.volume_type {
            Some(wanted) => kind::find(self.db.cache(), caller, wanted)?,
            None => self.volume_type_default(caller).await?,
        };
        self.db
            .transact(|cache| {
                if taken(cache, &pool).contains_key(&new.disk) || cache.get::<Volume>(&id).is_some() {
                    return Err(is_taken(&new.disk));
                }
                check_one(cache, &project_id, size_gib)?;
                let missing = || Error::not_found("Volume type", &of_type.row.id);
                let of_type =
                    cache.get::<crate::model::volume::VolumeType>(&of_type.row.id).ok_or_else(missing)?;
                if of_type.row.encryption.is_some() {
                    return Err(Error::NotImplemented("taking over a disk as an encrypted volume"));
                }
                if !pool.has(&of_type.row.extra_specs) {
                    return Err(invalid_input(format!(
                        "Invalid input received: the pool {} does not have what the type {} asks for.",
                        pool.name(),
                        of_type.row.name
                    )));
                }
                let described = NewVolume {
                    name: new.name.clone(),
                    description: new.description.clone(),
                    metadata: new.metadata.clone(),
                    ..NewVolume::default()
                };
                let volume = Volume {
                    status: Status::Available,
                    zone: pool.zone.clone(),
                    host: Some(pool.host.clone()),
                    backend: Some(pool.backend.clone()),
                    disk_id: Some(new.disk.clone()),
                    ..row(caller, &project_id, &described, &id, (size_gib, &of_type.row, new.bootable))
                };
                let charges = [
                    (Resource::Volumes, 1),
                    (Resource::VolumeGib, i64::try_from(size_gib).unwrap_or(i64::MAX)),
                ];
                let txn = kind::given(cache, Txn::new().create(&volume), &of_type.row)?;
                Ok(charge_of_type(txn, &project_id, &of_type.row.id, &charges))
            })
            .await?;
        self.db.get::<Volume>(&id).ok_or_else(|| Error::not_found("Volume", id))
    }

    /// Makes a snapshot of a disk that is there.
    ///
    /// # Errors
    /// As [`Self::volume_manage`]; `NotFound` for the volume.
    pub async fn volume_snapshot_manage(
        &self,
        caller: &Caller,
        new: &NewManagedSnapshot,
    ) -> Result<Arc<Stored<Snapshot>>> {
        require_admin(caller, "snapshot_extension:snapshot_manage")?;
        check_text("name", new.name.as_ref())?;
        check_text("description", new.description.as_ref())?;
        check_properties(&new.metadata)?;
        self.db.caught_up().await?;
        let volume = super::find(self.db.cache(), caller, &new.volume_id)?;
        let pool = self.volume_pool(&self.volume_pool_name(&volume.row).unwrap_or_default())?;
        let size_gib = self.size_of(&pool, &new.disk).await?;
        let id = id_of(&pool, &new.disk);
        self.db
            .transact(|cache| {
                let volume = super::find(cache, caller, &new.volume_id)?;
                if backend_name(cache, &volume.row).as_ref() != Some(&pool.backend) {
                    return Err(invalid_volume("it has just moved to another backend"));
                }
                if volume.row.encryption.is_some() {
                    return Err(Error::NotImplemented(
                        "taking over a disk as a snapshot of an encrypted volume",
                    ));
                }
                if taken(cache, &pool).contains_key(&new.disk) || cache.get::<Snapshot>(&id).is_some() {
                    return Err(is_taken(&new.disk));
                }
                let snapshot = Snapshot {
                    id: id.clone(),
                    project_id: volume.row.project_id.clone(),
                    user_id: caller.user_id.clone(),
                    name: new.name.clone(),
                    description: new.description.clone(),
                    volume_id: volume.row.id.clone(),
                    size_gib,
                    type_id: volume.row.type_id.clone(),
                    status: Status::Available,
                    metadata: new.metadata.clone(),
                    group_snapshot_id: None,
                    progress: None,
                    host: Some(pool.host.clone()),
                    disk_id: Some(new.disk.clone()),
                    encryption: None,
                    created_at: Timestamp::now(),
                    updated_at: None,
                };
                let counted = Volume { snapshots: volume.row.snapshots + 1, ..volume.row.clone() };
                let txn = Txn::new().create(&snapshot).update(&volume, &counted);
                let charges = super::snapshot::charges(&snapshot, 1);
                Ok(charge_of_type(txn, &snapshot.project_id, &snapshot.type_id, &charges))
            })
            .await?;
        self.db.get::<Snapshot>(&id).ok_or_else(|| Error::not_found("Snapshot", id))
    }

    /// Gives a volume up without deleting its disk (Block Storage API: unmanage).
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `Invalid` for one that is in use or has snapshots.
    pub async fn volume_unmanage(&self, caller: &Caller, id: &str) -> Result<()> {
        require_admin(caller, "volume_extension:volume_unmanage")?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find_for_change(cache, caller, id, "volume_extension:volume_unmanage")?;
                remove::check(&stored.row, false, false)?;
                if stored.row.encryption.is_some() {
                    return Err(keeps_its_key());
                }
                let txn = without_wish(cache, stored.row.host.as_deref(), stored.row.disk());
                Ok(remove::removal(cache, txn, &stored))
            })
            .await
    }

    /// Gives a snapshot up without deleting its disk.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`; `Invalid` in a state that does not allow it.
    pub async fn volume_snapshot_unmanage(&self, caller: &Caller, id: &str) -> Result<()> {
        require_admin(caller, "snapshot_extension:snapshot_unmanage")?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = super::snapshot::find(cache, caller, id)?;
                if !matches!(stored.row.status, Status::Available | Status::Error) {
                    return Err(Error::invalid(
                        "InvalidSnapshot",
                        format!("Invalid snapshot: Snapshot {id} is {}.", stored.row.status.name()),
                    ));
                }
                if stored.row.encryption.is_some() {
                    return Err(keeps_its_key());
                }
                let txn = without_wish(cache, stored.row.host.as_deref(), stored.row.disk());
                Ok(super::snapshot::removal(cache, txn, &stored))
            })
            .await
    }

    async fn size_of(&self, pool: &Pool, disk: &str) -> Result<u64> {
        let disks = self.disks_of(pool).await?;
        let found = disks.into_iter().find(|found| found.id == disk);
        let found = found.ok_or_else(|| {
            let pool = pool.name();
            invalid_input(format!("Invalid input received: the pool {pool} has no disk {disk} to take over."))
        })?;
        Ok(gib(found.size_bytes))
    }
}

/// Takes back what a host has yet to do about a disk.
fn without_wish(cache: &Cache, host: Option<&str>, disk: &str) -> Txn {
    match host.and_then(|host| cache.get::<DiskWork>(&format!("{host}/{disk}"))) {
        Some(work) => Txn::new().delete(&work),
        None => Txn::new(),
    }
}

/// A disk that is given up would be without its key.
fn keeps_its_key() -> Error {
    invalid_volume("Unmanaging encrypted volumes is not supported.")
}

fn is_taken(disk: &str) -> Error {
    invalid_input(format!("Invalid input received: the disk {disk} is a volume or a snapshot already."))
}

fn gib(size_bytes: u64) -> u64 {
    size_bytes.div_ceil(1 << 30)
}

/// An id for what is made of a disk, which follows from where that is (RFC 9562 §5.5).
fn id_of(pool: &Pool, disk: &str) -> String {
    let place = format!("{}/{disk}", pool.name());
    uuid::Uuid::new_v5(&uuid::Uuid::NAMESPACE_URL, place.as_bytes()).to_string()
}

/// Whose the disks of a pool are: the volume, or the snapshot with its volume.
fn taken(cache: &Cache, pool: &Pool) -> HashMap<String, (String, Option<String>)> {
    let here = |volume: &Volume| {
        volume.host.as_ref() == Some(&pool.host)
            && backend_name(cache, volume).as_ref() == Some(&pool.backend)
    };
    let mut taken = HashMap::new();
    for volume in cache.list::<Volume>().iter().filter(|volume| here(&volume.row)) {
        taken.insert(volume.row.disk().to_owned(), (volume.row.id.clone(), None));
    }
    for snapshot in cache.list::<Snapshot>() {
        let row = &snapshot.row;
        if cache.get::<Volume>(&row.volume_id).is_some_and(|volume| here(&volume.row)) {
            taken.insert(row.disk().to_owned(), (row.id.clone(), Some(row.volume_id.clone())));
        }
    }
    taken
}
