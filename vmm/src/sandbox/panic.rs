//! What a confined process says when it panics: why, and where.
//!
//! The standard library's own hook looks for files to name the callers by where `RUST_BACKTRACE` asks for them, which the filter
//! kills the process for before anything is said.

use std::io::Write as _;

/// Has every thread's panic told on standard error, without its callers.
pub(super) fn be_heard() {
    std::panic::set_hook(Box::new(|panic| {
        let thread = std::thread::current();
        let name = thread.name().unwrap_or("without a name");
        // At once, since who reads it may only have the beginning. Nobody may be there to hear it, and it goes on all the same.
        let _ = std::io::stderr().write_all(format!("thread {name} {panic}\n").as_bytes());
    }));
}
