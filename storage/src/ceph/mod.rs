//! The Ceph backend: every disk is an RBD image of one pool, by Ceph's own programs.
//!
//! ```text
//! POOL/wisp-ID        a disk; its metadata `wisp` says what it is (see `Marks`)
//! POOL/wisp-ID.new    a disk being made; with the word `whole`, one that takes the place of wisp-ID
//! POOL/wisp-X@wisp-ID a snapshot that wisp-ID is being cloned from, for a moment
//! ```
//!
//! A copy is a clone (of format 2, so nothing has to be protected) and takes constant time, whether a guest writes or not.
//! What it was cloned from is deleted under its feet: Ceph keeps it in its trash for as long as a clone needs it, and
//! takes it from there by itself. A snapshot is a clone that is never written, so it needs no source to stay. Where clones
//! stand upon too many, the topmost is made independent, which copies.
//!
//! A disk is given to somebody as a block device, of which the kernel's own client makes one (module `rbd`). A device that
//! a reader in this process had goes with the reader; one that a VMM was given stays until its disk goes, is replaced or
//! is given to a reader next, or somebody opens the backend.
//!
//! Must never know: images' ids, servers, how a pool is made.

mod command;
mod device;
#[cfg(test)]
mod tests;

use std::fs::File;
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use self::command::{Ceph, Found, Marks};
use self::device::{Devices, KernelDevices};
use crate::backend::name::{self, name_of, partial_of};
use crate::backend::{Backend, BackendError, Capabilities, Capacity, Export, Fill, SECTOR_BYTES, Source};
use crate::backend::{check_holds, io_error};
use crate::format::raw::file_size_bytes;
use crate::format::{Disk as _, RawFile};

type Result<T> = std::result::Result<T, BackendError>;

/// The most images below a disk, each of which a read may have to ask. The kernel's client opens 16.
const DEPTH_MAX: u32 = 8;

/// See the module.
pub struct CephBackend {
    ceph: Ceph,
    devices: Arc<Attached>,
}

/// The block devices there are.
struct Attached {
    devices: Box<dyn Devices>,
    /// Held from the moment a device is looked for until it is open, and while one is taken away.
    changing: Mutex<()>,
}

impl Attached {
    fn changing(&self) -> MutexGuard<'_, ()> {
        // What it guards is the kernel's.
        self.changing.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an image's device away, unless somebody has it open.
    fn release(&self, name: &str) -> Result<()> {
        let _changing = self.changing();
        self.devices.unmap(name)
    }
}

impl CephBackend {
    /// Opens the pool `pool` as Ceph's user `user`, or the one that Ceph's programs take without one, and clears what a
    /// crash left half done. Where the cluster is, says the file that `CEPH_CONF` names, or /etc/ceph/ceph.conf.
    ///
    /// # Errors
    /// There is no such pool, or Ceph's programs are not there, or may not.
    pub fn open(pool: &str, user: Option<&str>) -> Result<Self> {
        let ceph = Ceph::new(pool, user)?;
        let devices = KernelDevices::new(ceph.clone());
        Self::open_with(ceph, Box::new(devices))
    }

    fn open_with(ceph: Ceph, devices: Box<dyn Devices>) -> Result<Self> {
        let devices = Arc::new(Attached { devices, changing: Mutex::default() });
        let backend = Self { ceph, devices };
        backend.capacity()?;
        for name in backend.devices.devices.all()? {
            if name::is_ours(&name) {
                backend.devices.release(&name)?;
            }
        }
        for name in backend.ceph.list()? {
            if let Some(id) = name::half_made(&name) {
                backend.look(id)?;
                backend.remove(&partial_of(id)?)?;
            }
        }
        Ok(backend)
    }

