//! A hostile driver: an input is a program of register accesses, descriptors, ring entries and notifications.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use storage::format::{Disk, DiskKey, EncryptedDisk, RawFile};
use vm_memory::{GuestAddress, GuestMemoryBackend as _};
use vmm::config::{DiskLimits, InheritedFd, NicConfig, RateLimit, Traffic, TransferLimits};
use vmm::connector;
use vmm::memory::GuestMemory;
use vmm::memory::discard::Emptied;
use vmm::memory::mapping::Mapping;
use vmm::serial::Console;
use vmm::virtio::balloon::{Balloon, build_balloon};
use vmm::virtio::block::ring::Rings;
use vmm::virtio::block::{Block, Clock};
use vmm::virtio::console::{self, build_console};
use vmm::virtio::mem::{Region, build_mem};
use vmm::virtio::mock::{BUFFERS_START, MockDescriptor, MockGuest, MockQueue, packet_pair, write_descriptor};
use vmm::virtio::net::Net;
use vmm::virtio::pmem::build_pmem;
use vmm::virtio::vsock::build_vsock;
use vmm::virtio::{Shared, build_rng};

use crate::endpoint;
use crate::input::Reader;

/// Operations per input; more teach nothing new.
const OPERATIONS_MAX: usize = 256;
/// The size of the queues that are set up properly.
const QUEUE_SIZE: u16 = 16;

/// Reads as zeros and forgets what is written; checks that nothing leaves its bounds.
pub(crate) struct NullDisk;

const DISK_BYTES: u64 = 1 << 20;

fn inside(offset: u64, length: u64) -> io::Result<()> {
    assert!(offset.checked_add(length).is_some_and(|end| end <= DISK_BYTES), "access beyond the disk");
    Ok(())
}

impl Disk for NullDisk {
    fn size_bytes(&self) -> u64 {
        DISK_BYTES
    }
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        buffer.fill(0);
        inside(offset, buffer.len() as u64)
    }
    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        inside(offset, buffer.len() as u64)
    }
    fn flush(&self) -> io::Result<()> {
        Ok(())
    }
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        inside(offset, length)
    }
}

/// Limits that a few requests exceed.
const LIMITS: DiskLimits = {
    const RATE: Option<RateLimit> = Some(RateLimit { per_second: 2000, burst: Some(2) });
    const OPERATIONS: TransferLimits = TransferLimits { bytes: None, operations: RATE };
    DiskLimits {
        read: OPERATIONS,
        write: OPERATIONS,
        total: TransferLimits { bytes: RATE, operations: RATE },
    }
};

/// The same of a network device, whose guest's packets are marked as well.
const TRAFFIC: Traffic = Traffic { ingress: LIMITS.total, egress: LIMITS.total, dscp: Some(46) };

/// A clock that goes on by as much whenever it is looked at, so that an input's run is the same each time.
fn clock() -> Clock {
    let now = Cell::new(Instant::now());
    Box::new(move || now.replace(now.get() + Duration::from_micros(100)))
}

/// The guest's address as a socket device has it.
const VSOCK_CID: u8 = 3;

/// What is behind a device.
pub(crate) enum Far {
    Nothing,
    /// The other end of its connector.
    Socket(OwnedFd),
    /// The other ends of its link.
    Link(Vec<OwnedFd>),
    /// Itself, as its VMM sees it.
    Balloon(Arc<Mutex<Balloon>>),
    /// A file of [`DISK_BYTES`], and nothing may become of it.
    File(File),
}

