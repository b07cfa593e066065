//! Slim guests, in the nested lab: kernel and image built by `wisp guest`, booted by the VMM from the disk alone,
//! reached over ssh with a key from the metadata service, powered off from inside.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::harness::{
    Cloud, Need, guest_cache, guest_image, lab_cache, once, preparation, prepare_slim_kernel, trial, wisp,
    wisp_in_background,
};

/// Boots a disk inside the lab.
const HOST: &str = include_str!("host.sh");

/// The images that are booted here, as options of `wisp guest image`.
const IMAGES: [&[&str]; 2] = [&["--kind", "busybox"], &["--kind", "debian"]];

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    let needs: &[Need] = &[Need::Lab, Need::SlimKernel];
    vec![
        trial("guests::busybox_is_reached_by_its_key_and_powers_off", needs, busybox),
        trial("guests::debian_with_systemd_is_reached_by_its_key_and_powers_off", needs, debian),
        trial("guests::demo_logs_in_to_a_slim_debian_and_leaves_nothing", needs, demo),
        trial(
            "guests::image_goes_up_as_qcow2_and_is_the_same_disk",
            &[Need::Root, Need::SlimKernel, Need::QemuImg, Need::OpenStack],
            goes_up,
        ),
        trial(
            "guests::images_are_built_again_with_the_same_bytes",
            needs,
            images_are_built_again_with_the_same_bytes,
        ),
        trial(
            "guests::configuration_of_the_other_kernel_holds",
            needs,
            configuration_of_the_other_kernel_holds,
        ),
    ]
}

/// Makes the kernel and the images, and begins to make the images again to compare them, while their packages can be
/// reached.
pub(crate) fn prepare() {
    prepare_slim_kernel();
    // What comes to nothing is said by the tests that need it.
    if IMAGES.into_iter().all(|options| guest_image(options).is_ok()) {
        preparation::AGAIN.begin(|| drop(verified()));
    }
}

fn busybox() -> Result<()> {
    let said = boot("busybox", "128", "hostname; cat /root/user-data; nproc; df -h / | tail -n 1")?;
    ensure!(said.contains("wisp: userland") && said.contains("wisp: network eth0 10.0.9.2"), "{said}");
    Ok(())
}

fn debian() -> Result<()> {
    let command = "hostname; cat /root/user-data; systemctl --failed --no-legend --plain; \
                   systemctl is-system-running --wait";
    let said = boot("debian", "512", command)?;
    ensure!(said.lines().any(|line| line == "running"), "{said}");
    Ok(())
}

/// The demo as its own sentence on a host with a software KVM gives it.
fn demo() -> Result<()> {
    let image = guest_image(&["--kind", "debian"])?;
    let mut lab = Command::new(wisp());
    lab.args(["lab", "--mem", "2048", "--timeout", "1800", "--cache"]).arg(lab_cache());
    lab.arg("--program").arg(program("ssh")?).arg("--disk").arg(format!("{},ro", image.display()));
    let output = succeed(lab.args(["--", "wisp", "demo", "--linux", "--image", "/dev/vda"]))?;
    let said = String::from_utf8_lossy(&output.stdout);
    for step in ["log in over ssh", "guest answers again", "take the cloud down"] {
        ensure!(said.lines().any(|line| line.starts_with("  ok") && line.contains(step)), "{step}:\n{said}");
    }
    ensure!(said.contains("Debian GNU/Linux 12 (bookworm), Linux 6."), "{said}");
    ensure!(said.contains("no link, no rule, no process, no file is left"), "{said}");
    Ok(())
}

