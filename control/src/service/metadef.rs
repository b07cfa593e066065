//! Metadata definitions: namespaces and what is in them. Everybody reads what is public and what is their project's;
//! administrators write.

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Map, Value};

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::metadef::{MetadefEntry, MetadefKind, MetadefNamespace, ResourceTypeAssociation};
use crate::model::random_uuid;
use crate::policy::require_admin;
use crate::service::metadef_access::{may_see, named, visible};
use crate::store::{Cache, Stored, Txn};

/// The longest name of anything here in characters: what Glance's columns hold.
pub const NAME_CHARACTERS_MAX: usize = 80;
/// The longest description of a namespace in characters.
pub const DESCRIPTION_CHARACTERS_MAX: usize = 500;
/// The most entries that one request may bring: they go into one transaction of at most 128 changes.
pub const REQUEST_ENTRIES_MAX: usize = 100;
/// The most entries of one namespace; the largest of the published catalogues has some hundreds.
pub const ENTRIES_MAX: u32 = 2000;
/// The most resource types of one namespace.
pub const RESOURCE_TYPES_MAX: usize = 64;

/// The kinds of resources that are there before any namespace speaks of them, as in a new Glance.
pub const RESOURCE_TYPES: [&str; 5] = [
    "OS::Cinder::Volume",
    "OS::Glance::Image",
    "OS::Nova::Aggregate",
    "OS::Nova::Flavor",
    "OS::Nova::Server",
];

/// A namespace as somebody wants it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NamespaceWish {
    /// Its name.
    pub name: String,
    /// What people call it.
    pub display_name: Option<String>,
    /// What it is about.
    pub description: Option<String>,
    /// `public` or `private`.
    pub visibility: Option<String>,
    /// Refuses deletion.
    pub protected: Option<bool>,
    /// The owner's project.
    pub owner: Option<String>,
}

/// An entry as somebody wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct EntryWish {
    /// What it is.
    pub kind: MetadefKind,
    /// Its name.
    pub name: String,
    /// What it says.
    pub body: Map<String, Value>,
}

/// A resource type as somebody wants it to belong to a namespace.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AssociationWish {
    /// The kind of resource.
    pub name: String,
    /// What properties' names begin with.
    pub prefix: Option<String>,
    /// Which set of properties.
    pub properties_target: Option<String>,
}

fn name_key(name: &str) -> String {
    format!("metadef_namespace_name/{name}")
}

fn check_name(what: &str, name: &str) -> Result<()> {
    let characters = name.chars().count();
    if (1..=NAME_CHARACTERS_MAX).contains(&characters) && !name.contains('\0') {
        return Ok(());
    }
    let message = format!("the name of a {what} has from 1 to {NAME_CHARACTERS_MAX} characters");
    Err(Error::invalid("Invalid", message))
}

fn check_wish(wish: &NamespaceWish) -> Result<()> {
    check_name("namespace", &wish.name)?;
    let fits = |text: &Option<String>, most: usize| text.iter().all(|text| text.chars().count() <= most);
    if !fits(&wish.display_name, NAME_CHARACTERS_MAX) || !fits(&wish.description, DESCRIPTION_CHARACTERS_MAX)
    {
        let message = "display_name has at most 80 characters and description at most 500";
        return Err(Error::invalid("Invalid", message));
    }
    if wish.visibility.as_ref().is_some_and(|visibility| !["public", "private"].contains(&&**visibility)) {
        return Err(Error::invalid("Invalid", "visibility is public or private"));
    }
    Ok(())
}

fn new_entry(namespace_id: &str, wish: EntryWish, now: Timestamp) -> Result<MetadefEntry> {
    check_name(wish.kind.name(), &wish.name)?;
    Ok(MetadefEntry {
        id: MetadefEntry::key(namespace_id, wish.kind, &wish.name),
        namespace_id: namespace_id.to_owned(),
        kind: wish.kind,
        name: wish.name,
        body: wish.body,
        created_at: now,
        updated_at: now,
    })
}

fn new_association(wish: AssociationWish, now: Timestamp) -> Result<ResourceTypeAssociation> {
    check_name("resource type", &wish.name)?;
    let texts = wish.prefix.iter().chain(&wish.properties_target);
    for text in texts.filter(|text| !text.is_empty()) {
        check_name("prefix", text)?;
    }
    let AssociationWish { name, prefix, properties_target } = wish;
    Ok(ResourceTypeAssociation { name, prefix, properties_target, created_at: now })
}

