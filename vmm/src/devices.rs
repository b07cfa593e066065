//! Where a machine's virtio devices are at its start: which transport the guest gets, a place for each device, and the
//! wires from there to KVM. Every machine has the PCI bus, for devices that come later.
//!
//! Must never know: what a device does, boot protocols.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use vm_memory::{Address, GuestAddress};
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::acpi::MmioDevice;
use crate::config::Transport;
use crate::kvm::{self, Vm};
use crate::memory::registers::{RegisterPage, RegisterPages};
use crate::memory::{self, GuestMemory};
use crate::pci::host::{self, PciHost};
use crate::pci::{PciFunction, Wiring, msix::Message};
use crate::vcpu::Buses;
use crate::virtio::mmio::{ACKNOWLEDGE_OFFSET, ACKNOWLEDGE_USED, MmioTransport, NOTIFY_OFFSET};
use crate::virtio::pci::{BAR_BYTES, PciTransport};
use crate::virtio::queue::Passed;
use crate::virtio::{self, Shared, Transport as _};
use crate::{bus, pci};

/// The IOAPIC pins of virtio-mmio devices, in the order they are given out: first those that do not reach the PIC as
/// well, then the free ones of a PC.
const MMIO_GSIS: [u32; 16] = [16, 17, 18, 19, 20, 21, 22, 5, 6, 7, 9, 10, 11, 12, 14, 15];
/// Slots for devices: all but the bridge's.
const PCI_DEVICES_MAX: usize = host::SLOTS as usize - 1;

