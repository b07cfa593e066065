//! How the identity service behaves where clouds differ, in the words of Keystone's configuration.

use jiff::{SignedDuration, Timestamp};
use regex::Regex;

use crate::error::{Error, Result};
use crate::model::identity::User;

/// What kind of tokens is made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum TokenProvider {
    /// Encrypted; nothing is stored.
    #[default]
    Fernet,
    /// Signed and readable by everyone; nothing is stored.
    Jws,
    /// A random word; all it stands for is stored.
    Uuid,
}

/// Keystone's `[token]` and `[security_compliance]`.
#[derive(Debug, Clone, Default)]
pub struct IdentitySettings {
    /// `[token] provider`.
    pub token_provider: TokenProvider,
    /// `[security_compliance]`.
    pub security: SecurityCompliance,
}

/// Keystone's `[security_compliance]`; the defaults are Keystone's, which ask for nothing.
#[derive(Debug, Clone)]
pub struct SecurityCompliance {
    /// After so many failed logins a user is locked out; never if absent.
    pub lockout_failure_attempts: Option<u32>,
    /// For so many seconds.
    pub lockout_duration_s: u32,
    /// A password is good for so many days; for ever if absent.
    pub password_expires_days: Option<u32>,
    /// A new password differs from so many before, the present one included.
    pub unique_last_password_count: usize,
    /// A password is kept for so many days before its user may change it.
    pub minimum_password_age_days: u32,
    /// What a password has to match.
    pub password_regex: Option<Regex>,
    /// The same in words for its user.
    pub password_regex_description: String,
    /// A password that an administrator set is only good for setting another.
    pub change_password_upon_first_use: bool,
}

impl Default for SecurityCompliance {
    fn default() -> Self {
        Self {
            lockout_failure_attempts: None,
            lockout_duration_s: 1800,
            password_expires_days: None,
            unique_last_password_count: 0,
            minimum_password_age_days: 0,
            password_regex: None,
            password_regex_description: String::new(),
            change_password_upon_first_use: false,
        }
    }
}

impl SecurityCompliance {
    /// Whether a new password matches what is asked for.
    ///
    /// # Errors
    /// `Invalid`, with the description.
    pub fn check_password(&self, password: &str) -> Result<()> {
        match &self.password_regex {
            Some(regex) if !regex.is_match(password) => Err(Error::invalid(
                "PasswordRequirementsValidationError",
                format!(
                    "The password does not match the requirements: {}.",
                    self.password_regex_description.trim_end_matches('.')
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Whether a user's password is old enough for its user to change it.
    ///
    /// # Errors
    /// `Invalid`, saying from when on.
    pub fn check_age(&self, user: &User) -> Result<()> {
        let (Some(set), false) = (user.password_at, user.password_by_other) else { return Ok(()) };
        let age = SignedDuration::from_hours(24 * i64::from(self.minimum_password_age_days));
        match set.checked_add(age) {
            Ok(from) if Timestamp::now() < from => Err(Error::invalid(
                "PasswordAgeValidationError",
                format!(
                    "You cannot change your password at this time due to the minimum password age. Once you change \
                     your password, it must be used for {} day(s) before it can be changed. Please try again after \
                     {from}.",
                    self.minimum_password_age_days
                ),
            )),
            _ => Ok(()),
        }
    }

    /// Whether a user is locked out now.
    pub fn locks_out(&self, user: &User) -> bool {
        let (Some(attempts), Some(failures)) = (self.lockout_failure_attempts, user.failures) else {
            return false;
        };
        let lasts = SignedDuration::from_secs(self.lockout_duration_s.into());
        failures.count >= attempts
            && !user.option("ignore_lockout_failure_attempts")
            && failures.at.checked_add(lasts).is_ok_and(|until| Timestamp::now() < until)
    }
}
