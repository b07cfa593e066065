//! A machine's devices, those of its start and those that come and go while the guest runs.
//!
//! A device that comes is a PCI function in a free slot, whatever transport those of the start have. One that goes is
//! taken from its slot first, then from the event loop; its files have all that was written to it before anybody
//! hears that it is gone.
//!
//! Must never know: the control socket, paths.

use std::cmp::Ordering;
use std::collections::VecDeque;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, MutexGuard};

use vmm_sys_util::eventfd::EventFd;

use crate::config::{Addressing, DiskLimits, NicConfig, Traffic};
use crate::devices::{self, Driven, Seat, function};
use crate::handover::Kept;
use crate::kvm::Vm;
use crate::memory::GuestMemory;
use crate::mutex::lock;
use crate::pci::host::{HostState, PciHost, SLOTS};
use crate::pci::plug::{PlugController, PlugState};
use crate::questions::Questions;
use crate::rpc::{DeviceName, DeviceState, DeviceStatus, VirtioStatus};
use crate::snapshot::SavedDevice;
use crate::virtio::block::ring::Rings;
use crate::virtio::spec::block::SECTOR_BYTES;
use crate::virtio::spec::device_type;
use crate::virtio::{Shared, Transport as _, VirtioDevice};
use crate::vm::{DiskSpec, NicSpec};
use crate::{pci, virtio};

