//! The processes of one machine's cloud: what `wisp up` says, what its children may do, and who ends with whom. With
//! the fake driver, so everywhere.

use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Need, trial, wisp, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("processes::up_says_one_line_and_ends_with_sigterm", &[], up_says_one_line),
        trial("processes::second_up_on_a_directory_is_refused", &[], second_up_is_refused),
        trial("processes::killed_child_is_replaced_and_no_client_refused", &[], killed_child_is_replaced),
        trial("processes::killed_supervisor_takes_its_children_along", &[], killed_supervisor_takes_all),
        trial(
            "processes::children_run_with_what_they_need_and_no_more",
            &[Need::Root],
            children_are_confined,
        ),
        trial("processes::down_ends_a_running_cloud", &[], down_ends_a_running_cloud),
        trial("processes::password_and_address_stay_in_the_credentials", &[], credentials_are_kept),
        trial("processes::many_fake_hosts_are_hypervisors", &[], many_fake_hosts),
    ]
}

/// A cloud of the fake driver that ends with this.
struct Up {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
    url: String,
}

impl Up {
    fn start(state: &Path, further: &[&str]) -> Result<Self> {
        let mut child = Command::new(wisp())
            .args(["up", "--driver", "fake", "--listen", "127.0.0.1:0", "--log", "error", "--state"])
            .arg(state)
            .args(further)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("start wisp up")?;
        let mut stdout = BufReader::new(child.stdout.take().context("stdout")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let url = line.strip_prefix("ready ").and_then(|line| line.split(' ').next());
        let url = url.with_context(|| format!("`{line}` is no ready line"))?.to_owned();
        ensure!(line == format!("ready {url} clouds.yaml={}/clouds.yaml\n", state.display()), "{line}");
        Ok(Self { child, stdout, url })
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Its child by this command.
    fn child(&self, command: &str) -> Result<i32> {
        within(20, || {
            children(self.child.id(), command).first().copied().with_context(|| format!("no {command}"))
        })
    }

    fn answers(&self) -> Result<()> {
        ureq::get(format!("{}/identity/v3", self.url)).call().context("ask")?;
        Ok(())
    }

    /// Tells it to end; what it still says.
    fn end(mut self) -> Result<String> {
        kill(self.pid(), Signal::SIGTERM)?;
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest)?;
        let status = self.child.wait()?;
        ensure!(status.success(), "{status}");
        Ok(rest)
    }
}

impl Drop for Up {
    fn drop(&mut self) {
        // Of a test that failed.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn children(parent: u32, command: &str) -> Vec<i32> {
    let entries = std::fs::read_dir("/proc").into_iter().flatten();
    let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<i32>().ok());
    let is_it = |pid: &i32| {
        let read = |name: &str| std::fs::read_to_string(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let parent_line = format!("PPid:\t{parent}\n");
        read("status").contains(&parent_line) && read("cmdline").starts_with(&format!("wisp\0{command}\0"))
    };
    pids.filter(is_it).collect()
}

fn is_gone(pid: i32) -> Result<()> {
    within(20, || {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
        ensure!(stat.is_empty() || stat.contains(") Z "), "process {pid} is still there: {stat}");
        Ok(())
    })
}

fn up_says_one_line() -> Result<()> {
    let state = tempfile::tempdir()?;
    let up = Up::start(state.path(), &[])?;
    up.answers()?;
    let (control, agent) = (up.child("control")?, up.child("agent")?);
    let rest = up.end()?;
    ensure!(rest.is_empty(), "it says more: {rest}");
    is_gone(control)?;
    is_gone(agent)
}

fn second_up_is_refused() -> Result<()> {
    let state = tempfile::tempdir()?;
    let up = Up::start(state.path(), &[])?;
    let second = Command::new("timeout")
        .arg("20")
        .arg(wisp())
        .args(["up", "--driver", "fake", "--listen", "127.0.0.1:0", "--state"])
        .arg(state.path())
        .output()?;
    let error = String::from_utf8_lossy(&second.stderr).into_owned();
    ensure!(!second.status.success() && second.stdout.is_empty(), "it was not refused");
    ensure!(error.contains("already runs") && error.contains(&up.child.id().to_string()), "{error}");
    up.answers()?;
    up.end().map(drop)
}

fn killed_child_is_replaced() -> Result<()> {
    let state = tempfile::tempdir()?;
    let up = Up::start(state.path(), &[])?;
    for victim in ["control", "agent"] {
        let pid = up.child(victim)?;
        kill(Pid::from_raw(pid), Signal::SIGKILL)?;
        // The supervisor holds the listening socket: a connection waits for the next control process, unless the one
        // before had accepted it already.
        within(20, || match up.answers() {
            Err(error) if format!("{error:#}").contains("refused") => Ok(Err(error)),
            answered => answered.map(Ok),
        })?
        .with_context(|| format!("after {victim} was killed"))?;
        within(20, || {
            ensure!(children(up.child.id(), victim).iter().any(|next| *next != pid), "no new {victim}");
            Ok(())
        })?;
    }
    within(20, || up.answers())?;
    up.end().map(drop)
}

fn killed_supervisor_takes_all() -> Result<()> {
    let state = tempfile::tempdir()?;
    let mut up = Up::start(state.path(), &[])?;
    let (control, agent) = (up.child("control")?, up.child("agent")?);
    kill(up.pid(), Signal::SIGKILL)?;
    up.child.wait()?;
    is_gone(control)?;
    is_gone(agent)?;
    Up::start(state.path(), &[])?.end().map(drop)
}

fn children_are_confined() -> Result<()> {
    let state = tempfile::tempdir()?;
    let up = Up::start(state.path(), &[])?;
    let status = |pid| std::fs::read_to_string(format!("/proc/{pid}/status")).context("status");
    let field = |text: &str, name: &str| -> Result<String> {
        let line = text.lines().find_map(|line| line.strip_prefix(name));
        Ok(line.with_context(|| format!("no {name}"))?.trim().to_owned())
    };
    let control = status(up.child("control")?)?;
    for set in ["CapInh:", "CapPrm:", "CapEff:", "CapBnd:", "CapAmb:"] {
        ensure!(u64::from_str_radix(&field(&control, set)?, 16)? == 0, "control keeps {set}: {control}");
    }
    ensure!(field(&control, "NoNewPrivs:")? == "1", "control may gain privileges");
    ensure!(field(&control, "Uid:")?.split('\t').all(|uid| uid != "0"), "control is root: {control}");
    ensure!(field(&control, "Groups:")?.is_empty(), "control is in groups: {control}");
    let agent = status(up.child("agent")?)?;
    // CAP_SYS_ADMIN is bit 21, CAP_SYS_MODULE 16, CAP_SYS_PTRACE 19, CAP_SETPCAP 8 (capabilities(7)).
    let kept = u64::from_str_radix(&field(&agent, "CapEff:")?, 16)?;
    ensure!(kept & (1 << 21 | 1 << 19 | 1 << 16 | 1 << 8) == 0, "the agent keeps {kept:x}");
    ensure!(field(&agent, "NoNewPrivs:")? == "1", "the agent may gain privileges");
    for secret in ["clouds.yaml", "openrc"] {
        use std::os::unix::fs::MetadataExt;
        let mode = std::fs::metadata(state.path().join(secret))?.mode();
        ensure!(mode & 0o077 == 0, "{secret} is readable by others: {mode:o}");
    }
    up.end().map(drop)
}

fn down_ends_a_running_cloud() -> Result<()> {
    let state = tempfile::tempdir()?;
    let mut up = Up::start(state.path(), &[])?;
    let down =
        Command::new("timeout").arg("60").arg(wisp()).args(["down", "--state"]).arg(state.path()).output()?;
    ensure!(down.status.success(), "{}", String::from_utf8_lossy(&down.stderr));
    let said = String::from_utf8_lossy(&down.stdout).into_owned();
    ensure!(said.contains(&format!("process {}", up.child.id())), "{said}");
    within(20, || {
        ensure!(up.child.try_wait()?.is_some(), "it runs on");
        Ok(())
    })?;
    let again =
        Command::new("timeout").arg("60").arg(wisp()).args(["down", "--state"]).arg(state.path()).output()?;
    ensure!(again.status.success(), "{}", String::from_utf8_lossy(&again.stderr));
    ensure!(String::from_utf8_lossy(&again.stdout).contains("nothing"), "{again:?}");
    Ok(())
}

fn credentials_are_kept() -> Result<()> {
    let state = tempfile::tempdir()?;
    let password = |state: &Path| -> Result<String> {
        let text = std::fs::read_to_string(state.join("clouds.yaml"))?;
        let line = text.lines().find(|line| line.trim().starts_with("password:")).context("no password")?;
        Ok(line.to_owned())
    };
    let up = Up::start(state.path(), &["--public-url", "https://cloud.example:5000/"])?;
    let first = password(state.path())?;
    let text = std::fs::read_to_string(state.path().join("clouds.yaml"))?;
    ensure!(text.contains("https://cloud.example:5000/identity"), "{text}");
    up.end()?;
    let up = Up::start(state.path(), &[])?;
    ensure!(password(state.path())? == first, "another password");
    ensure!(
        std::fs::read_to_string(state.path().join("clouds.yaml"))?.contains(&up.url),
        "not the new address"
    );
    up.end().map(drop)
}

fn many_fake_hosts() -> Result<()> {
    let state = tempfile::tempdir()?;
    let up = Up::start(state.path(), &["--fake-hosts", "200"])?;
    std::thread::sleep(Duration::from_millis(100));
    up.answers()?;
    ensure!(std::fs::read_dir(state.path().join("run/fake"))?.count() == 200, "not all hosts are there");
    up.end().map(drop)
}
