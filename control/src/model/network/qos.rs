//! Rows of QoS policies.

use net::spec::Direction;
use serde::{Deserialize, Serialize};

use super::Standard;

/// A policy with its rules.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QosPolicy {
    /// Name, owner and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// Everyone may use it.
    pub shared: bool,
    /// New networks of its project have it.
    pub is_default: bool,
    /// What it says, in the order it was said.
    pub rules: Vec<QosRule>,
}

/// One thing that a policy says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QosRule {
    /// Its id.
    pub id: String,
    /// What.
    pub kind: QosRuleKind,
}

/// What a rule says. Directions are seen from the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum QosRuleKind {
    /// At most so many kilobits a second, and so many at once.
    BandwidthLimit {
        /// Kilobits a second.
        max_kbps: u32,
        /// Kilobits.
        max_burst_kbps: u32,
        /// Which way.
        direction: Direction,
    },
    /// How what leaves is marked (RFC 2474).
    DscpMarking {
        /// The code point.
        dscp_mark: u8,
    },
    /// At least so many kilobits a second.
    MinimumBandwidth {
        /// Kilobits a second.
        min_kbps: u32,
        /// Which way.
        direction: Direction,
    },
    /// At most so many thousand packets a second, and so many at once.
    PacketRateLimit {
        /// Thousands of packets a second.
        max_kpps: u32,
        /// Thousands of packets.
        max_burst_kpps: u32,
        /// Which way.
        direction: Direction,
    },
    /// At least so many thousand packets a second.
    MinimumPacketRate {
        /// Thousands of packets a second.
        min_kpps: u32,
        /// Which way; none is both together.
        direction: Option<Direction>,
    },
}
