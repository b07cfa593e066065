//! One microVM on /dev/kvm: memory, boot, devices, lifecycle; it knows no tenant and no cloud.

pub mod bus;
pub mod config;
pub mod endpoint;
pub mod memory;
pub mod rpc;
pub mod virtio;
