//! Where a server goes: filters strike out the hosts that cannot take it, weighers order those that can.
//!
//! Everything here is a pure function of the hosts as they are known and of what is asked for. It must never know
//! the store, the agents or the clock; the claim that makes a decision binding is the reconciler's.

mod filters;
mod weighers;

use std::collections::BTreeMap;
use std::fmt;

pub use filters::{
    AvailabilityZoneFilter, ComputeFilter, CpuFilter, DiskFilter, ImagePropertiesFilter, RamFilter,
    RequestedHostFilter,
};
pub use weighers::{CpuWeigher, DiskWeigher, RamWeigher};

use serde::{Deserialize, Serialize};

/// Amounts of what a host has and a server takes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resources {
    /// Virtual CPUs.
    pub vcpus: u64,
    /// Memory in MiB.
    pub memory_mib: u64,
    /// Disk in GiB.
    pub disk_gib: u64,
}

impl Resources {
    /// The sum; a sum that does not fit is the largest there is.
    pub fn plus(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_add(other.vcpus),
            memory_mib: self.memory_mib.saturating_add(other.memory_mib),
            disk_gib: self.disk_gib.saturating_add(other.disk_gib),
        }
    }

    /// What is left when `other` is taken away; nothing becomes negative.
    pub fn minus(self, other: Self) -> Self {
        Self {
            vcpus: self.vcpus.saturating_sub(other.vcpus),
            memory_mib: self.memory_mib.saturating_sub(other.memory_mib),
            disk_gib: self.disk_gib.saturating_sub(other.disk_gib),
        }
    }

    /// Whether all of `other` fits into this.
    pub fn holds(self, other: Self) -> bool {
        self.vcpus >= other.vcpus && self.memory_mib >= other.memory_mib && self.disk_gib >= other.disk_gib
    }
}

/// How much more than it has a host promises, and what it keeps for itself.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Allocation {
    /// Virtual CPUs per logical CPU.
    pub cpu_ratio: f64,
    /// Guest memory per memory.
    pub ram_ratio: f64,
    /// Guest disk per disk.
    pub disk_ratio: f64,
    /// Memory that no guest gets, in MiB.
    pub reserved_memory_mib: u64,
}

impl Default for Allocation {
    /// Nova's `initial_ram_allocation_ratio`, `initial_disk_…` and `reserved_host_memory_mb`; of virtual CPUs Nova's older
    /// default `cpu_allocation_ratio`, since microVMs are many and mostly idle.
    fn default() -> Self {
        Self { cpu_ratio: 16.0, ram_ratio: 1.0, disk_ratio: 1.0, reserved_memory_mib: 512 }
    }
}

impl Allocation {
    /// What a host with `physical` resources can promise.
    pub fn capacity(&self, physical: Resources) -> Resources {
        let times = |amount: u64, ratio: f64| (amount as f64 * ratio) as u64;
        Resources {
            vcpus: times(physical.vcpus, self.cpu_ratio),
            memory_mib: times(physical.memory_mib.saturating_sub(self.reserved_memory_mib), self.ram_ratio),
            disk_gib: times(physical.disk_gib, self.disk_ratio),
        }
    }
}

/// One host as the scheduler sees it. Kept between decisions and updated in place.
#[derive(Debug, Clone, PartialEq)]
pub struct HostState {
    /// The host's name.
    pub name: String,
    /// Its availability zone.
    pub zone: String,
    /// Its agent answers.
    pub alive: bool,
    /// No administrator has closed it.
    pub enabled: bool,
    /// Its processors' architecture as images name it (`x86_64`).
    pub architecture: String,
    /// Logical CPUs of the host: no single guest gets more.
    pub cpus: u64,
    /// What it can promise in all.
    pub capacity: Resources,
    /// What it has promised.
    pub claimed: Resources,
}

impl HostState {
    /// What it can still promise.
    pub fn free(&self) -> Resources {
        self.capacity.minus(self.claimed)
    }
}

/// What is asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Request {
    /// What the server takes.
    pub resources: Resources,
    /// Only this zone.
    pub zone: Option<String>,
    /// Only this host.
    pub host: Option<String>,
    /// The image's properties: `hw_architecture`, `img_hv_type`, `hw_vm_mode` and their older names.
    pub image_properties: BTreeMap<String, String>,
}

/// Strikes out hosts.
pub trait Filter: Send + Sync {
    /// Its name, as Nova calls it.
    fn name(&self) -> &'static str;
    /// Whether the host can take the request.
    fn passes(&self, host: &HostState, request: &Request) -> bool;
}

