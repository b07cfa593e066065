//! `wisp down`: ends what runs, removes what was made on the host.

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use control::driver::host::{Removed, remove_all};
use control::driver::process_id;

use crate::process::state_directory::{Lock, StateDirectory};

/// How long a running `wisp up` may take to end.
const END_PATIENCE: Duration = Duration::from_secs(40);
/// How long its lock may stay held after it has ended.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);

/// Stop the cloud's instances and remove every tap, bridge, router and rule that it made on this host, and nothing else.
///
/// A running `wisp up` is ended first. What is in the cloud's directory stays, the instances' disks included: the
/// next `wisp up` starts again what was running.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  sudo wisp down --state ./cloud")]
pub(super) struct Arguments {
    /// The cloud's directory.
    #[arg(long, value_name = "DIR", default_value_os_t = StateDirectory::default_path())]
    state: PathBuf,
    /// How many seconds the guests have to shut themselves down before they are forced.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    timeout: u16,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    let directory = StateDirectory::at(&arguments.state)?;
    if !directory.path().is_dir() {
        bail!("there is no cloud in {}", directory.path().display());
    }
    let _lock = take_over(&directory)?;
    if directory
        .path()
        .join("run")
        .read_dir()
        .is_err_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
    {
        bail!("the cloud in {} was started by another user; try: sudo wisp down", directory.path().display());
    }
    // Control sockets have short relative paths.
    std::env::set_current_dir(directory.path())
        .with_context(|| format!("enter {}", directory.path().display()))?;
    let patience = Duration::from_secs(arguments.timeout.into());
    let removed = remove_all(std::path::Path::new("run"), patience).context("take the cloud down")?;
    print(&removed);
    Ok(ExitCode::SUCCESS)
}

/// The directory's lock, after whoever holds it was ended.
fn take_over(directory: &StateDirectory) -> anyhow::Result<Lock> {
    match directory.lock()? {
        Ok(lock) => return Ok(lock),
        Err(None) => bail!("a cloud runs on {}, but not as which process", directory.path().display()),
        Err(Some(holder)) => {
            // It holds the lock and wrote this down itself; a number that is another's by now is not opened.
            let cmdline = std::fs::read(format!("/proc/{}/cmdline", holder.pid)).unwrap_or_default();
            let is_up = cmdline.split(|byte| *byte == 0).any(|word| word == b"up");
            if let Some(pidfd) = holder.open().filter(|_| is_up) {
                let forced = process_id::end(&pidfd, END_PATIENCE).context("end the running cloud")?;
                println!(
                    "ended    wisp up (process {}){}",
                    holder.pid,
                    if forced { ", by force" } else { "" }
                );
            }
        }
    }
    let deadline = Instant::now() + LOCK_PATIENCE;
    loop {
        match directory.lock()? {
            Ok(lock) => return Ok(lock),
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            Err(_) => bail!("another process holds {}", directory.path().display()),
        }
    }
}

fn print(removed: &Removed) {
    for (instance, forced) in &removed.instances {
        println!("stopped  instance {instance}{}", if *forced { ", by force" } else { "" });
    }
    for link in &removed.links {
        println!("removed  link {link}");
    }
    for namespace in &removed.namespaces {
        println!("removed  network namespace {namespace}");
    }
    for table in &removed.tables {
        println!("removed  nftables table {table}");
    }
    if *removed == Removed::default() {
        println!("nothing ran and nothing was left");
    }
}
