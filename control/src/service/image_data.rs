//! The data of images: streamed in, read back, deleted. A file is there before its row says so and goes after its row
//! is gone, so what a row promises is always there; what a crash leaves in between is cleared at the next start.

use std::collections::BTreeSet;
use std::io::SeekFrom;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use storage::image::{ImageDigest, ImageError, Upload};
use tokio::io::{AsyncReadExt, AsyncSeekExt};
use tokio::sync::{mpsc, oneshot};
use tokio_util::io::ReaderStream;

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::Server;
use crate::model::image::{Image, ImageMember, ImageStatus};
use crate::service::image::owned_image;
use crate::service::quota::{self, Resource};
use crate::store::{Stored, Txn};

/// The largest image in bytes (Glance's `image_size_cap`).
pub const IMAGE_BYTES_MAX: u64 = 1 << 40;
/// How many pieces of an upload may wait for the disk; a client that is faster waits.
const PIECES_MAX: usize = 8;
/// Bytes read from the disk at once for a download.
const READ_BYTES: usize = 256 << 10;
/// The store of files of this host.
pub const FILE_STORE: &str = "file";

/// An image's data as it is read.
pub type ImageStream = ReaderStream<tokio::io::Take<tokio::fs::File>>;

/// What there is to know of a store.
#[derive(Debug, Clone)]
pub struct StoreFacts {
    /// Its name.
    pub id: &'static str,
    /// Of which kind it is.
    pub kind: &'static str,
    /// What people read.
    pub description: &'static str,
    /// What administrators read.
    pub properties: Vec<(String, serde_json::Value)>,
}

/// What is on its way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staging {
    /// How many images.
    pub uploading: u64,
    /// How many MiB of them are staged.
    pub mib: u64,
}

/// An upload under way. Dropped before [`ImageUpload::finish`], the image has no data again.
#[derive(Debug)]
pub struct ImageUpload {
    pieces: mpsc::Sender<Piece>,
    outcome: oneshot::Receiver<Result<()>>,
}

#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    End,
}

impl ImageUpload {
    /// Appends bytes, waiting while the disk is behind. False once the upload has failed; `finish` says why.
    pub async fn write(&self, bytes: Bytes) -> bool {
        self.pieces.send(Piece::Bytes(bytes)).await.is_ok()
    }

    /// Ends the upload: the image is active now.
    ///
    /// # Errors
    /// Why it failed; the image is queued again then, and nothing of the data is left.
    pub async fn finish(self) -> Result<()> {
        // If the other end has gone, it says why in the outcome.
        let _ = self.pieces.send(Piece::End).await;
        self.outcome.await.unwrap_or_else(|_| Err(Error::Unavailable("the upload was cut off".to_owned())))
    }
}

impl From<ImageError> for Error {
    fn from(error: ImageError) -> Self {
        match error {
            ImageError::Missing { id } => Self::not_found("Image data", id),
            ImageError::Id { id } => Self::not_found("Image", id),
            ImageError::Exists { id } | ImageError::Uploading { id } => {
                Self::conflict("Duplicate", format!("Image {id} has data already or is being uploaded."))
            }
            ImageError::TooLarge { bytes_max, .. } => {
                Self::TooLarge { what: "the image", limit_bytes: bytes_max }
            }
            ImageError::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull => {
                Self::Unavailable("There is not enough disk space for the image.".to_owned())
            }
            ImageError::Io { step, source, .. } => Self::Io { step, source },
        }
    }
}