fn duplicate(what: &str, name: &str, namespace: &str) -> Error {
    let message =
        format!("A metadata definition {what} with name={name} already exists in namespace={namespace}.");
    Error::conflict("Duplicate", message)
}

fn too_many() -> Error {
    Error::QuotaExceeded {
        resource: "metadata definitions of a namespace",
        requested: 1,
        used: ENTRIES_MAX.into(),
        limit: ENTRIES_MAX.into(),
    }
}

fn require_unprotected(namespace: &MetadefNamespace) -> Result<()> {
    if namespace.protected {
        return Err(Error::Forbidden { action: "deletion in a protected namespace" });
    }
    Ok(())
}

/// Counts entries in and out of the namespace's row, in the transaction that makes or deletes them.
fn counted(txn: Txn, stored: &Stored<MetadefNamespace>, entries: u32) -> Txn {
    txn.update(stored, &MetadefNamespace { entries, ..stored.row.clone() })
}

impl Control {
    /// All namespaces that the caller may see.
    pub async fn metadef_namespaces(&self, caller: &Caller) -> Result<Vec<Arc<Stored<MetadefNamespace>>>> {
        self.db.caught_up().await?;
        let mut namespaces = self.db.cache().list::<MetadefNamespace>();
        namespaces.retain(|stored| may_see(caller, &stored.row));
        Ok(namespaces)
    }

    /// One of them, by name.
    pub async fn metadef_namespace(
        &self,
        caller: &Caller,
        name: &str,
    ) -> Result<Arc<Stored<MetadefNamespace>>> {
        self.db.caught_up().await?;
        visible(self.db.cache(), caller, name)
    }

    /// Makes a namespace with what is in it at once.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`; `Conflict` if the name is taken or an entry comes twice.
    pub async fn metadef_namespace_create(
        &self,
        caller: &Caller,
        wish: NamespaceWish,
        associations: Vec<AssociationWish>,
        entries: Vec<EntryWish>,
    ) -> Result<Arc<Stored<MetadefNamespace>>> {
        require_admin(caller, "add_metadef_namespace")?;
        check_wish(&wish)?;
        if entries.len() > REQUEST_ENTRIES_MAX || associations.len() > RESOURCE_TYPES_MAX {
            let message = format!(
                "one request brings at most {REQUEST_ENTRIES_MAX} definitions and {RESOURCE_TYPES_MAX} resource types"
            );
            return Err(Error::invalid("Invalid", message));
        }
        let now = Timestamp::now();
        let mut namespace = MetadefNamespace {
            id: random_uuid(),
            name: wish.name,
            display_name: wish.display_name,
            description: wish.description,
            visibility: wish.visibility.unwrap_or_else(|| "private".to_owned()),
            protected: wish.protected.unwrap_or(false),
            owner: wish.owner.or_else(|| caller.project_id().map(str::to_owned)).unwrap_or_default(),
            resource_types: Vec::new(),
            entries: u32::try_from(entries.len()).unwrap_or(ENTRIES_MAX),
            created_at: now,
            updated_at: now,
        };
        for association in associations {
            if namespace.resource_types.iter().any(|have| have.name == association.name) {
                return Err(duplicate("resource type", &association.name, &namespace.name));
            }
            namespace.resource_types.push(new_association(association, now)?);
        }
        let mut rows: Vec<MetadefEntry> = Vec::with_capacity(entries.len());
        for wish in entries {
            let row = new_entry(&namespace.id, wish, now)?;
            if rows.iter().any(|have| have.id == row.id) {
                return Err(duplicate(row.kind.name(), &row.name, &namespace.name));
            }
            rows.push(row);
        }
        self.db
            .transact(|cache| {
                if cache.find::<MetadefNamespace>(|have| have.name == namespace.name).is_some() {
                    let message =
                        format!("The metadata definition namespace={} already exists.", namespace.name);
                    return Err(Error::conflict("Duplicate", message));
                }
                let txn = Txn::new().create(&namespace).unique(name_key(&namespace.name));
                Ok(rows.iter().fold(txn, |txn, row| txn.create(row)))
            })
            .await?;
        named(self.db.cache(), &namespace.name)
    }

