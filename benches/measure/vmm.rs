//! The tiny guest in a VMM of ours and in Firecracker, the same for every benchmark that measures it in both.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};

/// The guest as a kernel in a file of this directory.
pub(crate) fn export_guest(wisp: &Path, directory: &Path) -> Result<PathBuf> {
    let kernel = directory.join("tiny.elf");
    let exported = Command::new(wisp).args(["guest", "export", "tiny"]).arg(&kernel).status()?;
    ensure!(exported.success(), "export the guest");
    Ok(kernel)
}

/// Writes Firecracker's configuration of a guest with one processor, and with these devices (the parts of its own format).
pub(crate) fn write_firecracker_config(
    path: &Path,
    (kernel, cmdline): (&Path, &str),
    memory_mib: u64,
    devices: Value,
) -> Result<()> {
    let mut config = json!({
        "boot-source": {"kernel_image_path": kernel, "boot_args": cmdline},
        "drives": [],
        "machine-config": {"vcpu_count": 1, "mem_size_mib": memory_mib},
    });
    if let (Some(config), Value::Object(devices)) = (config.as_object_mut(), devices) {
        config.extend(devices);
    }
    std::fs::write(path, config.to_string()).context("write Firecracker's configuration")
}

/// Firecracker with such a guest. What it logs would go between the guest's words.
pub(crate) fn firecracker(program: &Path, config: &Path) -> Command {
    let mut command = Command::new(program);
    command.args(["--level", "Error", "--no-api", "--config-file"]).arg(config);
    command
}

/// Starts a VMM whose console is its output.
pub(crate) fn start(command: &mut Command) -> Result<Child> {
    let program = command.get_program().to_string_lossy().into_owned();
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .with_context(|| format!("start {program}"))
}

/// Runs a VMM until `hear` has heard enough of its console, line by line, of the process with that number.
pub(crate) fn listen(command: &mut Command, hear: impl FnMut(u32, &str) -> Result<bool>) -> Result<()> {
    let mut child = start(command)?;
    let heard = hear_lines(&mut child, hear);
    child.kill().context("end the VMM")?;
    child.wait().context("wait for the VMM")?;
    heard
}

fn hear_lines(child: &mut Child, mut hear: impl FnMut(u32, &str) -> Result<bool>) -> Result<()> {
    let stdout = child.stdout.take().context("read the console")?;
    let mut last = String::new();
    for line in BufReader::new(stdout).split(b'\n') {
        last = String::from_utf8_lossy(&line?).trim().to_owned();
        if hear(child.id(), &last)? {
            return Ok(());
        }
    }
    bail!("the VMM ended before its guest was done: {last}")
}
