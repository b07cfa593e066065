//! A host's links, taps and packet filters: wanted minus observed becomes netlink operations.
//!
//! [`spec::HostNetwork`] says what shall be, [`apply::Host::observe`] what is, [`plan::plan`] (pure) what to do about
//! it, and [`apply::Host::apply`] does it. What Wisp makes carries the cloud's [`names::OwnerTag`]; nothing else is
//! ever changed or removed. Nothing here knows a tenant, a cloud id or a guest.
//!
//! Every call blocks for as long as the kernel needs (microseconds to a few milliseconds) and belongs to the network
//! namespace of the thread that called [`apply::Host::open`].

pub mod apply;
mod conntrack;
pub mod filter;
pub mod keeper;
pub mod names;
pub mod namespace;
pub mod netlink;
pub mod nftables;
pub mod plan;
pub mod probe;
pub mod spec;
pub mod tap;

#[cfg(test)]
mod testing;
