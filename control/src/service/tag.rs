//! Tags of any resource of the network service (Network API: tag operations).

use std::collections::BTreeSet;

use super::network::touch;
use super::network_resource::{NetworkResource, check_revision, visible};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::policy::require_member;
use crate::store::Txn;

/// The most characters of a tag (Neutron's `MAX_TAG_LEN`).
pub const TAG_CHARACTERS_MAX: usize = 255;
/// The most tags of one resource (Neutron's `MAX_TAGS_COUNT`).
pub const TAGS_MAX: usize = 50;

/// Resources that tags can be put on, with the rules that say who may.
pub trait Taggable: NetworkResource {
    /// The rule of adding several (`create_network:tags`).
    const CREATE_TAGS: &'static str;
    /// The rule of replacing and of adding one.
    const UPDATE_TAGS: &'static str;
    /// The rule of taking away.
    const DELETE_TAGS: &'static str;
}

/// Makes resources taggable, by their name in rules.
macro_rules! taggable {
    ($($type:ty: $name:literal;)*) => {
        $(impl $crate::service::tag::Taggable for $type {
            const CREATE_TAGS: &'static str = concat!("create_", $name, ":tags");
            const UPDATE_TAGS: &'static str = concat!("update_", $name, ":tags");
            const DELETE_TAGS: &'static str = concat!("delete_", $name, ":tags");
        })*
    };
}
pub(crate) use taggable;

taggable! {
    crate::model::network::Network: "network";
    crate::model::network::Subnet: "subnet";
    crate::model::network::Port: "port";
    crate::model::network::SecurityGroup: "security_group";
}

/// What shall become of a resource's tags.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TagChange {
    /// These and no others.
    Replace(BTreeSet<String>),
    /// These too.
    Add(BTreeSet<String>),
    /// This one too.
    AddOne(String),
    /// Not this one.
    Remove(String),
    /// None.
    Clear,
}

impl Control {
    /// The tags of a resource.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn tags<T: Taggable>(&self, caller: &Caller, id: &str) -> Result<BTreeSet<String>> {
        self.db.caught_up().await?;
        let row = visible::<T>(self.db.cache(), caller, id).map_err(|_| missing(id))?;
        Ok(row.row.standard().tags.clone())
    }

    /// Changes the tags of a resource; the tags after it.
    ///
    /// # Errors
    /// `NotFound` for the resource or a tag to take away; `Invalid` for tags that are too long, or too many.
    pub async fn tags_change<T: Taggable>(
        &self,
        caller: &Caller,
        id: &str,
        change: TagChange,
    ) -> Result<BTreeSet<String>> {
        let rule = match &change {
            TagChange::Add(_) => T::CREATE_TAGS,
            TagChange::Replace(_) | TagChange::AddOne(_) => T::UPDATE_TAGS,
            TagChange::Remove(_) | TagChange::Clear => T::DELETE_TAGS,
        };
        self.db.caught_up().await?;
        self.db
            .transact_with(|cache| {
                let stored = visible::<T>(cache, caller, id).map_err(|_| missing(id))?;
                require_member(caller, &stored.row.standard().project_id, rule)?;
                check_revision(caller, stored.row.standard())?;
                let mut row = stored.row.clone();
                let tags = &mut row.standard_mut().tags;
                match change.clone() {
                    TagChange::Replace(new) => *tags = new,
                    TagChange::Add(new) => tags.extend(new),
                    TagChange::AddOne(tag) => {
                        tags.insert(tag);
                    }
                    TagChange::Remove(tag) if !tags.remove(&tag) => return Err(Error::not_found("Tag", tag)),
                    TagChange::Remove(_) => {}
                    TagChange::Clear => tags.clear(),
                }
                check_tags(tags)?;
                let tags = tags.clone();
                if row.standard().tags == stored.row.standard().tags {
                    return Ok((Txn::new(), tags));
                }
                touch(row.standard_mut());
                Ok((Txn::new().update(&stored, &row), tags))
            })
            .await
    }
}

/// Refuses tags that are too long, or too many.
pub(crate) fn check_tags(tags: &BTreeSet<String>) -> Result<()> {
    if tags.len() > TAGS_MAX {
        let message = format!("The number of tags exceed the per-resource limit of {TAGS_MAX}");
        return Err(Error::invalid("BadRequest", message));
    }
    let is_bad = |tag: &&String| tag.is_empty() || tag.chars().count() > TAG_CHARACTERS_MAX;
    match tags.iter().find(is_bad) {
        Some(tag) => {
            let begin: String = tag.chars().take(TAG_CHARACTERS_MAX).collect();
            let message = format!(
                "Invalid input for operation: a tag has 1 to {TAG_CHARACTERS_MAX} characters, '{begin}' has {}.",
                tag.chars().count()
            );
            Err(Error::invalid("InvalidInput", message))
        }
        None => Ok(()),
    }
}

fn missing(id: &str) -> Error {
    Error::not_found("Tag resource", id)
}
