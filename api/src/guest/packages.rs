//! Debian's packages as files: fetched with apt, unpacked without being installed.

use std::fs;
use std::path::{Path, PathBuf};

use super::cache::{self, Cache};
use super::progress::Progress;
use super::tools::{self, Need};

/// What fetching and unpacking needs.
pub const NEEDS: [Need; 2] = [Need::Program("apt-get", "apt"), Need::Program("dpkg-deb", "dpkg")];

/// Where apt keeps what it knows.
const LISTS: &str = "/var/lib/apt/lists";

/// Why packages are not there.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// apt does not know it.
    #[error("apt knows no package {0}; `apt-get update` refreshes what it knows")]
    Unknown(String),
    /// The cache.
    #[error(transparent)]
    Cache(#[from] cache::Error),
    /// apt or dpkg failed.
    #[error(transparent)]
    Tool(#[from] tools::Error),
    /// apt fetched something, and the file is not there.
    #[error("apt-get download left no file for {0}")]
    NotFetched(String),
}

/// A package by the version that apt would install.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Package {
    /// Debian's name.
    pub name: String,
    /// Debian's version.
    pub version: String,
}

/// Asks apt which version of `name` it would install.
///
/// # Errors
/// apt knows none.
pub fn candidate(name: &str) -> Result<Package, Error> {
    let text = tools::output(tools::command("apt-cache").args(["policy", name]))?;
    let version = parse_candidate(&text).ok_or_else(|| Error::Unknown(name.to_owned()))?;
    Ok(Package { name: name.to_owned(), version: version.to_owned() })
}

fn parse_candidate(policy: &str) -> Option<&str> {
    let line = policy.lines().find_map(|line| line.trim().strip_prefix("Candidate:"))?;
    Some(line.trim()).filter(|version| *version != "(none)")
}

/// The packages that `name` depends on.
///
/// # Errors
/// apt does not know it.
pub fn depends(name: &str) -> Result<Vec<String>, Error> {
    let text = tools::output(tools::command("apt-cache").args(["depends", name]))?;
    let names = text.lines().filter_map(|line| line.trim().strip_prefix("Depends:"));
    Ok(names.map(|name| name.trim().to_owned()).collect())
}

/// What stands for all that Debian's archive offers at the moment: the release files that apt last fetched.
///
/// # Errors
/// They cannot be read. That there are none is no error.
pub fn archive_state() -> Result<Vec<u8>, Error> {
    let directory = Path::new(LISTS);
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).into_iter().flatten() {
        let path = entry.map_err(cache::Error::io("list", directory))?.path();
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        if name.contains("debian") && name.ends_with("Release") {
            files.push(path);
        }
    }
    files.sort();
    let mut state = Vec::new();
    for file in files {
        state.extend(fs::read(&file).map_err(cache::Error::io("read", &file))?);
    }
    Ok(state)
}

impl Package {
    /// The package's file in the cache, fetched if it is not there.
    ///
    /// # Errors
    /// It cannot be fetched.
    pub fn fetch(&self, cache: &Cache, progress: &Progress) -> Result<PathBuf, Error> {
        let directory = cache.directory("packages")?;
        if let Some(file) = self.fetched(&directory)? {
            return Ok(file);
        }
        let stage = progress.stage(&format!("fetch {}", self.name), None);
        let mut command = tools::command("apt-get");
        // apt's own unprivileged user cannot write into the cache.
        command.args(["-q", "-o", "APT::Sandbox::User=root", "download"]);
        command.arg(format!("{}={}", self.name, self.version)).current_dir(&directory);
        tools::lines(&mut command, |line| stage.message(line))?;
        let file = self.fetched(&directory)?.ok_or_else(|| Error::NotFetched(self.name.clone()))?;
        stage.done(&self.version);
        Ok(file)
    }

    fn fetched(&self, directory: &Path) -> Result<Option<PathBuf>, Error> {
        let start = format!("{}_{}_", self.name, self.version.replace(':', "%3a"));
        let entries = fs::read_dir(directory).map_err(cache::Error::io("list", directory))?;
        for entry in entries {
            let entry = entry.map_err(cache::Error::io("list", directory))?;
            let name = entry.file_name();
            if name.to_str().is_some_and(|name| name.starts_with(&start) && name.ends_with(".deb")) {
                return Ok(Some(entry.path()));
            }
        }
        Ok(None)
    }
}

/// Unpacks a package's files below `into`.
///
/// # Errors
/// It cannot be unpacked.
pub fn unpack(file: &Path, into: &Path) -> Result<(), Error> {
    tools::output(tools::command("dpkg-deb").arg("-x").arg(file).arg(into))?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn candidate_is_read_from_apt_and_none_is_none() {
        let known = "x:\n  Installed: (none)\n  Candidate: 1:2.3-4\n  Version table:\n";
        assert_eq!(parse_candidate(known), Some("1:2.3-4"));
        assert_eq!(parse_candidate("x:\n  Candidate: (none)\n"), None);
        assert_eq!(parse_candidate(""), None);
    }

    #[test]
    fn fetched_file_is_found_by_name_and_version() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("x_1%3a2.3-4_amd64.deb");
        fs::write(&file, "").unwrap();
        let package = |version: &str| Package { name: "x".into(), version: version.into() };
        assert_eq!(package("1:2.3-4").fetched(directory.path()).unwrap(), Some(file));
        assert_eq!(package("1:2.3").fetched(directory.path()).unwrap(), None);
    }
}