    /// The disk by that id, if there is one; a disk whose successor is whole has been replaced by it.
    fn look(&self, id: &str) -> Result<Option<Found>> {
        let (name, partial) = (name_of(id)?, partial_of(id)?);
        if let Some(found) = self.ceph.find(&name)? {
            return Ok(Some(found));
        }
        let Some(found) = self.ceph.find(&partial)? else { return Ok(None) };
        if !self.ceph.marks(&partial)?.whole {
            return Ok(None);
        }
        self.ceph.rename(&partial, &name)?;
        Ok(Some(Found { name, ..found }))
    }

    fn existing(&self, id: &str) -> Result<Found> {
        self.look(id)?.ok_or_else(|| BackendError::missing(id))
    }

    /// Removes an image, if it is there.
    fn remove(&self, name: &str) -> Result<()> {
        self.devices.release(name)?;
        self.ceph.remove(name)
    }

    /// The partial image of `id` as a copy of `of`, at least so large, with these marks.
    fn copied(&self, id: &str, of: &Found, size_bytes: u64, marks: &Marks) -> Result<()> {
        let (name, partial) = (name_of(id)?, partial_of(id)?);
        self.remove(&partial)?;
        let depth = self.ceph.marks(&of.name)?.depth + 1;
        // What a guest was told is written may still be on its way from the kernel's memory.
        let changing = self.devices.changing();
        if let Some(path) = self.devices.devices.mapped(&of.name)? {
            let synced = File::open(&path).and_then(|device| device.sync_all());
            synced.map_err(io_error("sync", &path))?;
        }
        drop(changing);
        self.ceph.clone_image(&of.name, &name, &partial)?;
        if size_bytes > of.size_bytes {
            self.ceph.resize(&partial, size_bytes)?;
        }
        let depth = if depth > DEPTH_MAX { self.ceph.flatten(&partial).map(|()| 0)? } else { depth };
        self.ceph.mark(&partial, &Marks { depth, ..*marks })
    }

    /// Puts the partial image, which is marked as whole, in the place of the disk.
    fn replace(&self, id: &str) -> Result<()> {
        self.remove(&name_of(id)?)?;
        // From here on the other is the disk, whoever looks for it next.
        self.existing(id).map(drop)
    }

    /// The partial image of `id` with what `fill` writes; none if that fails.
    fn filled(&self, id: &str, size_bytes: u64, fill: Fill<'_>) -> Result<()> {
        let partial = partial_of(id)?;
        self.remove(&partial)?;
        self.ceph.create(&partial, size_bytes)?;
        let filled = self.device(&partial, size_bytes, false).and_then(|device| {
            let disk = RawFile::whole(device, false).map_err(io_error("size", partial.as_ref()))?;
            fill(&disk).and_then(|()| disk.flush()).map_err(io_error("write", partial.as_ref()))
        });
        // Its name is about to change, and the device would keep the old one.
        let released = self.devices.release(&partial);
        if filled.is_err() {
            // The first failure is the one to tell of; what stays is removed by the next attempt.
            let _ = self.remove(&partial);
        }
        filled.and(released)
    }

    /// Opens an image as a device, which is made if there is none.
    fn device(&self, name: &str, size_bytes: u64, frozen: bool) -> Result<File> {
        let _changing = self.devices.changing();
        let devices = &self.devices.devices;
        let open = |path: &Path| {
            let opened = File::options().read(true).write(!frozen).open(path);
            let sized = opened.and_then(|file| Ok((file_size_bytes(&file)?, file)));
            sized.map_err(io_error("open", path))
        };
        if let Some(path) = devices.mapped(name)? {
            let (device_bytes, file) = open(&path)?;
            if device_bytes == size_bytes {
                return Ok(file);
            }
            // Of another size, it has not heard of the image's; nobody can be using it who should.
            drop(file);
            devices.unmap(name)?;
        }
        let path = match devices.mapped(name)? {
            Some(path) => path,
            None => devices.map(name, frozen)?,
        };
        open(&path).map(|(_, file)| file)
    }
}