impl Control {
    /// Begins to take an image's data.
    ///
    /// # Errors
    /// `Conflict` unless the image is queued; `Invalid` without disk and container format.
    pub async fn image_upload(self: &Arc<Self>, caller: &Caller, id: &str) -> Result<ImageUpload> {
        self.db.caught_up().await?;
        let image = self
            .db
            .transact_with(|cache| {
                let stored = owned_image(cache, caller, id, "upload_image")?;
                if stored.row.status != ImageStatus::Queued {
                    let message =
                        "Image status transition to saving is not allowed: its data is there already";
                    return Err(Error::conflict("InvalidImageStatusTransition", message));
                }
                if stored.row.disk_format.is_none() || stored.row.container_format.is_none() {
                    let message = "disk_format and container_format must be set before the data is uploaded";
                    return Err(Error::invalid("Invalid", message));
                }
                let image = Image { status: ImageStatus::Saving, ..stored.row.clone() };
                Ok((Txn::new().update(&stored, &image), image))
            })
            .await?;
        let left = self.image_bytes_left(image.owner.as_deref().unwrap_or_default());
        let (pieces, incoming) = mpsc::channel(PIECES_MAX);
        let (done, outcome) = oneshot::channel();
        // A task of its own: it tidies up even if whoever uploads is gone.
        let (control, id) = (self.clone(), id.to_owned());
        tokio::spawn(async move {
            let outcome = control.take_upload(&id, left, incoming).await;
            if outcome.is_err() {
                control.back_to_queued(&id).await;
            }
            // Nobody waiting any more is no error.
            let _ = done.send(outcome);
        });
        Ok(ImageUpload { pieces, outcome })
    }

    /// How many bytes of images a project may still bring.
    fn image_bytes_left(&self, owner: &str) -> u64 {
        let quota = self.quota(owner, Resource::ImageMib);
        let left_mib = quota.limit.map_or(u64::MAX, |limit| limit.saturating_sub(quota.used));
        left_mib.saturating_mul(1 << 20).min(IMAGE_BYTES_MAX)
    }

    async fn take_upload(&self, id: &str, bytes_max: u64, incoming: mpsc::Receiver<Piece>) -> Result<()> {
        let upload = self.images.begin(id, bytes_max)?;
        let written = tokio::task::spawn_blocking(move || write_all(upload, incoming)).await;
        let digest =
            written.map_err(|_| Error::Unavailable("the upload could not be written".to_owned()))??;
        let active = self.db.transact(|cache| {
            let stored = cache.get::<Image>(id).ok_or_else(|| Error::not_found("Image", id))?;
            if stored.row.status != ImageStatus::Saving {
                return Err(Error::conflict(
                    "InvalidImageStatusTransition",
                    "the image is not being uploaded",
                ));
            }
            let image = activated(stored.row.clone(), digest.clone());
            let owner = image.owner.clone().unwrap_or_default();
            let txn = Txn::new().update(&stored, &image);
            Ok(quota::charge(txn, &owner, &[(Resource::ImageMib, mib(digest.size_bytes))]))
        });
        let active = active.await;
        if active.is_err() {
            self.images.delete(id)?;
        }
        active
    }

    /// A failed upload leaves the image as it was before.
    async fn back_to_queued(&self, id: &str) {
        let reset = self.db.transact(|cache| match cache.get::<Image>(id) {
            Some(stored) if stored.row.status == ImageStatus::Saving => {
                let image = Image { status: ImageStatus::Queued, ..stored.row.clone() };
                Ok(Txn::new().update(&stored, &image))
            }
            _ => Ok(Txn::new()),
        });
        if let Err(error) = reset.await {
            tracing::error!(
                image.id = id,
                error = &error as &dyn std::error::Error,
                "a failed upload leaves its image saving until the next start"
            );
        }
    }

    /// An image whose data the caller may read; it may have none yet.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden` while it is deactivated, except for administrators.
    pub async fn image_readable(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Image>>> {
        let stored = self.image_get(caller, id).await?;
        if stored.row.status == ImageStatus::Deactivated && !caller.is_admin() {
            return Err(Error::Forbidden { action: "download of a deactivated image" });
        }
        Ok(stored)
    }

    /// A range of an image's data, which must lie within it.
    ///
    /// # Errors
    /// `NotFound` if the image was deleted meanwhile; `Io`.
    pub async fn image_data(&self, image: &Image, range: Range<u64>) -> Result<ImageStream> {
        let file = self.images.open_read(&image.id)?;
        let mut file = tokio::fs::File::from_std(file);
        let failed = |source| Error::Io { step: "find the place in an image", source };
        file.seek(SeekFrom::Start(range.start)).await.map_err(failed)?;
        let length = range.end.saturating_sub(range.start);
        Ok(ReaderStream::with_capacity(file.take(length), READ_BYTES))
    }

    /// The stores that data can be in, the one that is used by default first.
    pub fn image_store_facts(&self) -> Vec<StoreFacts> {
        let chunk = ("chunk_size".to_owned(), READ_BYTES.into());
        vec![StoreFacts {
            id: FILE_STORE,
            kind: "file",
            description: "Files of this host",
            properties: vec![("data_dir".to_owned(), "images".into()), chunk],
        }]
    }

    /// Their names.
    pub fn image_store_ids(&self) -> Vec<&'static str> {
        self.image_store_facts().iter().map(|facts| facts.id).collect()
    }

