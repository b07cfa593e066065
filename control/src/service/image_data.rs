//! The data of images: streamed in, read back, deleted. Data is in its store before a row says so and goes after the last
//! row is gone, so what a row promises is always there; what a crash leaves in between is cleared at the next start.

mod references;
#[cfg(test)]
mod tests;
mod upload;

use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use jiff::Timestamp;
use storage::container::{self, ContainerError};
use storage::format::inspect::{InspectError, inspect};
use storage::image::{ImageDigest, Sealed};
use storage::store::DataStream;

use self::references::mib;
pub(crate) use self::references::{charged_mib, deletion, refer, refer_by, unrefer};
pub use self::upload::ImageUpload;
use self::upload::Incoming;
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::image::{Image, ImageStatus};
use crate::service::image::CONTAINER;
use crate::service::image_access::{allowed_image, owned_image};
use crate::service::image_store::{FILE_STORE, Images, blocking};
use crate::service::quota::{self, Resource};
use crate::store::{Stored, Txn};

/// The largest image in bytes (Glance's `image_size_cap`).
pub const IMAGE_BYTES_MAX: u64 = 1 << 40;

/// The MD5 of nothing (RFC 1321 §A.5).
const EMPTY_MD5: &str = "d41d8cd98f00b204e9800998ecf8427e";
/// The SHA-512 of nothing (FIPS 180-4).
const EMPTY_SHA512: &str = "cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
                            47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";

/// Where an upload goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UploadTo {
    /// Into a store; the image is active then.
    Store(Option<String>),
    /// Into the staging area, for a later import.
    Staging,
}

/// What is on its way in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Staging {
    /// How many images.
    pub uploading: u64,
    /// How many MiB of them are staged.
    pub mib: u64,
}

impl Control {
    /// Begins to take an image's data.
    ///
    /// # Errors
    /// `Conflict` unless the image is queued; `Invalid` without disk and container format, or for an unknown store.
    pub async fn image_upload(
        self: &Arc<Self>,
        caller: &Caller,
        id: &str,
        to: UploadTo,
    ) -> Result<ImageUpload> {
        self.db.caught_up().await?;
        if let UploadTo::Store(Some(store)) = &to {
            self.images.store(store).map_err(|_| {
                Error::invalid("Invalid", format!("Store identifier '{store}' is not known here."))
            })?;
        }
        let during = if to == UploadTo::Staging { ImageStatus::Uploading } else { ImageStatus::Saving };
        let image = self
            .db
            .transact_with(|cache| {
                let stored = owned_image(cache, caller, id, "upload_image")?;
                if stored.row.status != ImageStatus::Queued {
                    let message = "Image status transition is not allowed: its data is there, or on its way";
                    return Err(Error::conflict("InvalidImageStatusTransition", message));
                }
                let known = stored.row.disk_format.is_some() && stored.row.container_format.is_some();
                if !known && to != UploadTo::Staging {
                    let message = "disk_format and container_format must be set before the data is uploaded";
                    return Err(Error::invalid("Invalid", message));
                }
                let image = Image { status: during, failed_import: Vec::new(), ..stored.row.clone() };
                Ok((Txn::new().update(&stored, &image), image))
            })
            .await?;
        let left = self.image_bytes_left(image.owner.as_deref().unwrap_or_default());
        let (upload, incoming, done) = ImageUpload::begin();
        // A task of its own: it tidies up even if whoever uploads is gone.
        let control = self.clone();
        tokio::spawn(async move {
            let outcome = control.take_upload(&image, left, incoming, &to).await;
            if outcome.is_err() {
                control.image_back_to_queued(&image.id, during).await;
            }
            // Nobody waiting any more is no error.
            let _ = done.send(outcome);
        });
        Ok(upload)
    }

    /// How many bytes of images a project may still bring.
    pub(crate) fn image_bytes_left(&self, owner: &str) -> u64 {
        let quota = self.quota(owner, Resource::ImageMib);
        let left_mib = quota.limit.map_or(u64::MAX, |limit| limit.saturating_sub(quota.used));
        left_mib.saturating_mul(1 << 20).min(IMAGE_BYTES_MAX)
    }

    async fn take_upload(
        &self,
        image: &Image,
        bytes_max: u64,
        incoming: Incoming,
        to: &UploadTo,
    ) -> Result<()> {
        let upload = self.images.files.begin(&image.id, bytes_max)?;
        let sealed = blocking(move || incoming.write_all(upload)).await?;
        match to {
            UploadTo::Store(store) => {
                let virtual_bytes = self.image_inspect(image, &sealed).await?;
                let store = store.clone().unwrap_or_else(|| FILE_STORE.to_owned());
                self.image_activate(image, &sealed, &[store], virtual_bytes, ImageStatus::Saving, Ok).await
            }
            UploadTo::Staging => self.image_stage(image, &sealed).await,
        }
    }

