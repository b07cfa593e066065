//! What can go wrong before, around and after the command of a lab. The command's own failure is none of it.

use std::io;
use std::path::PathBuf;

/// Why a lab did not come to the end of its command.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A program or package that only the user can install.
    #[error("the lab needs {what}: {advice}")]
    Missing {
        /// What.
        what: &'static str,
        /// What to type.
        advice: &'static str,
    },
    /// A helper program failed.
    #[error("{program} failed: {said}")]
    Program {
        /// Which, with its arguments.
        program: String,
        /// Its last words.
        said: String,
    },
    /// A file of the outer host.
    #[error("{action} {path}")]
    File {
        /// What was tried.
        action: &'static str,
        /// On which.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A kernel module that the kernel's package does not have.
    #[error("the kernel {kernel} has no module {module}")]
    NoModule {
        /// The module.
        module: String,
        /// The kernel's version.
        kernel: String,
    },
    /// Modules whose information cannot be read as they are.
    #[error(
        "the modules of kernel {kernel} are compressed, which the lab cannot read: let it download Debian 12's kernel"
    )]
    CompressedModules {
        /// The kernel's version.
        kernel: String,
    },
    /// The tap to the host inside.
    #[error("{action} the tap {name}")]
    Tap {
        /// What was tried.
        action: &'static str,
        /// Its name.
        name: String,
        /// Why it failed.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// The emulator could not be started.
    #[error("start {program}")]
    Start {
        /// The program.
        program: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The line to the inner host.
    #[error("the line to the lab's host")]
    Line(#[source] io::Error),
    /// The host inside could not run the command.
    #[error("the lab's host could not run the command: {said}")]
    Inside {
        /// What it said.
        said: String,
    },
    /// The host inside ended by itself.
    #[error("the lab's host ended before the command did; the end of its console:\n{console}")]
    Died {
        /// The last lines of its console.
        console: String,
    },
    /// The time was up.
    #[error("the lab ran into its limit of {seconds} s ({stage}){console}")]
    Timeout {
        /// The limit.
        seconds: u64,
        /// How far it had come.
        stage: &'static str,
        /// The last lines of its console, if the command had not started.
        console: String,
    },
    /// A file that was to be brought out.
    #[error("{path} cannot be brought out of the lab: {said}")]
    Bring {
        /// Its path inside.
        path: String,
        /// Why.
        said: String,
    },
}

impl Error {
    /// For `map_err`: a file that something was tried on.
    pub(super) fn file(action: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::File { action, path, source }
    }
}
