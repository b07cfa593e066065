//! A bucket of an S3-compatible service, from the command line to those who use it.
//!
//! Must never know: what is kept in it.

use serde::{Deserialize, Serialize};
use storage::store::S3Settings;
use zeroize::Zeroizing;

/// How to reach a bucket.
#[derive(Clone, Serialize, Deserialize)]
pub struct Bucket {
    /// The service's URL.
    pub endpoint: String,
    /// The bucket's name.
    pub name: String,
    /// What objects' names begin with.
    pub prefix: String,
    /// The region.
    pub region: String,
    /// The access key's id.
    pub access_key: String,
    /// The access key.
    pub secret_key: String,
}

impl std::fmt::Debug for Bucket {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bucket")
            .field("endpoint", &self.endpoint)
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl From<Bucket> for S3Settings {
    fn from(bucket: Bucket) -> Self {
        Self {
            endpoint: bucket.endpoint,
            bucket: bucket.name,
            prefix: bucket.prefix,
            region: bucket.region,
            access_key: bucket.access_key,
            secret_key: Zeroizing::new(bucket.secret_key),
        }
    }
}
