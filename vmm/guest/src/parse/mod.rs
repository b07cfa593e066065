//! What comes from outside (command line, ACPI tables, user data, request lines, DHCP options, routers' announcements, a load's frames)
//! as types.
//!
//! Must never know: the machine. Everything here is pure, allocates nothing, and is also compiled and tested on
//! the host by the `vmm` crate.

pub mod acpi;
pub mod cmdline;
pub mod dhcp;
pub mod ipv6;
pub mod route;
pub mod script;
pub mod segment;
pub mod stream;
pub mod wdat;
