//! A guest's disk: 4 KiB at random places, read and written, one request at a time and 32 at a time, by the tiny guest's own
//! load; and what a VMM's threads, without those that are the guest's processors, take of a processor for each. A disk is by the
//! page cache, past it, or encrypted and by the page cache, as the cloud's encrypted volumes are.
//!
//! With `FIRECRACKER_BIN=/path/to/firecracker` the same guest has the same file there, in the same run, by turns, with both of
//! its engines, and the better one is the baseline; without, a process that reads and writes the file by plain calls is. What
//! such calls take in that run is the floor of what passes the page cache one at a time: it is in both sides' figures.
//!
//! The same by several guests at a time, each with a disk of its own, which on a small host have fewer processors than they
//! have use for.

mod measure;

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use serde_json::json;
use storage::format::raw::CACHED_WRITE_BYTES_MAX;

use crate::measure::vmm::{export_guest, firecracker, listen, write_firecracker_config};
use crate::measure::{Samples, line};

/// Runs per side.
const RUNS: usize = 3;
/// How long each part of a run takes.
const PART: Duration = Duration::from_millis(800);
/// The disk's size, all of which the page cache can have.
const DISK_BYTES: u64 = 256 << 20;
const BLOCK_BYTES: usize = 4096;
/// The parts of the guest's load, in its order.
const PARTS: [(&str, u32); 4] = [("read", 1), ("read", 32), ("write", 1), ("write", 32)];

/// Guests at a time.
const CROWD: usize = 4;

/// What one side did in each part: requests a second, and microseconds of a processor for each, where that is known.
type Results = BTreeMap<(&'static str, u32), (Samples, Samples)>;

struct Side<'a> {
    name: &'static str,
    command: Box<dyn Fn() -> Command + 'a>,
    results: Results,
}

