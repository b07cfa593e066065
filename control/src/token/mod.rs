//! Tokens as Keystone's providers make them: Fernet (all that a token says is inside it, encrypted and signed), JWS
//! (signed and readable), and for those that are only a word, the payload that is stored for it.
//!
//! Must never know: users, projects, or whether they still exist.

mod fernet;
mod jws;
pub mod keys;
pub mod master;
mod payload;

use std::sync::{Arc, RwLock};

pub use self::fernet::Key;
pub use self::jws::JwsKey;
pub use self::keys::{ACTIVE_KEYS_MAX, KeyError};
pub use self::master::MasterKey;
pub use self::payload::{Method, Payload, PayloadError, TokenScope, Via};

/// Why a token was not made or not understood.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// No key of ours signed it, or it is no token at all.
    #[error("the token was not made by this cloud")]
    Foreign,
    /// What is inside is of no kind that we make.
    #[error("the token's payload cannot be read")]
    Payload(#[from] PayloadError),
    /// The keys could not be had.
    #[error("the keys of tokens failed")]
    Keys(#[from] KeyError),
    /// The system has no randomness.
    #[error("no random bytes")]
    Random,
}

/// The keys in use.
#[derive(Debug, Default)]
pub struct Keys {
    /// For Fernet, the primary one first.
    pub fernet: Vec<Key>,
    /// For JWS, the primary one first.
    pub jws: Vec<JwsKey>,
}

/// Makes and reads tokens.
#[derive(Debug)]
pub struct Tokens {
    master: MasterKey,
    keys: RwLock<Arc<Keys>>,
}

impl Tokens {
    /// With these keys.
    pub fn new(master: MasterKey, keys: Keys) -> Self {
        Self { master, keys: RwLock::new(Arc::new(keys)) }
    }

    /// The key that secrets of the store are sealed under.
    pub fn master(&self) -> &MasterKey {
        &self.master
    }

    /// Takes other keys, after a rotation.
    pub fn replace(&self, keys: Keys) {
        *self.keys.write().expect("invariant: no holder of the keys panics") = Arc::new(keys);
    }

    /// A Fernet token that says `payload`, issued at `issued_at_s` (seconds since the epoch).
    ///
    /// # Errors
    /// [`TokenError::Random`].
    pub fn seal(&self, payload: &Payload, issued_at_s: u64) -> Result<String, TokenError> {
        let keys = self.keys();
        let primary = keys.fernet.first().expect("invariant: there is a primary key");
        fernet::seal(primary, issued_at_s, &payload.pack()).ok_or(TokenError::Random)
    }

    /// The same as a JWS token.
    ///
    /// # Errors
    /// [`TokenError::Random`].
    pub fn sign(&self, payload: &Payload, issued_at_s: u64) -> Result<String, TokenError> {
        let keys = self.keys();
        let primary = keys.jws.first().expect("invariant: there is a primary key where JWS is in use");
        jws::sign(primary, payload, issued_at_s).ok_or(TokenError::Random)
    }

    /// What a token says and when it was issued, whichever of the keys made it. Whether it still holds is not asked.
    ///
    /// # Errors
    /// [`TokenError::Foreign`] and [`TokenError::Payload`].
    pub fn open_token(&self, token: &str) -> Result<(Payload, u64), TokenError> {
        let keys = self.keys();
        if token.contains('.') {
            return keys.jws.iter().find_map(|key| jws::open(key, token)).ok_or(TokenError::Foreign);
        }
        let (bytes, issued_at_s) =
            keys.fernet.iter().find_map(|key| fernet::open(key, token)).ok_or(TokenError::Foreign)?;
        Ok((Payload::unpack(&bytes)?, issued_at_s))
    }

    fn keys(&self) -> Arc<Keys> {
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
            expires_at_s: 2_000_000_000.0,
            audit_ids: vec![[7; 16]],
            via: Via::ApplicationCredential(crate::model::random_hex_id()),
        }
    }

    fn tokens() -> Tokens {
        let directory = tempfile::tempdir().unwrap();
        let master = MasterKey::open_file(&directory.path().join("master-key")).unwrap();
        let keys = Keys { fernet: vec![Key::random().unwrap()], jws: vec![JwsKey::random().unwrap()] };
        Tokens::new(master, keys)
    }

    #[test]
    fn every_kind_of_token_says_what_it_was_made_of() {
        let tokens = tokens();
        let fernet = tokens.seal(&payload(), 5).unwrap();
        assert!(fernet.len() <= 255, "{}", fernet.len());
        assert_eq!(tokens.open_token(&fernet).unwrap().1, 5);
        let payload = payload();
        let jws = tokens.sign(&payload, 5).unwrap();
        assert_eq!(tokens.open_token(&jws).unwrap(), (payload, 5));
    }

    #[test]
    fn another_clouds_token_and_any_changed_byte_are_foreign() {
        let (one, two) = (tokens(), tokens());
        for token in [one.seal(&payload(), 5).unwrap(), one.sign(&payload(), 5).unwrap()] {
            assert!(two.open_token(&token).is_err());
            for index in 0..token.len() - 1 {
                let mut bytes = token.clone().into_bytes();
                bytes[index] = if bytes[index] == b'A' { b'B' } else { b'A' };
                let changed = String::from_utf8(bytes).unwrap();
                // The last character of a part may carry bits that do not count.
                let last_of_part = token.as_bytes()[index + 1] == b'.';
                assert!(last_of_part || one.open_token(&changed).is_err(), "byte {index}");
            }
        }
        for nonsense in ["", "gAAAAA", "\u{e4}", &"A".repeat(4000), "a.b.c", "..", &"a.".repeat(3000)] {
            assert!(one.open_token(nonsense).is_err());
        }
    }
}
