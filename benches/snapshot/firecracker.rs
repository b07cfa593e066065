//! The same guest in Firecracker: taking its snapshot and going on from it, by its API.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};

use crate::measure::{Samples, milliseconds};
use crate::{Guest, RUNS, TOUCHES};

/// How long a process may take until it answers.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The program that `FIRECRACKER_BIN` names.
pub(crate) struct Firecracker {
    program: PathBuf,
    files: PathBuf,
}

/// What it takes, in milliseconds, p50.
pub(crate) struct Figures {
    /// A full snapshot, from the call to its answer; the guest, which is paused before, stands still meanwhile.
    pub full: f64,
    /// From the start of a process until it has answered that a guest goes on from the snapshot.
    pub gone_on: f64,
}

impl Firecracker {
    /// It, if the environment names one.
    pub(crate) fn named(files: &Path) -> Option<Self> {
        let program = std::env::var_os("FIRECRACKER_BIN")?;
        Some(Self { program: program.into(), files: files.to_owned() })
    }

    /// Measures a guest of this size.
    pub(crate) fn figures(&self, kernel: &Path, mib: u32) -> Result<Figures> {
        let (state, memory) = (self.files.join("fc.state"), self.files.join("fc.memory"));
        let full = self.take(kernel, mib, &state, &memory)?;
        let load = format!(
            r#"{{"snapshot_path": "{}", "mem_backend": {{"backend_path": "{}", "backend_type": "File"}}, "resume_vm": true}}"#,
            state.display(),
            memory.display()
        );
        let mut gone_on = Samples::default();
        for _ in 0..RUNS {
            let started = Instant::now();
            let (_guest, mut socket) = self.start(&[])?;
            call(&mut socket, "PUT", "/snapshot/load", &load)?;
            gone_on.push(milliseconds(started));
        }
        Ok(Figures { full, gone_on: gone_on.quantile(0.5) })
    }

    fn take(&self, kernel: &Path, mib: u32, state: &Path, memory: &Path) -> Result<f64> {
        let config = self.files.join("fc.json");
        let text = format!(
            r#"{{"boot-source": {{"kernel_image_path": "{}", "boot_args": "touch=1024"}}, "drives": [],
                "machine-config": {{"vcpu_count": 1, "mem_size_mib": {mib}}}}}"#,
            kernel.display()
        );
        std::fs::write(&config, text).context("write Firecracker's configuration")?;
        let config = config.to_str().context("a temporary path is text")?;
        let (mut guest, mut socket) = self.start(&["--config-file", config])?;
        guest.wait_for(TOUCHES)?;
        call(&mut socket, "PATCH", "/vm", r#"{"state": "Paused"}"#)?;
        let create = format!(
            r#"{{"snapshot_type": "Full", "snapshot_path": "{}", "mem_file_path": "{}"}}"#,
            state.display(),
            memory.display()
        );
        let mut full = Samples::default();
        for _ in 0..RUNS {
            let started = Instant::now();
            call(&mut socket, "PUT", "/snapshot/create", &create)?;
            full.push(milliseconds(started));
        }
        Ok(full.quantile(0.5))
    }

    /// Starts a process and connects to its API as soon as that is there.
    fn start(&self, more: &[&str]) -> Result<(Guest, UnixStream)> {
        let path = self.files.join("fc.socket");
        let _ = std::fs::remove_file(&path);
        let mut command = Command::new(&self.program);
        command.arg("--api-sock").arg(&path).args(more);
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::null());
        let guest = Guest(command.spawn().context("start Firecracker")?);
        let started = Instant::now();
        loop {
            match UnixStream::connect(&path) {
                Ok(socket) => {
                    socket.set_read_timeout(Some(ANSWER_MAX))?;
                    return Ok((guest, socket));
                }
                Err(error) if started.elapsed() > ANSWER_MAX => {
                    return Err(error).context("reach Firecracker");
                }
                Err(_) => std::thread::sleep(Duration::from_micros(100)),
            }
        }
    }
}

/// One call of its API, which answers 204 without a body.
fn call(socket: &mut UnixStream, method: &str, path: &str, body: &str) -> Result<()> {
    let length = body.len();
    let head = "Host: localhost\r\nContent-Type: application/json";
    write!(socket, "{method} {path} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let (mut answer, mut buffer) = (Vec::new(), [0; 4096]);
    while !answer.windows(4).any(|window| window == b"\r\n\r\n") {
        match socket.read(&mut buffer).with_context(|| format!("{method} {path}"))? {
            0 => bail!("{method} {path}: no answer"),
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
    let answer = String::from_utf8_lossy(&answer).into_owned();
    ensure!(answer.starts_with("HTTP/1.1 204"), "{method} {path}: {answer}");
    Ok(())
}
