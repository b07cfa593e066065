//! Servers on networks: the ports a server asks for at its creation, their binding and release, and what a host
//! is told of them.

mod ipv6;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use vmm::config::{DhcpOption, Ipv6Config};

use self::ipv6::Ipv6Networks;
use super::auto_topology::is_possible;
use super::names;
use super::network::PUBLIC_NAME;
use super::network_resource::sees;
use super::port::{
    FixedIpWish, OWNER_COMPUTE, PortCreate, PortOwner, add_port, build_port, owned_port, remove_port,
};
use super::qos;
use super::router::floating_ip::abandon_port;
use super::security_group::groups_wanted;
use super::trunk;
use crate::Control;
use crate::agent::protocol::{GroupWanted, NetworkWanted, NicWanted, PhysicalWanted, SubPortWanted};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::network::{Network, NetworkKind, Port, Subnet};
use crate::model::random_uuid;
use crate::store::{Cache, Stored, Txn};

/// The most network devices of one server: what the virtio-mmio transport has pins for, less its disks.
pub const NICS_MAX: usize = 6;

/// One network device as a server's creation asks for it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicRequest {
    /// A new port on a network.
    Network {
        /// The network's id.
        id: String,
        /// The wished address.
        fixed_ip: Option<IpAddr>,
        /// What its guest finds it by.
        tag: Option<String>,
    },
    /// A port that exists.
    Port {
        /// The port's id.
        id: String,
        /// What its guest finds it by.
        tag: Option<String>,
    },
}

impl NicRequest {
    /// A new port on a network, with whatever address.
    pub fn on(network_id: impl Into<String>) -> Self {
        Self::Network { id: network_id.into(), fixed_ip: None, tag: None }
    }

    /// The device's tag.
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Network { tag, .. } | Self::Port { tag, .. } => tag.as_deref(),
        }
    }
}

/// The networks as a server's creation asks for them (Compute API: `networks`).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum NicRequests {
    /// The only network there is, or none.
    Unsaid,
    /// The project's only network, or a shared one, or the project's own topology, made for it, or the public one.
    Auto,
    /// None.
    None,
    /// These.
    Listed(Vec<NicRequest>),
}

/// The ports of a host's instances as its agent enforces them.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct NicsWanted {
    /// The devices, in the order of the ports asked for.
    pub nics: Vec<NicWanted>,
    /// Their networks.
    pub networks: Vec<NetworkWanted>,
    /// Their groups.
    pub groups: Vec<GroupWanted>,
}

impl Control {
    /// The network devices a request means: `auto` and silence become networks by name.
    pub(crate) async fn resolve_nics(
        &self,
        caller: &Caller,
        project_id: &str,
        requests: &NicRequests,
    ) -> Result<Vec<NicRequest>> {
        let cache = self.db.cache();
        match requests {
            NicRequests::None => Ok(Vec::new()),
            NicRequests::Listed(list) => {
                if list.len() > NICS_MAX {
                    return Err(Error::invalid(
                        "TooManyNetworks",
                        format!("A server can have at most {NICS_MAX} networks."),
                    ));
                }
                Ok(list.clone())
            }
            NicRequests::Unsaid | NicRequests::Auto => {
                let with_subnets: BTreeSet<String> =
                    cache.list::<Subnet>().iter().map(|subnet| subnet.row.network_id.clone()).collect();
                let usable: Vec<_> = cache
                    .list::<Network>()
                    .into_iter()
                    .filter(|network| {
                        sees(cache, caller, &network.row) && with_subnets.contains(&network.row.standard.id)
                    })
                    .collect();
                let (own, foreign): (Vec<_>, Vec<_>) =
                    usable.iter().filter(|network| !network.row.external || network.row.shared).partition(
                        |network| network.row.standard.project_id == project_id && !network.row.external,
                    );
                // The public network is shared by nature, so it is taken where nothing of the project's own can be made.
                let foreign = match foreign.iter().any(|network| !network.row.external) {
                    true => foreign,
                    false if own.is_empty() && *requests == NicRequests::Auto && is_possible(cache) => {
                        let made = self
                            .topology(caller, project_id)
                            .await
                            .map_err(|error| unallocated(project_id, &error))?;
                        return Ok(vec![NicRequest::on(made)]);
                    }
                    false => foreign,
                };
                let candidates = if own.is_empty() { foreign } else { own };
                match candidates.as_slice() {
                    [network] => Ok(vec![NicRequest::on(&network.row.standard.id)]),
                    [] if *requests == NicRequests::Unsaid => Ok(Vec::new()),
                    [] => Err(unallocated(project_id, &"there is none with a subnet")),
                    _ => Err(Error::conflict(
                        "NetworkAmbiguous",
                        "Multiple possible networks found, use a Network ID to be more specific.",
                    )),
                }
            }
        }
    }

