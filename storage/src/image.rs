//! Image files: streamed in with their digests, kept whole and unchanged, opened for reading.
//!
//! One directory holds one file per image, named after its id. An upload is written to `.{id}.partial` and gets its name
//! only when it is whole and durable, so a file with an image's name is an image. The directory is held open, so it may be
//! given by a relative path whatever the process does to its working directory later.
//!
//! Must never know: who owns an image, what its id stands for.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::sync::Arc;

use md5::{Digest as _, Md5};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, linkat, openat, unlinkat};
use rustix::io::Errno;

/// The longest id: leaves room in a file name's 255 bytes for what marks a partial upload.
pub const ID_BYTES_MAX: usize = 200;

const PARTIAL_SUFFIX: &str = ".partial";

/// Why the image store refused or failed.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// The id is no safe file name: letters, digits, `-`, `_` and `.`, not beginning with `.`, at most
    /// [`ID_BYTES_MAX`] bytes.
    #[error("not an image id that can name a file: {id:?}")]
    Id {
        /// The id.
        id: String,
    },
    /// No image has this id.
    #[error("there is no image {id}")]
    Missing {
        /// The id.
        id: String,
    },
    /// An image has this id, and images never change.
    #[error("image {id} exists already")]
    Exists {
        /// The id.
        id: String,
    },
    /// This id is being uploaded just now.
    #[error("image {id} is being uploaded already")]
    Uploading {
        /// The id.
        id: String,
    },
    /// The upload is longer than it may be.
    #[error("image {id} is longer than {bytes_max} bytes")]
    TooLarge {
        /// The id.
        id: String,
        /// The most it may be.
        bytes_max: u64,
    },
    /// An operation of the filesystem failed.
    #[error("{step} {subject}")]
    Io {
        /// What.
        step: &'static str,
        /// Of which image or directory.
        subject: String,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ImageError {
    fn io<E: Into<io::Error>>(step: &'static str, subject: &str) -> impl FnOnce(E) -> Self {
        move |error| Self::Io { step, subject: subject.to_owned(), source: error.into() }
    }
}

/// What an upload amounted to. Digests are in lower-case hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct ImageDigest {
    /// Its length in bytes.
    pub size_bytes: u64,
    /// Its MD5 (RFC 1321), which Image API clients know as `checksum`; it identifies and does not protect.
    pub md5: String,
    /// Its SHA-512 (FIPS 180-4), the Image API's `os_hash_value`.
    pub sha512: String,
}

/// A directory of images; cloning shares it.
#[derive(Debug, Clone)]
pub struct ImageStore {
    directory: Arc<OwnedFd>,
}

