//! Between hosts and to physical networks, against the kernel: each host is a network namespace.

use std::os::fd::AsFd;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use super::*;
use crate::plan::UplinkOperation;
use crate::spec::{Fabric, RemotePort, Subport, Vxlan};

/// The interface that a physical network is on, and by which hosts reach each other.
const INTERFACE: &str = "phys0";
/// How long another host may take for its part.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);

fn tunnel_address(host: u8) -> Ipv4Addr {
    Ipv4Addr::new(198, 51, 100, host)
}

/// Another host: a thread in a network namespace of its own, at the other end of our [`INTERFACE`].
struct OtherHost {
    work: Sender<Box<dyn FnOnce() + Send>>,
    done: Receiver<()>,
}

impl OtherHost {
    fn start() -> Self {
        let (work, jobs) = channel::<Box<dyn FnOnce() + Send>>();
        let (say, done) = channel();
        let (hand_over, namespace) = channel();
        thread::spawn(move || {
            nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
            hand_over.send(std::fs::File::open("/proc/thread-self/ns/net").unwrap()).unwrap();
            for job in jobs {
                job();
                say.send(()).unwrap();
            }
        });
        let namespace = namespace.recv_timeout(STEP_TIMEOUT).unwrap();
        let mut links = netlink::Client::open().unwrap();
        let (here, there) = ([2, 0, 0, 0, 1, 1], [2, 0, 0, 0, 1, 2]);
        links.execute(vec![Request::create_pair(INTERFACE, here, there, namespace.as_fd())]).unwrap();
        Self { work, done }
    }

    /// Takes notice that our end is up.
    fn settles(&self) {
        self.does(|| crate::tap::settle(INTERFACE).unwrap());
    }

    /// Does something on it, to its end.
    fn does(&self, job: impl FnOnce() + Send + 'static) {
        self.work.send(Box::new(job)).unwrap();
        self.done.recv_timeout(STEP_TIMEOUT).unwrap();
    }
}

fn set_up(address: Option<Ipv4Addr>) {
    let mut links = netlink::Client::open().unwrap();
    let link = links.link(INTERFACE).unwrap().unwrap();
    let net = address.map(|address| IpNet::new(address.into(), 24).unwrap());
    let mut requests: Vec<Request> =
        net.map(|net| Request::add_address(INTERFACE, link.index, net)).into_iter().collect();
    requests.push(Request::set_up(INTERFACE, true));
    links.execute(requests).unwrap();
}

/// One port on each of two hosts, on one network; the other host's is told.
fn spanning(host: u8, other: u8) -> HostNetwork {
    let mut wanted = network(&[(host, 1)]);
    let remote = RemotePort { host: tunnel_address(other), addresses: [IpAddr::from(address(other))].into() };
    wanted.bridges.get_mut(&TAG.bridge(1)).unwrap().vxlan = Some(Vxlan {
        name: TAG.vxlan(1),
        vni: 5,
        local: tunnel_address(host),
        peers: [tunnel_address(other)].into(),
        remotes: [(mac(other), remote)].into(),
    });
    wanted
}

/// A port on each of two networks that share a VXLAN device, and their twins on the other host: port 1 to port 2 on one,
/// 3 to 4 on the other. The ports of the second network may send what they like.
fn sharing(host: u8, other: u8) -> HostNetwork {
    let mut wanted = network(&[(host, 1), (host + 2, 2)]);
    let [bridge, device] = TAG.fabric();
    wanted.fabric = Some(Fabric { bridge, device, local: tunnel_address(host) });
    wanted.taps.get_mut(&TAG.tap(u32::from(host + 2))).unwrap().port_security = false;
    for (number, remote) in [(1, other), (2, other + 2)] {
        let port =
            RemotePort { host: tunnel_address(other), addresses: [IpAddr::from(address(remote))].into() };
        wanted.bridges.get_mut(&TAG.bridge(number)).unwrap().vxlan = Some(Vxlan {
            name: TAG.shared(number),
            vni: 4 + number,
            local: tunnel_address(host),
            peers: [tunnel_address(other)].into(),
            remotes: [(mac(remote), port)].into(),
        });
    }
    wanted
}

