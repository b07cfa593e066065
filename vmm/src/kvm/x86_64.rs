//! The processor's side of x86-64: CPUID, model-specific registers, and the state in which a guest is entered.

use kvm_bindings::{
    CpuId, KVM_CPUID_FLAG_SIGNIFCANT_INDEX, Msrs, kvm_cpuid_entry2, kvm_dtable, kvm_msr_entry, kvm_regs,
    kvm_segment,
};
use kvm_ioctls::VcpuFd;
use vm_memory::{Address, GuestAddress};

use super::profile::{self, Profile};
use super::{Error, step};
use crate::memory;

/// How the boot CPU enters the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Entry {
    /// Linux's 64-bit boot protocol: long mode, paging on, the zero page's address in RSI.
    Linux64 {
        /// The first instruction.
        start: GuestAddress,
    },
    /// The PVH protocol: 32-bit protected mode, paging off, the start structure's address in EBX.
    Pvh {
        /// The first instruction.
        start: GuestAddress,
    },
}

/// CPUID.1:ECX.5, Intel's VMX.
const VMX: u32 = 1 << 5;
/// CPUID.80000001:ECX.2, AMD's SVM.
const SVM: u32 = 1 << 2;
/// CPUID.1:ECX.13, `CMPXCHG16B`.
const CX16: u32 = 1 << 13;
/// CPUID.1:ECX.24, the local APIC's TSC-deadline timer.
const TSC_DEADLINE: u32 = 1 << 24;
/// CPUID.1:ECX.31, a hypervisor is present.
const HYPERVISOR: u32 = 1 << 31;
/// CPUID.1:EDX.28, more than one logical processor.
const HTT: u32 = 1 << 28;

/// What vCPU `id` of `count` shall see: what KVM supports, with its own place in the topology (one package, a core
/// per vCPU), without what its profile leaves out, and without virtualisation: a guest that is hostile shall
/// not reach the host's code for guests of guests, and stock systems load their hypervisor wherever they see that they
/// could. Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E.
pub(super) fn guest_cpuid(
    supported: &CpuId,
    id: u8,
    count: u8,
    profile: Profile,
    tsc_deadline: bool,
) -> CpuId {
    let (id, count) = (u32::from(id), u32::from(count));
    let core_bits = count.next_power_of_two().trailing_zeros();
    let mut entries: Vec<kvm_cpuid_entry2> = Vec::with_capacity(supported.as_slice().len() + 4);
    let mut extended_topology = None;
    for entry in supported.as_slice() {
        let mut entry = *entry;
        match entry.function {
            0x1 => {
                entry.ebx = (entry.ebx & 0x0000_ffff) | (id << 24) | (count << 16);
                entry.ecx = (entry.ecx | HYPERVISOR) & !VMX;
                if tsc_deadline {
                    entry.ecx |= TSC_DEADLINE;
                }
                if profile == Profile::Software {
                    entry.ecx &= !CX16;
                }
                entry.edx = if count > 1 { entry.edx | HTT } else { entry.edx & !HTT };
            }
            // Intel's caches: how many cores there are, and that none shares its first two levels.
            0x4 if entry.eax & 0x1f != 0 => {
                let level = (entry.eax >> 5) & 7;
                let sharing = if level >= 3 { count.next_power_of_two() - 1 } else { 0 };
                let cores = (count.next_power_of_two() - 1).min(0x3f);
                entry.eax = (entry.eax & 0x3fff) | (sharing << 14) | (cores << 26);
            }
            0xb | 0x1f => {
                extended_topology.get_or_insert(entry.function);
                continue;
            }
            0x8000_0001 => entry.ecx &= !SVM,
            // What SVM offers.
            0x8000_000a => continue,
            0x8000_0008 => entry.ecx = (entry.ecx & !0xf0ff) | (core_bits << 12) | (count - 1).min(0xff),
            0x8000_001e => {
                entry.eax = id;
                entry.ebx = id & 0xff;
                entry.ecx = 0;
            }
            _ => {}
        }
        let shown = if profile == Profile::Baseline { profile::baseline(entry) } else { Some(entry) };
        entries.extend(shown);
    }
    if extended_topology.is_some() {
        entries.extend(extended_topology_leaf(id, count, core_bits));
    }
    CpuId::from_entries(&entries).expect("invariant: hardly more entries than KVM itself gave")
}

/// Leaf 0xb: one thread per core, `count` cores, and the end of the list.
fn extended_topology_leaf(id: u32, count: u32, core_bits: u32) -> [kvm_cpuid_entry2; 3] {
    const THREADS: u32 = 1 << 8;
    const CORES: u32 = 2 << 8;
    let level = |index: u32, shift: u32, processors: u32, kind: u32| kvm_cpuid_entry2 {
        function: 0xb,
        index,
        flags: KVM_CPUID_FLAG_SIGNIFCANT_INDEX,
        eax: shift,
        ebx: processors,
        ecx: index | kind,
        edx: id,
        ..Default::default()
    };
    [level(0, 0, 1, THREADS), level(1, core_bits, count, CORES), level(2, 0, 0, 0)]
}

