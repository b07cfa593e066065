//! Volumes in Ceph by the kernel's own client, which this kernel may not have: the cluster runs here, what uses it in the
//! lab. Compiled with the feature `ceph` only, so that a check needs no Ceph; it takes a quarter of an hour.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use super::storage;
use super::{text, write};
use crate::harness::{Need, isolate, trial};

/// Where the cluster listens, and this end of the link to the lab, from which that is reached.
const CLUSTER: &str = "10.99.1.1";
const LINK: &str = "lab0=10.99.0.1/24";

/// What a client in the lab has: the configuration, and instead of the program for a pool's size, which is Python, what
/// that says.
const HOST: &str = r#"
set -e
export CEPH_CONF=$PWD/ceph.conf
cat >/usr/bin/ceph <<'END'
#!/bin/sh
echo '{"pools":[{"name":"wisp","stats":{"stored":0,"max_avail":1000000000}}]}'
END
chmod +x /usr/bin/ceph
"#;

/// The tests.
pub(super) fn trials() -> Vec<Trial> {
    vec![trial("lab::ceph::kernel_devices_conform", &[Need::Lab, Need::Root], kernel_devices_conform)]
}

fn script(words: &[&str]) -> Result<std::process::Output> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ceph/cluster");
    Command::new(path).args(words).output().context("run the cluster's script")
}

fn kernel_devices_conform() -> Result<()> {
    isolate()?;
    let address = format!("{CLUSTER}/32");
    let given = Command::new("ip").args(["address", "add", &address, "dev", "lo"]).status();
    ensure!(given.context("run ip")?.success(), "the address {CLUSTER}");
    let directory = tempfile::tempdir()?;
    let cluster = directory.path().display().to_string();
    let started = script(&["start", &cluster, CLUSTER])?;
    let conformed = if started.status.success() {
        conforms(directory.path())
    } else {
        Err(anyhow::anyhow!("{}", text(&started.stderr)))
    };
    script(&["stop", &cluster])?;
    conformed
}

fn conforms(directory: &Path) -> Result<()> {
    let cluster = directory.display().to_string();
    let configuration = std::fs::read_to_string(directory.join("ceph.conf"))?.replace(&cluster, "/root");
    let files = tempfile::tempdir()?;
    let configuration = write(files.path(), "ceph.conf", &configuration)?.display().to_string();
    let keyring = directory.join("keyring").display().to_string();
    let disk = storage::disk(files.path())?;
    let options = [
        ["--tap", LINK],
        ["--module", "rbd"],
        ["--program", "/usr/bin/rbd"],
        ["--file", &configuration],
        ["--file", &keyring],
        ["--timeout", "3000"],
    ];
    storage::run(files.path(), HOST, "ceph", &disk, options.as_flattened())
}