/// Orders hosts: the larger the weight, the better.
pub trait Weigher: Send + Sync {
    /// How much this weigher counts beside the others; negative turns its order around.
    fn multiplier(&self) -> f64;
    /// The raw weight, in any unit: weights are scaled to 0..=1 over the hosts compared.
    fn weigh(&self, host: &HostState, request: &Request) -> f64;
}

/// No host was left, and where they went.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NoValidHost {
    /// How many hosts there were.
    pub hosts: usize,
    /// Each filter in turn with the number of hosts it left; ends with the one that left none.
    pub left: Vec<(&'static str, usize)>,
}

impl fmt::Display for NoValidHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("No valid host was found. There are not enough hosts available.")
    }
}

impl std::error::Error for NoValidHost {}

impl NoValidHost {
    /// For administrators: each filter with the hosts before and after it, as Nova logs it.
    pub fn details(&self) -> String {
        if self.hosts == 0 {
            return "There are no hosts.".to_owned();
        }
        let mut before = self.hosts;
        let mut steps = Vec::with_capacity(self.left.len());
        for (name, after) in &self.left {
            steps.push(format!("{name}: (start: {before}, end: {after})"));
            before = *after;
        }
        format!("Filter results: {}", steps.join(", "))
    }
}

/// The filters and weighers in force.
pub struct Scheduler {
    filters: Vec<Box<dyn Filter>>,
    weighers: Vec<Box<dyn Weigher>>,
}

impl Default for Scheduler {
    fn default() -> Self {
        Self::new(
            vec![
                Box::new(ComputeFilter),
                Box::new(RequestedHostFilter),
                Box::new(AvailabilityZoneFilter),
                Box::new(RamFilter),
                Box::new(CpuFilter),
                Box::new(DiskFilter),
                Box::new(ImagePropertiesFilter),
            ],
            vec![Box::new(RamWeigher), Box::new(CpuWeigher), Box::new(DiskWeigher)],
        )
    }
}

impl fmt::Debug for Scheduler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.filters.iter().map(|filter| filter.name()).collect();
        f.debug_struct("Scheduler").field("filters", &names).field("weighers", &self.weighers.len()).finish()
    }
}

impl Scheduler {
    /// A scheduler with these filters, asked in this order, and these weighers.
    pub fn new(filters: Vec<Box<dyn Filter>>, weighers: Vec<Box<dyn Weigher>>) -> Self {
        Self { filters, weighers }
    }

    /// The index of the best host for `request`; of equally good ones the first.
    ///
    /// # Errors
    /// [`NoValidHost`] if no host passes every filter.
    pub fn place(&self, hosts: &[HostState], request: &Request) -> Result<usize, NoValidHost> {
        let mut candidates: Vec<usize> = (0..hosts.len()).collect();
        let mut left = Vec::with_capacity(self.filters.len());
        for filter in &self.filters {
            candidates.retain(|&index| filter.passes(&hosts[index], request));
            left.push((filter.name(), candidates.len()));
            if candidates.is_empty() {
                break;
            }
        }
        if candidates.is_empty() {
            return Err(NoValidHost { hosts: hosts.len(), left });
        }
        let mut totals = vec![0.0; candidates.len()];
        let mut raw = vec![0.0; candidates.len()];
        for weigher in &self.weighers {
            for (slot, &index) in raw.iter_mut().zip(&candidates) {
                *slot = weigher.weigh(&hosts[index], request);
            }
            add_normalised(&mut totals, &raw, weigher.multiplier());
        }
        let mut best = 0;
        for (position, total) in totals.iter().enumerate() {
            if *total > totals[best] {
                best = position;
            }
        }
        Ok(candidates[best])
    }
}

/// Adds each raw weight, scaled to 0..=1 between the least and the greatest of them, times `multiplier` (Nova's
/// `nova.weights.normalize`: weights that are all the same count nothing).
fn add_normalised(totals: &mut [f64], raw: &[f64], multiplier: f64) {
    let least = raw.iter().copied().fold(f64::INFINITY, f64::min);
    let greatest = raw.iter().copied().fold(f64::NEG_INFINITY, f64::max);
    let range = greatest - least;
    if range > 0.0 {
        for (total, weight) in totals.iter_mut().zip(raw) {
            *total += multiplier * (weight - least) / range;
        }
    }
}

#[cfg(test)]
mod tests;
