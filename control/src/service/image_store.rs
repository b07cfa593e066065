//! The stores of images' data, and the directory of this host that all data comes in through and hosts read disks from.
//!
//! Must never know: who may do what.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures_util::StreamExt;
use storage::container;
use storage::download::Sources;
use storage::format::qcow2;
use storage::image::{ImageDigest, ImageError, ImageFiles, Sealed};
use storage::store::{DataStream, ImageStore, S3Settings, S3Store};
use tokio::sync::Semaphore;

use crate::Control;
use crate::agent::protocol::{DiskShape, DiskSource};
use crate::error::{Error, Result};
use crate::model::compute::Server;
use crate::model::image::{Image, ImageBlob, ImageStatus, LocalFile};
use crate::model::volume::{DiskWork, Volume};
use crate::service::image_data::IMAGE_BYTES_MAX;

/// The store of files of this host.
pub const FILE_STORE: &str = "file";
/// The store in a bucket.
pub const S3_STORE: &str = "s3";
/// How many disks are made of qcow2 and container images at once: each takes a core.
const CONVERSIONS_MAX: usize = 2;
/// What the name of staged data begins with, before the image's id.
const STAGED_PREFIX: &str = "staged-";

/// The stores of a cloud.
#[derive(Debug)]
pub(crate) struct Images {
    /// Where data arrives, and where hosts look for it.
    pub(crate) files: ImageFiles,
    /// By name, the default first.
    stores: Vec<(&'static str, Arc<dyn ImageStore>)>,
    /// From where images may be fetched.
    pub(crate) sources: Sources,
    in_hand: Arc<Mutex<InHand>>,
    /// Names of files that are being made.
    making: Mutex<BTreeSet<String>>,
    conversions: Semaphore,
}

/// Names of data that this process works on, beside what the rows say.
#[derive(Debug, Default)]
struct InHand {
    /// What is in a store, or about to be, before a row says so; how many times each.
    held: BTreeMap<String, usize>,
    /// What is being deleted from a bucket.
    clearing: BTreeSet<String>,
}

/// How often it is looked whether data that is wanted again has been deleted from a bucket.
const CLEARED_INTERVAL: Duration = Duration::from_millis(10);

/// Keeps data from being cleared until a row refers to it.
#[derive(Debug)]
pub(crate) struct Held {
    in_hand: Arc<Mutex<InHand>>,
    name: String,
}

fn locked(in_hand: &Mutex<InHand>) -> MutexGuard<'_, InHand> {
    in_hand.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Drop for Held {
    fn drop(&mut self) {
        let held = &mut locked(&self.in_hand).held;
        if let Some(count) = held.get_mut(&self.name) {
            *count -= 1;
            if *count == 0 {
                held.remove(&self.name);
            }
        }
    }
}

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

impl Images {
    pub(crate) fn open(directory: &Path, s3: Option<&S3Settings>, sources: Sources) -> Result<Self> {
        let files = ImageFiles::open(directory)?;
        let mut stores: Vec<(&'static str, Arc<dyn ImageStore>)> =
            vec![(FILE_STORE, Arc::new(files.clone()))];
        if let Some(settings) = s3 {
            let store = S3Store::new(settings).map_err(|error| Error::Io {
                step: "use the bucket for images",
                source: std::io::Error::other(error),
            })?;
            stores.push((S3_STORE, Arc::new(store)));
        }
        Ok(Self {
            files,
            stores,
            sources,
            in_hand: Arc::default(),
            making: Mutex::default(),
            conversions: Semaphore::new(CONVERSIONS_MAX),
        })
    }

    /// The stores' names, the default first.
    pub(crate) fn ids(&self) -> Vec<&'static str> {
        self.stores.iter().map(|(id, _)| *id).collect()
    }

    pub(crate) fn store(&self, id: &str) -> Result<&Arc<dyn ImageStore>> {
        let found = self.stores.iter().find(|(known, _)| *known == id);
        found.map(|(_, store)| store).ok_or_else(|| Error::not_found("Store", id))
    }

    /// Holds data of this name from now on; waits while it is being deleted.
    pub(crate) async fn hold(&self, name: &str) -> Held {
        while !self.try_hold(name) {
            tokio::time::sleep(CLEARED_INTERVAL).await;
        }
        Held { in_hand: self.in_hand.clone(), name: name.to_owned() }
    }

    fn try_hold(&self, name: &str) -> bool {
        let mut in_hand = locked(&self.in_hand);
        let free = !in_hand.clearing.contains(name);
        if free {
            *in_hand.held.entry(name.to_owned()).or_default() += 1;
        }
        free
    }

