//! The host's resolver: it answers what guests ask about names. A guest's VMM, which has no network of its own, carries
//! its questions to the control socket, where they are fetched from here; so a new agent takes up where the last one was,
//! and who asks is known by the process that carries it, whatever the guest writes.
//!
//! | question | answer |
//! |---|---|
//! | a name in the domain of the guest's network, or one of a single label | what the network's ports have; `NXDOMAIN` |
//! | an address of the network's subnets | the port's name; `NXDOMAIN` |
//! | anything else | what the host's own servers say, asked anew |
//!
//! Work is bounded: so many questions under way of one instance, and of all; each has its end. Nothing is remembered.
//! It runs on a thread of its own, since it waits for others. Must never know: servers' owners, what frames are.

mod forward;
mod line;
mod message;
mod zone;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use domain::base::iana::Rcode;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use vmm::questions::Question;

use self::message::{Asked, Heard};
use self::zone::{Found, Zone};
use crate::agent::protocol::{InstanceWanted, ZoneWanted};

pub use self::forward::Forwarders;

/// Questions that others are asked at the same time: as many sockets, which some thirty instances would need at once.
const FORWARDED_MAX: usize = 1024;

/// What the guest may ask on each of its devices, by MAC, and in each VLAN that a device carries: the id of a zone.
type Zones = BTreeMap<([u8; 6], Option<u16>), String>;

type Nics = Arc<Mutex<Zones>>;

/// See the module.
#[derive(Debug)]
pub(super) struct Resolver {
    known: Arc<Known>,
    orders: mpsc::UnboundedSender<Order>,
    /// Whether names are known: before, questions are better asked of the next agent than answered wrongly.
    ready: watch::Sender<bool>,
}

/// What questions are answered from.
#[derive(Debug)]
struct Known {
    zones: Mutex<HashMap<String, Arc<Zone>>>,
    forwarders: Forwarders,
    permits: Semaphore,
}

#[derive(Debug)]
enum Order {
    Serve { instance: String, socket: PathBuf, nics: Zones },
    Forget { instance: String },
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing between lock and unlock leaves a value half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Resolver {
    /// Starts it; it ends with this.
    pub(super) fn start(forwarders: Forwarders) -> io::Result<Self> {
        let (orders, incoming) = mpsc::unbounded_channel();
        let permits = Semaphore::new(FORWARDED_MAX);
        let known = Arc::new(Known { zones: Mutex::default(), forwarders, permits });
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let shared = known.clone();
        let (ready, is_ready) = watch::channel(false);
        std::thread::Builder::new()
            .name("resolver".to_owned())
            .spawn(move || runtime.block_on(obey(incoming, shared, is_ready)))?;
        Ok(Self { known, orders, ready })
    }

    /// Answers the questions of an instance whose VMM listens at `socket`, as long as it runs. Repeating it changes
    /// nothing.
    pub(super) fn serve(&self, wanted: &InstanceWanted, socket: &Path) {
        let mut nics = Zones::new();
        for nic in &wanted.nics {
            nics.insert((nic.mac, None), nic.zone.clone());
            let carried = nic.sub_ports.iter();
            nics.extend(carried.map(|sub| ((nic.mac, Some(sub.vlan)), sub.port.zone.clone())));
        }
        let (instance, socket) = (wanted.id.clone(), socket.to_owned());
        // The thread ends after this alone.
        let _ = self.orders.send(Order::Serve { instance, socket, nics });
    }

    /// Answers an instance no more.
    pub(super) fn forget(&self, instance: &str) {
        let _ = self.orders.send(Order::Forget { instance: instance.to_owned() });
    }

    /// Knows other names from now on; `whole` forgets all that are not told.
    pub(super) fn know(&self, changed: &[ZoneWanted], gone: &[String], whole: bool) {
        let made: Vec<_> = changed.iter().map(|zone| (zone.id.clone(), Arc::new(Zone::of(zone)))).collect();
        let mut zones = lock(&self.known.zones);
        if whole {
            zones.clear();
        }
        zones.extend(made);
        for id in gone {
            zones.remove(id);
        }
        drop(zones);
        if whole {
            self.ready.send_replace(true);
        }
    }
}

async fn obey(
    mut orders: mpsc::UnboundedReceiver<Order>,
    known: Arc<Known>,
    is_ready: watch::Receiver<bool>,
) {
    let mut served: HashMap<String, (Nics, JoinHandle<()>)> = HashMap::new();
    while let Some(order) = orders.recv().await {
        match order {
            Order::Serve { instance, socket, nics } => match served.get(&instance) {
                Some((present, task)) if !task.is_finished() => *lock(present) = nics,
                _ => {
                    let nics: Nics = Arc::new(Mutex::new(nics));
                    let task = line::serve(instance.clone(), socket, nics.clone(), known.clone());
                    let mut is_ready = is_ready.clone();
                    let task = tokio::spawn(async move {
                        if is_ready.wait_for(|ready| *ready).await.is_ok() {
                            task.await;
                        }
                    });
                    served.insert(instance, (nics, task));
                }
            },
            Order::Forget { instance } => {
                if let Some((_, task)) = served.remove(&instance) {
                    task.abort();
                }
            }
        }
    }
}

impl Known {
    /// The answer to a question about a zone, or whatever; none to what has no answer.
    async fn answer(&self, zone: &str, question: &Question) -> Option<Vec<u8>> {
        let asked = match message::read(question.message.as_bytes()) {
            Heard::Nothing => return None,
            Heard::Refused(answer) => return Some(answer),
            Heard::Question(asked) => asked,
        };
        let bytes_max = usize::try_from(question.answer_bytes_max).unwrap_or(usize::MAX);
        let bytes_max = if question.tcp { bytes_max } else { asked.datagram_bytes_max(bytes_max) };
        if !asked.is_internet() || asked.is_transfer() {
            return Some(asked.without(Rcode::REFUSED));
        }
        // Not held while others are asked. Who has no zone that is known asks again.
        let zone = lock(&self.zones).get(zone).cloned()?;
        let answer = match zone.look_up(&asked.name, asked.kind) {
            Found::Nothing => asked.without(Rcode::NXDOMAIN),
            Found::Addresses(addresses) => asked.with_addresses(&addresses),
            Found::Name(name) => asked.with_name(&name),
            Found::Foreign => self.forward(&asked, question.tcp, bytes_max).await,
        };
        Some(asked.cut(answer, bytes_max))
    }

    async fn forward(&self, asked: &Asked, tcp: bool, bytes_max: usize) -> Vec<u8> {
        let Ok(_permit) = self.permits.try_acquire() else { return asked.without(Rcode::SERVFAIL) };
        let answer = forward::ask(&self.forwarders, asked, tcp, bytes_max).await;
        answer.unwrap_or_else(|| asked.without(Rcode::SERVFAIL))
    }
}

#[cfg(test)]
mod tests;
