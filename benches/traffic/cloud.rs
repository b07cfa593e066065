//! Guests of a real cloud: on one network, on two with a router between, and behind a floating IP.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

use crate::harness::{Cloud, NewServer, Rest, isolate, within};
use crate::peer::{self, Outcome};
use crate::{PART, RUNS, awake_us, report};

const NETWORK: &str = "/network/v2.0";

/// Measures the ways between guests, and compares each with `bare`.
pub(crate) fn ways(bare: &Outcome) -> Result<()> {
    isolate()?;
    let cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    cloud.open_default_group(&rest)?;
    let groups = rest.shown(&format!("{NETWORK}/security-groups?name=default"))?;
    let rule = json!({"security_group_rule": {
        "security_group_id": groups["security_groups"][0]["id"], "direction": "ingress", "protocol": "udp",
    }});
    rest.made(&format!("{NETWORK}/security-group-rules"), &rule)?;
    let near = cloud.network(&rest, "near", "10.1.0.0/24")?;
    let far = cloud.network(&rest, "far", "10.2.0.0/24")?;
    let public = cloud.public_network(&rest)?;
    route(&rest, &public, &[&near, &far])?;
    let serves = format!("#wisp\ntraffic serve 3600000 {}\n", awake_us());
    let serves = server(&cloud, &rest, &near, &serves)?;
    let address = cloud.address(&rest, &serves)?;
    let floating = float(&rest, &public, &serves)?;
    for (way, network, target) in [
        ("guests of a network", &near, address),
        ("guests by a router", &far, address),
        ("from a guest outside to a floating IP", &public, floating),
    ] {
        let outcome = from_guest(&cloud, &rest, network, target).with_context(|| way.to_owned())?;
        report(way, &outcome, bare, BARE);
    }
    let mut outcome = Outcome::default();
    for _ in 0..RUNS {
        peer::measure(floating, PART, &mut outcome).context("from the host")?;
    }
    report("from the host to a floating IP", &outcome, bare, BARE);
    Ok(())
}

const BARE: &str = "two namespaces on a bare bridge";

fn server(cloud: &Cloud, rest: &Rest, network: &str, asks: &str) -> Result<String> {
    let new = NewServer { name: "load", image: "", flavor: "m1.nano", network, user_data: asks };
    let server = cloud.server(rest, &new)?;
    cloud.wait_status(rest, &server, "ACTIVE")?;
    Ok(server)
}

fn from_guest(cloud: &Cloud, rest: &Rest, network: &str, target: Ipv4Addr) -> Result<Outcome> {
    // A sleep first, by which the guest's clock becomes exact.
    let load = format!("traffic {target} {} {}\n", PART.as_millis(), awake_us()).repeat(RUNS);
    let server = server(cloud, rest, network, &format!("#wisp\nwait 1\n{load}print over\n"))?;
    let console = cloud.wait_console(rest, &server, "\nover")?;
    ensure!(rest.delete(&format!("/compute/v2.1/servers/{server}"))? == 204, "delete the server");
    cloud.wait_gone(rest, &server)?;
    let mut outcome = Outcome::default();
    let mut runs = 0;
    for line in console.lines() {
        runs += usize::from(peer::hear(line, &mut outcome)?);
    }
    ensure!(runs == RUNS, "not {RUNS} measures: {console}");
    Ok(outcome)
}

/// A router with an interface on each network, and its way out.
fn route(rest: &Rest, public: &str, networks: &[&str]) -> Result<()> {
    let router = json!({"router": {"name": "load", "external_gateway_info": {"network_id": public}}});
    let made = rest.made(&format!("{NETWORK}/routers"), &router)?;
    let router = made["router"]["id"].as_str().context("the router has no id")?;
    for network in networks {
        let shown = rest.shown(&format!("{NETWORK}/networks/{network}"))?;
        let subnet = &shown["network"]["subnets"][0];
        let path = format!("{NETWORK}/routers/{router}/add_router_interface");
        ensure!(rest.put(&path, &json!({"subnet_id": subnet}))? == 200, "add the interface");
    }
    Ok(())
}

/// A floating IP that leads to a server.
fn float(rest: &Rest, public: &str, server: &str) -> Result<Ipv4Addr> {
    let port = &rest.shown(&format!("{NETWORK}/ports?device_id={server}"))?["ports"][0]["id"];
    let body = json!({"floatingip": {"floating_network_id": public, "port_id": port}});
    let made: Value = rest.made(&format!("{NETWORK}/floatingips"), &body)?;
    let id = made["floatingip"]["id"].as_str().context("no id")?;
    within(10, || {
        let shown = rest.shown(&format!("{NETWORK}/floatingips/{id}"))?;
        ensure!(shown["floatingip"]["status"] == "ACTIVE", "{shown}");
        Ok(())
    })?;
    // Its router may have it a moment later.
    std::thread::sleep(Duration::from_millis(200));
    made["floatingip"]["floating_ip_address"].as_str().context("no address")?.parse().context("an address")
}
