//! Steps that a test can make fail, to see that nothing is left behind. A driver is handed an empty set in earnest.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};

/// The steps in which the host driver starts an instance, in order, then those in which it copies a root disk, then those
/// in which devices come to it while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Step {
    /// The instance's directory.
    Directory,
    /// What is written down of it.
    Record,
    /// The root disk.
    RootDisk,
    /// The volumes.
    Volumes,
    /// The configuration drive.
    ConfigDrive,
    /// The kernel beside the disk.
    Kernel,
    /// Bridges, taps and rules.
    Network,
    /// The console log, the control socket and the report of its end.
    Files,
    /// The VMM process.
    Process,
    /// Writing down which process it is.
    ProcessRecord,
    /// Telling the process what to be.
    Configuration,
    /// Running the guest.
    Start,
    /// Having a guest stand still.
    Pause,
    /// Writing out what the guest wrote.
    Flush,
    /// Copying its disk's own file.
    Freeze,
    /// Opening the copy, while the guest goes on.
    OpenFrozen,
    /// Opening a volume for a guest that runs.
    PlugOpen,
    /// Making a tap for one.
    PlugNetwork,
}

impl Step {
    /// Those of copying a root disk, in order.
    pub const OF_A_COPY: [Self; 4] = [Self::Pause, Self::Flush, Self::Freeze, Self::OpenFrozen];
    /// Those of a start, in order.
    pub const ALL: [Self; 12] = [
        Self::Directory,
        Self::Record,
        Self::RootDisk,
        Self::Volumes,
        Self::ConfigDrive,
        Self::Kernel,
        Self::Network,
        Self::Files,
        Self::Process,
        Self::ProcessRecord,
        Self::Configuration,
        Self::Start,
    ];
}

/// Which steps fail after they were done, as they would if the machine refused what follows. Cheap to clone.
#[derive(Debug, Clone, Default)]
pub struct FailPoints(Arc<Mutex<BTreeSet<Step>>>);

impl FailPoints {
    /// Has this step fail from now on, and no other.
    pub fn only(&self, step: Step) {
        *self.steps() = BTreeSet::from([step]);
    }

    /// Has no step fail from now on.
    pub fn clear(&self) {
        self.steps().clear();
    }

    /// Whether this step shall fail.
    pub fn is_set(&self, step: Step) -> bool {
        self.steps().contains(&step)
    }

    fn steps(&self) -> std::sync::MutexGuard<'_, BTreeSet<Step>> {
        // The set is replaced whole.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
