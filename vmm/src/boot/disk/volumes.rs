//! The filesystems of one disk, by the names that boot loaders give them.

use std::fmt;
use std::sync::Arc;

use storage::format::Disk;

use super::filesystem::{self, FileImage, Found, OpenError, Signature, Volume, chain};
use super::partition::{self, Partition, Scheme};
use super::source::{Budget, Source};

/// A file of one of the volumes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct FileName {
    /// The volume, by its index.
    pub(super) volume: usize,
    /// The absolute path on it.
    pub(super) path: String,
}

/// Where on the disk a volume lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Place {
    /// The whole disk, without a partition table.
    Disk,
    Partition {
        scheme: Scheme,
        number: u32,
        is_efi: bool,
    },
}

impl fmt::Display for Place {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Disk => write!(formatter, "the disk"),
            Self::Partition { number, .. } => write!(formatter, "partition {number}"),
        }
    }
}

/// What a disk holds.
pub(super) struct Volumes {
    volumes: Vec<(Place, Volume)>,
    /// What cannot be read, place by place, for people.
    unreadable: Vec<String>,
}

impl Volumes {
    /// Finds and opens all filesystems of a disk.
    ///
    /// # Errors
    /// The disk itself cannot be read.
    pub(super) fn open(disk: Arc<dyn Disk>) -> std::io::Result<Self> {
        let disk = Source::whole(disk, std::rc::Rc::new(Budget::new()));
        let mut volumes = Self { volumes: Vec::new(), unreadable: Vec::new() };
        // A partition table is not a filesystem's first sector, though a FAT's looks like one.
        match Volume::open(&disk) {
            Ok(volume) if volume.kind == "FAT" || partition::read(&disk)?.is_empty() => {
                volumes.volumes.push((Place::Disk, volume));
                return Ok(volumes);
            }
            Err(OpenError::Holds(Signature::Known(what))) if partition::read(&disk)?.is_empty() => {
                volumes.unreadable.push(format!("the disk is {what}"));
                return Ok(volumes);
            }
            Err(OpenError::Broken(kind, error)) if partition::read(&disk)?.is_empty() => {
                volumes.unreadable.push(format!("the disk holds {kind}, but {}", chain(&error)));
                return Ok(volumes);
            }
            _ => {}
        }
        for partition in partition::read(&disk)? {
            volumes.add(&disk, &partition);
        }
        Ok(volumes)
    }

    fn add(&mut self, disk: &Source, partition: &Partition) {
        let Partition { number, scheme, start, size_bytes, is_efi } = *partition;
        let Some(source) = disk.part(start, size_bytes) else {
            let (end, disk_bytes) = (start.saturating_add(size_bytes), disk.size_bytes());
            self.unreadable.push(format!(
                "partition {number} ends at byte {end}, but the disk at byte {disk_bytes}: the image is truncated"
            ));
            return;
        };
        let place = Place::Partition { scheme, number, is_efi };
        match Volume::open(&source) {
            Ok(volume) => self.volumes.push((place, volume)),
            Err(OpenError::Broken(kind, error)) => {
                self.unreadable.push(format!("{place} holds {kind}, but {}", chain(&error)));
            }
            Err(OpenError::Holds(Signature::Known(what))) => {
                self.unreadable.push(format!("{place} is {what}"));
            }
            Err(OpenError::Holds(Signature::Unknown(magic))) => {
                self.unreadable.push(format!("{place} is nothing known, and begins with {}", Magic(magic)));
            }
            // A BIOS boot partition, swap that was never made, and the like.
            Err(OpenError::Holds(Signature::Empty | Signature::Filesystem(_))) => {}
        }
    }

    /// The indices of all volumes.
    pub(super) fn indices(&self) -> std::ops::Range<usize> {
        0..self.volumes.len()
    }

    pub(super) fn place(&self, volume: usize) -> Place {
        self.volumes[volume].0
    }

    pub(super) fn volume(&self, volume: usize) -> &Volume {
        &self.volumes[volume].1
    }

    pub(super) fn unreadable(&self) -> &[String] {
        &self.unreadable
    }

    pub(super) fn is_efi(&self, volume: usize) -> bool {
        matches!(self.place(volume), Place::Partition { is_efi: true, .. })
    }

    /// A volume as people call it.
    pub(super) fn describe(&self, volume: usize) -> String {
        format!("{} ({})", self.place(volume), self.volume(volume).kind)
    }

    /// GRUB's name of a volume: `hd0,gpt1`.
    pub(super) fn device(&self, volume: usize) -> String {
        match self.place(volume) {
            Place::Disk => "hd0".to_owned(),
            Place::Partition { scheme: Scheme::Gpt, number, .. } => format!("hd0,gpt{number}"),
            Place::Partition { scheme: Scheme::Mbr, number, .. } => format!("hd0,msdos{number}"),
        }
    }

    /// The volume that GRUB calls by this name; partitions may also be given as a number alone.
    pub(super) fn by_device(&self, device: &str) -> Option<usize> {
        let Some(partition) = device.strip_prefix("hd0,") else {
            return self.indices().find(|&volume| device == "hd0" && self.place(volume) == Place::Disk);
        };
        self.indices().find(|&volume| match self.place(volume) {
            Place::Disk => false,
            Place::Partition { number, .. } => {
                let number = number.to_string();
                ["", "gpt", "msdos"].iter().any(|scheme| partition.strip_prefix(scheme) == Some(&number))
            }
        })
    }

    pub(super) fn by_uuid(&self, uuid: &str) -> Option<usize> {
        self.indices().find(|&volume| self.volume(volume).uuid().eq_ignore_ascii_case(uuid))
    }

    pub(super) fn by_label(&self, label: &str) -> Option<usize> {
        self.indices().find(|&volume| self.volume(volume).label() == label)
    }

    pub(super) fn by_file(&self, path: &str) -> Option<usize> {
        self.indices().find(|&volume| self.volume(volume).resolve(path).is_ok())
    }

    /// What a name leads to.
    pub(super) fn found(&self, file: &FileName) -> Option<Found> {
        self.volume(file.volume).resolve(&file.path).ok().map(|(_, found)| found)
    }

    /// Opens a file of at most `max_bytes`.
    ///
    /// # Errors
    /// See [`Volume::file`].
    pub(super) fn file(&self, file: &FileName, max_bytes: u64) -> Result<FileImage, filesystem::Error> {
        self.volume(file.volume).file(&file.path, max_bytes)
    }

    /// Reads a text of at most `max_bytes`.
    ///
    /// # Errors
    /// See [`Volume::text`].
    pub(super) fn text(&self, file: &FileName, max_bytes: u64) -> Result<String, filesystem::Error> {
        self.volume(file.volume).text(&file.path, max_bytes)
    }
}

/// Bytes that are no text, for people.
struct Magic([u8; 8]);

impl fmt::Display for Magic {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(formatter, "{byte:02x}"))
    }
}
