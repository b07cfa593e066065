//! Who may do what: one pure function, [`Policy::allows`], of a rule's name, the caller and what is acted on.
//!
//! The default of a rule is one of the few shapes below (`rule:admin_api`, …) and is chosen by the function that asks;
//! a file in oslo.policy's YAML form may say another for any rule by its name in the service's own vocabulary
//! (`os_compute_api:servers:create`, `identity:create_project`, `create_network`).
//!
//! Must never know: HTTP, a store.

mod check;
mod require;

use std::collections::{BTreeMap, HashMap};

use serde::Deserialize;
use serde_saphyr::Spanned;

use self::check::Check;
pub use self::check::{CHECK_BYTES_MAX, CheckError};
pub use self::require::{
    allowed, own, require, require_admin, require_list, require_member, require_own_project, require_read,
    require_write, said,
};
use crate::caller::Caller;

/// The longest policy file in bytes: all rules of all services are about 200 KiB.
pub const FILE_BYTES_MAX: usize = 1 << 20;
/// The most rules of one file: the services have some 1500.
pub const RULES_MAX: usize = 5000;
/// The most checks that one rule may come to, with the rules it names: evaluation is bounded by it.
const CHECKS_MAX: usize = 1000;

/// The rules that others build on, by the names that the services' own policies give them.
const BASE: [(&str, &str); 24] = [
    ("context_is_admin", "role:admin"),
    ("admin_required", "role:admin"),
    ("admin_api", "role:admin"),
    ("admin_only", "rule:context_is_admin"),
    ("context_is_advsvc", "role:service"),
    ("service_role", "role:service"),
    ("service_api", "role:service or role:admin"),
    ("owner", "user_id:%(user_id)s"),
    ("admin_or_owner", "rule:admin_required or rule:owner or project_id:%(project_id)s"),
    ("regular_user", ""),
    ("system_reader_api", "role:reader and system_scope:all"),
    ("admin_or_system_reader", "rule:admin_required or rule:system_reader_api"),
    ("project_reader_api", "role:reader and project_id:%(project_id)s"),
    ("project_member_api", "role:member and project_id:%(project_id)s"),
    ("project_manager_api", "role:manager and project_id:%(project_id)s"),
    ("project_reader_or_admin", "rule:project_reader_api or rule:admin_api"),
    ("project_member_or_admin", "rule:project_member_api or rule:admin_api"),
    ("project_manager_or_admin", "rule:project_manager_api or rule:admin_api"),
    (
        "visible_reader",
        "rule:context_is_admin or role:reader and (project_id:%(project_id)s or project_id:%(member_id)s or \
         'community':%(visibility)s or 'public':%(visibility)s or 'shared':%(visibility)s)",
    ),
    (
        "visible_member",
        "rule:context_is_admin or role:member and (project_id:%(project_id)s or project_id:%(member_id)s or \
         'community':%(visibility)s or 'public':%(visibility)s or 'shared':%(visibility)s)",
    ),
    (
        "sharing_reader",
        "rule:context_is_admin or role:reader and (project_id:%(project_id)s or project_id:%(member_id)s)",
    ),
    ("sharing_member", "rule:context_is_admin or role:member and project_id:%(member_id)s"),
    ("domain_manager", "role:manager and domain_id:%(target.domain_id)s"),
    ("shared", "field:networks:shared=True"),
];

/// What a rule says unless a file says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Default {
    /// Administrators.
    Admin,
    /// Administrators, and members of the target's project.
    Member,
    /// Administrators, and managers of the target's project.
    Manager,
    /// Administrators, and readers of the target's project.
    Reader,
    /// Administrators, and the target's own user.
    Owner,
    /// Administrators, and readers of the whole deployment.
    SystemReader,
    /// Administrators, and readers who the target's visibility lets see it: of its project, of one that it is shared
    /// with, and of every project if it is public.
    VisibleReader,
    /// As [`Default::VisibleReader`], with the member role.
    VisibleMember,
    /// Administrators, and readers of the target's project and of the one that it is shared with.
    SharingReader,
    /// Administrators, and members of the project that the target is shared with.
    SharingMember,
    /// Administrators, and users of services.
    Service,
    /// Everyone with a token.
    Anyone,
}

