//! What KVM holds of a guest, as plain data, and back into a VM that is made like the first.
//!
//! Each structure is KVM's own (`linux/kvm.h`), whose layout is part of the kernel's interface. MSRs are those that the host
//! lists; one that it lists and then refuses is skipped with a debug line, at both ends.

use std::time::Duration;

use kvm_bindings::{
    KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, Msrs, kvm_clock_data,
    kvm_cpuid_entry2, kvm_debugregs, kvm_irqchip, kvm_lapic_state, kvm_mp_state, kvm_msr_entry, kvm_regs,
    kvm_sregs, kvm_vcpu_events, kvm_xcrs, kvm_xsave,
};
use kvm_ioctls::VcpuFd;
use serde::{Deserialize, Serialize};

use super::{Error, Vcpu, Vm, step};
use crate::clock::Counter;

/// The most MSRs of one vCPU that are saved: no kernel lists nearly as many.
pub(super) const MSRS_MAX: usize = 1024;
/// The time stamp counter, `IA32_TSC`.
const TSC: u32 = 0x10;
/// `IA32_TSC_DEADLINE`: written when the timer that it belongs to is there.
const TSC_DEADLINE: u32 = 0x6e0;
/// What an MSR is at most read and written with at once.
const MSRS_AT_ONCE: usize = 64;

/// The interrupt controllers and the clock of a VM, and the processor that its guest was shown.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct VmState {
    /// Both PICs and the IOAPIC.
    irqchips: [kvm_irqchip; 3],
    /// The paravirtual clock, in nanoseconds since the guest's start.
    clock_ns: u64,
    /// What the host supported of CPUID when the guest started, of which its vCPUs were shown their parts.
    pub(super) cpuid: Vec<kvm_cpuid_entry2>,
    /// Whether its local APICs have a TSC-deadline timer.
    pub(super) tsc_deadline: bool,
}

/// One virtual CPU.
#[derive(Debug, Serialize, Deserialize)]
pub struct VcpuState {
    mp_state: kvm_mp_state,
    registers: kvm_regs,
    special: kvm_sregs,
    extended: kvm_xsave,
    extended_control: kvm_xcrs,
    debug: kvm_debugregs,
    local_apic: kvm_lapic_state,
    events: kvm_vcpu_events,
    /// Index and value, in the order in which they are written.
    msrs: Vec<(u32, u64)>,
    /// The frequency of the time stamp counter in kHz; 0 where the host does not tell.
    tsc_khz: u32,
}

impl VmState {
    /// As if the guest had not stood still for the last `passed`.
    pub(crate) fn advance(&mut self, passed: Duration) {
        let passed = u64::try_from(passed.as_nanos()).unwrap_or(u64::MAX);
        self.clock_ns = self.clock_ns.saturating_add(passed);
    }
}

impl VcpuState {
    /// Likewise: its time stamp counter has gone on, if the host tells how fast it does.
    pub(crate) fn advance(&mut self, passed: Duration) {
        let counts = passed.as_nanos().saturating_mul(u128::from(self.tsc_khz)) / 1_000_000;
        let counts = u64::try_from(counts).unwrap_or(u64::MAX);
        for (_, value) in self.msrs.iter_mut().filter(|(index, _)| *index == TSC) {
            *value = value.wrapping_add(counts);
        }
    }
}

/// The chips in the order in which they are saved.
const CHIPS: [u32; 3] = [KVM_IRQCHIP_PIC_MASTER, KVM_IRQCHIP_PIC_SLAVE, KVM_IRQCHIP_IOAPIC];

impl Vm {
    /// What this VM has beside memory and vCPUs; nothing of it may run.
    ///
    /// # Errors
    /// The kernel's.
    pub fn save(&self) -> Result<VmState, Error> {
        let mut irqchips: [kvm_irqchip; 3] = Default::default();
        for (chip, id) in irqchips.iter_mut().zip(CHIPS) {
            chip.chip_id = id;
            self.fd.get_irqchip(chip).map_err(step("tell an interrupt controller's state"))?;
        }
        let clock_ns = self.fd.get_clock().map_err(step("tell the guest's clock"))?.clock;
        Ok(VmState {
            irqchips,
            clock_ns,
            cpuid: self.cpuid.as_slice().to_vec(),
            tsc_deadline: self.tsc_deadline,
        })
    }

