//! FAT12, FAT16 and FAT32 with long names (Microsoft, FAT: General Overview of On-Disk Format 1.03), read-only.
//!
//! Our own: the libraries there are write as well, and follow a chain of clusters for as long as it goes in a circle.
//!
//! ```text
//! boot sector  11 bytes per sector (2)  13 sectors per cluster  14 reserved sectors (2)  16 FATs  17 root entries (2)
//!              19 sectors (2)  21 media  22 sectors per FAT (2)  32 sectors (4)  36 FAT32: sectors per FAT (4)
//!              44 FAT32: root cluster (4)   serial number, label and kind: from 39, FAT32: from 67
//! entry of 32  0 name 8.3  11 attributes  20 cluster, high (2)  26 cluster, low (2)  28 size (4)
//! long name    0 order  1, 14, 28 five, six and two UTF-16 units  11 0x0f  13 checksum of the short name
//! ```

use std::rc::Rc;

use super::super::source::Source;
use super::{Contents, Error, Filesystem, Found, NAMES_MAX};

/// The most bytes of one directory: 65536 entries (the format's bound).
const DIRECTORY_BYTES_MAX: usize = 65536 * 32;
/// The largest file: the format's bound.
const FILE_BYTES_MAX: u64 = u32::MAX as u64;
/// The units of a long name: the format's bound, and one entry more.
const NAME_UNITS_MAX: usize = 260;

fn u16_at(bytes: &[u8], offset: usize) -> u32 {
    u32::from(u16::from_le_bytes([bytes[offset], bytes[offset + 1]]))
}

fn u32_at(bytes: &[u8], offset: usize) -> u32 {
    u16_at(bytes, offset) | u16_at(bytes, offset + 2) << 16
}

