//! Volumes, from the wish to the host's files and back; with lines that are cut and hosts that refuse.

use super::*;
use crate::agent::protocol::{DiskShape, DiskSource};
use crate::driver::volumes::{NamedPlace, Place, VolumePaths, Volumes};
use crate::model::volume::{
    AttachStatus, Backup, DiskWork, Snapshot, Status, Volume, VolumeAttachment, VolumeMessage, VolumeType,
};
use crate::service::server::volume::{DeviceSource, NewDevice, NewServerVolume};
use crate::service::volume::NewVolume;
use crate::service::volume::backup::NewBackup;
use crate::service::volume::snapshot::NewSnapshot;

/// Bytes of a volume that become an image here: all of a GiB would take long to digest.
const OUTGOING_BYTES: u64 = 1 << 20;

/// A volume that a new server begins with, and that goes with it.
pub(super) fn device(source: DeviceSource, boot: bool, size_gib: u64) -> NewDevice {
    NewDevice {
        source,
        size_gib: Some(size_gib),
        volume_type: None,
        boot,
        delete_on_termination: true,
        device: None,
        tag: None,
    }
}

impl Cloud {
    /// A cloud with a fake host whose volumes are files.
    pub(super) async fn with_volumes() -> Self {
        let mut cloud = Self::new().await;
        let driver = cloud.driver();
        cloud.connect(driver);
        cloud.until_pool().await;
        cloud
    }

    /// A fake host that brings out only the beginning of volumes.
    pub(super) fn driver(&self) -> Arc<dyn Driver> {
        let (root, images) = (self._state.path().join("volumes/fake-0"), self._state.path().join("images"));
        let outgoing = root.join(crate::driver::volumes::OUTGOING);
        let other =
            NamedPlace { name: "other".into(), place: Place::Directory(self._state.path().join("other")) };
        let places = vec![Place::Files.into(), other];
        let volumes = Volumes::open(VolumePaths { root, places, images, bucket: None }).unwrap();
        let instances = Some(self._state.path().join("instances"));
        let fake = FakeDriver::new("fake-0", instances).unwrap().with_volumes(volumes);
        let disk = move |wanted: &DiskWanted, observed: &DiskObserved| {
            if matches!(wanted.shape, DiskShape::Outgoing { .. }) && observed.fault.is_none() {
                let file = std::fs::File::options().write(true).open(outgoing.join(&wanted.id)).unwrap();
                file.set_len(OUTGOING_BYTES).unwrap();
            }
        };
        Arc::new(Meddled { fake, instance: |_: &InstanceWanted, _: &mut Applied| {}, disk })
    }

