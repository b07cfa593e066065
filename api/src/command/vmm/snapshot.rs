//! Snapshots of a guest, by its control socket, and what is in them.

use std::ffi::OsString;
use std::fs::{File, Metadata, TryLockError};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, bail};
use comfy_table::Table;
use comfy_table::presets::UTF8_HORIZONTAL_ONLY;
use vmm::config::CpuProfile;
use vmm::kvm::HostKind;
use vmm::rpc::{SnapshotReport, VmState};
use vmm::snapshot::{Form, Header};
use vmm::vm::Wanted;

use super::super::place;
use super::plug::connect;
use crate::guest::progress::Progress;
use crate::process::terminal::say;

/// Bytes of a page of guest memory.
const PAGE_BYTES: u64 = 4096;

/// What is asked about snapshots.
#[derive(Debug, clap::Subcommand)]
pub(in crate::command) enum Command {
    Snapshot(Snapshot),
    /// Show what a snapshot is: its guest, when it was taken, what it has the differences to.
    SnapshotInfo {
        /// The snapshot.
        file: PathBuf,
        /// Read all of it and check it against its checksums. Going on from a snapshot checks all but its memory.
        #[arg(long)]
        verify: bool,
    },
    SnapshotMerge(Merge),
    /// Have a guest stand still: it keeps its memory and uses no processor.
    Pause {
        /// The control socket (`wisp vmm boot --control`).
        socket: PathBuf,
    },
    /// Let a guest that stands still go on.
    Resume {
        /// The control socket.
        socket: PathBuf,
    },
}

/// Take a snapshot of a guest, from which any number of guests can go on (`wisp vmm boot --restore`).
///
/// A guest that runs goes on while its memory is written, though its devices wait, and stands still for what it writes
/// meanwhile. Its disks are not in the snapshot: what it wrote to them is in their files, and guests that go on need copies of these as they were. So pause it, copy, and let it go
/// on, or give it disks that nobody writes to.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sudo wisp vmm boot --kernel tiny.elf --control guest.sock &\n  \
    sudo wisp vmm snapshot guest.sock guest.snap\n  \
    sudo wisp vmm boot --restore guest.snap                      # as often as you like\n\n  \
    sudo wisp vmm snapshot guest.sock day.snap --track\n  \
    sudo wisp vmm snapshot guest.sock hour.snap --diff           # what it wrote since\n  \
    sudo wisp vmm boot --restore day.snap --restore hour.snap\n\n  \
    sudo wisp vmm snapshot guest.sock guest.snap --hints         # without what a guest with a balloon has free\n  \
    sudo wisp vmm snapshot guest.sock guest.snap --pack          # smaller; unpacked as the guest asks for it\n  \
    sudo wisp vmm boot --restore guest.snap --working-set guest.set\n\n  \
    sudo wisp vmm snapshot guest.sock guest.snap --pause && cp --reflink=auto disk.raw fork.raw\n  \
    sudo wisp vmm resume guest.sock")]
pub(in crate::command) struct Snapshot {
    /// The control socket (`wisp vmm boot --control`).
    socket: PathBuf,
    /// The file, made or replaced when the snapshot is whole. Guests that went on from the file before keep theirs.
    file: PathBuf,
    /// Only what is different from the snapshot before, which had `--track` or `--diff`.
    #[arg(long)]
    diff: bool,
    /// Note from now on what the guest writes, so that the next snapshot can have `--diff`.
    #[arg(long, conflicts_with = "diff")]
    track: bool,
    /// Leave out what a guest that runs says to be free, by its memory balloon (`wisp vmm boot --balloon`). It has a second to say it. What
    /// it writes to from then on is in the snapshot all the same.
    #[arg(long, conflicts_with_all = ["diff", "pause"])]
    hints: bool,
    /// Compress the memory (LZ4) once it is written. It is not mapped then by guests that go on, but unpacked as they ask for
    /// it.
    #[arg(long)]
    pack: bool,
    /// Leave the guest paused.
    #[arg(long)]
    pause: bool,
    /// Let a guest that was paused go on.
    #[arg(long, conflicts_with = "pause")]
    resume: bool,
}

/// Make one snapshot of a full one and those with differences to it, or of one by itself in another form.
///
/// It has the name of the newest, so that differences to that one are differences to it.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    wisp vmm snapshot-merge day.snap hour.snap --into now.snap\n  \
    wisp vmm snapshot-merge now.snap --into now.packed --pack")]
pub(in crate::command) struct Merge {
    /// A full snapshot, then those with differences, each to the one before; or one of whatever kind.
    #[arg(required = true)]
    snapshots: Vec<PathBuf>,
    /// The file, made or replaced when the snapshot is whole.
    #[arg(long, value_name = "FILE")]
    into: PathBuf,
    /// Compress the memory (LZ4). Without it, memory is as large in the file as it is, with holes.
    #[arg(long)]
    pack: bool,
}

