//! The commands of the binary that need no cloud, and the demo, each as its user runs it.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::booted::{Ended, Files, Guest, booting, run, vmm};
use crate::harness::{Need, ip, isolate, trial, wisp, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "commands::demo_holds_every_step_and_leaves_nothing",
            DEMO,
            demo_holds_every_step_and_leaves_nothing,
        ),
        trial(
            "commands::vmm_boot_shows_the_console_and_nothing_else",
            &[Need::Kvm],
            vmm_boot_shows_the_console,
        ),
        trial(
            "commands::vmm_boot_refuses_a_broken_kernel_in_one_sentence",
            &[Need::Kvm],
            vmm_boot_refuses_a_broken_kernel,
        ),
        trial(
            "commands::guest_goes_on_from_a_snapshot_and_from_differences_to_it",
            &[Need::Kvm],
            guest_goes_on_from_a_snapshot,
        ),
        trial(
            "commands::devices_of_a_guest_are_as_its_options_say_until_it_is_stopped",
            DEMO,
            devices_are_as_options_say,
        ),
        trial(
            "commands::nobody_has_to_hear_what_a_command_says",
            &[Need::Kvm],
            nobody_has_to_hear_what_is_said,
        ),
        trial(
            "commands::guest_without_a_descriptor_left_answers_when_it_has_one_and_says_so_once",
            &[Need::Root, Need::Kvm],
            guest_without_a_descriptor_left,
        ),
        trial(
            "commands::guest_is_made_in_the_place_of_regular_files_alone",
            &[],
            guest_is_made_in_the_place_of_regular_files_alone,
        ),
        trial("commands::exported_guest_is_an_elf", &[], exported_guest_is_an_elf),
        trial("commands::up_refuses_an_open_address_without_tls", &[], up_refuses_an_open_address),
        trial("commands::doctor_names_every_ability", &[], doctor_names_every_ability),
        trial("commands::help_teaches", &[], help_teaches),
    ]
}

const DEMO: &[Need] = &[Need::Root, Need::Kvm, Need::Tun];

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn demo_holds_every_step_and_leaves_nothing() -> Result<()> {
    isolate()?;
    let output = run("180", &["demo"])?;
    let (shown, errors) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{}\n{shown}\n{errors}", output.status);
    for step in
        ["guest answers a ping", "fetch a page from it", "no link, no rule, no process, no file is left"]
    {
        ensure!(shown.contains(step), "the demo does not show `{step}`:\n{shown}");
    }
    Ok(())
}

fn vmm_boot_shows_the_console() -> Result<()> {
    let files = Files::new()?;
    let output = run("5", &["vmm", "boot", "--kernel", &files.path("tiny.elf"), "--mem", "64"])?;
    let (shown, errors) = (text(&output.stdout), text(&output.stderr));
    ensure!(
        shown.starts_with("WISP-GUEST"),
        "the console does not begin with WISP-GUEST: {shown:?} {errors}"
    );
    Ok(())
}

