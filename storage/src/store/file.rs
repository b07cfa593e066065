//! A directory of this host as a store.

use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::stream::{self, StreamExt as _};

use super::{DataStream, ImageStore, READ_BYTES};
use crate::image::{ImageError, ImageFiles, Sealed};

/// How many pieces are read while one is sent.
const READS_AHEAD: usize = 2;

#[async_trait]
impl ImageStore for ImageFiles {
    fn kind(&self) -> &'static str {
        "file"
    }

    async fn put(&self, name: &str, data: &Sealed) -> Result<(), ImageError> {
        let (name, data) = (name.to_owned(), data.clone());
        blocking(move || data.keep(&name)).await
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<DataStream, ImageError> {
        let file = Arc::new(self.open_read(name)?);
        let starts = range.clone().step_by(READ_BYTES);
        let pieces = stream::iter(starts).map(move |start| {
            let (file, length) = (file.clone(), (range.end - start).min(READ_BYTES as u64));
            // Nothing is read before somebody asks for it.
            async move {
                let read = tokio::task::spawn_blocking(move || {
                    let mut piece = vec![0; length as usize];
                    file.read_exact_at(&mut piece, start).map(|()| Bytes::from(piece))
                });
                read.await.map_err(std::io::Error::other)?
            }
        });
        Ok(Box::pin(pieces.buffered(READS_AHEAD)))
    }

    async fn delete(&self, name: &str) -> Result<(), ImageError> {
        let (files, name) = (self.clone(), name.to_owned());
        blocking(move || ImageFiles::delete(&files, &name)).await
    }

    async fn list(&self) -> Result<Vec<String>, ImageError> {
        let files = self.clone();
        blocking(move || ImageFiles::list(&files)).await
    }
}

/// Runs what waits for a disk where that holds nobody up.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ImageError> + Send + 'static,
) -> Result<T, ImageError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(done) => done,
        Err(error) => Err(ImageError::io("work on", "the image directory")(std::io::Error::other(error))),
    }
}
