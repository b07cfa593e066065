//! Images of disks: what becomes of the file that a host brings out of a volume, or of a server's root disk. The file is
//! read into the image, then the host clears it; a crash before that has the host's report repeated.

use std::sync::Arc;

use bytes::BytesMut;
use tokio::io::AsyncReadExt as _;

use crate::Control;
use crate::caller::{Caller, RoleLevel, Scope};
use crate::driver::volumes::OUTGOING;
use crate::error::{Error, Result};
use crate::model::image::{Image, ImageStatus};
use crate::model::volume::{DiskTask, DiskWork};
use crate::reconcile::RETRY_INTERVAL;
use crate::reconcile::image_task::sentence;
use crate::service::image_data::{ImageUpload, UploadTo};
use crate::service::volume::work::upload_ended;
use crate::store::Txn;

/// How much of a file is read at once.
const PIECE_BYTES: usize = 256 << 10;

impl Control {
    /// Reads the file that a host brought out into its image, then has the host clear it.
    pub(crate) async fn disk_image_take(self: &Arc<Self>, host: &str, work: &DiskWork) {
        let Some(image) = work.task.image() else { return };
        if !self.image_tasks.begin(image) {
            // A repeated report: the first one is taken care of.
            return;
        }
        let taken = self.take_image(host, &work.task, image).await;
        if let Err(error) = &taken {
            tracing::warn!(image.id = image, error = error as &dyn std::error::Error, "no image of a disk");
        }
        let fault = taken.err().map(|error| sentence(&error));
        loop {
            let ended = self.db.transact(|cache| match cache.get::<DiskWork>(&work.id) {
                Some(stored) if stored.row.generation == work.generation => {
                    Ok(upload_ended(cache, &stored, host, fault.as_deref()))
                }
                _ => Ok(Txn::new()),
            });
            let Err(error) = ended.await else { break };
            tracing::error!(
                image.id = image,
                error = &error as &dyn std::error::Error,
                "an image of a disk does not end"
            );
            if !matches!(error, Error::Unavailable(_)) {
                break;
            }
            tokio::time::sleep(RETRY_INTERVAL).await;
        }
        self.image_tasks.end(image);
    }

    async fn take_image(self: &Arc<Self>, host: &str, task: &DiskTask, image: &str) -> Result<()> {
        // Done before the process ended, or its owner brings other data.
        if self.db.get::<Image>(image).is_some_and(|found| found.row.status == ImageStatus::Queued) {
            self.take_data(host, task, image).await?;
        }
        match task {
            DiskTask::UploadRoot { server, rotation: Some(rotation), .. } => {
                self.server_backups_rotate(server, image, *rotation).await
            }
            _ => Ok(()),
        }
    }

    async fn take_data(self: &Arc<Self>, host: &str, task: &DiskTask, image: &str) -> Result<()> {
        let owner = Caller {
            scope: Scope::Project(self.image_stored(image)?.row.owner.clone().unwrap_or_default()),
            role: Some(RoleLevel::Member),
            ..Caller::default()
        };
        let path = self.settings.volumes_dir.join(host).join(OUTGOING).join(image);
        let failed = |source| Error::Io { step: "read the file made of a disk", source };
        let file = tokio::fs::File::open(&path).await.map_err(failed)?;
        let upload = self.image_upload(&owner, image, UploadTo::Store(None)).await?;
        if let DiskTask::UploadRoot { server, .. } = task {
            self.server_image_uploading(server).await?;
        }
        copy(file, upload).await
    }
}

async fn copy(mut file: tokio::fs::File, mut upload: ImageUpload) -> Result<()> {
    let mut piece = BytesMut::with_capacity(PIECE_BYTES);
    loop {
        piece.reserve(PIECE_BYTES);
        match file.read_buf(&mut piece).await {
            Ok(0) => return upload.finish().await,
            Ok(_) if upload.write(piece.split().freeze()).await => {}
            Ok(_) => return upload.finish().await,
            Err(source) => {
                upload.abandon().await;
                return Err(Error::Io { step: "read the file made of a disk", source });
            }
        }
    }
}
