//! The file backend: each disk is a directory of layers, a raw file and overlays over it.
//!
//! ```text
//! ROOT/ID/0.raw        the lowest layer
//! ROOT/ID/1.overlay    what was written over it, and so on; only the last is ever written
//! ROOT/ID/frozen       there if not even the last is: a snapshot
//! ROOT/ID/reverted     the mark of the last reverting
//! ROOT/.ID.new         a disk being made
//! ROOT/.ID.gone        a disk being deleted
//! ROOT/.ID.old         a disk being replaced, where two names cannot be exchanged: NFS
//! ```
//!
//! Where the file system shares blocks between files (FICLONE: XFS, Btrfs, bcachefs), a copy clones the last layer;
//! elsewhere the last layer stops being written, both get an overlay over it, and each has it under a name of its own
//! (a hard link), so neither needs the other to stay. Both take constant time.
//!
//! Must never know: images' ids, servers.

mod directory;

use std::fs::{self, File};
use std::io::ErrorKind;
use std::os::fd::AsRawFd as _;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, CWD, RenameFlags};
use rustix::io::Errno;

use self::directory::{Kind, Layers, create_file, remove_tree, sync_directory};
use crate::backend::{Backend, BackendError, Capabilities, Capacity, Export, Fill, SECTOR_BYTES, Source};
use crate::backend::{check_holds, copy_sparse, id_is_safe, io_error};
use crate::format::layers::LAYERS_MAX;
use crate::format::raw::file_size_bytes;
use crate::format::{Overlay, RawFile};

type Result<T> = std::result::Result<T, BackendError>;

/// See the module.
#[derive(Debug)]
pub struct FileBackend {
    root: PathBuf,
    shares_blocks: bool,
}

impl FileBackend {
    /// Opens the directory, which is made if it is missing, and clears what a crash left half done.
    ///
    /// # Errors
    /// [`BackendError::Io`].
    pub fn open(root: &Path) -> Result<Self> {
        let mut backend = Self { root: root.to_owned(), shares_blocks: false };
        fs::create_dir_all(root).map_err(io_error("make", root))?;
        for entry in fs::read_dir(root).map_err(io_error("list", root))? {
            let name = entry.map_err(io_error("list", root))?.file_name();
            let name = name.to_string_lossy();
            let Some(rest) = name.strip_prefix('.') else { continue };
            let replaced = rest.strip_suffix(".old").map(|id| root.join(id));
            match replaced {
                Some(path) if !path.try_exists().map_err(io_error("look for", &path))? => {
                    fs::rename(root.join(&*name), &path).map_err(io_error("name", &path))?;
                }
                _ => remove_tree(&root.join(&*name))?,
            }
        }
        backend.shares_blocks = backend.probe()?;
        Ok(backend)
    }

    /// As [`FileBackend::open`], never sharing blocks between files.
    ///
    /// # Errors
    /// [`BackendError::Io`].
    pub fn open_without_sharing(root: &Path) -> Result<Self> {
        Ok(Self { shares_blocks: false, ..Self::open(root)? })
    }

    /// Whether a file can be cloned here.
    fn probe(&self) -> Result<bool> {
        let (one, two) = (self.root.join(".probe.new"), self.root.join(".probe.gone"));
        let from = create_file(&one)?;
        let to = create_file(&two)?;
        from.set_len(SECTOR_BYTES * 8).map_err(io_error("size", &one))?;
        let shares = rustix::fs::ioctl_ficlone(&to, &from).is_ok();
        for path in [one, two] {
            fs::remove_file(&path).map_err(io_error("remove", &path))?;
        }
        Ok(shares)
    }

    fn path(&self, id: &str) -> Result<PathBuf> {
        if id_is_safe(id) { Ok(self.root.join(id)) } else { Err(BackendError::unsafe_id(id)) }
    }

    fn layers(&self, id: &str) -> Result<Layers> {
        Layers::of(&self.path(id)?)?.ok_or_else(|| BackendError::missing(id))
    }

