//! One watch: the history from the file, then what is committed live, and the file again whenever the receiver has
//! lagged behind what is kept in memory. Memory is bounded however slow the receiver is; when the history it needs is
//! compacted, its channel closes.

use std::sync::{Arc, Weak};

use ::redb::{Database, ReadableDatabase as _};
use tokio::sync::broadcast::error::RecvError;
use tokio::sync::{broadcast, mpsc};

use super::EngineFailure;
use super::layout::{self, meta};
use crate::store::{Batch, Event, Revision, StoreError};

/// Batches that may wait in a receiver's channel.
const CHANNEL_BATCHES_MAX: usize = 64;
/// Batches read from the history at a time, and their bytes: what one lagging watcher holds in memory.
const CHUNK_BATCHES_MAX: usize = 256;
const CHUNK_BYTES_MAX: usize = 4 << 20;

/// Starts a watch; [`StoreError::Compacted`] if its history is gone.
pub(super) async fn start(
    database: Weak<Database>,
    live: broadcast::Receiver<Arc<Batch>>,
    prefix: String,
    from: Revision,
) -> Result<mpsc::Receiver<Batch>, StoreError> {
    let watcher = Watcher { database, live, prefix, next: from };
    let chunk = watcher.history().await?;
    let (sender, receiver) = mpsc::channel(CHANNEL_BATCHES_MAX);
    tokio::spawn(watcher.run(chunk, sender));
    Ok(receiver)
}

struct Watcher {
    database: Weak<Database>,
    live: broadcast::Receiver<Arc<Batch>>,
    prefix: String,
    /// The first revision not yet delivered.
    next: Revision,
}

/// A piece of history.
struct Chunk {
    batches: Vec<Batch>,
    /// The first revision after it.
    next: Revision,
    /// There is no more for now.
    complete: bool,
}

/// The receiver is gone, or must list again, or the store is closed: in any case, the channel closes.
struct Over;

impl Watcher {
    async fn run(mut self, first: Chunk, sender: mpsc::Sender<Batch>) {
        let mut chunk = first;
        loop {
            let complete = chunk.complete;
            if self.deliver_chunk(chunk, &sender).await.is_err() {
                return;
            }
            if complete && self.follow(&sender).await.is_err() {
                return;
            }
            chunk = match self.history().await {
                Ok(chunk) => chunk,
                Err(StoreError::Compacted { .. } | StoreError::Closed) => return,
                Err(error) => {
                    tracing::error!(
                        error = &error as &dyn std::error::Error,
                        "a watch ends because the history cannot be read"
                    );
                    return;
                }
            };
        }
    }

    async fn deliver_chunk(&mut self, chunk: Chunk, sender: &mpsc::Sender<Batch>) -> Result<(), Over> {
        for batch in chunk.batches {
            self.deliver(&batch, sender).await?;
        }
        self.next = chunk.next;
        Ok(())
    }

    /// Passes on what is committed, until it lags.
    async fn follow(&mut self, sender: &mpsc::Sender<Batch>) -> Result<(), Over> {
        loop {
            let received = tokio::select! {
                () = sender.closed() => return Err(Over),
                received = self.live.recv() => received,
            };
            match received {
                Ok(batch) if batch.revision < self.next => {}
                Ok(batch) if batch.revision == self.next => {
                    self.deliver(&batch, sender).await?;
                    self.next += 1;
                }
                Ok(_) | Err(RecvError::Lagged(_)) => return Ok(()),
                Err(RecvError::Closed) => return Err(Over),
            }
        }
    }

    async fn deliver(&self, batch: &Batch, sender: &mpsc::Sender<Batch>) -> Result<(), Over> {
        let under = |event: &&Event| match event {
            Event::Put(entry) => entry.key.starts_with(&self.prefix),
            Event::Deleted { key, .. } => key.starts_with(&self.prefix),
        };
        let events: Vec<Event> = batch.events.iter().filter(under).cloned().collect();
        if events.is_empty() {
            return Ok(());
        }
        sender.send(Batch { revision: batch.revision, events }).await.map_err(|_| Over)
    }

    async fn history(&self) -> Result<Chunk, StoreError> {
        let database = self.database.upgrade().ok_or(StoreError::Closed)?;
        let next = self.next;
        tokio::task::spawn_blocking(move || read(&database, next)).await.map_err(|_| StoreError::Closed)?
    }
}

fn read(database: &Database, from: Revision) -> Result<Chunk, StoreError> {
    let read = database.begin_read().map_err(EngineFailure::at("begin reading"))?;
    let counters = read.open_table(layout::META).map_err(EngineFailure::at("open the counters"))?;
    let number = |name| -> Result<Option<u64>, EngineFailure> {
        Ok(counters.get(name).map_err(EngineFailure::at("read a counter"))?.map(|row| row.value()))
    };
    let oldest = number(meta::HISTORY_OLDEST)?.unwrap_or(0);
    if from < oldest {
        return Err(StoreError::Compacted { requested: from, oldest });
    }
    let current = number(meta::REVISION)?.unwrap_or(layout::REVISION_FIRST);
    let history = read.open_table(layout::HISTORY).map_err(EngineFailure::at("open the history"))?;
    let mut batches = Vec::new();
    let mut bytes = 0;
    for row in history.range(from..).map_err(EngineFailure::at("read the history"))? {
        if batches.len() >= CHUNK_BATCHES_MAX || bytes >= CHUNK_BYTES_MAX {
            let next = batches.last().map_or(from, |batch: &Batch| batch.revision + 1);
            return Ok(Chunk { batches, next, complete: false });
        }
        let (revision, record) = row.map_err(EngineFailure::at("read a revision"))?;
        let (revision, record) = (revision.value(), record.value());
        bytes += record.len();
        let events = layout::decode_events(revision, record).map_err(EngineFailure::malformed)?;
        batches.push(Batch { revision, events });
    }
    Ok(Chunk { batches, next: from.max(current + 1), complete: true })
}
