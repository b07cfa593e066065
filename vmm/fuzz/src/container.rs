//! Archives of container images: layers whose entries have any kind, name, link, size and mode, with digests that are
//! right, so that they are looked at; and whole archives with bytes changed.
//!
//! What becomes a disk must be one: an ext4 reader of another author walks it.

use std::fs::File;
use std::os::unix::fs::FileExt as _;

use ext4_view::Ext4;
use ring::digest::{SHA256, digest};
use serde_json::json;
use storage::container::copy_to_raw;
use tar::{Builder, EntryType, Header};

use crate::input::Reader;

/// The largest disk that may come of an archive.
const DISK_BYTES_MAX: u64 = 1 << 30;
/// Entries that a disk is walked for.
const WALKED_MAX: usize = 500;

/// Parts of names: few, so that they meet.
const PARTS: [&str; 8] = ["a", "b", "c", "etc", ".wh.a", ".wh.b", ".wh..wh..opq", "\u{1F980}"];
/// Those that are refused; rare, since an archive ends at the first.
const REFUSED_PARTS: [&str; 7] = ["..", ".", "", ".wh.", ".wisp", "x\\y", "init"];
const KINDS: [EntryType; 8] = [
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Symlink,
    EntryType::Regular,
    EntryType::Directory,
    EntryType::Fifo,
    EntryType::Char,
    EntryType::Block,
];
const RARE_KINDS: [EntryType; 4] =
    [EntryType::Link, EntryType::GNUSparse, EntryType::XHeader, EntryType::GNULongName];

/// One of the usual ones, and now and then of the rare ones.
fn one_of<T: Copy>(reader: &mut Reader<'_>, usual: &[T], rare: &[T]) -> T {
    let number = usize::from(reader.u8());
    if number < 250 { usual[number % usual.len()] } else { rare[number % rare.len()] }
}

fn name(reader: &mut Reader<'_>) -> Vec<u8> {
    let shape = reader.u8();
    if shape == 255 {
        let length = usize::from(reader.u8());
        return reader.bytes(length).to_vec();
    }
    let mut name = String::new();
    for _ in 0..=shape % 4 {
        if !name.is_empty() || shape & 0x80 != 0 {
            name.push('/');
        }
        name.push_str(one_of(reader, &PARTS, &REFUSED_PARTS));
    }
    name.into_bytes()
}

fn put(field: &mut [u8], text: &[u8]) {
    let length = text.len().min(field.len());
    field[..length].copy_from_slice(&text[..length]);
}

/// A layer; headers without the library's checks.
fn layer(reader: &mut Reader<'_>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for _ in 0..reader.u8() % 24 {
        let mut header = Header::new_gnu();
        let kind = one_of(reader, &KINDS, &RARE_KINDS);
        header.set_entry_type(kind);
        put(&mut header.as_old_mut().name, &name(reader));
        if matches!(kind, EntryType::Symlink | EntryType::Link) || reader.u8() == 255 {
            put(&mut header.as_old_mut().linkname, &name(reader));
        }
        let content = vec![0x5a; usize::from(reader.u16()) >> (reader.u8() % 16)];
        // Now and then a size that is not the content's.
        let size = if reader.u8() == 255 { reader.u64() } else { content.len() as u64 };
        header.set_size(size);
        header.set_mode(u32::from(reader.u16()));
        header.set_uid(u64::from(reader.u16()));
        header.set_gid(u64::from(reader.u16()));
        header.set_mtime(u64::from(reader.u8()));
        header.set_cksum();
        bytes.extend_from_slice(header.as_bytes());
        bytes.extend_from_slice(&content);
        bytes.resize(bytes.len().next_multiple_of(512), 0);
    }
    bytes.resize(bytes.len() + 1024, 0);
    bytes
}

fn hexadecimal(bytes: &[u8]) -> String {
    digest(&SHA256, bytes).as_ref().iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What `docker save` writes of these layers, in memory.
fn archive(layers: &[Vec<u8>]) -> Vec<u8> {
    let unpacked: Vec<_> = layers.iter().map(|layer| format!("sha256:{}", hexadecimal(layer))).collect();
    let configuration = json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/a"]},
        "rootfs": {"type": "layers", "diff_ids": unpacked},
    })
    .to_string()
    .into_bytes();
    let configuration_name = format!("{}.json", hexadecimal(&configuration));
    let names: Vec<_> = (0..layers.len()).map(|index| format!("{index}/layer.tar")).collect();
    let manifest = json!([{"Config": configuration_name, "Layers": names}]).to_string().into_bytes();
    let parts = [(configuration_name, configuration), ("manifest.json".to_owned(), manifest)];
    let mut tar = Builder::new(Vec::new());
    for (name, bytes) in parts.into_iter().chain(names.into_iter().zip(layers.iter().cloned())) {
        let mut header = Header::new_gnu();
        put(&mut header.as_old_mut().name, name.as_bytes());
        header.set_entry_type(EntryType::Regular);
        header.set_size(bytes.len() as u64);
        header.set_cksum();
        tar.append(&header, bytes.as_slice()).expect("memory takes it");
    }
    tar.into_inner().expect("memory takes it")
}

pub(crate) fn run(input: &[u8]) {
    let mut reader = Reader::new(input);
    let (layers, changes) = (1 + reader.u8() % 3, reader.u8() % 8);
    let layers: Vec<_> = (0..layers).map(|_| layer(&mut reader)).collect();
    let mut bytes = archive(&layers);
    // Half of the archives are as they were made.
    for _ in 0..changes.saturating_sub(4) {
        let place = reader.u32() as usize % bytes.len();
        bytes[place] = reader.u8();
    }
    let file = tempfile::tempfile().expect("the fuzzer needs files");
    file.write_all_at(&bytes, 0).expect("the fuzzer needs some room");
    let raw = tempfile::tempfile().expect("the fuzzer needs files");
    match copy_to_raw(&file, &raw, b"the first program", DISK_BYTES_MAX) {
        Ok(size_bytes) => {
            assert!(size_bytes <= DISK_BYTES_MAX, "a disk of {size_bytes} bytes");
            walk(raw);
        }
        // An error is an answer.
        Err(error) => drop(error.to_string()),
    }
}

fn walk(raw: File) {
    let disk = Ext4::load(Box::new(raw)).expect("what came of it is a file system");
    let mut directories = vec![ext4_view::PathBuf::new("/")];
    let mut walked = 0;
    while let Some(directory) = directories.pop() {
        for entry in disk.read_dir(&directory).expect("a directory can be listed") {
            let entry = entry.expect("a directory can be listed to its end");
            walked += 1;
            let is_self = matches!(entry.file_name().as_ref(), b"." | b"..");
            if is_self || walked > WALKED_MAX {
                continue;
            }
            let kind = entry.file_type().expect("an entry has a kind");
            if kind.is_dir() {
                directories.push(entry.path());
            } else if kind.is_regular_file() {
                disk.read(&entry.path()).expect("a file can be read");
            }
        }
    }
}
