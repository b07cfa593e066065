//! The host bridge: the slots, both ways to configuration space, and the window in which functions' registers lie.
//!
//! Configuration space is reached by ECAM (PCI Express 5.0 §7.2.2), which the MCFG table announces, and by the ports
//! 0xcf8 and 0xcfc (PCI 3.0 §3.2.2.3.2), which need no table. Both show the same.
//!
//! Must never know: what a function does.

use std::sync::{Arc, Mutex, MutexGuard};

use serde::{Deserialize, Serialize};
use vm_memory::GuestAddress;

use super::config::{CONFIG_BYTES, ConfigSpace, Identity};
use super::{Error, PciFunction};
use crate::bus::BusDevice;
use crate::memory;
use crate::mutex::lock;
use crate::virtio::TransportState;

/// Slots of the bus; the bridge itself is in slot 0.
pub const SLOTS: u8 = 32;
/// The ports of the address and of the data.
pub const CONFIG_PORT: u16 = 0xcf8;
/// Their length in bytes.
pub const CONFIG_PORT_BYTES: u16 = 8;
/// Bytes of one function in ECAM's window, as a shift; then three bits of function and five of slot.
const ECAM_FUNCTION_SHIFT: u32 = 12;
/// The address register: configuration space is meant.
const ADDRESS_ENABLE: u32 = 1 << 31;

/// The bridge: Intel's number for the host bridge of a virtual machine.
const BRIDGE: Identity =
    Identity { vendor: 0x8086, device: 0x0d57, revision: 0, class: [0x06, 0x00, 0x00], subsystem: [0, 0] };

/// What a snapshot has of the bridge. What is in the slots is saved with the devices.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostState {
    /// The bridge's configuration space.
    bridge: Vec<u8>,
    /// The address register.
    address: u32,
}

/// The bus. Clones are the same one.
#[derive(Clone)]
pub struct PciHost {
    state: Arc<Mutex<State>>,
}

struct State {
    bridge: ConfigSpace,
    slots: [Option<Box<dyn PciFunction>>; SLOTS as usize],
    /// The register at [`CONFIG_PORT`].
    address: u32,
}

/// Whether the bridge passes accesses to `bytes` bytes at `start` on to functions.
#[must_use]
pub fn forwards(start: GuestAddress, bytes: u64) -> bool {
    let end = memory::PCI_WINDOW_START.0 + memory::PCI_WINDOW_BYTES;
    start >= memory::PCI_WINDOW_START && start.0.checked_add(bytes).is_some_and(|last| last <= end)
}

impl Default for PciHost {
    fn default() -> Self {
        let state =
            State { bridge: ConfigSpace::new(&BRIDGE), slots: std::array::from_fn(|_| None), address: 0 };
        Self { state: Arc::new(Mutex::new(state)) }
    }
}

impl PciHost {
    /// Puts `function` into `slot`, 1 to 31.
    ///
    /// # Errors
    /// The slot is taken or none.
    pub fn insert(&self, slot: u8, function: Box<dyn PciFunction>) -> Result<(), Error> {
        let mut state = self.lock();
        let place = state.slots.get_mut(usize::from(slot)).filter(|_| slot != 0).ok_or(Error::Slot(slot))?;
        if place.is_some() {
            return Err(Error::Slot(slot));
        }
        *place = Some(function);
        Ok(())
    }

    /// Takes what is in `slot` out of it.
    #[must_use]
    pub fn remove(&self, slot: u8) -> Option<Box<dyn PciFunction>> {
        self.lock().slots.get_mut(usize::from(slot))?.take()
    }

    /// The bridge, for a snapshot.
    #[must_use]
    pub fn save(&self) -> HostState {
        let state = self.lock();
        HostState { bridge: state.bridge.bytes().to_vec(), address: state.address }
    }

    /// Takes over what [`Self::save`] gave; false if that is no bridge of this kind.
    #[must_use]
    pub fn restore(&self, saved: &HostState) -> bool {
        let mut state = self.lock();
        state.address = saved.address;
        state.bridge.restore(&saved.bridge)
    }

    /// What is in `slot`, for a snapshot.
    #[must_use]
    pub fn save_slot(&self, slot: u8) -> Option<TransportState> {
        self.lock().slots.get(usize::from(slot))?.as_ref().map(|function| function.save())
    }

    /// Whether a driver uses what is in `slot`; nothing if that is empty.
    #[must_use]
    pub fn is_driven(&self, slot: u8) -> Option<bool> {
        self.lock().slots.get(usize::from(slot))?.as_ref().map(|function| function.is_driven())
    }

    /// The ports at [`CONFIG_PORT`].
    #[must_use]
    pub fn ports(&self) -> ConfigPorts {
        ConfigPorts(self.clone())
    }

    /// ECAM's window of [`memory::PCI_ECAM_BYTES`] at [`memory::PCI_ECAM_START`].
    #[must_use]
    pub fn ecam(&self) -> Ecam {
        Ecam(self.clone())
    }

    /// The window of [`memory::PCI_WINDOW_BYTES`] at [`memory::PCI_WINDOW_START`] in which registers lie.
    #[must_use]
    pub fn window(&self) -> Window {
        Window(self.clone())
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }
}