fn guest_goes_on_from_a_snapshot() -> Result<()> {
    let files = Files::new()?;
    let path = |name: &str| files.path(name);
    let (kernel, socket) = (path("tiny.elf"), path("socket"));
    let _ended = Ended(PathBuf::from(&socket));
    // Without a time limit around it: that would be what is killed, and the guest would stay.
    let mut boot = booting(&["--kernel", &kernel, "--mem", "64", "--control", &socket]);
    // As many as a guest is promised, of which this one uses one.
    let mut guest = Guest::start(boot.args(["--cpus", "32"]).stdout(Stdio::piped()))?;
    let mut console = BufReader::new(guest.0.stdout.take().context("the console")?).lines();
    ensure!(console.any(|line| line.is_ok_and(|line| line.starts_with("ready"))), "the guest is not ready");

    let asked = |arguments: &[&str]| -> Result<String> {
        let output = run("30", &[&["vmm"], arguments].concat())?;
        ensure!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        Ok(text(&output.stdout))
    };
    let (full, more) = (path("full"), path("more"));
    let refused = run("30", &["vmm", "snapshot", &socket, &more, "--diff"])?;
    ensure!(text(&refused.stderr).contains("take a full snapshot"), "{}", text(&refused.stderr));
    ensure!(!std::path::Path::new(&more).exists() && std::fs::read_dir(path(""))?.count() == 2, "left over");
    let said = asked(&["snapshot", &socket, &full, "--track", "--pause"])?;
    ensure!(said.contains("KiB of memory; the guest stands still"), "{said}");
    asked(&["resume", &socket])?;
    let said = asked(&["snapshot", &socket, &more, "--diff"])?;
    ensure!(said.contains("the guest stood still for"), "{said}");
    let said = asked(&["snapshot-info", &more, "--verify"])?;
    ensure!(said.contains("the differences to") && said.contains("64 MiB"), "{said}");
    let vcpus = said.lines().find(|line| line.contains("vCPUs")).context("its processors")?;
    ensure!(vcpus.contains("32"), "{vcpus}");
    asked(&["pause", &socket])?;
    drop(guest);

    for snapshots in [&[&full][..], &[&full, &more]] {
        let restore = snapshots.iter().flat_map(|snapshot| ["--restore", snapshot]);
        let arguments: Vec<&str> = ["vmm", "boot"].into_iter().chain(restore).collect();
        let output = run("3", &arguments)?;
        let (shown, errors) = (text(&output.stdout), text(&output.stderr));
        ensure!(shown.starts_with("generation: "), "it does not go on: {shown:?} {errors}");
    }
    let output = run("20", &["vmm", "boot", "--restore", &more])?;
    ensure!(text(&output.stderr).contains("what comes before it is nothing"), "{}", text(&output.stderr));
    Ok(())
}

