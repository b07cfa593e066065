//! One host's agent and control's end of the line to it.

pub mod disk;
pub mod figures;
pub mod frame;
pub mod host;
pub mod link;
pub mod network;
pub mod protocol;
pub mod router;