impl State {
    fn read_config(&mut self, place: Place, data: &mut [u8]) {
        match place {
            Place { slot: 0, function: 0, register } => self.bridge.read(register, data),
            Place { slot, function: 0, register } => match self.slots.get_mut(slot) {
                Some(Some(function)) => function.read_config(register, data),
                _ => data.fill(0xff),
            },
            _ => data.fill(0xff),
        }
    }

    fn write_config(&mut self, place: Place, data: &[u8]) {
        match place {
            Place { slot: 0, function: 0, register } => self.bridge.write(register, data),
            Place { slot, function: 0, register } => {
                if let Some(Some(function)) = self.slots.get_mut(slot) {
                    function.write_config(register, data);
                }
            }
            _ => {}
        }
    }

    /// The function whose registers hold `bytes` bytes at `address`, and the offset in them.
    fn at(&mut self, address: u64, bytes: usize) -> Option<(&mut dyn PciFunction, u64)> {
        self.slots.iter_mut().flatten().find_map(|function| {
            let (start, length) = function.registers()?;
            let offset = address.checked_sub(start.0)?;
            let end = offset.checked_add(bytes as u64)?;
            (end <= length).then_some((&mut **function as &mut dyn PciFunction, offset))
        })
    }
}

/// A place in configuration space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    slot: usize,
    function: usize,
    register: usize,
}

/// Splits slot and function as both mechanisms have them: five bits and three.
fn place(slot_and_function: u64, register: u64) -> Place {
    let bits = |value: u64, mask: u64| usize::try_from(value & mask).expect("invariant: a few bits");
    Place {
        slot: bits(slot_and_function >> 3, 31),
        function: bits(slot_and_function, 7),
        register: bits(register, 0xfff),
    }
}

/// Configuration space in memory.
pub struct Ecam(PciHost);

impl Ecam {
    fn place(offset: u64) -> Option<Place> {
        (offset < memory::PCI_ECAM_BYTES).then(|| place(offset >> ECAM_FUNCTION_SHIFT, offset))
    }
}

impl BusDevice for Ecam {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        match Self::place(offset) {
            Some(place) => self.0.lock().read_config(place, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        if let Some(place) = Self::place(offset) {
            self.0.lock().write_config(place, data);
        }
    }
}

/// Configuration space behind two ports.
pub struct ConfigPorts(PciHost);

/// Where the data port's four bytes lie behind the address port.
const DATA_OFFSET: u64 = 4;

impl ConfigPorts {
    /// What the address register and an access's offset mean; other buses than the first do not exist.
    fn place(address: u32, offset: u64) -> Option<Place> {
        let byte = offset.checked_sub(DATA_OFFSET).filter(|byte| *byte < 4)?;
        let bus = address >> 16 & 0xff;
        let register = u64::from(address & 0xfc) + byte;
        (address & ADDRESS_ENABLE != 0 && bus == 0).then(|| place(u64::from(address >> 8 & 0xff), register))
    }
}

impl BusDevice for ConfigPorts {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let mut state = self.0.lock();
        if offset == 0 && data.len() == 4 {
            return data.copy_from_slice(&state.address.to_le_bytes());
        }
        match Self::place(state.address, offset) {
            Some(place) if place.register + data.len() <= CONFIG_BYTES => state.read_config(place, data),
            _ => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let mut state = self.0.lock();
        // Only a whole double word is the address: single bytes at these ports belong to other hardware.
        if let (0, Ok(bytes)) = (offset, <[u8; 4]>::try_from(data)) {
            state.address = u32::from_le_bytes(bytes);
        } else if let Some(place) = Self::place(state.address, offset) {
            state.write_config(place, data);
        }
    }
}

/// Functions' registers.
pub struct Window(PciHost);

impl BusDevice for Window {
    fn read(&mut self, offset: u64, data: &mut [u8]) {
        let address = memory::PCI_WINDOW_START.0.saturating_add(offset);
        match self.0.lock().at(address, data.len()) {
            Some((function, offset)) => function.read(offset, data),
            None => data.fill(0xff),
        }
    }

