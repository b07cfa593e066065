//! The reconcilers: what makes what is observed become what is wanted. They run on signal and on timer, look at the
//! rows as they are, are idempotent and take no input.
//!
//! Two tasks: one follows the rows (places servers, tells agents what changed, takes away what is gone), one takes in
//! what agents report. They meet only in the store.

pub(crate) mod image_task;
pub(crate) mod metadata;
mod place;
mod router;
pub mod wanted;

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::stream::{self, StreamExt};
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc};
use tokio::task::JoinHandle;

use crate::Control;
use crate::agent::link::{AgentEvent, Agents, SILENCE_MAX, WantedSource};
use crate::agent::protocol::{
    DiskObserved, HostReport, InstanceObserved, InstanceState, Power, RouterObserved,
};
use crate::error::{Error, Result};
use crate::model::compute::{Cloud, Fault, Host, Server, VmState};
use crate::model::volume::{DiskWork, QosSpec, Status, Volume, VolumeAttachment, VolumeType};
use crate::model::{network, random_hex_id, router as router_rows};
use crate::scheduler::{Allocation, Scheduler};
use crate::service::db::Db;
use crate::service::server::lifecycle::{fail_building, observe};
use crate::service::server::plug::settle_devices;
use crate::store::{Change, Row, Stored, Txn};
use crate::token::MasterKey;

/// How often everything is looked at without a signal.
const PASS_INTERVAL: Duration = Duration::from_secs(5);
/// How long hosts that are known but have not connected since the start are waited for before a server that finds no
/// host is refused: as long as a line may be silent.
const PATIENCE: Duration = SILENCE_MAX;
/// How soon what could not be written down is tried again.
pub(crate) const RETRY_INTERVAL: Duration = Duration::from_secs(1);
/// The most events taken in one go.
const EVENTS_MAX: usize = 1024;
/// The most row changes in flight at once: the store commits what comes together in one go.
const WRITES_MAX: usize = 64;

/// The parts of [`Control`] that the reconcilers work with.
pub(crate) struct Compute {
    agents: Agents,
    /// Taken by the first [`Control::start_reconcilers`].
    events: Mutex<Option<mpsc::Receiver<AgentEvent>>>,
    /// A host has connected: who waits for one may find one now.
    hosts_changed: Notify,
    scheduler: Scheduler,
    allocation: Allocation,
    cloud_tag: String,
}

impl std::fmt::Debug for Compute {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Compute").field("cloud_tag", &self.cloud_tag).finish_non_exhaustive()
    }
}

impl Compute {
    /// No agents yet; makes the cloud's tag at the first start.
    pub(crate) async fn open(db: &Db, master: &MasterKey) -> Result<Self> {
        let tag = db
            .transact_with(|cache| {
                if let Some(stored) = cache.get::<Cloud>(Cloud::ID) {
                    return Ok((Txn::new(), stored.row.tag.clone()));
                }
                let tag = random_hex_id()[..4].to_owned();
                Ok((Txn::new().create(&Cloud { id: Cloud::ID.to_owned(), tag: tag.clone() }), tag))
            })
            .await?;
        let (sender, events) = mpsc::channel(EVENTS_MAX);
        let (cache, master, cloud_tag) = (db.cache().clone(), master.clone(), tag.clone());
        let wanted: WantedSource =
            Arc::new(move |host| wanted::host_wanted(&cache, &master, &cloud_tag, host));
        Ok(Self {
            agents: Agents::new(wanted, sender),
            events: Mutex::new(Some(events)),
            hosts_changed: Notify::new(),
            scheduler: Scheduler::default(),
            allocation: Allocation::default(),
            cloud_tag: tag,
        })
    }
}

