//! The devices that a machine has when somebody asks for them, from their descriptors to what can be asked of them while
//! the guest runs.
//!
//! Must never know: where a device lies, the control socket, paths.

use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard};

use vm_memory::{Address as _, GuestMemoryBackend as _};

use crate::config::{self, BalloonConfig, ConsoleConfig, MemConfig, PmemConfig, VsockConfig, WatchdogAction};
use crate::devices;
use crate::ending::EndingSignal;
use crate::inherited::Descriptors;
use crate::memory::discard::Emptied;
use crate::memory::mapping::{self, Mapping, Placed};
use crate::memory::{self, GuestMemory};
use crate::mutex::lock;
use crate::serial::{self, ConsoleLog};
use crate::virtio::balloon::{Balloon, build_balloon, saved_firmness};
use crate::virtio::console::{self, Console, build_console};
use crate::virtio::mem::{Mem, Region, build_mem};
use crate::virtio::pmem::build_pmem;
use crate::virtio::spec::device_type;
use crate::virtio::vsock::{Vsock, build_vsock, saved_cid};
use crate::virtio::{self, Shared, StateError};

/// Why a device cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The virtio console.
    #[error("open the virtio console")]
    Console(#[source] io::Error),
    /// The socket device.
    #[error("open the sockets of the socket device")]
    Vsock(#[source] io::Error),
    /// A persistent memory.
    #[error("map a persistent memory")]
    Pmem(#[source] io::Error),
}

/// What devices are made of, opened.
#[derive(Default)]
pub struct PeripheralSpecs {
    /// Where the virtio console leads.
    pub console: Option<console::Output>,
    /// The socket device's address, and its sockets, which are non-blocking.
    pub vsock: Option<VsockSpec>,
    /// The memory balloon.
    pub balloon: Option<BalloonConfig>,
    /// Memory that comes and goes.
    pub mem: Option<MemSpec>,
    /// Files that are memory.
    pub pmem: Vec<Arc<Mapping>>,
    /// The watchdog, which is no virtio device.
    pub watchdog: Option<WatchdogAction>,
}

/// What memory that comes and goes is made of, which is the last of the guest's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemSpec {
    /// How much there can be, and how much is wanted.
    pub config: MemConfig,
    /// How what the guest gives back is made empty.
    pub emptied: Emptied,
}

impl From<MemConfig> for MemSpec {
    /// Of a guest that starts.
    fn from(config: MemConfig) -> Self {
        Self { config, emptied: Emptied::Discarded }
    }
}

/// What a socket device is made of.
pub struct VsockSpec {
    /// The guest's address.
    pub cid: u32,
    /// Where the host's side connects.
    pub listener: Option<UnixListener>,
    /// Who connects for the guest.
    pub connector: Option<UnixStream>,
}

impl PeripheralSpecs {
    /// Takes the descriptors that `config` names.
    ///
    /// # Errors
    /// One cannot be used.
    pub(crate) fn open(config: config::Peripherals, fds: &mut dyn Descriptors) -> Result<Self, Error> {
        let console = match config.console {
            None => None,
            Some(ConsoleConfig::Log(fd)) => {
                let log = ConsoleLog::new(File::from(fds.take(fd))).map_err(Error::Console)?;
                Some(console::Output::Stream(serial::Console::Log(log)))
            }
            Some(ConsoleConfig::Socket(fd)) => {
                let listener = UnixListener::from(fds.take(fd));
                listener.set_nonblocking(true).map_err(Error::Console)?;
                Some(console::Output::Socket(listener))
            }
        };
        let vsock = config.vsock.map(|config| open_vsock(&config, fds)).transpose().map_err(Error::Vsock)?;
        let map =
            |pmem: PmemConfig| Mapping::new(File::from(fds.take(pmem.file)), pmem.read_only).map(Arc::new);
        let pmem = config.pmem.into_iter().map(map).collect::<Result<_, _>>().map_err(Error::Pmem)?;
        let mem = config.mem.map(MemSpec::from);
        Ok(Self { console, vsock, balloon: config.balloon, mem, pmem, watchdog: config.watchdog })
    }

    /// Adds what a guest that goes on has, and what nobody gave it anew: its devices of those types, with what they have saved.
    /// They lead nowhere. Of its memory `hotplug_mib` come and go.
    ///
    /// # Errors
    /// What was saved is no state of such a device.
    pub(crate) fn complete<'a>(
        &mut self,
        saved: impl Iterator<Item = (u32, &'a [u8])>,
        hotplug_mib: u32,
    ) -> Result<(), StateError> {
        for (kind, own) in saved {
            match kind {
                device_type::CONSOLE => {
                    self.console.get_or_insert(console::Output::Stream(serial::Console::None));
                }
                device_type::VSOCK if self.vsock.is_none() => {
                    self.vsock = Some(VsockSpec { cid: saved_cid(own)?, listener: None, connector: None });
                }
                device_type::BALLOON => {
                    let firm = saved_firmness(own)?;
                    if self.balloon.is_some_and(|given| given.firm && !firm) {
                        return Err(StateError::NotFirm);
                    }
                    self.balloon = Some(BalloonConfig { target_mib: 0, firm });
                }
                device_type::MEM => {
                    let config = MemConfig { region_mib: hotplug_mib, requested_mib: 0 };
                    self.mem = Some(MemSpec { config, emptied: Emptied::Replaced });
                }
                _ => {}
            }
        }
        Ok(())
    }

    /// The files that are memory of a guest's with `guest` as its own, and where they lie.
    #[must_use]
    pub fn mappings(&self, guest: &GuestMemory) -> Vec<Placed> {
        mapping::place(&self.pmem, memory::behind_ram(guest))
    }

    /// How many virtio devices they are.
    #[must_use]
    pub fn count(&self) -> usize {
        let single =
            [self.console.is_some(), self.vsock.is_some(), self.balloon.is_some(), self.mem.is_some()];
        single.into_iter().map(usize::from).sum::<usize>() + self.pmem.len()
    }
}

fn open_vsock(config: &VsockConfig, fds: &mut dyn Descriptors) -> io::Result<VsockSpec> {
    let listener = config.listener.map(|fd| UnixListener::from(fds.take(fd)));
    let connector = config.connector.map(|fd| UnixStream::from(fds.take(fd)));
    listener.iter().try_for_each(|listener| listener.set_nonblocking(true))?;
    connector.iter().try_for_each(|connector| connector.set_nonblocking(true))?;
    Ok(VsockSpec { cid: config.cid, listener, connector })
}

/// The devices of one machine, for what can be asked of them.
#[derive(Default)]
pub struct Peripherals {
    console: Option<Arc<Mutex<Console>>>,
    vsock: Option<Arc<Mutex<Vsock>>>,
    balloon: Option<Arc<Mutex<Balloon>>>,
    mem: Option<Arc<Mutex<Mem>>>,
    pmem: Vec<Shared>,
}

impl Peripherals {
    /// Makes the devices of a guest that has this memory, and the mappings behind it; a kernel that panics on one of them is told
    /// of by `ending`.
    ///
    /// # Errors
    /// The device's.
    pub fn build(
        specs: PeripheralSpecs,
        guest: &GuestMemory,
        ending: &EndingSignal,
    ) -> Result<Self, devices::Error> {
        let pmem = specs.mappings(guest).into_iter();
        let pmem: Result<_, virtio::Error> =
            pmem.map(|Placed { mapping, start }| build_pmem(mapping, start)).collect();
        let console = specs.console.map(build_console).transpose()?;
        if let Some(console) = &console {
            lock(console).watch_for_panics(ending.clone());
        }
        let vsock = specs.vsock.map(|spec| build_vsock(spec.cid, spec.listener, spec.connector));
        let balloon = specs.balloon.map(|config| build_balloon(config.target_mib, config.firm));
        let mem = specs.mem.map(|spec| {
            let MemConfig { region_mib, requested_mib } = spec.config;
            let bytes = u64::from(region_mib) * memory::MIB;
            let end = guest.last_addr().unchecked_add(1);
            let region = Region { start: end.unchecked_sub(bytes), mib: region_mib };
            build_mem(region, guest, spec.emptied, requested_mib)
        });
        let (vsock, balloon, mem) = (vsock.transpose()?, balloon.transpose()?, mem.transpose()?);
        Ok(Self { console, vsock, balloon, mem, pmem: pmem? })
    }

    /// The virtio devices in the order of their places.
    #[must_use]
    pub fn devices(&self) -> Vec<Shared> {
        let console = self.console.iter().map(|console| console.clone() as Shared);
        let vsock = self.vsock.iter().map(|vsock| vsock.clone() as Shared);
        let balloon = self.balloon.iter().map(|balloon| balloon.clone() as Shared);
        let mem = self.mem.iter().map(|mem| mem.clone() as Shared);
        console.chain(vsock).chain(balloon).chain(mem).chain(self.pmem.iter().cloned()).collect()
    }

    /// The virtio console.
    #[must_use]
    pub fn console(&self) -> Option<MutexGuard<'_, Console>> {
        self.console.as_deref().map(lock)
    }

    /// The memory balloon.
    #[must_use]
    pub fn balloon(&self) -> Option<MutexGuard<'_, Balloon>> {
        self.balloon.as_deref().map(lock)
    }

    /// Memory that comes and goes.
    #[must_use]
    pub fn mem(&self) -> Option<MutexGuard<'_, Mem>> {
        self.mem.as_deref().map(lock)
    }
}
