//! Users and their passwords. Everyone may see themselves and change their own password.

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};
use zeroize::Zeroizing;

use super::{Entity, NAME_CHARACTERS_MAX, Removal, Rules, check_extra, check_name, invalid, require, rules};
use crate::Control;
use crate::caller::{Caller, Scope};
use crate::error::{Error, Result};
use crate::model::delegation::{AccessRule, ApplicationCredential, StoredCredential, Trust};
use crate::model::identity::{Assignment, Domain, Extra, GroupMember, User};
use crate::model::oauth::{OauthAccessToken, OauthRequestToken};
use crate::service::auth::{refused, revocation};
use crate::settings::SecurityCompliance;
use crate::store::{Cache, Stored, Txn};

/// The most hashes of earlier passwords that are kept, whatever the rules say: each costs a second's fraction to
/// compare with.
pub const PASSWORD_HISTORY_MAX: usize = 24;
/// The most rules of several methods, and methods in one, of a user.
const FACTORS_MAX: usize = 16;

impl Entity for User {
    const NOUN: &'static str = "User";
    const RULES: Rules = rules!("user", "users");

    fn listable(caller: &Caller) -> bool {
        caller.reads_system() || matches!(caller.scope, Scope::Domain(_))
    }

    fn readable(&self, caller: &Caller) -> bool {
        caller.reads_domain(&self.domain_id) || caller.user_id == self.id
    }

    fn writable(&self, caller: &Caller) -> bool {
        caller.manages_domain(&self.domain_id)
    }

    fn keys(&self) -> Vec<(&'static str, &str)> {
        vec![("user_id", &self.id), ("domain_id", &self.domain_id)]
    }

    fn unique(&self) -> Vec<String> {
        vec![user_name_key(&self.domain_id, &self.name)]
    }

    fn label(&self) -> &str {
        &self.name
    }

    fn admit(&self, _: &Cache, before: Option<&Self>) -> Result<()> {
        check_name("user", &self.name, NAME_CHARACTERS_MAX)?;
        check_user_options(&self.options)?;
        check_extra(&self.extra)?;
        if before.is_some_and(|before| before.domain_id != self.domain_id) {
            return Err(invalid("Cannot change Domain ID"));
        }
        Ok(())
    }

    fn bind(&self, cache: &Cache, before: Option<&Self>, txn: Txn) -> Result<Txn> {
        Ok(match before {
            None => require::<Domain>(cache, txn, &self.domain_id)?,
            Some(before) if before.tokens_from != self.tokens_from => txn.put(&revocation("user", &self.id)),
            Some(_) => txn,
        })
    }

    fn dependents(&self, removal: &mut Removal<'_>) {
        let id = self.id.as_str();
        removal.rows::<Assignment>(|row| row.actor_id == id);
        removal.rows::<GroupMember>(|row| row.user_id == id);
        removal.entities::<ApplicationCredential>(|row| row.user_id == id);
        removal.entities::<StoredCredential>(|row| row.user_id == id);
        removal.entities::<AccessRule>(|row| row.user_id == id);
        removal.rows::<OauthAccessToken>(|row| row.user_id == id);
        removal.rows::<OauthRequestToken>(|row| row.grant.as_ref().is_some_and(|grant| grant.user_id == id));
        removal.entities::<Trust>(|row| row.trustor_user_id == id || row.trustee_user_id == id);
    }
}

impl User {
    /// Whether a switch of the user's is on.
    pub fn option(&self, name: &str) -> bool {
        self.options.get(name).and_then(serde_json::Value::as_bool).unwrap_or(false)
    }

    /// When the password stops being good, by these rules.
    pub fn password_expires_at(&self, rules: &SecurityCompliance) -> Option<Timestamp> {
        let set = self.password_at?;
        self.password_hash.as_ref()?;
        let first_use = rules.change_password_upon_first_use
            && self.password_by_other
            && !self.option("ignore_change_password_upon_first_use");
        if first_use {
            return Some(set);
        }
        let days = rules.password_expires_days.filter(|_| !self.option("ignore_password_expiry"))?;
        set.checked_add(SignedDuration::from_hours(24 * i64::from(days))).ok()
    }

    /// Takes a new password, whose hash this is: tokens of before do not hold any more.
    fn take_password(&mut self, hash: String, by_other: bool) {
        if let Some(before) = self.password_hash.replace(hash) {
            self.password_history.insert(0, before);
            self.password_history.truncate(PASSWORD_HISTORY_MAX);
            self.tokens_from = Some(Timestamp::now());
        }
        self.password_at = Some(Timestamp::now());
        self.password_by_other = by_other;
        self.failures = None;
    }
}

