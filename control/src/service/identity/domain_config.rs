//! The configuration of single domains (Identity API v3: domain configuration): which driver a domain's users shall come
//! from. It is kept and shown; no driver but the cloud's own is here, so none is chosen by it. What is sensitive is sealed
//! under the master key and never shown.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::{TEXT_CHARACTERS_MAX, invalid};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::identity::{Domain, DomainConfig};
use crate::policy::{Default, Target, require};
use crate::service::identity::Entity;
use crate::store::Txn;

/// Values by option.
pub type Options = BTreeMap<String, Value>;
/// Options by group.
pub type Config = BTreeMap<String, Options>;

/// The group that everybody may read: what passwords have to be like.
const PASSWORDS: &str = "security_compliance";
/// The most members of a value that is a list.
const MEMBERS_MAX: usize = 64;
/// The options that are never shown.
const SENSITIVE: [(&str, &str); 1] = [("ldap", "password")];

/// What may be configured, with what holds for a domain that says nothing.
fn defaults() -> Config {
    let identity = [("driver", json!("sql")), ("list_limit", Value::Null)];
    let ldap = [
        ("url", json!("ldap://localhost")),
        ("user", Value::Null),
        ("suffix", json!("cn=example,cn=com")),
        ("query_scope", json!("one")),
        ("page_size", json!(0)),
        ("alias_dereferencing", json!("default")),
        ("debug_level", Value::Null),
        ("chase_referrals", Value::Null),
        ("user_tree_dn", Value::Null),
        ("user_filter", Value::Null),
        ("user_objectclass", json!("inetOrgPerson")),
        ("user_id_attribute", json!("cn")),
        ("user_name_attribute", json!("sn")),
        ("user_mail_attribute", json!("mail")),
        ("user_description_attribute", json!("description")),
        ("user_pass_attribute", json!("userPassword")),
        ("user_enabled_attribute", json!("enabled")),
        ("user_enabled_invert", json!(false)),
        ("user_enabled_mask", json!(0)),
        ("user_enabled_default", json!("True")),
        ("user_attribute_ignore", json!(["default_project_id"])),
        ("user_default_project_id_attribute", Value::Null),
        ("user_enabled_emulation", json!(false)),
        ("user_enabled_emulation_dn", Value::Null),
        ("user_enabled_emulation_use_group_config", json!(false)),
        ("user_additional_attribute_mapping", json!([])),
        ("group_tree_dn", Value::Null),
        ("group_filter", Value::Null),
        ("group_objectclass", json!("groupOfNames")),
        ("group_id_attribute", json!("cn")),
        ("group_name_attribute", json!("ou")),
        ("group_members_are_ids", json!(false)),
        ("group_member_attribute", json!("member")),
        ("group_desc_attribute", json!("description")),
        ("group_attribute_ignore", json!([])),
        ("group_additional_attribute_mapping", json!([])),
        ("tls_cacertfile", Value::Null),
        ("tls_cacertdir", Value::Null),
        ("use_tls", json!(false)),
        ("tls_req_cert", json!("demand")),
        ("use_pool", json!(true)),
        ("pool_size", json!(10)),
        ("pool_retry_max", json!(3)),
        ("pool_retry_delay", json!(0.1)),
        ("pool_connection_timeout", json!(-1)),
        ("pool_connection_lifetime", json!(600)),
        ("use_auth_pool", json!(true)),
        ("auth_pool_size", json!(100)),
        ("auth_pool_connection_lifetime", json!(60)),
    ];
    let named = |options: &[(&str, Value)]| {
        options.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect::<Options>()
    };
    Config::from([("identity".to_owned(), named(&identity)), ("ldap".to_owned(), named(&ldap))])
}

fn is_sensitive(group: &str, option: &str) -> bool {
    SENSITIVE.contains(&(group, option))
}

/// A part of a configuration: all of it, a group, or an option of one.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Part {
    /// The group.
    pub group: Option<String>,
    /// The option; only with a group.
    pub option: Option<String>,
}

/// What a part holds.
#[derive(Debug, Clone, PartialEq)]
pub enum PartOf {
    /// Groups of options.
    Groups(Config),
    /// One option.
    Option(Options),
}

impl Part {
    /// Whether there can be such a part.
    fn check(&self) -> Result<()> {
        let (Some(group), defaults) = (&self.group, defaults()) else { return Ok(()) };
        let Some(known) = defaults.get(group) else {
            return Err(Error::Forbidden { action: "the configuration of a group that is none" });
        };
        match &self.option {
            Some(option) if !known.contains_key(option) && !is_sensitive(group, option) => {
                Err(Error::Forbidden { action: "the configuration of an option that is none" })
            }
            _ => Ok(()),
        }
    }

