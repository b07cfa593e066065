//! A control group for each VMM process, outside the agent's: whoever stops the agent with its whole group leaves
//! the instances alone. Each group has limits by its instance's flavor. Where groups cannot be made, instances run in the
//! agent's; a limit that a hierarchy does not have is left out.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use std::{fmt, fs, io};

/// The group above the instances' groups in every hierarchy.
const PARENT: &str = "wisp";
/// What a VMM needs beside its guest's memory: itself, the kernel's page tables (a 512th of the guest's memory, twice),
/// and room for the disks' cached pages, which go when they are in the way. What would go beyond it is a VMM that was
/// made to reserve without bound.
const MEMORY_OVERHEAD_MIB: u64 = 96;
/// One part in so many of the guest's memory, for what grows with it.
const MEMORY_OVERHEAD_PART: u64 = 64;
/// For each vCPU's thread, its stack and KVM's own pages.
const MEMORY_OVERHEAD_VCPU_MIB: u64 = 4;
/// Threads beside those of vCPUs: the VMM's own, and the kernel's that count as its (KVM's page recovery, io_uring's).
const THREADS: u32 = 64;
/// The longest that the kernel may take to let a group go whose last process has ended.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

/// What is limited.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Limited {
    /// Processor time, by weight: a vCPU has the weight of an ordinary process.
    Cpu,
    /// Memory, the guest's and the VMM's.
    Memory,
    /// Threads.
    Pids,
    /// Disk time, by weight.
    Io,
}

impl Limited {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Cpu, Self::Memory, Self::Pids, Self::Io];

    /// The controller's name in a version (cgroups(7)).
    fn controller(self, version: Version) -> &'static str {
        match (self, version) {
            (Self::Cpu, _) => "cpu",
            (Self::Memory, _) => "memory",
            (Self::Pids, _) => "pids",
            (Self::Io, Version::One) => "blkio",
            (Self::Io, Version::Two) => "io",
        }
    }
}

impl fmt::Display for Limited {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.pad(self.controller(Version::Two))
    }
}

/// A group's limits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Limits {
    vcpus: u32,
    memory_bytes: u64,
    threads: u32,
}

impl Limits {
    /// Those of an instance.
    pub(super) fn of(vcpus: u8, memory_mib: u32) -> Self {
        let (vcpus, guest) = (u32::from(vcpus), u64::from(memory_mib));
        let overhead =
            MEMORY_OVERHEAD_MIB + guest / MEMORY_OVERHEAD_PART + MEMORY_OVERHEAD_VCPU_MIB * u64::from(vcpus);
        Self { vcpus, memory_bytes: (guest + overhead) << 20, threads: vcpus + THREADS }
    }

    /// The files that may hold the limit, the first that is there does, and what is written to it.
    fn written(self, limited: Limited, version: Version) -> (&'static [&'static str], u64) {
        let by_vcpu = |one: u32, max: u32| u64::from(self.vcpus.max(1).saturating_mul(one).min(max));
        match (limited, version) {
            (Limited::Cpu, Version::One) => (&["cpu.shares"], by_vcpu(1024, 1 << 18)),
            (Limited::Cpu, Version::Two) => (&["cpu.weight"], by_vcpu(100, 10_000)),
            (Limited::Memory, Version::One) => (&["memory.limit_in_bytes"], self.memory_bytes),
            (Limited::Memory, Version::Two) => (&["memory.max"], self.memory_bytes),
            (Limited::Pids, _) => (&["pids.max"], self.threads.into()),
            (Limited::Io, Version::One) => (&["blkio.bfq.weight", "blkio.weight"], by_vcpu(100, 1000)),
            (Limited::Io, Version::Two) => (&["io.weight", "io.bfq.weight"], by_vcpu(100, 1000)),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
enum Version {
    One,
    Two,
}

/// One hierarchy in which groups can be made.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Hierarchy {
    mount: PathBuf,
    version: Version,
    /// Of version 1: what it is mounted with.
    controllers: BTreeSet<String>,
}

/// The hierarchies of this host in which groups can be made.
#[derive(Debug, Clone)]
pub(super) struct Cgroups {
    hierarchies: Vec<Hierarchy>,
    parent: String,
}

/// The steps in which a process comes into its group of one hierarchy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Make,
    Limit,
    Place,
}

/// What holds of an instance: each limit, or why it does not.
pub type LimitsHeld = Vec<(Limited, Result<String, String>)>;