fn devices_are_as_options_say() -> Result<()> {
    isolate()?;
    ["t0", "t1"].iter().try_for_each(|tap| ip(&format!("tuntap add mode tap vnet_hdr {tap}")))?;
    let files = Files::new()?;
    let path = |name: &str| files.path(name);
    let (kernel, socket, disk, other) = (path("tiny.elf"), path("socket"), path("disk"), path("other"));
    let _ended = Ended(PathBuf::from(&socket));
    [&disk, &other].into_iter().try_for_each(|file| std::fs::File::create_new(file)?.set_len(1 << 20))?;
    let boot = ["--kernel", &kernel, "--mem", "64", "--control", &socket, "--transport", "pci"];
    let disk_option = format!("{disk},serial=first,read-iops=1000:10,total-bytes=100000000");
    let tap = "t0,mac=02:00:00:00:00:07,mtu=1400,to-guest-packets=100,from-guest-bytes=1000000:2000";
    for (twice, why) in [
        (["--disk", &disk, "--disk", &format!("{other},serial=disk0")], "serial number"),
        (["--tap", tap, "--tap", "t1,mac=02:00:00:00:00:07"], "MAC address"),
    ] {
        let output = run("20", &[&["vmm", "boot"], &boot[..], &twice].concat())?;
        let said = text(&output.stderr);
        ensure!(!output.status.success() && said.contains(&format!("have the same {why}")), "{said}");
    }
    let mut boot = booting(&boot);
    boot.args(["--disk", &disk_option, "--tap", tap]).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut guest = Guest::start(&mut boot)?;
    let mut console = BufReader::new(guest.0.stdout.take().context("the console")?).lines();
    let mut heard = Vec::new();
    while !heard.last().is_some_and(|line: &String| line.starts_with("net: ")) {
        heard.push(console.next().context("the guest ended")??);
    }
    let heard = heard.join("\n");
    ensure!(heard.contains("serial first") && heard.contains("net: mac 02:00:00:00:00:07"), "{heard}");

    let asked = |arguments: &[&str]| run("30", &[&["vmm"], arguments].concat());
    let said = asked(&["limit-nic", &socket, "02:00:00:00:00:07,from-guest-packets=50:5"])?;
    ensure!(said.status.success(), "{}", text(&said.stderr));
    let status = text(&asked(&["status", &socket])?.stdout);
    ensure!(status.contains("nic 02:00:00:00:00:07 held to from-guest-packets=50:5\n"), "{status}");
    let said = asked(&["limit-nic", &socket, "02:00:00:00:00:08"])?;
    ensure!(text(&said.stderr).contains("no network device has that MAC address"), "{}", text(&said.stderr));
    let said = asked(&["limit-disk", &socket, "first,write-bytes=1000000:2000,read-iops=5"])?;
    ensure!(said.status.success(), "{}", text(&said.stderr));
    let held = "disk first           held to read-iops=5,write-bytes=1000000:2000\n";
    let status = text(&asked(&["status", &socket])?.stdout);
    ensure!(status.contains(held), "{status}");
    let said = asked(&["limit-disk", &socket, "first"])?;
    ensure!(said.status.success(), "{}", text(&said.stderr));
    let status = text(&asked(&["status", &socket])?.stdout);
    ensure!(!status.contains("disk first           held to"), "{status}");
    let said = asked(&["limit-disk", &socket, "second,read-iops=5"])?;
    ensure!(text(&said.stderr).contains("there is no such disk"), "{}", text(&said.stderr));
    let said = asked(&["attach-nic", &socket, "t1,mtu=1300,mac=02:00:00:00:00:09"])?;
    ensure!(text(&said.stdout) == "02:00:00:00:00:09\n", "{}", text(&said.stderr));
    for words in [&["attach-disk", &socket, &disk][..], &["boot", "--kernel", &kernel, "--disk", &disk]] {
        let said = asked(words)?;
        ensure!(!said.status.success() && text(&said.stderr).contains("is in use"), "{}", text(&said.stderr));
    }
    let said = asked(&["attach-disk", &socket, &other, "--serial", &"x".repeat(21)])?;
    ensure!(text(&said.stderr).contains("at most 20 bytes"), "{}", text(&said.stderr));
    for words in [
        &["attach-disk", &socket, &other][..],
        &["resize-disk", &socket, &other],
        &["detach", &socket, "other"],
    ] {
        std::fs::File::options().append(true).open(&other)?.write_all(&[0; 4096])?;
        let said = asked(words)?;
        ensure!(said.status.success(), "{words:?}: {}", text(&said.stderr));
        let said = asked(&["flatten-disk", &other, &path("flat"), "--base", &disk])?;
        let is_in_use = text(&said.stderr).contains(&format!("{other} is in use"));
        ensure!(is_in_use == (words[0] != "detach"), "{words:?}: {}", text(&said.stderr));
    }
    let status = text(&asked(&["status", &socket])?.stdout);
    for shown in
        ["running", "disk first           queue 0: ", "nic 02:00:00:00:00:09 pairs", "entropy source"]
    {
        ensure!(status.contains(shown), "{shown:?} is not in {status}");
    }
    ensure!(asked(&["stop", &socket])?.status.success(), "stop the guest");
    let output = guest.output()?;
    let said = text(&output.stderr);
    ensure!(output.status.success() && said.contains("the guest powered itself off"), "{said}");
    Ok(())
}

