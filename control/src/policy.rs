//! Who may do what, as pure functions of the caller and the owner. What is about a project's resources is
//! [`Caller::may_read`] and [`Caller::may_write`]; here is the rest.

use crate::caller::{Caller, Scope};
use crate::error::{Error, Result};

/// Everything in every project.
///
/// # Errors
/// `Forbidden`, naming `action`.
pub fn require_admin(caller: &Caller, action: &'static str) -> Result<()> {
    if caller.is_admin() { Ok(()) } else { Err(Error::Forbidden { action }) }
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
    if caller.may_write(project_id) {
        Ok(())
    } else if caller.may_read(project_id) {
        Err(Error::Forbidden { action })
    } else {
        Err(Error::not_found(kind, id))
    }
}

/// Making something in the caller's own project; returns that project.
///
/// # Errors
/// `Forbidden` without a project or with less than the member role.
pub fn require_own_project<'a>(caller: &'a Caller, action: &'static str) -> Result<&'a str> {
    match &caller.scope {
        Scope::Project(id) if caller.may_write(id) => Ok(id),
        _ => Err(Error::Forbidden { action }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::caller::RoleLevel;

    fn caller(project: &str, role: RoleLevel) -> Caller {
        Caller {
            user_id: "u".into(),
            scope: Scope::Project(project.into()),
            role: Some(role),
            request_id: String::new(),
        }
    }

    #[test]
    fn strangers_see_nothing_and_readers_change_nothing() {
        let stranger = require_write(&caller("b", RoleLevel::Member), "a", "x", "Image", "1");
        assert!(matches!(stranger, Err(Error::NotFound { .. })));
        let reader = require_write(&caller("a", RoleLevel::Reader), "a", "x", "Image", "1");
        assert!(matches!(reader, Err(Error::Forbidden { .. })));
        assert!(require_write(&caller("b", RoleLevel::Admin), "a", "x", "Image", "1").is_ok());
        assert!(require_own_project(&caller("a", RoleLevel::Reader), "x").is_err());
    }
}
