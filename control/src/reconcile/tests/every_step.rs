//! Every action that takes more than one commit, its host's part included, cut off before each of them: another process
//! comes, and nothing half made stays. What the owner was not told, the owner asks for again; all can be deleted, and
//! quotas are what is there.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use super::volumes::{device, of_size};
use super::*;
use crate::model::image::{ImageBlob, ImageTask};
use crate::model::volume::{
    AttachStatus, Backup, DiskWork, Group, GroupSnapshot, Snapshot, Status, Transfer, Volume,
    VolumeAttachment, VolumeType,
};
use crate::service::quota::{Resource, of_type};
use crate::service::server::image::{BackupSeries, NewServerImage};
use crate::service::server::volume::{DeviceSource, NewServerVolume};
use crate::service::volume::NewVolume;
use crate::service::volume::attachment::NewAttachment;
use crate::service::volume::backup::{DIRECTORY_SERVICE, NewBackup};
use crate::service::volume::group::{GroupUpdate, NewGroup};
use crate::service::volume::snapshot::NewSnapshot;

/// What one row, or one with its data, is made by.
const CREATIONS: [&str; 11] = [
    "create",
    "clone",
    "volume of a snapshot",
    "volume of a backup",
    "volume of a qcow2 image",
    "snapshot",
    "backup",
    "backup of differences",
    "group",
    "group snapshot",
    "transfer",
];
/// The most commits that one of these takes, from the request to what was asked for being there: each is a wait for
/// the disk.
const CREATION_COMMITS_MAX: u32 = 3;

/// The most commits that an action is looked at for; all take fewer.
const COMMITS_MAX: u32 = 40;

/// What an action works on, by what it is.
type Ids = BTreeMap<&'static str, String>;

/// What is under way in this state, and so must have something that ends it.
fn is_under_way(status: Status) -> bool {
    use Status::*;
    !matches!(
        status,
        Available
            | InUse
            | Reserved
            | Attaching
            | AwaitingTransfer
            | Error
            | ErrorDeleting
            | ErrorExtending
            | ErrorRestoring
            | ErrorManaging
            | ErrorBackingUp
    )
}

/// Whether a volume is on its way to a server.
fn has_attaching(control: &Control, server: &Server) -> bool {
    let attachments = server.volumes.iter().map(|attached| &attached.attachment_id);
    let mut attachments = attachments.filter_map(|id| control.db.get::<VolumeAttachment>(id));
    attachments.any(|attachment| attachment.row.status == AttachStatus::Attaching)
}

