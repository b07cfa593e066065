//! Runs image tasks: each row that is not over is worked on until it is. A task that a crash cut off is begun anew, since
//! all it does before its last transaction can be done twice.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use storage::image::Sealed;
use tokio::sync::{Notify, Semaphore};

use crate::Control;
use crate::agent::protocol::DiskSource;
use crate::error::{Error, Result};
use crate::model::compute::{Fault, Server};
use crate::model::image::{
    Image, ImageSource, ImageStatus, ImageTask, ImageTaskKind, ImageTaskStatus, LocalFile,
};
use crate::model::volume::{Status, Volume};
use crate::reconcile::place::waits_for_host;
use crate::service::image_data::{deletion, refer_by};
use crate::service::image_store::{Images, blocking};
use crate::service::server::lifecycle::fail_building;
use crate::service::server::remove::abandonment;
use crate::service::volume::create::want_made;
use crate::service::volume::message::tell;
use crate::store::{Cache, Change, Row, Stored, Txn};

/// How many tasks run at once: each takes a disk or a connection, and digests take cores.
const RUNNING_MAX: usize = 4;
/// How often everything is looked at without a reason.
const PASS_INTERVAL: Duration = Duration::from_secs(60);
/// How long the record of a task that is over stays (Glance's `task_time_to_live`).
const RECORD_LIFETIME: SignedDuration = SignedDuration::from_hours(48);
/// The longest message of a failed task in characters.
const MESSAGE_CHARACTERS_MAX: usize = 500;

/// Which tasks this process works on.
#[derive(Debug)]
pub(crate) struct ImageTasks {
    running: Mutex<BTreeSet<String>>,
    turns: Semaphore,
    /// Files have been made, or cannot be: whoever left them to another looks again.
    made: Notify,
}

impl Default for ImageTasks {
    fn default() -> Self {
        Self { running: Mutex::default(), turns: Semaphore::new(RUNNING_MAX), made: Notify::new() }
    }
}

impl ImageTasks {
    /// Whether nobody works on it yet; whoever is told so ends it with [`ImageTasks::end`].
    pub(crate) fn begin(&self, id: &str) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).insert(id.to_owned())
    }

    pub(crate) fn end(&self, id: &str) {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).remove(id);
    }
}

#[cfg(test)]
impl ImageTasks {
    /// Whether this process works on none.
    pub(super) fn is_idle(&self) -> bool {
        self.running.lock().unwrap_or_else(PoisonError::into_inner).is_empty()
    }
}

/// Follows the rows until the store is closed.
pub(crate) async fn follow_tasks(control: Arc<Control>) {
    let mut changes = control.db.cache().subscribe();
    let mut timer = tokio::time::interval(PASS_INTERVAL);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    control.image_sweep_buckets().await;
    loop {
        let look = tokio::select! {
            change = changes.next() => match change {
                None => return,
                Some(Change::Resync) => true,
                Some(Change::Rows { rows, .. }) => {
                    rows.iter().any(|(kind, _)| [ImageTask::KIND, Server::KIND, Volume::KIND].contains(kind))
                }
            },
            () = control.image_tasks.made.notified() => true,
            _ = timer.tick() => {
                if let Err(error) = control.forget_old_tasks().await {
                    log(&error, "old image tasks stay");
                }
                if let Err(error) = control.volume_messages_forget().await {
                    log(&error, "old messages stay");
                }
                true
            }
        };
        if look {
            start_tasks(&control);
            start_server_files(&control);
            start_volume_files(&control);
        }
    }
}

fn log(error: &Error, what: &'static str) {
    tracing::error!(error = error as &dyn std::error::Error, "{what}");
}

fn start_tasks(control: &Arc<Control>) {
    for stored in control.db.cache().filter::<ImageTask>(|task| !task.status.is_over()) {
        let id = stored.row.id.clone();
        if !control.image_tasks.begin(&id) {
            continue;
        }
        let control = control.clone();
        tokio::spawn(async move {
            let turn = control.image_tasks.turns.acquire().await;
            if let Err(error) = control.run_image_task(&id).await {
                log(&error, "an image task could not be worked on and is tried again");
            }
            drop(turn);
            control.image_tasks.end(&id);
        });
    }
}

