//! What a VM's memory is made of, as slots of KVM's.

use std::sync::Arc;

use kvm_bindings::{KVM_MEM_LOG_DIRTY_PAGES, KVM_MEM_READONLY, kvm_userspace_memory_region};
use vm_memory::{Address as _, GuestMemoryBackend, GuestMemoryRegion};

use crate::memory::mapping::Placed;
use crate::memory::registers::RegisterPages;
use crate::memory::{self, GuestMemory};

/// The slot of devices' registers: far behind those of memory, and one that every KVM has.
const REGISTERS_SLOT: u32 = 500;

/// All memory of a VM that is known of before the VM is made, which whatever KVM makes of it keeps.
///
/// Each slot waits for all readers of the VM's to be done, and for a while after the interrupt controllers are there, some take
/// their time (6 ms instead of 0.1): so there is nothing that adds one later.
#[derive(Clone)]
pub struct Layout {
    /// RAM, and memory that comes and goes.
    pub memory: GuestMemory,
    /// Whether the guest's writes to that are noted from its start on (`Vm::track_writes`).
    pub tracked: bool,
    /// Files. What is written to one that is read-only goes nowhere.
    pub mappings: Vec<Placed>,
    /// Devices' registers, which the guest reads at [`memory::MMIO_START`] while what it writes there is an exit, where KVM has
    /// such memory.
    pub registers: Option<Arc<RegisterPages>>,
}

impl Layout {
    /// Nothing but `memory`.
    #[must_use]
    pub fn of(memory: GuestMemory) -> Self {
        Self { memory, tracked: false, mappings: Vec::new(), registers: None }
    }

    /// All slots.
    pub(super) fn slots(&self) -> Vec<kvm_userspace_memory_region> {
        let mut slots = self.memory_slots(if self.tracked { KVM_MEM_LOG_DIRTY_PAGES } else { 0 });
        for (slot, Placed { mapping, start }) in (slots.len()..).zip(&self.mappings) {
            slots.push(kvm_userspace_memory_region {
                slot: u32::try_from(slot).expect("invariant: a machine has a few dozen devices"),
                flags: if mapping.is_read_only() { KVM_MEM_READONLY } else { 0 },
                guest_phys_addr: start.raw_value(),
                memory_size: mapping.bytes(),
                userspace_addr: mapping.start().as_ptr() as u64,
            });
        }
        slots.extend(self.registers.as_deref().map(of_registers));
        slots
    }

    /// Those of [`Self::memory`], one for each region.
    pub(super) fn memory_slots(&self, flags: u32) -> Vec<kvm_userspace_memory_region> {
        let slot =
            |(slot, region): (u32, &<GuestMemory as GuestMemoryBackend>::R)| kvm_userspace_memory_region {
                slot,
                flags,
                guest_phys_addr: region.start_addr().raw_value(),
                memory_size: region.len(),
                userspace_addr: region.as_ptr() as u64,
            };
        (0_u32..).zip(self.memory.iter()).map(slot).collect()
    }
}

/// The slot of `registers`.
pub(super) fn of_registers(registers: &RegisterPages) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region {
        slot: REGISTERS_SLOT,
        flags: KVM_MEM_READONLY,
        guest_phys_addr: memory::MMIO_START.raw_value(),
        memory_size: registers.bytes(),
        userspace_addr: registers.start(),
    }
}

/// `slot`, gone.
pub(super) fn without(slot: &kvm_userspace_memory_region) -> kvm_userspace_memory_region {
    kvm_userspace_memory_region { memory_size: 0, ..*slot }
}

/// Whether one may become the other while it is there: KVM changes the flags of a slot, and nothing else.
pub(super) fn differ_in_flags_alone(
    one: &kvm_userspace_memory_region,
    other: &kvm_userspace_memory_region,
) -> bool {
    kvm_userspace_memory_region { flags: other.flags, ..*one } == *other
}
