//! A bucket of an S3-compatible service as a store (Amazon S3 API, by the crate `object_store`).

mod objects;

use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::aws::{AmazonS3, AmazonS3Builder};
use object_store::path::Path;
use object_store::{
    BackoffConfig, ClientOptions, GetOptions, GetRange, ObjectStore, ObjectStoreExt as _, PutPayload,
    RetryConfig,
};
use zeroize::Zeroizing;

pub use self::objects::S3Objects;
use super::{DataStream, ImageStore};
use crate::image::{ImageError, Sealed};

/// Bytes of one part of an upload: S3 takes at least 5 MiB and at most 10,000 parts, and this much is in memory.
const PART_BYTES: usize = 8 << 20;
/// The longest object: 10,000 parts.
const OBJECT_BYTES_MAX: u64 = 10_000 * PART_BYTES as u64;
/// How long the service may say nothing.
const TIMEOUT: Duration = Duration::from_secs(60);
/// How often a request is tried, and for how long at most.
const RETRIES_MAX: usize = 4;
const RETRY_TIMEOUT: Duration = Duration::from_secs(30);

/// How to reach a bucket.
#[derive(Clone)]
pub struct S3Settings {
    /// The service's URL, without the bucket.
    pub endpoint: String,
    /// The bucket, which must be there.
    pub bucket: String,
    /// What objects' names begin with, so that several clouds can share a bucket; may be empty.
    pub prefix: String,
    /// The region that requests are signed for.
    pub region: String,
    /// The access key's id.
    pub access_key: String,
    /// The access key.
    pub secret_key: Zeroizing<String>,
}

impl std::fmt::Debug for S3Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("S3Settings")
            .field("endpoint", &self.endpoint)
            .field("bucket", &self.bucket)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

/// Why a bucket cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("use the bucket {bucket}")]
pub struct S3Error {
    bucket: String,
    #[source]
    source: Box<object_store::Error>,
}

/// A client of a bucket; nothing is asked of the service yet.
fn client(settings: &S3Settings) -> Result<AmazonS3, S3Error> {
    // The first to say so decides for the process; all here say the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let failed = |source| S3Error { bucket: settings.bucket.clone(), source: Box::new(source) };
    AmazonS3Builder::new()
        .with_endpoint(settings.endpoint.trim_end_matches('/'))
        .with_bucket_name(&settings.bucket)
        .with_region(&settings.region)
        .with_access_key_id(&settings.access_key)
        .with_secret_access_key(settings.secret_key.as_str())
        .with_client_options(
            ClientOptions::new()
                .with_allow_http(settings.endpoint.starts_with("http:"))
                .with_timeout(TIMEOUT),
        )
        .with_retry(RetryConfig {
            backoff: BackoffConfig::default(),
            max_retries: RETRIES_MAX,
            retry_timeout: RETRY_TIMEOUT,
        })
        .build()
        .map_err(failed)
}

/// A bucket.
#[derive(Debug)]
pub struct S3Store {
    client: Arc<AmazonS3>,
    prefix: Path,
}

impl S3Store {
    /// A client of a bucket; nothing is asked of the service yet.
    ///
    /// # Errors
    /// [`S3Error`] where the settings cannot be.
    pub fn new(settings: &S3Settings) -> Result<Self, S3Error> {
        let client = client(settings)?;
        Ok(Self { client: Arc::new(client), prefix: Path::from(settings.prefix.as_str()) })
    }

    fn path(&self, name: &str) -> Path {
        self.prefix.clone().join(name)
    }

    async fn upload(&self, path: &Path, name: &str, data: &Sealed) -> Result<(), ImageError> {
        let failed = || failed("store image", name);
        let size = data.digest().size_bytes;
        if size <= PART_BYTES as u64 {
            let whole = part(data, 0..size, name).await?;
            self.client.put(path, PutPayload::from_bytes(whole)).await.map_err(failed())?;
            return Ok(());
        }
        let mut upload = self.client.put_multipart(path).await.map_err(failed())?;
        let mut start = 0;
        while start < size {
            let end = size.min(start + PART_BYTES as u64);
            let sent = match part(data, start..end, name).await {
                Ok(part) => upload.put_part(PutPayload::from_bytes(part)).await.map_err(failed()),
                Err(error) => Err(error),
            };
            if let Err(error) = sent {
                // The service keeps, and charges for, parts of uploads that nobody ends.
                if let Err(error) = upload.abort().await {
                    tracing::warn!(%error, image = name, "parts of a failed upload stay in the bucket");
                }
                return Err(error);
            }
            start = end;
        }
        upload.complete().await.map_err(failed())?;
        Ok(())
    }
}

fn failed<'a>(step: &'static str, name: &'a str) -> impl FnOnce(object_store::Error) -> ImageError + 'a {
    move |error| match error {
        object_store::Error::NotFound { .. } => ImageError::Missing { id: name.to_owned() },
        other => ImageError::io(step, name)(io::Error::other(other)),
    }
}

/// Reads a part of sealed data where that holds nobody up.
async fn part(data: &Sealed, range: Range<u64>, name: &str) -> Result<Bytes, ImageError> {
    let data = data.clone();
    let read = tokio::task::spawn_blocking(move || {
        let length = usize::try_from(range.end - range.start).map_err(io::Error::other)?;
        let mut bytes = vec![0; length];
        data.file().read_exact_at(&mut bytes, range.start)?;
        Ok::<_, io::Error>(Bytes::from(bytes))
    });
    let read = read.await.map_err(io::Error::other).and_then(|read| read);
    read.map_err(ImageError::io("read image", name))
}

#[async_trait]
impl ImageStore for S3Store {
    fn kind(&self) -> &'static str {
        "s3"
    }

    async fn put(&self, name: &str, data: &Sealed) -> Result<(), ImageError> {
        let size = data.digest().size_bytes;
        if size > OBJECT_BYTES_MAX {
            return Err(ImageError::TooLarge { id: name.to_owned(), bytes_max: OBJECT_BYTES_MAX });
        }
        let path = self.path(name);
        match self.client.head(&path).await {
            Ok(there) if there.size == size => return Ok(()),
            Ok(_) | Err(object_store::Error::NotFound { .. }) => {}
            Err(error) => return Err(failed("look for image", name)(error)),
        }
        self.upload(&path, name, data).await
    }

    async fn read(&self, name: &str, range: Range<u64>) -> Result<DataStream, ImageError> {
        if range.is_empty() {
            return Ok(Box::pin(futures_util::stream::empty()));
        }
        let options = GetOptions { range: Some(GetRange::Bounded(range)), ..GetOptions::default() };
        let got =
            self.client.get_opts(&self.path(name), options).await.map_err(failed("read image", name))?;
        Ok(Box::pin(got.into_stream().map_err(io::Error::other)))
    }

    async fn delete(&self, name: &str) -> Result<(), ImageError> {
        match self.client.delete(&self.path(name)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(failed("delete image", name)(error)),
        }
    }

    async fn list(&self) -> Result<Vec<String>, ImageError> {
        let mut names = Vec::new();
        let mut listed = self.client.list(Some(&self.prefix));
        while let Some(object) = listed.next().await {
            let object = object.map_err(failed("list", "the bucket"))?;
            names.extend(object.location.filename().map(str::to_owned));
        }
        Ok(names)
    }
}
