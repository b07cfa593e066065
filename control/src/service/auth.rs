//! Who somebody is: logging in, tokens and what they stand for, revoking them. A token is checked against the users,
//! projects and assignments of this moment, so what an administrator takes away is gone with the next request.

use std::sync::Arc;

use jiff::Timestamp;
use zeroize::Zeroizing;

use crate::Control;
use crate::caller::{Caller, RoleLevel, Scope};
use crate::error::{Error, Result};
use crate::model::identity::{Assignment, AssignmentTarget, Domain, Project, Revocation, Role, User};
use crate::policy::require_admin;
use crate::service::role::{ROLE_CHAIN, role_level};
use crate::store::{Cache, Row, Stored, Txn};
use crate::token::{Method, Payload, TokenScope};

/// How many expired revocations one revocation clears away.
const CLEARED_MAX: usize = 32;

/// A row as the cache has it.
type Found<T> = Arc<Stored<T>>;

/// A domain as a login names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DomainRef {
    /// By id.
    Id(String),
    /// By name.
    Name(String),
}

/// A user or project as a login names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NamedRef {
    /// By id.
    Id(String),
    /// By name within a domain.
    Name(String, DomainRef),
}

/// How somebody proves to be somebody.
#[derive(Clone)]
pub enum Credential {
    /// By a user's password.
    Password {
        /// The user.
        user: NamedRef,
        /// The password.
        password: Zeroizing<String>,
    },
    /// By an earlier token.
    Token(Zeroizing<String>),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => {
                f.debug_struct("Password").field("user", user).finish_non_exhaustive()
            }
            Self::Token(_) => f.write_str("Token(…)"),
        }
    }
}

/// What the new token shall be good for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ScopeWanted {
    /// The user's default project if there is one, else nothing.
    Default,
    /// Nothing, even if there is a default project.
    Unscoped,
    /// A project.
    Project(NamedRef),
    /// A domain.
    Domain(DomainRef),
    /// The whole deployment.
    System,
}

/// What a token is good for, with what there is to say of it.
#[derive(Debug, Clone)]
pub enum ScopeFacts {
    /// Nothing.
    Unscoped,
    /// A project, and its domain.
    Project(Arc<Stored<Project>>, Arc<Stored<Domain>>),
    /// A domain.
    Domain(Arc<Stored<Domain>>),
    /// The whole deployment.
    System,
}

/// All that a token stands for at this moment.
#[derive(Debug, Clone)]
pub struct TokenFacts {
    /// How it was got.
    pub methods: Vec<Method>,
    /// Whose it is.
    pub user: Arc<Stored<User>>,
    /// The user's domain.
    pub user_domain: Arc<Stored<Domain>>,
    /// What it is good for.
    pub scope: ScopeFacts,
    /// The roles there, implied ones included.
    pub roles: Vec<Arc<Stored<Role>>>,
    /// Its own audit id, then its first ancestor's.
    pub audit_ids: Vec<[u8; 16]>,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// Until when it holds.
    pub expires_at: Timestamp,
}

impl TokenFacts {
    fn caller(&self, request_id: String) -> Caller {
        let scope = match &self.scope {
            ScopeFacts::Unscoped => Scope::Unscoped,
            ScopeFacts::Project(project, _) => Scope::Project(project.row.id.clone()),
            ScopeFacts::Domain(domain) => Scope::Domain(domain.row.id.clone()),
            ScopeFacts::System => Scope::System,
        };
        let role: Option<RoleLevel> = self.roles.iter().filter_map(|role| role_level(&role.row.name)).max();
        Caller { user_id: self.user.row.id.clone(), scope, role, request_id }
    }
}

/// The one answer to every login that fails, so that it tells nothing of who exists.
fn refused() -> Error {
    Error::Unauthorized("The request you have made requires authentication.".to_owned())
}

