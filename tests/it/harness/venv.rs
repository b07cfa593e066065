//! The real `openstack` command, from PyPI, in a virtual environment below the build directory. Made once; a second
//! run finds it.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, anyhow, ensure};

/// What is installed: the newest that the tests were written against.
const PACKAGES: [&str; 1] = ["python-openstackclient==10.5.0"];
/// Seconds one step may take.
const STEP_SECONDS_MAX: &str = "600";

/// The path of the command.
pub(super) fn openstack() -> Result<&'static Path> {
    static MADE: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    MADE.get_or_init(|| make().map_err(|error| format!("{error:#}")))
        .as_deref()
        .map_err(|error| anyhow!("{error}"))
}

fn make() -> Result<PathBuf> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("openstack-10.5.0");
    let command = directory.join("bin/openstack");
    let complete = directory.join("complete");
    if complete.exists() {
        return Ok(command);
    }
    eprintln!("installing the openstack command from PyPI (once) …");
    if directory.exists() {
        std::fs::remove_dir_all(&directory).context("remove a half-made environment")?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&directory), "make a virtual environment")?;
    run(
        Command::new(directory.join("bin/pip")).args(["install", "--quiet", "--no-input"]).args(PACKAGES),
        "install the packages",
    )?;
    std::fs::write(&complete, "").context("mark the environment as complete")?;
    Ok(command)
}

fn run(command: &mut Command, what: &'static str) -> Result<()> {
    let mut limited = Command::new("timeout");
    limited.arg(STEP_SECONDS_MAX).arg(command.get_program()).args(command.get_args());
    let output = limited.stdin(Stdio::null()).output().context(what)?;
    ensure!(output.status.success(), "{what}: {}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}
