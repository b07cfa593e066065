//! Rows of what somebody hands on: credentials that are no password, rights lent to others, and what tokens are made
//! with. No secret stands here in the clear.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::identity::Extra;

/// A user's credential of some kind. What is secret is sealed under the cloud's master key.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredCredential {
    /// Its id; for `ec2` the SHA-256 of its access key.
    pub id: String,
    /// Whose it is.
    pub user_id: String,
    /// The project it is good for.
    pub project_id: Option<String>,
    /// `ec2`, `cert`, `totp` or any other word.
    pub kind: String,
    /// The sealed blob.
    pub sealed: String,
    /// All else that was given.
    pub extra: Extra,
}

impl std::fmt::Debug for StoredCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("StoredCredential").field("id", &self.id).finish_non_exhaustive()
    }
}

/// A secret of its own with some of a user's roles in one project.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ApplicationCredential {
    /// Its id.
    pub id: String,
    /// Unique for its user.
    pub name: String,
    /// Whose it is.
    pub user_id: String,
    /// The project.
    pub project_id: String,
    /// Free text.
    pub description: Option<String>,
    /// The secret's hash.
    pub secret_hash: String,
    /// The ids of its roles.
    pub roles: Vec<String>,
    /// Until when it holds.
    pub expires_at: Option<Timestamp>,
    /// May make further ones, and trusts.
    pub unrestricted: bool,
    /// What alone it may be used for, by the rules' ids; `None` is anything.
    pub access_rules: Option<Vec<String>>,
}

impl std::fmt::Debug for ApplicationCredential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ApplicationCredential").field("id", &self.id).finish_non_exhaustive()
    }
}

/// One kind of request that application credentials can be bounded to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessRule {
    /// Its id.
    pub id: String,
    /// Whose it is.
    pub user_id: String,
    /// The service's type.
    pub service: String,
    /// `GET` and the like.
    pub method: String,
    /// The path, with `{name}` and `*` for one part and `**` for any number.
    pub path: String,
}

/// Roles in a project lent to another user.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trust {
    /// Its id.
    pub id: String,
    /// Who lends.
    pub trustor_user_id: String,
    /// To whom.
    pub trustee_user_id: String,
    /// The project.
    pub project_id: Option<String>,
    /// Tokens are the trustor's instead of the trustee's.
    pub impersonation: bool,
    /// The ids of the roles lent.
    pub roles: Vec<String>,
    /// Until when.
    pub expires_at: Option<Timestamp>,
    /// For how many more tokens.
    pub remaining_uses: Option<u32>,
    /// How often what is lent may be lent on.
    pub redelegation_count: u32,
    /// The trust this was lent on from.
    pub redelegated_trust_id: Option<String>,
    /// All else that was given.
    pub extra: Extra,
}

/// A key that tokens are made with, sealed under the cloud's master key.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenKey {
    /// `{provider}/{number}`: the highest makes tokens, 0 is staged, all of them open tokens.
    pub id: String,
    /// The sealed key.
    pub sealed: String,
}

impl std::fmt::Debug for TokenKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TokenKey").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a token says that says nothing itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct StoredToken {
    /// The SHA-256 of the token in hexadecimal.
    pub id: String,
    /// The payload in base64, as a Fernet token would carry it.
    pub payload: String,
    /// When it was issued, in seconds since the epoch.
    pub issued_at_s: u64,
    /// Until when it is of use.
    pub expires_at: Timestamp,
}
