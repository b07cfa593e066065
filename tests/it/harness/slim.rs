//! The slim kernel: whether it can be built here. It is built once, below the build directory, and again only when its
//! configuration or Debian's source changes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use super::{once, wisp, wisp_before_others};

/// Where guests are built.
pub(crate) fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests")
}

/// Builds an image with these options of `wisp guest image`, or finds it where it was built before. The first time
/// needs Debian's packages.
pub(crate) fn image(options: &[&str]) -> Result<PathBuf> {
    let path = cache().join(format!("{}.img", options.join("").replace(['/', '-'], "")));
    let mut command = wisp_before_others();
    command.args(["guest", "image", "--cache"]).arg(cache()).args(options).arg(&path).stdin(Stdio::null());
    let output = command.output().context("run `wisp guest image`")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(path)
}

/// The kernel, in a file of this directory.
pub(crate) fn kernel(directory: &Path) -> Result<PathBuf> {
    let path = directory.join("vmlinux");
    let mut command = Command::new(wisp());
    command.args(["guest", "kernel", "--cache"]).arg(cache()).arg("--out").arg(&path).stdin(Stdio::null());
    let output = command.output().context("run `wisp guest kernel`")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(path)
}

/// Whether there is a kernel: built at the first question, which takes minutes.
pub(super) fn ready() -> Result<()> {
    static READY: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    once(&READY, build)
}

fn build() -> Result<()> {
    let mut command = Command::new(wisp());
    let command = command.args(["guest", "kernel", "--cache"]).arg(cache()).stdin(Stdio::null());
    let output = command.output().context("run `wisp guest kernel`")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
