//! Programs from PyPI, each in a virtual environment below the build directory: the real `openstack` command, and a
//! server of Amazon's S3. Made once; a second run finds them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use anyhow::{Context, Result, ensure};

use super::once;

/// Seconds one step may take.
const STEP_SECONDS_MAX: &str = "600";

/// A program with what is installed for it: the newest that the tests were written against.
struct Program {
    directory: &'static str,
    packages: &'static [&'static str],
    command: &'static str,
}

/// The path of the `openstack` command.
pub(super) fn openstack() -> Result<PathBuf> {
    static MADE: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let program = Program {
        directory: "openstack-10.5.0-oauth",
        // Its commands of OAuth sign with the second.
        packages: &["python-openstackclient==10.5.0", "oauthlib>=3,<4"],
        command: "openstack",
    };
    once(&MADE, || make(&program))
}

/// The path of a server of Amazon's S3, with all in memory.
pub(super) fn moto() -> Result<PathBuf> {
    static MADE: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    let program = Program { directory: "moto-5", packages: &["moto[server]>=5,<6"], command: "moto_server" };
    once(&MADE, || make(&program))
}

fn make(program: &Program) -> Result<PathBuf> {
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join(program.directory);
    let command = directory.join("bin").join(program.command);
    let complete = directory.join("complete");
    if complete.exists() {
        return Ok(command);
    }
    eprintln!("installing {} from PyPI (once) …", program.command);
    if directory.exists() {
        std::fs::remove_dir_all(&directory).context("remove a half-made environment")?;
    }
    run(Command::new("python3").args(["-m", "venv"]).arg(&directory), "make a virtual environment")?;
    run(
        Command::new(directory.join("bin/pip"))
            .args(["install", "--quiet", "--no-input"])
            .args(program.packages),
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
