//! The memory balloon.

use vm_memory::GuestAddress;

use super::super::VirtioDevice as _;
use super::super::balloon::{Balloon, Statistics, build_balloon, saved_firmness};
use super::super::mock::{BUFFERS_START, MockDescriptor, MockGuest, MockQueue};
use super::super::spec::balloon as spec;
use super::*;

/// What is given away in these tests, apart from the buffers.
const PAGES: u64 = BUFFERS_START + 0x1_0000;

struct Driver {
    device: Arc<Mutex<Balloon>>,
    guest: MockGuest,
    queues: Vec<MockQueue>,
}

impl Driver {
    fn new(features: u64) -> Self {
        Self::with_queues(features, &[0, 1, 2, 3])
    }

    /// A driver that uses these queues.
    fn with_queues(features: u64, indices: &[u16]) -> Self {
        let device = build_balloon(0, false).unwrap();
        let mut guest = MockGuest::new(device.clone()).unwrap();
        guest.negotiate(features);
        let queues = indices.iter().map(|index| guest.set_up_queue(*index, 32)).collect();
        guest.start();
        guest.run();
        assert!(!guest.needs_reset());
        guest.put(PAGES, &[0xaa; 0x1_0000]);
        Self { device, guest, queues }
    }

    fn give(&mut self, queue: usize, numbers: &[u32]) {
        let bytes: Vec<u8> = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        self.guest.put(BUFFERS_START, &bytes);
        let buffer = MockDescriptor::readable(BUFFERS_START, bytes.len() as u32);
        self.queues[queue].submit(&self.guest.memory, &[buffer]);
        self.guest.kick(queue as u16);
        assert!(self.queues[queue].take_used(&self.guest.memory).is_some());
    }

    /// The pages that are zeros now, by their numbers from [`PAGES`] on.
    fn gone(&self) -> Vec<u64> {
        let is_zero = |page: &u64| self.guest.get(PAGES + page * 4096, 4096).iter().all(|byte| *byte == 0);
        (0..16).filter(is_zero).collect()
    }
}

fn number(page: u64) -> u32 {
    u32::try_from(PAGES / 4096 + page).unwrap()
}

#[test]
fn pages_that_are_given_go_back_to_the_host_and_no_others() {
    let mut driver = Driver::new(spec::F_DEFLATE_ON_OOM);
    driver.give(0, &[number(1), number(2), number(3), number(7), u32::MAX, 0x300, number(5)]);
    assert_eq!(driver.gone(), [1, 2, 3, 5, 7]);
    driver.guest.put(PAGES + 4096, &[1]);
    driver.give(1, &[number(1)]);
    assert_eq!(driver.gone(), [2, 3, 5, 7]);
    assert_eq!(driver.device.lock().unwrap().status().returned_bytes, 5 * 4096);
}

#[test]
fn target_is_told_to_the_guest_and_what_it_gave_is_told_back() {
    let mut driver = Driver::new(0);
    driver.guest.take_interrupts();
    driver.device.lock().unwrap().set_target(3).unwrap();
    driver.device.lock().unwrap().set_target(3).unwrap();
    assert_eq!(driver.guest.take_interrupts(), 1);
    assert_eq!(driver.guest.read_config::<4>(0), 768_u32.to_le_bytes());
    driver.guest.write(super::super::spec::mmio::CONFIG + 4, 512);
    let status = driver.device.lock().unwrap().status();
    assert_eq!((status.target_mib, status.given_mib, status.statistics), (3, 2, None));
    assert!(driver.device.lock().unwrap().set_target(u32::MAX).is_err());
}

#[test]
fn reported_pages_go_back_by_either_queue_that_a_driver_takes_for_reports() {
    for index in [3, 4] {
        let mut driver = Driver::with_queues(spec::F_PAGE_REPORTING, &[0, 1, index]);
        let report = [
            MockDescriptor::writable(PAGES + 4096, 2 * 4096),
            MockDescriptor::writable(PAGES + 5 * 4096 + 1, 2 * 4096),
        ];
        let queue = &mut driver.queues[2];
        queue.submit(&driver.guest.memory, &report);
        driver.guest.kick(index);
        assert!(driver.queues[2].take_used(&driver.guest.memory).is_some());
        assert_eq!(driver.gone(), [1, 2, 6], "whole pages");
    }
}

