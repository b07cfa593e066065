//! Devices that are saved, and go on in another guest with the memory of the first.

use super::super::balloon::build_balloon;
use super::super::console::{Output, build_console};
use super::super::limiter::Clock;
use super::super::mem::{Region, build_mem};
use super::super::mock::{BUFFERS_START, MockDescriptor, packet_pair};
use super::super::net::Net;
use super::super::pmem::build_pmem;
use super::super::spec::{block, device_type, net};
use super::super::vsock::build_vsock;
use super::super::{StateError, VirtioDevice as _, build_rng};
use super::*;
use crate::config::{DiskLimits, InheritedFd, NicConfig, RateLimit, Traffic, TransferLimits};
use crate::memory::GuestMemory;
use crate::memory::discard::Emptied;
use crate::memory::mapping::Mapping;
use crate::serial::Console;

const FEATURES: u64 = block::F_FLUSH | block::F_DISCARD;
const HEADER: u64 = BUFFERS_START;
const DATA: u64 = BUFFERS_START + 0x1000;
const STATUS: u64 = BUFFERS_START + 0x800;

/// A network device with one pair of queues.
fn nic(mac: [u8; 6]) -> NicConfig {
    let (tap, traffic) = (InheritedFd(-1), Traffic::default());
    NicConfig { tap, more_queues: Vec::new(), mac, mtu: 1500, endpoint: None, traffic }
}