/// An image made as qcow2 and uploaded by the same command is the disk that is made without.
fn goes_up() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let raw = guest_image(&["--kind", "busybox"])?;
    let cloud = Cloud::start_fake()?;
    let mut build = Command::new(wisp());
    build.args(["guest", "image", "--kind", "busybox", "--format", "qcow2", "--upload", "slim", "--cache"]);
    build.arg(guest_cache()).env("OS_CLIENT_CONFIG_FILE", cloud.clouds_yaml()).env("OS_CLOUD", "wisp");
    succeed(&mut build)?;
    let shown = cloud.openstack(&["image", "show", "slim", "-f", "json"])?;
    let shown: serde_json::Value = serde_json::from_str(&shown)?;
    ensure!(shown["status"] == "active" && shown["disk_format"] == "qcow2", "{shown}");
    let (up, back) = (path("up.qcow2"), path("back.img"));
    cloud.openstack(&["image", "save", "slim", "--file", &up.display().to_string()])?;
    succeed(Command::new("qemu-img").args(["check", "-q"]).arg(&up))?;
    succeed(Command::new("qemu-img").args(["convert", "-f", "qcow2", "-O", "raw"]).args([&up, &back]))?;
    succeed(Command::new("cmp").args([&raw, &back]))?;
    Ok(())
}

fn images_are_built_again_with_the_same_bytes() -> Result<()> {
    preparation::AGAIN.wait();
    verified()
}

/// Whether images that were built before, by another process, are the same when they are built again. It needs Debian's
/// packages, so it is found out before tests move their threads to where these cannot be reached.
fn verified() -> Result<()> {
    static VERIFIED: OnceLock<Result<(), String>> = OnceLock::new();
    once(&VERIFIED, verify)
}

fn verify() -> Result<()> {
    for options in IMAGES.into_iter().chain([&["--format", "qcow2"][..]]) {
        let mut build = wisp_in_background();
        let output =
            succeed(build.args(["guest", "image", "--verify", "--cache"]).arg(guest_cache()).args(options))?;
        let said = String::from_utf8_lossy(&output.stderr);
        ensure!(said.contains("the same bytes"), "{options:?}: {said}");
    }
    Ok(())
}

/// A kernel for many processors takes ten minutes to build, which is done by hand.
fn configuration_of_the_other_kernel_holds() -> Result<()> {
    let mut check = Command::new(wisp());
    check.args(["guest", "kernel", "--flavor", "smp", "--check", "--cache"]).arg(guest_cache());
    let output = succeed(&mut check)?;
    let said = String::from_utf8_lossy(&output.stderr);
    ensure!(said.contains("every line of the smp configuration holds"), "{said}");
    Ok(())
}

/// Builds an image, boots it, runs `command` in it, and checks what holds of every slim guest.
fn boot(kind: &str, memory_mib: &str, command: &str) -> Result<String> {
    let directory = tempfile::tempdir()?;
    let path = |name: &str| directory.path().join(name);
    let image = guest_image(&["--kind", kind])?;
    let mut keygen = Command::new("ssh-keygen");
    succeed(keygen.args(["-q", "-t", "ed25519", "-N", "", "-C", "test", "-f"]).arg(path("key")))?;
    std::fs::write(path("host.sh"), HOST)?;
    let mut lab = Command::new(wisp());
    lab.args(["lab", "--mem", "2048", "--module", "network", "--timeout", "600", "--cache"]).arg(lab_cache());
    lab.args(["--program", &program("ssh")?.display().to_string()]);
    for name in ["key", "key.pub", "host.sh"] {
        lab.arg("--file").arg(path(name));
    }
    lab.arg("--file").arg(format!("{}:disk.img", image.display()));
    lab.args(["--", "sh", "host.sh", "disk.img", memory_mib, command]);
    let output = succeed(&mut lab)?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    for line in ["slim", "user data ran", "vmm ended with 0"] {
        ensure!(said.lines().any(|found| found == line), "no line {line:?} in:\n{said}");
    }
    Ok(said)
}

fn program(name: &str) -> Result<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found =
        std::env::split_paths(&path).map(|directory| directory.join(name)).find(|path| path.is_file());
    found.with_context(|| format!("{name} is not installed"))
}

fn succeed(command: &mut Command) -> Result<Output> {
    let name = Path::new(command.get_program()).display().to_string();
    let output = command.stdin(Stdio::null()).output().with_context(|| format!("start {name}"))?;
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    ensure!(output.status.success(), "{name}: {}\n{text}", output.status);
    Ok(output)
}