#[test]
fn report_may_be_of_more_than_any_other_buffer_and_still_has_to_be_memory() {
    let mut driver = Driver::with_queues(spec::F_PAGE_REPORTING, &[0, 1, 3]);
    // The same megabyte, again and again: 40 of them.
    let report = [MockDescriptor::writable(PAGES, 0x8_0000); 20];
    for _ in 0..2 {
        driver.queues[2].submit(&driver.guest.memory, &report);
        driver.guest.kick(3);
        assert!(!driver.guest.needs_reset());
    }
    driver.queues[2].submit(&driver.guest.memory, &[MockDescriptor::writable(0x30_0000, 4096)]);
    driver.guest.kick(3);
    assert!(driver.guest.needs_reset());
}

#[test]
fn statistics_are_kept_and_new_ones_are_asked_for_when_somebody_looks() {
    let mut driver = Driver::new(spec::F_STATS_VQ);
    let say = |driver: &mut Driver, free: u64| {
        let mut bytes = Vec::new();
        for (tag, value) in [(spec::S_MEMFREE, free), (spec::S_MEMTOT, 99), (0xfff0, 5)] {
            bytes.extend(tag.to_le_bytes());
            bytes.extend(value.to_le_bytes());
        }
        driver.guest.put(BUFFERS_START, &bytes);
        let buffer = MockDescriptor::readable(BUFFERS_START, bytes.len() as u32 + 3);
        driver.queues[2].submit(&driver.guest.memory, &[buffer]);
        driver.guest.kick(2);
    };
    say(&mut driver, 7);
    assert_eq!(driver.queues[2].take_used(&driver.guest.memory), None, "it is kept");
    let wanted = Statistics { free_bytes: Some(7), total_bytes: Some(99), ..Statistics::default() };
    assert_eq!(driver.device.lock().unwrap().status().statistics, Some(wanted));
    assert!(driver.queues[2].take_used(&driver.guest.memory).is_some(), "new ones are wanted");
    assert_eq!(driver.device.lock().unwrap().status().statistics, Some(wanted), "until they come");
    say(&mut driver, 8);
    say(&mut driver, 9);
    assert!(driver.queues[2].take_used(&driver.guest.memory).is_some(), "one buffer is kept");
    let status = driver.device.lock().unwrap().status();
    assert_eq!(status.statistics.unwrap().free_bytes, Some(9));
    assert!(status.statistics_age_ms.unwrap() < 10_000);
}

#[test]
fn all_but_one_of_many_buffers_of_statistics_come_back() {
    let mut driver = Driver::new(spec::F_STATS_VQ);
    let buffer = MockDescriptor::readable(BUFFERS_START, 10);
    for _ in 0..20 {
        driver.queues[2].submit(&driver.guest.memory, &[buffer]);
    }
    driver.guest.kick(2);
    let back = std::iter::from_fn(|| driver.queues[2].take_used(&driver.guest.memory)).count();
    assert_eq!(back, 19);
}

#[test]
fn guest_that_stands_still_gives_nothing_until_it_goes_on() {
    let mut driver = Driver::new(0);
    driver.device.lock().unwrap().hold(true);
    driver.guest.put(BUFFERS_START, &number(1).to_le_bytes());
    driver.queues[0].submit(&driver.guest.memory, &[MockDescriptor::readable(BUFFERS_START, 4)]);
    driver.guest.kick(0);
    assert!(driver.gone().is_empty());
    driver.device.lock().unwrap().hold(false);
    driver.guest.run();
    assert_eq!(driver.gone(), [1]);
}

#[test]
fn driver_without_the_two_queues_that_everybody_has_cannot_start() {
    let mut guest = MockGuest::new(build_balloon(0, true).unwrap()).unwrap();
    assert_eq!(guest.offered() & spec::F_DEFLATE_ON_OOM, 0, "it is firm");
    guest.negotiate(0);
    guest.set_up_queue(0, 32);
    guest.start();
    assert!(guest.needs_reset());
}

