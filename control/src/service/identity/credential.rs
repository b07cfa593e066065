//! Credentials that the identity service keeps for users, EC2 access keys among them. What is secret is sealed under
//! the cloud's master key and shown to its user alone.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::digest;
use ring::rand::{SecureRandom, SystemRandom};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use super::{Entity, NAME_CHARACTERS_MAX, Rules, check_extra, invalid, require, require_valid, rules};
use crate::Control;
use crate::caller::{Caller, Delegation};
use crate::error::{Error, Result};
use crate::model::delegation::StoredCredential;
use crate::model::identity::{Project, User};
use crate::model::{hexadecimal, random_hex_id, random_uuid};
use crate::policy::{Target, said};
use crate::store::{Cache, Stored, Txn};

/// The type of credentials that [`Control::ec2_create`] makes.
pub const EC2: &str = "ec2";
/// The longest blob in bytes: a certificate with its chain.
const BLOB_BYTES_MAX: usize = 64 << 10;
/// The most credentials of one user: people have a handful.
const OF_ONE_USER_MAX: usize = 1000;

impl Entity for StoredCredential {
    const NOUN: &'static str = "Credential";
    const RULES: Rules = rules!("credential", "credentials");

    fn listable(_: &Caller) -> bool {
        true
    }

    fn readable(&self, caller: &Caller) -> bool {
        caller.reads_system() || caller.user_id == self.user_id
    }

    fn writable(&self, caller: &Caller) -> bool {
        caller.may_delegate() && (caller.is_admin() || caller.user_id == self.user_id)
    }

    fn keys(&self) -> Vec<(&'static str, &str)> {
        vec![("user_id", &self.user_id)]
    }

    fn admit(&self, cache: &Cache, before: Option<&Self>) -> Result<()> {
        if self.kind.is_empty() || self.kind.chars().count() > NAME_CHARACTERS_MAX {
            return Err(invalid(format!("a credential's type has 1 to {NAME_CHARACTERS_MAX} characters")));
        }
        if self.kind == EC2 && self.project_id.is_none() {
            return Err(invalid("a credential of type ec2 has a project_id"));
        }
        if before.is_none()
            && cache.filter::<Self>(|row| row.user_id == self.user_id).len() >= OF_ONE_USER_MAX
        {
            return Err(Error::Forbidden { action: "more credentials of one user than the limit" });
        }
        check_extra(&self.extra)
    }

    fn bind(&self, cache: &Cache, _: Option<&Self>, txn: Txn) -> Result<Txn> {
        let txn = require::<User>(cache, txn, &self.user_id)?;
        match &self.project_id {
            Some(project) => require_valid::<Project>(cache, txn, project),
            None => Ok(txn),
        }
    }
}

/// An access key with its secret.
#[derive(Clone)]
pub struct Ec2Key {
    /// The key.
    pub access: String,
    /// The secret that signs.
    pub secret: Zeroizing<String>,
    /// The trust it was made under.
    pub trust_id: Option<String>,
    /// The application credential it was made under.
    pub application_credential_id: Option<String>,
}

impl std::fmt::Debug for Ec2Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Ec2Key").field("access", &self.access).finish_non_exhaustive()
    }
}

impl Control {
    /// Keeps a credential. One of type `ec2` has a JSON object as its blob, whose `access` names it.
    pub async fn credential_create(
        &self,
        caller: &Caller,
        mut row: StoredCredential,
        blob: &str,
    ) -> Result<Arc<Stored<StoredCredential>>> {
        row.id = if row.kind == EC2 { ec2_id(&ec2_key(blob)?.access) } else { random_hex_id() };
        row.sealed = self.seal_blob(blob)?;
        self.entity_create(caller, row).await
    }

    /// Changes a credential, and its blob if there is a new one.
    pub async fn credential_update(
        &self,
        caller: &Caller,
        id: &str,
        change: impl Fn(&mut StoredCredential) -> Result<()>,
        blob: Option<&str>,
    ) -> Result<Arc<Stored<StoredCredential>>> {
        let sealed = blob.map(|blob| self.seal_blob(blob)).transpose()?;
        self.entity_update(caller, id, |row: &mut StoredCredential| {
            change(row)?;
            if let Some(sealed) = &sealed {
                row.sealed.clone_from(sealed);
            }
            // As in Keystone the id stays, whatever access key the new blob has.
            if row.kind == EC2 { ec2_key(&self.credential_blob(row)?).map(drop) } else { Ok(()) }
        })
        .await
    }

    /// A credential's blob.
    ///
    /// # Errors
    /// `Unavailable` if it was sealed under another master key.
    pub fn credential_blob(&self, row: &StoredCredential) -> Result<Zeroizing<String>> {
        let bytes = self.tokens.master().open(&row.sealed);
        let text = bytes.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        text.map(Zeroizing::new).ok_or_else(|| {
            Error::Unavailable("the credential was sealed under another master key".to_owned())
        })
    }

