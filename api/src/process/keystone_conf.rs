//! `wisp up --identity FILE`: the sections `[token]` and `[security_compliance]` of a `keystone.conf`. Other sections are
//! passed over, since one file may serve both; an option of these sections that is not known is an error, since a rule
//! that nobody keeps would be worse than none.

use anyhow::{Context, anyhow, bail};
use configparser::ini::Ini;
use control::settings::{IdentitySettings, SecurityCompliance, TokenProvider};
use regex::Regex;

/// The longest file in bytes: Keystone's own sample is a fifth of it.
pub(crate) const FILE_BYTES_MAX: u64 = 1 << 20;
/// The longest life of a token in seconds: the events that end tokens are kept for so long.
const TOKEN_LIFETIME_MAX_S: u32 = 7 * 24 * 3600;

/// What a file says.
#[derive(Debug, Clone, Default)]
pub(crate) struct KeystoneConf {
    /// How the identity service behaves.
    pub(crate) identity: IdentitySettings,
    /// `[token] expiration`, in seconds.
    pub(crate) token_lifetime_s: Option<u32>,
}

impl KeystoneConf {
    /// Reads the text of a file.
    ///
    /// # Errors
    /// Which option is wrong, and why.
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        let mut file = Ini::new();
        // A rule may hold what begins a remark elsewhere.
        file.set_inline_comment_symbols(Some(&[]));
        let sections = file.read(text.to_owned()).map_err(|what| anyhow!(what))?;
        let mut conf = Self::default();
        for (section, options) in &sections {
            for (key, value) in options {
                let value = value.as_deref().unwrap_or_default().trim();
                let said = || format!("[{section}] {key} = {value}");
                match section.as_str() {
                    "token" => conf.token(key, value).with_context(said)?,
                    "security_compliance" => {
                        security(&mut conf.identity.security, key, value).with_context(said)?;
                    }
                    _ => {}
                }
            }
        }
        Ok(conf)
    }

    fn token(&mut self, key: &str, value: &str) -> anyhow::Result<()> {
        match key {
            "provider" => {
                self.identity.token_provider = match value {
                    "fernet" => TokenProvider::Fernet,
                    "jws" => TokenProvider::Jws,
                    "uuid" => TokenProvider::Uuid,
                    _ => bail!("a provider is fernet, jws or uuid"),
                }
            }
            "expiration" => {
                let lifetime: u32 = number(value)?;
                if !(1..=TOKEN_LIFETIME_MAX_S).contains(&lifetime) {
                    bail!("a token lives for 1 to {TOKEN_LIFETIME_MAX_S} seconds");
                }
                self.token_lifetime_s = Some(lifetime);
            }
            _ => bail!("this option is not known; there are provider and expiration"),
        }
        Ok(())
    }
}

fn security(rules: &mut SecurityCompliance, key: &str, value: &str) -> anyhow::Result<()> {
    match key {
        "lockout_failure_attempts" => rules.lockout_failure_attempts = Some(positive(value)?),
        "lockout_duration" => rules.lockout_duration_s = positive(value)?,
        "password_expires_days" => rules.password_expires_days = Some(positive(value)?),
        "unique_last_password_count" => rules.unique_last_password_count = number(value)?,
        "minimum_password_age" => rules.minimum_password_age_days = number(value)?,
        "password_regex" => rules.password_regex = Some(Regex::new(value)?),
        "password_regex_description" => value.clone_into(&mut rules.password_regex_description),
        "change_password_upon_first_use" => {
            // The words of oslo.config's `types.Boolean`, which has no single letters.
            rules.change_password_upon_first_use = match value.to_ascii_lowercase().as_str() {
                "true" | "1" | "yes" | "on" => true,
                "false" | "0" | "no" | "off" => false,
                _ => bail!("it is neither true nor false"),
            }
        }
        _ => bail!("this option is not known here"),
    }
    Ok(())
}

fn number<T: std::str::FromStr>(value: &str) -> anyhow::Result<T> {
    value.parse().ok().context("it is no whole number, or too large")
}

fn positive(value: &str) -> anyhow::Result<u32> {
    match number(value)? {
        0 => bail!("it is at least 1"),
        number => Ok(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keystones_own_form_is_read() {
        let text = "[DEFAULT]\ndebug = true\n[token]\nprovider = jws\nexpiration = 600\n\n[security_compliance]\n\
                    lockout_failure_attempts = 3\npassword_regex = ^(?:.*\\d).{7,}$\n\
                    password_regex_description = seven with a digit\n";
        let conf = KeystoneConf::parse(text).unwrap();
        assert_eq!((conf.identity.token_provider, conf.token_lifetime_s), (TokenProvider::Jws, Some(600)));
        let rules = conf.identity.security;
        assert_eq!(rules.lockout_failure_attempts, Some(3));
        assert!(rules.check_password("7geheime").is_ok() && rules.check_password("geheim").is_err());
        assert!(KeystoneConf::parse("").is_ok());
    }

    #[test]
    fn what_nobody_would_keep_is_refused_and_named() {
        for text in [
            "[security_compliance]\npassword_rgex = x",
            "[security_compliance]\npassword_regex = (",
            "[security_compliance]\nlockout_failure_attempts = 0",
            "[token]\nprovider = pki",
            "[token]\nexpiration = 99999999999",
        ] {
            let error = format!("{:#}", KeystoneConf::parse(text).unwrap_err());
            assert!(error.starts_with('['), "{error}");
        }
    }
}