/// Why devices cannot be placed.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// More devices than interrupts.
    #[error(
        "a guest on virtio-mmio can have {max} disks, network devices and others beside its entropy source, not \
         {count}; on PCI it can have {pci}", max = MMIO_GSIS.len() - 1, count = .0, pci = PCI_DEVICES_MAX - 1
    )]
    MmioDevices(usize),
    /// More devices than slots.
    #[error(
        "a guest can have {max} disks, network devices and others beside its entropy source, not {0}",
        max = PCI_DEVICES_MAX - 1
    )]
    PciDevices(usize),
    /// An event descriptor.
    #[error("make an event descriptor")]
    Event(#[source] io::Error),
    /// KVM's part.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// Two devices at one address.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// The PCI bus.
    #[error(transparent)]
    Pci(#[from] pci::Error),
    /// A device or its transport.
    #[error(transparent)]
    Virtio(#[from] virtio::Error),
}

/// A place for each device, in their order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Places {
    /// Register windows and interrupt pins.
    Mmio(Vec<MmioDevice>),
    /// Slots of the PCI bus from the first free one on.
    Pci,
}

impl Places {
    /// Places for `count` devices and the entropy source behind them. `small_kernel` says that the
    /// kernel is an ELF image.
    ///
    /// # Errors
    /// There are too many.
    pub fn choose(transport: Transport, small_kernel: bool, count: usize) -> Result<Self, Error> {
        let mmio = match transport {
            Transport::Auto => small_kernel,
            Transport::Mmio => true,
            Transport::Pci => false,
        };
        if !mmio {
            return if count < PCI_DEVICES_MAX { Ok(Self::Pci) } else { Err(Error::PciDevices(count)) };
        }
        let gsis = MMIO_GSIS.get(..=count).ok_or(Error::MmioDevices(count))?;
        let place = |(index, &gsi): (u64, &u32)| {
            let address = memory::MMIO_START.unchecked_add(index * memory::MMIO_WINDOW_BYTES);
            MmioDevice { address, gsi }
        };
        Ok(Self::Mmio((0..).zip(gsis).map(place).collect()))
    }

    /// The places of a machine that goes on, `count` of whose devices have windows.
    ///
    /// # Errors
    /// There are too many.
    pub fn of_windows(count: usize) -> Result<Self, Error> {
        match count.checked_sub(1) {
            None => Ok(Self::Pci),
            Some(beside) => Self::choose(Transport::Mmio, true, beside),
        }
    }

    /// The virtio-mmio windows; none with PCI.
    #[must_use]
    pub fn windows(&self) -> &[MmioDevice] {
        match self {
            Self::Mmio(windows) => windows,
            Self::Pci => &[],
        }
    }

    /// Memory for the registers of so many windows; none with PCI.
    #[must_use]
    pub fn registers(&self) -> Option<Arc<RegisterPages>> {
        let windows = self.windows().len();
        (windows > 0).then(|| RegisterPages::new(windows))
    }

    /// Puts `devices` behind registers at their places, those on PCI into slots of `host`, which becomes the machine's bus.
    ///
    /// # Errors
    /// The step that failed.
    pub fn fill(
        &self,
        vm: &Arc<Vm>,
        guest: &GuestMemory,
        (buses, host): (&mut Buses, &PciHost),
        devices: &[Shared],
    ) -> Result<Vec<Seat>, Error> {
        connect_bus(buses, host)?;
        match self {
            Self::Mmio(places) => {
                let registers = registers_of(vm, places)?;
                let devices = places.iter().zip(registers.pages()).zip(devices);
                let add = |((place, page), device)| add_mmio(vm, guest, buses, (place, page), device);
                devices.map(add).collect()
            }
            Self::Pci => {
                let put = |(slot, device)| {
                    let (function, seat) = function(vm, guest, slot, device)?;
                    host.insert(slot, function)?;
                    Ok(seat)
                };
                (1..).zip(devices).map(put).collect()
            }
        }
    }

    /// What is said of a guest that came to its end by itself: that it has no driver for its devices, if it never used
    /// one of `driven`, those that are not there for everybody.
    #[must_use]
    pub fn missing_driver(&self, driven: &[Driven]) -> Option<String> {
        let count = driven.len();
        if count == 0 || driven.iter().any(|device| device.load(Ordering::Acquire)) {
            return None;
        }
        let (bus, module, other) = match self {
            Self::Mmio(_) => ("virtio-mmio", "virtio_mmio", "pci"),
            Self::Pci => ("PCI", "virtio_pci", "mmio"),
        };
        Some(format!(
            "it had used none of its {count} disks and network devices: if they were wanted, its kernel has no driver \
             for virtio on {bus} ({module}), neither built in nor in its initial ramdisk; the other way to them is the \
             transport {other}"
        ))
    }
}

/// Where a device is.
pub struct Seat {
    /// Whether a driver has started it.
    pub driven: Driven,
    /// What went through each of its queues.
    pub passed: Vec<Arc<Passed>>,
    /// Its slot, if it is on PCI.
    pub slot: Option<u8>,
    /// Its registers, if it is not.
    pub window: Option<Arc<Mutex<MmioTransport>>>,
}

/// Becomes true once a driver has started a device.
pub type Driven = Arc<AtomicBool>;

fn add_mmio(
    vm: &Vm,
    guest: &GuestMemory,
    buses: &mut Buses,
    (place, page): (&MmioDevice, RegisterPage),
    device: &Shared,
) -> Result<Seat, Error> {
    let interrupt = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::Event)?;
    vm.connect_irq(&interrupt, place.gsi)?;
    let transport = MmioTransport::new(guest.clone(), device.clone(), interrupt, page)?;
    for (index, doorbell) in (0_u32..).zip(transport.queue_events()) {
        vm.connect_doorbell(doorbell, place.address.unchecked_add(NOTIFY_OFFSET), index)?;
    }
    let (driven, passed) = (transport.driven(), transport.passed().to_vec());
    let transport = Arc::new(Mutex::new(transport));
    buses.registers.insert(place.address.raw_value(), memory::MMIO_WINDOW_BYTES, transport.clone())?;
    Ok(Seat { driven, passed, slot: None, window: Some(transport) })
}

