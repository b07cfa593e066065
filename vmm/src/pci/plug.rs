//! The hot-plug controller: how a guest hears that a slot was filled or shall be emptied, and says that it has let go. Since it
//! has the general-purpose events, it also tells a guest that it goes on from a snapshot.
//!
//! General-purpose event 1 of ACPI's fixed hardware (ACPI 6.5 §4.8.4.1) says that there is something to see. Two
//! registers then say in which slots, a bit each; a third takes the slots that the guest has done with. Of all this a
//! guest needs to know nothing: methods in the DSDT read the registers and notify the slots (§5.6.6, device check and
//! eject request), and `_EJ0` of a slot writes the third.
//!
//! ```text
//! PLUG_PORT  +0   GPE0 status, 1 byte, write one to clear     +1  GPE0 enable, 1 byte
//!            +8   filled, 4 bytes, cleared by reading
//!            +12  to be emptied, 4 bytes, cleared by reading
//!            +16  let go, 4 bytes, written
//! ```
//! What the guest lets go goes only if it was asked to: which devices there are is the host's to say, when they may go
//! is the guest's.
//!
//! Must never know: what a function does.

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use super::PciFunction;
use super::host::PciHost;
use crate::bus::BusDevice;
use crate::power::raise_sci;

/// The first port, which is that of the general-purpose event block.
pub const PLUG_PORT: u16 = 0x608;
/// The length of all ports together.
pub const PLUG_PORTS: u16 = 20;
/// The length of the event block in bytes: half of it status, half enable.
pub const EVENT_BYTES: u8 = 2;
/// Which general-purpose event it is.
pub const EVENT: u8 = 1;
/// The event that says that the guest has another generation id (`crate::acpi`).
pub const GENERATION_EVENT: u8 = 2;
/// The port of the first register.
pub const REGISTERS_PORT: u16 = PLUG_PORT + 8;
/// The length of the registers in bytes.
pub const REGISTERS_BYTES: u8 = 12;

const FILLED: u64 = 8;
const EMPTIED: u64 = 12;
const LET_GO: u64 = 16;

/// What a snapshot has of the controller: the registers, and what the guest was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlugState {
    status: u8,
    enable: u8,
    filled: u32,
    emptied: u32,
    leaving: u32,
}

/// The controller of one bus.
pub struct PlugController {
    host: PciHost,
    sci: EventFd,
    /// Written when the guest has let a slot go, or has taken up its generation.
    let_go: EventFd,
    status: u8,
    enable: u8,
    filled: u32,
    emptied: u32,
    /// The slots that the guest was asked to let go, and has not.
    leaving: u32,
}

impl PlugController {
    /// A controller for the slots of `host` that interrupts by `sci`, and writes to `let_go` when a slot became empty.
    #[must_use]
    pub fn new(host: PciHost, sci: EventFd, let_go: EventFd) -> Self {
        Self { host, sci, let_go, status: 0, enable: 0, filled: 0, emptied: 0, leaving: 0 }
    }

    /// Fills `slot` with `function` and says so to the guest.
    ///
    /// # Errors
    /// The slot is taken or none; nothing changed.
    pub fn fill(&mut self, slot: u8, function: Box<dyn PciFunction>) -> Result<(), super::Error> {
        self.host.insert(slot, function)?;
        self.filled |= bit(slot);
        self.emptied &= !bit(slot);
        self.notify();
        Ok(())
    }

    /// Asks the guest to let `slot` go, again too if it was asked before. What no driver has in use goes at once. Whether
    /// the slot is empty now.
    pub fn take_away(&mut self, slot: u8) -> bool {
        let Some(driven) = self.host.is_driven(slot) else { return true };
        self.emptied |= bit(slot);
        if driven {
            self.leaving |= bit(slot);
        } else {
            self.filled &= !bit(slot);
            self.empty(slot);
        }
        self.notify();
        !driven
    }

