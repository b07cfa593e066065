//! Rows of OAuth 1.0a (RFC 5849): consumers, and what they were given. Secrets are sealed under the cloud's master key.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::identity::Extra;

/// A program that users may let act for them.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct OauthConsumer {
    /// Its id, which is its key.
    pub id: String,
    /// Free text.
    pub description: Option<String>,
    /// Its sealed secret.
    pub sealed: String,
    /// All else that was given.
    pub extra: Extra,
}

impl std::fmt::Debug for OauthConsumer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OauthConsumer").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What a consumer asks a user for: to act for them in a project.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OauthRequestToken {
    /// Its id.
    pub id: String,
    /// Who asks.
    pub consumer_id: String,
    /// Where.
    pub project_id: String,
    /// Its sealed secret.
    pub sealed: String,
    /// What the user granted, once one did.
    pub grant: Option<OauthGrant>,
    /// Until when it holds.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for OauthRequestToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OauthRequestToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// That a user lets a consumer act for them.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OauthGrant {
    /// The user.
    pub user_id: String,
    /// With these roles, by their ids.
    pub roles: Vec<String>,
    /// The sealed word that the user tells the consumer.
    pub sealed_verifier: String,
}

/// A consumer's right to act for a user in a project.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OauthAccessToken {
    /// Its id.
    pub id: String,
    /// Whose right it is.
    pub consumer_id: String,
    /// For whom.
    pub user_id: String,
    /// Where.
    pub project_id: String,
    /// With these roles, by their ids.
    pub roles: Vec<String>,
    /// Its sealed secret.
    pub sealed: String,
    /// Until when it holds.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for OauthAccessToken {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("OauthAccessToken").field("id", &self.id).finish_non_exhaustive()
    }
}
