//! `wisp demo`: checks that the host can do it, then runs the demo.

use std::process::ExitCode;

/// Start a cloud in a temporary directory, do once what a person would, and leave nothing behind.
///
/// Token, image upload, flavor, key pair, network, subnet, security group and a server; wait until the guest itself
/// answers, ping it, fetch a page from it, show its console, stop it, start it, delete it all, and look that no process,
/// link, rule or file is left. Each step is a line with its time. The exit code is 0 only if every step held.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sudo wisp demo\n  \
    sudo wisp demo --keep        leaves the cloud running and says how to use it")]
pub(super) struct Arguments {
    /// Leave the cloud running, with its server.
    #[arg(long)]
    keep: bool,
}

pub(super) fn run(arguments: &Arguments) -> anyhow::Result<ExitCode> {
    super::up::check_host()?;
    crate::demo::run(arguments.keep)?;
    Ok(ExitCode::SUCCESS)
}
