//! `wisp guest`: the guests that come with the program.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Context;

/// The guests that come with Wisp.
#[derive(Debug, clap::Subcommand)]
pub(super) enum Command {
    /// Write one out as an ELF file that any VMM can boot.
    #[command(after_help = "Example:\n  \
        wisp guest export tiny tiny.elf\n  \
        sudo wisp vmm boot --kernel tiny.elf      its first words are WISP-GUEST")]
    Export {
        /// Which one.
        #[arg(value_enum)]
        guest: Guest,
        /// The file to write.
        file: PathBuf,
    },
}

/// A guest that comes with Wisp.
#[derive(Debug, Clone, Copy, clap::ValueEnum)]
pub(super) enum Guest {
    /// A few kilobytes that boot in milliseconds, take an address by DHCP and answer ping, echo and HTTP.
    Tiny,
}

pub(super) fn dispatch(command: &Command) -> anyhow::Result<ExitCode> {
    let Command::Export { guest: Guest::Tiny, file } = command;
    std::fs::write(file, vmm::guest::TINY).with_context(|| format!("write {}", file.display()))?;
    eprintln!("wrote {} ({} bytes)", file.display(), vmm::guest::TINY.len());
    Ok(ExitCode::SUCCESS)
}