pub(super) fn run(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Snapshot(arguments) => snapshot(&arguments)?,
        Command::SnapshotInfo { file, verify } => info(&file, verify)?,
        Command::SnapshotMerge(arguments) => merge(&arguments)?,
        Command::Pause { socket } => drop(connect(&socket)?.pause()?),
        Command::Resume { socket } => drop(connect(&socket)?.resume()?),
    }
    Ok(ExitCode::SUCCESS)
}

fn snapshot(arguments: &Snapshot) -> anyhow::Result<()> {
    let mut client = connect(&arguments.socket)?;
    let ran = client.status()?.state == VmState::Running;
    let kept = replace(&arguments.file, |file| {
        if arguments.pause {
            client.pause()?;
        }
        let (differences, track, hints) = (arguments.diff, arguments.track, arguments.hints);
        let taken = client.snapshot_as(file, Wanted { differences, track, hints });
        if taken.is_err() && arguments.pause && ran {
            // Without a snapshot nobody waits for it to stand still. Why there is none is what has to be told.
            let _ = client.resume();
        }
        Ok(taken?)
    });
    let kept = kept.and_then(|report| {
        if arguments.pack {
            rewrite(std::slice::from_ref(&arguments.file), Form::Packed, &arguments.file)?;
        }
        Ok(report)
    });
    if arguments.resume {
        client.resume()?;
    }
    say(line(&kept?))
}

/// Has a file written in the place of `path`, and puts it there when it is whole.
fn replace<T>(path: &Path, write: impl FnOnce(&File) -> anyhow::Result<T>) -> anyhow::Result<T> {
    place::check(path, "a snapshot")?;
    // Beside it: guests may have the file that is there mapped.
    let mut beside = OsString::from(path);
    beside.push(".partial");
    let beside = Path::new(&beside);
    let file = alone(beside)?;
    let written = (|| {
        let value = write(&file)?;
        file.sync_all().with_context(|| format!("write {} out", beside.display()))?;
        std::fs::rename(beside, path)
            .with_context(|| format!("put the snapshot in its place {}", path.display()))?;
        Ok(value)
    })();
    if written.is_err() {
        // It is none, and may never have been there.
        let _ = std::fs::remove_file(beside);
    }
    written
}

/// How often a file that is another by the time that it is had is opened again.
const OPENED_MAX: u32 = 8;

/// Makes an empty file that nobody else writes at the same time, or takes one that an interrupted command has left.
fn alone(path: &Path) -> anyhow::Result<File> {
    for _ in 0..OPENED_MAX {
        // What is in a guest's memory is its owner's alone.
        let made = File::options().read(true).write(true).create(true).truncate(false).mode(0o600).open(path);
        let file = made.with_context(|| format!("make {}", path.display()))?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                bail!("another command is writing {}: wait for its end", path.display());
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
        }
        // Whoever had it before may have put it in its place meanwhile.
        let id = |file: Metadata| (file.dev(), file.ino());
        let is_there =
            std::fs::metadata(path).is_ok_and(|there| file.metadata().is_ok_and(|it| id(it) == id(there)));
        if is_there {
            file.set_len(0).with_context(|| format!("empty {}", path.display()))?;
            return Ok(file);
        }
    }
    bail!("{} is made and put elsewhere all the time by other commands", path.display())
}

/// Makes one snapshot of others, with a bar.
fn rewrite(from: &[PathBuf], form: Form, into: &Path) -> anyhow::Result<Header> {
    let open = |path: &PathBuf| File::open(path).with_context(|| format!("open {}", path.display()));
    let files: Vec<File> = from.iter().map(open).collect::<Result<_, _>>()?;
    let last = files.last().context("a snapshot is made of others")?;
    let header =
        vmm::snapshot::read_header(last).with_context(|| from[from.len() - 1].display().to_string())?;
    let name = match form {
        Form::Flat => "write MiB of memory",
        Form::Packed => "pack MiB of memory",
    };
    let stage = Progress::default().stage(name, Some(header.memory_mib.into()));
    let written =
        replace(into, |file| Ok(vmm::snapshot::rewrite(files, form, file, &mut |_| stage.step(""))?))?;
    stage.done(&memory(&written));
    Ok(written)
}

fn merge(arguments: &Merge) -> anyhow::Result<()> {
    let form = if arguments.pack { Form::Packed } else { Form::Flat };
    let header = rewrite(&arguments.snapshots, form, &arguments.into)?;
    say(format_args!("{}: {}", header.id, memory(&header)))
}

/// How much memory a snapshot's guest has, and how it lies in the file.
fn memory(header: &Header) -> String {
    match header.form {
        Form::Flat => format!("{} MiB of memory", header.memory_mib),
        Form::Packed => format!("{} MiB of memory, packed: {}", header.memory_mib, kib(header.memory_bytes)),
    }
}

