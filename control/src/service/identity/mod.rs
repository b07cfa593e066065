//! Resources of the identity service: what is alike in listing, making, changing and deleting them stands here once.
//! What each of them asks for beyond that is its [`Entity`], in a file of its own.

pub mod application_credential;
pub mod assignment;
pub mod catalog;
pub mod credential;
pub mod domain;
pub mod domain_config;
pub mod group;
pub mod limit;
pub mod oauth;
pub mod project;
pub mod role;
pub mod trust;
pub mod user;

use std::collections::BTreeSet;
use std::sync::Arc;

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::identity::{Extra, Project};
use crate::policy::{self, Target};
use crate::store::{Cache, Row, Stored, Txn};

/// The id of the domain that is there from the start.
pub const DEFAULT_DOMAIN_ID: &str = "default";
/// The longest name in characters, as Keystone's columns.
pub const NAME_CHARACTERS_MAX: usize = 255;
/// The longest name of a project or domain in characters.
pub const PROJECT_NAME_CHARACTERS_MAX: usize = 64;
/// The longest description or further value in characters: what tempest and people use, many times over.
pub const TEXT_CHARACTERS_MAX: usize = 4096;
/// The most further values of a resource.
pub const EXTRA_MAX: usize = 32;
/// The most bytes of all further values of a resource as JSON.
const EXTRA_BYTES_MAX: usize = 64 << 10;
/// How many changes one transaction of a deletion holds: below what the store takes, with room for the row itself.
const REMOVED_MAX: usize = 96;

/// What the actions on a kind of resource are called where they are refused.
#[derive(Debug, Clone, Copy)]
pub struct Rules {
    /// Listing.
    pub list: &'static str,
    /// Showing.
    pub get: &'static str,
    /// Making.
    pub create: &'static str,
    /// Changing.
    pub update: &'static str,
    /// Deleting.
    pub delete: &'static str,
}

macro_rules! rules {
    ($one:literal, $many:literal) => {
        $crate::service::identity::Rules {
            list: concat!("identity:list_", $many),
            get: concat!("identity:get_", $one),
            create: concat!("identity:create_", $one),
            update: concat!("identity:update_", $one),
            delete: concat!("identity:delete_", $one),
        }
    };
}
pub(crate) use rules;

/// A resource of the identity service.
pub trait Entity: Row {
    /// As people read it, for example `Project`.
    const NOUN: &'static str;
    /// What its actions are called.
    const RULES: Rules;

    /// Whether the caller may list, as far as it can see.
    fn listable(caller: &Caller) -> bool {
        caller.reads_system()
    }

    /// Whether the caller may see this one.
    fn readable(&self, caller: &Caller) -> bool {
        caller.reads_system()
    }

    /// Whether the caller may make, change and delete this one.
    fn writable(&self, caller: &Caller) -> bool {
        caller.is_admin()
    }

    /// Whose it is, by the keys that policy files name.
    fn keys(&self) -> Vec<(&'static str, &str)> {
        Vec::new()
    }

    /// The keys that no other row may have.
    fn unique(&self) -> Vec<String> {
        Vec::new()
    }

    /// Its name, for the message that it is taken.
    fn label(&self) -> &str {
        self.id()
    }

    /// Must not be changed or deleted.
    fn immutable(&self) -> bool {
        false
    }

    /// Whether it may be as it is now; `before` is what it was, if it is not new.
    ///
    /// # Errors
    /// Why not.
    fn admit(&self, cache: &Cache, before: Option<&Self>) -> Result<()>;

    /// What has to be there when the transaction is committed, and what changes with it.
    ///
    /// # Errors
    /// `NotFound` for what is not there.
    fn bind(&self, _cache: &Cache, _before: Option<&Self>, txn: Txn) -> Result<Txn> {
        Ok(txn)
    }

    /// Whether it may be deleted.
    ///
    /// # Errors
    /// Why not.
    fn dismiss(&self, _cache: &Cache) -> Result<()> {
        Ok(())
    }

