//! Networks and subnets that go while something comes to be on them, in both orders: one of both has decided, and the other
//! is done before it commits.

use async_trait::async_trait;
use tokio::sync::{Mutex, mpsc, oneshot};

use super::*;
use crate::Settings;
use crate::model::network::NetworkParts;
use crate::service::port::PortUpdate;
use crate::service::router::interface::InterfaceRequest;
use crate::service::router::{GatewayWish, RouterCreate};
use crate::store::{
    Batch, Compare, Entry, LeaseId, Operation, Outcome, RedbStore, Revision, Store, StoreError,
};

/// A way to the store whose next commit tells that it is about to happen, and waits.
struct Gated {
    store: Arc<RedbStore>,
    gate: Mutex<Option<(oneshot::Sender<()>, oneshot::Receiver<()>)>>,
}

type Answer<T> = std::result::Result<T, StoreError>;

#[async_trait]
impl Store for Gated {
    async fn range(&self, prefix: &str) -> Answer<(Vec<Entry>, Revision)> {
        self.store.range(prefix).await
    }
    async fn txn(
        &self,
        compare: Vec<Compare>,
        then: Vec<Operation>,
        or_else: Vec<Operation>,
    ) -> Answer<Outcome> {
        let gate = if then.is_empty() { None } else { self.gate.lock().await.take() };
        if let Some((reached, open)) = gate {
            reached.send(()).unwrap();
            open.await.unwrap();
        }
        self.store.txn(compare, then, or_else).await
    }
    async fn watch(&self, prefix: &str, from: Revision) -> Answer<mpsc::Receiver<Batch>> {
        self.store.watch(prefix, from).await
    }
    async fn revision(&self) -> Answer<Revision> {
        self.store.revision().await
    }
    async fn lease_grant(&self, ttl: std::time::Duration) -> Answer<LeaseId> {
        self.store.lease_grant(ttl).await
    }
    async fn lease_renew(&self, lease: LeaseId) -> Answer<()> {
        self.store.lease_renew(lease).await
    }
    async fn lease_revoke(&self, lease: LeaseId) -> Answer<()> {
        self.store.lease_revoke(lease).await
    }
}

/// What is done to a network and its subnet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Act {
    Port,
    MovePort,
    Interface,
    Gateway,
    Subnet,
    DeleteSubnet,
    DeleteNetwork,
}

/// A network with a subnet, a port elsewhere and a router, and two processes on their store.
struct Race {
    first: Arc<Control>,
    gated: Arc<Gated>,
    second: Arc<Control>,
    network: String,
    subnet: String,
    router: String,
    _directory: tempfile::TempDir,
}

fn admin() -> Caller {
    caller("a", RoleLevel::Admin)
}

