//! Debian as it is published for clouds, in a cloud in the lab: the VMM reads the disk's GRUB configuration at every
//! boot, and cloud-init makes the rest of what the cloud says.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use super::cloud::{self, BOOT_SECONDS_MAX, console, path, ssh};
use super::write;
use crate::harness::{Cloud, Need, guest_image, isolate, preparation, stock, trial, within};

/// The tests. They take five minutes of one processor each.
pub(super) fn trials() -> Vec<Trial> {
    let needs: &[Need] = &[Need::Root, Need::Tun, Need::Lab, Need::Debian, Need::OpenStack];
    vec![
        trial(
            "lab::generic::debian_with_cloud_init_changes_its_kernel_and_is_stopped",
            needs,
            debian_with_cloud_init_changes_its_kernel_and_is_stopped,
        ),
        trial(
            "lab::generic::debian_with_a_boot_partition_takes_all_from_its_configuration_drive",
            needs,
            debian_with_a_boot_partition_takes_all_from_its_configuration_drive,
        ),
    ]
}

/// An image of at most 1.2 GiB, a guest of 640 MiB, what it writes, and the cloud.
const LAB_MEMORY_MIB: u32 = 3072;
/// The user of Debian's cloud-init that the key is for.
const USER: &str = "debian";
/// For the server that one can log in to.
const REACHED: &str = "#cloud-config\nssh_genkeytypes: [ed25519]\n\
    write_files:\n  - path: /etc/hello\n    content: hello from user data\n";
/// For the server that says on its console what it found on its configuration drive, and powers itself off.
const SAYING: &str = "#cloud-config\nssh_genkeytypes: [ed25519]\n\
    runcmd:\n  - [sh, -c, '{ echo \"found $(hostname)\"; ip -4 -o address show scope global; ip route; \
    cat /home/debian/.ssh/authorized_keys; grep /boot /proc/mounts; grep -o DataSource.* /run/cloud-init/status.json | head -n 1; } >/dev/console']\n\
    power_state: {mode: poweroff}\n";
/// The network where nobody answers DHCP.
const STATIC_NETWORK: &str = "10.7.0.0/24";

/// The disk whose `/boot` is a partition of its own.
pub(super) fn disk_with_boot_partition() -> Result<PathBuf> {
    guest_image(&["--kind", "debian-generic", "--boot-partition"])
}

/// A server takes what the metadata service says. It gets another kernel, reboots into it, and shuts itself down when it
/// is stopped.
fn debian_with_cloud_init_changes_its_kernel_and_is_stopped() -> Result<()> {
    let files = tempfile::tempdir()?;
    let disk = stock()?.disk;
    // From now on Debian's packages cannot be reached.
    isolate()?;
    let cloud = Cloud::start_in_lab(LAB_MEMORY_MIB)?;
    let key = prepare_cloud(&cloud, &disk, files.path())?;
    create(&cloud, files.path(), REACHED, &["--network", "public", "first"])?;
    let ssh = |command: &str| ssh(&key, USER, command);

    let booted = || ssh("cat /proc/sys/kernel/random/boot_id");
    let first = within(BOOT_SECONDS_MAX, booted).with_context(|| console(&cloud, "first"))?;
    initialised(&ssh)?;
    let kernel = ssh("uname -r")?;
    let change = "sudo mv /var/lib/second-kernel/* /boot && sudo update-grub && ls /boot/vmlinuz-*";
    let kernels = ssh(change)?;
    ensure!(kernels.lines().filter(|line| line.starts_with("/boot/vmlinuz-")).count() == 2, "{kernels}");
    // The connection may break before the command has ended.
    let _ = ssh("sudo reboot");
    within(BOOT_SECONDS_MAX, || {
        ensure!(booted()? != first, "it has not rebooted yet");
        Ok(())
    })
    .with_context(|| console(&cloud, "first"))?;
    let other = ssh("uname -r; cat /etc/hello; hostname")?;
    ensure!(
        !other.starts_with(&kernel) && kernels.contains(other.lines().next().unwrap_or_default()),
        "{other}"
    );
    ensure!(other.ends_with("hello from user datafirst\n"), "{other}");

    cloud.openstack(&["server", "stop", "first"])?;
    shut_off(&cloud, "first")?;
    let said = console(&cloud, "first");
    ensure!(said.contains("reboot: Power down"), "it was stopped, and did not shut itself down:\n{said}");
    cloud.openstack(&["server", "delete", "--wait", "first"])?;
    Ok(())
}

