//! The cloud's semantics: store, models, services, scheduler, reconcilers, agent and drivers; it knows no HTTP.

pub mod agent;
pub mod caller;
pub mod driver;
pub mod error;
pub mod model;
pub mod store;