/// A snapshot that was taken, as a line.
fn line(report: &SnapshotReport) -> String {
    let SnapshotReport { id, pages, state, paused_us, hinted_pages, .. } = report;
    let memory = kib(pages * PAGE_BYTES);
    let stood = match (paused_us, state) {
        (Some(us), _) => {
            format!("the guest stood still for {:.1} ms", Duration::from_micros(*us).as_secs_f64() * 1e3)
        }
        (None, VmState::Paused) => "the guest stands still".to_owned(),
        (None, _) => "the guest stood still already".to_owned(),
    };
    let free =
        hinted_pages.map(|pages| format!(", {} are free", kib(pages * PAGE_BYTES))).unwrap_or_default();
    format!("{id}: {memory} of memory{free}; {stood}")
}

/// A number of bytes in words.
fn kib(bytes: u64) -> String {
    match bytes >> 10 {
        kib @ 0..10_240 => format!("{kib} KiB"),
        kib => format!("{} MiB", kib >> 10),
    }
}

fn info(path: &Path, verify: bool) -> anyhow::Result<()> {
    let file = File::open(path).with_context(|| format!("open {}", path.display()))?;
    let read = if verify { vmm::snapshot::verify(&file) } else { vmm::snapshot::read_header(&file) };
    let header = read.with_context(|| path.display().to_string())?;
    let mut table = Table::new();
    table.load_style(UTF8_HORIZONTAL_ONLY);
    for (what, value) in rows(&header) {
        table.add_row([what, &value]);
    }
    if verify {
        table.add_row(["checked", "header, state and memory match their checksums"]);
    }
    say(table)
}

fn rows(header: &Header) -> Vec<(&'static str, String)> {
    let taken = i64::try_from(header.taken_s).ok().and_then(|taken| jiff::Timestamp::from_second(taken).ok());
    let profile = match header.cpu {
        CpuProfile::Host => "host",
        CpuProfile::Baseline => "baseline",
    };
    let kvm = match header.host {
        HostKind::Hardware => "in hardware",
        HostKind::Software => "in software",
    };
    let vendor = String::from_utf8_lossy(&header.needs.vendor).escape_debug().to_string();
    vec![
        ("snapshot", header.id.to_string()),
        ("kind", header.base.map_or_else(|| "full".to_owned(), |base| format!("the differences to {base}"))),
        ("taken", taken.map_or_else(|| header.taken_s.to_string(), |taken| taken.to_string())),
        ("memory", memory(header)),
        ("vCPUs", header.vcpus.to_string()),
        ("processor", format!("{vendor}, profile {profile}, KVM {kvm}")),
    ]
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::FileExt as _;

    use super::*;

    #[test]
    fn what_is_no_regular_file_stays_and_nobody_writes_beside_another() {
        let directory = tempfile::tempdir().unwrap();
        let path = |name: &str| directory.path().join(name);
        let write = |text: &'static [u8]| move |file: &File| Ok(file.write_all_at(text, 0)?);
        let _socket = std::os::unix::net::UnixListener::bind(path("socket")).unwrap();
        for there in [path("socket"), directory.path().to_owned(), "/dev/null".into()] {
            let refused = replace(&there, write(b"a")).unwrap_err().to_string();
            assert!(refused.contains("no regular file"), "{refused}");
        }
        replace(&path("snap"), |file| {
            let refused = replace(&path("snap"), write(b"b")).unwrap_err().to_string();
            assert!(refused.contains("another command"), "{refused}");
            write(b"a")(file)
        })
        .unwrap();
        assert_eq!(std::fs::read(path("snap")).unwrap(), b"a");
        // What somebody was interrupted over is in nobody's way, and is not in what is written.
        std::fs::write(path("snap.partial"), "longer").unwrap();
        replace(&path("snap"), write(b"b")).unwrap();
        assert_eq!(std::fs::read(path("snap")).unwrap(), b"b");
        replace(&path("snap"), |_| -> anyhow::Result<()> { bail!("no") }).unwrap_err();
        assert_eq!(std::fs::read(path("snap")).unwrap(), b"b");
        let mut left: Vec<_> =
            directory.path().read_dir().unwrap().map(|entry| entry.unwrap().file_name()).collect();
        left.sort();
        assert_eq!(left, ["snap", "socket"]);
    }

    #[test]
    fn line_says_how_much_there_is_and_how_long_the_guest_stood_still() {
        let report = SnapshotReport {
            state: VmState::Running,
            id: "ab".to_owned(),
            pages: 256,
            state_bytes: 1,
            paused_us: Some(1234),
            hinted_pages: None,
        };
        assert_eq!(line(&report), "ab: 1024 KiB of memory; the guest stood still for 1.2 ms");
        let hinted = SnapshotReport { hinted_pages: Some(512), ..report.clone() };
        let said = "ab: 1024 KiB of memory, 2048 KiB are free; the guest stood still for 1.2 ms";
        assert_eq!(line(&hinted), said);
        let paused = SnapshotReport { paused_us: None, state: VmState::Paused, pages: 1 << 18, ..report };
        assert_eq!(line(&paused), "ab: 1024 MiB of memory; the guest stands still");
    }
}
