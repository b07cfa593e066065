//! Taking a snapshot of a machine, and putting one together that goes on from a snapshot.

use std::fs::File;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use vm_memory::{Bytes as _, GuestMemoryBackend as _, GuestMemoryRegion as _};
use vmm_sys_util::eventfd::EventFd;

use super::parts::{add_bus, add_power, add_serial, add_watchdog};
use super::{DiskSpec, Error, Machine, MachineSpec, NicSpec, event, hints};
use crate::bus::Bus;
use crate::clock;
use crate::config::WatchdogAction;
use crate::devices::{Places, Seat, function};
use crate::ending::EndingSignal;
use crate::handover::monotonic;
use crate::kvm::{self, HostKind, Kvm, Layout, Vm};
use crate::lifecycle::Event;
use crate::memory::{self, GuestMemory};
use crate::mutex::lock;
use crate::peripherals::Peripherals;
use crate::plugged::{Devices, Made, Wires};
use crate::power;
use crate::rpc::{DeviceName, VmState};
use crate::serial::SerialPort;
use crate::snapshot::{self, Description, MachineState, SavedDevice, Snapshot, SnapshotId, Writer};
use crate::vcpu::{Buses, Vcpus};
use crate::virtio::block::queues_for;
use crate::virtio::net::pairs_of_queues;
use crate::virtio::spec::device_type;
use crate::virtio::{self, Shared, StateError, Transport as _};
use crate::watchdog::{Watchdog, WatchdogState};

/// What is wanted of a snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wanted {
    /// Only what is different from the snapshot before.
    pub differences: bool,
    /// Note from now on what the guest writes, so that one with differences may follow.
    pub track: bool,
    /// Leave out what a guest that runs says to be free.
    pub hints: bool,
}

/// A snapshot that was taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// What is in its file.
    pub written: snapshot::Written,
    /// How long the guest stood still for it; nothing if it stood still before and does so still.
    pub paused: Option<Duration>,
    /// Pages that the guest said to be free, if it was asked; those that it wrote meanwhile are in it all the same.
    pub hinted_pages: Option<u64>,
}

/// Whose guest a machine goes on with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// One that is another from now on than the one that was saved.
    Another,
    /// The one that was saved, at that time of the host's monotonic clock: its clocks have gone on.
    Same { saved: Duration },
}

/// What a machine keeps for its snapshots.
#[derive(Debug)]
pub(super) struct Origin {
    pub(super) description: Description,
    /// All of it, and how much comes and goes.
    pub(super) memory_mib: (u32, u32),
    /// The snapshot since which writes are noted.
    pub(super) base: Option<SnapshotId>,
}

impl Machine {
    /// Takes a snapshot into `file`. A guest that runs goes on while all of its memory is written, though its devices wait,
    /// and is paused only until what it wrote meanwhile is written again. The disks are written out, so that whoever copies
    /// them while the guest stands still has what belongs to the snapshot. What the guest says to be free is left out if that is
    /// wanted, but for what it writes to after its writes are noted, which is before it is asked.
    ///
    /// # Errors
    /// What is in the file is no snapshot; the guest is as it was.
    pub fn snapshot(&mut self, wanted: Wanted, file: &File) -> Result<Taken, Error> {
        let runs = match self.state {
            VmState::Running => true,
            VmState::Paused => false,
            VmState::Created | VmState::Stopping | VmState::Stopped => {
                return Err(snapshot::Error::NotPaused.into());
            }
        };
        if wanted.differences && self.origin.base.is_none() {
            return Err(snapshot::Error::NotTracked.into());
        }
        Writer::check(file)?;
        if wanted.hints && wanted.differences {
            return Err(hints::Error::Differences.into());
        }
        if wanted.hints {
            self.check_hints()?;
        }
        // Whatever fails from here on, what was noted is noted no more.
        let base = self.origin.base.take();
        let taken = self.write_snapshot(wanted, (runs, base), file);
        if wanted.hints {
            self.end_hints();
        }
        match &taken {
            Ok(taken) if wanted.track || wanted.differences => self.origin.base = Some(taken.written.id),
            _ if runs || base.is_some() || wanted.track => self.devices.wires().vm.stop_tracking()?,
            _ => {}
        }
        taken
    }