    /// Changes a namespace; what the wish leaves out is as in a new one, except owner and visibility, which stay.
    pub async fn metadef_namespace_update(
        &self,
        caller: &Caller,
        name: &str,
        wish: NamespaceWish,
    ) -> Result<Arc<Stored<MetadefNamespace>>> {
        self.db.caught_up().await?;
        check_wish(&wish)?;
        self.db
            .transact(|cache| {
                let stored = visible(cache, caller, name)?;
                require_admin(caller, "modify_metadef_namespace")?;
                let wish = wish.clone();
                let row = MetadefNamespace {
                    name: wish.name,
                    display_name: wish.display_name,
                    description: wish.description,
                    visibility: wish.visibility.unwrap_or_else(|| stored.row.visibility.clone()),
                    protected: wish.protected.unwrap_or(false),
                    owner: wish.owner.unwrap_or_else(|| stored.row.owner.clone()),
                    updated_at: Timestamp::now(),
                    ..stored.row.clone()
                };
                let txn = Txn::new().update(&stored, &row);
                if row.name == stored.row.name {
                    return Ok(txn);
                }
                if cache.find::<MetadefNamespace>(|have| have.name == row.name).is_some() {
                    let message = format!("The metadata definition namespace={} already exists.", row.name);
                    return Err(Error::conflict("Duplicate", message));
                }
                Ok(txn.release(name_key(&stored.row.name)).unique(name_key(&row.name)))
            })
            .await?;
        named(self.db.cache(), &wish.name)
    }

    /// Deletes a namespace with all that is in it. A large one goes in several steps, entries first, so that what a
    /// crash leaves is a namespace that can be deleted again.
    ///
    /// # Errors
    /// `Forbidden` if it is protected.
    pub async fn metadef_namespace_delete(&self, caller: &Caller, name: &str) -> Result<()> {
        for kind in [MetadefKind::Object, MetadefKind::Property, MetadefKind::Tag] {
            self.metadef_clear(caller, name, kind).await?;
        }
        self.db
            .transact(|cache| {
                let stored = visible(cache, caller, name)?;
                require_admin(caller, "delete_metadef_namespace")?;
                require_unprotected(&stored.row)?;
                if stored.row.entries > 0 {
                    return Err(Error::conflict("InUse", format!("somebody adds to the namespace {name}")));
                }
                Ok(Txn::new().delete(&stored).release(name_key(name)))
            })
            .await
    }

    /// A namespace's entries of a kind.
    pub fn metadef_entries(
        &self,
        namespace: &MetadefNamespace,
        kind: MetadefKind,
    ) -> Vec<Arc<Stored<MetadefEntry>>> {
        self.db.cache().list_under(&MetadefEntry::prefix(&namespace.id, kind))
    }

    /// One of them.
    ///
    /// # Errors
    /// `NotFound`.
    pub fn metadef_entry(
        &self,
        namespace: &MetadefNamespace,
        kind: MetadefKind,
        name: &str,
    ) -> Result<Arc<Stored<MetadefEntry>>> {
        entry(self.db.cache(), namespace, kind, name)
    }

    /// Adds entries, all or none; they are returned.
    ///
    /// # Errors
    /// `Conflict` if one is there already.
    pub async fn metadef_add(
        &self,
        caller: &Caller,
        namespace: &str,
        wishes: Vec<EntryWish>,
    ) -> Result<Vec<MetadefEntry>> {
        if wishes.len() > REQUEST_ENTRIES_MAX {
            let message = format!("one request brings at most {REQUEST_ENTRIES_MAX} definitions");
            return Err(Error::invalid("Invalid", message));
        }
        self.db.caught_up().await?;
        let now = Timestamp::now();
        self.db
            .transact_with(|cache| {
                let stored = visible(cache, caller, namespace)?;
                require_admin(caller, "add_metadef_object")?;
                let mut txn = Txn::new();
                let mut made: Vec<MetadefEntry> = Vec::with_capacity(wishes.len());
                for wish in &wishes {
                    let row = new_entry(&stored.row.id, wish.clone(), now)?;
                    if cache.get::<MetadefEntry>(&row.id).is_some()
                        || made.iter().any(|other| other.id == row.id)
                    {
                        return Err(duplicate(row.kind.name(), &row.name, namespace));
                    }
                    txn = txn.create(&row);
                    made.push(row);
                }
                let entries = stored.row.entries + u32::try_from(made.len()).unwrap_or(ENTRIES_MAX);
                if entries > ENTRIES_MAX {
                    return Err(too_many());
                }
                Ok((counted(txn, &stored, entries), made))
            })
            .await
    }