impl ImageStore {
    /// Opens the directory, making it for its owner alone if need be.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn open(directory: &Path) -> Result<Self, ImageError> {
        use std::os::unix::fs::DirBuilderExt as _;
        let subject = directory.display().to_string();
        let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(directory);
        made.map_err(ImageError::io("make the image directory", &subject))?;
        let flags = OFlags::DIRECTORY | OFlags::RDONLY | OFlags::CLOEXEC;
        let opened = rustix::fs::open(directory, flags, Mode::empty());
        Ok(Self {
            directory: Arc::new(opened.map_err(ImageError::io("open the image directory", &subject))?),
        })
    }

    /// Begins an upload of at most `bytes_max` bytes. Dropping it takes it back.
    ///
    /// # Errors
    /// [`ImageError::Id`], [`ImageError::Exists`], [`ImageError::Uploading`], [`ImageError::Io`].
    pub fn begin(&self, id: &str, bytes_max: u64) -> Result<Upload, ImageError> {
        check_id(id)?;
        if rustix::fs::statat(&*self.directory, id, AtFlags::SYMLINK_NOFOLLOW).is_ok() {
            return Err(ImageError::Exists { id: id.to_owned() });
        }
        let partial = partial_name(id);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::CLOEXEC;
        let opened = openat(&*self.directory, &partial, flags, Mode::RUSR | Mode::WUSR);
        let file = match opened {
            Ok(file) => File::from(file),
            Err(Errno::EXIST) => return Err(ImageError::Uploading { id: id.to_owned() }),
            Err(error) => return Err(ImageError::io("create the file of image", id)(error)),
        };
        let partial = Partial { directory: self.directory.clone(), name: partial };
        Ok(Upload {
            id: id.to_owned(),
            partial,
            file,
            size_bytes: 0,
            bytes_max,
            md5: Md5::new(),
            sha512: ring::digest::Context::new(&ring::digest::SHA512),
        })
    }

    /// Opens an image for reading.
    ///
    /// # Errors
    /// [`ImageError::Id`], [`ImageError::Missing`], [`ImageError::Io`].
    pub fn open_read(&self, id: &str) -> Result<File, ImageError> {
        check_id(id)?;
        let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        match openat(&*self.directory, id, flags, Mode::empty()) {
            Ok(file) => Ok(file.into()),
            Err(Errno::NOENT) => Err(ImageError::Missing { id: id.to_owned() }),
            Err(error) => Err(ImageError::io("open image", id)(error)),
        }
    }

    /// Deletes an image; no error if there is none. Who has it open keeps it until they close it.
    ///
    /// # Errors
    /// [`ImageError::Id`], [`ImageError::Io`].
    pub fn delete(&self, id: &str) -> Result<(), ImageError> {
        check_id(id)?;
        self.unlink(id).map_err(ImageError::io("delete image", id))
    }

    /// The ids of all images, in no order.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn list(&self) -> Result<Vec<String>, ImageError> {
        Ok(self.names()?.into_iter().filter(|name| check_id(name).is_ok()).collect())
    }

    /// Removes what uploads left behind that a crash cut off; how many. To be called at start only: it takes running
    /// uploads for crashed ones.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn sweep(&self) -> Result<usize, ImageError> {
        let mut swept = 0;
        for name in
            self.names()?.iter().filter(|name| name.starts_with('.') && name.ends_with(PARTIAL_SUFFIX))
        {
            self.unlink(name).map_err(ImageError::io("remove the partial upload", name))?;
            swept += 1;
        }
        Ok(swept)
    }

    /// Names that are not UTF-8 are not ours.
    fn names(&self) -> Result<Vec<String>, ImageError> {
        let failed = || ImageError::io::<Errno>("list", "the image directory");
        let mut names = Vec::new();
        for entry in Dir::read_from(&*self.directory).map_err(failed())? {
            let entry = entry.map_err(failed())?;
            names.extend(OsStr::from_bytes(entry.file_name().to_bytes()).to_str().map(str::to_owned));
        }
        Ok(names)
    }

    fn unlink(&self, name: &str) -> io::Result<()> {
        match unlinkat(&*self.directory, name, AtFlags::empty()) {
            Ok(()) => rustix::fs::fsync(&*self.directory).map_err(Into::into),
            Err(Errno::NOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }
}

/// A partial file, which goes with its upload however that ends.
#[derive(Debug)]
struct Partial {
    directory: Arc<OwnedFd>,
    name: String,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if let Err(error) = unlinkat(&*self.directory, &self.name, AtFlags::empty()) {
            tracing::warn!(file = self.name, %error, "a partial image stays behind until the next start");
        }
    }
}

/// An image being uploaded.
pub struct Upload {
    id: String,
    partial: Partial,
    file: File,
    size_bytes: u64,
    bytes_max: u64,
    md5: Md5,
    sha512: ring::digest::Context,
}

impl std::fmt::Debug for Upload {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Upload")
            .field("id", &self.id)
            .field("size_bytes", &self.size_bytes)
            .finish_non_exhaustive()
    }
}

