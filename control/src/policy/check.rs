//! The check language of oslo.policy: what a rule says, parsed once and evaluated without allocation.
//!
//! `and`, `or`, `not`, parentheses; `@` and the empty check hold, `!` does not; `rule:NAME`, `role:NAME`,
//! `ATTRIBUTE:VALUE` of the caller (`user_id`, `project_id`, `domain_id`, `user_domain_id`, `system_scope`, `is_admin`,
//! `is_admin_project`) or `'literal':VALUE`, `field:RESOURCE:NAME=VALUE` of the target. A value is literal or `%(key)s` of
//! the target. Checks by HTTP are refused: policy knows no network.

use crate::caller::{Caller, RoleLevel, Scope};

use super::Target;

/// The longest check in bytes; the services' own longest are a few hundred.
pub const CHECK_BYTES_MAX: usize = 4096;
/// How deep parentheses and `not` may nest.
const DEPTH_MAX: usize = 32;

/// A parsed check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Check {
    Always,
    Never,
    All(Vec<Check>),
    Any(Vec<Check>),
    Not(Box<Check>),
    /// Another rule by its name.
    Rule(String),
    /// The caller holds a role; names compare without case.
    Role(Operand),
    /// An attribute of the caller, or a literal, is this.
    Same(Operand, Operand),
}

/// One side of a comparison.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Operand {
    Literal(String),
    /// An attribute of the caller.
    Caller(String),
    /// A key of the target.
    Target(String),
}

/// Why a check cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CheckError {
    /// It is longer than [`CHECK_BYTES_MAX`].
    #[error("a check has at most {CHECK_BYTES_MAX} bytes")]
    Long,
    /// It nests too deep.
    #[error("parentheses and `not` nest at most {DEPTH_MAX} deep")]
    Deep,
    /// Something stands where a check should.
    #[error("`{0}` is no check: it is `kind:value`, `@`, `!`, `not` or a parenthesis")]
    NoCheck(String),
    /// A check ends early.
    #[error("a check is missing at the end")]
    Ends,
    /// A parenthesis is not closed, or closed without one.
    #[error("parentheses do not match")]
    Parenthesis,
    /// Something follows a whole check.
    #[error("`{0}` stands where `and` or `or` should")]
    Follows(String),
    /// It asks another server.
    #[error("a check by {0} is not there: policy asks no server")]
    Remote(String),
}

/// Reads a check.
pub(super) fn parse(text: &str) -> Result<Check, CheckError> {
    if text.len() > CHECK_BYTES_MAX {
        return Err(CheckError::Long);
    }
    let tokens = tokens(text);
    if tokens.is_empty() {
        return Ok(Check::Always);
    }
    let mut reader = Reader { tokens: &tokens, at: 0, depth: 0 };
    let check = reader.any()?;
    match reader.next() {
        None => Ok(check),
        Some(Token::Close) => Err(CheckError::Parenthesis),
        Some(Token::Open) => Err(CheckError::Follows("(".into())),
        Some(Token::Word(word)) => Err(CheckError::Follows((*word).to_owned())),
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Token<'a> {
    Open,
    Close,
    Word(&'a str),
}

/// Words are divided by blanks; parentheses stand at a word's begin and end. The one inside `%(key)s` is the word's own.
fn tokens(text: &str) -> Vec<Token<'_>> {
    let mut tokens = Vec::new();
    for mut word in text.split_whitespace() {
        while let Some(rest) = word.strip_prefix('(') {
            tokens.push(Token::Open);
            word = rest;
        }
        let inner = word.trim_end_matches(')');
        if !inner.is_empty() {
            tokens.push(Token::Word(inner));
        }
        tokens.extend((inner.len()..word.len()).map(|_| Token::Close));
    }
    tokens
}

struct Reader<'a> {
    tokens: &'a [Token<'a>],
    at: usize,
    depth: usize,
}

impl<'a> Reader<'a> {
    fn next(&mut self) -> Option<&'a Token<'a>> {
        let token = self.tokens.get(self.at);
        self.at += 1;
        token
    }

    fn takes(&mut self, wanted: &str) -> bool {
        let found =
            matches!(self.tokens.get(self.at), Some(Token::Word(word)) if word.eq_ignore_ascii_case(wanted));
        self.at += usize::from(found);
        found
    }

    fn any(&mut self) -> Result<Check, CheckError> {
        let mut checks = vec![self.all()?];
        while self.takes("or") {
            checks.push(self.all()?);
        }
        Ok(one_or(checks, Check::Any))
    }

    fn all(&mut self) -> Result<Check, CheckError> {
        let mut checks = vec![self.single()?];
        while self.takes("and") {
            checks.push(self.single()?);
        }
        Ok(one_or(checks, Check::All))
    }

    fn single(&mut self) -> Result<Check, CheckError> {
        self.depth += 1;
        if self.depth > DEPTH_MAX {
            return Err(CheckError::Deep);
        }
        let check = if self.takes("not") {
            Check::Not(Box::new(self.single()?))
        } else {
            match self.next() {
                None => return Err(CheckError::Ends),
                Some(Token::Close) => return Err(CheckError::Parenthesis),
                Some(Token::Open) => {
                    let inner = self.any()?;
                    match self.next() {
                        Some(Token::Close) => inner,
                        Some(Token::Word(word)) => return Err(CheckError::Follows((*word).to_owned())),
                        _ => return Err(CheckError::Parenthesis),
                    }
                }
                Some(Token::Word(word)) => atom(word)?,
            }
        };
        self.depth -= 1;
        Ok(check)
    }
}

