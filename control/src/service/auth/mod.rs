//! Who somebody is: logging in, tokens and what they stand for, revoking them. A token is checked against the users,
//! projects and assignments of this moment, so what an administrator takes away is gone with the next request.

pub mod ec2;
mod facts;
mod keys;
mod login;
pub mod oauth;

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use zeroize::Zeroizing;

pub use self::facts::{ScopeFacts, TokenFacts};
pub(crate) use self::keys::open_tokens;
pub use self::login::{ApplicationCredentialRef, Credential};

use self::login::Login;
use crate::Control;
use crate::caller::{Caller, Delegation};
use crate::error::{Error, Result};
use crate::model::delegation::StoredToken;
use crate::model::identity::{AssignmentTarget, Domain, Project, Revocation, User};
use crate::model::oauth::OauthAccessToken;
use crate::policy::{self, said};
use crate::service::identity::assignment::effective_roles;
use crate::settings::TokenProvider;
use crate::store::{Cache, Row, Stored, Txn};
use crate::token::{Payload, TokenScope, Via};

/// How many expired revocations and tokens one revocation clears away.
const CLEARED_MAX: usize = 32;
/// For how long an event of many tokens is kept: longer than any token lives.
const EVENT_KEPT: SignedDuration = SignedDuration::from_hours(7 * 24);
/// For how long after its end a token can still be shown where that is asked for (Keystone's `allow_expired_window`).
const EXPIRED_WINDOW: SignedDuration = SignedDuration::from_hours(48);

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
    /// What a trust lends.
    Trust(String),
}

/// How a token that has expired is taken.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Expired {
    /// It does not hold.
    #[default]
    Refused,
    /// It is shown for a while.
    Shown,
}

/// The one answer to every login that fails, so that it tells nothing of who exists.
pub(crate) fn refused() -> Error {
    Error::Unauthorized("The request you have made requires authentication.".to_owned())
}

/// The event that ends all tokens of a user, project or domain that were issued up to now.
pub(crate) fn revocation(kind: &str, id: &str) -> Revocation {
    let now = Timestamp::now();
    Revocation {
        id: format!("{kind}/{id}"),
        expires_at: now.checked_add(EVENT_KEPT).unwrap_or(now),
        issued_before: Some(now),
    }
}

impl Control {
    /// Logs in and returns a new token with what it stands for.
    ///
    /// # Errors
    /// `Unauthorized` whatever was wrong; `Unavailable` if too many log in at once; `Forbidden` for what a token that
    /// was handed on may not be made into.
    pub async fn token_issue(
        &self,
        credentials: Vec<Credential>,
        wanted: ScopeWanted,
    ) -> Result<(Zeroizing<String>, TokenFacts)> {
        self.db.caught_up().await?;
        let mut login: Option<Login> = None;
        for credential in credentials {
            let proved = self.prove(credential).await?;
            login = Some(match login {
                None => proved,
                Some(before) => before.and(proved)?,
            });
        }
        let mut login = login.ok_or_else(refused)?;
        login.methods.sort_unstable();
        login.methods.dedup();
        login::check_factors(&login)?;
        let target = self.wanted_scope(&login, wanted)?;
        self.issue_for(login, target).await
    }

    async fn issue_for(&self, login: Login, target: Target) -> Result<(Zeroizing<String>, TokenFacts)> {
        let Target { user_id, scope, via, expires_at } = target;
        self.wait_for_clean_second(&user_id, &scope).await;
        let mut audit_ids = vec![uuid::Uuid::new_v4().into_bytes()];
        audit_ids.extend(login.parent);
        let expires_at = expires_at.map_or(login.expires_at, |at| at.min(login.expires_at));
        let payload = Payload {
            user_id,
            methods: login.methods,
            scope,
            expires_at_s: expires_at.as_second() as f64,
            audit_ids,
            via,
        };
        let issued_at_s = u64::try_from(Timestamp::now().as_second()).unwrap_or(0);
        let facts = self.facts(payload.clone(), issued_at_s, Expired::Refused)?;
        if let Via::Trust(id) = &payload.via
            && facts.trust.as_ref().is_some_and(|trust| trust.row.remaining_uses.is_some())
        {
            self.trust_consume(id).await?;
        }
        let token = match self.settings.identity.token_provider {
            TokenProvider::Fernet => self.tokens.seal(&payload, issued_at_s)?,
            TokenProvider::Jws => self.tokens.sign(&payload, issued_at_s)?,
            TokenProvider::Uuid => self.store_token(&payload, issued_at_s, expires_at).await?,
        };
        Ok((Zeroizing::new(token), facts))
    }