impl Upload {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`ImageError::TooLarge`], before anything of `bytes` is written, and [`ImageError::Io`]. After either the upload
    /// is only good for dropping.
    pub fn write(&mut self, bytes: &[u8]) -> Result<(), ImageError> {
        let size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
        if size_bytes > self.bytes_max {
            return Err(ImageError::TooLarge { id: self.id.clone(), bytes_max: self.bytes_max });
        }
        self.file.write_all(bytes).map_err(ImageError::io("write image", &self.id))?;
        self.size_bytes = size_bytes;
        self.md5.update(bytes);
        self.sha512.update(bytes);
        Ok(())
    }

    /// How many bytes it has so far.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Makes it an image, durably.
    ///
    /// # Errors
    /// [`ImageError::Exists`] and [`ImageError::Io`]; then nothing of it is left.
    pub fn finish(self) -> Result<ImageDigest, ImageError> {
        let failed = |step| ImageError::io(step, &self.id);
        self.file.sync_all().map_err(failed("sync image"))?;
        let directory = &*self.partial.directory;
        // A link, since it refuses where a rename would replace.
        match linkat(directory, &self.partial.name, directory, &self.id, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) => return Err(ImageError::Exists { id: self.id }),
            Err(error) => return Err(ImageError::io("name image", &self.id)(error)),
        }
        if let Err(error) = rustix::fs::fsync(directory) {
            // The caller will take it that there is no image.
            let _ = unlinkat(directory, &self.id, AtFlags::empty());
            return Err(ImageError::io("sync the directory of image", &self.id)(error));
        }
        Ok(ImageDigest {
            size_bytes: self.size_bytes,
            md5: hexadecimal(&self.md5.finalize()),
            sha512: hexadecimal(self.sha512.finish().as_ref()),
        })
    }
}

fn check_id(id: &str) -> Result<(), ImageError> {
    let safe = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.');
    if !id.is_empty() && id.len() <= ID_BYTES_MAX && !id.starts_with('.') && id.bytes().all(safe) {
        Ok(())
    } else {
        Err(ImageError::Id { id: id.chars().take(ID_BYTES_MAX).collect() })
    }
}

fn partial_name(id: &str) -> String {
    format!(".{id}{PARTIAL_SUFFIX}")
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// What an image's first bytes say it is. A hint for clear messages, never a reason to treat a file as something: a
/// guest writes its own disk's first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apparent {
    /// No bytes at all.
    Empty,
    /// An ELF file, such as an uncompressed kernel.
    Elf,
    /// An x86 Linux kernel image (`bzImage`).
    LinuxKernel,
    /// A disk with a GUID partition table.
    Gpt,
    /// A disk with a master boot record.
    Mbr,
    /// An ext2, ext3 or ext4 filesystem without partitions.
    Ext,
    /// An XFS filesystem without partitions.
    Xfs,
    /// A Btrfs filesystem without partitions.
    Btrfs,
    /// A qcow2 disk image.
    Qcow2,
    /// A VMware disk image.
    Vmdk,
    /// A VirtualBox disk image.
    Vdi,
    /// A Hyper-V disk image.
    Vhdx,
    /// An optical disc image (ISO 9660).
    Iso,
    /// A gzip, xz, zstd or bzip2 file.
    Compressed,
    /// None of these.
    Unknown,
}

impl std::fmt::Display for Apparent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "an empty file",
            Self::Elf => "an ELF file",
            Self::LinuxKernel => "a Linux kernel",
            Self::Gpt => "a disk with a GUID partition table",
            Self::Mbr => "a disk with a master boot record",
            Self::Ext => "an ext filesystem",
            Self::Xfs => "an XFS filesystem",
            Self::Btrfs => "a Btrfs filesystem",
            Self::Qcow2 => "a qcow2 image",
            Self::Vmdk => "a VMDK image",
            Self::Vdi => "a VDI image",
            Self::Vhdx => "a VHDX image",
            Self::Iso => "an ISO 9660 image",
            Self::Compressed => "a compressed file",
            Self::Unknown => "of no format that is known here",
        })
    }
}