/// Makes the files of servers that wait for them.
fn start_server_files(control: &Arc<Control>) {
    let waiting = control
        .db
        .cache()
        .filter::<Server>(|server| waits_for_host(server) && !control.images.has_all(server));
    for stored in waiting {
        let id = stored.row.id.clone();
        if !control.image_tasks.begin(&id) {
            continue;
        }
        let control = control.clone();
        tokio::spawn(async move {
            match control.images.make_files(&stored.row.files).await {
                Ok(()) => {
                    control.compute.hosts_changed.notify_one();
                    control.image_tasks.made.notify_one();
                }
                Err(error) => {
                    log(&error, "the disk of a server could not be made of its image");
                    if let Err(error) = control.fail_for_files(&id, &error).await {
                        log(&error, "a server without a disk stays");
                    }
                }
            }
            control.image_tasks.end(&id);
        });
    }
}

/// Makes the files that new volumes begin as, then has their hosts make the volumes.
fn start_volume_files(control: &Arc<Control>) {
    for stored in control.db.cache().filter::<Volume>(|volume| volume.waits_for.is_some()) {
        let id = stored.row.id.clone();
        if !control.image_tasks.begin(&id) {
            continue;
        }
        let control = control.clone();
        tokio::spawn(async move {
            match control.make_volume_file(&stored.row).await {
                Ok(()) => {}
                Err(error) => log(&error, "a volume that waits for its image goes on waiting"),
            }
            control.image_tasks.end(&id);
        });
    }
}

/// An error with its causes in one sentence.
pub(crate) fn sentence(error: &Error) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text.chars().take(MESSAGE_CHARACTERS_MAX).collect()
}

impl Control {
    /// A server whose disk cannot be made is in ERROR, and says why.
    async fn fail_for_files(&self, id: &str, why: &Error) -> Result<()> {
        self.db
            .transact(|cache| {
                let Some(stored) = cache.get::<Server>(id).filter(|stored| waits_for_host(&stored.row))
                else {
                    return Ok(Txn::new());
                };
                let mut server = stored.row.clone();
                let fault = Fault {
                    code: 500,
                    message: format!("Image {} cannot be made a disk: {}", server.image_id, sentence(why)),
                    details: String::new(),
                    created_at: Timestamp::now(),
                };
                fail_building(&mut server, fault);
                Ok(abandonment(cache, Txn::new(), &stored, server))
            })
            .await
    }

    /// Makes the file that a volume waits for, and says in its row what became of it.
    pub(super) async fn make_volume_file(&self, volume: &Volume) -> Result<()> {
        let Some(file) = &volume.waits_for else { return Ok(()) };
        // From before it is looked for until its row says that its host needs it.
        let _held = (self.images.hold(&file.name).await, self.images.hold(&file.data).await);
        let made = self.images.make_files(std::slice::from_ref(file)).await;
        if let Err(error) = &made {
            log(error, "the disk of a volume could not be made of its image");
        } else if !self.images.files.has(&file.name) {
            // Another makes it, and says when that is over.
            return Ok(());
        }
        self.db
            .transact(|cache| match cache.get::<Volume>(&volume.id) {
                Some(stored) if stored.row.waits_for.as_ref() == Some(file) => {
                    Ok(file_made(cache, &stored, file, made.as_ref().err()))
                }
                _ => Ok(Txn::new()),
            })
            .await?;
        self.image_tasks.made.notify_one();
        Ok(())
    }

    /// Deletes the records of tasks that have been over for long.
    async fn forget_old_tasks(&self) -> Result<()> {
        let now = Timestamp::now();
        let old = |task: &ImageTask| task.expires_at.is_some_and(|at| at <= now);
        for stored in self.db.cache().filter::<ImageTask>(old) {
            let id = stored.row.id.clone();
            let forget = |txn: Option<Arc<crate::store::Stored<ImageTask>>>| match txn {
                Some(stored) => Txn::new().delete(&stored),
                None => Txn::new(),
            };
            self.db.transact(|cache| Ok(forget(cache.get(&id)))).await?;
        }
        Ok(())
    }

