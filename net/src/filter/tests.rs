use std::net::Ipv4Addr;

use super::*;

fn tap(addresses: &[&str]) -> Tap {
    Tap {
        bridge: "b".to_owned(),
        mtu: 1500,
        mac: [0xfa, 0x16, 0x3e, 1, 2, 3],
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        port_security: true,
        stateless: false,
        vlan: None,
        groups: BTreeSet::new(),
    }
}

#[test]
fn all_about_a_link_is_found_and_nothing_else() {
    let mut wanted = crate::testing::network(&[(1, 1), (2, 1), (3, 2)]);
    let all = ["10.9.0.1/32", "0.0.0.0/8", "10.8.0.0/16", "2001:db8::1/128", "2001:db8:1::/48", "::/64"];
    for tap in wanted.taps.values_mut() {
        tap.addresses = all.iter().map(|net| net.parse().unwrap()).collect();
    }
    let open = wanted.taps.values_mut().next().unwrap();
    open.port_security = false;
    wanted.bridges.values_mut().next().unwrap().host_addresses = vec!["10.9.0.1/24".parse().unwrap()];
    let filter = WantedFilter::of(&wanted, None, OwnerTag::new(7)).names();
    let links: BTreeSet<&str> = filter.elements.iter().map(Element::link).collect();
    assert_eq!(links.len(), 5);
    for link in links {
        let found: Vec<&Element> = filter.of_link(link).collect();
        let searched: Vec<&Element> = filter.elements.iter().filter(|e| e.link() == link).collect();
        assert_eq!(found, searched, "{link}");
    }
    assert_eq!(filter.zones().count(), 2);
}

#[test]
fn one_ipv4_address_is_two_elements() {
    let elements = source_elements("t", &tap(&["10.0.0.5/32"]));
    assert_eq!(
        elements,
        BTreeSet::from([
            Element::Mac("t".to_owned(), [0xfa, 0x16, 0x3e, 1, 2, 3]),
            Element::Ipv4("t".to_owned(), Ipv4Addr::new(10, 0, 0, 5)),
        ])
    );
}

#[test]
fn ipv6_port_may_use_its_link_local_address() {
    let elements = source_elements("t", &tap(&["2001:db8::5/128"]));
    assert!(elements.contains(&Element::Ipv6("t".to_owned(), "fe80::f816:3eff:fe01:203".parse().unwrap())));
}

#[test]
fn port_without_ipv6_address_has_no_ipv6() {
    let elements = source_elements("t", &tap(&["10.0.0.0/24"]));
    assert!(!elements.iter().any(|element| matches!(element, Element::Ipv6Port(_) | Element::Ipv6(..))));
}

#[test]
fn port_without_security_is_open() {
    let open = Tap { port_security: false, ..tap(&["10.0.0.5/32"]) };
    assert_eq!(source_elements("t", &open), BTreeSet::from([Element::Open("t".to_owned())]));
}

#[test]
fn changed_group_reaches_the_ports_that_have_it_and_no_others() {
    let bridges = [("b".to_owned(), Bridge { mtu: 1500, ..Bridge::default() })].into();
    let port = |groups: &[u32]| Tap { groups: groups.iter().copied().collect(), ..tap(&["10.0.0.5/32"]) };
    let taps = [("t1", [1]), ("t2", [1]), ("t3", [2])];
    let taps = taps.into_iter().map(|(name, groups)| (name.to_owned(), port(&groups))).collect();
    let mut network = HostNetwork { bridges, taps, groups: BTreeMap::new(), ..HostNetwork::default() };
    let tag = OwnerTag::new(1);
    let mut filter = WantedFilter::of(&network, None, tag).names();
    assert!(filter.change_for_port(&network, "t1", tag).is_empty());
    let rule = crate::spec::Rule {
        direction: Direction::Egress,
        ip_version: 4,
        protocol: None,
        ports: None,
        remote: crate::spec::Remote::Any,
    };
    network.groups.insert(1, Group { rules: [rule.clone()].into() });
    network.groups.insert(2, Group { rules: [rule].into() });
    network.taps.insert("t4".to_owned(), port(&[1]));
    network.taps.insert("t5".to_owned(), port(&[1]));
    let change = filter.change_for_port(&network, "t4", tag);
    let links: BTreeSet<&str> = change.add.iter().map(Element::link).collect();
    assert_eq!(links, ["t4"].into());
    assert_eq!(change.refill_chains.keys().collect::<Vec<_>>(), ["group_out_00000001"]);
    assert!(change.add_chains.is_empty());
    filter.apply(&change);
    assert!(filter.change_for_port(&network, "t2", tag).is_empty());
    assert_eq!(filter.change_for_port(&network, "t3", tag).refill_chains.len(), 1);
}

