//! Volumes of encrypted types: their bytes on the host, their keys' way, and what is refused.

use std::os::unix::fs::FileExt as _;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use storage::format::{Disk as _, DiskKey, EncryptedDisk};

use super::volumes::of_size;
use super::*;
use crate::agent::protocol::{DiskCipher, DiskShape, DiskSource};
use crate::model::volume::{Backup, DiskEncryption, Encryption, Snapshot, Status, Volume};
use crate::service::server::volume::NewServerVolume;
use crate::service::volume::NewVolume;
use crate::service::volume::backup::{DIRECTORY_SERVICE, NewBackup};
use crate::service::volume::encryption::cipher;
use crate::service::volume::manage::{NewManaged, NewManagedSnapshot};
use crate::service::volume::snapshot::NewSnapshot;

/// What volumes hold in the clear here; twice in a sector, and more than one piece.
const PATTERN: &[u8; 16] = b"in the clear!! \n";
const CONTENT_BYTES: usize = 300 << 10;

fn content() -> Vec<u8> {
    PATTERN.repeat(CONTENT_BYTES / PATTERN.len())
}

/// What a type may say of encryption.
pub(super) fn spec(key_size: u32) -> Encryption {
    Encryption {
        id: crate::model::random_uuid(),
        provider: "luks".to_owned(),
        cipher: Some("aes-xts-plain64".to_owned()),
        key_size: Some(key_size),
        control_location: "front-end".to_owned(),
        created_at: Timestamp::now(),
        updated_at: None,
    }
}

impl Cloud {
    /// A type whose volumes are encrypted.
    async fn encrypted_type(&self, name: &str, spec: Encryption) -> String {
        let (control, admin) = (&self.control, &self.admin);
        let kind = control.volume_type_create(admin, (name, None, true), BTreeMap::new()).await.unwrap();
        control.volume_type_encrypt(admin, &kind.row.id, Some(spec)).await.unwrap();
        kind.row.id.clone()
    }

    async fn made(&self, new: NewVolume) -> String {
        let id = self.volume(new).await;
        self.until_volume(&id, Some(Status::Available)).await;
        id
    }

    fn encryption(&self, volume: &str) -> DiskEncryption {
        self.control.db.get::<Volume>(volume).unwrap().row.encryption.clone().unwrap()
    }

    fn key(&self, volume: &str) -> DiskKey {
        match cipher(self.control.tokens.master(), Some(&self.encryption(volume))) {
            DiskCipher::Key(key) => key,
            other => panic!("{other:?}"),
        }
    }

    /// The first bytes of a volume, with its key.
    fn decrypted(&self, volume: &str) -> Vec<u8> {
        use storage::backend::Backend as _;
        let disks = self._state.path().join("volumes/fake-0/disks");
        let backend = storage::file::FileBackend::open(&disks).unwrap();
        let disk = self.control.db.get::<Volume>(volume).unwrap().row.disk().to_owned();
        let stored = backend.export(&disk, true).unwrap().open(true).unwrap();
        let mut clear = vec![0; CONTENT_BYTES];
        EncryptedDisk::new(stored, &self.key(volume)).read_at(&mut clear, 0).unwrap();
        clear
    }

    /// Files of the host that have the pattern anywhere in their first bytes.
    fn files_with_the_pattern(&self) -> Vec<std::path::PathBuf> {
        let mut directories = vec![self._state.path().join("volumes/fake-0")];
        assert!(directories[0].is_dir(), "the host has its disks there");
        let mut found = Vec::new();
        while let Some(directory) = directories.pop() {
            // Either may have been cleared just now, a directory or a file.
            let Ok(entries) = std::fs::read_dir(directory) else { continue };
            for entry in entries {
                let path = entry.unwrap().path();
                if path.is_dir() {
                    directories.push(path);
                    continue;
                }
                let mut bytes = vec![0; 4 << 20];
                let Ok(file) = std::fs::File::open(&path) else { continue };
                let count = file.read_at(&mut bytes, 0).unwrap();
                if bytes[..count].windows(PATTERN.len()).any(|window| window == PATTERN) {
                    found.push(path);
                }
            }
        }
        found
    }

    async fn backed_up(&self, volume: &str, incremental: bool) -> String {
        let new = NewBackup { volume_id: volume.to_owned(), incremental, ..NewBackup::default() };
        let id = self.control.volume_backup_create(&self.admin, new).await.unwrap().row.id.clone();
        self.until_backup(&id).await;
        id
    }

