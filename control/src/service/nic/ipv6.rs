//! What guests are told by IPv6, as a pure function of the rows: which routers announce which prefixes, and what DHCPv6
//! gives.
//!
//! As in Neutron, `ipv6_ra_mode` says what is announced, `ipv6_address_mode` what DHCPv6 gives; a subnet with neither is
//! announced by nobody of ours and has its addresses from DHCPv6. Each router announces the subnets that it is on; what
//! no router is on is announced without one, so that guests have their addresses.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::Arc;

use ipnet::{IpNet, Ipv6Net};
use net::names::{OwnerTag, link_mac, short_id};
use vmm::config::{AnnouncedPrefix, Announcement, Dhcpv6Config, Ipv6Config};
use vmm::endpoint::METADATA_ADDRESS_V6;

use crate::agent::protocol::Ipv6NetworkWanted;
use crate::model::network::{Ipv6Mode, Network, Port, Subnet};
use crate::model::router::Router;
use crate::service::nic::host_is_gateway;
use crate::service::router::OWNER_INTERFACE;
use crate::store::{Cache, Stored};

/// The IPv6 subnets and the routers' ports of all networks.
pub(super) struct Ipv6Networks {
    tag: Option<OwnerTag>,
    subnets: BTreeMap<String, Vec<Arc<Stored<Subnet>>>>,
    interfaces: BTreeMap<String, Vec<Arc<Stored<Port>>>>,
}

impl Ipv6Networks {
    pub(super) fn of(cache: &Cache, cloud_tag: &str) -> Self {
        let mut networks =
            Self { tag: cloud_tag.parse().ok(), subnets: BTreeMap::new(), interfaces: BTreeMap::new() };
        for subnet in cache.filter::<Subnet>(|subnet| !subnet.cidr.addr().is_ipv4() && subnet.enable_dhcp) {
            networks.subnets.entry(subnet.row.network_id.clone()).or_default().push(subnet);
        }
        if networks.subnets.is_empty() {
            return networks;
        }
        let ports = cache.filter::<Port>(|port| port.device_owner == OWNER_INTERFACE && port.admin_state_up);
        for port in ports {
            // One that is switched off answers nobody.
            let router = cache.get::<Router>(&port.row.device_id);
            if router.is_some_and(|router| router.row.admin_state_up) {
                networks.interfaces.entry(port.row.network_id.clone()).or_default().push(port);
            }
        }
        networks
    }

    /// What the guest with this port is told.
    pub(super) fn config_of(&self, port: &Port, network: &Network) -> Ipv6Config {
        let Some(subnets) = self.subnets.get(&port.network_id) else { return Ipv6Config::default() };
        let subnets: Vec<&Subnet> = subnets.iter().map(|subnet| &subnet.row).collect();
        Ipv6Config {
            announcements: self.announcements(port, network, &subnets),
            others_announce: subnets.iter().any(|subnet| subnet.ipv6_ra_mode.is_none()),
            dhcp: dhcp(port, &subnets),
        }
    }

    fn announcements(&self, port: &Port, network: &Network, subnets: &[&Subnet]) -> Vec<Announcement> {
        let mut left: Vec<&Subnet> =
            subnets.iter().copied().filter(|subnet| subnet.ipv6_ra_mode.is_some()).collect();
        let mut announcements = Vec::new();
        let interfaces = self.interfaces.get(&port.network_id).map(Vec::as_slice).unwrap_or_default();
        for interface in interfaces.iter().map(|interface| &interface.row) {
            let is_on =
                |subnet: &Subnet| interface.fixed_ips.iter().any(|ip| ip.subnet_id == subnet.standard.id);
            let own: Vec<_> = subnets
                .iter()
                .copied()
                .filter(|subnet| subnet.ipv6_ra_mode.is_some() && is_on(subnet))
                .collect();
            left.retain(|subnet| !is_on(subnet));
            let addresses: Vec<_> = interface.fixed_ips.iter().map(|ip| ip.ip_address).collect();
            announcements.extend(announcement(port, Some(interface.mac), &addresses, &own));
        }
        // Where the host itself is the gateway, it is the router.
        let bridge = |tag: OwnerTag| link_mac(&tag.bridge(short_id(network.standard.id.as_bytes())));
        let host = self.tag.filter(|_| host_is_gateway(network)).map(bridge);
        let (of_host, of_nobody): (Vec<_>, Vec<_>) =
            left.into_iter().partition(|subnet| host.is_some() && subnet.gateway_ip.is_some());
        let addresses: Vec<_> = of_host.iter().filter_map(|subnet| subnet.gateway_ip).collect();
        announcements.extend(announcement(port, host, &addresses, &of_host));
        announcements.extend(announcement(port, None, &[], &of_nobody));
        announcements
    }
}