    /// Checks data against the format that its image says, and how large a disk it is.
    pub(crate) async fn image_inspect(&self, image: &Image, sealed: &Sealed) -> Result<Option<u64>> {
        let format = image.disk_format.clone().unwrap_or_default();
        if image.container_format.as_deref() == Some(CONTAINER) && sealed.digest().size_bytes > 0 {
            let sealed = sealed.clone();
            // How large its disk is shows when that is made.
            return blocking(move || {
                container::check(sealed.file()).map(|_| None).map_err(|error| match error {
                    ContainerError::Read(source) => Error::Io { step: "inspect an image", source },
                    refused => {
                        let message =
                            format!("Image content does not match container_format docker: {refused}");
                        Error::invalid("Invalid", message)
                    }
                })
            })
            .await;
        }
        // In any other container is no disk.
        if image.container_format.as_deref() != Some("bare") || sealed.digest().size_bytes == 0 {
            return Ok(None);
        }
        let sealed = sealed.clone();
        blocking(move || {
            inspect(sealed.file(), &format).map_err(|error| match error {
                InspectError::Read(source) => Error::Io { step: "inspect an image", source },
                refused => Error::invalid("Invalid", refused.to_string()),
            })
        })
        .await
    }

    /// Puts sealed data into stores and makes its image active; `finish` adds what else the transaction does.
    ///
    /// # Errors
    /// Why it is not active; then the data is in no store because of it.
    pub(crate) async fn image_activate(
        &self,
        image: &Image,
        sealed: &Sealed,
        stores: &[String],
        virtual_bytes: Option<u64>,
        from: ImageStatus,
        finish: impl Fn(Txn) -> Result<Txn>,
    ) -> Result<()> {
        let digest = sealed.digest();
        let name = digest.name();
        let held = self.images.hold(name).await;
        let id = &image.id;
        let active = async {
            for store in stores {
                self.images.store(store)?.put(name, sealed).await?;
            }
            self.db
                .transact(|cache| {
                    let stored = cache.get::<Image>(id).ok_or_else(|| Error::not_found("Image", id))?;
                    if stored.row.status != from {
                        let message = "the image's data is not on its way in any more";
                        return Err(Error::conflict("InvalidImageStatusTransition", message));
                    }
                    let image = activated(stored.row.clone(), digest, stores, virtual_bytes);
                    let owner = image.owner.clone().unwrap_or_default();
                    let txn = refer(cache, Txn::new().update(&stored, &image), stores, digest);
                    finish(quota::charge(txn, &owner, &[(Resource::ImageMib, mib(digest.size_bytes))]))
                })
                .await
        };
        let active = active.await;
        if active.is_err() {
            drop(held);
            for store in stores {
                self.image_release(store, name).await;
            }
            self.image_collect().await?;
        }
        active
    }

    /// Keeps sealed data for a later import.
    async fn image_stage(&self, image: &Image, sealed: &Sealed) -> Result<()> {
        let (kept, name) = (sealed.clone(), Images::staged(&image.id));
        let _held = self.images.hold(&name).await;
        blocking(move || Ok(kept.keep(&name)?)).await?;
        let id = &image.id;
        self.db
            .transact(|cache| {
                let stored = cache.get::<Image>(id).ok_or_else(|| Error::not_found("Image", id))?;
                let image = Image {
                    size_bytes: Some(sealed.digest().size_bytes),
                    updated_at: Timestamp::now(),
                    ..stored.row.clone()
                };
                Ok(Txn::new().update(&stored, &image))
            })
            .await
    }

    /// A failed upload leaves the image as it was before.
    pub(crate) async fn image_back_to_queued(&self, id: &str, during: ImageStatus) {
        let reset = self.db.transact(|cache| match cache.get::<Image>(id) {
            Some(stored) if stored.row.status == during => {
                let image = Image { status: ImageStatus::Queued, size_bytes: None, ..stored.row.clone() };
                Ok(Txn::new().update(&stored, &image))
            }
            _ => Ok(Txn::new()),
        });
        let reset = match reset.await {
            Ok(()) => self.image_collect().await,
            failed => failed,
        };
        if let Err(error) = reset {
            tracing::error!(
                image.id = id,
                error = &error as &dyn std::error::Error,
                "a failed upload leaves its image or its data until the next start"
            );
        }
    }