/// The device, and what is behind it.
pub(crate) fn device(kind: u8) -> (Shared, Far) {
    match kind % 8 {
        0 if kind & 0x20 != 0 => on_ring(kind),
        0 => {
            let block =
                Block::new(Box::new(NullDisk), kind & 0x80 != 0, "fuzz").expect("invariant: a short serial");
            let limits = if kind & 0x40 != 0 { LIMITS } else { DiskLimits::default() };
            let block = block.limited(&limits, clock()).expect("the fuzzer needs timers");
            (Arc::new(Mutex::new(block)), Far::Nothing)
        }
        1 => {
            let pairs = if kind & 0x80 != 0 { 3 } else { 1 };
            let links = (0..1 + usize::from(kind >> 3 & 1)).map(|_| packet_pair());
            let links: Result<Vec<_>, _> = links.collect();
            let (links, far) = links.expect("the fuzzer needs sockets").into_iter().unzip();
            let config = NicConfig {
                tap: InheritedFd(-1),
                more_queues: Vec::new(),
                mac: endpoint::GUEST_MAC,
                mtu: 1500,
                endpoint: Some(endpoint::config()),
                traffic: if kind & 0x40 != 0 { TRAFFIC } else { Traffic::default() },
            };
            let net = Net::with(&config, (links, pairs), clock()).expect("invariant: a usual MTU");
            (Arc::new(Mutex::new(net)), Far::Link(far))
        }
        2 => {
            let output = console::Output::Stream(Console::None);
            (build_console(output).expect("the fuzzer needs eventfds"), Far::Nothing)
        }
        3 => {
            let (near, far) = connector::pair().expect("the fuzzer needs sockets");
            let near = UnixStream::from(near);
            near.set_nonblocking(true).expect("invariant: an open socket");
            let vsock = build_vsock(VSOCK_CID.into(), None, Some(near)).expect("the fuzzer needs eventfds");
            (vsock, Far::Socket(far))
        }
        4 => {
            let balloon = build_balloon(kind.into(), kind & 0x40 != 0).expect("the fuzzer needs eventfds");
            (balloon.clone(), Far::Balloon(balloon))
        }
        5 => {
            let file = tempfile::tempfile().expect("the fuzzer needs files");
            file.set_len(4096).expect("the fuzzer needs files");
            let mapping = Arc::new(Mapping::new(file, kind & 0x40 != 0).expect("the fuzzer needs memory"));
            (build_pmem(mapping, GuestAddress(1 << 32)).expect("the fuzzer needs eventfds"), Far::Nothing)
        }
        6 => {
            let (start, mib) = (GuestAddress(1 << 32), 128);
            let memory = GuestMemory::from_ranges(&[(start, 128 << 20)]).expect("the fuzzer needs memory");
            let emptied = if kind & 0x80 != 0 { Emptied::Replaced } else { Emptied::Discarded };
            let requested_mib = u32::from(kind & 0x7e);
            let mem = build_mem(Region { start, mib }, &memory, emptied, requested_mib);
            (mem.expect("the fuzzer needs eventfds"), Far::Nothing)
        }
        _ => (build_rng().expect("the fuzzer needs eventfds"), Far::Nothing),
    }
}

/// A disk with two queues whose file a ring reads and writes, where the kernel has one; some are encrypted.
fn on_ring(kind: u8) -> (Shared, Far) {
    let file = tempfile::tempfile().expect("the fuzzer needs files");
    file.set_len(DISK_BYTES).expect("the fuzzer needs files");
    let raw = RawFile::new(file.try_clone().expect("the fuzzer needs files"), DISK_BYTES);
    let disk: Box<dyn Disk> = match kind & 0x10 {
        0 => Box::new(raw),
        _ => Box::new(EncryptedDisk::new(raw, &DiskKey::random(256).expect("invariant: a size of keys"))),
    };
    let ring = Rings::for_disks(1, false).take();
    let block = Block::with(disk, kind & 0x80 != 0, "fuzz", (2, ring)).expect("invariant: a short serial");
    let limits = if kind & 0x40 != 0 { LIMITS } else { DiskLimits::default() };
    let block = block.limited(&limits, clock()).expect("the fuzzer needs timers");
    (Arc::new(Mutex::new(block)), Far::File(file))
}

