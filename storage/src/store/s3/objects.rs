//! The objects of a bucket by their names, for those who hold their thread up: backups.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::{StreamExt as _, TryStreamExt as _};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt as _, PutPayload};
use tokio::runtime::Handle;

use super::{S3Error, S3Settings, client};
use crate::backup::Objects;

/// The service itself. To be called from no thread that drives the runtime.
#[derive(Debug)]
pub struct S3Objects {
    client: Arc<dyn ObjectStore>,
    prefix: Path,
    runtime: Handle,
}

impl S3Objects {
    /// A client of a bucket; nothing is asked of the service yet.
    ///
    /// # Errors
    /// [`S3Error`] where the settings cannot be.
    pub fn new(settings: &S3Settings, runtime: Handle) -> Result<Self, S3Error> {
        Ok(Self::of(Arc::new(client(settings)?), &settings.prefix, runtime))
    }

    fn of(client: Arc<dyn ObjectStore>, prefix: &str, runtime: Handle) -> Self {
        Self { client, prefix: Path::from(prefix), runtime }
    }

    fn object(&self, name: &str) -> Path {
        name.split('/').fold(self.prefix.clone(), |path, part| path.join(part))
    }

    /// In memory, for tests.
    #[cfg(test)]
    pub(crate) fn in_memory(runtime: Handle) -> Self {
        Self::of(Arc::new(object_store::memory::InMemory::new()), "cloud", runtime)
    }

    /// The whole names of all objects.
    #[cfg(test)]
    pub(crate) fn names(&self) -> Vec<String> {
        let listed = self.client.list(None).map_ok(|object| object.location.to_string());
        self.runtime.block_on(listed.try_collect()).unwrap()
    }
}

impl Objects for S3Objects {
    fn put(&self, name: &str, content: Bytes) -> io::Result<()> {
        let object = self.object(name);
        self.runtime.block_on(self.client.put(&object, PutPayload::from_bytes(content)))?;
        Ok(())
    }

    fn get(&self, name: &str, bytes_max: u64) -> io::Result<Option<Bytes>> {
        let object = self.object(name);
        self.runtime.block_on(async {
            match self.client.get(&object).await {
                Ok(got) if got.meta.size > bytes_max => Err(io::ErrorKind::FileTooLarge.into()),
                Ok(got) => Ok(Some(got.bytes().await?)),
                Err(object_store::Error::NotFound { .. }) => Ok(None),
                Err(error) => Err(error.into()),
            }
        })
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        match self.runtime.block_on(self.client.delete(&self.object(name))) {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    fn delete_below(&self, name: &str) -> io::Result<()> {
        let all = self.client.list(Some(&self.object(name))).map_ok(|object| object.location).boxed();
        self.runtime.block_on(self.client.delete_stream(all).try_for_each(|_| std::future::ready(Ok(()))))?;
        Ok(())
    }
}