    /// The rows of a new server's ports: builds new ones, binds those that exist, and adds both to its transaction.
    ///
    /// `groups` are security group ids for the new ports; the caller has resolved them.
    pub(crate) fn add_server_ports(
        cache: &Cache,
        mut txn: Txn,
        caller: &Caller,
        server: &ServerOfPorts<'_>,
        requests: &[NicRequest],
    ) -> Result<(Txn, Vec<String>)> {
        let mut ids = Vec::with_capacity(requests.len());
        let mut new_ports: Vec<Port> = Vec::new();
        for request in requests {
            match request {
                NicRequest::Network { id, fixed_ip, .. } => {
                    let port_id = random_uuid();
                    let port = build_server_port(cache, caller, server, &port_id, id, *fixed_ip, &new_ports)?;
                    new_ports.push(port);
                    ids.push(port_id);
                }
                NicRequest::Port { id, .. } => {
                    let stored = owned_port(cache, caller, id, "bind_port")?;
                    if stored.row.standard.project_id != server.project_id {
                        let message = format!("Port {id} not usable for instance {}.", server.id);
                        return Err(Error::invalid("PortNotUsable", message));
                    }
                    if !stored.row.device_id.is_empty() || ids.contains(id) {
                        return Err(Error::conflict("PortInUse", format!("Port {id} is still in use.")));
                    }
                    let mut port = stored.row.clone();
                    take_name(&mut port, server)?;
                    port.device_id = server.id.to_owned();
                    port.device_owner = format!("{OWNER_COMPUTE}{}", server.zone);
                    port.host = server.host.map(str::to_owned);
                    super::network::touch(&mut port.standard);
                    txn = txn.update(&stored, &port);
                    ids.push(id.clone());
                }
            }
        }
        for port in &new_ports {
            txn = add_port(txn, port);
        }
        Ok((txn, ids))
    }

    /// Adds the release of a server's ports to a transaction: its own are deleted, others unbound.
    pub(crate) fn release_server_ports(cache: &Cache, mut txn: Txn, server_id: &str) -> Txn {
        for stored in server_ports(cache, server_id) {
            txn = Self::release_server_port(cache, txn, &stored);
        }
        txn
    }

    /// Adds the release of one of a server's ports to a transaction.
    pub(crate) fn release_server_port(cache: &Cache, txn: Txn, stored: &Stored<Port>) -> Txn {
        let id = &stored.row.standard.id;
        // A trunk keeps its ports, as Neutron refuses to let them go.
        if stored.row.owned_by_server && !trunk::has_port(cache, id) {
            let txn = trunk::require_free(txn, id);
            return remove_port(abandon_port(cache, txn, id), stored);
        }
        let mut port = stored.row.clone();
        port.device_id.clear();
        port.device_owner.clear();
        port.owned_by_server = false;
        // It was its server's, as with Nova.
        port.dns_name.clear();
        port.host = None;
        port.active = false;
        super::network::touch(&mut port.standard);
        txn.update(stored, &port)
    }

    /// Adds to a transaction that a server's ports are bound to a host, and whether they carry traffic.
    pub(crate) fn bind_server_ports(
        cache: &Cache,
        mut txn: Txn,
        server_id: &str,
        host: Option<&str>,
        active: bool,
    ) -> Txn {
        for stored in server_ports(cache, server_id) {
            if stored.row.host.as_deref() == host && stored.row.active == active {
                continue;
            }
            let mut port = stored.row.clone();
            port.host = host.map(str::to_owned);
            port.active = active;
            super::network::touch(&mut port.standard);
            txn = txn.update(&stored, &port);
        }
        txn
    }
}

fn unallocated(project_id: &str, why: &dyn std::fmt::Display) -> Error {
    let message = format!("Unable to automatically allocate a network for project {project_id}: {why}");
    Error::invalid("UnableToAutoAllocateNetwork", message)
}

/// The server that ports are made for.
#[derive(Debug, Clone, Copy)]
pub(crate) struct ServerOfPorts<'a> {
    pub(crate) id: &'a str,
    pub(crate) project_id: &'a str,
    pub(crate) zone: &'a str,
    /// Its host name.
    pub(crate) hostname: &'a str,
    /// Where it is, if it is anywhere yet.
    pub(crate) host: Option<&'a str>,
    /// Security groups' ids for new ports.
    pub(crate) groups: &'a [String],
}

