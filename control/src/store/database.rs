//! A store together with its cache: writes go to the one, reads come from the other, and reads see the writes.
//!
//! Must never know: which kinds there are.

use std::sync::Arc;

use super::{Cache, Kinds, Revision, Row, Store, StoreError, Stored, Txn, TxnError};

/// The store and its cache; cloning shares both.
#[derive(Clone)]
pub struct Database {
    store: Arc<dyn Store>,
    cache: Arc<Cache>,
}

impl std::fmt::Debug for Database {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Database").field("cache", &self.cache).finish_non_exhaustive()
    }
}

impl Database {
    /// Fills a cache of these kinds from the store.
    ///
    /// # Errors
    /// What the store says.
    pub async fn start(store: Arc<dyn Store>, kinds: Kinds) -> Result<Self, StoreError> {
        let cache = Cache::start(&store, kinds).await?;
        Ok(Self { store, cache })
    }

    /// The store, for leases and for what is not a row.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The cache, for reading.
    #[must_use]
    pub fn cache(&self) -> &Arc<Cache> {
        &self.cache
    }

    /// The row of kind `T` with this id, from the cache.
    #[must_use]
    pub fn get<T: Row>(&self, id: &str) -> Option<Arc<Stored<T>>> {
        self.cache.get(id)
    }

    /// All rows of kind `T` in the order of their ids, from the cache.
    #[must_use]
    pub fn list<T: Row>(&self) -> Vec<Arc<Stored<T>>> {
        self.cache.list()
    }

    /// Commits, and returns once the cache shows it. After [`TxnError::Conflict`] too the cache shows what the
    /// transaction conflicted with, so that the caller can read and decide again.
    ///
    /// # Errors
    /// As [`Txn::commit`]; [`StoreError::Closed`] also if the cache stopped after the commit.
    pub async fn commit(&self, txn: Txn) -> Result<Revision, TxnError> {
        let outcome = txn.run(&*self.store).await?;
        self.cache.wait_for(outcome.revision).await.map_err(TxnError::Store)?;
        if outcome.succeeded { Ok(outcome.revision) } else { Err(TxnError::Conflict) }
    }

    /// Returns once the cache shows everything that anybody had committed before this call: what a read request waits
    /// for, so that it sees writes made through other servers of the cluster too.
    ///
    /// # Errors
    /// What the store says; [`StoreError::Closed`] if the cache has stopped.
    pub async fn catch_up(&self) -> Result<(), StoreError> {
        let revision = self.store.revision().await?;
        self.cache.wait_for(revision).await
    }
}
