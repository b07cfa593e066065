//! A disk of layers: a raw one at the bottom and copy-on-write overlays over it, of which only the last is written.
//!
//! Must never know: paths.

use std::fs::File;

use super::overlay::{Overlay, OverlayError};
use super::raw::file_size_bytes;
use super::{Disk, RawFile};

/// The most layers of one disk: each is an open file and a look at its map with every read. A disk that would get more is
/// copied together first.
pub const LAYERS_MAX: usize = 16;

/// Opens layers, the lowest first. Only the last is written, and with `read_only` not even that.
///
/// # Errors
/// Where a layer does not fit on the one below, or there is none, or too many.
pub fn open_layers(files: Vec<File>, read_only: bool) -> Result<Box<dyn Disk>, OverlayError> {
    if files.len() > LAYERS_MAX {
        return Err(OverlayError::Header { reason: "there are too many layers" });
    }
    let last = files.len().saturating_sub(1);
    let mut disk: Option<Box<dyn Disk>> = None;
    for (index, file) in files.into_iter().enumerate() {
        let written = index == last && !read_only;
        let size_bytes =
            file_size_bytes(&file).map_err(|source| OverlayError::Io { step: "size a layer", source })?;
        let raw: Box<dyn Disk> = if written {
            Box::new(RawFile::new(file, size_bytes))
        } else {
            Box::new(RawFile::new_read_only(file, size_bytes))
        };
        disk = Some(match disk {
            None => raw,
            Some(base) => Box::new(Overlay::over(raw, base)?),
        });
    }
    disk.ok_or(OverlayError::Header { reason: "there is no layer" })
}