fn one_or(mut checks: Vec<Check>, many: fn(Vec<Check>) -> Check) -> Check {
    match checks.len() {
        1 => checks.remove(0),
        _ => many(checks),
    }
}

fn atom(word: &str) -> Result<Check, CheckError> {
    match word {
        "@" => return Ok(Check::Always),
        "!" => return Ok(Check::Never),
        _ => {}
    }
    let no_check = || CheckError::NoCheck(word.to_owned());
    let (kind, value) = word.split_once(':').ok_or_else(no_check)?;
    if kind.is_empty() || value.is_empty() {
        return Err(no_check());
    }
    match kind {
        "rule" => Ok(Check::Rule(value.to_owned())),
        "role" => Ok(Check::Role(operand(value))),
        "http" | "https" => Err(CheckError::Remote(kind.to_owned())),
        "field" => {
            let (_, field) = value.split_once(':').ok_or_else(no_check)?;
            let (name, wanted) = field.split_once('=').ok_or_else(no_check)?;
            Ok(Check::Same(Operand::Target(name.to_owned()), Operand::Literal(wanted.to_owned())))
        }
        _ => {
            let left = match unquoted(kind) {
                Some(literal) => Operand::Literal(literal.to_owned()),
                None if matches!(kind, "True" | "False" | "None") => Operand::Literal(kind.to_owned()),
                None => Operand::Caller(kind.to_owned()),
            };
            Ok(Check::Same(left, operand(value)))
        }
    }
}

fn operand(text: &str) -> Operand {
    match text.strip_prefix("%(").and_then(|rest| rest.strip_suffix(")s")) {
        Some(key) => Operand::Target(key.to_owned()),
        None => Operand::Literal(unquoted(text).unwrap_or(text).to_owned()),
    }
}

fn unquoted(text: &str) -> Option<&str> {
    ['\'', '"']
        .into_iter()
        .find_map(|quote| text.strip_prefix(quote).and_then(|rest| rest.strip_suffix(quote)))
}

impl Check {
    /// Whether it holds. `rule` says whether another rule does; an attribute that is absent equals nothing.
    pub(super) fn holds(&self, caller: &Caller, target: &Target<'_>, rule: &dyn Fn(&str) -> bool) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::All(checks) => checks.iter().all(|check| check.holds(caller, target, rule)),
            Self::Any(checks) => checks.iter().any(|check| check.holds(caller, target, rule)),
            Self::Not(check) => !check.holds(caller, target, rule),
            Self::Rule(name) => rule(name),
            Self::Role(name) => name.value(caller, target).is_some_and(|name| has_role(caller, name)),
            Self::Same(left, right) => match (left.value(caller, target), right.value(caller, target)) {
                (Some(left), Some(right)) => left == right,
                _ => false,
            },
        }
    }

    /// How many checks it is made of, and the rules it names.
    pub(super) fn measure<'a>(&'a self, rules: &mut Vec<&'a str>) -> usize {
        match self {
            Self::All(checks) | Self::Any(checks) => {
                1 + checks.iter().map(|check| check.measure(rules)).sum::<usize>()
            }
            Self::Not(check) => 1 + check.measure(rules),
            Self::Rule(name) => {
                rules.push(name);
                1
            }
            _ => 1,
        }
    }
}

impl Operand {
    fn value<'a, 't: 'a>(&'a self, caller: &'a Caller, target: &Target<'t>) -> Option<&'a str> {
        match self {
            Self::Literal(text) => Some(text),
            Self::Caller(name) => attribute(caller, name),
            Self::Target(key) => target.get(key),
        }
    }
}

/// An attribute of the caller by the name it has in policy files.
fn attribute<'a>(caller: &'a Caller, name: &str) -> Option<&'a str> {
    let flag = |flag: bool| Some(if flag { "True" } else { "False" });
    match name {
        "user_id" | "user" => Some(&caller.user_id),
        "project_id" | "tenant_id" | "tenant" => caller.project_id(),
        "domain_id" => match &caller.scope {
            Scope::Domain(id) => Some(id),
            _ => None,
        },
        "user_domain_id" => Some(&caller.user_domain_id),
        "system_scope" => (caller.scope == Scope::System).then_some("all"),
        "is_admin" => flag(caller.is_admin()),
        // The mark of an administrator's project is not made: every project counts, as in Keystone without one.
        "is_admin_project" => flag(true),
        _ => None,
    }
}

fn has_role(caller: &Caller, name: &str) -> bool {
    let level = match name.to_ascii_lowercase().as_str() {
        "admin" => RoleLevel::Admin,
        "manager" => RoleLevel::Manager,
        "member" => RoleLevel::Member,
        "reader" => RoleLevel::Reader,
        // A role of another name says something to such rules alone.
        _ => return caller.roles.iter().any(|role| role.eq_ignore_ascii_case(name)),
    };
    caller.role >= Some(level)
}
