//! One microVM on /dev/kvm: memory, boot, devices, lifecycle; it knows no tenant and no cloud.

pub mod acpi;
mod backlog;
mod beside;
pub mod boot;
pub mod bus;
pub mod clock;
pub mod config;
pub mod connector;
pub mod devices;
pub mod document;
pub mod ending;
pub mod endpoint;
pub mod events;
pub mod guest;
pub mod handover;
pub mod inherited;
pub mod interactive;
pub mod kvm;
pub mod lifecycle;
pub mod memory;
mod mutex;
mod panic;
pub mod pci;
pub mod peripherals;
pub mod plugged;
pub mod power;
pub mod questions;
pub mod rpc;
pub mod run;
pub mod sandbox;
pub mod serial;
pub mod smbios;
pub mod snapshot;
pub mod supervisor;
pub mod terminal;
#[cfg(test)]
mod testing;
pub mod vcpu;
pub mod virtio;
pub mod vm;
pub mod waiting;
pub mod watchdog;

pub use interactive::{BootOptions, boot_interactive};
