//! OAuth 1.0a: consumers, what they ask for, and what users grant them (Identity API v3, OS-OAUTH1).

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use ring::hmac;
use ring::rand::{SecureRandom, SystemRandom};
use zeroize::Zeroizing;

use super::application_credential::RoleRef;
use super::credential::random_secret;
use super::{Entity, Removal, Rules, check_extra, check_text, rules};
use crate::Control;
use crate::caller::{Caller, Delegation};
use crate::error::{Error, Result};
use crate::model::identity::{AssignmentTarget, Project, Role, User};
use crate::model::oauth::{OauthAccessToken, OauthConsumer, OauthGrant, OauthRequestToken};
use crate::model::random_hex_id;
use crate::policy::{Default, Target, require};
use crate::service::auth::oauth::OauthRequest;
use crate::service::identity::assignment::effective_roles;
use crate::store::{Cache, Row, Stored, Txn};

/// For how long a request waits for its user (Keystone's `[oauth1] request_token_duration`).
const REQUEST_KEPT: SignedDuration = SignedDuration::from_hours(8);
/// For how long a right holds (Keystone's `[oauth1] access_token_duration`).
const ACCESS_KEPT: SignedDuration = SignedDuration::from_hours(24);
/// The most consumers: programs that somebody wrote.
const CONSUMERS_MAX: usize = 1000;
/// The most requests of one consumer that wait, and the most rights that one user granted.
const OF_ONE_MAX: usize = 1000;
/// How many rows that are over one new one clears away.
const CLEARED_MAX: usize = 32;
/// What a user reads out to a program: letters and digits that nobody takes for another.
const VERIFIER_LETTERS: &[u8; 32] = b"abcdefghijkmnpqrstuvwxyz23456789";
/// How many of them.
const VERIFIER_LETTERS_COUNT: usize = 8;

impl Entity for OauthConsumer {
    const NOUN: &'static str = "Consumer";
    const RULES: Rules = rules!("consumer", "consumers");

    fn admit(&self, cache: &Cache, before: Option<&Self>) -> Result<()> {
        if before.is_none() && cache.list::<Self>().len() >= CONSUMERS_MAX {
            return Err(Error::Forbidden { action: "more OAuth consumers than the limit" });
        }
        check_text("description", self.description.as_deref().unwrap_or_default())?;
        check_extra(&self.extra)
    }

    fn dependents(&self, removal: &mut Removal<'_>) {
        removal.rows::<OauthRequestToken>(|row| row.consumer_id == self.id);
        removal.rows::<OauthAccessToken>(|row| row.consumer_id == self.id);
    }
}

/// A new token of either kind.
#[derive(Debug)]
pub struct NewOauthToken {
    /// Its id.
    pub id: String,
    /// Its secret.
    pub secret: Zeroizing<String>,
    /// Until when it holds.
    pub expires_at: Timestamp,
}

/// The one answer to every signature that does not hold, whatever is wrong.
pub(crate) fn refused() -> Error {
    Error::Unauthorized("Invalid signature".to_owned())
}

impl Control {
    /// Makes a consumer; its secret, which is shown this once.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`.
    pub async fn oauth_consumer_create(
        &self,
        caller: &Caller,
        mut row: OauthConsumer,
    ) -> Result<(Arc<Stored<OauthConsumer>>, Zeroizing<String>)> {
        let secret = random_secret();
        (row.id, row.sealed) = (random_hex_id(), self.seal(&secret)?);
        Ok((self.entity_create(caller, row).await?, secret))
    }