    /// What of a configuration is in this part; none if nothing is.
    fn of(&self, config: &Config) -> Option<PartOf> {
        match (&self.group, &self.option) {
            (Some(group), Some(option)) => {
                let value = config.get(group)?.get(option)?;
                Some(PartOf::Option(Options::from([(option.clone(), value.clone())])))
            }
            (Some(group), None) => {
                let options = config.get(group).filter(|options| !options.is_empty())?;
                Some(PartOf::Groups(Config::from([(group.clone(), options.clone())])))
            }
            _ => (!config.is_empty()).then(|| PartOf::Groups(config.clone())),
        }
    }

    fn missing(&self, domain_id: &str) -> Error {
        let what = match (&self.group, &self.option) {
            (Some(group), Some(option)) => format!("option {option} in group {group}"),
            (Some(group), None) => format!("group {group}"),
            _ => "any options".to_owned(),
        };
        Error::not_found("Domain configuration", format!("{what} for domain {domain_id}"))
    }
}

/// Whether a whole configuration may be.
fn check(config: &Config) -> Result<()> {
    if config.is_empty() || config.values().any(Options::is_empty) {
        return Err(Error::Forbidden { action: "a domain configuration without options" });
    }
    for (group, options) in config {
        for (option, value) in options {
            Part { group: Some(group.clone()), option: Some(option.clone()) }.check()?;
            let short = |text: &str| text.chars().count() <= TEXT_CHARACTERS_MAX;
            let fits = match value {
                Value::Null | Value::Bool(_) | Value::Number(_) => true,
                Value::String(text) => short(text),
                Value::Array(members) => {
                    members.len() <= MEMBERS_MAX && members.iter().all(|one| one.as_str().is_some_and(short))
                }
                Value::Object(_) => false,
            };
            if !fits {
                return Err(invalid(format!("the value of {option} in group {group} is none of an option")));
            }
        }
    }
    Ok(())
}

impl Control {
    /// Sets a domain's whole configuration; what is shown of it, and whether there was none before.
    ///
    /// # Errors
    /// `Forbidden` by the policy, and for groups and options that are none; `Invalid`; `NotFound`.
    pub async fn domain_config_set(
        &self,
        caller: &Caller,
        id: &str,
        config: &Config,
    ) -> Result<(Config, bool)> {
        require_of("identity:create_domain_config", caller, id)?;
        check(config)?;
        let mut new = true;
        let mut shown = config.clone();
        self.change_config(id, |before| {
            new = before.is_empty();
            Ok(config.clone())
        })
        .await?;
        hide(&mut shown);
        Ok((shown, new))
    }

    /// A part of a domain's configuration, without what is sensitive.
    ///
    /// # Errors
    /// `Forbidden`; `NotFound` where nothing of it is configured.
    pub async fn domain_config(&self, caller: &Caller, id: &str, part: &Part) -> Result<PartOf> {
        if part.group.as_deref() == Some(PASSWORDS) {
            return self.password_rules(caller, id, part);
        }
        let rule = "identity:get_domain_config";
        require(rule, Default::SystemReader, caller, &Target::of(&[("domain_id", id)]))?;
        self.db.caught_up().await?;
        self.stored::<Domain>(id, Domain::NOUN)?;
        part.check()?;
        let config = self.db.get::<DomainConfig>(id).map(|stored| stored.row.options.clone());
        part.of(&config.unwrap_or_default()).ok_or_else(|| part.missing(id))
    }

    /// Changes a part of a domain's configuration; the whole of it, as it is shown then.
    ///
    /// # Errors
    /// `Forbidden`; `Invalid`; `NotFound` for a part of which nothing is configured.
    pub async fn domain_config_update(
        &self,
        caller: &Caller,
        id: &str,
        part: &Part,
        config: &Config,
    ) -> Result<Config> {
        require_of("identity:update_domain_config", caller, id)?;
        check(config)?;
        part.check()?;
        if let Some(group) = &part.group {
            let options = config.get(group).filter(|_| config.len() == 1);
            let fits = options.is_some_and(|options| match &part.option {
                Some(option) => options.len() == 1 && options.contains_key(option),
                None => true,
            });
            if !fits {
                return Err(Error::Forbidden { action: "a change of another part of a configuration" });
            }
        }
        let mut shown = Config::new();
        self.change_config(id, |mut before| {
            if part.group.is_some() && part.of(&before).is_none() {
                return Err(part.missing(id));
            }
            for (group, options) in config {
                before.entry(group.clone()).or_default().extend(options.clone());
            }
            shown = before.clone();
            Ok(before)
        })
        .await?;
        hide(&mut shown);
        Ok(shown)
    }

