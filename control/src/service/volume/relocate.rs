//! Moving a volume to another backend of its host, alone or with another type; and giving it another disk, where that type
//! says otherwise how it is encrypted.

use super::change::host_of;
use super::invalid_input;
use super::place::{Need, Pool, backend_name, choose};
use super::work::want;
use crate::Control;
use crate::agent::protocol::DiskShape;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::random_uuid;
use crate::model::volume::{DiskEncryption, DiskTask, Status, Volume, VolumeType};
use crate::policy::require_admin;
use crate::service::quota::{Resource, charge_type_alone};
use crate::store::{Cache, Txn};

impl Control {
    /// Moves a volume to another pool, by its name in the protocol: `host@backend#pool` or `host@backend`.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`; `Invalid` for a pool that is none, for the volume's
    /// own, and for a volume that cannot move; `NotImplemented` for another host.
    pub async fn volume_migrate(&self, caller: &Caller, id: &str, pool: &str) -> Result<()> {
        let action = "volume_extension:volume_admin_actions:migrate_volume";
        require_admin(caller, action)?;
        let changed = self.volume_change(caller, id, action, |cache, volume| {
            let pools = self.volume_pools(cache);
            let target = pools.iter().find(|one| one.is_called(pool)).ok_or_else(|| {
                Error::invalid("InvalidHost", format!("Invalid host: there is no pool {pool} for volumes"))
            })?;
            if Some(&target.host) != volume.host.as_ref() {
                return Err(Error::NotImplemented("moving a volume to another host"));
            }
            let own = backend_name(cache, volume);
            if own.as_ref() == Some(&target.backend) {
                return Err(invalid_input(format!(
                    "Invalid input received: Volume {id} is in the pool {pool} already: another is wanted."
                )));
            }
            if target.free_gib == 0 {
                return Err(Error::invalid("InvalidHost", format!("Invalid host: the pool {pool} is full")));
            }
            volume.migration_status = Some("migrating".to_owned());
            let work = moving(volume, target, None);
            begin(cache, caller, volume, Status::Maintenance, work)
        });
        changed.await.map(drop)
    }
}

/// Moves a volume to a backend of its host that has what its new type asks for.
pub(super) fn to_type(
    cache: &Cache,
    caller: &Caller,
    volume: &mut Volume,
    kind: &VolumeType,
    pools: &[Pool],
) -> Result<Txn> {
    let target = target(volume, kind, pools, None)?;
    let work = moving(volume, target, Some(&kind.id));
    let txn = begin(cache, caller, volume, Status::Retyping, work)?;
    Ok(of_type(txn, volume, &kind.id, 1))
}

/// Gives a volume a disk that is encrypted as its new type says, and with it that type: in the backend `own` if one is
/// named, which has what the type asks for, else in one that has. The disk that the volume has stays until then.
pub(super) fn recode(
    cache: &Cache,
    caller: &Caller,
    volume: &mut Volume,
    kind: &VolumeType,
    (pools, own): (&[Pool], Option<&str>),
    encryption: Option<DiskEncryption>,
) -> Result<Txn> {
    let (volume_id, disk) = (volume.id.clone(), random_uuid());
    let backend = target(volume, kind, pools, own)?.backend.clone();
    let of = volume.disk().to_owned();
    let work = |from| {
        let (type_id, encryption) = (kind.id.clone(), encryption.map(Box::new));
        let task = DiskTask::Recode { volume: volume_id, backend, type_id, encryption };
        (disk, DiskShape::Recoded { of, from }, task)
    };
    let txn = begin(cache, caller, volume, Status::Retyping, work)?;
    Ok(of_type(txn, volume, &kind.id, 1))
}

/// A backend of a volume's host that has what a type asks for; the named one only, if one is.
fn target<'p>(
    volume: &Volume,
    kind: &VolumeType,
    pools: &'p [Pool],
    backend: Option<&str>,
) -> Result<&'p Pool> {
    let need = Need {
        size_gib: volume.size_gib,
        host: volume.host.as_deref(),
        backend,
        specs: Some(&kind.extra_specs),
        ..Need::default()
    };
    choose(pools, &need).ok_or_else(|| {
        invalid_input(
            "Invalid input received: no backend of the volume's host has what the new type asks for.",
        )
    })
}

/// What a host does to move a volume: with which disk what.
fn moving(
    volume: &Volume,
    target: &Pool,
    type_id: Option<&str>,
) -> impl FnOnce(String) -> (String, DiskShape, DiskTask) + use<> {
    let disk = volume.disk().to_owned();
    let task = DiskTask::Move {
        volume: volume.id.clone(),
        backend: target.backend.clone(),
        type_id: type_id.map(str::to_owned),
    };
    |from| (disk, DiskShape::Moved { from }, task)
}

/// Charges a project for a volume of a type beside the whole, or gives that back. Until the move has ended both types are
/// charged for it.
pub(super) fn of_type(txn: Txn, volume: &Volume, type_id: &str, by: i64) -> Txn {
    let gib = i64::try_from(volume.size_gib).unwrap_or(i64::MAX);
    let changes = [(Resource::Volumes, by), (Resource::VolumeGib, by.saturating_mul(gib))];
    charge_type_alone(txn, &volume.project_id, type_id, &changes)
}

/// Begins what `work` says, given the backend that the volume is in.
fn begin(
    cache: &Cache,
    caller: &Caller,
    volume: &mut Volume,
    status: Status,
    work: impl FnOnce(String) -> (String, DiskShape, DiskTask),
) -> Result<Txn> {
    if volume.status != Status::Available || volume.snapshots > 0 || volume.group_id.is_some() {
        return Err(invalid_input(format!(
            "Invalid input received: Volume {} must be available, without snapshots and in no group, to be moved; it \
             is {} and has {} snapshots.",
            volume.id,
            volume.status.name(),
            volume.snapshots
        )));
    }
    let host = host_of(volume)?;
    let from = backend_name(cache, volume).ok_or_else(|| {
        invalid_input(format!("Invalid input received: Host {host} has not said what it keeps volumes in."))
    })?;
    volume.previous_status = Some(volume.status);
    volume.status = status;
    let (disk, shape, task) = work(from);
    Ok(want(cache, Txn::new(), &caller.request_id, (&host, &disk), shape, task))
}
