//! What is on the host: links, packet-filter tables, processes. Compared before and after.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};

use super::links;

/// What a cloud could have left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Remains {
    links: BTreeSet<String>,
    tables: BTreeSet<String>,
}

impl Remains {
    /// Looks.
    pub(crate) fn look() -> Result<Self> {
        let tables = net::nftables::table_names().context("list the packet-filter tables")?;
        Ok(Self { links: links()?.into_iter().collect(), tables: tables.into_iter().collect() })
    }

    /// Nothing is there that was not there before.
    pub(crate) fn nothing_new_since(&self, before: &Self) -> Result<()> {
        let links: Vec<_> = self.links.difference(&before.links).collect();
        let tables: Vec<_> = self.tables.difference(&before.tables).collect();
        ensure!(links.is_empty() && tables.is_empty(), "left: links {links:?}, tables {tables:?}");
        Ok(())
    }
}

/// Running processes one of whose words says `word`: process id and command line.
pub(crate) fn processes(word: &str) -> Result<Vec<(i32, String)>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("list the processes")?.flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(line) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let line = String::from_utf8_lossy(&line).replace('\0', " ");
        if line.contains(word) && pid != std::process::id().cast_signed() {
            found.push((pid, line));
        }
    }
    Ok(found)
}
