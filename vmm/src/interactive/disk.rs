//! Disks of a guest without a cloud: from files to what a VMM is told of them.

use std::fs::File;
use std::io::{self, Read as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use storage::format::crypt::KEY_BITS;
use storage::format::{Disk as _, DiskKey, Overlay, RawFile};
use zeroize::Zeroizing;

use super::Error;
use super::lock::{Hold, take_over_disk};
use crate::config::{DiskConfig, DiskFormat, DiskLimits, InheritedFd};

/// A disk's file and how it is used.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct DiskFile {
    /// A raw disk or, with `base`, an overlay.
    pub path: PathBuf,
    /// It is not written.
    pub read_only: bool,
    /// Past the host's page cache (`O_DIRECT`), where its file system can do that.
    pub direct: bool,
    /// Others write to it as well: what is on it is made for that. Of no overlay.
    pub shared: bool,
    /// The raw disk that the overlay is over, which is only read and may be other overlays' as well. An overlay that is not
    /// there is made, as large as this.
    pub base: Option<PathBuf>,
    /// The serial number that the guest reads; one that its place gives unless said.
    pub serial: Option<String>,
    /// Where the key is with which the bytes lie encrypted, those of a base too; in the clear unless said.
    pub key_file: Option<PathBuf>,
    /// How fast the guest may use it.
    pub limits: DiskLimits,
}

impl DiskFile {
    /// Opens and locks the files, and says what a VMM is told: the configuration numbers the files from zero. `serial` is the
    /// disk's unless it has one of its own.
    ///
    /// # Errors
    /// A file cannot be opened or is somebody else's, no overlay be made, or there is no key where one is said to be.
    pub fn open(&self, serial: String) -> Result<(DiskConfig, Vec<OwnedFd>), Error> {
        let (config, files) = self.open_again(serial)?;
        let files = self.lock(files)?;
        Ok((config, files))
    }

    /// The same of files that the guest has, and has locked.
    ///
    /// # Errors
    /// As [`Self::open`].
    pub fn open_again(&self, serial: String) -> Result<(DiskConfig, Vec<OwnedFd>), Error> {
        let key = self.key_file.as_deref().map(read_key).transpose()?;
        let (format, files) = match &self.base {
            None => {
                let file = open(&self.path, !self.read_only, self.direct)?;
                (DiskFormat::Raw { file: InheritedFd(0) }, vec![file.into()])
            }
            Some(base) => {
                let base = open(base, false, false)?;
                self.make_overlay(&base)?;
                let file = open(&self.path, true, self.direct)?;
                let format = DiskFormat::Overlay { file: InheritedFd(0), base: InheritedFd(1) };
                (format, vec![file.into(), base.into()])
            }
        };
        let serial = self.serial.clone().unwrap_or(serial);
        let (read_only, limits) = (self.read_only, self.limits);
        Ok((DiskConfig { read_only, serial, key, limits, ..DiskConfig::of(format) }, files))
    }