/// Networks that share a device do not see each other, whatever tags their ports write; each is told of its own, for good.
#[test]
fn vlans_of_a_shared_vxlan_device_are_networks_apart() {
    in_own_network(|| {
        let other = OtherHost::start();
        set_up(Some(tunnel_address(1)));
        let wanted = sharing(1, 2);
        let mut here = Host::open(TAG, Namespaces::Own).unwrap();
        let made = here.converge(&wanted);
        let can = crate::probe::shares_vxlan();
        assert_eq!(made.is_ok(), can, "{made:?}");
        if !can {
            println!("no VLANs on bridges here: the lab has it");
            return;
        }
        assert_eq!(plan(TAG, &wanted, &here.observe().unwrap()), []);
        let vxlans = netlink::Client::open().unwrap().links().unwrap();
        assert_eq!(vxlans.values().filter(|link| link.kind == "vxlan").count(), 1);
        let (guests, ready) = channel();
        other.does(move || {
            set_up(Some(tunnel_address(2)));
            let _ = host(&sharing(2, 1));
            guests.send([Guest::at(2), Guest::at(4)]).unwrap();
        });
        let [first, second] = [Guest::at(1), Guest::at(3)];
        let [first_there, second_there] = ready.recv().unwrap();
        for (from, to, way) in [(&first, &first_there, ends(1, 2)), (&second, &second_there, ends(3, 4))] {
            let there = udp(way, 4000, 5000);
            assert!(gets_through(from, to, &there, &there), "{way:?}");
            let broadcast = udp(Ends { target_mac: [0xff; 6], ..way }, 4001, 5000);
            assert!(gets_through(from, to, &broadcast, &broadcast), "{way:?}");
        }
        let apart = udp(Ends { target_mac: [0xff; 6], ..ends(1, 4) }, 4002, 5000);
        first.send(&apart);
        assert!(!second_there.receives(&apart));
        // A tag of the other network's VLAN, as the receiving host numbers them, from a port that may send anything.
        let inside = udp(Ends { target_mac: [0xff; 6], ..ends(3, 2) }, 4003, 5000);
        for vlan in [1_u8, 2] {
            second.send(&[&inside[..12], &[0x81, 0, 0, vlan], &inside[12..]].concat());
        }
        assert!(!first_there.receives(&inside));
        let request = arp(Ends { target_mac: [0xff; 6], ..ends(1, 2) }, mac(1), address(1));
        first.send(&request);
        assert!(
            first.receives_where(
                |frame| frame.get(20..22) == Some(&[0, 2]) && frame.get(22..28) == Some(&mac(2))
            )
        );
        assert!(!first_there.receives(&request), "nobody is asked who is known");
    });
}

#[test]
fn vlans_of_a_shared_vxlan_device_come_and_go_with_networks() {
    in_own_network(|| {
        if !crate::probe::shares_vxlan() {
            println!("no VLANs on bridges here: the lab has it");
            return;
        }
        let mut host = Host::open(TAG, Namespaces::Own).unwrap();
        let settles = |host: &mut Host, wanted: &HostNetwork| {
            host.converge(wanted).unwrap();
            let observed = host.observe().unwrap();
            assert_eq!(plan(TAG, wanted, &observed), []);
            observed
        };
        let both = sharing(1, 2);
        // By ports, as instances come: the device is there with the first one.
        for port in both.taps.keys() {
            drop(host.add_port(&both, port).unwrap());
        }
        assert_eq!(plan(TAG, &both, &host.observe().unwrap()), []);
        let mut second = both.clone();
        second.bridges.remove(&TAG.bridge(1));
        second.taps.remove(&TAG.tap(1));
        let vlan_of = |observed: &Observed, number| observed.vxlans[&TAG.shared(number)].vlan;
        let before = vlan_of(&host.observe().unwrap(), 2);
        assert_eq!(vlan_of(&settles(&mut host, &second), 2), before, "what stays keeps its VLAN");
        // Another network with what the first one had, and the second is told something else.
        let mut changed = both.clone();
        let vxlan = |number| both.bridges[&TAG.bridge(number)].vxlan.clone().unwrap();
        let first = Vxlan { vni: 70, remotes: BTreeMap::new(), ..vxlan(1) };
        let other = Vxlan { peers: [tunnel_address(3)].into(), ..vxlan(2) };
        changed.bridges.get_mut(&TAG.bridge(1)).unwrap().vxlan = Some(first);
        changed.bridges.get_mut(&TAG.bridge(2)).unwrap().vxlan = Some(other);
        settles(&mut host, &changed);
        // Somebody takes a part away by hand, then the bridge.
        let mut hand = netlink::Client::open().unwrap();
        for link in [TAG.shared(2), TAG.fabric()[0].clone()] {
            hand.execute(vec![Request::delete_link(&link)]).unwrap();
            settles(&mut host, &changed);
        }
        // To a device for each, and back.
        let mut each = spanning(1, 2);
        each.taps.extend(both.taps.clone());
        each.bridges.extend(network(&[(3, 2)]).bridges);
        assert!(settles(&mut host, &each).fabric_links.is_empty());
        settles(&mut host, &both);
        host.remove_all().unwrap();
        let left = host.observe().unwrap();
        assert!(left.vxlans.is_empty() && left.fabric_links.is_empty());
    });
}

