//! The host's place for volumes: a storage backend, and what wishes about disks mean to it. Every driver has the same.
//!
//! Must never know: who owns a volume, which instance has it.

mod moves;
mod outgoing;

use std::collections::HashMap;
use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use storage::backend::{Backend, BackendError, Source, copy_sparse};
use storage::backup::{self, BackupError, BackupStore, BucketBackups, DirectoryBackups, Objects};
#[cfg(feature = "ceph")]
use storage::ceph::CephBackend;
use storage::file::FileBackend;
use storage::format::{Disk, DiskKey, EncryptedDisk, RawFile};
use storage::lvm::LvmBackend;
use vmm::config::{DISK_SERIAL_BYTES_MAX, DiskConfig, DiskFormat, InheritedFd};

use self::moves::{recode, relocate};
use super::host::open_image;
use super::instance_id_is_safe;
use crate::agent::protocol::{
    DiskFound, DiskObserved, DiskShape, DiskSource, DiskWanted, InstanceWanted, PoolReport, VolumeWanted,
};

/// Below the root, the disks of this host.
const DISKS: &str = "disks";
/// Below the root, files of raw bytes for control to take: whoever knows a name may reach it, only its owner reads it.
pub const OUTGOING: &str = "outgoing";

/// The most disks of one backend that are listed.
const DISKS_SHOWN_MAX: usize = 65_536;

/// Below the root, the backups.
const BACKUPS: &str = "backups";

/// What keeps the disks of a host's volumes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Place {
    /// Files beside the rest.
    #[default]
    Files,
    /// Files in another directory, which may be another file system's or another machine's.
    Directory(PathBuf),
    /// Thin volumes of LVM.
    Thin {
        /// The volume group.
        group: String,
        /// The thin pool in it.
        pool: String,
    },
    /// Images in a Ceph cluster.
    #[cfg(feature = "ceph")]
    Ceph {
        /// The pool.
        pool: String,
        /// Ceph's user, without `client.`; the one that its programs take if none is named.
        user: Option<String>,
    },
}

impl Place {
    fn open(&self, root: &Path) -> Result<Box<dyn Backend>, BackendError> {
        Ok(match self {
            Self::Files => Box::new(FileBackend::open(&root.join(DISKS))?),
            Self::Directory(directory) => {
                // Several hosts may have it.
                let host = root.file_name().unwrap_or_default();
                Box::new(FileBackend::open(&directory.join(host).join(DISKS))?)
            }
            Self::Thin { group, pool } => Box::new(LvmBackend::open(group, pool)?),
            #[cfg(feature = "ceph")]
            Self::Ceph { pool, user } => Box::new(CephBackend::open(pool, user.as_deref())?),
        })
    }

    /// Whether its disks are devices that have to be made.
    #[must_use]
    pub fn makes_devices(&self) -> bool {
        !matches!(self, Self::Files | Self::Directory(_))
    }
}

/// As it is written on a command line: `file`, `file:DIRECTORY`, `lvm:GROUP/POOL`, `ceph:POOL[/USER]`.
impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "file" => Ok(Self::Files),
            Some(("file", path)) if Path::new(path).is_absolute() => Ok(Self::Directory(path.into())),
            Some(("file", path)) => Err(format!("`{path}` is no absolute path")),
            Some(("lvm", pool)) => match pool.split_once('/') {
                Some((group, pool)) if !group.is_empty() && !pool.is_empty() => {
                    Ok(Self::Thin { group: group.to_owned(), pool: pool.to_owned() })
                }
                _ => Err(format!("`{pool}` is no GROUP/POOL")),
            },
            #[cfg(feature = "ceph")]
            Some(("ceph", pool)) => {
                let (pool, user) =
                    pool.split_once('/').map_or((pool, None), |(pool, user)| (pool, Some(user)));
                if pool.is_empty() || user.is_some_and(str::is_empty) {
                    return Err(format!("`{text}` is no ceph:POOL[/USER]"));
                }
                Ok(Self::Ceph { pool: pool.to_owned(), user: user.map(str::to_owned) })
            }
            #[cfg(not(feature = "ceph"))]
            Some(("ceph", _)) => Err(
                "this program was built without Ceph: `cargo build --release --features ceph` builds it with"
                    .to_owned(),
            ),
            _ => {
                Err(format!("`{text}` is none of file, file:DIRECTORY, lvm:GROUP/POOL and ceph:POOL[/USER]"))
            }
        }
    }
}

