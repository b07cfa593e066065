//! The slim kernel: whether it can be built here. It is built once, below the build directory, and again only when its
//! configuration or Debian's source changes.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

use super::wisp;

/// Where guests are built.
pub(crate) fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("guests")
}

/// Whether there is a kernel: built at the first question, which takes minutes.
pub(super) fn ready() -> Result<()> {
    static READY: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    READY
        .get_or_init(|| build().map_err(|error| format!("{error:#}")))
        .clone()
        .map_err(|error| anyhow!(error))
}

fn build() -> Result<()> {
    let mut command = Command::new(wisp());
    let command = command.args(["guest", "kernel", "--cache"]).arg(cache()).stdin(Stdio::null());
    let output = command.output().context("run `wisp guest kernel`")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