/// Why a device cannot come or go.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Disks are found by their serial numbers.
    #[error("a disk that comes while the guest runs needs a serial number")]
    NoSerial,
    /// There is one of that name.
    #[error("a device of that serial number or MAC address is there already")]
    Taken,
    /// Every slot has a device.
    #[error("no PCI slot is free: a guest can have {max} devices there", max = SLOTS - 1)]
    NoSlot,
    /// There is none of that name.
    #[error("there is no such disk")]
    Missing,
    /// It cannot be written out.
    #[error("write the disk out")]
    WriteOut(#[source] io::Error),
    /// A guest's disk does not become smaller.
    #[error("the disk has {now} bytes, and its guest knows of {before}")]
    Smaller {
        /// What it has.
        now: u64,
        /// What it had.
        before: u64,
    },
    /// It lies encrypted, and was given without its key.
    #[error(
        "the guest's disk is encrypted: give its key, as when the guest got it (`key-file=` behind its name)"
    )]
    KeyMissing,
    /// It lies in the clear, and was given with a key.
    #[error("the guest's disk is not encrypted: give it without a key, as when the guest got it")]
    KeyGiven,
    /// It is where nothing can be unplugged.
    #[error("the device is on virtio-mmio, from which nothing can be taken while the guest runs")]
    Fixed,
    /// The device or its function.
    #[error(transparent)]
    Devices(#[from] devices::Error),
    /// The slot.
    #[error(transparent)]
    Pci(#[from] pci::Error),
    /// The device.
    #[error(transparent)]
    Virtio(#[from] virtio::Error),
}

/// Which device of a machine's life it is; never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DeviceKey(u64);

/// What the event loop has to do about a device.
pub enum Change {
    /// Serve it.
    Added(DeviceKey, Shared),
    /// Serve it no more.
    Removed(DeviceKey),
}

/// A device that was made, for its place.
pub(crate) struct Made {
    /// Nothing for what is not there for everybody to see.
    pub(crate) name: Option<DeviceName>,
    /// The device.
    pub(crate) shared: Shared,
    /// What it is made of, if the guest may be handed over.
    pub(crate) kept: Option<Kept>,
}

impl Made {
    /// One that is made of nothing that is kept with it.
    pub(crate) fn unnamed(shared: Shared) -> Self {
        Self { name: None, shared, kept: None }
    }
}

struct Device {
    key: DeviceKey,
    /// Nothing for what is not there for everybody to see, the entropy source.
    name: Option<DeviceName>,
    seat: Seat,
    shared: Shared,
    kept: Option<Kept>,
}

/// The wires of one machine that devices need.
pub(crate) struct Wires {
    /// KVM's part.
    pub(crate) vm: Arc<Vm>,
    /// Guest memory.
    pub(crate) guest: GuestMemory,
    /// The bus.
    pub(crate) host: PciHost,
    /// Its hot-plug controller.
    pub(crate) controller: Arc<Mutex<PlugController>>,
    /// Written when the guest has let a slot go.
    pub(crate) let_go: EventFd,
    /// Where the guest's questions about names wait.
    pub(crate) questions: Questions,
    /// For disks.
    pub(crate) rings: Rings,
    /// How many queues each disk has.
    pub(crate) disk_queues: u16,
}

/// See the module.
pub struct Devices {
    list: Vec<Device>,
    wires: Wires,
    next_key: u64,
    /// The slot that was filled last: the next one is another, so that what a guest still thinks of a slot does not meet a
    /// new device there.
    last_slot: u8,
    changes: VecDeque<Change>,
    /// The network is closed until the guest has taken up its new generation id.
    closed: bool,
}

/// A disk's size in bytes, as its guest reads it (VIRTIO 1.3 §5.2.4, `capacity`).
fn bytes_of(disk: &Device) -> u64 {
    let mut sectors = [0; 8];
    lock(&disk.shared).read_config(0, &mut sectors);
    u64::from_le_bytes(sectors) * SECTOR_BYTES
}

impl Devices {
    /// The devices of the start, each with its name, whether it is driven, and its slot.
    pub(crate) fn new(wires: Wires, devices: Vec<Made>, seats: Vec<Seat>) -> Self {
        let (list, changes) = (Vec::new(), VecDeque::new());
        let mut all = Self { list, wires, next_key: 0, last_slot: 0, changes, closed: false };
        for (made, seat) in devices.into_iter().zip(seats) {
            all.last_slot = seat.slot.unwrap_or(all.last_slot);
            all.push(made, seat);
        }
        all
    }

    /// The VM that they are devices of.
    pub(crate) fn vm(&self) -> &Vm {
        &self.wires.vm
    }

    fn push(&mut self, Made { name, shared, kept }: Made, seat: Seat) {
        let key = DeviceKey(self.next_key);
        self.next_key += 1;
        self.changes.push_back(Change::Added(key, shared.clone()));
        self.list.push(Device { key, name, seat, shared, kept });
    }

    /// What the event loop has to do, in order; each is given out once.
    pub fn take_changes(&mut self) -> VecDeque<Change> {
        std::mem::take(&mut self.changes)
    }

    /// Becomes readable when the guest has let a device go: [`Self::settle`] is due.
    pub fn let_go(&self) -> RawFd {
        self.wires.let_go.as_raw_fd()
    }

    /// Gives the guest a disk. `held` says that the guest stands still.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn add_disk(&mut self, spec: DiskSpec, held: bool) -> Result<(), Error> {
        if spec.config.serial.is_empty() {
            return Err(Error::NoSerial);
        }
        let name = DeviceName::Disk(spec.config.serial.clone());
        self.check_free(&name)?;
        let parts = (self.wires.disk_queues, &mut self.wires.rings);
        let shared = virtio::build_block(&spec.config, Box::new(spec.disk), parts)?;
        self.add(Made { name: Some(name), shared, kept: spec.kept }, held)
    }

    /// Gives the guest a network device.
    ///
    /// # Errors
    /// Nothing has changed.
    pub fn add_nic(&mut self, spec: NicSpec, held: bool) -> Result<(), Error> {
        let name = DeviceName::Nic(spec.config.mac);
        self.check_free(&name)?;
        let shared = virtio::build_net(&spec.config, spec.taps, None, &self.wires.questions)?;
        self.add(Made { name: Some(name), shared, kept: spec.kept }, held)
    }

    fn check_free(&self, name: &DeviceName) -> Result<(), Error> {
        if self.find(name).is_some() { Err(Error::Taken) } else { Ok(()) }
    }

    fn find(&self, name: &DeviceName) -> Option<&Device> {
        self.list.iter().find(|device| device.name.as_ref() == Some(name))
    }

    fn add(&mut self, made: Made, held: bool) -> Result<(), Error> {
        let mut slots = (1..SLOTS).map(|step| (self.last_slot + step - 1) % (SLOTS - 1) + 1);
        let slot = slots.find(|slot| self.wires.host.is_driven(*slot).is_none()).ok_or(Error::NoSlot)?;
        let (function, seat) = function(&self.wires.vm, &self.wires.guest, slot, &made.shared)?;
        lock(&made.shared).close(self.closed);
        lock(&made.shared).hold(held);
        lock(&self.wires.controller).fill(slot, function)?;
        self.last_slot = slot;
        self.push(made, seat);
        Ok(())
    }

    /// Has a disk's files show all that the guest has written.
    ///
    /// # Errors
    /// There is none with that serial number, or it fails.
    pub fn write_out_disk(&self, serial: &str) -> Result<(), Error> {
        let device = self.disk(serial)?;
        lock(&device.shared).write_out().map_err(Error::WriteOut)
    }

    /// Serves a disk that has become larger from what it is now, right after [`Self::write_out_disk`], and tells the guest. The file of
    /// before, if it has another one now.
    ///
    /// # Errors
    /// There is none with that serial number, it is smaller, or one of them is encrypted and the other not; nothing has changed.
    pub fn replace_disk(&mut self, serial: &str, spec: DiskSpec) -> Result<Option<OwnedFd>, Error> {
        let name = DeviceName::Disk(serial.to_owned());
        let device = self.list.iter_mut().find(|device| device.name.as_ref() == Some(&name));
        let device = device.ok_or(Error::Missing)?;
        match (lock(&device.shared).is_encrypted(), spec.disk.stored().is_some()) {
            (true, false) => return Err(Error::KeyMissing),
            (false, true) => return Err(Error::KeyGiven),
            _ => {}
        }
        let (now, before) = (spec.disk.size_bytes() / SECTOR_BYTES * SECTOR_BYTES, bytes_of(device));
        match now.cmp(&before) {
            Ordering::Less => Err(Error::Smaller { now, before }),
            Ordering::Equal => Ok(None),
            Ordering::Greater => {
                let before = lock(&device.shared).replace_disk(Box::new(spec.disk));
                if let (Some(Kept::Disk(config, files)), Some(Kept::Disk(now, now_files))) =
                    (&mut device.kept, spec.kept)
                {
                    // It has the files of now, and all else of its start.
                    (config.format, *files) = (now.format, now_files);
                }
                Ok(before)
            }
        }
    }

    /// Holds a disk's guest to something else.
    ///
    /// # Errors
    /// There is none with that serial number, or a limit is out of range; nothing has changed.
    pub fn limit_disk(&mut self, serial: &str, limits: &DiskLimits) -> Result<(), Error> {
        let name = DeviceName::Disk(serial.to_owned());
        let device = self.list.iter_mut().find(|device| device.name.as_ref() == Some(&name));
        let device = device.ok_or(Error::Missing)?;
        lock(&device.shared).limit(limits)?;
        if let Some(Kept::Disk(config, _)) = &mut device.kept {
            config.limits = *limits;
        }
        Ok(())
    }

    fn disk(&self, serial: &str) -> Result<&Device, Error> {
        self.find(&DeviceName::Disk(serial.to_owned())).ok_or(Error::Missing)
    }

    /// Takes a device from the guest; how far that is. What is not there is gone.
    ///
    /// # Errors
    /// It cannot be taken while the guest runs.
    pub fn remove(&mut self, name: &DeviceName) -> Result<DeviceState, Error> {
        self.settle();
        let Some(device) = self.find(name) else { return Ok(DeviceState::Gone) };
        let slot = device.seat.slot.ok_or(Error::Fixed)?;
        if !lock(&self.wires.controller).take_away(slot) {
            return Ok(DeviceState::Leaving);
        }
        self.settle();
        Ok(DeviceState::Gone)
    }

    /// Lets all devices go on, or holds them.
    pub(crate) fn hold(&self, held: bool) {
        self.iter().for_each(|mut device| device.hold(held));
    }

    fn close(&mut self, closed: bool) {
        self.closed = closed;
        self.iter().for_each(|mut device| device.close(closed));
    }

    /// Tells the guest that it has another generation id, and keeps the network closed until it has taken that up, if it
    /// listens.
    pub(crate) fn announce_generation(&mut self) {
        let awaited = {
            let mut controller = lock(&self.wires.controller);
            controller.announce_generation();
            controller.awaits_generation()
        };
        self.close(awaited);
    }

    /// What the disks and the network devices are made of, in the order of [`Self::save`].
    pub(crate) fn kept(&self) -> impl Iterator<Item = &Kept> {
        self.list.iter().filter_map(|device| device.kept.as_ref())
    }

    /// The network device with that MAC address answers so from now on.
    pub(crate) fn note_addressing(&mut self, mac: [u8; 6], addressing: &Addressing) {
        if let Some(endpoint) = self.kept_nic(mac).and_then(|config| config.endpoint.as_mut()) {
            endpoint.addressing = addressing.clone();
        }
    }

    /// Its traffic is held so.
    pub(crate) fn note_traffic(&mut self, mac: [u8; 6], traffic: &Traffic) {
        if let Some(config) = self.kept_nic(mac) {
            config.traffic = *traffic;
        }
    }

    fn kept_nic(&mut self, mac: [u8; 6]) -> Option<&mut NicConfig> {
        self.list.iter_mut().find_map(|device| match &mut device.kept {
            Some(Kept::Nic(config, _)) if config.mac == mac => Some(&mut **config),
            _ => None,
        })
    }

    /// The guest is the one that was saved: its devices need not tell it anything.
    pub(crate) fn continue_as_before(&self) {
        self.iter().for_each(|mut device| device.continue_as_before());
    }

    /// The machine's wires.
    pub(crate) fn wires(&self) -> &Wires {
        &self.wires
    }

    /// Where each device is and what it is doing, for a snapshot.
    pub(crate) fn save(&self) -> Vec<SavedDevice> {
        let transport = |seat: &Seat| match &seat.window {
            Some(window) => Some(lock(window).save()),
            None => self.wires.host.save_slot(seat.slot?),
        };
        let saved = |device: &Device| {
            let transport = transport(&device.seat)?;
            Some(SavedDevice { name: device.name.clone(), slot: device.seat.slot, transport })
        };
        self.list.iter().filter_map(saved).collect()
    }

    /// The bridge and the controller, likewise.
    pub(crate) fn save_bus(&self) -> (HostState, PlugState) {
        (self.wires.host.save(), lock(&self.wires.controller).save())
    }

    /// Ends what the guest has let go, and opens the network to one that knows that it is another.
    pub fn settle(&mut self) {
        // Not readable means that nothing new has happened.
        let _ = self.wires.let_go.read();
        if self.closed && !lock(&self.wires.controller).awaits_generation() {
            self.close(false);
        }
        let host = &self.wires.host;
        let is_there = |device: &Device| device.seat.slot.is_none_or(|slot| host.is_driven(slot).is_some());
        let (there, gone): (_, Vec<Device>) = std::mem::take(&mut self.list).into_iter().partition(is_there);
        self.list = there;
        for device in gone {
            if let Err(error) = lock(&device.shared).write_out() {
                tracing::error!(%error, "what the guest wrote to a disk that it let go may be lost");
            }
            if let Some(ring) = lock(&device.shared).take_ring() {
                self.wires.rings.give_back(ring);
            }
            self.changes.push_back(Change::Removed(device.key));
        }
    }

    /// The disks and network devices, each with how far it is.
    #[must_use]
    pub fn status(&self) -> Vec<DeviceStatus> {
        let controller = lock(&self.wires.controller);
        let state = |slot: Option<u8>| match slot {
            None => DeviceState::Fixed,
            Some(slot) if controller.is_leaving(slot) => DeviceState::Leaving,
            Some(_) => DeviceState::Present,
        };
        let status = |device: &Device| {
            let name = device.name.clone()?;
            let bytes = matches!(name, DeviceName::Disk(_)).then(|| bytes_of(device));
            let state = state(device.seat.slot);
            let device = lock(&device.shared);
            let (engine, requests, limits) = (device.engine(), device.requests(), device.limits());
            Some(DeviceStatus { device: name, state, bytes, engine, requests, limits, nic: device.pairs() })
        };
        self.list.iter().filter_map(status).collect()
    }

    /// All of them, with what went through their queues.
    #[must_use]
    pub fn traffic(&self) -> Vec<VirtioStatus> {
        let status = |device: &Device| VirtioStatus {
            kind: device_type::name(lock(&device.shared).device_type()).to_owned(),
            device: device.name.clone(),
            driven: device.seat.driven.load(std::sync::atomic::Ordering::Acquire),
            queues: device.seat.passed.iter().map(|passed| passed.traffic()).collect(),
        };
        self.list.iter().map(status).collect()
    }

    /// Where the guest's questions about names wait.
    pub(crate) fn questions(&self) -> &Questions {
        &self.wires.questions
    }

    /// Each device, locked while it is held.
    pub(crate) fn iter(&self) -> impl Iterator<Item = MutexGuard<'_, dyn VirtioDevice + 'static>> {
        self.list.iter().map(|device| lock(&*device.shared))
    }

    /// Has the disks' files show all that the guest has written, durably.
    ///
    /// # Errors
    /// The disks'; all of them are tried.
    pub(crate) fn write_out(&self) -> io::Result<()> {
        self.iter().map(|mut device| device.write_out()).fold(Ok(()), Result::and)
    }

    /// Whether drivers have started the devices that a guest would miss.
    pub(crate) fn driven(&self) -> Vec<Driven> {
        let named = self.list.iter().filter(|device| device.name.is_some());
        named.map(|device| device.seat.driven.clone()).collect()
    }
}
