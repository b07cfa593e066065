//! The LVM backend: every disk is a thin logical volume of one pool, by LVM's own commands.
//!
//! ```text
//! GROUP/wisp-ID        a disk; the tag `frozen` marks a snapshot, `reverted-MARK` the last reverting
//! GROUP/wisp-ID.new    a disk being made; with the tag `whole`, one that takes the place of wisp-ID
//! ```
//!
//! Copies share blocks, whether a guest writes or not, and take constant time; none needs its source to stay. Sizes are
//! whole extents of the group. LVM's own metadata is what survives a crash: each of its commands is all or nothing.
//!
//! Must never know: images' ids, servers, how a group is made.

mod command;

use std::fs::File;

use self::command::{Found, Lvm};
use crate::backend::name::{self, name_of, partial_of};
use crate::backend::{Backend, BackendError, Capabilities, Capacity, Export, Fill, SECTOR_BYTES, Source};
use crate::backend::{check_holds, copy_sparse, io_error};
use crate::format::raw::file_size_bytes;
use crate::format::{Disk as _, RawFile};

type Result<T> = std::result::Result<T, BackendError>;

/// The tag of a snapshot.
const FROZEN: &str = "frozen";
/// The tag of a partial one that is complete.
const WHOLE: &str = "whole";
/// The tag with the mark of a reverting.
const REVERTED: &str = "reverted-";

/// See the module.
#[derive(Debug)]
pub struct LvmBackend {
    lvm: Lvm,
    pool: String,
}

impl LvmBackend {
    /// Opens the thin pool `pool` of the volume group `group`, and clears what a crash left half done.
    ///
    /// # Errors
    /// There is no such pool, or LVM's commands are not there, or may not.
    pub fn open(group: &str, pool: &str) -> Result<Self> {
        for name in [group, pool] {
            let safe = !name.is_empty()
                && !name.starts_with('-')
                && name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"+_.-".contains(&byte));
            if !safe {
                return Err(BackendError::Id { id: name.chars().take(64).collect() });
            }
        }
        let backend = Self { lvm: Lvm::new(group), pool: pool.to_owned() };
        backend.capacity()?;
        for found in backend.lvm.list(pool)? {
            if let Some(id) = name::half_made(&found.name) {
                let (_, half) = backend.look(id)?;
                backend.clear(half)?;
            }
        }
        Ok(backend)
    }

    /// The disk by that id, if there is one, and what is half made of one; a disk whose successor is whole has been
    /// replaced by it.
    fn look(&self, id: &str) -> Result<(Option<Found>, Option<Found>)> {
        let (name, partial) = (name_of(id)?, partial_of(id)?);
        let mut disk = None;
        let mut half = None;
        for found in self.lvm.either(&self.pool, &name, &partial)? {
            if found.name == name { disk = Some(found) } else { half = Some(found) }
        }
        match half {
            Some(whole) if disk.is_none() && whole.has(WHOLE) => {
                self.lvm.rename(&partial, &name)?;
                self.lvm.run("lvchange", &["--deltag", WHOLE, &self.lvm.of_group(&name)])?;
                Ok((Some(Found { name, ..whole }), None))
            }
            half => Ok((disk, half)),
        }
    }

    fn existing(&self, id: &str) -> Result<Found> {
        self.look(id)?.0.ok_or_else(|| BackendError::missing(id))
    }

    /// Removes what was found, if anything.
    fn clear(&self, found: Option<Found>) -> Result<()> {
        found.map_or(Ok(()), |found| self.lvm.remove(&found.name))
    }

    /// An empty logical volume by this name.
    fn empty(&self, name: &str, size_bytes: u64) -> Result<()> {
        let size = bytes(size_bytes);
        let options = ["--thin", "--name", name, "--virtualsize", &size, "--thinpool", &self.pool];
        let rest = ["--wipesignatures", "n", self.lvm.group()];
        self.lvm.run("lvcreate", &[&options[..], &rest].concat())
    }

    /// A copy of `of` by this name, which can be written.
    fn copied(&self, name: &str, of: &Found, size_bytes: u64, tag: Option<&str>) -> Result<()> {
        let mut options =
            vec!["--snapshot", "--setactivationskip", "n", "--permission", "rw", "--name", name];
        if let Some(tag) = tag {
            options.extend(["--addtag", tag]);
        }
        let of_group = self.lvm.of_group(&of.name);
        options.push(&of_group);
        self.lvm.run("lvcreate", &options)?;
        if size_bytes > of.size_bytes { self.grow(name, size_bytes) } else { Ok(()) }
    }

    /// Puts what was made in the place of `found`.
    fn replace(&self, id: &str, found: &Found) -> Result<()> {
        self.lvm.run("lvchange", &["--addtag", WHOLE, &self.lvm.of_group(&partial_of(id)?)])?;
        self.lvm.remove(&found.name)?;
        // From here on the other is the disk, whoever looks for it next.
        self.existing(id).map(drop)
    }

    fn grow(&self, name: &str, size_bytes: u64) -> Result<()> {
        self.lvm.run("lvextend", &["--size", &bytes(size_bytes), &self.lvm.of_group(name)])
    }

    fn device(&self, name: &str, written: bool) -> Result<File> {
        let path = self.lvm.device(name);
        if !path.try_exists().map_err(io_error("look for", &path))? {
            let of_group = self.lvm.of_group(name);
            self.lvm.run("lvchange", &["--activate", "y", "--ignoreactivationskip", &of_group])?;
        }
        File::options().read(true).write(written).open(&path).map_err(io_error("open", &path))
    }

    /// A new logical volume by this name with what `fill` writes; none if that fails.
    fn filled(&self, name: &str, size_bytes: u64, fill: Fill<'_>) -> Result<()> {
        self.empty(name, size_bytes)?;
        let path = self.lvm.device(name);
        let filled = self.device(name, true).and_then(|device| {
            let disk = RawFile::whole(device, false).map_err(io_error("size", &path))?;
            fill(&disk).and_then(|()| disk.flush()).map_err(io_error("write", &path))
        });
        if filled.is_err() {
            // The first failure is the one to tell of; what stays is removed by the next attempt.
            let _ = self.lvm.remove(name);
        }
        filled
    }
}

