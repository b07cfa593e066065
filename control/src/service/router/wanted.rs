//! What a host is told of its routers, as a pure function of the rows.

use std::collections::{BTreeMap, BTreeSet, hash_map::DefaultHasher};
use std::hash::{Hash, Hasher};
use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;

use ipnet::IpNet;
use net::spec::{AddressLimit, Direction, MeterRule};

use super::floating_ip::forwardings_of;
use super::{OWNER_GATEWAY, OWNER_INTERFACE};
use crate::agent::protocol::{ForwardingWanted, NetworkWanted, RouterLinkWanted, RouterWanted};
use crate::model::compute::Host;
use crate::model::network::metering::{MeteringLabel, MeteringRule};
use crate::model::network::{Network, Port, Subnet};
use crate::model::router::{FloatingIp, PortForwarding, Router};
use crate::service::nic::network_wanted;
use crate::service::qos::held::of_address;
use crate::store::{Cache, Stored};

/// The most labels that routers count by: each costs every packet a look at its rules.
const LABELS_MAX: usize = 256;

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
    let labels = labels_wanted(cache);
    let all_floating = cache.filter::<FloatingIp>(|floating| floating.router_id.is_some());
    for router in own {
        let id = router.row.standard.id.as_str();
        let floating = all_floating.iter().filter(|floating| floating.row.router_id.as_deref() == Some(id));
        let floating: Vec<_> = floating.map(|floating| &floating.row).collect();
        let ports = ports.get(id).map(Vec::as_slice).unwrap_or_default();
        let project = router.row.standard.project_id.as_str();
        let mut router = router_wanted(cache, &router.row, ports, &floating, &mut wanted.networks);
        if router.outside.is_some() {
            let own = labels.iter().filter(|label| label.is_for(project));
            router.labels = own.map(|label| (label.id.clone(), label.rules.clone())).collect();
        }
        wanted.routers.push(router);
    }
    wanted
}

/// A metering label with rules.
struct LabelWanted {
    id: String,
    project_id: String,
    shared: bool,
    rules: BTreeSet<MeterRule>,
}

impl LabelWanted {
    /// Routers are counted by the labels of their own project and by shared ones, as in Neutron.
    fn is_for(&self, project: &str) -> bool {
        self.shared || self.project_id == project
    }
}

fn labels_wanted(cache: &Cache) -> Vec<LabelWanted> {
    let mut rules: BTreeMap<String, BTreeSet<MeterRule>> = BTreeMap::new();
    for rule in cache.list::<MeteringRule>() {
        rules.entry(rule.row.label_id.clone()).or_default().insert(meter_rule(&rule.row));
    }
    let labels = rules.into_iter().filter_map(|(id, rules)| {
        let label = cache.get::<MeteringLabel>(&id)?;
        let project_id = label.row.standard.project_id.clone();
        Some(LabelWanted { id, project_id, shared: label.row.shared, rules })
    });
    labels.take(LABELS_MAX).collect()
}

/// By the older way of saying it there is but the other side: the source of what comes in, the target of what goes out.
fn meter_rule(rule: &MeteringRule) -> MeterRule {
    let remote = |direction| rule.remote_ip_prefix.filter(|_| rule.direction == direction);
    MeterRule {
        is_counted: !rule.excluded,
        direction: rule.direction,
        source: rule.source_ip_prefix.or_else(|| remote(Direction::Ingress)),
        destination: rule.destination_ip_prefix.or_else(|| remote(Direction::Egress)),
    }
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
    // What passes by IPv6 has no address outside, and so is held as the router itself.
    wanted.ipv6_as = own.map(IpAddr::V4).or_else(|| port.fixed_ips.first().map(|ip| ip.ip_address));
    if let Some(address) = wanted.ipv6_as {
        hold(
            &mut wanted,
            address,
            of_address(cache, gateway.qos_policy_id.as_ref(), &gateway.network_id, address),
        );
    }
    for floating in floating {
        let target = floating.target.iter().map(|target| (floating.address, target.address));
        wanted.floating.extend(target);
        let (policy, address) = (floating.qos_policy_id.as_ref(), floating.address.into());
        hold(&mut wanted, address, of_address(cache, policy, &floating.network_id, address));
        for forwarding in forwardings_of(cache, &floating.standard.id) {
            wanted.forwardings.extend(ports_of(floating.address, &forwarding.row));
        }
    }
    wanted
}

fn hold(wanted: &mut RouterWanted, address: IpAddr, (limits, dscp): (Vec<AddressLimit>, Option<u8>)) {
    wanted.limits.extend(limits);
    wanted.marks.extend(dscp.map(|dscp| (address, dscp)));
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn other_side_is_the_source_of_what_comes_in_and_the_target_of_what_goes_out() {
        let net = |text: &str| text.parse::<IpNet>().ok();
        let rule = MeteringRule {
            id: "r".to_owned(),
            label_id: "l".to_owned(),
            direction: Direction::Ingress,
            excluded: true,
            remote_ip_prefix: net("10.0.0.0/8"),
            source_ip_prefix: None,
            destination_ip_prefix: None,
        };
        let inward = meter_rule(&rule);
        assert_eq!((inward.source, inward.destination, inward.is_counted), (net("10.0.0.0/8"), None, false));
        let outward =
            meter_rule(&MeteringRule { direction: Direction::Egress, excluded: false, ..rule.clone() });
        assert_eq!(
            (outward.source, outward.destination, outward.is_counted),
            (None, net("10.0.0.0/8"), true)
        );
        let both = MeteringRule {
            remote_ip_prefix: None,
            source_ip_prefix: net("10.1.0.0/16"),
            destination_ip_prefix: net("10.2.0.0/16"),
            ..rule
        };
        let both = meter_rule(&both);
        assert_eq!((both.source, both.destination), (net("10.1.0.0/16"), net("10.2.0.0/16")));
    }
}
