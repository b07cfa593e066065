//! A memory balloon: gives spare memory, which nobody else uses, as the host asks, and says what of it is free.
//!
//! Must never know: what the memory was for.

#![expect(
    unsafe_code,
    reason = "spare memory is written to, and a buffer lent to the device between two calls"
)]

use alloc::boxed::Box;
use alloc::rc::Rc;
use alloc::vec::Vec;
use core::cell::{Cell, RefCell};
use core::ops::Range;

use virtio_drivers::PAGE_SIZE;
use virtio_drivers::queue::VirtQueue;
use virtio_drivers::transport::Transport as _;

use crate::machine::Machine;
use crate::memory::Identity;
use crate::transport::{Acknowledge, Transport};

/// VIRTIO 1.3 §5.5 and §6.
const F_STATS_VQ: u64 = 1 << 1;
const F_FREE_PAGE_HINT: u64 = 1 << 3;
const F_VERSION_1: u64 = 1 << 32;
const INFLATE: u16 = 0;
const DEFLATE: u16 = 1;
const STATISTICS: u16 = 2;
const HINTS: u16 = 3;
/// `free_page_hint_cmd_id`: the least number that asks for hints, and what is said behind the last one.
const HINTS_FIRST: u32 = 2;
const HINTS_STOP: u32 = 0;
const TAG_FREE: u16 = 4;
const TAG_TOTAL: u16 = 5;
/// Pages given or taken back at once.
const PAGES_AT_ONCE: u32 = 256;
/// Pages that one hint is about.
const PAGES_OF_HINT: u64 = 1024;
/// Bytes of two statistics.
const STATISTICS_BYTES: usize = 20;

type Queue = VirtQueue<Identity, 8>;

/// One balloon.
pub struct Balloon {
    inner: RefCell<Inner>,
    acknowledge: Acknowledge,
    /// The device may have something new to say.
    changed: Cell<bool>,
}

struct Inner {
    transport: Transport,
    queues: [Queue; 2],
    statistics: Queue,
    said: Box<[u8; STATISTICS_BYTES]>,
    token: Option<u16>,
    /// Where free pages are hinted at, if the device wants to hear of them, and the number that was answered last.
    hints: Option<Queue>,
    answered: u32,
    /// The memory that there is to give, in pages, and how many of them are given.
    spare: Range<u64>,
    given: u32,
}

impl Balloon {
    /// Sets the device up, to give of `spare`.
    pub fn new(mut transport: Transport, spare: Range<u64>) -> Result<Self, virtio_drivers::Error> {
        let acknowledge = transport.acknowledge();
        let hints = transport.begin() & F_FREE_PAGE_HINT;
        transport.hear_changes();
        transport.accept(F_VERSION_1 | F_STATS_VQ | hints);
        let queues = [
            Queue::new(&mut transport, INFLATE, false, false)?,
            Queue::new(&mut transport, DEFLATE, false, false)?,
        ];
        let statistics = Queue::new(&mut transport, STATISTICS, false, false)?;
        let hints = (hints != 0).then(|| Queue::new(&mut transport, HINTS, false, false)).transpose()?;
        transport.finish();
        let page = PAGE_SIZE as u64;
        let spare = spare.start.next_multiple_of(page) / page..spare.end / page;
        let said = Box::new([0; STATISTICS_BYTES]);
        let (token, answered, given) = (None, 0, 0);
        let inner = Inner { transport, queues, statistics, said, token, hints, answered, spare, given };
        Ok(Balloon { inner: RefCell::new(inner), acknowledge, changed: Cell::new(true) })
    }

    /// Acknowledges an interrupt, if it is this device's.
    pub fn acknowledge(&self) {
        self.acknowledge.give();
        self.changed.set(true);
    }
}

