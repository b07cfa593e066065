//! The typed transaction: comparisons and changes of rows, gathered by what they mean and committed at once.
//!
//! Must never know: which kinds there are.

use std::collections::BTreeMap;

use super::row::{self, key};
use super::{Compare, LeaseId, Operation, Outcome, Revision, Row, RowError, Store, StoreError, Stored};

/// Why a transaction did not happen.
#[derive(Debug, thiserror::Error)]
pub enum TxnError {
    /// A comparison did not hold: a row was changed, created or deleted meanwhile, or a unique key is taken. Read again
    /// and decide again.
    #[error("the transaction conflicts with what was committed before it")]
    Conflict,
    /// A row cannot be written.
    #[error("prepare the transaction")]
    Row(#[source] RowError),
    /// The store refused or failed.
    #[error("commit the transaction")]
    Store(#[source] StoreError),
}

/// A transaction being put together. Each method adds at most one comparison and one change; at most
/// [`super::TXN_OPERATIONS_MAX`] of either, and each key changed at most once, which [`Txn::commit`] checks.
#[derive(Debug, Default)]
#[must_use = "a transaction does nothing until it is committed"]
pub struct Txn {
    compare: Vec<Compare>,
    then: Vec<Operation>,
    /// What is to be counted beside the changes; see [`Txn::tally`].
    tallies: BTreeMap<String, i64>,
    /// The first row that could not be written, told by `commit`, so that the chain of calls need not break off.
    unwritable: Option<RowError>,
}

impl Txn {
    /// Empty: it holds and changes nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Whether it holds and changes nothing.
    pub fn is_empty(&self) -> bool {
        self.compare.is_empty()
            && self.then.is_empty()
            && self.tallies.is_empty()
            && self.unwritable.is_none()
    }

    /// Creates the row; a conflict if one with its id exists.
    pub fn create<T: Row>(mut self, row: &T) -> Self {
        self.compare.push(Compare::Absent(key::<T>(row.id())));
        self.put_row(row, None)
    }

    /// Replaces what was read as `stored` with `row`; a conflict if it has changed since.
    ///
    /// # Panics
    /// If the ids differ: a row keeps its id.
    pub fn update<T: Row>(mut self, stored: &Stored<T>, row: &T) -> Self {
        assert_eq!(stored.row.id(), row.id(), "invariant: a row keeps its id");
        self.compare.push(unchanged(stored));
        self.put_row(row, None)
    }

    /// Replaces the row, whatever it is now; a conflict if it does not exist.
    pub fn put_if_present<T: Row>(mut self, row: &T) -> Self {
        self.compare.push(Compare::Present(key::<T>(row.id())));
        self.put_row(row, None)
    }

    /// Creates or replaces the row, whatever it is now.
    pub fn put<T: Row>(self, row: &T) -> Self {
        self.put_row(row, None)
    }

    /// Creates or replaces the row, to be deleted with the lease; the store refuses if the lease is over.
    pub fn put_with_lease<T: Row>(self, row: &T, lease: LeaseId) -> Self {
        self.put_row(row, Some(lease))
    }

    /// Deletes what was read as `stored`; a conflict if it has changed since.
    pub fn delete<T: Row>(mut self, stored: &Stored<T>) -> Self {
        self.compare.push(unchanged(stored));
        self.then.push(Operation::Delete(key::<T>(stored.row.id())));
        self
    }

    /// Takes a uniqueness or index key; a conflict if it is taken. Its first part must be no row's kind.
    pub fn unique(mut self, key: impl Into<String>) -> Self {
        let key = key.into();
        self.compare.push(Compare::Absent(key.clone()));
        self.then.push(Operation::Put { key, value: bytes::Bytes::new(), lease: None });
        self
    }

    /// Gives back a key that [`Txn::unique`] took; no error if it is free.
    pub fn release(mut self, key: impl Into<String>) -> Self {
        self.then.push(Operation::Delete(key.into()));
        self
    }

    /// A conflict if what was read as `stored` has changed since.
    pub fn require<T: Row>(mut self, stored: &Stored<T>) -> Self {
        self.compare.push(unchanged(stored));
        self
    }

    /// A conflict if no row of kind `T` has this id.
    pub fn require_present<T: Row>(mut self, id: &str) -> Self {
        self.compare.push(Compare::Present(key::<T>(id)));
        self
    }

    /// A conflict if a row of kind `T` has this id.
    pub fn require_absent<T: Row>(mut self, id: &str) -> Self {
        self.compare.push(Compare::Absent(key::<T>(id)));
        self
    }

    /// A conflict if this uniqueness or index key is taken; what to compare when the last one of something goes.
    pub fn require_free(mut self, key: impl Into<String>) -> Self {
        self.compare.push(Compare::Absent(key.into()));
        self
    }

    /// A conflict if this uniqueness or index key is free.
    pub fn require_taken(mut self, key: impl Into<String>) -> Self {
        self.compare.push(Compare::Present(key.into()));
        self
    }

    /// Notes that what `key` counts grows by so much, or shrinks; notes of one key add up. The layer above takes the
    /// tallies and turns them into changes of its counting rows; until then the transaction cannot be committed.
    pub fn tally(mut self, key: impl Into<String>, by: i64) -> Self {
        let sum = self.tallies.entry(key.into()).or_default();
        *sum = sum.saturating_add(by);
        self
    }

    /// The tallies so far, in the order of their keys.
    pub fn tallies(&self) -> impl Iterator<Item = (&str, i64)> {
        self.tallies.iter().map(|(key, by)| (key.as_str(), *by))
    }

    /// The tallies, which leave the transaction.
    pub fn take_tallies(&mut self) -> BTreeMap<String, i64> {
        std::mem::take(&mut self.tallies)
    }

    /// Adds all of `other`.
    pub fn and(mut self, other: Self) -> Self {
        self.compare.extend(other.compare);
        self.then.extend(other.then);
        for (key, by) in other.tallies {
            self = self.tally(key, by);
        }
        self.unwritable = self.unwritable.or(other.unwritable);
        self
    }

    /// How many changes it holds, for callers that split large ones.
    #[must_use]
    pub fn changes(&self) -> usize {
        self.then.len()
    }

    /// Commits it: all of it, durably, or nothing. The revision is the store's after it.
    ///
    /// # Errors
    /// See [`TxnError`]. Only after [`StoreError::Engine`] and [`StoreError::Closed`] it is unknown which of both.
    pub async fn commit(self, store: &dyn Store) -> Result<Revision, TxnError> {
        let outcome = self.run(store).await?;
        if outcome.succeeded { Ok(outcome.revision) } else { Err(TxnError::Conflict) }
    }

    /// As `commit`, but a conflict tells its revision too.
    pub(super) async fn run(self, store: &dyn Store) -> Result<Outcome, TxnError> {
        assert!(self.tallies.is_empty(), "invariant: tallies are settled before the commit");
        if let Some(error) = self.unwritable {
            return Err(TxnError::Row(error));
        }
        store.txn(self.compare, self.then, Vec::new()).await.map_err(TxnError::Store)
    }

    fn put_row<T: Row>(mut self, row: &T, lease: Option<LeaseId>) -> Self {
        match row::encode(row) {
            Ok(value) => self.then.push(Operation::Put { key: key::<T>(row.id()), value, lease }),
            Err(error) => self.unwritable = self.unwritable.or(Some(error)),
        }
        self
    }
}

fn unchanged<T: Row>(stored: &Stored<T>) -> Compare {
    Compare::ModRevision(key::<T>(stored.row.id()), stored.mod_revision)
}
