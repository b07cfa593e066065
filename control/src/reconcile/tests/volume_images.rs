//! Volumes of images whose root disk is made first: qcow2 and container images.

use super::volumes::{device, of_size};
use super::*;
use crate::model::volume::{Status, Volume, VolumeMessage};
use crate::service::server::volume::DeviceSource;
use crate::service::volume::NewVolume;

/// Bytes of a cluster of [`qcow2`].
const CLUSTER_BYTES: usize = 64 << 10;

/// A qcow2 image (version 2) of so many bytes as a disk, which begins with `content`.
pub(super) fn qcow2(disk_bytes: u64, content: &[u8]) -> Vec<u8> {
    let at = |cluster: u64| cluster * CLUSTER_BYTES as u64;
    let mut image = vec![0; 6 * CLUSTER_BYTES];
    let mut put = |offset: u64, bytes: &[u8]| {
        let offset = usize::try_from(offset).unwrap();
        image[offset..offset + bytes.len()].copy_from_slice(bytes);
    };
    put(0, b"QFI\xfb");
    put(4, &2_u32.to_be_bytes());
    put(20, &16_u32.to_be_bytes());
    put(24, &disk_bytes.to_be_bytes());
    let l1_entries = u32::try_from(disk_bytes.div_ceil(512 << 20)).unwrap();
    put(36, &l1_entries.to_be_bytes());
    put(40, &at(3).to_be_bytes());
    put(48, &at(1).to_be_bytes());
    put(56, &1_u32.to_be_bytes());
    put(at(1), &at(2).to_be_bytes());
    for cluster in 0..6 {
        put(at(2) + 2 * cluster, &1_u16.to_be_bytes());
    }
    let copied = 1_u64 << 63;
    put(at(3), &(at(4) | copied).to_be_bytes());
    put(at(4), &(at(5) | copied).to_be_bytes());
    put(at(5), content);
    image
}

impl Cloud {
    /// An active image of this format and content.
    pub(super) async fn image(&self, format: &str, content: Vec<u8>) -> String {
        self.image_in("bare", format, content).await
    }

    /// The same in a container.
    async fn image_in(&self, container: &str, format: &str, content: Vec<u8>) -> String {
        use crate::service::image::ImageChange;
        use crate::service::image_data::UploadTo;
        let described = vec![
            ImageChange::DiskFormat(Some(format.into())),
            ImageChange::ContainerFormat(Some(container.into())),
        ];
        let id = self.control.image_create(&self.admin, None, described).await.unwrap().row.id.clone();
        let mut upload = self.control.image_upload(&self.admin, &id, UploadTo::Store(None)).await.unwrap();
        upload.write(content.into()).await;
        upload.finish().await.unwrap();
        id
    }

    /// The first bytes of a volume. No other is being made meanwhile: opening the backend clears what is half made.
    fn begins_as(&self, id: &str, bytes: usize) -> Vec<u8> {
        use storage::backend::Backend as _;
        let disks = self._state.path().join("volumes/fake-0/disks");
        let backend = storage::file::FileBackend::open(&disks).unwrap();
        let disk = backend.export(id, true).unwrap().open(true).unwrap();
        let mut content = vec![0; bytes];
        disk.read_at(&mut content, 0).unwrap();
        content
    }
}

/// A container image of one layer, which holds this file, as `docker save` writes it.
fn container(name: &str, content: &[u8]) -> Vec<u8> {
    let archive = |parts: &[(&str, &[u8])]| {
        let mut archive = tar::Builder::new(Vec::new());
        for (name, bytes) in parts {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o755);
            archive.append_data(&mut header, name, *bytes).unwrap();
        }
        archive.into_inner().unwrap()
    };
    let layer = archive(&[(name, content)]);
    let digest = ring::digest::digest(&ring::digest::SHA256, &layer);
    let digest: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
    let configuration = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Entrypoint": [format!("/{name}")]},
        "rootfs": {"type": "layers", "diff_ids": [format!("sha256:{digest}")]},
    });
    let manifest = serde_json::json!([{"Config": "config.json", "RepoTags": [], "Layers": ["layer.tar"]}]);
    archive(&[
        ("config.json", configuration.to_string().as_bytes()),
        ("manifest.json", manifest.to_string().as_bytes()),
        ("layer.tar", &layer),
    ])
}

