//! Rows of trunks.

use serde::{Deserialize, Serialize};

use super::Standard;

/// A port that carries others, each in a segment of its own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trunk {
    /// Name, owner and the like.
    #[serde(flatten)]
    pub standard: Standard,
    /// The port that carries.
    pub port_id: String,
    /// Carries traffic, and can be changed.
    pub admin_state_up: bool,
    /// The ports that are carried.
    pub sub_ports: Vec<SubPort>,
}

impl Trunk {
    /// The ids of its ports, those that it carries included.
    pub fn ports(&self) -> Vec<&str> {
        let carried = self.sub_ports.iter().map(|sub_port| sub_port.port_id.as_str());
        carried.chain([self.port_id.as_str()]).collect()
    }
}

/// A port that is carried.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SubPort {
    /// The port.
    pub port_id: String,
    /// The VLAN id of its frames (IEEE 802.1Q).
    pub vlan: u16,
}