    /// Deletes data from a bucket unless `wanted`, or somebody holds it.
    async fn clear_from(&self, store: &str, name: &str, wanted: impl Fn() -> bool) -> Result<()> {
        {
            let mut in_hand = locked(&self.in_hand);
            if in_hand.held.contains_key(name) || wanted() || !in_hand.clearing.insert(name.to_owned()) {
                return Ok(());
            }
        }
        let deleted = async { Ok(self.store(store)?.delete(name).await?) }.await;
        locked(&self.in_hand).clearing.remove(name);
        deleted
    }

    /// The name of the data that is staged for an image.
    pub(crate) fn staged(image_id: &str) -> String {
        format!("{STAGED_PREFIX}{image_id}")
    }

    /// Whether all files that a server is made of are here. Those of the first version always were.
    pub(crate) fn has_all(&self, server: &Server) -> bool {
        server.files.iter().all(|file| file.stores.is_empty() || self.files.has(&file.name))
    }

    /// Reads data from the first of these stores that has it.
    async fn read(&self, stores: &[String], name: &str, bytes: u64) -> Result<DataStream> {
        let mut failed = Error::not_found("Image data", name);
        for id in stores {
            let store = self.store(id)?;
            match store.read(name, 0..bytes).await {
                Ok(data) => return Ok(data),
                Err(error) => failed = error.into(),
            }
        }
        Err(failed)
    }

    /// Copies data from a store into this host's directory, sealed, its name checked against its digest.
    pub(crate) async fn bring(
        &self,
        stores: &[String],
        name: &str,
        bytes: u64,
        spool: &str,
    ) -> Result<Sealed> {
        let mut data = self.read(stores, name, bytes).await?;
        let mut upload = self.files.begin(spool, bytes)?;
        while let Some(piece) = data.next().await {
            let piece = piece.map_err(|source| Error::Io { step: "read an image from its store", source })?;
            upload = written(upload, piece).await?;
        }
        let sealed = blocking(move || Ok(upload.seal()?)).await?;
        if ImageDigest::is_name(name) && sealed.digest().name() != name {
            return Err(Error::Unavailable(format!("The data of image {name} is damaged in its store.")));
        }
        Ok(sealed)
    }

    /// Makes the files of a server that are not here: data is brought from another store, qcow2 and
    /// container images become raw. A file that
    /// is being made already is left to whoever makes it.
    pub(crate) async fn make_files(&self, files: &[LocalFile]) -> Result<()> {
        for file in files.iter().filter(|file| !self.files.has(&file.name)) {
            if !self.making.lock().unwrap_or_else(PoisonError::into_inner).insert(file.name.clone()) {
                continue;
            }
            let made = self.make_file(file).await;
            self.making.lock().unwrap_or_else(PoisonError::into_inner).remove(&file.name);
            made?;
        }
        Ok(())
    }

    async fn make_file(&self, file: &LocalFile) -> Result<()> {
        let _held = (self.hold(&file.name).await, self.hold(&file.data).await);
        if !self.files.has(&file.data) {
            let spool = format!("bring-{}", file.data);
            let sealed = self.bring(&file.stores, &file.data, file.data_bytes, &spool).await?;
            let name = file.data.clone();
            blocking(move || Ok(sealed.keep(&name)?)).await?;
        }
        if file.qcow2 || file.container {
            let _turn = self.conversions.acquire().await.map_err(|_| Error::Unavailable("closing".into()))?;
            let (files, data, name) = (self.files.clone(), file.data.clone(), file.name.clone());
            let container = file.container;
            blocking(move || {
                let from = files.open_read(&data)?;
                let made = files.make(&name, |raw| {
                    let made = if container {
                        let made = container::copy_to_raw(&from, raw, vmm::guest::INIT, IMAGE_BYTES_MAX);
                        made.map_err(std::io::Error::other)
                    } else {
                        qcow2::copy_to_raw(&from, raw, IMAGE_BYTES_MAX).map_err(std::io::Error::other)
                    };
                    made.map(drop)
                });
                Ok(made?)
            })
            .await?;
        }
        Ok(())
    }

