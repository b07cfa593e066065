//! A guest's network by the tiny guest's own load: round trips of small datagrams, one after the other, and a TCP connection each
//! way. A guest and its host through a tap; guests of a cloud, by each way that there is between them.
//!
//! With `FIRECRACKER_BIN=/path/to/firecracker` the same guest has the same load there, in the same run, by turns, and that is the
//! baseline of the first part; without, it is two network namespaces whose pairs of links are on one bridge, with the same load
//! between the host's own sockets. The latter is the second part's baseline always. `AWAKE_US` says for how many microseconds a
//! guest waits awake before it sleeps; 50 unless said.

mod measure;

#[path = "../tests/it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the system tests use the rest")]
mod harness;

#[path = "traffic/cloud.rs"]
mod cloud;
#[path = "traffic/peer.rs"]
mod peer;

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use ipnet::IpNet;
use net::netlink::{Client, Request};
use serde_json::json;

use crate::harness::isolate;
use crate::measure::line;
use crate::measure::vmm::{export_guest, firecracker, listen, write_firecracker_config};
use crate::peer::Outcome;

/// Runs per side.
const RUNS: usize = 3;
/// How long each part of a run takes.
const PART: Duration = Duration::from_millis(800);
/// The MTU of a cloud's tenants' networks.
const MTU: u32 = 1450;
/// How a guest reaches its device. Firecracker's PCI functions have their registers where the tiny guest has no addresses, above 4 GiB.
const TRANSPORTS: [&str; 2] = ["mmio", "pci"];
const HOST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 1);
const GUEST: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 2);
const OTHER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 3);

fn main() -> Result<()> {
    isolate()?;
    let bare = bare_bridge()?;
    with_host(&bare)?;
    cloud::ways(&bare)
}

/// Three lines for one way.
fn report(way: &str, ours: &Outcome, baseline: &Outcome, of: &str) {
    let middle = |outcome: &Outcome| {
        [&outcome.trip_us, &outcome.late_us, &outcome.sent, &outcome.received]
            .map(|samples| samples.quantile(0.5))
    };
    let (ours, baseline) = (middle(ours), middle(baseline));
    line(&format!("round trip, {way}, p50"), "us", ours[0], baseline[0], of);
    line(&format!("round trip, {way}, p99"), "us", ours[1], baseline[1], of);
    line(&format!("stream, {way}, sent"), "Gb/s", ours[2], baseline[2], of);
    line(&format!("stream, {way}, received"), "Gb/s", ours[3], baseline[3], of);
}

/// Two network namespaces on one bridge that nobody filters.
fn bare_bridge() -> Result<Outcome> {
    let mut links = Client::open()?;
    links.execute(vec![Request::create_bridge("bare0", [2, 9, 0, 0, 0, 1])])?;
    let bridge = links.link("bare0")?.context("the bridge")?.index;
    links.execute(vec![Request::configure("bare0", MTU, None)])?;
    let (serves, asks) = (Room::new()?, Room::new()?);
    for (number, (name, room, address)) in (1..).zip([("bare1", &serves, GUEST), ("bare2", &asks, OTHER)]) {
        let (here, there) = ([2, 9, 0, 1, 0, number], [2, 9, 0, 2, 0, number]);
        links.execute(vec![
            Request::create_pair(name, here, there, room.namespace.as_fd()),
            Request::configure(name, MTU, Some(bridge)),
        ])?;
        room.run(move || give_address(name, MTU, address))?;
    }
    serves.run(peer::serve)?;
    let mut outcome = Outcome::default();
    for _ in 0..RUNS {
        let (sender, receiver) = mpsc::channel();
        asks.run(move || {
            let mut once = Outcome::default();
            peer::measure(GUEST, PART, &mut once)?;
            sender.send(once).map_err(|_| anyhow!("nobody listens"))
        })?;
        let once = receiver.recv()?;
        outcome.trip_us.push(once.trip_us.quantile(0.5));
        outcome.late_us.push(once.late_us.quantile(0.5));
        outcome.sent.push(once.sent.quantile(0.5));
        outcome.received.push(once.received.quantile(0.5));
    }
    links.execute(vec![Request::delete_link("bare0")])?;
    Ok(outcome)
}

