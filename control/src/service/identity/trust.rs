//! Trusts (OS-TRUST): some of a user's roles in a project, lent to another user.

use std::sync::Arc;

use jiff::Timestamp;

use super::application_credential::RoleRef;
use super::assignment::given_roles;
use super::role::with_implied;
use super::{Entity, Removal, Rules, check_extra, invalid, require, rules};
use crate::Control;
use crate::caller::{Caller, Delegation};
use crate::error::{Error, Result};
use crate::model::delegation::Trust;
use crate::model::identity::{AssignmentTarget, Extra, Project, User};
use crate::model::random_hex_id;
use crate::store::{Cache, Stored, Txn};

/// How often what is lent may be lent on at most, as Keystone's default.
pub const REDELEGATION_MAX: u32 = 3;
/// The most trusts that one user may have made.
const OF_ONE_USER_MAX: usize = 1000;

impl Entity for Trust {
    const NOUN: &'static str = "Trust";
    const RULES: Rules = rules!("trust", "trusts");

    fn listable(_: &Caller) -> bool {
        true
    }

    fn readable(&self, caller: &Caller) -> bool {
        caller.reads_system() || [&self.trustor_user_id, &self.trustee_user_id].contains(&&caller.user_id)
    }

    fn writable(&self, caller: &Caller) -> bool {
        caller.may_delegate() && (caller.is_admin() || caller.user_id == self.trustor_user_id)
    }

    fn keys(&self) -> Vec<(&'static str, &str)> {
        vec![
            ("trust.trustor_user_id", &self.trustor_user_id),
            ("trust.trustee_user_id", &self.trustee_user_id),
        ]
    }

    fn admit(&self, cache: &Cache, before: Option<&Self>) -> Result<()> {
        if before.is_some() {
            return Ok(());
        }
        if self.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return Err(invalid("The 'expires_at' must not be before now."));
        }
        if self.remaining_uses == Some(0) {
            return Err(invalid("remaining_uses must be a positive integer or null."));
        }
        if self.project_id.is_some() && self.roles.is_empty() {
            return Err(Error::Forbidden { action: "a trust without any role" });
        }
        if self.redelegation_count > REDELEGATION_MAX {
            return Err(Error::Forbidden { action: "a redelegation deeper than the limit" });
        }
        let origin = origin(cache, self);
        if let Some(project) = &self.project_id {
            let held = trustor_roles(cache, &origin.trustor_user_id, project);
            if let Some(id) = self.roles.iter().find(|id| !held.contains(id)) {
                return Err(Error::not_found("Role", id));
            }
        }
        if cache.filter::<Self>(|row| row.trustor_user_id == self.trustor_user_id).len() >= OF_ONE_USER_MAX {
            return Err(Error::Forbidden { action: "more trusts of one user than the limit" });
        }
        check_extra(&self.extra)
    }

    fn bind(&self, cache: &Cache, before: Option<&Self>, txn: Txn) -> Result<Txn> {
        if before.is_some() {
            return Ok(txn);
        }
        let txn = require::<User>(cache, txn, &self.trustor_user_id)?;
        let txn = if self.trustee_user_id == self.trustor_user_id {
            txn
        } else {
            require::<User>(cache, txn, &self.trustee_user_id)?
        };
        let txn = match &self.redelegated_trust_id {
            Some(id) => require::<Self>(cache, txn, id)?,
            None => txn,
        };
        match &self.project_id {
            Some(project) => require::<Project>(cache, txn, project),
            None => Ok(txn),
        }
    }

    fn dependents(&self, removal: &mut Removal<'_>) {
        // What was lent on ends with what it was lent on from.
        removal.entities::<Self>(|row| row.redelegated_trust_id.as_ref() == Some(&self.id));
    }
}

/// A new trust.
#[derive(Debug, Clone, Default)]
pub struct TrustWanted {
    /// Who lends: the caller.
    pub trustor_user_id: String,
    /// To whom.
    pub trustee_user_id: String,
    /// The project.
    pub project_id: Option<String>,
    /// Tokens are the trustor's.
    pub impersonation: bool,
    /// The roles.
    pub roles: Vec<RoleRef>,
    /// Until when.
    pub expires_at: Option<Timestamp>,
    /// For how many tokens.
    pub remaining_uses: Option<u32>,
    /// May be lent on.
    pub allow_redelegation: bool,
    /// How often; [`REDELEGATION_MAX`] if absent.
    pub redelegation_count: Option<u32>,
    /// All else that was given.
    pub extra: Extra,
}

