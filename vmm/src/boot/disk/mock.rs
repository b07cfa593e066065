//! Disks made by hand, for tests and fuzzers: in memory, with a FAT32 filesystem of a few files.

use std::collections::BTreeMap;
use std::io;

use storage::format::Disk;

use crate::boot::image::Image as _;

/// A disk in memory, read-only.
pub struct MemoryDisk(
    /// Its bytes.
    pub Vec<u8>,
);

impl Disk for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.0.len() as u64
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.as_slice().read_exact_at(buffer, offset)
    }
    fn write_at(&self, _buffer: &[u8], _offset: u64) -> io::Result<()> {
        Err(io::ErrorKind::ReadOnlyFilesystem.into())
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, _offset: u64, _length: u64) -> io::Result<()> {
        Ok(())
    }
}

const SECTOR: usize = 512;

enum Node<'a> {
    File(&'a [u8]),
    Directory(BTreeMap<&'a str, Node<'a>>),
}

/// A FAT32 filesystem with these files, by paths without a leading slash, in clusters of 512 bytes.
///
/// # Panics
/// Where a file's directory is a file.
#[must_use]
pub fn fat32(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut root = BTreeMap::new();
    for (path, content) in files {
        let mut directory = &mut root;
        let mut names = path.split('/').peekable();
        while let Some(name) = names.next() {
            if names.peek().is_none() {
                directory.insert(name, Node::File(content));
                break;
            }
            match directory.entry(name).or_insert_with(|| Node::Directory(BTreeMap::new())) {
                Node::Directory(inner) => directory = inner,
                Node::File(_) => panic!("{name} is a file"),
            }
        }
    }
    let mut image = Clusters { data: Vec::new(), next: vec![0x0fff_fff8, 0x0fff_ffff] };
    let root_cluster = image.directory(&root);
    image.finish(root_cluster)
}

struct Clusters {
    data: Vec<u8>,
    next: Vec<u32>,
}

impl Clusters {
    /// Puts bytes into clusters of their own, and says the first.
    fn put(&mut self, bytes: &[u8]) -> u32 {
        let first = self.next.len() as u32;
        let count = bytes.len().div_ceil(SECTOR).max(1);
        self.data.extend_from_slice(bytes);
        self.data.resize(self.data.len().next_multiple_of(SECTOR), 0);
        self.data.resize((first as usize - 2 + count) * SECTOR, 0);
        self.next.extend((1..count as u32).map(|step| first + step));
        self.next.push(0x0fff_ffff);
        first
    }

    fn directory(&mut self, nodes: &BTreeMap<&str, Node<'_>>) -> u32 {
        let mut bytes = Vec::new();
        for (index, (name, node)) in nodes.iter().enumerate() {
            let (attribute, cluster, size) = match node {
                Node::File(content) => (0x20, self.put(content), content.len() as u32),
                Node::Directory(inner) => (0x10, self.directory(inner), 0),
            };
            let mut units: Vec<u16> = name.encode_utf16().collect();
            units.push(0);
            let parts: Vec<_> = units.chunks(13).collect();
            for (order, part) in parts.iter().enumerate().rev() {
                let mut entry = [0xff_u8; 32];
                let last = if order + 1 == parts.len() { 0x40 } else { 0 };
                (entry[0], entry[11], entry[12], entry[13]) = (last | (order as u8 + 1), 0x0f, 0, 0);
                entry[26..28].fill(0);
                let places = [1, 3, 5, 7, 9, 14, 16, 18, 20, 22, 24, 28, 30];
                for (place, unit) in places.into_iter().zip(part.iter()) {
                    entry[place..place + 2].copy_from_slice(&unit.to_le_bytes());
                }
                bytes.extend(entry);
            }
            let mut entry = [0_u8; 32];
            entry[..11].copy_from_slice(format!("N{index:07}   ").as_bytes());
            entry[11] = attribute;
            entry[20..22].copy_from_slice(&((cluster >> 16) as u16).to_le_bytes());
            entry[26..28].copy_from_slice(&(cluster as u16).to_le_bytes());
            entry[28..].copy_from_slice(&size.to_le_bytes());
            bytes.extend(entry);
        }
        self.put(&bytes)
    }

    fn finish(self, root_cluster: u32) -> Vec<u8> {
        let fat: Vec<u8> = self.next.iter().flat_map(|next| next.to_le_bytes()).collect();
        let fat_sectors = fat.len().div_ceil(SECTOR);
        let sectors = 1 + fat_sectors + self.data.len() / SECTOR;
        let mut image = vec![0; SECTOR];
        image[11..13].copy_from_slice(&512_u16.to_le_bytes());
        (image[13], image[14], image[16], image[21]) = (1, 1, 1, 0xf8);
        image[32..36].copy_from_slice(&(sectors as u32).to_le_bytes());
        image[36..40].copy_from_slice(&(fat_sectors as u32).to_le_bytes());
        image[44..48].copy_from_slice(&root_cluster.to_le_bytes());
        image[67..71].copy_from_slice(&0x1234_abcd_u32.to_le_bytes());
        image[71..90].copy_from_slice(b"SYSTEM     FAT32   ");
        image[510..512].copy_from_slice(&[0x55, 0xaa]);
        image.extend(fat);
        image.resize((1 + fat_sectors) * SECTOR, 0);
        image.extend(self.data);
        image
    }
}
