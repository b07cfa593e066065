//! Proofs of who somebody is: passwords, tokens, application credentials.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use zeroize::Zeroizing;

use super::facts::{application_credential, enabled_user};
use super::oauth::OauthRequest;
use super::{Expired, Found, NamedRef, enabled_domain, find_user, refused};
use crate::Control;
use crate::error::{Error, Result};
use crate::model::delegation::ApplicationCredential;
use crate::model::identity::{Failures, User};
use crate::store::{Stored, Txn};
use crate::token::{Method, Via};

/// An application credential as a login names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ApplicationCredentialRef {
    /// By id.
    Id(String),
    /// By its user and name.
    Name(NamedRef, String),
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
    /// By an application credential's secret.
    ApplicationCredential {
        /// The credential.
        credential: ApplicationCredentialRef,
        /// The secret.
        secret: Zeroizing<String>,
    },
    /// By the login's own request, which a consumer of OAuth signed.
    Oauth(Box<OauthRequest>),
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { user, .. } => {
                f.debug_struct("Password").field("user", user).finish_non_exhaustive()
            }
            Self::Token(_) => f.write_str("Token(…)"),
            Self::Oauth(_) => f.write_str("Oauth(…)"),
            Self::ApplicationCredential { credential, .. } => f
                .debug_struct("ApplicationCredential")
                .field("credential", credential)
                .finish_non_exhaustive(),
        }
    }
}

/// Somebody who proved to be somebody.
pub(super) struct Login {
    pub(super) user: Found<User>,
    pub(super) methods: Vec<Method>,
    pub(super) expires_at: Timestamp,
    pub(super) parent: Option<[u8; 16]>,
    /// An application credential it is by.
    pub(super) via: Via,
    /// By a token that was handed on itself: there is no other scope for it.
    pub(super) handed_on: bool,
}

impl Login {
    /// Two proofs of the same user; the shorter life counts, and the narrower right.
    pub(super) fn and(self, other: Self) -> Result<Self> {
        if self.user.row.id != other.user.row.id {
            return Err(refused());
        }
        Ok(Self {
            user: self.user,
            methods: self.methods.into_iter().chain(other.methods).collect(),
            expires_at: self.expires_at.min(other.expires_at),
            parent: self.parent.or(other.parent),
            via: if self.via == Via::Own { other.via } else { self.via },
            handed_on: self.handed_on || other.handed_on,
        })
    }
}

/// Whether a user who has to give several proofs at once has given them.
pub(super) fn check_factors(login: &Login) -> Result<()> {
    let user = &login.user.row;
    let Some(rules) = user.options.get("multi_factor_auth_rules").and_then(|rules| rules.as_array()) else {
        return Ok(());
    };
    // As Keystone: one who is already in by a token was asked before.
    if !user.option("multi_factor_auth_enabled") || rules.is_empty() || login.methods.contains(&Method::Token)
    {
        return Ok(());
    }
    let given =
        |name: &serde_json::Value| login.methods.iter().any(|method| Some(method.name()) == name.as_str());
    let fits = rules.iter().any(|rule| rule.as_array().is_some_and(|names| names.iter().all(given)));
    if fits { Ok(()) } else { Err(refused()) }
}

impl Control {
    pub(super) fn expiry(&self) -> Result<Timestamp> {
        let lifetime = SignedDuration::from_secs(self.settings.token_lifetime_s.into());
        Timestamp::now().checked_add(lifetime).map_err(|_| refused())
    }

    pub(super) async fn prove(&self, credential: Credential) -> Result<Login> {
        match credential {
            Credential::Password { user, password } => {
                let user = find_user(self.db.cache(), &user);
                let user = self.proved_by_password(user, password).await?;
                if self.password_expires_at(&user.row).is_some_and(|at| at <= Timestamp::now()) {
                    return Err(Error::Unauthorized(format!(
                        "The password is expired and needs to be changed for user: {}.",
                        user.row.id
                    )));
                }
                self.login(user, Method::Password, Via::Own)
            }
            Credential::Token(token) => {
                let facts = self.facts_of(&token, Expired::Refused)?;
                let handed_on = facts.trust.is_some()
                    || facts.application_credential.is_some()
                    || facts.access_token.is_some()
                    || facts.methods.contains(&Method::Ec2Credential);
                if handed_on {
                    return Err(Error::Forbidden { action: "a token made of one that was handed on" });
                }
                Ok(Login {
                    user: facts.user,
                    methods: facts.methods.into_iter().chain([Method::Token]).collect(),
                    expires_at: facts.expires_at,
                    parent: facts.audit_ids.last().copied(),
                    via: Via::Own,
                    handed_on,
                })
            }
            Credential::ApplicationCredential { credential, secret } => {
                self.by_application_credential(&credential, secret).await
            }
            Credential::Oauth(request) => {
                let granted = self.oauth_login(&request)?;
                let user = enabled_user(self.db.cache(), &granted.row.user_id)?;
                let mut login = self.login(user, Method::Oauth1, Via::Oauth(granted.row.id.clone()))?;
                login.expires_at = login.expires_at.min(granted.row.expires_at);
                Ok(login)
            }
        }
    }