fn of_image(image_id: &str) -> NewVolume {
    NewVolume { image_id: Some(image_id.to_owned()), ..of_size(1) }
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_of_a_qcow2_image_is_answered_at_once_and_made_by_whichever_process_comes() {
    let mut cloud = Cloud::with_volumes().await;
    let image = cloud.image("qcow2", qcow2(1 << 20, b"a disk")).await;
    cloud.die().await;
    cloud.reopen().await;
    // Nobody reconciles: what is answered is what was written down.
    let id = cloud.volume(of_image(&image)).await;
    let row = cloud.control.db.get::<Volume>(&id).unwrap().row.clone();
    assert_eq!((row.status, cloud.left_of_volumes().1), (Status::Downloading, 0));
    assert_eq!(row.waits_for.as_ref().map(|file| file.qcow2), Some(true));
    // The image goes before its disk is made; what waits for it keeps its data.
    cloud.control.image_delete(&cloud.admin, &image).await.unwrap();
    cloud.restart().await;
    cloud.until_volume(&id, Some(Status::Available)).await;
    assert_eq!(cloud.begins_as(&id, 6), b"a disk");
    assert!(cloud.control.db.list::<VolumeMessage>().is_empty());
    cloud.control.volume_delete(&cloud.admin, &id, false, false).await.unwrap();
    cloud.until_volume(&id, None).await;
    assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
    cloud.control.image_collect().await.unwrap();
    assert_eq!(std::fs::read_dir(cloud._state.path().join("images")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn many_volumes_of_one_qcow2_image_are_all_made() {
    let cloud = Cloud::with_volumes().await;
    let image = cloud.image("qcow2", qcow2(1 << 20, b"a disk")).await;
    let mut made = Vec::new();
    for _ in 0..8 {
        made.push(cloud.volume(of_image(&image)).await);
    }
    for id in &made {
        cloud.until_volume(id, Some(Status::Available)).await;
    }
    for id in &made {
        assert_eq!(cloud.begins_as(id, 6), b"a disk");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_whose_image_cannot_be_made_a_disk_is_in_error_says_why_and_can_be_deleted() {
    let cloud = Cloud::with_volumes().await;
    let lost = cloud.image("qcow2", qcow2(1 << 20, b"lost")).await;
    let data = cloud.control.db.get::<Image>(&lost).unwrap().row.data.clone().unwrap();
    std::fs::remove_file(cloud._state.path().join("images").join(data)).unwrap();
    let large = cloud.image("qcow2", qcow2(2 << 30, b"large")).await;
    for (image, event) in [(lost, "VOLUME_VOLUME_005_001"), (large, "VOLUME_VOLUME_001_002")] {
        let id = cloud.volume(of_image(&image)).await;
        cloud.until_volume(&id, Some(Status::Error)).await;
        let messages = cloud.control.db.cache().filter::<VolumeMessage>(|one| one.resource_id == id);
        let told: Vec<_> = messages.iter().map(|one| (&*one.row.event_id, &*one.row.request_id)).collect();
        assert_eq!(told, [(event, "req-1")]);
        assert_eq!(cloud.left_of_volumes().2, 1 + 1, "it holds its quota until it is deleted");
        cloud.control.volume_delete(&cloud.admin, &id, false, false).await.unwrap();
        cloud.until_volume(&id, None).await;
        assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_that_waits_for_its_image_is_deleted_with_force_and_nothing_comes_of_it() {
    let mut cloud = Cloud::with_volumes().await;
    let image = cloud.image("qcow2", qcow2(1 << 20, b"a disk")).await;
    cloud.die().await;
    cloud.reopen().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let id = cloud.volume(of_image(&image)).await;
    let refused = control.volume_delete(admin, &id, false, false).await;
    assert!(
        matches!(refused, Err(Error::Invalid { reason: "InvalidVolume", .. })),
        "as with Cinder: {refused:?}"
    );
    // A reconciler that has begun meanwhile finds no volume.
    let row = control.db.get::<Volume>(&id).unwrap().row.clone();
    control.volume_delete(admin, &id, false, true).await.unwrap();
    assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
    control.make_volume_file(&row).await.unwrap();
    cloud.restart().await;
    assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn server_waits_for_a_volume_of_a_qcow2_image_and_takes_it_along() {
    let cloud = Cloud::with_volumes().await;
    let image = cloud.image("qcow2", qcow2(1 << 20, b"a disk")).await;
    let mut new = cloud.new_servers();
    new.image_id = String::new();
    new.devices = vec![device(DeviceSource::Image(image), true, 1)];
    let created = cloud.control.servers_create(&cloud.admin, new).await.unwrap();
    let server = cloud.until_status(&created.servers[0].id, "ACTIVE").await;
    let volume = &server.volumes[0].volume_id;
    assert_eq!(cloud.begins_as(volume, 6), b"a disk");
    cloud.control.server_delete(&cloud.admin, &server.id).await.unwrap();
    cloud.until(&server.id, |server| server.is_none()).await;
    cloud.until_volume(volume, None).await;
    assert_eq!((cloud.left_of_volumes(), cloud.left()), ((0, 0, 0, 0), (0, 0, 0, 0)));
}

#[tokio::test(flavor = "multi_thread")]
async fn volume_of_a_container_image_is_its_root_disk() {
    // Of an ext4 file system, which begins after 1024 bytes.
    const MAGIC_AT: usize = 1024 + 56;
    let cloud = Cloud::with_volumes().await;
    let image = cloud.image_in("docker", "raw", container("app", b"a program")).await;
    let id = cloud.volume(of_image(&image)).await;
    cloud.until_volume(&id, Some(Status::Available)).await;
    assert_eq!(cloud.begins_as(&id, MAGIC_AT + 2)[MAGIC_AT..], [0x53, 0xef]);
    cloud.control.volume_delete(&cloud.admin, &id, false, false).await.unwrap();
    cloud.until_volume(&id, None).await;
    assert_eq!(cloud.left_of_volumes(), (0, 0, 0, 0));
}