impl Cgroups {
    /// Finds them (cgroups(7): versions 1 and 2, also both at once).
    pub(super) fn find() -> Self {
        let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        Self { hierarchies: hierarchies(&mounts), parent: PARENT.into() }
    }

    /// Moves a process into the group of this instance, with its limits, wherever that is possible. What holds.
    pub(super) fn place(&self, instance: &str, pid: i32, limits: Limits) -> LimitsHeld {
        self.place_until(instance, pid, limits, None)
    }

    /// As [`Self::place`], and has `broken` fail in every hierarchy.
    fn place_until(&self, instance: &str, pid: i32, limits: Limits, broken: Option<Step>) -> LimitsHeld {
        let none = || (Limited::ALL.map(|limited| (limited, Err("no hierarchy has it".to_owned())))).to_vec();
        let mut held = none();
        for hierarchy in &self.hierarchies {
            let group = hierarchy.mount.join(&self.parent).join(instance);
            let placed = self.place_in(hierarchy, &group, pid, limits, broken);
            let outcomes = placed.unwrap_or_else(|error| {
                tracing::debug!(%error, group = %group.display(), "no control group of its own");
                let _ = fs::remove_dir(&group);
                let _ = fs::remove_dir(hierarchy.mount.join(&self.parent));
                let why = |limited: &Limited| (*limited, Err(format!("no group of its own: {error}")));
                hierarchy.limited().iter().map(why).collect()
            });
            for (limited, outcome) in outcomes {
                let known = held.iter_mut().find(|(other, _)| *other == limited);
                match known.expect("invariant: all of them are listed") {
                    // With both versions mounted, one of them has the controller.
                    (_, before) if before.is_ok() => {}
                    (_, before) => *before = outcome,
                }
            }
        }
        held
    }

    fn place_in(
        &self,
        hierarchy: &Hierarchy,
        group: &Path,
        pid: i32,
        limits: Limits,
        broken: Option<Step>,
    ) -> io::Result<LimitsHeld> {
        let check = |step| if broken == Some(step) { Err(io::ErrorKind::Other.into()) } else { Ok(()) };
        fs::create_dir_all(group)?;
        check(Step::Make)?;
        let limited = hierarchy.limited();
        hierarchy.pass_on(&self.parent, &limited);
        let outcome = |limited: Limited| {
            let set = check(Step::Limit).and_then(|()| hierarchy.limit(group, limited, limits));
            (limited, set.map_err(|error| error.to_string()))
        };
        let held = limited.into_iter().map(outcome).collect();
        fs::write(group.join("cgroup.procs"), pid.to_string())?;
        check(Step::Place)?;
        Ok(held)
    }

    /// Removes the groups of an instance without a process, and the one above when it is empty. Those that the kernel has
    /// not let go yet, for [`remove_when_idle`].
    pub(super) fn remove(&self, instance: &str) -> Vec<PathBuf> {
        let mut busy = Vec::new();
        for hierarchy in &self.hierarchies {
            let parent = hierarchy.mount.join(&self.parent);
            let group = parent.join(instance);
            match fs::remove_dir(&group) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy => busy.push(group),
                // It may never have been made.
                _ => {
                    let _ = fs::remove_dir(parent);
                }
            }
        }
        busy
    }

    /// Tries limits on a group that nobody is in, and leaves nothing.
    fn probe(&self) -> LimitsHeld {
        let name = format!("probe-{}", std::process::id());
        let limits = Limits::of(1, 128);
        let mut held: LimitsHeld = Vec::new();
        for hierarchy in &self.hierarchies {
            let group = hierarchy.mount.join(&self.parent).join(&name);
            let made = fs::create_dir_all(&group);
            let limited = hierarchy.limited();
            hierarchy.pass_on(&self.parent, &limited);
            for limited in limited {
                let set = match &made {
                    Ok(()) => hierarchy.limit(&group, limited, limits).map_err(|error| error.to_string()),
                    Err(error) => Err(error.to_string()),
                };
                held.push((limited, set));
            }
        }
        remove_when_idle(self.remove(&name));
        for limited in Limited::ALL {
            if held.iter().all(|(other, _)| *other != limited) {
                held.push((limited, Err("no hierarchy has it".to_owned())));
            }
        }
        held
    }
}

/// Which limits this host's control groups take, tried on a group that is removed again; each with how, or why not.
#[must_use]
pub fn probe_limits() -> LimitsHeld {
    Cgroups::find().probe()
}

