//! The console: what this program says, and what the image's program reads and writes.

use std::fs::File;
use std::io::Write;
use std::process::Stdio;

/// The console, or nothing if there is none.
pub(crate) struct Console(Option<File>);

impl Console {
    pub(crate) fn open() -> Self {
        Self(File::options().read(true).write(true).open("/dev/console").ok())
    }

    /// Says a sentence.
    pub(crate) fn say(&mut self, sentence: &str) {
        if let Some(console) = &mut self.0 {
            // There is nobody else to tell.
            let _ = writeln!(console, "wisp: {sentence}");
        }
    }

    /// The same for a program.
    pub(crate) fn for_program(&self) -> Stdio {
        self.0.as_ref().and_then(|console| console.try_clone().ok()).map_or_else(Stdio::null, Stdio::from)
    }

    /// Gives it to a user, so that `/dev/stdout` can be opened by programs that are not root.
    pub(crate) fn give_to(&self, uid: u32) {
        if let Some(console) = &self.0 {
            // Without, they can still write to what they inherit.
            let _ = std::os::unix::fs::fchown(console, Some(uid), None);
        }
    }
}
