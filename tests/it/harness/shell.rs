//! The real `openstack` command, loaded once and run many times: most of a command's second is Python's loading of it.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Output, Stdio};

use anyhow::{Context, Result};

use super::venv;

/// The loaded command; ended when dropped.
pub(crate) struct Shell {
    child: Child,
    input: ChildStdin,
    output: BufReader<ChildStdout>,
}

impl Shell {
    /// Loads the command for the cloud that a `clouds.yaml` calls `wisp`. Each time it may take so many seconds.
    pub(crate) fn start(clouds_yaml: &Path, seconds_max: u32) -> Result<Self> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/it/openstack/shell.py");
        let mut child = Command::new(venv::openstack()?.with_file_name("python"))
            .arg(script)
            .arg(seconds_max.to_string())
            .env("OS_CLIENT_CONFIG_FILE", clouds_yaml)
            .env("OS_CLOUD", "wisp")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("load the openstack command")?;
        let input = child.stdin.take().context("write to the loaded command")?;
        let output = BufReader::new(child.stdout.take().context("read from the loaded command")?);
        Ok(Self { child, input, output })
    }

    /// Runs it once.
    pub(crate) fn run(&mut self, words: &[&str]) -> Result<Output> {
        writeln!(self.input, "{}", serde_json::to_string(words)?).context("run the loaded command")?;
        let mut line = String::new();
        self.output.read_line(&mut line).context("read what the command showed")?;
        let (code, out, err): (i32, String, String) =
            serde_json::from_str(&line).with_context(|| format!("run openstack {}", words.join(" ")))?;
        // As wait(2) has it: a code, or the signal that ended it.
        let status = if code >= 0 { code << 8 } else { -code };
        Ok(Output { status: ExitStatus::from_raw(status), stdout: out.into(), stderr: err.into() })
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