    /// Where a store has an image's data.
    pub fn image_location(&self, store: &str, image: &Image) -> String {
        format!("{store}:///{}", image.data.as_deref().unwrap_or(&image.id))
    }

    /// How much of a project's images is on its way in.
    pub async fn image_staging(&self, project: &str) -> Result<Staging> {
        self.db.caught_up().await?;
        let arriving = self.db.cache().filter::<Image>(|image| {
            image.owner.as_deref() == Some(project)
                && matches!(
                    image.status,
                    ImageStatus::Saving | ImageStatus::Uploading | ImageStatus::Importing
                )
        });
        let bytes = arriving.iter().filter_map(|stored| stored.row.size_bytes);
        let mib = bytes.map(|bytes| bytes.div_ceil(1 << 20)).sum();
        Ok(Staging { uploading: arriving.len() as u64, mib })
    }

    /// Deletes an image. The file stays while a server's disk lies over it.
    ///
    /// # Errors
    /// `Forbidden` if it is protected.
    pub async fn image_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned_image(cache, caller, id, "delete_image")?;
                if stored.row.protected {
                    return Err(Error::Forbidden { action: "deletion of a protected image" });
                }
                let owner = stored.row.owner.clone().unwrap_or_default();
                let members = cache.list_under::<ImageMember>(&format!("{id}/"));
                let txn = members.iter().take(crate::store::TXN_OPERATIONS_MAX - 8);
                let txn = txn.fold(Txn::new().delete(&stored), |txn, member| txn.delete(member));
                let mib = stored.row.size_bytes.map_or(0, mib);
                Ok(quota::charge(txn, &owner, &[(Resource::Images, -1), (Resource::ImageMib, -mib)]))
            })
            .await?;
        self.image_collect().await
    }

    /// Deletes the files of images that are gone and that no server's disk lies over. Servers that go later leave
    /// theirs to the next call; one is made at each start.
    ///
    /// # Errors
    /// `Io`.
    pub async fn image_collect(&self) -> Result<()> {
        self.db.caught_up().await?;
        let cache = self.db.cache();
        let mut wanted: BTreeSet<String> =
            cache.list::<Image>().iter().map(|stored| stored.row.id.clone()).collect();
        for server in cache.list::<Server>() {
            wanted.insert(server.row.image_id.clone());
            if let Some(kernel) = &server.row.kernel {
                wanted.insert(kernel.kernel_id.clone());
                wanted.extend(kernel.ramdisk_id.clone());
            }
        }
        let images = self.images.clone();
        let collected = tokio::task::spawn_blocking(move || {
            let unwanted = images.list()?.into_iter().filter(|id| !wanted.contains(id));
            unwanted.into_iter().try_for_each(|id| images.delete(&id))
        });
        Ok(collected
            .await
            .map_err(|_| Error::Unavailable("image files could not be cleared".to_owned()))??)
    }

    /// At start: what a crash cut off is cleared, and its images are queued again.
    pub(crate) async fn image_recover(&self) -> Result<()> {
        self.images.sweep()?;
        for stored in self.db.cache().filter::<Image>(|image| image.status == ImageStatus::Saving) {
            // The file may be whole though its row never said so.
            self.images.delete(&stored.row.id)?;
            self.back_to_queued(&stored.row.id).await;
        }
        self.image_collect().await
    }

    /// Puts an image with its data into the cloud at once: for what comes with the program. `described` says all but
    /// the data; nothing happens if the store's key `marker` is taken already.
    pub(crate) async fn image_install(
        &self,
        described: Image,
        data: &'static [u8],
        marker: &str,
    ) -> Result<()> {
        let (_, taken) = {
            let (entries, revision) = self.db.store().range(marker).await?;
            (revision, !entries.is_empty())
        };
        if taken {
            return Ok(());
        }
        let (images, id) = (self.images.clone(), described.id.clone());
        let written = tokio::task::spawn_blocking(move || {
            let mut upload = images.begin(&id, data.len() as u64)?;
            upload.write(data)?;
            upload.finish()
        });
        let written =
            written.await.map_err(|_| Error::Unavailable("an image could not be written".to_owned()))?;
        let image = activated(described, written?);
        let owner = image.owner.clone().unwrap_or_default();
        let charges = [(Resource::Images, 1), (Resource::ImageMib, image.size_bytes.map_or(0, mib))];
        self.db
            .transact(|_| Ok(quota::charge(Txn::new().create(&image).unique(marker), &owner, &charges)))
            .await
    }
}

