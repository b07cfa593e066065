//! What the embedded store's file holds: its tables and the bytes of their values. All integers are little-endian.
//!
//! | table | key | value |
//! |---|---|---|
//! | `meta` | name | u64: `format` (1), `revision`, `history_oldest`, `history_bytes`, `lease_last` |
//! | `entries` | the key | create revision u64, mod revision u64, lease u64 (0: none), then the value |
//! | `history` | revision u64 | that revision's events, one after another |
//! | `leases` | lease u64 | time to live in ms, u64 |
//! | `lease_keys` | (lease u64, key) | nothing |
//!
//! An event is: kind u8 (1 put, 2 delete), key length u16, key; a put goes on with create revision u64, value length
//! u32, value. `history` holds every revision from `history_oldest` to `revision` without a hole.
//!
//! Must never know: threads, channels, who asks.

use ::redb::TableDefinition;
use bytes::Bytes;

use crate::store::{Entry, Event, LeaseId, Revision};

/// Counters.
pub(super) const META: TableDefinition<'static, &str, u64> = TableDefinition::new("meta");
/// The current rows.
pub(super) const ENTRIES: TableDefinition<'static, &str, &[u8]> = TableDefinition::new("entries");
/// The change log.
pub(super) const HISTORY: TableDefinition<'static, Revision, &[u8]> = TableDefinition::new("history");
/// Leases with their time to live.
pub(super) const LEASES: TableDefinition<'static, LeaseId, u64> = TableDefinition::new("leases");
/// Which keys a lease holds.
pub(super) const LEASE_KEYS: TableDefinition<'static, (LeaseId, &str), ()> =
    TableDefinition::new("lease_keys");

/// The layout above.
pub(super) const FORMAT: u64 = 1;
/// The revision of an empty store, as etcd's.
pub(super) const REVISION_FIRST: Revision = 1;

/// Names in `meta`.
pub(super) mod meta {
    pub(in super::super) const FORMAT: &str = "format";
    pub(in super::super) const REVISION: &str = "revision";
    pub(in super::super) const HISTORY_OLDEST: &str = "history_oldest";
    pub(in super::super) const HISTORY_BYTES: &str = "history_bytes";
    pub(in super::super) const LEASE_LAST: &str = "lease_last";
}

const PUT: u8 = 1;
const DELETED: u8 = 2;
const ENTRY_HEADER_BYTES: usize = 24;

/// A record's head, without its value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) create_revision: Revision,
    pub(super) mod_revision: Revision,
    /// 0: none.
    pub(super) lease: LeaseId,
}

/// The bytes are not what this module writes.
#[derive(Debug, thiserror::Error)]
#[error("malformed record in the store's table {table}")]
pub(super) struct Malformed {
    table: &'static str,
}

/// A value of `entries`.
pub(super) fn encode_entry(head: Head, value: &[u8]) -> Vec<u8> {
    let mut record = Vec::with_capacity(ENTRY_HEADER_BYTES + value.len());
    for number in [head.create_revision, head.mod_revision, head.lease] {
        record.extend_from_slice(&number.to_le_bytes());
    }
    record.extend_from_slice(value);
    record
}

/// Reads back [`encode_entry`].
pub(super) fn decode_entry(record: &[u8]) -> Result<(Head, &[u8]), Malformed> {
    let mut reader = Reader { rest: record, table: "entries" };
    let head = Head { create_revision: reader.u64()?, mod_revision: reader.u64()?, lease: reader.u64()? };
    Ok((head, reader.rest))
}

/// A value of `history`. Keys are at most `KEY_BYTES_MAX` and values at most `VALUE_BYTES_MAX` long.
pub(super) fn encode_events(events: &[Event]) -> Vec<u8> {
    let mut record = Vec::new();
    let begin = |kind: u8, key: &str, record: &mut Vec<u8>| {
        let length = u16::try_from(key.len()).expect("invariant: keys are limited before they get here");
        record.push(kind);
        record.extend_from_slice(&length.to_le_bytes());
        record.extend_from_slice(key.as_bytes());
    };
    for event in events {
        match event {
            Event::Put(entry) => {
                let length = u32::try_from(entry.value.len())
                    .expect("invariant: values are limited before they get here");
                begin(PUT, &entry.key, &mut record);
                record.extend_from_slice(&entry.create_revision.to_le_bytes());
                record.extend_from_slice(&length.to_le_bytes());
                record.extend_from_slice(&entry.value);
            }
            Event::Deleted { key, .. } => begin(DELETED, key, &mut record),
        }
    }
    record
}

/// Reads back [`encode_events`].
pub(super) fn decode_events(revision: Revision, record: &[u8]) -> Result<Vec<Event>, Malformed> {
    let mut reader = Reader { rest: record, table: "history" };
    let mut events = Vec::new();
    while !reader.rest.is_empty() {
        let kind = reader.u8()?;
        let length = usize::from(reader.u16()?);
        let key = std::str::from_utf8(reader.take(length)?).map_err(|_| reader.malformed())?.to_owned();
        events.push(match kind {
            PUT => {
                let create_revision = reader.u64()?;
                let length = reader.u32()? as usize;
                let value = Bytes::copy_from_slice(reader.take(length)?);
                Event::Put(Entry { key, value, create_revision, mod_revision: revision })
            }
            DELETED => Event::Deleted { key, revision },
            _ => return Err(reader.malformed()),
        });
    }
    Ok(events)
}

struct Reader<'a> {
    rest: &'a [u8],
    table: &'static str,
}

impl<'a> Reader<'a> {
    fn malformed(&self) -> Malformed {
        Malformed { table: self.table }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], Malformed> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or_else(|| self.malformed())?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], Malformed> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or_else(|| self.malformed())?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, Malformed> {
        Ok(u8::from_le_bytes(self.array()?))
    }

    fn u16(&mut self) -> Result<u16, Malformed> {
        Ok(u16::from_le_bytes(self.array()?))
    }

    fn u32(&mut self) -> Result<u32, Malformed> {
        Ok(u32::from_le_bytes(self.array()?))
    }

    fn u64(&mut self) -> Result<u64, Malformed> {
        Ok(u64::from_le_bytes(self.array()?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            ("[a-z/é]{1,40}", proptest::collection::vec(any::<u8>(), 0..64), 1..7u64).prop_map(
                |(key, value, create_revision)| {
                    Event::Put(Entry { key, value: value.into(), create_revision, mod_revision: 7 })
                }
            ),
            "[a-z/]{1,40}".prop_map(|key| Event::Deleted { key, revision: 7 }),
        ]
    }

    proptest! {
        #[test]
        fn events_survive_the_round_trip(events in proptest::collection::vec(event(), 0..8)) {
            prop_assert_eq!(decode_events(7, &encode_events(&events)).unwrap(), events);
        }

        #[test]
        fn foreign_bytes_are_refused_or_read_but_never_panic(record in proptest::collection::vec(any::<u8>(), 0..256)) {
            let _ = decode_events(7, &record);
            let _ = decode_entry(&record);
        }
    }
}