/// Sets what firmware would have: fast string operations, and write-back memory by default. A host may refuse an MSR
/// that it lists; such ones are skipped.
pub(super) fn set_boot_msrs(vcpu: &VcpuFd) {
    /// `IA32_MISC_ENABLE` with its fast-strings bit.
    const MISC_ENABLE: (u32, u64) = (0x1a0, 1);
    /// `IA32_MTRR_DEF_TYPE`: enabled, write-back.
    const MTRR_DEF_TYPE: (u32, u64) = (0x2ff, (1 << 11) | 6);
    for (index, data) in [MISC_ENABLE, MTRR_DEF_TYPE] {
        let entry = kvm_msr_entry { index, data, ..Default::default() };
        let msrs = Msrs::from_entries(&[entry]).expect("invariant: one entry fits");
        match vcpu.set_msrs(&msrs) {
            Ok(1) => {}
            Ok(_) => tracing::debug!(msr = format_args!("{index:#x}"), "KVM refuses an MSR; skipped"),
            Err(error) => {
                tracing::debug!(msr = format_args!("{index:#x}"), %error, "KVM refuses an MSR; skipped")
            }
        }
    }
}

/// Wires the local APIC as firmware does: LINT1 is the non-maskable interrupt, as the MADT says.
///
/// Setting the APIC's state also makes KVM take the vCPU up into its map of destinations. Without that, nobody's
/// start-up interrupt reaches it before some guest code has enabled some APIC.
pub(super) fn wire_local_apic(vcpu: &VcpuFd) -> Result<(), Error> {
    /// The local vector table's entry for LINT1, and the delivery mode "NMI" in it (Intel SDM volume 3, §10.5.1).
    const LINT1: usize = 0x360;
    const DELIVER_NMI: u32 = 0x400;
    let mut apic = vcpu.get_lapic().map_err(step("read a vCPU's local APIC"))?;
    for (register, byte) in apic.regs[LINT1..].iter_mut().zip(DELIVER_NMI.to_le_bytes()) {
        *register = byte.cast_signed();
    }
    vcpu.set_lapic(&apic).map_err(step("set a vCPU's local APIC"))
}

/// Selectors in the boot descriptor table, as Linux's 64-bit boot protocol asks: `__BOOT_CS` and `__BOOT_DS`.
const CODE_SELECTOR: u16 = 0x10;
const DATA_SELECTOR: u16 = 0x18;
const TASK_SELECTOR: u16 = 0x20;

/// CR0: protection, monitor coprocessor, extension type, numeric error, write protection.
const CR0_PROTECTED: u64 = 0x1_0033;
/// CR0: extension type (always set) and protection; all else clear, as PVH asks.
const CR0_PVH: u64 = 0x11;
const CR0_PAGING: u64 = 1 << 31;
/// CR4: physical address extension.
const CR4_PAE: u64 = 1 << 5;
/// EFER: long mode enabled and active.
const EFER_LONG_MODE: u64 = (1 << 8) | (1 << 10);

fn flat_segment(selector: u16, type_: u8) -> kvm_segment {
    kvm_segment {
        base: 0,
        limit: 0xffff_ffff,
        selector,
        type_,
        present: 1,
        s: 1,
        g: 1,
        db: 1,
        ..Default::default()
    }
}

/// A segment as the descriptor table holds it (Intel SDM volume 3, §3.4.5).
fn descriptor(segment: &kvm_segment) -> u64 {
    let limit = u64::from(if segment.g == 1 { segment.limit >> 12 } else { segment.limit });
    let base = segment.base;
    let access = u64::from(segment.type_)
        | u64::from(segment.s) << 4
        | u64::from(segment.dpl) << 5
        | u64::from(segment.present) << 7;
    let flags = u64::from(segment.l) << 1 | u64::from(segment.db) << 2 | u64::from(segment.g) << 3;
    (limit & 0xffff)
        | (base & 0xff_ffff) << 16
        | access << 40
        | (limit >> 16 & 0xf) << 48
        | flags << 52
        | (base >> 24 & 0xff) << 56
}

/// The segments of an entry: code, data, task.
fn segments(entry: &Entry) -> [kvm_segment; 3] {
    const EXECUTE_READ_ACCESSED: u8 = 0xb;
    const READ_WRITE_ACCESSED: u8 = 0x3;
    const BUSY_TASK: u8 = 0xb;
    let mut code = flat_segment(CODE_SELECTOR, EXECUTE_READ_ACCESSED);
    if matches!(entry, Entry::Linux64 { .. }) {
        code.l = 1;
        code.db = 0;
    }
    let task = kvm_segment {
        selector: TASK_SELECTOR,
        limit: 0x67,
        type_: BUSY_TASK,
        present: 1,
        ..Default::default()
    };
    [code, flat_segment(DATA_SELECTOR, READ_WRITE_ACCESSED), task]
}

/// The descriptor table that belongs to an entry, to be written at [`memory::GDT_START`].
pub(crate) fn descriptor_table(entry: &Entry) -> [u64; 5] {
    let [code, data, task] = segments(entry);
    [0, 0, descriptor(&code), descriptor(&data), descriptor(&task)]
}

