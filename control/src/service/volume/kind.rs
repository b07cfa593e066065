//! Kinds of volumes (volume types): extra specs, who may use them, the default, how they are to be encrypted.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use super::{check_properties, check_text, invalid_input};
use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::identity::Project;
use crate::model::random_uuid;
use crate::model::volume::{DiskTask, DiskWork, Encryption, QosSpec, Volume, VolumeDefault, VolumeType};
use crate::policy::require_admin;
use crate::store::{Cache, Stored, Txn};

/// The type that is there from the beginning, as Cinder's.
pub const DEFAULT_NAME: &str = "__DEFAULT__";
/// The most projects that one type is opened to.
const ACCESS_MAX: usize = 1000;

fn name_key(name: &str) -> String {
    format!("volume_type_name/{name}")
}

/// The type by its id or its name, if the caller may use it.
pub(crate) fn find(cache: &Cache, caller: &Caller, wished: &str) -> Result<Arc<Stored<VolumeType>>> {
    let found =
        cache.get::<VolumeType>(wished).or_else(|| cache.find(|kind: &VolumeType| kind.name == wished));
    let found = found.filter(|found| may_use(caller, &found.row));
    found.ok_or_else(|| Error::not_found("Volume type", wished))
}

fn may_use(caller: &Caller, kind: &VolumeType) -> bool {
    kind.is_public
        || caller.is_admin()
        || caller.project_id().is_some_and(|project| kind.access.contains(project))
}

/// A transaction in which something gets a type that it was decided by: a conflict if that has changed since, as it has
/// when it is being deleted.
///
/// # Errors
/// `NotFound` if it is gone, or on its way; `Unavailable` for the moment in which its encryption changes.
pub(crate) fn given(cache: &Cache, txn: Txn, kind: &VolumeType) -> Result<Txn> {
    match cache.get::<VolumeType>(&kind.id).filter(|stored| !stored.row.leaving) {
        Some(stored) if stored.row.settling => {
            Err(Error::Unavailable(format!("the volume type {} is being changed; try again", kind.id)))
        }
        Some(stored) if stored.row == *kind => Ok(txn.require(&stored)),
        // It changed under the decision, which is taken anew.
        Some(_) => Ok(txn.require_absent::<VolumeType>(&kind.id)),
        None => Err(Error::not_found("Volume type", &kind.id)),
    }
}

/// The type that a project's volumes have if none is said.
pub(crate) fn default_type(cache: &Cache, project_id: &str) -> Result<VolumeType> {
    let of_project = cache.get::<VolumeDefault>(project_id);
    let of_project = of_project.and_then(|default| cache.get::<VolumeType>(&default.row.type_id));
    let found = of_project.or_else(|| cache.find(|kind: &VolumeType| kind.name == DEFAULT_NAME));
    found.map(|found| found.row.clone()).ok_or_else(|| Error::not_found("Volume type", DEFAULT_NAME))
}

/// Whether several servers may have one volume of this type.
pub(crate) fn is_multiattach(kind: &VolumeType) -> bool {
    kind.extra_specs.get("multiattach").is_some_and(|spec| spec.eq_ignore_ascii_case("<is> true"))
}

/// What to change of a type; `None` leaves it.
#[derive(Debug, Clone, Default)]
pub struct TypeChange {
    /// Name.
    pub name: Option<String>,
    /// Free text; the inner `None` clears it.
    pub description: Option<Option<String>>,
    /// Everyone may use it.
    pub is_public: Option<bool>,
}

impl Control {
    /// Makes the type that every cloud has, if it is missing.
    pub(crate) async fn volume_type_bootstrap(&self) -> Result<()> {
        self.db
            .transact(|cache| {
                if !cache.list::<VolumeType>().is_empty() {
                    return Ok(Txn::new());
                }
                let kind = new_type(DEFAULT_NAME, Some("Default Volume Type".to_owned()), true);
                Ok(Txn::new().create(&kind).unique(name_key(&kind.name)))
            })
            .await
    }

    /// The types that the caller may see.
    ///
    /// # Errors
    /// What the store says.
    pub async fn volume_types(&self, caller: &Caller) -> Result<Vec<Arc<Stored<VolumeType>>>> {
        self.db.caught_up().await?;
        Ok(self.db.cache().filter::<VolumeType>(|kind| may_use(caller, kind)))
    }