    /// Changes an entry, its name too.
    pub async fn metadef_change(
        &self,
        caller: &Caller,
        namespace: &str,
        name: &str,
        wish: EntryWish,
    ) -> Result<Arc<Stored<MetadefEntry>>> {
        self.db.caught_up().await?;
        check_name(wish.kind.name(), &wish.name)?;
        self.db
            .transact(|cache| {
                let stored = visible(cache, caller, namespace)?;
                require_admin(caller, "modify_metadef_object")?;
                let old = entry(cache, &stored.row, wish.kind, name)?;
                let row = MetadefEntry {
                    id: MetadefEntry::key(&stored.row.id, wish.kind, &wish.name),
                    name: wish.name.clone(),
                    body: wish.body.clone(),
                    updated_at: Timestamp::now(),
                    ..old.row.clone()
                };
                if row.id == old.row.id {
                    return Ok(Txn::new().update(&old, &row));
                }
                if cache.get::<MetadefEntry>(&row.id).is_some() {
                    return Err(duplicate(row.kind.name(), &row.name, namespace));
                }
                Ok(Txn::new().delete(&old).create(&row).require(&stored))
            })
            .await?;
        let stored = named(self.db.cache(), namespace)?;
        self.metadef_entry(&stored.row, wish.kind, &wish.name)
    }

    /// Deletes an entry.
    pub async fn metadef_remove(
        &self,
        caller: &Caller,
        namespace: &str,
        kind: MetadefKind,
        name: &str,
    ) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = visible(cache, caller, namespace)?;
                require_admin(caller, "delete_metadef_object")?;
                require_unprotected(&stored.row)?;
                let old = entry(cache, &stored.row, kind, name)?;
                Ok(counted(Txn::new().delete(&old), &stored, stored.row.entries.saturating_sub(1)))
            })
            .await
    }

    /// Deletes all entries of a kind, at most [`REQUEST_ENTRIES_MAX`] in one transaction.
    pub async fn metadef_clear(&self, caller: &Caller, namespace: &str, kind: MetadefKind) -> Result<()> {
        self.db.caught_up().await?;
        loop {
            let left = self
                .db
                .transact_with(|cache| {
                    let stored = visible(cache, caller, namespace)?;
                    require_admin(caller, "delete_metadef_object")?;
                    require_unprotected(&stored.row)?;
                    let entries =
                        cache.list_under::<MetadefEntry>(&MetadefEntry::prefix(&stored.row.id, kind));
                    if entries.is_empty() {
                        return Ok((Txn::new(), 0));
                    }
                    let gone = entries.iter().take(REQUEST_ENTRIES_MAX);
                    let count = u32::try_from(gone.len()).unwrap_or(u32::MAX);
                    let txn = gone.fold(Txn::new(), |txn, entry| txn.delete(entry));
                    let txn = counted(txn, &stored, stored.row.entries.saturating_sub(count));
                    Ok((txn, entries.len().saturating_sub(REQUEST_ENTRIES_MAX)))
                })
                .await?;
            if left == 0 {
                return Ok(());
            }
        }
    }

    /// Says that a namespace is about a kind of resource.
    pub async fn metadef_associate(
        &self,
        caller: &Caller,
        namespace: &str,
        wish: AssociationWish,
    ) -> Result<ResourceTypeAssociation> {
        self.db.caught_up().await?;
        let association = new_association(wish, Timestamp::now())?;
        self.db
            .transact(|cache| {
                let stored = visible(cache, caller, namespace)?;
                require_admin(caller, "add_metadef_resource_type_association")?;
                let mut row = stored.row.clone();
                if row.resource_types.iter().any(|have| have.name == association.name) {
                    return Err(duplicate("resource type", &association.name, namespace));
                }
                if row.resource_types.len() >= RESOURCE_TYPES_MAX {
                    return Err(too_many());
                }
                row.resource_types.push(association.clone());
                Ok(Txn::new().update(&stored, &row))
            })
            .await?;
        Ok(association)
    }

    /// Takes that back.
    pub async fn metadef_dissociate(&self, caller: &Caller, namespace: &str, name: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = visible(cache, caller, namespace)?;
                require_admin(caller, "remove_metadef_resource_type_association")?;
                require_unprotected(&stored.row)?;
                let mut row = stored.row.clone();
                row.resource_types.retain(|have| have.name != name);
                if row.resource_types.len() == stored.row.resource_types.len() {
                    return Err(Error::not_found("Metadata definition resource type", name));
                }
                Ok(Txn::new().update(&stored, &row))
            })
            .await
    }
}

fn entry(
    cache: &Cache,
    namespace: &MetadefNamespace,
    kind: MetadefKind,
    name: &str,
) -> Result<Arc<Stored<MetadefEntry>>> {
    let what = match kind {
        MetadefKind::Object => "Metadata definition object",
        MetadefKind::Property => "Metadata definition property",
        MetadefKind::Tag => "Metadata definition tag",
    };
    cache.get(&MetadefEntry::key(&namespace.id, kind, name)).ok_or_else(|| Error::not_found(what, name))
}
