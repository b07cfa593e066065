//! Linux guests made from Debian's packages: slim kernels, small root file systems, and whole-disk images like those
//! that distributions publish.
//!
//! Everything is built as files in a cache directory that may be deleted at any time, without mounts and loop devices,
//! and the same inputs give the same bytes. What was built is kept under a name made of a hash of its inputs.
//!
//! Must never know: HTTP handlers, the store, how a guest is run.

pub mod cache;
pub mod image;
pub mod kernel;
pub mod packages;
pub mod progress;
pub mod tools;
pub mod upload;