    async fn until_backup(&self, id: &str) {
        for _ in 0..500 {
            self.control.db.caught_up().await.unwrap();
            if self.control.db.get::<Backup>(id).unwrap().row.status == Status::Available {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the backup stays {:?}", self.control.db.get::<Backup>(id));
    }

    async fn until_active(&self, image: &str) -> Vec<u8> {
        for _ in 0..500 {
            let row = self.control.db.get::<Image>(image).unwrap().row.clone();
            if row.status == ImageStatus::Active {
                let path = self._state.path().join("images").join(row.data.unwrap());
                return std::fs::read(path).unwrap();
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the image gets no data");
    }
}

fn of_type(kind: &str, new: NewVolume) -> NewVolume {
    NewVolume { volume_type: Some(kind.to_owned()), ..new }
}

#[tokio::test(flavor = "multi_thread")]
async fn encrypted_volume_goes_from_image_to_image_and_the_host_keeps_nothing_in_the_clear() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    for key_size in [256, 512] {
        let kind = cloud.encrypted_type(&format!("secret-{key_size}"), spec(key_size)).await;
        let image = cloud.image("raw", content()).await;
        let of_image = NewVolume { image_id: Some(image.clone()), ..of_size(1) };
        let id = cloud.made(of_type(&kind, of_image)).await;
        assert!(cloud.control.volume(admin, &id).await.unwrap().encrypted);
        assert_eq!(
            (cloud.decrypted(&id), cloud.key(&id).as_bytes().len() * 8),
            (content(), key_size as usize)
        );

        let new = NewSnapshot { volume_id: id.clone(), ..NewSnapshot::default() };
        let snapshot = control.volume_snapshot_create(admin, new).await.unwrap().row.id.clone();
        cloud.until_snapshot(&snapshot, Some(Status::Available)).await;
        let of_snapshot =
            cloud.made(NewVolume { snapshot_id: Some(snapshot.clone()), ..NewVolume::default() }).await;
        let clone = cloud.made(NewVolume { source_volume_id: Some(id.clone()), ..of_size(2) }).await;
        for copy in [&of_snapshot, &clone] {
            assert_eq!((cloud.encryption(copy), cloud.decrypted(copy)), (cloud.encryption(&id), content()));
        }
        control.volume_migrate(admin, &clone, "fake-0@other").await.unwrap();
        cloud.until_volume(&clone, Some(Status::Available)).await;
        assert_eq!(cloud.encryption(&clone), cloud.encryption(&id));
        let other = cloud.made(of_type(&kind, of_size(1))).await;
        assert_ne!(cloud.key(&other), cloud.key(&id), "each has its own");

        let described = vec![
            crate::service::image::ImageChange::DiskFormat(Some("raw".into())),
            crate::service::image::ImageChange::ContainerFormat(Some("bare".into())),
        ];
        let (_, made) = control.volume_upload(admin, &of_snapshot, false, described).await.unwrap();
        let bytes = cloud.until_active(&made.row.id).await;
        assert!(bytes.starts_with(&content()) && bytes[CONTENT_BYTES..].iter().all(|byte| *byte == 0));
        cloud.until_volume(&of_snapshot, Some(Status::Available)).await;
    }
    // What went out in the clear is cleared once control has it.
    for _ in 0..1000 {
        if cloud.files_with_the_pattern().is_empty() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("these are in the clear: {:?}", cloud.files_with_the_pattern());
}

#[tokio::test(flavor = "multi_thread")]
async fn key_reaches_the_host_that_needs_it_and_the_store_holds_it_sealed() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let kind = cloud.encrypted_type("secret", spec(512)).await;
    let id = cloud.made(of_type(&kind, of_size(1))).await;
    let clear = cloud.made(of_size(1)).await;
    let server = cloud.create().await;
    cloud.until_status(&server, "ACTIVE").await;
    for volume in [&id, &clear] {
        let new = NewServerVolume { volume_id: volume.clone(), ..NewServerVolume::default() };
        control.server_volume_attach(admin, &server, &new).await.unwrap();
    }
    let told = cloud.told(&server).await;
    let key = cloud.key(&id);
    let ciphers: Vec<_> = told.volumes.iter().map(|volume| volume.cipher.clone()).collect();
    assert_eq!(ciphers, [DiskCipher::Key(key.clone()), DiskCipher::Clear]);
    let text = STANDARD.encode(key.as_bytes());
    assert!(serde_json::to_string(&told).unwrap().contains(&text));
    assert!(!format!("{told:?}").contains(&text));
    let kept = told.without_keys();
    assert!(!serde_json::to_string(&kept).unwrap().contains(&text), "what an agent writes down");
    assert_eq!(kept.volumes[0].cipher, DiskCipher::Lost);
    assert_eq!(kept.volumes[1].cipher, DiskCipher::Clear);

    let store = std::fs::read(cloud._state.path().join("store.redb")).unwrap();
    let row = cloud.control.db.get::<Volume>(&id).unwrap().row.clone();
    let holds = |bytes: &[u8]| store.windows(bytes.len()).any(|window| window == bytes);
    assert!(holds(row.encryption.unwrap().sealed_key.as_bytes()), "this is what is looked through");
    assert!(!holds(key.as_bytes()) && !holds(text.as_bytes()));
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_of_another_type_lies_as_that_says_and_keeps_its_content() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let kinds =
        [cloud.encrypted_type("secret", spec(256)).await, cloud.encrypted_type("more", spec(512)).await];
    let image = cloud.image("raw", content()).await;
    let id = cloud.made(NewVolume { image_id: Some(image), ..of_size(1) }).await;
    let row = || control.db.get::<Volume>(&id).unwrap().row.clone();
    let first = row();
    let mut keys = Vec::new();
    for (kind, key_size) in kinds.iter().zip([256, 512]) {
        control.volume_retype(admin, &id, kind, true).await.unwrap();
        cloud.until_volume(&id, Some(Status::Available)).await;
        assert_eq!((&row().type_id, cloud.decrypted(&id)), (kind, content()));
        assert_eq!(cloud.key(&id).as_bytes().len() * 8, key_size);
        keys.push(cloud.encryption(&id).key_id);
    }
    assert_ne!(keys[0], keys[1]);
    // The disk that it had goes.
    for _ in 0..1000 {
        if cloud.files_with_the_pattern().is_empty() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!(cloud.files_with_the_pattern(), Vec::<std::path::PathBuf>::new());
    control.volume_retype(admin, &id, &first.type_id, true).await.unwrap();
    cloud.until_volume(&id, Some(Status::Available)).await;
    assert_eq!((row().type_id, row().encryption), (first.type_id, None));
    assert_eq!(cloud.files_with_the_pattern().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn backup_of_an_encrypted_volume_brings_its_key_along() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let kind = cloud.encrypted_type("secret", spec(256)).await;
    let image = cloud.image("raw", content()).await;
    let id = cloud.made(of_type(&kind, NewVolume { image_id: Some(image), ..of_size(1) })).await;
    let encryption = cloud.encryption(&id);
    let backup = cloud.backed_up(&id, false).await;
    let difference = cloud.backed_up(&id, true).await;
    assert_eq!(cloud.files_with_the_pattern(), Vec::<std::path::PathBuf>::new());

    // A new volume, one with another key, and one of what is taken in again.
    let (new, _) = control.volume_backup_restore(admin, &difference, None, None).await.unwrap();
    cloud.until_volume(&new, Some(Status::Available)).await;
    let other = cloud.made(of_type(&kind, of_size(1))).await;
    let snapshot = NewSnapshot { volume_id: other.clone(), ..NewSnapshot::default() };
    let snapshot = control.volume_snapshot_create(admin, snapshot).await.unwrap().row.id.clone();
    cloud.until_snapshot(&snapshot, Some(Status::Available)).await;
    let before = cloud.encryption(&other);
    control.volume_backup_restore(admin, &backup, Some(&other), None).await.unwrap();
    cloud.until_volume(&other, Some(Status::Available)).await;
    for volume in [&new, &other] {
        assert_eq!((cloud.encryption(volume), cloud.decrypted(volume)), (encryption.clone(), content()));
    }
    control.volume_revert(admin, &other, &snapshot).await.unwrap();
    cloud.until_volume(&other, Some(Status::Available)).await;
    assert_eq!((cloud.encryption(&other), cloud.decrypted(&other)), (before, vec![0; CONTENT_BYTES]));

    let (_, record) = control.volume_backup_export(admin, &difference).await.unwrap();
    let text = String::from_utf8(STANDARD.decode(&record).unwrap()).unwrap();
    assert!(
        text.contains(&encryption.sealed_key) && !text.contains(&STANDARD.encode(cloud.key(&id).as_bytes()))
    );
    let forged = text.replace(&encryption.sealed_key, &encryption.sealed_key.to_lowercase());
    let row = control.db.get::<Backup>(&difference).unwrap();
    control.db.transact(|_| Ok(Txn::new().delete(&row))).await.unwrap();
    control.db.caught_up().await.unwrap();
    let refused = control.volume_backup_import(admin, DIRECTORY_SERVICE, &STANDARD.encode(forged)).await;
    assert!(matches!(refused, Err(Error::Invalid { reason: "InvalidBackup", .. })), "{refused:?}");
    control.volume_backup_import(admin, DIRECTORY_SERVICE, &record).await.unwrap();
    let again = cloud.made(NewVolume { backup_id: Some(difference), ..of_size(1) }).await;
    assert_eq!((cloud.encryption(&again), cloud.decrypted(&again)), (encryption, content()));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_mix_up_keys_is_refused() {
    let cloud = Cloud::with_volumes().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let kind = cloud.encrypted_type("secret", spec(256)).await;
    let same = cloud.encrypted_type("same", spec(256)).await;
    let larger = cloud.encrypted_type("larger", spec(512)).await;
    let wrong = Encryption { cipher: Some("aes-cbc-essiv:sha256".into()), ..spec(256) };
    let wrong = cloud.encrypted_type("wrong", wrong).await;
    let id = cloud.made(of_type(&kind, of_size(1))).await;
    let clear = cloud.made(of_size(1)).await;
    let new = NewSnapshot { volume_id: id.clone(), ..NewSnapshot::default() };
    let snapshot = control.volume_snapshot_create(admin, new).await.unwrap().row.id.clone();
    cloud.until_snapshot(&snapshot, Some(Status::Available)).await;
    let backups = [cloud.backed_up(&id, false).await, cloud.backed_up(&clear, false).await];
    let of_snapshot = NewVolume { snapshot_id: Some(snapshot.clone()), ..NewVolume::default() };
    let of_volume = |id: &String| NewVolume { source_volume_id: Some(id.clone()), ..NewVolume::default() };
    let of_backup = |index: usize| NewVolume { backup_id: Some(backups[index].clone()), ..of_size(1) };
    for (what, new) in [
        ("a cipher that is not offered", of_type(&wrong, of_size(1))),
        ("a snapshot in the clear", of_type("__DEFAULT__", of_snapshot.clone())),
        ("a snapshot with another key's size", of_type(&larger, of_snapshot.clone())),
        ("a clone in the clear", of_type("__DEFAULT__", of_volume(&id))),
        ("an encrypted clone of what is not", of_type(&kind, of_volume(&clear))),
        ("a backup in the clear", of_type("__DEFAULT__", of_backup(0))),
        ("an encrypted volume of a backup that is not", of_type(&kind, of_backup(1))),
    ] {
        let refused = control.volume_create(admin, new).await;
        assert!(matches!(refused, Err(Error::Invalid { reason: "InvalidInput", .. })), "{what}: {refused:?}");
    }
    for (backup, volume) in [(&backups[0], &clear), (&backups[1], &id)] {
        let refused = control.volume_backup_restore(admin, backup, Some(volume), None).await;
        assert!(matches!(refused, Err(Error::Invalid { reason: "InvalidVolume", .. })), "{refused:?}");
    }
    for (volume, kind) in [(&id, "__DEFAULT__"), (&id, "larger"), (&clear, "secret")] {
        let refused = control.volume_retype(admin, volume, kind, false).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    }
    control.volume_retype(admin, &id, &same, false).await.unwrap();
    let refused = control.volume_snapshot_unmanage(admin, &snapshot).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    let refused = control.volume_unmanage(admin, &clear).await;
    assert!(refused.is_ok(), "{refused:?}");
    let managed = NewManaged {
        disk: clear.clone(),
        pool: "fake-0@file".to_owned(),
        volume_type: Some(kind),
        ..NewManaged::default()
    };
    let refused = control.volume_manage(admin, &managed).await;
    assert!(matches!(refused, Err(Error::NotImplemented(_))), "{refused:?}");
    let managed = NewManagedSnapshot { disk: clear, volume_id: id.clone(), ..NewManagedSnapshot::default() };
    let refused = control.volume_snapshot_manage(admin, &managed).await;
    assert!(matches!(refused, Err(Error::NotImplemented(_))), "{refused:?}");
    control.volume_snapshot_delete(admin, &snapshot, false).await.unwrap();
    cloud.until_snapshot(&snapshot, None).await;
    let refused = control.volume_unmanage(admin, &id).await;
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    assert!(control.db.get::<Snapshot>(&snapshot).is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn host_without_the_key_makes_nothing() {
    let cloud = Cloud::with_volumes().await;
    let driver = cloud.driver();
    let image = cloud.image("raw", content()).await;
    let data = cloud.control.db.get::<Image>(&image).unwrap().row.data.clone().unwrap();
    let mut wanted = DiskWanted {
        id: "a-disk".to_owned(),
        generation: 1,
        backend: None,
        cipher: DiskCipher::Lost,
        source_cipher: DiskCipher::Clear,
        shape: DiskShape::Volume { size_bytes: 1 << 20, source: DiskSource::Image { image_id: data } },
    };
    let said = |wanted: &DiskWanted| driver.apply_disk(wanted).fault.unwrap_or_default();
    assert!(said(&wanted).contains("its key is not to be had"), "{}", said(&wanted));
    wanted.shape = DiskShape::Volume { size_bytes: 1 << 20, source: DiskSource::Nothing };
    assert_eq!(said(&wanted), "", "zeros are zeros with any key");
    wanted.shape = DiskShape::Outgoing { of: "a-disk".to_owned() };
    wanted.id = "an-image".to_owned();
    assert!(said(&wanted).contains("its key is not to be had"), "{}", said(&wanted));
    assert!(cloud.files_with_the_pattern().is_empty());
}
