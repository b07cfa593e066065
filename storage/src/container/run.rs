//! What the first program of a container image's disk reads: what to run, in a file beside it.
//!
//! The file is a row of `name=value`, each ended by a zero byte, which none of the values can have: `argument` (in order),
//! `environment`, `directory`, `user`, `stop`.

use super::Run;

/// The directory of what is added to an image.
pub(super) const DIRECTORY: &str = ".wisp";
/// Names in it: the first program, and what that reads.
pub(super) const NAMES: [(&str, u16); 2] = [("init", 0o755), ("run", 0o600)];
/// Where the first program is.
pub const INIT_PATH: &str = "/.wisp/init";
/// Where that reads what to run.
pub const CONFIGURATION_PATH: &str = "/.wisp/run";

pub(super) fn encode(run: &Run) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut put = |name: &str, value: &str| {
        bytes.extend_from_slice(name.as_bytes());
        bytes.push(b'=');
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
    };
    run.arguments.iter().for_each(|argument| put("argument", argument));
    run.environment.iter().for_each(|variable| put("environment", variable));
    for (name, value) in [("directory", &run.directory), ("user", &run.user), ("stop", &run.stop_signal)] {
        if !value.is_empty() {
            put(name, value);
        }
    }
    bytes
}

/// All texts of it.
pub(super) fn texts(run: &Run) -> impl Iterator<Item = &String> {
    let lists = run.arguments.iter().chain(&run.environment);
    lists.chain([&run.directory, &run.user, &run.stop_signal])
}
