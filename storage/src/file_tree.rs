//! A small disk with files on it, which any guest can read: one FAT file system without a partition table.
//!
//! Made for configuration drives. Must never know: what the files say.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Cursor, Write as _};
use std::os::unix::fs::FileExt;

use fatfs::{FileSystem, FormatVolumeOptions, FsOptions};

/// The most bytes of all files together: what user data and metadata can be, several times.
pub const CONTENT_BYTES_MAX: u64 = 2 << 20;
/// The least size of a disk in bytes: a FAT16 file system with its tables. What is not written takes no room.
const DISK_BYTES_MIN: u64 = 8 << 20;
/// What a file takes beyond its content, in bytes: its last cluster and its directory entries.
const FILE_BYTES_EXTRA: u64 = 16 << 10;
/// The length of a label.
const LABEL_BYTES: usize = 11;
/// What a host's file system gives room in.
const BLOCK_BYTES: usize = 4096;
/// One sector: disks are multiples of it.
const SECTOR_BYTES: u64 = 512;

/// Why a disk of files cannot be made.
#[derive(Debug, thiserror::Error)]
pub enum FileTreeError {
    /// More than [`CONTENT_BYTES_MAX`].
    #[error("the files have {0} bytes together, at most {max} are possible", max = CONTENT_BYTES_MAX)]
    TooLarge(u64),
    /// A label that the file system cannot hold.
    #[error("a label has from 1 to {max} printable characters", max = LABEL_BYTES)]
    Label,
    /// One step failed.
    #[error("{step}")]
    Write {
        /// Which.
        step: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

fn step(step: &'static str) -> impl FnOnce(io::Error) -> FileTreeError {
    move |source| FileTreeError::Write { step, source }
}

/// Makes `file`, which must be empty and open for writing, a disk with `files` on it: path without a
/// leading slash to content. Timestamps are those of the epoch, so that the same files make the same disk.
///
/// # Errors
/// Too much content, an impossible label or name, or a file that cannot be written; it is then to be thrown away.
pub fn write(
    file: &File,
    label: &str,
    files: &BTreeMap<String, impl AsRef<[u8]>>,
) -> Result<(), FileTreeError> {
    let content: u64 = files.values().map(|content| content.as_ref().len() as u64).sum();
    if content > CONTENT_BYTES_MAX {
        return Err(FileTreeError::TooLarge(content));
    }
    let extra = FILE_BYTES_EXTRA * files.len() as u64;
    let size = (DISK_BYTES_MIN + content + extra).next_multiple_of(SECTOR_BYTES);
    // In memory, since a file system is made in very many very small steps.
    let mut disk = Cursor::new(vec![0; usize::try_from(size).expect("invariant: usize has 64 bits")]);
    let options = FormatVolumeOptions::new().volume_label(label_bytes(label)?);
    fatfs::format_volume(&mut disk, options).map_err(step("format the disk"))?;
    let system = FileSystem::new(&mut disk, FsOptions::new()).map_err(step("open the file system"))?;
    {
        let root = system.root_dir();
        for (path, content) in files {
            for (end, _) in path.match_indices('/') {
                root.create_dir(&path[..end]).map_err(step("make a directory"))?;
            }
            let mut target = root.create_file(path).map_err(step("make a file"))?;
            target.write_all(content.as_ref()).map_err(step("write a file"))?;
        }
    }
    system.unmount().map_err(step("close the file system"))?;
    store(file, disk.get_ref()).map_err(step("write the disk"))
}

/// Writes what is not zero; the rest takes no room.
fn store(file: &File, disk: &[u8]) -> io::Result<()> {
    file.set_len(disk.len() as u64)?;
    for (index, block) in (0_u64..).zip(disk.chunks(BLOCK_BYTES)) {
        if block.iter().any(|&byte| byte != 0) {
            file.write_all_at(block, index * BLOCK_BYTES as u64)?;
        }
    }
    Ok(())
}

/// A label as the file system keeps it: padded with blanks, and in the case it was given in, which is how a
/// configuration drive is recognised.
fn label_bytes(label: &str) -> Result<[u8; LABEL_BYTES], FileTreeError> {
    let printable = |byte: u8| byte.is_ascii_graphic();
    if label.is_empty() || label.len() > LABEL_BYTES || !label.bytes().all(printable) {
        return Err(FileTreeError::Label);
    }
    let mut bytes = [b' '; LABEL_BYTES];
    bytes[..label.len()].copy_from_slice(label.as_bytes());
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn tree(files: &[(&str, &[u8])]) -> Result<File, FileTreeError> {
        let file = tempfile::tempfile().unwrap();
        let files: BTreeMap<String, Vec<u8>> =
            files.iter().map(|(path, content)| ((*path).to_owned(), content.to_vec())).collect();
        write(&file, "config-2", &files).map(|()| file)
    }

    #[test]
    fn files_are_read_back_under_their_names_and_label() {
        let large = vec![b'u'; 70_000];
        let disk = tree(&[
            ("openstack/latest/meta_data.json", b"{}"),
            ("openstack/latest/user_data", &large),
            ("openstack/2018-08-27/meta_data.json", b"{\"uuid\": 1}"),
        ])
        .unwrap();
        let system = FileSystem::new(disk, FsOptions::new()).unwrap();
        assert_eq!(system.volume_label(), "config-2");
        assert_eq!(system.read_volume_label_from_root_dir().unwrap().as_deref(), Some("config-2"));
        let read = |path: &str| {
            let mut content = Vec::new();
            system.root_dir().open_file(path).unwrap().read_to_end(&mut content).unwrap();
            content
        };
        assert_eq!(read("openstack/latest/meta_data.json"), b"{}");
        assert_eq!(read("openstack/latest/user_data"), large);
        assert_eq!(read("openstack/2018-08-27/meta_data.json"), b"{\"uuid\": 1}");
    }

    #[test]
    fn the_same_files_make_the_same_disk() {
        let bytes = || {
            let mut disk = tree(&[("a/b", b"c")]).unwrap();
            let mut bytes = Vec::new();
            io::Seek::rewind(&mut disk).unwrap();
            disk.read_to_end(&mut bytes).unwrap();
            bytes
        };
        assert!(bytes() == bytes());
        assert!((bytes().len() as u64).is_multiple_of(SECTOR_BYTES));
    }

    #[test]
    fn content_up_to_the_limit_fits_and_beyond_it_is_refused() {
        let limit = usize::try_from(CONTENT_BYTES_MAX).unwrap();
        assert!(tree(&[("a", &vec![1; limit])]).is_ok());
        assert!(matches!(tree(&[("a", &vec![1; limit + 1])]), Err(FileTreeError::TooLarge(_))));
        let many: Vec<String> = (0..100).map(|number| format!("directory/file-number-{number}")).collect();
        let many: Vec<(&str, &[u8])> = many.iter().map(|path| (path.as_str(), &b"x"[..])).collect();
        assert!(tree(&many).is_ok());
    }

    #[test]
    fn labels_and_names_that_cannot_be_are_refused() {
        let file = tempfile::tempfile().unwrap();
        for label in ["", "twelve-bytes", "a b", "ä"] {
            let written = write(&file, label, &BTreeMap::<String, Vec<u8>>::new());
            assert!(matches!(written, Err(FileTreeError::Label)), "{label}");
        }
        assert!(matches!(tree(&[("a?", b"")]), Err(FileTreeError::Write { .. })));
        assert!(tree(&[(&"n".repeat(300), b"")]).is_err());
    }
}
