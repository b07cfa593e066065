//! The demo's cloud: a `wisp up` of its own in a temporary directory.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustix::process::{Pid, Signal, kill_process};

/// How long a cloud may take to be ready.
const READY_TIMEOUT: Duration = Duration::from_secs(60);
/// How long it may take to end.
const END_TIMEOUT: Duration = Duration::from_secs(30);

/// A running cloud.
pub(super) struct Cloud {
    /// Where its API is.
    pub(super) url: String,
    state: PathBuf,
    password: String,
    child: Option<Child>,
    keep: bool,
}

impl Cloud {
    /// Starts `wisp up` in a new directory and waits until it is ready.
    pub(super) fn start() -> Result<Self> {
        let state = std::env::temp_dir()
            .join(format!("wisp-demo-{}", &uuid::Uuid::new_v4().simple().to_string()[..8]));
        let password = uuid::Uuid::new_v4().simple().to_string();
        let child = Command::new(std::env::current_exe().context("find the wisp binary")?)
            .args(["up", "--listen", "127.0.0.1:0", "--state"])
            .arg(&state)
            .env("WISP_ADMIN_PASSWORD", &password)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start `wisp up`")?;
        let mut cloud = Self { url: String::new(), state, password, child: Some(child), keep: false };
        cloud.url = cloud.wait_ready()?;
        Ok(cloud)
    }

    /// Its directory.
    pub(super) fn state(&self) -> &Path {
        &self.state
    }

    /// The administrator's password.
    pub(super) fn password(&self) -> &str {
        &self.password
    }

    /// Leaves it running when the demo ends.
    pub(super) fn keep(&mut self) {
        self.keep = true;
    }

    /// Ends it: its processes, whatever `wisp down` finds, its directory.
    pub(super) fn down(mut self) -> Result<()> {
        self.end()
    }

    fn end(&mut self) -> Result<()> {
        if let Some(mut child) = self.child.take() {
            terminate(&mut child)?;
        }
        let status = Command::new(std::env::current_exe().context("find the wisp binary")?)
            .args(["down", "--state"])
            .arg(&self.state)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .status()
            .context("run `wisp down`")?;
        if !status.success() {
            bail!("`wisp down` failed: {status}");
        }
        std::fs::remove_dir_all(&self.state).with_context(|| format!("remove {}", self.state.display()))
    }

    /// Reads the one line that says that the cloud is ready.
    fn wait_ready(&mut self) -> Result<String> {
        let stdout =
            self.child.as_mut().and_then(|child| child.stdout.take()).context("read from `wisp up`")?;
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut line = String::new();
            let _ = BufReader::new(stdout).read_line(&mut line);
            let _ = sender.send(line);
        });
        let line =
            receiver.recv_timeout(READY_TIMEOUT).map_err(|_| anyhow!("`wisp up` was not ready in time"))?;
        line.strip_prefix("ready ")
            .and_then(|rest| rest.split_whitespace().next())
            .map(str::to_owned)
            .ok_or_else(|| anyhow!("`wisp up` ended before it was ready; its reason stands above"))
    }
}

impl Drop for Cloud {
    fn drop(&mut self) {
        if !self.keep && self.child.is_some() {
            // The demo failed half-way and says why; what can be taken down is.
            let _ = self.end();
        }
    }
}

fn terminate(child: &mut Child) -> Result<()> {
    let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw).context("read the child's id")?;
    // A child that has ended already needs no signal.
    let _ = kill_process(pid, Signal::TERM);
    let deadline = std::time::Instant::now() + END_TIMEOUT;
    while child.try_wait().context("wait for `wisp up`")?.is_none() {
        if std::time::Instant::now() > deadline {
            child.kill().context("end `wisp up`")?;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    Ok(())
}

/// A new SSH public key (ed25519, RFC 8709) whose private half is thrown away: the tiny guest only shows it.
pub(super) fn ssh_public_key() -> Result<String> {
    use ring::signature::KeyPair;
    let random = ring::rand::SystemRandom::new();
    let pkcs8 =
        ring::signature::Ed25519KeyPair::generate_pkcs8(&random).map_err(|_| anyhow!("make a key"))?;
    let pair =
        ring::signature::Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).map_err(|_| anyhow!("read the key"))?;
    let mut blob = Vec::new();
    for part in [b"ssh-ed25519".as_slice(), pair.public_key().as_ref()] {
        blob.extend_from_slice(&u32::try_from(part.len()).unwrap_or(0).to_be_bytes());
        blob.extend_from_slice(part);
    }
    Ok(format!("ssh-ed25519 {} wisp-demo", STANDARD.encode(blob)))
}