/// A port of a server has the server's name, as Nova asks it of Neutron.
fn take_name(port: &mut Port, server: &ServerOfPorts<'_>) -> Result<()> {
    if !port.dns_name.is_empty() && port.dns_name != server.hostname {
        let message = format!(
            "Port {} not usable for instance {}. Value {} assigned to dns_name attribute does not match instance's \
             hostname {}",
            port.standard.id, server.id, port.dns_name, server.hostname
        );
        return Err(Error::invalid("PortNotUsableDNS", message));
    }
    port.dns_name = server.hostname.to_owned();
    Ok(())
}

fn build_server_port(
    cache: &Cache,
    caller: &Caller,
    server: &ServerOfPorts<'_>,
    port_id: &str,
    network_id: &str,
    fixed_ip: Option<IpAddr>,
    siblings: &[Port],
) -> Result<Port> {
    let has_subnet = cache.list::<Subnet>().iter().any(|subnet| subnet.row.network_id == network_id);
    let network = super::network::visible_network(cache, caller, network_id)?;
    if !has_subnet && network.row.port_security_enabled {
        return Err(Error::invalid(
            "NetworkRequiresSubnet",
            format!("Network {network_id} requires a subnet in order to boot instances on."),
        ));
    }
    let request = PortCreate {
        network_id: network_id.to_owned(),
        fixed_ips: fixed_ip.map(|ip| vec![FixedIpWish { subnet_id: None, ip_address: Some(ip) }]),
        security_groups: network.row.port_security_enabled.then(|| server.groups.to_vec()),
        device_id: server.id.to_owned(),
        device_owner: format!("{OWNER_COMPUTE}{}", server.zone),
        host: server.host.map(str::to_owned),
        owned_by_server: true,
        dns_name: server.hostname.to_owned(),
        ..PortCreate::default()
    };
    let owner = PortOwner { project_id: server.project_id, default_group: "", siblings };
    build_port(cache, caller, owner, port_id, &request).map_err(|error| match (error, fixed_ip) {
        (Error::Conflict { reason: "IpAddressAlreadyAllocated", .. }, Some(address)) => {
            let message = format!("Fixed IP address {address} is already in use on instance {}.", server.id);
            Error::conflict("FixedIpAlreadyInUse", message)
        }
        (error, _) => error,
    })
}

/// The ports of a server.
pub(crate) fn server_ports(cache: &Cache, server_id: &str) -> Vec<Arc<Stored<Port>>> {
    let mut ports = cache.found_by::<Port>(server_id);
    ports.retain(|port| port.row.device_id == server_id && port.row.device_owner.starts_with(OWNER_COMPUTE));
    ports
}

/// What a host is told of these ports. Ports, networks or subnets that are gone are left out: `missing` of the
/// result names the first of them.
pub(crate) fn nics_wanted(
    cache: &Cache,
    cloud_tag: &str,
    port_ids: &[String],
) -> std::result::Result<NicsWanted, String> {
    let mut wanted = NicsWanted::default();
    // All subnets and routers once, not once for each device.
    let ipv6 = Ipv6Networks::of(cache, cloud_tag);
    let mut networks = BTreeMap::new();
    let mut group_ids = BTreeSet::new();
    for port_id in port_ids {
        let port = cache.get::<Port>(port_id).ok_or_else(|| format!("Port {port_id} could not be found."))?;
        let network = cache
            .get::<Network>(&port.row.network_id)
            .ok_or_else(|| format!("Network {} could not be found.", port.row.network_id))?;
        let mut take = |port: &Port, network: &Network| {
            group_ids.extend(port.security_groups.iter().cloned());
            networks.entry(network.standard.id.clone()).or_insert_with(|| network_wanted(cache, network));
            nic_wanted(cache, port, network)
        };
        let nic = take(&port.row, &network.row);
        let sub_ports = trunk::carried_by(cache, port_id).into_iter().map(|(vlan, port, network)| {
            let nic = take(&port.row, &network.row);
            let port = NicWanted { ipv6: ipv6.config_of(&port.row, &network.row), ..nic };
            SubPortWanted { vlan, port }
        });
        let sub_ports = sub_ports.collect();
        wanted.nics.push(NicWanted { ipv6: ipv6.config_of(&port.row, &network.row), sub_ports, ..nic });
    }
    wanted.networks = networks.into_values().collect();
    wanted.groups = groups_wanted(cache, &group_ids);
    Ok(wanted)
}