    /// What goes with it when it is deleted.
    fn dependents(&self, _removal: &mut Removal<'_>) {}
}

/// What a deletion takes away, each row once, what depends on another before it.
pub struct Removal<'c> {
    cache: &'c Cache,
    seen: BTreeSet<String>,
    pieces: Vec<Txn>,
}

impl<'c> Removal<'c> {
    /// Of nothing yet.
    pub(crate) fn new(cache: &'c Cache) -> Self {
        Self { cache, seen: BTreeSet::new(), pieces: Vec::new() }
    }

    /// This row alone.
    pub(crate) fn row<T: Row>(&mut self, stored: &Stored<T>) {
        self.row_with(stored, Vec::new());
    }

    /// This row and all that goes with it.
    pub(crate) fn entity<T: Entity>(&mut self, stored: &Stored<T>) {
        if !self.seen.contains(&crate::store::row::key::<T>(stored.row.id())) {
            stored.row.dependents(self);
            self.row_with(stored, stored.row.unique());
        }
    }

    /// All rows that `wanted` holds for, with all that goes with them.
    pub(crate) fn entities<T: Entity>(&mut self, wanted: impl FnMut(&T) -> bool) {
        for stored in self.cache.filter::<T>(wanted) {
            self.entity(&stored);
        }
    }

    /// All rows that `wanted` holds for.
    pub(crate) fn rows<T: Row>(&mut self, wanted: impl FnMut(&T) -> bool) {
        for stored in self.cache.filter::<T>(wanted) {
            self.row(&stored);
        }
    }

    fn row_with<T: Row>(&mut self, stored: &Stored<T>, unique: Vec<String>) {
        if self.seen.insert(crate::store::row::key::<T>(stored.row.id())) {
            let txn = Txn::new().delete(stored);
            self.pieces.push(unique.into_iter().fold(txn, Txn::release));
        }
    }

    /// As much as fits into one transaction, and whether that is all.
    pub(crate) fn first(self) -> (Txn, bool) {
        let mut txn = Txn::new();
        for piece in self.pieces {
            if txn.changes() + piece.changes() > REMOVED_MAX {
                return (txn, false);
            }
            txn = txn.and(piece);
        }
        (txn, true)
    }
}

impl Control {
    /// All rows of a kind that the caller may see.
    ///
    /// # Errors
    /// `Forbidden` if that would be none by rule.
    pub async fn entity_list<T: Entity>(&self, caller: &Caller) -> Result<Vec<Arc<Stored<T>>>> {
        let said = policy::said(T::RULES.list, caller, &Target::NONE);
        if !said.unwrap_or_else(|| T::listable(caller)) {
            return Err(Error::Forbidden { action: T::RULES.list });
        }
        self.db.caught_up().await?;
        Ok(self.db.cache().filter::<T>(|row| said == Some(true) || row.readable(caller)))
    }