/// The marks, in the order in which they are looked for: offset, bytes, meaning. Those that a boot sector may carry
/// besides come before it.
const MARKS: &[(u64, &[u8], Apparent)] = &[
    (0, b"\x7fELF", Apparent::Elf),
    (0, b"QFI\xfb", Apparent::Qcow2),
    (0, b"KDMV", Apparent::Vmdk),
    (0, b"# Disk DescriptorFile", Apparent::Vmdk),
    (0, b"vhdxfile", Apparent::Vhdx),
    (64, b"\x7f\x10\xda\xbe", Apparent::Vdi),
    (0, b"\x1f\x8b", Apparent::Compressed),
    (0, b"\xfd7zXZ\0", Apparent::Compressed),
    (0, b"\x28\xb5\x2f\xfd", Apparent::Compressed),
    (0, b"BZh", Apparent::Compressed),
    (0x202, b"HdrS", Apparent::LinuxKernel),
    (512, b"EFI PART", Apparent::Gpt),
    (4096, b"EFI PART", Apparent::Gpt),
    (0, b"XFSB", Apparent::Xfs),
    (0x1_0040, b"_BHRfS_M", Apparent::Btrfs),
    (1080, b"\x53\xef", Apparent::Ext),
    (0x8001, b"CD001", Apparent::Iso),
    (510, b"\x55\xaa", Apparent::Mbr),
];
const MARK_BYTES_MAX: usize = 21;

/// Looks at an image's marks.
///
/// # Errors
/// Where the file cannot be read.
pub fn sniff(file: &File) -> io::Result<Apparent> {
    let mut first = [0; 1];
    if read_up_to(file, &mut first, 0)? == 0 {
        return Ok(Apparent::Empty);
    }
    for (offset, mark, meaning) in MARKS {
        let mut buffer = [0; MARK_BYTES_MAX];
        let buffer = &mut buffer[..mark.len()];
        if read_up_to(file, buffer, *offset)? == mark.len() && buffer == *mark {
            return Ok(*meaning);
        }
    }
    Ok(Apparent::Unknown)
}