    /// Deletes files of this host that nobody needs; `wanted` says which somebody does, and is asked while nobody can
    /// begin to hold one.
    async fn clear_files(&self, wanted: impl Fn() -> BTreeSet<String> + Send + 'static) -> Result<()> {
        let (files, in_hand) = (self.files.clone(), self.in_hand.clone());
        blocking(move || {
            let names = files.list()?;
            let in_hand = locked(&in_hand);
            let wanted = wanted();
            let unwanted = |name: &&String| !wanted.contains(*name) && !in_hand.held.contains_key(*name);
            for name in names.iter().filter(unwanted) {
                files.delete(name)?;
            }
            Ok(())
        })
        .await
    }
}

/// Appends to an upload where that holds nobody up.
async fn written(mut upload: storage::image::Upload, piece: Bytes) -> Result<storage::image::Upload> {
    blocking(move || {
        upload.write(piece)?;
        Ok(upload)
    })
    .await
}

/// Runs what waits for a disk where that holds nobody up.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    let done = tokio::task::spawn_blocking(work).await;
    done.unwrap_or_else(|_| Err(Error::Unavailable("an image's file could not be worked on".to_owned())))
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
    /// The stores that data can be in, the one that is used by default first.
    pub fn image_store_facts(&self) -> Vec<StoreFacts> {
        let facts = self.images.ids().into_iter().map(|id| match id {
            S3_STORE => StoreFacts {
                id,
                kind: "s3",
                description: "A bucket of an S3-compatible service",
                properties: Vec::new(),
            },
            _ => StoreFacts {
                id,
                kind: "file",
                description: "Files of this host",
                properties: vec![
                    ("data_dir".to_owned(), "images".into()),
                    ("chunk_size".to_owned(), storage::store::READ_BYTES.into()),
                    ("thin_provisioning".to_owned(), false.into()),
                ],
            },
        });
        facts.collect()
    }

    /// Their names.
    pub fn image_store_ids(&self) -> Vec<&'static str> {
        self.images.ids()
    }

    /// Where a store has an image's data.
    pub fn image_location(&self, store: &str, image: &Image) -> String {
        format!("{store}:///{}", image.data.as_deref().unwrap_or(&image.id))
    }

    /// Deletes data that no image has and no server is made of. Servers that go later leave theirs to the next call; one
    /// is made at each start.
    ///
    /// # Errors
    /// `Io`.
    pub async fn image_collect(&self) -> Result<()> {
        self.db.caught_up().await?;
        let cache = self.db.cache().clone();
        let wanted = move || {
            let mut wanted = BTreeSet::new();
            for stored in cache.list::<Image>() {
                let image = &stored.row;
                match &image.data {
                    Some(_) => {}
                    // Images of the first version.
                    None => drop(wanted.insert(image.id.clone())),
                }
                if matches!(image.status, ImageStatus::Uploading | ImageStatus::Importing) {
                    wanted.insert(Images::staged(&image.id));
                }
            }
            for blob in cache.list::<ImageBlob>() {
                if let Some(name) = blob.row.id.strip_prefix("file/") {
                    wanted.insert(name.to_owned());
                }
            }
            // The rows of volumes before those of wishes: one follows the other in one transaction, and so is seen.
            for volume in cache.filter::<Volume>(|volume| volume.waits_for.is_some()) {
                wanted.extend(volume.row.waits_for.iter().flat_map(LocalFile::names));
            }
            for work in cache.list::<DiskWork>() {
                if let DiskShape::Volume { source: DiskSource::Image { image_id }, .. } = &work.row.shape {
                    wanted.insert(image_id.clone());
                }
            }
            for server in cache.list::<Server>() {
                let server = &server.row;
                wanted.extend(server.files.iter().flat_map(LocalFile::names));
                if server.files.is_empty() {
                    wanted.insert(server.image_id.clone());
                    wanted.extend(server.kernel.iter().map(|kernel| kernel.kernel_id.clone()));
                    wanted.extend(server.kernel.iter().filter_map(|kernel| kernel.ramdisk_id.clone()));
                }
            }
            wanted
        };
        self.images.clear_files(wanted).await
    }

    /// Deletes data from a store other than this host's files, if no image has it there any more. What cannot be deleted
    /// now stays until the next start, and the log says so.
    pub(crate) async fn image_release(&self, store: &str, name: &str) {
        if store == FILE_STORE {
            return;
        }
        let wanted = || self.db.cache().get::<ImageBlob>(&ImageBlob::key(store, name)).is_some();
        if let Err(error) = self.images.clear_from(store, name, wanted).await {
            let error: &dyn std::error::Error = &error;
            tracing::warn!(store, data = name, error, "data that no image has stays in its store");
        }
    }

    /// Deletes what a crash left in buckets: data that no image has.
    pub(crate) async fn image_sweep_buckets(&self) {
        for store in self.images.ids().into_iter().filter(|store| *store != FILE_STORE) {
            let listed = async { Ok::<_, Error>(self.images.store(store)?.list().await?) };
            match listed.await {
                Ok(names) => {
                    for name in names.iter().filter(|name| ImageDigest::is_name(name)) {
                        self.image_release(store, name).await;
                    }
                }
                Err(error) => {
                    let error: &dyn std::error::Error = &error;
                    tracing::warn!(store, error, "a store of images does not answer");
                }
            }
        }
    }
}
