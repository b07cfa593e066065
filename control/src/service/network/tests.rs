//! The network service on a real store: what people do with networks, subnets, ports and groups, and what they may not.

mod names;
mod races;
mod service_types;

use std::sync::Arc;

use super::*;
use crate::caller::RoleLevel;
use crate::service::address_group::AddressGroupCreate;
use crate::service::nic::{NicRequest, NicRequests, ServerOfPorts, network_wanted, nics_wanted};
use crate::service::port::{FixedIpWish, PortCreate};
use crate::service::security_group::{GroupCreate, RuleCreate, groups_wanted};
use crate::service::subnet_pool::{SubnetPoolCreate, SubnetPoolUpdate};
use crate::test::{caller, open};

struct Cloud {
    control: Arc<Control>,
    _directory: tempfile::TempDir,
}

impl Cloud {
    async fn new() -> Self {
        let directory = tempfile::tempdir().unwrap();
        Self { control: open(directory.path()).await, _directory: directory }
    }

    async fn network(&self, caller: &Caller, cidr: &str) -> String {
        let request = NetworkCreate { name: "net".into(), ..NetworkCreate::default() };
        let id = self.control.network_create(caller, request).await.unwrap().row.standard.id.clone();
        let subnet = SubnetCreate::new(id.clone(), cidr.parse().unwrap(), "sub");
        self.control.subnet_create(caller, subnet).await.unwrap();
        id
    }

    async fn port(&self, caller: &Caller, network_id: &str) -> Result<Arc<Stored<Port>>> {
        let request = PortCreate { network_id: network_id.to_owned(), ..PortCreate::default() };
        self.control.port_create(caller, request).await
    }
}

fn member(project: &str) -> Caller {
    caller(project, RoleLevel::Member)
}

fn reason(error: Error) -> &'static str {
    match error {
        Error::Invalid { reason, .. } | Error::Conflict { reason, .. } => reason,
        Error::Forbidden { .. } => "Forbidden",
        Error::NotFound { .. } => "NotFound",
        Error::QuotaExceeded { .. } => "OverQuota",
        other => panic!("{other}"),
    }
}

#[tokio::test]
async fn ports_get_addresses_after_gateway_and_dhcp() {
    let cloud = Cloud::new().await;
    let alice = member("a");
    let network = cloud.network(&alice, "10.0.0.0/29").await;
    let mut addresses = Vec::new();
    for _ in 0..4 {
        addresses.push(cloud.port(&alice, &network).await.unwrap().row.fixed_ips[0].ip_address.to_string());
    }
    assert_eq!(addresses, ["10.0.0.3", "10.0.0.4", "10.0.0.5", "10.0.0.6"]);
    assert_eq!(reason(cloud.port(&alice, &network).await.unwrap_err()), "IpAddressGenerationFailure");
}

#[tokio::test]
async fn concurrent_ports_never_share_an_address() {
    let cloud = Cloud::new().await;
    let alice = member("a");
    let network = cloud.network(&alice, "10.0.0.0/24").await;
    let ports = futures_util::future::join_all((0..20).map(|_| cloud.port(&alice, &network))).await;
    let addresses: BTreeSet<_> =
        ports.iter().map(|port| port.as_ref().unwrap().row.fixed_ips[0].ip_address).collect();
    assert_eq!(addresses.len(), 20);
    let used = cloud.control.quotas_of("a").await.unwrap()[&Resource::Ports].used;
    assert_eq!(used, 21, "twenty and the one of DHCP");
}

#[tokio::test]
async fn wished_addresses_are_checked() {
    let cloud = Cloud::new().await;
    let alice = member("a");
    let network = cloud.network(&alice, "10.0.0.0/24").await;
    let wish = async |ip: &str| {
        let fixed_ips = Some(vec![FixedIpWish { subnet_id: None, ip_address: Some(ip.parse().unwrap()) }]);
        let request = PortCreate { network_id: network.clone(), fixed_ips, ..PortCreate::default() };
        cloud.control.port_create(&alice, request).await.map_err(reason).map(drop)
    };
    assert_eq!(wish("10.0.0.77").await, Ok(()));
    assert_eq!(wish("10.0.0.77").await, Err("IpAddressAlreadyAllocated"));
    // The gateway's, too, once: where no host has it, a port may be made for a router.
    assert_eq!(wish("10.0.0.1").await, Ok(()));
    assert_eq!(wish("10.0.0.1").await, Err("IpAddressAlreadyAllocated"));
    assert_eq!(wish("10.0.0.255").await, Err("InvalidIpForNetwork"));
    assert_eq!(wish("10.0.1.7").await, Err("InvalidIpForNetwork"));
}

