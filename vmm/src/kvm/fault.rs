//! How a guest broke, in one sentence for a person: where a processor stood, and on which instruction.
//!
//! Must never know: what is done about it.

use kvm_bindings::{
    KVM_INTERNAL_ERROR_DELIVERY_EV, KVM_INTERNAL_ERROR_EMULATION,
    KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES, kvm_sregs,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Bytes, GuestAddress};

use super::HostKind;
use crate::memory::{GuestMemory, PAGE_BYTES};

/// The longest instruction of x86 in bytes (Intel SDM volume 2, §2.3.11).
const INSTRUCTION_BYTES_MAX: usize = 15;

/// Where a processor stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Place {
    /// The linear address of the next instruction.
    address: u64,
    mode: &'static str,
    ring: u8,
    /// As after a reset: where it really stood is lost.
    is_reset: bool,
}

impl Place {
    fn of(vcpu: &VcpuFd) -> Option<Self> {
        Some(Self::from(vcpu.get_regs().ok()?.rip, &vcpu.get_sregs().ok()?))
    }

    fn from(rip: u64, special: &kvm_sregs) -> Self {
        /// CR0's protection, EFER's long mode.
        const PROTECTED: u64 = 1;
        const LONG_MODE: u64 = 1 << 10;
        /// Where a processor begins after a reset (Intel SDM volume 3, §10.1.4).
        const RESET: (u64, u64) = (0xffff_0000, 0xfff0);
        let long = special.efer & LONG_MODE != 0;
        let mode = match (special.cr0 & PROTECTED != 0, long, special.cs.l, special.cs.db) {
            (false, ..) => "real mode",
            (true, true, 1, _) => "64-bit mode",
            (true, true, ..) => "compatibility mode",
            (true, false, _, 1) => "32-bit mode",
            (true, false, ..) => "16-bit mode",
        };
        let is_64_bit = long && special.cs.l == 1;
        let base = if is_64_bit { 0 } else { special.cs.base };
        Self {
            address: base.wrapping_add(rip),
            mode,
            ring: special.ss.dpl,
            is_reset: (special.cs.base, rip) == RESET && mode == "real mode",
        }
    }
}

impl std::fmt::Display for Place {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let privilege = if self.ring == 0 { "its kernel" } else { "a program" };
        write!(f, "at {:#x} in {}, {privilege}", self.address, self.mode)
    }
}

/// A triple fault: an exception without a handler that works.
pub(super) fn triple_fault(vcpu: &VcpuFd) -> String {
    match Place::of(vcpu) {
        // AMD's processors do not keep the state over a shutdown.
        Some(place) if place.is_reset => {
            "the guest crashed: a triple fault; this processor does not tell where".to_owned()
        }
        Some(place) => format!("the guest crashed: a triple fault {place}"),
        None => "the guest crashed: a triple fault".to_owned(),
    }
}

/// KVM gave up on the guest (`KVM_EXIT_INTERNAL_ERROR`): `data` is what it told, the suberror first.
pub(super) fn internal_error(
    vcpu: &VcpuFd,
    memory: &GuestMemory,
    kind: HostKind,
    (suberror, data): (u32, &[u64]),
) -> String {
    let place = Place::of(vcpu);
    let at = place.map_or_else(|| "somewhere".to_owned(), |place| place.to_string());
    match (suberror, kind) {
        (KVM_INTERNAL_ERROR_EMULATION, _) => {
            let bytes = told_bytes(data)
                .or_else(|| instruction_at(vcpu, memory, place?.address))
                .map_or_else(|| "unknown bytes".to_owned(), |bytes| hexadecimal(&bytes));
            emulation_failure(&at, &bytes, kind)
        }
        (KVM_INTERNAL_ERROR_DELIVERY_EV, _) => {
            format!("KVM could not deliver an interrupt or exception to the guest {at}")
        }
        _ => format!("KVM gave up on the guest {at} (internal error {suberror})"),
    }
}

fn emulation_failure(at: &str, bytes: &str, kind: HostKind) -> String {
    match kind {
        HostKind::Software => format!(
            "the guest used an instruction ({bytes}) {at} that this host cannot run: its KVM is a software one (module \
             kvm_pvm), which cannot run an unmodified Linux; a host with hardware KVM can, and so can the nested lab: \
             {LAB_COMMAND}"
        ),
        HostKind::Hardware => {
            format!("the guest used an instruction ({bytes}) {at} that KVM cannot emulate")
        }
    }
}