    /// What a token stands for.
    ///
    /// # Errors
    /// `Unauthorized` if it does not hold.
    pub async fn token_facts(&self, token: &str, expired: Expired) -> Result<TokenFacts> {
        self.db.caught_up().await?;
        self.facts_of(token, expired)
    }

    /// The caller that a token stands for.
    ///
    /// # Errors
    /// `Unauthorized` if it does not hold.
    pub async fn token_caller(&self, token: &str, request_id: String) -> Result<Caller> {
        let facts = self.token_facts(token, Expired::Refused).await?;
        Ok(self.caller_of(&facts, request_id))
    }

    /// What another's token stands for.
    ///
    /// # Errors
    /// `NotFound` if it does not hold; `Forbidden` if it is another user's and the caller is neither an administrator
    /// nor a service.
    pub async fn token_show(&self, caller: &Caller, subject: &str, expired: Expired) -> Result<TokenFacts> {
        let facts = self.subject_facts(subject, expired).await?;
        let user = facts.user.row.id.as_str();
        let said = said("identity:validate_token", caller, &policy::Target::of(&[("token.user_id", user)]));
        let default = || user == caller.user_id || caller.reads_system() || caller.has_role("service");
        if said.unwrap_or_else(default) {
            Ok(facts)
        } else {
            Err(Error::Forbidden { action: "identity:validate_token" })
        }
    }

    async fn subject_facts(&self, subject: &str, expired: Expired) -> Result<TokenFacts> {
        self.token_facts(subject, expired).await.map_err(|error| match error {
            Error::Unauthorized(_) => Error::not_found("Token", "given as subject"),
            other => other,
        })
    }

    /// Makes a token not hold any more.
    ///
    /// # Errors
    /// As [`Control::token_show`].
    pub async fn token_revoke(&self, caller: &Caller, subject: &str) -> Result<()> {
        let facts = self.subject_facts(subject, Expired::Refused).await?;
        let user = facts.user.row.id.as_str();
        let said = said("identity:revoke_token", caller, &policy::Target::of(&[("token.user_id", user)]));
        if !said.unwrap_or_else(|| user == caller.user_id || caller.is_admin()) {
            return Err(Error::Forbidden { action: "identity:revoke_token" });
        }
        let id = audit_hex(&facts.audit_ids[0]);
        let row = Revocation { id, expires_at: facts.expires_at, issued_before: None };
        self.db
            .transact(|cache| {
                let now = Timestamp::now();
                let revocations = cache.filter::<Revocation>(|row| row.expires_at < now);
                let tokens = cache.filter::<StoredToken>(|row| row.expires_at < now);
                let ids = |kind: &str, id: &str| format!("{kind}/{id}");
                let revocations = revocations.iter().map(|stored| ids(Revocation::KIND, &stored.row.id));
                let tokens = tokens.iter().map(|stored| ids(StoredToken::KIND, &stored.row.id));
                let own = ids(Revocation::KIND, &row.id);
                let cleared = revocations.chain(tokens).filter(|key| *key != own).take(CLEARED_MAX);
                // Whoever clears away first, the other's deletion changes nothing.
                Ok(cleared.fold(Txn::new(), Txn::release).put(&row))
            })
            .await
    }

