//! What a user of networks waits for: a server behind a new router, a floating IP that leads somewhere; and what a host
//! with many routers costs its agent.

mod measure;

#[path = "../tests/it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the system tests use the rest")]
mod harness;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use api::demo::ping::Pinger;
use net::apply::Host;
use net::keeper::Namespaces;
use net::names::OwnerTag;
use net::spec::{Bridge, HostNetwork, Nat, Outside, Router, RouterLink};
use serde_json::{Value, json};

use crate::harness::{Cloud, NewServer, Rest, isolate};
use crate::measure::{Samples, line, milliseconds};

/// Whole sites made one after the other, and servers beside them.
const SITES: usize = 10;
/// How often a floating IP is led somewhere.
const LEADS: usize = 30;
/// Routers of one host, each with two networks of its own.
const ROUTERS: u32 = 1000;
/// Floating IPs of one router.
const FLOATING: u32 = 1000;

const NETWORK: &str = "/network/v2.0";

fn main() -> Result<()> {
    isolate()?;
    sites()?;
    many_floating_ips()?;
    many_routers()
}

/// POST /servers on a network that is there, and network, subnet, router, floating IP and server from nothing.
fn sites() -> Result<()> {
    let cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let project = rest.shown("/identity/v3/auth/tokens")?["token"]["project"]["id"].clone();
    let project = project.as_str().context("the token has no project")?.to_owned();
    rest.put(
        &format!("{NETWORK}/quotas/{project}"),
        &json!({"quota": {"router": -1, "floatingip": -1, "network": -1, "subnet": -1, "port": -1}}),
    )?;
    cloud.open_default_group(&rest)?;
    let public = cloud.public_network(&rest)?;
    let (mut alone, mut whole, mut leads) = (Samples::default(), Samples::default(), Samples::default());
    for number in 0..SITES {
        let started = Instant::now();
        let server = serve(&cloud, &rest, &public)?;
        answers(cloud.address(&rest, &server)?)?;
        alone.push(milliseconds(started));
        rest.delete(&format!("/compute/v2.1/servers/{server}"))?;
        let started = Instant::now();
        let (server, floating, address) = site(&cloud, &rest, &public, number)?;
        answers(address)?;
        whole.push(milliseconds(started));
        if number + 1 == SITES {
            let port = port_of(&rest, &server)?;
            for _ in 0..LEADS {
                let path = format!("{NETWORK}/floatingips/{floating}");
                rest.put(&path, &json!({"floatingip": {"port_id": null}}))?;
                std::thread::sleep(Duration::from_millis(50));
                let started = Instant::now();
                rest.put(&path, &json!({"floatingip": {"port_id": port}}))?;
                answers(address)?;
                leads.push(milliseconds(started));
            }
        }
        rest.delete(&format!("/compute/v2.1/servers/{server}"))?;
        cloud.wait_gone(&rest, &server)?;
    }
    let base = alone.quantile(0.5);
    line(
        "network, router, floating IP and server to its answer, p50",
        "ms",
        whole.quantile(0.5),
        base,
        "a server alone",
    );
    line("floating IP led to a port to the answer, p50", "ms", leads.quantile(0.5), base, "a server alone");
    Ok(())
}

fn serve(cloud: &Cloud, rest: &Rest, network: &str) -> Result<String> {
    cloud.server(rest, &NewServer { name: "bench", image: "", flavor: "m1.nano", network, user_data: "" })
}

fn site(cloud: &Cloud, rest: &Rest, public: &str, number: usize) -> Result<(String, String, Ipv4Addr)> {
    let network = cloud.network(rest, "bench", &format!("10.{number}.0.0/24"))?;
    let shown = rest.shown(&format!("{NETWORK}/networks/{network}"))?;
    let router = json!({"router": {"external_gateway_info": {"network_id": public}}});
    let router = rest.made(&format!("{NETWORK}/routers"), &router)?;
    let path = format!("{NETWORK}/routers/{}", id(&router["router"])?);
    let body = json!({"subnet_id": shown["network"]["subnets"][0]});
    ensure!(rest.put(&format!("{path}/add_router_interface"), &body)? == 200, "add the interface");
    let server = serve(cloud, rest, &network)?;
    let body = json!({"floatingip": {"floating_network_id": public, "port_id": port_of(rest, &server)?}});
    let made = rest.made(&format!("{NETWORK}/floatingips"), &body)?["floatingip"].clone();
    let address = made["floating_ip_address"].as_str().context("no address")?.parse()?;
    Ok((server, id(&made)?, address))
}

fn port_of(rest: &Rest, server: &str) -> Result<String> {
    id(&rest.shown(&format!("{NETWORK}/ports?device_id={server}"))?["ports"][0])
}

fn id(row: &Value) -> Result<String> {
    Ok(row["id"].as_str().context("no id")?.to_owned())
}

