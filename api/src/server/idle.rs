//! Which connections are idle, and since when: when there are too many, the one that has been idle longest goes.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::Notify;

/// The idle connections of a server. No longer than there are connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Idle(Arc<Mutex<Queue>>);

#[derive(Debug, Default)]
struct Queue {
    next: u64,
    waiting: BTreeMap<u64, Arc<Notify>>,
}

impl Idle {
    fn queue(&self) -> MutexGuard<'_, Queue> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place for a new connection, which is idle until it asks.
    pub(super) fn seat(&self) -> Seat {
        let inner = Inner {
            idle: self.clone(),
            evicted: Arc::new(Notify::new()),
            place: Mutex::new(None),
            asking: AtomicUsize::new(0),
            asked: AtomicBool::new(false),
        };
        let seat = Seat(Arc::new(inner));
        seat.0.rest();
        seat
    }

    /// Tells the connection that has been idle longest to end.
    pub(super) fn evict_one(&self) {
        if let Some((_, evicted)) = self.queue().waiting.pop_first() {
            evicted.notify_one();
        }
    }
}

/// One connection's place.
#[derive(Debug, Clone)]
pub(super) struct Seat(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    idle: Idle,
    evicted: Arc<Notify>,
    /// Where it waits in the queue.
    place: Mutex<Option<u64>>,
    /// How many requests are under way.
    asking: AtomicUsize,
    asked: AtomicBool,
}

impl Seat {
    /// Resolves when the connection is to make room.
    pub(super) async fn evicted(&self) {
        self.0.evicted.notified().await;
    }

    /// Whether there was ever a request.
    pub(super) fn has_asked(&self) -> bool {
        self.0.asked.load(Ordering::Relaxed)
    }

    /// A request is under way until what is returned is dropped.
    pub(super) fn busy(&self) -> Busy {
        self.0.asked.store(true, Ordering::Relaxed);
        if self.0.asking.fetch_add(1, Ordering::Relaxed) == 0 {
            self.0.leave();
        }
        Busy(self.clone())
    }
}

impl Inner {
    fn rest(&self) {
        let mut place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        let mut queue = self.idle.queue();
        let number = queue.next;
        queue.next += 1;
        queue.waiting.insert(number, self.evicted.clone());
        if let Some(before) = place.replace(number) {
            queue.waiting.remove(&before);
        }
    }

    fn leave(&self) {
        if let Some(number) = self.place.lock().unwrap_or_else(PoisonError::into_inner).take() {
            self.idle.queue().waiting.remove(&number);
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.leave();
    }
}

/// A request under way.
#[derive(Debug)]
pub(super) struct Busy(Seat);

impl Drop for Busy {
    fn drop(&mut self) {
        if self.0.0.asking.fetch_sub(1, Ordering::Relaxed) == 1 {
            self.0.0.rest();
        }
    }
}
