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
    candidates(&[name])?.pop().ok_or_else(|| Error::Unknown(name.to_owned()))
}

/// The same for several, at once and in their order, since apt takes long to start.
///
/// # Errors
/// apt knows none of one of them.
pub fn candidates(names: &[&str]) -> Result<Vec<Package>, Error> {
    let text = tools::output(tools::command("apt-cache").arg("policy").args(names))?;
    let found = |name: &&str| {
        let version = parse_candidate(&text, name).ok_or_else(|| Error::Unknown((*name).to_owned()))?;
        Ok(Package { name: (*name).to_owned(), version: version.to_owned() })
    };
    names.iter().map(found).collect()
}

/// The candidate of `name` in the output of `apt-cache policy`, whose paragraphs begin with names at the margin.
fn parse_candidate<'a>(policy: &'a str, name: &str) -> Option<&'a str> {
    let mut lines = policy.lines().skip_while(|line| line.strip_suffix(':') != Some(name)).skip(1);
    let line = lines
        .by_ref()
        .take_while(|line| line.starts_with(' '))
        .find_map(|line| line.trim().strip_prefix("Candidate:"))?;
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

/// The files of `packages` in the cache, in their order; those that are not there are fetched.
///
/// # Errors
/// One cannot be fetched.
pub fn fetch(packages: &[Package], cache: &Cache, progress: &Progress) -> Result<Vec<PathBuf>, Error> {
    let directory = cache.directory("packages")?;
    let mut missing = Vec::new();
    for package in packages {
        if package.fetched(&directory)?.is_none() {
            missing.push(format!("{}={}", package.name, package.version));
        }
    }
    if !missing.is_empty() {
        let stage = progress.stage("fetch packages", None);
        let mut command = tools::command("apt-get");
        // apt's own unprivileged user cannot write into the cache.
        command.args(["-q", "-o", "APT::Sandbox::User=root", "download"]).args(&missing);
        // Beside the packages first: one that is cut off leaves a part of a file under the whole one's name.
        let fetched = cache.work(cache::FETCH)?;
        tools::lines(command.current_dir(fetched.path()), |line| stage.message(line))?;
        for entry in fs::read_dir(fetched.path()).map_err(cache::Error::io("list", fetched.path()))? {
            let entry = entry.map_err(cache::Error::io("list", fetched.path()))?;
            let kept = directory.join(entry.file_name());
            fs::rename(entry.path(), &kept).map_err(cache::Error::io("keep", &kept))?;
        }
        stage.done(&missing.join(" "));
    }
    let file = |package: &Package| {
        package.fetched(&directory)?.ok_or_else(|| Error::NotFetched(package.name.clone()))
    };
    packages.iter().map(file).collect()
}

impl Package {
    /// The package's file, if it was fetched.
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
        let known = "w:\n  Candidate: 1\nx:\n  Installed: (none)\n  Candidate: 1:2.3-4\n  Version table:\n\
            y:\n  Candidate: (none)\nz:\n";
        assert_eq!(parse_candidate(known, "x"), Some("1:2.3-4"));
        assert_eq!(parse_candidate(known, "w"), Some("1"));
        for none in ["y", "z", "v"] {
            assert_eq!(parse_candidate(known, none), None, "{none}");
        }
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
