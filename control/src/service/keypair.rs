//! Key pairs: public keys that guests are told of.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use md5::{Digest, Md5};

use super::quota::{Resource, charge};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::Keypair;
use crate::store::{Cache, Stored, Txn};

/// The longest public key or certificate in bytes: RSA with 16384 bits needs 2.8 KiB.
pub const KEY_BYTES_MAX: usize = 16_384;
/// The longest name in characters (Compute API: create keypair).
const NAME_CHARS_MAX: usize = 255;

/// Whose key pairs.
fn owner<'a>(caller: &'a Caller, user_id: Option<&'a str>, action: &'static str) -> Result<&'a str> {
    match user_id {
        Some(user) if user != caller.user_id && !caller.is_admin() => Err(Error::Forbidden { action }),
        Some(user) => Ok(user),
        None => Ok(&caller.user_id),
    }
}

impl Control {
    /// The caller's key pairs, or, for administrators, those of `user_id` (microversion 2.10), by name.
    ///
    /// # Errors
    /// `Forbidden` for another user's.
    pub async fn keypairs(
        &self,
        caller: &Caller,
        user_id: Option<&str>,
    ) -> Result<Vec<Arc<Stored<Keypair>>>> {
        let owner = owner(caller, user_id, "os_compute_api:os-keypairs:index")?;
        self.db.caught_up().await?;
        Ok(self.db.cache().list_under::<Keypair>(&key_id(owner, "")))
    }

    /// One key pair.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn keypair(
        &self,
        caller: &Caller,
        user_id: Option<&str>,
        name: &str,
    ) -> Result<Arc<Stored<Keypair>>> {
        let owner = owner(caller, user_id, "os_compute_api:os-keypairs:show")?;
        self.db.caught_up().await?;
        find(self.db.cache(), owner, name)
    }

    /// Imports a public key. Wisp makes no private keys: they never leave the machine that they are used from.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`, `Conflict` if the name is taken, `QuotaExceeded`.
    pub async fn keypair_create(
        &self,
        caller: &Caller,
        user_id: Option<&str>,
        name: &str,
        key_type: &str,
        public_key: &str,
    ) -> Result<Keypair> {
        let owner = owner(caller, user_id, "os_compute_api:os-keypairs:create")?;
        check_name(name)?;
        let public_key = public_key.trim();
        let keypair = Keypair {
            id: key_id(owner, name),
            user_id: owner.to_owned(),
            name: name.to_owned(),
            key_type: key_type.to_owned(),
            fingerprint: fingerprint(key_type, public_key)?,
            public_key: public_key.to_owned(),
            created_at: Timestamp::now(),
        };
        self.db
            .transact(|cache| {
                if cache.get::<Keypair>(&keypair.id).is_some() {
                    return Err(Error::conflict(
                        "KeyPairExists",
                        format!("Key pair '{name}' already exists."),
                    ));
                }
                Ok(charge(Txn::new().create(&keypair), owner, &[(Resource::KeyPairs, 1)]))
            })
            .await?;
        Ok(keypair)
    }

    /// Deletes a key pair. Servers keep the copy that they were made with.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn keypair_delete(&self, caller: &Caller, user_id: Option<&str>, name: &str) -> Result<()> {
        let owner = owner(caller, user_id, "os_compute_api:os-keypairs:delete")?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find(cache, owner, name)?;
                Ok(charge(Txn::new().delete(&stored), owner, &[(Resource::KeyPairs, -1)]))
            })
            .await
    }
}

/// A user's key pair by name.
pub(crate) fn find(cache: &Cache, user_id: &str, name: &str) -> Result<Arc<Stored<Keypair>>> {
    let stored = cache.get::<Keypair>(&key_id(user_id, name));
    stored.ok_or_else(|| Error::NotFound { kind: "Keypair", id: format!("{name} for user {user_id}") })
}

fn key_id(user_id: &str, name: &str) -> String {
    format!("{user_id}:{name}")
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || " _-.@".contains(c);
    if (1..=NAME_CHARS_MAX).contains(&name.len()) && name.chars().all(allowed) && name.trim() == name {
        return Ok(());
    }
    let rule = "letters, digits, '_', '-', '.', '@' and inner spaces are allowed";
    Err(invalid(format!("Keypair data is invalid: the name has 1 to {NAME_CHARS_MAX} characters; {rule}.")))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::invalid("InvalidKeypair", message)
}

