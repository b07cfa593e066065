//! Logs: to standard error, so that standard output is a command's own.

use std::io::IsTerminal;

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// What is logged unless told otherwise: our own crates tell what happens, all others what goes wrong.
pub const LOG_DEFAULT: &str = "warn,api=info,control=info,net=info,storage=info,vmm=info";

/// Starts logging by `filter` (the syntax of `tracing-subscriber`'s `EnvFilter`). Once per process.
pub fn log(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).context("--log is not a filter")?;
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|error| anyhow::anyhow!("start logging: {error}"))
}
