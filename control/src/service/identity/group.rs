//! Groups and who is in them.

use std::sync::Arc;

use super::{
    Entity, NAME_CHARACTERS_MAX, Removal, Rules, check_extra, check_name, check_text, invalid, may, require,
    rules,
};
use crate::Control;
use crate::caller::{Caller, Scope};
use crate::error::{Error, Result};
use crate::model::identity::{Assignment, Domain, Group, GroupMember, User};
use crate::policy::{Target, said};
use crate::store::{Cache, Stored, Txn};

impl Entity for Group {
    const NOUN: &'static str = "Group";
    const RULES: Rules = rules!("group", "groups");

    fn listable(caller: &Caller) -> bool {
        caller.reads_system() || matches!(caller.scope, Scope::Domain(_))
    }

    fn readable(&self, caller: &Caller) -> bool {
        caller.reads_domain(&self.domain_id)
    }

    fn writable(&self, caller: &Caller) -> bool {
        caller.manages_domain(&self.domain_id)
    }

    fn keys(&self) -> Vec<(&'static str, &str)> {
        vec![("domain_id", &self.domain_id)]
    }

    fn unique(&self) -> Vec<String> {
        vec![format!("group_name/{}/{}", self.domain_id, self.name)]
    }

    fn label(&self) -> &str {
        &self.name
    }

    fn admit(&self, _: &Cache, before: Option<&Self>) -> Result<()> {
        check_name("group", &self.name, NAME_CHARACTERS_MAX)?;
        check_text("description", &self.description)?;
        check_extra(&self.extra)?;
        if before.is_some_and(|before| before.domain_id != self.domain_id) {
            return Err(invalid("Cannot change Domain ID"));
        }
        Ok(())
    }

    fn bind(&self, cache: &Cache, before: Option<&Self>, txn: Txn) -> Result<Txn> {
        if before.is_none() { require::<Domain>(cache, txn, &self.domain_id) } else { Ok(txn) }
    }

    fn dependents(&self, removal: &mut Removal<'_>) {
        let id = self.id.as_str();
        removal.rows::<GroupMember>(|row| row.group_id == id);
        removal.rows::<Assignment>(|row| row.actor_id == id);
    }
}

impl Control {
    /// Takes a user into a group; doing so again changes nothing.
    ///
    /// # Errors
    /// `Forbidden`; `NotFound` if either is not there.
    pub async fn group_add(&self, caller: &Caller, group_id: &str, user_id: &str) -> Result<()> {
        self.db
            .transact(|cache| {
                may_change(cache, caller, group_id, "identity:add_user_to_group")?;
                let txn = require::<Group>(cache, Txn::new(), group_id)?;
                let txn = require::<User>(cache, txn, user_id)?;
                Ok(txn.put(&GroupMember::new(user_id, group_id)))
            })
            .await
    }

    /// Takes a user out of a group.
    ///
    /// # Errors
    /// `Forbidden`; `NotFound` if either is not there or the user is not in the group.
    pub async fn group_remove(&self, caller: &Caller, group_id: &str, user_id: &str) -> Result<()> {
        self.db
            .transact(|cache| {
                may_change(cache, caller, group_id, "identity:remove_user_from_group")?;
                Ok(Txn::new().delete(&*membership(cache, group_id, user_id)?))
            })
            .await
    }

    /// Whether a user is in a group.
    ///
    /// # Errors
    /// `NotFound` if not; `Forbidden`.
    pub async fn group_check(&self, caller: &Caller, group_id: &str, user_id: &str) -> Result<()> {
        let rule = "identity:check_user_in_group";
        let target = [("user_id", user_id)];
        let own = caller.user_id == user_id && said(rule, caller, &Target::of(&target)) != Some(false);
        if !own {
            self.entity_seen::<Group>(caller, group_id, rule).await?;
        }
        self.db.caught_up().await?;
        membership(self.db.cache(), group_id, user_id).map(drop)
    }

    /// Who is in a group.
    pub async fn group_users(&self, caller: &Caller, group_id: &str) -> Result<Vec<Arc<Stored<User>>>> {
        self.entity_seen::<Group>(caller, group_id, "identity:list_users_in_group").await?;
        let cache = self.db.cache();
        let members = cache.filter::<GroupMember>(|row| row.group_id == group_id);
        Ok(members.iter().filter_map(|member| cache.get::<User>(&member.row.user_id)).collect())
    }

    /// The groups that a user is in; everyone may see their own.
    pub async fn user_groups(&self, caller: &Caller, user_id: &str) -> Result<Vec<Arc<Stored<Group>>>> {
        self.entity_seen::<User>(caller, user_id, "identity:list_groups_for_user").await?;
        Ok(groups_of(self.db.cache(), user_id))
    }
}

/// The groups that a user is in.
pub(crate) fn groups_of(cache: &Cache, user_id: &str) -> Vec<Arc<Stored<Group>>> {
    let members = cache.list_under::<GroupMember>(&format!("{user_id}/"));
    members.iter().filter_map(|member| cache.get::<Group>(&member.row.group_id)).collect()
}

fn may_change(cache: &Cache, caller: &Caller, group_id: &str, action: &'static str) -> Result<()> {
    let group = cache.get::<Group>(group_id);
    match group {
        Some(group) if may(action, caller, &group.row, Group::writable) => Ok(()),
        None if caller.is_admin() => Err(Error::not_found("Group", group_id)),
        _ => Err(Error::Forbidden { action }),
    }
}

fn membership(cache: &Cache, group_id: &str, user_id: &str) -> Result<Arc<Stored<GroupMember>>> {
    cache.get::<Group>(group_id).ok_or_else(|| Error::not_found("Group", group_id))?;
    cache
        .get::<GroupMember>(&GroupMember::new(user_id, group_id).id)
        .ok_or_else(|| Error::not_found("User", format!("{user_id} in group {group_id}")))
}
