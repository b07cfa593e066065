//! A control group for each VMM process, outside the agent's: whoever stops the agent with its whole group leaves
//! the instances alone. Where groups cannot be made, instances run in the agent's.

use std::fs;
use std::path::{Path, PathBuf};

/// The group above the instances' groups in every hierarchy.
const PARENT: &str = "wisp";

/// The hierarchies of this host in which groups can be made.
#[derive(Debug, Clone, Default)]
pub(super) struct Cgroups {
    mounts: Vec<PathBuf>,
}

impl Cgroups {
    /// Finds them (cgroups(7): versions 1 and 2, also both at once).
    pub(super) fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Self { mounts: hierarchies(&mounts) }
    }

    /// Moves a process into the group of this instance wherever that is possible.
    pub(super) fn place(&self, instance: &str, pid: i32) {
        for mount in &self.mounts {
            let group = mount.join(PARENT).join(instance);
            let placed = fs::create_dir_all(&group)
                .and_then(|()| fs::write(group.join("cgroup.procs"), pid.to_string()));
            if let Err(error) = placed {
                tracing::debug!(%error, group = %group.display(), "no control group of its own");
                let _ = fs::remove_dir(&group);
            }
        }
    }

    /// Removes the groups of an instance without a process, and the one above when it is empty.
    pub(super) fn remove(&self, instance: &str) {
        for mount in &self.mounts {
            // Either may never have been made, or hold others still.
            let _ = fs::remove_dir(mount.join(PARENT).join(instance));
            let _ = fs::remove_dir(mount.join(PARENT));
        }
    }
}

/// The mount points of the hierarchies that take processes without further settings: `cpuset` of version 1 does not.
fn hierarchies(mounts: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split_whitespace().skip(1);
        let (Some(path), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let mut options = options.split(',');
        let is_usable = match kind {
            "cgroup2" => options.all(|option| option != "ro"),
            "cgroup" => options.all(|option| option != "ro" && option != "cpuset"),
            _ => false,
        };
        if is_usable {
            found.push(Path::new(path).to_path_buf());
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found_without_cpuset_and_read_only_ones() {
        let mounts = "proc /proc proc rw 0 0\n\
            cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0\n\
            cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n\
            cgroup /sys/fs/cgroup/cpu cgroup ro,cpu 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0\n";
        let expected: Vec<PathBuf> = vec!["/sys/fs/cgroup/pids".into(), "/sys/fs/cgroup/unified".into()];
        assert_eq!(hierarchies(mounts), expected);
    }
}