fn has_vxlan() -> bool {
    let mut links = netlink::Client::open().unwrap();
    let made = links.execute(vec![Request::create_vxlan("vx0", [2; 6], Some(1), Ipv4Addr::LOCALHOST)]);
    let works = made.is_ok() && links.execute(vec![Request::delete_link("vx0")]).is_ok();
    if !works {
        skipped("no vxlan");
    }
    works
}

/// What two hosts' ports send each other travels; who asks for the other's MAC is answered without a frame between hosts.
#[test]
fn ports_on_two_hosts_reach_each_other_and_know_each_other_without_asking() {
    in_own_network(|| {
        if !has_vxlan() {
            return;
        }
        let other = OtherHost::start();
        set_up(Some(tunnel_address(1)));
        let mut here = host(&spanning(1, 2));
        assert_eq!(plan(TAG, &spanning(1, 2), &here.observe().unwrap()), []);
        let datagram = udp(ends(1, 2), 4000, 5000);
        let request = arp(Ends { target_mac: [0xff; 6], ..ends(1, 2) }, mac(1), address(1));
        let (guests, ready) = channel();
        other.does(move || {
            set_up(Some(tunnel_address(2)));
            let _ = host(&spanning(2, 1));
            guests.send(Guest::at(2)).unwrap();
        });
        let (sender, receiver) = (Guest::at(1), ready.recv().unwrap());
        assert!(gets_through(&sender, &receiver, &datagram, &datagram));
        let answer = udp(ends(2, 1), 5000, 4000);
        receiver.send(&answer);
        assert!(sender.receives(&answer));
        sender.send(&request);
        let answered = sender.receives_where(|frame| {
            frame.get(12..22) == Some(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 2]) && frame.get(22..28) == Some(&mac(2))
        });
        assert!(answered, "the bridge answers for the other host's port");
        assert!(!receiver.receives(&request), "nobody is asked who is known");
    });
}

#[test]
fn what_a_tunnel_is_told_changes_with_what_is_wanted() {
    in_own_network(|| {
        if !has_vxlan() {
            return;
        }
        let told = |hosts: &[(u8, u8)]| {
            let mut wanted = spanning(1, 2);
            let vxlan = wanted.bridges.get_mut(&TAG.bridge(1)).unwrap().vxlan.as_mut().unwrap();
            vxlan.peers = hosts.iter().map(|(_, host)| tunnel_address(*host)).collect();
            let port = |(port, host): &(u8, u8)| {
                let v6 = format!("2001:db8::{port}").parse().unwrap();
                let addresses = [IpAddr::from(address(*port)), v6].into();
                (mac(*port), RemotePort { host: tunnel_address(*host), addresses })
            };
            vxlan.remotes = hosts.iter().map(port).collect();
            wanted
        };
        let mut host = Host::open(TAG, Namespaces::Own).unwrap();
        for hosts in [&[(2, 2), (3, 3)][..], &[(2, 3), (4, 3)], &[(4, 2)], &[]] {
            let wanted = told(hosts);
            host.converge(&wanted).unwrap();
            assert_eq!(plan(TAG, &wanted, &host.observe().unwrap()), [], "{hosts:?}");
        }
        // A device with another identifier is another one.
        let mut wanted = told(&[(2, 2)]);
        wanted.bridges.get_mut(&TAG.bridge(1)).unwrap().vxlan.as_mut().unwrap().vni = 6;
        host.converge(&wanted).unwrap();
        assert_eq!(plan(TAG, &wanted, &host.observe().unwrap()), []);
        wanted.bridges.get_mut(&TAG.bridge(1)).unwrap().vxlan = None;
        host.converge(&wanted).unwrap();
        assert_eq!(plan(TAG, &wanted, &host.observe().unwrap()), []);
        assert!(host.observe().unwrap().vxlans.is_empty());
    });
}

