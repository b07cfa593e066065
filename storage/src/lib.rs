//! Image files and disks: streamed in with checksums, kept by digest in a store, cloned in constant time.
//!
//! Must never know: tenants, what an id stands for, who asks.

pub mod backend;
pub mod backup;
#[cfg(feature = "ceph")]
pub mod ceph;
pub mod container;
pub mod download;
pub mod file;
pub mod file_tree;
pub mod format;
mod hexadecimal;
pub mod image;
pub mod lvm;
pub mod root_disk;
pub mod store;
