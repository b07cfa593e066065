//! A disk's directory: which layers it has, in order, and the few file operations that every change is made of.

use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use crate::backend::{BackendError, Export, io_error};
use crate::format::layers::LAYERS_MAX;

/// There if the disk never changes.
pub(super) const FROZEN: &str = "frozen";
/// Holds the mark of the last reverting.
pub(super) const REVERTED: &str = "reverted";

/// What a layer is. Its name says it, never its content, which is the guest's to choose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Raw,
    Overlay,
}

impl Kind {
    /// The name of the layer by that number.
    pub(super) fn name(self, number: usize) -> String {
        match self {
            Self::Raw => format!("{number}.raw"),
            Self::Overlay => format!("{number}.overlay"),
        }
    }
}

/// The layers of one disk, the lowest first; never none.
#[derive(Debug)]
pub(super) struct Layers {
    pub(super) directory: PathBuf,
    pub(super) paths: Vec<PathBuf>,
    pub(super) frozen: bool,
}

impl Layers {
    /// Those in `directory`; none if there is no such directory.
    pub(super) fn of(directory: &Path) -> Result<Option<Self>, BackendError> {
        if !exists(directory)? {
            return Ok(None);
        }
        let mut paths = Vec::new();
        while paths.len() < LAYERS_MAX {
            let path = directory.join(kind_of(paths.len()).name(paths.len()));
            if !exists(&path)? {
                break;
            }
            paths.push(path);
        }
        if paths.is_empty() {
            let source = io::Error::new(ErrorKind::NotFound, "it has no layer");
            return Err(io_error("open", directory)(source));
        }
        let frozen = exists(&directory.join(FROZEN))?;
        Ok(Some(Self { directory: directory.to_owned(), paths, frozen }))
    }

    /// What the layer by that number is: only the lowest is raw.
    pub(super) fn kind(&self, number: usize) -> Kind {
        kind_of(number)
    }

    /// The disk's size.
    pub(super) fn size_bytes(&self, id: &str) -> Result<u64, BackendError> {
        let opened = self.export(true)?.open(true);
        let disk = opened.map_err(|source| BackendError::Layers { id: id.to_owned(), source })?;
        Ok(disk.size_bytes())
    }

    /// Opens them.
    pub(super) fn export(&self, read_only: bool) -> Result<Export, BackendError> {
        let last = self.paths.len() - 1;
        let open = |(number, path): (usize, &PathBuf)| {
            let written = number == last && !read_only;
            File::options().read(true).write(written).open(path).map_err(io_error("open", path))
        };
        let layers = self.paths.iter().enumerate().map(open).collect::<Result<_, _>>()?;
        Ok(Export::new(layers))
    }
}

fn kind_of(number: usize) -> Kind {
    if number == 0 { Kind::Raw } else { Kind::Overlay }
}

fn exists(path: &Path) -> Result<bool, BackendError> {
    path.try_exists().map_err(io_error("look for", path))
}

/// Creates a file that only its owner reads.
pub(super) fn create_file(path: &Path) -> Result<File, BackendError> {
    let mut options = File::options();
    let created = options.read(true).write(true).create_new(true).mode(0o600).open(path);
    created.map_err(io_error("create", path))
}

/// Removes a file or a directory with all in it; no error if there is none.
pub(super) fn remove_tree(path: &Path) -> Result<(), BackendError> {
    let removed = match fs::symlink_metadata(path) {
        Ok(found) if found.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(io_error("remove", path)(error)),
        _ => Ok(()),
    }
}

/// Makes the names in a directory survive a power loss.
pub(super) fn sync_directory(directory: &Path) -> Result<(), BackendError> {
    let opened = File::open(directory).and_then(|directory| directory.sync_all());
    opened.map_err(io_error("sync", directory))
}
