//! Images as block devices, by the kernel's own client. `rbd-nbd` would do as well where the kernel has only NBD, but takes
//! a device away from whoever has it open; the kernel's client refuses to, which is how a device in use is known.

use std::path::PathBuf;

use serde::Deserialize;

use super::command::{BUSY, Ceph};
use crate::backend::BackendError;

type Result<T> = std::result::Result<T, BackendError>;

/// Whoever makes files that are images' content.
pub(super) trait Devices: Send + Sync {
    /// The one of an image, if there is one.
    fn mapped(&self, name: &str) -> Result<Option<PathBuf>>;

    /// The images that have one.
    fn all(&self) -> Result<Vec<String>>;

    /// Makes one for an image that has none.
    fn map(&self, name: &str, read_only: bool) -> Result<PathBuf>;

    /// Takes an image's away; no error if there is none, or somebody has it open.
    fn unmap(&self, name: &str) -> Result<()>;
}

/// `/dev/rbd0` and so on.
#[derive(Debug)]
pub(super) struct KernelDevices {
    ceph: Ceph,
}

/// `rbd device list --format json`.
#[derive(Debug, Deserialize)]
struct Row {
    pool: String,
    namespace: String,
    name: String,
    device: PathBuf,
}

impl KernelDevices {
    pub(super) fn new(ceph: Ceph) -> Self {
        Self { ceph }
    }

    /// Those of the pool.
    fn rows(&self) -> Result<Vec<Row>> {
        let mut rows: Vec<Row> =
            self.ceph.report(&["device", "list", "--format", "json"], self.ceph.pool())?;
        rows.retain(|row| row.pool == self.ceph.pool() && row.namespace.is_empty());
        Ok(rows)
    }
}

impl Devices for KernelDevices {
    fn mapped(&self, name: &str) -> Result<Option<PathBuf>> {
        Ok(self.rows()?.into_iter().find(|row| row.name == name).map(|row| row.device))
    }

    fn all(&self) -> Result<Vec<String>> {
        Ok(self.rows()?.into_iter().map(|row| row.name).collect())
    }

    fn map(&self, name: &str, read_only: bool) -> Result<PathBuf> {
        let of_pool = self.ceph.of_pool(name);
        let mut arguments = vec!["device", "map", &of_pool];
        if read_only {
            arguments.push("--read-only");
        }
        // Where nobody says that a device's names are made, nobody is waited for.
        if !std::path::Path::new("/run/udev/control").exists() {
            arguments.extend(["--options", "noudev"]);
        }
        self.ceph.run(&arguments, &of_pool)?;
        self.mapped(name)?.ok_or_else(|| self.ceph.failed("rbd", &of_pool, "it has no device"))
    }

    fn unmap(&self, name: &str) -> Result<()> {
        let Some(path) = self.mapped(name)? else { return Ok(()) };
        let of_pool = self.ceph.of_pool(name);
        let path = path.display().to_string();
        let mut arguments = vec!["device", "unmap", &path];
        if !std::path::Path::new("/run/udev/control").exists() {
            arguments.extend(["--options", "noudev"]);
        }
        self.ceph.run_unless(BUSY, &arguments, &of_pool).map(drop)
    }
}