    /// Takes over what [`Self::save`] gave. The guest's own clock goes on from where it was.
    ///
    /// # Errors
    /// The kernel's.
    pub fn restore(&self, state: &VmState) -> Result<(), Error> {
        for (chip, id) in state.irqchips.iter().zip(CHIPS) {
            let chip = kvm_irqchip { chip_id: id, ..*chip };
            self.fd.set_irqchip(&chip).map_err(step("set an interrupt controller's state"))?;
        }
        let clock = kvm_clock_data { clock: state.clock_ns, ..Default::default() };
        self.fd.set_clock(&clock).map_err(step("set the guest's clock"))
    }
}

impl Vcpu {
    /// What this vCPU has. It must stand still with no access of it unanswered, as after an exit for
    /// [`super::Exit::Interrupted`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn save(&self) -> Result<VcpuState, Error> {
        let fd = &self.fd;
        // First: KVM settles what is pending at the local APIC here.
        let mp_state = fd.get_mp_state().map_err(step("tell whether a vCPU runs"))?;
        Ok(VcpuState {
            mp_state,
            registers: fd.get_regs().map_err(step("read a vCPU's registers"))?,
            special: fd.get_sregs().map_err(step("read a vCPU's special registers"))?,
            extended: fd.get_xsave().map_err(step("read a vCPU's extended state"))?,
            extended_control: fd.get_xcrs().map_err(step("read a vCPU's extended control registers"))?,
            debug: fd.get_debug_regs().map_err(step("read a vCPU's debug registers"))?,
            local_apic: fd.get_lapic().map_err(step("read a vCPU's local APIC"))?,
            msrs: read_msrs(fd, &self.msrs),
            events: fd.get_vcpu_events().map_err(step("tell a vCPU's pending events"))?,
            tsc_khz: fd.get_tsc_khz().unwrap_or(0),
        })
    }

    /// Takes over what [`Self::save`] gave, before the vCPU has run.
    ///
    /// # Errors
    /// The kernel's, or the time stamp counter cannot run as it did.
    pub fn restore(&self, state: &VcpuState) -> Result<(), Error> {
        let fd = &self.fd;
        self.restore_frequency(state.tsc_khz)?;
        fd.set_mp_state(state.mp_state).map_err(step("set whether a vCPU runs"))?;
        fd.set_sregs(&state.special).map_err(step("set a vCPU's special registers"))?;
        fd.set_regs(&state.registers).map_err(step("set a vCPU's registers"))?;
        fd.set_xcrs(&state.extended_control).map_err(step("set a vCPU's extended control registers"))?;
        // SAFETY: a dynamic state larger than the structure is asked for with `arch_prctl` alone, which this program never
        // does, so the kernel reads no more than the structure.
        unsafe { fd.set_xsave(&state.extended) }.map_err(step("set a vCPU's extended state"))?;
        fd.set_debug_regs(&state.debug).map_err(step("set a vCPU's debug registers"))?;
        fd.set_lapic(&state.local_apic).map_err(step("set a vCPU's local APIC"))?;
        write_msrs(fd, &state.msrs);
        fd.set_vcpu_events(&state.events).map_err(step("set a vCPU's pending events"))
    }

    /// The guest's time stamp counter as it is now; nothing where the host does not tell its frequency.
    #[must_use]
    pub fn counter(&self) -> Option<Counter> {
        let khz = self.fd.get_tsc_khz().ok().filter(|khz| *khz != 0)?;
        let (_, value) = read_msrs(&self.fd, &[TSC]).first().copied()?;
        Some(Counter { value, khz })
    }

    /// A counter that ran at another rate makes all of the guest's clocks wrong.
    fn restore_frequency(&self, khz: u32) -> Result<(), Error> {
        /// What KVM itself takes for the same: 250 parts in a million.
        const TOLERANCE: u32 = 4000;
        let here = self.fd.get_tsc_khz().unwrap_or(0);
        if khz == 0 || here == 0 || here.abs_diff(khz) <= khz / TOLERANCE {
            return Ok(());
        }
        self.fd.set_tsc_khz(khz).map_err(|source| Error::TscFrequency { khz, here, source })
    }
}

