//! An instance's root disk as it is at one moment, to be read while the instance goes on.

use std::sync::PoisonError;
use std::time::Duration;

use storage::format::Disk;
use storage::root_disk::find_root_disk;
use vmm::rpc::{Client, VmState};

use super::directory::Directory;
use super::{HostDriver, Process, Slot, disk, sentence};
use crate::driver::DriverError;
use crate::driver::fail_points::Step;

/// How long a VMM may take to write out what its guest wrote: as long as a slow disk with much in memory.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(120);

/// A guest that stands still, until this is dropped.
struct Still<'d> {
    driver: &'d HostDriver,
    id: &'d str,
    directory: &'d Directory,
}

impl Drop for Still<'_> {
    fn drop(&mut self) {
        let resumed =
            Client::connect(&self.directory.control_socket()).and_then(|mut client| client.resume());
        if let Err(error) = resumed {
            tracing::warn!(instance.id = self.id, error = sentence(&error), "a guest cannot be resumed");
            // Whoever applies what is wanted resumes it, or finds that it is over.
            self.driver.exits.look_at(self.id);
        }
    }
}

impl HostDriver {
    /// The root disk of an instance as it is now. A guest that runs stands still while the disk's own file is copied,
    /// which takes no time where the file system shares blocks, and goes on whatever becomes of the copy; should this
    /// process end meanwhile, the next one resumes it, as it brings every instance to the power that is wanted.
    ///
    /// # Errors
    /// One sentence.
    pub(super) fn freeze_root(&self, id: &str) -> Result<Box<dyn Disk>, String> {
        let none = || DriverError::NoInstance(id.to_owned()).to_string();
        let slot = self.slots().get(id).cloned().ok_or_else(none)?;
        // Held to the end of the copy: nobody starts a guest over the disk, or resumes the one that stands still.
        let slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = Directory::of(&self.run, id).map_err(|error| error.to_string())?;
        let record = slot.record.as_ref().ok_or_else(none)?;
        let root = &record.wanted.root_disk;
        if root.volume.is_some() {
            return Err(format!("the root disk of instance {id} is a volume"));
        }
        let failed = |error: disk::Error| format!("copy the root disk: {}", sentence(&error));
        let disks = directory.disks();
        let found = find_root_disk(&disks).map_err(|error| failed(error.into()))?;
        let found = found.ok_or_else(|| format!("instance {id} has no root disk yet"))?;
        let still = self.hold_still(id, &slot, &directory)?;
        let frozen = found.freeze().map_err(|error| failed(error.into()))?;
        self.check(Step::Freeze)?;
        drop(still);
        let opened = disk::open_frozen(frozen, &disks, &self.images, &root.image_id).map_err(failed)?;
        self.check(Step::OpenFrozen)?;
        Ok(opened)
    }

    /// Has the guest, if one runs, stand still with all that it wrote in its disks' files.
    fn hold_still<'d>(
        &'d self,
        id: &'d str,
        slot: &Slot,
        directory: &'d Directory,
    ) -> Result<Option<Still<'d>>, String> {
        if slot.process.as_ref().is_none_or(Process::has_ended) {
            return Ok(None);
        }
        let failed = |error| format!("have the guest stand still: {}", sentence(&error));
        let mut client = Client::connect(&directory.control_socket()).map_err(failed)?;
        let state = client.status().map_err(failed)?.state;
        // One that its owner has paused stays so.
        let still = (state != VmState::Paused).then(|| Still { driver: self, id, directory });
        if still.is_some() {
            client.pause().map_err(failed)?;
        }
        self.check(Step::Pause)?;
        client.set_timeout(FLUSH_TIMEOUT).map_err(failed)?;
        client.flush().map_err(failed)?;
        self.check(Step::Flush)?;
        Ok(still)
    }
}