/// A host with one port on a network that is joined to a physical one.
fn joined(uplink: Uplink) -> HostNetwork {
    let mut wanted = network(&[(1, 1)]);
    wanted.bridges.get_mut(&TAG.bridge(1)).unwrap().uplink = Some(uplink);
    wanted
}

fn flat() -> Uplink {
    Uplink::Flat { interface: INTERFACE.to_owned() }
}

/// Frames on the other end of the interface, as somebody on the physical network sees and sends them.
fn on_the_wire(other: &OtherHost) -> Guest {
    let (guests, ready) = channel();
    other.does(move || {
        let mut links = netlink::Client::open().unwrap();
        links.execute(vec![Request::create_bridge("br0", [2, 0, 0, 0, 2, 0])]).unwrap();
        let bridge = links.link("br0").unwrap().unwrap().index;
        let tap = tun_tap::Iface::without_packet_info("wire0", tun_tap::Mode::Tap).unwrap();
        for port in [INTERFACE, "wire0"] {
            std::fs::write(format!("/proc/sys/net/ipv6/conf/{port}/disable_ipv6"), "1").unwrap();
            links.execute(vec![Request::configure(port, 1500, Some(bridge))]).unwrap();
        }
        links.execute(vec![Request::set_up("br0", true)]).unwrap();
        crate::tap::settle("wire0").unwrap();
        guests.send(Guest::of(tap)).unwrap();
    });
    ready.recv().unwrap()
}

/// Whether a frame gets through, once the links are up: kernels before 6.8 take notice of a carrier in their own time.
fn gets_through(from: &Guest, to: &Guest, sent: &[u8], received: &[u8]) -> bool {
    (0..10).any(|_| {
        from.send(sent);
        to.receives(received)
    })
}

#[test]
fn flat_network_is_the_interfaces_and_lets_it_go() {
    in_own_network(|| {
        let other = OtherHost::start();
        let wire = on_the_wire(&other);
        let before = netlink::Client::open().unwrap().link(INTERFACE).unwrap().unwrap();
        let mut host = host(&joined(flat()));
        other.settles();
        assert_eq!(plan(TAG, &joined(flat()), &host.observe().unwrap()), []);
        let guest = Guest::at(1);
        let (out, back) = (udp(ends(1, 7), 4000, 5000), udp(ends(7, 1), 5000, 4000));
        assert!(gets_through(&guest, &wire, &out, &out));
        wire.send(&back);
        assert!(guest.receives(&back));
        // Somebody takes it out by hand.
        let mut hand = netlink::Client::open().unwrap();
        hand.execute(vec![Request::set_bridge(INTERFACE, 0)]).unwrap();
        host.converge(&joined(flat())).unwrap();
        other.settles();
        assert!(gets_through(&guest, &wire, &out, &out));
        host.remove_all().unwrap();
        let after = netlink::Client::open().unwrap().link(INTERFACE).unwrap().unwrap();
        assert_eq!((after.master, after.mtu, after.mac), (None, before.mtu, before.mac));
    });
}

