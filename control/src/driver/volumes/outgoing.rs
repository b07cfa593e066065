//! Files of raw bytes that are on their way out of a host: control takes them and makes images of them. A file with a name
//! of its own is whole.

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use storage::backend::copy_sparse;
use storage::format::{Disk, RawFile};

use super::{Error, OUTGOING, Volumes, check_id, io_error, observed};
use crate::agent::protocol::{DiskObserved, DiskWanted};
use crate::driver::host::open_image;

impl Volumes {
    /// Brings out a disk that is none of ours, which `open` opens, or says in one sentence why it does not.
    pub(in crate::driver) fn bring_out_root(
        &self,
        wanted: &DiskWanted,
        open: impl FnOnce() -> Result<Box<dyn Disk>, String>,
    ) -> DiskObserved {
        let brought = self.bring_out(&wanted.id, || open().map_err(Error::Root));
        observed(wanted, brought.map(|()| None))
    }

    /// An image as a disk, for a driver whose instances' disks nobody writes to.
    pub(in crate::driver) fn image(&self, id: &str) -> Result<Box<dyn Disk>, String> {
        let image = open_image(&self.paths.images, id)?;
        let image = RawFile::whole(image, true).map_err(io_error("size the image"));
        image
            .map(|image| Box::new(image) as Box<dyn Disk>)
            .map_err(|error| crate::driver::host::sentence(&error))
    }

    /// Writes a disk's bytes, in the clear, to a file that the images' owner can read; one that is there already is that.
    pub(super) fn bring_out(
        &self,
        id: &str,
        open: impl FnOnce() -> Result<Box<dyn Disk>, Error>,
    ) -> Result<(), Error> {
        let path = self.outgoing(id)?;
        if path.try_exists().map_err(io_error("look for the outgoing file"))? {
            return Ok(());
        }
        let from = open()?;
        let partial = path.with_extension("new");
        let made = self.copy_out(&*from, &partial);
        if made.is_err() {
            // The first failure is the one to tell of; the space is for others.
            let _ = fs::remove_file(&partial);
        }
        made?;
        fs::rename(&partial, &path).map_err(io_error("name the outgoing file"))
    }

    fn copy_out(&self, from: &dyn Disk, partial: &Path) -> Result<(), Error> {
        let file = File::create(partial).map_err(io_error("make the outgoing file"))?;
        let copied = file.try_clone().map_err(io_error("open the outgoing file"))?;
        copy_sparse(from, &RawFile::new(copied, from.size_bytes())).map_err(io_error("copy the disk"))?;
        file.set_len(from.size_bytes()).map_err(io_error("size the outgoing file"))?;
        let owner = fs::symlink_metadata(&self.paths.images).map_err(io_error("look at the images"))?;
        std::os::unix::fs::fchown(&file, Some(owner.uid()), Some(owner.gid()))
            .map_err(io_error("give the outgoing file away"))
    }

    /// Removes such a file, and half a one.
    pub(super) fn take_back(&self, id: &str) -> Result<(), Error> {
        let path = self.outgoing(id)?;
        for path in [path.with_extension("new"), path] {
            match fs::remove_file(path) {
                Err(error) if error.kind() != ErrorKind::NotFound => {
                    return Err(io_error("remove the outgoing file")(error));
                }
                _ => {}
            }
        }
        Ok(())
    }

    fn outgoing(&self, id: &str) -> Result<PathBuf, Error> {
        check_id(id)?;
        Ok(self.paths.root.join(OUTGOING).join(id))
    }
}
