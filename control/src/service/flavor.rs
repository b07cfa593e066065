//! Flavors: the sizes that administrators offer.

use std::sync::Arc;

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::Flavor;
use crate::model::random_uuid;
use crate::policy::require_admin;
use crate::service::disk_limits;
use crate::service::server::queues;
use crate::store::{Cache, Stored, Txn};

/// The longest name, id, extra-spec key or value in characters (Compute API: create flavor).
const TEXT_CHARS_MAX: usize = 255;
/// The longest description in characters.
const DESCRIPTION_CHARS_MAX: usize = 65_535;
/// The largest number in any of a flavor's sizes, as Nova's database holds it.
pub const SIZE_MAX: u32 = i32::MAX as u32;
/// The most extra specs of one flavor: a row must stay far below the store's limit.
const EXTRA_SPECS_MAX: usize = 256;

/// What a new flavor shall be.
#[derive(Debug, Clone, PartialEq)]
pub struct FlavorNew {
    /// Random if absent.
    pub id: Option<String>,
    /// Unique.
    pub name: String,
    /// Virtual CPUs, from 1.
    pub vcpus: u32,
    /// Memory in MiB, from 1.
    pub ram_mib: u32,
    /// Root disk in GiB; 0 means as large as the image.
    pub disk_gib: u32,
    /// Ephemeral disk in GiB.
    pub ephemeral_gib: u32,
    /// Swap in MiB.
    pub swap_mib: u32,
    /// Of historical interest.
    pub rxtx_factor: f64,
    /// Everyone may use it.
    pub is_public: bool,
    /// Free text.
    pub description: Option<String>,
}

/// Which flavors to list.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FlavorScope {
    /// Those that everyone may use, and those the caller's project was given.
    Usable,
    /// Those that are not public; for administrators.
    Private,
    /// All; for administrators.
    All,
}

impl Control {
    /// Flavors in the order of their ids. Who is no administrator gets [`FlavorScope::Usable`] in any case.
    ///
    /// # Errors
    /// What the store says.
    pub async fn flavors(&self, caller: &Caller, scope: FlavorScope) -> Result<Vec<Arc<Stored<Flavor>>>> {
        self.db.caught_up().await?;
        Ok(self.db.cache().filter::<Flavor>(|flavor| match scope {
            FlavorScope::All if caller.is_admin() => true,
            FlavorScope::Private if caller.is_admin() => !flavor.is_public,
            _ if caller.is_admin() => flavor.is_public,
            _ => may_use(caller, flavor),
        }))
    }

