//! Images: describing, finding, changing, sharing. Their data is in [`super::image_data`].

use std::sync::Arc;

use jiff::Timestamp;

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::image::{Image, ImageMember, ImageStatus, LocalFile};
use crate::model::random_uuid;
use crate::policy::{Default, require_list, require_own_project};
use crate::service::image_access::{allowed_image, allows, may_see, owned_image, visible_image};
use crate::service::image_data::charged_mib;
use crate::service::quota::{self, Resource};
use crate::store::{Cache, Stored, Txn};

/// The longest name, tag or property name in characters.
pub const TEXT_CHARACTERS_MAX: usize = 255;
/// The longest property value in bytes: what Glance's column holds.
pub const VALUE_BYTES_MAX: usize = 65_535;
/// The most tags, properties and members (Glance's `image_tag_quota` and kin).
pub const ENTRIES_MAX: usize = 128;

/// Disk formats, as Glance lists them.
pub const DISK_FORMATS: [&str; 11] =
    ["ami", "ari", "aki", "vhd", "vhdx", "vmdk", "raw", "qcow2", "vdi", "iso", "ploop"];
/// Container formats, as Glance lists them.
pub const CONTAINER_FORMATS: [&str; 8] = ["ami", "ari", "aki", "bare", "ovf", "ova", "docker", "compressed"];
/// Who may see an image.
pub const VISIBILITIES: [&str; 4] = ["public", "community", "shared", "private"];
/// What a member says of being one.
pub const MEMBER_STATUSES: [&str; 3] = ["pending", "accepted", "rejected"];

/// One change of an image, or one property of a new one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ImageChange {
    /// Its name.
    Name(Option<String>),
    /// Who may see it.
    Visibility(String),
    /// The disk's format; only before there is data.
    DiskFormat(Option<String>),
    /// The container's format; only before there is data.
    ContainerFormat(Option<String>),
    /// Least disk in GiB.
    MinDisk(u32),
    /// Least memory in MiB.
    MinRam(u32),
    /// Refuses deletion.
    Protected(bool),
    /// Left out of lists.
    Hidden(bool),
    /// The owner's project; administrators only.
    Owner(String),
    /// All tags.
    Tags(Vec<String>),
    /// A property that is not there gets a value.
    NewProperty(String, String),
    /// A property gets a value, whether it was there or not.
    AddProperty(String, String),
    /// A property that is there gets another value.
    ReplaceProperty(String, String),
    /// A property that is there goes.
    RemoveProperty(String),
}

impl Control {
    /// Describes a new image, which has no data yet. Without an `id` it gets a random one.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`, `QuotaExceeded`; `Conflict` if there is an image of this id.
    pub async fn image_create(
        &self,
        caller: &Caller,
        id: Option<String>,
        changes: Vec<ImageChange>,
    ) -> Result<Arc<Stored<Image>>> {
        let image = described_image(caller, id.unwrap_or_else(random_uuid), changes)?;
        self.db.transact(|cache| new_image(cache, Txn::new(), &image)).await?;
        self.image_stored(&image.id)
    }

    /// All images that the caller may see. Which of them a list shows is the request's to say.
    ///
    /// # Errors
    /// `Forbidden`.
    pub async fn image_list(&self, caller: &Caller) -> Result<Vec<Arc<Stored<Image>>>> {
        require_list(caller, "get_images")?;
        self.db.caught_up().await?;
        let cache = self.db.cache();
        let mut images = cache.list::<Image>();
        images.retain(|stored| may_see(cache, caller, &stored.row));
        Ok(images)
    }

    /// Whether the caller's project is a member of an image, and what it said.
    pub fn image_membership(&self, caller: &Caller, image_id: &str) -> Option<Arc<Stored<ImageMember>>> {
        self.db.get(&ImageMember::key(image_id, caller.project_id()?))
    }

