//! The keys of tokens as rows of the store, sealed under the master key.

use std::path::Path;

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::delegation::TokenKey;
use crate::policy::require_admin;
use crate::service::db::Db;
use crate::settings::TokenProvider;
use crate::store::{Cache, Txn};
use crate::token::keys::{import, rotation};
use crate::token::{JwsKey, Key, KeyError, Keys, MasterKey, TokenError, Tokens};

const FERNET: &str = "fernet";
const JWS: &str = "jws";
/// The master key's file in the cloud's directory.
const MASTER_FILE: &str = "master-key";
/// A directory of keys as Keystone's, taken over at the first start.
const IMPORT_DIRECTORY: &str = "fernet-keys";

/// Opens the keys of a cloud. The first start takes over those of Keystone's directory, or makes new ones.
pub(crate) async fn open_tokens(db: &Db, state_dir: &Path, provider: TokenProvider) -> Result<Tokens> {
    let master = MasterKey::open_file(&state_dir.join(MASTER_FILE)).map_err(TokenError::from)?;
    let imported = import(&state_dir.join(IMPORT_DIRECTORY)).map_err(TokenError::from)?;
    db.transact(|cache| {
        let mut txn = Txn::new();
        if numbers(cache, FERNET).is_empty() {
            let mut keys: Vec<(u32, Key)> = imported.clone();
            // As Keystone's setup: a staged and a primary key, whatever there was.
            for number in [0, 1] {
                let missing = match number {
                    0 => keys.iter().all(|(number, _)| *number != 0),
                    _ => keys.iter().all(|(number, _)| *number == 0),
                };
                if missing {
                    keys.push((number, Key::random().ok_or(TokenError::Random)?));
                }
            }
            for (number, key) in &keys {
                txn = txn.create(&sealed(&master, FERNET, *number, key.to_text().as_bytes())?);
            }
        }
        if provider == TokenProvider::Jws && numbers(cache, JWS).is_empty() {
            for number in [0, 1] {
                let key = JwsKey::random().ok_or(TokenError::Random)?;
                txn = txn.create(&sealed(&master, JWS, number, key.document())?);
            }
        }
        Ok(txn)
    })
    .await?;
    let keys = load(db.cache(), &master)?;
    Ok(Tokens::new(master, keys))
}

impl Control {
    /// Makes the staged token key the one that tokens are made with, and stages a new one. Tokens of the keys before
    /// hold until their key is the oldest of too many ([`crate::token::ACTIVE_KEYS_MAX`]); so not more often than
    /// tokens live. The numbers of the keys there are then.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; what the store says.
    pub async fn token_keys_rotate(&self, caller: &Caller) -> Result<Vec<u32>> {
        require_admin(caller, "identity:rotate_token_keys")?;
        let kind = match self.settings.identity.token_provider {
            TokenProvider::Jws => JWS,
            TokenProvider::Fernet => FERNET,
            TokenProvider::Uuid => {
                return Err(Error::NotImplemented("rotating the keys of tokens without any"));
            }
        };
        let master = self.tokens.master();
        self.db
            .transact(|cache| {
                let find = |number: u32| cache.get::<TokenKey>(&format!("{kind}/{number}"));
                let rotation = rotation(&numbers(cache, kind));
                let staged =
                    find(0).ok_or_else(|| TokenError::Keys(KeyError::NoKeyRow(format!("{kind}/0"))))?;
                let promoted = TokenKey { id: format!("{kind}/{}", rotation.promoted), ..staged.row.clone() };
                let next = match kind {
                    JWS => {
                        let key = JwsKey::random().ok_or(TokenError::Random)?;
                        sealed(master, kind, 0, key.document())?
                    }
                    _ => {
                        let key = Key::random().ok_or(TokenError::Random)?;
                        sealed(master, kind, 0, key.to_text().as_bytes())?
                    }
                };
                let txn = Txn::new().create(&promoted).update(&staged, &next);
                let purged = rotation.purged.iter().filter_map(|number| find(*number));
                Ok(purged.fold(txn, |txn, stored| txn.delete(&stored)))
            })
            .await?;
        self.tokens.replace(load(self.db.cache(), master)?);
        Ok(numbers(self.db.cache(), kind))
    }
}

fn sealed(master: &MasterKey, kind: &str, number: u32, bytes: &[u8]) -> Result<TokenKey> {
    let sealed = master.seal(bytes).ok_or(TokenError::Random)?;
    Ok(TokenKey { id: format!("{kind}/{number}"), sealed })
}

/// The numbers of the keys of a kind, ascending.
fn numbers(cache: &Cache, kind: &str) -> Vec<u32> {
    let rows = cache.list_under::<TokenKey>(&format!("{kind}/"));
    let mut numbers: Vec<u32> =
        rows.iter().filter_map(|row| row.row.id.rsplit('/').next()?.parse().ok()).collect();
    numbers.sort_unstable();
    numbers
}

/// All keys: the primary one first, then the newer before the older, the staged one last.
fn load(cache: &Cache, master: &MasterKey) -> Result<Keys> {
    let mut keys = Keys::default();
    for kind in [FERNET, JWS] {
        for number in numbers(cache, kind).into_iter().rev() {
            let id = format!("{kind}/{number}");
            let Some(row) = cache.get::<TokenKey>(&id) else { continue };
            let sealed = || TokenError::Keys(KeyError::Sealed(id.clone()));
            let bytes = master.open(&row.row.sealed).ok_or_else(sealed)?;
            let none = || TokenError::Keys(KeyError::NoKeyRow(id.clone()));
            if kind == JWS {
                keys.jws.push(JwsKey::from_document(&bytes).ok_or_else(none)?);
            } else {
                let text = std::str::from_utf8(&bytes).map_err(|_| none())?;
                keys.fernet.push(Key::from_text(text).ok_or_else(none)?);
            }
        }
    }
    Ok(keys)
}