    /// Makes a disk's directory under another name with `fill`, then gives it its own.
    fn make(&self, id: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let path = self.path(id)?;
        if path.try_exists().map_err(io_error("look for", &path))? {
            return Ok(());
        }
        let partial = self.build(id, fill)?;
        fs::rename(&partial, &path).map_err(io_error("name", &path))?;
        sync_directory(&self.root)
    }

    fn build(&self, id: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<PathBuf> {
        let partial = self.root.join(format!(".{id}.new"));
        remove_tree(&partial)?;
        fs::create_dir(&partial).map_err(io_error("make", &partial))?;
        let filled = fill(&partial).and_then(|()| sync_directory(&partial));
        if let Err(error) = filled {
            // The first failure is the one to tell of; what stays is removed by the next attempt.
            let _ = remove_tree(&partial);
            return Err(error);
        }
        Ok(partial)
    }

    /// Puts a new directory in the place of a disk's, whose files nobody has open.
    fn replace(&self, id: &str, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
        let path = self.path(id)?;
        let partial = self.build(id, fill)?;
        let replaced = match rustix::fs::renameat_with(CWD, &partial, CWD, &path, RenameFlags::EXCHANGE) {
            Ok(()) => partial,
            Err(Errno::INVAL | Errno::NOSYS) => {
                let old = self.root.join(format!(".{id}.old"));
                remove_tree(&old)?;
                fs::rename(&path, &old).map_err(io_error("replace", &path))?;
                let named = fs::rename(&partial, &path);
                if named.is_err() {
                    // The first failure is the one to tell of; if this fails too, opening the backend does it.
                    let _ = fs::rename(&old, &path);
                }
                named.map_err(io_error("name", &path))?;
                old
            }
            Err(error) => return Err(io_error("replace", &path)(error)),
        };
        sync_directory(&self.root)?;
        remove_tree(&replaced)
    }

    /// Clones `from` into a new file, if the file system can.
    fn clone_file(&self, from: &File, to: &Path) -> Result<Option<File>> {
        if !self.shares_blocks {
            return Ok(None);
        }
        let file = create_file(to)?;
        match rustix::fs::ioctl_ficlone(&file, from) {
            Ok(()) => Ok(Some(file)),
            // Another file system, or not these files.
            Err(
                Errno::OPNOTSUPP | Errno::NOTTY | Errno::NOSYS | Errno::XDEV | Errno::INVAL | Errno::PERM,
            ) => {
                fs::remove_file(to).map_err(io_error("remove", to))?;
                Ok(None)
            }
            Err(error) => Err(io_error("clone into", to)(error)),
        }
    }

    fn fill_from_image(&self, directory: &Path, image: &File, size_bytes: u64) -> Result<()> {
        let image_bytes = file_size_bytes(image).map_err(io_error("size the image for", directory))?;
        check_holds(size_bytes, image_bytes)?;
        let base = directory.join(Kind::Raw.name(0));
        if let Some(file) = self.clone_file(image, &base)? {
            return resize(&file, size_bytes, &base);
        }
        // The very file that was opened, whatever has its name by now.
        let opened = format!("/proc/self/fd/{}", image.as_raw_fd());
        if rustix::fs::linkat(CWD, opened, CWD, &base, AtFlags::SYMLINK_FOLLOW).is_ok() {
            return add_overlay(directory, 1, image_bytes, size_bytes);
        }
        // On another file system: copied once.
        let file = create_file(&base)?;
        let from = RawFile::new_read_only(image.try_clone().map_err(io_error("open", &base))?, image_bytes);
        let to = RawFile::new(file.try_clone().map_err(io_error("open", &base))?, size_bytes);
        copy_sparse(&from, &to).map_err(io_error("copy the image into", &base))?;
        resize(&file, size_bytes, &base)
    }

    /// Fills `directory` with what disk `id` is now; `size_bytes` makes it one that can be written.
    fn fill_from_disk(
        &self,
        directory: &Path,
        id: &str,
        in_use: bool,
        size_bytes: Option<u64>,
    ) -> Result<()> {
        let source = self.layers(id)?;
        let source_bytes = source.size_bytes(id)?;
        check_holds(size_bytes.unwrap_or(source_bytes), source_bytes)?;
        let last = source.paths.len() - 1;
        let (lower, top) = (&source.paths[..last], &source.paths[last]);
        let copy = directory.join(source.kind(last).name(last));
        let opened = File::open(top).map_err(io_error("open", top))?;
        if let Some(file) = self.clone_file(&opened, &copy)? {
            link_all(lower, directory)?;
            file.sync_all().map_err(io_error("sync", &copy))?;
            return match size_bytes {
                None => freeze(directory),
                Some(size) if source.kind(last) == Kind::Raw => resize(&file, size, &copy),
                Some(size) if size > source_bytes => add_overlay(directory, last + 1, source_bytes, size),
                Some(_) => Ok(()),
            };
        }
        if source.paths.len() >= LAYERS_MAX - 1 {
            return self.flatten_into(directory, source, id, in_use, size_bytes);
        }
        link_all(&source.paths, directory)?;
        match size_bytes {
            None => freeze(directory)?,
            Some(size_bytes) => add_overlay(directory, last + 1, source_bytes, size_bytes)?,
        }
        if source.frozen {
            return Ok(());
        }
        if in_use {
            return Err(BackendError::InUse { id: id.to_owned() });
        }
        // From here on the source writes to a layer of its own.
        add_overlay(&source.directory, last + 1, source_bytes, source_bytes)
    }

    /// Copies a disk of too many layers into one.
    fn flatten_into(
        &self,
        directory: &Path,
        source: Layers,
        id: &str,
        in_use: bool,
        size_bytes: Option<u64>,
    ) -> Result<()> {
        if in_use && !source.frozen {
            return Err(BackendError::InUse { id: id.to_owned() });
        }
        let from = source.export(true)?.open(true);
        let from = from.map_err(|source| BackendError::Layers { id: id.to_owned(), source })?;
        let path = directory.join(Kind::Raw.name(0));
        let file = create_file(&path)?;
        let size = size_bytes.unwrap_or(from.size_bytes());
        let to = RawFile::new(file.try_clone().map_err(io_error("open", &path))?, size);
        copy_sparse(&*from, &to).map_err(io_error("copy into", &path))?;
        resize(&file, size, &path)?;
        if size_bytes.is_none() { freeze(directory) } else { Ok(()) }
    }
}

impl Backend for FileBackend {
    fn capabilities(&self) -> Capabilities {
        Capabilities { name: "file", copies_in_use: self.shares_blocks, thin: true }
    }