    /// One image that the caller may see.
    pub async fn image_get(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<Image>>> {
        self.db.caught_up().await?;
        visible_image(self.db.cache(), caller, id)
    }

    /// Changes an image: all of the changes, in order, or none.
    ///
    /// # Errors
    /// `Conflict` if a property that is to be replaced or removed is not there.
    pub async fn image_update(
        &self,
        caller: &Caller,
        id: &str,
        changes: Vec<ImageChange>,
    ) -> Result<Arc<Stored<Image>>> {
        self.change_image(caller, id, "modify_image", |image| {
            changes.iter().try_for_each(|change| apply(caller, image, change.clone()))
        })
        .await?;
        self.image_stored(id)
    }

    /// Adds a tag; adding it again changes nothing.
    pub async fn image_tag(&self, caller: &Caller, id: &str, tag: &str) -> Result<()> {
        self.change_image(caller, id, "modify_image", |image| {
            let mut tags = image.tags.clone();
            tags.push(tag.to_owned());
            apply(caller, image, ImageChange::Tags(tags))
        })
        .await
    }

    /// Takes a tag away.
    ///
    /// # Errors
    /// `NotFound` if it is not there.
    pub async fn image_untag(&self, caller: &Caller, id: &str, tag: &str) -> Result<()> {
        self.change_image(caller, id, "modify_image", |image| {
            let before = image.tags.len();
            image.tags.retain(|have| have != tag);
            if image.tags.len() == before { Err(Error::not_found("Tag", tag)) } else { Ok(()) }
        })
        .await
    }

    /// Refuses downloads from now on, or allows them again.
    ///
    /// # Errors
    /// `Forbidden` if the image has no data.
    pub async fn image_deactivate(&self, caller: &Caller, id: &str, deactivate: bool) -> Result<()> {
        let action = if deactivate { "deactivate" } else { "reactivate" };
        self.change_image(caller, id, action, |image| {
            image.status = match (image.status, deactivate) {
                (ImageStatus::Active | ImageStatus::Deactivated, true) => ImageStatus::Deactivated,
                (ImageStatus::Active | ImageStatus::Deactivated, false) => ImageStatus::Active,
                _ => return Err(Error::Forbidden { action: "deactivation of an image without data" }),
            };
            Ok(())
        })
        .await
    }

    async fn change_image(
        &self,
        caller: &Caller,
        id: &str,
        action: &'static str,
        change: impl Fn(&mut Image) -> Result<()>,
    ) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = owned_image(cache, caller, id, action)?;
                let mut image = stored.row.clone();
                change(&mut image)?;
                if image == stored.row {
                    return Ok(Txn::new());
                }
                image.updated_at = Timestamp::now();
                let txn = Txn::new().update(&stored, &image);
                if image.owner == stored.row.owner {
                    return Ok(txn);
                }
                // A new owner takes over what the old one is charged.
                let mib = charged_mib(&stored.row);
                let owner = |image: &Image| image.owner.clone().unwrap_or_default();
                let txn = quota::charge(
                    txn,
                    &owner(&stored.row),
                    &[(Resource::Images, -1), (Resource::ImageMib, -mib)],
                );
                Ok(quota::charge(txn, &owner(&image), &[(Resource::Images, 1), (Resource::ImageMib, mib)]))
            })
            .await
    }

    pub(crate) fn image_stored(&self, id: &str) -> Result<Arc<Stored<Image>>> {
        self.db.get(id).ok_or_else(|| Error::not_found("Image", id))
    }

    /// The projects that an image is shared with, by the rule for all of them or for one. A member that is not the owner
    /// sees itself only.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn image_member_list(
        &self,
        caller: &Caller,
        id: &str,
        rule: &'static str,
    ) -> Result<Vec<Arc<Stored<ImageMember>>>> {
        self.db.caught_up().await?;
        let cache = self.db.cache();
        require_shared(&visible_image(cache, caller, id)?.row)?;
        let image = allowed_image(cache, caller, id, rule, Default::SharingReader)?;
        let mut members = cache.list_under::<ImageMember>(&format!("{id}/"));
        let owner = image.row.owner.as_deref().is_some_and(|owner| caller.may_read(owner));
        members.retain(|stored| owner || Some(stored.row.project_id.as_str()) == caller.project_id());
        Ok(members)
    }

    /// Shares an image with a project.
    ///
    /// # Errors
    /// `Forbidden` unless the image's visibility is `shared`; `Conflict` if it is a member already.
    pub async fn image_member_add(
        &self,
        caller: &Caller,
        id: &str,
        project_id: &str,
    ) -> Result<Arc<Stored<ImageMember>>> {
        check_text("member", project_id)?;
        if project_id.is_empty() {
            return Err(Error::invalid("Invalid", "Member can't be empty"));
        }
        self.db.caught_up().await?;
        let now = Timestamp::now();
        let member = ImageMember {
            id: ImageMember::key(id, project_id),
            image_id: id.to_owned(),
            project_id: project_id.to_owned(),
            status: "pending".to_owned(),
            created_at: now,
            updated_at: now,
        };
        self.db
            .transact(|cache| {
                let image = owned_image(cache, caller, id, "add_member")?;
                require_shared(&image.row)?;
                if cache.get::<ImageMember>(&member.id).is_some() {
                    let message = format!("Member {project_id} is duplicated for image {id}");
                    return Err(Error::conflict("Duplicate", message));
                }
                if cache.list_under::<ImageMember>(&format!("{id}/")).len() >= ENTRIES_MAX {
                    return Err(too_many("members"));
                }
                Ok(Txn::new().create(&member).require_present::<Image>(id))
            })
            .await?;
        self.member_stored(&member.id)
    }

    /// Says, for the caller's project, whether a shared image is in its lists.
    pub async fn image_member_update(
        &self,
        caller: &Caller,
        id: &str,
        project_id: &str,
        status: &str,
    ) -> Result<Arc<Stored<ImageMember>>> {
        one_of("status", status, &MEMBER_STATUSES)?;
        self.db.caught_up().await?;
        let key = ImageMember::key(id, project_id);
        self.db
            .transact(|cache| {
                let image = visible_image(cache, caller, id)?;
                require_shared(&image.row)?;
                if !caller.is_admin() && image.row.owner.as_deref() == caller.project_id() {
                    return Err(Error::Forbidden { action: "modify_member" });
                }
                let stored =
                    cache.get::<ImageMember>(&key).ok_or_else(|| Error::not_found("Member", project_id))?;
                let (rule, default) = ("modify_member", Default::SharingMember);
                if !allows(rule, default, caller, &image.row, Some(project_id)) {
                    return Err(Error::Forbidden { action: rule });
                }
                let row = ImageMember {
                    status: status.to_owned(),
                    updated_at: Timestamp::now(),
                    ..stored.row.clone()
                };
                Ok(Txn::new().update(&stored, &row))
            })
            .await?;
        self.member_stored(&key)
    }

    /// Shares an image with a project no longer.
    pub async fn image_member_remove(&self, caller: &Caller, id: &str, project_id: &str) -> Result<()> {
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                require_shared(&owned_image(cache, caller, id, "delete_member")?.row)?;
                let key = ImageMember::key(id, project_id);
                let stored =
                    cache.get::<ImageMember>(&key).ok_or_else(|| Error::not_found("Member", project_id))?;
                Ok(Txn::new().delete(&stored))
            })
            .await
    }

    fn member_stored(&self, key: &str) -> Result<Arc<Stored<ImageMember>>> {
        self.db.get(key).ok_or_else(|| Error::not_found("Member", key))
    }
}