/// Where the registers of devices at `places` are: in the guest's memory, if the VM was made with them. What a guest says most
/// often of them, that it has handled an interrupt, is no exit to this process then.
fn registers_of(vm: &Vm, places: &[MmioDevice]) -> Result<Arc<RegisterPages>, Error> {
    let Some(registers) = vm.registers() else { return Ok(RegisterPages::new(places.len())) };
    let unheard = EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::Event)?;
    for place in places {
        vm.connect_doorbell(&unheard, place.address.unchecked_add(ACKNOWLEDGE_OFFSET), ACKNOWLEDGE_USED)?;
    }
    Ok(registers.clone())
}

/// One device's function for `slot`, its registers where firmware would have put them, and where it is then.
///
/// # Errors
/// The device cannot be a PCI function, or there is no descriptor left.
pub fn function(
    vm: &Arc<Vm>,
    guest: &GuestMemory,
    slot: u8,
    device: &Shared,
) -> Result<(Box<dyn PciFunction>, Seat), Error> {
    let start = memory::PCI_WINDOW_START.unchecked_add(u64::from(slot) * u64::from(BAR_BYTES));
    let function = PciTransport::new(guest.clone(), device.clone(), vm.clone(), start)?;
    let (driven, passed) = (function.driven(), function.passed().to_vec());
    Ok((Box::new(function), Seat { driven, passed, slot: Some(slot), window: None }))
}

fn connect_bus(buses: &mut Buses, host: &PciHost) -> Result<(), Error> {
    let window = Arc::new(Mutex::new(host.window()));
    buses.registers.insert(memory::PCI_WINDOW_START.raw_value(), memory::PCI_WINDOW_BYTES, window)?;
    let ecam = Arc::new(Mutex::new(host.ecam()));
    buses.registers.insert(memory::PCI_ECAM_START.raw_value(), memory::PCI_ECAM_BYTES, ecam)?;
    let ports = Arc::new(Mutex::new(host.ports()));
    buses.ports.insert(u64::from(host::CONFIG_PORT), u64::from(host::CONFIG_PORT_BYTES), ports)?;
    Ok(())
}

impl Wiring for Vm {
    fn send_message(&self, message: Message) {
        if let Err(error) = Self::send_message(self, message.address, message.data) {
            // The guest programmed it so.
            tracing::debug!(%error, "a guest's interrupt message goes nowhere");
        }
    }

    fn connect_doorbell(&self, event: &EventFd, address: GuestAddress) -> bool {
        self.connect_bare_doorbell(event, address)
            .inspect_err(|error| tracing::debug!(%error, "a doorbell stays an exit"))
            .is_ok()
    }