    /// Locks what [`Self::open_again`] opened: for this guest alone, unless it only reads the disk or shares it. A base is for all
    /// who read it.
    ///
    /// # Errors
    /// [`Error::InUse`].
    fn lock(&self, files: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, Error> {
        self.lock_after(files, Vec::new())
    }

    /// The same in the place of the file that its guest has no more, which `before` are the last descriptors of: the disk is the
    /// guest's throughout.
    ///
    /// # Errors
    /// [`Error::InUse`].
    pub fn lock_after(&self, files: Vec<OwnedFd>, before: Vec<OwnedFd>) -> Result<Vec<OwnedFd>, Error> {
        let own =
            if self.read_only && self.base.is_none() || self.shared { Hold::Together } else { Hold::Alone };
        let mut holds = [(self.path.as_path(), own)]
            .into_iter()
            .chain(self.base.iter().map(|base| (base.as_path(), Hold::Together)));
        let mut before = Some(before);
        files
            .into_iter()
            .map(|file| {
                let Some((path, hold)) = holds.next() else { return Ok(file) };
                let file = File::from(file);
                take_over_disk(&file, path, hold, before.take().unwrap_or_default())?;
                Ok(file.into())
            })
            .collect()
    }

    /// Makes the overlay, if there is none.
    fn make_overlay(&self, base: &File) -> Result<(), Error> {
        let failed = |source| Error::Open { path: self.path.clone(), source };
        let file = match File::options().read(true).write(true).create_new(true).open(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            made => made.map_err(failed)?,
        };
        let bytes =
            base.try_clone().and_then(|base| RawFile::whole(base, true)).map_err(failed)?.size_bytes();
        let made = Overlay::create(&file, bytes, bytes);
        made.map_err(|source| {
            // What cannot be used must not be taken for one the next time.
            let _ = std::fs::remove_file(&self.path);
            Error::Overlay { path: self.path.clone(), source }
        })
    }
}

/// Reads a key; whoever else may read the file is its owner's to say.
fn read_key(path: &Path) -> Result<DiskKey, Error> {
    // One byte more than the longest key tells what is longer. There is room for twice as many, so that none is moved and left behind.
    let bytes_max = KEY_BITS.into_iter().max().unwrap_or(0) / 8 + 1;
    let mut bytes = Zeroizing::new(Vec::with_capacity(2 * bytes_max as usize));
    let read = File::open(path).and_then(|file| file.take(bytes_max.into()).read_to_end(&mut bytes));
    read.map_err(|source| Error::ReadKey { path: path.to_owned(), source })?;
    DiskKey::new(bytes).ok_or_else(|| Error::KeySize { path: path.to_owned() })
}

/// Opens a file; directly, if that is wanted and its file system can do it.
fn open(path: &Path, write: bool, direct: bool) -> Result<File, Error> {
    let open = |flags| File::options().read(true).write(write).custom_flags(flags).open(path);
    let opened = match open(if direct { libc::O_DIRECT } else { 0 }) {
        Err(error) if direct && error.raw_os_error() == Some(libc::EINVAL) => {
            tracing::warn!(
                "{}: its file system has no direct access, so it goes by the page cache",
                path.display()
            );
            open(0)
        }
        opened => opened,
    };
    opened.map_err(|source| Error::Open { path: path.to_owned(), source })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{RateLimit, TransferLimits};

    #[test]
    fn overlay_is_made_over_its_base_once_and_kept() {
        let directory = tempfile::tempdir().unwrap();
        let base = directory.path().join("base");
        std::fs::write(&base, vec![3; 8192]).unwrap();
        let operations = Some(RateLimit { per_second: 7, burst: None });
        let limits = DiskLimits { read: TransferLimits { operations, bytes: None }, ..DiskLimits::default() };
        let (path, base_path) = (directory.path().join("top"), Some(base.clone()));
        let disk = DiskFile { path, base: base_path, limits, ..DiskFile::default() };
        let (config, files) = disk.open("own".to_owned()).unwrap();
        assert_eq!(config.limits, limits);
        assert_eq!((config.serial.as_str(), files.len(), config.read_only), ("own", 2, false));
        let overlay = |files: Vec<OwnedFd>| {
            let [top, base] = <[OwnedFd; 2]>::try_from(files).unwrap();
            Overlay::open(top.into(), base.into()).unwrap()
        };
        let opened = overlay(files);
        opened.write_at(&[4; 4096], 0).unwrap();
        opened.flush().unwrap();
        drop(opened);
        let mut content = [0; 8192];
        overlay(disk.open(String::new()).unwrap().1).read_at(&mut content, 0).unwrap();
        assert_eq!((content[0], content[4096]), (4, 3));
        assert!(std::fs::read(base).unwrap().iter().all(|byte| *byte == 3));
        let odd = directory.path().join("odd");
        std::fs::write(&odd, [0; 100]).unwrap();
        let disk = DiskFile { path: directory.path().join("none"), base: Some(odd), ..DiskFile::default() };
        assert!(matches!(disk.open(String::new()), Err(Error::Overlay { .. })));
        assert!(!disk.path.exists());
    }

    #[test]
    fn disk_is_one_guests_until_its_last_descriptor_is_closed_and_bases_are_for_all() {
        let directory = tempfile::tempdir().unwrap();
        let (path, base) = (directory.path().join("disk"), directory.path().join("base"));
        [&path, &base].into_iter().for_each(|path| std::fs::write(path, [0; 4096]).unwrap());
        let writes = DiskFile { path: path.clone(), ..DiskFile::default() };
        let reads = DiskFile { read_only: true, ..writes.clone() };
        let shares = DiskFile { shared: true, ..writes.clone() };
        let open = |disk: &DiskFile| disk.open(String::new()).map(|(_, files)| files);
        let is_refused = |disk: &DiskFile| match open(disk) {
            Ok(_) => false,
            Err(Error::InUse { path }) => path == disk.path,
            Err(error) => panic!("{error}"),
        };

        let mut first = open(&writes).unwrap();
        // As another process has it, to which it was passed.
        let passed = first[0].try_clone().unwrap();
        first.clear();
        for disk in [&writes, &reads, &shares] {
            assert!(is_refused(disk), "{disk:?}");
        }
        assert!(writes.open_again(String::new()).is_ok(), "its own guest asks");
        drop(passed);
        for (several, other) in [(&reads, &writes), (&shares, &writes)] {
            let both = [open(several).unwrap(), open(several).unwrap()];
            assert!(is_refused(other));
            drop(both);
        }

        let overlay = |name: &str| DiskFile {
            path: directory.path().join(name),
            base: Some(base.clone()),
            ..DiskFile::default()
        };
        let both = [open(&overlay("one")).unwrap(), open(&overlay("other")).unwrap()];
        assert!(is_refused(&overlay("one")));
        assert!(is_refused(&DiskFile { path: base.clone(), ..DiskFile::default() }), "overlays are over it");
        drop(both);
        let _writer = open(&DiskFile { path: base.clone(), ..DiskFile::default() }).unwrap();
        let refused = open(&overlay("one")).unwrap_err().to_string();
        assert!(refused.starts_with(base.to_str().unwrap()) && refused.contains("`,ro`"), "{refused}");
    }

    #[test]
    fn key_is_the_bytes_of_its_file_and_of_no_other_length() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("disk");
        std::fs::write(&path, [0; 512]).unwrap();
        let key_file = Some(directory.path().join("key"));
        let disk = DiskFile { path, key_file: key_file.clone(), ..DiskFile::default() };
        let missing = disk.open(String::new()).unwrap_err();
        assert!(matches!(missing, Error::ReadKey { .. }) && missing.to_string().contains("head -c 64"));
        for length in [0, 31, 32, 33, 63, 64, 65, 4096] {
            let bytes: Vec<u8> = (0..length).map(|at| at as u8).collect();
            std::fs::write(key_file.as_deref().unwrap(), &bytes).unwrap();
            match disk.open(String::new()) {
                Ok((config, _)) => {
                    assert_eq!(config.key.unwrap().as_bytes(), bytes);
                    assert!([32, 64].contains(&length));
                }
                Err(error) => {
                    assert!(matches!(error, Error::KeySize { .. }), "{error}");
                    assert!(![32, 64].contains(&length), "{length}");
                }
            }
        }
    }
}