impl Inner {
    /// Gives or takes back until the host has what it asks for, as far as there is something.
    fn follow(&mut self) -> Result<(), virtio_drivers::Error> {
        let wanted: u32 = self.transport.read_config_space(0)?;
        let wanted = wanted.min((self.spare.end - self.spare.start) as u32);
        while self.given != wanted {
            let (queue, first, count) = if wanted > self.given {
                (INFLATE, self.given, (wanted - self.given).min(PAGES_AT_ONCE))
            } else {
                let count = (self.given - wanted).min(PAGES_AT_ONCE);
                (DEFLATE, self.given - count, count)
            };
            let number = |index: u32| (self.spare.start as u32 + first + index).to_le_bytes();
            let numbers: Vec<u8> = (0..count).flat_map(number).collect();
            let Inner { queues, transport, .. } = self;
            queues[usize::from(queue)].add_notify_wait_pop(&[&numbers], &mut [], transport)?;
            self.given = if queue == INFLATE { self.given + count } else { first };
            self.transport.write_config_space(4, self.given)?;
        }
        Ok(())
    }

    /// Says how the memory is, whenever the host has taken what was said before.
    fn say(&mut self) -> Result<(), virtio_drivers::Error> {
        if let Some(token) = self.token.filter(|_| self.statistics.can_pop()) {
            // SAFETY: the buffer that was added under this token.
            unsafe { self.statistics.pop_used(token, &[&self.said[..]], &mut []) }?;
            self.token = None;
        }
        if self.token.is_some() {
            return Ok(());
        }
        let pages = self.spare.end - self.spare.start;
        let total = pages * PAGE_SIZE as u64;
        let free = total - u64::from(self.given) * PAGE_SIZE as u64;
        self.said[..2].copy_from_slice(&TAG_FREE.to_le_bytes());
        self.said[2..10].copy_from_slice(&free.to_le_bytes());
        self.said[10..12].copy_from_slice(&TAG_TOTAL.to_le_bytes());
        self.said[12..].copy_from_slice(&total.to_le_bytes());
        // SAFETY: the buffer lives as long as the queue, and is not touched until it is popped above.
        self.token = Some(unsafe { self.statistics.add(&[&self.said[..]], &mut []) }?);
        self.transport.notify(STATISTICS);
        Ok(())
    }

    /// Says what is not given and free all the same, if the host asks.
    fn hint(&mut self) -> Result<(), virtio_drivers::Error> {
        let first = self.spare.start + u64::from(self.given);
        let Inner { hints: Some(queue), transport, .. } = self else { return Ok(()) };
        let asked: u32 = transport.read_config_space(8)?;
        if asked < HINTS_FIRST || asked == self.answered {
            return Ok(());
        }
        self.answered = asked;
        queue.add_notify_wait_pop(&[&asked.to_le_bytes()], &mut [], transport)?;
        for number in (first..self.spare.end).step_by(PAGES_OF_HINT as usize) {
            let pages = (self.spare.end - number).min(PAGES_OF_HINT);
            let (start, bytes) = (number * PAGE_SIZE as u64, pages as usize * PAGE_SIZE);
            // SAFETY: spare memory, which is nobody's but ours, mapped for good, and whose content does not matter.
            let free = unsafe { core::slice::from_raw_parts_mut(start as *mut u8, bytes) };
            queue.add_notify_wait_pop(&[], &mut [free], transport)?;
        }
        queue.add_notify_wait_pop(&[&HINTS_STOP.to_le_bytes()], &mut [], transport).map(drop)
    }

    /// Writes to `bytes` bytes of the memory that is not given, so that the host has to have it; how many there were.
    fn touch(&mut self, bytes: u64) -> u64 {
        let page = PAGE_SIZE as u64;
        let first = self.spare.start + u64::from(self.given);
        let last = self.spare.end.min(first + bytes / page);
        for number in first..last {
            // SAFETY: spare memory, which is nobody's but ours, mapped for good.
            unsafe { core::ptr::write_volatile((number * page) as *mut u8, 1) };
        }
        last.saturating_sub(first) * page
    }
}

/// Does what the host asks, for good.
pub async fn serve(machine: &'static Machine, balloon: Rc<Balloon>) {
    loop {
        machine.wait(|| balloon.changed.take().then_some(())).await;
        let mut inner = balloon.inner.borrow_mut();
        if let Err(error) = inner.follow().and_then(|()| inner.say()).and_then(|()| inner.hint()) {
            crate::println!("balloon: {error}");
        }
    }
}

/// Writes to so many MiB of spare memory; how many there were.
pub fn touch(machine: &Machine, mib: u64) -> Result<u64, &'static str> {
    let balloon = machine.balloon().ok_or("no balloon")?;
    Ok(balloon.inner.borrow_mut().touch(mib << 20) >> 20)
}