    fn disconnect_doorbell(&self, event: &EventFd, address: GuestAddress) {
        if let Err(error) = self.disconnect_bare_doorbell(event, address) {
            tracing::error!(%error, "a doorbell cannot be disconnected");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_kernels_get_windows_and_all_others_slots() {
        assert!(
            matches!(Places::choose(Transport::Auto, true, 2), Ok(Places::Mmio(places)) if places.len() == 3)
        );
        assert!(matches!(Places::choose(Transport::Auto, false, 2), Ok(Places::Pci)));
        assert!(
            matches!(Places::choose(Transport::Mmio, false, 0), Ok(Places::Mmio(places)) if places.len() == 1)
        );
        assert!(matches!(Places::choose(Transport::Pci, true, 0), Ok(Places::Pci)));
    }

    #[test]
    fn guest_that_used_no_device_lacks_a_driver_and_one_that_used_any_does_not() {
        let driven: Vec<Driven> = vec![Arc::default(), Arc::default()];
        let sentence = Places::Pci.missing_driver(&driven).unwrap();
        assert!(sentence.contains("none of its 2 disks") && sentence.contains("virtio_pci"), "{sentence}");
        assert_eq!(Places::Pci.missing_driver(&[]), None, "there was nothing to use");
        driven[1].store(true, Ordering::Release);
        assert_eq!(Places::Pci.missing_driver(&driven), None);
    }

    #[test]
    fn more_devices_than_places_are_refused_with_the_numbers() {
        assert!(Places::choose(Transport::Mmio, true, 15).is_ok());
        let error = Places::choose(Transport::Mmio, true, 16).unwrap_err().to_string();
        assert!(
            error.contains("15 disks") && error.contains("not 16") && error.contains("have 30"),
            "{error}"
        );
        assert!(Places::choose(Transport::Pci, true, 30).is_ok());
        let error = Places::choose(Transport::Pci, true, 31).unwrap_err().to_string();
        assert!(error.contains("30 disks") && error.contains("not 31"), "{error}");
    }

    /// What a guest writes to a port.
    #[derive(Default)]
    struct Said(Vec<u8>);

    impl bus::BusDevice for Said {
        fn read(&mut self, _offset: u64, _data: &mut [u8]) {}

        fn write(&mut self, _offset: u64, data: &[u8]) {
            self.0.extend_from_slice(data);
        }
    }

    #[test]
    fn guest_reads_a_device_s_registers_and_acknowledges_used_buffers_without_an_exit() {
        const CODE: [&[u8]; 10] = [
            // The fourth gigabyte's page directory, and in it the windows' two megabytes.
            b"\x48\xc7\x04\x25\x18\xa0\x00\x00\x03\x00\x03\x00", // mov qword ptr [0xa018], 0x30003
            b"\xb8\x83\x00\x00\xd0",                             // mov eax, 0xd0000083
            b"\x48\x89\x04\x25\x00\x04\x03\x00",                 // mov [0x30400], rax
            b"\xbb\x00\x00\x00\xd0",                             // mov ebx, 0xd0000000
            b"\x66\xba\xf8\x03",                                 // mov dx, 0x3f8
            b"\x8b\x03\xee",                                     // mov eax, [rbx] (MagicValue); out dx, al
            b"\xc7\x43\x64\x01\x00\x00\x00", // mov dword ptr [rbx + 0x64], 1 (InterruptACK)
            b"\xc7\x43\x70\x01\x00\x00\x00", // mov dword ptr [rbx + 0x70], 1 (Status)
            b"\x8b\x43\x70\xee",             // mov eax, [rbx + 0x70]; out dx, al
            b"\xeb\xfe",                     // jmp to itself
        ];
        let kvm = match kvm::Kvm::open() {
            Ok(kvm) => kvm,
            Err(error) => return crate::testing::skipped(&error.to_string()),
        };
        let places = Places::choose(Transport::Mmio, true, 0).unwrap();
        let guest = memory::allocate(32).unwrap();
        let layout = kvm::Layout { registers: places.registers(), ..kvm::Layout::of(guest.clone()) };
        let vm = Arc::new(kvm.create_vm(layout, Default::default()).unwrap());
        let mut vcpu = vm.create_vcpu(0, 1).unwrap();
        let kernel = crate::boot::tests::elf(&CODE.concat(), false);
        let source = crate::boot::Source { kernel: &kernel.as_slice(), initrd: None, cmdline: "" };
        vcpu.set_entry(&crate::boot::load(&guest, &source).unwrap()).unwrap();
        let (mut buses, said) = (
            Buses { ports: Default::default(), registers: Default::default() },
            Arc::<Mutex<Said>>::default(),
        );
        buses.ports.insert(0x3f8, 1, said.clone()).unwrap();
        let rng = virtio::build_rng().unwrap();
        places.fill(&vm, &guest, (&mut buses, &PciHost::default()), &[rng]).unwrap();
        let mut exits = 0;
        while crate::mutex::lock(&said).0.len() < 2 {
            assert_eq!(vcpu.run(&buses.ports, &buses.registers), kvm::Exit::Handled);
            exits += 1;
        }
        assert_eq!(crate::mutex::lock(&said).0, [b'v', 1]);
        assert_eq!(exits, 3, "two for what it said, one for the status");
    }
}
