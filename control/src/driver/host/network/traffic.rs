//! What has passed the host's ports and routers: from the kernel's names back to ids.

use std::collections::BTreeMap;

use net::names::short_id;
use net::spec::LinkCounts;

use super::{Error, Network};
use crate::agent::figures::{HostTraffic, RouterTraffic};
use crate::agent::protocol::NicWanted;

impl Network {
    /// What has passed these devices' taps, by their ports' ids; those that have none are left out.
    pub(in crate::driver::host) fn tap_counts(
        &self,
        nics: &[NicWanted],
    ) -> Result<BTreeMap<String, LinkCounts>, Error> {
        let mut state = self.state();
        let mut counts = BTreeMap::new();
        let Some(host) = state.host.as_mut() else { return Ok(counts) };
        for nic in nics {
            let tap = host.tag().tap(short_id(nic.port_id.as_bytes()));
            counts.extend(host.tap_counts(&tap)?.map(|count| (nic.port_id.clone(), count)));
        }
        Ok(counts)
    }

    /// What has passed all ports and routers. Between two routers others may work on the network.
    pub(in crate::driver::host) fn traffic(&self) -> Result<HostTraffic, Error> {
        let mut traffic = HostTraffic::default();
        let names = {
            let mut state = self.state();
            let Some(host) = state.host.as_mut() else { return Ok(traffic) };
            let taps = host.taps_counts()?;
            let owners = &state.owners;
            traffic.ports = taps
                .into_iter()
                .filter_map(|(tap, counts)| Some((owners.get(&tap)?.clone(), counts)))
                .collect();
            state.wanted.routers.keys().cloned().collect::<Vec<_>>()
        };
        for name in names {
            let mut state = self.state();
            let Some(host) = state.host.as_mut() else { break };
            let Some(counted) = host.router_traffic(&name)? else { continue };
            let (owners, known) = (&state.owners, &state.routers);
            let Some(known) = known.get(&name) else { continue };
            let ports = counted
                .links
                .into_iter()
                .filter_map(|(link, counts)| Some((owners.get(&link)?.clone(), counts)));
            let labels = known.wanted.labels.keys();
            let labels =
                labels.filter_map(|id| Some((id.clone(), *counted.meters.get(&short_id(id.as_bytes()))?)));
            let router = RouterTraffic {
                ports: ports.collect(),
                floating: counted.floating,
                labels: labels.collect(),
            };
            traffic.routers.insert(known.wanted.id.clone(), router);
        }
        Ok(traffic)
    }
}
