//! The processes of one machine's cloud: a supervisor (`wisp up`) that starts two children and mends them, the
//! control process without privileges, the agent with few. See [`supervisor`].
//!
//! Must never know: what a request or an instance is.

pub mod abilities;
pub mod agent;
pub mod bucket;
pub mod certificates;
pub mod control;
pub mod credentials;
pub mod handover;
pub(crate) mod keystone_conf;
pub mod privileges;
pub mod state_directory;
pub mod supervisor;
pub mod terminal;
