//! Rows of the identity service: whom there is, and who may do what where. What somebody hands on to others is in
//! [`super::delegation`], the catalog in [`super::catalog`].

use std::collections::BTreeMap;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// All else that was given with a resource, as Keystone keeps it.
pub type Extra = BTreeMap<String, Value>;

/// A domain: a name space of users and projects.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Domain {
    /// Its id; the first one's is `default`.
    pub id: String,
    /// Unique.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Its users can log in.
    pub enabled: bool,
    /// Words to find it by, each once.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Keystone's own switches, `immutable` among them.
    #[serde(default)]
    pub options: Extra,
    /// All else that was given.
    #[serde(default)]
    pub extra: Extra,
}

/// What a domain is configured with.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct DomainConfig {
    /// The domain.
    pub id: String,
    /// Values by option, by group.
    pub options: BTreeMap<String, BTreeMap<String, Value>>,
    /// The same of what is sensitive, sealed under the cloud's master key.
    pub sealed: Option<String>,
}

/// A project: what resources belong to.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Project {
    /// Its id.
    pub id: String,
    /// Its domain.
    pub domain_id: String,
    /// The project above it; none directly below the domain.
    #[serde(default)]
    pub parent_id: Option<String>,
    /// Unique within the domain.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Tokens can be scoped to it.
    pub enabled: bool,
    /// Words to find it by, each once.
    #[serde(default)]
    pub tags: Vec<String>,
    /// Keystone's own switches, `immutable` among them.
    #[serde(default)]
    pub options: Extra,
    /// All else that was given.
    #[serde(default)]
    pub extra: Extra,
}

impl Project {
    /// What it is directly below: a project or its domain.
    pub fn parent(&self) -> &str {
        self.parent_id.as_deref().unwrap_or(&self.domain_id)
    }
}

/// A user.
#[derive(Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
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
    /// The password's hash in PHC form (argon2id), or bcrypt's where it was imported.
    pub password_hash: Option<String>,
    /// When the password was set.
    #[serde(default)]
    pub password_at: Option<Timestamp>,
    /// An administrator set the password: its user has to set another where the rules say so.
    #[serde(default)]
    pub password_by_other: bool,
    /// Hashes of the passwords before, the latest first.
    #[serde(default)]
    pub password_history: Vec<String>,
    /// Logins that failed since the last that did not, and when the last of them was.
    #[serde(default)]
    pub failures: Option<Failures>,
    /// Tokens issued before this do not hold: when the password last changed.
    #[serde(default)]
    pub tokens_from: Option<Timestamp>,
    /// Keystone's own switches, such as `ignore_lockout_failure_attempts`.
    #[serde(default)]
    pub options: Extra,
    /// All else that was given (`email`, `description`).
    pub extra: Extra,
}

impl std::fmt::Debug for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("User").field("id", &self.id).field("name", &self.name).finish_non_exhaustive()
    }
}

/// Logins that failed one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failures {
    /// How many.
    pub count: u32,
    /// When the last of them was.
    pub at: Timestamp,
}

/// Users that are given roles together.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// Its id.
    pub id: String,
    /// Its domain.
    pub domain_id: String,
    /// Unique within the domain.
    pub name: String,
    /// Free text.
    pub description: String,
    /// All else that was given.
    pub extra: Extra,
}

/// A user's membership of a group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GroupMember {
    /// `{user}/{group}`.
    pub id: String,
    /// The user.
    pub user_id: String,
    /// The group.
    pub group_id: String,
}

impl GroupMember {
    /// A membership of these parts.
    pub fn new(user_id: &str, group_id: &str) -> Self {
        let id = format!("{user_id}/{group_id}");
        Self { id, user_id: user_id.to_owned(), group_id: group_id.to_owned() }
    }
}

/// A role.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Role {
    /// Its id.
    pub id: String,
    /// The domain that alone can use it; none for a role of the whole cloud. Tokens never name a domain's role, only
    /// what it implies.
    #[serde(default)]
    pub domain_id: Option<String>,
    /// Unique, within its domain if it has one.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Keystone's own switches, `immutable` among them.
    #[serde(default)]
    pub options: Extra,
    /// All else that was given.
    #[serde(default)]
    pub extra: Extra,
}

/// Who has a role has another too.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ImpliedRole {
    /// `{prior}/{implied}`.
    pub id: String,
    /// The role that is given.
    pub prior_id: String,
    /// The role that comes with it.
    pub implied_id: String,
}

impl ImpliedRole {
    /// A rule of these parts.
    pub fn new(prior_id: &str, implied_id: &str) -> Self {
        let id = format!("{prior_id}/{implied_id}");
        Self { id, prior_id: prior_id.to_owned(), implied_id: implied_id.to_owned() }
    }
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

/// To whom an assignment gives its role.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ActorKind {
    /// One user.
    #[default]
    User,
    /// All members of a group.
    Group,
}

/// A user's or a group's role somewhere.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Assignment {
    /// Made of the parts, so that an assignment exists once: `{actor}/{kind of target}/{target}/{role}`, and
    /// `/inherited` after it where that is so.
    pub id: String,
    /// The user or group.
    #[serde(alias = "user_id")]
    pub actor_id: String,
    /// Which of both.
    #[serde(default)]
    pub actor: ActorKind,
    /// The role.
    pub role_id: String,
    /// Where.
    pub target: AssignmentTarget,
    /// Holds in all projects below the target instead of in the target.
    #[serde(default)]
    pub inherited: bool,
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
    /// A user's assignment of these parts.
    pub fn new(user_id: &str, role_id: &str, target: AssignmentTarget) -> Self {
        Self::of(ActorKind::User, user_id, role_id, target, false)
    }

    /// An assignment of these parts.
    pub fn of(
        actor: ActorKind,
        actor_id: &str,
        role_id: &str,
        target: AssignmentTarget,
        inherited: bool,
    ) -> Self {
        let suffix = if inherited { "/inherited" } else { "" };
        let id = format!("{}/{role_id}{suffix}", Self::prefix(actor_id, &target));
        let (actor_id, role_id) = (actor_id.to_owned(), role_id.to_owned());
        Self { id, actor_id, actor, role_id, target, inherited }
    }

    /// What the ids of all roles of an actor somewhere begin with: `{actor}/{kind of target}/{target}`.
    pub fn prefix(actor_id: &str, target: &AssignmentTarget) -> String {
        format!("{actor_id}/{}", target.key())
    }
}

/// Tokens that do not hold any more though they have not expired, as one event.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revocation {
    /// The token's audit id in hexadecimal; `chain/` and that id for all tokens that came from one; `user/`, `project/`
    /// or `domain/` and an id for all of its tokens.
    pub id: String,
    /// When the last of these tokens would have expired: from then on this row says nothing.
    pub expires_at: Timestamp,
    /// Tokens issued up to then are meant.
    #[serde(default)]
    pub issued_before: Option<Timestamp>,
}