/// A new image of the caller's project, as it was described.
pub(crate) fn described_image(caller: &Caller, id: String, changes: Vec<ImageChange>) -> Result<Image> {
    let project_id = require_own_project(caller, "add_image")?;
    let mut image = Image::new(id, project_id.to_owned());
    for change in changes {
        apply(caller, &mut image, change)?;
    }
    Ok(image)
}

/// What is said of an image whose data is an archive of a container image (Glance's `container_format`).
pub(crate) const CONTAINER: &str = "docker";

/// The file that a host needs of an image: its data, or the raw disk that is made of its data.
pub(crate) fn local_file(image: &Image, qcow2: bool) -> LocalFile {
    let data = image.data.clone().unwrap_or_else(|| image.id.clone());
    let container = image.container_format.as_deref() == Some(CONTAINER);
    let suffix = match (container, qcow2) {
        (true, _) => ROOT_SUFFIX,
        (false, true) => RAW_SUFFIX,
        (false, false) => "",
    };
    LocalFile {
        name: format!("{data}{suffix}"),
        data,
        stores: image.stores.clone(),
        data_bytes: image.size_bytes.unwrap_or(0),
        qcow2: qcow2 && !container,
        container,
    }
}

/// What the name of a raw disk has after the name of the qcow2 data it is made of.
const RAW_SUFFIX: &str = "-raw";
/// What the name of a root disk has after the name of the container image it is made of.
const ROOT_SUFFIX: &str = "-root";

/// A new image's row with its quota.
pub(crate) fn new_image(cache: &Cache, txn: Txn, image: &Image) -> Result<Txn> {
    if cache.get::<Image>(&image.id).is_some() {
        let message = format!("Image ID {} already exists!", image.id);
        return Err(Error::conflict("Duplicate", message));
    }
    let owner = image.owner.clone().unwrap_or_default();
    Ok(quota::charge(txn.create(image), &owner, &[(Resource::Images, 1)]))
}

fn require_shared(image: &Image) -> Result<()> {
    if image.visibility == "shared" {
        return Ok(());
    }
    Err(Error::Forbidden { action: "anything with members of an image whose visibility is not shared" })
}