    /// The events that ended tokens which would otherwise still hold.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator or a service.
    pub async fn revocation_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<Revocation>>>> {
        let rule = "identity:list_revoke_events";
        policy::require(rule, policy::Default::Service, caller, &policy::Target::NONE)?;
        self.db.caught_up().await?;
        let now = Timestamp::now();
        Ok(self.db.cache().filter::<Revocation>(|row| row.expires_at > now))
    }

    /// Tokens say when they were issued in whole seconds, and an event ends all of its own second. Who logs in right
    /// after one waits for the next.
    async fn wait_for_clean_second(&self, user_id: &str, scope: &TokenScope) {
        let Some(from) = facts::ended_up_to(self.db.cache(), user_id, scope) else { return };
        while Timestamp::now().as_second() <= from.as_second()
            && Timestamp::now().duration_since(from).as_secs().abs() <= 1
        {
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
    }

    fn wanted_scope(&self, login: &Login, wanted: ScopeWanted) -> Result<Target> {
        let cache = self.db.cache();
        let user = &login.user.row;
        let own = |scope| Target { user_id: user.id.clone(), scope, via: Via::Own, expires_at: None };
        let bound = match &login.via {
            Via::ApplicationCredential(id) => {
                Some(facts::application_credential(cache, id)?.row.project_id.clone())
            }
            Via::Oauth(id) => cache.get::<OauthAccessToken>(id).map(|granted| granted.row.project_id.clone()),
            _ => None,
        };
        if let Some(project) = bound {
            let same = match &wanted {
                ScopeWanted::Default => true,
                ScopeWanted::Project(wanted) => {
                    find_project(cache, wanted).is_some_and(|found| found.row.id == project)
                }
                _ => false,
            };
            // What was handed on for a project is good for that and nothing else.
            return if same {
                Ok(Target { via: login.via.clone(), ..own(TokenScope::Project(project)) })
            } else {
                Err(refused())
            };
        }
        if login.handed_on && wanted != ScopeWanted::Default {
            return Err(Error::Forbidden { action: "another scope for a token of a trust or credential" });
        }
        Ok(match wanted {
            ScopeWanted::Unscoped => own(TokenScope::Unscoped),
            ScopeWanted::System => own(TokenScope::System),
            ScopeWanted::Domain(domain) => {
                own(TokenScope::Domain(find_domain(cache, &domain).ok_or_else(refused)?.row.id.clone()))
            }
            ScopeWanted::Project(project) => {
                own(TokenScope::Project(find_project(cache, &project).ok_or_else(refused)?.row.id.clone()))
            }
            ScopeWanted::Trust(id) => trust_target(cache, &user.id, &id)?,
            // A default project that the user has no role in, or that is gone, is as none (Identity API v3).
            ScopeWanted::Default => match &user.default_project_id {
                Some(id) if project_of(cache, id).is_ok() && has_role_in(cache, &user.id, id) => {
                    own(TokenScope::Project(id.clone()))
                }
                _ => own(TokenScope::Unscoped),
            },
        })
    }

    /// Keeps what a token that is only a word stands for.
    async fn store_token(
        &self,
        payload: &Payload,
        issued_at_s: u64,
        expires_at: Timestamp,
    ) -> Result<String> {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let row = StoredToken {
            id: crate::service::identity::credential::ec2_id(&token),
            payload: base64::Engine::encode(&base64::engine::general_purpose::STANDARD, payload.pack()),
            issued_at_s,
            expires_at: expires_at.checked_add(EXPIRED_WINDOW).unwrap_or(expires_at),
        };
        self.db.transact(|_| Ok(Txn::new().create(&row))).await?;
        Ok(token)
    }

    /// The projects that a user has a role in and can have a token for.
    pub async fn projects_of(&self, caller: &Caller) -> Result<Vec<Arc<Stored<Project>>>> {
        self.db.caught_up().await?;
        let cache = self.db.cache();
        // What a token was handed on for is all that it is good for.
        if caller.delegation != Delegation::None {
            let own = caller.project_id().and_then(|id| cache.get::<Project>(id));
            return Ok(own.into_iter().collect());
        }
        let mut projects = cache.list::<Project>();
        projects.retain(|project| {
            project_of(cache, &project.row.id).is_ok() && has_role_in(cache, &caller.user_id, &project.row.id)
        });
        Ok(projects)
    }

    /// The domains that a user has a role in and can have a token for.
    pub async fn domains_of(&self, caller: &Caller) -> Result<Vec<Arc<Stored<Domain>>>> {
        self.db.caught_up().await?;
        let cache = self.db.cache();
        let mut domains = cache.filter::<Domain>(|row| row.enabled);
        domains.retain(|domain| {
            let target = AssignmentTarget::Domain(domain.row.id.clone());
            !effective_roles(cache, &caller.user_id, &target).is_empty()
        });
        Ok(domains)
    }

    /// Whether a user has a role in the whole deployment.
    pub async fn has_system_role(&self, caller: &Caller) -> Result<bool> {
        self.db.caught_up().await?;
        Ok(!effective_roles(self.db.cache(), &caller.user_id, &AssignmentTarget::System).is_empty())
    }
}

/// What a token will be good for, and whose it will be.
struct Target {
    user_id: String,
    scope: TokenScope,
    via: Via,
    expires_at: Option<Timestamp>,
}

/// What a trust lends to this trustee.
fn trust_target(cache: &Cache, user_id: &str, id: &str) -> Result<Target> {
    let trust = facts::trust(cache, id)?;
    if trust.row.trustee_user_id != user_id {
        return Err(Error::Forbidden { action: "a token of another's trust" });
    }
    if trust.row.remaining_uses == Some(0) {
        return Err(Error::Forbidden { action: "a trust without remaining uses" });
    }
    let user = if trust.row.impersonation { &trust.row.trustor_user_id } else { &trust.row.trustee_user_id };
    let scope = match &trust.row.project_id {
        Some(id) => TokenScope::Project(id.clone()),
        None => return Err(Error::NotImplemented("a token of a trust without a project")),
    };
    Ok(Target {
        user_id: user.clone(),
        scope,
        via: Via::Trust(id.to_owned()),
        expires_at: trust.row.expires_at,
    })
}

fn has_role_in(cache: &Cache, user_id: &str, project_id: &str) -> bool {
    !effective_roles(cache, user_id, &AssignmentTarget::Project(project_id.to_owned())).is_empty()
}

fn audit_hex(id: &[u8; 16]) -> String {
    uuid::Uuid::from_bytes(*id).simple().to_string()
}

fn enabled_domain(cache: &Cache, id: &str) -> Result<Found<Domain>> {
    cache.get::<Domain>(id).filter(|domain| domain.row.enabled).ok_or_else(refused)
}

/// A project that tokens can be scoped to, and its domain.
fn project_of(cache: &Cache, id: &str) -> Result<(Found<Project>, Found<Domain>)> {
    let project = cache.get::<Project>(id).filter(|project| project.row.enabled).ok_or_else(refused)?;
    let domain = enabled_domain(cache, &project.row.domain_id)?;
    Ok((project, domain))
}

fn find_domain(cache: &Cache, domain: &DomainRef) -> Option<Found<Domain>> {
    match domain {
        DomainRef::Id(id) => cache.get(id),
        DomainRef::Name(name) => cache.find::<Domain>(|row| row.name == *name),
    }
}

fn find_user(cache: &Cache, user: &NamedRef) -> Option<Found<User>> {
    match user {
        NamedRef::Id(id) => cache.get(id),
        NamedRef::Name(name, domain) => {
            let domain = find_domain(cache, domain)?;
            cache.find::<User>(|row| row.name == *name && row.domain_id == domain.row.id)
        }
    }
}

fn find_project(cache: &Cache, project: &NamedRef) -> Option<Found<Project>> {
    match project {
        NamedRef::Id(id) => cache.get(id),
        NamedRef::Name(name, domain) => {
            let domain = find_domain(cache, domain)?;
            cache.find::<Project>(|row| row.name == *name && row.domain_id == domain.row.id)
        }
    }
}
