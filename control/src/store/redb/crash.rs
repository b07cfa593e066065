//! Power loss in the middle of everything: a backend that forgets or tears what was not synced, and what the store must
//! hold afterwards.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use ::redb::StorageBackend;

use super::{Options, RedbStore};
use crate::store::conformance::{next, put};
use crate::store::{Batch, Event, Operation, Outcome, Revision, Store, StoreError};

/// What a disk writes as a whole.
const SECTOR_BYTES: usize = 512;

/// A small generator with a seed (xorshift64*), so that a failing run can be repeated.
#[derive(Debug, Clone)]
struct Seeded(u64);

impl Seeded {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

#[derive(Debug, Clone)]
enum Unsynced {
    Write(usize, Vec<u8>),
    Length(usize),
}

#[derive(Debug)]
struct Power {
    /// What the running process reads.
    live: Vec<u8>,
    /// What the platters hold.
    durable: Vec<u8>,
    unsynced: Vec<Unsynced>,
    /// Operations left until the power goes.
    left: u64,
    lost: bool,
    random: Seeded,
}

impl Power {
    /// One operation reaches the device; or the power is gone, and then anything not synced may or may not have made it,
    /// sector by sector, in any order.
    fn spend(&mut self) -> io::Result<()> {
        if self.left == 0 && !self.lost {
            self.lost = true;
            for unsynced in std::mem::take(&mut self.unsynced) {
                match unsynced {
                    Unsynced::Length(length) if self.random.below(2) == 0 => self.durable.resize(length, 0),
                    Unsynced::Length(_) => {}
                    Unsynced::Write(offset, data) => self.tear(offset, &data),
                }
            }
        }
        if self.lost {
            return Err(io::Error::other("the power is gone"));
        }
        self.left -= 1;
        Ok(())
    }

    fn tear(&mut self, offset: usize, data: &[u8]) {
        let whole = self.random.below(3);
        for (index, sector) in data.chunks(SECTOR_BYTES).enumerate() {
            let arrives = match whole {
                0 => false,
                1 => true,
                _ => self.random.below(2) == 0,
            };
            let start = offset + index * SECTOR_BYTES;
            // Beyond the end that made it, there is nowhere to write to.
            if arrives && start + sector.len() <= self.durable.len() {
                self.durable[start..start + sector.len()].copy_from_slice(sector);
            }
        }
    }
}

#[derive(Debug, Clone)]
struct Device(Arc<Mutex<Power>>);

impl Device {
    fn new(durable: Vec<u8>, left: u64, random: Seeded) -> Self {
        let live = durable.clone();
        Self(Arc::new(Mutex::new(Power { live, durable, unsynced: Vec::new(), left, lost: false, random })))
    }

    fn durable(&self) -> Vec<u8> {
        self.0.lock().unwrap().durable.clone()
    }
}

impl StorageBackend for Device {
    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().unwrap().live.len() as u64)
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> io::Result<()> {
        let power = self.0.lock().unwrap();
        let start = usize::try_from(offset).unwrap();
        let bytes = power.live.get(start..start + out.len()).ok_or(io::ErrorKind::UnexpectedEof)?;
        out.copy_from_slice(bytes);
        Ok(())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let mut power = self.0.lock().unwrap();
        power.spend()?;
        let length = usize::try_from(len).unwrap();
        power.live.resize(length, 0);
        power.unsynced.push(Unsynced::Length(length));
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut power = self.0.lock().unwrap();
        power.spend()?;
        power.unsynced.clear();
        power.durable = power.live.clone();
        Ok(())
    }

    fn write(&self, offset: u64, data: &[u8]) -> io::Result<()> {
        let mut power = self.0.lock().unwrap();
        power.spend()?;
        let start = usize::try_from(offset).unwrap();
        if power.live.len() < start + data.len() {
            power.live.resize(start + data.len(), 0);
        }
        power.live[start..start + data.len()].copy_from_slice(data);
        power.unsynced.push(Unsynced::Write(start, data.to_vec()));
        Ok(())
    }
}

/// A transaction that changes some keys of a few, and always one that is its own.
fn transaction(number: u64, random: &mut Seeded) -> Vec<Operation> {
    let mut operations = vec![put(&format!("txn/{number:04}"), "")];
    let mut keys: Vec<u64> = (0..random.below(6)).map(|_| random.below(12)).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let key = format!("key/{key}");
        operations.push(if random.below(4) == 0 {
            Operation::Delete(key)
        } else {
            put(&key, &number.to_string().repeat(1 + usize::try_from(random.below(300)).unwrap()))
        });
    }
    operations
}

type Rows = BTreeMap<String, (Vec<u8>, Revision, Revision)>;

fn replay(rows: &mut Rows, batch: &Batch) {
    for event in &batch.events {
        match event {
            Event::Put(entry) => {
                let row = (entry.value.to_vec(), entry.create_revision, entry.mod_revision);
                assert_eq!(entry.mod_revision, batch.revision);
                let old = rows.insert(entry.key.clone(), row);
                assert_eq!(old.map_or(batch.revision, |old| old.1), entry.create_revision);
            }
            Event::Deleted { key, .. } => assert!(rows.remove(key).is_some(), "{key} was there to delete"),
        }
    }
}

