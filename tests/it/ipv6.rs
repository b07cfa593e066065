//! IPv6 on real parts: guests have their addresses from announcements and from DHCPv6, learn their router from its own
//! link-local address, reach each other through it, and hear of its coming and going while they run.

use std::net::Ipv6Addr;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Cloud, KVM_CLOUD, NewServer, Remains, Rest, isolate, trial};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("ipv6::guests_have_addresses_and_reach_each_other_through_a_router", KVM_CLOUD, two_networks),
        trial("ipv6::guest_on_a_network_of_ipv6_alone_has_its_address_and_metadata", KVM_CLOUD, ipv6_alone),
    ]
}

const NETWORK: &str = "/network/v2.0";

fn text(value: &Value, key: &str) -> Result<String> {
    value[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {value}"))
}

/// A network's IPv6 subnet.
fn subnet(rest: &Rest, network: &str, cidr: &str, mode: &str) -> Result<String> {
    let subnet = json!({
        "network_id": network, "ip_version": 6, "cidr": cidr, "ipv6_ra_mode": mode, "ipv6_address_mode": mode,
    });
    text(&rest.made(&format!("{NETWORK}/subnets"), &json!({"subnet": subnet}))?["subnet"], "id")
}

/// Lets ICMPv6 in to who has the default group.
fn open_default_group(rest: &Rest) -> Result<()> {
    let groups = rest.shown(&format!("{NETWORK}/security-groups?name=default"))?;
    let rule = json!({
        "security_group_id": groups["security_groups"][0]["id"], "direction": "ingress", "ethertype": "IPv6",
        "protocol": "ipv6-icmp",
    });
    rest.made(&format!("{NETWORK}/security-group-rules"), &json!({"security_group_rule": rule}))?;
    Ok(())
}

fn interface(rest: &Rest, router: &str, verb: &str, subnet: &str) -> Result<()> {
    let path = format!("{NETWORK}/routers/{router}/{verb}_router_interface");
    let status = rest.put(&path, &json!({"subnet_id": subnet}))?;
    ensure!(status == 200, "{verb} the interface: {status}");
    Ok(())
}

/// The address that a server's port has in a prefix, as the cloud says.
fn address(rest: &Rest, server: &str, prefix: &str) -> Result<Ipv6Addr> {
    let ports = rest.shown(&format!("{NETWORK}/ports?device_id={server}"))?;
    let addresses = ports["ports"][0]["fixed_ips"].as_array().context("no addresses")?;
    let mut addresses = addresses.iter().filter_map(|ip| ip["ip_address"].as_str());
    let found = addresses.find(|address| address.starts_with(prefix));
    found.with_context(|| format!("none in {prefix}: {ports}"))?.parse().context("read the address")
}

/// The link-local address of a router's port on a network.
fn link_local(rest: &Rest, router: &str, network: &str) -> Result<Ipv6Addr> {
    let ports = rest.shown(&format!("{NETWORK}/ports?device_id={router}&network_id={network}"))?;
    let mac = text(&ports["ports"][0], "mac_address")?;
    let bytes: Vec<u8> = mac.split(':').map(|byte| u8::from_str_radix(byte, 16)).collect::<Result<_, _>>()?;
    let [a, b, c, d, e, f] = bytes[..] else { anyhow::bail!("no MAC: {mac}") };
    Ok(Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f]))
}

fn server(cloud: &Cloud, rest: &Rest, name: &str, network: &str, asks: &str) -> Result<String> {
    let server =
        cloud.server(rest, &NewServer { name, image: "", flavor: "m1.nano", network, user_data: asks })?;
    cloud.wait_status(rest, &server, "ACTIVE")?;
    Ok(server)
}

