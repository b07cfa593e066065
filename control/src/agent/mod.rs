//! One host's agent and control's end of the line to it.

pub mod protocol;
