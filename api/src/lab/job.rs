//! What the host inside is told to do, written into its ramdisk.
//!
//! Must never know: how either side does it.

use std::net::Ipv4Addr;

use serde::{Deserialize, Serialize};

/// Where the job is in the ramdisk.
pub(super) const PATH: &str = "/lab/job.json";
/// The name of the virtio-serial port that is the line to the outside.
pub(super) const PORT: &str = "wisp.lab";
/// Where commands start, and where files go whose place nobody named.
pub(super) const HOME: &str = "/root";

/// One run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Job {
    /// The command's words.
    pub(super) command: Vec<String>,
    /// Its environment, beside the few variables that every command has.
    pub(super) environment: Vec<(String, String)>,
    /// The modules to load, in order, as paths inside.
    pub(super) modules: Vec<String>,
    /// The files to bring out.
    pub(super) bring: Vec<String>,
    /// The network devices, in the order of their making.
    pub(super) links: Vec<Link>,
}

/// The address of a network device inside.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub(super) struct Link {
    /// Its address.
    pub(super) address: Ipv4Addr,
    /// The length of its network's prefix.
    pub(super) prefix: u8,
    /// The default gateway behind it, if it is the way out.
    pub(super) gateway: Option<Ipv4Addr>,
    /// The host passes packets on: what is behind it can be reached.
    pub(super) forwards: bool,
}
