//! How long a port takes, with few and with many there already:
//! `cargo test --release -p net measure -- --ignored --nocapture`.

use std::time::{Duration, Instant};

use super::*;
use crate::spec::Direction;

const ROUNDS: u32 = 50;
const PORTS_PER_BRIDGE: u32 = 50;

/// Many ports on many bridges, in a group that lets its members in.
fn crowd(ports: u32) -> HostNetwork {
    let mut wanted = network(&[]);
    let nets: Vec<IpNet> = (0..ports).map(|port| IpNet::from(IpAddr::from(address_of(port)))).collect();
    let members = crate::spec::Remote::Members(2, nets.iter().copied().collect());
    let within = crate::spec::Rule { remote: members, ..rule(Direction::Ingress, None, None) };
    wanted.groups.insert(2, group([within, rule(Direction::Egress, None, None)]));
    for (port, net) in (0..ports).zip(nets) {
        let bridge_id = port / PORTS_PER_BRIDGE;
        wanted.bridges.insert(TAG.bridge(bridge_id), bridge());
        let [_, _, _, _, d, e] = mac(0);
        let [.., high, low] = port.to_be_bytes();
        let port_mac = [0xfa, 0x16, d, e, high, low];
        let port_tap =
            Tap { mac: port_mac, addresses: [net].into(), groups: [2].into(), ..tap(1, bridge_id) };
        wanted.taps.insert(TAG.tap(port), port_tap);
    }
    wanted
}

fn address_of(port: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + port)
}

fn p50_and_p90(mut times: Vec<Duration>) -> String {
    times.sort();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1000.0;
    format!("p50 {:.2} ms, p90 {:.2} ms", at(50), at(90))
}

#[test]
#[ignore = "a measurement"]
fn measure_ports() {
    in_own_network(|| {
        for present in [0, 1000] {
            let mut wanted = crowd(present);
            let start = Instant::now();
            let mut host = host(&wanted);
            println!("{present} ports present: all made in {:.0} ms", start.elapsed().as_secs_f64() * 1000.0);
            let start = Instant::now();
            let observed = host.observe().unwrap();
            println!("  observe {:.2} ms", start.elapsed().as_secs_f64() * 1000.0);
            let start = Instant::now();
            assert_eq!(plan(TAG, &wanted, &observed), []);
            println!("  plan {:.2} ms", start.elapsed().as_secs_f64() * 1000.0);
            let mut times: [Vec<Duration>; 4] = Default::default();
            for round in 0..ROUNDS {
                let (bridge_id, ports) = (0x1000 + round, [0x1000 + 2 * round, 0x1001 + 2 * round]);
                wanted.bridges.insert(TAG.bridge(bridge_id), bridge());
                for port in ports {
                    let net: IpNet = IpNet::from(IpAddr::from(address_of(port)));
                    let port_tap = Tap { addresses: [net].into(), ..tap(1, bridge_id) };
                    wanted.taps.insert(TAG.tap(port), port_tap);
                }
                for (index, port) in ports.into_iter().enumerate() {
                    let start = Instant::now();
                    let file = host.add_port(&wanted, &TAG.tap(port)).unwrap();
                    times[index].push(start.elapsed());
                    drop(file);
                }
                let start = Instant::now();
                drop(host.add_port(&wanted, &TAG.tap(ports[0])).unwrap());
                times[2].push(start.elapsed());
                for port in ports {
                    wanted.taps.remove(&TAG.tap(port));
                    let start = Instant::now();
                    host.remove_port(&TAG.tap(port)).unwrap();
                    times[3].push(start.elapsed());
                }
                wanted.bridges.remove(&TAG.bridge(bridge_id));
            }
            let [first, second, again, removed] = times.map(p50_and_p90);
            println!("  first port of a bridge: {first}");
            println!("  second port of it: {second}");
            println!("  the same port again: {again}");
            println!("  remove a port: {removed}");
            let mut joined = Vec::new();
            for round in 0..10 {
                let port = 0x2000 + round;
                let net = IpNet::from(IpAddr::from(address_of(port)));
                let members =
                    wanted.taps.values().flat_map(|tap| tap.addresses.clone()).chain([net]).collect();
                let remote = crate::spec::Remote::Members(2, members);
                let within = crate::spec::Rule { remote, ..rule(Direction::Ingress, None, None) };
                wanted.groups.insert(2, group([within, rule(Direction::Egress, None, None)]));
                wanted.bridges.insert(TAG.bridge(0), bridge());
                let port_tap = Tap { addresses: [net].into(), groups: [2].into(), ..tap(1, 0) };
                wanted.taps.insert(TAG.tap(port), port_tap);
                let start = Instant::now();
                drop(host.add_port(&wanted, &TAG.tap(port)).unwrap());
                joined.push(start.elapsed());
            }
            println!("  a port that joins the group of all as a member: {}", p50_and_p90(joined));
            let start = Instant::now();
            host.remove_all().unwrap();
            println!("  remove all: {:.0} ms", start.elapsed().as_secs_f64() * 1000.0);
        }
    });
}

