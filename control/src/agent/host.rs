//! The host's end of the line: keeps what control wants of this host, applies each instance on a bounded pool of
//! threads as soon as its wanted state or its actual one changes, and reports what it sees.
//!
//! Must never know: how a driver does it, or who owns an instance.

mod disks;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinSet;

use self::disks::Disks;
use super::frame::{self, FrameError};
use super::protocol::{
    Answer, InstanceObserved, InstanceState, InstanceWanted, PROTOCOL_VERSION, Power, QUERIES_MAX, Query,
    RouterObserved, ToAgent, ToControl, Wanted,
};
use crate::driver::{Driver, Surroundings};

/// How often the agent says that it lives, with fresh figures of the host.
pub const HEARTBEAT: Duration = Duration::from_secs(5);
/// How often the host's networks are looked at without a wish, and mended where somebody else has changed them.
const HEAL_INTERVAL: Duration = Duration::from_secs(10);
/// The most instances that are worked on at the same time: enough to keep a host's disks and kernel busy.
const APPLY_MAX: usize = 16;
/// The most instances of one host, as a bound on what a peer can make us keep.
const INSTANCES_MAX: usize = 65_536;

/// Why the line ended other than by control closing it.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    /// The line failed.
    #[error("the line to control failed")]
    Line(#[from] FrameError),
    /// Control wants more instances than a host can have.
    #[error("control wants more than {INSTANCES_MAX} instances of this host")]
    TooMany,
}

/// Serves one line to control until it ends. What runs on the host is not touched by the line's end.
pub async fn serve(
    stream: impl AsyncRead + AsyncWrite + Send + 'static,
    driver: Arc<dyn Driver>,
) -> Result<(), HostError> {
    let (mut reader, mut writer) = tokio::io::split(stream);
    let host = Arc::new(Host {
        driver: driver.clone(),
        state: Mutex::default(),
        outgoing: Notify::new(),
        apply_permits: Arc::new(Semaphore::new(APPLY_MAX)),
        disks: Disks::default(),
        runtime: tokio::runtime::Handle::current(),
    });
    let wake = {
        let host = Arc::downgrade(&host);
        Arc::new(move |id: &str| {
            if let Some(host) = host.upgrade() {
                host.touch(id);
            }
        })
    };
    let (report, instances) = run_blocking(move || (driver.host_report(), driver.adopt(wake))).await;
    tracing::info!(host = report.name, driver = report.driver, adopted = instances.len(), "the agent is up");
    let hello = ToControl::Hello { version: PROTOCOL_VERSION, host: report, instances };
    frame::write(&mut writer, &hello).await?;

    let sender = host.clone();
    // Ended with this line, however that ends: also when the future that serves it is dropped.
    let mut sending = JoinSet::new();
    sending.spawn(async move { sender.send(&mut writer).await });
    let healer = host.clone();
    sending.spawn(async move {
        loop {
            tokio::time::sleep(HEAL_INTERVAL).await;
            healer.network_work(|driver| driver.heal()).await;
        }
    });
    let receive = async {
        while let Some(message) = frame::read(&mut reader).await? {
            host.receive(message).await?;
        }
        Ok(())
    };
    tokio::select! {
        ended = receive => ended,
        sent = sending.join_next() => match sent {
            Some(Ok(sent)) => sent.map_err(HostError::from),
            Some(Err(_)) | None => Ok(()),
        },
    }
}

struct Host {
    driver: Arc<dyn Driver>,
    state: Mutex<State>,
    outgoing: Notify,
    apply_permits: Arc<Semaphore>,
    disks: Disks,
    runtime: tokio::runtime::Handle,
}

#[derive(Default)]
struct State {
    surroundings: Arc<Surroundings>,
    instances: HashMap<String, Instance>,
    /// What was observed and not yet sent: only the newest of each instance.
    observed: BTreeMap<String, InstanceObserved>,
    /// The routers as they were last told of, so that nothing is said twice.
    routers: BTreeMap<String, RouterObserved>,
    /// What was observed of routers and not yet sent.
    routers_observed: BTreeMap<String, RouterObserved>,
    answers: VecDeque<ToControl>,
    queries: usize,
}

struct Instance {
    wanted: InstanceWanted,
    /// A worker has it.
    busy: bool,
    /// Something changed since the worker took it.
    dirty: bool,
    /// What was last reported, so that nothing is said twice.
    reported: Option<InstanceObserved>,
}