#[test]
fn interface_that_serves_something_else_is_left_to_it() {
    in_own_network(|| {
        let _other = OtherHost::start();
        set_up(Some(tunnel_address(1)));
        let mut host = Host::open(TAG, Namespaces::Own).unwrap();
        let refused = |host: &mut Host, wanted: &HostNetwork| {
            let Err(Error::Partial { first, .. }) = host.converge(wanted) else { panic!("not refused") };
            first.to_string()
        };
        let said = refused(&mut host, &joined(flat()));
        assert!(said.contains("phys0 is in use by 198.51.100.1/24"), "{said}");
        let said = refused(&mut host, &joined(Uplink::Flat { interface: "eth9".to_owned() }));
        assert!(said.contains("there is no interface eth9"), "{said}");
        let said = refused(&mut host, &joined(Uplink::Flat { interface: TAG.tap(1) }));
        assert!(said.contains("cannot be a physical network's interface"), "{said}");
        let mut hand = netlink::Client::open().unwrap();
        let link = hand.link(INTERFACE).unwrap().unwrap();
        let own = IpNet::new(tunnel_address(1).into(), 24).unwrap();
        hand.execute(vec![Request::remove_address(INTERFACE, link.index, own)]).unwrap();
        foreign_bridge("br7");
        let bridge = hand.link("br7").unwrap().unwrap().index;
        hand.execute(vec![Request::set_bridge(INTERFACE, bridge)]).unwrap();
        let said = refused(&mut host, &joined(flat()));
        assert!(said.contains("phys0 is in use by br7"), "{said}");
        assert_eq!(hand.link(INTERFACE).unwrap().unwrap().master, Some(bridge));
        // The port itself is there all the same.
        assert_eq!(host.observe().unwrap().taps[&TAG.tap(1)].bridge, Some(TAG.bridge(1)));
    });
}

#[test]
fn network_that_changes_its_interface_leaves_the_old_one() {
    in_own_network(|| {
        let _other = OtherHost::start();
        foreign_bridge("second0");
        let mut host = host(&joined(flat()));
        let wanted = joined(Uplink::Flat { interface: "second0".to_owned() });
        let observed = host.observe().unwrap();
        let release = Operation::Uplink(INTERFACE.to_owned(), UplinkOperation::Release);
        assert!(plan(TAG, &wanted, &observed).contains(&release));
        assert!(observed.foreign[INTERFACE].bridge.is_some());
        let _ = host.converge(&wanted);
        assert_eq!(host.observe().unwrap().foreign[INTERFACE].bridge, None);
    });
}

/// Two networks on one interface, each with its tag, and one without.
#[test]
fn vlans_on_one_interface_are_told_apart() {
    in_own_network(|| {
        let other = OtherHost::start();
        let wire = on_the_wire(&other);
        let vlan = |number: u32, vlan| Uplink::Vlan {
            interface: INTERFACE.to_owned(),
            vlan,
            device: TAG.vlan(number),
        };
        let mut wanted = network(&[(1, 1), (2, 2), (3, 3)]);
        for (number, uplink) in [(1, vlan(1, 100)), (2, vlan(2, 200)), (3, flat())] {
            wanted.bridges.get_mut(&TAG.bridge(number)).unwrap().uplink = Some(uplink);
        }
        let mut host = Host::open(TAG, Namespaces::Own).unwrap();
        if let Err(error) = host.converge(&wanted) {
            assert!(format!("{error:?}").contains("Unknown device type"), "{error:?}");
            println!("no 802.1Q here: the lab has it");
            return;
        }
        other.settles();
        assert_eq!(plan(TAG, &wanted, &host.observe().unwrap()), []);
        let guests = [Guest::at(1), Guest::at(2), Guest::at(3)];
        let tagged = |vlan: u8, frame: &[u8]| [&frame[..12], &[0x81, 0, 0, vlan], &frame[12..]].concat();
        for (number, tag) in [(1_u8, Some(100)), (2, Some(200)), (3, None)] {
            let guest = &guests[usize::from(number) - 1];
            let (out, back) = (udp(ends(number, 9), 4000, 5000), udp(ends(9, number), 5000, 4000));
            let as_sent = |frame: &[u8]| tag.map_or(frame.to_vec(), |tag| tagged(tag, frame));
            assert!(gets_through(guest, &wire, &out, &as_sent(&out)), "{tag:?}");
            wire.send(&as_sent(&back));
            assert!(guest.receives(&back), "{tag:?}");
        }
        let broadcast = udp(Ends { target_mac: [0xff; 6], ..ends(9, 1) }, 1, 2);
        wire.send(&tagged(100, &broadcast));
        assert!(guests[0].receives(&broadcast));
        assert!(!guests[1].receives(&broadcast) && !guests[2].receives(&broadcast));
        // Another tag is another device.
        wanted.bridges.get_mut(&TAG.bridge(2)).unwrap().uplink = Some(vlan(2, 201));
        host.converge(&wanted).unwrap();
        assert_eq!(plan(TAG, &wanted, &host.observe().unwrap()), []);
        host.remove_all().unwrap();
        assert_eq!(host.observe().unwrap().vlans.len(), 0);
    });
}

