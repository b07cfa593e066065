//! Routers, floating IPs and forwardings on a real store: what people do with them, what they may not, and what their
//! host is told.

mod limits;

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use super::floating_ip::{FloatingIpCreate, FloatingIpUpdate};
use super::forwarding::ForwardingRequest;
use super::interface::InterfaceRequest;
use super::wanted::{host_of, routers_wanted};
use super::*;
use crate::Settings;
use crate::agent::protocol::{HostReport, RouterObserved, RouterWanted};
use crate::caller::RoleLevel;
use crate::driver::Driver;
use crate::driver::fake::FakeDriver;
use crate::model::compute::Host;
use crate::model::network::Network;
use crate::model::router::Transport;
use crate::service::network::NetworkCreate;
use crate::service::port::PortCreate;
use crate::service::subnet::{Gateway, SubnetCreate};
use crate::store::RedbStore;
use crate::test::caller;

/// A cloud with an external network, 203.0.113.0/24.
struct Cloud {
    control: Arc<Control>,
    outside: String,
    _directory: tempfile::TempDir,
}

impl Cloud {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = RedbStore::open(&directory.path().join("store.redb")).unwrap();
        let mut settings = Settings::new("http://cloud.test", directory.path());
        settings.providers = vec!["outside=eth1".parse().unwrap()];
        let control = Control::open(Arc::new(store), settings).await.unwrap();
        let host: HostReport = FakeDriver::new("h1", None).unwrap().host_report();
        control.host_reported(&host).await.unwrap();
        let request = NetworkCreate {
            name: "outside".into(),
            external: true,
            network_type: Some("flat".into()),
            physical_network: Some("outside".into()),
            ..NetworkCreate::default()
        };
        let outside = control.network_create(&admin(), request).await.unwrap().row.standard.id.clone();
        let subnet = SubnetCreate::new(outside.clone(), "203.0.113.0/24".parse().unwrap(), "outside");
        control.subnet_create(&admin(), subnet).await.unwrap();
        Self { control, outside, _directory: directory }
    }

    /// A network with a subnet; the subnet's id and the network's.
    async fn subnet(&self, caller: &Caller, cidr: &str) -> (String, String) {
        let request = NetworkCreate::default();
        let network = self.control.network_create(caller, request).await.unwrap().row.standard.id.clone();
        let subnet = SubnetCreate::new(network.clone(), cidr.parse().unwrap(), "");
        (self.control.subnet_create(caller, subnet).await.unwrap().row.standard.id.clone(), network)
    }

    async fn port(&self, caller: &Caller, network_id: &str) -> Arc<Stored<Port>> {
        let request = PortCreate { network_id: network_id.to_owned(), ..PortCreate::default() };
        self.control.port_create(caller, request).await.unwrap()
    }

    /// A router with a way out.
    async fn router(&self, caller: &Caller) -> String {
        let gateway = GatewayWish { network_id: self.outside.clone(), ..GatewayWish::default() };
        let request = RouterCreate { gateway: Some(gateway), ..RouterCreate::default() };
        self.control.router_create(caller, request).await.unwrap().row.standard.id.clone()
    }

    async fn connect(
        &self,
        caller: &Caller,
        router: &str,
        subnet: &str,
    ) -> Result<interface::InterfaceChange> {
        self.control.router_add_interface(caller, router, &by_subnet(subnet)).await
    }

    async fn floating(&self, caller: &Caller, port: Option<&str>) -> Result<Arc<Stored<FloatingIp>>> {
        let request = FloatingIpCreate {
            network_id: self.outside.clone(),
            port_id: port.map(str::to_owned),
            ..FloatingIpCreate::default()
        };
        self.control.floating_ip_create(caller, request).await
    }

    fn wanted(&self, router: &str) -> RouterWanted {
        let wanted = routers_wanted(self.control.db.cache(), "h1");
        wanted.routers.into_iter().find(|wanted| wanted.id == router).unwrap()
    }
}

fn by_subnet(subnet: &str) -> InterfaceRequest {
    InterfaceRequest { subnet_id: Some(subnet.to_owned()), port_id: None }
}

fn admin() -> Caller {
    caller("admin", RoleLevel::Admin)
}

fn member(project: &str) -> Caller {
    caller(project, RoleLevel::Member)
}