    /// One flavor.
    ///
    /// # Errors
    /// `NotFound`, also for one that the caller may not use.
    pub async fn flavor(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Flavor>>> {
        self.db.caught_up().await?;
        find(self.db.cache(), caller, id)
    }

    /// Makes a flavor.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`, and `Conflict` if the id or the name is taken.
    pub async fn flavor_create(&self, caller: &Caller, new: FlavorNew) -> Result<Flavor> {
        require_admin(caller, "os_compute_api:os-flavor-manage:create")?;
        let flavor = checked(new)?;
        self.flavor_put_new(&flavor).await?;
        Ok(flavor)
    }

    async fn flavor_put_new(&self, flavor: &Flavor) -> Result<()> {
        self.db
            .transact(|cache| {
                if cache.get::<Flavor>(&flavor.id).is_some() {
                    return Err(taken("ID", &flavor.id));
                }
                if cache.find::<Flavor>(|other| other.name == flavor.name).is_some() {
                    return Err(taken("name", &flavor.name));
                }
                Ok(Txn::new().create(flavor).unique(name_key(&flavor.name)))
            })
            .await
    }

    /// Changes the description (microversion 2.55).
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, `Invalid`.
    pub async fn flavor_describe(
        &self,
        caller: &Caller,
        id: &str,
        description: Option<String>,
    ) -> Result<Flavor> {
        require_admin(caller, "os_compute_api:os-flavor-manage:update")?;
        check_description(description.as_deref())?;
        self.flavor_change(caller, id, |flavor| {
            flavor.description.clone_from(&description);
            Ok(())
        })
        .await
    }

    /// Deletes a flavor. Servers keep the copy that they were made with.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn flavor_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        require_admin(caller, "os_compute_api:os-flavor-manage:delete")?;
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find(cache, caller, id)?;
                Ok(Txn::new().delete(&stored).release(name_key(&stored.row.name)))
            })
            .await
    }

    /// Adds or replaces extra specs; returns those that were given.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`, `Invalid`.
    pub async fn flavor_set_extra_specs(
        &self,
        caller: &Caller,
        id: &str,
        specs: &[(String, String)],
    ) -> Result<()> {
        require_admin(caller, "os_compute_api:os-flavor-extra-specs:create")?;
        for (key, value) in specs {
            check_extra_spec(key, value)?;
        }
        self.flavor_change(caller, id, |flavor| {
            flavor.extra_specs.extend(specs.iter().cloned());
            if flavor.extra_specs.len() > EXTRA_SPECS_MAX {
                return Err(invalid(format!("A flavor can have at most {EXTRA_SPECS_MAX} extra specs.")));
            }
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Removes one extra spec.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`.
    pub async fn flavor_unset_extra_spec(&self, caller: &Caller, id: &str, key: &str) -> Result<()> {
        require_admin(caller, "os_compute_api:os-flavor-extra-specs:delete")?;
        self.flavor_change(caller, id, |flavor| match flavor.extra_specs.remove(key) {
            Some(_) => Ok(()),
            None => Err(Error::not_found("Extra spec", key)),
        })
        .await
        .map(drop)
    }

    /// Lets a project use a flavor that is not public, or no longer.
    ///
    /// # Errors
    /// `Forbidden`, `NotFound`; `Conflict` for a public flavor or for access that is there already.
    pub async fn flavor_set_access(
        &self,
        caller: &Caller,
        id: &str,
        project_id: &str,
        allowed: bool,
    ) -> Result<Flavor> {
        require_admin(caller, "os_compute_api:os-flavor-access")?;
        self.flavor_change(caller, id, |flavor| {
            if flavor.is_public {
                let message = "Can not add access to a public flavor.";
                return Err(Error::conflict("FlavorAccess", message));
            }
            if allowed {
                if !flavor.access.insert(project_id.to_owned()) {
                    let message = format!(
                        "Flavor access already exists for flavor {id} and project {project_id} combination."
                    );
                    return Err(Error::conflict("FlavorAccessExists", message));
                }
            } else if !flavor.access.remove(project_id) {
                return Err(Error::not_found("Flavor access for project", project_id));
            }
            Ok(())
        })
        .await
    }

    async fn flavor_change(
        &self,
        caller: &Caller,
        id: &str,
        change: impl Fn(&mut Flavor) -> Result<()>,
    ) -> Result<Flavor> {
        self.db.caught_up().await?;
        self.db
            .transact_with(|cache| {
                let stored = find(cache, caller, id)?;
                let mut flavor = stored.row.clone();
                change(&mut flavor)?;
                Ok((Txn::new().update(&stored, &flavor), flavor))
            })
            .await
    }

    /// Makes the flavors that every cloud begins with, where they are not there yet: those of DevStack, with its ids.
    ///
    /// # Errors
    /// What the store says.
    pub async fn bootstrap_flavors(&self) -> Result<()> {
        const FIRST: [(&str, &str, u32, u32, u32); 6] = [
            ("42", "m1.nano", 1, 64, 1),
            ("1", "m1.tiny", 1, 512, 1),
            ("2", "m1.small", 1, 2048, 20),
            ("3", "m1.medium", 2, 4096, 40),
            ("4", "m1.large", 4, 8192, 80),
            ("5", "m1.xlarge", 8, 16_384, 160),
        ];
        for (id, name, vcpus, ram_mib, disk_gib) in FIRST {
            let flavor = checked(FlavorNew {
                id: Some(id.to_owned()),
                name: name.to_owned(),
                vcpus,
                ram_mib,
                disk_gib,
                ephemeral_gib: 0,
                swap_mib: 0,
                rxtx_factor: 1.0,
                is_public: true,
                description: None,
            })?;
            match self.flavor_put_new(&flavor).await {
                Ok(()) | Err(Error::Conflict { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }
}

/// The flavor if the caller may use it.
pub(crate) fn find(cache: &Cache, caller: &Caller, id: &str) -> Result<Arc<Stored<Flavor>>> {
    let stored = cache.get::<Flavor>(id).filter(|stored| caller.is_admin() || may_use(caller, &stored.row));
    stored.ok_or_else(|| Error::not_found("Flavor", id))
}

fn may_use(caller: &Caller, flavor: &Flavor) -> bool {
    flavor.is_public || caller.project_id().is_some_and(|project| flavor.access.contains(project))
}

fn name_key(name: &str) -> String {
    format!("flavor-name/{name}")
}

fn taken(what: &str, value: &str) -> Error {
    Error::conflict("FlavorExists", format!("Flavor with {what} {value} already exists."))
}

fn invalid(message: impl Into<String>) -> Error {
    Error::invalid("InvalidInput", message)
}

fn checked(new: FlavorNew) -> Result<Flavor> {
    let id = match new.id {
        Some(id) => id,
        None => random_uuid(),
    };
    let name = new.name.trim().to_owned();
    for (what, text) in [("id", &id), ("name", &name)] {
        let printable = text.chars().all(|c| !c.is_control());
        if text.is_empty() || text.chars().count() > TEXT_CHARS_MAX || !printable || text.contains('/') {
            let rule = format!("1 to {TEXT_CHARS_MAX} printable characters without '/'");
            return Err(invalid(format!("Invalid input for field/attribute {what}: it has {rule}.")));
        }
    }
    if id.trim() != id || !id.chars().all(|c| c.is_ascii_alphanumeric() || ". _-".contains(c)) {
        let allowed = "letters, digits, '.', '_', '-' and inner spaces";
        return Err(invalid(format!("Invalid input for field/attribute id: only {allowed} are allowed.")));
    }
    for (what, value, least) in [
        ("vcpus", new.vcpus, 1),
        ("ram", new.ram_mib, 1),
        ("disk", new.disk_gib, 0),
        ("OS-FLV-EXT-DATA:ephemeral", new.ephemeral_gib, 0),
        ("swap", new.swap_mib, 0),
    ] {
        if value < least || value > SIZE_MAX {
            return Err(invalid(format!(
                "Invalid input for field/attribute {what}: {least} to {SIZE_MAX} is allowed."
            )));
        }
    }
    if !(new.rxtx_factor.is_finite() && new.rxtx_factor > 0.0) {
        return Err(invalid("Invalid input for field/attribute rxtx_factor: a number above 0 is allowed."));
    }
    check_description(new.description.as_deref())?;
    Ok(Flavor {
        id,
        name,
        vcpus: new.vcpus,
        ram_mib: new.ram_mib,
        disk_gib: new.disk_gib,
        ephemeral_gib: new.ephemeral_gib,
        swap_mib: new.swap_mib,
        rxtx_factor: new.rxtx_factor,
        is_public: new.is_public,
        description: new.description,
        extra_specs: std::collections::BTreeMap::new(),
        access: std::collections::BTreeSet::new(),
    })
}

fn check_description(description: Option<&str>) -> Result<()> {
    match description {
        Some(text) if text.chars().count() > DESCRIPTION_CHARS_MAX => {
            Err(invalid(format!("A description has at most {DESCRIPTION_CHARS_MAX} characters.")))
        }
        _ => Ok(()),
    }
}

fn check_extra_spec(key: &str, value: &str) -> Result<()> {
    let key_fits = (1..=TEXT_CHARS_MAX).contains(&key.len())
        && key.chars().all(|c| c.is_ascii_alphanumeric() || "_-. :".contains(c));
    if !key_fits {
        return Err(invalid(format!(
            "Invalid extra spec key '{key}': letters, digits, '_', '-', '.', ':' and spaces are allowed."
        )));
    }
    if value.chars().count() > TEXT_CHARS_MAX {
        return Err(invalid(format!(
            "The value of extra spec '{key}' has more than {TEXT_CHARS_MAX} characters."
        )));
    }
    queues::check_extra_spec(key, value).map_err(invalid)?;
    disk_limits::check_extra_spec(key, value).map_err(invalid)
}