type Work = Box<dyn FnOnce() -> Result<()> + Send>;

/// A thread in a network namespace of its own.
struct Room {
    namespace: std::fs::File,
    work: mpsc::Sender<Work>,
    done: mpsc::Receiver<Result<()>>,
}

impl Room {
    fn new() -> Result<Self> {
        let (work, wanted) = mpsc::channel::<Work>();
        let (said, done) = mpsc::channel();
        let (namespace, made) = mpsc::channel();
        std::thread::spawn(move || {
            let entered = isolate().and_then(|()| Ok(std::fs::File::open("/proc/thread-self/ns/net")?));
            // Nobody listens once all is over.
            let _ = namespace.send(entered);
            for work in wanted {
                let _ = said.send(work());
            }
        });
        Ok(Self { namespace: made.recv()??, work, done })
    }

    fn run(&self, work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
        self.work.send(Box::new(work)).map_err(|_| anyhow!("the thread has ended"))?;
        self.done.recv()?
    }
}

fn give_address(name: &str, mtu: u32, address: Ipv4Addr) -> Result<()> {
    let mut links = Client::open()?;
    let index = links.link(name)?.context("the link")?.index;
    let net = IpNet::new(IpAddr::V4(address), 24)?;
    links.execute(vec![Request::configure(name, mtu, None), Request::add_address(name, index, net)])?;
    Ok(())
}

/// A guest and its host through a tap.
fn with_host(bare: &Outcome) -> Result<()> {
    let wisp = Path::new(env!("CARGO_BIN_EXE_wisp"));
    let files = tempfile::tempdir()?;
    let kernel = export_guest(wisp, files.path())?;
    let tap = net::tap::create("load0")?;
    net::tap::persist(&tap, "load0")?;
    drop(tap);
    give_address("load0", 1500, HOST)?;
    peer::serve()?;
    let mut ours = TRANSPORTS.map(|transport| (transport, Outcome::default()));
    let mut theirs = Outcome::default();
    let other = std::env::var_os("FIRECRACKER_BIN");
    let config = files.path().join("firecracker.json");
    let nic = json!({"iface_id": "n", "guest_mac": "02:00:00:00:99:02", "host_dev_name": "load0"});
    let cmdline = format!("console=ttyS0 {}", load_word());
    write_firecracker_config(&config, (&kernel, &cmdline), 128, json!({"network-interfaces": [nic]}))?;
    for _ in 0..RUNS {
        for (transport, outcome) in &mut ours {
            let mut command = Command::new(wisp);
            command.args(["vmm", "boot", "--mem", "128", "--tap", "load0", "--cmdline", &load_word()]);
            let command = command.args(["--transport", transport, "--kernel"]).arg(&kernel);
            listen(command, |_, line| peer::hear(line, outcome)).context("wisp")?;
        }
        if let Some(program) = &other {
            let mut command = firecracker(Path::new(program), &config);
            listen(&mut command, |_, line| peer::hear(line, &mut theirs)).context("firecracker")?;
        }
    }
    let (baseline, of) = match other {
        Some(_) => (&theirs, "firecracker, same guest, mmio, same run"),
        None => (bare, "two namespaces on a bare bridge"),
    };
    for (transport, outcome) in &ours {
        report(&format!("a guest to its host, {transport}"), outcome, baseline, of);
    }
    Ok(())
}

fn awake_us() -> String {
    std::env::var("AWAKE_US").unwrap_or_else(|_| "50".to_owned())
}

fn load_word() -> String {
    format!("traffic={GUEST},{HOST},{},{}", PART.as_millis(), awake_us())
}
