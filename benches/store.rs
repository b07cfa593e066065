//! What the store and the disks cost, each beside the least that the machine makes anybody pay.
//!
//! Runs in the directory that `TMPDIR` names, so give it one on the disk in question.

use std::fs::File;
use std::hint::black_box;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use bytes::Bytes;
use control::store::{Database, Kinds, Operation, RedbStore, Row, Store, Txn};
use serde::{Deserialize, Serialize};
use storage::format::{Disk, Overlay, RawFile};
use storage::root_disk::{RootDisk, create_root_disk};

/// Transactions per measurement: enough for the filesystem's journal to settle.
const TRANSACTIONS: u64 = 400;
/// Callers at once, where there are many.
const CONCURRENT: u64 = 50;
/// A row's value, about what a server's takes.
const VALUE_BYTES: usize = 1024;
const DISK_BYTES: u64 = 64 << 20;

fn main() -> anyhow::Result<()> {
    // Only `cargo bench` says so; `cargo test --all-targets` is not after numbers.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("skipped: run by cargo bench");
        return Ok(());
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    let directory = tempfile::tempdir()?;
    println!("{:<44} {:>12} {:>12} {:>8}  unit, baseline", "", "measured", "baseline", "ratio");
    let sync = bare_syncs(directory.path())?;
    runtime.block_on(commits(directory.path(), sync))?;
    runtime.block_on(cached_reads())?;
    disks(directory.path())?;
    root_disks(directory.path())
}

fn report(name: &str, measured: f64, baseline: f64, what: &str) {
    println!("{name:<44} {measured:>12.1} {baseline:>12.1} {:>8.2}  {what}", measured / baseline);
}

fn per_second(count: u64, took: Duration) -> f64 {
    count as f64 / took.as_secs_f64()
}

fn mib_per_second(bytes: u64, took: Duration) -> f64 {
    per_second(bytes, took) / f64::from(1 << 20)
}

