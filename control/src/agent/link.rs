//! Control's end of the lines to the agents: who is there, what each was last told, what each sees.
//!
//! A line is told the whole wanted state once and then only what differs, computed anew from the rows whenever
//! [`Agents::changed`] says so. What an agent reports about an instance that is not its host's is refused.
//!
//! Must never know: how wanted state is computed, what becomes of what is observed.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{Notify, mpsc, oneshot};

use super::frame::{self, FrameError};
use super::protocol::{
    Answer, DiskObserved, DiskWanted, GroupWanted, HostReport, InstanceObserved, InstanceWanted,
    NetworkWanted, PROTOCOL_VERSION, QUERIES_MAX, Query, RouterObserved, RouterWanted, ToAgent, ToControl,
    Wanted, ZoneWanted,
};

/// A line on which nothing is heard for so long is cut: four heartbeats.
pub const SILENCE_MAX: Duration = Duration::from_secs(20);
/// How long a question may take.
pub const QUERY_TIMEOUT: Duration = Duration::from_secs(10);
/// The first frame has to come within this time.
const HELLO_TIMEOUT: Duration = Duration::from_secs(30);

/// Computes the whole wanted state of the host by that name from the rows as they are now.
pub type WantedSource = Arc<dyn Fn(&str) -> Wanted + Send + Sync>;

/// What an agent says, for whoever keeps the rows.
#[derive(Debug, Clone, PartialEq)]
pub enum AgentEvent {
    /// A host is there; everything it says comes after this.
    Connected {
        /// What it is and has.
        host: HostReport,
    },
    /// Its figures as they are now.
    Report {
        /// What it is and has.
        host: HostReport,
    },
    /// What an instance placed on this host is seen doing.
    Observed {
        /// The host's name.
        host: String,
        /// The instance.
        instance: InstanceObserved,
    },
    /// What became of a disk that was wanted of this host.
    Disk {
        /// The host's name.
        host: String,
        /// The disk.
        disk: DiskObserved,
    },
    /// What became of a router that is wanted of this host.
    Router {
        /// The host's name.
        host: String,
        /// The router.
        router: RouterObserved,
    },
    /// The line to the host has ended.
    Gone {
        /// The host's name.
        host: String,
    },
}

/// Why a line was ended by us.
#[derive(Debug, thiserror::Error)]
pub enum LinkError {
    /// The line failed.
    #[error("the line to the agent failed")]
    Line(#[from] FrameError),
    /// The first frame was another, or none.
    #[error("the agent did not say who it is")]
    NoHello,
    /// The other end speaks another version.
    #[error("the agent speaks version {0} of the protocol, we speak {PROTOCOL_VERSION}")]
    Version(u32),
    /// The other end is not whom this line is for.
    #[error("the line is for host {expected}, not for {actual}")]
    OtherHost {
        /// Whom the line is for.
        expected: String,
        /// Who came.
        actual: String,
    },
    /// Nothing was heard for [`SILENCE_MAX`].
    #[error("the agent was silent for {} seconds", SILENCE_MAX.as_secs())]
    Silent,
    /// A newer line to the same host took over.
    #[error("a newer line to the same host took over")]
    Replaced,
    /// Nobody takes the events any more.
    #[error("control is ending")]
    Ending,
}

/// Why a question has no answer.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// No line to that host.
    #[error("host {0} is not connected")]
    NotConnected(String),
    /// More questions than the agent takes are under way.
    #[error("host {0} has too many questions to answer")]
    Busy(String),
    /// It did not come in time.
    #[error("host {0} did not answer in time")]
    Timeout(String),
    /// The agent has no answer.
    #[error("{0}")]
    Refused(String),
}

/// The lines to all agents. Cheap to clone.
#[derive(Clone)]
pub struct Agents {
    lines: Arc<Mutex<HashMap<String, Arc<Line>>>>,
    wanted: WantedSource,
    events: mpsc::Sender<AgentEvent>,
}

