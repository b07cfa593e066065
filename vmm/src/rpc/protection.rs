//! What confines a VMM process, as it says of itself.

use std::fmt;

use serde::{Deserialize, Serialize};

/// One of the things that confine a VMM process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// Its root is an empty directory that cannot be written, in a mount namespace of its own.
    MountNamespace,
    /// It sees no process but itself.
    PidNamespace,
    /// It is where no network is.
    NetworkNamespace,
    /// It shares no System V objects and no message queues.
    IpcNamespace,
    /// The host's name is not its to know or to change.
    UtsNamespace,
    /// It runs as a user that nothing else runs as.
    User,
    /// It has no capabilities, and no program of it could gain any.
    Capabilities,
    /// No program that it starts could gain privileges.
    NoNewPrivileges,
    /// Guest memory goes into no core file, and others of its user cannot read it.
    CoreDumps,
    /// Landlock denies it all paths, ports, and signals to others.
    Landlock,
    /// Every thread has a filter of system calls, which kills the process on any other.
    SystemCalls,
}

impl Protection {
    /// What it keeps a process that was taken over from, for people.
    #[must_use]
    pub fn meaning(self) -> &'static str {
        match self {
            Self::MountNamespace => "its root is an empty directory: no file has a path",
            Self::PidNamespace => "it sees no process but itself",
            Self::NetworkNamespace => "no network reaches it, and it reaches none",
            Self::IpcNamespace => "it shares no memory, semaphores or queues with anybody",
            Self::UtsNamespace => "it cannot change the host's name",
            Self::User => "a user of its own: no other's files and processes are its to touch",
            Self::Capabilities => "it has no rights of root, and nothing that it runs could gain any",
            Self::NoNewPrivileges => "no program that it ran would gain privileges",
            Self::CoreDumps => "guest memory gets into no core file and no other's debugger",
            Self::Landlock => "paths, ports and signals are denied once more, by the kernel's module",
            Self::SystemCalls => "what its threads may ask of the kernel is listed; anything else ends it",
        }
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(match self {
            Self::MountNamespace => "empty root",
            Self::PidNamespace => "PID namespace",
            Self::NetworkNamespace => "network namespace",
            Self::IpcNamespace => "IPC namespace",
            Self::UtsNamespace => "UTS namespace",
            Self::User => "user of its own",
            Self::Capabilities => "no capabilities",
            Self::NoNewPrivileges => "no new privileges",
            Self::CoreDumps => "no core dumps",
            Self::Landlock => "Landlock",
            Self::SystemCalls => "system-call filters",
        })
    }
}

/// Whether a protection holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ProtectionStatus {
    /// Which.
    pub protection: Protection,
    /// Why it does not; absent: it does.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub missing: Option<String>,
}