/// Whether this is the boot sector of a FAT filesystem.
pub(super) fn is_boot_sector(sector: &[u8; 512]) -> bool {
    let named = sector[54..57] == *b"FAT" || sector[82..85] == *b"FAT";
    let size = u16_at(sector, 11);
    named
        && sector[510..] == [0x55, 0xaa]
        && matches!(size, 512 | 1024 | 2048 | 4096)
        && sector[13].is_power_of_two()
        && matches!(sector[16], 1 | 2)
        && u16_at(sector, 14) > 0
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Width {
    Twelve,
    Sixteen,
    ThirtyTwo,
}

/// What the boot sector says, in bytes.
struct Geometry {
    source: Source,
    width: Width,
    fat: u64,
    fat_bytes: u64,
    /// The fixed root directory of FAT12 and FAT16.
    root: u64,
    root_bytes: u64,
    root_cluster: u32,
    data: u64,
    cluster_bytes: u64,
    clusters: u32,
}

pub(super) struct Fat {
    geometry: Rc<Geometry>,
    uuid: String,
    label: String,
}

/// Where a file or directory begins.
#[derive(Debug, Clone, Copy)]
struct Entry {
    is_directory: bool,
    cluster: u32,
    size_bytes: u32,
}

impl Fat {
    pub(super) fn open(source: Source) -> Result<Self, Error> {
        let sector: [u8; 512] = source.array(0)?;
        if !is_boot_sector(&sector) {
            return Err(Error::reader("its boot sector is broken"));
        }
        let sector_bytes = u64::from(u16_at(&sector, 11));
        let or = |small: u32, large: u32| u64::from(if small == 0 { large } else { small });
        let is_32 = u16_at(&sector, 22) == 0;
        let fat = u64::from(u16_at(&sector, 14)) * sector_bytes;
        let fat_bytes = or(u16_at(&sector, 22), u32_at(&sector, 36)) * sector_bytes;
        let root = fat + u64::from(sector[16]) * fat_bytes;
        let root_bytes = (u64::from(u16_at(&sector, 17)) * 32).next_multiple_of(sector_bytes);
        let (data, total) = (root + root_bytes, or(u16_at(&sector, 19), u32_at(&sector, 32)) * sector_bytes);
        let cluster_bytes = u64::from(sector[13]) * sector_bytes;
        let clusters = total.saturating_sub(data) / cluster_bytes;
        let width = match clusters {
            _ if is_32 => Width::ThirtyTwo,
            0..4085 => Width::Twelve,
            _ => Width::Sixteen,
        };
        let clusters = u32::try_from(clusters).map_err(|_| Error::reader("its boot sector is broken"))?;
        let text = &sector[if is_32 { 67 } else { 39 }..];
        let serial = u32_at(text, 0);
        Ok(Self {
            uuid: format!("{:04X}-{:04X}", serial >> 16, serial & 0xffff),
            label: String::from_utf8_lossy(&text[4..15]).trim_end().to_owned(),
            geometry: Rc::new(Geometry {
                source,
                width,
                fat,
                fat_bytes,
                root,
                root_bytes: if is_32 { 0 } else { root_bytes },
                root_cluster: if is_32 { u32_at(&sector, 44) } else { 0 },
                data,
                cluster_bytes,
                clusters,
            }),
        })
    }

    /// The bytes of a directory; the root's cluster is zero where the root lies apart.
    fn directory(&self, cluster: u32) -> Result<Vec<u8>, Error> {
        let geometry = &*self.geometry;
        if cluster == 0 && geometry.root_bytes > 0 {
            let mut bytes = vec![0; usize::try_from(geometry.root_bytes).map_err(|_| Error::Path)?];
            geometry.source.read(&mut bytes, geometry.root)?;
            return Ok(bytes);
        }
        let first = if cluster == 0 { geometry.root_cluster } else { cluster };
        let mut bytes = Vec::new();
        for (start, length) in geometry.runs(first, DIRECTORY_BYTES_MAX as u64)? {
            let from = bytes.len();
            let length =
                usize::try_from(length).map_or(DIRECTORY_BYTES_MAX, |it| it.min(DIRECTORY_BYTES_MAX));
            bytes.resize(from + length, 0);
            geometry.source.read(&mut bytes[from..], start)?;
        }
        Ok(bytes)
    }

    fn entry(&self, path: &str) -> Result<Entry, Error> {
        let mut entry = Entry { is_directory: true, cluster: 0, size_bytes: 0 };
        for name in path.split('/').filter(|name| !name.is_empty()) {
            if !entry.is_directory {
                return Err(Error::NotADirectory);
            }
            let is_it = |(long, short, _): &(String, String, Entry)| {
                short.eq_ignore_ascii_case(name) || long.to_lowercase() == name.to_lowercase()
            };
            let found = entries(&self.directory(entry.cluster)?).into_iter().find(is_it);
            entry = found.ok_or(Error::NotFound)?.2;
        }
        Ok(entry)
    }
}

impl Geometry {
    /// The cluster behind this one; `None` at the end.
    fn next(&self, cluster: u32) -> Result<Option<u32>, Error> {
        let (place, bytes) = match self.width {
            Width::Twelve => (u64::from(cluster) + u64::from(cluster) / 2, 2),
            Width::Sixteen => (u64::from(cluster) * 2, 2),
            Width::ThirtyTwo => (u64::from(cluster) * 4, 4),
        };
        if place + bytes > self.fat_bytes {
            return Err(Error::reader("a cluster lies outside its table"));
        }
        let word = u32::from_le_bytes(self.source.array(self.fat + place)?);
        let (value, end) = match self.width {
            Width::Twelve => (word >> (4 * (cluster & 1)) & 0xfff, 0xff8),
            Width::Sixteen => (word & 0xffff, 0xfff8),
            Width::ThirtyTwo => (word & 0xfff_ffff, 0xfff_fff8),
        };
        Ok((value < end).then_some(value))
    }

    /// Where the chain from `first` lies, up to `bytes_max`, in runs of start and length.
    fn runs(&self, first: u32, bytes_max: u64) -> Result<Vec<(u64, u64)>, Error> {
        let mut runs: Vec<(u64, u64)> = Vec::new();
        let (mut cluster, mut done) = (first, 0);
        while done < bytes_max {
            // Clusters count from two. As many as there are end the longest chain, or a circle.
            if cluster < 2
                || cluster - 2 >= self.clusters
                || done / self.cluster_bytes > u64::from(self.clusters)
            {
                return Err(Error::reader("a chain of clusters is broken"));
            }
            let start = self.data + u64::from(cluster - 2) * self.cluster_bytes;
            match runs.last_mut() {
                Some((run, length)) if *run + *length == start => *length += self.cluster_bytes,
                _ => runs.push((start, self.cluster_bytes)),
            }
            done += self.cluster_bytes;
            match self.next(cluster)? {
                Some(next) => cluster = next,
                None => break,
            }
        }
        Ok(runs)
    }
}

/// The entries of a directory: long name (the short one where there is none), short name, what it is.
fn entries(directory: &[u8]) -> Vec<(String, String, Entry)> {
    const DELETED: u8 = 0xe5;
    const LONG_NAME: u8 = 0x0f;
    const VOLUME: u8 = 0x08;
    const DIRECTORY: u8 = 0x10;
    let mut found = Vec::new();
    let mut units: Vec<u16> = Vec::new();
    for raw in directory.chunks_exact(32).take_while(|raw| raw[0] != 0) {
        let attributes = raw[11];
        if raw[0] == DELETED {
            units.clear();
        } else if attributes & 0x3f == LONG_NAME {
            // They come last part first.
            let part = [1..11, 14..26, 28..32].into_iter().flat_map(|range| raw[range].chunks_exact(2));
            let part: Vec<u16> = part.map(|unit| u16::from_le_bytes([unit[0], unit[1]])).collect();
            units.splice(0..0, part);
            units.truncate(NAME_UNITS_MAX);
        } else if attributes & VOLUME != 0 {
            units.clear();
        } else {
            let short = short_name(raw);
            let length = units.iter().position(|&unit| unit == 0).unwrap_or(units.len());
            let long = if length == 0 { short.clone() } else { String::from_utf16_lossy(&units[..length]) };
            units.clear();
            let entry = Entry {
                is_directory: attributes & DIRECTORY != 0,
                cluster: u16_at(raw, 20) << 16 | u16_at(raw, 26),
                size_bytes: u32_at(raw, 28),
            };
            found.push((long, short, entry));
        }
    }
    found
}

fn short_name(raw: &[u8]) -> String {
    let part = |bytes: &[u8], lower: bool| {
        let text = String::from_utf8_lossy(bytes).trim_end().to_owned();
        if lower { text.to_ascii_lowercase() } else { text }
    };
    // Windows NT's bits for a name that is lower case as a whole.
    let (name, extension) = (part(&raw[..8], raw[12] & 0x08 != 0), part(&raw[8..11], raw[12] & 0x10 != 0));
    if extension.is_empty() { name } else { format!("{name}.{extension}") }
}

impl Filesystem for Fat {
    fn uuid(&self) -> String {
        self.uuid.clone()
    }

    fn label(&self) -> String {
        self.label.clone()
    }

    fn find(&mut self, path: &str) -> Result<Found, Error> {
        let entry = self.entry(path)?;
        let size_bytes = u64::from(entry.size_bytes);
        Ok(if entry.is_directory { Found::Directory } else { Found::File { size_bytes } })
    }

    fn read_link(&mut self, _path: &str) -> Result<String, Error> {
        Err(Error::NotFound)
    }

    fn list(&mut self, path: &str) -> Result<Vec<String>, Error> {
        let entry = self.entry(path)?;
        let entries = entries(&self.directory(entry.cluster)?);
        Ok(entries.into_iter().take(NAMES_MAX).map(|(name, _, _)| name).collect())
    }

    fn open(&mut self, path: &str) -> Result<Box<dyn Contents>, Error> {
        let entry = self.entry(path)?;
        let size_bytes = u64::from(entry.size_bytes).min(FILE_BYTES_MAX);
        let runs =
            if size_bytes == 0 { Vec::new() } else { self.geometry.runs(entry.cluster, size_bytes)? };
        Ok(Box::new(Reader { geometry: self.geometry.clone(), runs }))
    }
}

struct Reader {
    geometry: Rc<Geometry>,
    runs: Vec<(u64, u64)>,
}

impl Contents for Reader {
    fn read(&mut self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        let (mut done, mut before) = (0, 0);
        for &(start, length) in &self.runs {
            let at = offset + done as u64;
            if done < buffer.len() && at < before + length {
                let within = at - before;
                let rest = usize::try_from(length - within).unwrap_or(usize::MAX).min(buffer.len() - done);
                self.geometry.source.read(&mut buffer[done..done + rest], start + within)?;
                done += rest;
            }
            before += length;
        }
        if done < buffer.len() {
            return Err(std::io::Error::from(std::io::ErrorKind::UnexpectedEof).into());
        }
        Ok(())
    }
}
