//! The outer archive: a tar file whose parts are found by their names, without reading what they hold.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};

use super::ContainerError;
use crate::format::inspect::{Apparent, read_up_to, sniff};

/// Parts of an archive: two for each layer of each image, and some more.
const PARTS_MAX: usize = 16_384;
/// The longest name of a part in bytes: a digest with its directories has a hundred.
const NAME_BYTES_MAX: usize = 1024;
/// The largest document in bytes: what registries take for manifests (OCI distribution specification, "Pushing manifests").
const DOCUMENT_BYTES_MAX: u64 = 4 << 20;
/// How many links lead to a part: old versions of docker save let one layer stand for another.
const LINKS_MAX: usize = 4;

/// Where a part is.
#[derive(Debug, Clone)]
enum Part {
    Bytes { start: u64, length: u64 },
    Link(String),
}

/// An archive with an index of its parts.
#[derive(Debug)]
pub(super) struct Archive<'f> {
    file: &'f File,
    size_bytes: u64,
    parts: BTreeMap<String, Part>,
}

impl<'f> Archive<'f> {
    /// Reads the heads of all parts.
    pub(super) fn index(file: &'f File) -> Result<Self, ContainerError> {
        if sniff(file).map_err(ContainerError::Read)? == Apparent::Compressed {
            return Err(ContainerError::Compressed);
        }
        let size_bytes = file.metadata().map_err(ContainerError::Read)?.len();
        let mut archive = Self { file, size_bytes, parts: BTreeMap::new() };
        let mut tar = tar::Archive::new(Slice { file, at: 0, end: size_bytes });
        let entries = tar.entries_with_seek().map_err(ContainerError::Archive)?;
        for (index, entry) in entries.raw(true).enumerate() {
            if index >= PARTS_MAX {
                return Err(ContainerError::TooMany { what: "parts", most: PARTS_MAX as u64 });
            }
            let entry = entry.map_err(ContainerError::Archive)?;
            // Names that do not fit a plain head belong to no image: digests do.
            let Some(name) = name(&entry.header().path_bytes()) else { continue };
            let kind = entry.header().entry_type();
            if kind.is_file() {
                let (start, length) = (entry.raw_file_position(), entry.size());
                if start.checked_add(length).is_none_or(|end| end > size_bytes) {
                    return Err(ContainerError::Archive(io::ErrorKind::UnexpectedEof.into()));
                }
                archive.parts.insert(name, Part::Bytes { start, length });
            } else if kind.is_symlink() || kind.is_hard_link() {
                let Some(target) = entry.header().link_name_bytes() else { continue };
                let target = if kind.is_symlink() { beside(&name, &target) } else { self::name(&target) };
                if let Some(target) = target {
                    archive.parts.insert(name, Part::Link(target));
                }
            }
        }
        Ok(archive)
    }

    /// The size of the archive in bytes.
    pub(super) fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Whether there is a part of this name.
    pub(super) fn has(&self, name: &str) -> bool {
        self.open(name).is_ok()
    }

    /// A part's bytes.
    pub(super) fn open(&self, name: &str) -> Result<Slice<'f>, ContainerError> {
        let mut at = name;
        for _ in 0..=LINKS_MAX {
            match self.parts.get(at) {
                Some(Part::Bytes { start, length }) => {
                    return Ok(Slice { file: self.file, at: *start, end: start + length });
                }
                Some(Part::Link(target)) => at = target,
                None => break,
            }
        }
        Err(ContainerError::Missing(name.to_owned()))
    }

    /// A whole document.
    pub(super) fn document(&self, name: &str) -> Result<Vec<u8>, ContainerError> {
        let part = self.open(name)?;
        if part.length() > DOCUMENT_BYTES_MAX {
            let why = "a document of more than 4 MiB is refused";
            return Err(ContainerError::Unusable { part: name.to_owned(), why });
        }
        let mut bytes = Vec::new();
        part.take(DOCUMENT_BYTES_MAX).read_to_end(&mut bytes).map_err(ContainerError::Read)?;
        Ok(bytes)
    }
}

/// A part's name without `./` and the like; none if it cannot be one.
fn name(bytes: &[u8]) -> Option<String> {
    let text = std::str::from_utf8(bytes).ok().filter(|text| text.len() <= NAME_BYTES_MAX)?;
    let words: Vec<&str> = text.split('/').filter(|word| !matches!(*word, "" | ".")).collect();
    (!words.is_empty() && !words.contains(&"..")).then(|| words.join("/"))
}

/// What a link's target says, seen from where the link is.
fn beside(link: &str, target: &[u8]) -> Option<String> {
    let target = std::str::from_utf8(target).ok().filter(|text| text.len() <= NAME_BYTES_MAX)?;
    let mut words: Vec<&str> = link.split('/').collect();
    words.pop();
    for word in target.split('/') {
        match word {
            "" | "." => {}
            ".." => drop(words.pop()?),
            word => words.push(word),
        }
    }
    name(words.join("/").as_bytes())
}

/// Some bytes of a file, read from wherever its own position is.
#[derive(Debug, Clone)]
pub(super) struct Slice<'f> {
    file: &'f File,
    at: u64,
    end: u64,
}

impl Slice<'_> {
    /// Bytes that are left.
    pub(super) fn length(&self) -> u64 {
        self.end.saturating_sub(self.at)
    }
}

impl Read for Slice<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.length()).unwrap_or(usize::MAX).min(buffer.len());
        let count = read_up_to(self.file, &mut buffer[..most], self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// For skipping; only of a whole archive, so that positions are the file's.
impl io::Seek for Slice<'_> {
    fn seek(&mut self, to: io::SeekFrom) -> io::Result<u64> {
        let at = match to {
            io::SeekFrom::Start(at) => Some(at),
            io::SeekFrom::Current(by) => self.at.checked_add_signed(by),
            io::SeekFrom::End(by) => self.end.checked_add_signed(by),
        };
        self.at = at.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.at)
    }
}
