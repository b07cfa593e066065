//! Image files and disks: streamed in with checksums, cloned in constant time.
//!
//! Must never know: tenants, what an id stands for, who asks.

pub mod file_tree;
pub mod format;
pub mod image;
pub mod root_disk;
