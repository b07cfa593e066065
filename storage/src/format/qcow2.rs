//! qcow2 images read, by the crate `imago`, and copied into raw ones. Nothing else is opened for one: a backing file or
//! an external data file is an error.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

use imago::qcow2::Qcow2;
use imago::{DenyImplicitOpenGate, FormatAccess, FormatDriverBuilder, StorageOpenOptions};

use super::inspect::{InspectError, inspect};

/// Bytes copied at once: a cluster of the largest size.
const COPY_BYTES: usize = 2 << 20;
/// What a host's filesystem gives room in.
const BLOCK_BYTES: usize = 4096;
/// How many bytes of data may come out of each byte of the file. Compressed clusters hold more than they take, and a
/// file can name the same cluster ever again; no honest one comes near.
const EXPANSION_MAX: u64 = 64;
/// What a file of any size may come to.
const EXPANSION_FREE_BYTES: u64 = 256 << 20;

/// Why a qcow2 image cannot become a raw one.
#[derive(Debug, thiserror::Error)]
pub enum Qcow2Error {
    /// Its header is refused.
    #[error(transparent)]
    Header(#[from] InspectError),
    /// It cannot be opened as qcow2.
    #[error("open the qcow2 image")]
    Open(#[source] io::Error),
    /// A part of it cannot be read.
    #[error("read the qcow2 image at {offset}")]
    Read {
        /// Where in the disk.
        offset: u64,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The raw image cannot be written.
    #[error("write the raw image")]
    Write(#[source] io::Error),
    /// More comes out than can be meant.
    #[error("the qcow2 image holds more data than its size allows for")]
    Expands,
    /// The disk is larger than it may be.
    #[error("the qcow2 image is a disk of {size_bytes} bytes, at most {bytes_max} are possible")]
    TooLarge {
        /// How large.
        size_bytes: u64,
        /// How large it may be.
        bytes_max: u64,
    },
}

/// Makes `raw`, an empty file, the disk that the qcow2 image is, of at most `bytes_max` bytes; its size. What is zero
/// takes no room.
///
/// # Errors
/// [`Qcow2Error`]; `raw` is then to be thrown away.
pub fn copy_to_raw(qcow2: &File, raw: &File, bytes_max: u64) -> Result<u64, Qcow2Error> {
    inspect(qcow2, "qcow2")?;
    let file_bytes = qcow2.metadata().map_err(Qcow2Error::Open)?.len();
    let mut left = file_bytes.saturating_mul(EXPANSION_MAX).max(EXPANSION_FREE_BYTES);
    let disk = open(qcow2).map_err(Qcow2Error::Open)?;
    let size_bytes = disk.size();
    if size_bytes > bytes_max {
        return Err(Qcow2Error::TooLarge { size_bytes, bytes_max });
    }
    raw.set_len(size_bytes).map_err(Qcow2Error::Write)?;
    let mut buffer = vec![0; COPY_BYTES];
    let mut offset = 0;
    while offset < size_bytes {
        let read = |source| Qcow2Error::Read { offset, source };
        let (mapping, length) = disk.get_mapping(offset, size_bytes - offset).map_err(read)?;
        if length == 0 {
            return Err(read(io::ErrorKind::UnexpectedEof.into()));
        }
        if matches!(mapping, imago::Mapping::Zero { .. }) {
            offset += length;
            continue;
        }
        let piece = usize::try_from(length).unwrap_or(COPY_BYTES).min(COPY_BYTES);
        left = left.checked_sub(piece as u64).ok_or(Qcow2Error::Expands)?;
        disk.read(&mut buffer[..piece], offset).map_err(read)?;
        for (index, block) in buffer[..piece].chunks(BLOCK_BYTES).enumerate() {
            if block.iter().any(|&byte| byte != 0) {
                let at = offset + (index * BLOCK_BYTES) as u64;
                raw.write_all_at(block, at).map_err(Qcow2Error::Write)?;
            }
        }
        offset += piece as u64;
    }
    Ok(size_bytes)
}

fn open(file: &File) -> io::Result<FormatAccess<imago::file::File>> {
    let storage = imago::file::File::from_open_file(file.try_clone()?, StorageOpenOptions::new())?;
    let qcow2 = Qcow2::<imago::file::File>::builder(storage).open(DenyImplicitOpenGate::default())?;
    Ok(FormatAccess::new(qcow2))
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Seek as _};
    use std::process::Command;

    use super::*;

    /// An image by qemu-img, or none where that is not installed.
    fn made(raw: &[u8], options: &[&str]) -> Option<File> {
        let directory = tempfile::tempdir().unwrap();
        let (from, to) = (directory.path().join("raw"), directory.path().join("qcow2"));
        std::fs::write(&from, raw).unwrap();
        let made = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2"])
            .args(options)
            .args([&from, &to])
            .status();
        match made {
            Ok(status) => {
                assert!(status.success());
                Some(File::open(to).unwrap())
            }
            Err(error) => {
                println!("skipped: qemu-img: {error}");
                None
            }
        }
    }

    fn sample() -> Vec<u8> {
        let mut raw = vec![0; 3 << 20];
        for (index, byte) in raw[1 << 20..(1 << 20) + 100_000].iter_mut().enumerate() {
            *byte = u8::try_from(index % 251).unwrap();
        }
        raw[(3 << 20) - 1] = 7;
        raw
    }

    #[test]
    fn every_kind_of_qcow2_becomes_the_disk_it_was_made_of_or_is_refused_by_name() {
        let raw = sample();
        for (options, read) in [
            (&[][..], true),
            (&["-c"], true),
            (&["-o", "compat=0.10"], true),
            (&["-o", "cluster_size=4096"], true),
            (&["-o", "lazy_refcounts=on"], true),
            (&["-c", "-o", "compression_type=zstd"], false),
            (&["-o", "extended_l2=on"], false),
        ] {
            let Some(image) = made(&raw, options) else { return };
            let mut copy = tempfile::tempfile().unwrap();
            let copied = copy_to_raw(&image, &copy, 1 << 30);
            if !read {
                assert!(matches!(copied, Err(Qcow2Error::Header(_))), "{options:?}: {copied:?}");
                continue;
            }
            assert_eq!(copied.unwrap(), raw.len() as u64, "{options:?}");
            let mut content = Vec::new();
            copy.rewind().unwrap();
            copy.read_to_end(&mut content).unwrap();
            assert!(content == raw, "{options:?}");
        }
    }

    #[test]
    fn disk_larger_than_allowed_and_nonsense_are_refused() {
        let Some(image) = made(&sample(), &[]) else { return };
        let copy = tempfile::tempfile().unwrap();
        assert!(matches!(copy_to_raw(&image, &copy, 1 << 20), Err(Qcow2Error::TooLarge { .. })));
        let nonsense = tempfile::tempfile().unwrap();
        nonsense.write_all_at(b"QFI\xfb\0\0\0\x03", 0).unwrap();
        nonsense.write_all_at(&[0xff; 4096], 8).unwrap();
        assert!(copy_to_raw(&nonsense, &copy, 1 << 30).is_err());
    }

    #[test]
    fn image_whose_tables_name_one_cluster_ever_again_is_refused() {
        // 64 KiB clusters, 16 L2 tables' worth of disk, all entries of all tables the same data cluster.
        const CLUSTER: u64 = 65_536;
        let image = tempfile::tempfile().unwrap();
        let put = |at: u64, bytes: &[u8]| image.write_all_at(bytes, at).unwrap();
        put(0, b"QFI\xfb\0\0\0\x02");
        put(20, &16_u32.to_be_bytes());
        put(24, &(16 * 8192 * CLUSTER).to_be_bytes());
        put(36, &16_u32.to_be_bytes());
        put(40, &CLUSTER.to_be_bytes());
        put(48, &(3 * CLUSTER).to_be_bytes());
        put(56, &1_u32.to_be_bytes());
        let copied = 1_u64 << 63;
        for entry in 0..16 {
            put(CLUSTER + entry * 8, &((2 * CLUSTER) | copied).to_be_bytes());
        }
        let entry = ((5 * CLUSTER) | copied).to_be_bytes();
        put(2 * CLUSTER, &entry.repeat(8192));
        put(3 * CLUSTER, &(4 * CLUSTER).to_be_bytes());
        put(4 * CLUSTER, &[0, 1].repeat(6));
        put(5 * CLUSTER, &[0xaa; 65_536]);
        let raw = tempfile::tempfile().unwrap();
        let refused = copy_to_raw(&image, &raw, 1 << 43);
        assert!(matches!(refused, Err(Qcow2Error::Expands)), "{refused:?}");
    }
}