    /// Takes a part of a domain's configuration away.
    ///
    /// # Errors
    /// `Forbidden`; `NotFound` for a group or option that is not configured.
    pub async fn domain_config_delete(&self, caller: &Caller, id: &str, part: &Part) -> Result<()> {
        require_of("identity:delete_domain_config", caller, id)?;
        part.check()?;
        self.change_config(id, |mut before| {
            let Some(group) = &part.group else { return Ok(Config::new()) };
            if part.of(&before).is_none() {
                return Err(part.missing(id));
            }
            match &part.option {
                Some(option) => {
                    before.get_mut(group).and_then(|options| options.remove(option));
                }
                None => {
                    before.remove(group);
                }
            }
            Ok(before)
        })
        .await
    }

    /// A part of what holds for a domain that says nothing.
    ///
    /// # Errors
    /// `Forbidden` for groups and options that are none, or are never shown.
    pub fn domain_config_default(&self, caller: &Caller, part: &Part) -> Result<PartOf> {
        require("identity:get_domain_config_default", Default::SystemReader, caller, &Target::NONE)?;
        part.check()?;
        let action = "a look at the default of a sensitive option";
        part.of(&defaults()).ok_or(Error::Forbidden { action })
    }

    fn password_rules(&self, caller: &Caller, id: &str, part: &Part) -> Result<PartOf> {
        let rule = "identity:get_security_compliance_domain_config";
        if crate::policy::said(rule, caller, &Target::NONE) == Some(false) {
            return Err(Error::Forbidden { action: rule });
        }
        if id != super::DEFAULT_DOMAIN_ID {
            return Err(Error::Forbidden { action: "a look at the rules of passwords of another domain" });
        }
        let rules = &self.settings.identity.security;
        let regex = rules.password_regex.as_ref().map(|regex| regex.as_str());
        let said = Some(&rules.password_regex_description).filter(|text| !text.is_empty());
        let options = Options::from([
            ("password_regex".to_owned(), json!(regex)),
            ("password_regex_description".to_owned(), json!(said)),
        ]);
        let action = "a look at other rules than those of a password's form";
        part.of(&Config::from([(PASSWORDS.to_owned(), options)])).ok_or(Error::Forbidden { action })
    }

    /// Changes a domain's configuration, sensitive options included.
    async fn change_config(&self, id: &str, mut change: impl FnMut(Config) -> Result<Config>) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let domain = cache.get::<Domain>(id).ok_or_else(|| Error::not_found(Domain::NOUN, id))?;
                let stored = cache.get::<DomainConfig>(id);
                let mut before = Config::new();
                if let Some(stored) = &stored {
                    before.clone_from(&stored.row.options);
                    for (group, options) in self.sensitive(&stored.row)? {
                        before.entry(group).or_default().extend(options);
                    }
                }
                let mut after = change(before)?;
                let sensitive = hide(&mut after);
                // Whoever deletes the domain meanwhile begins anew, and takes this away too.
                let txn = Txn::new().update(&domain, &domain.row);
                let sealed = if sensitive.is_empty() { None } else { Some(self.sealed(&sensitive)?) };
                let row = DomainConfig { id: id.to_owned(), options: after, sealed };
                Ok(match &stored {
                    Some(stored) if row.options.is_empty() && row.sealed.is_none() => txn.delete(stored),
                    Some(stored) => txn.update(stored, &row),
                    None if row.options.is_empty() && row.sealed.is_none() => txn,
                    None => txn.create(&row),
                })
            })
            .await
    }

    fn sensitive(&self, row: &DomainConfig) -> Result<Config> {
        let Some(sealed) = &row.sealed else { return Ok(Config::new()) };
        let bytes = self.tokens.master().open(sealed);
        bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok()).ok_or_else(|| {
            Error::Unavailable("the configuration was sealed under another master key".to_owned())
        })
    }

    fn sealed(&self, sensitive: &Config) -> Result<String> {
        let text = zeroize::Zeroizing::new(json!(sensitive).to_string());
        let sealed = self.tokens.master().seal(text.as_bytes());
        sealed.ok_or_else(|| Error::Unavailable("no random bytes".to_owned()))
    }
}

/// Takes what is sensitive out of a configuration, and groups that are empty then.
fn hide(config: &mut Config) -> Config {
    let mut hidden = Config::new();
    for (group, option) in SENSITIVE {
        if let Some(value) = config.get_mut(group).and_then(|options| options.remove(option)) {
            hidden.entry(group.to_owned()).or_default().insert(option.to_owned(), value);
        }
    }
    config.retain(|_, options| !options.is_empty());
    hidden
}

fn require_of(rule: &'static str, caller: &Caller, id: &str) -> Result<()> {
    require(rule, Default::Admin, caller, &Target::of(&[("domain_id", id)]))
}