    fn write_snapshot(
        &mut self,
        wanted: Wanted,
        (runs, base): (bool, Option<SnapshotId>),
        file: &File,
    ) -> Result<Taken, Error> {
        let wires = self.devices.wires();
        let (vm, guest) = (wires.vm.clone(), wires.guest.clone());
        let mut writer = Writer::begin(file, self.origin.memory_mib, &guest)?;
        let full = !wanted.differences;
        if full && (runs || wanted.track) {
            vm.track_writes()?;
        }
        let free = wanted.hints.then(|| self.gather_hints()).transpose()?;
        if full {
            self.devices.write_out().map_err(Error::WriteOut)?;
            let blocks = self.peripherals.mem().map(|mem| mem.blocks().clone());
            let is_there = |mib| blocks.as_ref().is_some_and(|blocks| blocks.has_mib(mib));
            writer.all(is_there, free.as_ref().map_or(&[], |free| &free.0))?;
        }
        let began = Instant::now();
        if runs {
            self.apply(Event::Pause).expect("invariant: a guest that runs can be paused");
        }
        let written = self.finish_snapshot(&vm, writer, base.filter(|_| wanted.differences), runs);
        if runs {
            self.apply(Event::Resume).expect("invariant: it was paused here");
        }
        let paused = runs.then(|| began.elapsed());
        Ok(Taken { written: written?, paused, hinted_pages: free.map(|free| free.count()) })
    }

    /// The rest of a snapshot of a machine that stands still: what is different from `base`, or what was written since all of
    /// it was, if the guest ran.
    fn finish_snapshot(
        &self,
        vm: &Vm,
        mut writer: Writer<'_>,
        base: Option<SnapshotId>,
        ran: bool,
    ) -> Result<snapshot::Written, Error> {
        self.devices.write_out().map_err(Error::WriteOut)?;
        let state = self.save()?;
        match base {
            Some(_) => writer.differences(&vm.take_dirty()?)?,
            None if ran => writer.again(&vm.take_dirty()?)?,
            None => {}
        }
        Ok(writer.finish(base, self.origin.description.clone(), &state)?)
    }

    /// All but the memory of a machine that stands still.
    pub(super) fn save(&self) -> Result<MachineState, Error> {
        let (bus, plug) = self.devices.save_bus();
        Ok(MachineState {
            vcpus: self.vcpus.save()?,
            vm: self.devices.wires().vm.save()?,
            serial: lock(&self.serial).save(),
            power: lock(&self.power).save(),
            watchdog: self.watchdog().map(|watchdog| watchdog.save()),
            bus,
            plug,
            devices: self.devices.save(),
        })
    }

    /// Puts a machine together that goes on from `snapshot` with what is given now. It is held until it is started. Another
    /// guest than that of the snapshot knows then that it is another, and gets no packet before it has taken that up.
    pub(super) fn go_on(
        kvm: &Kvm,
        spec: MachineSpec,
        snapshot: Snapshot,
        whose: Whose,
        ending: &EndingSignal,
    ) -> Result<Self, Error> {
        let Snapshot { header, mut state, memory: guest, pager } = snapshot;
        check_sizes(&spec, &header)?;
        check_memory(&spec, &header, &guest)?;
        check_host(header.host, kvm.kind())?;
        let processor = (header.cpu, header.vcpus);
        let places = Places::of_windows(state.devices.iter().filter(|device| device.slot.is_none()).count())?;
        let layout = Layout {
            memory: guest.clone(),
            tracked: spec.track,
            mappings: spec.peripherals.mappings(&guest),
            registers: places.registers(),
        };
        let vm = Arc::new(kvm.recreate_vm(layout, processor, &header.needs, &state.vm)?);
        if spec.track {
            // KVM notes the guest's since the VM was made. What this process has written is the snapshot's.
            vm.track_writes()?;
        }
        let mut buses = Buses { ports: Bus::default(), registers: Bus::default() };
        let serial = |interrupt: EventFd| {
            let port = SerialPort::restored(&state.serial, interrupt, spec.console);
            port.ok_or_else(|| snapshot::Error::Invalid("its serial port").into())
        };
        let serial = add_serial(&vm, &mut buses.ports, serial)?;
        let sci = event()?;
        vm.connect_irq(&sci, power::SCI_GSI)?;
        let power = add_power(&mut buses.ports, &sci, ending)?;
        lock(&power).restore(state.power);
        let watchdog = go_on_watching(state.watchdog, spec.peripherals.watchdog)?;
        let watchdog = add_watchdog(&mut buses.ports, watchdog)?;
        let rings = (spec.rings, queues_for(header.vcpus));
        let mut wires = add_bus((&vm, &guest), &mut buses.ports, &sci, rings)?;

        if let Whose::Same { saved } = whose {
            let passed = monotonic().saturating_sub(saved);
            state.vm.advance(passed);
            state.vcpus.iter_mut().for_each(|vcpu| vcpu.advance(passed));
        }
        let mut vcpus = Vec::with_capacity(state.vcpus.len());
        for (id, saved) in (0..header.vcpus).zip(&state.vcpus) {
            let vcpu = vm.create_vcpu(id, header.vcpus)?;
            vcpu.restore(saved)?;
            vcpus.push(vcpu);
        }
        // Before the devices, some of which may interrupt at once.
        vm.restore(&state.vm)?;
        let counter = vcpus.first().and_then(kvm::Vcpu::counter);
        let clock_due = match whose {
            Whose::Another => {
                give_generation(&guest)?;
                clock::write(&guest, counter);
                None
            }
            // Not now: it is another process's still, which may have to go on with it.
            Whose::Same { .. } => Some(clock::Reading::now(counter)),
        };
        let vcpus = Vcpus::spawn(vcpus, ending)?;
        let mut peripherals = spec.peripherals;
        let saved = state.devices.iter().map(|device| (kind(device), own(device)));
        peripherals.complete(saved, header.hotplug_mib)?;
        let peripherals = Peripherals::build(peripherals, &guest, ending)?;
        let backends = (spec.disks, spec.nics, peripherals.devices());
        let made = make_devices(backends, &state.devices, &mut wires)?;
        let seats = seat(&places, &wires, &mut buses, &made, &state.devices)?;
        restore_bus(&wires, &state)?;
        let mut devices = Devices::new(wires, made, seats);
        devices.hold(true);
        match whose {
            Whose::Another => devices.announce_generation(),
            Whose::Same { .. } => devices.continue_as_before(),
        }
        vcpus.connect(buses);
        let description = Description { cpu: header.cpu, host: header.host, needs: header.needs };
        let base = spec.track.then_some(header.id);
        let origin = Origin { description, memory_mib: (header.memory_mib, header.hotplug_mib), base };
        Ok(Self {
            state: VmState::Created,
            first_run_us: None,
            vcpus,
            power,
            watchdog,
            serial,
            places,
            devices,
            origin,
            peripherals,
            main_console: spec.main_console,
            estate: spec.estate,
            handed_over: false,
            upgraded: None,
            clock_due,
            handing: None,
            _pager: pager,
        })
    }
}

