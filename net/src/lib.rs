//! A host's links, taps and packet filters: wanted minus observed becomes netlink operations.

pub mod spec;