#[tokio::test]
async fn networks_are_seen_by_their_project_unless_shared() {
    let cloud = Cloud::new().await;
    let (alice, bob) = (member("a"), member("b"));
    let network = cloud.network(&alice, "10.0.0.0/24").await;
    assert_eq!(reason(cloud.control.network_get(&bob, &network).await.unwrap_err()), "NotFound");
    assert_eq!(reason(cloud.port(&bob, &network).await.unwrap_err()), "NotFound");
    let admin = caller("admin", RoleLevel::Admin);
    let shared = NetworkUpdate { shared: Some(true), ..NetworkUpdate::default() };
    assert_eq!(
        reason(cloud.control.network_update(&alice, &network, shared.clone()).await.unwrap_err()),
        "Forbidden"
    );
    cloud.control.network_update(&admin, &network, shared).await.unwrap();
    assert!(cloud.port(&bob, &network).await.is_ok());
    assert_eq!(reason(cloud.control.network_delete(&bob, &network).await.unwrap_err()), "Forbidden");
}

#[tokio::test]
async fn network_in_use_stays_and_unused_takes_its_subnets_along() {
    let cloud = Cloud::new().await;
    let alice = member("a");
    let network = cloud.network(&alice, "10.0.0.0/24").await;
    let port = cloud.port(&alice, &network).await.unwrap().row.standard.id.clone();
    assert_eq!(reason(cloud.control.network_delete(&alice, &network).await.unwrap_err()), "NetworkInUse");
    cloud.control.port_delete(&alice, &port).await.unwrap();
    cloud.control.network_delete(&alice, &network).await.unwrap();
    assert!(cloud.control.subnet_list(&alice).await.unwrap().is_empty());
    assert!(cloud.control.port_list(&alice).await.unwrap().is_empty());
    let quotas = cloud.control.quotas_of("a").await.unwrap();
    for resource in [Resource::Networks, Resource::Subnets, Resource::Ports] {
        assert_eq!(quotas[&resource].used, 0, "{resource:?}");
    }
    let (left, _) = cloud.control.db.store().range("unique/").await.unwrap();
    let left: Vec<_> =
        left.iter().map(|entry| &entry.key).filter(|key| !key.contains("security-group")).collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn overlapping_subnets_and_double_identifiers_are_refused() {
    let cloud = Cloud::new().await;
    let admin = caller("admin", RoleLevel::Admin);
    let network = cloud.network(&admin, "10.0.0.0/24").await;
    let overlapping = SubnetCreate::new(network, "10.0.0.128/25".parse().unwrap(), "");
    assert_eq!(reason(cloud.control.subnet_create(&admin, overlapping).await.unwrap_err()), "InvalidInput");
    let twice = NetworkCreate { segmentation_id: Some(1), ..NetworkCreate::default() };
    assert_eq!(reason(cloud.control.network_create(&admin, twice).await.unwrap_err()), "TunnelIdInUse");
}

#[tokio::test]
async fn quota_of_networks_holds() {
    let cloud = Cloud::new().await;
    let (alice, admin) = (member("a"), caller("admin", RoleLevel::Admin));
    cloud.control.quota_set(&admin, "a", &[(Resource::Networks, 1)]).await.unwrap();
    cloud.network(&alice, "10.0.0.0/24").await;
    let second = cloud.control.network_create(&alice, NetworkCreate::default()).await;
    assert_eq!(reason(second.unwrap_err()), "OverQuota");
}

#[tokio::test]
async fn default_group_lets_members_in_and_its_members_cannot_delete_it() {
    let cloud = Cloud::new().await;
    let alice = member("a");
    let network = cloud.network(&alice, "10.0.0.0/24").await;
    let port = cloud.port(&alice, &network).await.unwrap();
    let group = port.row.security_groups[0].clone();
    assert_eq!(
        reason(cloud.control.security_group_delete(&alice, &group).await.unwrap_err()),
        "SecurityGroupCannotRemoveDefault"
    );
    let wanted =
        nics_wanted(cloud.control.db.cache(), "0abc", std::slice::from_ref(&port.row.standard.id)).unwrap();
    let rules = &wanted.groups[0].rules;
    assert_eq!(rules.len(), 4);
    let own: IpNet = port.row.fixed_ips[0].ip_address.into();
    let own = net::spec::Remote::Members(net::names::short_id(group.as_bytes()), [own].into());
    assert!(rules.iter().any(|rule| rule.remote == own));
}

#[tokio::test]
async fn rules_are_checked_and_not_doubled() {
    let cloud = Cloud::new().await;
    let alice = member("a");
    let group = cloud
        .control
        .security_group_create(&alice, GroupCreate::new("web"))
        .await
        .unwrap()
        .row
        .standard
        .id
        .clone();
    let rule = |protocol: Option<&str>, min, max| RuleCreate {
        security_group_id: group.clone(),
        direction: net::spec::Direction::Ingress,
        ip_version: 4,
        protocol: protocol.map(str::to_owned),
        port_range_min: min,
        port_range_max: max,
        remote_ip_prefix: None,
        remote_group_id: None,
        remote_address_group_id: None,
        description: String::new(),
    };
    let make = async |request| {
        cloud.control.security_group_rule_create(&alice, request).await.map_err(reason).map(drop)
    };
    assert_eq!(make(rule(Some("tcp"), Some(80), Some(80))).await, Ok(()));
    assert_eq!(make(rule(Some("tcp"), Some(80), Some(80))).await, Err("SecurityGroupRuleExists"));
    assert_eq!(make(rule(Some("tcp"), Some(90), Some(80))).await, Err("SecurityGroupInvalidPortRange"));
    assert_eq!(make(rule(None, Some(1), Some(2))).await, Err("SecurityGroupProtocolRequiredWithPorts"));
    assert_eq!(make(rule(Some("icmp"), Some(8), None)).await, Ok(()));
    assert_eq!(make(rule(Some("icmp"), Some(300), None)).await, Err("SecurityGroupInvalidIcmpValue"));
    assert_eq!(make(rule(Some("nonsense"), None, None)).await, Err("SecurityGroupRuleInvalidProtocol"));
}

/// A server of the project `a` that no host has.
fn server_of_ports(groups: &[String]) -> ServerOfPorts<'_> {
    ServerOfPorts { id: "server-1", project_id: "a", zone: ZONE, hostname: "one", host: None, groups }
}