/// Removes groups whose last process has just ended: the kernel takes a moment to let them go.
pub(super) fn remove_when_idle(groups: Vec<PathBuf>) {
    let deadline = Instant::now() + BUSY_TIMEOUT;
    for group in groups {
        loop {
            match fs::remove_dir(&group) {
                Err(error) if error.kind() == io::ErrorKind::ResourceBusy && Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    break tracing::warn!(%error, group = %group.display(), "a control group is left");
                }
                _ => break,
            }
        }
        // Others may be in the one above.
        let _ = group.parent().map(fs::remove_dir);
    }
}

impl Hierarchy {
    /// What it can limit.
    fn limited(&self) -> Vec<Limited> {
        let has = |limited: &Limited| {
            let name = limited.controller(self.version);
            match self.version {
                Version::One => self.controllers.contains(name),
                Version::Two => fs::read_to_string(self.mount.join("cgroup.controllers"))
                    .is_ok_and(|all| all.split_whitespace().any(|one| one == name)),
            }
        };
        Limited::ALL.into_iter().filter(has).collect()
    }

    /// Of version 2: has the groups below, and those below them, have the controllers. Each by itself: one may be refused.
    fn pass_on(&self, parent: &str, limited: &[Limited]) {
        if self.version == Version::One {
            return;
        }
        for group in [self.mount.clone(), self.mount.join(parent)] {
            for limited in limited {
                let word = format!("+{}", limited.controller(self.version));
                if let Err(error) = fs::write(group.join("cgroup.subtree_control"), word) {
                    tracing::debug!(%error, %limited, group = %group.display(), "not passed on");
                }
            }
        }
    }

    /// Writes one limit; what it is.
    fn limit(&self, group: &Path, limited: Limited, limits: Limits) -> io::Result<String> {
        let (files, value) = limits.written(limited, self.version);
        let mut outcome = Err(io::ErrorKind::NotFound.into());
        for file in files {
            outcome = fs::OpenOptions::new()
                .write(true)
                .open(group.join(file))
                .and_then(|mut file| io::Write::write_all(&mut file, value.to_string().as_bytes()))
                .map(|()| format!("{file} {value}"));
            if outcome.as_ref().err().is_none_or(|error| error.kind() != io::ErrorKind::NotFound) {
                break;
            }
        }
        outcome
    }
}

