//! The cloud's semantics: store, models, services, scheduler, reconcilers, agent and drivers; it knows no HTTP.

pub mod store;
