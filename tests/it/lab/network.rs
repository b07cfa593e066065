//! What this kernel's network may lack (802.1Q, VLANs on bridges, connection tracking of bridges): `net`'s own tests, in the lab, whose kernel
//! has it.

use std::ffi::OsStr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::time::SystemTime;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use super::{lab, text, write};
use crate::harness::{Need, trial};

/// The tests.
pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("lab::network::vlans_are_told_apart", &[Need::Lab], vlans),
        trial("lab::network::bridges_track_connections_themselves", &[Need::Lab], bridge_tracking),
    ]
}

/// The program that cargo made of `net`'s tests in the run that made this one.
fn tests_of_net() -> Result<PathBuf> {
    let own = std::env::current_exe().context("find this program")?;
    let directory = own.parent().context("this program has no directory")?;
    let mut found: Option<(SystemTime, PathBuf)> = None;
    for entry in std::fs::read_dir(directory).context("list the tests' directory")? {
        let path = entry?.path();
        let name = path.file_name().and_then(OsStr::to_str).unwrap_or_default();
        let data = path.metadata()?;
        let is_program = data.is_file() && data.permissions().mode() & 0o111 != 0;
        if name.starts_with("net-") && path.extension().is_none() && is_program {
            let changed = data.modified()?;
            if found.as_ref().is_none_or(|(newest, _)| changed > *newest) {
                found = Some((changed, path));
            }
        }
    }
    Ok(found.context("cargo made no tests of `net`: run `cargo test --workspace --no-run`")?.1)
}

/// Runs those of `net`'s tests whose names have one of these words, with modules loaded: so many pass. What they said.
fn pass(words: &str, modules: &[&str], at_least: usize) -> Result<String> {
    let directory = tempfile::tempdir()?;
    let program = tests_of_net()?;
    let name = program.file_name().and_then(OsStr::to_str).context("the program's name")?;
    let script = format!(
        "mount -t tmpfs tmpfs /run; exec env WISP_REQUIRE_ALL=1 {name} {words} --nocapture --test-threads 1 2>&1\n"
    );
    let script = write(directory.path(), "host.sh", &script)?;
    let paths = [&script, &program].map(|path| path.display().to_string());
    let mut options = vec!["--file", &paths[0], "--program", &paths[1]];
    modules.iter().for_each(|module| options.extend(["--module", module]));
    let ran = lab(&options, &["sh", "host.sh"])?;
    let (said, errors) = (text(&ran.stdout), text(&ran.stderr));
    let passed = passed(&said).unwrap_or_default();
    ensure!(ran.status.success() && passed >= at_least, "{}: {passed} passed\n{said}\n{errors}", ran.status);
    ensure!(!said.contains("the lab has it"), "a test did not find in the lab what it needs:\n{said}");
    Ok(said.into_owned())
}

fn passed(said: &str) -> Option<usize> {
    said.split_once("test result: ok. ")?.1.split_once(" passed")?.0.parse().ok()
}

const MODULES: [&str; 5] = ["tun", "bridge", "veth", "nf_tables", "nft_ct"];

fn vlans() -> Result<()> {
    let modules = ["8021q", "vxlan", "nf_conntrack_bridge", "nft_meta_bridge", "nf_conntrack_netlink"];
    pass("vlans", &[&MODULES[..], &modules].concat(), 5).map(drop)
}

/// Without `br_netfilter`, which other kernels need.
fn bridge_tracking() -> Result<()> {
    let modules = ["nf_conntrack_bridge", "nft_meta_bridge", "nf_conntrack_netlink"];
    let said = pass("groups forbidden", &[&MODULES[..], &modules].concat(), 10)?;
    ensure!(said.contains("tracked in Bridge") && !said.contains("tracked in Inet"), "{said}");
    Ok(())
}