fn main() -> Result<()> {
    let wisp = Path::new(env!("CARGO_BIN_EXE_wisp"));
    let files = tempfile::tempdir()?;
    let (kernel, disk) = (export_guest(wisp, files.path())?, files.path().join("disk"));
    let key = files.path().join("key");
    std::fs::write(&key, (0..64).collect::<Vec<u8>>())?;
    let key = format!(",key-file={}", key.display());
    let ours_of = |disk: &Path, words: &str, option: Option<&'static str>| {
        let (kernel, mut file) = (&kernel, disk.as_os_str().to_owned());
        file.push(words);
        move || {
            let mut command = Command::new(wisp);
            command
                .args(["vmm", "boot", "--mem", "128", "--cmdline", &load_word()])
                .arg("--kernel")
                .arg(kernel);
            command.arg("--disk").arg(&file).args(option);
            command
        }
    };
    let ours = |words: &str, option| ours_of(&disk, words, option);
    let side = |name, command| Side { name, command, results: Results::new() };
    let mut cached = side("page cache", Box::new(ours("", None)) as Box<dyn Fn() -> Command>);
    let mut direct = side("direct", Box::new(ours(",direct", None)));
    let mut pinned = side("direct, memory pinned", Box::new(ours(",direct", Some("--pin-memory"))));
    let mut encrypted = side("page cache, AES-256-XTS", Box::new(ours(&key, None)));
    let mut theirs = Vec::new();
    let firecracker_of = |program: &OsStr, disk: &Path, engine: &str| -> Result<_> {
        let config = disk.with_extension(engine);
        let drive = json!({"drive_id": "d", "path_on_host": disk, "is_root_device": false, "is_read_only": false,
                           "cache_type": "Writeback", "io_engine": engine});
        let cmdline = format!("console=ttyS0 {}", load_word());
        write_firecracker_config(&config, (&kernel, &cmdline), 128, json!({"drives": [drive]}))?;
        let program = program.to_owned();
        Ok(move || firecracker(Path::new(&program), &config))
    };
    let peer = std::env::var_os("FIRECRACKER_BIN");
    if let Some(program) = &peer {
        for (name, engine) in [("firecracker, Sync", "Sync"), ("firecracker, Async", "Async")] {
            theirs.push(side(name, Box::new(firecracker_of(program, &disk, engine)?)));
        }
    }
    let mut plain = Results::new();
    for _ in 0..RUNS {
        for side in [&mut cached, &mut direct, &mut pinned, &mut encrypted].into_iter().chain(&mut theirs) {
            fill(&disk)?;
            run(&side.command, &mut side.results).with_context(|| side.name)?;
        }
        fill(&disk)?;
        plain_calls(&disk, &mut plain)?;
    }
    for part in PARTS {
        report(part, &cached, &theirs, &plain);
        report(part, &direct, &theirs, &plain);
        report(part, &pinned, &theirs, &plain);
        report(part, &encrypted, &theirs, &plain);
    }
    for part in PARTS.into_iter().filter(|(_, depth)| *depth == 1) {
        let us = |results: &Results| 1e6 / results[&part].0.quantile(0.5);
        let what = format!("4k random {} by a plain call on the host", part.0);
        line(&what, "us", us(&plain), us(&cached.results), "a guest's, one at a time, page cache");
    }
    let disks: Vec<_> = (0..CROWD).map(|guest| files.path().join(format!("crowd{guest}"))).collect();
    let crowd = disks.iter().map(|disk| Box::new(ours_of(disk, "", None)) as Boot<'_>).collect::<Vec<_>>();
    let mut crowds = vec![("", crowd, BTreeMap::new())];
    if let Some(program) = &peer {
        let boot = |disk: &PathBuf| Ok(Box::new(firecracker_of(program, disk, "Sync")?) as Boot<'_>);
        let crowd = disks.iter().map(boot).collect::<Result<Vec<_>>>()?;
        crowds.push(("as many firecrackers, Sync", crowd, BTreeMap::new()));
    }
    for _ in 0..RUNS {
        for (_, crowd, totals) in &mut crowds {
            disks.iter().try_for_each(|disk| fill(disk))?;
            together(crowd, totals)?;
        }
    }
    for part in PARTS {
        let total = |totals: &Totals| totals[&part].quantile(0.5) / 1e3;
        let (alone, of) = (cached.results[&part].0.quantile(0.5) / 1e3, "one guest alone");
        let (baseline, of) = crowds.get(1).map_or((alone, of), |(name, _, totals)| (total(totals), *name));
        let what = format!("4k random {}, depth {}, page cache, {CROWD} guests", part.0, part.1);
        line(&what, "kIOPS", total(&crowds[0].2), baseline, of);
    }
    Ok(())
}

/// How a guest is booted.
type Boot<'a> = Box<dyn Fn() -> Command + Send + Sync + 'a>;

/// What guests did together in each part: requests a second.
type Totals = BTreeMap<(&'static str, u32), Samples>;

/// The load of several guests at a time.
fn together(crowd: &[Boot<'_>], totals: &mut Totals) -> Result<()> {
    let each = std::thread::scope(|scope| {
        let alone = |boot: &Boot<'_>| {
            let mut results = Results::new();
            run(boot, &mut results).map(|()| results)
        };
        let running: Vec<_> = crowd.iter().map(|boot| scope.spawn(move || alone(boot))).collect();
        let ended = running.into_iter().map(|guest| guest.join().expect("invariant: nothing there panics"));
        ended.collect::<Result<Vec<_>>>()
    })?;
    for part in PARTS {
        let total = each.iter().map(|results| results[&part].0.quantile(0.5)).sum();
        totals.entry(part).or_default().push(total);
    }
    Ok(())
}

fn load_word() -> String {
    format!("load={}", PART.as_millis())
}

/// Two lines: requests a second, and the processor's time for each.
fn report(part: (&'static str, u32), ours: &Side<'_>, theirs: &[Side<'_>], plain: &Results) {
    let middle = |results: &Results| {
        let (rate, cpu) = &results[&part];
        (rate.quantile(0.5), cpu.quantile(0.5))
    };
    let baselines = theirs.iter().map(|side| (middle(&side.results), side.name));
    let best = baselines.max_by(|one, other| one.0.0.total_cmp(&other.0.0));
    let ((rate, cpu), of) = best.unwrap_or_else(|| (middle(plain), "plain calls on the host"));
    let (own_rate, own_cpu) = middle(&ours.results);
    let what = format!("4k random {}, depth {}, {}", part.0, part.1, ours.name);
    line(&what, "kIOPS", own_rate / 1e3, rate / 1e3, of);
    line(&format!("{what}: processor for each"), "us", own_cpu, cpu, of);
}

/// A file of which every block was written, in the page cache and on the disk, as volumes are written here. One that was written in
/// larger pieces takes a multiple of the time for each write at a random place, whoever writes. Each side has a new one: who reads
/// directly waits for what was written to the page cache before, and who writes directly takes from it what others would read.
fn fill(path: &Path) -> Result<()> {
    let file = File::create(path)?;
    let piece = vec![0x5a; usize::try_from(CACHED_WRITE_BYTES_MAX)?];
    for at in (0..DISK_BYTES).step_by(piece.len()) {
        file.write_all_at(&piece, at)?;
    }
    Ok(file.sync_all()?)
}

/// One guest's load, heard on its console.
fn run(command: &dyn Fn() -> Command, results: &mut Results) -> Result<()> {
    let mut began = None;
    listen(&mut command(), |process, line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words[..] {
            ["load:", "begin", ..] => began = Some((Instant::now(), processor_ns(process))),
            ["load:", "end", kind, depth, count, "requests", failed, ..] => {
                ensure!(failed == "0", "requests failed: {line}");
                let (started, before) = began.take().context("it ends before it begins")?;
                let (seconds, spent) = (started.elapsed().as_secs_f64(), processor_ns(process) - before);
                let count: f64 = count.parse()?;
                let part = PARTS.into_iter().find(|part| part.0 == kind && part.1.to_string() == depth);
                let (rate, cpu) = results.entry(part.context("a part that was not asked for")?).or_default();
                rate.push(count / seconds);
                cpu.push(spent as f64 / 1e3 / count);
            }
            ["load:", "done"] => return Ok(true),
            _ => {}
        }
        Ok(false)
    })
}

/// What all threads of a process but those that are the guest's processors have had of a processor, in nanoseconds.
fn processor_ns(pid: u32) -> u64 {
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let own = tasks
        .map(|task| task.path())
        .filter(|task| std::fs::read_to_string(task.join("comm")).is_ok_and(|name| !name.contains("vcpu")));
    let spent = own.filter_map(|task| {
        let text = std::fs::read_to_string(task.join("schedstat")).ok()?;
        text.split_whitespace().next()?.parse::<u64>().ok()
    });
    spent.sum()
}

/// The same places by `pread` and `pwrite`, one after the other: there is no depth.
fn plain_calls(path: &Path, results: &mut Results) -> Result<()> {
    let file = File::options().read(true).write(true).open(path)?;
    let mut block = vec![0x5a; BLOCK_BYTES];
    let mut random = 0x5851_f42d_4c95_7f2d_u64;
    for part in PARTS {
        let (started, before) = (Instant::now(), processor_ns(std::process::id()));
        let mut count = 0.0;
        while started.elapsed() < PART {
            random ^= random << 13;
            random ^= random >> 7;
            random ^= random << 17;
            let at = random % (DISK_BYTES / BLOCK_BYTES as u64) * BLOCK_BYTES as u64;
            if part.0 == "read" {
                file.read_exact_at(&mut block, at)?
            } else {
                file.write_all_at(&block, at)?
            }
            count += 1.0;
        }
        let (rate, cpu) = results.entry(part).or_default();
        rate.push(count / started.elapsed().as_secs_f64());
        cpu.push((processor_ns(std::process::id()) - before) as f64 / 1e3 / count);
    }
    Ok(())
}