fn reason(error: Error) -> &'static str {
    match error {
        Error::Invalid { reason, .. } | Error::Conflict { reason, .. } => reason,
        Error::Forbidden { .. } => "Forbidden",
        Error::NotFound { kind, .. } => kind,
        Error::QuotaExceeded { .. } => "QuotaExceeded",
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn router_is_told_to_its_host_with_all_its_parts() {
    let cloud = Cloud::new().await;
    let me = member("p");
    let (subnet, network) = cloud.subnet(&me, "10.0.0.0/24").await;
    let router = cloud.router(&me).await;
    let change = cloud.connect(&me, &router, &subnet).await.unwrap();
    assert_eq!(
        (change.network_id.as_str(), change.subnet_ids.as_slice()),
        (network.as_str(), &[subnet.clone()][..])
    );
    let port = cloud.port(&me, &network).await;
    let floating = cloud.floating(&me, Some(&port.row.standard.id)).await.unwrap();
    let wanted = cloud.wanted(&router);
    let addresses: Vec<String> =
        wanted.links.iter().flat_map(|link| &link.addresses).map(ToString::to_string).collect();
    assert!(addresses.contains(&"10.0.0.1/24".to_owned()), "{addresses:?}");
    assert_eq!(wanted.links.len(), 2);
    assert_eq!(wanted.routes, [("0.0.0.0/0".parse().unwrap(), "203.0.113.1".parse().unwrap())].into());
    let IpAddr::V4(inside) = port.row.fixed_ips[0].ip_address else { panic!("no IPv4 address") };
    assert_eq!(wanted.floating, [(floating.row.address, inside)].into());
    let (_, hidden) = wanted.outside.unwrap();
    assert!(hidden.is_some());
    // It is shown to carry traffic once its host says so.
    assert!(!cloud.control.floating_ip_facts(&floating.row).is_active);
    let report = RouterObserved::whole(&cloud.wanted(&router));
    cloud.control.router_observed("h1", &report).await.unwrap();
    cloud
        .control
        .router_observed("h2", &RouterObserved { id: router.clone(), ..RouterObserved::default() })
        .await
        .unwrap();
    assert!(cloud.control.floating_ip_facts(&floating.row).is_active);
    let interface = cloud.control.port_get(&me, &change.port_id).await.unwrap();
    assert!(interface.row.active);
}

#[tokio::test]
async fn router_that_is_down_or_has_no_way_out_leads_nowhere() {
    let cloud = Cloud::new().await;
    let me = member("p");
    let router = cloud.router(&me).await;
    let off = RouterUpdate { admin_state_up: Some(false), ..RouterUpdate::default() };
    cloud.control.router_update(&me, &router, off).await.unwrap();
    let wanted = cloud.wanted(&router);
    assert!(wanted.links.len() == 1 && wanted.links[0].addresses.is_empty(), "{wanted:?}");
    assert_eq!((wanted.outside, wanted.routes.len()), (None, 0));
    let on = RouterUpdate { admin_state_up: Some(true), gateway: Some(None), ..RouterUpdate::default() };
    cloud.control.router_update(&me, &router, on).await.unwrap();
    let wanted = cloud.wanted(&router);
    assert_eq!((wanted.outside, wanted.links.len(), wanted.routes.len()), (None, 0, 0));
}

#[tokio::test]
async fn interface_that_cannot_be_is_refused_in_the_services_words() {
    let cloud = Cloud::new().await;
    let me = member("p");
    let router = cloud.router(&me).await;
    let (subnet, network) = cloud.subnet(&me, "10.0.0.0/24").await;
    cloud.connect(&me, &router, &subnet).await.unwrap();
    let refused = |result: Result<interface::InterfaceChange>| reason(result.unwrap_err());
    assert_eq!(refused(cloud.connect(&me, &router, &subnet).await), "BadRequest");
    let (overlapping, _) = cloud.subnet(&me, "10.0.0.128/25").await;
    assert_eq!(refused(cloud.connect(&me, &router, &overlapping).await), "BadRequest");
    let (foreign, _) = cloud.subnet(&member("q"), "10.1.0.0/24").await;
    assert_eq!(refused(cloud.connect(&me, &router, &foreign).await), "Subnet");
    let none = SubnetCreate {
        gateway: Gateway::None,
        ..SubnetCreate::new(network.clone(), "10.2.0.0/24".parse().unwrap(), "")
    };
    let none = cloud.control.subnet_create(&me, none).await.unwrap();
    assert_eq!(refused(cloud.connect(&me, &router, &none.row.standard.id).await), "BadRequest");
    let other = cloud.router(&me).await;
    assert_eq!(refused(cloud.connect(&me, &other, &subnet).await), "IpAddressInUse");
    let both = InterfaceRequest { subnet_id: Some(subnet.clone()), port_id: Some("p".into()) };
    assert_eq!(refused(cloud.control.router_add_interface(&me, &router, &both).await), "BadRequest");
    assert_eq!(
        refused(cloud.control.router_add_interface(&me, &router, &InterfaceRequest::default()).await),
        "BadRequest"
    );
    // By a port of its own it may have a second way in, on another router.
    let port = cloud.port(&me, &network).await;
    let by_port = InterfaceRequest { subnet_id: None, port_id: Some(port.row.standard.id.clone()) };
    cloud.control.router_add_interface(&me, &other, &by_port).await.unwrap();
    assert_eq!(refused(cloud.control.router_add_interface(&me, &other, &by_port).await), "PortInUse");
    assert_eq!(
        reason(cloud.control.port_delete(&me, &port.row.standard.id).await.unwrap_err()),
        "ServicePortInUse"
    );
    assert_eq!(reason(cloud.control.subnet_delete(&me, &subnet).await.unwrap_err()), "SubnetInUse");
    assert_eq!(refused(cloud.connect(&caller("p", RoleLevel::Reader), &router, &subnet).await), "Forbidden");
    assert_eq!(refused(cloud.connect(&member("q"), &router, &foreign).await), "Router");
}

#[tokio::test]
async fn what_is_needed_is_not_taken_away() {
    let cloud = Cloud::new().await;
    let me = member("p");
    let (subnet, network) = cloud.subnet(&me, "10.0.0.0/24").await;
    let router = cloud.router(&me).await;
    cloud.connect(&me, &router, &subnet).await.unwrap();
    let port = cloud.port(&me, &network).await.row.standard.id.clone();
    let floating = cloud.floating(&me, Some(&port)).await.unwrap().row.standard.id.clone();
    let control = &cloud.control;
    let remove = || async { control.router_remove_interface(&me, &router, &by_subnet(&subnet)).await };
    assert_eq!(reason(remove().await.unwrap_err()), "RouterInterfaceInUseByFloatingIP");
    assert_eq!(reason(control.router_delete(&me, &router).await.unwrap_err()), "RouterInUse");
    let clear = || RouterUpdate { gateway: Some(None), ..RouterUpdate::default() };
    let refused = control.router_update(&me, &router, clear()).await.unwrap_err();
    assert_eq!(reason(refused), "RouterExternalGatewayInUseByFloatingIp");
    control.floating_ip_delete(&me, &floating).await.unwrap();
    let route = ("10.9.0.0/24".parse().unwrap(), "10.0.0.9".parse().unwrap());
    control.router_add_routes(&me, &router, &[route]).await.unwrap();
    assert_eq!(reason(remove().await.unwrap_err()), "RouterInterfaceInUseByRoute");
    control.router_remove_routes(&me, &router, &[route]).await.unwrap();
    remove().await.unwrap();
    assert_eq!(reason(remove().await.unwrap_err()), "RouterInterfaceForSubnet");
    control.router_delete(&me, &router).await.unwrap();
    let quotas = control.quotas(&me, "p", "get_quota").await.unwrap();
    assert_eq!((quotas[&Resource::Routers].used, quotas[&Resource::FloatingIps].used), (0, 0));
    // Only the network's own port is left: nothing of the router or the floating IP holds the network outside.
    assert_eq!(
        control
            .port_list(&admin())
            .await
            .unwrap()
            .iter()
            .filter(|port| port.row.network_id == cloud.outside && port.row.device_owner != port::OWNER_DHCP)
            .count(),
        0
    );
}

#[tokio::test]
async fn routes_have_to_be_reached() {
    let cloud = Cloud::new().await;
    let me = member("p");
    let (subnet, _) = cloud.subnet(&me, "10.0.0.0/24").await;
    let router = cloud.router(&me).await;
    cloud.connect(&me, &router, &subnet).await.unwrap();
    for (to, via, ok) in [
        ("10.9.0.0/24", "10.0.0.9", true),
        ("10.8.0.0/24", "203.0.113.77", true),
        ("10.8.0.0/24", "10.0.0.1", false),
        ("10.8.0.0/24", "10.1.0.1", false),
        ("2001:db8::/64", "10.0.0.9", false),
    ] {
        let route = (to.parse().unwrap(), via.parse().unwrap());
        let done = cloud.control.router_add_routes(&me, &router, &[route]).await;
        assert_eq!(done.is_ok(), ok, "{to} {via}");
        assert!(done.map_err(reason).err().is_none_or(|reason| reason == "InvalidRoutes"));
    }
    let many: Vec<_> = (0..31)
        .map(|n| (format!("10.{}.0.0/24", 20 + n).parse().unwrap(), "10.0.0.9".parse().unwrap()))
        .collect();
    let refused = cloud.control.router_add_routes(&me, &router, &many).await.unwrap_err();
    assert_eq!(reason(refused), "RoutesExhausted");
}

#[tokio::test]
async fn way_out_is_checked_and_its_address_can_be_wished_by_administrators() {
    let cloud = Cloud::new().await;
    let me = member("p");
    let (_, inside) = cloud.subnet(&me, "10.0.0.0/24").await;
    let wish = |network: &str| GatewayWish { network_id: network.to_owned(), ..GatewayWish::default() };
    let create = |gateway| RouterCreate { gateway: Some(gateway), ..RouterCreate::default() };
    let refused = cloud.control.router_create(&me, create(wish(&inside))).await.unwrap_err();
    assert_eq!(reason(refused), "BadRequest");
    let address: IpAddr = "203.0.113.50".parse().unwrap();
    let ip = crate::service::port::FixedIpWish { subnet_id: None, ip_address: Some(address) };
    let wished = GatewayWish { fixed_ips: Some(vec![ip]), enable_snat: Some(false), ..wish(&cloud.outside) };
    let refused = cloud.control.router_create(&me, create(wished.clone())).await.unwrap_err();
    assert_eq!(reason(refused), "Forbidden");
    let router = cloud.control.router_create(&admin(), create(wished)).await.unwrap();
    let port = cloud.control.router_gateway_port(&router.row).unwrap();
    assert_eq!(port.row.fixed_ips[0].ip_address, address);
    let (_, hidden) = cloud.wanted(&router.row.standard.id).outside.unwrap();
    assert_eq!(hidden, None);
    // Somebody else is the gateway outside.
    let taken = crate::service::port::FixedIpWish {
        subnet_id: None,
        ip_address: Some("203.0.113.1".parse().unwrap()),
    };
    let taken = GatewayWish { fixed_ips: Some(vec![taken]), ..wish(&cloud.outside) };
    let refused = cloud.control.router_create(&admin(), create(taken)).await.unwrap_err();
    assert_eq!(reason(refused), "BadRequest");
}

#[tokio::test]
async fn floating_ip_leads_to_one_address_and_moves() {
    let cloud = Cloud::new().await;
    let me = member("p");
    let (subnet, network) = cloud.subnet(&me, "10.0.0.0/24").await;
    let (first, second) = (cloud.port(&me, &network).await, cloud.port(&me, &network).await);
    let (first, second) = (first.row.standard.id.as_str(), second.row.standard.id.as_str());
    assert_eq!(reason(cloud.floating(&me, Some(first)).await.unwrap_err()), "ExternalGatewayForFloatingIP");
    let router = cloud.router(&me).await;
    cloud.connect(&me, &router, &subnet).await.unwrap();
    let floating = cloud.floating(&me, Some(first)).await.unwrap();
    let id = floating.row.standard.id.as_str();
    assert_eq!(
        reason(cloud.floating(&me, Some(first)).await.unwrap_err()),
        "FloatingIPPortAlreadyAssociated"
    );
    let control = &cloud.control;
    let lead = |port: Option<&str>| FloatingIpUpdate {
        port_id: Some(port.map(str::to_owned)),
        ..FloatingIpUpdate::default()
    };
    let moved = control.floating_ip_update(&me, id, lead(Some(second))).await.unwrap();
    assert_eq!(moved.row.target.as_ref().unwrap().port_id, second);
    // The first is free again; leading twice to the same changes nothing.
    control.floating_ip_update(&me, id, lead(Some(first))).await.unwrap();
    control.floating_ip_update(&me, id, lead(Some(first))).await.unwrap();
    let other = cloud.floating(&me, Some(second)).await.unwrap();
    control.port_delete(&me, second).await.unwrap();
    let other = control.network_resource::<FloatingIp>(&me, &other.row.standard.id).await.unwrap();
    assert_eq!((&other.row.target, &other.row.router_id), (&None, &None));
    let nowhere = control.floating_ip_update(&me, id, lead(None)).await.unwrap();
    assert_eq!((&nowhere.row.target, &nowhere.row.router_id), (&None, &None));
    assert_eq!(cloud.wanted(&router).floating, [].into());
    assert_eq!(
        reason(control.network_resource::<FloatingIp>(&member("q"), id).await.unwrap_err()),
        "Floating IP"
    );
    let foreign = cloud.port(&member("q"), &cloud.subnet(&member("q"), "10.5.0.0/24").await.1).await;
    assert_eq!(
        reason(control.floating_ip_update(&me, id, lead(Some(&foreign.row.standard.id))).await.unwrap_err()),
        "Port"
    );
    let chosen = FloatingIpCreate {
        network_id: cloud.outside.clone(),
        address: Some(Ipv4Addr::new(203, 0, 113, 99)),
        ..FloatingIpCreate::default()
    };
    assert_eq!(reason(control.floating_ip_create(&me, chosen.clone()).await.unwrap_err()), "Forbidden");
    assert_eq!(
        control.floating_ip_create(&admin(), chosen).await.unwrap().row.address,
        Ipv4Addr::new(203, 0, 113, 99)
    );
    let inside = FloatingIpCreate { network_id: network, ..FloatingIpCreate::default() };
    assert_eq!(reason(control.floating_ip_create(&me, inside).await.unwrap_err()), "BadRequest");
}

#[tokio::test]
async fn ports_are_forwarded_each_to_one_place() {
    let cloud = Cloud::new().await;
    let me = member("p");
    let (subnet, network) = cloud.subnet(&me, "10.0.0.0/24").await;
    let router = cloud.router(&me).await;
    cloud.connect(&me, &router, &subnet).await.unwrap();
    let port = cloud.port(&me, &network).await.row.standard.id.clone();
    let floating = cloud.floating(&me, None).await.unwrap().row.clone();
    let id = floating.standard.id.as_str();
    let request = |external, internal| ForwardingRequest {
        transport: Some(Transport::Tcp),
        external: Some(external),
        internal: Some(internal),
        internal_port_id: Some(port.clone()),
        ..ForwardingRequest::default()
    };
    let control = &cloud.control;
    let create = |external, internal| control.forwarding_create(&me, id, request(external, internal));
    let made = create((8000, 8002), (80, 82)).await.unwrap();
    for (external, internal) in [
        ((8002, 8002), (90, 90)),
        ((9000, 9000), (81, 81)),
        ((9000, 9001), (100, 105)),
        ((0, 0), (1, 1)),
        ((9, 8), (9, 8)),
    ] {
        assert_eq!(
            reason(create(external, internal).await.unwrap_err()),
            "BadRequest",
            "{external:?} {internal:?}"
        );
    }
    let wanted: Vec<_> = cloud.wanted(&router).forwardings.iter().map(|f| (f.port, f.to_port)).collect();
    assert_eq!(wanted, [(8000, 80), (8001, 81), (8002, 82)]);
    // As a whole it leads nowhere then.
    let lead = FloatingIpUpdate { port_id: Some(Some(port.clone())), ..FloatingIpUpdate::default() };
    let refused = control.floating_ip_update(&me, id, lead).await.unwrap_err();
    assert_eq!(reason(refused), "FloatingIPPortAlreadyAssociated");
    let refused = control.router_remove_interface(&me, &router, &by_subnet(&subnet)).await.unwrap_err();
    assert_eq!(reason(refused), "RouterInterfaceInUseByFloatingIP");
    let update = ForwardingRequest {
        external: Some((7000, 7000)),
        internal: Some((70, 70)),
        ..ForwardingRequest::default()
    };
    let changed = control.forwarding_update(&me, id, &made.row.standard.id, update).await.unwrap();
    assert_eq!((changed.row.external, changed.row.internal), ((7000, 7000), (70, 70)));
    control.forwarding_delete(&me, id, &made.row.standard.id).await.unwrap();
    assert_eq!(control.network_resource::<FloatingIp>(&me, id).await.unwrap().row.router_id, None);
    create((22, 22), (22, 22)).await.unwrap();
    control.port_delete(&me, &port).await.unwrap();
    assert!(control.forwarding_list(&me, id).await.unwrap().is_empty());
}

#[tokio::test]
async fn quota_bounds_routers_and_floating_ips() {
    let cloud = Cloud::new().await;
    let me = member("p");
    for _ in 0..10 {
        cloud.control.router_create(&me, RouterCreate::default()).await.unwrap();
    }
    let refused = cloud.control.router_create(&me, RouterCreate::default()).await.unwrap_err();
    assert_eq!(reason(refused), "QuotaExceeded");
    for _ in 0..50 {
        cloud.floating(&me, None).await.unwrap();
    }
    assert_eq!(reason(cloud.floating(&me, None).await.unwrap_err()), "QuotaExceeded");
}

#[tokio::test]
async fn every_router_has_a_host_and_a_new_host_takes_only_its_share() {
    let cloud = Cloud::new().await;
    let hosts = || cloud.control.db.cache().list::<Host>();
    let ids: Vec<String> = (0..200).map(|n| format!("router-{n}")).collect();
    let before: Vec<_> = ids.iter().map(|id| host_of(&hosts(), id)).collect();
    assert!(before.iter().all(|host| host.as_deref() == Some("h1")));
    let second = FakeDriver::new("h2", None).unwrap().host_report();
    cloud.control.host_reported(&second).await.unwrap();
    let after: Vec<_> = ids.iter().map(|id| host_of(&hosts(), id)).collect();
    let moved = after.iter().filter(|host| host.as_deref() == Some("h2")).count();
    assert!((60..140).contains(&moved), "{moved}");
    // An agent out of service has no routers, unless all are.
    let agents = cloud.control.network_agents(&admin()).await.unwrap();
    for agent in &agents {
        let (id, control) = (agent.id(), &cloud.control);
        control.network_agent_update(&admin(), id, None, Some(false)).await.unwrap();
        let now: BTreeSet<_> = ids.iter().map(|id| host_of(&hosts(), id).unwrap()).collect();
        match agent.host.row.name.as_str() {
            "h1" => assert_eq!(now, BTreeSet::from(["h2".to_owned()])),
            _ => assert_eq!(now.len(), 2, "all are out of service"),
        }
    }
    let gone = agents.iter().find(|agent| agent.host.row.name == "h2").unwrap();
    cloud.control.network_agent_delete(&admin(), gone.id()).await.unwrap();
    assert!(ids.iter().all(|id| host_of(&hosts(), id).as_deref() == Some("h1")));
    assert!(cloud.control.network_agent(&admin(), gone.id()).await.is_err());
    assert_eq!(host_of(&[], "router"), None);
}

#[tokio::test]
async fn deleted_router_leaves_no_row_and_a_late_report_makes_none() {
    let cloud = Cloud::new().await;
    let me = member("p");
    let router = cloud.router(&me).await;
    let report = RouterObserved::whole(&cloud.wanted(&router));
    cloud.control.router_observed("h1", &report).await.unwrap();
    cloud.control.router_delete(&me, &router).await.unwrap();
    cloud.control.router_observed("h1", &report).await.unwrap();
    let cache = cloud.control.db.cache();
    assert!(cache.list::<RouterState>().is_empty() && cache.list::<Router>().is_empty());
    assert!(cache.list::<Network>().iter().any(|network| network.row.standard.id == cloud.outside));
}

#[tokio::test]
async fn external_network_goes_with_its_idle_floating_ips_and_stays_while_something_leads_out_by_it() {
    let cloud = Cloud::new().await;
    let me = member("p");
    let control = &cloud.control;
    let router = cloud.router(&me).await;
    cloud.floating(&me, None).await.unwrap();
    assert_eq!(reason(control.network_delete(&admin(), &cloud.outside).await.unwrap_err()), "NetworkInUse");
    let policies = control.rbac_list(&admin()).await.unwrap();
    let policy = policies.iter().find(|policy| policy.row.object_id == cloud.outside).unwrap();
    assert_eq!(reason(control.rbac_delete(&admin(), &policy.row.id).await.unwrap_err()), "RbacPolicyInUse");
    control.router_delete(&me, &router).await.unwrap();
    control.network_delete(&admin(), &cloud.outside).await.unwrap();
    assert!(control.network_resources::<FloatingIp>(&me).await.unwrap().is_empty());
    let quotas = control.quotas(&me, "p", "get_quota").await.unwrap();
    assert_eq!(quotas[&Resource::FloatingIps].used, 0);
}
