//! Volumes and snapshots that are given up, and whose disks are taken over again.

use super::volumes::of_size;
use super::*;
use crate::model::volume::{Snapshot, Status, Volume};
use crate::service::volume::NewVolume;
use crate::service::volume::manage::{Manageable, NewManaged, NewManagedSnapshot};
use crate::service::volume::snapshot::NewSnapshot;

const POOL: &str = "fake-0@file#file";

fn of_disk(disk: &str) -> NewManaged {
    NewManaged { disk: disk.to_owned(), pool: POOL.to_owned(), bootable: true, ..NewManaged::default() }
}

impl Cloud {
    /// The disks of the pool that may be taken over, and those that are taken.
    async fn disks(&self, snapshots: bool) -> (Vec<String>, Vec<String>) {
        let found = self.control.volume_manageable(&self.admin, POOL, snapshots).await.unwrap();
        let (taken, free): (Vec<_>, Vec<_>) = found.into_iter().partition(|disk| disk.taken.is_some());
        let names = |disks: Vec<Manageable>| disks.into_iter().map(|disk| disk.name).collect();
        (names(free), names(taken))
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_and_snapshot_are_given_up_and_their_disks_taken_over_again() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let disk = cloud.volume(of_size(2)).await;
    cloud.until_volume(&disk, Some(Status::Available)).await;
    let new = NewSnapshot { volume_id: disk.clone(), ..NewSnapshot::default() };
    let frozen = control.volume_snapshot_create(admin, new).await.unwrap().row.id.clone();
    cloud.until_snapshot(&frozen, Some(Status::Available)).await;
    assert_eq!(cloud.disks(false).await, (vec![], vec![disk.clone()]));
    assert_eq!(cloud.disks(true).await, (vec![], vec![frozen.clone()]));

    // The snapshot first: a volume that has one is not given up.
    let refused = control.volume_unmanage(admin, &disk).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    control.volume_snapshot_unmanage(admin, &frozen).await.unwrap();
    control.volume_unmanage(admin, &disk).await.unwrap();
    assert_eq!((control.db.list::<Volume>().len(), control.db.list::<Snapshot>().len()), (0, 0));
    let (mut free, taken) = cloud.disks(false).await;
    free.sort();
    let mut both = vec![disk.clone(), frozen.clone()];
    both.sort();
    assert_eq!((free, taken), (both, vec![]), "the disks are still there");

    let volume = control.volume_manage(admin, &of_disk(&disk)).await.unwrap();
    assert_eq!((volume.row.size_gib, volume.row.status, volume.row.bootable), (2, Status::Available, true));
    let of_volume = NewManagedSnapshot {
        disk: frozen.clone(),
        volume_id: volume.row.id.clone(),
        ..NewManagedSnapshot::default()
    };
    let snapshot = control.volume_snapshot_manage(admin, &of_volume).await.unwrap();
    assert_eq!(snapshot.row.size_gib, 2);
    assert_eq!(cloud.disks(false).await, (vec![], vec![disk.clone()]));

    // They are as good as any: bigger, copied, and in the end gone with their disks.
    control.volume_extend(admin, &volume.row.id, 3, false).await.unwrap();
    cloud.until_volume(&volume.row.id, Some(Status::Available)).await;
    let copy = NewVolume { snapshot_id: Some(snapshot.row.id.clone()), ..NewVolume::default() };
    let copy = cloud.volume(copy).await;
    cloud.until_volume(&copy, Some(Status::Available)).await;
    control.volume_snapshot_delete(admin, &snapshot.row.id, false).await.unwrap();
    cloud.until_snapshot(&snapshot.row.id, None).await;
    for id in [&copy, &volume.row.id] {
        control.volume_delete(admin, id, false, false).await.unwrap();
        cloud.until_volume(id, None).await;
    }
    assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn disk_that_is_taken_or_not_there_is_not_taken_over() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let disk = cloud.volume(of_size(1)).await;
    cloud.until_volume(&disk, Some(Status::Available)).await;
    let pool = |pool: &str| NewManaged { pool: pool.to_owned(), ..of_disk(&disk) };
    for (new, says) in [
        (of_disk(&disk), "is a volume or a snapshot already"),
        (of_disk("../../secret"), "has no disk"),
        (of_disk(""), "has no disk"),
        (pool("fake-0@other#other"), "has no disk"),
        (pool("fake-1@file#file"), "no pool"),
    ] {
        let refused = control.volume_manage(admin, &new).await;
        assert!(
            matches!(&refused, Err(error @ Error::Invalid { .. }) if error.to_string().contains(says)),
            "{refused:?}"
        );
    }
    // Of those who ask at once for one disk one gets it.
    control.volume_unmanage(admin, &disk).await.unwrap();
    let new = of_disk(&disk);
    let (first, second) =
        tokio::join!(control.volume_manage(admin, &new), control.volume_manage(admin, &new));
    assert!(first.is_ok() != second.is_ok(), "{first:?} {second:?}");
    assert_eq!(control.db.list::<Volume>().len(), 1);

    let mut member = admin.clone();
    member.role = Some(RoleLevel::Member);
    let refused = control.volume_manage(&member, &new).await;
    assert!(matches!(refused, Err(Error::Forbidden { .. })), "{refused:?}");
}
