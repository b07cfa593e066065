//! The typed cache: every row of the registered kinds, decoded, in memory, kept up by one watch over the whole
//! keyspace. Reads cost no store access; [`Cache::wait_for`] makes them as fresh as a given revision.
//!
//! A transaction becomes visible as a whole. A watch that ends because its history is compacted is replaced by a new
//! list and watch. Keys that belong to no registered kind (uniqueness and index keys) are passed over.
//!
//! Must never know: which kinds there are, what their rows mean.

use std::any::Any;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, RwLock, Weak};
use std::time::Duration;

use tokio::sync::{broadcast, mpsc, watch};

use super::{Batch, Entry, Event, Revision, Row, RowError, Store, StoreError, Stored, row};

/// Changes kept for a subscriber that lags; one that lags further is told to look at everything.
const CHANGES_MAX: usize = 1024;
/// How long to wait before listing again after a failure, at first and at most.
const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MAX: Duration = Duration::from_secs(5);

type ErasedRow = Arc<dyn Any + Send + Sync>;
type Decode = fn(&Entry) -> Result<ErasedRow, RowError>;

/// What is known of a kind of rows.
#[derive(Debug, Clone, Copy)]
struct Kind {
    decode: Decode,
    /// What a row is found by beside its id.
    finders: fn(&ErasedRow) -> Vec<String>,
}

/// The kinds of rows that a cache decodes.
#[derive(Debug, Clone, Default)]
pub struct Kinds {
    kinds: HashMap<&'static str, Kind>,
}

impl Kinds {
    /// None yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// With the kind `T`.
    ///
    /// # Panics
    /// If another type has the same kind, or the kind holds a `/`: two models would read each other's rows.
    #[must_use]
    pub fn with<T: Row>(mut self) -> Self {
        assert!(
            !T::KIND.is_empty() && !T::KIND.contains('/'),
            "invariant: a kind is one part of a key: {}",
            T::KIND
        );
        let decode: Decode = |entry| Ok(Arc::new(row::decode::<T>(entry)?));
        let finders: fn(&ErasedRow) -> Vec<String> = |row| {
            let row: &Stored<T> = row.downcast_ref().expect("invariant: one type per kind");
            row.row.finders().into_iter().map(str::to_owned).collect()
        };
        let other = self.kinds.insert(T::KIND, Kind { decode, finders });
        assert!(other.is_none(), "invariant: one type per kind: {}", T::KIND);
        self
    }
}

