//! Key pairs: public keys that guests are told of.

use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use jiff::Timestamp;
use md5::{Digest, Md5};
use ring::rand::{SecureRandom, SystemRandom};
use ring::signature::{Ed25519KeyPair, KeyPair as _};
use zeroize::Zeroizing;

use super::quota::{Resource, charge};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::Keypair;
use crate::policy::{Default, Target, require};
use crate::store::{Cache, Stored, Txn};

/// The longest public key or certificate in bytes: RSA with 16384 bits needs 2.8 KiB.
pub const KEY_BYTES_MAX: usize = 16_384;
/// The longest name in characters (Compute API: create keypair).
const NAME_CHARS_MAX: usize = 255;

/// The name of the kind of key that is made where none is given.
const ED25519: &str = "ssh-ed25519";

/// Whose key pairs.
fn owner<'a>(caller: &'a Caller, user_id: Option<&'a str>, action: &'static str) -> Result<&'a str> {
    let user = user_id.unwrap_or(&caller.user_id);
    require(action, Default::Owner, caller, &Target::of(&[("user_id", user)]))?;
    Ok(user)
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

    /// Makes a key pair and keeps its public half; the private half is in the result and nowhere else.
    ///
    /// # Errors
    /// As [`Control::keypair_create`]; `NotImplemented` for certificates.
    pub async fn keypair_generate(
        &self,
        caller: &Caller,
        user_id: Option<&str>,
        name: &str,
        key_type: &str,
    ) -> Result<(Keypair, Zeroizing<String>)> {
        if key_type != "ssh" {
            return Err(Error::NotImplemented("making a certificate"));
        }
        let made = new_ssh_key()?;
        let keypair = self.keypair_create(caller, user_id, name, key_type, &made.public_key).await?;
        Ok((keypair, made.private_key))
    }

    /// Imports a public key.
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

/// A new key in OpenSSH's formats.
struct NewSshKey {
    public_key: String,
    private_key: Zeroizing<String>,
}

/// An Ed25519 key; its private half unencrypted, as OpenSSH's PROTOCOL.key lays it out.
fn new_ssh_key() -> Result<NewSshKey> {
    let entropy = |_| Error::Unavailable("the system has no randomness".to_owned());
    let random = SystemRandom::new();
    let mut seed = Zeroizing::new([0u8; 32]);
    random.fill(&mut *seed).map_err(entropy)?;
    let mut check = [0u8; 4];
    random.fill(&mut check).map_err(entropy)?;
    let pair = Ed25519KeyPair::from_seed_unchecked(&*seed).expect("invariant: 32 bytes are a seed");
    let public = pair.public_key().as_ref();

    let mut blob = Vec::new();
    put_string(&mut blob, ED25519.as_bytes());
    put_string(&mut blob, public);

    let mut secret = Zeroizing::new(Vec::with_capacity(256));
    secret.extend_from_slice(&check);
    secret.extend_from_slice(&check);
    secret.extend_from_slice(&blob);
    let mut both = Zeroizing::new(seed.to_vec());
    both.extend_from_slice(public);
    put_string(&mut secret, &both);
    put_string(&mut secret, b"");
    // Padded with 1, 2, 3, … to the cipher's block, which is 8 without a cipher.
    for padding in 1..=(8 - secret.len() % 8) % 8 {
        secret.push(u8::try_from(padding).expect("invariant: less than a block"));
    }

    let mut file = Zeroizing::new(b"openssh-key-v1\0".to_vec());
    for part in [b"none".as_slice(), b"none", b""] {
        put_string(&mut file, part);
    }
    file.extend_from_slice(&1u32.to_be_bytes());
    put_string(&mut file, &blob);
    put_string(&mut file, &secret);

    let encoded = Zeroizing::new(BASE64.encode(&*file));
    let mut private_key = Zeroizing::new(String::from("-----BEGIN OPENSSH PRIVATE KEY-----\n"));
    for line in encoded.as_bytes().chunks(70) {
        private_key.push_str(std::str::from_utf8(line).expect("invariant: base64 is ASCII"));
        private_key.push('\n');
    }
    private_key.push_str("-----END OPENSSH PRIVATE KEY-----\n");
    Ok(NewSshKey { public_key: format!("{ED25519} {}", BASE64.encode(&blob)), private_key })
}

/// A string as SSH writes it: four bytes of big-endian length, then the bytes (RFC 4251 §5).
fn put_string(into: &mut Vec<u8>, bytes: &[u8]) {
    let length = u32::try_from(bytes.len()).expect("invariant: parts of a key are short");
    into.extend_from_slice(&length.to_be_bytes());
    into.extend_from_slice(bytes);
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
    fn made_keys_are_ones_that_openssh_reads() {
        let made = new_ssh_key().unwrap();
        assert!(fingerprint("ssh", &made.public_key).is_ok());
        assert_ne!(made.public_key, new_ssh_key().unwrap().public_key);
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("key");
        std::fs::write(&path, made.private_key.as_bytes()).unwrap();
        std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
        let Ok(read) = std::process::Command::new("ssh-keygen").arg("-y").arg("-f").arg(&path).output()
        else {
            println!("skipped: there is no ssh-keygen");
            return;
        };
        assert_eq!(String::from_utf8(read.stdout).unwrap().trim(), made.public_key);
    }

    #[test]
    fn names_are_what_nova_allows() {
        assert!(check_name("my key@host-1.x").is_ok());
        for name in ["", " x", "a/b", "ä", "a:b"] {
            assert!(check_name(name).is_err(), "{name}");
        }
    }
}
