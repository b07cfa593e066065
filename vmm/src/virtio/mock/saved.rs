//! A guest that goes on elsewhere, as from a snapshot.

use super::super::state::{StateError, TransportState};
use super::super::{Error, Shared, Transport as _};
use super::{MEMORY, MockGuest, Registers};
use crate::rpc::QueueTraffic;

impl MockGuest {
    /// Registers and device, as for a snapshot.
    pub fn save(&mut self) -> TransportState {
        match &self.registers {
            Registers::Mmio { transport, .. } => transport.save(),
            Registers::Pci { transport, .. } => transport.save(),
        }
    }

    /// What went through each queue.
    pub fn traffic(&self) -> Vec<QueueTraffic> {
        let passed = match &self.registers {
            Registers::Mmio { transport, .. } => transport.passed(),
            Registers::Pci { transport, .. } => transport.passed(),
        };
        passed.iter().map(|passed| passed.traffic()).collect()
    }

    /// A guest with the memory of this one that goes on from `state`, with `device` in the device's place.
    pub fn go_on(&self, device: Shared, state: &TransportState) -> Result<Self, StateError> {
        let failed = |_: Error| StateError::Invalid("the machine has no descriptors left");
        let mut guest = match self.registers {
            Registers::Mmio { .. } => Self::new(device),
            Registers::Pci { .. } => Self::over_pci(device),
        }
        .map_err(failed)?;
        for (start, length) in MEMORY {
            guest.put(start.0, &self.get(start.0, length));
        }
        match &mut guest.registers {
            Registers::Mmio { transport, .. } => transport.restore(state)?,
            Registers::Pci { transport, .. } => transport.restore(state)?,
        }
        Ok(guest)
    }
}
