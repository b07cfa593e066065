//! Threads that take a part of a VMM's start, beside the one that makes them.
//!
//! Must never know: what the part is.

use std::io;
use std::sync::{Arc, Barrier};
use std::thread::{Builder, Scope, ScopedJoinHandle};

/// Begins `work` on a thread, and waits until it has begun: the kernel may have put the thread behind this one, where it would not
/// begin before this one waits for something.
///
/// # Errors
/// The host has no thread to give.
pub(crate) fn begin<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    thread: Builder,
    work: impl FnOnce() -> T + Send + 'scope,
) -> io::Result<ScopedJoinHandle<'scope, T>> {
    let begun = Arc::new(Barrier::new(2));
    let has_begun = Arc::clone(&begun);
    let thread = thread.spawn_scoped(scope, move || {
        has_begun.wait();
        work()
    })?;
    begun.wait();
    Ok(thread)
}