fn put_write(guest: &MockGuest, byte: u8) -> [MockDescriptor; 3] {
    guest.put(HEADER, &[block::T_OUT as u8, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    guest.put(DATA, &[byte; 512]);
    [
        MockDescriptor::readable(HEADER, 16),
        MockDescriptor::readable(DATA, 512),
        MockDescriptor::writable(STATUS, 1),
    ]
}

#[test]
fn request_that_waited_while_the_guest_was_saved_is_answered_where_it_goes_on() {
    for build in [MockGuest::new, MockGuest::over_pci] {
        let disk = MemoryDisk::new(1 << 16);
        let device = block_device(&disk, false);
        let mut guest = build(device.clone()).unwrap();
        let mut queue = guest.bring_up(FEATURES, &[16])[0];
        let request = put_write(&guest, 0xaa);
        queue.submit(&guest.memory, &request);
        guest.kick(0);
        assert!(queue.take_used(&guest.memory).is_some());
        device.lock().unwrap().hold(true);
        let request = put_write(&guest, 0xbb);
        queue.submit(&guest.memory, &request);
        guest.kick(0);
        let state = guest.save();

        let copy = MemoryDisk::new(1 << 16);
        let mut other = guest.go_on(block_device(&copy, false), &state).unwrap();
        assert!(other.run());
        assert!(queue.take_used(&other.memory).is_some());
        copy.state(|state| assert_eq!(state.bytes[0], 0xbb));
        disk.state(|state| assert_eq!(state.bytes[0], 0xaa, "the first one's stays as it was"));
        assert_ne!(other.take_interrupts(), 0);
        let request = put_write(&other, 0xcc);
        queue.submit(&other.memory, &request);
        other.kick(0);
        assert!(queue.take_used(&other.memory).is_some(), "and so on");
    }
}

#[test]
fn device_that_no_driver_has_started_goes_on_as_one() {
    for build in [MockGuest::new, MockGuest::over_pci] {
        let mut guest = build(build_rng().unwrap()).unwrap();
        let state = guest.save();
        let mut other = guest.go_on(build_rng().unwrap(), &state).unwrap();
        assert_eq!(other.status(), 0);
        other.bring_up(0, &[16]);
        assert!(!other.needs_reset());
    }
}

#[test]
fn broken_device_stays_broken_until_its_driver_resets_it() {
    for build in [MockGuest::new, MockGuest::over_pci] {
        let disk = MemoryDisk::new(1 << 16);
        let mut guest = build(block_device(&disk, false)).unwrap();
        let queue = guest.bring_up(FEATURES, &[16])[0];
        queue.set_available_index(&guest.memory, 99);
        guest.kick(0);
        assert!(guest.needs_reset());
        let state = guest.save();
        let mut other = guest.go_on(block_device(&disk, false), &state).unwrap();
        assert!(other.run() && other.needs_reset());
        other.set_status(0);
        other.bring_up(FEATURES, &[16]);
        assert!(!other.needs_reset());
    }
}

#[test]
fn what_does_not_fit_is_refused_with_what_is_wrong() {
    let disk = MemoryDisk::new(1 << 16);
    let mut guest = block_guest(&disk);
    guest.bring_up(FEATURES, &[16]);
    let state = guest.save();
    let refused = |device: Shared| guest.go_on(device, &state).err().unwrap();
    let error = refused(block_device(&disk, true));
    assert!(matches!(error, StateError::Features { lacking: block::F_DISCARD, .. }), "{error}");
    let error = refused(block_device(&MemoryDisk::new(1 << 15), false));
    assert_eq!(error.to_string(), "the disk has 32768 bytes, and its guest knows of 65536");
    let error = refused(build_rng().unwrap());
    assert!(matches!(error, StateError::Type { saved: 2, given: 4 }), "{error}");
    let elsewhere = MockGuest::over_pci(block_device(&disk, false)).unwrap();
    assert!(matches!(elsewhere.go_on(block_device(&disk, false), &state), Err(StateError::Transport)));
}

#[test]
fn disk_that_grew_meanwhile_is_told_of() {
    let disk = MemoryDisk::new(1 << 16);
    let mut guest = block_guest(&disk);
    guest.bring_up(FEATURES, &[16]);
    let state = guest.save();
    let mut other = guest.go_on(block_device(&MemoryDisk::new(1 << 17), false), &state).unwrap();
    assert_ne!(other.take_interrupts(), 0);
    assert_eq!(u64::from_le_bytes(other.read_config(0)), 256);
}

#[test]
fn limit_that_was_used_up_is_used_up_where_the_guest_goes_on() {
    let limit = Some(RateLimit { per_second: 1, burst: Some(1) });
    let limits =
        DiskLimits { total: TransferLimits { bytes: None, operations: limit }, ..DiskLimits::default() };
    let now = std::time::Instant::now();
    let clock = || -> Clock { Box::new(move || now) };
    let limited = |disk: &MemoryDisk| -> Shared {
        let block = Block::new(Box::new(disk.clone()), false, "disk-1").unwrap();
        Arc::new(Mutex::new(block.limited(&limits, clock()).unwrap()))
    };
    let disk = MemoryDisk::new(1 << 16);
    let mut guest = MockGuest::new(limited(&disk)).unwrap();
    let mut queue = guest.bring_up(FEATURES, &[16])[0];
    let request = put_write(&guest, 1);
    queue.submit(&guest.memory, &request);
    guest.kick(0);
    assert!(queue.take_used(&guest.memory).is_some());
    let state = guest.save();
    let mut other = guest.go_on(limited(&disk), &state).unwrap();
    let request = put_write(&other, 2);
    queue.submit(&other.memory, &request);
    other.kick(0);
    assert!(queue.take_used(&other.memory).is_none());
}

#[test]
fn guest_keeps_its_mac_address_and_its_network_sees_the_new_one() {
    const OLD: [u8; 6] = [2, 0, 0, 0, 0, 1];
    const NEW: [u8; 6] = [2, 0, 0, 0, 0, 2];
    const PEER: [u8; 6] = [2, 0, 0, 0, 0, 9];
    let device = |mac: [u8; 6]| {
        let (link, far) = packet_pair().unwrap();
        (Arc::new(Mutex::new(Net::new(&nic(mac), link).unwrap())), far)
    };
    let packet =
        |to: [u8; 6], from: [u8; 6]| [&[0; net::HEADER_BYTES][..], &to, &from, &[8, 0], &[7; 50]].concat();
    let (first, _far) = device(OLD);
    let mut guest = MockGuest::new(first).unwrap();
    let [mut receive, mut transmit] = guest.bring_up(net::F_STATUS, &[16, 16])[..] else { panic!() };
    let state = guest.save();
    let (second, far) = device(NEW);
    let mut other = guest.go_on(second.clone(), &state).unwrap();
    second.lock().unwrap().hold(true);
    let sent = packet(PEER, OLD);
    other.put(BUFFERS_START, &sent);
    transmit.submit(&other.memory, &[MockDescriptor::readable(BUFFERS_START, sent.len() as u32)]);
    other.kick(1);
    assert!(transmit.take_used(&other.memory).is_none(), "nothing goes before the guest does");
    second.lock().unwrap().hold(false);
    assert_eq!(other.read_config::<2>(6), [0, 0], "the link is down");
    assert_eq!(other.read_config::<6>(0), OLD);
    other.run();
    assert!(transmit.take_used(&other.memory).is_some());
    let mut frame = vec![0; 2000];
    let (length, _) = rustix::net::recv(&far, &mut frame, rustix::net::RecvFlags::DONTWAIT).unwrap();
    assert_eq!(frame[..length], packet(PEER, NEW));
    receive.submit(&other.memory, &[MockDescriptor::writable(BUFFERS_START, 2000)]);
    other.kick(0);
    rustix::net::send(&far, &packet(NEW, PEER), rustix::net::SendFlags::empty()).unwrap();
    other.run();
    assert!(receive.take_used(&other.memory).is_some());
    assert_eq!(other.get(BUFFERS_START + net::HEADER_BYTES as u64, 12), packet(OLD, PEER)[12..24]);
    for _ in 0..50 {
        other.wait(20);
        if other.read_config::<2>(6) == [1, 0] {
            return;
        }
    }
    panic!("the link stays down");
}

/// What only a device understands of its state has no version of its own: see `crate::handover::tests` and
/// `crate::snapshot::tests`, whose samples these are.
#[test]
fn what_devices_of_another_program_saved_is_read_and_would_be_saved_again() {
    let [(config, first), (network_config, network)] = crate::handover::tests::samples();
    let with_memory = crate::snapshot::tests::sample_with_memory();
    assert_eq!([&first, &network, &with_memory].map(|state| state.devices.len()), [8, 3, 3]);
    are_read_and_saved_again(&first, &[8, 1], &config.nics);
    are_read_and_saved_again(&network, &[1], &network_config.nics);
    are_read_and_saved_again(&with_memory, &[1], &[]);
}

/// `disks` are the sizes in MiB of those that there were.
fn are_read_and_saved_again(state: &crate::snapshot::MachineState, disks: &[usize], nics: &[NicConfig]) {
    assert!(state.devices.iter().all(|saved| saved.slot.is_some()), "it was on PCI");
    let (mut disks, mut nics) = (disks.iter().map(|mib| MemoryDisk::new(mib << 20)), nics.iter());
    let now = std::time::Instant::now();
    for saved in &state.devices {
        let negotiation = saved.transport.negotiation();
        let device: Shared = match negotiation.device_type {
            device_type::BLOCK => block_device(&disks.next().unwrap(), false),
            device_type::NET => {
                // The queues of each pair, and the one that says how many of several are used.
                let pairs = u16::try_from(negotiation.queues.len() / net::QUEUES_OF_PAIR).unwrap();
                let links = vec![packet_pair().unwrap().0];
                let built = Net::with(nics.next().unwrap(), (links, pairs), Box::new(move || now));
                Arc::new(Mutex::new(built.unwrap()))
            }
            device_type::CONSOLE => build_console(Output::Stream(Console::None)).unwrap(),
            device_type::PMEM => {
                let file = tempfile::tempfile().unwrap();
                file.set_len(4096).unwrap();
                let mapping = Mapping::new(file, true).unwrap();
                build_pmem(Arc::new(mapping), vm_memory::GuestAddress(1 << 32)).unwrap()
            }
            device_type::BALLOON => build_balloon(0, false).unwrap(),
            device_type::VSOCK => build_vsock(3, None, None).unwrap(),
            device_type::RNG => build_rng().unwrap(),
            device_type::MEM => {
                let region = Region { start: vm_memory::GuestAddress(1 << 32), mib: 128 };
                let memory = GuestMemory::from_ranges(&[(region.start, 128 << 20)]).unwrap();
                build_mem(region, &memory, Emptied::Discarded, 0).unwrap()
            }
            other => panic!("no device of type {other} is in the samples"),
        };
        let mut device = device.lock().unwrap();
        let own = &negotiation.device.own;
        device.restore(own).unwrap();
        assert_eq!(&device.save().own, own, "{}", device_type::name(negotiation.device_type));
    }
}