#[test]
fn balloon_goes_on_with_its_target_and_looks_again_at_the_statistics_that_it_kept() {
    let mut driver = Driver::new(spec::F_STATS_VQ);
    driver.queues[2].submit(&driver.guest.memory, &[MockDescriptor::readable(BUFFERS_START, 10)]);
    driver.guest.kick(2);
    driver.device.lock().unwrap().set_target(5).unwrap();
    let state = driver.device.lock().unwrap().save();
    assert_eq!(state.queues[2].next_available, 0);
    assert!(!saved_firmness(&state.own).unwrap() && saved_firmness(b"x").is_err());
    let other = build_balloon(0, false).unwrap();
    other.lock().unwrap().restore(&state.own).unwrap();
    assert_eq!(other.lock().unwrap().status().target_mib, 5);
}

/// The number by which hints are asked for.
fn command(driver: &mut Driver) -> u32 {
    u32::from_le_bytes(driver.guest.read_config::<4>(8))
}

impl Driver {
    /// A driver that gives hints.
    fn hinting() -> Self {
        Self::with_queues(spec::F_FREE_PAGE_HINT | spec::F_PAGE_REPORTING, &[0, 1, 3, 4])
    }

    /// Says a number in the queue of hints.
    fn say(&mut self, number: u32) {
        self.guest.put(BUFFERS_START, &number.to_le_bytes());
        self.hint(MockDescriptor::readable(BUFFERS_START, 4));
    }

    fn hint(&mut self, buffer: MockDescriptor) {
        self.queues[2].submit(&self.guest.memory, &[buffer]);
        self.guest.kick(3);
        assert!(self.queues[2].take_used(&self.guest.memory).is_some());
    }

    /// Hints at a page.
    fn hint_at(&mut self, page: u64) {
        self.hint(MockDescriptor::writable(PAGES + page * 4096, 4096));
    }

    fn balloon(&self) -> std::sync::MutexGuard<'_, Balloon> {
        self.device.lock().unwrap()
    }
}

#[test]
fn hints_are_what_is_said_between_the_number_that_asks_for_them_and_the_end() {
    let mut driver = Driver::hinting();
    assert_eq!(command(&mut driver), spec::HINTS_STOP);
    driver.hint_at(0);
    driver.guest.take_interrupts();
    assert!(driver.balloon().ask_for_hints());
    assert_eq!(driver.guest.take_interrupts(), 1);
    let number = command(&mut driver);
    assert!(number >= spec::HINTS_FIRST);
    driver.hint_at(1);
    driver.say(number.wrapping_add(1));
    driver.hint_at(2);
    assert!(!driver.balloon().take_hints());
    driver.say(number);
    (3..6).for_each(|page| driver.hint_at(page));
    assert!(!driver.balloon().take_hints());
    driver.say(spec::HINTS_STOP);
    assert!(driver.balloon().take_hints(), "it has said all");
    driver.hint_at(6);
    driver.guest.take_interrupts();
    let pages = driver.balloon().stop_hints();
    assert_eq!(driver.guest.take_interrupts(), 1);
    assert_eq!(pages.runs(&driver.guest.memory), [(GuestAddress(PAGES + 3 * 4096), 3 * 4096)]);
    assert_eq!(command(&mut driver), spec::HINTS_STOP);
    driver.balloon().end_hints();
    assert_eq!(command(&mut driver), spec::HINTS_DONE);
    assert!(driver.gone().is_empty(), "nothing goes by a hint alone");

    // Asked again before it has answered, the first answer counts for nothing.
    assert!(driver.balloon().ask_for_hints());
    let first = command(&mut driver);
    assert!(first != number && driver.balloon().ask_for_hints());
    driver.say(first);
    driver.hint_at(7);
    assert_eq!(driver.balloon().stop_hints().count(), 0);
}

#[test]
fn who_takes_no_hints_is_not_asked_and_reports_by_either_queue() {
    let mut driver = Driver::with_queues(spec::F_PAGE_REPORTING, &[0, 1, 3]);
    assert!(!driver.balloon().ask_for_hints());
    driver.hint_at(1);
    assert_eq!(driver.gone(), [1], "that was a report");
    let driver = Driver::with_queues(spec::F_FREE_PAGE_HINT, &[0, 1]);
    assert!(!driver.balloon().ask_for_hints(), "it has no queue for them");
    let mut driver = Driver::hinting();
    driver.queues[3].submit(&driver.guest.memory, &[MockDescriptor::writable(PAGES + 4096, 4096)]);
    driver.guest.kick(4);
    assert_eq!(driver.gone(), [1], "reports have the last queue beside hints");
    driver.balloon().hold(true);
    assert!(!driver.balloon().ask_for_hints(), "it stands still");
}