impl Control {
    /// Makes a user.
    pub async fn user_create(
        &self,
        caller: &Caller,
        mut user: User,
        password: Option<Zeroizing<String>>,
    ) -> Result<Arc<Stored<User>>> {
        if !user.writable(caller) {
            return Err(Error::Forbidden { action: User::RULES.create });
        }
        user.admit(self.db.cache(), None)?;
        if let Some(password) = password {
            self.settings.identity.security.check_password(&password)?;
            user.take_password(self.passwords.hash(password).await?, true);
        }
        self.entity_create(caller, user).await
    }

    /// Changes a user. A new password, or taking the right to log in, ends all of the user's tokens.
    pub async fn user_update(
        &self,
        caller: &Caller,
        id: &str,
        change: impl Fn(&mut User) -> Result<()>,
        password: Option<Zeroizing<String>>,
    ) -> Result<Arc<Stored<User>>> {
        let hash = match password {
            None => None,
            Some(password) => {
                // Nobody makes the cloud hash who may not change the user.
                self.db.caught_up().await?;
                let stored = self.stored::<User>(id, User::NOUN)?;
                if !stored.row.writable(caller) {
                    return Err(Error::Forbidden { action: User::RULES.update });
                }
                self.settings.identity.security.check_password(&password)?;
                Some(self.passwords.hash(password).await?)
            }
        };
        let by_other = caller.user_id != id;
        self.entity_update(caller, id, |user: &mut User| {
            let enabled = user.enabled;
            change(user)?;
            if let Some(hash) = &hash {
                user.take_password(hash.clone(), by_other);
            }
            if enabled && !user.enabled {
                user.tokens_from = Some(Timestamp::now());
            }
            if !enabled && user.enabled {
                user.failures = None;
            }
            Ok(())
        })
        .await
    }

    /// Changes a password, knowing the old one; no token is asked for, since an expired password gives none.
    ///
    /// # Errors
    /// `Unauthorized` if the old one is wrong; `Invalid` if the rules do not allow the new one.
    pub async fn user_password(
        &self,
        id: &str,
        original: Zeroizing<String>,
        password: Zeroizing<String>,
    ) -> Result<()> {
        self.db.caught_up().await?;
        let same = *original == *password;
        let user = self.proved_by_password(self.db.get::<User>(id), original).await?;
        if user.row.option("lock_password") {
            return Err(Error::Forbidden { action: "a change of a locked password" });
        }
        let rules = &self.settings.identity.security;
        rules.check_password(&password)?;
        rules.check_age(&user.row)?;
        let kept = rules.unique_last_password_count.min(PASSWORD_HISTORY_MAX);
        if kept > 0 {
            let message = format!("The new password cannot be identical to the last {kept} passwords.");
            let mut before = user.row.password_history.iter().take(kept.saturating_sub(1));
            if same {
                return Err(invalid(message));
            }
            for hash in &mut before {
                if self.passwords.verify(password.clone(), Some(hash.clone())).await? {
                    return Err(invalid(message));
                }
            }
        }
        let hash = self.passwords.hash(password).await?;
        let unchanged = user.row.password_hash.clone();
        let change = |row: &mut User| {
            // Another change came between: what was proved is not so any more.
            if row.password_hash != unchanged {
                return Err(refused());
            }
            row.take_password(hash.clone(), false);
            Ok(())
        };
        self.change_entity(id, change, |_| Ok(())).await
    }

    /// When a user's password stops being good.
    pub fn password_expires_at(&self, user: &User) -> Option<Timestamp> {
        user.password_expires_at(&self.settings.identity.security)
    }
}

/// Keystone's switches of users, each with its type.
fn check_user_options(options: &Extra) -> Result<()> {
    for (key, value) in options {
        let fits = match key.as_str() {
            "ignore_change_password_upon_first_use"
            | "ignore_password_expiry"
            | "ignore_lockout_failure_attempts"
            | "ignore_user_inactivity"
            | "lock_password"
            | "multi_factor_auth_enabled" => value.is_boolean(),
            "multi_factor_auth_rules" => value.as_array().is_some_and(|rules| {
                rules.len() <= FACTORS_MAX
                    && rules.iter().all(|rule| {
                        rule.as_array().is_some_and(|methods| {
                            methods.len() <= FACTORS_MAX && methods.iter().all(serde_json::Value::is_string)
                        })
                    })
            }),
            _ => false,
        };
        if !fits {
            return Err(invalid(format!("the option {key} is none, or its value is not one of it")));
        }
    }
    Ok(())
}

pub(crate) fn user_name_key(domain_id: &str, name: &str) -> String {
    format!("user_name/{domain_id}/{name}")
}
