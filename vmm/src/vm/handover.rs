//! A machine that goes to another process, and one that came from there (`crate::handover`).

use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use super::{Error, Machine, MachineSpec, Whose};
use crate::config::{Boot, Transport, VmmConfig};
use crate::ending::EndingSignal;
use crate::handover::{self, Document, Given, Kept, Life, Line, monotonic_ns};
use crate::kvm::Kvm;
use crate::lifecycle::Event;
use crate::memory::GuestMemory;
use crate::memory::shared::are_all_shared;
use crate::mutex::lock;
use crate::rpc::{UpgradeStatus, VmState};
use crate::snapshot::{Header, MachineState, Snapshot, message};

impl Machine {
    /// Whether the guest may be handed over.
    #[must_use]
    pub fn is_upgradable(&self) -> bool {
        self.estate.is_some()
    }

    /// Whether it was.
    #[must_use]
    pub fn is_handed_over(&self) -> bool {
        self.handed_over
    }

    /// How the guest came here, if it was another process's before.
    #[must_use]
    pub fn upgraded(&self) -> Option<UpgradeStatus> {
        self.upgraded
    }

    /// Hands the guest over to the successor at the other end of `stream`, within `patience`, and `listener`, the control
    /// socket, with it. From then on nothing here may touch what is the guest's.
    ///
    /// # Errors
    /// The guest is as it was and goes on if it ran; the successor does not have it.
    pub fn hand_over(
        &mut self,
        stream: UnixStream,
        listener: Option<BorrowedFd<'_>>,
        patience: Duration,
    ) -> Result<(), handover::Error> {
        let estate = self.estate.as_ref().ok_or(handover::Error::NotUpgradable)?;
        if !are_all_shared(&self.devices.wires().guest) {
            return Err(handover::Error::NotUpgradable);
        }
        if estate.terminal {
            return Err(handover::Error::Terminal);
        }
        let runs = match self.state {
            VmState::Running => true,
            VmState::Paused => false,
            VmState::Created | VmState::Stopping | VmState::Stopped => return Err(handover::Error::NotThere),
        };
        let prepare = |source| handover::Error::Talk { step: "prepare the connection", source };
        let line = Line::new(stream, patience).map_err(prepare)?;
        self.devices.settle();
        if self.devices.iter().any(|device| device.is_introducing()) {
            return Err(handover::Error::Introduced);
        }
        // What takes long, before the guest stands still.
        self.devices.write_out().map_err(handover::Error::WriteOut)?;
        let stopped_ns = runs.then(monotonic_ns);
        if runs {
            self.apply(Event::Pause).expect("invariant: a guest that runs can be paused");
        }
        let given = self.give(&line, listener, stopped_ns);
        match given {
            Ok(()) => self.handed_over = true,
            Err(_) if runs => {
                self.apply(Event::Resume).expect("invariant: it was paused here");
            }
            Err(_) => {}
        }
        given
    }

    /// Gives the guest, which stands still.
    fn give(
        &self,
        line: &Line,
        listener: Option<BorrowedFd<'_>>,
        stopped_ns: Option<u64>,
    ) -> Result<(), handover::Error> {
        let estate = self.estate.as_ref().ok_or(handover::Error::NotUpgradable)?;
        self.devices.write_out().map_err(handover::Error::WriteOut)?;
        let saved_ns = monotonic_ns();
        let state = self.save().map_err(|error| handover::Error::Save(Box::new(error)))?;
        let (header, state) =
            message::encode(self.origin.memory_mib, self.origin.description.clone(), &state)?;
        let mut given = Given::default();
        let (mut disks, mut nics) = (Vec::new(), Vec::new());
        for kept in self.devices.kept() {
            match kept {
                Kept::Disk(config, files) => disks.push(given.disk(config, files)),
                Kept::Nic(config, queues) => nics.push(given.nic(config, queues)),
            }
        }
        let config = VmmConfig {
            memory_mib: 0,
            huge_pages: estate.memory.pages(),
            upgradable: true,
            vcpus: 0,
            cpu: self.origin.description.cpu,
            boot: Boot::Disk,
            transport: Transport::Auto,
            system: None,
            cmdline: String::new(),
            disks,
            nics,
            peripherals: given.peripherals(&estate.peripherals),
            console_log: estate.console_log.as_ref().map(|log| given.add(log.as_fd())),
            control_socket: listener.map(|listener| given.add(listener)),
            exit_report: estate.exit_report.as_ref().map(|report| given.add(report.as_fd())),
        };
        let streams = estate.streams.as_ref();
        let document = Document {
            config,
            memory: given.add(estate.memory.file().as_fd()),
            streams: streams.map(|[input, output]| [given.add(input.as_fd()), given.add(output.as_fd())]),
            life: Life {
                main_console: self.main_console,
                saved_ns,
                stopped_ns,
                runs: stopped_ns.is_some(),
                first_run_us: self.first_run_us,
                console_bytes: lock(&self.serial).console_bytes(),
                times: self.upgraded.map_or(0, |upgraded| upgraded.times),
            },
        };
        handover::send(line, (&header, &state), &document, &given)
    }

    /// Puts the machine together of a guest that is being handed over here. Nothing of the guest's is touched before
    /// [`Self::take_charge`].
    ///
    /// # Errors
    /// It cannot go on here.
    pub(crate) fn take_over(
        kvm: &Kvm,
        spec: MachineSpec,
        (header, state, memory): (Header, MachineState, GuestMemory),
        life: Life,
        ending: &EndingSignal,
    ) -> Result<Self, Error> {
        let snapshot = Snapshot { header, state, memory, pager: None };
        let saved = Duration::from_nanos(life.saved_ns);
        let mut machine = Self::go_on(kvm, spec, snapshot, Whose::Same { saved }, ending)?;
        machine.state = VmState::Paused;
        machine.first_run_us = life.first_run_us;
        lock(&machine.serial).count_from(life.console_bytes);
        machine.handing = Some(life);
        Ok(machine)
    }

    /// The guest is this process's now, and goes on if it ran.
    pub(crate) fn take_charge(&mut self) {
        let Some(life) = self.handing.take() else { return };
        if let Some(reading) = self.clock_due.take() {
            reading.write(&self.devices.wires().guest);
        }
        if life.runs {
            self.apply(Event::Resume).expect("invariant: it is paused");
        }
        let stood_ns = life.stopped_ns.map(|stopped| monotonic_ns().saturating_sub(stopped));
        let times = life.times.saturating_add(1);
        self.upgraded = Some(UpgradeStatus { times, standstill_us: stood_ns.map(|ns| ns / 1000) });
    }
}
