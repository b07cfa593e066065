//! How much memory the guest is asked to give or to have, and what it has free.

use super::Supervisor;
use crate::rpc::{FreeReport, Reply};
use crate::run::chain;
use crate::virtio;

impl Supervisor {
    pub(super) fn set_balloon(&self, target_mib: u32) -> Reply {
        match self.machine.peripherals().balloon() {
            Some(mut balloon) => self.asked(balloon.set_target(target_mib)),
            None => Reply::Error { message: "the guest has no memory balloon".to_owned() },
        }
    }

    pub(super) fn set_memory(&self, requested_mib: u32) -> Reply {
        match self.machine.peripherals().mem() {
            Some(mut mem) => self.asked(mem.request(requested_mib)),
            None => Reply::Error { message: "the guest has no memory that comes and goes".to_owned() },
        }
    }

    pub(super) fn give_back_free(&mut self) -> Reply {
        match self.machine.give_back_free() {
            Ok(given) => Reply::Free(FreeReport {
                state: self.machine.state(),
                hinted_bytes: given.hinted_bytes,
                returned_bytes: given.returned_bytes,
                paused_us: u64::try_from(given.paused.as_micros()).unwrap_or(u64::MAX),
            }),
            Err(error) => Reply::Error { message: chain(&error) },
        }
    }

    fn asked(&self, asked: Result<(), virtio::Error>) -> Reply {
        match asked {
            Ok(()) => Reply::Done { state: self.machine.state() },
            Err(error) => Reply::Error { message: error.to_string() },
        }
    }
}