impl Control {
    /// Lends roles; with a token of a trust that allows it, lends on.
    ///
    /// # Errors
    /// `Forbidden` for another's roles, by restricted credentials, or beyond what was lent; `NotFound` for roles that
    /// the trustor does not have.
    pub async fn trust_create(&self, caller: &Caller, wanted: TrustWanted) -> Result<Arc<Stored<Trust>>> {
        if caller.user_id != wanted.trustor_user_id || !caller.may_delegate() {
            return Err(Error::Forbidden { action: Trust::RULES.create });
        }
        if matches!(caller.delegation, Delegation::ApplicationCredential { .. }) {
            return Err(Error::Forbidden { action: "a trust by an application credential" });
        }
        self.db.caught_up().await?;
        let roles = wanted.roles.iter().map(|role| self.role_id(role)).collect::<Result<Vec<_>>>()?;
        let redelegatable = wanted.allow_redelegation && wanted.redelegation_count != Some(0);
        if redelegatable && wanted.remaining_uses.is_some() {
            return Err(invalid("remaining_uses must not be set if redelegation is allowed"));
        }
        let mut row = Trust {
            id: random_hex_id(),
            trustor_user_id: wanted.trustor_user_id,
            trustee_user_id: wanted.trustee_user_id,
            project_id: wanted.project_id,
            impersonation: wanted.impersonation,
            roles,
            expires_at: wanted.expires_at,
            remaining_uses: wanted.remaining_uses,
            redelegation_count: if redelegatable {
                wanted.redelegation_count.unwrap_or(REDELEGATION_MAX)
            } else {
                0
            },
            redelegated_trust_id: None,
            extra: wanted.extra,
        };
        if let Delegation::Trust { id, .. } = &caller.delegation {
            let from = self.stored::<Trust>(id, Trust::NOUN)?;
            lend_on(&mut row, &from.row, wanted.redelegation_count)?;
        }
        self.entity_create(caller, row).await
    }

    /// Takes one use of a trust that has only so many.
    ///
    /// # Errors
    /// `Forbidden` if there is none left.
    pub(crate) async fn trust_consume(&self, id: &str) -> Result<()> {
        let change = |row: &mut Trust| {
            row.remaining_uses = match row.remaining_uses {
                Some(0) => return Err(Error::Forbidden { action: "a trust without remaining uses" }),
                Some(uses) => Some(uses - 1),
                None => None,
            };
            Ok(())
        };
        self.change_entity(id, change, |_| Ok(())).await
    }
}

/// A trust made of another gives nothing that the other does not.
fn lend_on(row: &mut Trust, from: &Trust, asked: Option<u32>) -> Result<()> {
    let forbidden = |action| Err(Error::Forbidden { action });
    if from.redelegation_count == 0 || from.redelegation_count > REDELEGATION_MAX {
        return forbidden("a redelegation deeper than the trust allows");
    }
    if from.remaining_uses.is_some() {
        return forbidden("a redelegation of a trust with remaining uses");
    }
    if row.project_id != from.project_id || row.roles.iter().any(|role| !from.roles.contains(role)) {
        return forbidden("a redelegation of roles that are not in the trust");
    }
    if row.impersonation && !from.impersonation {
        return forbidden("impersonation by a trust without it");
    }
    match (row.expires_at, from.expires_at) {
        (Some(at), Some(until)) if at > until => {
            return forbidden("a redelegation for longer than the trust");
        }
        (None, until) => row.expires_at = until,
        _ => {}
    }
    if row.redelegation_count > 0 || asked.is_some_and(|asked| asked > 0) {
        let left = from.redelegation_count - 1;
        if asked.is_some_and(|asked| asked > left) {
            return forbidden("a redelegation deeper than the trust allows");
        }
        row.redelegation_count = left;
    }
    row.redelegated_trust_id = Some(from.id.clone());
    Ok(())
}

/// The trust that a chain of trusts began with.
fn origin(cache: &Cache, trust: &Trust) -> Trust {
    let mut trust = trust.clone();
    // A chain is never longer.
    for _ in 0..=REDELEGATION_MAX {
        match trust.redelegated_trust_id.as_ref().and_then(|id| cache.get::<Trust>(id)) {
            Some(before) => trust = before.row.clone(),
            None => break,
        }
    }
    trust
}

/// The ids of the roles that somebody has in a project, domains' roles too.
pub(crate) fn trustor_roles(cache: &Cache, user_id: &str, project_id: &str) -> Vec<String> {
    let target = AssignmentTarget::Project(project_id.to_owned());
    with_implied(cache, given_roles(cache, user_id, &target))
}

/// Whether a trust and all that it was lent on from is still good.
pub(crate) fn holds(cache: &Cache, trust: &Trust) -> bool {
    let mut trust = trust.clone();
    for _ in 0..=REDELEGATION_MAX {
        if trust.expires_at.is_some_and(|at| at <= Timestamp::now()) {
            return false;
        }
        match &trust.redelegated_trust_id {
            None => return true,
            Some(id) => match cache.get::<Trust>(id) {
                Some(before) => trust = before.row.clone(),
                None => return false,
            },
        }
    }
    false
}
