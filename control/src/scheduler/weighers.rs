//! The weighers: more free wins, as with Nova's defaults, so that servers spread.

use super::{HostState, Request, Weigher};

/// Free memory.
#[derive(Debug)]
pub struct RamWeigher;

impl Weigher for RamWeigher {
    fn multiplier(&self) -> f64 {
        1.0
    }
    fn weigh(&self, host: &HostState, _request: &Request) -> f64 {
        host.free().memory_mib as f64
    }
}

/// Free virtual CPUs.
#[derive(Debug)]
pub struct CpuWeigher;

impl Weigher for CpuWeigher {
    fn multiplier(&self) -> f64 {
        1.0
    }
    fn weigh(&self, host: &HostState, _request: &Request) -> f64 {
        host.free().vcpus as f64
    }
}

/// Free disk.
#[derive(Debug)]
pub struct DiskWeigher;

impl Weigher for DiskWeigher {
    fn multiplier(&self) -> f64 {
        1.0
    }
    fn weigh(&self, host: &HostState, _request: &Request) -> f64 {
        host.free().disk_gib as f64
    }
}
