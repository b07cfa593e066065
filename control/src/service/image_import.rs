//! Imports: data for an image that a task brings, from what was staged, from the web, or from a store that has it
//! (Image API v2: interoperable image import), and the records of such tasks. What runs them is
//! [`crate::reconcile::image_task`].

use std::sync::Arc;

use jiff::Timestamp;
use serde_json::{Value, json};

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::image::{Image, ImageSource, ImageStatus, ImageTask, ImageTaskKind, ImageTaskStatus};
use crate::model::random_uuid;
use crate::policy::require_admin;
use crate::service::image::{ImageChange, described_image};
use crate::service::image_access::owned_image;
use crate::service::image_store::FILE_STORE;
use crate::service::quota::{self, Resource};
use crate::store::{Stored, Txn};

/// The ways in which data can come, by Glance's names.
pub const IMPORT_METHODS: [&str; 3] = ["glance-direct", "web-download", "copy-image"];
/// The most tasks of one project that are not done: each holds a connection or a disk for long.
pub const TASKS_MAX: usize = 100;

/// What an import is asked to do.
#[derive(Debug, Clone, PartialEq)]
pub struct ImportWish {
    /// From where the data comes.
    pub source: ImageSource,
    /// Which stores are to have it; all, or if none is named the default.
    pub stores: Stores,
    /// Whether the import fails if it fails for one of them.
    pub all_must_succeed: bool,
    /// The request as the client wrote it.
    pub request: Value,
}

/// Which stores.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Stores {
    /// Every one.
    All,
    /// These; the default one if there are none.
    These(Vec<String>),
}

impl Control {
    fn import_stores(&self, wish: &Stores) -> Result<Vec<String>> {
        let known = self.images.ids();
        match wish {
            Stores::All => Ok(known.iter().map(|id| (*id).to_owned()).collect()),
            Stores::These(ids) if ids.is_empty() => Ok(vec![FILE_STORE.to_owned()]),
            Stores::These(ids) => {
                let mut stores: Vec<String> = Vec::new();
                for id in ids {
                    if !known.contains(&id.as_str()) {
                        return Err(Error::conflict("Conflict", format!("Store {id} is not known here.")));
                    }
                    if !stores.contains(id) {
                        stores.push(id.clone());
                    }
                }
                Ok(stores)
            }
        }
    }

    /// Asks for an import; the task that does it is under way when this returns.
    ///
    /// # Errors
    /// `Conflict` where the image's status does not allow it or a task works on it, `Invalid` for an address that images
    /// cannot come from, `Forbidden`, `QuotaExceeded`.
    pub async fn image_import(&self, caller: &Caller, id: &str, wish: ImportWish) -> Result<()> {
        self.db.caught_up().await?;
        let stores = self.import_stores(&wish.stores)?;
        if let ImageSource::Web { url } = &wish.source {
            self.images.sources.check(url).map_err(|error| Error::invalid("Invalid", error.to_string()))?;
        }
        let owner = self.image_get(caller, id).await?.row.owner.clone().unwrap_or_default();
        self.require_room(&owner)?;
        self.db
            .transact(|cache| {
                let stored = owned_image(cache, caller, id, "modify_image")?;
                let image = &stored.row;
                check_status(image, &wish.source)?;
                let mut wanted = stores.clone();
                if wish.source == ImageSource::Copy {
                    require_admin(caller, "copy_image")?;
                    let all = wish.stores == Stores::All;
                    if let Some(store) = wanted.iter().find(|store| !all && image.stores.contains(store)) {
                        let message = format!("Image is already present at store '{store}'");
                        return Err(Error::invalid("Invalid", message));
                    }
                    wanted.retain(|store| !image.stores.contains(store));
                    if wanted.is_empty() {
                        // All have it: what was asked for is done, and nothing failed.
                        let done = Image { imported: true, failed_import: Vec::new(), ..image.clone() };
                        return Ok(Txn::new().update(&stored, &done));
                    }
                }
                let task = new_task(caller, ImageTaskKind::ApiImageImport, image, &wish, &wanted);
                let importing = Image {
                    status: match wish.source {
                        ImageSource::Copy => image.status,
                        _ => ImageStatus::Importing,
                    },
                    import_task: Some(task.id.clone()),
                    imported: true,
                    importing_to: wanted,
                    failed_import: Vec::new(),
                    updated_at: Timestamp::now(),
                    ..image.clone()
                };
                Ok(Txn::new().update(&stored, &importing).create(&task))
            })
            .await
    }

    /// Too many tasks, or no bytes left, is told at once.
    fn require_room(&self, owner: &str) -> Result<()> {
        let running =
            self.db.cache().filter::<ImageTask>(|task| task.owner == owner && !task.status.is_over());
        let (used, limit) = (running.len() as u64, TASKS_MAX as u64);
        if used >= limit {
            return Err(Error::QuotaExceeded { resource: "image tasks", requested: 1, used, limit });
        }
        if self.image_bytes_left(owner) == 0 {
            let quota = self.quota(owner, Resource::ImageMib);
            let (used, limit) = (quota.used, quota.limit.unwrap_or(0));
            return Err(Error::QuotaExceeded { resource: "image_size_total", requested: 1, used, limit });
        }
        Ok(())
    }