#[cfg(any(test, feature = "mock"))]
impl VmState {
    /// That of a VM that nobody has touched.
    #[must_use]
    pub fn example() -> Self {
        Self { irqchips: Default::default(), clock_ns: 0, cpuid: Vec::new(), tsc_deadline: false }
    }
}

#[cfg(any(test, feature = "mock"))]
impl VcpuState {
    /// That of a vCPU that nobody has touched.
    #[must_use]
    pub fn example() -> Self {
        Self {
            mp_state: Default::default(),
            registers: Default::default(),
            special: Default::default(),
            extended: Default::default(),
            extended_control: Default::default(),
            debug: Default::default(),
            local_apic: Default::default(),
            events: Default::default(),
            msrs: vec![(TSC, 1), (TSC_DEADLINE, 2)],
            tsc_khz: 0,
        }
    }
}

/// The values of `indices`, those that KVM tells.
fn read_msrs(fd: &VcpuFd, indices: &[u32]) -> Vec<(u32, u64)> {
    let mut values = Vec::with_capacity(indices.len());
    let mut left = indices;
    while !left.is_empty() {
        let (now, _) = left.split_at(left.len().min(MSRS_AT_ONCE));
        let entries: Vec<kvm_msr_entry> =
            now.iter().map(|&index| kvm_msr_entry { index, ..Default::default() }).collect();
        let mut msrs = Msrs::from_entries(&entries).expect("invariant: a few entries fit");
        let done = fd.get_msrs(&mut msrs).unwrap_or(0).min(now.len());
        values.extend(msrs.as_slice()[..done].iter().map(|entry| (entry.index, entry.data)));
        left = skip(left, done, now.len(), "tells no");
    }
    // What depends on others comes behind them: the deadline behind the counter that it is a value of.
    values.sort_by_key(|(index, _)| (*index == TSC_DEADLINE, *index != TSC));
    values
}

/// Sets `values`, those that KVM takes.
fn write_msrs(fd: &VcpuFd, values: &[(u32, u64)]) {
    let mut left = values;
    while !left.is_empty() {
        let now = &left[..left.len().min(MSRS_AT_ONCE)];
        let entries: Vec<kvm_msr_entry> =
            now.iter().map(|&(index, data)| kvm_msr_entry { index, data, ..Default::default() }).collect();
        let msrs = Msrs::from_entries(&entries).expect("invariant: a few entries fit");
        let done = fd.set_msrs(&msrs).unwrap_or(0).min(now.len());
        let refused: Vec<u32> = left.iter().map(|(index, _)| *index).collect();
        skip(&refused, done, now.len(), "takes no");
        left = &left[(done + usize::from(done < now.len())).min(left.len())..];
    }
}

/// What is left after `done` of the next `asked`: where KVM stopped, it refused one.
fn skip<'a>(left: &'a [u32], done: usize, asked: usize, what: &str) -> &'a [u32] {
    if done < asked {
        tracing::debug!(
            msr = format_args!("{:#x}", left[done]),
            "KVM lists an MSR and {what} value of it; skipped"
        );
        return &left[done + 1..];
    }
    &left[done..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clock_and_counter_go_on_by_what_has_passed() {
        let (mut vm, mut vcpu) = (VmState::example(), VcpuState::example());
        vcpu.advance(Duration::from_secs(1));
        assert_eq!(vcpu.msrs, [(TSC, 1), (TSC_DEADLINE, 2)], "nobody knows how fast");
        vcpu.tsc_khz = 2_000_000;
        vcpu.advance(Duration::from_millis(3));
        vm.advance(Duration::from_millis(3));
        assert_eq!((vcpu.msrs[0].1, vcpu.msrs[1].1, vm.clock_ns), (6_000_001, 2, 3_000_000));
    }
}
