//! Snapshots and handovers of one guest by its command line, as a person asks for them.

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::booted::{Ended, Files, Typist, refused, vmm};
use crate::harness::{Need, trial, wisp, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "snapshots::guest_goes_on_from_what_was_packed_and_merged_and_what_it_asks_for_is_kept",
            &[Need::Kvm],
            guest_goes_on_from_what_was_packed_and_merged,
        ),
        trial(
            "snapshots::guest_whose_memory_is_pinned_for_its_disks_goes_on_without_that_elsewhere",
            &[Need::Kvm],
            guest_whose_memory_is_pinned_goes_on_elsewhere,
        ),
        trial(
            "snapshots::guest_is_handed_from_program_to_program_while_it_runs",
            &[Need::Kvm],
            guest_is_handed_from_program_to_program,
        ),
        trial(
            "snapshots::balloon_of_a_guest_that_goes_on_has_the_target_that_is_given_or_the_one_that_it_had",
            &[Need::Kvm],
            balloon_of_a_guest_that_goes_on,
        ),
    ]
}

/// The id at the beginning of what a command says.
fn id(said: &str) -> Result<String> {
    Ok(said.split_once(':').with_context(|| said.to_owned())?.0.to_owned())
}

fn guest_goes_on_from_what_was_packed_and_merged() -> Result<()> {
    let files = Files::new()?;
    let path = |name: &str| files.path(name);
    let control = path("control");
    let kernel = path("tiny.elf");
    let (guest, mut typist) = files.boot(&["--kernel", &kernel, "--mem", "32"])?;
    let said = vmm(&["snapshot", &control, &path("full"), "--track"])?;
    ensure!(said.contains("KiB of memory; the guest stood still for"), "{said}");
    typist.say("touch 1")?;
    let newest = id(&vmm(&["snapshot", &control, &path("diff"), "--diff"])?)?;
    // A guest is not left standing still for a snapshot that is none.
    for (nowhere, why) in [(path("none/snap"), "No such file"), (files.path("."), "no regular file")] {
        let refused = refused(&["snapshot", &control, &nowhere, "--pause"])?;
        ensure!(refused.contains(why), "{refused}");
        let status = vmm(&["status", &control])?;
        ensure!(status.starts_with("running"), "{status}");
    }
    let appended = File::options().create(true).append(true).open(path("appended"))?;
    let refused_file = vmm::rpc::Client::connect(Path::new(&control))?.snapshot(&appended, false, false);
    let said = refused_file.err().context("it is taken")?.to_string();
    ensure!(said.contains("open for appending") && appended.metadata()?.len() == 0, "{said}");
    let packed = id(&vmm(&["snapshot", &control, &path("packed"), "--pack"])?)?;
    drop((guest, typist));

    let info = vmm(&["snapshot-info", &path("packed"), "--verify"])?;
    ensure!(info.contains(&packed) && info.contains("32 MiB of memory, packed: "), "{info}");
    ensure!(info.contains("header, state and memory match their checksums"), "{info}");
    let info = vmm(&["snapshot-info", &path("diff")])?;
    ensure!(info.contains("the differences to ") && !info.contains("checksums"), "{info}");
    for (form, name) in [(None, "merged"), (Some("--pack"), "small")] {
        let (full, diff, into) = (path("full"), path("diff"), path(name));
        let arguments: Vec<&str> =
            ["snapshot-merge", &full, &diff, "--into", &into].into_iter().chain(form).collect();
        let said = vmm(&arguments)?;
        ensure!(id(&said)? == newest && said.contains("packed: ") == form.is_some(), "{said}");
        let info = vmm(&["snapshot-info", &into, "--verify"])?;
        ensure!(info.contains(&newest) && info.contains("full") && info.contains("match"), "{info}");
    }
    let alone = refused(&["snapshot-merge", &path("diff"), &path("full"), "--into", &path("none")])?;
    ensure!(alone.contains("what comes before it is nothing"), "{alone}");
    ensure!(
        !Path::new(&path("none")).exists() && !Path::new(&path("none.partial")).exists(),
        "something is left"
    );
    let length = std::fs::metadata(path("small"))?.len();
    ensure!(length < std::fs::metadata(path("merged"))?.len() / 2, "{length} bytes are not packed");

    // What is given beside a snapshot is named, and what somebody has is not written over.
    let (small, big) = (path("small"), path("big"));
    std::fs::File::create_new(&big)?.set_len(4 << 20)?;
    for (given, why) in [
        (["--balloon".to_owned(), "4".to_owned()], "a memory balloon is given"),
        (["--working-set".to_owned(), kernel.clone()], "has something else in it"),
        (["--console".to_owned(), format!("file={big}")], "it is something else"),
    ] {
        let refused = refused(&["boot", "--restore", &small, &given[0], &given[1]])?;
        ensure!(refused.contains(why), "{refused}");
    }
    ensure!(std::fs::read(&kernel)?.starts_with(b"\x7fELF"), "the kernel was written over");

    // The first time what it asks for is noted, the second time it is known.
    let (small, set) = (path("small"), path("set"));
    let mut known = Vec::new();
    for _ in 0..2 {
        let (guest, mut typist) = files.boot(&["--restore", &small, "--working-set", &set])?;
        let said = typist.say("print back")?;
        ensure!(said.contains("back"), "{said}");
        known.push(within(30, || {
            let bytes = std::fs::read(&set)?;
            ensure!(bytes.starts_with(b"WISPWSET"), "{} bytes are no working set", bytes.len());
            Ok(bytes)
        })?);
        drop(guest);
    }
    ensure!(
        known[0] == known[1] && known[0].len() > 36,
        "{} bytes, {} bytes",
        known[0].len(),
        known[1].len()
    );

    // What is damaged is told by whoever looks.
    let file = std::fs::File::options().read(true).write(true).open(path("packed"))?;
    let at = file.metadata()?.len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, at)?;
    file.write_all_at(&[byte[0] ^ 1], at)?;
    let damaged = refused(&["snapshot-info", &path("packed"), "--verify"])?;
    ensure!(damaged.contains("does not match its checksum"), "{damaged}");
    let working_set = refused(&["boot", "--restore", &path("merged"), "--working-set", &set])?;
    ensure!(working_set.contains("this one is not packed"), "{working_set}");
    Ok(())
}

