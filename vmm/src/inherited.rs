//! From numbers in the configuration to owned descriptors: each is taken exactly once.
#![expect(unsafe_code, reason = "a number becomes an owned descriptor")]

use std::collections::BTreeSet;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

use crate::config::{Boot, DiskConfig, DiskFormat, InheritedFd, NicConfig, VmmConfig};

/// Why a configuration's descriptors cannot be taken.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// Standard streams are nobody's to take.
    #[error("the configuration names descriptor {0}, which is a standard stream or none")]
    Reserved(RawFd),
    /// Named twice, so that two owners would close it.
    #[error("the configuration names descriptor {0} twice")]
    Twice(RawFd),
    /// Not inherited.
    #[error("the configuration names descriptor {0}, which is not open")]
    NotOpen(RawFd),
}

/// The inherited descriptors of one process.
///
/// # Invariant
/// Every number in the set is open, and was in the parent's hand when this process began, so no one here owns it.
#[derive(Debug)]
pub struct InheritedFds {
    untaken: BTreeSet<RawFd>,
}

impl InheritedFds {
    /// Checks all descriptors that `config` names, and keeps programs started later from inheriting them.
    ///
    /// To be called once, early in a process made to run `config`, before anything else opens descriptors under
    /// those numbers.
    ///
    /// # Errors
    /// A number that cannot be taken.
    pub fn of(config: &VmmConfig) -> Result<Self, Error> {
        let mut untaken = BTreeSet::new();
        for InheritedFd(fd) in all(config) {
            if fd <= 2 {
                return Err(Error::Reserved(fd));
            }
            if !untaken.insert(fd) {
                return Err(Error::Twice(fd));
            }
            // SAFETY: fcntl with F_SETFD takes any number; a closed one is an error and nothing else.
            if unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) } < 0 {
                return Err(Error::NotOpen(fd));
            }
        }
        Ok(Self { untaken })
    }

    /// Takes ownership of one descriptor.
    ///
    /// # Panics
    /// If it is not one of the configuration's, or was taken before.
    pub fn take(&mut self, InheritedFd(fd): InheritedFd) -> OwnedFd {
        assert!(self.untaken.remove(&fd), "invariant: each descriptor of the configuration is taken once");
        // SAFETY: the descriptor is open, inherited, and leaves the set of those without an owner.
        unsafe { OwnedFd::from_raw_fd(fd) }
    }
}

/// The numbers of all descriptors that `config` names.
#[must_use]
pub fn numbers(config: &VmmConfig) -> Vec<RawFd> {
    all(config).into_iter().map(|InheritedFd(fd)| fd).collect()
}

/// Every descriptor that `config` names.
pub(crate) fn all(config: &VmmConfig) -> Vec<InheritedFd> {
    let mut fds: Vec<InheritedFd> =
        [config.console_log, config.control_socket, config.exit_report].into_iter().flatten().collect();
    match &config.boot {
        Boot::Kernel { kernel, initrd } => {
            fds.push(*kernel);
            fds.extend(*initrd);
        }
        Boot::Firmware { firmware } => fds.push(*firmware),
        Boot::Disk => {}
        Boot::Snapshot { files, working_set, .. } => fds.extend(files.iter().chain(working_set)),
    }
    fds.extend(config.disks.iter().flat_map(of_disk));
    fds.extend(config.nics.iter().flat_map(NicConfig::queues));
    fds.extend(config.peripherals.descriptors());
    fds
}

/// Those that a disk names.
pub(crate) fn of_disk(disk: &DiskConfig) -> Vec<InheritedFd> {
    match &disk.format {
        DiskFormat::Raw { file } => vec![*file],
        DiskFormat::Overlay { file, base } => vec![*file, *base],
        DiskFormat::Layers { files } => files.clone(),
    }
}

/// The same, to be given other numbers.
pub(crate) fn of_disk_mut(disk: &mut DiskConfig) -> Vec<&mut InheritedFd> {
    match &mut disk.format {
        DiskFormat::Raw { file } => vec![file],
        DiskFormat::Overlay { file, base } => vec![file, base],
        DiskFormat::Layers { files } => files.iter_mut().collect(),
    }
}

