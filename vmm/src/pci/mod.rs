//! PCI as a guest sees it (PCI Local Bus 3.0; PCI Express Base 5.0 §7.2 for the configuration windows): one bus of 32
//! slots behind a host bridge, each slot with at most one function.
//!
//! Owns configuration space, where functions' registers lie, and message-signalled interrupts. Must never know: what a
//! function does, KVM.
//!
//! # What there is
//! - [`config`]: a function's configuration space, with which bits a guest may change.
//! - [`msix`]: a function's MSI-X table and pending bits.
//! - [`host`]: the slots, the two ways to configuration space, the window in which registers lie.
//! - [`plug`]: what a guest is told of slots that are filled and emptied while it runs.
//!
//! # Limits
//! - Interrupts are messages (MSI-X) only: no function has an INTx pin, so a driver without MSI-X has to poll.
//! - One bus, no bridges; a function has one 32-bit memory BAR and lies in [`crate::memory::PCI_WINDOW_START`]'s window.

pub mod config;
pub mod host;
#[cfg(any(test, feature = "mock"))]
pub mod mock;
pub mod msix;
pub mod plug;

use vm_memory::GuestAddress;
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::virtio::{StateError, TransportState};

/// Why a PCI machine could not be put together.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The slot is taken, or there is no such slot.
    #[error("PCI slot {0} is taken or does not exist")]
    Slot(u8),
    /// Capabilities, registers or interrupts beyond what a function can have.
    #[error("a PCI function cannot have {0}")]
    Function(&'static str),
}

/// What a function needs of the machine around it. All calls may come from any thread.
pub trait Wiring: Send + Sync {
    /// Delivers one message-signalled interrupt, as the guest programmed it.
    fn send_message(&self, message: msix::Message);
    /// From now on a write of any width to exactly `address` is a write of 1 to `event` and nothing else; false if
    /// that cannot be had, and writes go on reaching the function.
    fn connect_doorbell(&self, event: &EventFd, address: GuestAddress) -> bool;
    /// Undoes [`Self::connect_doorbell`].
    fn disconnect_doorbell(&self, event: &EventFd, address: GuestAddress);
}

/// One function in a slot. As a [`BusDevice`] it serves the registers behind its BAR.
pub trait PciFunction: BusDevice {
    /// The guest reads configuration space at `register`, at most to its end at 256.
    fn read_config(&mut self, register: usize, data: &mut [u8]);
    /// The guest writes configuration space.
    fn write_config(&mut self, register: usize, data: &[u8]);
    /// Where its registers lie now: start and length in bytes; nothing while it does not decode memory.
    fn registers(&self) -> Option<(GuestAddress, u64)>;
    /// Whether a driver has it in use.
    fn is_driven(&self) -> bool;
    /// As [`crate::virtio::Transport::save`].
    fn save(&self) -> TransportState;
    /// As [`crate::virtio::Transport::restore`].
    ///
    /// # Errors
    /// It does not fit: the function must not be used.
    fn restore(&mut self, state: &TransportState) -> Result<(), StateError>;
}
