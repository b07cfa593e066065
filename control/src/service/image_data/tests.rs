use super::*;
use crate::caller::RoleLevel;
use crate::model::image::ImageBlob;
use crate::service::image::ImageChange;
use crate::test::{caller, open};

fn member() -> Caller {
    caller("p", RoleLevel::Member)
}

async fn described(control: &Control, format: &str) -> String {
    let changes =
        vec![ImageChange::DiskFormat(Some(format.into())), ImageChange::ContainerFormat(Some("bare".into()))];
    control.image_create(&member(), None, changes).await.unwrap().row.id.clone()
}

async fn upload(control: &Arc<Control>, id: &str, content: &'static [u8], to: UploadTo) -> Result<()> {
    let mut upload = control.image_upload(&member(), id, to).await?;
    upload.write(Bytes::from_static(content)).await;
    upload.finish().await
}

fn files(directory: &std::path::Path) -> usize {
    std::fs::read_dir(directory.join("images")).unwrap().count()
}

#[tokio::test]
async fn crash_between_the_data_and_its_row_leaves_no_data_and_the_image_queued() {
    let directory = tempfile::tempdir().unwrap();
    let id = {
        let control = open(directory.path()).await;
        let id = described(&control, "raw").await;
        let stored = control.image_stored(&id).unwrap();
        let saving = Image { status: ImageStatus::Saving, ..stored.row.clone() };
        control.db.transact(|_| Ok(Txn::new().update(&stored, &saving))).await.unwrap();
        let mut upload = control.images.files.begin(&id, 10).unwrap();
        upload.write(Bytes::from_static(b"whole")).unwrap();
        let sealed = upload.seal().unwrap();
        sealed.keep(sealed.digest().name()).unwrap();
        id
    };
    let images = directory.path().join("images");
    std::fs::write(images.join(".other.partial"), "half").unwrap();
    std::fs::write(images.join("nobodys"), "orphan").unwrap();
    let control = open(directory.path()).await;
    assert_eq!(control.image_stored(&id).unwrap().row.status, ImageStatus::Queued);
    assert_eq!(files(directory.path()), 0);
    assert_eq!(control.quota("p", Resource::ImageMib).used, 0);
}

#[tokio::test]
async fn image_deleted_while_it_is_uploaded_leaves_no_file() {
    let directory = tempfile::tempdir().unwrap();
    let control = open(directory.path()).await;
    let id = described(&control, "raw").await;
    let mut running = control.image_upload(&member(), &id, UploadTo::Store(None)).await.unwrap();
    assert!(running.write(Bytes::from_static(b"half")).await);
    let second = control.image_upload(&member(), &id, UploadTo::Store(None)).await;
    assert!(second.is_err(), "one upload at a time");
    control.image_delete(&member(), &id).await.unwrap();
    assert!(matches!(running.finish().await, Err(Error::NotFound { .. })));
    assert_eq!(files(directory.path()), 0);
    assert_eq!(control.quota("p", Resource::Images).used, 0);
}

#[tokio::test]
async fn same_bytes_are_stored_once_and_go_with_the_last_image() {
    let directory = tempfile::tempdir().unwrap();
    let control = open(directory.path()).await;
    let mut ids = Vec::new();
    for _ in 0..3 {
        let id = described(&control, "raw").await;
        upload(&control, &id, b"the same", UploadTo::Store(None)).await.unwrap();
        ids.push(id);
    }
    assert_eq!(files(directory.path()), 1);
    let name = control.image_stored(&ids[0]).unwrap().row.data.clone().unwrap();
    let references = || control.db.get::<ImageBlob>(&ImageBlob::key(FILE_STORE, &name));
    assert_eq!(references().unwrap().row.references, 3);
    control.image_delete(&member(), &ids[0]).await.unwrap();
    control.image_delete(&member(), &ids[1]).await.unwrap();
    assert_eq!((files(directory.path()), references().unwrap().row.references), (1, 1));
    control.image_delete(&member(), &ids[2]).await.unwrap();
    assert_eq!((files(directory.path()), references()), (0, None));
}

#[tokio::test]
async fn data_of_another_format_than_declared_is_refused_and_leaves_nothing() {
    let directory = tempfile::tempdir().unwrap();
    let control = open(directory.path()).await;
    for (format, content) in [("qcow2", &b"no qcow2"[..]), ("raw", b"QFI\xfb\0\0\0\x03"), ("vmdk", b"x")] {
        let id = described(&control, format).await;
        let refused = upload(&control, &id, content, UploadTo::Store(None)).await;
        assert!(matches!(refused, Err(Error::Invalid { .. })), "{format}: {refused:?}");
        assert_eq!(control.image_stored(&id).unwrap().row.status, ImageStatus::Queued);
    }
    assert_eq!(files(directory.path()), 0);
    assert_eq!(control.quota("p", Resource::ImageMib).used, 0);
}

#[tokio::test]
async fn import_that_a_crash_cut_off_is_done_after_it() {
    use crate::model::image::{ImageSource, ImageTask, ImageTaskStatus};
    use crate::service::image_import::{ImportWish, Stores};
    let directory = tempfile::tempdir().unwrap();
    let wish = ImportWish {
        source: ImageSource::Staged,
        stores: Stores::These(Vec::new()),
        all_must_succeed: true,
        request: serde_json::json!({"method": {"name": "glance-direct"}}),
    };
    let (id, cut) = {
        let control = open(directory.path()).await;
        let id = described(&control, "raw").await;
        let early = control.image_import(&member(), &id, wish.clone()).await;
        assert!(matches!(early, Err(Error::Conflict { .. })), "nothing is staged");
        upload(&control, &id, b"staged", UploadTo::Staging).await.unwrap();
        // No reconciler runs: the process dies right after its answer. Another image's staging is half done.
        control.image_import(&member(), &id, wish.clone()).await.unwrap();
        let again = control.image_import(&member(), &id, wish).await;
        assert!(matches!(again, Err(Error::Conflict { .. })), "one task at a time");
        let cut = described(&control, "raw").await;
        let stored = control.image_stored(&cut).unwrap();
        let row = Image { status: ImageStatus::Uploading, ..stored.row.clone() };
        control.db.transact(|_| Ok(Txn::new().update(&stored, &row))).await.unwrap();
        (id, cut)
    };
    std::fs::write(directory.path().join("images/.task-x.partial"), "half").unwrap();
    let control = open(directory.path()).await;
    assert_eq!(control.image_stored(&cut).unwrap().row.status, ImageStatus::Queued);
    assert_eq!(control.image_stored(&id).unwrap().row.status, ImageStatus::Importing);
    let running = control.start_reconcilers();
    for _ in 0..500 {
        if control.image_stored(&id).unwrap().row.status == ImageStatus::Active {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    let image = control.image_stored(&id).unwrap().row.clone();
    assert_eq!((image.status, image.size_bytes), (ImageStatus::Active, Some(6)));
    let tasks = control.image_tasks_of(&member(), &id).await.unwrap();
    let states: Vec<_> = tasks.iter().map(|task: &Arc<Stored<ImageTask>>| task.row.status).collect();
    assert_eq!(states, [ImageTaskStatus::Success]);
    for _ in 0..500 {
        if files(directory.path()) == 1 {
            break;
        }
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    assert_eq!(files(directory.path()), 1, "the data alone");
    running.iter().for_each(tokio::task::JoinHandle::abort);
}
