//! The ends of a device's link, one for each queue that the host has for it, and which pair of queues reads which.
//!
//! The host spreads flows over all ends, whatever number of pairs the driver uses; it is not told, since that would be a lock of the
//! whole host's network taken whenever a guest likes. So what a pair that is not in use would have read is read by another: the end
//! numbered `e` by pair `e` modulo the pairs in use, always the same one, so that a flow keeps its order. A packet leaves by the end of its
//! pair's number, from which the host learns where the flow's answers shall go.
//!
//! Must never know: queues, packets.
#![expect(unsafe_code, reason = "it hands on what the kernel is given of guest memory")]

use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};

use event_manager::{EventOps, EventSet, Events};

use super::super::link::Link;

/// See the module. There is one at least.
pub(super) struct Ends<L> {
    list: Vec<End<L>>,
    /// Where a pair with several ends begins to look.
    turn: usize,
}

struct End<L> {
    link: L,
    /// The event loop listens to it.
    is_watched: bool,
}

/// Which of the pairs in use, and how many these are: one at least.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) pair: usize,
    pub(super) used: usize,
}

impl Place {
    /// The ends, of so many, that this pair reads.
    fn ends(self, count: usize) -> impl Iterator<Item = usize> {
        (self.pair..count).step_by(self.used)
    }
}

impl<L: Link> Ends<L> {
    pub(super) fn new(links: Vec<L>) -> Self {
        let end = |link| End { link, is_watched: false };
        Self { list: links.into_iter().map(end).collect(), turn: 0 }
    }

    /// The number of the end with that descriptor.
    pub(super) fn find(&self, descriptor: RawFd) -> Option<usize> {
        self.list.iter().position(|end| end.link.as_raw_fd() == descriptor)
    }

    /// Has the event loop listen to those that a pair reads, or not.
    pub(super) fn watch(&mut self, ops: &mut EventOps<'_>, place: Place, wanted: bool) {
        for index in place.ends(self.list.len()) {
            let End { link, is_watched } = &mut self.list[index];
            let changed = match (*is_watched, wanted) {
                (false, true) => ops.add(Events::new(link, EventSet::IN)),
                (true, false) => ops.remove(Events::empty(link)),
                _ => continue,
            };
            *is_watched = wanted;
            if let Err(error) = changed {
                tracing::error!(%error, "a network device cannot change what it listens to");
            }
        }
    }

    /// Has it listen to none.
    pub(super) fn ignore(&mut self, ops: &mut EventOps<'_>) {
        self.watch(ops, Place { pair: 0, used: 1 }, false);
    }

    /// The link as a pair has it.
    pub(super) fn of(&mut self, place: Place) -> Reach<'_, L> {
        self.turn = self.turn.wrapping_add(1);
        let mine = place.ends(self.list.len()).count();
        let turn = if mine > 1 { self.turn % mine } else { 0 };
        Reach { list: &mut self.list, place, mine, turn }
    }
}

/// The link as one pair has it: it is sent by one end and read from all that are the pair's, from one until nothing waits there, then
/// from the next.
pub(super) struct Reach<'a, L> {
    list: &'a mut [End<L>],
    place: Place,
    mine: usize,
    turn: usize,
}

impl<L: Link> Reach<'_, L> {
    fn receive_with<T>(&mut self, mut receive: impl FnMut(&mut L) -> io::Result<T>) -> io::Result<T> {
        for _ in 0..self.mine {
            let index = self.place.pair + self.turn * self.place.used;
            match receive(&mut self.list[index].link) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {
                    self.turn = (self.turn + 1) % self.mine;
                }
                outcome => return outcome,
            }
        }
        Err(ErrorKind::WouldBlock.into())
    }

    fn own(&self) -> usize {
        self.place.pair % self.list.len()
    }
}

impl<L: Link> AsRawFd for Reach<'_, L> {
    fn as_raw_fd(&self) -> RawFd {
        self.list[self.own()].link.as_raw_fd()
    }
}

impl<L: Link> Link for Reach<'_, L> {
    /// Those of the host's interface, which all ends share.
    fn set_offloads(&mut self, features: u64) -> io::Result<()> {
        let own = self.own();
        self.list[own].link.set_offloads(features)
    }

    fn receive(&mut self, packet: &mut [u8]) -> io::Result<usize> {
        self.receive_with(|link| link.receive(packet))
    }

    fn send(&mut self, packet: &[u8]) -> io::Result<()> {
        let own = self.own();
        self.list[own].link.send(packet)
    }

    unsafe fn receive_apart(&mut self, head: &mut [u8], rest: &[libc::iovec]) -> io::Result<usize> {
        // SAFETY: as the caller says.
        self.receive_with(|link| unsafe { link.receive_apart(head, rest) })
    }

    unsafe fn send_apart(&mut self, head: &[u8], rest: &[libc::iovec]) -> io::Result<()> {
        let own = self.own();
        // SAFETY: as the caller says.
        unsafe { self.list[own].link.send_apart(head, rest) }
    }
}
