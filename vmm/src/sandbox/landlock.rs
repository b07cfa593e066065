//! Landlock (landlock(7)): no path and no port, no abstract socket and no signal outside, whatever filters and
//! namespaces say. What is open stays open.

use landlock::{
    ABI, Access as _, AccessFs, AccessNet, CompatLevel, Compatible as _, Ruleset, RulesetAttr as _,
    RulesetError, RulesetStatus, Scope,
};

/// The newest version of Landlock whose rights are denied; of an older kernel's, all.
const NEWEST: ABI = ABI::V6;

/// Denies all of them to this thread and those that it makes.
pub(super) fn deny_all() -> Result<(), String> {
    let denied = || -> Result<RulesetStatus, RulesetError> {
        let ruleset = Ruleset::default()
            .set_compatibility(CompatLevel::BestEffort)
            .handle_access(AccessFs::from_all(NEWEST))?
            .handle_access(AccessNet::from_all(NEWEST))?
            .scope(Scope::from_all(NEWEST))?
            .create()?;
        Ok(ruleset.restrict_self()?.ruleset)
    };
    match denied() {
        Ok(RulesetStatus::FullyEnforced) => Ok(()),
        Ok(RulesetStatus::PartiallyEnforced) => Err("this kernel has an older one, which denies less".into()),
        Ok(RulesetStatus::NotEnforced) => Err("this kernel has none".into()),
        Err(error) => Err(error.to_string()),
    }
}
