//! Taking down all that a cloud runs and has made on a host, without its control process: instances end, links and
//! rules go. Disks and what is written down of the instances stay, so that the cloud can start them again.

use std::io;
use std::path::Path;
use std::time::{Duration, Instant};

use net::apply::Host;
use net::keeper::Namespaces;
use rustix::process::Signal;
use vmm::rpc::Client;

use super::cgroup::{self, Cgroups};
use super::directory::Directory;
use super::{Process, adopt_process, network, sentence};
use crate::driver::process_id::has_ended_within;

/// What was taken down.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Removed {
    /// Instances that ran, with whether they had to be forced.
    pub instances: Vec<(String, bool)>,
    /// Links by name.
    pub links: Vec<String>,
    /// Network namespaces of routers by name.
    pub namespaces: Vec<String>,
    /// Tables of packet filter rules by name.
    pub tables: Vec<String>,
}

/// Why something could not be taken down.
#[derive(Debug, thiserror::Error)]
pub enum RemovalError {
    /// The run directory.
    #[error("read the run directory")]
    Run(#[source] io::Error),
    /// One instance.
    #[error("end the instance {instance}")]
    Instance {
        /// Which.
        instance: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Links and rules.
    #[error("remove the cloud's links and rules")]
    Network(#[from] net::apply::Error),
}

/// Takes everything down. Guests are asked first and have `patience` in all; then they are forced.
pub fn remove_all(run: &Path, patience: Duration) -> Result<Removed, RemovalError> {
    let mut removed = Removed::default();
    let ids = match Directory::ids(run) {
        Ok(ids) => ids,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(removed),
        Err(error) => return Err(RemovalError::Run(error)),
    };
    let cgroups = Cgroups::find();
    let mut running = Vec::new();
    for id in ids {
        let directory = Directory::of(run, &id).map_err(RemovalError::Run)?;
        if let Some(process) = directory.process().and_then(|process| adopt_process(&id, process)) {
            let asked =
                Client::connect(&directory.control_socket()).and_then(|mut client| client.stop(false));
            running.push((id.clone(), directory.clone(), process, asked.is_ok()));
        } else {
            // What an agent left that ended between a process's end and its group's.
            cgroup::remove_when_idle(cgroups.remove(&id));
        }
        interrupt(&directory);
    }
    let deadline = Instant::now() + patience;
    for (id, directory, process, asked) in running {
        let left = if asked { deadline.saturating_duration_since(Instant::now()) } else { Duration::ZERO };
        let forced =
            end(&process, left).map_err(|source| RemovalError::Instance { instance: id.clone(), source })?;
        cgroup::remove_when_idle(cgroups.remove(&id));
        directory.remove_run().map_err(|source| RemovalError::Instance { instance: id.clone(), source })?;
        removed.instances.push((id, forced));
    }
    if let Some(tag) = network::kept_tag(run) {
        let mut host = Host::open(tag, Namespaces::Own)?;
        let observed = host.observe()?;
        let links = observed.taps.keys().chain(observed.vxlans.keys()).chain(observed.bridges.keys());
        removed.links =
            links.chain(observed.router_links.keys()).chain(&observed.misshapen).cloned().collect();
        removed.namespaces = observed.routers.into_keys().collect();
        if observed.filter.is_some() {
            removed.tables.push(tag.table());
        }
        host.remove_all()?;
        network::forget_tag(run).map_err(RemovalError::Run)?;
    }
    Ok(removed)
}

/// Writes down that an instance did not end of its own: what shall run starts again with the cloud.
fn interrupt(directory: &Directory) {
    let Some(mut record) = directory.record() else { return };
    record.host_boot.clear();
    if let Err(error) = directory.write_record(&record) {
        tracing::warn!(error = sentence(&error), "cannot write down that the instance was taken down");
    }
}

/// Waits for a process that was asked to end, then ends it. Returns whether it had to be forced.
fn end(process: &Process, patience: Duration) -> io::Result<bool> {
    if has_ended_within(&process.pidfd, patience)? {
        return Ok(false);
    }
    match rustix::process::pidfd_send_signal(&process.pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => {}
        Err(error) => return Err(error.into()),
    }
    if !has_ended_within(&process.pidfd, super::start::KILL_TIMEOUT)? {
        return Err(io::Error::new(io::ErrorKind::TimedOut, "the VMM process does not end"));
    }
    Ok(true)
}
