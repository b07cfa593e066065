//! What an agent tells when it is asked: how an instance fares, and what has passed the host's ports and routers. None of
//! it is kept: it is read from the kernel, and from VMMs, at the moment of the question.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

pub use net::spec::{Count, LinkCounts};
use serde::{Deserialize, Serialize};
pub use vmm::rpc::{PairStatus, QueueCounts};

/// How an instance fares.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Diagnostics {
    /// Seconds since its first instruction.
    pub uptime_s: Option<u64>,
    /// Processor time of each virtual CPU in nanoseconds, as far as the host can tell.
    pub vcpu_times_ns: Vec<Option<u64>>,
    /// The host's memory that it occupies, in MiB.
    pub memory_used_mib: Option<u64>,
    /// What has passed its ports, by their ids, as the host sees it.
    pub ports: BTreeMap<String, LinkCounts>,
}

/// What has passed a host's ports and routers.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostTraffic {
    /// Instances' ports by their ids, as the host sees them.
    pub ports: BTreeMap<String, LinkCounts>,
    /// Of those whose devices have several pairs of queues, each pair's, as the guest sees them.
    #[serde(default)]
    pub queues: BTreeMap<String, Vec<PairStatus>>,
    /// Routers by their ids.
    pub routers: BTreeMap<String, RouterTraffic>,
}

/// What has passed a router.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RouterTraffic {
    /// Its ports by their ids, as the router sees them.
    pub ports: BTreeMap<String, LinkCounts>,
    /// By address outside: from the outside to it, and from it to the outside.
    pub floating: BTreeMap<Ipv4Addr, (Count, Count)>,
    /// By the ids of metering labels.
    pub labels: BTreeMap<String, Count>,
}
