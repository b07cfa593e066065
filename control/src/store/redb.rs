//! The embedded engine: one redb file, one writer thread, readers beside it.
//!
//! Every transaction is durable when it is answered; transactions that wait at the same time share one durable commit
//! (group commit). The revision counter and the change log are written in the same redb transaction as the rows, so no
//! crash separates them. See `layout` for the file's contents.
//!
//! Must never know: what the rows mean.

mod layout;
mod tables;
mod watcher;
mod writer;

#[cfg(test)]
mod crash;
#[cfg(test)]
mod tests;

use std::fs::{File, OpenOptions};
use std::io::ErrorKind;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak, mpsc as std_mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ::redb::{Builder, Database, ReadableDatabase as _, ReadableTable as _, StorageBackend};
use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::{Semaphore, broadcast, mpsc, oneshot};

use self::layout::meta;
use self::writer::{Queued, Request, Writer};
use super::{
    Batch, Compare, Entry, LEASE_TTL_MAX, LeaseId, Operation, Outcome, Revision, Store, StoreError,
    check_limits,
};

/// Transactions that may wait at once; more wait before they are queued. Bounds the queue's memory.
const QUEUE_MAX: usize = 1024;
/// Live batches kept for watchers that lag; one that lags further reads them from the file.
const LIVE_BATCHES_MAX: usize = 256;
/// redb's page cache. The typed cache answers reads, so this one serves only the writer.
const PAGE_CACHE_BYTES: usize = 32 << 20;
/// Between two tries to open a store that another process has.
const TRY_INTERVAL: Duration = Duration::from_millis(10);

/// What can be chosen about an embedded store.
#[derive(Debug, Clone)]
pub struct Options {
    /// How many revisions of history to keep for watchers.
    pub history_revisions_max: u64,
    /// How many bytes of history to keep, whatever its revisions.
    pub history_bytes_max: u64,
}

impl Default for Options {
    fn default() -> Self {
        Self { history_revisions_max: 100_000, history_bytes_max: 64 << 20 }
    }
}

/// Why a step failed.
type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// A failed step of the engine; shared, because a whole group of transactions fails with it.
#[derive(Debug, Clone, thiserror::Error)]
#[error("store engine: {step}")]
struct EngineFailure {
    step: &'static str,
    #[source]
    source: Cause,
}

impl EngineFailure {
    fn at<E: Into<::redb::Error>>(step: &'static str) -> impl FnOnce(E) -> Self {
        move |error| Self { step, source: Arc::new(error.into()) }
    }

    fn malformed(error: layout::Malformed) -> Self {
        Self { step: "read a record", source: Arc::new(error) }
    }

    fn to_error(&self) -> StoreError {
        StoreError::Engine { step: self.step, source: Box::new(self.source.clone()) }
    }
}

impl From<EngineFailure> for StoreError {
    fn from(failure: EngineFailure) -> Self {
        failure.to_error()
    }
}

/// What the writer thread tells everybody.
#[derive(Debug)]
struct Progress {
    /// Everything up to this revision is durable.
    committed: AtomicU64,
    /// Durable commits since the store was opened.
    commits: AtomicU64,
    /// The engine has failed.
    failed: AtomicBool,
}

/// The embedded store. Dropping it waits for what is queued and lets go of the file.
#[derive(Debug)]
pub struct RedbStore {
    database: Weak<Database>,
    /// Gone once the store is being dropped, which ends the writer.
    queue: Option<std_mpsc::Sender<Queued>>,
    permits: Arc<Semaphore>,
    live: broadcast::WeakSender<Arc<Batch>>,
    progress: Arc<Progress>,
    writer: Option<JoinHandle<()>>,
}

