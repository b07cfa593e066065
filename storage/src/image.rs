//! Image files: streamed in with their digests, kept whole and unchanged, opened for reading.
//!
//! One directory holds one file per image, named after its digest or what its caller calls it. An upload is written to
//! `.{id}.partial` and gets its name only when it is whole and durable, so a file with an image's name is an image. The
//! directory is held open, so it may be given by a relative path whatever the process does to its working directory later.
//!
//! Must never know: who owns an image, what its id stands for.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::SyncSender;
use std::thread::JoinHandle;

use bytes::Bytes;
use md5::{Digest as _, Md5};
use rustix::fs::{AtFlags, Dir, Mode, OFlags, linkat, openat, unlinkat};
use rustix::io::Errno;

use crate::hexadecimal::hexadecimal;

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
    /// An operation of the filesystem, or of a service, failed.
    pub(crate) fn io<E: Into<io::Error>>(step: &'static str, subject: &str) -> impl FnOnce(E) -> Self {
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

/// How many hexadecimal digits of the SHA-512 name data: 224 bits, as many as SHA-512/224 has, and short enough to stand
/// in any id.
const NAME_DIGITS: usize = 56;

impl ImageDigest {
    /// The name of the data in every store.
    #[must_use]
    pub fn name(&self) -> &str {
        self.sha512.get(..NAME_DIGITS).unwrap_or(&self.sha512)
    }

    /// Whether a file's name is that of data.
    #[must_use]
    pub fn is_name(name: &str) -> bool {
        name.len() == NAME_DIGITS && name.bytes().all(|byte| byte.is_ascii_hexdigit())
    }
}

/// A directory of images; cloning shares it.
#[derive(Debug, Clone)]
pub struct ImageFiles {
    directory: Arc<OwnedFd>,
}

impl ImageFiles {
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
    /// [`ImageError::Id`], [`ImageError::Uploading`], [`ImageError::Io`].
    pub fn begin(&self, id: &str, bytes_max: u64) -> Result<Upload, ImageError> {
        check_id(id)?;
        let partial = partial_name(id);
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::RDWR | OFlags::CLOEXEC;
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
            md5: Beside::start(
                Md5::new(),
                |md5, piece| md5.update(piece),
                |md5| hexadecimal(&md5.finalize()),
            ),
            sha512: Beside::start(
                ring::digest::Context::new(&ring::digest::SHA512),
                |sha512, piece| sha512.update(piece),
                |sha512| hexadecimal(sha512.finish().as_ref()),
            ),
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

    /// Whether there is an image of this name.
    #[must_use]
    pub fn has(&self, id: &str) -> bool {
        check_id(id).is_ok() && rustix::fs::statat(&*self.directory, id, AtFlags::SYMLINK_NOFOLLOW).is_ok()
    }

    /// Makes a file of this name by `fill`, whole and durable or not at all. If there is one, nothing happens.
    ///
    /// # Errors
    /// [`ImageError`]; of `fill`, as [`ImageError::Io`].
    pub fn make(&self, id: &str, fill: impl FnOnce(&File) -> io::Result<()>) -> Result<(), ImageError> {
        if self.has(id) {
            return Ok(());
        }
        let upload = self.begin(id, 0)?;
        fill(&upload.file).map_err(ImageError::io("make image", id))?;
        let size_bytes = upload.file.metadata().map_err(ImageError::io("look at image", id))?.len();
        let mut sealed = upload.seal()?;
        if let Some(parts) = Arc::get_mut(&mut sealed.0) {
            parts.digest.size_bytes = size_bytes;
        }
        sealed.keep(id)
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

/// How many pieces may wait for a digest: the disk and the digests go at their own pace, within this.
const PIECES_MAX: usize = 4;

/// A digest that is made beside the writing, since no single core makes all of them as fast as a disk writes.
struct Beside<T> {
    pieces: SyncSender<Bytes>,
    done: JoinHandle<T>,
}

impl<T: Send + 'static> Beside<T> {
    fn start<S: Send + 'static>(
        mut state: S,
        update: impl Fn(&mut S, &[u8]) + Send + 'static,
        finish: impl FnOnce(S) -> T + Send + 'static,
    ) -> Self {
        let (pieces, incoming) = std::sync::mpsc::sync_channel::<Bytes>(PIECES_MAX);
        let done = std::thread::spawn(move || {
            for piece in incoming {
                update(&mut state, &piece);
            }
            finish(state)
        });
        Self { pieces, done }
    }

    fn update(&self, piece: Bytes) {
        // It ends before its pieces only if it panics, which `finish` tells.
        let _ = self.pieces.send(piece);
    }

    fn finish(self) -> T {
        drop(self.pieces);
        self.done.join().expect("invariant: no digest panics")
    }
}

/// An image being uploaded.
pub struct Upload {
    id: String,
    partial: Partial,
    file: File,
    size_bytes: u64,
    bytes_max: u64,
    md5: Beside<String>,
    sha512: Beside<String>,
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
    pub fn write(&mut self, bytes: Bytes) -> Result<(), ImageError> {
        let size_bytes = self.size_bytes.saturating_add(bytes.len() as u64);
        if size_bytes > self.bytes_max {
            return Err(ImageError::TooLarge { id: self.id.clone(), bytes_max: self.bytes_max });
        }
        self.md5.update(bytes.clone());
        self.sha512.update(bytes.clone());
        self.file.write_all(&bytes).map_err(ImageError::io("write image", &self.id))?;
        self.size_bytes = size_bytes;
        Ok(())
    }

    /// How many bytes it has so far.
    #[must_use]
    pub fn size_bytes(&self) -> u64 {
        self.size_bytes
    }

    /// Ends it: durable and whole, with its digests, but under no name yet. Dropped, nothing of it is left.
    ///
    /// # Errors
    /// [`ImageError::Io`].
    pub fn seal(self) -> Result<Sealed, ImageError> {
        self.file.sync_all().map_err(ImageError::io("sync image", &self.id))?;
        let digest =
            ImageDigest { size_bytes: self.size_bytes, md5: self.md5.finish(), sha512: self.sha512.finish() };
        Ok(Sealed(Arc::new(SealedParts { partial: self.partial, file: self.file, digest })))
    }
}

/// Whole data with its digests, not yet kept by any store. The last clone to be dropped takes it away.
#[derive(Debug, Clone)]
pub struct Sealed(Arc<SealedParts>);

#[derive(Debug)]
struct SealedParts {
    partial: Partial,
    file: File,
    digest: ImageDigest,
}

impl Sealed {
    /// Its length and digests.
    #[must_use]
    pub fn digest(&self) -> &ImageDigest {
        &self.0.digest
    }

    /// Its bytes.
    #[must_use]
    pub fn file(&self) -> &File {
        &self.0.file
    }

    /// Gives it a name in its directory, durably, without copying. Where the name is taken by a file of the same length,
    /// that one stays: names are digests, or are given once.
    ///
    /// # Errors
    /// [`ImageError::Exists`] if the name is taken by something else, and [`ImageError::Io`].
    pub fn keep(&self, name: &str) -> Result<(), ImageError> {
        check_id(name)?;
        let SealedParts { partial, digest, .. } = &*self.0;
        let directory = &*partial.directory;
        // A link, since it refuses where a rename would replace.
        match linkat(directory, &partial.name, directory, name, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::EXIST) => {
                let there = rustix::fs::statat(directory, name, AtFlags::SYMLINK_NOFOLLOW)
                    .map_err(ImageError::io("look at image", name))?;
                if u64::try_from(there.st_size) != Ok(digest.size_bytes) {
                    return Err(ImageError::Exists { id: name.to_owned() });
                }
            }
            Err(error) => return Err(ImageError::io("name image", name)(error)),
        }
        rustix::fs::fsync(directory).map_err(ImageError::io("sync the directory of image", name))
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

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    fn store() -> (ImageFiles, tempfile::TempDir) {
        let directory = tempfile::tempdir().unwrap();
        (ImageFiles::open(&directory.path().join("images")).unwrap(), directory)
    }

    fn files(directory: &tempfile::TempDir) -> Vec<String> {
        let entries = std::fs::read_dir(directory.path().join("images")).unwrap();
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn upload(store: &ImageFiles, id: &str, content: &[u8]) -> Result<ImageDigest, ImageError> {
        let mut upload = store.begin(id, 1 << 20)?;
        upload.write(Bytes::copy_from_slice(content))?;
        let sealed = upload.seal()?;
        sealed.keep(id)?;
        Ok(sealed.digest().clone())
    }

    #[test]
    fn upload_in_pieces_is_read_back_with_its_digests() {
        let (store, directory) = store();
        let mut upload = store.begin("a-1", 3).unwrap();
        upload.write(Bytes::from_static(b"a")).unwrap();
        upload.write(Bytes::from_static(b"")).unwrap();
        upload.write(Bytes::from_static(b"bc")).unwrap();
        assert_eq!(upload.size_bytes(), 3);
        let sealed = upload.seal().unwrap();
        assert_eq!(files(&directory), [".a-1.partial"], "no name yet");
        sealed.keep("a-1").unwrap();
        let digest = sealed.digest().clone();
        drop(sealed);
        assert!(ImageDigest::is_name(digest.name()));
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
        upload.write(Bytes::from_static(b"1234")).unwrap();
        assert!(matches!(
            upload.write(Bytes::from_static(b"5")),
            Err(ImageError::TooLarge { bytes_max: 4, .. })
        ));
        drop(upload);
        assert!(files(&directory).is_empty());
        assert!(matches!(store.open_read("a"), Err(ImageError::Missing { .. })));
    }

    #[test]
    fn image_never_changes() {
        let (store, directory) = store();
        upload(&store, "a", b"first").unwrap();
        assert!(matches!(upload(&store, "a", b"second"), Err(ImageError::Exists { .. })));
        upload(&store, "a", b"first").unwrap();
        let running = store.begin("b", 10).unwrap();
        assert!(matches!(store.begin("b", 10), Err(ImageError::Uploading { .. })));
        drop(running);
        assert_eq!(std::fs::read(directory.path().join("images/a")).unwrap(), b"first");
        assert_eq!(files(&directory), ["a"]);
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
}
