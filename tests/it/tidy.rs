//! The house rules as tests: which crate may use which, where each standard has its one home, how long files may be,
//! what may not be left lying about.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;

use crate::harness::trial;

/// Lines of a file before its tests: about 500, with room for a last function.
const FILE_LINES_MAX: usize = 600;
/// The crates, each with those of ours that it may use.
const EDGES: [(&str, &[&str]); 5] = [
    ("vmm", &["storage"]),
    ("net", &[]),
    ("storage", &[]),
    ("control", &["net", "storage", "vmm"]),
    ("api", &["control", "net", "storage", "vmm"]),
];
/// What only one place may say, and that place.
const HOMES: [(&str, &str); 11] = [
    ("kvm_ioctls", "vmm/src/kvm"),
    ("kvm_bindings", "vmm/src/kvm"),
    ("redb::", "control/src/store"),
    ("netlink_packet_route", "net/src/netlink"),
    ("dhcproto", "vmm/src/endpoint"),
    ("domain::base", "control/src/driver/host/resolver"),
    ("axum::", "api/src"),
    ("object_store::", "storage/src/store/s3"),
    ("imago::", "storage/src/format/qcow2.rs"),
    ("ruzstd::", "storage/src/container"),
    ("xts_mode::", "storage/src/format/crypt.rs"),
];

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("tidy::crates_use_only_what_they_may", &[], crates_use_only_what_they_may),
        trial("tidy::each_standard_has_one_home", &[], each_standard_has_one_home),
        trial("tidy::the_vmm_reads_disks_only_as_bytes", &[], the_vmm_reads_disks_only_as_bytes),
        trial("tidy::files_stay_short", &[], files_stay_short),
        trial("tidy::nothing_is_left_lying_about", &[], nothing_is_left_lying_about),
        trial("tidy::versions_stand_in_one_place", &[], versions_stand_in_one_place),
    ]
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// All Rust files of the crates and of the system tests, with their text.
fn sources() -> Result<BTreeMap<PathBuf, String>> {
    let mut sources = BTreeMap::new();
    let mut pending: Vec<PathBuf> = ["vmm", "net", "storage", "control", "api", "tests", "benches"]
        .map(|name| root().join(name))
        .into_iter()
        .filter(|path| path.exists())
        .collect();
    while let Some(path) = pending.pop() {
        if path.is_dir() {
            if path.file_name().is_some_and(|name| name == "target") {
                continue;
            }
            for entry in std::fs::read_dir(&path).with_context(|| format!("list {}", path.display()))? {
                pending.push(entry?.path());
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).with_context(|| format!("read {}", path.display()))?;
            sources.insert(path.strip_prefix(root())?.to_owned(), text);
        }
    }
    Ok(sources)
}

fn is_test(path: &Path) -> bool {
    path.starts_with("tests")
        || path.starts_with("benches")
        || path.ends_with("tests.rs")
        || path
            .components()
            .any(|part| matches!(part.as_os_str().to_str(), Some("tests" | "fuzz" | "examples")))
}

/// The lines before a file's own tests.
fn code(text: &str) -> &str {
    text.split("#[cfg(test)]\nmod tests {").next().unwrap_or(text)
}

fn crates_use_only_what_they_may() -> Result<()> {
    for (name, allowed) in EDGES {
        let manifest = std::fs::read_to_string(root().join(name).join("Cargo.toml"))?;
        let dependencies = manifest.split("[dev-dependencies]").next().unwrap_or_default();
        for (other, _) in EDGES {
            let used = dependencies
                .lines()
                .any(|line| line.split(['.', ' ', '=']).next() == Some(other) && line.contains("workspace"));
            ensure!(!used || allowed.contains(&other), "{name} uses {other}");
        }
    }
    Ok(())
}

fn each_standard_has_one_home() -> Result<()> {
    let mut strangers = Vec::new();
    for (path, text) in sources()?.iter().filter(|(path, _)| !is_test(path)) {
        for (word, home) in HOMES {
            let says = text.lines().any(|line| !line.trim_start().starts_with("//") && line.contains(word));
            if says && !path.to_string_lossy().starts_with(home) {
                strangers.push(format!("{} says {word}, whose home is {home}", path.display()));
            }
        }
    }
    ensure!(strangers.is_empty(), "{}", strangers.join("\n"));
    Ok(())
}

fn the_vmm_reads_disks_only_as_bytes() -> Result<()> {
    for (path, text) in sources()?.iter().filter(|(path, _)| path.starts_with("vmm/src")) {
        let strange =
            text.lines().find(|line| line.contains("storage::") && !line.contains("storage::format"));
        ensure!(strange.is_none(), "{}: {}", path.display(), strange.unwrap_or_default());
    }
    Ok(())
}

fn files_stay_short() -> Result<()> {
    let long: Vec<_> = sources()?
        .iter()
        .filter(|(path, _)| !is_test(path))
        .map(|(path, text)| (code(text).lines().count(), path.clone()))
        .filter(|(lines, _)| *lines > FILE_LINES_MAX)
        .map(|(lines, path)| {
            format!("{} has {lines} lines, at most {FILE_LINES_MAX} are allowed", path.display())
        })
        .collect();
    ensure!(long.is_empty(), "{}", long.join("\n"));
    Ok(())
}

fn nothing_is_left_lying_about() -> Result<()> {
    let mut left = Vec::new();
    for (path, text) in sources()?.iter().filter(|(path, _)| !path.ends_with("tidy.rs")) {
        for (number, line) in text.lines().enumerate() {
            let words = ["todo!(", "unimplemented!(", "FIXME", "XXX", "dbg!("];
            if words.iter().any(|word| line.contains(word)) {
                left.push(format!("{}:{}: {}", path.display(), number + 1, line.trim()));
            }
        }
    }
    ensure!(left.is_empty(), "{}", left.join("\n"));
    Ok(())
}

fn versions_stand_in_one_place() -> Result<()> {
    for (name, _) in EDGES {
        let manifest = std::fs::read_to_string(root().join(name).join("Cargo.toml"))?;
        let dependencies = manifest.lines().skip_while(|line| !line.starts_with("[dependencies]"));
        let strange = dependencies
            .take_while(|line| !line.starts_with("[lints]"))
            .find(|line| line.contains("version ="));
        ensure!(strange.is_none(), "{name}/Cargo.toml: {}", strange.unwrap_or_default());
    }
    Ok(())
}
