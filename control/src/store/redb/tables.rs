//! The embedded store's tables within one write transaction.
//!
//! Must never know: threads, channels, who asks.

use ::redb::{ReadableTable as _, Table};

use super::layout::{self, Head, meta};
use super::{EngineFailure, Options};
use crate::store::{Compare, Entry, Event, LeaseId, Operation, Revision};

/// The tables of one write transaction.
pub(super) struct Tables<'t> {
    meta: Table<'t, &'static str, u64>,
    entries: Table<'t, &'static str, &'static [u8]>,
    pub(super) history: Table<'t, Revision, &'static [u8]>,
    pub(super) leases: Table<'t, LeaseId, u64>,
    lease_keys: Table<'t, (LeaseId, &'static str), ()>,
    pub(super) history_bytes: u64,
}

impl<'t> Tables<'t> {
    pub(super) fn open(write: &'t ::redb::WriteTransaction) -> Result<Self, EngineFailure> {
        let failed = "open a table";
        let mut tables = Self {
            meta: write.open_table(layout::META).map_err(EngineFailure::at(failed))?,
            entries: write.open_table(layout::ENTRIES).map_err(EngineFailure::at(failed))?,
            history: write.open_table(layout::HISTORY).map_err(EngineFailure::at(failed))?,
            leases: write.open_table(layout::LEASES).map_err(EngineFailure::at(failed))?,
            lease_keys: write.open_table(layout::LEASE_KEYS).map_err(EngineFailure::at(failed))?,
            history_bytes: 0,
        };
        tables.history_bytes = tables.number(meta::HISTORY_BYTES)?;
        Ok(tables)
    }

    pub(super) fn number(&self, name: &'static str) -> Result<u64, EngineFailure> {
        let row = self.meta.get(name).map_err(EngineFailure::at("read a counter"))?;
        Ok(row.map_or(0, |row| row.value()))
    }

    pub(super) fn set(&mut self, name: &'static str, number: u64) -> Result<(), EngineFailure> {
        self.meta.insert(name, number).map_err(EngineFailure::at("write a counter"))?;
        Ok(())
    }

    fn head(&self, key: &str) -> Result<Option<Head>, EngineFailure> {
        let row = self.entries.get(key).map_err(EngineFailure::at("read a row"))?;
        row.map(|row| layout::decode_entry(row.value()).map(|(head, _)| head))
            .transpose()
            .map_err(EngineFailure::malformed)
    }

    pub(super) fn holds(&self, comparison: &Compare) -> Result<bool, EngineFailure> {
        Ok(match comparison {
            Compare::Absent(key) => self.head(key)?.is_none(),
            Compare::Present(key) => self.head(key)?.is_some(),
            Compare::ModRevision(key, revision) => {
                self.head(key)?.is_some_and(|head| head.mod_revision == *revision)
            }
        })
    }

    pub(super) fn keys_of(&self, lease: LeaseId) -> Result<Vec<String>, EngineFailure> {
        let mut keys = Vec::new();
        for row in self.lease_keys.range((lease, "")..).map_err(EngineFailure::at("read a lease's keys"))? {
            let (row, ()) = row
                .map(|(key, value)| (key, value.value()))
                .map_err(EngineFailure::at("read a lease's key"))?;
            let (holder, key) = row.value();
            if holder != lease {
                break;
            }
            keys.push(key.to_owned());
        }
        Ok(keys)
    }

    /// Does one change as of `revision`; none if there is nothing to delete.
    pub(super) fn change(
        &mut self,
        operation: Operation,
        revision: Revision,
    ) -> Result<Option<Event>, EngineFailure> {
        let old = self.head(operation.key())?;
        let new_lease = lease_of(&operation).unwrap_or(0);
        if let Some(old) = old.filter(|old| old.lease != 0 && old.lease != new_lease) {
            self.lease_keys
                .remove((old.lease, operation.key()))
                .map_err(EngineFailure::at("leave a lease"))?;
        }
        match operation {
            Operation::Put { key, value, .. } => {
                let create_revision = old.map_or(revision, |old| old.create_revision);
                let head = Head { create_revision, mod_revision: revision, lease: new_lease };
                let record = layout::encode_entry(head, &value);
                self.entries
                    .insert(key.as_str(), record.as_slice())
                    .map_err(EngineFailure::at("write a row"))?;
                if new_lease != 0 {
                    self.lease_keys
                        .insert((new_lease, key.as_str()), ())
                        .map_err(EngineFailure::at("join a lease"))?;
                }
                Ok(Some(Event::Put(Entry { key, value, create_revision, mod_revision: revision })))
            }
            Operation::Delete(key) => {
                if old.is_none() {
                    return Ok(None);
                }
                self.entries.remove(key.as_str()).map_err(EngineFailure::at("delete a row"))?;
                Ok(Some(Event::Deleted { key, revision }))
            }
        }
    }

    /// Forgets the oldest history beyond the options' bounds, and writes down what is left.
    pub(super) fn compact(&mut self, revision: Revision, options: &Options) -> Result<(), EngineFailure> {
        let mut oldest = self.number(meta::HISTORY_OLDEST)?;
        while revision - oldest >= options.history_revisions_max
            || self.history_bytes > options.history_bytes_max
        {
            let Some((first, record)) =
                self.history.pop_first().map_err(EngineFailure::at("compact the history"))?
            else {
                break;
            };
            self.history_bytes = self.history_bytes.saturating_sub(record.value().len() as u64);
            oldest = first.value() + 1;
        }
        self.set(meta::HISTORY_OLDEST, oldest)?;
        self.set(meta::HISTORY_BYTES, self.history_bytes)
    }
}

/// The lease that an operation puts its key under.
pub(super) fn lease_of(operation: &Operation) -> Option<LeaseId> {
    match operation {
        Operation::Put { lease, .. } => *lease,
        Operation::Delete(_) => None,
    }
}
