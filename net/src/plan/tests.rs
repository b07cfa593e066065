//! What holds for every wanted network and every state a host may be in.

mod routers;
mod underlay;

use proptest::collection::{btree_map, btree_set};
use proptest::option;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

use super::*;
use crate::spec::{Direction, Group, Remote, Rule, Subport, Tap};

const TAG: OwnerTag = OwnerTag::new(0x7e57);

/// A host that answers operations as a kernel would.
#[derive(Debug, Clone)]
struct FakeHost(Observed);

impl FakeHost {
    fn has_link(&self, name: &str) -> bool {
        let Observed { bridges, vxlans, vlans, taps, subports, misshapen, foreign, fabric_links, .. } =
            &self.0;
        bridges.contains_key(name)
            || vxlans.contains_key(name)
            || vlans.contains_key(name)
            || taps.contains_key(name)
            || subports.contains_key(name)
            || misshapen.contains(name)
            || fabric_links.contains(name)
            || foreign.contains_key(name)
    }

    fn port(&mut self, name: &str) -> Option<&mut ObservedPort> {
        let Observed { vxlans, vlans, taps, subports, router_links, .. } = &mut self.0;
        let vxlan = vxlans.get_mut(name).map(|vxlan| &mut vxlan.port);
        let vlan = vlans.get_mut(name).map(|vlan| &mut vlan.port);
        let subport = subports.get_mut(name).map(|subport| &mut subport.port);
        vxlan.or(vlan).or(subport).or(taps.get_mut(name)).or(router_links.get_mut(name))
    }

    fn carry_out(&mut self, operation: &Operation) -> Result<(), &'static str> {
        let exists = operation.subject().is_some_and(|name| self.has_link(name));
        match operation {
            Operation::CreateBridge { .. }
            | Operation::CreateTap { .. }
            | Operation::CreateSubport { .. }
                if exists =>
            {
                return Err("exists");
            }
            Operation::CreateSubport { name, on } => {
                self.0.taps.get(&on.parent).ok_or("no tap")?;
                let Subport { parent, id } = on.clone();
                let device =
                    ObservedVlan { interface: Some(parent), vlan: id, port: ObservedPort::default() };
                self.0.subports.insert(name.clone(), device);
            }
            Operation::CreateBridge { name } => {
                self.0.bridges.insert(name.clone(), ObservedBridge::default());
            }
            Operation::CreateTap { name } => {
                self.0.taps.insert(name.clone(), ObservedPort::default());
            }
            Operation::DeleteLink(name) => {
                if self.0.foreign.contains_key(name) {
                    return Err("foreign");
                }
                if self.0.taps.remove(name).is_some() {
                    self.0.subports.retain(|_, subport| subport.interface.as_ref() != Some(name));
                }
                self.0.subports.remove(name);
                self.delete_router_link(name);
                self.0.vxlans.remove(name);
                self.delete_fabric_link(name);
                self.0.vlans.remove(name);
                self.0.misshapen.remove(name);
                if self.0.bridges.remove(name).is_some() {
                    let ports = self.0.vxlans.values_mut().map(|vxlan| &mut vxlan.port);
                    let ports = ports.chain(self.0.taps.values_mut()).chain(self.0.router_links.values_mut());
                    let vlans = self.0.vlans.values_mut().chain(self.0.subports.values_mut());
                    let ports = ports.chain(vlans.map(|vlan| &mut vlan.port));
                    ports
                        .chain(self.0.foreign.values_mut())
                        .filter(|port| port.bridge.as_ref() == Some(name))
                        .for_each(|port| port.bridge = None);
                }
            }
            Operation::ConfigureBridge { name, mtu, .. } => {
                let bridge = self.0.bridges.get_mut(name).ok_or("no bridge")?;
                (bridge.mtu, bridge.is_up) = (*mtu, true);
            }
            Operation::AddAddress { bridge, address } => {
                let bridge = self.0.bridges.get_mut(bridge).ok_or("no bridge")?;
                bridge.addresses.insert(*address).then_some(()).ok_or("has it")?;
            }
            Operation::RemoveAddress { bridge, address } => {
                let bridge = self.0.bridges.get_mut(bridge).ok_or("no bridge")?;
                bridge.addresses.remove(address).then_some(()).ok_or("has it not")?;
            }
            Operation::Fabric(fabric, operation) => return self.carry_out_in_fabric(fabric, operation),
            Operation::Tunnel(tunnel, operation) => return self.carry_out_in_tunnel(tunnel, operation),
            Operation::Uplink(name, operation) => return self.carry_out_at_uplink(name, operation),
            Operation::ConfigurePort { name, bridge, mtu } => {
                self.0.bridges.get(bridge).ok_or("no bridge")?;
                let filter = self.0.filter.as_ref().ok_or("no filter")?;
                let is_tap = self.0.taps.contains_key(name) || self.0.subports.contains_key(name);
                if is_tap && !filter.elements.iter().any(|element| element.link() == name) {
                    return Err("a tap without rules");
                }
                let port = self.port(name).ok_or("no port")?;
                let had = port.bridge.replace(bridge.clone());
                (port.mtu, port.is_up) = (*mtu, true);
                if had.as_ref() != Some(bridge) {
                    // A bridge knows nothing of a port that it did not have.
                    self.forget_what_is_behind(name);
                }
            }
            Operation::Router(name, operation) => return self.carry_out_in_router(name, operation),
            Operation::RebuildFilter(filter) => self.0.filter = Some(filter.names()),
            Operation::ChangeFilter(change) => {
                let filter = self.0.filter.as_mut().ok_or("no filter")?;
                let is_known = change.remove.is_subset(&filter.elements)
                    && change.remove_chains.iter().all(|name| filter.chains.contains_key(name))
                    && change.refill_chains.keys().all(|name| filter.chains.contains_key(name));
                is_known.then_some(()).ok_or("removes what is not there")?;
                filter.apply(change);
                let ports = filter.elements.iter().filter_map(|element| match element {
                    crate::filter::Element::Policy(_, policy) => Some(policy.chain(Direction::Ingress)),
                    _ => None,
                });
                let jumps =
                    filter.chains.values().flat_map(|held| held.chain.iter().flat_map(|chain| chain.jumps()));
                let mut needs = ports.chain(jumps);
                needs
                    .all(|chain| filter.chains.contains_key(&chain))
                    .then_some(())
                    .ok_or("a chain is missing")?;
            }
        }
        Ok(())
    }
}

