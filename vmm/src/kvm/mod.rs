//! The only home of the KVM ioctls: a host's KVM, one VM in it, its virtual CPUs.
//!
//! Must never know: boot protocols, devices behind the buses, the life of the process.
#![expect(unsafe_code, reason = "the KVM interface shares memory with the kernel")]

mod dirty;
mod fault;
mod features;
mod layout;
mod opening;
mod profile;
mod state;
mod vcpu;
mod x86_64;

use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};
use std::path::Path;
use std::sync::{Arc, Mutex, OnceLock};

use kvm_bindings::{CpuId, KVM_MAX_CPUID_ENTRIES, kvm_msi};
use kvm_ioctls::{Cap, IoEventAddress, NoDatamatch, VcpuFd, VmFd};
use vm_memory::{Address, GuestAddress};
use vmm_sys_util::eventfd::EventFd;

use crate::config::CpuProfile;
use crate::memory::registers::RegisterPages;
use crate::memory::{self, GuestMemory};
use crate::mutex::lock;

pub use dirty::DirtyPages;
pub use fault::LAB_COMMAND;
pub use features::{CpuNeeds, FeatureWord, Lacking, WORDS_MAX};
pub use layout::Layout;
pub use opening::Opening;
pub use profile::{Profile, Unsuited};
pub use state::{VcpuState, VmState};
pub use vcpu::{Exit, ExitRequest, Vcpu};
pub use x86_64::Entry;
pub(crate) use x86_64::descriptor_table;

/// The IOAPIC that KVM emulates has this many pins; a GSI is a pin's number.
pub const IOAPIC_PINS: u32 = 24;

/// What kind of KVM the host has.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HostKind {
    /// The processor runs the guest.
    Hardware,
    /// Module `kvm_pvm`: guest user mode runs natively, guest kernel mode is emulated, and some instructions of an
    /// ordinary Linux kernel are not.
    Software,
}

impl HostKind {
    /// Looks at the loaded modules. It reads sysfs, so it must be asked before the process is confined.
    #[must_use]
    pub fn detect() -> Self {
        if Path::new("/sys/module/kvm_pvm").exists() { Self::Software } else { Self::Hardware }
    }
}

