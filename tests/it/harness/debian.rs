//! Debian as it is published for clouds, built once below the build directory: its disk, with a second kernel laid
//! aside, and from it the kernel and the initial ramdisk that its packages made.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use super::{once, slim};

/// Where the root file system begins on the disk: after the first MiB and GRUB's three.
const ROOT_OFFSET_BYTES: u32 = 4 << 20;

/// The files.
#[derive(Debug, Clone)]
pub(crate) struct Stock {
    /// The whole disk.
    pub disk: PathBuf,
    /// The bzImage that it boots.
    pub kernel: PathBuf,
    /// That one's ramdisk.
    pub initrd: PathBuf,
}

/// Makes them, or finds them.
pub(crate) fn stock() -> Result<Stock> {
    static MADE: OnceLock<std::result::Result<Stock, String>> = OnceLock::new();
    once(&MADE, make)
}

fn make() -> Result<Stock> {
    let disk = slim::image(&["--kind", "debian-generic", "--second-kernel"])?;
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("debian-boot");
    std::fs::create_dir_all(&directory).context("make the directory")?;
    let names = debugfs(&disk, "ls -p /boot")?;
    let file = |begin: &str| {
        // `/inode/mode/uid/gid/name/size/`
        let mut names = names.lines().filter_map(|line| line.split('/').nth(5));
        let name = names.find(|name| name.starts_with(begin)).with_context(|| format!("no {begin}"))?;
        let place = directory.join(begin.trim_end_matches('-'));
        debugfs(&disk, &format!("dump /boot/{name} {}", place.display()))?;
        Ok::<_, anyhow::Error>(place)
    };
    Ok(Stock { kernel: file("vmlinuz-")?, initrd: file("initrd.img-")?, disk })
}

/// A command on the root file system.
fn debugfs(disk: &Path, command: &str) -> Result<String> {
    let output = Command::new("/usr/sbin/debugfs")
        .args(["-R", command])
        .arg(format!("{}?offset={ROOT_OFFSET_BYTES}", disk.display()))
        .stdin(Stdio::null())
        .output()
        .context("run debugfs")?;
    let errors = String::from_utf8_lossy(&output.stderr);
    // It ends successfully whatever happened; its first line is its version.
    ensure!(errors.lines().count() <= 1, "debugfs: {errors}");
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