/// How much of a router's making is its namespace, which could be made before it is asked for.
#[test]
#[ignore = "a measurement"]
fn measure_routers() {
    use crate::spec::{Nat, Outside, Router, RouterLink};
    in_own_network(|| {
        let tag = OwnerTag::new(0x7fee);
        let mut host = Host::open(tag, Namespaces::Own).unwrap();
        host.remove_all().unwrap();
        let mut wanted = HostNetwork::default();
        for number in 0..2 {
            wanted.bridges.insert(tag.bridge(number), bridge());
        }
        host.converge(&wanted).unwrap();
        let mut times: [Vec<Duration>; 3] = Default::default();
        for round in 0..2 * ROUNDS {
            let start = Instant::now();
            drop(Namespaces::Own.create(&tag.namespace(0x1000 + round)).unwrap());
            times[0].push(start.elapsed());
            let link = |bridge, address: &str| RouterLink {
                bridge: tag.bridge(bridge),
                mac: [2, 0, bridge as u8, 0, 0, round as u8],
                mtu: 1450,
                addresses: [address.parse().unwrap()].into(),
            };
            let outside = tag.router_link(2 * round);
            let hide_behind = Some(Ipv4Addr::new(203, 0, 113, 2));
            let router = Router {
                links: [
                    (outside.clone(), link(0, "203.0.113.2/24")),
                    (tag.router_link(2 * round + 1), link(1, "10.0.0.1/24")),
                ]
                .into(),
                nat: Nat { outside: Some(Outside { link: outside, hide_behind }), ..Nat::default() },
                ..Router::default()
            };
            wanted.routers.insert(tag.namespace(round), router);
            let start = Instant::now();
            host.converge_router(&wanted, &tag.namespace(round)).unwrap();
            times[1].push(start.elapsed());
            let start = Instant::now();
            Namespaces::Own.remove(&tag.namespace(0x1000 + round)).unwrap();
            times[2].push(start.elapsed());
        }
        let [namespace, router, removed] = times.map(p50_and_p90);
        println!("a namespace alone: {namespace}; removed: {removed}");
        println!("a router with two links, its namespace included: {router}");
        host.remove_all().unwrap();
    });
}

/// What many networks between hosts cost: each with a VXLAN device of its own, and all with one.
#[test]
#[ignore = "a measurement"]
fn measure_tunnels() {
    use crate::spec::{Fabric, RemotePort, Vxlan};
    const NETWORKS: u32 = 200;
    in_own_network(|| {
        for is_shared in [false, true] {
            if is_shared && !crate::probe::shares_vxlan() {
                println!("no VLANs on bridges here: the lab has it");
                return;
            }
            let local = Ipv4Addr::LOCALHOST;
            let [own, device] = TAG.fabric();
            let mut wanted = network(&[]);
            wanted.fabric = is_shared.then_some(Fabric { bridge: own, device, local });
            for number in 0..NETWORKS {
                let name = if is_shared { TAG.shared(number) } else { TAG.vxlan(number) };
                let host = Ipv4Addr::new(198, 51, 100, 2);
                let remotes = [(mac(1), RemotePort { host, addresses: [IpAddr::from(address(1))].into() })];
                let vxlan =
                    Vxlan { name, vni: number + 1, local, peers: [host].into(), remotes: remotes.into() };
                let bridge = Bridge { vxlan: Some(vxlan), ..bridge() };
                wanted.bridges.insert(TAG.bridge(number), bridge);
            }
            let start = Instant::now();
            let mut host = host(&wanted);
            let made = start.elapsed();
            let start = Instant::now();
            let mut next = Host::open(TAG, Namespaces::Own).unwrap();
            next.converge(&wanted).unwrap();
            let adopted = start.elapsed();
            let start = Instant::now();
            host.remove_all().unwrap();
            let removed = start.elapsed();
            println!(
                "{NETWORKS} networks, one device for all: {is_shared}: made in {made:.0?}, adopted in {adopted:.0?}, removed in {removed:.0?}"
            );
        }
    });
}
