//! The filters, each named as Nova names its own.

use super::{Filter, HostState, Request};

/// The host's agent answers and no administrator has closed it.
#[derive(Debug)]
pub struct ComputeFilter;

impl Filter for ComputeFilter {
    fn name(&self) -> &'static str {
        "ComputeFilter"
    }
    fn passes(&self, host: &HostState, _request: &Request) -> bool {
        host.alive && host.enabled
    }
}

/// The host an administrator asked for (Compute API: create server, `host`, microversion 2.74).
#[derive(Debug)]
pub struct RequestedHostFilter;

impl Filter for RequestedHostFilter {
    fn name(&self) -> &'static str {
        "RequestedHostFilter"
    }
    fn passes(&self, host: &HostState, request: &Request) -> bool {
        request.host.as_ref().is_none_or(|wished| *wished == host.name)
    }
}

/// The zone that was asked for.
#[derive(Debug)]
pub struct AvailabilityZoneFilter;

impl Filter for AvailabilityZoneFilter {
    fn name(&self) -> &'static str {
        "AvailabilityZoneFilter"
    }
    fn passes(&self, host: &HostState, request: &Request) -> bool {
        request.zone.as_ref().is_none_or(|wished| *wished == host.zone)
    }
}

/// The memory is there.
#[derive(Debug)]
pub struct RamFilter;

impl Filter for RamFilter {
    fn name(&self) -> &'static str {
        "RamFilter"
    }
    fn passes(&self, host: &HostState, request: &Request) -> bool {
        host.free().memory_mib >= request.resources.memory_mib
    }
}

/// The virtual CPUs are there, and the host has as many of its own as this one guest wants: overcommitment is
/// between guests, never within one.
#[derive(Debug)]
pub struct CpuFilter;

impl Filter for CpuFilter {
    fn name(&self) -> &'static str {
        "CpuFilter"
    }
    fn passes(&self, host: &HostState, request: &Request) -> bool {
        host.free().vcpus >= request.resources.vcpus && host.cpus >= request.resources.vcpus
    }
}

/// The disk is there.
#[derive(Debug)]
pub struct DiskFilter;

impl Filter for DiskFilter {
    fn name(&self) -> &'static str {
        "DiskFilter"
    }
    fn passes(&self, host: &HostState, request: &Request) -> bool {
        host.free().disk_gib >= request.resources.disk_gib
    }
}

/// What the image says it needs: architecture, hypervisor and machine kind.
#[derive(Debug)]
pub struct ImagePropertiesFilter;

/// The hypervisors an image may name and still run here: the guest sees KVM and virtio under each of these names.
const HYPERVISORS: [&str; 3] = ["kvm", "qemu", "wisp"];

impl Filter for ImagePropertiesFilter {
    fn name(&self) -> &'static str {
        "ImagePropertiesFilter"
    }
    fn passes(&self, host: &HostState, request: &Request) -> bool {
        let property = |newer: &str, older: &str| {
            let properties = &request.image_properties;
            properties.get(newer).or_else(|| properties.get(older)).map(|value| value.to_ascii_lowercase())
        };
        let canonical = |name: String| if name == "amd64" { "x86_64".to_owned() } else { name };
        property("hw_architecture", "architecture")
            .map(canonical)
            .is_none_or(|wished| wished == host.architecture)
            && property("img_hv_type", "hypervisor_type")
                .is_none_or(|wished| HYPERVISORS.contains(&wished.as_str()))
            && property("hw_vm_mode", "vm_mode").is_none_or(|wished| wished == "hvm")
    }
}