/// Whether the host itself is the gateway of a network's subnets: elsewhere a router is, or anybody.
pub(crate) fn host_is_gateway(network: &Network) -> bool {
    matches!(&network.kind, NetworkKind::Flat { physical_network } if physical_network == PUBLIC_NAME)
}

/// A network as a host makes it.
pub(crate) fn network_wanted(cache: &Cache, network: &Network) -> NetworkWanted {
    let has_host = host_is_gateway(network);
    let host_addresses = cache
        .list::<Subnet>()
        .iter()
        .filter(|subnet| has_host && subnet.row.network_id == network.standard.id)
        .filter_map(|subnet| IpNet::new(subnet.row.gateway_ip?, subnet.row.cidr.prefix_len()).ok())
        .collect();
    NetworkWanted {
        id: network.standard.id.clone(),
        mtu: network.mtu,
        host_addresses,
        vni: match network.kind {
            NetworkKind::Vxlan { vni } => Some(vni),
            NetworkKind::Flat { .. } | NetworkKind::Vlan { .. } => None,
        },
        remotes: Vec::new(),
        physical: match &network.kind {
            NetworkKind::Flat { .. } if has_host => None,
            NetworkKind::Flat { physical_network } => {
                Some(PhysicalWanted { name: physical_network.clone(), vlan: None })
            }
            NetworkKind::Vlan { physical_network, vlan } => {
                Some(PhysicalWanted { name: physical_network.clone(), vlan: Some(*vlan) })
            }
            NetworkKind::Vxlan { .. } => None,
        },
    }
}

fn nic_wanted(cache: &Cache, port: &Port, network: &Network) -> NicWanted {
    let subnet = port.fixed_ips.iter().find_map(|ip| match ip.ip_address {
        IpAddr::V4(address) => Some((address, cache.get::<Subnet>(&ip.subnet_id)?)),
        IpAddr::V6(_) => None,
    });
    let v4 = |address: IpAddr| match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    };
    let own = port.fixed_ips.iter().map(|ip| IpNet::from(ip.ip_address));
    // What a pair allows another MAC address it does not allow the port's own.
    let is_own = |mac: [u8; 6]| mac == [0; 6] || mac == port.mac;
    let pairs = port.allowed_address_pairs.iter().filter(|(_, mac)| is_own(*mac)).map(|(prefix, _)| *prefix);
    let row = subnet.as_ref().map(|(_, subnet)| &subnet.row);
    NicWanted {
        port_id: port.standard.id.clone(),
        network_id: port.network_id.clone(),
        mac: port.mac,
        address: subnet.as_ref().map(|(address, subnet)| (*address, subnet.row.cidr.prefix_len())),
        allowed_addresses: own.chain(pairs).collect(),
        gateway: row.and_then(|row| row.gateway_ip).and_then(v4),
        dhcp: row.is_some_and(|row| row.enable_dhcp),
        dhcp_server: row.and_then(|row| row.dhcp_server),
        dns: row.map(|row| row.dns_nameservers.iter().copied().filter_map(v4).collect()).unwrap_or_default(),
        routes: row
            .map(|row| {
                row.host_routes
                    .iter()
                    .filter_map(|(destination, hop)| match (destination, hop) {
                        (IpNet::V4(net), IpAddr::V4(hop)) => Some((net.network(), net.prefix_len(), *hop)),
                        _ => None,
                    })
                    .collect()
            })
            .unwrap_or_default(),
        mtu: u16::try_from(network.mtu).unwrap_or(u16::MAX),
        port_security: port.port_security_enabled,
        groups: port.security_groups.iter().cloned().collect(),
        domain: names::domain_of(network).to_owned(),
        dhcp_options: dhcp_options(port, 4),
        ipv6: Ipv6Config::default(),
        ipv6_networks: ipv6::networks_of(cache, port),
        sub_ports: Vec::new(),
        traffic: qos::held::of_port(cache, port, network),
        zone: names::zone_of(port),
    }
}

/// A port's own options for one version of DHCP.
fn dhcp_options(port: &Port, ip_version: u8) -> Vec<DhcpOption> {
    let own = port.extra_dhcp_opts.iter().filter(|option| option.ip_version == ip_version);
    own.map(|option| DhcpOption { name: option.name.clone(), value: option.value.clone() }).collect()
}
