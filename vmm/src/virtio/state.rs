//! What of a device and its transport goes into a snapshot, as plain data.
//!
//! A device is saved while the guest stands still and the device is held, on the thread that works its queues off: so no
//! request is in flight, and what the driver has made available and the device has not looked at lies in guest memory, to be
//! looked at wherever the guest goes on. Pending notifications are not saved: a restored device looks at all its queues.
//!
//! What is read here may come from anywhere: a value that no device could have saved is an error, and positions in rings
//! are as harmless as those that a driver writes.
//!
//! Must never know: files, what a device does with its own part.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::Activation;
use super::spec::device_type::name;

/// Why a device cannot go on from a state.
#[derive(Debug, thiserror::Error)]
pub enum StateError {
    /// The saved bytes are none of this device's.
    #[error("the state of a virtio device cannot be read")]
    Encoding(#[from] postcard::Error),
    /// A balloon of the other kind.
    #[error("a firm memory balloon is given, and the guest's is not firm")]
    NotFirm,
    /// A device of another type.
    #[error("the guest has a {} where a {} is given", name(*.saved), name(*.given))]
    Type {
        /// The type in the snapshot.
        saved: u32,
        /// The type of what is there.
        given: u32,
    },
    /// The driver uses what is not there any more.
    #[error(
        "the guest uses features ({lacking:#x}) of its {} that the one given here does not have: that was a newer program's, or made otherwise",
        name(*.device)
    )]
    Features {
        /// The device's type.
        device: u32,
        /// The features, as bits.
        lacking: u64,
    },
    /// Another transport.
    #[error("the snapshot has a virtio device on another transport")]
    Transport,
    /// A guest's disk does not become smaller.
    #[error("the disk has {now} bytes, and its guest knows of {before}")]
    SmallerDisk {
        /// What it has.
        now: u64,
        /// What it had.
        before: u64,
    },
    /// Numbers that no device has.
    #[error("the state of a virtio device is none: {0}")]
    Invalid(&'static str),
}

/// How far a device has come in one queue: both are indices that wrap (VIRTIO 1.3 §2.7).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct QueuePosition {
    /// The next entry of the available ring that the device looks at.
    pub next_available: u16,
    /// The next entry of the used ring that it writes.
    pub next_used: u16,
}

/// What a device saves.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct DeviceState {
    /// Where each queue stands, in the order of the queues; none unless the driver has started the device.
    pub queues: Vec<QueuePosition>,
    /// What only the device understands, made by [`encode`]; often nothing.
    pub own: Vec<u8>,
}

impl DeviceState {
    /// The state of a device that has nothing of its own, with the queues that it is working on.
    #[must_use]
    pub fn of(active: Option<&Activation>) -> Self {
        let queues = active.map_or(&[][..], |active| &active.queues);
        Self { queues: queues.iter().map(super::queue::VirtQueue::position).collect(), own: Vec::new() }
    }

    /// The same with something of the device's own.
    #[must_use]
    pub fn with(self, own: &impl Serialize) -> Self {
        Self { own: encode(own), ..self }
    }
}

/// The bytes of a device's own part.
pub fn encode(own: &impl Serialize) -> Vec<u8> {
    postcard::to_stdvec(own).expect("invariant: states are plain data")
}

/// The reverse of [`encode`]. Nothing may be left.
///
/// # Errors
/// The bytes are none that `T` would have been encoded to.
pub fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, StateError> {
    let (value, rest) = postcard::take_from_bytes(bytes)?;
    if rest.is_empty() { Ok(value) } else { Err(StateError::Invalid("it goes on behind its end")) }
}

/// For a device that saves nothing of its own.
///
/// # Errors
/// There is something.
pub fn nothing_of_its_own(own: &[u8]) -> Result<(), StateError> {
    if own.is_empty() { Ok(()) } else { Err(StateError::Invalid("it has a part that this device has not")) }
}

/// Where a driver has put a queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Descriptors.
    pub size: u16,
    /// Guest addresses of the descriptor table, the available ring and the used ring.
    pub addresses: [u64; 3],
    /// In use.
    pub ready: bool,
}

/// What both transports have.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct NegotiationState {
    /// The device's type.
    pub device_type: u32,
    /// The features that the driver accepted.
    pub accepted: u64,
    /// The status field.
    pub status: u32,
    /// The device asks for a reset.
    pub broken: bool,
    /// A driver has started the device at some time.
    pub driven: bool,
    /// The queues.
    pub queues: Vec<QueueState>,
    /// The device.
    pub device: DeviceState,
}

/// A transport with its device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum TransportState {
    /// virtio-mmio.
    Mmio(MmioState),
    /// A PCI function.
    Pci(PciState),
}

impl TransportState {
    /// What both have.
    #[must_use]
    pub fn negotiation(&self) -> &NegotiationState {
        match self {
            Self::Mmio(state) => &state.negotiation,
            Self::Pci(state) => &state.negotiation,
        }
    }
}

/// The registers of a virtio-mmio window.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MmioState {
    /// What the device is and how far.
    pub negotiation: NegotiationState,
    /// `InterruptStatus`.
    pub interrupt_status: u32,
    /// `ConfigGeneration`.
    pub generation: u32,
    /// `DeviceFeaturesSel`, `DriverFeaturesSel`, `QueueSel`.
    pub selected: [u32; 3],
}

/// A PCI function: its configuration space and the registers behind its BAR.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PciState {
    /// What the device is and how far.
    pub negotiation: NegotiationState,
    /// Configuration space; of it only what a guest may change is taken over.
    pub space: Vec<u8>,
    /// The MSI-X table.
    pub vectors: Vec<crate::pci::msix::VectorState>,
    /// The ISR status.
    pub isr: u8,
    /// `config_generation`.
    pub generation: u8,
    /// `config_msix_vector`, then each queue's.
    pub chosen_vectors: Vec<u16>,
    /// `device_feature_select`, `driver_feature_select`.
    pub selected: [u32; 2],
    /// `queue_select`.
    pub queue_selected: u16,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn own_part_is_read_as_a_whole_or_not_at_all() {
        let bytes = encode(&(7_u64, vec![1_u8, 2]));
        assert_eq!(decode::<(u64, Vec<u8>)>(&bytes).unwrap(), (7, vec![1, 2]));
        assert!(decode::<(u64, Vec<u8>)>(&bytes[..bytes.len() - 1]).is_err());
        assert!(decode::<(u64, Vec<u8>)>(&[&bytes[..], &[0]].concat()).is_err());
        assert!(nothing_of_its_own(&[]).is_ok() && nothing_of_its_own(&[0]).is_err());
    }
}