    /// Asks for a new image with data from the web; its task (Image API v2: create task). Administrators only.
    ///
    /// # Errors
    /// `Forbidden`, `Invalid`, `QuotaExceeded`.
    pub async fn image_task_create(
        &self,
        caller: &Caller,
        url: &str,
        changes: Vec<ImageChange>,
        input: Value,
    ) -> Result<Arc<Stored<ImageTask>>> {
        require_admin(caller, "tasks_api_access")?;
        self.db.caught_up().await?;
        self.images.sources.check(url).map_err(|error| Error::invalid("Invalid", error.to_string()))?;
        let mut image = described_image(caller, random_uuid(), changes)?;
        if image.disk_format.is_none() || image.container_format.is_none() {
            return Err(Error::invalid("Invalid", "disk_format and container_format are required"));
        }
        let owner = image.owner.clone().unwrap_or_default();
        self.require_room(&owner)?;
        let wish = ImportWish {
            source: ImageSource::Web { url: url.to_owned() },
            stores: Stores::These(Vec::new()),
            all_must_succeed: true,
            request: input,
        };
        let stores = self.import_stores(&wish.stores)?;
        let task = new_task(caller, ImageTaskKind::Import, &image, &wish, &stores);
        image.status = ImageStatus::Importing;
        image.import_task = Some(task.id.clone());
        image.imported = true;
        image.importing_to = stores;
        self.db
            .transact(|_| {
                let txn = Txn::new().create(&image).create(&task);
                Ok(quota::charge(txn, &owner, &[(Resource::Images, 1)]))
            })
            .await?;
        self.db.get(&task.id).ok_or_else(|| Error::not_found("Task", &task.id))
    }

    /// All tasks; administrators only.
    pub async fn image_tasks(&self, caller: &Caller) -> Result<Vec<Arc<Stored<ImageTask>>>> {
        require_admin(caller, "tasks_api_access")?;
        self.db.caught_up().await?;
        Ok(self.db.cache().list())
    }

    /// One task; administrators only.
    pub async fn image_task(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<ImageTask>>> {
        require_admin(caller, "tasks_api_access")?;
        self.db.caught_up().await?;
        self.db.get(id).ok_or_else(|| Error::not_found("Task", id))
    }

    /// The tasks of an image that the caller may see, oldest first.
    pub async fn image_tasks_of(&self, caller: &Caller, id: &str) -> Result<Vec<Arc<Stored<ImageTask>>>> {
        self.image_get(caller, id).await?;
        let mut tasks = self.db.cache().filter::<ImageTask>(|task| task.image_id == id);
        tasks.sort_by_key(|task| task.row.created_at);
        Ok(tasks)
    }
}

impl ImageTaskStatus {
    /// Whether nothing more will come of it.
    pub fn is_over(self) -> bool {
        matches!(self, Self::Success | Self::Failure)
    }
}

fn check_status(image: &Image, source: &ImageSource) -> Result<()> {
    let refuse = |message: &str| Err(Error::conflict("Conflict", message));
    match (source, image.status) {
        (ImageSource::Copy, ImageStatus::Active) => {}
        (ImageSource::Copy, _) => {
            return refuse("Only images with status active can be targeted for copying");
        }
        (_, ImageStatus::Active) => return refuse("Image with status active cannot be target for import"),
        (ImageSource::Web { .. }, ImageStatus::Queued) => {}
        (ImageSource::Web { .. }, _) => {
            return refuse("Image needs to be in 'queued' state to use 'web-download' method");
        }
        // While it is still being staged its size is not known.
        (ImageSource::Staged, ImageStatus::Uploading) if image.size_bytes.is_some() => {}
        (ImageSource::Staged, _) => {
            return refuse("Image needs to be staged before 'glance-direct' method can be used");
        }
    }
    if image.import_task.is_some() {
        return refuse("New operation on the image is not permitted as prior operation is still in progress");
    }
    if image.container_format.is_none() {
        return refuse("'container_format' needs to be set before import");
    }
    if image.disk_format.is_none() {
        return refuse("'disk_format' needs to be set before import");
    }
    Ok(())
}

fn new_task(
    caller: &Caller,
    kind: ImageTaskKind,
    image: &Image,
    wish: &ImportWish,
    stores: &[String],
) -> ImageTask {
    let now = Timestamp::now();
    let input = match kind {
        ImageTaskKind::Import => wish.request.clone(),
        ImageTaskKind::ApiImageImport => {
            json!({"image_id": image.id, "import_req": wish.request, "backend": stores})
        }
    };
    ImageTask {
        id: random_uuid(),
        kind,
        status: ImageTaskStatus::Pending,
        owner: image.owner.clone().unwrap_or_default(),
        user_id: caller.user_id.clone(),
        request_id: caller.request_id.clone(),
        image_id: image.id.clone(),
        source: wish.source.clone(),
        stores: stores.to_vec(),
        all_must_succeed: wish.all_must_succeed,
        input,
        message: String::new(),
        created_at: now,
        updated_at: now,
        expires_at: None,
    }
}