    /// What a consumer asks a user of a project for.
    ///
    /// # Errors
    /// `Unauthorized` for a signature that does not hold; `NotFound` for the project.
    pub async fn oauth_request_token(
        &self,
        request: &OauthRequest,
        project_id: &str,
    ) -> Result<NewOauthToken> {
        self.db.caught_up().await?;
        let consumer_id = self.oauth_signed(request, |_| Ok(Zeroizing::default()))?;
        let made = self.new_token(REQUEST_KEPT);
        let row = OauthRequestToken {
            id: made.id.clone(),
            consumer_id: consumer_id.clone(),
            project_id: project_id.to_owned(),
            sealed: self.seal(&made.secret)?,
            grant: None,
            expires_at: made.expires_at,
        };
        self.db
            .transact(|cache| {
                let txn = super::require::<Project>(cache, Txn::new().create(&row), project_id)?;
                let txn = super::require::<OauthConsumer>(cache, txn, &consumer_id).map_err(|_| refused())?;
                let now = Timestamp::now();
                let waiting = cache.filter::<OauthRequestToken>(|row| {
                    row.consumer_id == consumer_id && row.expires_at > now
                });
                if waiting.len() >= OF_ONE_MAX {
                    return Err(Error::Forbidden { action: "more requests of one consumer than the limit" });
                }
                Ok(cleared(cache, txn, now))
            })
            .await?;
        Ok(made)
    }

    /// Grants what a consumer asks for: the word that the consumer is to be told.
    ///
    /// # Errors
    /// `NotFound`; `Unauthorized` where the request is over, or the caller does not have the roles; `Forbidden` by the
    /// policy, and by a token that was handed on itself.
    pub async fn oauth_authorize(&self, caller: &Caller, id: &str, roles: &[RoleRef]) -> Result<String> {
        let own = [("user_id", caller.user_id.as_str())];
        require("identity:authorize_request_token", Default::Admin, caller, &Target::of(&own))?;
        if caller.delegation != Delegation::None {
            return Err(Error::Forbidden { action: "a grant by a token that was handed on" });
        }
        self.db.caught_up().await?;
        let mut ids = roles.iter().map(|role| self.role_id(role)).collect::<Result<Vec<_>>>()?;
        ids.sort_unstable();
        ids.dedup();
        let verifier = verifier()?;
        let grant = OauthGrant {
            user_id: caller.user_id.clone(),
            roles: ids,
            sealed_verifier: self.seal(&verifier)?,
        };
        self.db
            .transact(|cache| {
                let stored = waiting(cache, id)?;
                let held = held(cache, &grant.user_id, &stored.row.project_id);
                if grant.roles.is_empty() || grant.roles.iter().any(|role| !held.contains(role)) {
                    let message = "authorizing user does not have role required";
                    return Err(Error::Unauthorized(message.to_owned()));
                }
                let row = OauthRequestToken { grant: Some(grant.clone()), ..stored.row.clone() };
                super::require::<User>(cache, Txn::new().update(&stored, &row), &grant.user_id)
            })
            .await?;
        Ok(verifier.to_string())
    }

    /// The right that a consumer was granted, for the word that its user told it. The request is used up.
    ///
    /// # Errors
    /// `Unauthorized` for a signature, a word or a request that does not hold.
    pub async fn oauth_access_token(&self, request: &OauthRequest) -> Result<NewOauthToken> {
        self.db.caught_up().await?;
        let signed = request.read()?;
        let (id, verifier) = (signed.must("oauth_token")?.to_owned(), signed.must("oauth_verifier")?);
        let asked = self.db.get::<OauthRequestToken>(&id);
        let consumer_id = self.oauth_signed(request, |consumer| match &asked {
            Some(asked) if asked.row.consumer_id == consumer => self.unseal(&asked.row.sealed),
            _ => Err(refused()),
        })?;
        let made = self.new_token(ACCESS_KEPT);
        let sealed = self.seal(&made.secret)?;
        self.db
            .transact(|cache| {
                let stored = waiting(cache, &id)?;
                let Some(grant) = &stored.row.grant else {
                    let message = "Request Token does not have an authorizing user id.";
                    return Err(Error::Unauthorized(message.to_owned()));
                };
                if !same(verifier, &self.unseal(&grant.sealed_verifier)?) {
                    let message = "Provided verifier does not match stored verifier";
                    return Err(Error::Unauthorized(message.to_owned()));
                }
                let row = OauthAccessToken {
                    id: made.id.clone(),
                    consumer_id: consumer_id.clone(),
                    user_id: grant.user_id.clone(),
                    project_id: stored.row.project_id.clone(),
                    roles: grant.roles.clone(),
                    sealed: sealed.clone(),
                    expires_at: made.expires_at,
                };
                if cache.filter::<OauthAccessToken>(|own| own.user_id == row.user_id).len() >= OF_ONE_MAX {
                    return Err(Error::Forbidden { action: "more grants of one user than the limit" });
                }
                let txn = Txn::new().delete(&stored).create(&row);
                let txn = super::require::<User>(cache, txn, &row.user_id).map_err(|_| refused())?;
                let txn = super::require::<Project>(cache, txn, &row.project_id).map_err(|_| refused())?;
                let txn = super::require::<OauthConsumer>(cache, txn, &consumer_id).map_err(|_| refused())?;
                Ok(cleared(cache, txn, Timestamp::now()))
            })
            .await?;
        Ok(made)
    }