/// A port's IPv6 addresses with what its guest may want to know of their subnets.
pub(super) fn networks_of(cache: &Cache, port: &Port) -> Vec<Ipv6NetworkWanted> {
    let networks = port.fixed_ips.iter().filter_map(|ip| {
        let address = v6(ip.ip_address)?;
        let subnet = &cache.get::<Subnet>(&ip.subnet_id)?.row;
        let mode = match subnet.ipv6_address_mode {
            Some(mode) => Some(mode.name()),
            None => subnet.enable_dhcp.then_some("dhcp"),
        };
        Some(Ipv6NetworkWanted {
            mode: mode.map(str::to_owned),
            address,
            prefix_len: subnet.cidr.prefix_len(),
            gateway: subnet.gateway_ip,
            routes: subnet.host_routes.clone(),
            dns: subnet.dns_nameservers.clone(),
        })
    });
    networks.collect()
}

/// What a router with these addresses announces of these subnets to the guest with this port; none without a subnet.
fn announcement(
    port: &Port,
    router: Option<[u8; 6]>,
    addresses: &[IpAddr],
    subnets: &[&Subnet],
) -> Option<Announcement> {
    if subnets.is_empty() {
        return None;
    }
    let has = |mode| subnets.iter().any(|subnet| subnet.ipv6_ra_mode == Some(mode));
    let prefixes = subnets.iter().filter_map(|subnet| {
        // An address that is not the port's would be dropped as spoofed.
        let has_address = port.fixed_ips.iter().any(|ip| ip.subnet_id == subnet.standard.id);
        let autonomous = has_address && subnet.ipv6_ra_mode.is_some_and(Ipv6Mode::is_auto);
        Some(AnnouncedPrefix { prefix: prefix_of(subnet)?, autonomous })
    });
    let routes = subnets.iter().flat_map(|subnet| &subnet.host_routes);
    let routes = routes.filter_map(|(destination, hop)| match destination {
        // A router announces only what it leads to itself.
        IpNet::V6(destination) if addresses.contains(hop) => Some(destination.trunc()),
        _ => None,
    });
    Some(Announcement {
        router,
        is_default: subnets
            .iter()
            .filter_map(|subnet| subnet.gateway_ip)
            .any(|gateway| addresses.contains(&gateway)),
        managed: has(Ipv6Mode::Dhcpv6Stateful),
        other: has(Ipv6Mode::Dhcpv6Stateless),
        prefixes: prefixes.collect(),
        routes: routes.collect(),
        dns: name_servers(subnets),
    })
}

fn dhcp(port: &Port, subnets: &[&Subnet]) -> Option<Dhcpv6Config> {
    let gives_addresses = |subnet: &Subnet| match (subnet.ipv6_ra_mode, subnet.ipv6_address_mode) {
        (_, Some(mode)) => mode == Ipv6Mode::Dhcpv6Stateful,
        (None, None) => true,
        (Some(_), None) => false,
    };
    let served: Vec<&Subnet> = subnets
        .iter()
        .copied()
        .filter(|subnet| {
            gives_addresses(subnet) || subnet.ipv6_address_mode == Some(Ipv6Mode::Dhcpv6Stateless)
        })
        .collect();
    if served.is_empty() {
        return None;
    }
    let addresses = port.fixed_ips.iter().filter_map(|ip| {
        let given = served.iter().any(|subnet| subnet.standard.id == ip.subnet_id && gives_addresses(subnet));
        v6(ip.ip_address).filter(|_| given)
    });
    Some(Dhcpv6Config {
        addresses: addresses.collect(),
        on_link: subnets.iter().filter_map(|subnet| prefix_of(subnet)).collect(),
        dns: name_servers(&served),
        options: super::dhcp_options(port, 6),
    })
}