/// Gives the guest a generation id that none has had.
pub(super) fn give_generation(guest: &GuestMemory) -> Result<(), Error> {
    let mut id = [0; 16];
    rustix::rand::getrandom(&mut id, rustix::rand::GetRandomFlags::empty())
        .map_err(|errno| Error::Generation(errno.into()))?;
    guest.write_slice(&id, memory::GENERATION_START).expect("invariant: every guest has its first MiB");
    Ok(())
}

fn check_sizes(spec: &MachineSpec, header: &snapshot::Header) -> Result<(), snapshot::Error> {
    let ram_mib = header.memory_mib - header.hotplug_mib;
    let same = (spec.memory_mib == 0 || spec.memory_mib == ram_mib)
        && (spec.vcpus == 0 || spec.vcpus == header.vcpus);
    let (memory_mib, vcpus) = (ram_mib, header.vcpus);
    if same { Ok(()) } else { Err(snapshot::Error::Sizes { memory_mib, vcpus }) }
}

/// Memory lies where the guest knows of it, and none comes and goes that it does not know of.
fn check_memory(
    spec: &MachineSpec,
    header: &snapshot::Header,
    guest: &GuestMemory,
) -> Result<(), snapshot::Error> {
    let there = guest.iter().map(|region| (region.start_addr(), region.len()));
    if !there.eq(memory::ranges((header.memory_mib, header.hotplug_mib))) {
        return Err(snapshot::Error::Invalid("where its memory lies"));
    }
    match spec.peripherals.mem {
        Some(_) if header.hotplug_mib == 0 => Err(snapshot::Error::Stranger(device_type::MEM)),
        _ => Ok(()),
    }
}

/// The guest's watchdog, if it has one: what it does when it runs out is said anew, or is as before.
fn go_on_watching(
    saved: Option<WatchdogState>,
    action: Option<WatchdogAction>,
) -> Result<Option<Watchdog>, Error> {
    match saved {
        Some(saved) => {
            let watchdog = Watchdog::restored(saved, action).map_err(Error::Event)?;
            Ok(Some(watchdog.ok_or(snapshot::Error::Invalid("its watchdog"))?))
        }
        None if action.is_some() => Err(snapshot::Error::NoWatchdog.into()),
        None => Ok(None),
    }
}

/// What a software KVM keeps of a guest's kernel is not what a processor does.
fn check_host(taken: HostKind, here: HostKind) -> Result<(), snapshot::Error> {
    let name = |kind| match kind {
        HostKind::Hardware => "a KVM in hardware",
        HostKind::Software => "a software KVM",
    };
    if taken == here {
        return Ok(());
    }
    Err(snapshot::Error::Host { taken: name(taken), here: name(here) })
}