#[tokio::test]
async fn servers_ports_are_bound_and_released_with_it() {
    let cloud = Cloud::new().await;
    let alice = member("a");
    let network = cloud.network(&alice, "10.0.0.0/24").await;
    let other = cloud.network(&alice, "10.1.0.0/24").await;
    let own = cloud.port(&alice, &other).await.unwrap().row.standard.id.clone();
    let requests = [NicRequest::on(network), NicRequest::Port { id: own.clone(), tag: None }];
    let groups = cloud.control.resolve_groups("a", &[]).await.unwrap();
    let server = server_of_ports(&groups);
    let ids = cloud
        .control
        .db
        .transact_with(|cache| Control::add_server_ports(cache, Txn::new(), &alice, &server, &requests))
        .await
        .unwrap();
    let wanted = nics_wanted(cloud.control.db.cache(), "0abc", &ids).unwrap();
    assert_eq!(wanted.nics.len(), 2);
    assert_eq!(wanted.nics[0].gateway, Some("10.0.0.1".parse().unwrap()));
    assert_eq!(wanted.nics[0].dhcp_server, Some("10.0.0.2".parse().unwrap()));
    cloud
        .control
        .db
        .transact(|cache| Ok(Control::release_server_ports(cache, Txn::new(), "server-1")))
        .await
        .unwrap();
    let left = cloud.control.port_list(&alice).await.unwrap();
    assert!(!left.iter().any(|port| port.row.standard.id == ids[0]), "made with the server, gone with it");
    assert!(cloud.control.port_get(&alice, &own).await.unwrap().row.device_id.is_empty());
}

