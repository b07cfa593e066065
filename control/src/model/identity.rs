//! Rows of the identity service.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

/// A domain: a name space of users and projects.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Its id; the first one's is `default`.
    pub id: String,
    /// Unique.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Its users can log in.
    pub enabled: bool,
}

/// A project: what resources belong to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its id.
    pub id: String,
    /// Its domain.
    pub domain_id: String,
    /// Unique within the domain.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Tokens can be scoped to it.
    pub enabled: bool,
}

/// A user.
#[derive(Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// Its id.
    pub id: String,
    /// Its domain.
    pub domain_id: String,
    /// Unique within the domain.
    pub name: String,
    /// May log in.
    pub enabled: bool,
    /// The project a token is scoped to if none is asked for.
    pub default_project_id: Option<String>,
    /// The password's hash in PHC form (argon2id).
    pub password_hash: Option<String>,
    /// Tokens issued before this do not hold: when the password last changed.
    #[serde(default)]
    pub tokens_from: Option<Timestamp>,
    /// All else that was given (`email`, `description`).
    pub extra: std::collections::BTreeMap<String, String>,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// A role.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// Its id.
    pub id: String,
    /// Unique.
    pub name: String,
    /// Free text.
    pub description: String,
}

/// Where an assignment holds.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum AssignmentTarget {
    /// In one project.
    Project(String),
    /// In one domain.
    Domain(String),
    /// Everywhere.
    System,
}

/// A user's role somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Made of the parts, so that an assignment exists once: `{user}/{kind of target}/{target}/{role}`.
    pub id: String,
    /// The user.
    pub user_id: String,
    /// The role.
    pub role_id: String,
    /// Where.
    pub target: AssignmentTarget,
}

impl AssignmentTarget {
    fn key(&self) -> String {
        match self {
            Self::Project(id) => format!("project/{id}"),
            Self::Domain(id) => format!("domain/{id}"),
            Self::System => "system/all".to_owned(),
        }
    }
}

impl Assignment {
    /// An assignment of these parts.
    pub fn new(user_id: &str, role_id: &str, target: AssignmentTarget) -> Self {
        let id = format!("{}/{role_id}", Self::prefix(user_id, &target));
        Self { id, user_id: user_id.to_owned(), role_id: role_id.to_owned(), target }
    }

    /// What the ids of all roles of a user somewhere begin with: `{user}/{kind of target}/{target}`.
    pub fn prefix(user_id: &str, target: &AssignmentTarget) -> String {
        format!("{user_id}/{}", target.key())
    }
}

/// A token that does not hold any more though it has not expired.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The token's audit id in hexadecimal.
    pub id: String,
    /// When the token would have expired: from then on this row says nothing.
    pub expires_at: Timestamp,
}
