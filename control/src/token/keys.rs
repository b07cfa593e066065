//! The key repository, as Keystone's: a directory of key files whose names are whole numbers. The highest is the
//! primary key, which makes tokens; 0 is staged, the next to be primary; all of them open tokens. Several servers can
//! share a repository: a key is staged everywhere before any server makes tokens with it.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::Key;

/// How many keys there are at most, the staged one included (Keystone's `max_active_keys`).
pub const ACTIVE_KEYS_MAX: usize = 3;
/// The longest key file in bytes: 44 characters and a line's end.
const KEY_FILE_BYTES_MAX: u64 = 64;
/// What a key that is not yet whole is called.
const UNFINISHED: &str = "0.new";

/// Why the repository failed.
#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    /// The file system refused.
    #[error("{step} {}", path.display())]
    Io {
        /// What was being done.
        step: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// A file is no key.
    #[error("{} holds no Fernet key", .0.display())]
    NoKey(PathBuf),
    /// The system has no randomness.
    #[error("no random bytes for a key")]
    Random,
}

/// The directory.
#[derive(Debug)]
pub struct KeyRepository {
    directory: PathBuf,
}

impl KeyRepository {
    /// Opens the repository; a new or empty one gets a primary and a staged key. Directory and files are the owner's
    /// alone.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn open(directory: &Path) -> Result<Self, KeyError> {
        let repository = Self { directory: directory.to_owned() };
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|source| repository.io("make the directory", directory.to_owned(), source))?;
        fs::set_permissions(directory, Permissions::from_mode(0o700))
            .map_err(|source| repository.io("protect the directory", directory.to_owned(), source))?;
        let numbers = repository.numbers()?;
        if !numbers.contains(&0) {
            repository.stage()?;
        }
        if numbers.iter().all(|number| *number == 0) {
            repository.rotate()?;
        }
        Ok(repository)
    }

    /// All keys, the primary one first, then the newer before the older, the staged one last.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn load(&self) -> Result<Vec<Key>, KeyError> {
        let mut numbers = self.numbers()?;
        numbers.reverse();
        numbers.into_iter().map(|number| self.read(number)).collect()
    }

    /// The staged key becomes the primary one, a new one is staged, and the oldest beyond [`ACTIVE_KEYS_MAX`] go. Cut
    /// short at any point, the repository still has a primary key and opens what it opened.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn rotate(&self) -> Result<(), KeyError> {
        let highest = self.numbers()?.last().copied().unwrap_or(0);
        let promoted = self.path(highest + 1);
        fs::rename(self.path(0), &promoted)
            .map_err(|source| self.io("promote the staged key to", promoted, source))?;
        self.stage()?;
        let numbers = self.numbers()?;
        let secondary = numbers.iter().filter(|number| **number != 0);
        let surplus = numbers.len().saturating_sub(ACTIVE_KEYS_MAX);
        for number in secondary.take(surplus) {
            let path = self.path(*number);
            fs::remove_file(&path).map_err(|source| self.io("remove the old key", path, source))?;
        }
        self.sync()
    }

    /// Writes a new key 0, whole or not at all.
    fn stage(&self) -> Result<(), KeyError> {
        let key = Key::random().ok_or(KeyError::Random)?;
        let unfinished = self.directory.join(UNFINISHED);
        let written = (|| {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            file.write_all(key.to_text().as_bytes())?;
            file.sync_all()?;
            fs::rename(&unfinished, self.path(0))
        })();
        written.map_err(|source| self.io("write the staged key", unfinished, source))?;
        self.sync()
    }

    fn sync(&self) -> Result<(), KeyError> {
        let synced = File::open(&self.directory).and_then(|directory| directory.sync_all());
        synced.map_err(|source| self.io("sync the directory", self.directory.clone(), source))
    }

    fn read(&self, number: u32) -> Result<Key, KeyError> {
        let path = self.path(number);
        let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_BYTES_MAX as usize));
        let read = File::open(&path).and_then(|file| file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text));
        read.map_err(|source| self.io("read the key", path.clone(), source))?;
        Key::from_text(&text).ok_or(KeyError::NoKey(path))
    }

    /// The numbers of the keys there are, ascending; other files are none of ours.
    fn numbers(&self) -> Result<Vec<u32>, KeyError> {
        let read = |source| self.io("list", self.directory.clone(), source);
        let mut numbers = Vec::new();
        for entry in fs::read_dir(&self.directory).map_err(read)? {
            let name = entry.map_err(read)?.file_name();
            numbers.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    fn path(&self, number: u32) -> PathBuf {
        self.directory.join(number.to_string())
    }

    fn io(&self, step: &'static str, path: PathBuf, source: io::Error) -> KeyError {
        KeyError::Io { step, path, source }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_keeps_three_keys_readable_by_the_owner_alone() {
        let directory = tempfile::tempdir().unwrap();
        let repository = KeyRepository::open(&directory.path().join("keys")).unwrap();
        assert_eq!(repository.numbers().unwrap(), [0, 1]);
        repository.rotate().unwrap();
        assert_eq!(repository.numbers().unwrap(), [0, 1, 2]);
        repository.rotate().unwrap();
        assert_eq!(repository.numbers().unwrap(), [0, 2, 3]);
        assert_eq!(repository.load().unwrap().len(), ACTIVE_KEYS_MAX);
        let mode = fs::metadata(repository.path(3)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn rotation_cut_short_is_mended_at_the_next_start() {
        let directory = tempfile::tempdir().unwrap();
        let repository = KeyRepository::open(directory.path()).unwrap();
        fs::rename(repository.path(0), repository.path(2)).unwrap();
        fs::write(directory.path().join(UNFINISHED), "half").unwrap();
        let repository = KeyRepository::open(directory.path()).unwrap();
        assert_eq!(repository.numbers().unwrap(), [0, 1, 2]);
        assert_eq!(repository.load().unwrap().len(), 3);
    }

    #[test]
    fn file_that_is_no_key_is_named() {
        let directory = tempfile::tempdir().unwrap();
        let repository = KeyRepository::open(directory.path()).unwrap();
        fs::write(repository.path(7), "nonsense").unwrap();
        assert!(matches!(repository.load(), Err(KeyError::NoKey(path)) if path.ends_with("7")));
    }
}
