//! What a volume of 100 GiB costs: made, snapshot, cloned; each beside what the filesystem takes for an empty file, and
//! beside a volume of 1 GiB, since none of it may depend on the size. And what encryption takes of a disk's speed.
//!
//! Runs in the directory that `TMPDIR` names, so give it one on the disk in question: XFS and Btrfs share blocks between
//! files, ext4 does not.

use std::fs::File;
use std::path::Path;
use std::time::Instant;

use measure::{Line, Samples};
use storage::backend::{Backend, Source};
use storage::backup::DirectoryBackups;
use storage::file::FileBackend;
use storage::format::{Disk, DiskKey, EncryptedDisk, RawFile};

mod measure;

/// Volumes per measurement.
const COUNT: usize = 50;
const GIB: u64 = 1 << 30;
/// What is written and read of an encrypted disk, and how often.
const CONTENT_BYTES: u64 = 256 << 20;
const ROUNDS: usize = 5;
/// What the block device moves at once.
const PIECE_BYTES: usize = 64 << 10;

fn main() -> anyhow::Result<()> {
    // Only `cargo bench` says so; `cargo test --all-targets` is not after numbers.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("skipped: run by cargo bench");
        return Ok(());
    }
    let directory = tempfile::tempdir()?;
    let backend = FileBackend::open(&directory.path().join("volumes"))?;
    let kind = if backend.capabilities().copies_in_use { "shared blocks" } else { "overlays" };
    println!("{COUNT} volumes each, by {kind}");
    let file = files(directory.path())?;
    let small = of_size(&backend, GIB)?;
    let large = of_size(&backend, 100 * GIB)?;
    let names = ["create", "snapshot", "clone", "delete"];
    for ((name, large), small) in names.iter().zip(&large).zip(&small) {
        for (value, what) in [(0.5, "p50"), (0.99, "p99")] {
            let line = format!("volume of 100 GiB: {name}, {what}");
            let of = "the same of 1 GiB";
            Line {
                what: &line,
                unit: "ms",
                value: large.quantile(value),
                baseline: small.quantile(value),
                of,
            }
            .print();
        }
        let line = format!("volume of 100 GiB: {name}, p50");
        let of = "a durable empty file";
        Line { what: &line, unit: "ms", value: large.quantile(0.5), baseline: file.quantile(0.5), of }
            .print();
        let line = format!("volume of 100 GiB: {name}, p99");
        Line { what: &line, unit: "ms", value: large.quantile(0.99), baseline: 20.0, of: "the aim" }.print();
    }
    let [large, small] = [100 * GIB, GIB].map(|size_bytes| backup(directory.path(), size_bytes));
    let (value, baseline) = (large?.quantile(0.5), small?.quantile(0.5));
    let what = "volume of 100 GiB with 16 pages of data: backup, p50";
    Line { what, unit: "ms", value, baseline, of: "the same of 1 GiB" }.print();
    encrypted(directory.path())
}

/// What the backup of a volume takes that is holes but for 16 pages.
fn backup(directory: &Path, size_bytes: u64) -> anyhow::Result<Samples> {
    let disk = RawFile::new(tempfile::tempfile_in(directory)?, size_bytes);
    for at in 0..16 {
        disk.write_at(&[7; 4096], at * (size_bytes / 16))?;
    }
    let store = DirectoryBackups::new(directory.join("backups"));
    std::fs::create_dir_all(directory.join("backups"))?;
    let mut samples = Samples::default();
    for number in 0..ROUNDS {
        let id = format!("{size_bytes}-{number}");
        timed(&mut samples, || Ok(storage::backup::create(&store, &id, &disk, None).map(drop)?))?;
    }
    Ok(samples)
}

/// How fast a disk is read and written through its key, beside the same in the clear: one thread, pieces as the block
/// device moves them, what the page cache holds.
fn encrypted(directory: &Path) -> anyhow::Result<()> {
    let disk = || -> anyhow::Result<RawFile> {
        let file = tempfile::tempfile_in(directory)?;
        file.set_len(CONTENT_BYTES)?;
        Ok(RawFile::new(file, CONTENT_BYTES))
    };
    let clear = speeds(&disk()?)?;
    for (bits, cipher) in [(256, "AES-128-XTS"), (512, "AES-256-XTS")] {
        let key = DiskKey::random(bits).ok_or_else(|| anyhow::anyhow!("no key"))?;
        let speeds = speeds(&EncryptedDisk::new(disk()?, &key))?;
        for (index, what) in ["written", "read"].iter().enumerate() {
            let line = format!("disk {what} through {cipher}, p50");
            let (value, baseline) = (speeds[index].quantile(0.5), clear[index].quantile(0.5));
            Line { what: &line, unit: "MiB/s", value, baseline, of: "the same in the clear" }.print();
        }
    }
    Ok(())
}

/// MiB a second: written, read.
fn speeds(disk: &dyn Disk) -> anyhow::Result<[Samples; 2]> {
    let mut samples = [Samples::default(), Samples::default()];
    let mut piece = vec![7; PIECE_BYTES];
    let mib = (CONTENT_BYTES >> 20) as f64;
    // The first round makes the file's blocks.
    for round in 0..=ROUNDS {
        for (index, samples) in samples.iter_mut().enumerate() {
            let began = Instant::now();
            for at in (0..CONTENT_BYTES).step_by(PIECE_BYTES) {
                if index == 0 { disk.write_at(&piece, at)? } else { disk.read_at(&mut piece, at)? }
            }
            if round > 0 {
                samples.push(mib / began.elapsed().as_secs_f64());
            }
        }
    }
    Ok(samples)
}

fn timed(samples: &mut Samples, run: impl FnOnce() -> anyhow::Result<()>) -> anyhow::Result<()> {
    let start = Instant::now();
    run()?;
    samples.push(start.elapsed().as_secs_f64() * 1e3);
    Ok(())
}

/// Files that are made, synced, and whose names are.
fn files(directory: &Path) -> anyhow::Result<Samples> {
    let mut samples = Samples::default();
    for number in 0..COUNT {
        timed(&mut samples, || {
            File::create(directory.join(format!("file-{number}")))?.sync_all()?;
            Ok(File::open(directory)?.sync_all()?)
        })?;
    }
    Ok(samples)
}

fn of_size(backend: &dyn Backend, size_bytes: u64) -> anyhow::Result<[Samples; 4]> {
    let [mut create, mut snapshot, mut clone, mut delete] = <[Samples; 4]>::default();
    for number in 0..COUNT {
        let ids = ["v", "s", "c"].map(|kind| format!("{kind}{number}"));
        let [volume, copy, cloned] = &ids;
        timed(&mut create, || Ok(backend.create(volume, size_bytes, Source::Nothing)?))?;
        let disk = backend.export(volume, false)?.open(false)?;
        for at in 0..16 {
            disk.write_at(&[7; 4096], at * (size_bytes / 16))?;
        }
        disk.flush()?;
        timed(&mut snapshot, || Ok(backend.snapshot(copy, volume, false)?))?;
        let source = Source::Disk { id: copy, in_use: false };
        timed(&mut clone, || Ok(backend.create(cloned, size_bytes, source)?))?;
        for id in &ids {
            timed(&mut delete, || Ok(backend.delete(id)?))?;
        }
    }
    Ok([create, snapshot, clone, delete])
}
