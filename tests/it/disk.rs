//! Whole disks without firmware: the tiny guest as the kernel of a disk with partitions, a filesystem and GRUB's
//! configuration, by itself and through the cloud.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::demo::ping::Pinger;
use libtest_mimic::Trial;

use crate::booted::{self, export, refused};
use crate::harness::{Cloud, Need, NewServer, isolate, trial};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "disk::kernel_on_a_partition_boots_and_each_boot_reads_the_disk_anew",
            &[Need::Kvm, Need::DiskTools],
            kernel_on_a_partition_boots,
        ),
        trial("disk::firmware_is_entered_by_pvh_or_refused", &[Need::Kvm], firmware_is_entered),
        trial("disk::disk_that_boots_nothing_says_why", &[Need::Kvm], disk_that_boots_nothing),
        trial(
            "disk::image_with_partitions_boots_in_the_cloud",
            &[Need::Root, Need::Kvm, Need::Tun, Need::DiskTools],
            image_with_partitions_boots_in_the_cloud,
        ),
    ]
}

/// The first byte of the partition.
const PARTITION_START: u64 = 1 << 20;

/// A disk of 24 MiB with a GPT, ext4 on its one partition, and the tiny guest as the kernel of GRUB's entries.
fn disk(directory: &Path, default: &str) -> Result<std::path::PathBuf> {
    let tree = directory.join("tree");
    let (disk, filesystem) = (directory.join("disk.img"), directory.join("filesystem.img"));
    std::fs::create_dir_all(tree.join("boot/grub"))?;
    let kernel = tree.join("boot/vmlinuz-1");
    export(&kernel)?;
    let script = format!(
        "set default={default}\nmenuentry One --id one {{\n  linux /boot/vmlinuz-1 root=/dev/vda1\n}}\n\
         menuentry Two --id two {{\n  linux /boot/vmlinuz-2\n}}\n"
    );
    std::fs::write(tree.join("boot/grub/grub.cfg"), script)?;
    std::fs::File::create(&filesystem)?.set_len(16 << 20)?;
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(&tree).arg(&filesystem))?;
    let file = std::fs::File::create(&disk)?;
    file.set_len(24 << 20)?;
    let table = directory.join("table");
    std::fs::write(&table, "label: gpt\nstart=2048, size=32768\n")?;
    let mut sfdisk = Command::new("sfdisk");
    run(sfdisk
        .args(["--quiet", "--no-reread", "--no-tell-kernel"])
        .arg(&disk)
        .stdin(std::fs::File::open(table)?))?;
    std::os::unix::fs::FileExt::write_all_at(&file, &std::fs::read(&filesystem)?, PARTITION_START)?;
    Ok(disk)
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdout(Stdio::null()).output().with_context(|| format!("run {command:?}"))?;
    ensure!(output.status.success(), "{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// `wisp vmm boot` of a disk; a guest that boots idles until the time is over.
fn boot(disk: &Path) -> Result<Output> {
    let disk = disk.display().to_string();
    booted::run("5", &["vmm", "boot", "--mem", "64", "--disk", &disk])
}

fn kernel_on_a_partition_boots() -> Result<()> {
    let files = tempfile::tempdir()?;
    let output = boot(&disk(files.path(), "one")?)?;
    let (shown, errors) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(shown.starts_with("WISP-GUEST"), "the guest does not boot: {shown:?} {errors}");
    let output = boot(&disk(files.path(), "two")?)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && output.stdout.is_empty(), "it boots: {errors}");
    let says = "the kernel /boot/vmlinuz-2 is not on partition 1 (ext4)";
    ensure!(errors.contains(says) && errors.contains("`Two`"), "it does not say why: {errors}");
    Ok(())
}

fn firmware_is_entered() -> Result<()> {
    let files = tempfile::tempdir()?;
    let (firmware, disk) = (files.path().join("firmware"), files.path().join("disk.img"));
    export(&firmware)?;
    std::fs::write(&disk, vec![0; 1 << 20])?;
    let boot = |firmware: &Path| {
        let (firmware, disk) = (firmware.display().to_string(), disk.display().to_string());
        booted::run("5", &["vmm", "boot", "--mem", "64", "--firmware", &firmware, "--disk", &disk])
    };
    let output = boot(&firmware)?;
    ensure!(output.stdout.starts_with(b"WISP-GUEST"), "{}", String::from_utf8_lossy(&output.stderr));
    let output = boot(&disk)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && errors.contains("the firmware has to be an ELF image"), "{errors}");
    Ok(())
}

fn disk_that_boots_nothing() -> Result<()> {
    let files = tempfile::tempdir()?;
    let path = files.path().join("disk.img");
    std::fs::write(&path, vec![0; 1 << 20])?;
    let output = boot(&path)?;
    let errors = String::from_utf8_lossy(&output.stderr);
    ensure!(!output.status.success() && errors.contains("no partition table"), "{}: {errors}", output.status);
    refused(&["boot"]).context("neither a kernel nor a disk is needed")?;
    Ok(())
}

fn image_with_partitions_boots_in_the_cloud() -> Result<()> {
    isolate()?;
    let files = tempfile::tempdir()?;
    let image = std::fs::read(disk(files.path(), "one")?)?;
    let (cloud, rest, network) = Cloud::start_open()?;
    let image = cloud.image(&rest, "whole disk", &image)?;
    let new = NewServer { name: "whole", image: &image, flavor: "m1.nano", network: &network, user_data: "" };
    let server = cloud.server(&rest, &new)?;
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    let address = cloud.address(&rest, &server)?;
    let answered = Pinger::open(address)?.until_answer(Duration::from_secs(30))?;
    answered.with_context(|| format!("{address} does not answer"))?;
    // The process's second life reads the same disk.
    let path = format!("/compute/v2.1/servers/{server}/action");
    let (code, body) = rest.post(&path, &serde_json::json!({"reboot": {"type": "HARD"}}))?;
    ensure!(code == 202, "reboot: {code} {body}");
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    let answered = Pinger::open(address)?.until_answer(Duration::from_secs(30))?;
    answered.with_context(|| format!("{address} does not answer after the reboot"))?;
    Ok(())
}
