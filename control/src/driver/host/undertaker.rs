//! Taking VMs apart where nobody waits for it: the kernel needs some ten milliseconds from the last handle of one to its
//! end, in whoever closes that. One thread closes them; what is left when this process ends, the kernel closes.
//!
//! A VM's handle keeps nothing but the VM: by then its process is over, and with it every file and tap that it had.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::mpsc::{Sender, channel};

/// See the module.
pub(super) struct Undertaker(Sender<OwnedFd>);

impl Undertaker {
    /// Starts the thread.
    pub(super) fn start() -> io::Result<Self> {
        let (sender, handles) = channel();
        std::thread::Builder::new()
            .name("undertaker".into())
            .spawn(move || handles.iter().for_each(drop::<OwnedFd>))?;
        Ok(Self(sender))
    }

    /// Has a handle closed.
    pub(super) fn take(&self, handle: OwnedFd) {
        // Were the thread gone, it is closed here.
        let _ = self.0.send(handle);
    }
}