/// The hierarchies that take processes without further settings: `cpuset` of version 1 does not.
fn hierarchies(mounts: &str) -> Vec<Hierarchy> {
    let mut found = Vec::new();
    for line in mounts.lines() {
        let mut fields = line.split_whitespace().skip(1);
        let (Some(path), Some(kind), Some(options)) = (fields.next(), fields.next(), fields.next()) else {
            continue;
        };
        let options: BTreeSet<String> = options.split(',').map(str::to_owned).collect();
        let version = match kind {
            "cgroup2" => Version::Two,
            "cgroup" if !options.contains("cpuset") => Version::One,
            _ => continue,
        };
        if !options.contains("ro") {
            found.push(Hierarchy { mount: path.into(), version, controllers: options });
        }
    }
    found
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    #[test]
    fn hierarchies_of_both_versions_are_found_without_cpuset_and_read_only_ones() {
        let mounts = "proc /proc proc rw 0 0\n\
            cgroup /sys/fs/cgroup/pids cgroup rw,relatime,pids 0 0\n\
            cgroup /sys/fs/cgroup/cpuset cgroup rw,cpuset 0 0\n\
            cgroup /sys/fs/cgroup/cpu cgroup ro,cpu 0 0\n\
            cgroup2 /sys/fs/cgroup/unified cgroup2 rw,nsdelegate 0 0\n";
        let found = hierarchies(mounts);
        let seen: Vec<_> = found.iter().map(|one| (one.mount.to_str().unwrap(), one.version)).collect();
        assert_eq!(seen, [("/sys/fs/cgroup/pids", Version::One), ("/sys/fs/cgroup/unified", Version::Two)]);
        assert_eq!(found[0].limited(), [Limited::Pids]);
    }

    #[test]
    fn limits_follow_the_flavor() {
        let limits = Limits::of(4, 4096);
        assert_eq!(limits.memory_bytes >> 20, 4096 + 96 + 64 + 16);
        assert_eq!(limits.written(Limited::Pids, Version::Two), (&["pids.max"][..], 68));
        assert_eq!(limits.written(Limited::Cpu, Version::One), (&["cpu.shares"][..], 4096));
        assert_eq!(limits.written(Limited::Cpu, Version::Two), (&["cpu.weight"][..], 400));
        let largest = Limits::of(255, u32::MAX);
        assert_eq!(largest.written(Limited::Cpu, Version::Two).1, 10_000, "the kernel's bound");
        assert_eq!(largest.written(Limited::Io, Version::One).1, 1000);
    }

    /// A version 2 hierarchy as files: what a real one shows, written to by the same code.
    #[test]
    fn version_2_is_written_as_its_documentation_says() {
        let root = tempfile::tempdir().unwrap();
        fs::write(root.path().join("cgroup.controllers"), "cpuset cpu io memory pids\n").unwrap();
        let hierarchy =
            Hierarchy { mount: root.path().into(), version: Version::Two, controllers: BTreeSet::new() };
        let group = root.path().join("wisp/one");
        fs::create_dir_all(&group).unwrap();
        for file in ["cpu.weight", "memory.max", "pids.max"] {
            fs::write(group.join(file), "").unwrap();
        }
        let cgroups = Cgroups { hierarchies: vec![hierarchy], parent: PARENT.into() };
        let held = cgroups.place("one", 42, Limits::of(2, 1024));
        let read = |path: &str| fs::read_to_string(root.path().join(path)).unwrap();
        assert_eq!(read("wisp/one/cpu.weight"), "200");
        assert_eq!(read("wisp/one/memory.max"), ((1024 + 96 + 16 + 8_u64) << 20).to_string());
        assert_eq!(read("wisp/one/pids.max"), "66");
        assert_eq!(read("wisp/one/cgroup.procs"), "42");
        assert_eq!(read("wisp/cgroup.subtree_control"), "+io", "the last of them, each by itself");
        let missing: Vec<_> = held.iter().filter(|(_, outcome)| outcome.is_err()).collect();
        assert!(matches!(missing[..], [(Limited::Io, _)]), "{held:?}");
    }

    /// This host's own hierarchies, below a name of the test's; `None` where there are none to write to.
    fn real(test: &str) -> Option<Cgroups> {
        let parent = format!("wisp-test-{test}-{}", std::process::id());
        let cgroups = Cgroups { parent, ..Cgroups::find() };
        let works = cgroups.probe().iter().any(|(_, outcome)| outcome.is_ok());
        if !works {
            println!("skipped: no control groups can be written here");
        }
        works.then_some(cgroups)
    }

    fn left(cgroups: &Cgroups) -> Vec<PathBuf> {
        let parents = cgroups.hierarchies.iter().map(|one| one.mount.join(&cgroups.parent));
        parents.filter(|parent| parent.exists()).collect()
    }

    fn sleeper() -> Child {
        Command::new("sleep").arg("60").spawn().unwrap()
    }

    fn end(mut child: Child) {
        child.kill().unwrap();
        child.wait().unwrap();
    }

    #[test]
    fn process_has_its_limits_and_its_groups_go_with_it() {
        let Some(cgroups) = real("limits") else { return };
        let child = sleeper();
        let pid = child.id().cast_signed();
        let held = cgroups.place("one", pid, Limits::of(2, 256));
        for (limited, outcome) in cgroups.probe() {
            let is_held = held.iter().any(|(other, outcome)| *other == limited && outcome.is_ok());
            assert_eq!(is_held, outcome.is_ok(), "{limited}: {held:?}");
        }
        for hierarchy in &cgroups.hierarchies {
            let group = hierarchy.mount.join(&cgroups.parent).join("one");
            assert_eq!(fs::read_to_string(group.join("cgroup.procs")).unwrap(), format!("{pid}\n"));
            let shown = fs::read_to_string(group.join("pids.max"));
            assert!(shown.is_err() || shown.is_ok_and(|shown| shown == "66\n"));
        }
        end(child);
        remove_when_idle(cgroups.remove("one"));
        assert_eq!(left(&cgroups), Vec::<PathBuf>::new());
        assert_eq!(cgroups.remove("one"), Vec::<PathBuf>::new(), "and again");
    }

    #[test]
    fn step_that_fails_leaves_no_group_in_the_end() {
        let Some(cgroups) = real("steps") else { return };
        for step in [Step::Make, Step::Limit, Step::Place] {
            let child = sleeper();
            let held = cgroups.place_until("one", child.id().cast_signed(), Limits::of(1, 64), Some(step));
            assert!(held.iter().all(|(_, outcome)| outcome.is_err()), "{step:?}: {held:?}");
            if step == Step::Make {
                assert_eq!(left(&cgroups), Vec::<PathBuf>::new(), "nobody came into it");
            }
            end(child);
            remove_when_idle(cgroups.remove("one"));
            assert_eq!(left(&cgroups), Vec::<PathBuf>::new(), "after {step:?} failed");
        }
    }
}
