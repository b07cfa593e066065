//! GRUB 2's configuration: run as GRUB would run it, as far as finding what to boot needs, and with every loop bounded.
//!
//! Not interpreted: everything about screens, keys and passwords (a password asked for is one that nobody can type), and
//! writing: `save_env` changes this run only, so an entry chosen for one boot stays chosen until the guest says
//! otherwise.

mod commands;
mod interpreter;
mod syntax;
mod test_command;

use super::volumes::{FileName, Volumes};
use interpreter::Interpreter;

pub(super) use self::interpreter::Error;

/// The largest configuration file in bytes: those of hundreds of snapshots have some hundred KiB.
pub(super) const SCRIPT_BYTES_MAX: u64 = 4 << 20;

/// What an entry asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Choice {
    /// The entry's title.
    pub(super) title: String,
    pub(super) kernel: FileName,
    pub(super) initrds: Vec<FileName>,
    /// The words after the kernel, as the kernel will see them.
    pub(super) cmdline: String,
}

/// Runs the configuration in `file` and takes the entry that GRUB would take without anybody at the keyboard.
///
/// # Errors
/// The script is broken, does not end, or boots no Linux.
pub(super) fn choose(volumes: &Volumes, file: &FileName) -> Result<Choice, Error> {
    Interpreter::new(volumes).boot(file)
}

#[cfg(test)]
mod tests;
