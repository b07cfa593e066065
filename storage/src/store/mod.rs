//! Where images' data is kept: one contract, and the stores that keep it. Data has its digest for its name
//! ([`ImageDigest::name`]), so the same bytes are there once, and putting them again changes nothing.
//!
//! Must never know: images, who owns them, how many refer to the same data.

mod file;
mod s3;

use std::io;
use std::ops::Range;
use std::pin::Pin;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::Stream;

pub use self::s3::{S3Error, S3Objects, S3Settings, S3Store};
use crate::image::{ImageError, Sealed};

/// Data as it is read.
pub type DataStream = Pin<Box<dyn Stream<Item = io::Result<Bytes>> + Send>>;

/// Bytes read at once: large enough for the disk, small enough for hundreds of downloads at once.
pub const READ_BYTES: usize = 256 << 10;

/// A store of images' data.
#[async_trait]
pub trait ImageStore: Send + Sync + std::fmt::Debug {
    /// Its kind as clients know it: `file`, `s3`.
    fn kind(&self) -> &'static str;

    /// Keeps sealed data under its name, whole and durable, or not at all. If it is there already, nothing happens.
    async fn put(&self, name: &str, data: &Sealed) -> Result<(), ImageError>;

    /// Reads a range of data, which must lie within it.
    async fn read(&self, name: &str, range: Range<u64>) -> Result<DataStream, ImageError>;

    /// Deletes data; no error if there is none. Who reads it may read on.
    async fn delete(&self, name: &str) -> Result<(), ImageError>;

    /// The names of all data, in no order.
    async fn list(&self) -> Result<Vec<String>, ImageError>;
}