/// An address: mostly of a buffer, sometimes near an end of memory, sometimes anything.
fn address(reader: &mut Reader<'_>) -> u64 {
    match reader.u8() % 8 {
        0 => reader.u64(),
        1 => 0x20_0000_u64.wrapping_sub(u64::from(reader.u8())),
        2 => u64::from(reader.u32()),
        _ => BUFFERS_START + u64::from(reader.u16()),
    }
}

fn descriptor(reader: &mut Reader<'_>) -> MockDescriptor {
    let address = address(reader);
    let length = match reader.u8() % 8 {
        0 => reader.u32(),
        1 => 1,
        2 => 16 * u32::from(reader.u8()),
        _ => u32::from(reader.u16()),
    };
    MockDescriptor { address, length, flags: u16::from(reader.u8() & 7), next: u16::from(reader.u8() % 20) }
}

pub(crate) fn run(input: &[u8]) {
    let mut reader = Reader::new(input);
    let (device, far) = device(reader.u8());
    let queue_count = device.lock().expect("invariant: nobody panicked").queue_sizes().len();
    let mut guest = MockGuest::new(device.clone()).expect("the fuzzer needs eventfds");
    let sizes = vec![QUEUE_SIZE; queue_count];
    let mut queues: Vec<MockQueue> = Vec::new();
    for _ in 0..OPERATIONS_MAX {
        if reader.is_empty() {
            break;
        }
        step(&mut reader, &mut guest, &mut queues, &sizes, &far);
    }
    assert!(guest.run(), "the device does not come to rest");
    drop(guest);
    if let Some(nic) = device.lock().expect("invariant: nobody panicked").pairs() {
        assert!((1..=nic.pairs.len()).contains(&usize::from(nic.used)), "uses pairs that it has not");
    }
    if let Far::File(file) = far {
        let bytes = file.metadata().expect("the fuzzer needs files").len();
        assert_eq!(bytes, DISK_BYTES, "access beyond the disk");
    }
}

fn step(
    reader: &mut Reader<'_>,
    guest: &mut MockGuest,
    queues: &mut Vec<MockQueue>,
    sizes: &[u16],
    far: &Far,
) {
    let operation = reader.u8() % 12;
    if queues.is_empty() && operation > 3 {
        let features = guest.offered() & reader.u64();
        *queues = guest.bring_up(features, sizes);
    }
    let which = usize::from(reader.u8()) % queues.len().max(1);
    match operation {
        0 => {
            let register = u32::from(reader.u8() % 0x44) * 4;
            guest.write(register, reader.u32());
            guest.read(register);
        }
        1 => {
            let place = reader.u16() % 0x180;
            let offset = u64::from(place);
            let bytes = reader.bytes(usize::from(1 + place % 8));
            if !bytes.is_empty() {
                guest.bus().write(offset, bytes);
                guest.bus().read(offset, &mut vec![0; bytes.len()]);
            }
        }
        2 | 3 => {
            let features = guest.offered() & if operation == 2 { u64::MAX } else { reader.u64() };
            *queues = guest.bring_up(features, sizes);
        }
        4 => queues[which].write_descriptor(
            &guest.memory,
            u16::from(reader.u8()) % QUEUE_SIZE,
            descriptor(reader),
        ),
        5 => {
            let count = 1 + usize::from(reader.u8() % 5);
            let chain: Vec<MockDescriptor> = (0..count).map(|_| descriptor(reader)).collect();
            queues[which].submit(&guest.memory, &chain);
        }
        6 => match far {
            Far::Link(_) if which > 1 && which + 1 == sizes.len() => {
                command(reader, guest, &mut queues[which])
            }
            Far::Link(_) => request(reader, guest, &mut queues[which], which % 2 == 1),
            _ => request(reader, guest, &mut queues[which], which == 1),
        },
        7 => queues[which].make_available(&guest.memory, u16::from(reader.u8())),
        8 => queues[which].set_available_index(&guest.memory, reader.u16()),
        9 => {
            let table = BUFFERS_START + 16 * u64::from(reader.u8());
            write_descriptor(&guest.memory, table, descriptor(reader));
        }
        10 => {
            let start = BUFFERS_START + u64::from(reader.u16());
            let length = usize::from(reader.u8());
            guest.put(start, reader.bytes(length));
        }
        _ => match far {
            Far::Nothing | Far::File(_) => {}
            Far::Socket(far) => send_frame(reader, far),
            Far::Link(ends) => send_frame(reader, &ends[which % ends.len()]),
            Far::Balloon(balloon) => hints(reader, guest, &mut queues[which], balloon),
        },
    }
    if operation > 4 && !queues.is_empty() {
        guest.kick(which as u16);
    }
}

