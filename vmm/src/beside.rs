//! Threads that take a part of a VMM's start, beside the one that makes them.
//!
//! Must never know: what the part is.

use std::io;
use std::sync::{Arc, Barrier};

/// What a thread says that it has begun by.
#[derive(Debug)]
pub(crate) struct Begun(Arc<Barrier>);

impl Begun {
    /// Says it.
    pub(crate) fn say(self) {
        self.0.wait();
    }
}

/// Waits until the thread that `spawn` makes has begun: the kernel may have put it behind this one, where it would not begin
/// before this one waits for something.
///
/// # Errors
/// The host has no thread to give.
pub(crate) fn begin<T>(spawn: impl FnOnce(Begun) -> io::Result<T>) -> io::Result<T> {
    let begun = Arc::new(Barrier::new(2));
    let thread = spawn(Begun(begun.clone()))?;
    begun.wait();
    Ok(thread)
}
