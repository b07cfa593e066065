//! The nested lab: commands in a host with hardware KVM that QEMU emulates, and guests that only such a host runs.

mod cloud;
mod container;
mod crypt;
mod generic;
mod linux;
mod network;
mod plug;
mod storage;
mod trunk;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

pub(crate) use self::storage::{INSIDE, inside};
use crate::harness::{Need, lab_cache, preparation, stock, trial, wisp};

/// The tests that take longer than many others together.
pub(crate) fn longest() -> Vec<Trial> {
    generic::trials()
}

/// All others.
pub(crate) fn trials() -> Vec<Trial> {
    let mut trials = linux::trials();
    trials.extend(cloud::trials());
    trials.extend(network::trials());
    trials.extend(plug::trials());
    trials.extend(storage::trials());
    trials.extend(container::trials());
    trials.extend(crypt::trials());
    trials.extend([
        trial("lab::command_ends_as_it_would_outside", &[Need::Lab], command_ends_as_it_would_outside),
        trial("lab::failures_of_the_lab_are_told_apart", &[Need::Lab], failures_of_the_lab_are_told_apart),
    ]);
    trials
}

/// Makes what guests in the lab need of Debian's packages.
pub(crate) fn prepare() {
    // What comes to nothing is said by the tests that need it.
    if let Ok(stock) = stock() {
        preparation::PARTITIONED.begin(|| drop(generic::disk_with_boot_partition()));
        let _ = cloud::root_image(&stock.kernel);
    }
}

/// How long a lab may take, in seconds: many times what it does by itself, since others run beside it.
const LAB_SECONDS_MAX: &str = "1500";

/// Runs a lab.
fn lab(options: &[&str], command: &[&str]) -> Result<Output> {
    lab_within(LAB_SECONDS_MAX, options, command)
}

fn lab_within(seconds: &str, options: &[&str], command: &[&str]) -> Result<Output> {
    Command::new(wisp())
        .args(["lab", "--timeout", seconds, "--cache"])
        .arg(lab_cache())
        .args(options)
        .arg("--")
        .args(command)
        .stdin(std::process::Stdio::null())
        .output()
        .context("run `wisp lab`")
}

fn text(bytes: &[u8]) -> std::borrow::Cow<'_, str> {
    String::from_utf8_lossy(bytes)
}

fn write(directory: &Path, name: &str, content: &str) -> Result<PathBuf> {
    let path = directory.join(name);
    std::fs::write(&path, content).with_context(|| format!("write {}", path.display()))?;
    Ok(path)
}

/// Output, errors, exit code, files both ways, a disk, a program, a module, KVM itself: all in one host.
fn command_ends_as_it_would_outside() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (input, output) =
        (write(directory.path(), "input", "brought in\n")?, directory.path().join("output"));
    let disk = write(directory.path(), "disk.img", &"d".repeat(4096))?;
    let script = "wisp doctor | grep -E 'KVM|hardware'; cat input >&2; cat input /dev/vda >/tmp/output; \
                  modprobe nf_tables && ip link add name br0 type bridge && ip link show br0 >/dev/null && exit 3";
    let bring = format!("/tmp/output:{}", output.display());
    let (input, disk) = (input.display().to_string(), format!("{},ro", disk.display()));
    let options = ["--file", &input, "--disk", &disk, "--bring", &bring, "--module", "vxlan"];
    let ran = lab(&options, &["sh", "-c", script])?;
    let (said, errors) = (text(&ran.stdout), text(&ran.stderr));
    ensure!(ran.status.code() == Some(3), "{}\n{said}\n{errors}", ran.status);
    ensure!(said.contains("API version 12") && said.contains("hardware"), "{said}\n{errors}");
    ensure!(errors.contains("brought in\n") && errors.contains("the command ended with 3"), "{errors}");
    let brought = std::fs::read_to_string(&output).context("read what was brought out")?;
    ensure!(brought == format!("brought in\n{}", "d".repeat(4096)), "{brought}");
    Ok(())
}

fn failures_of_the_lab_are_told_apart() -> Result<()> {
    let ran = lab(&["--module", "no_such"], &["true"])?;
    ensure!(ran.status.code() == Some(125), "{}", ran.status);
    ensure!(text(&ran.stderr).contains("has no module no_such"), "{}", text(&ran.stderr));
    let ran = lab_within("1", &[], &["sleep", "100"])?;
    ensure!(ran.status.code() == Some(124), "{}", ran.status);
    ensure!(text(&ran.stderr).contains("ran into its limit of 1 s (boot the host)"), "{}", text(&ran.stderr));
    let ran = lab(&["--bring", "/no/such:/dev/null"], &["true"])?;
    ensure!(ran.status.code() == Some(125), "{}", ran.status);
    ensure!(text(&ran.stderr).contains("/no/such cannot be brought out"), "{}", text(&ran.stderr));
    let ran = lab(&[], &["no-such-command"])?;
    ensure!(ran.status.code() == Some(127), "{}", ran.status);
    ensure!(text(&ran.stderr).contains("no-such-command: No such file"), "{}", text(&ran.stderr));
    ensure!(ran.stdout.is_empty(), "{}", text(&ran.stdout));
    Ok(())
}
