//! What a cloud leaves on its host: links, processes, files. Compared before and after, so that the demo proves
//! that nothing stays.

use std::collections::BTreeSet;
use std::path::Path;

use anyhow::{Context, Result};

/// What is on the host at one moment, as far as a cloud could have made it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Host {
    /// Names of network links.
    links: BTreeSet<String>,
    /// Names of packet-filter tables.
    tables: BTreeSet<String>,
}

impl Host {
    /// Looks at the host.
    pub(super) fn look() -> Result<Self> {
        let table = std::fs::read_to_string("/proc/thread-self/net/dev").context("list the network links")?;
        let links =
            table.lines().filter_map(|line| Some(line.split_once(':')?.0.trim().to_owned())).collect();
        let tables =
            net::nftables::table_names().context("list the packet-filter tables")?.into_iter().collect();
        Ok(Self { links, tables })
    }

    /// What is here now that was not there before, in words.
    pub(super) fn new_since(&self, before: &Self) -> Vec<String> {
        let links = self.links.difference(&before.links).map(|name| format!("link {name}"));
        let tables = self.tables.difference(&before.tables).map(|name| format!("packet-filter table {name}"));
        links.chain(tables).collect()
    }
}

/// What is still there of one server: its process, its files.
pub(super) fn of_server(state: &Path, id: &str) -> Vec<String> {
    let mut left: Vec<String> = processes(|words| words.iter().any(|word| word == id));
    for below in ["run", "control/images"] {
        let path = state.join(below).join(id);
        if path.exists() {
            left.push(format!("file {}", path.display()));
        }
    }
    left
}

/// Processes that work on a state directory.
pub(super) fn of_cloud(state: &Path) -> Vec<String> {
    let state = state.to_string_lossy();
    processes(|words| words.iter().any(|word| word.contains(state.as_ref())))
}

/// Running `wisp` processes other than this one whose command line is wanted.
fn processes(wanted: impl Fn(&[String]) -> bool) -> Vec<String> {
    let Ok(entries) = std::fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for entry in entries.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        if pid == std::process::id() {
            continue;
        }
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let words: Vec<String> = line
            .split(|byte| *byte == 0)
            .filter(|word| !word.is_empty())
            .map(|word| String::from_utf8_lossy(word).into_owned())
            .collect();
        if words.first().is_some_and(|program| program.contains("wisp")) && wanted(&words) {
            found.push(format!("process {pid} ({})", words.join(" ")));
        }
    }
    found
}
