//! Names on real parts: guests ask the address that DHCP gave them, learn the addresses of their own network's ports and no
//! others, hear of what changes while they run, and get the rest from a name server outside. A new agent takes up where
//! the last one was.

use std::net::UdpSocket;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Cloud, KVM_CLOUD, NewServer, Remains, Rest, isolate, trial};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("names::guests_know_their_network_and_ask_others_for_the_rest", KVM_CLOUD, guests_know),
        trial("names::guest_with_ipv6_alone_asks_on_its_link", KVM_CLOUD, by_ipv6),
    ]
}

const NETWORK: &str = "/network/v2.0";
/// What the name server outside says of every name.
const OUTSIDE: [u8; 4] = [203, 0, 113, 77];

/// A name server that answers every question with one address; where it is.
fn name_server() -> Result<String> {
    let socket = UdpSocket::bind("127.0.0.1:0").context("bind a name server")?;
    let at = socket.local_addr()?.to_string();
    std::thread::spawn(move || {
        let mut bytes = [0; 1500];
        while let Ok((length, from)) = socket.recv_from(&mut bytes) {
            // The question ends four bytes behind its name; what follows it is left out.
            let Some(end) = bytes[12..length].iter().position(|byte| *byte == 0) else { continue };
            let mut answer = bytes[..12 + end + 5].to_vec();
            answer[2..4].copy_from_slice(&[0x81, 0x80]);
            answer[4..12].copy_from_slice(&[0, 1, 0, 1, 0, 0, 0, 0]);
            answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4]);
            answer.extend(OUTSIDE);
            let _ = socket.send_to(&answer, from);
        }
    });
    Ok(at)
}

fn text(value: &Value, key: &str) -> Result<String> {
    value[key].as_str().map(str::to_owned).with_context(|| format!("no {key} in {value}"))
}

fn server(cloud: &Cloud, rest: &Rest, name: &str, network: &str, asks: &str) -> Result<String> {
    let new = NewServer { name, image: "", flavor: "m1.nano", network, user_data: asks };
    let server = cloud.server(rest, &new)?;
    cloud.wait_status(rest, &server, "ACTIVE")?;
    Ok(server)
}

/// A server's only port.
fn port(rest: &Rest, server: &str) -> Result<Value> {
    Ok(rest.shown(&format!("{NETWORK}/ports?device_id={server}"))?["ports"][0].clone())
}

fn guests_know() -> Result<()> {
    isolate()?;
    let before = Remains::look()?;
    let outside = name_server()?;
    let mut cloud = Cloud::start_kvm_with(&["--dns-forwarder", &outside])?;
    let rest = cloud.rest()?;
    let red = cloud.network(&rest, "red", "10.8.0.0/24")?;
    let blue = cloud.network(&rest, "blue", "10.9.0.0/24")?;
    let domain = json!({"network": {"dns_domain": "red.example."}});
    ensure!(rest.put(&format!("{NETWORK}/networks/{red}"), &domain)? == 200, "the domain");
    let ruby = server(&cloud, &rest, "ruby", &red, "")?;
    let ruby_port = port(&rest, &ruby)?;
    let ruby_address = text(&ruby_port["fixed_ips"][0], "ip_address")?;
    ensure!(ruby_port["dns_name"] == "ruby", "{ruby_port}");
    let assignment = json!([{"hostname": "ruby", "ip_address": ruby_address, "fqdn": "ruby.red.example."}]);
    ensure!(ruby_port["dns_assignment"] == assignment, "{ruby_port}");
    server(&cloud, &rest, "azure", &blue, "")?;

    let asks = "#wisp\nresolve ruby.red.example 20\nresolve ruby 5\nresolve azure.red.example\nresolve azure\n\
                resolve www.example.com 5\nresolve later.red.example 120\nresolve again.red.example 120\n";
    let garnet = server(&cloud, &rest, "garnet", &red, asks)?;
    let www = OUTSIDE.map(|byte| byte.to_string()).join(".");
    for line in [
        format!("resolve ruby.red.example 20 ok {ruby_address}"),
        format!("resolve ruby 5 ok {ruby_address}"),
        "resolve azure.red.example failed: no such name".to_owned(),
        "resolve azure failed: no such name".to_owned(),
        format!("resolve www.example.com 5 ok {www}"),
    ] {
        cloud.wait_console(&rest, &garnet, &format!("command: {line}"))?;
    }
    let rename = |name: &str| -> Result<()> {
        let path = format!("{NETWORK}/ports/{}", text(&ruby_port, "id")?);
        ensure!(rest.put(&path, &json!({"port": {"dns_name": name}}))? == 200, "the name {name}");
        Ok(())
    };
    rename("later")?;
    cloud.wait_console(
        &rest,
        &garnet,
        &format!("command: resolve later.red.example 120 ok {ruby_address}"),
    )?;
    cloud.kill_all_but_guests()?;
    cloud.up()?;
    let rest = cloud.rest()?;
    let path = format!("{NETWORK}/ports/{}", text(&ruby_port, "id")?);
    ensure!(rest.put(&path, &json!({"port": {"dns_name": "again"}}))? == 200, "the name again");
    cloud.wait_console(
        &rest,
        &garnet,
        &format!("command: resolve again.red.example 120 ok {ruby_address}"),
    )?;
    ensure!(cloud.down()?.status.success(), "wisp down");
    Remains::look()?.nothing_new_since(&before)
}

fn by_ipv6() -> Result<()> {
    isolate()?;
    let mut cloud = Cloud::start_kvm_with(&["--dns-forwarder", "none"])?;
    let rest = cloud.rest()?;
    let network = rest.made(&format!("{NETWORK}/networks"), &json!({"network": {"name": "alone"}}))?;
    let network = text(&network["network"], "id")?;
    let subnet = json!({
        "network_id": network, "ip_version": 6, "cidr": "2001:db8:c::/64", "ipv6_ra_mode": "dhcpv6-stateful",
        "ipv6_address_mode": "dhcpv6-stateful",
    });
    rest.made(&format!("{NETWORK}/subnets"), &json!({"subnet": subnet}))?;
    let asks = "#wisp\nresolve lone.openstacklocal 20\nresolve www.example.com\n";
    let lone = server(&cloud, &rest, "lone", &network, asks)?;
    let address = text(&port(&rest, &lone)?["fixed_ips"][0], "ip_address")?;
    cloud.wait_console(&rest, &lone, &format!("command: resolve lone.openstacklocal 20 ok {address}"))?;
    cloud.wait_console(&rest, &lone, "command: resolve www.example.com failed")?;
    ensure!(cloud.down()?.status.success(), "wisp down");
    Ok(())
}