fn guest_whose_memory_is_pinned_goes_on_elsewhere() -> Result<()> {
    let files = Files::new()?;
    let path = |name: &str| files.path(name);
    let (control, kernel) = (path("control"), path("tiny.elf"));
    for name in ["disk", "later"] {
        std::fs::write(path(name), vec![0; 1 << 20])?;
    }
    let disk = format!("{},direct,serial=first", path("disk"));
    let pinned = ["--kernel", &kernel, "--mem", "32", "--disk", &disk, "--pin-memory"];
    for other in [&["--balloon", "0"][..], &["--hotplug-memory", "128"], &["--upgradable", "--control", "x"]]
    {
        let said = refused(&[&["boot"], &pinned[..], other].concat())?;
        ensure!(said.contains("cannot be used with"), "{said}");
    }
    let (guest, mut typist) = files.boot(&pinned)?;
    let locked = || -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", guest.0.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmPin:")).context("nothing is told")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    };
    ensure!(locked()? >= 32 << 10, "{} KiB are pinned", locked()?);
    let said = typist.say("disk-write 0 5 pinned")?;
    ensure!(said == "command: disk-write 0 5 ok", "{said}");
    let status = vmm(&["status", &control])?;
    ensure!(status.contains("disk first           by io_uring"), "{status}");
    let later = format!("{},direct", path("later"));
    vmm(&["attach-disk", &control, &later, "--serial", "later"])?;
    vmm(&["snapshot", &control, &path("snap"), "--pause"])?;
    let mut text = [0; 6];
    std::fs::File::open(path("disk"))?.read_exact_at(&mut text, 5 * 512)?;
    ensure!(&text == b"pinned", "{text:?}");
    drop((guest, typist));

    let second = format!("{},direct", path("later"));
    let (_guest, mut typist) =
        files.boot(&["--restore", &path("snap"), "--disk", &disk, "--disk", &second])?;
    let said = typist.say("disk-read 0 5")?;
    ensure!(said == "command: disk-read 0 5 ok pinned", "{said}");
    Ok(())
}