    /// The right that a request was signed by.
    ///
    /// # Errors
    /// `Unauthorized` unless it holds.
    pub(crate) fn oauth_login(&self, request: &OauthRequest) -> Result<Arc<Stored<OauthAccessToken>>> {
        let signed = request.read()?;
        let found = self.db.get::<OauthAccessToken>(signed.must("oauth_token")?);
        self.oauth_signed(request, |consumer| match &found {
            Some(found) if found.row.consumer_id == consumer => self.unseal(&found.row.sealed),
            _ => Err(refused()),
        })?;
        let found = found.filter(|found| found.row.expires_at > Timestamp::now());
        found.ok_or_else(|| Error::Unauthorized("Access token is expired".to_owned()))
    }

    /// The consumer whose secret signed a request, together with its token's. Whoever is not there costs as much as a
    /// signature that does not hold.
    fn oauth_signed(
        &self,
        request: &OauthRequest,
        token_secret: impl FnOnce(&str) -> Result<Zeroizing<String>>,
    ) -> Result<String> {
        let signed = request.read()?;
        let id = signed.must("oauth_consumer_key")?;
        let consumer = self.db.get::<OauthConsumer>(id);
        let secret = consumer.as_ref().map(|consumer| self.unseal(&consumer.row.sealed)).transpose()?;
        let known = secret.is_some();
        let token = token_secret(id);
        let holds = signed.is_of(
            &secret.unwrap_or_else(random_secret),
            token.as_ref().map_or("", |secret| secret.as_str()),
        );
        if !(holds && known && token.is_ok() && self.nonces.first(&signed)) {
            return Err(refused());
        }
        Ok(id.to_owned())
    }

    /// What a user granted.
    ///
    /// # Errors
    /// `Forbidden`.
    pub async fn oauth_access_list(
        &self,
        caller: &Caller,
        user_id: &str,
    ) -> Result<Vec<Arc<Stored<OauthAccessToken>>>> {
        may_see(caller, user_id, "identity:list_access_tokens")?;
        self.db.caught_up().await?;
        self.stored::<User>(user_id, User::NOUN)?;
        Ok(self.db.cache().filter::<OauthAccessToken>(|row| row.user_id == user_id))
    }

    /// One right that a user granted, by the rule of what is asked of it.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn oauth_access(
        &self,
        caller: &Caller,
        user_id: &str,
        id: &str,
        rule: &'static str,
    ) -> Result<Arc<Stored<OauthAccessToken>>> {
        may_see(caller, user_id, rule)?;
        self.db.caught_up().await?;
        let found = self.db.get::<OauthAccessToken>(id).filter(|found| found.row.user_id == user_id);
        found.ok_or_else(|| Error::not_found("Access token", id))
    }

    /// Takes a right back; tokens by it hold no longer.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn oauth_access_delete(&self, caller: &Caller, user_id: &str, id: &str) -> Result<()> {
        self.oauth_access(caller, user_id, id, "identity:delete_access_token").await?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<OauthAccessToken>(id);
                let stored = stored.ok_or_else(|| Error::not_found("Access token", id))?;
                Ok(Txn::new().delete(&stored))
            })
            .await
    }

    fn new_token(&self, kept: SignedDuration) -> NewOauthToken {
        let now = Timestamp::now();
        let expires_at = now.checked_add(kept).unwrap_or(now);
        NewOauthToken { id: random_hex_id(), secret: random_secret(), expires_at }
    }

    fn seal(&self, secret: &str) -> Result<String> {
        let sealed = self.tokens.master().seal(secret.as_bytes());
        sealed.ok_or_else(|| Error::Unavailable("no random bytes".to_owned()))
    }

    fn unseal(&self, sealed: &str) -> Result<Zeroizing<String>> {
        let bytes = self.tokens.master().open(sealed);
        let text = bytes.and_then(|bytes| String::from_utf8(bytes.to_vec()).ok());
        text.map(Zeroizing::new)
            .ok_or_else(|| Error::Unavailable("the secret was sealed under another master key".to_owned()))
    }
}