    fn write(&mut self, offset: u64, data: &[u8]) {
        let address = memory::PCI_WINDOW_START.0.saturating_add(offset);
        if let Some((function, offset)) = self.0.lock().at(address, data.len()) {
            function.write(offset, data);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::virtio::StateError;

    /// A function whose registers are bytes.
    struct Bytes {
        space: ConfigSpace,
        bytes: [u8; 16],
    }

    impl BusDevice for Bytes {
        fn read(&mut self, offset: u64, data: &mut [u8]) {
            data.copy_from_slice(&self.bytes[offset as usize..offset as usize + data.len()]);
        }
        fn write(&mut self, offset: u64, data: &[u8]) {
            self.bytes[offset as usize..offset as usize + data.len()].copy_from_slice(data);
        }
    }

    impl PciFunction for Bytes {
        fn read_config(&mut self, register: usize, data: &mut [u8]) {
            self.space.read(register, data);
        }
        fn write_config(&mut self, register: usize, data: &[u8]) {
            self.space.write(register, data);
        }
        fn registers(&self) -> Option<(GuestAddress, u64)> {
            self.space.registers()
        }
        fn save(&self) -> TransportState {
            unreachable!("no snapshot is made here")
        }
        fn restore(&mut self, _state: &TransportState) -> Result<(), StateError> {
            unreachable!("no snapshot is made here")
        }
        fn is_driven(&self) -> bool {
            false
        }
    }

    fn function(index: u16) -> Box<dyn PciFunction> {
        let identity =
            Identity { vendor: 0x1234, device: index, revision: 0, class: [0xff, 0, 0], subsystem: [0; 2] };
        let mut space = ConfigSpace::new(&identity);
        let start = memory::PCI_WINDOW_START.0 + 16 * u64::from(index);
        space.add_registers(GuestAddress(start), 16).unwrap();
        Box::new(Bytes { space, bytes: [u8::try_from(index).unwrap(); 16] })
    }

    fn host() -> PciHost {
        let host = PciHost::default();
        host.insert(3, function(3)).unwrap();
        host.insert(31, function(31)).unwrap();
        host
    }

    fn read(device: &mut dyn BusDevice, offset: u64) -> u32 {
        let mut bytes = [0; 4];
        device.read(offset, &mut bytes);
        u32::from_le_bytes(bytes)
    }

    #[test]
    fn both_ways_show_the_same_functions_and_ones_elsewhere() {
        let host = host();
        let (mut ecam, mut ports) = (host.ecam(), host.ports());
        for slot in 0..32_u32 {
            let expected = match slot {
                0 => 0x0d57_8086,
                3 | 31 => slot << 16 | 0x1234,
                _ => u32::MAX,
            };
            assert_eq!(read(&mut ecam, u64::from(slot << 15)), expected);
            assert_eq!(read(&mut ecam, u64::from(slot << 15 | 1 << 12)), u32::MAX, "no second function");
            ports.write(0, &(1 << 31 | slot << 11).to_le_bytes());
            assert_eq!(read(&mut ports, 4), expected);
        }
        ports.write(0, &(1_u32 << 31 | 1 << 16 | 3 << 11).to_le_bytes());
        assert_eq!(read(&mut ports, 4), u32::MAX, "no second bus");
        ports.write(0, &(3_u32 << 11).to_le_bytes());
        assert_eq!(read(&mut ports, 4), u32::MAX, "not enabled");
    }

    #[test]
    fn address_port_reads_back_and_narrow_writes_leave_it_alone() {
        let mut ports = host().ports();
        ports.write(0, &0x8000_1844_u32.to_le_bytes());
        ports.write(1, &[6]);
        ports.write(0, &[6, 6]);
        assert_eq!(read(&mut ports, 0), 0x8000_1844);
    }

    #[test]
    fn data_port_reaches_single_bytes() {
        let mut ports = host().ports();
        ports.write(0, &0x8000_183c_u32.to_le_bytes());
        ports.write(4, &[7]);
        let mut byte = [0];
        ports.read(4, &mut byte);
        assert_eq!(byte, [7]);
        ports.write(0, &0x8000_1800_u32.to_le_bytes());
        ports.read(6, &mut byte);
        assert_eq!(byte, [3]);
    }

    #[test]
    fn registers_follow_their_bar_and_vanish_with_decoding() {
        let host = host();
        let (mut ecam, mut window) = (host.ecam(), host.window());
        assert_eq!(read(&mut window, 3 * 16), 0x0303_0303);
        assert_eq!(read(&mut window, 3 * 16 + 14), u32::MAX, "across the end");
        assert_eq!(read(&mut window, 0), u32::MAX);
        let moved = u32::try_from(memory::PCI_WINDOW_START.0).unwrap() + 0x1000;
        ecam.write(3 << 15 | 0x10, &moved.to_le_bytes());
        assert_eq!(read(&mut window, 3 * 16), u32::MAX);
        assert_eq!(read(&mut window, 0x1000), 0x0303_0303);
        window.write(0x1004, &[9]);
        assert_eq!(read(&mut window, 0x1004), 0x0303_0309);
        ecam.write(3 << 15 | 4, &[0, 0]);
        assert_eq!(read(&mut window, 0x1000), u32::MAX);
    }

    #[test]
    fn slots_are_filled_once_and_the_bridge_keeps_its_own() {
        let host = host();
        for slot in [0, 3, 32, 255] {
            assert_eq!(host.insert(slot, function(1)), Err(Error::Slot(slot)));
        }
    }

    #[test]
    fn accesses_beyond_the_windows_are_harmless() {
        let host = host();
        let devices: [Box<dyn BusDevice>; 3] =
            [Box::new(host.ecam()), Box::new(host.ports()), Box::new(host.window())];
        for mut device in devices {
            for offset in [memory::PCI_ECAM_BYTES - 1, memory::PCI_ECAM_BYTES, 7, 8, u64::MAX] {
                device.write(offset, &[0xff; 8]);
                device.read(offset, &mut [0; 8]);
            }
        }
    }
}