impl Control {
    /// Logs in and returns a new token with what it stands for.
    ///
    /// # Errors
    /// `Unauthorized` whatever was wrong; `Unavailable` if too many log in at once.
    pub async fn token_issue(
        &self,
        credentials: Vec<Credential>,
        wanted: ScopeWanted,
    ) -> Result<(Zeroizing<String>, TokenFacts)> {
        self.db.caught_up().await?;
        let lifetime = std::time::Duration::from_secs(self.settings.token_lifetime_s.into());
        let mut login: Option<Login> = None;
        for credential in credentials {
            let proved = match credential {
                Credential::Password { user, password } => self.log_in(&user, password, lifetime).await?,
                Credential::Token(token) => {
                    let facts = self.facts_of(&token)?;
                    Login {
                        user: facts.user,
                        methods: facts.methods.into_iter().chain([Method::Token]).collect(),
                        expires_at: facts.expires_at,
                        parent: facts.audit_ids.last().copied(),
                    }
                }
            };
            login = Some(match login {
                None => proved,
                Some(before) => before.and(proved)?,
            });
        }
        let mut login = login.ok_or_else(refused)?;
        login.methods.sort_unstable();
        login.methods.dedup();
        self.wait_for_clean_second(&login.user.row).await;
        let scope = self.wanted_scope(&login.user.row, wanted)?;
        let mut audit_ids = vec![uuid::Uuid::new_v4().into_bytes()];
        audit_ids.extend(login.parent);
        let payload = Payload {
            user_id: login.user.row.id.clone(),
            methods: login.methods,
            scope,
            expires_at_s: login.expires_at.as_second() as f64,
            audit_ids,
        };
        let issued_at_s = u64::try_from(Timestamp::now().as_second()).unwrap_or(0);
        let facts = self.facts(payload.clone(), issued_at_s)?;
        let token = self.tokens.seal(&payload, issued_at_s)?;
        Ok((Zeroizing::new(token), facts))
    }

    /// What a token stands for.
    ///
    /// # Errors
    /// `Unauthorized` if it does not hold.
    pub async fn token_facts(&self, token: &str) -> Result<TokenFacts> {
        self.db.caught_up().await?;
        self.facts_of(token)
    }

    /// The caller that a token stands for.
    ///
    /// # Errors
    /// `Unauthorized` if it does not hold.
    pub async fn token_caller(&self, token: &str, request_id: String) -> Result<Caller> {
        Ok(self.token_facts(token).await?.caller(request_id))
    }

    /// What another's token stands for.
    ///
    /// # Errors
    /// `NotFound` if it does not hold; `Forbidden` if it is another user's and the caller is no administrator.
    pub async fn token_show(&self, caller: &Caller, subject: &str) -> Result<TokenFacts> {
        let facts = self.token_facts(subject).await.map_err(|error| match error {
            Error::Unauthorized(_) => Error::not_found("Token", "given as subject"),
            other => other,
        })?;
        if facts.user.row.id != caller.user_id && !caller.is_admin() {
            return Err(Error::Forbidden { action: "identity:validate_token" });
        }
        Ok(facts)
    }

    /// Makes a token not hold any more.
    ///
    /// # Errors
    /// As [`Control::token_show`].
    pub async fn token_revoke(&self, caller: &Caller, subject: &str) -> Result<()> {
        let facts = self.token_show(caller, subject).await?;
        let row = Revocation { id: audit_hex(&facts.audit_ids[0]), expires_at: facts.expires_at };
        self.db
            .transact(|cache| {
                let now = Timestamp::now();
                let expired = cache.filter::<Revocation>(|row| row.expires_at < now);
                let txn = expired.iter().take(CLEARED_MAX).filter(|stored| stored.row.id != row.id);
                // Whoever clears away first, the other's deletion changes nothing.
                let txn = txn.fold(Txn::new(), |txn, stored| {
                    txn.release(format!("{}/{}", Revocation::KIND, stored.row.id))
                });
                Ok(txn.put(&row))
            })
            .await
    }

    /// Makes the staged token key the one that tokens are made with, and stages a new one. Tokens of the keys before
    /// hold until their key is the oldest of too many ([`crate::token::ACTIVE_KEYS_MAX`]); so not more often than
    /// tokens live.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; what the key repository says.
    pub async fn token_keys_rotate(&self, caller: &Caller) -> Result<()> {
        require_admin(caller, "identity:rotate_token_keys")?;
        Ok(self.tokens.rotate()?)
    }