impl Default {
    fn rule(self) -> &'static str {
        match self {
            Self::Admin => "admin_api",
            Self::Member => "project_member_or_admin",
            Self::Manager => "project_manager_or_admin",
            Self::Reader => "project_reader_or_admin",
            Self::Owner => "admin_or_user",
            Self::SystemReader => "admin_or_system_reader",
            Self::VisibleReader => "visible_reader",
            Self::VisibleMember => "visible_member",
            Self::SharingReader => "sharing_reader",
            Self::SharingMember => "sharing_member",
            Self::Service => "service_api",
            Self::Anyone => "regular_user",
        }
    }
}

/// What is acted on, by the keys that checks name; borrowed for one question.
#[derive(Clone, Copy, Default)]
pub struct Target<'a> {
    keys: &'a [(&'a str, &'a str)],
    looked_up: Option<(&'a str, &'a dyn Fn() -> Option<&'a str>)>,
}

impl std::fmt::Debug for Target<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Target").field("keys", &self.keys).finish_non_exhaustive()
    }
}

impl<'a> Target<'a> {
    /// Nothing that belongs to anyone.
    pub const NONE: Self = Self { keys: &[], looked_up: None };

    /// These keys. `project_id` answers for `tenant_id` and `target.project.id` too, and so on.
    pub const fn of(keys: &'a [(&'a str, &'a str)]) -> Self {
        Self { keys, looked_up: None }
    }

    /// The same with a key that costs something to know: it is looked up when a check comes to it.
    #[must_use]
    pub const fn with(self, key: &'a str, value: &'a dyn Fn() -> Option<&'a str>) -> Self {
        Self { looked_up: Some((key, value)), ..self }
    }

    fn get(&self, key: &str) -> Option<&'a str> {
        let key = key.strip_prefix("target.").unwrap_or(key);
        let key = match key {
            "tenant_id" | "project.id" => "project_id",
            "user.id" => "user_id",
            "domain.id" | "user.domain_id" | "project.domain_id" | "group.domain_id" => "domain_id",
            key => key,
        };
        let known = self.keys.iter().find(|(name, _)| *name == key).map(|(_, value)| *value);
        known.or_else(|| self.looked_up.filter(|(name, _)| *name == key).and_then(|(_, value)| value()))
    }
}

/// All rules: the base, and what a file says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Policy {
    rules: HashMap<String, Check>,
}

/// Why a policy file cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum PolicyError {
    /// It is longer than [`FILE_BYTES_MAX`].
    #[error("a policy has at most {FILE_BYTES_MAX} bytes")]
    Long,
    /// It has more than [`RULES_MAX`] rules.
    #[error("a policy has at most {RULES_MAX} rules")]
    Many,
    /// It is no YAML of names and checks.
    #[error("the policy is no YAML of names and checks")]
    Yaml(#[source] Box<serde_saphyr::Error>),
    /// A rule cannot be read.
    #[error("line {line}: rule {rule}")]
    Rule {
        /// Where it stands.
        line: u64,
        /// Its name.
        rule: String,
        /// What is wrong.
        #[source]
        source: CheckError,
    },
    /// A rule names one that is nowhere.
    #[error("line {line}: rule {rule} names the rule {named}, which is nowhere")]
    Unknown {
        /// Where it stands.
        line: u64,
        /// Its name.
        rule: String,
        /// The other's.
        named: String,
    },
    /// A rule comes to itself, or to too much.
    #[error("line {line}: rule {rule} names itself, or comes to more than {CHECKS_MAX} checks")]
    Endless {
        /// Where it stands.
        line: u64,
        /// Its name.
        rule: String,
    },
}

/// A check as a file says it: a text, or oslo.policy's older form, a list of alternatives, each a list of checks that
/// must all hold.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Text(String),
    Alternatives(Vec<Alternative>),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Alternative {
    One(String),
    All(Vec<String>),
}