/// However many members a group has, one that comes or goes is one element and no chain, whoever names the group.
#[test]
fn member_of_a_group_is_one_element_however_many_there_are() {
    let tag = OwnerTag::new(1);
    let member = |last: u32| IpNet::from(std::net::IpAddr::V4(Ipv4Addr::from(0x0a09_0000 + last)));
    let within = |group: u32, members: u32| crate::spec::Rule {
        remote: crate::spec::Remote::Members(group, (1..=members).map(member).collect()),
        ..crate::testing::rule(Direction::Ingress, None, None)
    };
    let with = |members: u32| {
        let mut network = crate::testing::network(&[(1, 1), (2, 1)]);
        network.taps.values_mut().last().unwrap().groups = [2].into();
        network.groups.insert(crate::testing::ANYTHING, Group { rules: [within(5, members)].into() });
        network.groups.insert(2, Group { rules: [within(5, members), within(6, 3)].into() });
        network
    };
    for members in [2, 1000] {
        let [before, after] = [with(members), with(members + 1)];
        let filter = WantedFilter::of(&before, None, tag).names();
        let one = BTreeSet::from([Element::Member(5, member(members + 1))]);
        for is_whole in [true, false] {
            let difference = |filter: &Filter, wanted: &HostNetwork, from: &HostNetwork| match is_whole {
                true => filter.change_to(&WantedFilter::of(wanted, Some(filter), tag)),
                false => filter.change_for(wanted, &Changed::between(from, wanted), tag),
            };
            let change = difference(&filter, &after, &before);
            assert_eq!((&change.add, &change.remove), (&one, &BTreeSet::new()));
            assert!(
                change.add_chains.is_empty() && change.refill_chains.is_empty() && change.ending.is_empty()
            );
            let mut changed = filter.clone();
            changed.apply(&change);
            assert_eq!(changed, WantedFilter::of(&after, None, tag).names());
            let back = difference(&changed, &before, &after);
            assert_eq!((&back.add, &back.remove), (&BTreeSet::new(), &one));
            assert!(back.refill_chains.is_empty() && !back.ending.is_empty(), "what it was let in for ends");
            changed.apply(&back);
            assert_eq!(changed, filter);
        }
        // The members stay that another group names.
        let mut fewer = before.clone();
        fewer.groups.insert(crate::testing::ANYTHING, Group::default());
        let change = filter.change_for(&fewer, &Changed::between(&before, &fewer), tag);
        assert_eq!((change.add.len(), change.remove.len(), change.refill_chains.len()), (0, 0, 1));
    }
}

/// However many ports have a group, a rule of it is one chain filled anew and nothing else.
#[test]
fn rule_of_a_group_changes_one_chain_and_no_element() {
    let tag = OwnerTag::new(1);
    let mut changes = Vec::new();
    for ports in [1, 200] {
        let ports: Vec<(u8, u32)> = (1..=ports).map(|port| (port, 1)).collect();
        let before = crate::testing::network(&ports);
        let filter = WantedFilter::of(&before, None, tag).names();
        let mut after = before.clone();
        let more = crate::testing::rule(Direction::Ingress, Some(6), Some((80, 80)));
        after.groups.get_mut(&crate::testing::ANYTHING).unwrap().rules.insert(more);
        let change = filter.change_for(&after, &Changed::between(&before, &after), tag);
        assert!(change.add.is_empty() && change.remove.is_empty() && change.ending.is_empty());
        assert_eq!(change.refill_chains.len(), 1);
        assert_eq!(change, filter.change_to(&WantedFilter::of(&after, Some(&filter), tag)));
        changes.push(change);
    }
    assert_eq!(changes[0], changes[1]);
}

#[test]
fn one_more_port_of_the_same_groups_leads_to_no_chain_anew() {
    let tag = OwnerTag::new(1);
    let mut network = crate::testing::network(&[(1, 1), (2, 1)]);
    let filter = WantedFilter::of(&network, None, tag).names();
    network.taps.insert("t3".to_owned(), crate::testing::tap(3, 1));
    let change = filter.change_for_port(&network, "t3", tag);
    assert!(change.add_chains.is_empty() && change.refill_chains.is_empty() && change.remove.is_empty());
    assert_eq!(change.add.len(), 3, "MAC, address and policy: {:?}", change.add);
}

#[test]
fn targets_are_told_only_where_a_port_is_stateless() {
    let tag = OwnerTag::new(1);
    let mut network = crate::testing::network(&[(1, 1), (2, 1)]);
    let targets = |filter: &Filter| {
        let targets = filter.elements.iter().filter_map(|element| match element {
            Element::Target(.., target) => Some(*target),
            _ => None,
        });
        targets.collect::<Vec<_>>()
    };
    let mut filter = WantedFilter::of(&network, None, tag).names();
    assert_eq!(targets(&filter), []);
    network.taps.insert("t3".to_owned(), Tap { stateless: true, ..crate::testing::tap(3, 1) });
    filter.apply(&filter.change_for_port(&network, "t3", tag));
    let mut told = targets(&filter);
    told.sort_unstable();
    assert_eq!(told, [Target::Untracked, Target::Tracked, Target::Tracked]);
    assert_eq!(filter, WantedFilter::of(&network, Some(&filter), tag).names());
}

#[test]
fn overlapping_sources_become_one_prefix() {
    let elements = source_elements("t", &tap(&["10.0.0.0/8", "10.1.0.0/16", "10.1.1.1/32"]));
    let prefixes = elements.iter().filter(|element| !matches!(element, Element::Mac(..)));
    assert_eq!(
        prefixes.collect::<Vec<_>>(),
        [&Element::Ipv4Prefix("t".to_owned(), "10.0.0.0/8".parse().unwrap())]
    );
}

#[test]
fn bridges_keep_their_zones_and_share_none() {
    let tag = OwnerTag::new(0xffff);
    let bridge = Bridge { mtu: 1500, ..Bridge::default() };
    let network = |names: &[&str]| HostNetwork {
        bridges: names.iter().map(|name| ((*name).to_owned(), bridge.clone())).collect(),
        ..HostNetwork::default()
    };
    let zones = |filter: &WantedFilter| -> BTreeMap<String, u16> {
        let zone = |element: &Element| match element {
            Element::Zone(name, zone) => Some((name.clone(), *zone)),
            _ => None,
        };
        filter.elements.iter().filter_map(zone).collect()
    };
    let first = WantedFilter::of(&network(&["b", "d"]), None, tag);
    assert_eq!(zones(&first), [("b".to_owned(), 0xffff), ("d".to_owned(), 1)].into());
    let second = WantedFilter::of(&network(&["a", "d"]), Some(&first.names()), tag);
    assert_eq!(zones(&second), [("a".to_owned(), 2), ("d".to_owned(), 1)].into());
}
