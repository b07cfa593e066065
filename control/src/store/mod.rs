//! The store's contract: ordered keys, one global revision, and four operations, which are etcd's: `range`, `txn`,
//! `watch` and `lease`. Every engine passes the same conformance tests.
//!
//! Must never know: what the rows mean.

pub mod cache;
pub mod database;
pub mod redb;
pub mod row;
pub mod transaction;

#[cfg(test)]
mod conformance;

pub use self::cache::{Cache, Change, Changes, Kinds};
pub use self::database::Database;
pub use self::redb::RedbStore;
pub use self::row::{Row, RowError, Stored};
pub use self::transaction::{Txn, TxnError};

use std::collections::BTreeSet;

use async_trait::async_trait;
use bytes::Bytes;
use tokio::sync::mpsc;

/// A position in the store's history: it grows by one with every transaction that changes something.
pub type Revision = u64;

/// The most comparisons or operations one transaction may hold, as etcd's default.
pub const TXN_OPERATIONS_MAX: usize = 128;
/// The longest key in bytes.
pub const KEY_BYTES_MAX: usize = 1024;
/// The longest value in bytes: etcd's request limit with room for the rest of a transaction.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// The most bytes of keys and values one transaction may carry in all: etcd's default request limit.
pub const TXN_BYTES_MAX: usize = 3 << 19;
/// The longest life of a lease without renewal: a forgotten one must not hold its keys for ever.
pub const LEASE_TTL_MAX: std::time::Duration = std::time::Duration::from_secs(24 * 3600);

/// One key with its value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// The value.
    pub value: Bytes,
    /// The revision at which the key came into being.
    pub create_revision: Revision,
    /// The revision that last changed it.
    pub mod_revision: Revision,
}

/// What must hold for a transaction's `then` branch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Compare {
    /// The key does not exist.
    Absent(String),
    /// The key exists and was last changed at this revision.
    ModRevision(String, Revision),
    /// The key exists, whatever its value.
    Present(String),
}

/// One change.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Operation {
    /// Create or replace.
    Put {
        /// The key.
        key: String,
        /// The value.
        value: Bytes,
        /// The lease whose end deletes the key.
        lease: Option<LeaseId>,
    },
    /// Delete; no error if absent.
    Delete(String),
}

/// A lease's number.
pub type LeaseId = u64;

/// What became of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Outcome {
    /// The `then` branch ran.
    pub succeeded: bool,
    /// The store's revision after it.
    pub revision: Revision,
}

/// One change as a watcher sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// Created or replaced.
    Put(Entry),
    /// Deleted at this revision.
    Deleted {
        /// The key.
        key: String,
        /// When.
        revision: Revision,
    },
}

/// What a watch delivers: all events of one revision at once, in order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Batch {
    /// The revision.
    pub revision: Revision,
    /// Its events.
    pub events: Vec<Event>,
}

/// Why the store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// A limit of this module was crossed.
    #[error("the request exceeds the store's limit: {0}")]
    Limit(&'static str),
    /// History before this revision is gone: list again, then watch from there.
    #[error("revision {requested} is compacted; the oldest kept is {oldest}")]
    Compacted {
        /// What was asked for.
        requested: Revision,
        /// What is still there.
        oldest: Revision,
    },
    /// A branch of the transaction changes one key twice.
    #[error("the transaction changes a key twice: {0}")]
    DuplicateKey(String),
    /// The lease is over or never was.
    #[error("no such lease: {0}")]
    NoLease(LeaseId),
    /// The engine failed: nothing of the transaction happened, or the whole of it.
    #[error("store engine: {step}")]
    Engine {
        /// What it was doing.
        step: &'static str,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// There is no room to write it down: nothing of it happened, and it may be asked for again once there is.
    #[error("there is not enough disk space for the store")]
    Full,
    /// The engine has stopped.
    #[error("the store is closed")]
    Closed,
}

impl Compare {
    fn key(&self) -> &str {
        match self {
            Self::Absent(key) | Self::ModRevision(key, _) | Self::Present(key) => key,
        }
    }
}

impl Operation {
    fn key(&self) -> &str {
        match self {
            Self::Put { key, .. } | Self::Delete(key) => key,
        }
    }
}

/// The limits of this module, for every engine alike; engines call it before anything else.
pub(crate) fn check_limits(
    compare: &[Compare],
    then: &[Operation],
    or_else: &[Operation],
) -> Result<(), StoreError> {
    let mut bytes = 0usize;
    if compare.len() > TXN_OPERATIONS_MAX {
        return Err(StoreError::Limit("comparisons per transaction"));
    }
    for key in compare.iter().map(Compare::key) {
        check_key(key)?;
        bytes += key.len();
    }
    for branch in [then, or_else] {
        if branch.len() > TXN_OPERATIONS_MAX {
            return Err(StoreError::Limit("operations per transaction"));
        }
        let mut changed = BTreeSet::new();
        for operation in branch {
            check_key(operation.key())?;
            bytes += operation.key().len();
            if let Operation::Put { value, .. } = operation {
                if value.len() > VALUE_BYTES_MAX {
                    return Err(StoreError::Limit("bytes per value"));
                }
                bytes += value.len();
            }
            if !changed.insert(operation.key()) {
                return Err(StoreError::DuplicateKey(operation.key().to_owned()));
            }
        }
    }
    if bytes > TXN_BYTES_MAX {
        return Err(StoreError::Limit("bytes per transaction"));
    }
    Ok(())
}

fn check_key(key: &str) -> Result<(), StoreError> {
    match key.len() {
        0 => Err(StoreError::Limit("a key has at least one byte")),
        1..=KEY_BYTES_MAX => Ok(()),
        _ => Err(StoreError::Limit("bytes per key")),
    }
}

/// The contract.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// Every entry whose key begins with `prefix`, in key order, with the revision they were read at.
    async fn range(&self, prefix: &str) -> Result<(Vec<Entry>, Revision), StoreError>;

    /// Runs `then` if every comparison holds, `or_else` otherwise, as one atomic and durable step.
    ///
    /// A key may be changed once per branch. A caller that stops waiting does not take the transaction back.
    async fn txn(
        &self,
        compare: Vec<Compare>,
        then: Vec<Operation>,
        or_else: Vec<Operation>,
    ) -> Result<Outcome, StoreError>;

    /// All changes under `prefix` from `from` (included; 0 is the beginning) on; the channel closes when the store
    /// does, or when the receiver falls so far behind that it must list again.
    async fn watch(&self, prefix: &str, from: Revision) -> Result<mpsc::Receiver<Batch>, StoreError>;

    /// The current revision.
    async fn revision(&self) -> Result<Revision, StoreError>;

    /// A lease that ends `ttl` after its last renewal; its keys go with it. An engine may round `ttl` up to whole
    /// seconds, and counts it anew when it restarts.
    async fn lease_grant(&self, ttl: std::time::Duration) -> Result<LeaseId, StoreError>;

    /// Renews a lease.
    async fn lease_renew(&self, lease: LeaseId) -> Result<(), StoreError>;

    /// Ends a lease now.
    async fn lease_revoke(&self, lease: LeaseId) -> Result<(), StoreError>;
}
