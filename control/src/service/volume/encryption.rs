//! Volumes of encrypted types: what of a type's specification can be had here, and the keys. Each volume has its own, made
//! with it; snapshots, clones and backups are copies of the stored bytes and have the key of what they were copied from.
//! In the store a key is sealed under the cloud's master key, and it is opened for the volume's host alone.

use storage::format::DiskKey;
use storage::format::crypt::{CIPHER, KEY_BITS};

use super::{find, invalid_input};
use crate::Control;
use crate::agent::protocol::DiskCipher;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::random_uuid;
use crate::model::volume::{DiskEncryption, Encryption, Volume, VolumeType};
use crate::token::MasterKey;

/// The providers that types may name, by the end of a class's name, in small letters. All of them come to the same here.
const PROVIDERS: [&str; 6] =
    ["luks", "luks2", "plain", "luksencryptor", "luks2encryptor", "cryptsetupencryptor"];
/// Where encryption may happen: before the storage, which does none itself.
const CONTROL_LOCATION: &str = "front-end";

impl Control {
    /// How a new volume of a type is encrypted: with a new key.
    ///
    /// # Errors
    /// `Invalid` where the type asks for what is not offered; `Unavailable` without randomness.
    pub(super) fn volume_encryption(&self, kind: &VolumeType) -> Result<Option<DiskEncryption>> {
        let Some(spec) = &kind.encryption else { return Ok(None) };
        let bits = key_bits(spec).map_err(|what| {
            let name = &kind.name;
            invalid_input(format!("Invalid input received: The encryption of volume type {name} {what}."))
        })?;
        let key = DiskKey::random(bits);
        let sealed_key = key.and_then(|key| self.tokens.master().seal(key.as_bytes()));
        let sealed_key = sealed_key.ok_or_else(|| Error::Unavailable("no random bytes".to_owned()))?;
        Ok(Some(DiskEncryption { key_id: random_uuid(), sealed_key, spec: spec.clone() }))
    }

    /// Whether what was said to be a disk's encryption was sealed in this cloud.
    pub(super) fn volume_key_opens(&self, encryption: Option<&DiskEncryption>) -> bool {
        cipher(self.tokens.master(), encryption) != DiskCipher::Lost
    }

    /// How a volume that the caller may see is encrypted.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn volume_encryption_of(&self, caller: &Caller, id: &str) -> Result<Option<DiskEncryption>> {
        self.db.caught_up().await?;
        Ok(find(self.db.cache(), caller, id)?.row.encryption.clone())
    }

    /// Whether a volume is encrypted, for whoever connects to it.
    pub fn volume_is_encrypted(&self, id: &str) -> bool {
        let volume = self.db.get::<Volume>(id);
        volume.is_some_and(|volume| volume.row.encryption.is_some())
    }
}

/// The key's size that a specification asks for; what is not offered otherwise.
fn key_bits(spec: &Encryption) -> std::result::Result<u32, String> {
    let provider = spec.provider.rsplit('.').next().unwrap_or_default().to_ascii_lowercase();
    if !PROVIDERS.contains(&provider.as_str()) {
        return Err(format!("has the provider {}: luks, luks2 and plain are offered", spec.provider));
    }
    if let Some(cipher) = spec.cipher.as_deref().filter(|cipher| *cipher != CIPHER) {
        return Err(format!("has the cipher {cipher}: {CIPHER} is offered"));
    }
    if spec.control_location != CONTROL_LOCATION {
        return Err(format!("is in the {}: no storage here encrypts by itself", spec.control_location));
    }
    let bits = spec.key_size.unwrap_or(KEY_BITS[0]);
    if KEY_BITS.contains(&bits) {
        Ok(bits)
    } else {
        Err(format!("has a key size of {bits} bits: {} and {} are offered", KEY_BITS[0], KEY_BITS[1]))
    }
}

/// Whether a disk that is encrypted so is one of a type that says `wanted`.
pub(super) fn fits(disk: Option<&DiskEncryption>, wanted: Option<&Encryption>) -> bool {
    match (disk, wanted) {
        (None, None) => true,
        (Some(disk), Some(wanted)) => disk.spec.is_as(wanted),
        _ => false,
    }
}

/// What a host is told of how a disk's bytes lie.
pub(crate) fn cipher(master: &MasterKey, encryption: Option<&DiskEncryption>) -> DiskCipher {
    let Some(encryption) = encryption else { return DiskCipher::Clear };
    let key = master.open(&encryption.sealed_key).and_then(DiskKey::new);
    key.map_or(DiskCipher::Lost, DiskCipher::Key)
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;

    fn spec(provider: &str, cipher: Option<&str>, key_size: Option<u32>) -> Encryption {
        Encryption {
            id: random_uuid(),
            provider: provider.to_owned(),
            cipher: cipher.map(str::to_owned),
            key_size,
            control_location: CONTROL_LOCATION.to_owned(),
            created_at: Timestamp::now(),
            updated_at: None,
        }
    }

    #[test]
    fn only_what_is_offered_has_a_key() {
        assert_eq!(key_bits(&spec("luks", None, None)), Ok(256));
        let classes = [
            "nova.volume.encryptors.luks.LuksEncryptor",
            "os_brick.encryptors.cryptsetup.CryptsetupEncryptor",
        ];
        for provider in ["luks2", "plain", classes[0], classes[1]] {
            assert_eq!(key_bits(&spec(provider, Some(CIPHER), Some(512))), Ok(512), "{provider}");
        }
        let back_end = Encryption { control_location: "back-end".into(), ..spec("luks", None, None) };
        for wrong in [
            spec("nova.volume.encryptors.nop.NoOpEncryptor", None, None),
            spec("luks", Some("aes-cbc-essiv:sha256"), None),
            spec("luks", Some(CIPHER), Some(128)),
            back_end,
        ] {
            assert!(key_bits(&wrong).is_err(), "{wrong:?}");
        }
    }

    #[test]
    fn disk_fits_a_type_that_says_the_same_of_it() {
        let disk = |spec| DiskEncryption { key_id: random_uuid(), sealed_key: String::new(), spec };
        let one = disk(spec("luks", None, Some(256)));
        assert!(fits(None, None) && fits(Some(&one), Some(&spec("luks", None, Some(256)))));
        assert!(!fits(Some(&one), None) && !fits(None, Some(&one.spec)));
        assert!(!fits(Some(&one), Some(&spec("luks", None, Some(512)))));
    }

    #[test]
    fn key_that_another_cloud_sealed_is_lost_and_none_is_shown() {
        let directory = tempfile::tempdir().unwrap();
        let master = |name: &str| MasterKey::open_file(&directory.path().join(name)).unwrap();
        let key = DiskKey::random(256).unwrap();
        let sealed_key = master("one").seal(key.as_bytes()).unwrap();
        let disk = DiskEncryption { key_id: random_uuid(), sealed_key, spec: spec("luks", None, None) };
        let opened = cipher(&master("one"), Some(&disk));
        assert_eq!(opened, DiskCipher::Key(key));
        assert_eq!(format!("{opened:?}"), "Key(DiskKey(…))");
        assert_eq!(cipher(&master("two"), Some(&disk)), DiskCipher::Lost);
        assert_eq!(cipher(&master("two"), None), DiskCipher::Clear);
        assert!(DiskCipher::Lost.key().is_err());
    }
}
