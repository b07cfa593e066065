//! One guest by its command line, without a cloud: `wisp vmm boot`, what is asked of it, and what is typed at its console.

use std::ffi::OsStr;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};

use crate::harness::{wisp, within};

/// Far longer than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// A guest that goes with its test.
pub(crate) struct Guest(pub(crate) Child);

impl Guest {
    /// Starts what was put together; see [`booting`].
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        Ok(Self(command.spawn().with_context(|| format!("start {command:?}"))?))
    }

    /// How its process ended, which it does by itself.
    pub(crate) fn ended(&mut self) -> Result<ExitStatus> {
        within(PATIENCE.as_secs(), || self.0.try_wait()?.context("the process is still there"))
    }

    /// Likewise, and what it said into pipes that are still held.
    pub(crate) fn output(&mut self) -> Result<Output> {
        let status = self.ended()?;
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        if let Some(pipe) = &mut self.0.stdout {
            pipe.read_to_end(&mut stdout)?;
        }
        if let Some(pipe) = &mut self.0.stderr {
            pipe.read_to_end(&mut stderr)?;
        }
        Ok(Output { status, stdout, stderr })
    }
}

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
        export(files.path("tiny.elf"))?;
        Ok(files)
    }

    pub(crate) fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Boots a guest with these words, and sits down at its console.
    pub(crate) fn boot(&self, arguments: &[&str]) -> Result<(Guest, Typist)> {
        let console = format!("socket={}", self.path("hvc0"));
        let guest = Guest::start(booting(arguments).args([
            "--control",
            &self.path("control"),
            "--console",
            &console,
        ]))?;
        Ok((guest, Typist::connect(Path::new(&self.path("hvc0")))?))
    }
}

/// `wisp vmm boot` with these words. It hears nothing, and what its guest says on the serial port is lost, unless the caller
/// has it otherwise.
pub(crate) fn booting(arguments: &[&str]) -> Command {
    let mut boot = Command::new(wisp());
    boot.args(["vmm", "boot"]).args(arguments).stdin(Stdio::null()).stdout(Stdio::null());
    boot
}

/// Runs the program with these words, and ends it after so many seconds: that is how long a guest runs that idles without end.
pub(crate) fn run(seconds: &str, arguments: &[&str]) -> Result<Output> {
    let mut command = Command::new("timeout");
    command.arg(seconds).arg(wisp()).args(arguments).stdin(Stdio::null());
    command.output().with_context(|| format!("run {command:?}"))
}

/// Runs a command of `wisp vmm`; what it says.
pub(crate) fn vmm(arguments: &[&str]) -> Result<String> {
    let ran = Command::new(wisp()).arg("vmm").args(arguments).output()?;
    let errors = String::from_utf8_lossy(&ran.stderr);
    ensure!(ran.status.success(), "{arguments:?}: {}: {errors}", ran.status);
    Ok(String::from_utf8_lossy(&ran.stdout).into_owned())
}

/// Writes the tiny guest to a file.
pub(crate) fn export(kernel: impl AsRef<OsStr>) -> Result<()> {
    let ran = Command::new(wisp()).args(["guest", "export", "tiny"]).arg(kernel).output()?;
    ensure!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    Ok(())
}

/// Runs a command of `wisp vmm` that has to fail; what it says.
pub(crate) fn refused(arguments: &[&str]) -> Result<String> {
    let ran = Command::new(wisp()).arg("vmm").args(arguments).output()?;
    ensure!(!ran.status.success(), "{arguments:?} does not fail");
    Ok(String::from_utf8_lossy(&ran.stderr).into_owned())
}
