//! A virtio console: commands are typed there, a line each, and their results said there.
//!
//! Must never know: what a command does.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec::Vec;
use core::cell::RefCell;

use virtio_drivers::device::console::VirtIOConsole;

use crate::commands;
use crate::machine::Machine;
use crate::memory::Identity;
use crate::transport::Transport;

/// The longest line kept, in bytes; what is behind that is lost.
const LINE_BYTES_MAX: usize = 1024;

/// One console.
pub struct Hvc {
    console: RefCell<VirtIOConsole<Identity, Transport>>,
}

impl Hvc {
    /// Sets the device up.
    pub fn new(transport: Transport) -> Result<Self, virtio_drivers::Error> {
        Ok(Hvc { console: RefCell::new(VirtIOConsole::new(transport)?) })
    }

    /// Acknowledges an interrupt, if it is this device's.
    pub fn acknowledge(&self) {
        // What was received is asked for by whoever reads.
        let _ = self.console.borrow_mut().ack_interrupt();
    }

    /// Says a line.
    fn say(&self, line: &str) {
        // A console that takes nothing is none that could be told so.
        let _ = self.console.borrow_mut().send_bytes(format!("{line}\r\n").as_bytes());
    }

    fn read(&self) -> Option<u8> {
        self.console.borrow_mut().recv(true).ok().flatten()
    }
}

/// Runs what is typed, for good.
pub async fn serve(machine: &'static Machine, hvc: Rc<Hvc>) {
    let size = hvc.console.borrow().size().ok().flatten();
    let size = size.filter(|size| size.columns > 0).map_or(String::new(), |size| format!(" {size}"));
    hvc.say(&format!("WISP-GUEST console{size}"));
    let mut line = Vec::new();
    loop {
        match machine.wait(|| hvc.read()).await {
            b'\r' | b'\n' => {
                let typed = core::mem::take(&mut line);
                let typed = String::from_utf8_lossy(&typed);
                if !typed.trim().is_empty() {
                    hvc.say(&commands::typed(machine, typed.trim()).await);
                }
            }
            byte if line.len() < LINE_BYTES_MAX => line.push(byte),
            _ => {}
        }
    }
}
