//! How the services ask: each of these holds a caller against the rules of its cloud, and refuses in the words that the
//! answer has.

use super::{Default, Target};
use crate::caller::{Caller, Scope};
use crate::error::{Error, Result};

/// Whether the cloud's policy allows it; see [`super::Policy::allows`].
pub fn allowed(rule: &str, default: Default, caller: &Caller, target: &Target<'_>) -> bool {
    caller.policy.allows(rule, default, caller, target)
}

/// What the cloud's policy file says of a rule; see [`super::Policy::says`].
pub fn said(rule: &str, caller: &Caller, target: &Target<'_>) -> Option<bool> {
    caller.policy.says(rule, caller, target)
}

/// The target of what has no owner: for a rule of one's own project, it is the caller's.
pub fn own(caller: &Caller) -> [(&'static str, &str); 2] {
    [("project_id", caller.project_id().unwrap_or_default()), ("user_id", caller.user_id.as_str())]
}

/// As [`allowed`], or `Forbidden`, naming `rule`.
///
/// # Errors
/// `Forbidden`.
pub fn require(rule: &'static str, default: Default, caller: &Caller, target: &Target<'_>) -> Result<()> {
    if allowed(rule, default, caller, target) { Ok(()) } else { Err(Error::Forbidden { action: rule }) }
}

/// Everything in every project, unless a file lets others.
///
/// # Errors
/// `Forbidden`, naming `action`.
pub fn require_admin(caller: &Caller, action: &'static str) -> Result<()> {
    require(action, Default::Admin, caller, &Target::of(&own(caller)))
}

/// Changing what belongs to `project_id`. Who may not even see it is told that it is not there.
///
/// # Errors
/// `NotFound` or `Forbidden`.
pub fn require_write(
    caller: &Caller,
    project_id: &str,
    action: &'static str,
    kind: &'static str,
    id: &str,
) -> Result<()> {
    if allowed(action, Default::Member, caller, &Target::of(&[("project_id", project_id)])) {
        Ok(())
    } else if caller.may_read(project_id) {
        Err(Error::Forbidden { action })
    } else {
        Err(Error::not_found(kind, id))
    }
}

/// Changing what belongs to `project_id`, by someone who may see it.
///
/// # Errors
/// `Forbidden`, naming `action`.
pub fn require_member(caller: &Caller, project_id: &str, action: &'static str) -> Result<()> {
    require(action, Default::Member, caller, &Target::of(&[("project_id", project_id)]))
}

/// Seeing one thing of a project: what is another project's is not there, and what the policy hides is refused.
/// `user_id` is its maker, where that is kept.
///
/// # Errors
/// `NotFound` or `Forbidden`.
pub fn require_read(
    caller: &Caller,
    (project_id, user_id): (&str, Option<&str>),
    action: &'static str,
    kind: &'static str,
    id: &str,
) -> Result<()> {
    if !caller.reaches(project_id) {
        return Err(Error::not_found(kind, id));
    }
    match user_id {
        Some(user) => {
            let keys = [("project_id", project_id), ("user_id", user)];
            require(action, Default::Reader, caller, &Target::of(&keys))
        }
        None => require(action, Default::Reader, caller, &Target::of(&[("project_id", project_id)])),
    }
}

/// Listing what is the caller's own project's, or everybody's.
///
/// # Errors
/// `Forbidden`, naming `action`.
pub fn require_list(caller: &Caller, action: &'static str) -> Result<()> {
    require(action, Default::Reader, caller, &Target::of(&own(caller)))
}

/// Making something in the caller's own project; returns that project.
///
/// # Errors
/// `Forbidden` without a project or with less than the member role.
pub fn require_own_project<'a>(caller: &'a Caller, action: &'static str) -> Result<&'a str> {
    match &caller.scope {
        Scope::Project(id)
            if allowed(action, Default::Member, caller, &Target::of(&[("project_id", id)])) =>
        {
            Ok(id)
        }
        _ => Err(Error::Forbidden { action }),
    }
}
