//! Backups in a bucket of an S3-compatible service (Amazon S3 API, by the crate `object_store`).
//!
//! ```text
//! PREFIX/ID/data/NNNNNNNN  16 MiB of the data each, the last one less
//! PREFIX/ID/parent         as in a directory
//! PREFIX/ID/index          written last: a backup is what has one
//! ```
//!
//! Every object is put by one request, so that a service never keeps parts that nobody asks for.

use std::io::{self, Cursor};
use std::sync::Arc;

use bytes::Bytes;

use super::{BackupStore, CHUNK_BYTES, Data, INDEX_BYTES_MAX, NewBackup, Objects, Parts, Result, failed};

/// The data of one object: so much is in memory for each backup that is made or read.
pub(super) const OBJECT_BYTES: usize = 16 * CHUNK_BYTES;

/// See the module.
#[derive(Debug)]
pub struct BucketBackups {
    objects: Arc<dyn Objects>,
}

impl BucketBackups {
    /// The backups in a bucket, or below one of its prefixes.
    pub fn new(objects: Arc<dyn Objects>) -> Self {
        Self { objects }
    }

    fn get(&self, name: &str, bytes_max: u64) -> Result<Option<Bytes>> {
        self.objects.get(name, bytes_max).map_err(failed("read", name))
    }
}

impl BackupStore for BucketBackups {
    fn begin(&self, id: &str) -> Result<Box<dyn NewBackup>> {
        // What somebody left who did not finish.
        self.delete(id)?;
        Ok(Box::new(New { objects: self.objects.clone(), id: id.to_owned(), put: 0, pending: Vec::new() }))
    }

    fn open(&self, id: &str) -> Result<Option<Parts>> {
        let Some(index) = self.get(&format!("{id}/index"), INDEX_BYTES_MAX)? else { return Ok(None) };
        let parent = self.get(&format!("{id}/parent"), super::ID_BYTES_MAX)?;
        let parent = parent.map(|id| String::from_utf8_lossy(&id).into_owned());
        let data = DataObjects { objects: self.objects.clone(), id: id.to_owned(), last: None };
        Ok(Some(Parts { index: Box::new(Cursor::new(index)), data: Box::new(data), parent }))
    }

    fn delete(&self, id: &str) -> Result<()> {
        // Without its index it is no backup, whatever comes next.
        let index = format!("{id}/index");
        self.objects.delete(&index).map_err(failed("delete", &index))?;
        self.objects.delete_below(id).map_err(failed("delete", id))
    }
}

struct New {
    objects: Arc<dyn Objects>,
    id: String,
    /// How many objects of data there are.
    put: u64,
    pending: Vec<u8>,
}

impl New {
    fn put(&self, part: &str, content: Bytes) -> Result<()> {
        let name = format!("{}/{part}", self.id);
        self.objects.put(&name, content).map_err(failed("store", &name))
    }

    fn put_pending(&mut self) -> Result<()> {
        let content = std::mem::take(&mut self.pending).into();
        self.put(&data_name(self.put), content)?;
        self.put += 1;
        Ok(())
    }
}

fn data_name(number: u64) -> String {
    format!("data/{number:08}")
}

impl NewBackup for New {
    fn append(&mut self, chunk: &[u8]) -> Result<()> {
        if self.pending.capacity() == 0 {
            self.pending.reserve_exact(OBJECT_BYTES);
        }
        self.pending.extend_from_slice(chunk);
        if self.pending.len() >= OBJECT_BYTES { self.put_pending() } else { Ok(()) }
    }

    fn finish(mut self: Box<Self>, index: &[u8], parent: Option<&str>) -> Result<()> {
        if !self.pending.is_empty() {
            self.put_pending()?;
        }
        if let Some(parent) = parent {
            self.put("parent", Bytes::copy_from_slice(parent.as_bytes()))?;
        }
        self.put("index", Bytes::copy_from_slice(index))
    }
}

/// The data, by whole objects: the last one that was read is kept, since chunks are asked for in their order.
struct DataObjects {
    objects: Arc<dyn Objects>,
    id: String,
    last: Option<(u64, Bytes)>,
}

impl Data for DataObjects {
    fn read(&mut self, chunk: &mut [u8], place: u64) -> Result<()> {
        let number = place / OBJECT_BYTES as u64;
        let name = format!("{}/{}", self.id, data_name(number));
        let short = || failed("read", &name)(io::Error::from(io::ErrorKind::UnexpectedEof));
        if self.last.as_ref().is_none_or(|(last, _)| *last != number) {
            let content = self.objects.get(&name, OBJECT_BYTES as u64).map_err(failed("read", &name))?;
            self.last = Some((number, content.ok_or_else(short)?));
        }
        let (_, content) = self.last.as_ref().ok_or_else(short)?;
        let at = usize::try_from(place % OBJECT_BYTES as u64).map_err(|_| short())?;
        let piece = content.get(at..).and_then(|rest| rest.get(..chunk.len())).ok_or_else(short)?;
        chunk.copy_from_slice(piece);
        Ok(())
    }
}

#[cfg(test)]
pub(super) mod tests {
    use tokio::runtime::Runtime;

    use super::super::conformance;
    use super::*;
    use crate::store::S3Objects;

    /// A bucket in memory, and what drives it.
    pub(in crate::backup) fn bucket() -> (Arc<S3Objects>, Runtime) {
        let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
        (Arc::new(S3Objects::in_memory(runtime.handle().clone())), runtime)
    }

    #[test]
    fn bucket_conforms_and_is_empty_again() {
        let (objects, _runtime) = bucket();
        conformance::conforms(&BucketBackups::new(objects.clone()));
        assert_eq!(objects.names(), Vec::<String>::new());
    }

    #[test]
    fn damage_is_told() {
        let (objects, _runtime) = bucket();
        conformance::tells_damage(&BucketBackups::new(objects.clone()), &|part, at, bytes| {
            let name = if part == "data" { data_name(0) } else { part.to_owned() };
            let name = format!("one/{name}");
            let mut content = objects.get(&name, u64::MAX).unwrap().unwrap().to_vec();
            let at = usize::try_from(at).unwrap();
            content[at..at + bytes.len()].copy_from_slice(bytes);
            objects.put(&name, content.into()).unwrap();
        });
    }
}