    /// Works on a task until it is over.
    async fn run_image_task(&self, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        let Some(stored) = self.db.get::<ImageTask>(id).filter(|stored| !stored.row.status.is_over()) else {
            return Ok(());
        };
        let task = &stored.row;
        self.db
            .transact(|cache| {
                let Some(stored) = cache.get::<ImageTask>(id) else { return Ok(Txn::new()) };
                let row = ImageTask {
                    status: ImageTaskStatus::Processing,
                    updated_at: Timestamp::now(),
                    ..stored.row.clone()
                };
                Ok(Txn::new().update(&stored, &row))
            })
            .await?;
        let image = self.db.get::<Image>(&task.image_id).map(|stored| stored.row.clone());
        let image = image.filter(|image| image.import_task.as_deref() == Some(id));
        let done = match image {
            None => Err(Error::not_found("Image", &task.image_id)),
            Some(image) if task.source == ImageSource::Copy => self.copy_image(task, &image).await,
            Some(image) => self.import_image(task, &image).await,
        };
        match done {
            Ok(()) => Ok(()),
            Err(error) => {
                tracing::info!(
                    task.id = id,
                    image.id = task.image_id,
                    error = &error as &dyn std::error::Error,
                    "an image task failed"
                );
                self.fail_image_task(task, &error).await
            }
        }
    }

    /// Brings the data and makes the image active.
    async fn import_image(&self, task: &ImageTask, image: &Image) -> Result<()> {
        let sealed = match &task.source {
            ImageSource::Web { url } => self.download(task, image, url).await?,
            ImageSource::Staged | ImageSource::Copy => {
                let name = Images::staged(&image.id);
                let bytes = image.size_bytes.unwrap_or(0);
                self.images.bring(&["file".to_owned()], &name, bytes, &spool(task)).await?
            }
        };
        if task.source == ImageSource::Staged && Some(sealed.digest().size_bytes) != image.size_bytes {
            return Err(Error::Unavailable("What was staged is damaged.".to_owned()));
        }
        let virtual_bytes = self.image_inspect(image, &sealed).await?;
        let stores = self.reachable(task, &sealed).await?;
        self.image_activate(image, &sealed, &stores, virtual_bytes, ImageStatus::Importing, |txn| {
            self.finished(txn, task, &stores)
        })
        .await?;
        drop(sealed);
        self.image_collect().await
    }

    /// The stores that take the data now; where not all must, those that fail are left out.
    async fn reachable(&self, task: &ImageTask, sealed: &Sealed) -> Result<Vec<String>> {
        let _held = self.images.hold(sealed.digest().name()).await;
        let mut stores = Vec::new();
        let mut failed = None;
        for store in &task.stores {
            match self.images.store(store)?.put(sealed.digest().name(), sealed).await {
                Ok(()) => stores.push(store.clone()),
                Err(error) => failed = Some(Error::from(error)),
            }
        }
        match failed {
            Some(error) if task.all_must_succeed || stores.is_empty() => Err(error),
            _ => Ok(stores),
        }
    }

    async fn download(&self, task: &ImageTask, image: &Image, url: &str) -> Result<Sealed> {
        let bytes_max = self.image_bytes_left(image.owner.as_deref().unwrap_or_default());
        let mut upload = self.images.files.begin(&spool(task), bytes_max)?;
        let (sources, url) = (self.images.sources.clone(), url.to_owned());
        blocking(move || {
            let mut failed = None;
            let fetched = sources.fetch(&url, bytes_max, |bytes| match upload.write(bytes) {
                Ok(()) => true,
                Err(error) => {
                    failed = Some(error);
                    false
                }
            });
            if let Some(error) = failed {
                return Err(error.into());
            }
            fetched.map_err(|error| Error::Io {
                step: "download the image",
                source: std::io::Error::other(error),
            })?;
            Ok(upload.seal()?)
        })
        .await
    }

    /// Brings the data of an active image to further stores.
    async fn copy_image(&self, task: &ImageTask, image: &Image) -> Result<()> {
        let name = image.data.clone().ok_or_else(|| {
            Error::invalid("Invalid", "an image of the first version cannot be copied; upload it again")
        })?;
        let bytes = image.size_bytes.unwrap_or(0);
        let sealed = self.images.bring(&image.stores, &name, bytes, &spool(task)).await?;
        let _held = self.images.hold(&name).await;
        let stores = self.reachable(task, &sealed).await?;
        self.db
            .transact(|cache| {
                let stored = cache
                    .get::<Image>(&image.id)
                    .filter(|stored| stored.row.import_task.as_ref() == Some(&task.id))
                    .ok_or_else(|| Error::not_found("Image", &image.id))?;
                let mut row = stored.row.clone();
                let new: Vec<String> =
                    stores.iter().filter(|store| !row.stores.contains(store)).cloned().collect();
                row.stores.extend(new.iter().cloned());
                row.import_task = None;
                row.importing_to = Vec::new();
                row.failed_import = left_out(task, &stores);
                row.updated_at = Timestamp::now();
                let txn = refer_by(cache, Txn::new().update(&stored, &row), &new, &name, bytes);
                self.finished(txn, task, &stores)
            })
            .await
    }

