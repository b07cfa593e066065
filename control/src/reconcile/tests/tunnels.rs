//! Networks between hosts: two hosts, each told of the other's ports.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use super::*;
use crate::agent::protocol::RemotePortWanted;
use crate::model::network::trunk::{SubPort, Trunk};
use crate::reconcile::wanted::host_wanted;
use crate::service::router::interface::InterfaceRequest;
use crate::service::router::{RouterCreate, wanted::host_of};
use crate::service::trunk::TrunkCreate;

const HOSTS: [&str; 2] = ["fake-0", "fake-1"];

fn tunnel_address(host: usize) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, 1 + host as u8)
}

impl Cloud {
    async fn create_on(&self, host: &str) -> Server {
        let mut changes = self.control.db.cache().subscribe();
        while self.control.db.get::<Host>(host).is_none() {
            changes.next().await.unwrap();
        }
        let new = NewServers { host: Some(host.to_owned()), ..self.new_servers() };
        let created = self.control.servers_create(&self.admin, new).await.unwrap();
        self.until_status(&created.servers[0].id, "ACTIVE").await
    }

    /// What a host is told of the network's ports elsewhere; nothing if it has no part in the network.
    fn remotes_of(&self, host: &str) -> Option<Vec<RemotePortWanted>> {
        let master = self.control.tokens.master();
        let wanted = host_wanted(self.control.db.cache(), master, "7e57", host);
        wanted.networks.into_iter().find(|network| network.id == self.network).map(|network| network.remotes)
    }

    fn as_told(&self, ports: &[&str], host: usize) -> Vec<RemotePortWanted> {
        let port = |id: &&str| {
            let port = self.control.db.get::<Port>(id).unwrap().row.clone();
            let addresses: BTreeSet<_> = port.fixed_ips.iter().map(|ip| ip.ip_address).collect();
            RemotePortWanted { mac: port.mac, host: tunnel_address(host), addresses }
        };
        ports.iter().map(port).collect()
    }
}

fn sorted(mut remotes: Vec<RemotePortWanted>) -> Vec<RemotePortWanted> {
    remotes.sort_by_key(|remote| remote.mac);
    remotes
}

#[tokio::test(flavor = "multi_thread")]
async fn hosts_are_told_where_their_networks_ports_are() {
    let mut cloud = Cloud::new().await;
    for (index, name) in HOSTS.into_iter().enumerate() {
        let fake = FakeDriver::new(name, None).unwrap().with_tunnel_address(tunnel_address(index));
        cloud.connect(Arc::new(fake));
    }
    let here = cloud.create_on(HOSTS[0]).await;
    assert_eq!(cloud.remotes_of(HOSTS[0]), Some(Vec::new()), "its ports are all here");
    assert_eq!(cloud.remotes_of(HOSTS[1]), None, "it has no part in the network");
    let there = cloud.create_on(HOSTS[1]).await;
    assert_eq!(cloud.remotes_of(HOSTS[0]), Some(cloud.as_told(&[&there.port_ids[0]], 1)));
    assert_eq!(cloud.remotes_of(HOSTS[1]), Some(cloud.as_told(&[&here.port_ids[0]], 0)));
    // A router is wherever it is computed to be.
    let (control, admin) = (&cloud.control, &cloud.admin);
    let router = control.router_create(admin, RouterCreate::default()).await.unwrap();
    let id = router.row.standard.id.clone();
    let subnet = control.db.list::<crate::model::network::Subnet>()[0].row.standard.id.clone();
    let request = InterfaceRequest { subnet_id: Some(subnet), ..InterfaceRequest::default() };
    let interface = control.router_add_interface(admin, &id, &request).await.unwrap();
    let on = host_of(&control.db.list::<Host>(), &id).unwrap();
    let on = HOSTS.iter().position(|host| *host == on).unwrap();
    let (port, other) = if on == 0 { (&here, 1) } else { (&there, 0) };
    let told = cloud.as_told(&[&port.port_ids[0], &interface.port_id], on);
    assert_eq!(cloud.remotes_of(HOSTS[other]).map(sorted), Some(sorted(told)));
    // What goes is told no more.
    control.router_remove_interface(admin, &id, &request).await.unwrap();
    control.server_delete(admin, &there.id).await.unwrap();
    cloud.until(&there.id, |server| server.is_none()).await;
    assert_eq!(cloud.remotes_of(HOSTS[0]), Some(Vec::new()));
}

#[tokio::test(flavor = "multi_thread")]
async fn port_in_a_trunk_is_where_the_trunk_is_and_hosts_without_an_address_are_told_nothing() {
    let mut cloud = Cloud::new().await;
    cloud.connect(Arc::new(FakeDriver::new(HOSTS[0], None).unwrap().with_tunnel_address(tunnel_address(0))));
    cloud.connect(Arc::new(FakeDriver::new(HOSTS[1], None).unwrap()));
    let (here, there) = (cloud.create_on(HOSTS[0]).await, cloud.create_on(HOSTS[1]).await);
    assert_eq!(cloud.remotes_of(HOSTS[0]), Some(Vec::new()));
    assert_eq!(cloud.remotes_of(HOSTS[1]), Some(Vec::new()));
    // It comes back with one.
    cloud.connect(Arc::new(FakeDriver::new(HOSTS[1], None).unwrap().with_tunnel_address(tunnel_address(1))));
    let told = cloud.as_told(&[&there.port_ids[0]], 1);
    tokio::time::timeout(Duration::from_secs(10), async {
        while cloud.remotes_of(HOSTS[0]).as_ref() != Some(&told) {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await
    .unwrap();
    let carried = cloud.port().await;
    let trunk = TrunkCreate {
        name: "t".to_owned(),
        description: String::new(),
        project_id: None,
        port_id: cloud.port().await,
        admin_state_up: true,
        sub_ports: vec![SubPort { port_id: carried.clone(), vlan: 5 }],
        tags: BTreeSet::new(),
    };
    let parent = trunk.port_id.clone();
    let trunk: Trunk = cloud.control.trunk_create(&cloud.admin, trunk).await.unwrap().row.clone();
    assert_eq!(trunk.sub_ports.len(), 1);
    assert_eq!(cloud.remotes_of(HOSTS[1]), Some(cloud.as_told(&[&here.port_ids[0]], 0)), "it is nowhere");
    let attach = super::interfaces::of_port(&parent);
    cloud.control.server_interface_attach(&cloud.admin, &here.id, &attach).await.unwrap();
    cloud.until_reached(&here.id).await;
    let told = cloud.as_told(&[&here.port_ids[0], &carried, &parent], 0);
    assert_eq!(cloud.remotes_of(HOSTS[1]).map(sorted), Some(sorted(told)));
}