/// A trunk: one tap carries the frames of its own port as they are, and those of two others with tags.
#[test]
fn vlans_of_a_tap_are_ports_of_their_own_networks() {
    in_own_network(|| {
        let mut wanted = network(&[(1, 1), (2, 2), (3, 3), (4, 1)]);
        let on = |id| Some(Subport { parent: TAG.tap(1), id });
        wanted.taps.insert(TAG.tap(11), Tap { vlan: on(100), ..tap(11, 2) });
        wanted.taps.insert(TAG.tap(12), Tap { vlan: on(200), ..tap(12, 3) });
        let mut host = Host::open(TAG, Namespaces::Own).unwrap();
        let can = crate::probe::carries_vlans();
        let made = host.converge(&wanted);
        assert_eq!(made.is_ok(), can, "{made:?}");
        if !can {
            println!("no 802.1Q here: the lab has it");
            return;
        }
        assert_eq!(plan(TAG, &wanted, &host.observe().unwrap()), []);
        let guests = [1, 2, 3, 4].map(Guest::at);
        for name in [11, 12].map(|port| TAG.tap(port)) {
            crate::tap::settle(&name).unwrap();
            crate::testing::wait_until_forwarding(&name);
        }
        let tagged = |vlan: u8, frame: &[u8]| [&frame[..12], &[0x81, 0, 0, vlan], &frame[12..]].concat();
        let [trunk, ..] = &guests;
        for (carried, vlan, other) in [(11_u8, 100, 2_u8), (12, 200, 3)] {
            let there = udp(ends(carried, other), 4000, 5000);
            let peer = &guests[usize::from(other) - 1];
            trunk.send(&tagged(vlan, &there));
            assert!(peer.receives(&there), "{vlan}");
            let back = udp(ends(other, carried), 5000, 4000);
            peer.send(&back);
            assert!(trunk.receives(&tagged(vlan, &back)), "{vlan}");
            // As another port's, with no tag or with one that nobody has.
            let spoofed = udp(Ends { source: address(77), ..ends(carried, other) }, 4001, 5000);
            trunk.send(&tagged(vlan, &spoofed));
            trunk.send(&there);
            trunk.send(&tagged(99, &there));
            assert!(!peer.receives(&spoofed), "{vlan}");
        }
        let own = udp(ends(1, 4), 4000, 5000);
        trunk.send(&own);
        assert!(guests[3].receives(&own), "its own port's frames have no tag");
        let broadcast = udp(Ends { target_mac: [0xff; 6], ..ends(11, 2) }, 1, 2);
        trunk.send(&tagged(100, &broadcast));
        assert!(guests[1].receives(&broadcast));
        assert!(!guests[2].receives(&broadcast) && !guests[3].receives(&broadcast));
        // Another VLAN is another device; one port goes and the others stay.
        wanted.taps.get_mut(&TAG.tap(11)).unwrap().vlan = on(101);
        host.add_subport(&wanted, &TAG.tap(11)).unwrap();
        assert_eq!(plan(TAG, &wanted, &host.observe().unwrap()), []);
        host.remove_port(&TAG.tap(12)).unwrap();
        wanted.taps.remove(&TAG.tap(12));
        assert_eq!(plan(TAG, &wanted, &host.observe().unwrap()), []);
        host.remove_port(&TAG.tap(1)).unwrap();
        assert_eq!(host.observe().unwrap().subports.len(), 0, "they go with their tap");
    });
}
