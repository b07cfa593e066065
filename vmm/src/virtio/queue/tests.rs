//! Queues as hostile drivers lay them out, taken apart here and by the `virtio-queue` crate: both see the same.

use proptest::prelude::*;
use virtio_queue::{Queue, QueueOwnedT as _, QueueT as _};
use vm_memory::{Bytes as _, GuestAddress, GuestMemory as _, Permissions};

use super::super::mock::{MockDescriptor, write_descriptor};
use super::super::spec::ring;
use super::super::state::QueuePosition;
use super::*;
use crate::memory;

const SIZE: u16 = 8;
const LAYOUT: QueueLayout = QueueLayout { size: SIZE, descriptors: 0x1000, available: 0x2000, used: 0x3000 };
/// Where tables lie that descriptors point to, each a page.
const TABLES: [u64; 2] = [0x4000, 0x5000];
const MEMORY_BYTES: u64 = memory::MIB;

/// What comes of taking chains until there are none, or the queue breaks: each chain's first descriptor and buffers.
type Taken = (Vec<(u16, Vec<Segment>, Vec<Segment>)>, Option<QueueError>);

fn take_all(memory: &GuestMemory, event_idx: bool, position: QueuePosition) -> Taken {
    let mut queue = VirtQueue::new(memory.clone(), LAYOUT, SIZE, event_idx).unwrap().resumed_at(position);
    let (mut taken, mut chain) = (Vec::new(), Chain::new());
    loop {
        match queue.pop(&mut chain) {
            Ok(true) => {
                taken.push((chain.head(), chain.readable().to_vec(), chain.writable().to_vec()));
            }
            Ok(false) => return (taken, None),
            Err(error) => return (taken, Some(error)),
        }
    }
}

/// The same with the crate's queue, whose chains end silently where they cannot be followed.
fn take_all_of_crate(memory: &GuestMemory, event_idx: bool, position: QueuePosition) -> Taken {
    let mut queue = Queue::new(SIZE).unwrap();
    queue.set_size(SIZE);
    queue.set_desc_table_address(Some(LAYOUT.descriptors as u32), None);
    queue.set_avail_ring_address(Some(LAYOUT.available as u32), None);
    queue.set_used_ring_address(Some(LAYOUT.used as u32), None);
    queue.set_event_idx(event_idx);
    queue.set_ready(true);
    queue.set_next_avail(position.next_available);
    let mut taken = Vec::new();
    loop {
        let Ok(mut chains) = queue.iter(memory) else { return (taken, Some(QueueError::AvailableIndex)) };
        let Some(chain) = chains.next() else { return (taken, None) };
        let (mut readable, mut writable, mut open) = (Vec::new(), Vec::new(), true);
        for descriptor in chain.clone() {
            let access = if descriptor.is_write_only() { Permissions::Write } else { Permissions::Read };
            let segment = Segment { address: descriptor.addr(), length: descriptor.len() };
            if !memory.check_range(segment.address, segment.length as usize, access) {
                return (taken, Some(QueueError::Address));
            }
            match (descriptor.is_write_only(), writable.is_empty()) {
                (true, _) => writable.push(segment),
                (false, true) => readable.push(segment),
                (false, false) => return (taken, Some(QueueError::Direction)),
            }
            open = descriptor.has_next();
        }
        if open {
            return (taken, Some(QueueError::Chain));
        }
        taken.push((chain.head_index(), readable, writable));
    }
}

/// A descriptor of a driver that is mostly honest.
fn descriptor() -> impl Strategy<Value = MockDescriptor> {
    let address = prop_oneof![
        8 => 0x6000..MEMORY_BYTES - 0x1000,
        2 => prop::sample::select(TABLES.to_vec()),
        1 => prop::sample::select(vec![MEMORY_BYTES - 1, MEMORY_BYTES, u64::MAX - 3, 0]),
    ];
    let length =
        prop_oneof![6 => 0_u32..200, 3 => (0_u32..7).prop_map(|count| 16 * count), 1 => 0_u32..0x2000];
    let flags = prop_oneof![
        3 => Just(0),
        3 => Just(ring::DESC_F_NEXT),
        2 => Just(ring::DESC_F_WRITE),
        2 => Just(ring::DESC_F_WRITE | ring::DESC_F_NEXT),
        2 => Just(ring::DESC_F_INDIRECT),
        1 => any::<u16>(),
    ];
    (address, length, flags, 0..SIZE + 1).prop_map(|(address, length, flags, next)| MockDescriptor {
        address,
        length,
        flags,
        next,
    })
}

