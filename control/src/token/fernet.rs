//! Fernet (github.com/fernet/spec): in order, one byte 0x80, eight bytes of big-endian seconds since the epoch,
//! sixteen of initialisation vector, the AES-128-CBC ciphertext with PKCS #7 padding, and HMAC-SHA-256 of all before.
//! As text it is URL-safe base64; Keystone leaves the `=` away.

use aes::Aes128;
use base64::Engine;
use base64::alphabet::URL_SAFE;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use cbc::cipher::block_padding::Pkcs7;
use cbc::cipher::{BlockModeDecrypt, BlockModeEncrypt, KeyIvInit};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::{Zeroize, ZeroizeOnDrop, Zeroizing};

const VERSION: u8 = 0x80;
const HEAD_BYTES: usize = 1 + 8 + 16;
const MAC_BYTES: usize = 32;
const BLOCK_BYTES: usize = 16;
/// The longest token that is looked at, in characters: ours are at most 255.
const TOKEN_CHARACTERS_MAX: usize = 2048;

/// Base64 as in tokens and key files, read with or without padding.
pub(super) const BASE64: GeneralPurpose = GeneralPurpose::new(
    &URL_SAFE,
    GeneralPurposeConfig::new()
        .with_encode_padding(false)
        .with_decode_padding_mode(DecodePaddingMode::Indifferent)
        .with_decode_allow_trailing_bits(false),
);

/// A key: sixteen bytes for signing, sixteen for encrypting. No copy stays in memory after it.
#[derive(Clone, Zeroize, ZeroizeOnDrop)]
pub struct Key {
    bytes: [u8; 32],
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key(…)")
    }
}

impl Key {
    /// A new random key; none if the system has no randomness.
    pub fn random() -> Option<Self> {
        let mut key = Self { bytes: [0; 32] };
        SystemRandom::new().fill(&mut key.bytes).ok()?;
        Some(key)
    }

    /// Reads the text of a key file.
    pub fn from_text(text: &str) -> Option<Self> {
        let bytes = Zeroizing::new(BASE64.decode(text.trim()).ok()?);
        Some(Self { bytes: bytes.as_slice().try_into().ok()? })
    }

    /// The text of a key file: URL-safe base64 with padding, as Keystone writes it.
    pub fn to_text(&self) -> Zeroizing<String> {
        Zeroizing::new(BASE64.encode(self.bytes) + "=")
    }

    fn signing(&self) -> hmac::Key {
        hmac::Key::new(hmac::HMAC_SHA256, &self.bytes[..16])
    }

    fn encryption(&self) -> &[u8] {
        &self.bytes[16..]
    }
}

/// Seals `message`; none if the system has no randomness.
pub(super) fn seal(key: &Key, issued_at_s: u64, message: &[u8]) -> Option<String> {
    let mut vector = [0; BLOCK_BYTES];
    SystemRandom::new().fill(&mut vector).ok()?;
    Some(seal_with(key, issued_at_s, vector, message))
}

fn seal_with(key: &Key, issued_at_s: u64, vector: [u8; BLOCK_BYTES], message: &[u8]) -> String {
    let mut token = Vec::with_capacity(HEAD_BYTES + message.len() + BLOCK_BYTES + MAC_BYTES);
    token.push(VERSION);
    token.extend(issued_at_s.to_be_bytes());
    token.extend(vector);
    let cipher = cbc::Encryptor::<Aes128>::new_from_slices(key.encryption(), &vector)
        .expect("invariant: key and vector are of AES-128's length");
    token.extend(cipher.encrypt_padded_vec::<Pkcs7>(message));
    let mac = hmac::sign(&key.signing(), &token);
    token.extend(mac.as_ref());
    BASE64.encode(token)
}

/// Opens a token of this key: its message, and when it was sealed. The signature is compared in constant time and
/// before anything else is looked at.
pub(super) fn open(key: &Key, token: &str) -> Option<(Zeroizing<Vec<u8>>, u64)> {
    open_of(key, token, TOKEN_CHARACTERS_MAX)
}

/// As [`open`], of what is at most so many characters long.
pub(super) fn open_of(key: &Key, token: &str, characters_max: usize) -> Option<(Zeroizing<Vec<u8>>, u64)> {
    if token.len() > characters_max {
        return None;
    }
    let bytes = BASE64.decode(token.trim_end_matches('=')).ok()?;
    let (signed, mac) = bytes.split_at_checked(bytes.len().checked_sub(MAC_BYTES)?)?;
    hmac::verify(&key.signing(), signed, mac).ok()?;
    let (head, ciphertext) = signed.split_at_checked(HEAD_BYTES)?;
    if head[0] != VERSION {
        return None;
    }
    let issued_at_s = u64::from_be_bytes(head[1..9].try_into().ok()?);
    let cipher = cbc::Decryptor::<Aes128>::new_from_slices(key.encryption(), &head[9..]).ok()?;
    let message = cipher.decrypt_padded_vec::<Pkcs7>(ciphertext).ok()?;
    Some((Zeroizing::new(message), issued_at_s))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The specification's own vectors, `generate.json` and `verify.json`.
    #[test]
    fn specifications_vector_is_met() {
        let key = Key::from_text("cw_0x689RpI-jtRR7oE8h_eQsKImvJapLeSbXpwF4e4=").unwrap();
        let vector = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15];
        let wanted = "gAAAAAAdwJ6wAAECAwQFBgcICQoLDA0ODy021cpGVWKZ_eEwCGM4BLLF_5CV9dOPmrhuVUPgJobwOz7JcbmrR64jVmpU4IwqDA==";
        assert_eq!(seal_with(&key, 499_162_800, vector, b"hello"), wanted.trim_end_matches('='));
        let (message, issued_at_s) = open(&key, wanted).unwrap();
        assert_eq!((message.as_slice(), issued_at_s), (&b"hello"[..], 499_162_800));
    }

    #[test]
    fn key_file_reads_back_and_shows_nothing_in_debug() {
        let key = Key::random().unwrap();
        assert_eq!(key.to_text().len(), 44);
        assert_eq!(Key::from_text(&key.to_text()).unwrap().bytes, key.bytes);
        assert_eq!(format!("{key:?}"), "Key(…)");
        assert!(Key::from_text("c2hvcnQ=").is_none());
    }
}
