//! The host's place for volumes: a storage backend, and what wishes about disks mean to it. Every driver has the same.
//!
//! Must never know: who owns a volume, which instance has it.

mod moves;
mod outgoing;
mod place;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use storage::backend::{Backend, BackendError, Source, copy_sparse};
use storage::backup::{self, BackupError, BackupStore, BucketBackups, DirectoryBackups, Objects};
use storage::format::{Disk, DiskKey, EncryptedDisk, RawFile};
use vmm::config::{DISK_SERIAL_BYTES_MAX, DiskConfig, DiskFormat, InheritedFd};

use self::moves::{recode, relocate};
use self::place::DISKS;
pub use self::place::{NamedPlace, Place, check_places};
use super::host::open_image;
use super::instance_id_is_safe;
use crate::agent::protocol::{
    DiskFound, DiskObserved, DiskShape, DiskSource, DiskWanted, InstanceWanted, PoolReport, VolumeWanted,
};

/// Below the root, files of raw bytes for control to take: whoever knows a name may reach it, only its owner reads it.
pub const OUTGOING: &str = "outgoing";

/// The most disks of one backend that are listed.
const DISKS_SHOWN_MAX: usize = 65_536;

/// Below the root, the backups.
const BACKUPS: &str = "backups";

/// Where a host keeps what has to do with volumes.
#[derive(Debug, Clone)]
pub struct VolumePaths {
    /// The agent's own directory for them.
    pub root: PathBuf,
    /// What keeps their disks; at least one, and the first where nothing is said.
    pub places: Vec<NamedPlace>,
    /// The images, by their ids.
    pub images: PathBuf,
    /// The bucket that new backups go to; a directory below the root if there is none.
    pub bucket: Option<Arc<dyn Objects>>,
}

/// See the module.
pub struct Volumes {
    /// By their names, in the order in which they were given.
    backends: Vec<(String, Box<dyn Backend>)>,
    /// Where backups lie; new ones in the first.
    backups: Vec<Box<dyn BackupStore>>,
    paths: VolumePaths,
    /// By instance: the disks that its VMM may be writing to.
    users: Mutex<HashMap<String, Vec<String>>>,
}

