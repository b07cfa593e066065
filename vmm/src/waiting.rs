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
use crate::memory::shared::Shared;
use crate::rpc::{ExitReason, ExitReport, Streams};
use crate::run::{self, Error, Left, Prepared, chain};
use crate::sandbox::Sandbox;
use crate::supervisor::{self, Guest, Supervisor};
use crate::virtio::block::ring::Rings;
use crate::vm::Machine;

pub use crate::supervisor::Called;

/// Waits for a guest, and serves it in this process until its end. For so many `disks` there are rings, with some for those
/// that come later; further ones do without.
///
/// Must be called on the only thread of a process that was made for it, and confines it.
#[must_use]
pub fn wait_for_guest(called: Called, disks: usize, sandbox: Sandbox) -> ExitReport {
    run::to_the_end("waited for", |left| serve(called, (disks, sandbox), left))
}

fn serve(called: Called, (disks, sandbox): (usize, Sandbox), left: &mut Left) -> Result<Ending, Error> {
    supervisor::block_signals()?;
    let kvm = Opening::begin();
    let memory = Shared::new(HugePages::None).map_err(Error::SharedMemory)?;
    let prepared = Prepared { rings: Rings::for_disks(disks, true), memory: Some(memory) };
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