impl RedbStore {
    /// Opens the store at `path`, or creates it there for its owner alone. A crash while creating leaves no half-made
    /// store at `path`.
    ///
    /// # Errors
    /// Of the engine: the file is in use by another process, is no store, or cannot be read.
    pub fn open(path: &Path) -> Result<Self, StoreError> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600);
        match options.open(path) {
            Ok(file) => return Self::open_file(file),
            Err(error) if error.kind() == ErrorKind::NotFound => {}
            Err(error) => return Err(EngineFailure::at("open the file")(error).into()),
        }
        // redb cannot tell a half-made file from a foreign one: make it aside, give it its name when it is whole.
        let mut aside = path.as_os_str().to_owned();
        aside.push(".new");
        let aside = Path::new(&aside);
        match std::fs::remove_file(aside) {
            Err(error) if error.kind() != ErrorKind::NotFound => {
                return Err(EngineFailure::at("remove a half-made store")(error).into());
            }
            _ => {}
        }
        let file = options.create_new(true).open(aside).map_err(EngineFailure::at("create the file"))?;
        let store = Self::open_file(file)?;
        std::fs::rename(aside, path).map_err(EngineFailure::at("name the new store"))?;
        let directory =
            path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        let synced = File::open(directory).and_then(|directory| directory.sync_all());
        synced.map_err(EngineFailure::at("sync the store's directory"))?;
        Ok(store)
    }

    /// The same once no other process has it, but no later than after `patience`: a process that was killed has its files
    /// until the kernel has taken its memory apart.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn open_once_free(path: &Path, patience: Duration) -> Result<Self, StoreError> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::open(path) {
                Err(error) if is_held(&error) && Instant::now() < deadline => {
                    std::thread::sleep(TRY_INTERVAL);
                }
                opened => return opened,
            }
        }
    }

    /// The same with a file that is open for reading and writing already; an empty one becomes a new store, which is
    /// not safe from a crash before this returns.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn open_file(file: File) -> Result<Self, StoreError> {
        let room = file.try_clone().map_err(EngineFailure::at("take the file"))?;
        let backend = ::redb::backends::FileBackend::new(file).map_err(EngineFailure::at("take the file"))?;
        Self::start(backend, Options::default(), Some(room))
    }

    /// The same over anything that redb can keep its bytes in.
    ///
    /// # Errors
    /// As [`RedbStore::open`].
    pub fn open_backend(backend: impl StorageBackend, options: Options) -> Result<Self, StoreError> {
        Self::start(backend, options, None)
    }

    /// `room` is the file whose file system has to have room.
    fn start(backend: impl StorageBackend, options: Options, room: Option<File>) -> Result<Self, StoreError> {
        let mut builder = Builder::new();
        builder.set_cache_size(PAGE_CACHE_BYTES);
        let database =
            builder.create_with_backend(backend).map_err(EngineFailure::at("open the database"))?;
        let revision = prepare(&database)?;
        let database = Arc::new(database);
        let (queue, queued) = std_mpsc::channel();
        let (live, _) = broadcast::channel(LIVE_BATCHES_MAX);
        let progress = Arc::new(Progress {
            committed: AtomicU64::new(revision),
            commits: AtomicU64::new(0),
            failed: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&database);
        let weak_live = live.downgrade();
        let writer = Writer::new(database, (options, room), queued, live, progress.clone())?;
        let writer = std::thread::Builder::new()
            .name("store-writer".to_owned())
            .spawn(move || writer.run())
            .map_err(EngineFailure::at("start the writer thread"))?;
        Ok(Self {
            database: weak,
            queue: Some(queue),
            permits: Arc::new(Semaphore::new(QUEUE_MAX)),
            live: weak_live,
            progress,
            writer: Some(writer),
        })
    }

    /// How many durable commits this store has made since it was opened; a metric, and what group commit keeps small.
    #[must_use]
    pub fn durable_commits(&self) -> u64 {
        self.progress.commits.load(Ordering::Relaxed)
    }

    /// What the file holds after a failed commit is not known before it is opened again.
    fn healthy(&self) -> Result<(), StoreError> {
        if self.progress.failed.load(Ordering::Acquire) { Err(StoreError::Closed) } else { Ok(()) }
    }

    async fn ask<T>(
        &self,
        request: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Request,
    ) -> Result<T, StoreError> {
        let permit = self.permits.clone().acquire_owned().await.map_err(|_| StoreError::Closed)?;
        let (reply, answer) = oneshot::channel();
        let queued = Queued { request: request(reply), _permit: permit };
        let queue = self.queue.as_ref().ok_or(StoreError::Closed)?;
        queue.send(queued).map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

/// Whether another process has the store.
fn is_held(error: &StoreError) -> bool {
    let StoreError::Engine { source, .. } = error else { return false };
    let cause = source.downcast_ref::<Cause>().and_then(|cause| cause.downcast_ref());
    matches!(cause, Some(::redb::Error::DatabaseAlreadyOpen))
}

impl Drop for RedbStore {
    fn drop(&mut self) {
        self.queue = None;
        if let Some(writer) = self.writer.take() {
            // A panic of the writer has been reported by its thread.
            let _ = writer.join();
        }
    }
}

#[async_trait]
impl Store for RedbStore {
    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), StoreError> {
        self.healthy()?;
        let database = self.database.upgrade().ok_or(StoreError::Closed)?;
        let prefix = prefix.to_owned();
        // Reading a large range from a cold file must not hold up the runtime's threads.
        let reading = tokio::task::spawn_blocking(move || range(&database, &prefix));
        Ok(reading.await.map_err(|_| StoreError::Closed)??)
    }

    async fn txn(
        &self,
        compare: Vec<Compare>,
        then: Vec<Operation>,
        or_else: Vec<Operation>,
    ) -> Result<Outcome, StoreError> {
        check_limits(&compare, &then, &or_else)?;
        self.ask(|reply| Request::Txn { compare, then, or_else, reply }).await
    }

    async fn watch(&self, prefix: &str, from: Revision) -> Result<mpsc::Receiver<Batch>, StoreError> {
        // Subscribed before the history is read, so that nothing falls between.
        let live = self.live.upgrade().ok_or(StoreError::Closed)?.subscribe();
        watcher::start(self.database.clone(), live, prefix.to_owned(), from).await
    }

    async fn revision(&self) -> Result<Revision, StoreError> {
        self.healthy()?;
        Ok(self.progress.committed.load(Ordering::Acquire))
    }

    async fn lease_grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        if ttl.as_millis() == 0 || ttl > LEASE_TTL_MAX {
            return Err(StoreError::Limit("a lease lives from 1 ms to 24 h"));
        }
        self.ask(|reply| Request::Grant { ttl, reply }).await
    }

    async fn lease_renew(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Request::Renew { lease, reply }).await
    }

    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.ask(|reply| Request::Revoke { lease, reply }).await
    }
}

