//! The nested lab: whether it runs here. Its packages are downloaded once, below the build directory.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use super::{once, wisp};

/// Where the lab keeps its packages.
pub(crate) fn cache() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("lab")
}

/// Whether a lab runs: tried once, with a command that does nothing.
pub(super) fn ready() -> Result<()> {
    static READY: OnceLock<std::result::Result<(), String>> = OnceLock::new();
    once(&READY, attempt)
}

fn attempt() -> Result<()> {
    let output = Command::new(wisp())
        .args(["lab", "--quiet", "--cache"])
        .arg(cache())
        .args(["--", "true"])
        .stdin(Stdio::null())
        .output()
        .context("run `wisp lab`")?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr).trim());
    Ok(())
}