#[tokio::test]
async fn public_network_is_made_once_and_the_host_is_its_gateway() {
    let cloud = Cloud::new().await;
    let admin = caller("admin", RoleLevel::Admin);
    for _ in 0..2 {
        cloud.control.bootstrap_public_network(&admin, "172.24.4.0/24".parse().unwrap()).await.unwrap();
    }
    let networks = cloud.control.network_list(&member("a")).await.unwrap();
    assert_eq!(networks.len(), 1);
    let wanted = network_wanted(cloud.control.db.cache(), &networks[0].row);
    assert_eq!(wanted.host_addresses, ["172.24.4.1/24".parse::<IpNet>().unwrap()]);
    let auto = cloud.control.resolve_nics(&member("a"), "a", &NicRequests::Auto).await.unwrap();
    assert_eq!(auto, [NicRequest::on(&networks[0].row.standard.id)]);
}

#[tokio::test]
async fn auto_makes_a_topology_where_that_is_possible_and_takes_what_is_there_elsewhere() {
    let cloud = Cloud::new().await;
    let admin = caller("admin", RoleLevel::Admin);
    cloud.control.bootstrap_public_network(&admin, "172.24.4.0/24".parse().unwrap()).await.unwrap();
    let auto = async |project| {
        let nics = cloud.control.resolve_nics(&member(project), project, &NicRequests::Auto).await.unwrap();
        let NicRequest::Network { id, .. } = &nics[0] else { panic!("{nics:?}") };
        cloud.control.network_get(&admin, id).await.unwrap().row.standard.clone()
    };
    assert_eq!(auto("a").await.name, PUBLIC_NAME);
    let fields = SubnetPoolUpdate {
        name: Some("default".into()),
        prefixes: Some(vec!["10.0.0.0/8".parse().unwrap()]),
        default_prefixlen: Some(26),
        is_default: Some(true),
        ..SubnetPoolUpdate::default()
    };
    let pool = SubnetPoolCreate { fields, ..SubnetPoolCreate::default() };
    cloud.control.subnet_pool_create(&admin, pool).await.unwrap();
    let made = auto("a").await;
    assert_eq!((made.name.as_str(), made.project_id.as_str()), ("auto_allocated_network", "a"));
    assert_eq!(auto("a").await.id, made.id);
    let own = cloud.network(&member("b"), "10.9.0.0/24").await;
    assert_eq!(auto("b").await.id, own);
}

#[tokio::test]
async fn a_rule_of_an_address_group_is_one_rule_for_each_address_of_its_family() {
    let cloud = Cloud::new().await;
    let alice = member("a");
    let addresses = ["10.0.0.0/8", "192.168.0.7/32", "2001:db8::/32"].map(|text| text.parse().unwrap());
    let request = AddressGroupCreate { addresses: addresses.into(), ..AddressGroupCreate::default() };
    let named = cloud.control.address_group_create(&alice, request).await.unwrap();
    let group = cloud.control.security_group_create(&alice, GroupCreate::new("web")).await.unwrap();
    let id = &group.row.standard.id;
    let rule = RuleCreate {
        security_group_id: id.clone(),
        direction: net::spec::Direction::Ingress,
        ip_version: 4,
        protocol: Some("tcp".into()),
        port_range_min: Some(80),
        port_range_max: Some(80),
        remote_ip_prefix: None,
        remote_group_id: None,
        remote_address_group_id: Some(named.row.standard.id.clone()),
        description: String::new(),
    };
    cloud.control.security_group_rule_create(&alice, rule).await.unwrap();
    let remotes = async || {
        let wanted = groups_wanted(cloud.control.db.cache(), &BTreeSet::from([id.clone()]));
        let ingress = wanted[0].rules.iter().filter(|rule| rule.direction == net::spec::Direction::Ingress);
        ingress.map(|rule| (rule.remote.clone(), rule.ports)).collect::<Vec<_>>()
    };
    let prefix = |text: &str| (net::spec::Remote::Prefix(text.parse().unwrap()), Some((80, 80)));
    assert_eq!(remotes().await, [prefix("10.0.0.0/8"), prefix("192.168.0.7/32")]);
    let taken = BTreeSet::from(addresses);
    cloud.control.address_group_remove(&alice, &named.row.standard.id, &taken).await.unwrap();
    assert!(remotes().await.is_empty(), "an empty group lets nobody in");
}
