//! Which of the guests that go on from one snapshot this is: the generation id, what is drawn of it, and the time.
//!
//! The numbers drawn are different for each guest, and no secret: nothing here needs any.
//!
//! Must never know: who needs the numbers.

#![expect(unsafe_code, reason = "reads memory that the machine changes while the guest stands still")]

use core::cell::Cell;
use core::fmt;

use crate::clock::counter;
use crate::parse::acpi::Acpi;
use crate::physical::MEMORY_END;
use crate::service;

/// How the clock page begins, and the kind of its counter ("UAPI.13 VMClock").
const CLOCK_MAGIC: u64 = 0x4b4c_4356;
const COUNTER_TSC: u64 = 1;

/// See the module.
pub struct Generation {
    /// Where the id lies.
    address: Option<u64>,
    /// Where the clock page lies.
    clock: Option<u64>,
    /// Port and bit by which a new one is told.
    event: Option<(u16, u8)>,
    id: Cell<[u64; 2]>,
    count: Cell<u32>,
    drawn: Cell<u64>,
}

impl Generation {
    /// Listens to new ids, if the machine has any.
    pub fn start(acpi: &Acpi) -> Self {
        let inside =
            |address: &u64| (0x1000..MEMORY_END - 4096).contains(address) && address.is_multiple_of(8);
        let event = acpi.events.and_then(|events| {
            let bit = 1 << events.generation?;
            service::out8(events.enable_port, service::in8(events.enable_port) | bit);
            Some((events.status_port, bit))
        });
        let generation = Generation {
            address: acpi.generation.filter(inside),
            clock: acpi.clock.filter(inside),
            event,
            id: Cell::new([0; 2]),
            count: Cell::new(0),
            drawn: Cell::new(counter()),
        };
        generation.id.set(generation.read_id());
        generation
    }

    /// Takes up a new id if there is one, and says so to the machine.
    pub fn look(&self) {
        let Some((port, bit)) = self.event else { return };
        if service::in8(port) & bit == 0 {
            return;
        }
        let id = self.read_id();
        if id != self.id.get() {
            self.id.set(id);
            self.drawn.set(self.drawn.get() ^ id[0] ^ id[1].rotate_left(32));
            self.count.set(self.count.get().wrapping_add(1));
        }
        // Last: the network is open from here on.
        service::out8(port, bit);
    }

    /// How many ids were taken up.
    pub fn count(&self) -> u32 {
        self.count.get()
    }

    /// The next number drawn (Steele and others, "Fast splittable pseudorandom number generators", 2014).
    pub fn random(&self) -> u64 {
        let drawn = self.drawn.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.drawn.set(drawn);
        let mixed = (drawn ^ (drawn >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Nanoseconds since the Unix epoch, if the machine tells.
    pub fn time_ns(&self) -> Option<u64> {
        let page = self.clock?;
        let word = |at: u64| read(page + at);
        let (counter_kind, shift) = ((word(8) >> 16) & 0xff, word(32) >> 56);
        if word(0) & 0xffff_ffff != CLOCK_MAGIC || counter_kind != COUNTER_TSC || shift > 63 {
            return None;
        }
        let elapsed = u128::from(counter().wrapping_sub(word(40)));
        let fraction = ((elapsed * u128::from(word(48))) >> shift).wrapping_add(word(80).into());
        let ns = ((fraction & u128::from(u64::MAX)) * 1_000_000_000) >> 64;
        let seconds = word(72).wrapping_add((fraction >> 64) as u64);
        Some(seconds.wrapping_mul(1_000_000_000).wrapping_add(ns as u64))
    }

    fn read_id(&self) -> [u64; 2] {
        self.address.map_or([0; 2], |address| [read(address), read(address + 8)])
    }
}

/// The id as its bytes lie.
impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = self.id.get();
        bytes.iter().flat_map(|half| half.to_le_bytes()).try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

/// Eight bytes of memory as they are now.
fn read(address: u64) -> u64 {
    // SAFETY: `start` made sure that all that is read lies below the end of where memory can be, aligned and not null; what
    // no memory backs reads as ones. The machine writes there only while the guest stands still.
    unsafe { core::ptr::read_volatile(address as *const u64) }
}
