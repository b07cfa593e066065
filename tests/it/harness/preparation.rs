//! What tests need from PyPI and Debian, made once beside the tests that need nothing of it.
//!
//! Making it takes minutes where nothing was kept, much of it on one processor or waiting for the network. A test that
//! needs some of it waits for that alone. It is made on threads of its own, which stay where PyPI and Debian's packages
//! can be reached: a test may have moved its thread into a network namespace.

use std::sync::{Condvar, Mutex, PoisonError};
use std::time::Instant;

/// One thing that is made while tests run, or was never begun: then whoever needs it makes it.
pub(crate) struct Preparation {
    name: &'static str,
    under_way: Mutex<bool>,
    over: Condvar,
}

/// The `openstack` command.
pub(crate) static OPENSTACK: Preparation = Preparation::new("the openstack command");
/// A server of Amazon's S3.
pub(crate) static S3: Preparation = Preparation::new("a server of S3");
/// The nested lab.
pub(crate) static LAB: Preparation = Preparation::new("the nested lab");
/// Debian's disk as it is published for clouds, its kernel and its ramdisk.
pub(crate) static DEBIAN: Preparation = Preparation::new("Debian's disk");
/// The same with a partition for `/boot`.
pub(crate) static PARTITIONED: Preparation = Preparation::new("Debian's disk with a partition for /boot");
/// The slim kernel, and the images that it boots.
pub(crate) static SLIM: Preparation = Preparation::new("the slim kernel and its images");
/// The same images, built once more to be compared.
pub(crate) static AGAIN: Preparation = Preparation::new("the same images again");

impl Preparation {
    const fn new(name: &'static str) -> Self {
        Self { name, under_way: Mutex::new(false), over: Condvar::new() }
    }

    /// Makes it on a thread of its own. That it fails is said by the tests that need it.
    pub(crate) fn begin(&'static self, make: impl FnOnce() + Send + 'static) {
        *self.under_way.lock().unwrap_or_else(PoisonError::into_inner) = true;
        std::thread::spawn(move || {
            let _over = Over(self);
            let began = Instant::now();
            make();
            eprintln!("prepared in {:.0} s: {}", began.elapsed().as_secs_f64(), self.name);
        });
    }

    /// Waits until it is not being made any more.
    pub(crate) fn wait(&self) {
        let mut under_way = self.under_way.lock().unwrap_or_else(PoisonError::into_inner);
        while *under_way {
            under_way = self.over.wait(under_way).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

/// Waits for whatever is under way, so that nothing goes on after the tests.
pub(crate) fn wait_for_all() {
    [&OPENSTACK, &S3, &LAB, &DEBIAN, &PARTITIONED, &SLIM, &AGAIN].into_iter().for_each(Preparation::wait);
}

/// Says that it is over however it ends: a panic must not leave tests waiting.
struct Over(&'static Preparation);

impl Drop for Over {
    fn drop(&mut self) {
        *self.0.under_way.lock().unwrap_or_else(PoisonError::into_inner) = false;
        self.0.over.notify_all();
    }
}