    /// The registers, for a snapshot.
    #[must_use]
    pub fn save(&self) -> PlugState {
        let Self { status, enable, filled, emptied, leaving, .. } = *self;
        PlugState { status, enable, filled, emptied, leaving }
    }

    /// Takes over what [`Self::save`] gave.
    pub fn restore(&mut self, state: PlugState) {
        PlugState {
            status: self.status,
            enable: self.enable,
            filled: self.filled,
            emptied: self.emptied,
            leaving: self.leaving,
        } = state;
    }

    /// Says to the guest that it has another generation id.
    pub fn announce_generation(&mut self) {
        self.status |= 1 << GENERATION_EVENT;
        self.raise();
    }

    /// Whether the guest listens and has not yet taken up that it has another generation id. When it does, `let_go` is
    /// written.
    #[must_use]
    pub fn awaits_generation(&self) -> bool {
        self.status & self.enable & 1 << GENERATION_EVENT != 0
    }

    fn clear(&mut self, status: u8) {
        let awaited = self.awaits_generation();
        self.status &= !status;
        if awaited && !self.awaits_generation() {
            // The write fails only where the counter would overflow: then it is pending already.
            let _ = self.let_go.write(1);
        }
    }

    /// Whether the guest was asked to let `slot` go and has not.
    #[must_use]
    pub fn is_leaving(&self, slot: u8) -> bool {
        self.leaving & bit(slot) != 0
    }

    fn empty(&mut self, slot: u8) {
        self.leaving &= !bit(slot);
        // The function ends outside of the bus's lock: what its device is doing is waited for.
        drop(self.host.remove(slot));
    }

    fn notify(&mut self) {
        self.status |= 1 << EVENT;
        self.raise();
    }

    fn raise(&self) {
        if self.status & self.enable != 0 {
            raise_sci(&self.sci);
        }
    }

    fn take_let_go(&mut self, slots: u32) {
        let mut due = slots & self.leaving;
        if due == 0 {
            return;
        }
        while due != 0 {
            let slot = due.trailing_zeros();
            due &= due - 1;
            self.empty(u8::try_from(slot).expect("invariant: below 32"));
        }
        // The write fails only where the counter would overflow: then it is pending already.
        let _ = self.let_go.write(1);
    }
}

/// A slot's bit; none for what is no slot.
fn bit(slot: u8) -> u32 {
    1_u32.checked_shl(slot.into()).unwrap_or(0)
}