    /// An image whose data the caller may read; it may have none yet.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden`, while it is deactivated to all but administrators.
    pub async fn image_readable(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Image>>> {
        self.db.caught_up().await?;
        let default = crate::policy::Default::VisibleMember;
        let stored = allowed_image(self.db.cache(), caller, id, "download_image", default)?;
        if stored.row.status == ImageStatus::Deactivated && !caller.is_admin() {
            return Err(Error::Forbidden { action: "download of a deactivated image" });
        }
        Ok(stored)
    }

    /// A range of an image's data, which must lie within it, from the first store that has it.
    ///
    /// # Errors
    /// `NotFound` if the image was deleted meanwhile; `Io`.
    pub async fn image_data(&self, image: &Image, range: Range<u64>) -> Result<DataStream> {
        if range.is_empty() {
            return Ok(Box::pin(futures_util::stream::empty()));
        }
        let name = image.data.as_deref().unwrap_or(&image.id);
        let mut failed = None;
        for store in
            image.stores.iter().map(String::as_str).chain(image.stores.is_empty().then_some(FILE_STORE))
        {
            match self.images.store(store)?.read(name, range.clone()).await {
                Ok(data) => return Ok(data),
                Err(error) => failed = Some(error),
            }
        }
        Err(failed.map_or_else(|| Error::not_found("Image data", name), Into::into))
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

    /// Deletes an image. Its data stays while another image has it or a server's disk lies over it.
    ///
    /// # Errors
    /// `Forbidden` if it is protected.
    pub async fn image_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        let gone = self
            .db
            .transact_with(|cache| {
                let stored = owned_image(cache, caller, id, "delete_image")?;
                if stored.row.protected {
                    return Err(Error::Forbidden { action: "deletion of a protected image" });
                }
                Ok((deletion(cache, &stored), stored.row.clone()))
            })
            .await?;
        self.image_cleared(&gone).await
    }

    /// Takes an image's data out of one of its stores.
    ///
    /// # Errors
    /// `NotFound` if it is not there, `Forbidden` if it is nowhere else.
    pub async fn image_delete_from_store(&self, caller: &Caller, store: &str, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        let gone = self
            .db
            .transact_with(|cache| {
                let stored = owned_image(cache, caller, id, "delete_image_location")?;
                let image = &stored.row;
                if !image.stores.iter().any(|have| have == store) || image.data.is_none() {
                    return Err(Error::not_found("Image in store", format!("{id} in {store}")));
                }
                if image.stores.len() == 1 {
                    return Err(Error::Forbidden {
                        action: "deletion from the only store that has an image",
                    });
                }
                if image.import_task.is_some() {
                    let message = "A task works on the image.";
                    return Err(Error::conflict("Conflict", message));
                }
                let mut left = image.clone();
                left.stores.retain(|have| have != store);
                left.updated_at = Timestamp::now();
                let gone = Image { stores: vec![store.to_owned()], ..image.clone() };
                Ok((unrefer(cache, Txn::new().update(&stored, &left), &gone), gone))
            })
            .await?;
        self.image_cleared(&gone).await
    }

    /// Clears data that an image had.
    pub(crate) async fn image_cleared(&self, gone: &Image) -> Result<()> {
        self.db.caught_up().await?;
        if let Some(name) = &gone.data {
            for store in &gone.stores {
                self.image_release(store, name).await;
            }
        }
        self.image_collect().await
    }

    /// At start: what a crash cut off is cleared, and its images are queued again. Imports go on: see the tasks.
    pub(crate) async fn image_recover(&self) -> Result<()> {
        self.images.files.sweep()?;
        for stored in self.db.cache().list::<Image>() {
            let image = &stored.row;
            let cut_off = match image.status {
                ImageStatus::Saving => true,
                ImageStatus::Uploading => {
                    image.size_bytes.is_none() || !self.images.files.has(&Images::staged(&image.id))
                }
                ImageStatus::Importing => image.import_task.is_none(),
                _ => false,
            };
            if cut_off {
                if image.data.is_none() {
                    // The file may be whole though its row never said so.
                    self.images.files.delete(&image.id)?;
                }
                self.image_back_to_queued(&image.id, image.status).await;
            }
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
        if !self.db.store().range(marker).await?.0.is_empty() {
            return Ok(());
        }
        let (files, id) = (self.images.files.clone(), described.id.clone());
        let sealed = blocking(move || {
            let mut upload = files.begin(&id, data.len() as u64)?;
            upload.write(Bytes::from_static(data))?;
            Ok(upload.seal()?)
        })
        .await?;
        let digest = sealed.digest();
        let _held = self.images.hold(digest.name()).await;
        let stores = [FILE_STORE.to_owned()];
        self.images.store(FILE_STORE)?.put(digest.name(), &sealed).await?;
        let image = activated(described, digest, &stores, Some(digest.size_bytes));
        let owner = image.owner.clone().unwrap_or_default();
        let charges = [(Resource::Images, 1), (Resource::ImageMib, mib(digest.size_bytes))];
        self.db
            .transact(|cache| {
                let txn = refer(cache, Txn::new().create(&image).unique(marker), &stores, digest);
                Ok(quota::charge(txn, &owner, &charges))
            })
            .await
    }
}

fn activated(image: Image, digest: &ImageDigest, stores: &[String], virtual_bytes: Option<u64>) -> Image {
    Image {
        status: ImageStatus::Active,
        stores: stores.to_vec(),
        data: Some(digest.name().to_owned()),
        size_bytes: Some(digest.size_bytes),
        virtual_size_bytes: virtual_bytes,
        checksum: Some(digest.md5.clone()),
        sha512: Some(digest.sha512.clone()),
        import_task: None,
        importing_to: Vec::new(),
        updated_at: Timestamp::now(),
        ..image
    }
}

/// A new image that is whole without any data; nothing of it is in a store.
pub(crate) fn without_data(image: Image) -> Image {
    Image {
        status: ImageStatus::Active,
        size_bytes: Some(0),
        checksum: Some(EMPTY_MD5.to_owned()),
        sha512: Some(EMPTY_SHA512.to_owned()),
        ..image
    }
}