    /// Makes an EC2 access key for a user in a project.
    ///
    /// # Errors
    /// `Forbidden` for another's; `NotFound`.
    pub async fn ec2_create(
        &self,
        caller: &Caller,
        user_id: &str,
        project_id: &str,
    ) -> Result<Arc<Stored<StoredCredential>>> {
        let mut bytes = [0; 24];
        let random = SystemRandom::new().fill(&mut bytes);
        random.map_err(|_| Error::Unavailable("no random bytes".to_owned()))?;
        let secret = Zeroizing::new(URL_SAFE_NO_PAD.encode(bytes));
        let (trust_id, app_cred_id) = match &caller.delegation {
            Delegation::Trust { id, .. } => (Some(id), None),
            Delegation::ApplicationCredential { id, .. } => (None, Some(id)),
            _ => (None, None),
        };
        let blob = json!({
            "access": random_hex_id(), "secret": secret.as_str(), "trust_id": trust_id, "app_cred_id": app_cred_id,
        });
        let row = StoredCredential {
            user_id: user_id.to_owned(),
            project_id: Some(project_id.to_owned()),
            kind: EC2.to_owned(),
            ..StoredCredential::default()
        };
        self.credential_create(caller, row, &Zeroizing::new(blob.to_string())).await
    }

    /// The EC2 access keys of a user, each with its row.
    pub async fn ec2_list(
        &self,
        caller: &Caller,
        user_id: &str,
    ) -> Result<Vec<(Arc<Stored<StoredCredential>>, Ec2Key)>> {
        let rule = "identity:ec2_list_credentials";
        let said = said(rule, caller, &Target::of(&[("user_id", user_id)]));
        if !said.unwrap_or_else(|| caller.user_id == user_id || caller.reads_system()) {
            return Err(Error::Forbidden { action: rule });
        }
        self.db.caught_up().await?;
        let own = |row: &StoredCredential| row.user_id == user_id && row.kind == EC2;
        self.db
            .cache()
            .filter::<StoredCredential>(own)
            .into_iter()
            .map(|stored| self.ec2_of(&stored.row).map(|key| (stored, key)))
            .collect()
    }

    /// The row of one access key.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn ec2_get(
        &self,
        caller: &Caller,
        user_id: &str,
        access: &str,
    ) -> Result<(Arc<Stored<StoredCredential>>, Ec2Key)> {
        let rule = "identity:ec2_get_credential";
        let stored = self.entity_seen::<StoredCredential>(caller, &ec2_id(access), rule).await?;
        if stored.row.user_id != user_id {
            return Err(Error::not_found("Credential", access));
        }
        let key = self.ec2_of(&stored.row)?;
        Ok((stored, key))
    }

    /// Deletes an access key.
    pub async fn ec2_delete(&self, caller: &Caller, user_id: &str, access: &str) -> Result<()> {
        let (stored, _) = self.ec2_get(caller, user_id, access).await?;
        self.entity_delete::<StoredCredential>(caller, &stored.row.id).await
    }

    /// The access key of a credential of type `ec2`.
    pub(crate) fn ec2_of(&self, row: &StoredCredential) -> Result<Ec2Key> {
        ec2_key(&self.credential_blob(row)?)
    }

    fn seal_blob(&self, blob: &str) -> Result<String> {
        if blob.is_empty() || blob.len() > BLOB_BYTES_MAX {
            return Err(invalid(format!("a blob has 1 to {BLOB_BYTES_MAX} bytes")));
        }
        let sealed = self.tokens.master().seal(blob.as_bytes());
        sealed.ok_or_else(|| Error::Unavailable("no random bytes".to_owned()))
    }
}

/// The id of the credential of an access key.
pub(crate) fn ec2_id(access: &str) -> String {
    hexadecimal(digest::digest(&digest::SHA256, access.as_bytes()).as_ref())
}

fn ec2_key(blob: &str) -> Result<Ec2Key> {
    let wrong = || invalid("the blob of an ec2 credential is a JSON object with access and secret");
    let blob: Value = serde_json::from_str(blob).map_err(|_| wrong())?;
    let text = |key: &str| blob[key].as_str().map(str::to_owned);
    Ok(Ec2Key {
        access: text("access").ok_or_else(wrong)?,
        secret: Zeroizing::new(text("secret").ok_or_else(wrong)?),
        trust_id: text("trust_id"),
        application_credential_id: text("app_cred_id"),
    })
}

/// A random word that cannot be guessed, as generated secrets are.
pub(crate) fn random_secret() -> Zeroizing<String> {
    Zeroizing::new(format!("{}{}", random_uuid(), random_uuid()).replace('-', ""))
}