impl Backend for CephBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "ceph", copies_in_use: true, thin: true }
    }

    fn capacity(&self) -> Result<Capacity> {
        self.ceph.capacity()
    }

    fn create(&self, id: &str, size_bytes: u64, source: Source<'_>) -> Result<()> {
        let size_bytes = size_bytes.next_multiple_of(SECTOR_BYTES);
        if self.look(id)?.is_some() {
            return Ok(());
        }
        let (name, partial) = (name_of(id)?, partial_of(id)?);
        match source {
            Source::Nothing => return self.ceph.create(&name, size_bytes),
            Source::Content(fill) => self.filled(id, size_bytes, fill)?,
            Source::Image(image) => {
                let image_bytes =
                    file_size_bytes(image).map_err(io_error("size the image for", name.as_ref()))?;
                check_holds(size_bytes, image_bytes)?;
                self.remove(&partial)?;
                let image = image.try_clone().map_err(io_error("open the image for", name.as_ref()))?;
                self.ceph.import(image, &partial)?;
                if size_bytes > image_bytes {
                    self.ceph.resize(&partial, size_bytes)?;
                }
            }
            Source::Disk { id: of, .. } => {
                let of = self.existing(of)?;
                check_holds(size_bytes, of.size_bytes)?;
                self.copied(id, &of, size_bytes, &Marks::default())?;
            }
        }
        self.ceph.rename(&partial, &name)
    }

    fn snapshot(&self, id: &str, of: &str, _: bool) -> Result<()> {
        if self.look(id)?.is_some() {
            return Ok(());
        }
        let of = self.existing(of)?;
        self.copied(id, &of, of.size_bytes, &Marks { frozen: true, ..Marks::default() })?;
        self.ceph.rename(&partial_of(id)?, &name_of(id)?)
    }

    fn revert(&self, id: &str, snapshot: &str, mark: u64) -> Result<()> {
        let found = self.existing(id)?;
        if self.ceph.marks(&found.name)?.reverted == Some(mark) {
            return Ok(());
        }
        let snapshot = self.existing(snapshot)?;
        let marks = Marks { whole: true, reverted: Some(mark), ..Marks::default() };
        self.copied(id, &snapshot, found.size_bytes, &marks)?;
        self.replace(id)
    }

    fn rewrite(&self, id: &str, size_bytes: u64, fill: Fill<'_>) -> Result<()> {
        self.existing(id)?;
        self.filled(id, size_bytes.next_multiple_of(SECTOR_BYTES), fill)?;
        self.ceph.mark(&partial_of(id)?, &Marks { whole: true, ..Marks::default() })?;
        self.replace(id)
    }

    fn extend(&self, id: &str, size_bytes: u64) -> Result<()> {
        let found = self.existing(id)?;
        let size_bytes = size_bytes.next_multiple_of(SECTOR_BYTES);
        if size_bytes > found.size_bytes { self.ceph.resize(&found.name, size_bytes) } else { Ok(()) }
    }

    fn delete(&self, id: &str) -> Result<()> {
        // In this order: what is half made must not take the place of what is gone.
        self.remove(&partial_of(id)?)?;
        self.remove(&name_of(id)?)
    }

    fn size_bytes(&self, id: &str) -> Result<Option<u64>> {
        Ok(self.look(id)?.map(|found| found.size_bytes))
    }

    fn export(&self, id: &str, _: bool) -> Result<Export> {
        let found = self.existing(id)?;
        let frozen = self.ceph.marks(&found.name)?.frozen;
        let device = self.device(&found.name, found.size_bytes, frozen)?;
        let devices = self.devices.clone();
        let release = move || {
            if let Err(error) = devices.release(&found.name) {
                tracing::warn!(image = found.name, error = error.to_string(), "a device stays");
            }
        };
        Ok(Export::with_release(vec![device], Box::new(release)))
    }

    fn list(&self) -> Result<Vec<String>> {
        Ok(name::ids(self.ceph.list()?.iter().map(String::as_str)))
    }
}
