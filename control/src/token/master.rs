//! The master key: one file of the cloud's owner, under which all that is secret in the store is sealed, so that a copy
//! of the store alone gives nothing away.

use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use zeroize::Zeroizing;

use super::fernet::{self, Key};
use super::keys::KeyError;

/// The longest key file in bytes: 44 characters and a line's end.
pub(super) const KEY_FILE_BYTES_MAX: u64 = 64;

/// The key.
#[derive(Debug, Clone)]
pub struct MasterKey {
    key: Key,
}

impl MasterKey {
    /// Opens the key in `path`; a new one is made if there is none, readable by its owner alone.
    ///
    /// # Errors
    /// See [`KeyError`].
    pub fn open_file(path: &Path) -> Result<Self, KeyError> {
        let io = |step, source| KeyError::Io { step, path: path.to_owned(), source };
        match read_key(path) {
            Err(KeyError::Io { source, .. }) if source.kind() == ErrorKind::NotFound => {}
            read => return Ok(Self { key: read? }),
        }
        let key = Key::random().ok_or(KeyError::Random)?;
        let directory = path.parent().map_or_else(|| PathBuf::from("."), Path::to_owned);
        std::fs::create_dir_all(&directory).map_err(|source| io("make the directory of", source))?;
        // Whole or not at all: half a key would lock the cloud out of its own secrets.
        let unfinished = path.with_extension("new");
        let written = (|| {
            let mut file =
                OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&unfinished)?;
            file.write_all(key.to_text().as_bytes())?;
            file.sync_all()?;
            std::fs::rename(&unfinished, path)?;
            File::open(&directory)?.sync_all()
        })();
        written.map_err(|source| io("write the master key", source))?;
        Ok(Self { key })
    }

    /// Seals bytes; none if the system has no randomness.
    pub fn seal(&self, bytes: &[u8]) -> Option<String> {
        fernet::seal(&self.key, 0, bytes)
    }

    /// Opens what was sealed under this key.
    pub fn open(&self, sealed: &str) -> Option<Zeroizing<Vec<u8>>> {
        fernet::open_of(&self.key, sealed, usize::MAX).map(|(bytes, _)| bytes)
    }
}

/// Reads a key file.
pub(super) fn read_key(path: &Path) -> Result<Key, KeyError> {
    let mut text = Zeroizing::new(String::with_capacity(KEY_FILE_BYTES_MAX as usize));
    let read = File::open(path).and_then(|file| file.take(KEY_FILE_BYTES_MAX).read_to_string(&mut text));
    read.map_err(|source| KeyError::Io { step: "read the key", path: path.to_owned(), source })?;
    Key::from_text(&text).ok_or_else(|| KeyError::NoKey(path.to_owned()))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn key_is_made_once_for_its_owner_and_opens_what_it_sealed() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("deep/master-key");
        let sealed = MasterKey::open_file(&path).unwrap().seal(b"geheim").unwrap();
        let again = MasterKey::open_file(&path).unwrap();
        assert_eq!(again.open(&sealed).unwrap().as_slice(), b"geheim");
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        let other = MasterKey::open_file(&directory.path().join("other")).unwrap();
        assert!(other.open(&sealed).is_none());
        std::fs::write(&path, "nonsense").unwrap();
        assert!(matches!(MasterKey::open_file(&path), Err(KeyError::NoKey(_))));
    }
}
