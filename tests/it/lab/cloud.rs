//! A whole cloud in the lab, driven from outside by the real `openstack` command: a Linux server like any other, whose port
//! is a trunk's.

use std::io::{Seek as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::Value;

use super::{text, trunk};
use crate::harness::{
    Cloud, LAB_INSIDE, LAB_RELAY_PORT, Need, Stock, guest_image, isolate, stock, trial, within,
};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![trial(
        "lab::cloud::debian_server_is_reached_by_its_key_reboots_and_has_a_trunk",
        &[Need::Root, Need::Tun, Need::Lab, Need::Debian, Need::OpenStack],
        debian_server_is_reached_by_its_key_reboots_and_has_a_trunk,
    )]
}

/// Seconds a guest may take from its start until it answers: the machine is emulated twice over.
pub(super) const BOOT_SECONDS_MAX: u64 = 900;

/// A root file system for Debian's kernel.
pub(super) fn root_image(kernel: &Path) -> Result<PathBuf> {
    guest_image(&["--kind", "busybox", "--kernel", path(kernel)])
}

/// Debian's kernel and its own ramdisk as images, a root disk, a key pair: address by DHCP, key by metadata, a reboot
/// from inside, and VLANs of its device.
fn debian_server_is_reached_by_its_key_reboots_and_has_a_trunk() -> Result<()> {
    let files = tempfile::tempdir()?;
    let Stock { kernel, initrd, .. } = stock()?;
    let root = root_image(&kernel)?;
    // From now on Debian's packages cannot be reached.
    isolate()?;
    let cloud = Cloud::start_in_lab(2048)?;
    let key = prepare(&cloud, files.path())?;
    let upload = |name: &str, format: &str, file: &Path, more: &[&str]| -> Result<String> {
        let container = if format == "raw" { "bare" } else { format };
        let head = ["image", "create", name, "--disk-format", format, "--container-format", container];
        let tail = ["--file", path(file), "-f", "value", "-c", "id"];
        Ok(cloud.openstack(&[&head[..], more, &tail].concat())?.trim().to_owned())
    };
    let kernel = format!("kernel_id={}", upload("kernel", "aki", &kernel, &[])?);
    let ramdisk = format!("ramdisk_id={}", upload("ramdisk", "ari", &initrd, &[])?);
    let command_line = "os_command_line=root=/dev/vda rw quiet";
    let properties = ["--property", &kernel, "--property", &ramdisk, "--property", command_line];
    upload("debian", "raw", &root, &properties)?;
    cloud.openstack(&["flavor", "create", "debian", "--ram", "384", "--vcpus", "1", "--disk", "1"])?;
    // The first of all gets the address that the lab's relay leads to.
    cloud.openstack(&["port", "create", "--network", "public", "parent"])?;
    let trunked = trunk::make(&cloud, "parent")?;
    let create = ["server", "create", "--image", "debian", "--flavor", "debian", "--key-name", "key"];
    cloud.openstack(&[&create[..], &["--port", "parent", "--wait", "first"]].concat())?;
    let address = first_address(&cloud)?;
    let ssh = |command: &str| ssh(&key, "root", command);

    let first = within(BOOT_SECONDS_MAX, || ssh("cat /proc/sys/kernel/random/boot_id"))
        .with_context(|| console(&cloud, "first"))?;
    let said = ssh("hostname; nproc; uname -v; cat /sys/class/dmi/id/product_name; ip -4 -o address")?;
    for wanted in ["first\n1\n", "Debian", &address] {
        ensure!(said.contains(wanted), "no `{wanted}` in:\n{said}");
    }
    // The connection may break before the command has ended.
    let _ = ssh("reboot");
    let second = within(BOOT_SECONDS_MAX, || {
        let boot = ssh("cat /proc/sys/kernel/random/boot_id")?;
        ensure!(boot != first, "it has not rebooted yet");
        Ok(boot)
    })
    .with_context(|| console(&cloud, "first"))?;
    ensure!(second != first);
    trunked.carries_what_it_is_told(&key)?;

    trunked.delete()?;
    cloud.openstack(&["server", "delete", "--wait", "first"])?;
    Ok(())
}

fn first_address(cloud: &Cloud) -> Result<String> {
    let shown: Value = serde_json::from_str(&cloud.openstack(&["server", "show", "first", "-f", "json"])?)?;
    let address = shown["addresses"]["public"][0].as_str().context("the server has no address")?;
    Ok(address.to_owned())
}

/// A key pair of the cloud, the private half in a file; the default group lets ping and ssh in.
pub(super) fn prepare(cloud: &Cloud, files: &Path) -> Result<PathBuf> {
    let key = files.join("key");
    let mut keygen = Command::new("ssh-keygen");
    succeed(keygen.stdin(Stdio::null()).args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(&key))?;
    cloud.openstack(&["keypair", "create", "key", "--public-key", path(&key.with_extension("pub"))])?;
    for protocol in [&["icmp"][..], &["tcp", "--dst-port", "22"]] {
        cloud.openstack(
            &[&["security", "group", "rule", "create", "default", "--protocol"], protocol].concat(),
        )?;
    }
    Ok(key)
}

/// A server's console, or why it cannot be had.
pub(super) fn console(cloud: &Cloud, server: &str) -> String {
    cloud.openstack(&["console", "log", "show", server]).unwrap_or_else(|error| format!("{error:#}"))
}

/// Runs a command in the cloud's first server.
pub(super) fn ssh(key: &Path, user: &str, command: &str) -> Result<String> {
    ssh_saying(key, user, command, &[])
}

/// The same, with something to read.
pub(super) fn ssh_saying(key: &Path, user: &str, command: &str, input: &[u8]) -> Result<String> {
    let options = [
        "StrictHostKeyChecking=no",
        "UserKnownHostsFile=/dev/null",
        "ConnectTimeout=20",
        "ServerAliveInterval=30",
        "BatchMode=yes",
        "KexAlgorithms=curve25519-sha256",
    ];
    let mut ssh = Command::new("timeout");
    ssh.args(["900", "ssh", "-q", "-p", LAB_RELAY_PORT, "-i"]).arg(key);
    for option in options {
        ssh.args(["-o", option]);
    }
    let mut file = tempfile::tempfile().context("keep what is to be read")?;
    file.write_all(input)?;
    file.rewind()?;
    let output = succeed(ssh.arg(format!("{user}@{LAB_INSIDE}")).arg(command).stdin(file))?;
    Ok(text(&output.stdout).into_owned())
}

fn succeed(command: &mut Command) -> Result<Output> {
    let output = command.output().with_context(|| format!("run {command:?}"))?;
    let (said, errors) = (text(&output.stdout), text(&output.stderr));
    ensure!(output.status.success(), "{command:?}: {}\n{said}\n{errors}", output.status);
    Ok(output)
}

pub(super) fn path(path: &Path) -> &str {
    path.to_str().expect("a temporary path is text")
}
