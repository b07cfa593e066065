//! Tokens as Keystone's Fernet provider makes them: nothing is stored, all that a token says is inside it, encrypted
//! and signed under keys that rotate.
//!
//! Must never know: users, projects, or whether they still exist.

mod fernet;
mod keys;
mod payload;

use std::path::Path;
use std::sync::{Arc, RwLock};

pub use self::fernet::Key;
pub use self::keys::{ACTIVE_KEYS_MAX, KeyError, KeyRepository};
pub use self::payload::{Method, Payload, PayloadError, TokenScope};

/// Why a token was not made or not understood.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No key of ours signed it, or it is no Fernet token at all.
    #[error("the token was not made by this cloud")]
    Foreign,
    /// What is inside is of no kind that we make.
    #[error("the token's payload cannot be read")]
    Payload(#[from] PayloadError),
    /// The key repository failed.
    #[error("the key repository failed")]
    Keys(#[from] KeyError),
    /// The system has no randomness.
    #[error("no random bytes")]
    Random,
}

/// Makes and reads tokens.
#[derive(Debug)]
pub struct Tokens {
    repository: KeyRepository,
    keys: RwLock<Arc<[Key]>>,
}

impl Tokens {
    /// Opens the key repository in `directory`, making it if it is not there.
    ///
    /// # Errors
    /// [`TokenError::Keys`].
    pub fn open(directory: &Path) -> Result<Self, TokenError> {
        let repository = KeyRepository::open(directory)?;
        let keys = RwLock::new(repository.load()?.into());
        Ok(Self { repository, keys })
    }

    /// A token that says `payload`, issued at `issued_at_s` (seconds since the epoch).
    ///
    /// # Errors
    /// [`TokenError::Random`].
    pub fn seal(&self, payload: &Payload, issued_at_s: u64) -> Result<String, TokenError> {
        let keys = self.keys();
        let primary = keys.first().expect("invariant: a repository has a primary key");
        fernet::seal(primary, issued_at_s, &payload.pack()).ok_or(TokenError::Random)
    }

    /// What a token says and when it was issued, whichever of the keys made it. Whether it still holds is not asked.
    ///
    /// # Errors
    /// [`TokenError::Foreign`] and [`TokenError::Payload`].
    pub fn open_token(&self, token: &str) -> Result<(Payload, u64), TokenError> {
        let keys = self.keys();
        let (bytes, issued_at_s) =
            keys.iter().find_map(|key| fernet::open(key, token)).ok_or(TokenError::Foreign)?;
        Ok((Payload::unpack(&bytes)?, issued_at_s))
    }

    /// Makes the staged key the primary one, stages a new one, and forgets the oldest beyond [`ACTIVE_KEYS_MAX`].
    ///
    /// # Errors
    /// [`TokenError::Keys`]; what was in use stays in use.
    pub fn rotate(&self) -> Result<(), TokenError> {
        self.repository.rotate()?;
        let keys = self.repository.load()?.into();
        *self.keys.write().expect("invariant: no holder of the keys panics") = keys;
        Ok(())
    }

    fn keys(&self) -> Arc<[Key]> {
        self.keys.read().expect("invariant: no holder of the keys panics").clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload() -> Payload {
        Payload {
            user_id: crate::model::random_hex_id(),
            methods: vec![Method::Password],
            scope: TokenScope::Project(crate::model::random_hex_id()),
            expires_at_s: 2_000_000_000.5,
            audit_ids: vec![[7; 16]],
        }
    }

    #[test]
    fn token_outlives_two_rotations_and_not_three() {
        let directory = tempfile::tempdir().unwrap();
        let tokens = Tokens::open(directory.path()).unwrap();
        let token = tokens.seal(&payload(), 5).unwrap();
        assert!(token.len() <= 255, "{}", token.len());
        for _ in 0..ACTIVE_KEYS_MAX - 2 {
            tokens.rotate().unwrap();
            assert_eq!(tokens.open_token(&token).unwrap().1, 5);
        }
        tokens.rotate().unwrap();
        assert!(matches!(tokens.open_token(&token), Err(TokenError::Foreign)));
    }

    #[test]
    fn another_clouds_token_and_any_changed_byte_are_foreign() {
        let (one, two) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let tokens = Tokens::open(one.path()).unwrap();
        let token = tokens.seal(&payload(), 5).unwrap();
        assert!(Tokens::open(two.path()).unwrap().open_token(&token).is_err());
        for index in 0..token.len() {
            let mut bytes = token.clone().into_bytes();
            bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
            let changed = String::from_utf8(bytes).unwrap();
            // The last character may carry bits that do not count.
            if index + 1 < token.len() {
                assert!(tokens.open_token(&changed).is_err(), "byte {index}");
            }
        }
        for nonsense in ["", "gAAAAA", "\u{e4}", &"A".repeat(4000)] {
            assert!(tokens.open_token(nonsense).is_err());
        }
    }
}
