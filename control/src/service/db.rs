//! The database as services use it: fresh reads, and writes that are tried again when another writer came first.
//!
//! Must never know: any one resource.

use std::ops::Deref;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;

use super::quota;
use crate::error::{Error, Result};
use crate::model;
use crate::store::{Cache, Database, Store, StoreError, Txn, TxnError};

/// How often a write is tried before the caller is told that too many others write the same. From the second try
/// on, writers that charge the same quota queue up in this process, so only other servers' writes can still conflict.
const TRIES_MAX: u32 = 64;
/// The longest pause between two tries.
const PAUSE_MAX: Duration = Duration::from_millis(20);
/// How many queues there are for writers that charge quotas; a few more than cores that could serve them at once.
const QUEUES: usize = 64;

/// The database. Everything of [`Database`] is there too.
#[derive(Debug)]
pub(crate) struct Db {
    database: Database,
    queues: Vec<Mutex<()>>,
}

impl Deref for Db {
    type Target = Database;

    fn deref(&self) -> &Database {
        &self.database
    }
}

impl Db {
    /// Opens it with all kinds of rows.
    pub(crate) async fn open(store: Arc<dyn Store>) -> Result<Self> {
        let database = Database::start(store, model::kinds()).await?;
        Ok(Self { database, queues: std::iter::repeat_with(|| Mutex::new(())).take(QUEUES).collect() })
    }

    /// Returns once the cache shows everything committed before this call, on whichever server.
    pub(crate) async fn caught_up(&self) -> Result<()> {
        Ok(self.database.catch_up().await?)
    }

    /// Commits what `attempt` makes of the cache, quota charges included; runs it again after a conflict. `attempt`
    /// must decide from the cache it is given each time, and its refusals are final.
    pub(crate) async fn transact(&self, mut attempt: impl FnMut(&Cache) -> Result<Txn>) -> Result<()> {
        self.transact_with(|cache| attempt(cache).map(|txn| (txn, ()))).await
    }

    /// As [`Db::transact`], and returns what the attempt that was committed returned beside its transaction.
    pub(crate) async fn transact_with<T>(
        &self,
        mut attempt: impl FnMut(&Cache) -> Result<(Txn, T)>,
    ) -> Result<T> {
        let mut queue = None;
        for tried in 0..TRIES_MAX {
            let (txn, value) = attempt(self.cache())?;
            let charged = txn.tallies().next().map(|(key, _)| quota::queue_of(key, QUEUES));
            let txn = quota::settle(self.cache(), txn)?;
            match self.database.commit(txn).await {
                Ok(_) => return Ok(value),
                Err(TxnError::Conflict) => {}
                Err(TxnError::Store(error @ StoreError::Full)) => {
                    return Err(Error::Unavailable(format!("{error}; try again later")));
                }
                Err(error) => return Err(error.into()),
            }
            if queue.is_none()
                && let Some(index) = charged
            {
                queue = Some(self.queues[index].lock().await);
            } else {
                tokio::time::sleep(Duration::from_millis(tried.into()).min(PAUSE_MAX)).await;
            }
        }
        Err(Error::Unavailable("too many others are changing the same; try again".to_owned()))
    }
}