/// A request that is well formed at first sight: a header or a frame, data, room for a status.
fn request(reader: &mut Reader<'_>, guest: &MockGuest, queue: &mut MockQueue, is_frame: bool) {
    let head = BUFFERS_START + 0x8000;
    let mut bytes = vec![0; 16];
    bytes[0] = reader.u8() % 14;
    bytes[8] = reader.u8();
    if is_frame {
        bytes = [&[0; 12][..], &endpoint::frame(reader)].concat();
    }
    guest.put(head, &bytes);
    let mut data = descriptor(reader);
    data.flags &= 2;
    if !reader.u8().is_multiple_of(4) {
        data.address = BUFFERS_START + 0x1000;
        data.length = 512 * u32::from(reader.u8() % 16);
    }
    let chain = [
        MockDescriptor::readable(head, bytes.len() as u32),
        data,
        MockDescriptor::writable(BUFFERS_START, 1),
    ];
    queue.submit(&guest.memory, if is_frame { &chain[..1] } else { &chain });
}

/// A command of a network device's control queue: mostly how many pairs shall be used.
fn command(reader: &mut Reader<'_>, guest: &MockGuest, queue: &mut MockQueue) {
    let command = match reader.u8() {
        0..0x20 => [reader.u8() % 6, reader.u8() % 3, reader.u8(), reader.u8()],
        other => [4, 0, other % 5, 0],
    };
    guest.put(BUFFERS_START + 0x8000, &command);
    let length = u32::from(reader.u8() % 16).clamp(3, 4);
    let chain = [
        MockDescriptor::readable(BUFFERS_START + 0x8000, length),
        MockDescriptor::writable(BUFFERS_START, 1),
    ];
    queue.submit(&guest.memory, &chain);
}

/// Asks for hints, has their number said, or looks at what was hinted at: whole pages of the guest's.
fn hints(reader: &mut Reader<'_>, guest: &mut MockGuest, queue: &mut MockQueue, balloon: &Mutex<Balloon>) {
    let lock = || balloon.lock().expect("invariant: nobody panicked");
    match reader.u8() % 4 {
        0 => {
            lock().ask_for_hints();
        }
        1 => {
            let number = guest.read_config::<4>(8);
            guest.put(BUFFERS_START, &number);
            queue.submit(&guest.memory, &[MockDescriptor::readable(BUFFERS_START, 4)]);
        }
        2 => {
            lock().take_hints();
            let pages = lock().stop_hints();
            for (start, bytes) in pages.runs(&guest.memory) {
                let is_whole = start.0.is_multiple_of(4096) && bytes.is_multiple_of(4096);
                assert!(is_whole && bytes > 0, "no whole pages");
                assert!(guest.memory.check_range(start, bytes as usize), "pages outside of guest memory");
            }
        }
        _ => lock().end_hints(),
    }
}

fn send_frame(reader: &mut Reader<'_>, far: &OwnedFd) {
    let frame = endpoint::frame(reader);
    let packet = [&[0; 12][..], &frame].concat();
    // A full socket is a full link.
    let _ = send(far, &packet);
}

/// Sends one packet, if the socket takes it.
fn send(far: &OwnedFd, packet: &[u8]) -> io::Result<usize> {
    Ok(rustix::net::send(far, packet, rustix::net::SendFlags::DONTWAIT)?)
}