/// Why a wish does not come true.
#[derive(Debug, thiserror::Error)]
enum Error {
    #[error(transparent)]
    Backend(#[from] BackendError),
    #[error("{0}")]
    Image(String),
    #[error("{0}")]
    Key(String),
    #[error("{step}")]
    Io {
        step: &'static str,
        #[source]
        source: std::io::Error,
    },
    #[error("open the layers")]
    Layers(#[source] storage::format::overlay::OverlayError),
    #[error(transparent)]
    Backup(#[from] BackupError),
    #[error("{0}")]
    Root(String),
    #[error("this host has no instances")]
    NoInstances,
}

fn io_error<E: Into<std::io::Error>>(step: &'static str) -> impl FnOnce(E) -> Error {
    move |error| Error::Io { step, source: error.into() }
}

impl Volumes {
    /// Opens the directories, which are made if they are missing.
    ///
    /// # Errors
    /// What the backend says.
    pub fn open(paths: VolumePaths) -> Result<Self, BackendError> {
        for (name, mode) in
            [(None, 0o711), (Some(DISKS), 0o700), (Some(BACKUPS), 0o700), (Some(OUTGOING), 0o711)]
        {
            let path = name.map_or_else(|| paths.root.clone(), |name| paths.root.join(name));
            let made = fs::create_dir_all(&path)
                .and_then(|()| fs::set_permissions(&path, fs::Permissions::from_mode(mode)));
            made.map_err(|source| BackendError::Io { step: "make", path, source })?;
        }
        let mut backends = Vec::new();
        for NamedPlace { name, place } in &paths.places {
            backends.push((name.clone(), place.open(&paths.root)?));
        }
        let mut backups: Vec<Box<dyn BackupStore>> = Vec::new();
        if let Some(bucket) = &paths.bucket {
            backups.push(Box::new(BucketBackups::new(bucket.clone())));
        }
        backups.push(Box::new(DirectoryBackups::new(paths.root.join(BACKUPS))));
        Ok(Self { backends, backups, paths, users: Mutex::default() })
    }

    /// How much space each backend has, and of which kind; without those where it cannot be found out.
    pub fn report(&self) -> Vec<PoolReport> {
        let pool = |(name, backend): &(String, Box<dyn Backend>)| {
            let capacity = backend
                .capacity()
                .inspect_err(|error| {
                    tracing::warn!(backend = name, error = super::host::sentence(error), "no capacity");
                })
                .ok()?;
            let can = backend.capabilities();
            Some(PoolReport {
                backend: name.clone(),
                protocol: can.name.to_owned(),
                total_gib: capacity.total_bytes >> 30,
                free_gib: capacity.free_bytes >> 30,
                copies_in_use: can.copies_in_use,
            })
        };
        self.backends.iter().filter_map(pool).collect()
    }

    /// A backend by its name; the first without one.
    fn backend(&self, name: Option<&str>) -> Result<&dyn Backend, Error> {
        let mut backends = self.backends.iter();
        let found = match name {
            None => backends.next(),
            Some(wanted) => backends.find(|(name, _)| name == wanted),
        };
        let missing =
            || Error::Backend(BackendError::NoBackend { name: name.unwrap_or_default().to_owned() });
        found.map(|(_, backend)| &**backend).ok_or_else(missing)
    }

    /// The disks of a backend; see [`super::Driver::disks`].
    ///
    /// # Errors
    /// One sentence.
    pub fn disks(&self, backend: &str) -> Result<Vec<DiskFound>, String> {
        let said = |error: Error| super::host::sentence(&error);
        let backend = self.backend(Some(backend)).map_err(said)?;
        let ids = backend.list().map_err(|error| said(error.into()))?;
        if ids.len() > DISKS_SHOWN_MAX {
            return Err(format!("the backend has {} disks, more than can be listed", ids.len()));
        }
        let found = |id: String| match backend.size_bytes(&id) {
            Ok(Some(size_bytes)) => Some(DiskFound { id, size_bytes }),
            // It has just gone, or is none of ours.
            Ok(None) => None,
            Err(error) => {
                tracing::warn!(disk.id = id, error = said(error.into()), "a disk cannot be read");
                None
            }
        };
        Ok(ids.into_iter().filter_map(found).collect())
    }

    fn users(&self) -> MutexGuard<'_, HashMap<String, Vec<String>>> {
        // Entries are inserted and removed whole.
        self.users.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that an instance's VMM may be writing to its volumes from now on.
    pub(super) fn claim(&self, instance: &InstanceWanted) {
        let root = instance.root_disk.volume.iter();
        let disks: Vec<String> = root.chain(&instance.volumes).map(|volume| volume.id.clone()).collect();
        if disks.is_empty() {
            self.users().remove(&instance.id);
        } else {
            self.users().insert(instance.id.clone(), disks);
        }
    }

    /// Notes that an instance has no VMM any more.
    pub(super) fn release(&self, instance: &str) {
        self.users().remove(instance);
    }

    /// See [`super::Driver::apply_disk`].
    pub fn apply(&self, wanted: &DiskWanted) -> DiskObserved {
        observed(wanted, self.bring(wanted))
    }

    fn bring(&self, wanted: &DiskWanted) -> Result<Option<u64>, Error> {
        let DiskWanted { id, generation, shape, cipher, source_cipher, backend: name } = wanted;
        let backend = self.backend(name.as_deref())?;
        // Held while disks are copied: no instance begins to write to one meanwhile.
        let users = self.users();
        let in_use = |disk: &str| users.values().any(|disks| disks.iter().any(|used| used == disk));
        match shape {
            DiskShape::Volume { size_bytes, source } => {
                let image;
                let source = match source {
                    DiskSource::Backup { id: backup } => {
                        drop(users);
                        restore(&self.backups, backend, id, backup, *size_bytes)?;
                        return Ok(None);
                    }
                    DiskSource::Nothing => Source::Nothing,
                    DiskSource::Disk { id } => Source::Disk { id, in_use: in_use(id) },
                    DiskSource::Image { image_id } => {
                        image = open_image(&self.paths.images, image_id).map_err(Error::Image)?;
                        if let Some(key) = cipher.key().map_err(Error::Key)? {
                            drop(users);
                            create_encrypted(backend, id, *size_bytes, image, key)?;
                            return Ok(None);
                        }
                        Source::Image(&image)
                    }
                };
                // Only a copy of a disk needs others to stand still; an image may take its time.
                let _users = matches!(source, Source::Disk { .. }).then_some(users);
                backend.create(id, *size_bytes, source)?;
            }
            DiskShape::Extended { size_bytes } => backend.extend(id, *size_bytes)?,
            DiskShape::Snapshot { of } => backend.snapshot(id, of, in_use(of))?,
            DiskShape::Reverted { .. } if in_use(id) => {
                return Err(BackendError::InUse { id: id.to_owned() }.into());
            }
            DiskShape::Reverted { snapshot } => backend.revert(id, snapshot, *generation)?,
            DiskShape::Outgoing { of } => {
                drop(users);
                self.bring_out(id, || {
                    let stored = backend.export(of, true)?.open(true).map_err(Error::Layers)?;
                    Ok(match cipher.key().map_err(Error::Key)? {
                        Some(key) => Box::new(EncryptedDisk::new(stored, key)),
                        None => stored,
                    })
                })?;
            }
            DiskShape::OutgoingRoot { .. } => return Err(Error::NoInstances),
            DiskShape::OutgoingDeleted => self.take_back(id)?,
            DiskShape::Moved { .. } if in_use(id) => {
                return Err(BackendError::InUse { id: id.clone() }.into());
            }
            DiskShape::Moved { from } => {
                drop(users);
                relocate(id, self.backend(Some(from))?, backend)?;
            }
            DiskShape::Recoded { of, .. } if in_use(of) => {
                return Err(BackendError::InUse { id: of.clone() }.into());
            }
            DiskShape::Recoded { of, from } => {
                drop(users);
                let keys = [source_cipher, cipher].map(|cipher| cipher.key().map_err(Error::Key));
                recode((of, self.backend(Some(from))?), (id, backend), keys)?;
            }
            DiskShape::Deleted if name.is_none() => {
                self.backends.iter().try_for_each(|(_, backend)| backend.delete(id))?;
            }
            DiskShape::Deleted => backend.delete(id)?,
            DiskShape::Backup { of, parent } => {
                let busy = in_use(of);
                drop(users);
                return self.back_up(backend, id, of, parent.as_deref(), busy).map(Some);
            }
            DiskShape::Restored { .. } if in_use(id) => {
                return Err(BackendError::InUse { id: id.to_owned() }.into());
            }
            DiskShape::Restored { backup, size_bytes } => {
                drop(users);
                restore_over(&self.backups, backend, id, backup, *size_bytes)?;
            }
            DiskShape::BackupDeleted => {
                drop(users);
                check_id(id)?;
                self.backups.delete(id)?;
            }
        }
        Ok(None)
    }

    /// Backs a disk up; one that a guest writes to by way of a copy.
    fn back_up(
        &self,
        backend: &dyn Backend,
        id: &str,
        of: &str,
        parent: Option<&str>,
        in_use: bool,
    ) -> Result<u64, Error> {
        check_id(id)?;
        parent.map(check_id).transpose()?;
        let copy = format!("{id}-source");
        if in_use {
            backend.snapshot(&copy, of, true)?;
        }
        let from = backend.export(if in_use { &copy } else { of }, true)?.open(true);
        let made = from
            .map_err(Error::Layers)
            .and_then(|from| Ok(backup::create(&self.backups, id, &*from, parent)?));
        if in_use {
            backend.delete(&copy)?;
        }
        made
    }

    /// Opens a volume as a disk of a VMM; `inherit` says under which number the process finds a file.
    ///
    /// # Errors
    /// One sentence for the server's owner.
    pub(super) fn export(
        &self,
        wanted: &VolumeWanted,
        inherit: impl FnMut(File) -> InheritedFd,
    ) -> Result<DiskConfig, String> {
        let said = |error: &dyn std::error::Error| super::host::sentence(error);
        let backend = self.backend(wanted.backend.as_deref()).map_err(|error| said(&error))?;
        let exported = backend.export(&wanted.id, wanted.read_only).map_err(|error| said(&error))?;
        let files = exported.into_layers().into_iter().map(inherit).collect();
        Ok(DiskConfig {
            format: DiskFormat::Layers { files },
            read_only: wanted.read_only,
            serial: serial(&wanted.id),
            limits: wanted.limits,
            key: wanted.cipher.key()?.cloned(),
        })
    }
}

/// By what a guest finds the disk that has this id: as much of its beginning as a disk has room for. It is cut on purpose and here, since
/// the VMM refuses a longer one: with Nova, QEMU cuts the volume's id so, and clients look for `/dev/disk/by-id/virtio-` with the
/// first 20 characters.
pub(super) fn serial(id: &str) -> String {
    id[..id.floor_char_boundary(DISK_SERIAL_BYTES_MAX)].to_owned()
}

/// What there is to say of a wish.
fn observed(wanted: &DiskWanted, applied: Result<Option<u64>, Error>) -> DiskObserved {
    DiskObserved {
        id: wanted.id.clone(),
        generation: wanted.generation,
        bytes: applied.as_ref().ok().copied().flatten(),
        fault: applied.err().map(|error| super::host::sentence(&error)),
    }
}

/// Makes a new volume what an image is, encrypted.
fn create_encrypted(
    backend: &dyn Backend,
    id: &str,
    size_bytes: u64,
    image: File,
    key: &DiskKey,
) -> Result<(), Error> {
    let image = RawFile::whole(image, true).map_err(io_error("size the image"))?;
    let source_bytes = image.size_bytes();
    if size_bytes < source_bytes {
        return Err(BackendError::TooSmall { size_bytes, source_bytes }.into());
    }
    let fill = |disk: &dyn Disk| copy_sparse(&image, &EncryptedDisk::new(disk, key));
    Ok(backend.create(id, size_bytes, Source::Content(&fill))?)
}

/// Makes a volume that is there what a backup is; where that fails, it is what it was.
fn restore_over(
    backups: &Vec<Box<dyn BackupStore>>,
    backend: &dyn Backend,
    id: &str,
    backup: &str,
    size_bytes: u64,
) -> Result<(), Error> {
    check_id(backup)?;
    let fill = |disk: &dyn Disk| backup::restore(backups, backup, disk).map_err(std::io::Error::other);
    Ok(backend.rewrite(id, size_bytes, &fill)?)
}

/// Makes a new volume what a backup is.
fn restore(
    backups: &Vec<Box<dyn BackupStore>>,
    backend: &dyn Backend,
    id: &str,
    backup: &str,
    size_bytes: u64,
) -> Result<(), Error> {
    check_id(backup)?;
    backend.create(id, size_bytes, Source::Nothing)?;
    let to = backend.export(id, false)?.open(false).map_err(Error::Layers)?;
    Ok(backup::restore(backups, backup, &*to)?)
}

/// Refuses an id that could be a path.
fn check_id(id: &str) -> Result<(), Error> {
    if instance_id_is_safe(id) { Ok(()) } else { Err(Error::Image("the id is not one".to_owned())) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn guest_finds_a_volume_by_the_first_twenty_characters_of_its_id() {
        assert_eq!(serial("699a437d-74cc-44c7-9a55-0123456789ab"), "699a437d-74cc-44c7-9");
        assert_eq!(serial("short"), "short");
    }
}