/// What changed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// These rows, by kind and id, at this revision.
    Rows {
        /// The revision; the cache has reached it.
        revision: Revision,
        /// The rows, created, replaced or deleted.
        rows: Arc<[(&'static str, String)]>,
    },
    /// Perhaps anything: the subscriber lagged, or the cache had to list again.
    Resync,
}

/// A subscription; see [`Cache::subscribe`].
#[derive(Debug)]
pub struct Changes {
    receiver: broadcast::Receiver<Change>,
}

impl Changes {
    /// The next change; none once the cache has stopped. May be dropped and called again.
    pub async fn next(&mut self) -> Option<Change> {
        match self.receiver.recv().await {
            Ok(change) => Some(change),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::Resync),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

#[derive(Default)]
struct Rows {
    by_kind: HashMap<&'static str, OfKind>,
}

/// The rows of one kind.
#[derive(Default)]
struct OfKind {
    rows: BTreeMap<String, ErasedRow>,
    /// Ids by what their rows are found by.
    found: BTreeMap<String, BTreeSet<String>>,
}

impl OfKind {
    fn insert(&mut self, kind: Kind, id: &str, row: ErasedRow) {
        self.remove(kind, id);
        for finder in (kind.finders)(&row) {
            self.found.entry(finder).or_default().insert(id.to_owned());
        }
        self.rows.insert(id.to_owned(), row);
    }

    fn remove(&mut self, kind: Kind, id: &str) {
        let Some(row) = self.rows.remove(id) else { return };
        for finder in (kind.finders)(&row) {
            if let Some(ids) = self.found.get_mut(&finder) {
                ids.remove(id);
                if ids.is_empty() {
                    self.found.remove(&finder);
                }
            }
        }
    }
}

/// The cache.
pub struct Cache {
    kinds: Kinds,
    rows: RwLock<Rows>,
    /// The revision that the rows stand at; closed when the cache has stopped.
    reached: watch::Receiver<Revision>,
    /// Held weakly, so that subscriptions end with the feeding task.
    changes: broadcast::WeakSender<Change>,
}

impl std::fmt::Debug for Cache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Cache").field("revision", &self.revision()).finish_non_exhaustive()
    }
}

impl Cache {
    /// Lists everything, starts watching, and returns once the list is in. The feeding task ends with the store or with
    /// the cache, neither of which it keeps alive.
    ///
    /// # Errors
    /// What the store says.
    pub async fn start(store: &Arc<dyn Store>, kinds: Kinds) -> Result<Arc<Self>, StoreError> {
        let (entries, revision) = store.range("").await?;
        let events = store.watch("", revision + 1).await?;
        let (reach, reached) = watch::channel(revision);
        let (changes, _) = broadcast::channel(CHANGES_MAX);
        let rows = RwLock::new(decode_all(&kinds, &entries));
        let cache = Arc::new(Self { kinds, rows, reached, changes: changes.downgrade() });
        let feed = Feed { store: Arc::downgrade(store), cache: Arc::downgrade(&cache), reach, changes };
        tokio::spawn(feed.run(events));
        Ok(cache)
    }

    /// The row of kind `T` with this id.
    ///
    /// # Panics
    /// If the kind is not registered, as all methods with a kind.
    #[must_use]
    pub fn get<T: Row>(&self, id: &str) -> Option<Arc<Stored<T>>> {
        self.with_kind::<T, _>(|kind| kind.rows.get(id).cloned().map(typed::<T>))
    }

    /// All rows of kind `T` in the order of their ids.
    #[must_use]
    pub fn list<T: Row>(&self) -> Vec<Arc<Stored<T>>> {
        self.with_kind::<T, _>(|kind| kind.rows.values().cloned().map(typed::<T>).collect())
    }

    /// The rows of kind `T` that are found by this ([`Row::finders`]), in the order of their ids: as cheap as they are few.
    #[must_use]
    pub fn found_by<T: Row>(&self, finder: &str) -> Vec<Arc<Stored<T>>> {
        self.with_kind::<T, _>(|kind| {
            let ids = kind.found.get(finder).into_iter().flatten();
            ids.filter_map(|id| kind.rows.get(id).cloned().map(typed::<T>)).collect()
        })
    }

    /// The rows of kind `T` for which `wanted` holds, in the order of their ids. `wanted` runs after the cache is let
    /// go, so it may come back to it.
    #[must_use]
    pub fn filter<T: Row>(&self, mut wanted: impl FnMut(&T) -> bool) -> Vec<Arc<Stored<T>>> {
        let mut rows = self.list::<T>();
        rows.retain(|stored| wanted(&stored.row));
        rows
    }

    /// The first row of kind `T`, in the order of ids, for which `wanted` holds; as for [`Cache::filter`].
    #[must_use]
    pub fn find<T: Row>(&self, mut wanted: impl FnMut(&T) -> bool) -> Option<Arc<Stored<T>>> {
        self.list::<T>().into_iter().find(|stored| wanted(&stored.row))
    }

    /// The rows of kind `T` whose ids begin with `prefix`, in the order of their ids: cheap, for ids made of parts such
    /// as `{host}/{server}`.
    #[must_use]
    pub fn list_under<T: Row>(&self, prefix: &str) -> Vec<Arc<Stored<T>>> {
        self.with_kind::<T, _>(|kind| {
            let from = (std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded);
            let under = kind.rows.range::<str, _>(from).take_while(|(id, _)| id.starts_with(prefix));
            under.map(|(_, row)| typed::<T>(row.clone())).collect()
        })
    }

    /// The revision that the cache has reached.
    #[must_use]
    pub fn revision(&self) -> Revision {
        *self.reached.borrow()
    }

    /// Returns once the cache has reached `revision`.
    ///
    /// # Errors
    /// [`StoreError::Closed`] if the cache has stopped before.
    pub async fn wait_for(&self, revision: Revision) -> Result<(), StoreError> {
        let mut reached = self.reached.clone();
        reached.wait_for(|reached| *reached >= revision).await.map_err(|_| StoreError::Closed)?;
        Ok(())
    }

    /// Tells of every change after this call. A change is told once the cache shows it. A reconciler looks at
    /// everything once after subscribing, and again at each [`Change::Resync`].
    #[must_use]
    pub fn subscribe(&self) -> Changes {
        let receiver = self.changes.upgrade().map_or_else(
            // Stopped: a channel without a sender.
            || broadcast::channel(1).1,
            |changes| changes.subscribe(),
        );
        Changes { receiver }
    }

    fn with_kind<T: Row, R>(&self, read: impl FnOnce(&OfKind) -> R) -> R {
        assert!(self.kinds.kinds.contains_key(T::KIND), "invariant: the kind {} is registered", T::KIND);
        let rows = self.rows.read().expect("invariant: no writer of the cache panics");
        match rows.by_kind.get(T::KIND) {
            Some(rows) => read(rows),
            None => read(&OfKind::default()),
        }
    }

    /// Makes one revision visible; the rows it touched.
    fn apply(&self, batch: &Batch) -> Vec<(&'static str, String)> {
        let mut changed = Vec::new();
        for event in &batch.events {
            let (key, entry) = match event {
                Event::Put(entry) => (&entry.key, Some(entry)),
                Event::Deleted { key, .. } => (key, None),
            };
            if let Some((name, id, kind)) = self.kinds.of(key) {
                changed.push((name, id, kind, entry.and_then(|entry| decode_one(kind.decode, entry))));
            }
        }
        let mut rows = self.rows.write().expect("invariant: no writer of the cache panics");
        let mut touched = Vec::with_capacity(changed.len());
        for (name, id, kind, row) in changed {
            let of_kind = rows.by_kind.entry(name).or_default();
            match row {
                Some(row) => of_kind.insert(kind, id, row),
                None => of_kind.remove(kind, id),
            }
            touched.push((name, id.to_owned()));
        }
        touched
    }
}

impl Kinds {
    fn of<'k>(&self, key: &'k str) -> Option<(&'static str, &'k str, Kind)> {
        let (name, id) = key.split_once('/')?;
        let (name, kind) = self.kinds.get_key_value(name)?;
        Some((name, id, *kind))
    }
}

