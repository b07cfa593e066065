//! OpenStack-compatible REST over the control plane, and the commands of the wisp binary.
//!
//! A request comes in at [`server`], is framed for its service by [`router`], and reaches a handler of a few lines
//! that calls `control`. Handlers decide nothing: they parse, call, and write the service's own JSON.

pub mod audit;
pub mod command;
pub mod compute;
pub mod context;
pub mod demo;
pub mod discovery;
pub mod error;
pub mod guest;
pub mod identity;
pub mod image;
pub mod lab;
mod metrics;
pub mod microversion;
pub mod network;
pub mod openapi;
pub mod page;
pub mod placement;
pub mod process;
pub mod router;
pub mod server;
pub mod volume;
mod wording;

#[cfg(test)]
pub(crate) mod harness;