/// Makes the tables of a new file, or checks those of an old one; the current revision.
fn prepare(database: &Database) -> Result<Revision, EngineFailure> {
    let write = database.begin_write().map_err(EngineFailure::at("begin writing"))?;
    let revision = {
        let mut meta = write.open_table(layout::META).map_err(EngineFailure::at("open the counters"))?;
        let mut number = |name: &str, new: u64| -> Result<(u64, bool), EngineFailure> {
            let old = meta.get(name).map_err(EngineFailure::at("read a counter"))?.map(|row| row.value());
            if let Some(old) = old {
                return Ok((old, false));
            }
            meta.insert(name, new).map_err(EngineFailure::at("write a counter"))?;
            Ok((new, true))
        };
        let (format, new) = number(meta::FORMAT, layout::FORMAT)?;
        if format != layout::FORMAT {
            let unknown = std::io::Error::new(
                std::io::ErrorKind::InvalidData,
                format!("store format {format} is unknown"),
            );
            return Err(EngineFailure { step: "read the format", source: Arc::new(unknown) });
        }
        let (revision, _) = number(meta::REVISION, layout::REVISION_FIRST)?;
        if !new {
            drop(meta);
            write.abort().map_err(EngineFailure::at("abort"))?;
            return Ok(revision);
        }
        revision
    };
    let failed = "create a table";
    write.open_table(layout::ENTRIES).map_err(EngineFailure::at(failed))?;
    write.open_table(layout::HISTORY).map_err(EngineFailure::at(failed))?;
    write.open_table(layout::LEASES).map_err(EngineFailure::at(failed))?;
    write.open_table(layout::LEASE_KEYS).map_err(EngineFailure::at(failed))?;
    write.commit().map_err(EngineFailure::at("commit the new tables"))?;
    Ok(revision)
}

fn range(database: &Database, prefix: &str) -> Result<(Vec<Entry>, Revision), EngineFailure> {
    let read = database.begin_read().map_err(EngineFailure::at("begin reading"))?;
    let counters = read.open_table(layout::META).map_err(EngineFailure::at("open the counters"))?;
    let revision = counters.get(meta::REVISION).map_err(EngineFailure::at("read the revision"))?;
    let revision = revision.map_or(layout::REVISION_FIRST, |row| row.value());
    let table = read.open_table(layout::ENTRIES).map_err(EngineFailure::at("open the rows"))?;
    let mut entries = Vec::new();
    for row in table.range::<&str>(prefix..).map_err(EngineFailure::at("read the rows"))? {
        let (key, record) = row.map_err(EngineFailure::at("read a row"))?;
        if !key.value().starts_with(prefix) {
            break;
        }
        let (head, value) = layout::decode_entry(record.value()).map_err(EngineFailure::malformed)?;
        entries.push(Entry {
            key: key.value().to_owned(),
            value: Bytes::copy_from_slice(value),
            create_revision: head.create_revision,
            mod_revision: head.mod_revision,
        });
    }
    Ok((entries, revision))
}