    pub(super) async fn until_pool(&self) {
        for _ in 0..500 {
            if self.control.volume_pools(self.control.db.cache()).iter().any(|pool| pool.alive) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("there is no pool");
    }

    pub(super) async fn volume(&self, new: NewVolume) -> String {
        let made = self.control.volume_create(&self.admin, new).await.unwrap();
        made.volume.row.id.clone()
    }

    pub(super) async fn until_volume(&self, id: &str, status: Option<Status>) {
        for _ in 0..500 {
            self.control.db.caught_up().await.unwrap();
            if self.control.db.get::<Volume>(id).map(|stored| stored.row.status) == status {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        let told: Vec<_> = self.control.db.list::<VolumeMessage>();
        let told: Vec<_> = told.iter().map(|message| message.row.text.as_str()).collect();
        panic!("the volume stays {:?}; {told:?}", self.control.db.get::<Volume>(id));
    }

    pub(super) async fn until_snapshot(&self, id: &str, status: Option<Status>) {
        for _ in 0..500 {
            self.control.db.caught_up().await.unwrap();
            if self.control.db.get::<Snapshot>(id).map(|stored| stored.row.status) == status {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the snapshot stays {:?}", self.control.db.get::<Snapshot>(id));
    }

    /// Takes a disk's files away behind the cloud's back.
    pub(super) fn lose(&self, id: &str) {
        std::fs::remove_dir_all(self._state.path().join("volumes/fake-0/disks").join(id)).unwrap();
    }

    /// What must be nothing once all volumes are deleted: rows, wishes, quota, files.
    pub(super) fn left_of_volumes(&self) -> (usize, usize, u64, usize) {
        let db = &self.control.db;
        let rows =
            db.list::<Volume>().len() + db.list::<Snapshot>().len() + db.list::<VolumeAttachment>().len();
        let used = ["volumes", "gigabytes", "snapshots"]
            .iter()
            .filter_map(|name| db.get::<Usage>(&Usage::key("p", name)))
            .map(|usage| usage.row.used);
        let files = std::fs::read_dir(self._state.path().join("volumes/fake-0/disks"));
        (rows, db.list::<DiskWork>().len(), used.sum(), files.map_or(0, Iterator::count))
    }
}

pub(super) fn of_size(size_gib: u64) -> NewVolume {
    NewVolume { size_gib: Some(size_gib), ..NewVolume::default() }
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_lives_through_snapshot_clone_extension_and_revert_and_leaves_nothing() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let id = cloud.volume(of_size(1)).await;
    cloud.until_volume(&id, Some(Status::Available)).await;
    let new = NewSnapshot { volume_id: id.clone(), ..NewSnapshot::default() };
    let snapshot = control.volume_snapshot_create(admin, new).await.unwrap().row.id.clone();
    cloud.until_snapshot(&snapshot, Some(Status::Available)).await;
    let refused = control.volume_delete(admin, &id, false, false).await;
    assert!(matches!(refused, Err(Error::Invalid { reason: "InvalidVolume", .. })), "{refused:?}");

    let clone = NewVolume { snapshot_id: Some(snapshot.clone()), ..NewVolume::default() };
    let clone = cloud.volume(clone).await;
    cloud.until_volume(&clone, Some(Status::Available)).await;
    assert_eq!(control.db.get::<Volume>(&clone).unwrap().row.size_gib, 1);
    control.volume_revert(admin, &id, &snapshot).await.unwrap();
    cloud.until_volume(&id, Some(Status::Available)).await;
    control.volume_extend(admin, &id, 3, false).await.unwrap();
    cloud.until_volume(&id, Some(Status::Available)).await;
    assert_eq!(control.quota("p", crate::service::quota::Resource::VolumeGib).used, 3 + 1 + 1);
    assert!(control.volume_extend(admin, &id, 3, false).await.is_err(), "not larger");

    control.volume_delete(admin, &id, true, false).await.unwrap();
    control.volume_delete(admin, &clone, false, false).await.unwrap();
    cloud.until_volume(&id, None).await;
    cloud.until_volume(&clone, None).await;
    cloud.until_snapshot(&snapshot, None).await;
    assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn wish_outlives_a_cut_line_and_a_host_that_comes_later() {
    let mut cloud = Cloud::with_volumes().await;
    // As by kill -9 of the agent: nothing it had in memory is left.
    cloud.tasks.pop().unwrap().abort();
    tokio::time::sleep(Duration::from_millis(50)).await;
    let id = cloud.volume(of_size(1)).await;
    assert_eq!(cloud.control.db.get::<Volume>(&id).unwrap().row.status, Status::Creating);
    assert_eq!(cloud.left_of_volumes().1, 1);
    let driver = cloud.driver();
    cloud.connect(driver);
    cloud.until_volume(&id, Some(Status::Available)).await;
    cloud.control.volume_delete(&cloud.admin, &id, false, false).await.unwrap();
    cloud.until_volume(&id, None).await;
    assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_host_cannot_do_is_an_error_with_a_message_and_can_be_deleted() {
    let cloud = Cloud::with_volumes().await;
    let source = cloud.volume(of_size(1)).await;
    cloud.until_volume(&source, Some(Status::Available)).await;
    cloud.lose(&source);
    let new = NewVolume { source_volume_id: Some(source.clone()), ..NewVolume::default() };
    let id = cloud.volume(new).await;
    cloud.until_volume(&id, Some(Status::Error)).await;
    let messages = cloud.control.db.list::<VolumeMessage>();
    assert_eq!((messages.len(), messages[0].row.resource_id.as_str()), (1, id.as_str()));
    assert_eq!(cloud.left_of_volumes().1, 0, "nobody tries again unasked");
    for volume in [&id, &source] {
        cloud.control.volume_delete(&cloud.admin, volume, false, false).await.unwrap();
        cloud.until_volume(volume, None).await;
    }
    assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_host_a_volume_is_in_error_and_holds_its_quota_until_it_is_deleted() {
    let cloud = Cloud::new().await;
    let id = cloud.volume(of_size(2)).await;
    assert_eq!(cloud.control.db.get::<Volume>(&id).unwrap().row.status, Status::Error);
    assert_eq!(cloud.left_of_volumes(), (1, 0, 3, 0));
    cloud.control.volume_delete(&cloud.admin, &id, false, false).await.unwrap();
    assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_takes_volumes_and_gives_them_back() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let kept = cloud.volume(of_size(1)).await;
    cloud.until_volume(&kept, Some(Status::Available)).await;
    let server = cloud.create().await;
    cloud.until_status(&server, "ACTIVE").await;
    let new = NewServerVolume { volume_id: kept.clone(), ..NewServerVolume::default() };
    let attached = control.server_volume_attach(admin, &server, &new).await.unwrap();
    assert_eq!(attached.device, "/dev/vdb");
    cloud.until_volume(&kept, Some(Status::InUse)).await;
    assert!(control.server_volume_attach(admin, &server, &new).await.is_err(), "once is enough");
    let other = cloud.create().await;
    cloud.until_status(&other, "ACTIVE").await;
    let refused = control.server_volume_attach(admin, &other, &new).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    let refused = control.volume_attachment_delete(admin, &attached.attachment_id).await;
    assert!(matches!(refused, Err(Error::Conflict { .. })), "its server has it: {refused:?}");
    control.server_volume_detach(admin, &server, &kept).await.unwrap();
    cloud.until_volume(&kept, Some(Status::Available)).await;

    control.server_volume_attach(admin, &server, &new).await.unwrap();
    control.server_volume_keep(admin, &server, &kept, true).await.unwrap();
    for id in [&server, &other] {
        control.server_delete(admin, id).await.unwrap();
        cloud.until(id, |server| server.is_none()).await;
    }
    cloud.until_volume(&kept, None).await;
    assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_boots_from_a_volume_that_comes_into_being_with_it_and_goes_with_it() {
    let cloud = Cloud::with_volumes().await;
    let source = cloud.volume(of_size(1)).await;
    cloud.until_volume(&source, Some(Status::Available)).await;
    cloud.control.volume_set_bootable(&cloud.admin, &source, true).await.unwrap();
    let new = NewSnapshot { volume_id: source.clone(), ..NewSnapshot::default() };
    let snapshot = cloud.control.volume_snapshot_create(&cloud.admin, new).await.unwrap().row.id.clone();
    cloud.until_snapshot(&snapshot, Some(Status::Available)).await;
    let mut new = cloud.new_servers();
    new.image_id = String::new();
    new.devices =
        vec![device(DeviceSource::Snapshot(snapshot), true, 2), device(DeviceSource::Blank, false, 2)];
    let created = cloud.control.servers_create(&cloud.admin, new).await.unwrap();
    let server = cloud.until_status(&created.servers[0].id, "ACTIVE").await;
    let devices: Vec<_> = server.volumes.iter().map(|one| (one.device.as_str(), one.boot)).collect();
    assert_eq!(devices, [("/dev/vda", true), ("/dev/vdb", false)]);
    for attached in &server.volumes {
        let attachment = cloud.control.db.get::<VolumeAttachment>(&attached.attachment_id).unwrap();
        assert_eq!(attachment.row.status, AttachStatus::Attached);
        cloud.until_volume(&attached.volume_id, Some(Status::InUse)).await;
    }
    cloud.control.server_delete(&cloud.admin, &server.id).await.unwrap();
    cloud.until(&server.id, |server| server.is_none()).await;
    for attached in &server.volumes {
        cloud.until_volume(&attached.volume_id, None).await;
    }
    cloud.control.volume_delete(&cloud.admin, &source, true, false).await.unwrap();
    cloud.until_volume(&source, None).await;
    assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_whose_volume_cannot_be_made_is_in_error_and_leaves_nothing() {
    let cloud = Cloud::with_volumes().await;
    let source = cloud.volume(of_size(1)).await;
    cloud.until_volume(&source, Some(Status::Available)).await;
    let new = NewSnapshot { volume_id: source.clone(), ..NewSnapshot::default() };
    let snapshot = cloud.control.volume_snapshot_create(&cloud.admin, new).await.unwrap().row.id.clone();
    cloud.until_snapshot(&snapshot, Some(Status::Available)).await;
    cloud.lose(&snapshot);
    let mut new = cloud.new_servers();
    new.image_id = String::new();
    new.devices = vec![device(DeviceSource::Snapshot(snapshot), true, 1)];
    let created = cloud.control.servers_create(&cloud.admin, new).await.unwrap();
    let server = cloud.until_status(&created.servers[0].id, "ERROR").await;
    assert!(server.fault.unwrap().message.contains("did not finish being created"));
    cloud.control.server_delete(&cloud.admin, &server.id).await.unwrap();
    cloud.until(&server.id, |server| server.is_none()).await;
    cloud.until_volume(&server.volumes[0].volume_id, None).await;
    cloud.control.volume_delete(&cloud.admin, &source, true, false).await.unwrap();
    cloud.until_volume(&source, None).await;
    assert_eq!((cloud.left_of_volumes(), cloud.left()), ((0, 0, 0, 0), (0, 0, 0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn report_of_an_older_wish_or_of_another_hosts_disk_changes_nothing() {
    let cloud = Cloud::new().await;
    let id = cloud.volume(of_size(1)).await;
    let shape = DiskShape::Volume { size_bytes: 1 << 30, source: DiskSource::Nothing };
    let task = crate::model::volume::DiskTask::CreateVolume { volume: id.clone() };
    let work = DiskWork { id: format!("here/{id}"), generation: 5, shape, task, request_id: String::new() };
    cloud.control.db.transact(|_| Ok(Txn::new().create(&work))).await.unwrap();
    let report = |generation| DiskObserved { id: id.clone(), generation, bytes: None, fault: None };
    cloud.control.disk_observed("here", &report(4)).await.unwrap();
    cloud.control.disk_observed("there", &report(5)).await.unwrap();
    assert_eq!(cloud.left_of_volumes().1, 1);
    cloud.control.disk_observed("here", &report(5)).await.unwrap();
    cloud.control.disk_observed("here", &report(5)).await.unwrap();
    cloud.until_volume(&id, Some(Status::Available)).await;
    assert_eq!(cloud.left_of_volumes().1, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn backups_whole_and_differing_become_volumes_again_and_leave_nothing() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let id = cloud.volume(of_size(1)).await;
    cloud.until_volume(&id, Some(Status::Available)).await;
    let mut made: Vec<String> = Vec::new();
    for incremental in [false, true] {
        let new = NewBackup { volume_id: id.clone(), incremental, ..NewBackup::default() };
        let backup = control.volume_backup_create(admin, new).await.unwrap().row.id.clone();
        cloud.until_volume(&id, Some(Status::Available)).await;
        assert_eq!(control.volume_backup(admin, &backup).await.unwrap().row.status, Status::Available);
        made.push(backup);
    }
    let refused = control.volume_backup_delete(admin, &made[0], false).await;
    assert!(matches!(refused, Err(Error::Invalid { reason: "InvalidBackup", .. })), "{refused:?}");
    let (restored, _) = control.volume_backup_restore(admin, &made[1], None, None).await.unwrap();
    cloud.until_volume(&restored, Some(Status::Available)).await;
    control.volume_backup_restore(admin, &made[1], Some(&id), None).await.unwrap();
    cloud.until_volume(&id, Some(Status::Available)).await;
    for backup in made.iter().rev() {
        control.volume_backup_delete(admin, backup, false).await.unwrap();
        for _ in 0..500 {
            if control.volume_backup(admin, backup).await.is_err() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        assert!(control.volume_backup(admin, backup).await.is_err());
    }
    for volume in [&id, &restored] {
        control.volume_delete(admin, volume, false, false).await.unwrap();
        cloud.until_volume(volume, None).await;
    }
    assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
    assert_eq!(control.quota("p", crate::service::quota::Resource::BackupGib).used, 0);
    let files = std::fs::read_dir(cloud._state.path().join("volumes/fake-0/backups")).unwrap();
    assert_eq!(files.count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_set_to_error_while_somebody_has_it_is_free_once_it_is_detached() {
    use crate::service::volume::attachment::NewAttachment;
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let id = cloud.volume(of_size(1)).await;
    cloud.until_volume(&id, Some(Status::Available)).await;
    let new = NewAttachment { volume_id: id.clone(), ..NewAttachment::default() };
    control.volume_attach(admin, new).await.unwrap();
    control.volume_reset(admin, &id, Some(Status::Error), false, None).await.unwrap();
    control.volume_detach(admin, &id, None).await.unwrap();
    cloud.until_volume(&id, Some(Status::Available)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn type_is_never_gone_from_under_a_volume_that_gets_it_meanwhile() {
    let cloud = Cloud::with_volumes().await;
    let mut kept = 0;
    for round in 0..40 {
        let name = format!("t{round}");
        let kind = cloud.control.volume_type_create(&cloud.admin, (&name, None, true), BTreeMap::new()).await;
        let id = kind.unwrap().row.id.clone();
        let (creator, deleter) = (cloud.control.clone(), cloud.control.clone());
        let (by, then) = (cloud.admin.clone(), cloud.admin.clone());
        let (of, gone) = (id.clone(), id.clone());
        let made = tokio::spawn(async move {
            creator.volume_create(&by, NewVolume { volume_type: Some(of), ..of_size(1) }).await.map(drop)
        });
        let deleted = tokio::spawn(async move { deleter.volume_type_delete(&then, &gone).await });
        let (made, deleted) = (made.await.unwrap(), deleted.await.unwrap());
        cloud.control.db.caught_up().await.unwrap();
        let there = cloud.control.db.get::<VolumeType>(&id);
        let used = cloud.control.db.cache().find(|volume: &Volume| volume.type_id == id);
        assert_eq!(
            (made.is_ok(), deleted.is_ok()),
            (used.is_some(), there.is_none()),
            "{made:?} {deleted:?}"
        );
        assert!(there.is_some() || used.is_none(), "round {round}: the type is gone, and a volume has it");
        assert!(!there.as_ref().is_some_and(|kind| kind.row.leaving), "it stays on its way out");
        kept += usize::from(there.is_some());
        if let Some(volume) = used {
            cloud.until_volume(&volume.row.id, Some(Status::Available)).await;
            cloud.control.volume_delete(&cloud.admin, &volume.row.id, false, false).await.unwrap();
            cloud.until_volume(&volume.row.id, None).await;
        }
    }
    println!("{kept} of 40 types were kept by a volume");
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_is_encrypted_as_its_type_says_whatever_is_said_of_the_type_meanwhile() {
    use crate::model::volume::Encryption;
    let cloud = Cloud::with_volumes().await;
    let mut encrypted = 0;
    for round in 0..40 {
        let name = format!("e{round}");
        let kind = cloud.control.volume_type_create(&cloud.admin, (&name, None, true), BTreeMap::new()).await;
        let id = kind.unwrap().row.id.clone();
        let spec = Encryption {
            id: crate::model::random_uuid(),
            provider: "luks".to_owned(),
            cipher: None,
            key_size: None,
            control_location: "front-end".to_owned(),
            created_at: jiff::Timestamp::now(),
            updated_at: None,
        };
        let (creator, changer) = (cloud.control.clone(), cloud.control.clone());
        let (by, then) = (cloud.admin.clone(), cloud.admin.clone());
        let (of, changed) = (id.clone(), id.clone());
        let made = tokio::spawn(async move {
            creator.volume_create(&by, NewVolume { volume_type: Some(of), ..of_size(1) }).await.map(drop)
        });
        let said =
            tokio::spawn(async move { changer.volume_type_encrypt(&then, &changed, Some(spec)).await });
        let (made, said) = (made.await.unwrap(), said.await.unwrap());
        cloud.control.db.caught_up().await.unwrap();
        let kind = cloud.control.db.get::<VolumeType>(&id).unwrap();
        assert!(!kind.row.settling, "round {round}: it stays about to change");
        assert_eq!(kind.row.encryption.is_some(), said.is_ok(), "round {round}: {said:?}");
        let volume = cloud.control.db.cache().find(|volume: &Volume| volume.type_id == id);
        assert_eq!(volume.is_some(), made.is_ok(), "round {round}: {made:?}");
        if let Some(volume) = volume {
            let same = volume.row.encryption.is_some() == kind.row.encryption.is_some();
            assert!(same, "round {round}: the volume is not as its type says");
            encrypted += usize::from(volume.row.encryption.is_some());
            cloud.until_volume(&volume.row.id, Some(Status::Available)).await;
            cloud.control.volume_delete(&cloud.admin, &volume.row.id, false, false).await.unwrap();
            cloud.until_volume(&volume.row.id, None).await;
        }
    }
    println!("{encrypted} of 40 volumes were encrypted");
}

#[tokio::test(flavor = "multi_thread")]
async fn record_of_a_backup_names_what_keeps_it() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let volume = cloud.volume(of_size(1)).await;
    cloud.until_volume(&volume, Some(Status::Available)).await;
    let new = NewBackup { volume_id: volume, ..NewBackup::default() };
    let id = control.volume_backup_create(admin, new).await.unwrap().row.id.clone();
    let backup = || control.db.get::<Backup>(&id).unwrap();
    while backup().row.status != Status::Available {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let (service, record) = control.volume_backup_export(admin, &id).await.unwrap();
    assert_eq!(service, "cinder.backup.drivers.posix.PosixBackupDriver");
    let stored = backup();
    let elsewhere = Backup { in_bucket: true, ..stored.row.clone() };
    control.db.transact(|_| Ok(Txn::new().update(&stored, &elsewhere))).await.unwrap();
    let (service, _) = control.volume_backup_export(admin, &id).await.unwrap();
    assert_eq!(service, "cinder.backup.drivers.s3.S3BackupDriver");
    let refused = control.volume_backup_import(admin, service, &record).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "no bucket is here: {refused:?}");
}