fn guest_is_handed_from_program_to_program() -> Result<()> {
    let files = Files::new()?;
    let path = |name: &str| files.path(name);
    let (control, kernel) = (path("control"), path("tiny.elf"));
    std::fs::write(path("disk"), vec![0; 1 << 20])?;
    let disk = format!("{},serial=kept", path("disk"));
    let (mut first, mut typist) = files.boot(&[
        "--kernel",
        &kernel,
        "--mem",
        "64",
        "--balloon",
        "0",
        "--disk",
        &disk,
        "--upgradable",
    ])?;
    let _ended = Ended(control.clone().into());
    let said = typist.say("disk-write 0 5 from the first")?;
    ensure!(said == "command: disk-write 0 5 ok", "{said}");
    // A program that is none leaves everything as it was.
    let said = refused(&["upgrade", &control, "--to", "/bin/false"])?;
    ensure!(said.contains("the guest stays where it is"), "{said}");
    ensure!(typist.say("print still here")?.contains("still here"), "it does not go on");
    vmm(&["balloon", &control, "8"])?;
    let given = || {
        let balloon = vmm(&["balloon", &control])?;
        ensure!(balloon.starts_with("target 8 MiB, given 8 MiB"), "{balloon}");
        Ok(())
    };
    within(30, given)?;

    for time in 1..=3 {
        let program = wisp().display().to_string();
        let errors = path("errors");
        let said = match time {
            1 => vmm(&["upgrade", &control])?,
            _ => vmm(&["upgrade", &control, "--to", &program, "--errors", &errors])?,
        };
        ensure!(said.starts_with("the guest is in another process; it stood still for "), "{said}");
        if time == 1 {
            let ended = first.ended()?;
            ensure!(ended.success(), "{ended}");
        }
        drop(typist);
        typist = Typist::connect(Path::new(&path("hvc0")))?;
        let said = typist.say("disk-read 0 5")?;
        ensure!(said == "command: disk-read 0 5 ok from the first", "{said}");
        let status = vmm(&["status", &control])?;
        ensure!(status.starts_with("running\n") && status.contains("disk kept"), "{status}");
        ensure!(
            status.contains("empty root           yes") && status.contains("system-call filters  yes"),
            "{status}"
        );
        given()?;
    }
    // One that came to it on its way goes with it.
    std::fs::write(path("later"), vec![0; 1 << 20])?;
    vmm(&["attach-disk", &control, &path("later"), "--serial", "later"])?;
    vmm(&["upgrade", &control])?;
    let devices = vmm(&["devices", &control])?;
    ensure!(devices == "kept fixed\nlater present\n", "{devices}");
    vmm(&["pause", &control])?;
    let said = vmm(&["upgrade", &control])?;
    ensure!(said.contains("and stands still as before"), "{said}");
    vmm(&["resume", &control])?;
    ensure!(vmm(&["status", &control])?.starts_with("running"), "it does not go on");
    Ok(())
}

fn balloon_of_a_guest_that_goes_on() -> Result<()> {
    let files = Files::new()?;
    let path = |name: &str| files.path(name);
    let (control, kernel, first, second) = (path("control"), path("tiny.elf"), path("first"), path("second"));
    let given = |wanted: &str| {
        within(30, || {
            let balloon = vmm(&["balloon", &control])?;
            ensure!(balloon.starts_with(wanted), "{balloon}");
            Ok(())
        })
    };
    let (guest, typist) = files.boot(&["--kernel", &kernel, "--mem", "64", "--balloon", "4"])?;
    given("target 4 MiB, given 4 MiB")?;
    vmm(&["snapshot", &control, &first])?;
    drop((guest, typist));
    let refused = refused(&["boot", "--restore", &first, "--balloon", "4,firm"])?;
    ensure!(refused.contains("the guest's is not firm"), "{refused}");
    let (guest, typist) = files.boot(&["--restore", &first, "--balloon", "8"])?;
    given("target 8 MiB, given 8 MiB")?;
    vmm(&["snapshot", &control, &second])?;
    drop((guest, typist));
    let (guest, typist) = files.boot(&["--restore", &second])?;
    given("target 8 MiB, given 8 MiB")?;
    drop((guest, typist));
    let (_guest, _typist) = files.boot(&["--restore", &second, "--balloon", "0"])?;
    given("target 0 MiB, given 0 MiB")
}