impl Control {
    /// Starts the reconcilers. They run until the store is closed or the handles are aborted; a second call starts
    /// nothing, since reports are taken by one task only.
    pub fn start_reconcilers(self: &Arc<Self>) -> Vec<JoinHandle<()>> {
        let events = self.compute.events.lock().unwrap_or_else(PoisonError::into_inner).take();
        let Some(events) = events else { return Vec::new() };
        vec![
            tokio::spawn(follow_rows(self.clone())),
            tokio::spawn(take_reports(self.clone(), events)),
            tokio::spawn(image_task::follow_tasks(self.clone())),
        ]
    }

    /// The lines to the hosts' agents, to be served by whoever accepts them.
    pub fn agents(&self) -> &Agents {
        &self.compute.agents
    }

    /// The tag in the names of links on the cloud's hosts: four hexadecimal digits.
    pub fn cloud_tag(&self) -> &str {
        &self.compute.cloud_tag
    }

    /// Whether a host is known that has not connected, or none is known at all.
    fn hosts_are_missing(&self) -> bool {
        let hosts = self.db.list::<Host>();
        hosts.is_empty() || hosts.iter().any(|host| !self.host_is_alive(&host.row.name))
    }

    /// One look at everything: what a pass on the timer does.
    async fn reconcile_all(&self, patient: bool) -> Result<()> {
        self.place_waiting(patient).await?;
        let cache = self.db.cache();
        let ids = |servers: Vec<Arc<Stored<Server>>>| -> Vec<String> {
            servers.iter().map(|server| server.row.id.clone()).collect()
        };
        let mut failed =
            ids(cache
                .filter::<Server>(|server| server.host.is_some() && server.vm_state == VmState::Building));
        failed.retain(|id| {
            cache.get::<Server>(id).is_some_and(|server| wanted::missing_part(cache, &server.row).is_some())
        });
        each(failed, |id| async move { self.fail_for_missing_part(&id).await }).await;
        each(ids(cache.filter(is_gone)), |id| async move { self.server_gone_from_host(&id).await }).await;
        self.agents().changed_all();
        Ok(())
    }

    /// A server whose port or network went before it ever ran is in ERROR, and leaves its host.
    async fn fail_for_missing_part(&self, id: &str) -> Result<()> {
        self.db
            .transact(|cache| {
                let Some(stored) = cache.get::<Server>(id) else { return Ok(Txn::new()) };
                let Some(message) = wanted::missing_part(cache, &stored.row) else { return Ok(Txn::new()) };
                if stored.row.discard || stored.row.vm_state != VmState::Building {
                    return Ok(Txn::new());
                }
                let mut server = stored.row.clone();
                let created_at = Timestamp::now();
                fail_building(&mut server, Fault { code: 500, message, details: String::new(), created_at });
                Ok(Txn::new().update(&stored, &server))
            })
            .await
    }

    /// Takes in what a host says of an instance.
    pub(crate) async fn instance_observed(&self, host: &str, report: &InstanceObserved) -> Result<()> {
        self.db
            .transact(|cache| {
                let Some(stored) = cache.get::<Server>(&report.id) else { return Ok(Txn::new()) };
                if stored.row.host.as_deref() != Some(host) {
                    return Ok(Txn::new());
                }
                let (mut server, now) = (stored.row.clone(), Timestamp::now());
                let before = server.clone();
                observe(&mut server, report, now);
                let (txn, port_went) = settle_devices(cache, Txn::new(), &mut server, report, now);
                if server == before && txn.is_empty() {
                    return Ok(txn);
                }
                let txn = txn.update(&stored, &server);
                if port_went {
                    // Its other ports stay as they are until its host has heard of that.
                    return Ok(txn);
                }
                let carries = matches!(report.state, InstanceState::Running | InstanceState::Paused);
                Ok(Self::bind_server_ports(cache, txn, &server.id, Some(host), carries))
            })
            .await
    }
}

/// Whether a host has said that it has nothing of a server which shall be gone from it.
fn is_gone(server: &Server) -> bool {
    let gone = server.observed == Some(InstanceState::Deleted) || server.host.is_none();
    gone && (server.power == Power::Deleted || server.discard)
}