/// A server whose disk has a partition for `/boot` takes what a configuration drive says, on a network without DHCP.
fn debian_with_a_boot_partition_takes_all_from_its_configuration_drive() -> Result<()> {
    let files = tempfile::tempdir()?;
    preparation::PARTITIONED.wait();
    let disk = disk_with_boot_partition()?;
    isolate()?;
    let cloud = Cloud::start_in_lab(LAB_MEMORY_MIB)?;
    let key = prepare_cloud(&cloud, &disk, files.path())?;
    cloud.openstack(&["network", "create", "static"])?;
    let subnet = ["--network", "static", "--no-dhcp", "--subnet-range", STATIC_NETWORK, "static"];
    cloud.openstack(&[&["subnet", "create"][..], &subnet].concat())?;
    create(&cloud, files.path(), SAYING, &["--network", "static", "--use-config-drive", "second"])?;

    shut_off(&cloud, "second")?;
    let said = console(&cloud, "second");
    let public = std::fs::read_to_string(key.with_extension("pub"))?;
    let address = "inet 10.7.0.";
    let boot = "/dev/vda16 /boot ext4";
    let all =
        ["found second", address, "default via 10.7.0.1 ", public.trim(), boot, "DataSourceConfigDrive"];
    for wanted in all {
        ensure!(said.contains(wanted), "no `{wanted}` in:\n{said}");
    }
    cloud.openstack(&["server", "delete", "--wait", "second"])?;
    Ok(())
}

/// A key pair, the disk as an image, and a flavor.
fn prepare_cloud(cloud: &Cloud, disk: &Path, files: &Path) -> Result<PathBuf> {
    let key = cloud::prepare(cloud, files)?;
    let raw = ["--disk-format", "raw", "--container-format", "bare", "--file", path(disk), "debian"];
    cloud.openstack(&[&["image", "create"][..], &raw].concat())?;
    cloud.openstack(&["flavor", "create", "debian", "--ram", "640", "--vcpus", "1", "--disk", "2"])?;
    Ok(key)
}

/// A server, which need not be there yet.
fn create(cloud: &Cloud, files: &Path, user_data: &str, more: &[&str]) -> Result<()> {
    let user_data = write(files, "user-data", user_data)?;
    let head = ["server", "create", "--image", "debian", "--flavor", "debian", "--key-name", "key"];
    cloud.openstack(&[&head[..], &["--user-data", path(&user_data)], more].concat()).map(drop)
}

/// cloud-init has done all it was told, from the one source of data that it looked for.
fn initialised(ssh: &impl Fn(&str) -> Result<String>) -> Result<()> {
    let said = ssh(
        "cloud-init status --wait --long; cat /etc/hello; echo; hostname; nproc; df --output=size -m / | tail -n 1; \
         cat /run/cloud-init/result.json; sudo grep -h datasource: /run/cloud-init/ds-identify.log; \
         sudo grep -h 'Found single' /run/cloud-init/ds-identify.log; cat /sys/class/dmi/id/product_name; \
         sudo grep -E 'get any data from|WARNING|Giving up|Traceback' /var/log/cloud-init.log",
    )?;
    let all = [
        "status: done",
        "hello from user data",
        "first\n1\n",
        "OpenStack Nova",
        "Found single datasource: OpenStack",
        "\"datasource\": \"DataSourceOpenStackLocal [net,ver=2]\"",
    ];
    for wanted in all {
        ensure!(said.contains(wanted), "no `{wanted}` in:\n{said}");
    }
    // It has not waited for another.
    ensure!(said.matches("get any data from").count() == 1, "{said}");
    for complaint in ["WARNING", "Giving up", "Traceback"] {
        ensure!(!said.contains(complaint), "`{complaint}` in:\n{said}");
    }
    // The root has grown from the image's size to the disk's.
    let size = said.lines().find_map(|line| line.trim().parse::<u32>().ok().filter(|size| *size > 2));
    ensure!(size.is_some_and(|size| size > 1700), "the root has {size:?} MiB:\n{said}");
    Ok(())
}

/// Waits until a server is off.
fn shut_off(cloud: &Cloud, server: &str) -> Result<()> {
    within(BOOT_SECONDS_MAX, || {
        let status = cloud.openstack(&["server", "show", server, "-f", "value", "-c", "status"])?;
        ensure!(status.trim() == "SHUTOFF", "{server} is {status}");
        Ok(())
    })
    .with_context(|| console(cloud, server))
}