fn apply(caller: &Caller, image: &mut Image, change: ImageChange) -> Result<()> {
    match change {
        ImageChange::Name(name) => {
            check_text("name", name.as_deref().unwrap_or_default())?;
            image.name = name;
        }
        ImageChange::Visibility(visibility) => {
            one_of("visibility", &visibility, &VISIBILITIES)?;
            let guarded = match visibility.as_str() {
                "public" => Some(("publicize_image", Default::Admin)),
                "community" => Some(("communitize_image", Default::Member)),
                _ => None,
            };
            if let Some((rule, default)) = guarded.filter(|_| image.visibility != visibility)
                && !allows(rule, default, caller, image, None)
            {
                return Err(Error::Forbidden { action: rule });
            }
            image.visibility = visibility;
        }
        ImageChange::DiskFormat(format) => {
            set_format(image.status, "disk_format", &mut image.disk_format, format, &DISK_FORMATS)?;
        }
        ImageChange::ContainerFormat(format) => {
            let field = &mut image.container_format;
            set_format(image.status, "container_format", field, format, &CONTAINER_FORMATS)?;
        }
        ImageChange::MinDisk(gib) => image.min_disk_gib = gib,
        ImageChange::MinRam(mib) => image.min_ram_mib = mib,
        ImageChange::Protected(protected) => image.protected = protected,
        ImageChange::Hidden(hidden) => image.hidden = hidden,
        ImageChange::Owner(owner) => {
            if !caller.is_admin() && image.owner.as_ref() != Some(&owner) {
                return Err(Error::Forbidden { action: "change of an image's owner" });
            }
            check_text("owner", &owner)?;
            image.owner = Some(owner);
        }
        ImageChange::Tags(mut tags) => {
            tags.iter().try_for_each(|tag| check_text("tag", tag))?;
            tags.sort_unstable();
            tags.dedup();
            check_count("tags", tags.len())?;
            image.tags = tags;
        }
        ImageChange::NewProperty(name, value) => {
            if image.properties.contains_key(&name) {
                return Err(Error::conflict("Conflict", format!("Property {name} already present.")));
            }
            return set_property(image, name, value);
        }
        ImageChange::AddProperty(name, value) => return set_property(image, name, value),
        ImageChange::ReplaceProperty(name, value) => {
            require_property(image, &name)?;
            return set_property(image, name, value);
        }
        ImageChange::RemoveProperty(name) => {
            require_property(image, &name)?;
            image.properties.remove(&name);
        }
    }
    Ok(())
}

fn set_property(image: &mut Image, name: String, value: String) -> Result<()> {
    check_text("property", &name)?;
    if name.is_empty() || value.len() > VALUE_BYTES_MAX {
        let message = format!("a property has a name, and a value of at most {VALUE_BYTES_MAX} bytes");
        return Err(Error::invalid("Invalid", message));
    }
    image.properties.insert(name, value);
    check_count("properties", image.properties.len())
}

fn require_property(image: &Image, name: &str) -> Result<()> {
    if image.properties.contains_key(name) {
        return Ok(());
    }
    Err(Error::conflict("Conflict", format!("Property {name} does not exist.")))
}

fn set_format(
    status: ImageStatus,
    field: &'static str,
    format: &mut Option<String>,
    wanted: Option<String>,
    known: &[&str],
) -> Result<()> {
    if let Some(wanted) = &wanted {
        one_of(field, wanted, known)?;
    }
    if *format != wanted && status != ImageStatus::Queued {
        return Err(Error::Forbidden { action: "change of the format of an image that has data" });
    }
    *format = wanted;
    Ok(())
}

fn one_of(field: &str, value: &str, known: &[&str]) -> Result<()> {
    if known.contains(&value) {
        return Ok(());
    }
    let message =
        format!("Provided object does not match schema 'image': '{field}' is one of {}", known.join(", "));
    Err(Error::invalid("Invalid", message))
}

fn check_text(field: &str, text: &str) -> Result<()> {
    if text.chars().count() > TEXT_CHARACTERS_MAX {
        let message = format!("{field} has at most {TEXT_CHARACTERS_MAX} characters");
        return Err(Error::invalid("Invalid", message));
    }
    Ok(())
}

fn too_many(resource: &'static str) -> Error {
    let limit = ENTRIES_MAX as u64;
    Error::QuotaExceeded { resource, requested: 1, used: limit, limit }
}

fn check_count(what: &'static str, count: usize) -> Result<()> {
    if count > ENTRIES_MAX {
        return Err(too_many(what));
    }
    Ok(())
}