pub(super) fn set_entry(vcpu: &VcpuFd, entry: &Entry) -> Result<(), Error> {
    let mut special = vcpu.get_sregs().map_err(step("read a vCPU's registers"))?;
    let [code, data, task] = segments(entry);
    special.cs = code;
    for segment in [&mut special.ds, &mut special.es, &mut special.fs, &mut special.gs, &mut special.ss] {
        *segment = data;
    }
    special.tr = task;
    let table_bytes = size_of_val(&descriptor_table(entry));
    special.gdt = kvm_dtable {
        base: memory::GDT_START.raw_value(),
        limit: u16::try_from(table_bytes - 1).expect("invariant: five descriptors"),
        ..Default::default()
    };
    special.idt = kvm_dtable::default();
    let mut general = kvm_regs { rflags: 2, ..Default::default() };
    match *entry {
        Entry::Linux64 { start } => {
            special.cr0 = CR0_PROTECTED | CR0_PAGING;
            special.cr3 = memory::PAGE_TABLES_START.raw_value();
            special.cr4 = CR4_PAE;
            special.efer = EFER_LONG_MODE;
            general.rip = start.raw_value();
            general.rsi = memory::ZERO_PAGE_START.raw_value();
            general.rsp = memory::BOOT_STACK_POINTER.raw_value();
            general.rbp = general.rsp;
        }
        Entry::Pvh { start } => {
            special.cr0 = CR0_PVH;
            special.cr4 = 0;
            special.efer = 0;
            general.rip = start.raw_value();
            general.rbx = memory::PVH_INFO_START.raw_value();
        }
    }
    vcpu.set_sregs(&special).map_err(step("set a vCPU's special registers"))?;
    vcpu.set_regs(&general).map_err(step("set a vCPU's registers"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(function: u32, eax: u32, ecx: u32) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, eax, ecx, ..Default::default() }
    }

    fn find(cpuid: &CpuId, function: u32, index: u32) -> kvm_cpuid_entry2 {
        *cpuid.as_slice().iter().find(|entry| entry.function == function && entry.index == index).unwrap()
    }

    #[test]
    fn software_kvm_hides_cmpxchg16b_and_hardware_keeps_it() {
        let supported = CpuId::from_entries(&[entry(1, 0, CX16)]).unwrap();
        let software = guest_cpuid(&supported, 0, 1, Profile::Software, false);
        assert_eq!(find(&software, 1, 0).ecx, HYPERVISOR);
        let hardware = guest_cpuid(&supported, 0, 1, Profile::Host, true);
        assert_eq!(find(&hardware, 1, 0).ecx, HYPERVISOR | TSC_DEADLINE | CX16);
    }

    #[test]
    fn no_guest_is_offered_virtualisation() {
        let (intel, amd) = (entry(1, 0, VMX | CX16), entry(0x8000_0001, 0, SVM | 1));
        let supported = CpuId::from_entries(&[intel, amd, entry(0x8000_000a, 1, 0)]).unwrap();
        let cpuid = guest_cpuid(&supported, 0, 1, Profile::Host, false);
        assert_eq!(find(&cpuid, 1, 0).ecx, HYPERVISOR | CX16);
        assert_eq!(find(&cpuid, 0x8000_0001, 0).ecx, 1);
        assert!(cpuid.as_slice().iter().all(|entry| entry.function != 0x8000_000a));
    }

    #[test]
    fn each_vcpu_sees_its_own_apic_id_in_every_leaf() {
        let supported =
            CpuId::from_entries(&[entry(1, 0, 0), entry(0xb, 0, 0), entry(0x8000_001e, 0, 0)]).unwrap();
        let cpuid = guest_cpuid(&supported, 3, 4, Profile::Host, false);
        assert_eq!(find(&cpuid, 1, 0).ebx >> 24, 3);
        assert_eq!(find(&cpuid, 1, 0).edx & HTT, HTT);
        assert_eq!(find(&cpuid, 0x8000_001e, 0).eax, 3);
        let cores = find(&cpuid, 0xb, 1);
        assert_eq!((cores.eax, cores.ebx, cores.ecx, cores.edx), (2, 4, 0x201, 3));
    }

    #[test]
    fn kvm_signature_is_kept() {
        let supported = CpuId::from_entries(&[entry(0x4000_0000, 0x4000_0001, 7)]).unwrap();
        let cpuid = guest_cpuid(&supported, 0, 1, Profile::Software, false);
        assert_eq!(find(&cpuid, 0x4000_0000, 0), entry(0x4000_0000, 0x4000_0001, 7));
    }

    #[test]
    fn descriptors_are_those_every_boot_loader_uses() {
        let table = descriptor_table(&Entry::Linux64 { start: GuestAddress(0) });
        assert_eq!(table, [0, 0, 0x00af_9b00_0000_ffff, 0x00cf_9300_0000_ffff, 0x0000_8b00_0000_0067]);
        let table = descriptor_table(&Entry::Pvh { start: GuestAddress(0) });
        assert_eq!(table[2], 0x00cf_9b00_0000_ffff);
    }
}