proptest! {
    #[test]
    fn whatever_a_driver_offers_is_what_others_see_in_it(
        table in prop::collection::vec(descriptor(), usize::from(SIZE)),
        tables in prop::collection::vec(prop::collection::vec(descriptor(), 8), TABLES.len()),
        heads in prop::collection::vec(0..SIZE + 1, usize::from(SIZE)),
        waiting in 0..SIZE + 2,
        next_available in prop_oneof![Just(0_u16), Just(u16::MAX - 3), any::<u16>()],
        event_idx in any::<bool>(),
    ) {
        let memory = memory::allocate(1).unwrap();
        for (start, table) in std::iter::once((LAYOUT.descriptors, &table)).chain(TABLES.into_iter().zip(&tables)) {
            for (index, descriptor) in (0_u64..).zip(table) {
                write_descriptor(&memory, start + index * ring::DESC_BYTES, *descriptor);
            }
        }
        for (index, head) in (0_u64..).zip(&heads) {
            let at = LAYOUT.available + ring::AVAIL_HEADER_BYTES + index * ring::AVAIL_ELEMENT_BYTES;
            memory.write_obj(head.to_le(), GuestAddress(at)).unwrap();
        }
        let available = next_available.wrapping_add(waiting);
        memory.write_obj(available.to_le(), GuestAddress(LAYOUT.available + 2)).unwrap();
        let position = QueuePosition { next_available, next_used: next_available };
        prop_assert_eq!(
            take_all(&memory, event_idx, position),
            take_all_of_crate(&memory, event_idx, position)
        );
    }
}

#[test]
fn what_is_used_and_who_is_asked_to_notify_is_written_as_others_write_it() {
    for event_idx in [false, true] {
        for start in [0, 5, u16::MAX - 1] {
            let position = QueuePosition { next_available: start, next_used: start };
            let [ours, theirs] = [(); 2].map(|()| memory::allocate(1).unwrap());
            let mut queue =
                VirtQueue::new(ours.clone(), LAYOUT, SIZE, event_idx).unwrap().resumed_at(position);
            let mut other = Queue::new(SIZE).unwrap();
            other.set_desc_table_address(Some(LAYOUT.descriptors as u32), None);
            other.set_avail_ring_address(Some(LAYOUT.available as u32), None);
            other.set_used_ring_address(Some(LAYOUT.used as u32), None);
            other.set_event_idx(event_idx);
            other.set_ready(true);
            other.set_next_avail(start);
            other.set_next_used(start);
            for memory in [&ours, &theirs] {
                // One chain of each descriptor, and all are available.
                for index in 0..SIZE {
                    let at = LAYOUT.available
                        + ring::AVAIL_HEADER_BYTES
                        + u64::from(start.wrapping_add(index) % SIZE) * ring::AVAIL_ELEMENT_BYTES;
                    memory.write_obj(index.to_le(), GuestAddress(at)).unwrap();
                }
                memory
                    .write_obj(start.wrapping_add(SIZE).to_le(), GuestAddress(LAYOUT.available + 2))
                    .unwrap();
            }
            let mut chain = Chain::new();
            let same = |step: &str| {
                let rings = [&ours, &theirs].map(|memory| {
                    let mut bytes = vec![0; 0x3000];
                    memory.read_slice(&mut bytes, GuestAddress(LAYOUT.descriptors)).unwrap();
                    bytes
                });
                assert!(rings[0] == rings[1], "{step}, event_idx {event_idx}, from {start}");
            };
            for index in 0..SIZE {
                queue.suppress_notifications();
                other.disable_notification(&theirs).unwrap();
                same("suppressed");
                assert!(queue.pop(&mut chain).unwrap());
                assert_eq!(other.iter(&theirs).unwrap().next().unwrap().head_index(), chain.head());
                queue.push_used(&chain, u32::from(index) * 1000).unwrap();
                other.add_used(&theirs, chain.head(), u32::from(index) * 1000).unwrap();
                same("used");
                assert_eq!(queue.take_signal(), other.needs_notification(&theirs).unwrap());
                let is_more = queue.allow_notifications();
                assert_eq!(is_more, other.enable_notification(&theirs).unwrap());
                assert_eq!(is_more, index + 1 < SIZE);
                assert_eq!(is_more, queue.has_available());
                same("allowed");
            }
        }
    }
}

