//! Devices driven by the mock guest.

mod balloon;
mod block;
mod console;
mod exhausted;
mod limits;
mod mem;
mod net;
mod pairs;
mod pci;
mod pmem;
mod random;
mod ring;
mod rng;
mod state;
mod traffic;
mod transport;
mod vsock;

use std::collections::BTreeMap;
use std::io;
use std::net::Ipv4Addr;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use storage::format::Disk;

use super::limiter::Clock;
use super::mock::MockGuest;
use super::spec::{block as block_spec, net as net_spec, status};
use super::{Shared, block::Block};
use crate::config::{Addressing, EndpointConfig, Ipv4Config};

/// What a driver of a block device takes, if it does not say otherwise.
const BLOCK_FEATURES: u64 = block_spec::F_FLUSH | block_spec::F_DISCARD | block_spec::F_WRITE_ZEROES;
/// The status of a device whose driver has negotiated and not started it.
const READY: u32 = status::ACKNOWLEDGE | status::DRIVER | status::FEATURES_OK;
/// Far longer than anything that a test waits for.
const PATIENCE_MS: i32 = 60_000;

/// A clock that stands still unless it is moved.
struct MovedClock {
    start: Instant,
    moved_ns: Arc<AtomicU64>,
}

impl MovedClock {
    fn new() -> Self {
        Self { start: Instant::now(), moved_ns: Arc::new(AtomicU64::new(0)) }
    }

    /// The same clock, for a device.
    fn of_device(&self) -> Clock {
        let (start, moved_ns) = (self.start, self.moved_ns.clone());
        Box::new(move || start + Duration::from_nanos(moved_ns.load(Ordering::Relaxed)))
    }

    fn advance(&self, by: Duration) {
        self.moved_ns.fetch_add(u64::try_from(by.as_nanos()).unwrap(), Ordering::Relaxed);
    }
}

/// A packet of so many bytes behind its header, which count up.
fn counting_packet(length: usize) -> Vec<u8> {
    let mut packet = vec![0; net_spec::HEADER_BYTES];
    packet.extend((0..length).map(|index| (index % 253) as u8));
    packet
}

/// What a network device answers for: 10.0.0.5, and whoever asks 10.0.0.2 for it.
fn endpoint() -> EndpointConfig {
    let ipv4 = Ipv4Config {
        address: Ipv4Addr::new(10, 0, 0, 5),
        prefix_len: 24,
        gateway: None,
        dhcp_server: Ipv4Addr::new(10, 0, 0, 2),
        dns: Vec::new(),
        routes: Vec::new(),
        options: Vec::new(),
    };
    let addressing = Addressing { ipv4: Some(ipv4), ..Addressing::default() };
    EndpointConfig { addressing, metadata: BTreeMap::new() }
}

/// A disk in memory that remembers what was asked of it.
#[derive(Clone, Default)]
struct MemoryDisk(Arc<Mutex<MemoryDiskState>>);

#[derive(Default)]
struct MemoryDiskState {
    bytes: Vec<u8>,
    flushes: u32,
    discards: Vec<(u64, u64)>,
    fail: bool,
}

impl MemoryDisk {
    fn new(bytes: usize) -> Self {
        let disk = Self::default();
        disk.state(|state| state.bytes = (0..bytes).map(|index| (index / 512) as u8).collect());
        disk
    }

    fn state<R>(&self, use_state: impl FnOnce(&mut MemoryDiskState) -> R) -> R {
        use_state(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Disk for MemoryDisk {
    fn size_bytes(&self) -> u64 {
        self.state(|state| state.bytes.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.state(|state| {
            if state.fail {
                return Err(io::Error::other("broken medium"));
            }
            let start = offset as usize;
            buffer.copy_from_slice(&state.bytes[start..start + buffer.len()]);
            Ok(())
        })
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        self.state(|state| {
            let start = offset as usize;
            state.bytes[start..start + buffer.len()].copy_from_slice(buffer);
            Ok(())
        })
    }

    fn flush(&self) -> io::Result<()> {
        self.state(|state| state.flushes += 1);
        Ok(())
    }

    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        self.state(|state| state.discards.push((offset, length)));
        Ok(())
    }
}

fn block_device(disk: &MemoryDisk, read_only: bool) -> Shared {
    Arc::new(Mutex::new(Block::new(Box::new(disk.clone()), read_only, "disk-1").unwrap()))
}

fn block_guest(disk: &MemoryDisk) -> MockGuest {
    MockGuest::new(block_device(disk, false)).unwrap()
}