/// Where the descriptors are that a configuration names.
pub(crate) trait Descriptors {
    /// Takes ownership of one.
    ///
    /// # Panics
    /// If it is not one of them, or was taken before.
    fn take(&mut self, fd: InheritedFd) -> OwnedFd;
}

impl Descriptors for InheritedFds {
    fn take(&mut self, fd: InheritedFd) -> OwnedFd {
        Self::take(self, fd)
    }
}

/// Descriptors that came with a request, numbered from zero.
#[derive(Debug)]
pub(crate) struct PassedFds(Vec<Option<OwnedFd>>);

impl PassedFds {
    /// Those that came, if `named` are all of them, each once.
    pub(crate) fn new(passed: Vec<OwnedFd>, named: &[InheritedFd]) -> Option<Self> {
        let numbers: BTreeSet<RawFd> = named.iter().map(|fd| fd.0).collect();
        let count = RawFd::try_from(passed.len()).ok()?;
        let fits = numbers.len() == named.len() && numbers.into_iter().eq(0..count);
        fits.then(|| Self(passed.into_iter().map(Some).collect()))
    }
}

impl Descriptors for PassedFds {
    fn take(&mut self, InheritedFd(fd): InheritedFd) -> OwnedFd {
        let place = usize::try_from(fd).ok().and_then(|index| self.0.get_mut(index)?.take());
        place.expect("invariant: each descriptor that was named is taken once")
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::IntoRawFd;

    use super::*;

    fn config(kernel: RawFd, log: Option<RawFd>) -> VmmConfig {
        VmmConfig {
            memory_mib: 1,
            huge_pages: Default::default(),
            upgradable: false,
            vcpus: 1,
            cpu: Default::default(),
            boot: Boot::Kernel { kernel: InheritedFd(kernel), initrd: None },
            transport: Default::default(),
            system: None,
            cmdline: String::new(),
            disks: Vec::new(),
            nics: Vec::new(),
            peripherals: Default::default(),
            console_log: log.map(InheritedFd),
            control_socket: None,
            exit_report: None,
        }
    }

    #[test]
    fn each_descriptor_is_taken_once() {
        let fd = tempfile::tempfile().unwrap().into_raw_fd();
        let mut fds = InheritedFds::of(&config(fd, None)).unwrap();
        drop(fds.take(InheritedFd(fd)));
        assert!(fds.untaken.is_empty());
    }

    #[test]
    fn passed_descriptors_are_those_that_are_named_and_no_others() {
        let passed = |count: usize| -> Vec<OwnedFd> {
            (0..count).map(|_| tempfile::tempfile().unwrap().into()).collect()
        };
        let named = |numbers: &[RawFd]| numbers.iter().map(|fd| InheritedFd(*fd)).collect::<Vec<_>>();
        let mut fds = PassedFds::new(passed(2), &named(&[1, 0])).unwrap();
        drop((fds.take(InheritedFd(0)), fds.take(InheritedFd(1))));
        for wrong in [&[0][..], &[0, 0], &[0, 2], &[0, 1, 2], &[-1, 0]] {
            assert!(PassedFds::new(passed(2), &named(wrong)).is_none(), "{wrong:?}");
        }
    }

    #[test]
    fn standard_streams_duplicates_and_closed_numbers_are_refused() {
        let fd = tempfile::tempfile().unwrap().into_raw_fd();
        assert_eq!(InheritedFds::of(&config(1, None)).unwrap_err(), Error::Reserved(1));
        assert_eq!(InheritedFds::of(&config(-1, None)).unwrap_err(), Error::Reserved(-1));
        assert_eq!(InheritedFds::of(&config(fd, Some(fd))).unwrap_err(), Error::Twice(fd));
        assert_eq!(InheritedFds::of(&config(1 << 20, None)).unwrap_err(), Error::NotOpen(1 << 20));
    }
}
