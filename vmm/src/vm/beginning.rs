//! What a machine begins with: the VM and its vCPUs, and beside these what the guest finds in its memory.

use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread::Builder;

use super::source::Bootable;
use super::{Error, MachineSpec, give_generation};
use crate::beside;
use crate::config::CpuProfile;
use crate::devices::Places;
use crate::kvm::{Entry, HostKind, Kvm, Layout, Vcpu, Vm};
use crate::memory::GuestMemory;
use crate::{acpi, boot, smbios};

/// Makes the VM and its vCPUs on one thread, while the guest's memory is filled on this one: neither needs the other, and
/// each takes about as long. Both threads are as confined as the one that calls.
pub(super) fn begin(
    kvm: &Kvm,
    kernel: &Bootable,
    (ram, guest): (&GuestMemory, &GuestMemory),
    spec: &MachineSpec,
    places: &Places,
) -> Result<(Arc<Vm>, Vec<Vcpu>), Error> {
    let (cpu, count) = (spec.cpu, spec.vcpus);
    let layout = Layout {
        memory: guest.clone(),
        tracked: false,
        mappings: spec.peripherals.mappings(guest),
        registers: places.registers(),
    };
    let (made, entry) = std::thread::scope(|scope| {
        let thread = Builder::new().name("vm".to_owned());
        let making = beside::begin(|begun| {
            thread.spawn_scoped(scope, move || {
                begun.say();
                make(kvm, layout, cpu, count)
            })
        })
        .map_err(Error::Thread)?;
        let entry = fill(kernel, (ram, guest), spec, places, kvm.kind());
        Ok::<_, Error>((making.join().unwrap_or_else(|panic| resume_unwind(panic)), entry))
    })?;
    let (vm, vcpus) = made?;
    let entry = entry?;
    if let Some(first) = vcpus.first() {
        first.set_entry(&entry)?;
    }
    Ok((vm, vcpus))
}

fn make(kvm: &Kvm, layout: Layout, cpu: CpuProfile, count: u8) -> Result<(Arc<Vm>, Vec<Vcpu>), Error> {
    let vm = kvm.create_vm(layout, cpu)?;
    let vcpus = (0..count).map(|id| vm.create_vcpu(id, count)).collect::<Result<_, _>>()?;
    Ok((Arc::new(vm), vcpus))
}

/// The kernel and what belongs to it, the tables, the generation id.
fn fill(
    kernel: &Bootable,
    (ram, guest): (&GuestMemory, &GuestMemory),
    spec: &MachineSpec,
    places: &Places,
    host: HostKind,
) -> Result<Entry, Error> {
    let windows: Vec<_> = places.windows().iter().map(|place| (place.address, place.gsi)).collect();
    let cmdline = boot::cmdline(&windows, spec.main_console.name(), &kernel.cmdline, &spec.cmdline);
    // The memory map is of RAM: the rest is found by its device.
    let entry = kernel.load(ram, &cmdline)?;
    if host == HostKind::Software && !spec.anyway && boot::identify::is_linux(&*kernel.kernel) {
        return Err(Error::LinuxOnSoftwareKvm);
    }
    acpi::write(guest, spec.vcpus, places, spec.peripherals.watchdog.is_some())?;
    give_generation(guest)?;
    if let Some(system) = &spec.system {
        smbios::write(guest, system)?;
    }
    Ok(entry)
}
