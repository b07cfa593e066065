//! A cloud's directory: who owns what in it, and that one cloud at a time runs on it.
//!
//! ```text
//! DIR/up.lock      held while `wisp up` runs; holds its process as JSON
//! DIR/clouds.yaml  credentials for the openstack command, 0600
//! DIR/openrc       the same for a shell, 0600
//! DIR/control/     the control process's: store.redb, images/, keys
//! DIR/run/         the agent's: one directory per instance
//! DIR/volumes/     the agent's: below each host's name one directory per volume and per snapshot
//! ```

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Seek, Write};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::privileges::{CONTROL_UID, User};
use control::driver::process_id::ProcessId;

/// A cloud's directory, by its absolute path.
#[derive(Debug, Clone)]
pub struct StateDirectory {
    path: PathBuf,
}

/// The right to run on a directory, held until dropped or until the process ends.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl StateDirectory {
    /// Where a cloud is kept if no place is named: root's under `/var/lib`, a user's in their state directory
    /// (XDG Base Directory Specification).
    pub fn default_path() -> PathBuf {
        if nix::unistd::geteuid().is_root() {
            return "/var/lib/wisp".into();
        }
        let absolute = |name| std::env::var_os(name).map(PathBuf::from).filter(|path| path.is_absolute());
        absolute("XDG_STATE_HOME")
            .or_else(|| absolute("HOME").map(|home| home.join(".local/state")))
            .unwrap_or_else(std::env::temp_dir)
            .join("wisp")
    }

    /// Names a directory; nothing is looked at yet.
    pub fn at(path: &Path) -> anyhow::Result<Self> {
        let path = std::path::absolute(path).with_context(|| format!("{} is not a path", path.display()))?;
        Ok(Self { path })
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The credentials for the openstack command.
    pub fn clouds_yaml(&self) -> PathBuf {
        self.path.join("clouds.yaml")
    }

    /// The credentials for a shell.
    pub fn openrc(&self) -> PathBuf {
        self.path.join("openrc")
    }

    /// Makes what is missing of the directory itself, so that it can be locked.
    pub fn create(&self) -> anyhow::Result<()> {
        if !self.path.is_dir() {
            let step = || format!("make the directory {}", self.path.display());
            DirBuilder::new().recursive(true).mode(0o755).create(&self.path).with_context(step)?;
            if let Some(user) = sudo_user().filter(|_| nix::unistd::geteuid().is_root()) {
                give(&self.path, user).with_context(step)?;
            }
        }
        Ok(())
    }

    /// Makes the parts that belong to the control process and to the agent, with their owners.
    pub fn create_parts(&self, control: User) -> anyhow::Result<()> {
        let agent = User::current();
        // Below `volumes`, single files are control's to read.
        for (name, owner, mode) in
            [("control", control, 0o700), ("run", agent, 0o700), ("volumes", agent, 0o711)]
        {
            let path = self.path.join(name);
            let step = || format!("make the directory {}", path.display());
            match DirBuilder::new().mode(mode).create(&path) {
                Ok(()) if owner != User::current() => give(&path, owner).with_context(step)?,
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(error).with_context(step);
                }
                _ => {}
            }
            let found = fs::symlink_metadata(&path).with_context(step)?;
            if !found.is_dir() {
                bail!("{} is in the way: it is not a directory", path.display());
            }
            if found.uid() != owner.uid {
                bail!(
                    "{} belongs to user {}, not to user {}: run as whoever made it, or choose another --state",
                    path.display(),
                    found.uid(),
                    owner.uid
                );
            }
        }
        Ok(())
    }

    /// Who the control process becomes: whoever it was before; at first the directory's owner if that is not
    /// root, else whoever called `sudo`, else a user of its own.
    pub fn control_user(&self) -> anyhow::Result<User> {
        let current = User::current();
        if current.uid != 0 {
            return Ok(current);
        }
        let before = owner(&self.path.join("control")).ok();
        let found = before.filter(|owner| owner.uid != 0);
        let found = match found {
            Some(user) => Some(user),
            None => {
                let owner = owner(&self.path).with_context(|| format!("look at {}", self.path.display()))?;
                Some(owner).filter(|owner| owner.uid != 0).or_else(sudo_user)
            }
        };
        Ok(found.unwrap_or(User { uid: CONTROL_UID, gid: CONTROL_UID }))
    }

    /// Who gets the files with the credentials: the one who called.
    pub fn credentials_user(&self) -> User {
        let current = User::current();
        if current.uid == 0 { sudo_user().unwrap_or(current) } else { current }
    }

    /// Writes a file that only `owner` may read, replacing it whole.
    pub fn write_secret(&self, path: &Path, owner: User, text: &str) -> anyhow::Result<()> {
        let unfinished = path.with_extension("new");
        let step = || format!("write {}", path.display());
        let _ = fs::remove_file(&unfinished);
        let mut file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&unfinished)
            .with_context(step)?;
        if User::current() != owner {
            std::os::unix::fs::fchown(&file, Some(owner.uid), Some(owner.gid)).with_context(step)?;
        }
        file.write_all(text.as_bytes()).with_context(step)?;
        file.sync_all().with_context(step)?;
        fs::rename(&unfinished, path).with_context(step)
    }

    /// The right to run a cloud here; if another process has it, that process.
    pub fn lock(&self) -> anyhow::Result<Result<Lock, Option<ProcessId>>> {
        let path = self.path.join("up.lock");
        let step = || format!("open {}", path.display());
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(&path)
            .with_context(step)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Ok(Err(serde_json::from_reader(&file).ok()));
            }
            Err(TryLockError::Error(error)) => {
                return Err(error).with_context(|| format!("lock {}", path.display()));
            }
        }
        file.set_len(0).with_context(step)?;
        file.rewind().with_context(step)?;
        serde_json::to_writer(&mut file, &ProcessId::current()?)?;
        file.flush().with_context(step)?;
        Ok(Ok(Lock { _file: file }))
    }
}

/// Whoever called `sudo`, if it was used by someone else than root.
fn sudo_user() -> Option<User> {
    let number = |name| std::env::var(name).ok()?.parse::<u32>().ok();
    let uid = number("SUDO_UID").filter(|uid| *uid != 0)?;
    Some(User { uid, gid: number("SUDO_GID").filter(|gid| *gid != 0).unwrap_or(uid) })
}

fn give(path: &Path, user: User) -> io::Result<()> {
    std::os::unix::fs::lchown(path, Some(user.uid), Some(user.gid))
}

fn owner(path: &Path) -> io::Result<User> {
    let found = fs::symlink_metadata(path)?;
    Ok(User { uid: found.uid(), gid: found.gid() })
}