    /// The task's success, in the transaction that makes the image active.
    fn finished(&self, txn: Txn, task: &ImageTask, stores: &[String]) -> Result<Txn> {
        let stored = self.db.get::<ImageTask>(&task.id).ok_or_else(|| Error::not_found("Task", &task.id))?;
        let left_out = left_out(task, stores);
        let message = match left_out.as_slice() {
            [] => String::new(),
            stores => format!("The image could not be stored in {}.", stores.join(", ")),
        };
        let row = over(&stored.row, ImageTaskStatus::Success, message);
        Ok(txn.update(&stored, &row))
    }

    /// The image is as it was before; of a task that made it, nothing is left.
    async fn fail_image_task(&self, task: &ImageTask, error: &Error) -> Result<()> {
        let gone = self
            .db
            .transact_with(|cache| {
                let mut txn = Txn::new();
                if let Some(stored) = cache.get::<ImageTask>(&task.id) {
                    let row = over(&stored.row, ImageTaskStatus::Failure, sentence(error));
                    txn = txn.update(&stored, &row);
                }
                let image = cache
                    .get::<Image>(&task.image_id)
                    .filter(|stored| stored.row.import_task.as_ref() == Some(&task.id));
                let Some(stored) = image else { return Ok((txn, None)) };
                if task.kind == ImageTaskKind::Import {
                    return Ok((txn.and(deletion(cache, &stored)), Some(stored.row.clone())));
                }
                let mut row = stored.row.clone();
                row.import_task = None;
                row.importing_to = Vec::new();
                row.failed_import.clone_from(&task.stores);
                row.updated_at = Timestamp::now();
                if row.status == ImageStatus::Importing {
                    row.status = ImageStatus::Queued;
                    row.size_bytes = None;
                }
                Ok((txn.update(&stored, &row), None))
            })
            .await?;
        match gone {
            Some(image) => self.image_cleared(&image).await,
            None => self.image_collect().await,
        }
    }
}

/// The file that a volume waited for is there, and its host's wish follows; or it cannot be made, and its owner is told.
fn file_made(cache: &Cache, stored: &Stored<Volume>, file: &LocalFile, failed: Option<&Error>) -> Txn {
    let mut volume = stored.row.clone();
    volume.waits_for = None;
    volume.updated_at = Some(Timestamp::now());
    let request_id = std::mem::take(&mut volume.request_id);
    match (failed, volume.host.clone()) {
        (None, Some(host)) => {
            volume.status = Status::Creating;
            let source = DiskSource::Image { image_id: file.name.clone() };
            let txn = Txn::new().update(stored, &volume);
            want_made(cache, txn, &request_id, (&host, &volume), source)
        }
        (failed, _) => {
            volume.status = Status::Error;
            let why = failed.map_or_else(|| "the volume is on no host".to_owned(), sentence);
            let txn = Txn::new().update(stored, &volume);
            let about = ("VOLUME", volume.id.as_str());
            let text = format!("copy image to volume:{why}");
            tell(txn, &volume.project_id, &request_id, about, "VOLUME_VOLUME_005_001", &text)
        }
    }
}

/// The name that a task's data arrives under.
fn spool(task: &ImageTask) -> String {
    format!("task-{}", task.id)
}

fn left_out(task: &ImageTask, stores: &[String]) -> Vec<String> {
    task.stores.iter().filter(|store| !stores.contains(store)).cloned().collect()
}

fn over(task: &ImageTask, status: ImageTaskStatus, message: String) -> ImageTask {
    let now = Timestamp::now();
    ImageTask {
        status,
        message,
        updated_at: now,
        expires_at: now.checked_add(RECORD_LIFETIME).ok(),
        ..task.clone()
    }
}