impl Host {
    fn state(&self) -> MutexGuard<'_, State> {
        // The state is changed by whole values only: a panic of a driver's call leaves it whole.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn receive(self: &Arc<Self>, message: ToAgent) -> Result<(), HostError> {
        match message {
            ToAgent::Wanted(wanted) => self.want(wanted, true).await,
            ToAgent::Change(wanted) => self.want(wanted, false).await,
            ToAgent::Forget { networks, groups, disks, routers, zones } => {
                self.disks.forget(&disks);
                self.driver.know_names(&[], &zones, false);
                let surroundings = {
                    let mut state = self.state();
                    let mut surroundings = (*state.surroundings).clone();
                    surroundings.networks.retain(|id, _| !networks.contains(id));
                    surroundings.groups.retain(|id, _| !groups.contains(id));
                    surroundings.routers.retain(|id, _| !routers.contains(id));
                    state.surroundings = Arc::new(surroundings);
                    state.surroundings.clone()
                };
                self.surround(surroundings).await;
                Ok(())
            }
            ToAgent::Query { number, query } => {
                self.query(number, query);
                Ok(())
            }
        }
    }

    /// Takes over what is wanted; `whole` replaces the networks, groups and routers, else they are added to.
    async fn want(self: &Arc<Self>, wanted: Wanted, whole: bool) -> Result<(), HostError> {
        // Before the instances, which ask for them.
        self.driver.know_names(&wanted.zones, &[], whole);
        let (surroundings, changed) = {
            let mut state = self.state();
            let mut surroundings = (*state.surroundings).clone();
            if whole {
                surroundings.networks.clear();
                surroundings.groups.clear();
                surroundings.routers.clear();
            }
            surroundings.cloud_tag = wanted.cloud_tag;
            surroundings.networks.extend(wanted.networks.into_iter().map(|n| (n.id.clone(), n)));
            surroundings.groups.extend(wanted.groups.into_iter().map(|g| (g.id.clone(), g)));
            surroundings.routers.extend(wanted.routers.into_iter().map(|r| (r.id.clone(), r)));
            let changed = whole || surroundings != *state.surroundings;
            if changed {
                state.surroundings = Arc::new(surroundings);
            }
            (state.surroundings.clone(), changed)
        };
        if changed {
            self.surround(surroundings).await;
        }
        // Before the instances, which may need them.
        for disk in wanted.disks {
            self.want_disk(disk)?;
        }
        for instance in wanted.instances {
            self.want_instance(instance)?;
        }
        Ok(())
    }

    fn want_instance(self: &Arc<Self>, wanted: InstanceWanted) -> Result<(), HostError> {
        let id = wanted.id.clone();
        {
            let mut state = self.state();
            let full = state.instances.len() >= INSTANCES_MAX;
            match state.instances.get_mut(&id) {
                Some(instance) => instance.wanted = wanted,
                None if full => return Err(HostError::TooMany),
                None => {
                    let instance = Instance { wanted, busy: false, dirty: false, reported: None };
                    state.instances.insert(id.clone(), instance);
                }
            }
        }
        self.touch(&id);
        Ok(())
    }

    async fn surround(self: &Arc<Self>, surroundings: Arc<Surroundings>) {
        self.network_work(move |driver| driver.surround(&surroundings)).await;
    }

    /// Has the driver work on the host's networks, and tells what came of the routers.
    async fn network_work(&self, work: impl FnOnce(&dyn Driver) -> Result<(), String> + Send + 'static) {
        let driver = self.driver.clone();
        let (done, routers) = run_blocking(move || (work(&*driver), driver.routers())).await;
        if let Err(error) = done {
            tracing::error!(error, "the host's networks are not what they shall be");
        }
        let mut state = self.state();
        let known: BTreeMap<_, _> = routers.into_iter().map(|router| (router.id.clone(), router)).collect();
        let news = known.values().filter(|router| state.routers.get(&router.id) != Some(router));
        let news: Vec<_> = news.cloned().map(|router| (router.id.clone(), router)).collect();
        state.routers_observed.extend(news);
        state.routers = known;
        drop(state);
        self.outgoing.notify_one();
    }

    /// Has an instance applied, now or once more after the worker that has it.
    fn touch(self: &Arc<Self>, id: &str) {
        {
            let mut state = self.state();
            let Some(instance) = state.instances.get_mut(id) else { return };
            instance.dirty = true;
            if instance.busy {
                return;
            }
            instance.busy = true;
        }
        let host = self.clone();
        let id = id.to_string();
        self.runtime.spawn(async move { host.work(id).await });
    }

    /// Applies one instance until nothing has changed meanwhile.
    async fn work(self: Arc<Self>, id: String) {
        loop {
            let (wanted, surroundings) = {
                let mut state = self.state();
                let surroundings = state.surroundings.clone();
                let Some(instance) = state.instances.get_mut(&id) else { return };
                if !instance.dirty {
                    instance.busy = false;
                    return;
                }
                instance.dirty = false;
                (instance.wanted.clone(), surroundings)
            };
            let permit = self.apply_permits.clone().acquire_owned().await;
            let host = self.clone();
            let generation = wanted.generation;
            let applied = tokio::task::spawn_blocking(move || {
                let _permit = permit;
                host.driver.apply(&wanted, &surroundings, &|observed| host.report(observed))
            })
            .await;
            match applied {
                Ok(applied) => {
                    if let Some(after) = applied.again_after {
                        self.touch_after(&id, after);
                    }
                    self.report(applied.observed);
                }
                Err(error) => {
                    tracing::error!(instance.id = id, %error, "the driver failed its own invariants");
                    self.report_broken(&id, generation);
                }
            }
        }
    }

    fn touch_after(self: &Arc<Self>, id: &str, after: Duration) {
        let host = Arc::downgrade(self);
        let id = id.to_string();
        self.runtime.spawn(async move {
            tokio::time::sleep(after).await;
            if let Some(host) = host.upgrade() {
                host.touch(&id);
            }
        });
    }

    fn report_broken(&self, id: &str, generation: u64) {
        let boot = self.state().instances.get(id).map_or(0, |instance| instance.wanted.boot);
        self.report(InstanceObserved {
            id: id.into(),
            generation,
            boot,
            state: InstanceState::Failed,
            first_run_us: None,
            fault: Some("the host's driver failed on this instance; its log says where".into()),
            devices: Default::default(),
        });
    }

    /// Queues what was seen of an instance; only its newest state is sent.
    fn report(&self, observed: InstanceObserved) {
        let mut state = self.state();
        let deleted = observed.state == InstanceState::Deleted;
        if let Some(instance) = state.instances.get_mut(&observed.id) {
            if instance.reported.as_ref() == Some(&observed) {
                return;
            }
            instance.reported = Some(observed.clone());
            if deleted && instance.wanted.power == Power::Deleted {
                state.instances.remove(&observed.id);
            }
        }
        state.observed.insert(observed.id.clone(), observed);
        drop(state);
        self.outgoing.notify_one();
    }

    fn query(self: &Arc<Self>, number: u64, query: Query) {
        let mut state = self.state();
        if state.queries >= QUERIES_MAX {
            if state.answers.len() < 2 * QUERIES_MAX {
                let answer = Err("the host has too many questions to answer".into());
                state.answers.push_back(ToControl::Answer { number, answer });
            }
            drop(state);
            self.outgoing.notify_one();
            return;
        }
        state.queries += 1;
        drop(state);
        let host = self.clone();
        let driver = self.driver.clone();
        self.runtime.spawn(async move {
            let answer = run_blocking(move || match query {
                Query::Console { instance, bytes_max } => driver
                    .console(&instance, bytes_max)
                    .map(|text| Answer::Console { text })
                    .map_err(|error| error.to_string()),
                Query::Disks { backend } => driver.disks(&backend).map(|disks| Answer::Disks { disks }),
                Query::Diagnostics { instance } => {
                    driver.diagnostics(&instance).map(Answer::Diagnostics).map_err(|error| error.to_string())
                }
                Query::Traffic => driver.traffic().map(Answer::Traffic),
            })
            .await;
            let mut state = host.state();
            state.queries -= 1;
            state.answers.push_back(ToControl::Answer { number, answer });
            drop(state);
            host.outgoing.notify_one();
        });
    }

    /// Sends what is queued, and a sign of life on every [`HEARTBEAT`].
    async fn send(&self, writer: &mut (impl AsyncWrite + Unpin)) -> Result<(), FrameError> {
        let mut heartbeat = tokio::time::interval(HEARTBEAT);
        heartbeat.tick().await;
        loop {
            let due = tokio::select! {
                () = self.outgoing.notified() => false,
                _ = heartbeat.tick() => true,
            };
            if due {
                let driver = self.driver.clone();
                let report = run_blocking(move || driver.host_report()).await;
                frame::write(writer, &ToControl::Host(report)).await?;
            }
            loop {
                let next = {
                    let mut state = self.state();
                    match state.answers.pop_front() {
                        Some(answer) => Some(answer),
                        None => match self.disks.next_report() {
                            Some(report) => Some(ToControl::Disk(report)),
                            None => match state.routers_observed.pop_first() {
                                Some((_, router)) => Some(ToControl::Router(router)),
                                None => state.observed.pop_first().map(|(_, seen)| ToControl::Observed(seen)),
                            },
                        },
                    }
                };
                let Some(message) = next else { break };
                frame::write(writer, &message).await?;
            }
        }
    }
}

/// Runs a driver's call off the runtime's thread; a panic there is one here.
async fn run_blocking<T: Send + 'static>(call: impl FnOnce() -> T + Send + 'static) -> T {
    match tokio::task::spawn_blocking(call).await {
        Ok(value) => value,
        Err(error) => match error.try_into_panic() {
            Ok(panic) => std::panic::resume_unwind(panic),
            // The runtime is ending, and this task with it.
            Err(_) => std::future::pending().await,
        },
    }
}
