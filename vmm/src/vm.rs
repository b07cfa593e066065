//! One machine put together: memory, KVM, buses, devices, vCPUs, and the guest's state.
//!
//! Must never know: the control socket, configuration files, paths.

mod beginning;
mod handover;
mod hints;
mod parts;
mod snapshot;
mod source;
mod spec;

use std::io;
use std::os::fd::{OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::SystemTime;

use event_manager::MutEventSubscriber;
use vmm_sys_util::eventfd::{EFD_CLOEXEC, EFD_NONBLOCK, EventFd};

use crate::bus::{self, Bus};
use crate::config::{Addressing, HugePages, Traffic};
use crate::devices::{self, Places};
use crate::ending::{Ending, EndingSignal};
use crate::handover::{self as handing, Estate};
use crate::kvm::{self, Kvm};
use crate::lifecycle::{self, Effect, Event, Refused};
use crate::mutex::lock;
use crate::peripherals::Peripherals;
use crate::plugged::{self, Devices};
use crate::power::{self, PowerManagement};
use crate::questions::Questions;
use crate::rpc::{ExitReason, UpgradeStatus, VmState};
use crate::serial::SerialPort;
use crate::snapshot::{Description, Pager};
use crate::vcpu::{self, Buses, Vcpus};
use crate::virtio::block::queues_for;
use crate::virtio::{self, Shared};
use crate::watchdog::Watchdog;
use crate::{acpi, boot, clock, memory, smbios};

pub use hints::GivenBack;
pub use snapshot::{Taken, Wanted};
pub use source::{BootSource, SnapshotSource};
pub use spec::{DiskSpec, MachineSpec, MainConsole, NicSpec};

use parts::{add_bus, add_power, add_serial, add_watchdog, build_devices};
use snapshot::{Origin, Whose, give_generation};
use source::Bootable;

/// Why a machine cannot be put together.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Guest memory.
    #[error(transparent)]
    Memory(#[from] memory::Error),
    /// KVM.
    #[error(transparent)]
    Kvm(#[from] kvm::Error),
    /// No thread is left to make the VM on.
    #[error("start the thread that makes the VM")]
    Thread(#[source] io::Error),
    /// The kernel and what belongs to it.
    #[error(transparent)]
    Boot(#[from] boot::Error),
    /// The firmware tables.
    #[error(transparent)]
    Acpi(#[from] acpi::Error),
    /// What the machine says of itself.
    #[error(transparent)]
    Smbios(#[from] smbios::Error),
    /// The vCPU threads.
    #[error(transparent)]
    Vcpu(#[from] vcpu::Error),
    /// Two devices at one address.
    #[error(transparent)]
    Bus(#[from] bus::Error),
    /// The virtio devices' places.
    #[error(transparent)]
    Devices(#[from] devices::Error),
    /// An event descriptor.
    #[error("make an event descriptor")]
    Event(#[source] io::Error),
    /// A snapshot.
    #[error(transparent)]
    Snapshot(#[from] crate::snapshot::Error),
    /// The guest is not asked what of its memory is free.
    #[error(transparent)]
    Hints(#[from] hints::Error),
    /// A device cannot go on from a snapshot.
    #[error(transparent)]
    State(#[from] virtio::StateError),
    /// The disks cannot be written out for a snapshot.
    #[error("write the guest's disks out")]
    WriteOut(#[source] io::Error),
    /// The kernel gives no random bytes.
    #[error("draw a generation id")]
    Generation(#[source] io::Error),
    /// The kernel is known not to come far on this host.
    #[error(
        "the kernel is Linux, and this host's KVM is a software one (module kvm_pvm), on which Linux cannot run user \
         programs; a host with hardware KVM can, and so can the nested lab: {}",
        kvm::LAB_COMMAND
    )]
    LinuxOnSoftwareKvm,
    /// Reserved pages stay the guest's.
    #[error(
        "memory of reserved huge pages does not go back to the host, so there can be no balloon, and none comes and goes"
    )]
    BalloonOfReserved,
    /// What is pinned neither comes nor goes.
    #[error(
        "memory that is pinned for disks is not a snapshot's, goes to no other process, and there is no balloon and none comes and goes"
    )]
    Pinned,
    /// The number of vCPUs is not within bounds.
    #[error("a guest needs from 1 to {max} vCPUs, not {0}", max = crate::config::VCPUS_MAX)]
    Vcpus(u8),
}

/// What the event loop has to serve besides the supervisor.
pub type Subscriber = Box<dyn MutEventSubscriber>;

/// One machine, built and held until it is started.
pub struct Machine {
    state: VmState,
    first_run_us: Option<u64>,
    vcpus: Vcpus,
    power: Arc<Mutex<PowerManagement>>,
    watchdog: Option<Arc<Mutex<Watchdog>>>,
    serial: Arc<Mutex<SerialPort>>,
    places: Places,
    devices: Devices,
    origin: Origin,
    peripherals: Peripherals,
    main_console: MainConsole,
    estate: Option<Estate>,
    /// Another process has the guest.
    handed_over: bool,
    /// It was another process's before.
    upgraded: Option<UpgradeStatus>,
    /// What is written where the guest reads the time once it is this process's.
    clock_due: Option<clock::Reading>,
    /// How far it is, while it is another process's still.
    handing: Option<handing::Life>,
    /// Fills memory as long as anything of the machine may touch it, so it goes last.
    _pager: Option<Pager>,
}

/// A non-blocking event descriptor.
fn event() -> Result<EventFd, Error> {
    EventFd::new(EFD_NONBLOCK | EFD_CLOEXEC).map_err(Error::Event)
}

impl Machine {
    /// Builds the machine; nothing of the guest runs yet. Its end will be announced to `ending`.
    ///
    /// # Errors
    /// Whatever is wrong with the parts.
    pub fn build(kvm: &Kvm, mut spec: MachineSpec, ending: &EndingSignal) -> Result<Self, Error> {
        let boot = match std::mem::replace(&mut spec.boot, BootSource::Disk) {
            BootSource::Snapshot(source) => {
                if spec.pinned.is_some() {
                    return Err(Error::Pinned);
                }
                let into = spec.estate.as_ref().map(|estate| &estate.memory);
                let snapshot = source.open(into, kvm, ending)?;
                return Self::go_on(kvm, spec, snapshot, Whose::Another, ending);
            }
            boot => boot,
        };
        if spec.vcpus == 0 || spec.vcpus > crate::config::VCPUS_MAX {
            return Err(Error::Vcpus(spec.vcpus));
        }
        let hotplug_mib = spec.peripherals.mem.map_or(0, |mem| mem.config.region_mib);
        let gives_back = spec.peripherals.balloon.is_some() || hotplug_mib > 0;
        if spec.huge_pages == HugePages::Reserved && gives_back {
            return Err(Error::BalloonOfReserved);
        }
        if spec.peripherals.mem.is_some() && hotplug_mib == 0 {
            return Err(memory::Error::Hotplug(0).into());
        }
        if spec.pinned.is_some() && (gives_back || spec.estate.is_some()) {
            return Err(Error::Pinned);
        }
        let ram = match (spec.pinned.take(), &spec.estate) {
            (Some(pinned), _) => pinned,
            (None, Some(_)) if hotplug_mib > 0 => return Err(memory::Error::SharedHotplug.into()),
            (None, Some(estate)) => estate.memory.allocate(spec.memory_mib)?,
            (None, None) => match kvm.place(spec.memory_mib) {
                Some(place) if spec.huge_pages != HugePages::Reserved => {
                    memory::have_pages(&place, spec.huge_pages);
                    place
                }
                _ => memory::allocate_of(spec.memory_mib, spec.huge_pages)?,
            },
        };
        let guest = memory::with_hotplug(&ram, (spec.memory_mib, hotplug_mib), spec.huge_pages)?;
        let kernel = Bootable::find(boot, spec.disks.first().map(|disk| &disk.disk))?;
        let count = spec.disks.len() + spec.nics.len() + spec.peripherals.count();
        let places = Places::choose(spec.transport, kernel.is_small()?, count)?;
        let (vm, vcpus) = beginning::begin(kvm, &kernel, (&ram, &guest), &spec, &places)?;
        clock::write(&guest, vcpus.first().and_then(kvm::Vcpu::counter));
        let vcpus = Vcpus::spawn(vcpus, ending)?;

        let mut buses = Buses { ports: Bus::default(), registers: Bus::default() };
        let console = spec.console;
        let serial = add_serial(&vm, &mut buses.ports, |interrupt| Ok(SerialPort::new(interrupt, console)))?;
        lock(&serial).watch_for_panics(ending.clone());
        let sci = event()?;
        vm.connect_irq(&sci, power::SCI_GSI)?;
        let power = add_power(&mut buses.ports, &sci, ending)?;
        let watchdog = spec.peripherals.watchdog.map(Watchdog::new).transpose().map_err(Error::Event)?;
        let watchdog = add_watchdog(&mut buses.ports, watchdog)?;

        let rings = (spec.rings, queues_for(spec.vcpus));
        let mut wires = add_bus((&vm, &guest), &mut buses.ports, &sci, rings)?;
        let peripherals = Peripherals::build(spec.peripherals, &guest, ending)?;
        let devices = build_devices(spec.disks, spec.nics, &peripherals, &mut wires)?;
        let shared: Vec<Shared> = devices.iter().map(|made| made.shared.clone()).collect();
        let filled = places.fill(&vm, &guest, (&mut buses, &wires.host), &shared)?;
        let devices = Devices::new(wires, devices, filled);

        vcpus.connect(buses);
        let description = Description { cpu: spec.cpu, host: kvm.kind(), needs: vm.needs(spec.vcpus) };
        let origin =
            Origin { description, memory_mib: (spec.memory_mib + hotplug_mib, hotplug_mib), base: None };
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
            clock_due: None,
            handing: None,
            _pager: None,
        })
    }

    /// The devices.
    #[must_use]
    pub fn devices(&self) -> &Devices {
        &self.devices
    }

    /// The devices, to be changed.
    pub fn devices_mut(&mut self) -> &mut Devices {
        &mut self.devices
    }

    /// Gives the guest a disk.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn add_disk(&mut self, spec: DiskSpec) -> Result<(), plugged::Error> {
        self.devices.add_disk(spec, self.state == VmState::Paused)
    }

    /// Gives the guest a network device.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn add_nic(&mut self, spec: NicSpec) -> Result<(), plugged::Error> {
        self.devices.add_nic(spec, self.state == VmState::Paused)
    }

    /// `said` with what the machine knows of why: a guest that crashed or reset itself may lack a driver.
    #[must_use]
    pub fn explained(&self, mut said: Ending) -> Ending {
        if matches!(said.reason, ExitReason::Crashed | ExitReason::Reset)
            && let Some(more) = self.places.missing_driver(&self.devices.driven())
        {
            said.message.push_str("; ");
            said.message.push_str(&more);
        }
        said
    }

    /// The guest's state.
    #[must_use]
    pub fn state(&self) -> VmState {
        self.state
    }

    /// When the guest first ran, in microseconds since the Unix epoch.
    #[must_use]
    pub fn first_run_us(&self) -> Option<u64> {
        self.first_run_us
    }

    /// The serial port, for its log and its input.
    pub fn serial(&self) -> MutexGuard<'_, SerialPort> {
        lock(&self.serial)
    }

    /// The watchdog.
    #[must_use]
    pub fn watchdog(&self) -> Option<MutexGuard<'_, Watchdog>> {
        self.watchdog.as_deref().map(lock)
    }

    /// Readable when the watchdog may have run out.
    #[must_use]
    pub fn watchdog_timer(&self) -> Option<RawFd> {
        self.watchdog().map(|watchdog| watchdog.timer())
    }

    /// What there is beside disks and network devices.
    #[must_use]
    pub fn peripherals(&self) -> &Peripherals {
        &self.peripherals
    }

    /// Gives the guest input at its main console.
    pub fn input(&self, bytes: &[u8]) {
        match self.peripherals.console().filter(|_| self.main_console == MainConsole::Virtio) {
            Some(mut console) => console.input(bytes),
            None => self.serial().input(bytes),
        }
    }

    /// Tells the guest how large the terminal is on which it has its main console; a serial port has no way to.
    pub fn resize_console(&self, (columns, rows): (u16, u16)) {
        let console = self.peripherals.console().filter(|_| self.main_console == MainConsole::Virtio);
        if let Some(mut console) = console {
            console.resize(columns, rows);
        }
    }

    /// Takes `event` and does what it asks for.
    ///
    /// # Errors
    /// The event is not possible now; nothing changed.
    pub fn apply(&mut self, event: Event) -> Result<VmState, Refused> {
        let (state, effect) = lifecycle::next(self.state, event)?;
        self.state = state;
        match effect {
            Effect::None => {}
            Effect::Run => {
                self.first_run_us.get_or_insert_with(now_us);
                self.devices.hold(false);
                self.hold_watchdog(false);
                self.vcpus.run();
            }
            Effect::Hold => {
                self.vcpus.hold();
                self.devices.hold(true);
                self.hold_watchdog(true);
            }
            Effect::Finish => self.vcpus.hold(),
            Effect::PressPowerButton => lock(&self.power).press_power_button(),
        }
        Ok(state)
    }

    fn hold_watchdog(&self, held: bool) {
        self.watchdog().into_iter().for_each(|mut watchdog| watchdog.hold(held));
    }

    /// Has the disks' files show all that the guest has written, durably; without this some of it may be known in this
    /// process alone.
    ///
    /// # Errors
    /// The disks'; all of them are tried.
    pub fn flush_disks(&self) -> io::Result<()> {
        self.devices.write_out()
    }

    /// Has the network device with that MAC address answer otherwise to the guest; whether there is one that answers.
    pub fn readdress(&mut self, mac: [u8; 6], addressing: &Addressing) -> bool {
        let answers = self.devices.iter().any(|mut device| device.readdress(mac, addressing));
        self.devices.note_addressing(mac, addressing);
        answers
    }

    /// Where the guest's questions about names wait.
    #[must_use]
    pub fn questions(&self) -> &Questions {
        self.devices.questions()
    }

    /// Carries an answer to the guest by the network device with that MAC address, in a VLAN of its frames or in none.
    pub fn answer(&self, at: ([u8; 6], Option<u16>), number: u32, message: &[u8]) {
        self.devices.iter().any(|mut device| device.answer(at, number, message));
    }

    /// Holds the traffic of the network device with that MAC address to something else; whether there is one.
    ///
    /// # Errors
    /// A limit out of range.
    pub fn reshape(&mut self, mac: [u8; 6], traffic: &Traffic) -> Result<bool, virtio::Error> {
        let mut is_there = false;
        for mut device in self.devices.iter() {
            is_there = is_there || device.reshape(mac, traffic)?;
        }
        if is_there {
            self.devices.note_traffic(mac, traffic);
        }
        Ok(is_there)
    }

    /// A handle of the VM; it is taken apart when the last one of it is closed, wherever.
    ///
    /// # Errors
    /// No descriptor is left.
    pub fn handle(&self) -> io::Result<OwnedFd> {
        self.devices.vm().handle()
    }

    /// Ends the threads. A process that is about to exit need not.
    pub fn dismantle(self) {
        self.vcpus.quit();
    }
}

fn now_us() -> u64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
