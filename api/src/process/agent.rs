//! The agent's process: root with few capabilities, no store, lines to control; on the network it only asks name servers,
//! in guests' place.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use anyhow::Context;
use control::agent::host;
use control::driver::Driver;
use control::driver::fail_points::FailPoints;
use control::driver::fake::FakeDriver;
use control::driver::host::{Forwarders, HostDriver, HostOptions};
use control::driver::provider::{Provider, interfaces};
use control::driver::tunnel::Tunnel;
use control::driver::volumes::{NamedPlace, VolumePaths, Volumes};
use net::keeper::Namespaces;
use serde::{Deserialize, Serialize};
use storage::backup::{LineObjects, Objects};
use tokio::task::JoinSet;

use super::handover::{self, Inherited};
use super::{privileges, terminal};

/// The most threads for drivers' calls, over all hosts of one process.
const BLOCKING_THREADS_MAX: usize = 64;

/// What drives the host.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, clap::ValueEnum)]
#[serde(rename_all = "snake_case")]
pub enum DriverKind {
    /// Wisp's own VMM on /dev/kvm.
    Kvm,
    /// Nothing at all: instances that only pretend. Needs neither root nor KVM.
    Fake,
}

/// What the supervisor hands over. The process runs in the cloud's directory.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handover {
    /// The supervisor's process number.
    pub parent: i32,
    /// What is logged.
    pub log: String,
    /// What drives the hosts.
    pub driver: DriverKind,
    /// What keeps the disks of volumes.
    pub volumes: Vec<NamedPlace>,
    /// The physical networks that the host is on.
    pub providers: Vec<Provider>,
    /// How hosts' networks get to other hosts.
    pub tunnel: Option<Tunnel>,
    /// Who knows the names that are not the cloud's own.
    pub forwarders: Forwarders,
    /// The line to the bucket of backups, if there is one.
    pub backups: Option<Inherited>,
    /// The line to who makes routers' network namespaces, unless nobody does.
    pub namespaces: Option<Inherited>,
    /// Each host's name with its line to control; more than one only with the fake driver.
    pub hosts: Vec<(String, Inherited)>,
}

/// Runs until a line to control ends.
pub fn main(handover: i32) -> anyhow::Result<()> {
    let handover: Handover = handover::receive(handover)?;
    let mut lines = Vec::new();
    for (name, line) in handover.hosts {
        lines.push((name, line.take().context("take over a line to control")?));
    }
    let backups =
        handover.backups.map(Inherited::take).transpose().context("take over the line of backups")?;
    let namespaces = handover.namespaces.map(Inherited::take).transpose();
    let namespaces = namespaces.context("take over the line to the keeper of namespaces")?;
    let bucket = backups.map(|line| Arc::new(LineObjects::new(line.into())) as Arc<dyn Objects>);
    terminal::log(&handover.log)?;
    nix::sys::signal::SigSet::empty().thread_set_mask().context("let signals through")?;
    let block_devices = handover.volumes.iter().any(|one| one.place.makes_devices());
    privileges::keep_agent_capabilities(block_devices)?;
    privileges::die_with_parent(handover.parent)?;
    privileges::raise_open_files();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS_MAX)
        .build()
        .context("start the runtime")?;
    let served = runtime.block_on(serve(
        handover.driver,
        &handover.volumes,
        (&handover.providers, handover.tunnel, &handover.forwarders),
        bucket,
        namespaces,
        lines,
    ));
    // What a worker still does is healed by the next agent; a guest is not waited for.
    runtime.shutdown_background();
    served
}

/// What is said of hosts' networks: physical ones, the way to other hosts, who knows names.
type Networks<'a> = (&'a [Provider], Option<Tunnel>, &'a Forwarders);

async fn serve(
    kind: DriverKind,
    volumes: &[NamedPlace],
    networks: Networks<'_>,
    bucket: Option<Arc<dyn Objects>>,
    namespaces: Option<OwnedFd>,
    lines: Vec<(String, OwnedFd)>,
) -> anyhow::Result<()> {
    let mut hosts = JoinSet::new();
    for (name, line) in lines {
        let root = std::path::Path::new("volumes").join(&name);
        let (places, bucket) = (volumes.to_vec(), bucket.clone());
        let paths = VolumePaths { root, places, images: "control/images".into(), bucket };
        let namespaces = match &namespaces {
            Some(line) => Some(line.try_clone().context("share the line to the keeper of namespaces")?),
            None => None,
        };
        let driver = driver(kind, paths, networks, namespaces, &name)?;
        let line = std::os::unix::net::UnixStream::from(line);
        line.set_nonblocking(true)?;
        let line = tokio::net::UnixStream::from_std(line).context("use the line to control")?;
        hosts.spawn(async move { (name, host::serve(line, driver).await) });
    }
    let mut terminated = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
    tokio::select! {
        _ = terminated.recv() => Ok(()),
        ended = hosts.join_next() => match ended {
            Some(Ok((name, Err(error)))) => Err(error).with_context(|| format!("host {name}")),
            Some(Err(error)) => Err(error).context("a host's worker"),
            Some(Ok((_, Ok(())))) | None => Ok(()),
        },
    }
}

fn driver(
    kind: DriverKind,
    volumes: VolumePaths,
    (providers, tunnel, forwarders): Networks<'_>,
    namespaces: Option<OwnedFd>,
    name: &str,
) -> anyhow::Result<Arc<dyn Driver>> {
    match kind {
        DriverKind::Fake => {
            let directory = std::path::Path::new("run").join("fake").join(name);
            let driver = FakeDriver::new(name, Some(directory)).context("start the fake driver")?;
            let volumes = Volumes::open(volumes);
            Ok(Arc::new(driver.with_volumes(volumes.context("open the volumes")?)))
        }
        DriverKind::Kvm => {
            let driver = HostDriver::new(HostOptions {
                name: name.into(),
                run: "run".into(),
                images: "control/images".into(),
                program: "/proc/self/exe".into(),
                volumes,
                namespaces: namespaces.map_or(Namespaces::Own, Namespaces::kept),
                interfaces: interfaces(providers),
                tunnel,
                forwarders: forwarders.clone(),
                fail: FailPoints::default(),
            });
            Ok(Arc::new(driver.context("start the kvm driver")?))
        }
    }
}