fn answers(address: Ipv4Addr) -> Result<()> {
    let answered = Pinger::open(address)?.until_answer(Duration::from_secs(60))?;
    answered.map(drop).with_context(|| format!("{address} is silent"))
}

/// One more floating IP of a router that has none, and of one that has many.
fn many_floating_ips() -> Result<()> {
    let tag = OwnerTag::derive(b"benchmark of floating addresses");
    let mut host = Host::open(tag, Namespaces::Own)?;
    host.remove_all()?;
    let measured = (|| {
        let mut wanted = HostNetwork::default();
        add_router(&mut wanted, tag, 0);
        host.converge(&wanted)?;
        let few = lead_one(&mut host, &mut wanted, tag)?;
        for number in 0..FLOATING {
            float(&mut wanted, tag, number + 10);
        }
        host.converge(&wanted)?;
        let many = lead_one(&mut host, &mut wanted, tag)?;
        anyhow::Ok((few, many))
    })();
    host.remove_all()?;
    let (few, many) = measured?;
    line("one floating IP of a router with 1000 changed, p50", "ms", many, few, "of a router with none");
    Ok(())
}

fn lead_one(host: &mut Host, wanted: &mut HostNetwork, tag: OwnerTag) -> Result<f64> {
    let mut samples = Samples::default();
    let without = wanted.clone();
    for _ in 0..LEADS {
        float(wanted, tag, 1);
        let started = Instant::now();
        host.converge_router(wanted, &tag.namespace(0))?;
        samples.push(milliseconds(started));
        wanted.clone_from(&without);
        host.converge_router(wanted, &tag.namespace(0))?;
    }
    Ok(samples.quantile(0.5))
}

/// Gives the first router one more floating address.
fn float(wanted: &mut HostNetwork, tag: OwnerTag, number: u32) {
    let address = |base: u32| Ipv4Addr::from(base + number);
    let (outside, inside) =
        (address(u32::from(Ipv4Addr::new(198, 18, 0, 0))), address(u32::from(Ipv4Addr::new(10, 0, 0, 0))));
    let Some(router) = wanted.routers.get_mut(&tag.namespace(0)) else { return };
    router.nat.floating.insert(outside, inside);
    if let Some(link) = router.links.get_mut(&tag.router_link(0)) {
        link.addresses.insert(IpAddr::V4(outside).into());
    }
}

/// A host with many routers: making all, and what an agent that finds them needs until it knows that all is right.
fn many_routers() -> Result<()> {
    let tag = OwnerTag::derive(b"benchmark of routers");
    let mut host = Host::open(tag, Namespaces::Own)?;
    host.remove_all()?;
    let mut wanted = HostNetwork::default();
    for number in 0..ROUTERS {
        add_router(&mut wanted, tag, number);
    }
    let measured = (|| {
        let started = Instant::now();
        host.converge(&wanted)?;
        let made = started.elapsed().as_secs_f64();
        let mut next = Host::open(tag, Namespaces::Own)?;
        let started = Instant::now();
        next.converge(&wanted)?;
        anyhow::Ok((made, started.elapsed().as_secs_f64()))
    })();
    host.remove_all()?;
    let (made, adopted) = measured?;
    line("1000 networks and 1000 routers made", "s", made, 5.0, "what is aimed at for adopting them");
    line("the same adopted by a new agent", "s", adopted, 5.0, "the aim");
    Ok(())
}

fn add_router(wanted: &mut HostNetwork, tag: OwnerTag, number: u32) {
    let bridge = Bridge { mtu: 1450, ..Bridge::default() };
    let outside = tag.bridge(u32::MAX);
    wanted.bridges.insert(outside.clone(), bridge.clone());
    wanted.bridges.insert(tag.bridge(number), bridge);
    let [.., high, low] = number.to_be_bytes();
    let own = Ipv4Addr::new(198, 19, high, low);
    let link = |bridge, kind, address: IpAddr, length| RouterLink {
        bridge,
        mac: [2, 0, kind, 0, high, low],
        mtu: 1450,
        addresses: ipnet::IpNet::new(address, length).into_iter().collect::<BTreeSet<_>>(),
    };
    let router = Router {
        links: BTreeMap::from([
            (tag.router_link(2 * number), link(outside, 1, own.into(), 16)),
            (
                tag.router_link(2 * number + 1),
                link(tag.bridge(number), 2, Ipv4Addr::new(10, 0, 0, 1).into(), 24),
            ),
        ]),
        routes: BTreeSet::new(),
        nat: Nat {
            outside: Some(Outside { link: tag.router_link(2 * number), hide_behind: Some(own) }),
            ..Nat::default()
        },
        ..Router::default()
    };
    wanted.routers.insert(tag.namespace(number), router);
}
