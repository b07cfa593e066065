//! The same guest in Firecracker: taking its snapshot and going on from it, by its API.

use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::json;

use crate::measure::vmm::write_firecracker_config;
use crate::measure::{Samples, installed, milliseconds};
use crate::{BEGUN, Guest, HEARD, RUNS, SNAPSHOTS, TALKS, TOUCHES};

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
    /// From the start of a process until a guest that goes on from a snapshot is heard.
    pub heard: f64,
    /// The same from the request for it on, to a process that waits.
    pub heard_from_request: f64,
}

impl Firecracker {
    /// It, if the environment names one.
    pub(crate) fn named(files: &Path) -> Result<Option<Self>> {
        let Some(program) = std::env::var_os("FIRECRACKER_BIN") else { return Ok(None) };
        let program = installed(Path::new(&program), files).context("FIRECRACKER_BIN")?;
        Ok(Some(Self { program, files: files.to_owned() }))
    }

    /// Measures a guest of this size.
    pub(crate) fn figures(&self, kernel: &Path, mib: u32) -> Result<Figures> {
        let full = {
            let (mut guest, mut socket) = self.boot(kernel, mib, "touch=1024")?;
            guest.wait_for(TOUCHES)?;
            self.take(&mut socket, RUNS)?
        };
        let load = format!(
            r#"{{"snapshot_path": "{}", "mem_backend": {{"backend_path": "{}", "backend_type": "File"}}, "resume_vm": true}}"#,
            self.state().display(),
            self.memory().display()
        );
        let (mut heard, mut from_request) = (Samples::default(), Samples::default());
        for _ in 0..SNAPSHOTS {
            {
                let (mut guest, mut socket) = self.boot(kernel, mib, TALKS)?;
                guest.wait_for(BEGUN)?;
                guest.let_talk()?;
                self.take(&mut socket, 1)?;
            }
            for _ in 0..RUNS / SNAPSHOTS {
                let started = Instant::now();
                let (mut guest, mut socket) = self.start(&[])?;
                let asked = Instant::now();
                send(&mut socket, "PUT", "/snapshot/load", &load)?;
                guest.wait_for(HEARD)?;
                heard.push(milliseconds(started));
                from_request.push(milliseconds(asked));
            }
        }
        let p50 = |samples: Samples| samples.quantile(0.5);
        Ok(Figures { full, heard: p50(heard), heard_from_request: p50(from_request) })
    }

    fn state(&self) -> PathBuf {
        self.files.join("fc.state")
    }

    fn memory(&self) -> PathBuf {
        self.files.join("fc.memory")
    }

    fn boot(&self, kernel: &Path, mib: u32, cmdline: &str) -> Result<(Guest, UnixStream)> {
        let config = self.files.join("fc.json");
        write_firecracker_config(&config, (kernel, cmdline), mib.into(), json!({}))?;
        self.start(&["--config-file", config.to_str().context("a temporary path is text")?])
    }

    /// Pauses the guest and takes snapshots of it; p50 in milliseconds.
    fn take(&self, socket: &mut UnixStream, runs: usize) -> Result<f64> {
        call(socket, "PATCH", "/vm", r#"{"state": "Paused"}"#)?;
        let create = format!(
            r#"{{"snapshot_type": "Full", "snapshot_path": "{}", "mem_file_path": "{}"}}"#,
            self.state().display(),
            self.memory().display()
        );
        let mut full = Samples::default();
        for _ in 0..runs {
            let started = Instant::now();
            call(socket, "PUT", "/snapshot/create", &create)?;
            full.push(milliseconds(started));
        }
        Ok(full.quantile(0.5))
    }

    /// Starts a process and connects to its API as soon as that is there.
    fn start(&self, more: &[&str]) -> Result<(Guest, UnixStream)> {
        let path = self.files.join("fc.socket");
        let _ = std::fs::remove_file(&path);
        let mut command = Command::new(&self.program);
        // What it logs would go between the guest's words.
        command.args(["--level", "Error", "--api-sock"]).arg(&path).args(more);
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

fn send(socket: &mut UnixStream, method: &str, path: &str, body: &str) -> Result<()> {
    let length = body.len();
    let head = "Host: localhost\r\nContent-Type: application/json";
    let request = format!("{method} {path} HTTP/1.1\r\n{head}\r\nContent-Length: {length}\r\n\r\n{body}");
    socket.write_all(request.as_bytes()).with_context(|| format!("{method} {path}"))
}

/// One call of its API, which answers 204 without a body.
fn call(socket: &mut UnixStream, method: &str, path: &str, body: &str) -> Result<()> {
    send(socket, method, path, body)?;
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
