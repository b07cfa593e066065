//! A successor's process: it is confined, gets a guest, and serves it to its end.

use std::fs::File;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use super::{Arrived, Document, Error, Line, MAGIC, answer, receive, wait_until_given};
use crate::ending::{Ending, EndingSignal};
use crate::events;
use crate::inherited::Descriptors as _;
use crate::interactive::Patient;
use crate::kvm::{Kvm, Opening};
use crate::rpc::ExitReport;
use crate::run::{self, Left, Prepared, chain};
use crate::sandbox::Sandbox;
use crate::serial::Console;
use crate::supervisor::{self, Supervisor};
use crate::virtio::block::ring::Rings;
use crate::virtio::console;
use crate::vm::{Machine, MainConsole};

/// What a successor says when it is ready to be given to a VMM.
pub const HELLO: [u8; 8] = MAGIC;
/// How long a successor waits for a guest in all: whoever started it passes it on at once, and a VMM waits no longer.
const PATIENCE: Duration = Duration::from_secs(120);

/// Takes over the guest that comes on `socket`, and serves it in this process until its end. For so many `disks` as the guest
/// has there are rings.
///
/// Must be called on the only thread of a process that was made for it, and confines it. What the report says is also
/// written to where the VMM before would have written it, if the guest ever was this process's.
#[must_use]
pub fn take_over(socket: UnixStream, disks: usize, sandbox: Sandbox) -> ExitReport {
    run::to_the_end("taken over", |left| serve(socket, (disks, sandbox), left))
}

fn serve(
    socket: UnixStream,
    (disks, sandbox): (usize, Sandbox),
    left: &mut Left,
) -> Result<Ending, run::Error> {
    supervisor::block_signals()?;
    let kvm = Opening::begin();
    let rings = Rings::for_disks(disks, true);
    let ending = EndingSignal::new().map_err(run::Error::Event)?;
    let kvm = kvm.finish()?;
    // Before anything is read: it comes from a process that its guest may have taken over.
    let held = sandbox.enter()?;
    let line = Line::new(socket, PATIENCE).map_err(super::talk("prepare the connection"))?;
    line.send(&MAGIC, &[]).map_err(super::talk("say that a guest may come"))?;
    let mut taken =
        match receive(&line).map_err(run::Error::from).and_then(|it| build(&kvm, rings, it, &ending)) {
            Ok(taken) => taken,
            Err(error) => {
                // Nobody may be there any more to hear it.
                let _ = answer(&line, Some(&chain(&error)));
                return Err(error);
            }
        };
    answer(&line, None)?;
    wait_until_given(&line)?;
    drop(line);
    // From here on it is nobody else's.
    left.report_file = taken.report_file.take();
    let foreground = taken.input.is_some();
    let mut supervisor = Supervisor::new(taken.machine, ending.clone(), taken.listener, foreground)?;
    supervisor.set_protections(held);
    if let Some(input) = taken.input {
        supervisor.set_input(Box::new(input));
    }
    let (said, machine) = events::serve(supervisor, &ending, |supervisor| {
        supervisor.machine_mut().take_charge();
    })?;
    Ok(run::over(said, machine, left))
}

struct Taken {
    machine: Machine,
    listener: Option<UnixListener>,
    input: Option<File>,
    report_file: Option<File>,
}

/// Puts the machine together; nothing of the guest's is written to.
fn build(kvm: &Kvm, rings: Rings, arrived: Arrived, ending: &EndingSignal) -> Result<Taken, run::Error> {
    let Arrived { header, state, document, mut descriptors } = arrived;
    let Document { mut config, memory, streams, life } = document;
    let keep = |fd: &File| fd.try_clone().map_err(Error::Keep);
    let memory = File::from(descriptors.take(memory));
    let memory = crate::memory::shared::Shared::of(memory, config.huge_pages);
    let guest = memory.map(header.memory_mib).map_err(crate::vm::Error::from)?;
    let listener = config.control_socket.take().map(|fd| descriptors.take(fd).into());
    let report_file = config.exit_report.take().map(|fd| File::from(descriptors.take(fd)));
    let streams = streams.map(|streams| streams.map(|fd| File::from(descriptors.take(fd))));
    let prepared = Prepared { rings, memory: Some(memory) };
    let mut spec = run::open(config, &mut descriptors, prepared)?;
    spec.main_console = life.main_console;
    let estate = spec.estate.as_mut().expect("invariant: it is made of memory that is shared");
    if let Some(report) = &report_file {
        estate.exit_report = Some(keep(report)?.into());
    }
    let mut input = None;
    if let Some([typed, output]) = streams {
        estate.streams = Some([keep(&typed)?.into(), keep(&output)?.into()]);
        input = Some(typed);
        let output = Console::Stream(Box::new(Patient::of(output)));
        match life.main_console {
            MainConsole::Serial => spec.console = output,
            MainConsole::Virtio => spec.peripherals.console = Some(console::Output::Stream(output)),
        }
    }
    let machine = Machine::take_over(kvm, spec, (header, state, guest), life, ending)?;
    Ok(Taken { machine, listener, input, report_file })
}
