//! A network namespace per test: whatever a test does to links, addresses and filters, the host never sees it.

use anyhow::{Context, Result};
use nix::sched::{CloneFlags, unshare};

/// Moves this thread, and every process it starts from now on, into a new network namespace with loopback up.
pub(crate) fn isolate() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("make a network namespace")?;
    let mut netlink = net::netlink::Client::open().context("open netlink")?;
    netlink.execute(vec![net::netlink::Request::set_up("lo", true)]).context("bring loopback up")
}

/// Names of the links that this thread sees.
pub(crate) fn links() -> Result<Vec<String>> {
    let table = std::fs::read_to_string("/proc/thread-self/net/dev").context("list the links")?;
    Ok(table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect())
}