    /// One type, by id.
    ///
    /// # Errors
    /// `NotFound`.
    pub async fn volume_type(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<VolumeType>>> {
        self.db.caught_up().await?;
        let found = self.db.get::<VolumeType>(id).filter(|found| may_use(caller, &found.row));
        found.ok_or_else(|| Error::not_found("Volume type", id))
    }

    /// The type that the caller's volumes have if none is said.
    ///
    /// # Errors
    /// `NotFound` if it was deleted.
    pub async fn volume_type_default(&self, caller: &Caller) -> Result<Arc<Stored<VolumeType>>> {
        self.db.caught_up().await?;
        let kind = default_type(self.db.cache(), caller.project_id().unwrap_or_default())?;
        self.volume_type(caller, &kind.id).await
    }

    /// Makes a type.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `Invalid`; `Conflict` for a name that is taken.
    pub async fn volume_type_create(
        &self,
        caller: &Caller,
        (name, description, is_public): (&str, Option<String>, bool),
        extra_specs: BTreeMap<String, String>,
    ) -> Result<Arc<Stored<VolumeType>>> {
        require_admin(caller, "volume_extension:type_create")?;
        check_name(name)?;
        check_text("description", description.as_ref())?;
        check_properties(&extra_specs)?;
        self.db.caught_up().await?;
        let kind = VolumeType { extra_specs, ..new_type(name.trim(), description, is_public) };
        self.db
            .transact(|cache| {
                refuse_taken(cache, &kind.name, None)?;
                Ok(Txn::new().create(&kind).unique(name_key(&kind.name)))
            })
            .await?;
        self.volume_type(caller, &kind.id).await
    }

    /// Changes a type.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`; `Invalid`; `Conflict` for a name that is taken.
    pub async fn volume_type_update(
        &self,
        caller: &Caller,
        id: &str,
        change: TypeChange,
    ) -> Result<Arc<Stored<VolumeType>>> {
        if let Some(name) = &change.name {
            check_name(name)?;
        }
        check_text("description", change.description.as_ref().and_then(Option::as_ref))?;
        self.volume_type_change(caller, id, "volume_extension:type_update", |cache, kind| {
            let mut txn = Txn::new();
            if let Some(name) = change.name.as_deref().map(str::trim).filter(|name| *name != kind.name) {
                refuse_taken(cache, name, Some(&kind.id))?;
                txn = txn.release(name_key(&kind.name)).unique(name_key(name));
                kind.name = name.to_owned();
            }
            if let Some(description) = &change.description {
                kind.description.clone_from(description);
            }
            kind.is_public = change.is_public.unwrap_or(kind.is_public);
            Ok(txn)
        })
        .await
    }

    /// Deletes a type that no volume has.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`; `Invalid` while it is in use or is the default.
    pub async fn volume_type_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        require_admin(caller, "volume_extension:type_delete")?;
        self.db.caught_up().await?;
        // No transaction can compare that no row has it. So first no volume gets it any more; then those that have it are
        // all that ever will.
        self.db
            .transact(|cache| {
                let stored =
                    cache.get::<VolumeType>(id).ok_or_else(|| Error::not_found("Volume type", id))?;
                refuse_in_use(cache, &stored.row)?;
                Ok(Txn::new().update(&stored, &VolumeType { leaving: true, ..stored.row.clone() }))
            })
            .await?;
        self.volume_type_leaves(id).await
    }

    /// Deletes a type that no volume gets any more, or keeps it if one has it.
    async fn volume_type_leaves(&self, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        let refused = self.db.transact_with(|cache| {
            let Some(stored) = cache.get::<VolumeType>(id).filter(|stored| stored.row.leaving) else {
                return Ok((Txn::new(), None));
            };
            Ok(match refuse_in_use(cache, &stored.row) {
                Ok(()) => (Txn::new().delete(&stored).release(name_key(&stored.row.name)), None),
                Err(refused) => {
                    let kept = VolumeType { leaving: false, ..stored.row.clone() };
                    (Txn::new().update(&stored, &kept), Some(refused))
                }
            })
        });
        refused.await?.map_or(Ok(()), Err)
    }