#[test]
fn hints_that_a_guest_was_giving_are_done_with_when_it_goes_on_elsewhere_or_resets_the_device() {
    let mut driver = Driver::hinting();
    assert!(driver.balloon().ask_for_hints());
    let number = command(&mut driver);
    driver.say(number);
    driver.hint_at(1);
    let state = driver.balloon().save();
    let other = build_balloon(0, false).unwrap();
    other.lock().unwrap().restore(&state.own).unwrap();
    let mut space = [0; 4];
    other.lock().unwrap().read_config(8, &mut space);
    assert_eq!(u32::from_le_bytes(space), spec::HINTS_DONE);
    driver.guest.negotiate(0);
    assert!(driver.balloon().take_hints());
    assert_eq!(driver.balloon().stop_hints().count(), 0);
    assert_eq!(command(&mut driver), spec::HINTS_STOP);
}

/// What Linux fills pages with where it looks for writes to free ones (page_poison=1).
const POISON: u32 = 0xaaaa_aaaa;
const POISON_AT: u32 = spec::CONFIG_POISON as u32;

impl Driver {
    /// A driver that says what it fills free pages with, before it starts.
    fn poisoning(poison: u32) -> Self {
        let device = build_balloon(0, false).unwrap();
        let mut guest = MockGuest::new(device.clone()).unwrap();
        guest.negotiate(spec::F_FREE_PAGE_HINT | spec::F_PAGE_POISON | spec::F_PAGE_REPORTING);
        let queues = [0, 1, 3, 4].map(|index| guest.set_up_queue(index, 32)).to_vec();
        guest.write(super::super::spec::mmio::CONFIG + POISON_AT, poison);
        guest.start();
        guest.run();
        guest.put(PAGES, &[0xaa; 0x1_0000]);
        Self { device, guest, queues }
    }

    /// Reports two pages, and has the buffer back.
    fn report(&mut self) {
        self.queues[3].submit(&self.guest.memory, &[MockDescriptor::writable(PAGES + 4096, 2 * 4096)]);
        self.guest.kick(4);
        assert!(self.queues[3].take_used(&self.guest.memory).is_some());
    }
}

#[test]
fn pages_that_a_guest_fills_with_something_stay_when_it_reports_them_and_are_asked_for_by_no_hints() {
    let mut driver = Driver::poisoning(POISON);
    driver.report();
    assert!(driver.gone().is_empty());
    assert_eq!(driver.balloon().status().returned_bytes, 0);
    assert!(!driver.balloon().ask_for_hints());
    assert_eq!(driver.guest.read_config::<4>(POISON_AT), POISON.to_le_bytes());
    driver.give(0, &[number(7)]);
    assert_eq!(driver.gone(), [7], "what is given goes");

    // One that fills them with zeros finds zeros.
    let mut driver = Driver::poisoning(0);
    driver.report();
    assert_eq!(driver.gone(), [1, 2]);
    assert!(driver.balloon().ask_for_hints());
}

#[test]
fn what_is_filled_in_without_the_feature_says_nothing() {
    let mut driver = Driver::hinting();
    driver.guest.write(super::super::spec::mmio::CONFIG + POISON_AT, POISON);
    driver.report();
    assert_eq!(driver.gone(), [1, 2]);
}

#[test]
fn what_a_guest_fills_pages_with_goes_with_it_and_what_others_save_is_as_before() {
    let driver = Driver::poisoning(POISON);
    let state = driver.balloon().save();
    assert!(!saved_firmness(&state.own).unwrap());
    let other = build_balloon(0, false).unwrap();
    other.lock().unwrap().restore(&state.own).unwrap();
    let mut space = [0; 4];
    other.lock().unwrap().read_config(spec::CONFIG_POISON, &mut space);
    assert_eq!(u32::from_le_bytes(space), POISON);
    // Two numbers and no.
    assert_eq!(Driver::hinting().balloon().save().own, [0, 0, 0]);
    other.lock().unwrap().reset();
    other.lock().unwrap().read_config(spec::CONFIG_POISON, &mut space);
    assert_eq!(space, [0; 4]);
}