impl BusDevice for PlugController {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        data.fill(0);
        match (offset, data) {
            (0, [status]) => *status = self.status,
            (0, [status, enable]) => (*status, *enable) = (self.status, self.enable),
            (1, [enable]) => *enable = self.enable,
            (FILLED, data @ [_, _, _, _]) => {
                data.copy_from_slice(&std::mem::take(&mut self.filled).to_le_bytes());
            }
            (EMPTIED, data @ [_, _, _, _]) => {
                data.copy_from_slice(&std::mem::take(&mut self.emptied).to_le_bytes());
            }
            _ => {}
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        match (offset, data) {
            (0, [status]) => self.clear(*status),
            (0, [status, enable]) => {
                self.clear(*status);
                self.enable = *enable;
            }
            (1, [enable]) => self.enable = *enable,
            (LET_GO, &[a, b, c, d]) => self.take_let_go(u32::from_le_bytes([a, b, c, d])),
            _ => {}
        }
        // An edge that came while the event was not enabled, or while another was being served, would be lost.
        if offset <= 1 {
            self.raise();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicBool, Ordering};

    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;
    use crate::pci::mock::Device;

    struct Fixture {
        plug: PlugController,
        host: PciHost,
        sci: EventFd,
        let_go: EventFd,
    }

    fn fixture() -> Fixture {
        let event = || EventFd::new(EFD_NONBLOCK).unwrap();
        let (host, sci, let_go) = (PciHost::default(), event(), event());
        let plug = PlugController::new(host.clone(), sci.try_clone().unwrap(), let_go.try_clone().unwrap());
        Fixture { plug, host, sci, let_go }
    }

    impl Fixture {
        fn fill(&mut self, slot: u8, driven: bool) -> Arc<AtomicBool> {
            let driven = Arc::new(AtomicBool::new(driven));
            self.plug.fill(slot, Box::new(Device(driven.clone()))).unwrap();
            driven
        }

        fn register(&mut self, offset: u64) -> u32 {
            let mut bytes = [0; 4];
            self.plug.read(offset, &mut bytes);
            u32::from_le_bytes(bytes)
        }

        fn is_filled(&self, slot: u8) -> bool {
            self.host.is_driven(slot).is_some()
        }
    }

    #[test]
    fn filled_slot_is_told_once_and_as_soon_as_the_event_is_enabled() {
        let mut fixture = fixture();
        fixture.fill(3, false);
        assert!(fixture.sci.read().is_err(), "not enabled yet");
        fixture.plug.write(1, &[1 << EVENT]);
        assert_eq!(fixture.sci.read().unwrap(), 1);
        fixture.plug.write(0, &[1 << EVENT]);
        assert!(fixture.sci.read().is_err(), "cleared");
        assert_eq!((fixture.register(FILLED), fixture.register(FILLED)), (1 << 3, 0));
        assert!(fixture.plug.fill(3, Box::new(Device(Arc::default()))).is_err());
        assert_eq!(fixture.register(FILLED), 0, "refused: nothing changed");
    }

    #[test]
    fn slot_in_use_is_emptied_when_the_guest_lets_it_go_and_not_before() {
        let mut fixture = fixture();
        fixture.fill(5, true);
        fixture.plug.write(LET_GO, &u32::MAX.to_le_bytes());
        assert!(fixture.is_filled(5), "nobody asked");
        assert!(!fixture.plug.take_away(5));
        assert!(!fixture.plug.take_away(5), "again");
        assert!(fixture.plug.is_leaving(5) && fixture.is_filled(5));
        assert_eq!((fixture.register(EMPTIED), fixture.register(EMPTIED)), (1 << 5, 0));
        fixture.plug.write(LET_GO, &(1_u32 << 4).to_le_bytes());
        assert!(fixture.is_filled(5) && fixture.let_go.read().is_err());
        fixture.plug.write(LET_GO, &(1_u32 << 5).to_le_bytes());
        assert!(!fixture.is_filled(5) && !fixture.plug.is_leaving(5));
        assert_eq!(fixture.let_go.read().unwrap(), 1);
        assert!(fixture.plug.take_away(5), "it is gone");
        assert_eq!(fixture.register(EMPTIED), 0);
    }

    #[test]
    fn slot_that_no_driver_uses_is_emptied_at_once() {
        let mut fixture = fixture();
        let driven = fixture.fill(5, false);
        assert!(fixture.plug.take_away(5) && !fixture.is_filled(5));
        assert_eq!((fixture.register(FILLED), fixture.register(EMPTIED)), (0, 1 << 5));
        drop(driven);
        let driven = fixture.fill(5, true);
        assert!(!fixture.plug.take_away(5));
        driven.store(false, Ordering::Relaxed);
        assert!(fixture.plug.take_away(5), "asked again once its driver is gone");
    }

    #[test]
    fn accesses_of_other_widths_and_places_are_harmless() {
        let mut fixture = fixture();
        fixture.fill(5, true);
        fixture.plug.take_away(5);
        for offset in [0, 1, 2, 7, 8, 9, 12, 16, 17, 19, 20, u64::MAX] {
            for length in 1..=8 {
                let whole = length == 4 && matches!(offset, FILLED | EMPTIED | LET_GO);
                if !whole {
                    fixture.plug.read(offset, &mut vec![0xaa; length]);
                    fixture.plug.write(offset, &vec![0xff; length]);
                }
            }
        }
        assert!(fixture.is_filled(5));
        assert_eq!((fixture.register(FILLED), fixture.register(EMPTIED)), (1 << 5, 1 << 5));
        for slot in [0, 32, 255] {
            assert!(fixture.plug.take_away(slot));
        }
    }
}