/// The devices that the snapshot has, in its order, of what is given now: the first disk there is the first one here.
fn make_devices(
    (disks, nics, mut others): (Vec<DiskSpec>, Vec<NicSpec>, Vec<Shared>),
    saved: &[SavedDevice],
    wires: &mut Wires,
) -> Result<Vec<Made>, Error> {
    let count = |wanted: u32| saved.iter().filter(|device| kind(device) == wanted).count();
    let pmem = others.iter().filter(|device| lock(device).device_type() == device_type::PMEM).count();
    for (what, wanted, given) in [
        ("disks", device_type::BLOCK, disks.len()),
        ("network devices", device_type::NET, nics.len()),
        ("persistent memories", device_type::PMEM, pmem),
    ] {
        if count(wanted) != given {
            return Err(snapshot::Error::Devices { kind: what, saved: count(wanted), given }.into());
        }
    }
    let (mut disks, mut nics) = (disks.into_iter(), nics.into_iter());
    let mut made = Vec::with_capacity(saved.len());
    for device in saved {
        made.push(match kind(device) {
            device_type::BLOCK => {
                let spec = disks.next().expect("invariant: they were counted");
                let name = DeviceName::Disk(spec.config.serial.clone());
                // As many as it had: the guest knows of no others.
                let queues = u16::try_from(device.transport.negotiation().queues.len()).unwrap_or(u16::MAX);
                let parts = (queues, &mut wires.rings);
                let block = virtio::build_block(&spec.config, Box::new(spec.disk), parts);
                Made { name: Some(name), shared: block.map_err(device_error)?, kept: spec.kept }
            }
            device_type::NET => {
                let spec = nics.next().expect("invariant: they were counted");
                let name = DeviceName::Nic(spec.config.mac);
                // As many pairs as it had, whatever number of queues the tap has now.
                let pairs = pairs_of_queues(device.transport.negotiation().queues.len());
                let net = virtio::build_net(&spec.config, spec.taps, Some(pairs), &wires.questions);
                Made { name: Some(name), shared: net.map_err(device_error)?, kept: spec.kept }
            }
            device_type::RNG => Made::unnamed(virtio::build_rng().map_err(device_error)?),
            other => {
                let found = others.iter().position(|device| lock(device).device_type() == other);
                Made::unnamed(others.remove(found.ok_or(snapshot::Error::Invalid("one of its devices"))?))
            }
        });
    }
    if let Some(stranger) = others.first() {
        return Err(snapshot::Error::Stranger(lock(stranger).device_type()).into());
    }
    Ok(made)
}

fn own(device: &SavedDevice) -> &[u8] {
    &device.transport.negotiation().device.own
}

fn kind(device: &SavedDevice) -> u32 {
    device.transport.negotiation().device_type
}

fn device_error(error: virtio::Error) -> Error {
    Error::Devices(error.into())
}

/// Puts each device where it was, and has it go on.
fn seat(
    places: &Places,
    wires: &Wires,
    buses: &mut Buses,
    made: &[Made],
    saved: &[SavedDevice],
) -> Result<Vec<Seat>, Error> {
    let in_windows = made.iter().zip(saved).filter(|(_, device)| device.slot.is_none());
    let in_windows: Vec<Shared> = in_windows.map(|(made, _)| made.shared.clone()).collect();
    let windows = if in_windows.is_empty() { &[][..] } else { &in_windows };
    let mut windows = places.fill(&wires.vm, &wires.guest, (buses, &wires.host), windows)?.into_iter();
    let mut seats = Vec::with_capacity(saved.len());
    for (Made { shared, .. }, device) in made.iter().zip(saved) {
        seats.push(match device.slot {
            None => {
                let seat = windows.next().expect("invariant: a window for each that had one");
                let window = seat.window.as_ref().expect("invariant: it is no slot");
                lock(window).restore(&device.transport)?;
                seat
            }
            Some(slot) => in_slot(&wires.vm, wires, slot, shared, device)?,
        });
    }
    Ok(seats)
}

fn in_slot(
    vm: &Arc<Vm>,
    wires: &Wires,
    slot: u8,
    shared: &Shared,
    device: &SavedDevice,
) -> Result<Seat, Error> {
    let (mut function, seat) = function(vm, &wires.guest, slot, shared)?;
    function.restore(&device.transport)?;
    wires.host.insert(slot, function).map_err(|error| Error::Devices(error.into()))?;
    Ok(seat)
}

fn restore_bus(wires: &Wires, state: &MachineState) -> Result<(), Error> {
    if !wires.host.restore(&state.bus) {
        return Err(StateError::Invalid("its host bridge is another").into());
    }
    let controller: &Mutex<_> = &wires.controller;
    lock(controller).restore(state.plug);
    Ok(())
}