    async fn log_in(
        &self,
        user: &NamedRef,
        password: Zeroizing<String>,
        lifetime: std::time::Duration,
    ) -> Result<Login> {
        let user = find_user(self.db.cache(), user);
        let hash = user.as_ref().and_then(|user| user.row.password_hash.clone());
        let holds = self.passwords.verify(password, hash).await?;
        match user {
            Some(user) if holds => {
                let expires_at = Timestamp::now().checked_add(lifetime).map_err(|_| refused())?;
                Ok(Login { user, methods: vec![Method::Password], expires_at, parent: None })
            }
            _ => Err(refused()),
        }
    }

    /// Tokens say when they were issued in whole seconds, and a change of password ends all of its own second. Who
    /// logs in right after the change waits for the next.
    async fn wait_for_clean_second(&self, user: &User) {
        if let Some(from) = user.tokens_from {
            while Timestamp::now().as_second() <= from.as_second()
                && Timestamp::now().duration_since(from).as_secs().abs() <= 1
            {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        }
    }

    fn wanted_scope(&self, user: &User, wanted: ScopeWanted) -> Result<TokenScope> {
        let cache = self.db.cache();
        Ok(match wanted {
            ScopeWanted::Unscoped => TokenScope::Unscoped,
            ScopeWanted::System => TokenScope::System,
            ScopeWanted::Domain(domain) => {
                TokenScope::Domain(find_domain(cache, &domain).ok_or_else(refused)?.row.id.clone())
            }
            ScopeWanted::Project(project) => {
                TokenScope::Project(find_project(cache, &project).ok_or_else(refused)?.row.id.clone())
            }
            // A default project that the user has no role in, or that is gone, is as none (Identity API v3).
            ScopeWanted::Default => match &user.default_project_id {
                Some(id)
                    if project_of(cache, id).is_ok() && !self.roles_in_project(&user.id, id).is_empty() =>
                {
                    TokenScope::Project(id.clone())
                }
                _ => TokenScope::Unscoped,
            },
        })
    }

    fn facts_of(&self, token: &str) -> Result<TokenFacts> {
        let (payload, issued_at_s) = self.tokens.open_token(token).map_err(|_| refused())?;
        self.facts(payload, issued_at_s)
    }

    /// Holds a token's payload against what is true now.
    fn facts(&self, payload: Payload, issued_at_s: u64) -> Result<TokenFacts> {
        let cache = self.db.cache();
        let expires_at = timestamp(payload.expires_at_s).ok_or_else(refused)?;
        let issued_at = i64::try_from(issued_at_s).ok().and_then(|s| Timestamp::from_second(s).ok());
        let issued_at = issued_at.ok_or_else(refused)?;
        if Timestamp::now() >= expires_at
            || cache.get::<Revocation>(&audit_hex(&payload.audit_ids[0])).is_some()
        {
            return Err(refused());
        }
        let user = cache.get::<User>(&payload.user_id).filter(|user| user.row.enabled).ok_or_else(refused)?;
        if user.row.tokens_from.is_some_and(|from| issued_at.as_second() <= from.as_second()) {
            return Err(refused());
        }
        let user_domain = enabled_domain(cache, &user.row.domain_id)?;
        let user_id = &user.row.id;
        let (scope, roles) = match payload.scope {
            TokenScope::Unscoped => (ScopeFacts::Unscoped, Vec::new()),
            TokenScope::Project(id) => {
                let (project, domain) = project_of(cache, &id)?;
                (ScopeFacts::Project(project, domain), self.roles_in_project(user_id, &id))
            }
            TokenScope::Domain(id) => {
                let roles = self.roles_at(user_id, &AssignmentTarget::Domain(id.clone()));
                (ScopeFacts::Domain(enabled_domain(cache, &id)?), roles)
            }
            TokenScope::System => (ScopeFacts::System, self.roles_at(user_id, &AssignmentTarget::System)),
        };
        if roles.is_empty() && !matches!(scope, ScopeFacts::Unscoped) {
            return Err(refused());
        }
        let (methods, audit_ids) = (payload.methods, payload.audit_ids);
        Ok(TokenFacts { methods, user, user_domain, scope, roles, audit_ids, issued_at, expires_at })
    }

    fn roles_in_project(&self, user_id: &str, project_id: &str) -> Vec<Arc<Stored<Role>>> {
        self.roles_at(user_id, &AssignmentTarget::Project(project_id.to_owned()))
    }

    /// A user's roles somewhere, implied ones included, each once.
    pub(crate) fn roles_at(&self, user_id: &str, target: &AssignmentTarget) -> Vec<Arc<Stored<Role>>> {
        let cache = self.db.cache();
        let under = format!("{}/", Assignment::prefix(user_id, target));
        let mut roles: Vec<Arc<Stored<Role>>> = Vec::new();
        let mut add = |role: Arc<Stored<Role>>| {
            if roles.iter().all(|known| known.row.id != role.row.id) {
                roles.push(role);
            }
        };
        for assignment in cache.list_under::<Assignment>(&under) {
            let Some(role) = cache.get::<Role>(&assignment.row.role_id) else { continue };
            let implied = ROLE_CHAIN.iter().skip_while(|name| **name != role.row.name).skip(1);
            let implied: Vec<_> =
                implied.filter_map(|name| cache.find::<Role>(|row| row.name == *name)).collect();
            add(role);
            implied.into_iter().for_each(&mut add);
        }
        roles
    }

    /// The projects that a user has a role in.
    pub async fn projects_of(&self, caller: &Caller) -> Result<Vec<Arc<Stored<Project>>>> {
        self.db.caught_up().await?;
        let cache = self.db.cache();
        let mut projects: Vec<Arc<Stored<Project>>> = Vec::new();
        for assignment in cache.list_under::<Assignment>(&format!("{}/project/", caller.user_id)) {
            if let AssignmentTarget::Project(id) = &assignment.row.target
                && let Ok((project, _)) = project_of(cache, id)
                && projects.iter().all(|known| known.row.id != *id)
            {
                projects.push(project);
            }
        }
        Ok(projects)
    }
}

/// Somebody who proved to be somebody.
struct Login {
    user: Arc<Stored<User>>,
    methods: Vec<Method>,
    expires_at: Timestamp,
    parent: Option<[u8; 16]>,
}

impl Login {
    /// Two proofs of the same user; the shorter life counts.
    fn and(self, other: Self) -> Result<Self> {
        if self.user.row.id != other.user.row.id {
            return Err(refused());
        }
        Ok(Self {
            user: self.user,
            methods: self.methods.into_iter().chain(other.methods).collect(),
            expires_at: self.expires_at.min(other.expires_at),
            parent: self.parent.or(other.parent),
        })
    }
}

fn audit_hex(id: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes(*id).simple().to_string()
}

fn timestamp(seconds: f64) -> Option<Timestamp> {
    // Bounds that every date of ours is within, so that the conversion is exact enough and defined.
    (0.0..1e11)
        .contains(&seconds)
        .then(|| Timestamp::from_millisecond((seconds * 1000.0) as i64).ok())
        .flatten()
}

fn enabled_domain(cache: &Cache, id: &str) -> Result<Arc<Stored<Domain>>> {
    cache.get::<Domain>(id).filter(|domain| domain.row.enabled).ok_or_else(refused)
}

/// A project that tokens can be scoped to, and its domain.
fn project_of(cache: &Cache, id: &str) -> Result<(Found<Project>, Found<Domain>)> {
    let project = cache.get::<Project>(id).filter(|project| project.row.enabled).ok_or_else(refused)?;
    let domain = enabled_domain(cache, &project.row.domain_id)?;
    Ok((project, domain))
}

fn find_domain(cache: &Cache, domain: &DomainRef) -> Option<Arc<Stored<Domain>>> {
    match domain {
        DomainRef::Id(id) => cache.get(id),
        DomainRef::Name(name) => cache.find::<Domain>(|row| row.name == *name),
    }
}

fn find_user(cache: &Cache, user: &NamedRef) -> Option<Arc<Stored<User>>> {
    match user {
        NamedRef::Id(id) => cache.get(id),
        NamedRef::Name(name, domain) => {
            let domain = find_domain(cache, domain)?;
            cache.find::<User>(|row| row.name == *name && row.domain_id == domain.row.id)
        }
    }
}

fn find_project(cache: &Cache, project: &NamedRef) -> Option<Arc<Stored<Project>>> {
    match project {
        NamedRef::Id(id) => cache.get(id),
        NamedRef::Name(name, domain) => {
            let domain = find_domain(cache, domain)?;
            cache.find::<Project>(|row| row.name == *name && row.domain_id == domain.row.id)
        }
    }
}