fn nobody_has_to_hear_what_is_said() -> Result<()> {
    let files = Files::new()?;
    let path = |name: &str| files.path(name);
    let (kernel, socket) = (path("tiny.elf"), path("socket"));
    let _ended = Ended(PathBuf::from(&socket));
    let boot = || booting(&["--kernel", &kernel, "--mem", "64", "--control", &socket]);
    let mut guest = Guest::start(boot().stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let mut console = BufReader::new(guest.0.stdout.take().context("the console")?);
    console.read_line(&mut String::new())?;
    drop((console, guest.0.stderr.take()));
    for command in ["status", "devices"] {
        let mut asked = Command::new(wisp());
        asked.args(["vmm", command, &socket]).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut asked = asked.spawn()?;
        drop(asked.stdout.take());
        let output = asked.wait_with_output()?;
        ensure!(output.status.success() && output.stderr.is_empty(), "{command}: {}", text(&output.stderr));
        let full = std::fs::File::options().write(true).open("/dev/full")?;
        let output = Command::new(wisp()).args(["vmm", command, &socket]).stdout(full).output()?;
        let said = text(&output.stderr);
        let wanted =
            command == "devices" || said.starts_with("wisp: write to standard output: No space left");
        ensure!(wanted && !said.contains("panicked"), "{command}: {said}");
    }
    ensure!(run("20", &["vmm", "stop", &socket])?.status.success(), "stop the guest");
    let status = guest.ended()?;
    ensure!(status.success(), "it ended by {status}");

    // Nor does a guest that talks all the time stand still for a reader who has stopped.
    let mut boot = boot();
    boot.args(["--cmdline", "say=20", "--upgradable"]).stdout(Stdio::piped()).stderr(Stdio::null());
    let mut guest = Guest::start(&mut boot)?;
    let console = guest.0.stdout.take().context("the console")?;
    let deadline = Instant::now() + Duration::from_secs(60);
    while rustix::io::ioctl_fionread(&console)? < 60 << 10 {
        ensure!(Instant::now() < deadline, "the guest says too little");
        std::thread::sleep(Duration::from_millis(10));
    }
    let still_running = || -> Result<()> {
        let said = run("20", &["vmm", "status", &socket])?;
        ensure!(text(&said.stdout).starts_with("running"), "{}", text(&said.stderr));
        Ok(())
    };
    still_running()?;
    // Nor does it in the next process that has it.
    let said = run("20", &["vmm", "upgrade", &socket])?;
    ensure!(said.status.success(), "{}", text(&said.stderr));
    guest.ended()?;
    still_running()?;
    ensure!(run("20", &["vmm", "stop", &socket, "--force"])?.status.success(), "stop the guest");
    Ok(())
}

fn vmm_boot_refuses_a_broken_kernel() -> Result<()> {
    let files = tempfile::tempdir()?;
    for (name, bytes) in [
        ("empty", Vec::new()),
        ("text", b"not a kernel at all".repeat(100)),
        ("elf", b"\x7fELF\x02\x01\x01".repeat(99)),
    ] {
        let path = files.path().join(name);
        std::fs::write(&path, bytes)?;
        let output = run("30", &["vmm", "boot", "--kernel", path.to_str().context("path")?])?;
        let errors = text(&output.stderr);
        ensure!(
            !output.status.success() && output.stdout.is_empty(),
            "{name}: {} {}",
            output.status,
            text(&output.stdout)
        );
        ensure!(!errors.trim().is_empty() && !errors.contains("panicked"), "{name}: {errors}");
    }
    Ok(())
}

fn exported_guest_is_an_elf() -> Result<()> {
    let files = tempfile::tempdir()?;
    let path = files.path().join("tiny.elf");
    let output = run("20", &["guest", "export", "tiny", path.to_str().context("path")?])?;
    ensure!(output.status.success(), "{}", text(&output.stderr));
    ensure!(std::fs::read(&path)?.starts_with(b"\x7fELF"), "no ELF");
    Ok(())
}

fn up_refuses_an_open_address() -> Result<()> {
    let files = tempfile::tempdir()?;
    let state = files.path().join("state");
    let arguments =
        ["up", "--driver", "fake", "--listen", "0.0.0.0:0", "--state", state.to_str().context("path")?];
    let output = run("20", &arguments)?;
    ensure!(!output.status.success(), "it was not refused");
    ensure!(
        text(&output.stderr).contains("--insecure"),
        "the way out is not named: {}",
        text(&output.stderr)
    );
    Ok(())
}

fn doctor_names_every_ability() -> Result<()> {
    let shown = text(&run("60", &["doctor"])?.stdout);
    let words = [
        "KVM",
        "tun",
        "bridge",
        "VXLAN",
        "VLAN",
        "nftables",
        "conntrack",
        "io_uring",
        "userfaultfd",
        "reflink",
        "cgroups",
        "namespaces",
    ];
    for word in words {
        ensure!(shown.to_lowercase().contains(&word.to_lowercase()), "doctor does not name {word}:\n{shown}");
    }
    Ok(())
}

fn help_teaches() -> Result<()> {
    let shown = text(&run("20", &["--help"])?.stdout);
    for command in ["up", "down", "doctor", "demo", "vmm", "guest"] {
        ensure!(shown.contains(command), "--help does not name {command}:\n{shown}");
    }
    for command in [
        &["up", "--help"][..],
        &["down", "--help"],
        &["vmm", "boot", "--help"],
        &["vmm", "snapshot", "--help"],
        &["guest", "export", "--help"],
    ] {
        let output = run("20", command)?;
        ensure!(output.status.success() && output.stdout.len() > 200, "{command:?} says little");
    }
    Ok(())
}

fn guest_without_a_descriptor_left() -> Result<()> {
    let files = Files::new()?;
    let (control, errors) = (files.path("control"), files.path("errors"));
    let mut boot = booting(&["--kernel", &files.path("tiny.elf"), "--control", &control]);
    let guest = Guest::start(boot.stderr(File::create(&errors)?))?;
    within(30, || vmm(&["status", &control]))?;
    let id = guest.0.id();
    let limit = |limit| {
        let pid = rustix::process::Pid::from_raw(id.cast_signed());
        Ok::<_, anyhow::Error>(rustix::process::prlimit(pid, rustix::process::Resource::Nofile, limit)?)
    };
    let open = std::fs::read_dir(format!("/proc/{id}/fd"))?
        .map(|fd| Ok(fd?.file_name().to_string_lossy().parse()?))
        .collect::<Result<BTreeSet<u64>>>()?;
    let free = (0..).find(|fd| !open.contains(fd));
    let before = rustix::process::Rlimit { current: free, maximum: None };
    let before = limit(rustix::process::Rlimit { maximum: limit_of(id)?, ..before })?;
    let mut status = Command::new(wisp());
    let status = status.args(["vmm", "status", &control]).stdout(Stdio::piped()).spawn()?;
    let warnings = || {
        let said = std::fs::read_to_string(&errors)?;
        Ok::<_, anyhow::Error>(said.matches("cannot take who connects").count())
    };
    within(30, || {
        ensure!(warnings()? > 0, "nothing is said");
        Ok(())
    })?;
    limit(before)?;
    let status = status.wait_with_output()?;
    let said = String::from_utf8_lossy(&status.stdout);
    ensure!(status.status.success() && said.starts_with("running"), "{said}");
    ensure!(warnings()? == 1, "it is said again and again");
    Ok(())
}

/// The hard limit of a process's descriptors.
fn limit_of(id: u32) -> Result<Option<u64>> {
    let limits = std::fs::read_to_string(format!("/proc/{id}/limits"))?;
    let line = limits.lines().find(|line| line.starts_with("Max open files")).context("no limit")?;
    Ok(line.split_whitespace().nth(4).and_then(|hard| hard.parse().ok()))
}

fn guest_is_made_in_the_place_of_regular_files_alone() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let socket = directory.path().join("socket").display().to_string();
    let _listens = std::os::unix::net::UnixListener::bind(&socket)?;
    for words in [&["guest", "image", &socket][..], &["guest", "kernel", "--out", &socket]] {
        let output = run("20", words)?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(!output.status.success() && said.contains("is no regular file"), "{words:?}: {said}");
    }
    Ok(())
}