#[test]
fn rings_that_are_misplaced_or_lie_in_two_regions_are_refused() {
    let end = 0x20_0000;
    let regions = [(GuestAddress(0), end as usize), (GuestAddress(end), end as usize)];
    let memory = GuestMemory::from_ranges(&regions).unwrap();
    let find = |layout| VirtQueue::new(memory.clone(), layout, SIZE, false).map(|_| ());
    assert_eq!(find(LAYOUT), Ok(()));
    assert_eq!(
        find(QueueLayout { descriptors: end, available: end + 0x100, used: end - 0x100, ..LAYOUT }),
        Ok(())
    );
    for wrong in [
        QueueLayout { size: 0, ..LAYOUT },
        QueueLayout { size: 3, ..LAYOUT },
        QueueLayout { size: 2 * SIZE, ..LAYOUT },
        QueueLayout { descriptors: LAYOUT.descriptors + 8, ..LAYOUT },
        QueueLayout { available: LAYOUT.available + 1, ..LAYOUT },
        QueueLayout { available: 0, ..LAYOUT },
        QueueLayout { used: LAYOUT.used + 2, ..LAYOUT },
        QueueLayout { descriptors: end - 16, ..LAYOUT },
        QueueLayout { available: end - 16, ..LAYOUT },
        QueueLayout { used: end - 16, ..LAYOUT },
        QueueLayout { used: 2 * end - 16, ..LAYOUT },
        QueueLayout { used: 2 * end, ..LAYOUT },
        QueueLayout { descriptors: 0_u64.wrapping_sub(16), ..LAYOUT },
    ] {
        assert_eq!(find(wrong), Err(QueueError::Layout), "{wrong:?}");
    }
}

#[test]
fn chains_that_were_put_back_come_again() {
    let memory = memory::allocate(1).unwrap();
    let position = QueuePosition { next_available: u16::MAX, next_used: u16::MAX };
    let mut queue = VirtQueue::new(memory.clone(), LAYOUT, SIZE, false).unwrap().resumed_at(position);
    for index in 0..SIZE {
        let number = u16::MAX.wrapping_add(index) % SIZE;
        let at = LAYOUT.available + ring::AVAIL_HEADER_BYTES + u64::from(number) * ring::AVAIL_ELEMENT_BYTES;
        memory.write_obj(index, GuestAddress(at)).unwrap();
    }
    memory.write_obj(u16::MAX.wrapping_add(3), GuestAddress(LAYOUT.available + 2)).unwrap();
    let mut chain = Chain::new();
    let mut heads = |queue: &mut VirtQueue| {
        std::iter::from_fn(|| queue.pop(&mut chain).unwrap().then(|| chain.head())).collect::<Vec<_>>()
    };
    assert_eq!(heads(&mut queue), [0, 1, 2]);
    queue.undo_pop(2);
    assert!(queue.has_available());
    memory.write_obj(u16::MAX.wrapping_add(SIZE), GuestAddress(LAYOUT.available + 2)).unwrap();
    assert_eq!(heads(&mut queue), [1, 2, 3, 4, 5, 6, 7]);
    assert!(!queue.has_available());
}