fn bridge_names() -> Vec<String> {
    (0..3).map(|id| TAG.bridge(id)).collect()
}

fn tap_names() -> Vec<String> {
    (0..4).map(|id| TAG.tap(id)).collect()
}

fn vxlan_name(bridge: &str) -> String {
    bridge.replacen("wb", "wx", 1)
}

fn addresses() -> impl Strategy<Value = BTreeSet<IpNet>> {
    let all = ["10.0.0.1/24", "10.0.0.2/32", "10.0.0.0/25", "2001:db8::1/64", "2001:db8::2/128"];
    let all: Vec<IpNet> = all.iter().map(|net| net.parse().unwrap()).collect();
    subsequence(all, 0..=3).prop_map(|some| some.into_iter().collect())
}

fn mtu() -> impl Strategy<Value = u32> {
    select(vec![1450, 1500])
}

fn wanted_bridge(name: String) -> impl Strategy<Value = (String, Bridge)> {
    let (vxlan, uplink) = (underlay::wanted_vxlan(&name), underlay::wanted_uplink(&name));
    (mtu(), addresses(), option::of(vxlan), option::of(uplink)).prop_map(
        move |(mtu, addresses, vxlan, uplink)| {
            (name.clone(), Bridge { mtu, host_addresses: addresses.into_iter().collect(), vxlan, uplink })
        },
    )
}

fn wanted_group() -> impl Strategy<Value = Group> {
    let rule = (any::<bool>(), option::of(select(vec![6, 17])), addresses()).prop_map(
        |(ingress, protocol, members)| {
            let direction = if ingress { Direction::Ingress } else { Direction::Egress };
            Rule { direction, ip_version: 4, protocol, ports: None, remote: Remote::Members(7, members) }
        },
    );
    btree_set(rule, 0..3).prop_map(|rules| Group { rules })
}

prop_compose! {
    fn wanted_tap(bridges: Vec<String>)(
        bridge in select(bridges),
        mtu in mtu(),
        last in 0..3_u8,
        addresses in addresses(),
        port_security in any::<bool>(),
        groups in btree_set(0..4_u32, 0..3),
        vlan in option::of((select(tap_names()), 5..7_u16)),
    ) -> Tap {
        Tap {
            bridge,
            mtu,
            mac: [2, 0, 0, 0, 0, last],
            addresses,
            port_security,
            groups,
            stateless: false,
            vlan: vlan.map(|(parent, id)| Subport { parent, id }),
        }
    }
}

fn wanted() -> impl Strategy<Value = HostNetwork> {
    subsequence(bridge_names(), 1..=3).prop_flat_map(|names| {
        let bridges: Vec<_> = names.iter().cloned().map(wanted_bridge).collect();
        let taps = btree_map(select(tap_names()), wanted_tap(names.clone()), 0..4);
        let groups = btree_map(0..3_u32, wanted_group(), 0..3);
        let fabric = option::of(underlay::wanted_fabric());
        (bridges, taps, groups, routers::wanted_routers(names), fabric).prop_map(
            |(bridges, mut taps, groups, routers, fabric)| {
                // What is on a tap is on one that is wanted.
                let own: BTreeSet<String> =
                    taps.iter().filter(|(_, tap)| tap.vlan.is_none()).map(|(name, _)| name.clone()).collect();
                taps.retain(|_, tap| tap.vlan.as_ref().is_none_or(|on| own.contains(&on.parent)));
                let mut wanted =
                    HostNetwork { bridges: bridges.into_iter().collect(), taps, groups, routers, fabric };
                underlay::share(&mut wanted);
                wanted
            },
        )
    })
}