/// Why KVM could not do something.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The device node cannot be opened.
    #[error("open /dev/kvm")]
    Open(#[source] kvm_ioctls::Error),
    /// The kernel's KVM speaks another version of the interface than 12.
    #[error("/dev/kvm speaks version {0} of the KVM interface; 12 is needed")]
    Version(i32),
    /// One step failed.
    #[error("KVM cannot {step}")]
    Step {
        /// What was asked.
        step: &'static str,
        /// Why not.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The host does not suit the CPU profile.
    #[error(transparent)]
    Profile(#[from] Unsuited),
    /// A guest cannot go on here.
    #[error(transparent)]
    Lacking(#[from] Lacking),
    /// A snapshot's description of its processor is none.
    #[error("the snapshot's processor has more CPUID entries than there can be")]
    Processor,
    /// A guest that goes on here would find its counter at another rate.
    #[error(
        "the snapshot's guest has a time stamp counter of {khz} kHz, this host's runs at {here} kHz, and its processor cannot \
         scale it"
    )]
    TscFrequency {
        /// The guest's.
        khz: u32,
        /// The host's.
        here: u32,
        /// Why not.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// The vCPU's shared page cannot be mapped.
    #[error("map the shared page of a vCPU")]
    MapRun(#[source] std::io::Error),
}

/// Names the step that failed.
fn step(step: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> Error {
    move |source| Error::Step { step, source }
}

/// A host's KVM.
pub struct Kvm {
    fd: kvm_ioctls::Kvm,
    kind: HostKind,
    /// What it offers, once that was asked.
    supported: OnceLock<CpuId>,
    /// A VM that was made before there was a guest for it.
    spare: Mutex<Option<Spare>>,
}

/// What of a VM depends on no guest, or on nothing of it but the size of its memory.
struct Spare {
    fd: VmFd,
    /// With a place for memory, it has all that comes behind the memory: the interrupt controllers, and the first processor.
    placed: Option<(Layout, VcpuFd)>,
}

impl Spare {
    fn make(kvm: &kvm_ioctls::Kvm, place: Option<GuestMemory>) -> Result<Self, Error> {
        let fd = kvm.create_vm().map_err(step("create a VM"))?;
        let Some(layout) = place.map(Layout::of) else { return Ok(Self { fd, placed: None }) };
        for slot in layout.slots() {
            // SAFETY: the memory is mapped at the slot's address with that length, and kept with the VM.
            unsafe { fd.set_user_memory_region(slot) }.map_err(step("give the VM its memory"))?;
        }
        complete(&fd)?;
        let first = fd.create_vcpu(0).map_err(step("create a vCPU"))?;
        // What comes to be known of later finds nobody to wait for: that is waited for here, by a slot that comes and goes.
        let registers = RegisterPages::new(1);
        let comes = layout::of_registers(&registers);
        for slot in [comes, layout::without(&comes)] {
            // SAFETY: the pages have that address and length, and outlive the slot; no vCPU runs meanwhile.
            unsafe { fd.set_user_memory_region(slot) }.map_err(step("settle its memory"))?;
        }
        Ok(Self { fd, placed: Some((layout, first)) })
    }
}

/// Gives a VM what comes behind its memory: with slots present, creating the irqchip is an order of magnitude cheaper on some
/// hosts.
fn complete(fd: &VmFd) -> Result<(), Error> {
    fd.set_identity_map_address(memory::KVM_IDENTITY_MAP_START).map_err(step("place its identity map"))?;
    let tss = usize::try_from(memory::KVM_TSS_START).expect("invariant: usize has 64 bits");
    fd.set_tss_address(tss).map_err(step("place its task state segment"))?;
    fd.create_irq_chip().map_err(step("create the interrupt controllers"))
}

impl Kvm {
    /// Opens /dev/kvm.
    ///
    /// # Errors
    /// The node is missing, not ours to open, or of another version.
    pub fn open() -> Result<Self, Error> {
        let kind = HostKind::detect();
        Self::check(kvm_ioctls::Kvm::new().map_err(Error::Open)?, kind)
    }

    /// Takes an open /dev/kvm from a parent that also tells the host's kind.
    ///
    /// # Errors
    /// The descriptor speaks another version, or is no KVM at all.
    pub fn from_fd(fd: OwnedFd, kind: HostKind) -> Result<Self, Error> {
        // SAFETY: the descriptor is open and ours; ownership moves into the wrapper, which closes it once.
        let fd = unsafe { kvm_ioctls::Kvm::from_raw_fd(fd.into_raw_fd()) };
        Self::check(fd, kind)
    }

    fn check(fd: kvm_ioctls::Kvm, kind: HostKind) -> Result<Self, Error> {
        match fd.get_api_version() {
            12 => Ok(Self { fd, kind, supported: OnceLock::new(), spare: Mutex::default() }),
            other => Err(Error::Version(other)),
        }
    }

    /// The host's kind.
    #[must_use]
    pub fn kind(&self) -> HostKind {
        self.kind
    }

    /// What `wanted` comes to on this host.
    ///
    /// # Errors
    /// The host does not suit it, or does not tell its features.
    pub fn profile(&self, wanted: CpuProfile) -> Result<Profile, Error> {
        Ok(Profile::choose(wanted, self.kind, &self.supported_cpuid()?)?)
    }

    /// Does what takes longest of making a VM and depends on no guest; for one whose memory will be at `place`, all but what
    /// its configuration says. What fails here fails again, and is told, when the VM is made.
    fn prepare(&self, place: Option<GuestMemory>) {
        let prepared = Spare::make(&self.fd, place).and_then(|spare| {
            *lock(&self.spare) = Some(spare);
            self.supported_cpuid()
        });
        if let Err(error) = prepared {
            tracing::debug!(%error, "nothing is prepared");
        }
    }

    /// Memory of `size_mib` MiB, untouched, that the VM which was prepared has already.
    #[must_use]
    pub fn place(&self, size_mib: u32) -> Option<GuestMemory> {
        let spare = lock(&self.spare);
        let (layout, _) = spare.as_ref()?.placed.as_ref()?;
        memory::is_of(&layout.memory, size_mib).then(|| layout.memory.clone())
    }

    fn supported_cpuid(&self) -> Result<CpuId, Error> {
        if let Some(known) = self.supported.get() {
            return Ok(known.clone());
        }
        let asked = self.fd.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES);
        let asked = asked.map_err(step("tell the CPU's features"))?;
        Ok(self.supported.get_or_init(|| asked).clone())
    }

    /// Makes a VM with that memory, its interrupt controllers and a processor as `cpu` says.
    ///
    /// # Errors
    /// The step that failed; the host does not suit the profile.
    pub fn create_vm(&self, layout: Layout, cpu: CpuProfile) -> Result<Vm, Error> {
        let cpuid = self.supported_cpuid()?;
        let profile = Profile::choose(cpu, self.kind, &cpuid)?;
        let tsc_deadline = self.fd.check_extension(Cap::TscDeadlineTimer);
        self.make_vm(layout, Processor { profile, cpuid, tsc_deadline })
    }

    /// Makes a VM with that memory for a guest that goes on, with the processor that it knows: one started with the profile
    /// `cpu` and `vcpus` vCPUs that was shown `needs`, and saved `state`. What else is in `state` is for [`Vm::restore`].
    ///
    /// # Errors
    /// The step that failed; the host lacks something that the guest knows of.
    pub fn recreate_vm(
        &self,
        layout: Layout,
        (cpu, vcpus): (CpuProfile, u8),
        needs: &CpuNeeds,
        state: &VmState,
    ) -> Result<Vm, Error> {
        let here = self.supported_cpuid()?;
        let profile = Profile::choose(cpu, self.kind, &here)?;
        let deadline_here = self.fd.check_extension(Cap::TscDeadlineTimer);
        needs.check(&x86_64::guest_cpuid(&here, 0, vcpus, profile, deadline_here))?;
        let cpuid = CpuId::from_entries(&state.cpuid).map_err(|_| Error::Processor)?;
        self.make_vm(layout, Processor { profile, cpuid, tsc_deadline: state.tsc_deadline })
    }

    fn make_vm(&self, mut layout: Layout, processor: Processor) -> Result<Vm, Error> {
        let Processor { profile, cpuid, tsc_deadline } = processor;
        let spare = lock(&self.spare).take();
        let Spare { fd, placed } = spare.map_or_else(|| Spare::make(&self.fd, None), Ok)?;
        let (place, first) = placed.unzip();
        let there = place.as_ref().map_or_else(Vec::new, Layout::slots);
        layout.registers = layout.registers.filter(|_| self.fd.check_extension(Cap::ReadonlyMem));
        let wanted = layout.slots();
        let stays = |slot: &&_| wanted.iter().any(|wanted| layout::differ_in_flags_alone(slot, wanted));
        let gone = there.iter().filter(|slot| !stays(slot)).map(layout::without);
        for slot in gone.chain(wanted.iter().filter(|slot| !there.contains(slot)).copied()) {
            // SAFETY: the memory is mapped at the slot's address with that length, and `Vm` keeps it as long as the VM's
            // descriptor.
            unsafe { fd.set_user_memory_region(slot) }.map_err(step("give the VM its memory"))?;
        }
        if first.is_none() {
            complete(&fd)?;
        }
        let msrs = self.fd.get_msr_index_list().map_err(step("list its model-specific registers"))?;
        let mut msrs = msrs.as_slice().to_vec();
        msrs.truncate(state::MSRS_MAX);
        Ok(Vm {
            fd,
            kind: self.kind,
            profile,
            cpuid,
            tsc_deadline,
            msrs: msrs.into(),
            first: Mutex::new(first),
            layout,
        })
    }
}

/// What a VM's vCPUs are shown their parts of.
struct Processor {
    profile: Profile,
    cpuid: CpuId,
    tsc_deadline: bool,
}

/// One VM.
pub struct Vm {
    fd: VmFd,
    kind: HostKind,
    profile: Profile,
    cpuid: CpuId,
    tsc_deadline: bool,
    /// The MSRs that the host lists as part of a guest's state.
    msrs: Arc<[u32]>,
    /// The first vCPU, if the VM had it before its guest.
    first: Mutex<Option<VcpuFd>>,
    /// KVM reads and writes it, so it must not go before the descriptor.
    layout: Layout,
}

impl Vm {
    /// The host's kind.
    #[must_use]
    pub fn kind(&self) -> HostKind {
        self.kind
    }

    /// What a guest with `count` vCPUs may rely on, for a snapshot.
    #[must_use]
    pub fn needs(&self, count: u8) -> CpuNeeds {
        CpuNeeds::of(&x86_64::guest_cpuid(&self.cpuid, 0, count, self.profile, self.tsc_deadline))
    }

    /// The registers of devices that the guest reads as memory.
    #[must_use]
    pub fn registers(&self) -> Option<&Arc<RegisterPages>> {
        self.layout.registers.as_ref()
    }

    /// A descriptor by which whoever has it can keep the VM, but not use it: KVM serves only the process that made it.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn handle(&self) -> std::io::Result<OwnedFd> {
        // SAFETY: the descriptor is open as long as `self.fd`, which outlives the borrow.
        unsafe { BorrowedFd::borrow_raw(self.fd.as_raw_fd()) }.try_clone_to_owned()
    }

    /// Each write to `event` is one pulse on the IOAPIC's pin `gsi`.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connect_irq(&self, event: &EventFd, gsi: u32) -> Result<(), Error> {
        self.fd.register_irqfd(event, gsi).map_err(step("connect an interrupt"))
    }

    /// The guest's 32-bit write of `value` to the guest-physical `address` becomes a write to `event` and no exit.
    ///
    /// # Errors
    /// The kernel's.
    pub fn connect_doorbell(&self, event: &EventFd, address: GuestAddress, value: u32) -> Result<(), Error> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address.raw_value()), value)
            .map_err(step("connect a doorbell"))
    }

    /// The guest's write of any width to the guest-physical `address` becomes a write of 1 to `event` and no exit.
    ///
    /// # Errors
    /// The kernel's; one address can have one such doorbell.
    pub fn connect_bare_doorbell(&self, event: &EventFd, address: GuestAddress) -> Result<(), Error> {
        self.fd
            .register_ioevent(event, &IoEventAddress::Mmio(address.raw_value()), NoDatamatch)
            .map_err(step("connect a doorbell"))
    }

    /// Undoes [`Self::connect_bare_doorbell`].
    ///
    /// # Errors
    /// The kernel's.
    pub fn disconnect_bare_doorbell(&self, event: &EventFd, address: GuestAddress) -> Result<(), Error> {
        self.fd
            .unregister_ioevent(event, &IoEventAddress::Mmio(address.raw_value()), NoDatamatch)
            .map_err(step("disconnect a doorbell"))
    }

    /// Interrupts the guest with the message `data` written to `address`, from any thread.
    ///
    /// # Errors
    /// The kernel's: the message names no interrupt.
    pub fn send_message(&self, address: u64, data: u32) -> Result<(), Error> {
        // Truncation is the point: the two halves of the address.
        let message = kvm_msi {
            address_lo: address as u32,
            address_hi: (address >> 32) as u32,
            data,
            ..Default::default()
        };
        self.fd.signal_msi(message).map(drop).map_err(step("deliver a message-signalled interrupt"))
    }

    /// Makes virtual CPU `id` of `count`, with its CPUID. `id` is its APIC id too.
    ///
    /// # Errors
    /// The step that failed.
    pub fn create_vcpu(&self, id: u8, count: u8) -> Result<Vcpu, Error> {
        let first = lock(&self.first).take_if(|_| id == 0);
        let made = first.map_or_else(|| self.fd.create_vcpu(u64::from(id)), Ok);
        let fd = made.map_err(step("create a vCPU"))?;
        let cpuid = x86_64::guest_cpuid(&self.cpuid, id, count, self.profile, self.tsc_deadline);
        fd.set_cpuid2(&cpuid).map_err(step("set a vCPU's features"))?;
        x86_64::set_boot_msrs(&fd);
        x86_64::wire_local_apic(&fd)?;
        Ok(Vcpu { fd, kind: self.kind, msrs: self.msrs.clone(), memory: self.layout.memory.clone() })
    }
}