impl Backend for LvmBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "lvm", copies_in_use: true, thin: true }
    }

    fn capacity(&self) -> Result<Capacity> {
        self.lvm.capacity(&self.pool)
    }

    fn create(&self, id: &str, size_bytes: u64, source: Source<'_>) -> Result<()> {
        let size_bytes = size_bytes.next_multiple_of(SECTOR_BYTES);
        let (None, half) = self.look(id)? else { return Ok(()) };
        let (name, partial) = (name_of(id)?, partial_of(id)?);
        match source {
            Source::Nothing => return self.empty(&name, size_bytes),
            Source::Content(fill) => {
                self.clear(half)?;
                self.filled(&partial, size_bytes, fill)?;
            }
            Source::Image(image) => {
                let path = self.lvm.device(&name);
                let image_bytes = file_size_bytes(image).map_err(io_error("size the image for", &path))?;
                check_holds(size_bytes, image_bytes)?;
                let image = image.try_clone().map_err(io_error("open the image for", &path))?;
                let image = RawFile::new_read_only(image, image_bytes);
                self.clear(half)?;
                self.filled(&partial, size_bytes, &|disk| copy_sparse(&image, disk))?;
            }
            Source::Disk { id: of, .. } => {
                let of = self.existing(of)?;
                check_holds(size_bytes, of.size_bytes)?;
                self.clear(half)?;
                self.copied(&partial, &of, size_bytes, None)?;
            }
        }
        self.lvm.rename(&partial, &name)
    }

    fn snapshot(&self, id: &str, of: &str, _: bool) -> Result<()> {
        let (None, _) = self.look(id)? else { return Ok(()) };
        let of = self.lvm.of_group(&self.existing(of)?.name);
        let name = name_of(id)?;
        let options = ["--snapshot", "--setactivationskip", "n", "--permission", "r", "--addtag", FROZEN];
        self.lvm.run("lvcreate", &[&options[..], &["--name", &name, &of]].concat())
    }

    fn revert(&self, id: &str, snapshot: &str, mark: u64) -> Result<()> {
        let (found, half) = self.look(id)?;
        let found = found.ok_or_else(|| BackendError::missing(id))?;
        let tag = format!("{REVERTED}{mark}");
        if found.has(&tag) {
            return Ok(());
        }
        let partial = partial_of(id)?;
        self.clear(half)?;
        self.copied(&partial, &self.existing(snapshot)?, found.size_bytes, Some(&tag))?;
        self.replace(id, &found)
    }

    fn rewrite(&self, id: &str, size_bytes: u64, fill: Fill<'_>) -> Result<()> {
        let (found, half) = self.look(id)?;
        let found = found.ok_or_else(|| BackendError::missing(id))?;
        self.clear(half)?;
        self.filled(&partial_of(id)?, size_bytes.next_multiple_of(SECTOR_BYTES), fill)?;
        self.replace(id, &found)
    }

    fn extend(&self, id: &str, size_bytes: u64) -> Result<()> {
        let found = self.existing(id)?;
        if size_bytes > found.size_bytes { self.grow(&found.name, size_bytes) } else { Ok(()) }
    }

    fn delete(&self, id: &str) -> Result<()> {
        let (found, half) = self.look(id)?;
        self.clear(found)?;
        self.clear(half)
    }

    fn size_bytes(&self, id: &str) -> Result<Option<u64>> {
        Ok(self.look(id)?.0.map(|found| found.size_bytes))
    }

    fn export(&self, id: &str, read_only: bool) -> Result<Export> {
        let found = self.existing(id)?;
        let written = !read_only && !found.has(FROZEN);
        Ok(Export::new(vec![self.device(&found.name, written)?]))
    }

    fn list(&self) -> Result<Vec<String>> {
        let found = self.lvm.list(&self.pool)?;
        Ok(name::ids(found.iter().map(|found| &*found.name)))
    }
}

fn bytes(count: u64) -> String {
    format!("{count}b")
}
