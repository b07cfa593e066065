//! Image files and disks: streamed in with checksums, cloned in constant time.

pub mod format;