    async fn by_application_credential(
        &self,
        credential: &ApplicationCredentialRef,
        secret: Zeroizing<String>,
    ) -> Result<Login> {
        let cache = self.db.cache();
        let found = match credential {
            ApplicationCredentialRef::Id(id) => cache.get::<ApplicationCredential>(id),
            ApplicationCredentialRef::Name(user, name) => find_user(cache, user).and_then(|user| {
                cache.find::<ApplicationCredential>(|row| row.user_id == user.row.id && row.name == *name)
            }),
        };
        // Who may not log in fails as if there were no such secret, and no sooner.
        let may = |found: &Found<ApplicationCredential>| -> Result<()> {
            application_credential(cache, &found.row.id)?;
            let user = enabled_user(cache, &found.row.user_id)?;
            enabled_domain(cache, &user.row.domain_id).map(drop)
        };
        let hash =
            found.as_ref().filter(|found| may(found).is_ok()).map(|found| found.row.secret_hash.clone());
        let holds = self.passwords.verify(secret, hash).await?;
        let found = found.filter(|_| holds).ok_or_else(refused)?;
        let found = application_credential(self.db.cache(), &found.row.id)?;
        let user = enabled_user(self.db.cache(), &found.row.user_id)?;
        let via = Via::ApplicationCredential(found.row.id.clone());
        let mut login = self.login(user, Method::ApplicationCredential, via)?;
        if let Some(until) = found.row.expires_at {
            login.expires_at = login.expires_at.min(until);
        }
        Ok(login)
    }

    pub(super) fn login(&self, user: Found<User>, method: Method, via: Via) -> Result<Login> {
        enabled_domain(self.db.cache(), &user.row.domain_id)?;
        let (expires_at, methods) = (self.expiry()?, vec![method]);
        Ok(Login { user, methods, expires_at, parent: None, via, handed_on: false })
    }

    /// A user whose password this is, who may log in, and is not locked out. Failures are counted where the rules say
    /// so, and all cost the same.
    pub(crate) async fn proved_by_password(
        &self,
        user: Option<Found<User>>,
        password: Zeroizing<String>,
    ) -> Result<Found<User>> {
        let rules = &self.settings.identity.security;
        let locked = user.as_ref().is_some_and(|user| rules.locks_out(&user.row));
        // Whoever may not log in fails as nobody does: the right password takes as long as a wrong one.
        let may = |user: &Found<User>| {
            user.row.enabled && !locked && enabled_domain(self.db.cache(), &user.row.domain_id).is_ok()
        };
        let hash = user.as_ref().filter(|user| may(user)).and_then(|user| user.row.password_hash.clone());
        let holds = self.passwords.verify(password, hash).await?;
        let user = user.ok_or_else(refused)?;
        if locked {
            return Err(Error::Unauthorized(format!("The account is locked for user: {}.", user.row.id)));
        }
        if !holds {
            if rules.lockout_failure_attempts.is_some() {
                self.count_failure(&user.row.id).await?;
            }
            return Err(refused());
        }
        if !user.row.enabled {
            return Err(refused());
        }
        if user.row.failures.is_some() {
            self.change_failures(&user.row.id, |_| None).await?;
        }
        Ok(user)
    }

    /// At start: takes note of the hashes that users have.
    pub(crate) fn passwords_known(&self) {
        for user in self.db.cache().list::<User>() {
            user.row.password_hash.as_deref().inspect(|hash| self.passwords.has(hash));
        }
    }

    async fn count_failure(&self, id: &str) -> Result<()> {
        let attempts = self.settings.identity.security.lockout_failure_attempts.unwrap_or(u32::MAX);
        let lockout = SignedDuration::from_secs(self.settings.identity.security.lockout_duration_s.into());
        self.change_failures(id, |before| {
            let now = Timestamp::now();
            // A lockout that is over is served: counting begins anew.
            let before = before.filter(|before| {
                before.count < attempts || before.at.checked_add(lockout).is_ok_and(|until| now < until)
            });
            Some(Failures { count: before.map_or(1, |before| before.count.saturating_add(1)), at: now })
        })
        .await
    }

    async fn change_failures(
        &self,
        id: &str,
        change: impl Fn(Option<Failures>) -> Option<Failures>,
    ) -> Result<()> {
        self.db
            .transact(|cache| {
                let Some(stored): Option<Arc<Stored<User>>> = cache.get(id) else { return Ok(Txn::new()) };
                let row = User { failures: change(stored.row.failures), ..stored.row.clone() };
                Ok(Txn::new().update(&stored, &row))
            })
            .await
    }
}