    /// At start: deletions of types that a crash cut off come to their end.
    pub(crate) async fn volume_types_recover(&self) -> Result<()> {
        self.db.caught_up().await?;
        // What was about to change was not answered: it stays as it was.
        for stored in self.db.cache().filter::<VolumeType>(|kind| kind.settling) {
            let kind = VolumeType { settling: false, ..stored.row.clone() };
            self.db.transact(|_| Ok(Txn::new().update(&stored, &kind))).await?;
        }
        for stored in self.db.cache().filter::<VolumeType>(|kind| kind.leaving) {
            match self.volume_type_leaves(&stored.row.id).await {
                // In use, it is kept.
                Ok(()) | Err(Error::Invalid { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Changes a type by what `change` makes of its row.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`; what `change` says.
    pub async fn volume_type_change(
        &self,
        caller: &Caller,
        id: &str,
        action: &'static str,
        change: impl Fn(&Cache, &mut VolumeType) -> Result<Txn>,
    ) -> Result<Arc<Stored<VolumeType>>> {
        require_admin(caller, action)?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored =
                    cache.get::<VolumeType>(id).ok_or_else(|| Error::not_found("Volume type", id))?;
                let mut kind = stored.row.clone();
                let txn = change(cache, &mut kind)?;
                check_properties(&kind.extra_specs)?;
                if kind.access.len() > ACCESS_MAX {
                    return Err(invalid_input(format!("A type is opened to at most {ACCESS_MAX} projects.")));
                }
                if kind == stored.row {
                    return Ok(txn);
                }
                kind.updated_at = Some(Timestamp::now());
                Ok(txn.update(&stored, &kind))
            })
            .await?;
        self.volume_type(caller, id).await
    }

    /// Opens a type that is not public to a project, or closes it.
    ///
    /// # Errors
    /// As [`Control::volume_type_change`]; `Conflict` for a public type or where it is so already.
    pub async fn volume_type_access(
        &self,
        caller: &Caller,
        id: &str,
        project_id: &str,
        open: bool,
    ) -> Result<()> {
        let action = match open {
            true => "volume_extension:volume_type_access:addProjectAccess",
            false => "volume_extension:volume_type_access:removeProjectAccess",
        };
        self.volume_type_change(caller, id, action, |_, kind| {
            if kind.is_public {
                let message = "Type access modification is not applicable to public volume type.";
                return Err(Error::conflict("InvalidVolumeType", message));
            }
            let changed =
                if open { kind.access.insert(project_id.to_owned()) } else { kind.access.remove(project_id) };
            match (changed, open) {
                (true, _) => Ok(Txn::new()),
                (false, true) => Err(Error::conflict(
                    "VolumeTypeAccessExists",
                    format!("Volume type access for {id} / {project_id} combination already exists."),
                )),
                (false, false) => Err(Error::NotFound {
                    kind: "Volume type access",
                    id: format!("for {id} / {project_id} combination"),
                }),
            }
        })
        .await
        .map(drop)
    }

    /// Says how a type's volumes are to be encrypted, or that they are not. Only while no volume has the type.
    ///
    /// # Errors
    /// As [`Control::volume_type_change`]; `Invalid` while it is in use.
    pub async fn volume_type_encrypt(
        &self,
        caller: &Caller,
        id: &str,
        encryption: Option<Encryption>,
    ) -> Result<()> {
        let action = "volume_extension:volume_type_encryption";
        let in_use = |cache: &Cache| {
            let message = "Cannot create encryption specs. Volume type in use.";
            let used = cache.find(|volume: &Volume| volume.type_id == id).is_some();
            used.then(|| invalid_input(message))
        };
        // No transaction can compare that no volume has it. So first no volume gets it; then those that have it are all
        // that there are.
        self.volume_type_change(caller, id, action, |cache, kind| {
            if kind.settling {
                return Err(Error::Unavailable(format!("the volume type {id} is being changed; try again")));
            }
            kind.settling = true;
            in_use(cache).map_or_else(|| Ok(Txn::new()), Err)
        })
        .await?;
        let refused = self.db.transact_with(|cache| {
            let stored = cache.get::<VolumeType>(id).ok_or_else(|| Error::not_found("Volume type", id))?;
            let refused = in_use(cache);
            let mut kind = VolumeType { settling: false, ..stored.row.clone() };
            if refused.is_none() {
                kind.encryption.clone_from(&encryption);
                kind.updated_at = Some(Timestamp::now());
            }
            Ok((Txn::new().update(&stored, &kind), refused))
        });
        refused.await?.map_or(Ok(()), Err)
    }

    /// The projects that have a default type of their own; only one's if a project is named.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound` for a project without one.
    pub async fn volume_type_defaults(
        &self,
        caller: &Caller,
        project_id: Option<&str>,
    ) -> Result<Vec<VolumeDefault>> {
        let all = "volume_extension:default_get_all";
        require_admin(caller, project_id.map_or(all, |_| "volume_extension:default_get"))?;
        self.db.caught_up().await?;
        match project_id {
            None => Ok(self.db.list::<VolumeDefault>().iter().map(|stored| stored.row.clone()).collect()),
            Some(id) => match self.db.get::<VolumeDefault>(id) {
                Some(stored) => Ok(vec![stored.row.clone()]),
                None => Err(Error::not_found("Default type for project", id)),
            },
        }
    }

    /// Gives a project a default type of its own, or takes it.
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound` for the project, the type or the default.
    pub async fn volume_type_default_set(
        &self,
        caller: &Caller,
        project_id: &str,
        wished: Option<&str>,
    ) -> Result<Option<VolumeDefault>> {
        require_admin(caller, "volume_extension:default_set_or_update")?;
        self.db.caught_up().await?;
        self.db
            .transact_with(|cache| {
                let stored = cache.get::<VolumeDefault>(project_id);
                let Some(wished) = wished else {
                    let missing = || Error::not_found("Default type for project", project_id);
                    let stored = stored.ok_or_else(missing)?;
                    return Ok((Txn::new().delete(&stored), None));
                };
                if cache.get::<Project>(project_id).is_none() {
                    return Err(Error::not_found("Project", project_id));
                }
                let kind = find(cache, caller, wished)?;
                let given = given(cache, Txn::new(), &kind.row)?;
                let row = VolumeDefault { id: project_id.to_owned(), type_id: kind.row.id.clone() };
                let txn = match stored {
                    Some(stored) => given.update(&stored, &row),
                    None => given.create(&row),
                };
                Ok((txn, Some(row)))
            })
            .await
    }

    /// Gives a type a QoS specification, or takes it.
    ///
    /// # Errors
    /// As [`Control::volume_type_change`]; `NotFound` for the specification.
    pub async fn volume_type_qos(
        &self,
        caller: &Caller,
        qos_id: &str,
        type_id: &str,
        give: bool,
    ) -> Result<()> {
        self.volume_type_change(caller, type_id, "volume_extension:qos_specs_manage", |cache, kind| {
            if cache.get::<QosSpec>(qos_id).is_none() {
                return Err(Error::not_found("QoS specs", qos_id));
            }
            if give {
                if kind.qos_id.as_deref().is_some_and(|other| other != qos_id) {
                    let message = format!("Type {type_id} is already associated with another qos specs");
                    return Err(Error::invalid("InvalidVolumeType", message));
                }
                kind.qos_id = Some(qos_id.to_owned());
            } else if kind.qos_id.as_deref() == Some(qos_id) {
                kind.qos_id = None;
            }
            Ok(Txn::new())
        })
        .await
        .map(drop)
    }
}

fn new_type(name: &str, description: Option<String>, is_public: bool) -> VolumeType {
    VolumeType {
        id: random_uuid(),
        name: name.to_owned(),
        description,
        is_public,
        extra_specs: BTreeMap::new(),
        access: std::collections::BTreeSet::new(),
        qos_id: None,
        encryption: None,
        leaving: false,
        settling: false,
        created_at: Timestamp::now(),
        updated_at: None,
    }
}

/// Refuses to delete a type that a volume has or is about to get, or that has to be there.
fn refuse_in_use(cache: &Cache, kind: &VolumeType) -> Result<()> {
    let id = &kind.id;
    let moves = |work: &DiskWork| match &work.task {
        DiskTask::Move { type_id: Some(to), .. } | DiskTask::Recode { type_id: to, .. } => to == id,
        _ => false,
    };
    if cache.find(|volume: &Volume| volume.type_id == *id).is_some() || cache.find(moves).is_some() {
        let message = format!("Target volume type is still in use: {id}");
        return Err(Error::invalid("VolumeTypeInUse", message));
    }
    let is_default = cache.find(|default: &VolumeDefault| default.type_id == *id).is_some();
    let is_last = cache.find(|other: &VolumeType| other.id != *id && !other.leaving).is_none();
    if is_default || is_last {
        let message = format!("The volume type {id} is a default volume type and cannot be deleted.");
        return Err(Error::invalid("VolumeTypeDefault", message));
    }
    Ok(())
}

fn check_name(name: &str) -> Result<()> {
    if name.trim().is_empty() {
        return Err(invalid_input("Volume type name can not be empty."));
    }
    check_text("name", Some(&name.to_owned()))
}

fn refuse_taken(cache: &Cache, name: &str, own: Option<&str>) -> Result<()> {
    match cache.find(|kind: &VolumeType| kind.name == name) {
        Some(other) if own != Some(other.row.id.as_str()) => {
            Err(Error::conflict("VolumeTypeExists", format!("Volume Type {name} already exists.")))
        }
        _ => Ok(()),
    }
}
