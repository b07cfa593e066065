//! The guest's power: ACPI's fixed hardware (PM1a event and control blocks, ACPI 6.5 §4.8.3) with the power button,
//! and the keyboard controller's reset line.
//!
//! ```text
//! PM1_EVENT_PORT    +0  status, 2 bytes, write one to clear      +2  enable, 2 bytes
//! PM1_CONTROL_PORT  +0  control, 2 bytes: SCI_EN (always set), SLP_TYP, SLP_EN
//! KEYBOARD_PORT     +0  data (reads as zero)                     +4  command: 0xfe resets
//! ```

use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;

use crate::bus::BusDevice;
use crate::ending::EndingSignal;
use crate::rpc::ExitReason;

/// The I/O port of the PM1a event block.
pub const PM1_EVENT_PORT: u16 = 0x600;
/// Its length in bytes.
pub const PM1_EVENT_BYTES: u8 = 4;
/// The I/O port of the PM1a control block, right behind.
pub const PM1_CONTROL_PORT: u16 = 0x604;
/// Its length in bytes.
pub const PM1_CONTROL_BYTES: u8 = 2;
/// The value of SLP_TYP that means "soft off" (`\_S5`).
pub const SLEEP_TYPE_OFF: u8 = 5;
/// The IOAPIC pin of the system control interrupt: edge-triggered, active high. Pins below 16 reach the PIC too.
pub const SCI_GSI: u32 = 23;
/// The I/O port of the keyboard controller.
pub const KEYBOARD_PORT: u16 = 0x60;
/// The length of its range in bytes; only the first and the last port are its own.
pub const KEYBOARD_BYTES: u8 = 5;
/// The command port's offset.
pub const KEYBOARD_COMMAND_OFFSET: u8 = 4;
/// The command that pulses the reset line.
pub const KEYBOARD_RESET: u8 = 0xfe;

/// PM1 status and enable: the power button.
const POWER_BUTTON: u16 = 1 << 8;
/// PM1 control: ACPI mode.
const SCI_ENABLED: u16 = 1;
/// PM1 control: go to sleep.
const SLEEP_ENABLE: u16 = 1 << 13;

/// What a snapshot has of the fixed hardware: the registers. The keyboard controller has none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct PowerState {
    status: u16,
    enable: u16,
    control: u16,
}

/// The fixed hardware.
pub struct PowerManagement {
    status: u16,
    enable: u16,
    control: u16,
    sci: EventFd,
    ending: EndingSignal,
}

/// Raises the system control interrupt, by which ACPI's events come; one that is pending already is enough.
pub(crate) fn raise_sci(sci: &EventFd) {
    if let Err(error) = sci.write(1) {
        tracing::debug!(%error, "the guest's system control interrupt is pending already");
    }
}

impl PowerManagement {
    /// Hardware that pulses `sci` and announces a power off to `ending`.
    #[must_use]
    pub fn new(sci: EventFd, ending: EndingSignal) -> Self {
        Self { status: 0, enable: 0, control: SCI_ENABLED, sci, ending }
    }

    /// The registers, for a snapshot.
    #[must_use]
    pub fn save(&self) -> PowerState {
        PowerState { status: self.status, enable: self.enable, control: self.control }
    }

    /// Takes over what [`Self::save`] gave.
    pub fn restore(&mut self, state: PowerState) {
        (self.status, self.enable) = (state.status, state.enable);
        self.control = state.control & !SLEEP_ENABLE | SCI_ENABLED;
    }

    /// Presses the power button; the guest hears it if it has enabled the event, or as soon as it does.
    pub fn press_power_button(&mut self) {
        self.status |= POWER_BUTTON;
        self.raise();
    }

    fn raise(&self) {
        if self.status & self.enable != 0 {
            raise_sci(&self.sci);
        }
    }

    fn registers(&self) -> [u8; 6] {
        let [s0, s1] = self.status.to_le_bytes();
        let [e0, e1] = self.enable.to_le_bytes();
        let [c0, c1] = self.control.to_le_bytes();
        [s0, s1, e0, e1, c0, c1]
    }

    fn write_byte(&mut self, offset: usize, value: u8) {
        let shift = 8 * (offset % 2);
        let place = |register: u16| (register & !(0xff << shift)) | (u16::from(value) << shift);
        match offset {
            0 | 1 => self.status &= !(u16::from(value) << shift),
            2 | 3 => self.enable = place(self.enable),
            4 | 5 => self.control = place(self.control) | SCI_ENABLED,
            _ => {}
        }
    }
}