/// Writes what comes until its end; an end that does not come takes it all back.
fn write_all(mut upload: Upload, mut incoming: mpsc::Receiver<Piece>) -> Result<ImageDigest> {
    loop {
        match incoming.blocking_recv() {
            Some(Piece::Bytes(bytes)) => upload.write(&bytes)?,
            Some(Piece::End) => return Ok(upload.finish()?),
            None => return Err(Error::Unavailable("the upload was cut off".to_owned())),
        }
    }
}

fn activated(image: Image, digest: ImageDigest) -> Image {
    Image {
        status: ImageStatus::Active,
        stores: vec![FILE_STORE.to_owned()],
        size_bytes: Some(digest.size_bytes),
        checksum: Some(digest.md5),
        sha512: Some(digest.sha512),
        updated_at: Timestamp::now(),
        ..image
    }
}

fn mib(bytes: u64) -> i64 {
    i64::try_from(bytes.div_ceil(1 << 20)).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Settings;
    use crate::caller::{RoleLevel, Scope};
    use crate::service::image::ImageChange;
    use crate::store::RedbStore;

    async fn open(directory: &std::path::Path) -> Arc<Control> {
        let store = RedbStore::open(&directory.join("store.redb")).unwrap();
        Control::open(Arc::new(store), Settings::new("http://cloud.test", directory)).await.unwrap()
    }

    fn caller() -> Caller {
        Caller {
            user_id: "u".into(),
            scope: Scope::Project("p".into()),
            role: Some(RoleLevel::Member),
            request_id: String::new(),
        }
    }

    async fn described(control: &Control) -> String {
        let raw = vec![
            ImageChange::DiskFormat(Some("raw".into())),
            ImageChange::ContainerFormat(Some("bare".into())),
        ];
        control.image_create(&caller(), None, raw).await.unwrap().row.id.clone()
    }

    #[tokio::test]
    async fn crash_between_the_file_and_its_row_leaves_no_file_and_the_image_queued() {
        let directory = tempfile::tempdir().unwrap();
        let id = {
            let control = open(directory.path()).await;
            let id = described(&control).await;
            let stored = control.image_stored(&id).unwrap();
            let saving = Image { status: ImageStatus::Saving, ..stored.row.clone() };
            control.db.transact(|_| Ok(Txn::new().update(&stored, &saving))).await.unwrap();
            let mut upload = control.images.begin(&id, 10).unwrap();
            upload.write(b"whole").unwrap();
            upload.finish().unwrap();
            id
        };
        let images = directory.path().join("images");
        std::fs::write(images.join(".other.partial"), "half").unwrap();
        std::fs::write(images.join("nobodys"), "orphan").unwrap();
        let control = open(directory.path()).await;
        assert_eq!(control.image_stored(&id).unwrap().row.status, ImageStatus::Queued);
        assert_eq!(std::fs::read_dir(&images).unwrap().count(), 0);
        assert_eq!(control.quota("p", Resource::ImageMib).used, 0);
    }

    #[tokio::test]
    async fn image_deleted_while_it_is_uploaded_leaves_no_file() {
        let directory = tempfile::tempdir().unwrap();
        let control = open(directory.path()).await;
        let id = described(&control).await;
        let upload = control.image_upload(&caller(), &id).await.unwrap();
        assert!(upload.write(Bytes::from_static(b"half")).await);
        assert!(control.image_upload(&caller(), &id).await.is_err(), "one upload at a time");
        control.image_delete(&caller(), &id).await.unwrap();
        assert!(matches!(upload.finish().await, Err(Error::NotFound { .. })));
        assert_eq!(std::fs::read_dir(directory.path().join("images")).unwrap().count(), 0);
        assert_eq!(control.quota("p", Resource::Images).used, 0);
    }
}
