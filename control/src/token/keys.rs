//! The key repository, with Keystone's rules: keys have whole numbers. The highest is the primary key, which makes
//! tokens; 0 is staged, the next to be primary; all of them open tokens. The keys are rows of the store, sealed under
//! the master key, so that all servers of a cloud have them; a directory of key files as Keystone's is taken over once.

use std::path::{Path, PathBuf};

use super::fernet::Key;
use super::master::read_key;

/// How many keys there are at most, the staged one included (Keystone's `max_active_keys`).
pub const ACTIVE_KEYS_MAX: usize = 3;

/// Why keys could not be had.
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
        source: std::io::Error,
    },
    /// A file is no key.
    #[error("{} holds no Fernet key", .0.display())]
    NoKey(PathBuf),
    /// A row cannot be opened.
    #[error("the key {0} was sealed under another master key")]
    Sealed(String),
    /// A row holds no key.
    #[error("the row {0} holds no key")]
    NoKeyRow(String),
    /// The system has no randomness.
    #[error("no random bytes for a key")]
    Random,
}

/// What a rotation does with the numbers of the keys there are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rotation {
    /// The number that the staged key gets: it is the primary one from then on.
    pub promoted: u32,
    /// The numbers that go.
    pub purged: Vec<u32>,
}

/// The rotation of keys with these numbers: 0 becomes the highest, a new 0 is staged, and the oldest beyond
/// [`ACTIVE_KEYS_MAX`] go.
pub fn rotation(numbers: &[u32]) -> Rotation {
    let mut secondary: Vec<u32> = numbers.iter().copied().filter(|number| *number != 0).collect();
    secondary.sort_unstable();
    let promoted = secondary.last().map_or(1, |highest| highest.saturating_add(1));
    // With the promoted and the new staged key there are so many more than may stay.
    let surplus = (secondary.len() + 2).saturating_sub(ACTIVE_KEYS_MAX);
    secondary.truncate(surplus);
    Rotation { promoted, purged: secondary }
}

/// The keys of a directory as Keystone's, by their numbers; none if it is not there. Other files are none of ours.
///
/// # Errors
/// See [`KeyError`].
pub fn import(directory: &Path) -> Result<Vec<(u32, Key)>, KeyError> {
    let entries = match std::fs::read_dir(directory) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries,
    };
    let list = |source| KeyError::Io { step: "list", path: directory.to_owned(), source };
    let mut keys = Vec::new();
    for entry in entries.map_err(list)? {
        let name = entry.map_err(list)?.file_name();
        if let Some(number) = name.to_str().and_then(|name| name.parse::<u32>().ok()) {
            keys.push((number, read_key(&directory.join(name))?));
        }
    }
    keys.sort_unstable_by_key(|(number, _)| *number);
    Ok(keys)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rotation_promotes_the_staged_key_and_keeps_three() {
        assert_eq!(rotation(&[0, 1]), Rotation { promoted: 2, purged: vec![] });
        assert_eq!(rotation(&[0, 1, 2]), Rotation { promoted: 3, purged: vec![1] });
        assert_eq!(rotation(&[5, 0, 2, 3]), Rotation { promoted: 6, purged: vec![2, 3] });
        assert_eq!(rotation(&[0]), Rotation { promoted: 1, purged: vec![] });
    }

    #[test]
    fn keystones_directory_is_read_and_a_file_that_is_no_key_named() {
        let directory = tempfile::tempdir().unwrap();
        assert!(import(&directory.path().join("nothing")).unwrap().is_empty());
        for number in [0, 7] {
            let text = Key::random().unwrap().to_text();
            std::fs::write(directory.path().join(number.to_string()), text.as_bytes()).unwrap();
        }
        std::fs::write(directory.path().join("README"), "other").unwrap();
        let numbers: Vec<u32> = import(directory.path()).unwrap().iter().map(|(number, _)| *number).collect();
        assert_eq!(numbers, [0, 7]);
        std::fs::write(directory.path().join("8"), "nonsense").unwrap();
        assert!(matches!(import(directory.path()), Err(KeyError::NoKey(path)) if path.ends_with("8")));
    }
}