/// One of a host's backends, by its name.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NamedPlace {
    /// The name: `volume_backend_name` of volume types.
    pub name: String,
    /// What keeps its disks.
    pub place: Place,
}

impl From<Place> for NamedPlace {
    /// By the name of its kind.
    fn from(place: Place) -> Self {
        let name = match place {
            Place::Files | Place::Directory(_) => "file",
            Place::Thin { .. } => "lvm",
            #[cfg(feature = "ceph")]
            Place::Ceph { .. } => "ceph",
        };
        Self { name: name.to_owned(), place }
    }
}

/// As it is written on a command line: a [`Place`], or `NAME=` and one.
impl FromStr for NamedPlace {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let Some((name, place)) = text.split_once('=') else { return text.parse().map(Place::into) };
        super::check_name(name, "a backend")?;
        Ok(Self { name: name.to_owned(), place: place.parse()? })
    }
}

/// Whether a host can have these together.
///
/// # Errors
/// One sentence.
pub fn check_places(places: &[NamedPlace]) -> Result<(), String> {
    for (index, one) in places.iter().enumerate() {
        for other in &places[..index] {
            if one.name == other.name {
                return Err(format!("two backends are called `{}`; say NAME=… for one", one.name));
            }
            if one.place == other.place {
                return Err(format!("the backends `{}` and `{}` are the same place", other.name, one.name));
            }
        }
    }
    Ok(())
}

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
    fn named_places_are_read_and_must_differ() {
        let read = |text: &str| text.parse::<NamedPlace>();
        assert_eq!(read("lvm:vg0/thin").unwrap().name, "lvm");
        let fast = read("fast=file:/mnt/fast").unwrap();
        assert_eq!((fast.name.as_str(), &fast.place), ("fast", &Place::Directory("/mnt/fast".into())));
        for wrong in ["=file", "a b=file", "a@b=file", "a=nfs:x"] {
            assert!(read(wrong).is_err(), "{wrong}");
        }
        let files = NamedPlace::from(Place::Files);
        assert_eq!(check_places(&[files.clone(), fast.clone()]), Ok(()));
        assert!(check_places(&[files.clone(), files.clone()]).is_err());
        assert!(check_places(&[fast.clone(), NamedPlace { name: "other".into(), ..fast }]).is_err());
    }

    #[test]
    fn guest_finds_a_volume_by_the_first_twenty_characters_of_its_id() {
        assert_eq!(serial("699a437d-74cc-44c7-9a55-0123456789ab"), "699a437d-74cc-44c7-9");
        assert_eq!(serial("short"), "short");
    }

    #[test]
    fn places_are_read_as_they_are_written() {
        assert_eq!("file".parse(), Ok(Place::Files));
        assert_eq!("file:/mnt/shared".parse(), Ok(Place::Directory("/mnt/shared".into())));
        let thin = Place::Thin { group: "vg0".into(), pool: "thin".into() };
        assert_eq!("lvm:vg0/thin".parse(), Ok(thin));
        #[cfg(feature = "ceph")]
        {
            let ceph =
                |user: Option<&str>| Place::Ceph { pool: "wisp".into(), user: user.map(str::to_owned) };
            assert_eq!("ceph:wisp".parse(), Ok(ceph(None)));
            assert_eq!("ceph:wisp/volumes".parse(), Ok(ceph(Some("volumes"))));
        }
        #[cfg(not(feature = "ceph"))]
        assert!("ceph:wisp".parse::<Place>().unwrap_err().contains("--features ceph"));
        for wrong in [
            "ceph:",
            "ceph:/volumes",
            "ceph:wisp/",
            "",
            "files",
            "file:",
            "file:here",
            "lvm:",
            "lvm:vg0",
            "lvm:vg0/",
            "nfs:/x",
        ] {
            assert!(wrong.parse::<Place>().is_err(), "{wrong}");
        }
    }
}