prop_compose! {
    fn observed_port()(
        bridge in option::of(select(bridge_names())),
        mtu in mtu(),
        is_up in any::<bool>(),
    ) -> ObservedPort {
        ObservedPort { bridge, mtu, is_up }
    }
}

prop_compose! {
    fn observed_bridge()(mtu in mtu(), is_up in any::<bool>(), addresses in addresses()) -> ObservedBridge {
        ObservedBridge { mtu, is_up, addresses }
    }
}

/// Any state our links may be in, those of an older wanted network included; `earlier` is what its filter was made for.
fn observed() -> impl Strategy<Value = Observed> {
    let vxlan_names: Vec<String> = bridge_names().iter().map(|name| vxlan_name(name)).collect();
    let parts = (
        btree_map(select(bridge_names()), observed_bridge(), 0..3),
        btree_map(select(vxlan_names), underlay::observed_vxlan(), 0..3),
        underlay::observed_vlans(),
        underlay::foreign(),
        btree_map(select(tap_names()), observed_port(), 0..4),
        option::of(wanted()),
        any::<bool>(),
        (
            routers::observed_routers(),
            btree_map(select(tap_names()), (select(tap_names()), 5..7_u16, observed_port()), 0..3),
            underlay::observed_fabric(),
        ),
    );
    parts.prop_map(|parts| {
        let (bridges, vxlans, vlans, foreign, mut taps, earlier, is_misshapen, others) = parts;
        let ((routers, router_links), subports, (fabric, fabric_links, shared)) = others;
        let vxlans = vxlans.into_iter().chain(shared).collect();
        let misshapen: BTreeSet<String> = [TAG.tap(0)].into_iter().filter(|_| is_misshapen).collect();
        taps.retain(|name, _| !misshapen.contains(name));
        let filter = earlier.map(|earlier| WantedFilter::of(&earlier, None, TAG).names());
        let subports = subports.into_iter().filter(|(name, (parent, ..))| {
            taps.contains_key(parent) && !taps.contains_key(name) && !misshapen.contains(name)
        });
        let subports = subports
            .map(|(name, (parent, vlan, port))| (name, ObservedVlan { interface: Some(parent), vlan, port }));
        let subports = subports.collect();
        Observed {
            bridges,
            vxlans,
            fabric,
            fabric_links,
            vlans,
            taps,
            subports,
            routers,
            router_links,
            misshapen,
            foreign,
            filter,
        }
    })
}

proptest! {
    #[test]
    fn every_state_converges_in_a_valid_order_and_then_nothing_is_left_to_do(
        wanted in wanted(),
        observed in observed(),
    ) {
        let mut host = FakeHost(observed);
        for operation in plan(TAG, &wanted, &host.0) {
            prop_assert_eq!(host.carry_out(&operation), Ok(()), "{:?}", operation);
        }
        prop_assert_eq!(plan(TAG, &wanted, &host.0), []);
    }

    #[test]
    fn failure_half_way_converges_next_time(
        wanted in wanted(),
        observed in observed(),
        done in any::<prop::sample::Index>(),
    ) {
        let mut host = FakeHost(observed);
        let operations = plan(TAG, &wanted, &host.0);
        for operation in &operations[..done.index(operations.len() + 1)] {
            prop_assert_eq!(host.carry_out(operation), Ok(()));
        }
        for operation in plan(TAG, &wanted, &host.0) {
            prop_assert_eq!(host.carry_out(&operation), Ok(()), "{:?}", operation);
        }
        prop_assert_eq!(plan(TAG, &wanted, &host.0), []);
    }

    #[test]
    fn foreign_links_are_neither_deleted_nor_changed(
        wanted in wanted(),
        mut observed in observed(),
        taken in subsequence([bridge_names(), tap_names()].concat(), 0..=4),
    ) {
        for name in &taken {
            observed.bridges.remove(name);
            observed.taps.remove(name);
            observed.subports.retain(|own, device| own != name && device.interface.as_ref() != Some(name));
            observed.misshapen.remove(name);
        }
        let taken: BTreeMap<_, _> = taken.into_iter().map(|name| (name, ObservedPort::default())).collect();
        observed.foreign.extend(taken.clone());
        let mut host = FakeHost(observed.clone());
        for operation in plan(TAG, &wanted, &host.0) {
            let is_foreign = operation.subject().is_some_and(|name| taken.contains_key(name));
            let result = host.carry_out(&operation);
            prop_assert!(!is_foreign || result.is_err(), "{operation:?}");
            prop_assert!(!matches!(&operation, Operation::DeleteLink(name) if observed.foreign.contains_key(name)));
        }
        for (name, port) in &observed.foreign {
            let is_named = wanted.bridges.values().any(|bridge| underlay::names(bridge, name));
            prop_assert!(is_named || underlay::is_as_it_was(port, &host.0.foreign[name], &wanted));
        }
    }
}