/// Fills as much of `buffer` as the file has at `offset`; how much.
fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset + done as u64) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn store() -> (ImageStore, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        (ImageStore::open(&directory.path().join("images")).unwrap(), directory)
    }

    fn files(directory: &tempfile::TempDir) -> Vec<String> {
        let entries = std::fs::read_dir(directory.path().join("images")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn upload(store: &ImageStore, id: &str, content: &[u8]) -> Result<ImageDigest, ImageError> {
        let mut upload = store.begin(id, 1 << 20)?;
        upload.write(content)?;
        upload.finish()
    }

    #[test]
    fn upload_in_pieces_is_read_back_with_its_digests() {
        let (store, directory) = store();
        let mut upload = store.begin("a-1", 3).unwrap();
        upload.write(b"a").unwrap();
        upload.write(b"").unwrap();
        upload.write(b"bc").unwrap();
        assert_eq!(upload.size_bytes(), 3);
        let digest = upload.finish().unwrap();
        // RFC 1321 §A.5 and FIPS 180-4's example for "abc".
        assert_eq!(digest.size_bytes, 3);
        assert_eq!(digest.md5, "900150983cd24fb0d6963f7d28e17f72");
        assert!(digest.sha512.starts_with("ddaf35a193617abacc417349ae204131"));
        assert!(digest.sha512.ends_with("2a9ac94fa54ca49f"));
        let mut content = Vec::new();
        store.open_read("a-1").unwrap().read_to_end(&mut content).unwrap();
        assert_eq!(content, b"abc");
        assert_eq!(files(&directory), ["a-1"]);
        assert_eq!(store.list().unwrap(), ["a-1"]);
    }

    #[test]
    fn upload_beyond_its_maximum_is_refused_and_leaves_nothing() {
        let (store, directory) = store();
        let mut upload = store.begin("a", 4).unwrap();
        upload.write(b"1234").unwrap();
        assert!(matches!(upload.write(b"5"), Err(ImageError::TooLarge { bytes_max: 4, .. })));
        drop(upload);
        assert!(files(&directory).is_empty());
        assert!(matches!(store.open_read("a"), Err(ImageError::Missing { .. })));
    }

    #[test]
    fn image_never_changes() {
        let (store, directory) = store();
        upload(&store, "a", b"first").unwrap();
        assert!(matches!(upload(&store, "a", b"second"), Err(ImageError::Exists { .. })));
        let running = store.begin("b", 10).unwrap();
        assert!(matches!(store.begin("b", 10), Err(ImageError::Uploading { .. })));
        // Somebody else's file under its name, meanwhile.
        std::fs::write(directory.path().join("images/b"), b"other").unwrap();
        assert!(matches!(running.finish(), Err(ImageError::Exists { .. })));
        assert_eq!(std::fs::read(directory.path().join("images/b")).unwrap(), b"other");
        assert_eq!(store.list().unwrap().len(), 2);
        assert_eq!(files(&directory).len(), 2);
    }

    #[test]
    fn delete_is_idempotent_and_open_images_stay_readable() {
        let (store, _directory) = store();
        upload(&store, "a", b"abc").unwrap();
        let mut file = store.open_read("a").unwrap();
        store.delete("a").unwrap();
        store.delete("a").unwrap();
        assert!(matches!(store.open_read("a"), Err(ImageError::Missing { .. })));
        let mut content = String::new();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "abc");
        upload(&store, "a", b"again").unwrap();
    }

    #[test]
    fn sweep_removes_crashed_uploads_only() {
        let (store, directory) = store();
        upload(&store, "a", b"abc").unwrap();
        std::fs::write(directory.path().join("images/.b.partial"), b"half").unwrap();
        assert!(matches!(store.begin("b", 10), Err(ImageError::Uploading { .. })));
        assert_eq!(store.sweep().unwrap(), 1);
        assert_eq!(store.sweep().unwrap(), 0);
        assert_eq!(store.list().unwrap(), ["a"]);
        upload(&store, "b", b"whole").unwrap();
    }

    #[test]
    fn ids_that_could_lead_elsewhere_are_refused() {
        let (store, _directory) = store();
        let long = "a".repeat(ID_BYTES_MAX + 1);
        for id in
            ["", ".", "..", "../a", "a/b", "/etc/passwd", ".a.partial", "a\0b", "a b", "ä", long.as_str()]
        {
            assert!(matches!(store.begin(id, 1), Err(ImageError::Id { .. })), "{id}");
            assert!(matches!(store.open_read(id), Err(ImageError::Id { .. })), "{id}");
            assert!(matches!(store.delete(id), Err(ImageError::Id { .. })), "{id}");
        }
        upload(&store, &"a".repeat(ID_BYTES_MAX), b"").unwrap();
    }

    #[test]
    fn symbolic_link_in_the_directory_is_not_followed() {
        let (store, directory) = store();
        std::os::unix::fs::symlink("/etc/passwd", directory.path().join("images/a")).unwrap();
        assert!(matches!(store.open_read("a"), Err(ImageError::Io { .. })));
    }

    #[test]
    fn apparent_format_follows_the_marks() {
        let sniffed = |content: &[(u64, &[u8])]| {
            let file = tempfile::tempfile().unwrap();
            for (offset, bytes) in content {
                file.write_all_at(bytes, *offset).unwrap();
            }
            sniff(&file).unwrap()
        };
        for (offset, mark, meaning) in MARKS {
            assert_eq!(sniffed(&[(*offset, mark)]), *meaning);
            assert_ne!(sniffed(&[(*offset, &mark[..mark.len() - 1])]), *meaning, "cut off");
            assert!(mark.len() <= MARK_BYTES_MAX);
        }
        assert_eq!(sniffed(&[]), Apparent::Empty);
        assert_eq!(sniffed(&[(0, b"#!/bin/sh")]), Apparent::Unknown);
        assert_eq!(sniffed(&[(510, b"\x55\xaaEFI PART")]), Apparent::Gpt, "with its protective record");
        assert_eq!(sniffed(&[(510, b"\x55\xaa\x00\x00"), (0x202, b"HdrS")]), Apparent::LinuxKernel);
        assert_eq!(sniffed(&[(510, b"\x55\xaa"), (1080, b"\x53\xef")]), Apparent::Ext);
    }
}
