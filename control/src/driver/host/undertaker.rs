//! Taking VMs apart where nobody waits for it, and their processes' control groups: the kernel needs some ten milliseconds from the last handle of one to its
//! end, in whoever closes that, and lets a group go some time after its last process. One thread does both; handles that
//! are left when this process ends, the kernel closes.
//!
//! A VM's handle keeps nothing but the VM: by then its process is over, and with it every file and tap that it had.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::mpsc::{Sender, channel};

use super::cgroup;

/// See the module.
pub(super) struct Undertaker(Sender<Remains>);

/// What is left of an instance's process.
enum Remains {
    Vm(OwnedFd),
    Groups(Vec<PathBuf>),
}

impl Undertaker {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (sender, remains) = channel();
        std::thread::Builder::new().name("undertaker".into()).spawn(move || {
            remains.iter().for_each(|remains| match remains {
                Remains::Vm(handle) => drop(handle),
                Remains::Groups(groups) => cgroup::remove_when_idle(groups),
            });
        })?;
        Ok(Self(sender))
    }

    /// Has a handle closed.
    pub(super) fn take(&self, handle: OwnedFd) {
        // Were the thread gone, it is closed here.
        let _ = self.0.send(Remains::Vm(handle));
    }

    /// Has control groups removed, as soon as the kernel lets them go.
    pub(super) fn clear(&self, groups: Vec<PathBuf>) {
        if !groups.is_empty() {
            // As above; then they are left until the instance's next end.
            let _ = self.0.send(Remains::Groups(groups));
        }
    }
}
