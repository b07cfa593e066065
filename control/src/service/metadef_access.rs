//! Who may see a namespace of metadata definitions, and what is in it.

use std::sync::Arc;

use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::metadef::MetadefNamespace;
use crate::policy::{Default, Target, allowed};
use crate::store::{Cache, Stored};

/// Whether a rule of reading allows the caller something with a namespace.
pub fn may_read(caller: &Caller, namespace: &MetadefNamespace, rule: &str) -> bool {
    let keys = [("project_id", namespace.owner.as_str()), ("visibility", namespace.visibility.as_str())];
    allowed(rule, Default::VisibleReader, caller, &Target::of(&keys))
}

/// As [`may_read`], of a namespace that the caller sees.
///
/// # Errors
/// `Forbidden`.
pub fn require_read(caller: &Caller, namespace: &MetadefNamespace, rule: &'static str) -> Result<()> {
    if may_read(caller, namespace, rule) { Ok(()) } else { Err(Error::Forbidden { action: rule }) }
}

/// Whether the caller sees a namespace: its owner's project, and everybody if it is public, whom the policy lets.
pub(super) fn may_see(caller: &Caller, namespace: &MetadefNamespace) -> bool {
    (namespace.visibility == "public" || caller.reaches(&namespace.owner))
        && may_read(caller, namespace, "get_metadef_namespace")
}

/// A namespace by its name, whoever may see it.
pub(super) fn named(cache: &Cache, name: &str) -> Result<Arc<Stored<MetadefNamespace>>> {
    cache
        .find::<MetadefNamespace>(|namespace| namespace.name == name)
        .ok_or_else(|| Error::not_found("Metadata definition namespace", name))
}

/// A namespace that the caller sees.
pub(super) fn visible(cache: &Cache, caller: &Caller, name: &str) -> Result<Arc<Stored<MetadefNamespace>>> {
    let found = named(cache, name)?;
    if may_see(caller, &found.row) {
        Ok(found)
    } else {
        Err(Error::not_found("Metadata definition namespace", name))
    }
}
