//! One guest by its command line, without a cloud: `wisp vmm boot`, what is asked of it, and what is typed at its console.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::harness::wisp;

/// Far longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A guest that goes with its test.
pub(crate) struct Guest(pub(crate) Child);

impl Drop for Guest {
    fn drop(&mut self) {
        // It may be over.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Ends the guest of a control socket, whichever process has it.
pub(crate) struct Ended(pub(crate) PathBuf);

impl Drop for Ended {
    fn drop(&mut self) {
        if let Ok(mut client) = vmm::rpc::Client::connect(&self.0) {
            // It may be ending.
            let _ = client.stop(true);
        }
    }
}

/// The console of a guest, at which commands are typed.
pub(crate) struct Typist(BufReader<UnixStream>);

impl Typist {
    pub(crate) fn connect(path: &Path) -> Result<Self> {
        let deadline = Instant::now() + PATIENCE;
        let stream = loop {
            match UnixStream::connect(path) {
                Err(error) if Instant::now() >= deadline => {
                    return Err(error).context("connect to the console");
                }
                Err(_) => std::thread::sleep(Duration::from_millis(2)),
                Ok(stream) => break stream,
            }
        };
        stream.set_read_timeout(Some(PATIENCE))?;
        let mut typist = Self(BufReader::new(stream));
        // The guest's own first words may have come before.
        if typist.say("print here")?.starts_with("WISP-GUEST") {
            typist.line()?;
        }
        Ok(typist)
    }

    pub(crate) fn line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.0.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }

    pub(crate) fn say(&mut self, command: &str) -> Result<String> {
        writeln!(self.0.get_mut(), "{command}")?;
        self.line()
    }
}

/// Where a test keeps its files: a kernel, what it has of guests, and their sockets.
pub(crate) struct Files(tempfile::TempDir);

impl Files {
    pub(crate) fn new() -> Result<Self> {
        let files = Self(tempfile::tempdir()?);
        export(&files.path("tiny.elf"))?;
        Ok(files)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Boots a guest with these words, and sits down at its console.
    pub(crate) fn boot(&self, arguments: &[&str]) -> Result<(Guest, Typist)> {
        let mut boot = Command::new(wisp());
        boot.args(["vmm", "boot"]).args(arguments);
        boot.args([
            "--control",
            &self.path("control"),
            "--console",
            &format!("socket={}", self.path("hvc0")),
        ]);
        let guest = boot.stdin(Stdio::null()).stdout(Stdio::null()).spawn().context("boot a guest")?;
        Ok((Guest(guest), Typist::connect(Path::new(&self.path("hvc0")))?))
    }
}

/// Runs a command of `wisp vmm`; what it says.
pub(crate) fn vmm(arguments: &[&str]) -> Result<String> {
    let ran = Command::new(wisp()).arg("vmm").args(arguments).output()?;
    let errors = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{arguments:?}: {}: {errors}", ran.status);
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// Writes the tiny guest to a file.
pub(crate) fn export(kernel: &str) -> Result<()> {
    let ran = Command::new(wisp()).args(["guest", "export", "tiny", kernel]).output()?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    Ok(())
}

/// Runs a command of `wisp vmm` that has to fail; what it says.
pub(crate) fn refused(arguments: &[&str]) -> Result<String> {
    let ran = Command::new(wisp()).arg("vmm").args(arguments).output()?;
    ensure!(!ran.status.success(), "{arguments:?} does not fail");
    Ok(String::from_utf8_lossy(&ran.stderr).into_owned())
}
