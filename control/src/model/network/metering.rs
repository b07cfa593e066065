//! Rows of metering labels and their rules, and what administrators note of hosts' network agents.

use ipnet::IpNet;
use net::spec::Direction;
use serde::{Deserialize, Serialize};

use super::Standard;

/// What traffic is counted by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeteringLabel {
    /// Name, owner and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// It is every project's.
    pub shared: bool,
}

/// Which traffic is a label's.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MeteringRule {
    /// Its id.
    pub id: String,
    /// The label.
    pub label_id: String,
    /// Seen from the guests.
    pub direction: Direction,
    /// This traffic is left out.
    pub excluded: bool,
    /// The other side, by the older way of saying it.
    pub remote_ip_prefix: Option<IpNet>,
    /// Where it comes from.
    pub source_ip_prefix: Option<IpNet>,
    /// Where it goes.
    pub destination_ip_prefix: Option<IpNet>,
}

/// What an administrator notes of a host's network agent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AgentNote {
    /// The host's name.
    pub host: String,
    /// Free text.
    pub description: String,
}
