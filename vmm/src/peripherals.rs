//! The devices that a machine has when somebody asks for them, from their descriptors to what can be asked of them while
//! the guest runs.
//!
//! Must never know: where a device lies, the control socket, paths.

use std::fs::File;
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::config::{self, ConsoleConfig, VsockConfig};
use crate::ending::EndingSignal;
use crate::inherited::Descriptors;
use crate::serial::{self, ConsoleLog};
use crate::virtio::console::{self, Console, build_console};
use crate::virtio::vsock::{Vsock, build_vsock};
use crate::virtio::{self, Shared};

/// Why a device cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The virtio console.
    #[error("open the virtio console")]
    Console(#[source] io::Error),
    /// The socket device.
    #[error("open the sockets of the socket device")]
    Vsock(#[source] io::Error),
}

/// What devices are made of, opened.
#[derive(Default)]
pub struct PeripheralSpecs {
    /// Where the virtio console leads.
    pub console: Option<console::Output>,
    /// The socket device's address, and its sockets, which are non-blocking.
    pub vsock: Option<VsockSpec>,
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
        Ok(Self { console, vsock })
    }

    /// How many virtio devices they are.
    #[must_use]
    pub fn count(&self) -> usize {
        usize::from(self.console.is_some()) + usize::from(self.vsock.is_some())
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
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Peripherals {
    /// Makes the devices; a kernel that panics on one of them is told of by `ending`.
    ///
    /// # Errors
    /// The device's.
    pub fn build(specs: PeripheralSpecs, ending: &EndingSignal) -> Result<Self, virtio::Error> {
        let console = specs.console.map(build_console).transpose()?;
        if let Some(console) = &console {
            lock(console).watch_for_panics(ending.clone());
        }
        let vsock = specs.vsock.map(|spec| build_vsock(spec.cid, spec.listener, spec.connector));
        Ok(Self { console, vsock: vsock.transpose()? })
    }

    /// The virtio devices in the order of their places.
    #[must_use]
    pub fn devices(&self) -> Vec<Shared> {
        let console = self.console.iter().map(|console| console.clone() as Shared);
        console.chain(self.vsock.iter().map(|vsock| vsock.clone() as Shared)).collect()
    }

    /// The virtio console.
    #[must_use]
    pub fn console(&self) -> Option<MutexGuard<'_, Console>> {
        self.console.as_deref().map(lock)
    }
}