fn two_networks() -> Result<()> {
    isolate()?;
    let before = Remains::look()?;
    let mut cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    cloud.open_default_group(&rest)?;
    open_default_group(&rest)?;
    let red = cloud.network(&rest, "red", "10.8.0.0/24")?;
    let red_subnet = subnet(&rest, &red, "2001:db8:a::/64", "slaac")?;
    let blue = cloud.network(&rest, "blue", "10.9.0.0/24")?;
    let blue_subnet = subnet(&rest, &blue, "2001:db8:b::/64", "dhcpv6-stateful")?;

    // Without a router they have addresses, and no way out.
    let azure = server(&cloud, &rest, "azure", &blue, "")?;
    let azure_address = address(&rest, &azure, "2001:db8:b:")?;
    ensure!(
        azure_address.octets()[11..13] != [0xff, 0xfe],
        "{azure_address} is one that its MAC address gives"
    );
    cloud.wait_console(&rest, &azure, &format!("net: address {azure_address}/64 gateway none"))?;
    let asks = format!("#wisp\nping {azure_address} 40\n");
    let ruby = server(&cloud, &rest, "ruby", &red, &asks)?;
    let ruby_address = address(&rest, &ruby, "2001:db8:a:")?;
    cloud.wait_console(&rest, &ruby, &format!("net: address {ruby_address}/64 gateway none"))?;

    // A router comes while they run: they hear of it, and of each of its links by that link's own address.
    let made = rest.made(&format!("{NETWORK}/routers"), &json!({"router": {"name": "between"}}))?;
    let router = text(&made["router"], "id")?;
    interface(&rest, &router, "add", &red_subnet)?;
    interface(&rest, &router, "add", &blue_subnet)?;
    for (server, address, network) in [(&ruby, ruby_address, &red), (&azure, azure_address, &blue)] {
        let gateway = link_local(&rest, &router, network)?;
        cloud.wait_console(&rest, server, &format!("net: address {address}/64 gateway {gateway}"))?;
    }
    cloud.wait_console(&rest, &ruby, &format!("command: ping {azure_address} 40 ok"))?;

    // A guest that begins with a router has it in its first exchange.
    let garnet = server(&cloud, &rest, "garnet", &red, &asks)?;
    let garnet_address = address(&rest, &garnet, "2001:db8:a:")?;
    let console = cloud.wait_console(&rest, &garnet, &format!("command: ping {azure_address} 40 ok"))?;
    let gateway = link_local(&rest, &router, &red)?;
    ensure!(console.contains(&format!("net: address {garnet_address}/64 gateway {gateway}")), "{console}");
    ensure!(!console.contains("gateway none"), "it was told twice:\n{console}");

    // The router goes, and takes the way out with it.
    interface(&rest, &router, "remove", &red_subnet)?;
    cloud.wait_console(&rest, &garnet, &format!("net: address {garnet_address}/64 gateway none"))?;
    for server in [azure, ruby, garnet] {
        rest.delete(&format!("/compute/v2.1/servers/{server}"))?;
        cloud.wait_gone(&rest, &server)?;
    }
    interface(&rest, &router, "remove", &blue_subnet)?;
    ensure!(rest.delete(&format!("{NETWORK}/routers/{router}"))? == 204, "delete the router");
    ensure!(cloud.down()?.status.success(), "wisp down");
    Remains::look()?.nothing_new_since(&before)
}

fn ipv6_alone() -> Result<()> {
    isolate()?;
    let mut cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let network = rest.made(&format!("{NETWORK}/networks"), &json!({"network": {"name": "alone"}}))?;
    let network = text(&network["network"], "id")?;
    subnet(&rest, &network, "2001:db8:c::/64", "dhcpv6-stateful")?;
    let lone = server(&cloud, &rest, "lone", &network, "#wisp\nprint heard by IPv6\n")?;
    let address = address(&rest, &lone, "2001:db8:c:")?;
    let console = cloud.wait_console(&rest, &lone, "heard by IPv6")?;
    for line in [
        format!("net: address {address}/64 gateway none"),
        format!("ready http://[{address}]/"),
        "metadata: hostname lone".to_owned(),
    ] {
        ensure!(console.contains(&line), "no `{line}` in\n{console}");
    }
    ensure!(cloud.down()?.status.success(), "wisp down");
    Ok(())
}
