//! What a host is told of its routers, as a pure function of the rows.

use std::collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;

use super::floating_ip::forwardings_of;
use super::{OWNER_GATEWAY, OWNER_INTERFACE};
use crate::agent::protocol::{ForwardingWanted, NetworkWanted, RouterLinkWanted, RouterWanted};
use crate::model::compute::Host;
use crate::model::network::{Network, Port, Subnet};
use crate::model::router::{FloatingIp, PortForwarding, Router};
use crate::service::nic::network_wanted;
use crate::store::{Cache, Stored};

/// The routers of a host with the networks that they need.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct RoutersWanted {
    pub(crate) routers: Vec<RouterWanted>,
    pub(crate) networks: BTreeMap<String, NetworkWanted>,
}

/// The host that a router is on: each host that there is has its share, and a host that comes or goes moves no router
/// but those that it gets or had (highest random weight). Hosts whose network agent is taken out of service have none.
pub(crate) fn host_of(hosts: &[Arc<Stored<Host>>], router_id: &str) -> Option<String> {
    let weight = |host: &str| {
        let mut hasher = DefaultHasher::new();
        (host, router_id).hash(&mut hasher);
        hasher.finish()
    };
    let open = |host: &&Arc<Stored<Host>>| !host.row.network_disabled;
    // Where all are closed, what is there stays there.
    let all_closed = !hosts.iter().any(|host| open(&host));
    let names = hosts.iter().filter(|host| all_closed || open(host)).map(|host| &host.row.name);
    names.max_by_key(|name| (weight(name), (*name).clone())).cloned()
}

/// What a host shall have of routers.
pub(crate) fn routers_wanted(cache: &Cache, host: &str) -> RoutersWanted {
    let mut wanted = RoutersWanted::default();
    let routers = cache.list::<Router>();
    if routers.is_empty() {
        return wanted;
    }
    let hosts = cache.list::<Host>();
    let own =
        |router: &&Arc<Stored<Router>>| host_of(&hosts, &router.row.standard.id).as_deref() == Some(host);
    let own: Vec<_> = routers.iter().filter(own).collect();
    // All ports and floating IPs once, not once for each router.
    let mut ports: BTreeMap<&str, Vec<Arc<Stored<Port>>>> = BTreeMap::new();
    let all_ports = cache.filter::<Port>(|port| {
        matches!(port.device_owner.as_str(), OWNER_INTERFACE | OWNER_GATEWAY) && port.admin_state_up
    });
    for port in &all_ports {
        ports.entry(&port.row.device_id).or_default().push(Arc::clone(port));
    }
    let all_floating = cache.filter::<FloatingIp>(|floating| floating.router_id.is_some());
    for router in own {
        let id = router.row.standard.id.as_str();
        let floating = all_floating.iter().filter(|floating| floating.row.router_id.as_deref() == Some(id));
        let floating: Vec<_> = floating.map(|floating| &floating.row).collect();
        let ports = ports.get(id).map(Vec::as_slice).unwrap_or_default();
        wanted.routers.push(router_wanted(cache, &router.row, ports, &floating, &mut wanted.networks));
    }
    wanted
}

fn router_wanted(
    cache: &Cache,
    router: &Router,
    ports: &[Arc<Stored<Port>>],
    floating: &[&FloatingIp],
    networks: &mut BTreeMap<String, NetworkWanted>,
) -> RouterWanted {
    let mut wanted = RouterWanted { id: router.standard.id.clone(), ..RouterWanted::default() };
    for port in ports.iter().map(|port| &port.row) {
        let Some(network) = cache.get::<Network>(&port.network_id) else { continue };
        networks.entry(port.network_id.clone()).or_insert_with(|| network_wanted(cache, &network.row));
        wanted.links.push(RouterLinkWanted {
            port_id: port.standard.id.clone(),
            network_id: port.network_id.clone(),
            mac: port.mac,
            mtu: network.row.mtu,
            addresses: addresses_of(cache, port),
        });
    }
    if !router.admin_state_up {
        // It is connected, and leads nowhere: without an address it answers nobody and has no way to anybody.
        wanted.links.iter_mut().for_each(|link| link.addresses.clear());
        return wanted;
    }
    wanted.routes.clone_from(&router.routes);
    let gateway = router.gateway.as_ref().and_then(|gateway| {
        let port = ports.iter().find(|port| port.row.standard.id == gateway.port_id)?;
        Some((gateway, &port.row))
    });
    let Some((gateway, port)) = gateway else { return wanted };
    let has_default =
        |ipv4: bool| router.routes.iter().any(|(to, _)| to.prefix_len() == 0 && to.addr().is_ipv4() == ipv4);
    let defaults = port.fixed_ips.iter().filter_map(|ip| {
        let via = cache.get::<Subnet>(&ip.subnet_id)?.row.gateway_ip?;
        let to: IpNet = if via.is_ipv4() { "0.0.0.0/0" } else { "::/0" }.parse().ok()?;
        (!has_default(via.is_ipv4())).then_some((to, via))
    });
    // One for each version of IP, by the first subnet that has a gateway.
    let mut versions = BTreeSet::new();
    wanted.routes.extend(defaults.filter(|(_, via)| versions.insert(via.is_ipv4())));
    let own = port.fixed_ips.iter().find_map(|ip| v4(ip.ip_address));
    wanted.outside = Some((gateway.port_id.clone(), own.filter(|_| gateway.enable_snat)));
    for floating in floating {
        let target = floating.target.iter().map(|target| (floating.address, target.address));
        wanted.floating.extend(target);
        for forwarding in forwardings_of(cache, &floating.standard.id) {
            wanted.forwardings.extend(ports_of(floating.address, &forwarding.row));
        }
    }
    wanted
}

fn ports_of(address: Ipv4Addr, forwarding: &PortForwarding) -> impl Iterator<Item = ForwardingWanted> {
    let PortForwarding { transport, external, internal, internal_address, .. } = forwarding;
    let (protocol, to, internal, first) = (transport.number(), *internal_address, *internal, external.0);
    (external.0..=external.1).map(move |port| ForwardingWanted {
        address,
        protocol,
        port,
        to,
        to_port: if internal.0 == internal.1 { internal.0 } else { internal.0 + (port - first) },
    })
}

fn addresses_of(cache: &Cache, port: &Port) -> BTreeSet<IpNet> {
    let with_prefix = port.fixed_ips.iter().filter_map(|ip| {
        let subnet = cache.get::<Subnet>(&ip.subnet_id)?;
        IpNet::new(ip.ip_address, subnet.row.cidr.prefix_len()).ok()
    });
    with_prefix.collect()
}

fn v4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