fn timed(run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<Duration> {
    let start = Instant::now();
    run()?;
    Ok(start.elapsed())
}

/// What one durable 4 KiB write into a file of settled size costs.
fn bare_syncs(directory: &Path) -> anyhow::Result<f64> {
    let file = File::create_new(directory.join("sync"))?;
    file.write_all_at(&vec![1; 1 << 20], 0)?;
    file.sync_all()?;
    let took = timed(|| {
        for n in 0..TRANSACTIONS {
            file.write_all_at(&[n as u8; 4096], n % 256 * 4096)?;
            file.sync_data()?;
        }
        Ok(())
    })?;
    Ok(per_second(TRANSACTIONS, took))
}

async fn commits(directory: &Path, sync: f64) -> anyhow::Result<()> {
    let store = std::sync::Arc::new(RedbStore::open(&directory.join("store"))?);
    let change = |n: u64| {
        let value = Bytes::from(vec![b'v'; VALUE_BYTES]);
        vec![Operation::Put { key: format!("server/{:04}", n % 1000), value, lease: None }]
    };
    for n in 0..100 {
        store.txn(vec![], change(n), vec![]).await?;
    }
    let start = Instant::now();
    for n in 0..TRANSACTIONS {
        store.txn(vec![], change(n), vec![]).await?;
    }
    let alone = per_second(TRANSACTIONS, start.elapsed());
    report("store: commits, one caller", alone, sync, "per second, bare synced 4 KiB writes");

    let before = store.durable_commits();
    let start = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for caller in 0..CONCURRENT {
        let store = store.clone();
        callers.spawn(async move {
            for n in 0..TRANSACTIONS / 10 {
                store.txn(vec![], change(caller * 20 + n), vec![]).await?;
            }
            anyhow::Ok(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    let count = CONCURRENT * TRANSACTIONS / 10;
    let together = per_second(count, start.elapsed());
    report("store: commits, 50 callers", together, alone, "per second, one caller");
    let durable = store.durable_commits() - before;
    report(
        "store: transactions per durable commit",
        count as f64 / durable as f64,
        1.0,
        "transactions, one caller",
    );
    Ok(())
}

#[derive(Clone, Serialize, Deserialize)]
struct Server {
    id: String,
    name: String,
}

impl Row for Server {
    const KIND: &'static str = "server";
    const SCHEMA: u32 = 1;

    fn id(&self) -> &str {
        &self.id
    }
}

async fn cached_reads() -> anyhow::Result<()> {
    const ROWS: usize = 1000;
    let directory = tempfile::tempdir()?;
    let store = std::sync::Arc::new(RedbStore::open(&directory.path().join("store"))?);
    let database = Database::start(store, Kinds::new().with::<Server>()).await?;
    let mut plain = std::collections::BTreeMap::new();
    let ids: Vec<String> = (0..ROWS).map(|n| format!("{n:036}")).collect();
    for chunk in ids.chunks(100) {
        let mut txn = Txn::new();
        for id in chunk {
            let server = Server { id: id.clone(), name: "a server".to_owned() };
            txn = txn.create(&server);
            plain.insert(id.clone(), server);
        }
        database.commit(txn).await?;
    }
    let rounds = 200;
    let cached = timed(|| {
        for id in (0..rounds).flat_map(|_| &ids) {
            black_box(database.get::<Server>(id)).context("a row")?;
        }
        Ok(())
    })?;
    let mapped = timed(|| {
        for id in (0..rounds).flat_map(|_| &ids) {
            black_box(plain.get(id)).context("a row")?;
        }
        Ok(())
    })?;
    let each = |took: Duration| took.as_nanos() as f64 / (rounds * ROWS) as f64;
    report("cache: get of one row among 1000", each(cached), each(mapped), "ns, a BTreeMap without a lock");
    Ok(())
}

/// Places in a disk, in an order that no read-ahead guesses.
fn scattered(step: u64) -> impl Iterator<Item = u64> {
    let count = DISK_BYTES / step;
    (0..count).map(move |n| n * 4793 % count * step)
}

fn disks(directory: &Path) -> anyhow::Result<()> {
    let base_path = directory.join("base");
    std::fs::write(&base_path, vec![7; DISK_BYTES as usize])?;
    let overlay_file =
        File::options().read(true).write(true).create_new(true).open(directory.join("overlay"))?;
    Overlay::create(&overlay_file, DISK_BYTES, DISK_BYTES)?;
    let overlay = Overlay::open(overlay_file, File::open(&base_path)?)?;
    let raw_file = File::options().read(true).write(true).create_new(true).open(directory.join("raw"))?;
    let raw = RawFile::new(raw_file, DISK_BYTES);

    let read = |disk: &dyn Disk, step: u64| {
        let mut buffer = vec![0; step as usize];
        let took = timed(|| {
            for offset in scattered(step) {
                disk.read_at(&mut buffer, offset)?;
            }
            Ok(())
        })?;
        anyhow::Ok(mib_per_second(DISK_BYTES, took))
    };
    let write = |disk: &dyn Disk, step: u64| {
        let buffer = vec![9; step as usize];
        let took = timed(|| {
            for offset in scattered(step) {
                disk.write_at(&buffer, offset)?;
            }
            disk.flush().map_err(Into::into)
        })?;
        anyhow::Ok(mib_per_second(DISK_BYTES, took))
    };
    let whole = RawFile::whole(File::open(&base_path)?, true)?;
    let unit = "MiB per second, raw file";
    report("overlay: read 4 KiB from the base", read(&overlay, 4096)?, read(&whole, 4096)?, unit);
    report("overlay: read 64 KiB from the base", read(&overlay, 65536)?, read(&whole, 65536)?, unit);
    report("overlay: first write of 4 KiB, then flush", write(&overlay, 4096)?, write(&raw, 4096)?, unit);
    report("overlay: next write of 4 KiB, then flush", write(&overlay, 4096)?, write(&raw, 4096)?, unit);
    report("overlay: next write of 64 KiB, then flush", write(&overlay, 65536)?, write(&raw, 65536)?, unit);
    report("overlay: read 4 KiB written before", read(&overlay, 4096)?, read(&raw, 4096)?, unit);
    report("overlay: read 64 KiB written before", read(&overlay, 65536)?, read(&raw, 65536)?, unit);
    Ok(())
}

/// Whether the cost of a root disk depends on its image.
fn root_disks(directory: &Path) -> anyhow::Result<()> {
    let mut micros = Vec::new();
    let mut kind = "";
    for bytes in [1 << 20, DISK_BYTES] {
        let path = directory.join(format!("image-{bytes}"));
        std::fs::write(&path, vec![7; bytes as usize])?;
        let image = File::open(&path)?;
        image.sync_all()?;
        let count = 20;
        let took = timed(|| {
            for n in 0..count {
                let instance = directory.join(format!("instance-{bytes}-{n}"));
                std::fs::create_dir(&instance)?;
                kind = match create_root_disk(&instance, &image, 10 << 30)? {
                    RootDisk::Reflink(_) => "reflink",
                    RootDisk::Overlay(_) => "overlay",
                };
            }
            Ok(())
        })?;
        micros.push(took.as_micros() as f64 / f64::from(count));
    }
    report(
        &format!("root disk ({kind}): of an image of 64 MiB"),
        micros[1],
        micros[0],
        "µs, of an image of 1 MiB",
    );
    Ok(())
}