fn prefix_of(subnet: &Subnet) -> Option<Ipv6Net> {
    match subnet.cidr {
        IpNet::V6(prefix) => Some(prefix.trunc()),
        IpNet::V4(_) => None,
    }
}

/// The subnets' name servers, each once, in their order; where they name none, the host's resolver, which answers on the
/// link of each guest.
fn name_servers(subnets: &[&Subnet]) -> Vec<Ipv6Addr> {
    let mut servers = Vec::new();
    for server in subnets.iter().flat_map(|subnet| &subnet.dns_nameservers).copied().filter_map(v6) {
        if !servers.contains(&server) {
            servers.push(server);
        }
    }
    if servers.is_empty() {
        servers.push(METADATA_ADDRESS_V6);
    }
    servers
}

fn v6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::network::{FixedIp, NetworkKind};
    use crate::service::network::new_standard;
    use crate::service::port::{NewPort, new_port};

    fn subnet(id: &str, cidr: &str, ra: Option<Ipv6Mode>, address: Option<Ipv6Mode>) -> Arc<Stored<Subnet>> {
        let cidr: IpNet = cidr.parse().unwrap();
        let gateway = cidr.hosts().nth(1);
        let row = Subnet {
            standard: new_standard(id.to_owned(), "a".to_owned(), String::new()),
            network_id: "n".to_owned(),
            cidr,
            gateway_ip: gateway,
            enable_dhcp: true,
            allocation_pools: Vec::new(),
            dns_nameservers: vec!["2620:fe::fe".parse().unwrap(), "9.9.9.9".parse().unwrap()],
            host_routes: vec![
                ("2001:db8:ff::/48".parse().unwrap(), gateway.unwrap()),
                ("2001:db8:fe::/48".parse().unwrap(), "2001:db8::99".parse().unwrap()),
            ],
            ipv6_ra_mode: ra,
            ipv6_address_mode: address,
            subnetpool_id: None,
            service_types: Vec::new(),
            dhcp_server: None,
        };
        Arc::new(Stored { row, create_revision: 1, mod_revision: 1 })
    }

    fn port(owner: &str, mac: u8, addresses: &[(&str, &str)]) -> Port {
        let fixed_ip = |(subnet, address): &(&str, &str)| FixedIp {
            subnet_id: (*subnet).to_owned(),
            ip_address: address.parse().unwrap(),
        };
        new_port(NewPort {
            project_id: "a",
            network_id: "n",
            name: "",
            mac: [2, 0, 0, 0, 0, mac],
            fixed_ips: addresses.iter().map(fixed_ip).collect(),
            device_id: "d",
            device_owner: owner,
            active: true,
        })
    }

    fn network(kind: NetworkKind) -> Network {
        Network {
            standard: new_standard("n".to_owned(), "a".to_owned(), String::new()),
            kind,
            mtu: 1450,
            admin_state_up: true,
            shared: false,
            external: false,
            port_security_enabled: true,
            is_default: false,
            zone_hints: Vec::new(),
            qos_policy_id: None,
            dns_domain: String::new(),
        }
    }

    fn networks(subnets: Vec<Arc<Stored<Subnet>>>, interfaces: Vec<Port>) -> Ipv6Networks {
        let interfaces = interfaces
            .into_iter()
            .map(|row| Arc::new(Stored { row, create_revision: 1, mod_revision: 1 }))
            .collect();
        Ipv6Networks {
            tag: "0abc".parse().ok(),
            subnets: [("n".to_owned(), subnets)].into(),
            interfaces: [("n".to_owned(), interfaces)].into(),
        }
    }

    const SLAAC: Option<Ipv6Mode> = Some(Ipv6Mode::Slaac);
    const STATEFUL: Option<Ipv6Mode> = Some(Ipv6Mode::Dhcpv6Stateful);
    const STATELESS: Option<Ipv6Mode> = Some(Ipv6Mode::Dhcpv6Stateless);

    #[test]
    fn each_router_announces_its_own_subnets_and_the_rest_nobody() {
        let subnets = vec![
            subnet("s1", "2001:db8::/64", SLAAC, SLAAC),
            subnet("s2", "2001:db8:1::/64", STATEFUL, STATEFUL),
            subnet("s3", "2001:db8:2::/64", STATELESS, STATELESS),
        ];
        let interfaces = vec![
            port(OWNER_INTERFACE, 1, &[("s1", "2001:db8::1")]),
            port(OWNER_INTERFACE, 2, &[("s2", "2001:db8:1::9")]),
        ];
        let guest = port("compute:nova", 7, &[("s1", "2001:db8::7"), ("s2", "2001:db8:1::7")]);
        let config = networks(subnets, interfaces).config_of(&guest, &network(NetworkKind::Vxlan { vni: 1 }));
        assert!(!config.others_announce);
        let told: Vec<_> = config
            .announcements
            .iter()
            .map(|one| {
                let prefixes: Vec<_> = one
                    .prefixes
                    .iter()
                    .map(|prefix| (prefix.prefix.to_string(), prefix.autonomous))
                    .collect();
                (one.router.map(|mac| mac[5]), one.is_default, one.managed, one.other, prefixes)
            })
            .collect();
        let prefix = |text: &str, autonomous| vec![(text.to_owned(), autonomous)];
        assert_eq!(
            told,
            [
                (Some(1), true, false, false, prefix("2001:db8::/64", true)),
                // It has not the gateway's address.
                (Some(2), false, true, false, prefix("2001:db8:1::/64", false)),
                // The guest's port has no address there, so the guest must not make one.
                (None, false, false, true, prefix("2001:db8:2::/64", false)),
            ]
        );
        assert_eq!(config.announcements[0].routes, ["2001:db8:ff::/48".parse().unwrap()]);
        assert_eq!(config.announcements[0].dns, ["2620:fe::fe".parse::<Ipv6Addr>().unwrap()]);
        let dhcp = config.dhcp.unwrap();
        assert_eq!(dhcp.addresses, ["2001:db8:1::7".parse::<Ipv6Addr>().unwrap()]);
        assert_eq!(dhcp.on_link.len(), 3);
    }

    #[test]
    fn what_others_announce_is_left_to_them() {
        let guest = port("compute:nova", 7, &[("s1", "2001:db8::7")]);
        let of = |ra, address| {
            let networks = networks(vec![subnet("s1", "2001:db8::/64", ra, address)], Vec::new());
            let config = networks.config_of(&guest, &network(NetworkKind::Vxlan { vni: 1 }));
            let addresses = config.dhcp.map(|dhcp| dhcp.addresses.len());
            (config.announcements.len(), config.others_announce, addresses)
        };
        assert_eq!(of(None, SLAAC), (0, true, None));
        assert_eq!(of(None, STATEFUL), (0, true, Some(1)));
        assert_eq!(of(None, STATELESS), (0, true, Some(0)));
        assert_eq!(of(None, None), (0, true, Some(1)));
        assert_eq!(of(STATEFUL, None), (1, false, None));
    }

    #[test]
    fn host_is_the_router_of_a_flat_network() {
        let guest = port("compute:nova", 7, &[("s1", "2001:db8::7")]);
        let networks = networks(vec![subnet("s1", "2001:db8::/64", SLAAC, SLAAC)], Vec::new());
        let flat = network(NetworkKind::Flat { physical_network: "public".to_owned() });
        let config = networks.config_of(&guest, &flat);
        let bridge = networks.tag.unwrap().bridge(short_id(b"n"));
        assert_eq!(config.announcements[0].router, Some(link_mac(&bridge)));
        assert!(config.announcements[0].is_default);
    }
}
