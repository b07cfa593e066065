//! Logs: to standard error, so that standard output is a command's own. And what commands say there.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write as _};

use anyhow::Context;
use tracing_subscriber::EnvFilter;

/// What is logged unless told otherwise: our own crates tell what happens, all others what goes wrong.
pub const LOG_DEFAULT: &str = "warn,api=info,control=info,net=info,storage=info,vmm=info";

/// Writes a line to standard output, and what standard output has not been given yet. Who has hung up (`| head`) hears nothing:
/// what was asked for is done all the same.
///
/// # Errors
/// It cannot be written for another reason, such as a full disk.
pub fn say(line: impl Display) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    match writeln!(output, "{line}").and_then(|()| output.flush()) {
        Err(error) if error.kind() != ErrorKind::BrokenPipe => Err(error).context("write to standard output"),
        _ => Ok(()),
    }
}

/// Writes a line to standard error, if anybody hears it.
pub fn tell(line: impl Display) {
    // There is nobody else to be told that it cannot be written.
    let _ = writeln!(std::io::stderr(), "wisp: {line}");
}

/// Starts logging by `filter` (the syntax of `tracing-subscriber`'s `EnvFilter`). Once per process.
pub fn log(filter: &str) -> anyhow::Result<()> {
    let filter = EnvFilter::try_new(filter).context("--log is not a filter")?;
    tracing_subscriber::fmt()
        // That a line cannot be written would be said at the same place, which panics where nobody can hear it.
        .log_internal_errors(false)
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(std::io::stderr().is_terminal())
        .try_init()
        .map_err(|error| anyhow::anyhow!("start logging: {error}"))
}
