//! A directory of this host as a store.

use std::io::SeekFrom;
use std::ops::Range;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt as _, AsyncSeekExt as _};
use tokio_util::io::ReaderStream;

use super::{DataStream, ImageStore, READ_BYTES};
use crate::image::{ImageError, ImageFiles, Sealed};

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
        let mut file = tokio::fs::File::from_std(self.open_read(name)?);
        file.seek(SeekFrom::Start(range.start))
            .await
            .map_err(ImageError::io("find the place in image", name))?;
        let length = range.end.saturating_sub(range.start);
        Ok(Box::pin(ReaderStream::with_capacity(file.take(length), READ_BYTES)))
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