/// Follows the rows until the store is closed.
async fn follow_rows(control: Arc<Control>) {
    let started = Instant::now();
    let mut changes = control.db.cache().subscribe();
    let mut timer = tokio::time::interval(PASS_INTERVAL);
    timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        let patient = started.elapsed() < PATIENCE && control.hosts_are_missing();
        let done = tokio::select! {
            change = changes.next() => match change {
                None => return,
                Some(Change::Resync) => control.reconcile_all(patient).await,
                Some(Change::Rows { rows, .. }) => follow(&control, &rows, patient).await,
            },
            _ = timer.tick() => control.reconcile_all(patient).await,
            () = control.compute.hosts_changed.notified() => control.place_waiting(patient).await.map(drop),
        };
        if let Err(error) = done {
            log(&error);
        }
    }
}

/// Does what the change of these rows asks for.
async fn follow(control: &Control, rows: &[(&'static str, String)], patient: bool) -> Result<()> {
    let cache = control.db.cache();
    let mut hosts = BTreeSet::new();
    let mut all_hosts = false;
    let mut waiting = false;
    let mut gone = Vec::new();
    let mut incomplete = Vec::new();
    for (kind, id) in rows {
        if *kind == Server::KIND {
            let Some(server) = cache.get::<Server>(id) else {
                all_hosts = true;
                continue;
            };
            let server = &server.row;
            waiting |= place::waits_for_host(server);
            if is_gone(server) {
                gone.push(id.clone());
            } else if server.host.is_some()
                && server.vm_state == VmState::Building
                && wanted::missing_part(cache, server).is_some()
            {
                incomplete.push(id.clone());
            }
            hosts.extend(server.host.clone());
        } else if *kind == DiskWork::KIND {
            hosts.extend(id.split_once('/').map(|(host, _)| host.to_owned()));
        } else if *kind == Volume::KIND {
            // A server may have waited for it.
            let Some(volume) = cache.get::<Volume>(id).filter(|v| !v.row.attachments.is_empty()) else {
                continue;
            };
            hosts.extend(volume.row.host.clone());
            // They are held to its limits, and may be elsewhere where hosts share a backend.
            let attachments = volume.row.attachments.iter();
            let servers = attachments.filter_map(|id| {
                cache.get::<Server>(cache.get::<VolumeAttachment>(id)?.row.server_id.as_ref()?)
            });
            hosts.extend(servers.filter_map(|server| server.row.host.clone()));
            if volume.row.status == Status::Error {
                let attachments = volume.row.attachments.iter();
                let attachments = attachments.filter_map(|id| cache.get::<VolumeAttachment>(id));
                incomplete.extend(attachments.filter_map(|attachment| attachment.row.server_id.clone()));
            }
        } else if *kind == network::Port::KIND {
            // A port that is its server's alone concerns that host; one that is gone may concern any, as may its
            // addresses in others' security groups.
            all_hosts |= cache.get::<network::Port>(id).is_none_or(|port| port.row.host.is_some());
        } else if SHARED_KINDS.contains(kind) {
            all_hosts = true;
        }
    }
    if waiting {
        control.place_waiting(patient).await?;
    }
    each(incomplete, |id| async move { control.fail_for_missing_part(&id).await }).await;
    each(gone, |id| async move { control.server_gone_from_host(&id).await }).await;
    if all_hosts {
        control.agents().changed_all();
    } else {
        hosts.iter().for_each(|host| control.agents().changed(host));
    }
    Ok(())
}

/// Kinds of rows that any host's wanted state may be made of, besides servers, ports and volumes.
const SHARED_KINDS: [&str; 11] = [
    network::Network::KIND,
    network::Subnet::KIND,
    network::SecurityGroup::KIND,
    network::SecurityGroupRule::KIND,
    network::address_group::AddressGroup::KIND,
    network::qos::QosPolicy::KIND,
    router_rows::Router::KIND,
    router_rows::FloatingIp::KIND,
    router_rows::PortForwarding::KIND,
    VolumeType::KIND,
    QosSpec::KIND,
];

/// Takes in reports until the agents' registry is gone. Of what has come meanwhile, only the newest of each instance
/// and host counts. An agent says everything once: what could not be written down is kept and tried again.
async fn take_reports(control: Arc<Control>, mut events: mpsc::Receiver<AgentEvent>) {
    let mut batch = Vec::with_capacity(EVENTS_MAX);
    let mut instances: HashMap<(String, String), InstanceObserved> = HashMap::new();
    let mut disks: HashMap<(String, String), DiskObserved> = HashMap::new();
    let mut routers: HashMap<(String, String), RouterObserved> = HashMap::new();
    loop {
        let received = events.recv_many(&mut batch, EVENTS_MAX);
        let received = if disks.is_empty() && instances.is_empty() && routers.is_empty() {
            received.await
        } else {
            // None have come, but some are kept.
            tokio::time::timeout(RETRY_INTERVAL, received).await.unwrap_or(1)
        };
        if received == 0 {
            return;
        }
        let mut hosts: HashMap<String, HostReport> = HashMap::new();
        let mut connected = false;
        for event in batch.drain(..) {
            match event {
                AgentEvent::Connected { host } => {
                    connected = true;
                    hosts.insert(host.name.clone(), host);
                }
                AgentEvent::Report { host } => {
                    hosts.insert(host.name.clone(), host);
                }
                AgentEvent::Observed { host, instance } => {
                    instances.insert((host, instance.id.clone()), instance);
                }
                AgentEvent::Router { host, router } => {
                    routers.insert((host, router.id.clone()), router);
                }
                AgentEvent::Disk { host, disk } => {
                    disks.insert((host, disk.id.clone()), disk);
                }
                AgentEvent::Gone { host } => {
                    tracing::warn!(host, "a host's agent is gone; its instances run on")
                }
            }
        }
        let control = &control;
        each(hosts.into_values().collect(), |host| async move { control.host_reported(&host).await }).await;
        let (kept_disks, kept_instances, kept_routers) =
            (&Mutex::default(), &Mutex::default(), &Mutex::default());
        each(routers.drain().collect(), |(id, router)| async move {
            let taken = control.router_observed(&id.0, &router).await;
            keep(kept_routers, &taken, id, router);
            taken
        })
        .await;
        each(disks.drain().collect(), |(id, disk)| async move {
            let taken = control.disk_observed(&id.0, &disk).await;
            keep(kept_disks, &taken, id, disk);
            taken
        })
        .await;
        each(instances.drain().collect(), |(id, instance)| async move {
            let taken = control.instance_observed(&id.0, &instance).await;
            keep(kept_instances, &taken, id, instance);
            taken
        })
        .await;
        routers.extend(kept_routers.lock().unwrap_or_else(PoisonError::into_inner).drain());
        disks.extend(kept_disks.lock().unwrap_or_else(PoisonError::into_inner).drain());
        instances.extend(kept_instances.lock().unwrap_or_else(PoisonError::into_inner).drain());
        if connected {
            control.compute.hosts_changed.notify_one();
        }
    }
}

/// Keeps a report that could not be written down now; a store that is closed takes nothing any more.
fn keep<T>(kept: &Mutex<HashMap<(String, String), T>>, taken: &Result<()>, id: (String, String), report: T) {
    if matches!(taken, Err(Error::Unavailable(_))) {
        kept.lock().unwrap_or_else(PoisonError::into_inner).insert(id, report);
    }
}

/// Does `work` for each item, many at once; what fails is logged and comes again with the next pass.
async fn each<T, F: Future<Output = Result<()>>>(items: Vec<T>, work: impl Fn(T) -> F) {
    stream::iter(items)
        .for_each_concurrent(WRITES_MAX, |item| {
            let done = work(item);
            async move {
                if let Err(error) = done.await {
                    log(&error);
                }
            }
        })
        .await;
}

fn log(error: &Error) {
    tracing::error!(error = error as &dyn std::error::Error, "a reconciler failed and tries again");
}

#[cfg(test)]
mod tests;