impl BusDevice for PowerManagement {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let registers = self.registers();
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, byte) in data.iter_mut().enumerate() {
            *byte = registers.get(start.saturating_add(index)).copied().unwrap_or(0);
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let start = usize::try_from(offset).unwrap_or(usize::MAX);
        for (index, &byte) in data.iter().enumerate() {
            self.write_byte(start.saturating_add(index), byte);
        }
        self.raise();
        if self.control & SLEEP_ENABLE != 0 {
            self.control &= !SLEEP_ENABLE;
            if self.control >> 10 & 7 == u16::from(SLEEP_TYPE_OFF) {
                self.ending.say(ExitReason::PoweredOff, "the guest powered itself off");
            }
        }
    }
}

/// The keyboard controller, of which only the reset line is there.
pub struct KeyboardController {
    ending: EndingSignal,
}

impl KeyboardController {
    /// A controller that announces a reset to `ending`.
    #[must_use]
    pub fn new(ending: EndingSignal) -> Self {
        Self { ending }
    }
}

impl BusDevice for KeyboardController {
    fn read(&mut self, _offset: u64, data: &mut [u8]) {
        data.fill(0);
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if offset == u64::from(KEYBOARD_COMMAND_OFFSET) && data.first() == Some(&KEYBOARD_RESET) {
            self.ending.say(ExitReason::Reset, "the guest asked for a reset");
        }
    }
}

#[cfg(test)]
mod tests {
    use vmm_sys_util::eventfd::EFD_NONBLOCK;

    use super::*;

    fn device() -> (PowerManagement, EventFd, EndingSignal) {
        let sci = EventFd::new(EFD_NONBLOCK).unwrap();
        let ending = EndingSignal::new().unwrap();
        (PowerManagement::new(sci.try_clone().unwrap(), ending.clone()), sci, ending)
    }

    #[test]
    fn sleep_enable_with_type_five_powers_off() {
        let (mut device, _, ending) = device();
        device.write(4, &(5_u16 << 10).to_le_bytes());
        assert_eq!(ending.said(), None);
        device.write(4, &(5_u16 << 10 | 1 << 13).to_le_bytes());
        assert_eq!(ending.said().unwrap().reason, ExitReason::PoweredOff);
    }

    #[test]
    fn other_sleep_types_do_nothing() {
        let (mut device, _, ending) = device();
        device.write(4, &(3_u16 << 10 | 1 << 13).to_le_bytes());
        assert_eq!(ending.said(), None);
    }

    #[test]
    fn power_button_interrupts_only_when_enabled_and_is_cleared_by_writing_one() {
        let (mut device, sci, _) = device();
        device.press_power_button();
        assert!(sci.read().is_err(), "not enabled yet");
        device.write(2, &POWER_BUTTON.to_le_bytes());
        assert_eq!(sci.read().unwrap(), 1, "heard as soon as enabled");
        let mut status = [0; 2];
        device.read(0, &mut status);
        assert_eq!(u16::from_le_bytes(status), POWER_BUTTON);
        device.write(0, &POWER_BUTTON.to_le_bytes());
        device.read(0, &mut status);
        assert_eq!(status, [0, 0]);
        assert!(sci.read().is_err());
        device.press_power_button();
        assert_eq!(sci.read().unwrap(), 1);
    }

    #[test]
    fn acpi_mode_cannot_be_left() {
        let (mut device, _, _) = device();
        device.write(4, &[0, 0]);
        let mut control = [0; 2];
        device.read(4, &mut control);
        assert_eq!(control, [1, 0]);
    }

    #[test]
    fn accesses_across_and_beyond_the_registers_are_harmless() {
        let (mut device, _, _) = device();
        for offset in [0, 3, 5, 6, 100, u64::MAX] {
            let mut data = [0xaa; 8];
            device.read(offset, &mut data);
            device.write(offset, &[0; 8]);
        }
    }

    #[test]
    fn keyboard_reset_line_resets_and_other_commands_do_not() {
        let ending = EndingSignal::new().unwrap();
        let mut keyboard = KeyboardController::new(ending.clone());
        keyboard.write(0, &[KEYBOARD_RESET]);
        keyboard.write(4, &[0xad]);
        assert_eq!(ending.said(), None);
        keyboard.write(4, &[KEYBOARD_RESET]);
        assert_eq!(ending.said().unwrap().reason, ExitReason::Reset);
    }
}