impl Written {
    fn parse(&self) -> std::result::Result<Check, CheckError> {
        let alternatives = match self {
            Self::Text(text) => return check::parse(text),
            Self::Alternatives(alternatives) if alternatives.is_empty() => return Ok(Check::Always),
            Self::Alternatives(alternatives) => alternatives,
        };
        let all = |texts: &[String]| {
            let checks =
                texts.iter().map(|text| check::parse(text)).collect::<std::result::Result<_, _>>()?;
            Ok(Check::All(checks))
        };
        let checks = alternatives.iter().map(|alternative| match alternative {
            Alternative::One(text) => check::parse(text),
            Alternative::All(texts) => all(texts),
        });
        Ok(Check::Any(checks.collect::<std::result::Result<_, _>>()?))
    }
}

impl std::default::Default for Policy {
    fn default() -> Self {
        let mut rules: HashMap<String, Check> = BASE
            .iter()
            .map(|(name, text)| {
                let check = check::parse(text).expect("invariant: the base rules are checks");
                ((*name).to_owned(), check)
            })
            .collect();
        let user = check::parse("rule:admin_api or rule:owner").expect("invariant: a check");
        rules.insert("admin_or_user".to_owned(), user);
        Self { rules }
    }
}

impl Policy {
    /// The base with what a file in oslo.policy's YAML form says over it.
    pub fn parse(text: &str) -> std::result::Result<Self, PolicyError> {
        if text.len() > FILE_BYTES_MAX {
            return Err(PolicyError::Long);
        }
        let mut policy = Self::default();
        // A file of remarks only is a file.
        let written: Option<BTreeMap<String, Spanned<Written>>> =
            serde_saphyr::from_str(text).map_err(|error| PolicyError::Yaml(Box::new(error)))?;
        let written = written.unwrap_or_default();
        if written.len() > RULES_MAX {
            return Err(PolicyError::Many);
        }
        for (rule, spanned) in &written {
            let check = spanned.value.parse().map_err(|source| PolicyError::Rule {
                line: line_of(spanned),
                rule: rule.clone(),
                source,
            })?;
            policy.rules.insert(rule.clone(), check);
        }
        let mut sizes = HashMap::new();
        for (rule, spanned) in &written {
            let line = line_of(spanned);
            match policy.size(rule, &mut sizes, 0) {
                Ok(size) if size <= CHECKS_MAX => {}
                Ok(_) | Err(None) => return Err(PolicyError::Endless { line, rule: rule.clone() }),
                Err(Some(named)) => return Err(PolicyError::Unknown { line, rule: rule.clone(), named }),
            }
        }
        Ok(policy)
    }

    /// How many checks a rule comes to; the name of a rule that is nowhere, or nothing if it has no end.
    fn size<'a>(
        &'a self,
        rule: &'a str,
        sizes: &mut HashMap<&'a str, usize>,
        depth: usize,
    ) -> std::result::Result<usize, Option<String>> {
        if let Some(size) = sizes.get(rule) {
            return Ok(*size);
        }
        // A chain of so many rules comes to more checks than are allowed.
        if depth > CHECKS_MAX / 10 {
            return Err(None);
        }
        let check = self.rules.get(rule).ok_or_else(|| Some(rule.to_owned()))?;
        let mut named = Vec::new();
        let mut size = check.measure(&mut named);
        for name in named {
            size = size.saturating_add(self.size(name, sizes, depth + 1)?);
        }
        sizes.insert(rule, size);
        Ok(size)
    }

    /// Whether `caller` may do what `rule` is about to `target`; `default` holds where no file says otherwise.
    pub fn allows(&self, rule: &str, default: Default, caller: &Caller, target: &Target<'_>) -> bool {
        let name = if self.rules.contains_key(rule) { rule } else { default.rule() };
        self.holds(name, caller, target)
    }

    /// What a file says of a rule, if one says anything: for rules whose default is no single shape of [`Default`].
    pub fn says(&self, rule: &str, caller: &Caller, target: &Target<'_>) -> Option<bool> {
        self.rules.contains_key(rule).then(|| self.holds(rule, caller, target))
    }

    fn holds(&self, rule: &str, caller: &Caller, target: &Target<'_>) -> bool {
        let check = self.rules.get(rule);
        check.is_some_and(|check| check.holds(caller, target, &|name| self.holds(name, caller, target)))
    }
}

fn line_of<T>(spanned: &Spanned<T>) -> u64 {
    spanned.referenced.line()
}

#[cfg(test)]
mod tests;
