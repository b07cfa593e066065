//! Against the kernel, in network namespaces of their own.

use std::net::Ipv4Addr;
use std::process::Command;

mod forbidden;
mod groups;
mod killed;
mod limit;
mod mark;
mod measure;
mod queues;
mod router;
mod underlay;

use super::*;
use crate::spec::{Direction, Rule, Tap};
use crate::testing::*;

fn host(wanted: &HostNetwork) -> Host {
    let mut host = Host::open(TAG, Namespaces::Own).unwrap();
    host.converge(wanted).unwrap();
    host
}

/// Whether security groups are stateful here.
fn tracks_connections() -> bool {
    let tracking = nftables::Client::open(TAG).unwrap().tracking().unwrap();
    println!("connections are tracked in {tracking:?}");
    tracking == nftables::Tracking::Bridge || has_bridge_netfilter()
}

/// Other links of the namespace, as `ip link add` makes them.
fn foreign_bridge(name: &str) {
    let mut links = netlink::Client::open().unwrap();
    links.execute(vec![Request::create_bridge(name, [2, 0, 0, 0, 0, 9])]).unwrap();
}

/// The rules as `nft` reads them, where it is installed.
fn nft_ruleset() -> Option<String> {
    let output = Command::new("nft").args(["list", "ruleset"]).output().ok()?;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn converged_network_needs_nothing_more() {
    in_own_network(|| {
        let mut wanted = network(&[(1, 1), (2, 1), (3, 2)]);
        let tap = wanted.taps.get_mut(&TAG.tap(1)).unwrap();
        tap.addresses = ["10.9.0.1/32", "10.8.0.0/16", "2001:db8::1/128", "2001:db8:1::/48"]
            .map(|net| net.parse().unwrap())
            .into();
        wanted.taps.get_mut(&TAG.tap(2)).unwrap().port_security = false;
        let bridge = wanted.bridges.get_mut(&TAG.bridge(2)).unwrap();
        bridge.host_addresses = vec!["10.9.2.1/24".parse().unwrap(), "2001:db8:2::1/64".parse().unwrap()];
        let mut host = host(&wanted);
        let observed = host.observe().unwrap();
        assert_eq!(plan(TAG, &wanted, &observed), []);
        assert_eq!(observed.filter, Some(WantedFilter::of(&wanted, None, TAG).names()));
        if let Some(rules) = nft_ruleset() {
            assert!(rules.contains("table bridge wisp-7e57"), "{rules}");
        }
    });
}

#[test]
fn spoofed_sources_are_dropped_and_true_ones_pass() {
    in_own_network(|| {
        let _host = host(&network(&[(1, 1), (2, 1)]));
        let (sender, receiver) = (Guest::at(1), Guest::at(2));
        let true_ends = ends(1, 2);
        let other_mac = Ends { source_mac: mac(9), ..true_ends };
        let other_address = Ends { source: address(9), ..true_ends };
        let from_nowhere = Ends { source: Ipv4Addr::UNSPECIFIED, target: Ipv4Addr::BROADCAST, ..true_ends };
        let pass = [
            ("datagram", udp(true_ends, 4000, 5000)),
            ("ARP request", arp(true_ends, mac(1), address(1))),
            ("ARP probe", arp(true_ends, mac(1), Ipv4Addr::UNSPECIFIED)),
            ("DHCP client", udp(from_nowhere, 68, 67)),
        ];
        let drop = [
            ("source MAC", udp(other_mac, 4000, 5000)),
            ("source address", udp(other_address, 4000, 5000)),
            ("no source address", udp(from_nowhere, 4000, 5000)),
            ("ARP sender MAC", arp(true_ends, mac(9), address(1))),
            ("ARP sender address", arp(true_ends, mac(1), address(9))),
            ("ARP frame's source MAC", arp(other_mac, mac(1), address(1))),
            ("DHCP server", udp(true_ends, 67, 68)),
            ("VLAN tag", ethernet(true_ends, 0x8100, &udp(true_ends, 4000, 5000)[12..])),
            ("IPv6 of a port without", ethernet(true_ends, 0x86dd, &[0x60; 60])),
            ("unknown ethertype", ethernet(true_ends, 0x88b5, &[0; 60])),
        ];
        for (what, frame) in &pass {
            sender.send(frame);
            assert!(receiver.receives(frame), "{what} shall pass");
        }
        for (what, frame) in &drop {
            sender.send(frame);
            assert!(!receiver.receives(frame), "{what} shall be dropped");
        }
    });
}

#[test]
fn spoofed_ipv6_is_dropped_and_true_one_passes() {
    in_own_network(|| {
        let mut wanted = network(&[(1, 1), (2, 1)]);
        let every = |direction| Rule { ip_version: 6, ..rule(direction, None, None) };
        wanted.groups.insert(ANYTHING, group([Direction::Ingress, Direction::Egress].map(every)));
        wanted.taps.get_mut(&TAG.tap(1)).unwrap().addresses = ["2001:db8::1/128".parse().unwrap()].into();
        let _host = host(&wanted);
        let (sender, receiver) = (Guest::at(1), Guest::at(2));
        let (mine, link_local, theirs, none) = ("2001:db8::1", "fe80::f816:3eff:fe00:1", "2001:db8::9", "::");
        let packet = |source: &str, protocol, body: &[u8]| {
            ipv6(ends(1, 2), source.parse().unwrap(), "2001:db8::2".parse().unwrap(), protocol, body)
        };
        let neighbour = |kind: u8, target: &str| {
            let mut body = vec![kind, 0, 0, 0, 0, 0, 0, 0];
            body.extend_from_slice(&target.parse::<std::net::Ipv6Addr>().unwrap().octets());
            body
        };
        let datagram = [0x0f, 0xa0, 0x13, 0x88, 0, 12, 0, 1, 1, 2, 3, 4];
        let server = [0x02, 0x23, 0x02, 0x22, 0, 12, 0, 1, 1, 2, 3, 4];
        let cases = [
            ("datagram", true, packet(mine, 17, &datagram)),
            ("datagram from the link-local address", true, packet(link_local, 17, &datagram)),
            ("solicitation", true, packet(link_local, 58, &neighbour(135, "2001:db8::2"))),
            ("duplicate address detection", true, packet(none, 58, &neighbour(135, mine))),
            ("advertisement", true, packet(mine, 58, &neighbour(136, mine))),
            ("spoofed source", false, packet(theirs, 17, &datagram)),
            ("datagram from nowhere", false, packet(none, 17, &datagram)),
            ("advertisement of another's address", false, packet(mine, 58, &neighbour(136, theirs))),
            ("router advertisement", false, packet(link_local, 58, &neighbour(134, mine))),
            ("redirect", false, packet(link_local, 58, &neighbour(137, mine))),
            ("DHCPv6 server", false, packet(mine, 17, &server)),
        ];
        for (what, passes, frame) in &cases {
            sender.send(frame);
            assert_eq!(receiver.receives(frame), *passes, "{what}");
        }
    });
}

#[test]
fn host_forwards_nothing_between_networks() {
    in_own_network(|| {
        let mut wanted = network(&[(1, 1), (2, 2)]);
        wanted.taps.get_mut(&TAG.tap(2)).unwrap().addresses = ["10.8.0.2/32".parse().unwrap()].into();
        for (number, address) in [(1, "10.9.0.254/24"), (2, "10.8.0.254/24")] {
            wanted.bridges.get_mut(&TAG.bridge(number)).unwrap().host_addresses =
                vec![address.parse().unwrap()];
        }
        let _host = host(&wanted);
        std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
        let mut links = netlink::Client::open().unwrap();
        let link = |links: &mut netlink::Client, number| links.link(&TAG.bridge(number)).unwrap().unwrap();
        let (from, to) = (link(&mut links, 1), link(&mut links, 2));
        let target = Ipv4Addr::new(10, 8, 0, 2);
        links.execute(vec![Request::set_neighbour(&to.name, to.index, target.into(), mac(2))]).unwrap();
        let through_host = Ends { target_mac: from.mac.unwrap(), target, ..ends(1, 2) };
        let (one, two) = (Guest::at(1), Guest::at(2));
        one.send(&udp(through_host, 4000, 5000));
        assert!(!two.receives_udp(4000, 5000));
        // Without our rules the host would: the frame was a good one.
        nftables::Client::open(TAG).unwrap().remove().unwrap();
        one.send(&udp(through_host, 4001, 5000));
        assert!(two.receives_udp(4001, 5000));
    });
}

#[test]
fn two_bridges_do_not_reach_each_other_and_one_does() {
    in_own_network(|| {
        let _host = host(&network(&[(1, 1), (2, 1), (3, 2)]));
        let guests = [Guest::at(1), Guest::at(2), Guest::at(3)];
        let broadcast = Ends { target_mac: [0xff; 6], ..ends(1, 2) };
        let frame = arp(broadcast, mac(1), address(1));
        guests[0].send(&frame);
        assert!(guests[1].receives(&frame));
        assert!(!guests[2].receives(&frame));
    });
}

#[test]
fn remove_all_leaves_what_is_not_ours() {
    in_own_network(|| {
        let other = OwnerTag::new(0x0bad);
        let mut neighbour = Host::open(other, Namespaces::Own).unwrap();
        let theirs =
            HostNetwork { bridges: BTreeMap::from([(other.bridge(1), bridge())]), ..HostNetwork::default() };
        neighbour.converge(&theirs).unwrap();
        foreign_bridge("br0");
        // Our name, but not our alias: somebody else's.
        foreign_bridge(&TAG.bridge(7));
        let before = netlink::Client::open().unwrap().links().unwrap();
        let mut host = host(&network(&[(1, 1), (2, 2)]));
        host.remove_all().unwrap();
        assert_eq!(netlink::Client::open().unwrap().links().unwrap(), before);
        assert_eq!(host.observe().unwrap().filter, None);
        assert_eq!(plan(other, &theirs, &neighbour.observe().unwrap()), []);
        host.remove_all().unwrap();
    });
}

#[test]
fn link_removed_by_hand_comes_back() {
    in_own_network(|| {
        let wanted = network(&[(1, 1), (2, 1)]);
        let mut host = host(&wanted);
        let mut hand = netlink::Client::open().unwrap();
        hand.execute(vec![Request::delete_link(&TAG.bridge(1)), Request::delete_link(&TAG.tap(1))]).unwrap();
        host.converge(&wanted).unwrap();
        let (sender, receiver) = (Guest::at(1), Guest::at(2));
        let frame = udp(ends(1, 2), 1, 2);
        sender.send(&frame);
        assert!(receiver.receives(&frame));
    });
}

#[test]
fn foreign_link_of_a_wanted_name_is_refused_and_kept() {
    in_own_network(|| {
        foreign_bridge(&TAG.bridge(1));
        let before = netlink::Client::open().unwrap().link(&TAG.bridge(1)).unwrap();
        let mut host = Host::open(TAG, Namespaces::Own).unwrap();
        let error = host.converge(&network(&[(1, 1), (2, 2)])).unwrap_err();
        assert!(matches!(error, Error::Partial { .. }), "{error}");
        assert_eq!(netlink::Client::open().unwrap().link(&TAG.bridge(1)).unwrap(), before);
        let observed = host.observe().unwrap();
        assert_eq!(observed.taps[&TAG.tap(2)].bridge, Some(TAG.bridge(2)), "the others go on");
        assert_eq!(observed.taps[&TAG.tap(1)].bridge, None);
    });
}

#[test]
fn port_is_added_again_and_removed_again_without_harm() {
    in_own_network(|| {
        let mut wanted = network(&[(1, 1), (2, 1)]);
        let mut host = Host::open(TAG, Namespaces::Own).unwrap();
        drop(host.add_port(&wanted, &TAG.tap(1)).unwrap());
        let held = host.add_port(&wanted, &TAG.tap(1)).unwrap();
        let busy = host.add_port(&wanted, &TAG.tap(1)).unwrap_err();
        assert!(matches!(&busy, Error::Tap(error) if error.is_busy()), "{busy}");
        drop(held);
        drop(host.add_port(&wanted, &TAG.tap(2)).unwrap());
        let observed = host.observe().unwrap();
        assert_eq!(plan(TAG, &wanted, &observed), []);
        host.remove_port(&TAG.tap(1)).unwrap();
        host.remove_port(&TAG.tap(1)).unwrap();
        wanted.taps.remove(&TAG.tap(1));
        let observed = host.observe().unwrap();
        assert_eq!(plan(TAG, &wanted, &observed), []);
    });
}

#[test]
fn filter_removed_by_hand_is_made_anew_by_the_next_port() {
    in_own_network(|| {
        let wanted = network(&[(1, 1), (2, 1)]);
        let mut host = host(&wanted);
        nftables::Client::open(TAG).unwrap().remove().unwrap();
        let changed =
            HostNetwork { taps: [(TAG.tap(1), Tap { mac: mac(77), ..tap(1, 1) })].into(), ..wanted };
        let error = host.add_port(&changed, &TAG.tap(1)).map(drop);
        assert!(error.is_ok(), "{error:?}");
        assert_eq!(host.observe().unwrap().filter, Some(WantedFilter::of(&changed, None, TAG).names()));
    });
}

#[test]
fn tap_without_rules_sends_nothing() {
    in_own_network(|| {
        let _host = host(&network(&[(1, 1), (2, 1)]));
        let mut filters = nftables::Client::open(TAG).unwrap();
        let present = filters.observe().unwrap().unwrap();
        let change = present.removal_of_link(&TAG.tap(1));
        filters.change(&change).unwrap();
        let (sender, receiver) = (Guest::at(1), Guest::at(2));
        let frame = udp(ends(1, 2), 1, 2);
        sender.send(&frame);
        assert!(!receiver.receives(&frame));
    });
}

#[test]
fn free_subnet_avoids_addresses_and_routes() {
    in_own_network(|| {
        let mut wanted = network(&[(1, 1)]);
        wanted.bridges.get_mut(&TAG.bridge(1)).unwrap().host_addresses = vec!["10.9.0.1/24".parse().unwrap()];
        let mut host = host(&wanted);
        let candidates = ["10.9.0.0/16", "10.9.0.128/25", "10.10.0.0/24"].map(|net| net.parse().unwrap());
        assert_eq!(host.free_ipv4_subnet(candidates).unwrap(), Some(candidates[2]));
        assert_eq!(host.free_ipv4_subnet([candidates[0]]).unwrap(), None);
    });
}

#[test]
fn names_without_the_tag_are_refused_before_anything_changes() {
    in_own_network(|| {
        let before = netlink::Client::open().unwrap().links().unwrap();
        let wanted = HostNetwork {
            bridges: BTreeMap::from([("br0".to_owned(), bridge()), (TAG.bridge(1), bridge())]),
            ..HostNetwork::default()
        };
        let error = Host::open(TAG, Namespaces::Own).unwrap().converge(&wanted).unwrap_err();
        assert!(matches!(error, Error::Name { .. }), "{error}");
        assert_eq!(netlink::Client::open().unwrap().links().unwrap(), before);
    });
}
