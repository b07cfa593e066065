//! The programs that a build starts: whether they are there, and what they said when they failed.

use std::collections::{BTreeSet, VecDeque};
use std::ffi::OsStr;
use std::io::{self, BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};

/// Lines of a failed program's output that its error shows.
const TAIL_LINES_MAX: usize = 25;

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Programs or headers are not installed.
    #[error("{what} needs packages that are not installed; install them with: apt-get install {packages}")]
    Missing {
        /// What needs them.
        what: &'static str,
        /// Debian's names, separated by spaces.
        packages: String,
    },
    /// It could not be started.
    #[error("start {program}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Its output could not be read.
    #[error("read what {program} says")]
    Read {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It failed.
    #[error("{program} failed ({status}); its last words:\n{tail}")]
    Failed {
        /// Which.
        program: String,
        /// How.
        status: ExitStatus,
        /// The end of its output.
        tail: String,
    },
}

/// Something that must be installed, and Debian's package that has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Need {
    /// A program found on the path or in a directory of the administrator's programs.
    Program(&'static str, &'static str),
    /// A file.
    File(&'static str, &'static str),
}

impl Need {
    fn missing(self) -> Option<&'static str> {
        match self {
            Self::Program(name, package) => find(name).is_none().then_some(package),
            Self::File(path, package) => (!Path::new(path).exists()).then_some(package),
        }
    }
}

/// Fails with the command that installs what is missing of `needs`, if anything is.
///
/// # Errors
/// Something is missing.
pub fn require(what: &'static str, needs: &[Need]) -> Result<(), Error> {
    let packages: BTreeSet<_> = needs.iter().filter_map(|need| need.missing()).collect();
    if packages.is_empty() {
        return Ok(());
    }
    Err(Error::Missing { what, packages: packages.into_iter().collect::<Vec<_>>().join(" ") })
}

/// Where a program is: on the path, or where Debian keeps those of the administrator.
#[must_use]
pub fn find(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let directories = std::env::split_paths(&path).chain(["/usr/sbin", "/sbin"].map(PathBuf::from));
    directories.map(|directory| directory.join(name)).find(|candidate| candidate.is_file())
}

/// A command in a fixed environment: messages in English, times in UTC, programs of the administrator found.
#[must_use]
pub fn command(name: &str) -> Command {
    command_at(&find(name).unwrap_or_else(|| name.into()))
}

/// The same for the program in the file `path`.
#[must_use]
pub fn command_at(path: &Path) -> Command {
    let mut command = Command::new(path);
    let path = std::env::var("PATH").unwrap_or_default();
    command.env("PATH", format!("{path}:/usr/sbin:/sbin")).env("LC_ALL", "C.UTF-8").env("TZ", "UTC");
    command.stdin(Stdio::null());
    command
}

/// The same, where it may be, with mounts of its own: what it leaves mounted goes when it ends.
#[must_use]
pub fn command_with_own_mounts(name: &str) -> Command {
    if !nix::unistd::geteuid().is_root() {
        return command(name);
    }
    let mut command = command("unshare");
    command
        .args(["--mount", "--propagation", "private", "--"])
        .arg(find(name).unwrap_or_else(|| name.into()));
    command
}

/// Runs a command to its end and gives what it wrote to standard output.
///
/// # Errors
/// It cannot be started, or fails.
pub fn output(command: &mut Command) -> Result<String, Error> {
    let program = program(command);
    let output = command.output().map_err(|source| Error::Start { program: program.clone(), source })?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if output.status.success() {
        return Ok(text);
    }
    let said = text + &String::from_utf8_lossy(&output.stderr);
    let lines: Vec<_> = said.lines().collect();
    let tail = lines[lines.len().saturating_sub(TAIL_LINES_MAX)..].join("\n");
    Err(Error::Failed { program, status: output.status, tail })
}

/// Runs a command to its end and shows each line of its output to `line`, standard error included.
///
/// # Errors
/// It cannot be started, or fails.
pub fn lines(command: &mut Command, mut line: impl FnMut(&str)) -> Result<(), Error> {
    let program = program(command);
    let start = |source| Error::Start { program: program.clone(), source };
    let read = |source| Error::Read { program: program.clone(), source };
    let (reader, writer) = io::pipe().map_err(start)?;
    command.stderr(writer.try_clone().map_err(start)?).stdout(writer);
    let mut child = command.spawn().map_err(start)?;
    // The command holds the pipe's other end, which would keep it open.
    command.stdout(Stdio::null()).stderr(Stdio::null());
    let mut tail = VecDeque::new();
    for text in BufReader::new(reader).split(b'\n') {
        let text = String::from_utf8_lossy(&text.map_err(read)?).into_owned();
        line(&text);
        if tail.len() == TAIL_LINES_MAX {
            tail.pop_front();
        }
        tail.push_back(text);
    }
    let status = child.wait().map_err(read)?;
    if status.success() {
        return Ok(());
    }
    Err(Error::Failed { program, status, tail: Vec::from(tail).join("\n") })
}

/// Its name for messages; of one with mounts of its own, that of what is run there.
fn program(command: &Command) -> String {
    let inner = command.get_args().skip_while(|argument| *argument != "--").nth(1);
    let own_mounts = command.get_program().as_encoded_bytes().ends_with(b"/unshare");
    let path = Path::new(inner.filter(|_| own_mounts).unwrap_or(command.get_program()));
    let name = path.file_name().unwrap_or(OsStr::new("a program"));
    name.to_string_lossy().into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_named_once_with_the_command_that_installs_it() {
        let needs = [
            Need::Program("sh", "dash"),
            Need::Program("no-such-program", "one"),
            Need::File("/no/such/file", "one"),
            Need::File("/no/such/other", "another"),
        ];
        let error = require("the test", &needs).unwrap_err().to_string();
        assert!(error.ends_with("apt-get install another one"), "{error}");
        require("the test", &needs[..1]).unwrap();
    }

    #[test]
    fn a_failure_shows_the_last_words_of_both_outputs() {
        let mut seen = 0;
        let mut failing = command("sh");
        failing.args(["-c", "seq 100; echo why >&2; exit 3"]);
        let error = lines(&mut failing, |_| seen += 1).unwrap_err().to_string();
        assert!(error.contains("exit status: 3") && error.ends_with("100\nwhy"), "{error}");
        assert!(!error.contains("\n50\n"), "{error}");
        assert_eq!(seen, 101);
        let error = output(command_with_own_mounts("false").arg("--all")).unwrap_err().to_string();
        assert!(error.starts_with("false failed"), "{error}");
        assert_eq!(output(command("sh").args(["-c", "echo yes"])).unwrap(), "yes\n");
    }
}
