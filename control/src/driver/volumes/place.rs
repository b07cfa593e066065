//! What keeps the disks of a host's volumes: the kinds of backends there are, by name, as they are written on a command line.

use std::path::{Path, PathBuf};
use std::str::FromStr;

use serde::{Deserialize, Serialize};
use storage::backend::{Backend, BackendError};
#[cfg(feature = "ceph")]
use storage::ceph::CephBackend;
use storage::file::FileBackend;
use storage::lvm::LvmBackend;

/// Below the root, the disks of this host.
pub(super) const DISKS: &str = "disks";

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
    pub(super) fn open(&self, root: &Path) -> Result<Box<dyn Backend>, BackendError> {
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
        crate::driver::check_name(name, "a backend")?;
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