    fn capacity(&self) -> Result<Capacity> {
        let found = rustix::fs::statvfs(&self.root).map_err(io_error("size", &self.root))?;
        let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
        Ok(Capacity { total_bytes: bytes(found.f_blocks), free_bytes: bytes(found.f_bavail) })
    }

    fn create(&self, id: &str, size_bytes: u64, source: Source<'_>) -> Result<()> {
        let size_bytes = size_bytes.next_multiple_of(SECTOR_BYTES);
        self.make(id, |directory| match source {
            Source::Nothing => {
                let path = directory.join(Kind::Raw.name(0));
                resize(&create_file(&path)?, size_bytes, &path)
            }
            Source::Content(fill) => fill_with(directory, size_bytes, fill),
            Source::Image(image) => self.fill_from_image(directory, image, size_bytes),
            Source::Disk { id, in_use } => self.fill_from_disk(directory, id, in_use, Some(size_bytes)),
        })
    }

    fn snapshot(&self, id: &str, of: &str, in_use: bool) -> Result<()> {
        self.make(id, |directory| self.fill_from_disk(directory, of, in_use, None))
    }

    fn revert(&self, id: &str, snapshot: &str, mark: u64) -> Result<()> {
        let layers = self.layers(id)?;
        let marks = layers.directory.join(directory::REVERTED);
        if fs::read_to_string(&marks).is_ok_and(|found| found == mark.to_string()) {
            return Ok(());
        }
        let size_bytes = layers.size_bytes(id)?;
        self.replace(id, |directory| {
            self.fill_from_disk(directory, snapshot, false, Some(size_bytes))?;
            let marks = directory.join(directory::REVERTED);
            fs::write(&marks, mark.to_string()).map_err(io_error("write", &marks))
        })
    }