/// One line to one host.
struct Line {
    host: String,
    /// The wanted state may differ from what the agent was told.
    changed: Notify,
    /// A newer line took over.
    replaced: Notify,
    queries: Mutex<Queries>,
    asked: Notify,
    /// Ids of the instances that are this host's, as it was last told.
    instances: Mutex<BTreeSet<String>>,
}

#[derive(Default)]
struct Queries {
    next_number: u64,
    unsent: Vec<ToAgent>,
    waiting: HashMap<u64, oneshot::Sender<Result<Answer, String>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing between lock and unlock leaves a value half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Agents {
    /// No lines yet. Events wait in `events` until they are taken: a slow taker slows the agents, loses nothing.
    pub fn new(wanted: WantedSource, events: mpsc::Sender<AgentEvent>) -> Self {
        Self { lines: Arc::default(), wanted, events }
    }

    /// Serves one line until it ends; with `expected` only to the host by that name.
    pub async fn serve(
        &self,
        stream: impl AsyncRead + AsyncWrite + Send + 'static,
        expected: Option<&str>,
    ) -> Result<(), LinkError> {
        let (mut reader, mut writer) = tokio::io::split(stream);
        let hello = tokio::time::timeout(HELLO_TIMEOUT, frame::read::<ToControl>(&mut reader)).await;
        let Ok(Some(ToControl::Hello { version, host, instances })) = hello.unwrap_or(Ok(None)) else {
            return Err(LinkError::NoHello);
        };
        if version != PROTOCOL_VERSION {
            return Err(LinkError::Version(version));
        }
        if let Some(expected) = expected.filter(|expected| *expected != host.name) {
            return Err(LinkError::OtherHost { expected: expected.into(), actual: host.name });
        }
        let line = Arc::new(Line {
            host: host.name.clone(),
            changed: Notify::new(),
            replaced: Notify::new(),
            queries: Mutex::default(),
            asked: Notify::new(),
            instances: Mutex::default(),
        });
        self.event(AgentEvent::Connected { host }).await?;
        if let Some(older) = lock(&self.lines).insert(line.host.clone(), line.clone()) {
            older.replaced.notify_one();
        }
        let ended = tokio::select! {
            ended = self.tell(&line, &mut writer) => ended,
            ended = self.hear(&line, &mut reader, instances) => ended,
            () = line.replaced.notified() => Err(LinkError::Replaced),
        };
        if self.remove(&line) {
            self.event(AgentEvent::Gone { host: line.host.clone() }).await?;
        }
        ended
    }

    /// The rows that make up this host's wanted state may have changed: it will be told what differs.
    /// Calls in between two tellings are one.
    pub fn changed(&self, host: &str) {
        if let Some(line) = lock(&self.lines).get(host) {
            line.changed.notify_one();
        }
    }

    /// As [`Self::changed`] for every host.
    pub fn changed_all(&self) {
        for line in lock(&self.lines).values() {
            line.changed.notify_one();
        }
    }

    /// Whether there is a line to the host.
    pub fn is_connected(&self, host: &str) -> bool {
        lock(&self.lines).contains_key(host)
    }

    /// The names of all hosts to which there is a line, in order.
    pub fn connected(&self) -> BTreeSet<String> {
        lock(&self.lines).keys().cloned().collect()
    }

    /// Asks an agent and waits for the answer, at most [`QUERY_TIMEOUT`].
    pub async fn query(&self, host: &str, query: Query) -> Result<Answer, QueryError> {
        let line = lock(&self.lines).get(host).cloned();
        let line = line.ok_or_else(|| QueryError::NotConnected(host.into()))?;
        let (number, answer) = {
            let mut queries = lock(&line.queries);
            if queries.waiting.len() >= QUERIES_MAX {
                return Err(QueryError::Busy(host.into()));
            }
            let number = queries.next_number;
            queries.next_number += 1;
            let (sender, answer) = oneshot::channel();
            queries.waiting.insert(number, sender);
            queries.unsent.push(ToAgent::Query { number, query });
            (number, answer)
        };
        line.asked.notify_one();
        let answered = tokio::time::timeout(QUERY_TIMEOUT, answer).await;
        lock(&line.queries).waiting.remove(&number);
        match answered {
            Ok(Ok(answer)) => answer.map_err(QueryError::Refused),
            Ok(Err(_)) => Err(QueryError::NotConnected(host.into())),
            Err(_) => Err(QueryError::Timeout(host.into())),
        }
    }

    /// Removes a line unless a newer one has taken its place.
    fn remove(&self, line: &Arc<Line>) -> bool {
        let mut lines = lock(&self.lines);
        let current = lines.get(&line.host).is_some_and(|current| Arc::ptr_eq(current, line));
        if current {
            lines.remove(&line.host);
        }
        current
    }

    async fn event(&self, event: AgentEvent) -> Result<(), LinkError> {
        self.events.send(event).await.map_err(|_| LinkError::Ending)
    }

    /// Tells the agent what is wanted, and what differs from then on, and passes on questions.
    async fn tell(&self, line: &Line, writer: &mut (impl AsyncWrite + Unpin)) -> Result<(), LinkError> {
        let mut told = Told::default();
        let mut whole = true;
        loop {
            for message in told.advance((self.wanted)(&line.host), std::mem::take(&mut whole)) {
                // Known as this host's before the agent can say anything of them.
                if let ToAgent::Wanted(wanted) | ToAgent::Change(wanted) = &message {
                    lock(&line.instances).extend(wanted.instances.iter().map(|i| i.id.clone()));
                }
                frame::write(writer, &message).await?;
            }
            lock(&line.instances).retain(|id| told.instances.contains_key(id));
            loop {
                let unsent = std::mem::take(&mut lock(&line.queries).unsent);
                for message in unsent {
                    frame::write(writer, &message).await?;
                }
                tokio::select! {
                    () = line.changed.notified() => break,
                    () = line.asked.notified() => {}
                }
            }
        }
    }

    async fn hear(
        &self,
        line: &Line,
        reader: &mut (impl AsyncRead + Unpin),
        adopted: Vec<InstanceObserved>,
    ) -> Result<(), LinkError> {
        lock(&line.instances).extend((self.wanted)(&line.host).instances.into_iter().map(|i| i.id));
        for instance in adopted {
            self.observed(line, instance).await?;
        }
        loop {
            let message = tokio::time::timeout(SILENCE_MAX, frame::read::<ToControl>(reader)).await;
            match message.map_err(|_| LinkError::Silent)?? {
                None => return Ok(()),
                Some(ToControl::Hello { .. }) => return Err(LinkError::NoHello),
                Some(ToControl::Host(host)) if host.name == line.host => {
                    self.event(AgentEvent::Report { host }).await?;
                }
                Some(ToControl::Host(host)) => {
                    return Err(LinkError::OtherHost { expected: line.host.clone(), actual: host.name });
                }
                Some(ToControl::Observed(instance)) => self.observed(line, instance).await?,
                Some(ToControl::Disk(disk)) => {
                    // What is wanted of a disk is kept by host: a report about another's finds nothing.
                    self.event(AgentEvent::Disk { host: line.host.clone(), disk }).await?;
                }
                Some(ToControl::Router(router)) => {
                    // Whether the router is this host's is seen where its rows are.
                    self.event(AgentEvent::Router { host: line.host.clone(), router }).await?;
                }
                Some(ToControl::Answer { number, answer }) => {
                    if let Some(asker) = lock(&line.queries).waiting.remove(&number) {
                        // Whoever asked may have stopped waiting.
                        let _ = asker.send(answer);
                    }
                }
            }
        }
    }

    async fn observed(&self, line: &Line, instance: InstanceObserved) -> Result<(), LinkError> {
        if !lock(&line.instances).contains(&instance.id) {
            tracing::warn!(
                host = line.host,
                instance.id = instance.id,
                "a report about an instance that is not this host's is refused"
            );
            return Ok(());
        }
        self.event(AgentEvent::Observed { host: line.host.clone(), instance }).await
    }
}

/// What an agent was last told.
#[derive(Default)]
struct Told {
    cloud_tag: String,
    networks: BTreeMap<String, NetworkWanted>,
    groups: BTreeMap<String, GroupWanted>,
    instances: BTreeMap<String, InstanceWanted>,
    disks: BTreeMap<String, DiskWanted>,
    routers: BTreeMap<String, RouterWanted>,
    zones: BTreeMap<String, ZoneWanted>,
}

impl Told {
    /// The messages that bring the agent from here to `wanted`: a change first, then what can be forgotten.
    fn advance(&mut self, wanted: Wanted, whole: bool) -> Vec<ToAgent> {
        let mut messages = Vec::new();
        let tag_changed = self.cloud_tag != wanted.cloud_tag;
        let networks: BTreeMap<_, _> = wanted.networks.into_iter().map(|n| (n.id.clone(), n)).collect();
        let groups: BTreeMap<_, _> = wanted.groups.into_iter().map(|g| (g.id.clone(), g)).collect();
        let instances: BTreeMap<_, _> = wanted.instances.into_iter().map(|i| (i.id.clone(), i)).collect();
        let disks: BTreeMap<_, _> = wanted.disks.into_iter().map(|d| (d.id.clone(), d)).collect();
        let routers: BTreeMap<_, _> = wanted.routers.into_iter().map(|r| (r.id.clone(), r)).collect();
        let zones: BTreeMap<_, _> = wanted.zones.into_iter().map(|z| (z.id.clone(), z)).collect();
        let change = Wanted {
            cloud_tag: wanted.cloud_tag.clone(),
            networks: differing(&self.networks, &networks),
            groups: differing(&self.groups, &groups),
            instances: differing(&self.instances, &instances),
            disks: differing(&self.disks, &disks),
            routers: differing(&self.routers, &routers),
            zones: differing(&self.zones, &zones),
        };
        let empty = change.networks.is_empty()
            && change.groups.is_empty()
            && change.instances.is_empty()
            && change.disks.is_empty()
            && change.routers.is_empty()
            && change.zones.is_empty();
        if whole {
            messages.push(ToAgent::Wanted(change));
        } else if !empty || tag_changed {
            messages.push(ToAgent::Change(change));
        }
        let gone_networks = gone(&self.networks, &networks);
        let gone_groups = gone(&self.groups, &groups);
        let gone_disks = gone(&self.disks, &disks);
        let gone_routers = gone(&self.routers, &routers);
        let gone_zones = gone(&self.zones, &zones);
        let all_gone = [&gone_networks, &gone_groups, &gone_disks, &gone_routers, &gone_zones];
        if !all_gone.iter().all(|gone| gone.is_empty()) {
            messages.push(ToAgent::Forget {
                networks: gone_networks,
                groups: gone_groups,
                disks: gone_disks,
                routers: gone_routers,
                zones: gone_zones,
            });
        }
        *self = Self { cloud_tag: wanted.cloud_tag, networks, groups, instances, disks, routers, zones };
        messages
    }
}

fn differing<T: Clone + PartialEq>(old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> Vec<T> {
    new.iter().filter(|(id, value)| old.get(*id) != Some(value)).map(|(_, value)| value.clone()).collect()
}

fn gone<T>(old: &BTreeMap<String, T>, new: &BTreeMap<String, T>) -> Vec<String> {
    old.keys().filter(|id| !new.contains_key(*id)).cloned().collect()
}

#[cfg(test)]
mod tests;
