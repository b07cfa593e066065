//! Networks that are on a physical one: servers there are neighbours of what else is on it, and routers reach it.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::demo::ping::Pinger;
use libtest_mimic::Trial;
use serde_json::json;

use crate::harness::{Cloud, KVM_CLOUD, NewServer, Remains, Rest, ip, isolate, trial};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("providers::flat_network_is_on_the_hosts_interface", KVM_CLOUD, flat_network)]
}

const NETWORK: &str = "/network/v2.0";

fn answers(address: Ipv4Addr) -> Result<()> {
    let answered = Pinger::open(address)?.until_answer(Duration::from_secs(20))?;
    answered.map(drop).with_context(|| format!("{address} is silent"))
}

/// `lan0` is the cloud's; at its other end is somebody on the physical network, who is its router, too.
fn flat_network() -> Result<()> {
    isolate()?;
    for step in
        ["link add lan0 type veth peer name lan1", "addr add 10.77.0.1/24 dev lan1", "link set lan1 up"]
    {
        ip(step)?;
    }
    let before = Remains::look()?;
    let mut cloud = Cloud::start_kvm_with(&["--provider", "lan=lan0"])?;
    let rest = cloud.rest()?;
    cloud.open_default_group(&rest)?;
    let lan = lan_network(&rest)?;
    // A neighbour there.
    let new = NewServer { name: "near", image: "", flavor: "m1.nano", network: &lan, user_data: "" };
    let near = cloud.server(&rest, &new)?;
    cloud.wait_status(&rest, &near, "ACTIVE")?;
    answers(cloud.address(&rest, &near)?)?;
    // A floating IP of it, which leads through a router.
    let inside = cloud.network(&rest, "inside", "10.78.0.0/24")?;
    let subnet = rest.shown(&format!("{NETWORK}/networks/{inside}"))?["network"]["subnets"][0].clone();
    let body = json!({"router": {"external_gateway_info": {"network_id": lan}}});
    let router = rest.made(&format!("{NETWORK}/routers"), &body)?["router"]["id"].clone();
    let router = format!("{NETWORK}/routers/{}", router.as_str().context("no id")?);
    let interface = json!({"subnet_id": subnet});
    ensure!(rest.put(&format!("{router}/add_router_interface"), &interface)? == 200, "add the interface");
    let new = NewServer { name: "far", network: &inside, ..new };
    let far = cloud.server(&rest, &new)?;
    cloud.wait_status(&rest, &far, "ACTIVE")?;
    let port = rest.shown(&format!("{NETWORK}/ports?device_id={far}"))?["ports"][0]["id"].clone();
    let body = json!({"floatingip": {"floating_network_id": lan, "port_id": port}});
    let floating = rest.made(&format!("{NETWORK}/floatingips"), &body)?["floatingip"].clone();
    let address = floating["floating_ip_address"].as_str().context("no address")?.parse()?;
    answers(address)?;
    // The interface outlives the cloud, which gives it back as it was.
    cloud.down()?;
    let shown = Command::new("ip").args(["-oneline", "link", "show", "lan0"]).output()?;
    let shown = String::from_utf8_lossy(&shown.stdout).into_owned();
    ensure!(shown.contains("lan0") && !shown.contains("master"), "{shown}");
    Remains::look()?.nothing_new_since(&before)
}

fn lan_network(rest: &Rest) -> Result<String> {
    let network = json!({"network": {
        "name": "lan", "router:external": true, "shared": true,
        "provider:network_type": "flat", "provider:physical_network": "lan",
    }});
    let made = rest.made(&format!("{NETWORK}/networks"), &network)?;
    let lan = made["network"]["id"].as_str().context("the network has no id")?.to_owned();
    let subnet = json!({"subnet": {
        "network_id": lan, "cidr": "10.77.0.0/24", "ip_version": 4, "gateway_ip": "10.77.0.1",
    }});
    rest.made(&format!("{NETWORK}/subnets"), &subnet)?;
    Ok(lan)
}
