//! A VMM process that is there before its guest: it is confined, has all that takes long to make and depends on no guest,
//! and is told then what to run. What a start takes is over when somebody wants a guest.
//!
//! Must never know: who wants it.

use std::fs::File;
use std::os::unix::net::UnixListener;

use crate::config::HugePages;
use crate::ending::{Ending, EndingSignal};
use crate::events;
use crate::handover;
use crate::inherited::Descriptors as _;
use crate::interactive::console_on;
use crate::kvm::{Kvm, Opening};
use crate::memory::{self, shared::Shared};
use crate::rpc::{ExitReason, ExitReport, Streams};
use crate::run::{self, Error, Left, Prepared, chain};
use crate::sandbox::Sandbox;
use crate::supervisor::{self, Guest, Supervisor};
use crate::virtio::block::ring::Rings;
use crate::vm::{self, Machine};

pub use crate::supervisor::Called;

/// What a guest that is waited for is expected to have. One that has something else is served as well, and not as soon.
#[derive(Debug, Clone, Copy)]
pub struct Expected {
    /// Disks for which there are rings, with some for those that come later; further ones do without.
    pub disks: usize,
    /// Its memory in MiB, if that is known: what KVM makes for it is there then.
    pub memory_mib: Option<u32>,
}

/// Waits for a guest, and serves it in this process until its end.
///
/// Must be called on the only thread of a process that was made for it, and confines it.
#[must_use]
pub fn wait_for_guest(called: Called, expected: Expected, sandbox: Sandbox) -> ExitReport {
    run::to_the_end("waited for", |left| serve(called, (expected, sandbox), left))
}

fn serve(called: Called, (expected, sandbox): (Expected, Sandbox), left: &mut Left) -> Result<Ending, Error> {
    supervisor::block_signals()?;
    let place = expected.memory_mib.map(memory::allocate).transpose().map_err(vm::Error::from)?;
    let kvm = Opening::begin_at(place);
    let memory = Shared::new(HugePages::None).map_err(Error::SharedMemory)?;
    let prepared = Prepared { rings: Rings::for_disks(expected.disks, true), memory: Some(memory) };
    let ending = EndingSignal::new().map_err(Error::Event)?;
    let foreground = matches!(called, Called::At(_));
    let kvm = kvm.finish()?;
    let held = sandbox.enter()?;
    let (guest, mut asked) = match supervisor::wait(called)? {
        Ok(called) => called,
        Err(message) => return Ok(Ending { reason: ExitReason::Killed, message }),
    };
    let (machine, own, input) = match build(&kvm, prepared, guest, &ending, left) {
        Ok(built) => built,
        Err(error) => {
            asked.refuse(chain(&error));
            return Err(error);
        }
    };
    asked.hold().map_err(Error::Event)?;
    let listener = own.or(asked.listener.take());
    let mut supervisor = Supervisor::new(machine, ending.clone(), listener, foreground)?;
    supervisor.set_protections(held);
    if let Some(input) = input {
        supervisor.set_input(Box::new(input));
    }
    supervisor.answer(asked);
    let (said, machine) = events::serve(supervisor, &ending, |_| {})?;
    Ok(run::over(said, machine, left))
}

type Built = (Machine, Option<UnixListener>, Option<File>);

fn build(
    kvm: &Kvm,
    Prepared { rings, memory }: Prepared,
    Guest { config, streams, mut fds }: Guest,
    ending: &EndingSignal,
    left: &mut Left,
) -> Result<Built, Error> {
    if config.upgradable && config.huge_pages == HugePages::Reserved {
        return Err(Error::ReservedMemory);
    }
    left.report_file = config.exit_report.map(|fd| File::from(fds.take(fd)));
    let listener = config.control_socket.map(|fd| UnixListener::from(fds.take(fd)));
    let memory = memory.filter(|_| config.upgradable).map(|memory| memory.of_pages(config.huge_pages));
    let mut spec = run::open(config, &mut fds, Prepared { rings, memory })?;
    left.keep_report(&mut spec)?;
    let mut input = None;
    if let Some(Streams { input: typed, output, console }) = streams {
        let (typed, output) = (File::from(fds.take(typed)), File::from(fds.take(output)));
        if let Some(estate) = &mut spec.estate {
            let keep = |file: &File| file.try_clone().map_err(handover::Error::Keep);
            estate.streams = Some([keep(&typed)?.into(), keep(&output)?.into()]);
        }
        console_on(&mut spec, console, output);
        input = Some(typed);
    }
    Ok((Machine::build(kvm, spec, ending)?, listener, input))
}