/// How a guest is run in the nested lab.
pub const LAB_COMMAND: &str = "wisp lab -- wisp vmm boot …";

/// The instruction's bytes, if KVM tells them: flags, then their number and the bytes themselves.
fn told_bytes(data: &[u64]) -> Option<Vec<u8>> {
    let &[flags, first, second, ..] = data else { return None };
    if flags & u64::from(KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES) == 0 {
        return None;
    }
    let [count, bytes @ ..] = (u128::from(first) | u128::from(second) << 64).to_le_bytes();
    let bytes = bytes.get(..usize::from(count).min(INSTRUCTION_BYTES_MAX))?;
    (!bytes.is_empty()).then(|| bytes.to_vec())
}

/// What lies at a linear address, up to the end of its page.
fn instruction_at(vcpu: &VcpuFd, memory: &GuestMemory, address: u64) -> Option<Vec<u8>> {
    let translation = vcpu.translate_gva(address).ok().filter(|translation| translation.valid != 0)?;
    let rest = usize::try_from(PAGE_BYTES - address % PAGE_BYTES).ok()?;
    let mut bytes = vec![0; rest.min(INSTRUCTION_BYTES_MAX)];
    memory.read_slice(&mut bytes, GuestAddress(translation.physical_address)).ok()?;
    Some(bytes)
}

fn hexadecimal(bytes: &[u8]) -> String {
    let parts: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    parts.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn special(cr0: u64, efer: u64, (l, db): (u8, u8), base: u64, ring: u8) -> kvm_sregs {
        let mut special = kvm_sregs { cr0, efer, ..Default::default() };
        (special.cs.l, special.cs.db, special.cs.base, special.ss.dpl) = (l, db, base, ring);
        special
    }

    #[test]
    fn place_says_address_mode_and_privilege() {
        for (special, expected) in [
            (special(1, 0x500, (1, 0), 7, 0), "at 0x1234 in 64-bit mode, its kernel"),
            (special(1, 0x500, (1, 0), 0, 3), "at 0x1234 in 64-bit mode, a program"),
            (special(1, 0x500, (0, 1), 0, 3), "at 0x1234 in compatibility mode, a program"),
            (special(1, 0, (0, 1), 0x1_0000, 0), "at 0x11234 in 32-bit mode, its kernel"),
            (special(1, 0, (0, 0), 0, 0), "at 0x1234 in 16-bit mode, its kernel"),
            (special(0x10, 0, (0, 0), 0xf0000, 0), "at 0xf1234 in real mode, its kernel"),
        ] {
            assert_eq!(Place::from(0x1234, &special).to_string(), expected);
        }
    }

    #[test]
    fn processor_as_after_a_reset_has_forgotten_its_place() {
        assert!(Place::from(0xfff0, &special(0x10, 0, (0, 0), 0xffff_0000, 0)).is_reset);
        assert!(!Place::from(0xfff0, &special(0x10, 0, (0, 0), 0xf_0000, 0)).is_reset);
        assert!(!Place::from(0xfff0, &special(1, 0, (0, 1), 0xffff_0000, 0)).is_reset);
    }

    #[test]
    fn instruction_bytes_are_taken_only_when_kvm_tells_them() {
        let (first, second) = (u64::from_le_bytes([4, 0xf0, 0x48, 0x0f, 0xc7, 9, 9, 9]), 0);
        assert_eq!(told_bytes(&[1, first, second]).unwrap(), [0xf0, 0x48, 0x0f, 0xc7]);
        assert_eq!(told_bytes(&[0, first, second]), None);
        assert_eq!(told_bytes(&[1, first]), None);
        assert_eq!(told_bytes(&[1, 0, 0]), None);
        assert_eq!(told_bytes(&[1, 255, u64::MAX]).map(|bytes| bytes.len()), Some(15));
        assert_eq!(told_bytes(&[]), None);
    }

    #[test]
    fn software_kvm_is_named_with_the_command_that_works() {
        let sentence = emulation_failure("at 0x10 in 64-bit mode, its kernel", "0f 0b", HostKind::Software);
        assert!(sentence.contains("kvm_pvm") && sentence.contains("wisp lab"), "{sentence}");
        let sentence = emulation_failure("at 0x10 in 64-bit mode, its kernel", "0f 0b", HostKind::Hardware);
        assert_eq!(
            sentence,
            "the guest used an instruction (0f 0b) at 0x10 in 64-bit mode, its kernel that KVM cannot emulate"
        );
    }
}
