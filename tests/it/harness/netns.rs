//! A network namespace per test: whatever a test does to links, addresses and filters, the host never sees it.

use std::process::Command;

use anyhow::{Context, Result, ensure};
use nix::sched::{CloneFlags, unshare};

/// Moves this thread, and every process it starts from now on, into a new network namespace with loopback up.
pub(crate) fn isolate() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    let mut netlink = net::netlink::Client::open().context("open netlink")?;
    netlink.execute(vec![net::netlink::Request::set_up("lo", true)]).context("bring loopback up")
}

/// Runs `ip` with these words, in the namespace of this thread.
pub(crate) fn ip(words: &str) -> Result<()> {
    let ran = Command::new("ip").args(words.split_whitespace()).output().context("run `ip`")?;
    ensure!(ran.status.success(), "ip {words}: {}", String::from_utf8_lossy(&ran.stderr));
    Ok(())
}

/// Names of the links that this thread sees.
pub(crate) fn links() -> Result<Vec<String>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").context("list the links")?;
    Ok(table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect())
}