fn names_below(directory: &Path) -> BTreeSet<String> {
    let Ok(entries) = std::fs::read_dir(directory) else { return BTreeSet::new() };
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

impl Cloud {
    /// Whether nothing is under way that ends by itself.
    fn is_settled(&self) -> bool {
        let db = &self.control.db;
        db.list::<DiskWork>().is_empty()
            && self.control.image_tasks.is_idle()
            && db.cache().find(|volume: &Volume| volume.waits_for.is_some()).is_none()
            && db.cache().find(|task: &ImageTask| !task.status.is_over()).is_none()
            && db.cache().find(|volume: &Volume| volume.status == Status::Detaching).is_none()
            && !db.list::<Server>().iter().any(|server| has_attaching(&self.control, &server.row))
            && db
                .list::<Server>()
                .iter()
                .all(|server| server.row.task.is_none() && server.row.power != Power::Deleted)
    }

    /// Waits until nothing is under way, or the process is dead.
    async fn settle(&self) {
        for _ in 0..12_000 {
            if self.process.is_dead() || (self.control.db.caught_up().await.is_ok() && self.is_settled()) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let works = self.control.db.list::<DiskWork>();
        panic!("something stays under way: {works:?}, {:?}", self.audit());
    }

    /// All that is not as it must be once nothing is under way.
    fn audit(&self) -> Vec<String> {
        let db = &self.control.db;
        let mut wrong = Vec::new();
        let mut stuck = |kind: &str, id: &str, status: Status| {
            if is_under_way(status) {
                wrong.push(format!("{kind} {id} stays {}", status.name()));
            }
        };
        let volumes = db.list::<Volume>();
        let snapshots = db.list::<Snapshot>();
        let backups = db.list::<Backup>();
        volumes.iter().for_each(|one| stuck("volume", &one.row.id, one.row.status));
        snapshots.iter().for_each(|one| stuck("snapshot", &one.row.id, one.row.status));
        backups.iter().for_each(|one| stuck("backup", &one.row.id, one.row.status));
        db.list::<Group>().iter().for_each(|one| stuck("group", &one.row.id, one.row.status));
        db.list::<GroupSnapshot>()
            .iter()
            .for_each(|one| stuck("group snapshot", &one.row.id, one.row.status));
        for stored in &volumes {
            let volume = &stored.row;
            let counted = snapshots.iter().filter(|one| one.row.volume_id == volume.id).count();
            let has: BTreeSet<_> = volume.attachments.iter().cloned().collect();
            let attachments = db.cache().filter::<VolumeAttachment>(|one| one.volume_id == volume.id);
            let known: BTreeSet<_> = attachments.iter().map(|one| one.row.id.clone()).collect();
            let offered = db.cache().find(|one: &Transfer| one.volume_id == volume.id).is_some();
            let taken = matches!(
                volume.status,
                Status::InUse | Status::Reserved | Status::Attaching | Status::Detaching
            );
            let group = volume.group_id.as_ref();
            let in_group = db.cache().find(|one: &Group| one.volume_ids.contains(&volume.id));
            for (what, holds) in [
                ("its count of snapshots", usize::try_from(volume.snapshots) == Ok(counted)),
                ("its attachments", has == known),
                ("that it is taken", taken != has.is_empty()),
                ("its offer", offered == (volume.status == Status::AwaitingTransfer)),
                ("its group", group == in_group.as_ref().map(|group| &group.row.id)),
            ] {
                if !holds {
                    wrong.push(format!("volume {} in {}: {what} is wrong", volume.id, volume.status.name()));
                }
            }
        }
        let leaving = db.cache().filter::<VolumeType>(|kind| kind.leaving || kind.settling);
        wrong.extend(leaving.iter().map(|kind| format!("type {} stays on its way out", kind.row.id)));
        for backup in &backups {
            let children =
                backups.iter().filter(|one| one.row.parent_id.as_ref() == Some(&backup.row.id)).count();
            if usize::try_from(backup.row.dependents) != Ok(children) {
                wrong.push(format!("backup {} counts {} dependents", backup.row.id, backup.row.dependents));
            }
        }
        for stored in db.list::<Image>() {
            let image = &stored.row;
            let still = matches!(
                image.status,
                ImageStatus::Active | ImageStatus::Deactivated | ImageStatus::Uploading | ImageStatus::Queued
            );
            if !still || image.import_task.is_some() {
                wrong.push(format!("image {} stays {:?}", image.id, image.status));
            }
        }
        self.audit_quotas(&mut wrong);
        self.audit_files(&mut wrong);
        wrong
    }

    fn audit_quotas(&self, wrong: &mut Vec<String>) {
        let db = &self.control.db;
        let mut used: BTreeMap<String, u64> = BTreeMap::new();
        let mut count = |owner: &str, name: &str, by: u64| {
            *used.entry(Usage::key(owner, name)).or_default() += by;
        };
        let mut of_kind = |owner: &str, type_id: &str, resource: Resource, gib: u64| {
            for (resource, by) in [(resource, 1), (Resource::VolumeGib, gib)] {
                count(owner, resource.name(), by);
                count(owner, &of_type(resource, type_id), by);
            }
        };
        for volume in db.list::<Volume>() {
            let row = &volume.row;
            of_kind(&row.project_id, &row.type_id, Resource::Volumes, row.size_gib);
        }
        for snapshot in db.list::<Snapshot>() {
            let row = &snapshot.row;
            of_kind(&row.project_id, &row.type_id, Resource::Snapshots, row.size_gib);
        }
        for backup in db.list::<Backup>() {
            count(&backup.row.project_id, Resource::Backups.name(), 1);
            count(&backup.row.project_id, Resource::BackupGib.name(), backup.row.size_gib);
        }
        for group in db.list::<Group>() {
            count(&group.row.project_id, Resource::VolumeGroups.name(), 1);
        }
        for stored in db.list::<Image>().iter().filter(|stored| stored.row.owner.is_some()) {
            let owner = stored.row.owner.as_deref().unwrap();
            let mib = crate::service::image_data::charged_mib(&stored.row);
            count(owner, Resource::Images.name(), 1);
            count(owner, Resource::ImageMib.name(), u64::try_from(mib).unwrap());
        }
        let ours = ["volumes", "gigabytes", "snapshots", "backup", "groups", "image_"];
        for usage in db.list::<Usage>() {
            let name = usage.row.id.split_once('/').map_or("", |(_, name)| name);
            if ours.iter().any(|prefix| name.starts_with(prefix)) {
                let expected = used.remove(&usage.row.id).unwrap_or(0);
                if expected != usage.row.used {
                    wrong.push(format!("{} says {}, not {expected}", usage.row.id, usage.row.used));
                }
            }
        }
        used.retain(|_, by| *by > 0);
        if !used.is_empty() {
            wrong.push(format!("not counted: {used:?}"));
        }
    }

    /// What is on the host and in the images' directory that no row has.
    fn audit_files(&self, wrong: &mut Vec<String>) {
        let db = &self.control.db;
        let host = self._state.path().join("volumes/fake-0");
        let mut disks = names_below(&host.join("disks"));
        let mut others = names_below(&self._state.path().join("other/fake-0/disks"));
        for volume in db.list::<Volume>() {
            let there = if volume.row.backend.as_deref() == Some("other") { &mut others } else { &mut disks };
            if !there.remove(volume.row.disk()) && volume.row.status == Status::Available {
                wrong.push(format!("volume {} is not where its row says", volume.row.id));
            }
        }
        for snapshot in db.list::<Snapshot>() {
            disks.remove(snapshot.row.disk());
        }
        let mut backups = names_below(&host.join("backups"));
        for backup in db.list::<Backup>() {
            backups.remove(backup.row.data());
        }
        let mut images = names_below(&self._state.path().join("images"));
        images.retain(|name| db.get::<ImageBlob>(&ImageBlob::key("file", name)).is_none());
        for image in db.list::<Image>() {
            images.remove(&crate::service::image_store::Images::staged(&image.row.id));
            images.remove(&image.row.id);
        }
        // Raw disks of qcow2 images stay until the next collection.
        images.retain(|name| !name.ends_with("-raw"));
        let outgoing = names_below(&host.join("outgoing"));
        for (what, left) in [
            ("disks", disks),
            ("other disks", others),
            ("backups", backups),
            ("images", images),
            ("outgoing", outgoing),
        ] {
            if !left.is_empty() {
                wrong.push(format!("{what} that nobody has: {left:?}"));
            }
        }
    }

    /// Deletes everything, as owners do; what is left must be nothing.
    async fn clear(&self) {
        let (control, admin, db) = (&self.control, &self.admin, &self.control.db);
        for server in db.list::<Server>() {
            control.server_delete(admin, &server.row.id).await.unwrap();
            self.until(&server.row.id, |server| server.is_none()).await;
        }
        for transfer in db.list::<Transfer>() {
            control.volume_transfer_delete(admin, &transfer.row.id).await.unwrap();
        }
        for attachment in db.list::<VolumeAttachment>() {
            control.volume_attachment_delete(admin, &attachment.row.id).await.unwrap();
        }
        for snapshot in db.list::<GroupSnapshot>() {
            control.volume_group_snapshot_delete(admin, &snapshot.row.id).await.unwrap();
        }
        self.settle().await;
        for group in db.list::<Group>() {
            control.volume_group_delete(admin, &group.row.id, true).await.unwrap();
        }
        loop {
            self.settle().await;
            let backups = db.list::<Backup>();
            let Some(leaf) = backups.iter().find(|one| one.row.dependents == 0) else { break };
            control.volume_backup_delete(admin, &leaf.row.id, false).await.unwrap();
        }
        for volume in db.list::<Volume>() {
            control.volume_delete(admin, &volume.row.id, true, false).await.unwrap();
        }
        for image in db.list::<Image>().iter().filter(|image| image.row.owner.is_some()) {
            control.image_delete(admin, &image.row.id).await.unwrap();
        }
        self.settle().await;
        let rows = [
            db.list::<Volume>().len(),
            db.list::<Snapshot>().len(),
            db.list::<Backup>().len(),
            db.list::<Group>().len(),
            db.list::<GroupSnapshot>().len(),
            db.list::<VolumeAttachment>().len(),
            db.list::<Server>().len(),
        ];
        assert_eq!(rows, [0; 7]);
    }

    async fn snapshot_of(&self, volume: &str) -> Result<String> {
        let new = NewSnapshot { volume_id: volume.to_owned(), force: true, ..NewSnapshot::default() };
        Ok(self.control.volume_snapshot_create(&self.admin, new).await?.row.id.clone())
    }

    async fn backup_of(&self, volume: &str, incremental: bool) -> Result<String> {
        let new = NewBackup { volume_id: volume.to_owned(), incremental, ..NewBackup::default() };
        Ok(self.control.volume_backup_create(&self.admin, new).await?.row.id.clone())
    }

    async fn image_of(&self, server: &str, backup: Option<BackupSeries>) -> Result<()> {
        let new = NewServerImage { name: "i".to_owned(), backup, ..NewServerImage::default() };
        self.control.server_image_create(&self.admin, server, &new).await.map(drop)
    }

    async fn group_with(&self, volumes: &[&str]) -> String {
        let (control, admin) = (&self.control, &self.admin);
        let kind = ("kind".to_owned(), None, true);
        let kind = control.volume_group_type_create(admin, kind, BTreeMap::new()).await.unwrap();
        let of = control.volume_type_default(admin).await.unwrap().row.id.clone();
        let new = NewGroup { group_type: kind.row.id.clone(), volume_types: vec![of], ..NewGroup::default() };
        let group = control.volume_group_create(admin, new).await.unwrap().row.id.clone();
        let add = volumes.iter().map(|id| (*id).to_owned()).collect();
        let update = GroupUpdate { add, ..GroupUpdate::default() };
        control.volume_group_update(admin, &group, &update).await.unwrap();
        group
    }

    /// What all actions may need: two volumes, the first with a snapshot, and whatever `action` needs besides.
    async fn prepare(&self, action: &str) -> Ids {
        let (control, admin) = (&self.control, &self.admin);
        let mut ids = Ids::new();
        if action.starts_with("image")
            || action == "volume of a qcow2 image"
            || action == "delete while it waits"
        {
            let content = super::volume_images::qcow2(1 << 20, b"a disk");
            ids.insert("qcow2", self.image("qcow2", content).await);
            return ids;
        }
        let volume = self.volume(of_size(1)).await;
        self.until_volume(&volume, Some(Status::Available)).await;
        if action.contains("snapshot") || action == "cascade" || action == "transfer" || action == "revert" {
            ids.insert("snapshot", self.snapshot_of(&volume).await.unwrap());
            self.settle().await;
        }
        if action.contains("backup") {
            ids.insert("backup", self.backup_of(&volume, false).await.unwrap());
            self.settle().await;
        }
        if action == "cascade" {
            self.snapshot_of(&volume).await.unwrap();
        }
        if action.starts_with("group") {
            let other = self.volume(of_size(1)).await;
            self.until_volume(&other, Some(Status::Available)).await;
            if action.contains("snapshot") {
                control.volume_snapshot_delete(admin, &ids["snapshot"], false).await.unwrap();
                self.settle().await;
            }
            ids.insert("group", self.group_with(&[&volume, &other]).await);
            if action == "group snapshot delete" || action == "group from group snapshot" {
                let made = control.volume_group_snapshot_create(admin, &ids["group"], None, None).await;
                ids.insert("group snapshot", made.unwrap().row.id.clone());
            }
        }
        let gets_key = action.ends_with("key");
        if action.starts_with("retype")
            || action == "delete while it moves"
            || action == "type delete"
            || gets_key
        {
            let kind = ("other", None, true);
            let mut specs = BTreeMap::new();
            if action != "retype" && action != "type delete" && !gets_key {
                specs.insert("volume_backend_name".to_owned(), "other".to_owned());
            }
            let kind = control.volume_type_create(admin, kind, specs).await.unwrap();
            if gets_key {
                let spec = super::encryption::spec(256);
                control.volume_type_encrypt(admin, &kind.row.id, Some(spec)).await.unwrap();
            }
            ids.insert("type", kind.row.id.clone());
        }
        if action == "server of volumes becomes an image" {
            ids.insert("server", self.server_of_volumes().await);
        } else if action.starts_with("server") && action != "server with new volumes" {
            self.fill_image();
            let server = self.create().await;
            self.until_status(&server, "ACTIVE").await;
            ids.insert("server", server);
        }
        if action == "server becomes the only backup" {
            self.act(action, &ids).await.unwrap();
            self.settle().await;
        }
        if action == "server gives back" || action == "server goes with its volume" {
            let new = NewServerVolume {
                volume_id: volume.clone(),
                delete_on_termination: action == "server goes with its volume",
                ..NewServerVolume::default()
            };
            control.server_volume_attach(admin, &ids["server"], &new).await.unwrap();
        }
        if matches!(action, "attachment complete" | "attachment delete" | "detach") {
            let connector = BTreeMap::from([("host".to_owned(), "there".into())]);
            let new = NewAttachment {
                volume_id: volume.clone(),
                connector: Some(connector),
                ..NewAttachment::default()
            };
            let made = control.volume_attachment_create(admin, new).await.unwrap();
            ids.insert("attachment", made.row.id.clone());
        }
        if action == "transfer accept" {
            let (transfer, key) = control.volume_transfer_create(admin, &volume, None, false).await.unwrap();
            ids.insert("transfer", transfer.id);
            ids.insert("key", key);
        }
        if action == "backup import" {
            let (_, record) = control.volume_backup_export(admin, &ids["backup"]).await.unwrap();
            // Under an id of its own, as a cloud that lost its rows would: it shares the files.
            use base64::Engine as _;
            let json = base64::engine::general_purpose::STANDARD.decode(record).unwrap();
            let new = crate::model::random_uuid();
            let json = String::from_utf8(json).unwrap();
            let json =
                json.replacen(&format!("\"id\":\"{}\"", ids["backup"]), &format!("\"id\":\"{new}\""), 1);
            ids.insert("record", base64::engine::general_purpose::STANDARD.encode(json));
        }
        ids.insert("volume", volume);
        ids
    }

    /// The action itself.
    async fn act(&self, action: &str, ids: &Ids) -> Result<()> {
        let (control, admin) = (&self.control, &self.admin);
        let volume = ids.get("volume").map_or("", String::as_str);
        let of = |new: NewVolume| async move { control.volume_create(admin, new).await.map(drop) };
        match action {
            "create" => of(of_size(1)).await,
            "clone" => of(NewVolume { source_volume_id: Some(volume.to_owned()), ..of_size(2) }).await,
            "volume of a snapshot" => {
                of(NewVolume { snapshot_id: Some(ids["snapshot"].clone()), ..of_size(1) }).await
            }
            "volume of a backup" => {
                of(NewVolume { backup_id: Some(ids["backup"].clone()), ..of_size(1) }).await
            }
            "volume of a qcow2 image" => {
                of(NewVolume { image_id: Some(ids["qcow2"].clone()), ..of_size(1) }).await
            }
            "delete" => control.volume_delete(admin, volume, false, false).await,
            "cascade" => control.volume_delete(admin, volume, true, false).await,
            "delete while it is made" => {
                let made = control.volume_create(admin, of_size(1)).await?;
                control.volume_delete(admin, &made.volume.row.id, false, true).await
            }
            "delete while it waits" => {
                let new = NewVolume { image_id: Some(ids["qcow2"].clone()), ..of_size(1) };
                let made = control.volume_create(admin, new).await?;
                control.volume_delete(admin, &made.volume.row.id, false, true).await
            }
            "delete while it is extended" => {
                control.volume_extend(admin, volume, 3, false).await?;
                control.volume_delete(admin, volume, false, true).await
            }
            "delete while a backup is restored to it" => {
                control.volume_backup_restore(admin, &ids["backup"], Some(volume), None).await?;
                control.volume_delete(admin, volume, false, true).await
            }
            "delete what is made of a backup" => {
                let (new, _) = control.volume_backup_restore(admin, &ids["backup"], None, None).await?;
                control.volume_delete(admin, &new, false, true).await
            }
            "delete while it is uploaded" => {
                control.volume_upload(admin, volume, false, described()).await?;
                control.volume_delete(admin, volume, false, true).await
            }
            "snapshot" => self.snapshot_of(volume).await.map(drop),
            "snapshot delete" => control.volume_snapshot_delete(admin, &ids["snapshot"], false).await,
            "snapshot delete while it is made" => {
                let made = self.snapshot_of(volume).await?;
                control.volume_snapshot_delete(admin, &made, true).await
            }
            "revert" => control.volume_revert(admin, volume, &ids["snapshot"]).await,
            "revert and delete with the snapshot" => {
                control.volume_revert(admin, volume, &ids["snapshot"]).await?;
                control.volume_delete(admin, volume, true, true).await
            }
            "extend" => control.volume_extend(admin, volume, 3, false).await,
            "retype" => control.volume_retype(admin, volume, &ids["type"], false).await,
            "retype by moving" | "retype with a key" => {
                control.volume_retype(admin, volume, &ids["type"], true).await
            }
            "type delete" => control.volume_type_delete(admin, &ids["type"]).await,
            "migrate" => control.volume_migrate(admin, volume, "fake-0@other").await,
            "delete while it moves" | "delete while it gets a key" => {
                control.volume_retype(admin, volume, &ids["type"], true).await?;
                control.volume_delete(admin, volume, false, true).await
            }
            "upload" => control.volume_upload(admin, volume, false, described()).await.map(drop),
            "backup" => self.backup_of(volume, false).await.map(drop),
            "backup of differences" => self.backup_of(volume, true).await.map(drop),
            "backup of a snapshot" => {
                let new = NewBackup {
                    volume_id: volume.to_owned(),
                    snapshot_id: Some(ids["snapshot"].clone()),
                    ..NewBackup::default()
                };
                control.volume_backup_create(admin, new).await.map(drop)
            }
            "backup restore" => {
                control.volume_backup_restore(admin, &ids["backup"], None, None).await.map(drop)
            }
            "backup restore over" => {
                let done = control.volume_backup_restore(admin, &ids["backup"], Some(volume), None).await;
                done.map(drop)
            }
            "backup delete" => control.volume_backup_delete(admin, &ids["backup"], false).await,
            "backup delete while it is made" => {
                let made = self.backup_of(volume, true).await?;
                control.volume_backup_delete(admin, &made, true).await
            }
            "backup import" => {
                control.volume_backup_import(admin, DIRECTORY_SERVICE, &ids["record"]).await.map(drop)
            }
            "group" => {
                let update = GroupUpdate { remove: vec![volume.to_owned()], ..GroupUpdate::default() };
                control.volume_group_update(admin, &ids["group"], &update).await
            }
            "group from group" => {
                let names = (None, None);
                control.volume_group_copy(admin, names, None, Some(&ids["group"])).await.map(drop)
            }
            "group from group snapshot" => {
                let names = (None, None);
                let from = Some(ids["group snapshot"].as_str());
                control.volume_group_copy(admin, names, from, None).await.map(drop)
            }
            "group delete" => control.volume_group_delete(admin, &ids["group"], true).await,
            "group snapshot" => {
                let made = control.volume_group_snapshot_create(admin, &ids["group"], None, None).await;
                made.map(drop)
            }
            "group snapshot delete" => {
                control.volume_group_snapshot_delete(admin, &ids["group snapshot"]).await
            }
            "transfer" => control.volume_transfer_create(admin, volume, None, false).await.map(drop),
            "transfer accept" => {
                let taker = caller("q", RoleLevel::Admin);
                control.volume_transfer_accept(&taker, &ids["transfer"], &ids["key"]).await.map(drop)
            }
            "attach" => {
                let new = NewAttachment { volume_id: volume.to_owned(), ..NewAttachment::default() };
                let connector = BTreeMap::from([("host".to_owned(), "there".into())]);
                control.volume_attach(admin, NewAttachment { connector: Some(connector), ..new }).await
            }
            "detach" => control.volume_detach(admin, volume, None).await,
            "attachment" => {
                let new = NewAttachment { volume_id: volume.to_owned(), ..NewAttachment::default() };
                control.volume_attachment_create(admin, new).await.map(drop)
            }
            "attachment complete" => control.volume_attachment_complete(admin, &ids["attachment"]).await,
            "attachment delete" => control.volume_attachment_delete(admin, &ids["attachment"]).await,
            "server takes" => {
                let new = NewServerVolume { volume_id: volume.to_owned(), ..NewServerVolume::default() };
                control.server_volume_attach(admin, &ids["server"], &new).await.map(drop)
            }
            "server gives back" => control.server_volume_detach(admin, &ids["server"], volume).await,
            "server goes with its volume" => control.server_delete(admin, &ids["server"]).await,
            "server with new volumes" => {
                let mut new = self.new_servers();
                new.image_id = String::new();
                new.min_count = 2;
                new.max_count = 2;
                let image = DeviceSource::Image(IMAGE.to_owned());
                new.devices = vec![device(image, true, 1), device(DeviceSource::Blank, false, 1)];
                std::fs::write(self._state.path().join("images").join(IMAGE), [0; 512]).unwrap();
                control.servers_create(admin, new).await.map(drop)
            }
            "server becomes an image" | "server of volumes becomes an image" => {
                self.image_of(&ids["server"], None).await
            }
            "server goes while it becomes an image" => {
                self.image_of(&ids["server"], None).await?;
                control.server_delete(admin, &ids["server"]).await
            }
            "server becomes the only backup" => {
                let series = BackupSeries { kind: "daily".to_owned(), rotation: 1 };
                self.image_of(&ids["server"], Some(series)).await
            }
            "image import" => self.import_staged().await,
            other => panic!("no action {other}"),
        }
    }

    /// All the steps of an import of what is staged.
    async fn import_staged(&self) -> Result<()> {
        use crate::model::image::ImageSource;
        use crate::service::image_data::UploadTo;
        use crate::service::image_import::{ImportWish, Stores};
        let (control, admin) = (&self.control, &self.admin);
        let id = control.image_create(admin, None, described()).await?.row.id.clone();
        let mut upload = control.image_upload(admin, &id, UploadTo::Staging).await?;
        upload.write(bytes::Bytes::from_static(b"staged")).await;
        upload.finish().await?;
        let wish = ImportWish {
            source: ImageSource::Staged,
            stores: Stores::These(Vec::new()),
            all_must_succeed: true,
            request: serde_json::json!({"method": {"name": "glance-direct"}}),
        };
        control.image_import(admin, &id, wish).await
    }
}

fn described() -> Vec<crate::service::image::ImageChange> {
    use crate::service::image::ImageChange;
    vec![ImageChange::DiskFormat(Some("raw".into())), ImageChange::ContainerFormat(Some("bare".into()))]
}

/// Cuts each action off before each commit.
async fn cut_off(actions: &[&str]) {
    let mut wrong = Vec::new();
    for wished in actions {
        let action = wished.strip_prefix("encrypted: ").unwrap_or(wished);
        let mut commits = 0;
        loop {
            let mut cloud = Cloud::with_volumes().await;
            if action != *wished {
                let (control, admin) = (&cloud.control, &cloud.admin);
                let kind = control.volume_type_default(admin).await.unwrap().row.id.clone();
                let spec = super::encryption::spec(256);
                control.volume_type_encrypt(admin, &kind, Some(spec)).await.unwrap();
            }
            let ids = cloud.prepare(action).await;
            cloud.settle().await;
            assert_eq!(cloud.audit(), Vec::<String>::new(), "{action}: before it");
            cloud.process.dies_after(commits);
            let answer = cloud.act(action, &ids).await;
            cloud.settle().await;
            let died = cloud.process.is_dead();
            if action.starts_with("upload") || action.contains("image") && action.starts_with("server") {
                // Only owners have images without data.
                let queued =
                    cloud.control.db.cache().filter::<Image>(|one| one.status == ImageStatus::Queued);
                assert!(died || queued.is_empty(), "an image got no data");
            }
            assert!(died || answer.is_ok(), "{action} is refused: {answer:?}");
            cloud.restart().await;
            cloud.settle().await;
            let mut found = cloud.audit();
            if answer.is_err() {
                // Not told that it was done, the owner asks again; that it was done already is an answer too.
                let again = cloud.act(action, &ids).await;
                if matches!(again, Err(Error::Store(_))) {
                    found.push(format!("asked again: {again:?}"));
                }
                cloud.settle().await;
                found.extend(cloud.audit());
            }
            wrong.extend(found.iter().map(|what| format!("{action}, cut off at {commits}: {what}")));
            cloud.clear().await;
            wrong.extend(cloud.audit().iter().map(|what| format!("{action}, {commits}, cleared: {what}")));
            if !died {
                break;
            }
            commits += 1;
            assert!(commits < COMMITS_MAX, "{action} does not end");
        }
        println!("{wished}: cut off at each of {commits} commits");
        assert!(
            !CREATIONS.contains(&action) || commits <= CREATION_COMMITS_MAX,
            "{action}: {commits} commits"
        );
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn volumes_cut_off_at_each_commit_leave_nothing_half_made() {
    cut_off(&["create", "clone", "volume of a snapshot", "volume of a backup", "volume of a qcow2 image"])
        .await;
    cut_off(&[
        "delete",
        "cascade",
        "extend",
        "retype",
        "retype by moving",
        "retype with a key",
        "migrate",
        "upload",
    ])
    .await;
    cut_off(&["type delete"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn deletions_of_what_is_under_way_cut_off_at_each_commit_leave_nothing_half_made() {
    cut_off(&[
        "delete while it is made",
        "delete while it waits",
        "delete while it is extended",
        "delete while a backup is restored to it",
        "delete what is made of a backup",
        "delete while it is uploaded",
        "delete while it moves",
        "delete while it gets a key",
        "snapshot delete while it is made",
        "revert and delete with the snapshot",
        "backup delete while it is made",
    ])
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn snapshots_and_backups_cut_off_at_each_commit_leave_nothing_half_made() {
    cut_off(&["snapshot", "snapshot delete", "revert"]).await;
    cut_off(&["backup", "backup of differences", "backup of a snapshot", "backup import"]).await;
    cut_off(&["backup restore", "backup restore over", "backup delete"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_volumes_cut_off_at_each_commit_leave_nothing_half_made() {
    cut_off(&["encrypted: clone", "encrypted: volume of a qcow2 image", "encrypted: migrate"]).await;
    cut_off(&["encrypted: upload", "encrypted: delete while it is uploaded", "encrypted: revert"]).await;
    cut_off(&["encrypted: backup import", "encrypted: backup restore", "encrypted: backup restore over"])
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn groups_and_transfers_cut_off_at_each_commit_leave_nothing_half_made() {
    cut_off(&["group", "group from group", "group from group snapshot", "group delete"]).await;
    cut_off(&["group snapshot", "group snapshot delete", "transfer", "transfer accept"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn attachments_and_servers_volumes_cut_off_at_each_commit_leave_nothing_half_made() {
    cut_off(&["attach", "detach", "attachment", "attachment complete", "attachment delete"]).await;
    cut_off(&["server takes", "server gives back", "server goes with its volume"]).await;
    cut_off(&["server with new volumes"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_servers_cut_off_at_each_commit_leave_nothing_half_made() {
    cut_off(&["server becomes an image", "server goes while it becomes an image"]).await;
    cut_off(&["server becomes the only backup", "server of volumes becomes an image"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn imports_of_images_cut_off_at_each_commit_leave_nothing_half_made() {
    cut_off(&["image import"]).await;
}