fn may_see(caller: &Caller, user_id: &str, rule: &'static str) -> Result<()> {
    if caller.delegation != Delegation::None {
        return Err(Error::Forbidden { action: "a look at grants by a token that was handed on" });
    }
    require(rule, Default::Admin, caller, &Target::of(&[("user_id", user_id)]))
}

/// A request that its user may still grant, and its consumer use.
fn waiting(cache: &Cache, id: &str) -> Result<Arc<Stored<OauthRequestToken>>> {
    let stored = cache.get::<OauthRequestToken>(id).ok_or_else(|| Error::not_found("Request token", id))?;
    if stored.row.expires_at <= Timestamp::now() {
        return Err(Error::Unauthorized("Request token is expired".to_owned()));
    }
    Ok(stored)
}

fn held(cache: &Cache, user_id: &str, project_id: &str) -> Vec<String> {
    let target = AssignmentTarget::Project(project_id.to_owned());
    effective_roles(cache, user_id, &target).iter().map(|role| role.row.id.clone()).collect()
}

/// The roles that a right is good for, as long as its user has all of them.
pub(crate) fn granted_roles(cache: &Cache, granted: &OauthAccessToken) -> Option<Vec<Arc<Stored<Role>>>> {
    let target = AssignmentTarget::Project(granted.project_id.clone());
    let held = effective_roles(cache, &granted.user_id, &target);
    let find = |id: &String| held.iter().find(|role| role.row.id == *id).cloned();
    granted.roles.iter().map(find).collect()
}

/// Takes away some of what is over.
fn cleared(cache: &Cache, txn: Txn, now: Timestamp) -> Txn {
    let requests = cache.filter::<OauthRequestToken>(|row| row.expires_at <= now);
    let rights = cache.filter::<OauthAccessToken>(|row| row.expires_at <= now);
    let key = |kind: &str, id: &str| format!("{kind}/{id}");
    let requests = requests.iter().map(|stored| key(OauthRequestToken::KIND, &stored.row.id));
    let rights = rights.iter().map(|stored| key(OauthAccessToken::KIND, &stored.row.id));
    requests.chain(rights).take(CLEARED_MAX).fold(txn, Txn::release)
}

fn verifier() -> Result<Zeroizing<String>> {
    let mut bytes = Zeroizing::new([0; VERIFIER_LETTERS_COUNT]);
    let random = SystemRandom::new().fill(bytes.as_mut_slice());
    random.map_err(|_| Error::Unavailable("no random bytes".to_owned()))?;
    let letter = |byte: &u8| char::from(VERIFIER_LETTERS[usize::from(*byte) % VERIFIER_LETTERS.len()]);
    Ok(Zeroizing::new(bytes.iter().map(letter).collect()))
}

/// Whether two words are the same, in a time that does not tell where they differ.
fn same(one: &str, other: &str) -> bool {
    let Ok(key) = hmac::Key::generate(hmac::HMAC_SHA256, &SystemRandom::new()) else { return false };
    let code = hmac::sign(&key, other.as_bytes());
    hmac::verify(&key, one.as_bytes(), code.as_ref()).is_ok()
}