/// The fingerprint as Nova shows it: MD5 of an SSH key's blob, SHA-1 of a certificate's DER, in colon-separated pairs.
///
/// # Errors
/// `Invalid` if it is no such key.
pub fn fingerprint(key_type: &str, public_key: &str) -> Result<String> {
    if public_key.len() > KEY_BYTES_MAX {
        return Err(invalid(format!(
            "Keypair data is invalid: the key has more than {KEY_BYTES_MAX} bytes."
        )));
    }
    match key_type {
        "ssh" => {
            let blob = ssh_blob(public_key).ok_or_else(|| {
                invalid("Keypair data is invalid: the key is not an OpenSSH public key on one line.")
            })?;
            Ok(pairs(&Md5::digest(blob)))
        }
        "x509" => {
            let der = pem_body(public_key).ok_or_else(|| {
                invalid("Keypair data is invalid: the key is not an X.509 certificate in PEM.")
            })?;
            Ok(pairs(ring::digest::digest(&ring::digest::SHA1_FOR_LEGACY_USE_ONLY, &der).as_ref()))
        }
        _ => Err(invalid(format!("Invalid key type '{key_type}': it is ssh or x509."))),
    }
}

/// The decoded middle of `type base64 comment`, which must begin with the type again (RFC 4253 §6.6).
fn ssh_blob(public_key: &str) -> Option<Vec<u8>> {
    if public_key.contains(['\n', '\r']) {
        return None;
    }
    let mut words = public_key.split_ascii_whitespace();
    let name = words.next()?;
    let blob = BASE64.decode(words.next()?).ok()?;
    let length = u32::from_be_bytes(*blob.first_chunk::<4>()?) as usize;
    (blob.get(4..)?.get(..length)? == name.as_bytes()).then_some(blob)
}

fn pem_body(text: &str) -> Option<Vec<u8>> {
    let (_, after) = text.split_once("-----BEGIN CERTIFICATE-----")?;
    let (body, _) = after.split_once("-----END CERTIFICATE-----")?;
    let joined: String = body.split_ascii_whitespace().collect();
    BASE64.decode(joined).ok().filter(|der| !der.is_empty())
}

fn pairs(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIOP8ekmHvO9BYhFidXp+69Ncxs20AXsw4uDHu5/YwRVu";

    #[test]
    fn fingerprint_is_the_md5_of_the_blob() {
        let expected = pairs(&Md5::digest(BASE64.decode(KEY.split(' ').nth(1).unwrap()).unwrap()));
        assert_eq!(fingerprint("ssh", KEY).unwrap(), expected);
        assert_eq!(fingerprint("ssh", &format!("{KEY} me@host")).unwrap(), expected);
        assert_eq!(expected.len(), 47);
    }

    #[test]
    fn what_is_no_key_is_refused() {
        let renamed = KEY.replace("ssh-ed25519", "ssh-rsa");
        let two_lines = format!("{KEY}\n{KEY}");
        let long = "x".repeat(KEY_BYTES_MAX + 1);
        for (key_type, key) in [
            ("ssh", ""),
            ("ssh", "ssh-rsa"),
            ("ssh", "ssh-rsa !!"),
            ("ssh", &renamed),
            ("ssh", &two_lines),
            ("ssh", &long),
            ("x509", KEY),
            ("gpg", KEY),
        ] {
            assert!(fingerprint(key_type, key).is_err(), "{key_type}: {key}");
        }
    }

    #[test]
    fn certificates_are_fingerprinted_by_their_der() {
        let pem = "-----BEGIN CERTIFICATE-----\nAAEC\n-----END CERTIFICATE-----\n";
        assert_eq!(fingerprint("x509", pem).unwrap().len(), 59);
    }

    #[test]
    fn names_are_what_nova_allows() {
        assert!(check_name("my key@host-1.x").is_ok());
        for name in ["", " x", "a/b", "ä", "a:b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