    /// One row.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden` if the caller may not see it, or could see none of its kind.
    pub async fn entity_get<T: Entity>(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<T>>> {
        self.entity_seen(caller, id, T::RULES.get).await
    }

    /// As [`Control::entity_get`], by the rule of something that is shown of the row.
    ///
    /// # Errors
    /// As [`Control::entity_get`].
    pub async fn entity_seen<T: Entity>(
        &self,
        caller: &Caller,
        id: &str,
        rule: &'static str,
    ) -> Result<Arc<Stored<T>>> {
        self.db.caught_up().await?;
        match self.db.get::<T>(id) {
            Some(stored) if may(rule, caller, &stored.row, T::readable) => Ok(stored),
            None if T::listable(caller) => Err(Error::not_found(T::NOUN, id)),
            _ => Err(Error::Forbidden { action: rule }),
        }
    }

    /// Makes a row.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`; `Conflict` if its name is taken; `NotFound` for what it refers to.
    pub async fn entity_create<T: Entity>(&self, caller: &Caller, row: T) -> Result<Arc<Stored<T>>> {
        self.entities_create(caller, std::slice::from_ref(&row)).await?;
        self.stored(row.id(), T::NOUN)
    }

    /// Makes several rows in one transaction, so that all are made or none.
    ///
    /// # Errors
    /// As [`Control::entity_create`].
    pub async fn entities_create<T: Entity>(
        &self,
        caller: &Caller,
        rows: &[T],
    ) -> Result<Vec<Arc<Stored<T>>>> {
        if !rows.iter().all(|row| may(T::RULES.create, caller, row, T::writable)) {
            return Err(Error::Forbidden { action: T::RULES.create });
        }
        self.db
            .transact(|cache| {
                let mut txn = Txn::new();
                let mut together = BTreeSet::new();
                for row in rows {
                    row.admit(cache, None)?;
                    let unique = row.unique();
                    let twice = unique.iter().any(|key| !together.insert(key.clone()));
                    if twice || cache.get::<T>(row.id()).is_some() || is_taken(cache, row, &unique) {
                        return Err(taken(T::NOUN, row.label()));
                    }
                    txn = unique.into_iter().fold(txn.create(row), Txn::unique);
                    txn = row.bind(cache, None, txn)?;
                }
                Ok(txn)
            })
            .await?;
        rows.iter().map(|row| self.stored(row.id(), T::NOUN)).collect()
    }

    /// Changes a row as `change` says.
    ///
    /// # Errors
    /// As [`Control::entity_create`].
    pub async fn entity_update<T: Entity>(
        &self,
        caller: &Caller,
        id: &str,
        change: impl Fn(&mut T) -> Result<()>,
    ) -> Result<Arc<Stored<T>>> {
        self.change_entity(id, change, |row| {
            let allowed = may(T::RULES.update, caller, row, T::writable);
            if allowed { Ok(()) } else { Err(Error::Forbidden { action: T::RULES.update }) }
        })
        .await?;
        self.stored(id, T::NOUN)
    }

    /// Changes a row whoever asks, if `allow` says so.
    pub(crate) async fn change_entity<T: Entity>(
        &self,
        id: &str,
        change: impl Fn(&mut T) -> Result<()>,
        allow: impl Fn(&T) -> Result<()>,
    ) -> Result<()> {
        self.db
            .transact(|cache| {
                let stored = cache.get::<T>(id).ok_or_else(|| Error::not_found(T::NOUN, id))?;
                allow(&stored.row)?;
                let mut row = stored.row.clone();
                change(&mut row)?;
                if stored.row.immutable() && row.immutable() {
                    return Err(Error::Forbidden { action: "a change of an immutable resource" });
                }
                row.admit(cache, Some(&stored.row))?;
                let (before, after) = (stored.row.unique(), row.unique());
                if before != after && is_taken(cache, &row, &after) {
                    return Err(taken(T::NOUN, row.label()));
                }
                let gone = before.iter().filter(|key| !after.contains(key)).cloned();
                let new = after.iter().filter(|key| !before.contains(key)).cloned();
                let txn = new.fold(gone.fold(Txn::new(), Txn::release), Txn::unique);
                row.bind(cache, Some(&stored.row), txn.update(&stored, &row))
            })
            .await
    }

    /// Deletes a row with all that depends on it. Where that is more than one transaction holds, what depends goes
    /// first, and a deletion cut short can be asked for again.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Conflict`.
    pub async fn entity_delete<T: Entity>(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        loop {
            let all = self
                .db
                .transact_with(|cache| {
                    let stored = cache.get::<T>(id);
                    let Some(stored) = stored else {
                        let known = T::listable(caller) || caller.is_admin();
                        let forbidden = Error::Forbidden { action: T::RULES.delete };
                        return Err(if known { Error::not_found(T::NOUN, id) } else { forbidden });
                    };
                    if !may(T::RULES.delete, caller, &stored.row, T::writable) {
                        return Err(Error::Forbidden { action: T::RULES.delete });
                    }
                    if stored.row.immutable() {
                        return Err(Error::Forbidden { action: "the deletion of an immutable resource" });
                    }
                    stored.row.dismiss(cache)?;
                    let mut removal = Removal::new(cache);
                    removal.entity(&stored);
                    Ok(removal.first())
                })
                .await?;
            if all {
                return Ok(());
            }
        }
    }

    /// The domain that a request means which names none: the token's, or its project's.
    pub fn domain_of(&self, caller: &Caller) -> String {
        match &caller.scope {
            crate::caller::Scope::Domain(id) => id.clone(),
            crate::caller::Scope::Project(id) => self
                .db
                .get::<Project>(id)
                .map_or_else(|| DEFAULT_DOMAIN_ID.to_owned(), |project| project.row.domain_id.clone()),
            _ => DEFAULT_DOMAIN_ID.to_owned(),
        }
    }

    /// A row whose name stands beside what the caller may see.
    pub fn look_up<T: Entity>(&self, id: &str) -> Option<Arc<Stored<T>>> {
        self.db.get(id)
    }

    pub(super) fn stored<T: Row>(&self, id: &str, kind: &'static str) -> Result<Arc<Stored<T>>> {
        self.db.get(id).ok_or_else(|| Error::not_found(kind, id))
    }
}

/// Whether the caller may do what `rule` is about to a row: as a policy file says, else by default.
fn may<T: Entity>(rule: &str, caller: &Caller, row: &T, default: impl Fn(&T, &Caller) -> bool) -> bool {
    let said = policy::said(rule, caller, &Target::of(&row.keys()));
    said.unwrap_or_else(|| default(row, caller))
}

fn is_taken<T: Entity>(cache: &Cache, row: &T, unique: &[String]) -> bool {
    !unique.is_empty()
        && cache
            .find::<T>(|other| {
                other.id() != row.id() && other.unique().iter().any(|key| unique.contains(key))
            })
            .is_some()
}

/// That a row is there now and when the transaction is committed.
pub(crate) fn require<T: Entity>(cache: &Cache, txn: Txn, id: &str) -> Result<Txn> {
    cache.get::<T>(id).ok_or_else(|| Error::not_found(T::NOUN, id))?;
    Ok(txn.require_present::<T>(id))
}

/// That a reference of a body leads somewhere: what is not there is an error of the body.
pub(crate) fn require_valid<T: Entity>(cache: &Cache, txn: Txn, id: &str) -> Result<Txn> {
    require::<T>(cache, txn, id).map_err(|error| invalid(error.to_string()))
}

/// A body that says something that cannot be.
pub(crate) fn invalid(message: impl Into<String>) -> Error {
    Error::invalid("ValidationError", message)
}

pub(crate) fn check_name(kind: &str, name: &str, characters_max: usize) -> Result<()> {
    if name.trim().is_empty() || name.chars().count() > characters_max {
        return Err(invalid(format!("the name of a {kind} has between 1 and {characters_max} characters")));
    }
    Ok(())
}

pub(crate) fn check_text(field: &str, text: &str) -> Result<()> {
    if text.chars().count() > TEXT_CHARACTERS_MAX {
        return Err(invalid(format!("{field} has at most {TEXT_CHARACTERS_MAX} characters")));
    }
    Ok(())
}

pub(crate) fn check_extra(extra: &Extra) -> Result<()> {
    let bytes: usize = extra.iter().map(|(key, value)| key.len() + value.to_string().len()).sum();
    if extra.len() > EXTRA_MAX || bytes > EXTRA_BYTES_MAX {
        let message =
            format!("a resource has at most {EXTRA_MAX} further values of {EXTRA_BYTES_MAX} bytes together");
        return Err(invalid(message));
    }
    Ok(())
}

/// The one switch that domains, projects and roles have.
pub(crate) fn is_immutable(options: &Extra) -> bool {
    options.get("immutable").and_then(serde_json::Value::as_bool).unwrap_or(false)
}

/// Whether options of a domain, project or role are such.
pub(crate) fn check_options(options: &Extra) -> Result<()> {
    for (key, value) in options {
        if key != "immutable" || !value.is_boolean() {
            return Err(invalid(format!("the option {key} is none, or its value is not one of it")));
        }
    }
    Ok(())
}

pub(crate) fn taken(kind: &'static str, name: &str) -> Error {
    let kind = kind.to_lowercase();
    Error::conflict(
        "Conflict",
        format!("Conflict occurred attempting to store {kind} - Duplicate entry found with name {name}."),
    )
}