    fn rewrite(&self, id: &str, size_bytes: u64, fill: Fill<'_>) -> Result<()> {
        self.layers(id)?;
        self.replace(id, |directory| fill_with(directory, size_bytes.next_multiple_of(SECTOR_BYTES), fill))
    }

    fn extend(&self, id: &str, size_bytes: u64) -> Result<()> {
        let layers = self.layers(id)?;
        let before = layers.size_bytes(id)?;
        let size_bytes = size_bytes.next_multiple_of(SECTOR_BYTES);
        if size_bytes <= before {
            return Ok(());
        }
        let last = layers.paths.len() - 1;
        let top = &layers.paths[last];
        match layers.kind(last) {
            Kind::Raw => {
                let file = File::options().write(true).open(top).map_err(io_error("open", top))?;
                resize(&file, size_bytes, top)
            }
            // What is written to the layer below meanwhile shows through.
            Kind::Overlay => add_overlay(&layers.directory, last + 1, before, size_bytes),
        }
    }

    fn delete(&self, id: &str) -> Result<()> {
        let path = self.path(id)?;
        let gone = self.root.join(format!(".{id}.gone"));
        remove_tree(&gone)?;
        match fs::rename(&path, &gone) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(io_error("remove", &path))?,
        }
        sync_directory(&self.root)?;
        remove_tree(&gone)
    }

    fn size_bytes(&self, id: &str) -> Result<Option<u64>> {
        Layers::of(&self.path(id)?)?.map(|layers| layers.size_bytes(id)).transpose()
    }

    fn export(&self, id: &str, read_only: bool) -> Result<Export> {
        let layers = self.layers(id)?;
        let read_only = read_only || layers.frozen;
        layers.export(read_only)
    }

    fn list(&self) -> Result<Vec<String>> {
        let mut ids = Vec::new();
        for entry in fs::read_dir(&self.root).map_err(io_error("list", &self.root))? {
            let name = entry.map_err(io_error("list", &self.root))?.file_name();
            ids.extend(name.to_str().filter(|name| self.path(name).is_ok()).map(str::to_owned));
        }
        ids.sort();
        Ok(ids)
    }
}

/// Fills `directory` with one raw layer and what `fill` writes to it.
fn fill_with(directory: &Path, size_bytes: u64, fill: Fill<'_>) -> Result<()> {
    let path = directory.join(Kind::Raw.name(0));
    let file = create_file(&path)?;
    resize(&file, size_bytes, &path)?;
    let disk = RawFile::new(file.try_clone().map_err(io_error("open", &path))?, size_bytes);
    fill(&disk).map_err(io_error("write", &path))?;
    file.sync_all().map_err(io_error("sync", &path))
}

fn resize(file: &File, size_bytes: u64, path: &Path) -> Result<()> {
    file.set_len(size_bytes).map_err(io_error("size", path))?;
    file.sync_all().map_err(io_error("sync", path))
}

fn freeze(directory: &Path) -> Result<()> {
    create_file(&directory.join(directory::FROZEN)).map(drop)
}

/// Gives layers a name in another disk's directory as well.
fn link_all(paths: &[PathBuf], directory: &Path) -> Result<()> {
    for path in paths {
        let name = path.file_name().unwrap_or_default();
        fs::hard_link(path, directory.join(name)).map_err(io_error("link", path))?;
    }
    Ok(())
}

/// Puts an empty overlay of `size_bytes` over the layers of a directory, whole or not at all.
fn add_overlay(directory: &Path, number: usize, base_bytes: u64, size_bytes: u64) -> Result<()> {
    let partial = directory.join("overlay.new");
    match fs::remove_file(&partial) {
        Err(error) if error.kind() != ErrorKind::NotFound => return Err(io_error("remove", &partial)(error)),
        _ => {}
    }
    let file = create_file(&partial)?;
    Overlay::create(&file, base_bytes, size_bytes.next_multiple_of(SECTOR_BYTES))
        .map_err(|source| BackendError::Layers { id: directory.display().to_string(), source })?;
    let path = directory.join(Kind::Overlay.name(number));
    fs::rename(&partial, &path).map_err(io_error("name", &path))?;
    sync_directory(directory)
}

#[cfg(test)]
mod tests;