impl Race {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = Arc::new(RedbStore::open(&directory.path().join("store.redb")).unwrap());
        let gated = Arc::new(Gated { store: store.clone(), gate: Mutex::default() });
        let settings = || Settings::new("http://cloud.test", directory.path());
        let second = Control::open(store, settings()).await.unwrap();
        let external = NetworkCreate { external: true, ..NetworkCreate::default() };
        let network = second.network_create(&admin(), external).await.unwrap().row.standard.id.clone();
        let mut subnet = SubnetCreate::new(network.clone(), "10.0.0.0/24".parse().unwrap(), "");
        // Without a port of its own, so that nothing else writes.
        subnet.enable_dhcp = false;
        let subnet = second.subnet_create(&admin(), subnet).await.unwrap().row.standard.id.clone();
        let router = second.router_create(&admin(), RouterCreate::default()).await.unwrap();
        second.ensure_default_group("a").await.unwrap();
        let first = Control::open(gated.clone(), settings()).await.unwrap();
        let router = router.row.standard.id.clone();
        Self { first, gated, second, network, subnet, router, _directory: directory }
    }

    /// A port on the network without an address.
    async fn bare_port(&self) -> String {
        let request = PortCreate {
            network_id: self.network.clone(),
            fixed_ips: Some(Vec::new()),
            ..PortCreate::default()
        };
        self.second.port_create(&admin(), request).await.unwrap().row.standard.id.clone()
    }

    async fn act(&self, control: &Control, act: Act, port: Option<&str>) -> Result<()> {
        let admin = admin();
        match act {
            Act::Port => {
                let request = PortCreate { network_id: self.network.clone(), ..PortCreate::default() };
                control.port_create(&admin, request).await.map(drop)
            }
            Act::MovePort => {
                let wish = FixedIpWish { subnet_id: Some(self.subnet.clone()), ip_address: None };
                let update = PortUpdate { fixed_ips: Some(vec![wish]), ..PortUpdate::default() };
                control.port_update(&admin, port.unwrap(), update).await.map(drop)
            }
            Act::Interface => {
                let request = InterfaceRequest { subnet_id: Some(self.subnet.clone()), port_id: None };
                control.router_add_interface(&admin, &self.router, &request).await.map(drop)
            }
            Act::Gateway => {
                let wish = GatewayWish { network_id: self.network.clone(), ..GatewayWish::default() };
                let request = RouterCreate { gateway: Some(wish), ..RouterCreate::default() };
                control.router_create(&admin, request).await.map(drop)
            }
            Act::Subnet => {
                let request = SubnetCreate::new(self.network.clone(), "10.1.0.0/24".parse().unwrap(), "");
                control.subnet_create(&admin, request).await.map(drop)
            }
            Act::DeleteSubnet => control.subnet_delete(&admin, &self.subnet).await,
            Act::DeleteNetwork => control.network_delete(&admin, &self.network).await,
        }
    }

    /// Nothing is on what is gone, and no row of a network that is gone stays.
    async fn check(&self, told: &str) {
        self.second.db.caught_up().await.unwrap();
        let cache = self.second.db.cache();
        let networks = |id: &str| cache.get::<Network>(id).is_some();
        for subnet in cache.list::<Subnet>() {
            assert!(networks(&subnet.row.network_id), "{told}: a subnet is on no network");
        }
        for port in cache.list::<Port>() {
            assert!(networks(&port.row.network_id), "{told}: a port is on no network");
            for ip in &port.row.fixed_ips {
                assert!(cache.get::<Subnet>(&ip.subnet_id).is_some(), "{told}: an address is of no subnet");
            }
        }
        for parts in cache.list::<NetworkParts>() {
            assert!(networks(&parts.row.network_id), "{told}: a row stays of a network that is gone");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_comes_to_be_on_what_goes_meanwhile_in_whatever_order() {
    let coming = [Act::Port, Act::MovePort, Act::Interface, Act::Gateway, Act::Subnet];
    let going = [Act::DeleteSubnet, Act::DeleteNetwork];
    let pairs = coming.into_iter().flat_map(|comes| going.map(|goes| (comes, goes)));
    for (decided, done) in pairs.flat_map(|(comes, goes)| [(comes, goes), (goes, comes)]) {
        // A port on the network keeps it anyhow, and a new subnet has nothing to do with another's end.
        let acts = [decided, done];
        if acts.contains(&Act::MovePort) && acts.contains(&Act::DeleteNetwork)
            || acts.contains(&Act::Subnet) && acts.contains(&Act::DeleteSubnet)
        {
            continue;
        }
        let race = Race::new().await;
        let port = if acts.contains(&Act::MovePort) { Some(race.bare_port().await) } else { None };
        race.first.db.caught_up().await.unwrap();
        let (reached, is_reached) = oneshot::channel();
        let (open, opened) = oneshot::channel();
        *race.gated.gate.lock().await = Some((reached, opened));
        let told = format!("{decided:?} decided, {done:?} done");
        let late = race.act(&race.first, decided, port.as_deref());
        let early = async {
            is_reached.await.unwrap();
            let early = race.act(&race.second, done, port.as_deref()).await;
            open.send(()).unwrap();
            early
        };
        let (late, early) = tokio::join!(late, early);
        assert!(early.is_ok(), "{told}: nothing is in its way: {early:?}");
        // Without the subnet a port has no address, and a network goes with the subnets that it has.
        let fits = [(Act::Port, Act::DeleteSubnet), (Act::DeleteNetwork, Act::Subnet)];
        assert!(late.is_err() || fits.contains(&(decided, done)), "{told}: both are done");
        assert!(!matches!(late, Err(Error::Store(_))), "{told}: {late:?}");
        race.check(&told).await;
    }
}