/// What the store holds, once by its rows and once by its history from the beginning, which must agree.
async fn contents(store: &RedbStore) -> (Rows, Revision) {
    let (entries, revision) = store.range("").await.unwrap();
    let rows: Rows = entries
        .into_iter()
        .map(|entry| (entry.key, (entry.value.to_vec(), entry.create_revision, entry.mod_revision)))
        .collect();
    let mut replayed = Rows::new();
    let mut watch = store.watch("", 0).await.unwrap();
    for expected in 2..=revision {
        let batch = next(&mut watch).await;
        assert_eq!(batch.revision, expected, "history without a hole");
        replay(&mut replayed, &batch);
    }
    assert_eq!(rows, replayed, "rows and history agree");
    (rows, revision)
}

/// Runs transactions until the power goes, `concurrent` at a time; the answers to all that were asked, by number.
async fn run_until_power_loss(
    store: Arc<RedbStore>,
    mut number: u64,
    concurrent: u64,
    random: &mut Seeded,
) -> Vec<(u64, Result<Outcome, StoreError>)> {
    let mut answers = Vec::new();
    loop {
        let group: Vec<_> =
            (number..number + concurrent).map(|number| (number, transaction(number, random))).collect();
        number += concurrent;
        let asked = group.into_iter().map(|(number, then)| {
            let store = store.clone();
            async move { (number, store.txn(vec![], then, vec![]).await) }
        });
        answers.extend(futures_util::future::join_all(asked).await);
        if answers.iter().any(|(_, answer)| answer.is_err()) {
            return answers;
        }
        assert!(number < 10_000, "the power never went");
    }
}

/// A whole new store: creating one is made atomic by its name, not by the engine.
fn new_store() -> Vec<u8> {
    let device = Device::new(Vec::new(), u64::MAX, Seeded(1));
    drop(open(&device).unwrap());
    device.durable()
}

fn open(device: &Device) -> Result<RedbStore, StoreError> {
    RedbStore::open_backend(device.clone(), Options::default())
}

async fn power_loss(seed: u64, concurrent: u64) {
    let mut random = Seeded(seed);
    let mut durable = new_store();
    let mut number = 0;
    let mut known: Vec<(u64, Revision)> = Vec::new();
    // Crash upon crash over one file.
    for round in 0..4 {
        let left = random.below(if round == 0 { 400 } else { 150 });
        let device = Device::new(durable, left, random.clone());
        let mut answers = Vec::new();
        if let Ok(store) = open(&device) {
            answers = run_until_power_loss(Arc::new(store), number, concurrent, &mut random).await;
            number += answers.len() as u64;
        }
        durable = device.durable();

        let healthy = Device::new(durable, u64::MAX, random.clone());
        let store = open(&healthy).unwrap_or_else(|error| panic!("seed {seed} round {round}: {error:?}"));
        let (rows, revision) = contents(&store).await;
        for (number, answer) in answers {
            if let Ok(outcome) = answer {
                known.push((number, outcome.revision));
            }
        }
        for (number, at) in &known {
            let (_, create_revision, _) = rows.get(&format!("txn/{number:04}")).unwrap_or_else(|| {
                panic!("seed {seed} round {round}: acknowledged transaction {number} is lost")
            });
            assert_eq!(create_revision, at, "seed {seed}");
        }
        // What was never acknowledged may be there as a whole, then as one more revision; and nothing else is.
        let transactions = rows.keys().filter(|key| key.starts_with("txn/")).count() as u64;
        assert_eq!(
            transactions,
            revision - 1,
            "seed {seed} round {round}: one revision for each transaction"
        );
        assert!(transactions - known.len() as u64 <= (round + 1) * concurrent, "seed {seed}");
        // From now on what made it is known.
        known = rows
            .iter()
            .filter_map(|(key, row)| Some((key.strip_prefix("txn/")?.parse().unwrap(), row.1)))
            .collect();
        drop(store);
        durable = healthy.durable();
    }
}

#[tokio::test]
async fn power_loss_keeps_every_acknowledged_transaction_whole() {
    for seed in 1..=60 {
        power_loss(seed, 1).await;
    }
}

#[tokio::test]
async fn power_loss_keeps_every_acknowledged_group_whole() {
    for seed in 1001..=1030 {
        power_loss(seed, 8).await;
    }
}

#[tokio::test]
async fn failed_engine_answers_everybody_and_closes() {
    let device = Device::new(new_store(), 300, Seeded(7));
    let store = Arc::new(open(&device).unwrap());
    let mut watch = store.watch("", 0).await.unwrap();
    let answers = run_until_power_loss(store.clone(), 0, 4, &mut Seeded(7)).await;
    let failed = answers.iter().find_map(|(_, answer)| answer.as_ref().err()).unwrap();
    assert!(matches!(failed, StoreError::Engine { .. }), "{failed:?}");
    assert!(matches!(store.txn(vec![], vec![put("a", "")], vec![]).await, Err(StoreError::Closed)));
    assert!(matches!(store.range("").await, Err(StoreError::Closed)));
    assert!(matches!(store.revision().await, Err(StoreError::Closed)));
    while watch.recv().await.is_some() {}
}
