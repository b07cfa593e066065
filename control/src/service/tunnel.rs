//! Networks between hosts: which of their ports are where. Nothing is learnt from frames, all is told; so what hosts know of
//! each other is a pure function of the rows, and another host is but another one that is told.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use super::router::wanted::host_of;
use super::router::{OWNER_GATEWAY, OWNER_INTERFACE};
use crate::agent::protocol::{NetworkWanted, RemotePortWanted};
use crate::model::compute::Host;
use crate::model::network::Port;
use crate::model::network::trunk::Trunk;
use crate::store::Cache;

/// Tells a host of the ports that its networks have on others, where both have tunnel addresses. A host that is alone is told
/// nothing and costs nothing.
pub(crate) fn tell_remotes(cache: &Cache, host: &str, networks: &mut [NetworkWanted]) {
    let mut networks: BTreeMap<&str, &mut Vec<RemotePortWanted>> = networks
        .iter_mut()
        .filter(|network| network.vni.is_some())
        .map(|network| (network.id.as_str(), &mut network.remotes))
        .collect();
    if networks.is_empty() {
        return;
    }
    let hosts = cache.list::<Host>();
    let mut addresses: BTreeMap<&str, Ipv4Addr> = hosts
        .iter()
        .filter_map(|host| Some((host.row.name.as_str(), host.row.report.tunnel_address?)))
        .collect();
    if addresses.remove(host).is_none() || addresses.is_empty() {
        return;
    }
    let carried = carrying_hosts(cache);
    let ids: Vec<String> = networks.keys().map(|id| (*id).to_owned()).collect();
    for (id, port) in
        ids.iter().flat_map(|id| cache.found_by::<Port>(id).into_iter().map(move |port| (id, port)))
    {
        let port = &port.row;
        let Some(remotes) = networks.get_mut(id.as_str()).filter(|_| port.network_id == *id) else {
            continue;
        };
        let on = match port.device_owner.as_str() {
            OWNER_INTERFACE | OWNER_GATEWAY if port.admin_state_up => host_of(&hosts, &port.device_id),
            OWNER_INTERFACE | OWNER_GATEWAY => None,
            _ => port.host.clone().or_else(|| carried.get(&port.standard.id).cloned()),
        };
        if let Some(address) = on.and_then(|on| addresses.get(on.as_str())) {
            let addresses: BTreeSet<_> = port.fixed_ips.iter().map(|ip| ip.ip_address).collect();
            remotes.push(RemotePortWanted { mac: port.mac, host: *address, addresses });
        }
    }
}

/// The host of each port that another one's device carries.
fn carrying_hosts(cache: &Cache) -> BTreeMap<String, String> {
    let trunks = cache.filter::<Trunk>(|trunk| trunk.admin_state_up);
    let hosts = trunks.iter().filter_map(|trunk| {
        let host = cache.get::<Port>(&trunk.row.port_id)?.row.host.clone()?;
        Some((&trunk.row.sub_ports, host))
    });
    let ports = hosts.flat_map(|(sub_ports, host)| {
        sub_ports.iter().map(move |sub_port| (sub_port.port_id.clone(), host.clone()))
    });
    ports.collect()
}
