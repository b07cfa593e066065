//! `wisp token`: the keys that a running cloud makes tokens with.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Subcommand;

use crate::guest::upload;
use crate::process::state_directory::StateDirectory;

/// The keys that tokens are made with.
#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// Make the staged key the one that makes tokens, stage a new one, and forget the oldest beyond three.
    ///
    /// As with Keystone's own rotation, tokens hold until the key they were made with is forgotten: do not rotate more
    /// often than tokens live.
    #[command(after_help = "Examples:\n  wisp token rotate --state ./cloud")]
    Rotate(Rotate),
}

/// Which cloud.
#[derive(Debug, clap::Args)]
pub(super) struct Rotate {
    /// The cloud's directory, whose clouds.yaml says where it is and who its administrator is.
    #[arg(long, value_name = "DIR", default_value_os_t = StateDirectory::default_path())]
    state: PathBuf,
}

pub(super) fn dispatch(command: &Command) -> anyhow::Result<ExitCode> {
    let Command::Rotate(Rotate { state }) = command;
    let answer = upload::administer(&state.join("clouds.yaml"), "wisp", "OS-WISP/token_keys")?;
    let numbers = answer["token_keys"].as_array().into_iter().flatten();
    let numbers: Vec<String> = numbers.map(ToString::to_string).collect();
    println!("token keys {}", numbers.join(" "));
    Ok(ExitCode::SUCCESS)
}