fn typed<T: Row>(row: ErasedRow) -> Arc<Stored<T>> {
    row.downcast().expect("invariant: one type per kind")
}

fn decode_all(kinds: &Kinds, entries: &[Entry]) -> Rows {
    let mut rows = Rows::default();
    for entry in entries {
        if let Some((name, id, kind)) = kinds.of(&entry.key)
            && let Some(row) = decode_one(kind.decode, entry)
        {
            rows.by_kind.entry(name).or_default().insert(kind, id, row);
        }
    }
    rows
}

/// A row that cannot be read is hidden: half of a cloud that runs is better than none.
fn decode_one(decode: Decode, entry: &Entry) -> Option<ErasedRow> {
    let decoded = decode(entry);
    if let Err(error) = &decoded {
        tracing::error!(
            store.key = entry.key,
            store.revision = entry.mod_revision,
            error = error as &dyn std::error::Error,
            "a stored row cannot be read and is left out"
        );
    }
    decoded.ok()
}

/// The task that keeps a cache up.
struct Feed {
    store: Weak<dyn Store>,
    cache: Weak<Cache>,
    reach: watch::Sender<Revision>,
    changes: broadcast::Sender<Change>,
}

impl Feed {
    async fn run(self, mut events: mpsc::Receiver<Batch>) {
        loop {
            while let Some(batch) = self.next(&mut events).await {
                let Some(cache) = self.cache.upgrade() else { return };
                let rows = cache.apply(&batch);
                self.reach.send_replace(batch.revision);
                if !rows.is_empty() {
                    // Nobody listening is no error.
                    let _ = self.changes.send(Change::Rows { revision: batch.revision, rows: rows.into() });
                }
            }
            match self.relist().await {
                Some(again) => events = again,
                None => return,
            }
        }
    }

    /// The next batch; none if the watch has ended, or nobody holds the cache any more.
    async fn next(&self, events: &mut mpsc::Receiver<Batch>) -> Option<Batch> {
        tokio::select! {
            batch = events.recv() => batch,
            // Every cache holds a receiver.
            () = self.reach.closed() => None,
        }
    }

    /// Lists everything anew; none if the store or the cache is gone.
    async fn relist(&self) -> Option<mpsc::Receiver<Batch>> {
        let mut pause = RETRY_FIRST;
        loop {
            let error = match self.try_relist().await {
                Ok(events) => return events,
                Err(StoreError::Closed) => return None,
                Err(error) => error,
            };
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the cache cannot list the store and tries again"
            );
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(RETRY_MAX);
        }
    }

    async fn try_relist(&self) -> Result<Option<mpsc::Receiver<Batch>>, StoreError> {
        let (Some(store), Some(cache)) = (self.store.upgrade(), self.cache.upgrade()) else {
            return Ok(None);
        };
        let (entries, revision) = store.range("").await?;
        let events = store.watch("", revision + 1).await?;
        let rows = decode_all(&cache.kinds, &entries);
        *cache.rows.write().expect("invariant: no writer of the cache panics") = rows;
        self.reach.send_replace(revision);
        let _ = self.changes.send(Change::Resync);
        Ok(Some(events))
    }
}

#[cfg(test)]
mod tests;
