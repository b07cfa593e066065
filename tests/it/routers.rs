//! Routers and floating IPs on real parts: tenants with the same addresses reach the outside and are reached from there,
//! each by its own; nothing is lost when Wisp's processes die, and nothing is left when it is all gone.

use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use api::demo::ping::Pinger;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Cloud, KVM_CLOUD, NewServer, Remains, Rest, isolate, processes, trial, within};
use crate::qos;
use crate::survive::ping_until;

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("routers::floating_ips_lead_to_tenants_with_the_same_addresses", KVM_CLOUD, two_tenants),
        trial("routers::traffic_goes_on_while_the_control_plane_is_killed", KVM_CLOUD, traffic_goes_on),
        trial("routers::agent_killed_at_any_time_ends_right", KVM_CLOUD, agent_killed_at_any_time),
    ]
}

const NETWORK: &str = "/network/v2.0";

/// A tenant's network behind a router.
struct Site {
    network: String,
    subnet: String,
    router: String,
}

impl Site {
    fn new(cloud: &Cloud, rest: &Rest, name: &str, cidr: &str) -> Result<Self> {
        let network = cloud.network(rest, name, cidr)?;
        let subnet = rest.shown(&format!("{NETWORK}/networks/{network}"))?["network"]["subnets"][0]
            .as_str()
            .context("the network has no subnet")?
            .to_owned();
        let public = cloud.public_network(rest)?;
        let router = json!({"router": {"name": name, "external_gateway_info": {"network_id": public}}});
        let made = rest.made(&format!("{NETWORK}/routers"), &router)?;
        let router = made["router"]["id"].as_str().context("the router has no id")?.to_owned();
        let site = Self { network, subnet, router };
        site.interface(rest, "add")?;
        Ok(site)
    }

    fn interface(&self, rest: &Rest, verb: &str) -> Result<()> {
        let path = format!("{NETWORK}/routers/{}/{verb}_router_interface", self.router);
        let status = rest.put(&path, &json!({"subnet_id": self.subnet}))?;
        ensure!(status == 200, "{verb} the interface: {status}");
        Ok(())
    }

    fn remove(&self, rest: &Rest) -> Result<()> {
        self.interface(rest, "remove")?;
        let status = rest.delete(&format!("{NETWORK}/routers/{}", self.router))?;
        ensure!(status == 204, "delete the router: {status}");
        Ok(())
    }
}

/// A floating IP.
struct Floating {
    id: String,
    address: Ipv4Addr,
}

impl Floating {
    fn new(cloud: &Cloud, rest: &Rest) -> Result<Self> {
        let public = cloud.public_network(rest)?;
        let body = json!({"floatingip": {"floating_network_id": public}});
        let made = rest.made(&format!("{NETWORK}/floatingips"), &body)?;
        let text = |key: &str| made["floatingip"][key].as_str().map(str::to_owned);
        let address = text("floating_ip_address").context("no address")?.parse()?;
        Ok(Self { id: text("id").context("no id")?, address })
    }

    /// Has it lead to a server's only port, or nowhere, and waits until its router's host has done so.
    fn lead_to(&self, rest: &Rest, server: Option<&str>) -> Result<()> {
        let port = match server {
            None => Value::Null,
            Some(server) => {
                rest.shown(&format!("{NETWORK}/ports?device_id={server}"))?["ports"][0]["id"].clone()
            }
        };
        let path = format!("{NETWORK}/floatingips/{}", self.id);
        let status = rest.put(&path, &json!({"floatingip": {"port_id": port}}))?;
        ensure!(status == 200, "lead the floating IP: {status}");
        let wanted = if server.is_some() { "ACTIVE" } else { "DOWN" };
        within(10, || {
            let shown = rest.shown(&path)?;
            ensure!(shown["floatingip"]["status"] == wanted, "{shown}");
            Ok(())
        })
    }

    fn answers(&self) -> Result<bool> {
        Ok(Pinger::open(self.address)?.until_answer(Duration::from_secs(2))?.is_some())
    }
}

/// The network namespaces of a cloud.
fn namespaces(cloud: &Cloud) -> Result<Vec<String>> {
    let tag = std::fs::read_to_string(cloud.state().join("run/cloud-tag")).context("read the cloud's tag")?;
    let names = net::namespace::names()?.into_iter();
    Ok(names.filter(|name| name.starts_with(&format!("wn{tag}-"))).collect())
}

fn running(cloud: &Cloud, rest: &Rest, name: &str, network: &str, asks: &str) -> Result<String> {
    let new = NewServer { name, image: "", flavor: "m1.nano", network, user_data: asks };
    let server = cloud.server(rest, &new)?;
    cloud.wait_status(rest, &server, "ACTIVE")?;
    Ok(server)
}

/// The first line of the page at an address that names its server.
fn page(address: Ipv4Addr) -> Result<String> {
    within(20, || {
        let page = ureq::get(&format!("http://{address}/")).call()?.into_body().read_to_string()?;
        ensure!(page.contains("hostname"), "{page}");
        Ok(page)
    })
}

fn two_tenants() -> Result<()> {
    isolate()?;
    let before = Remains::look()?;
    let mut cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    cloud.open_default_group(&rest)?;
    let label = label(&rest)?;
    let red = Site::new(&cloud, &rest, "red", "10.8.0.0/24")?;
    let blue = Site::new(&cloud, &rest, "blue", "10.8.0.0/24")?;
    let gateway =
        rest.shown(&format!("{NETWORK}/subnets?name=public-subnet"))?["subnets"][0]["gateway_ip"].clone();
    let outside = gateway.as_str().context("the public network has no gateway")?;
    let asks = format!("#wisp\nping {outside} 20\n");
    let ruby = running(&cloud, &rest, "ruby", &red.network, &asks)?;
    let azure = running(&cloud, &rest, "azure", &blue.network, "")?;
    ensure!(cloud.address(&rest, &ruby)? == cloud.address(&rest, &azure)?, "the addresses differ");
    // Hidden behind its router, a guest reaches the outside without a floating IP.
    cloud.wait_console(&rest, &ruby, &format!("command: ping {outside} 20 ok"))?;
    let (one, two) = (Floating::new(&cloud, &rest)?, Floating::new(&cloud, &rest)?);
    one.lead_to(&rest, Some(&ruby))?;
    two.lead_to(&rest, Some(&azure))?;
    ensure!(page(one.address)?.contains("ruby"), "the first floating IP leads elsewhere");
    ensure!(page(two.address)?.contains("azure"), "the second floating IP leads elsewhere");
    is_counted(&rest, &ruby, &red.router, one.address, &label)?;
    is_held(&rest, &one)?;
    let shown = rest.shown(&format!("/compute/v2.1/servers/{ruby}"))?;
    let kinds: Vec<_> = shown["server"]["addresses"]["red"]
        .as_array()
        .context("no addresses")?
        .iter()
        .map(|address| address["OS-EXT-IPS:type"].clone())
        .collect();
    ensure!(kinds == ["fixed", "floating"], "{shown}");
    // It moves to another server of the same network, and the other tenant's connection stays.
    let garnet = running(&cloud, &rest, "garnet", &red.network, "")?;
    one.lead_to(&rest, Some(&garnet))?;
    ensure!(page(one.address)?.contains("garnet"), "the floating IP did not move");
    ensure!(two.answers()?, "the other tenant's floating IP is cut");
    one.lead_to(&rest, None)?;
    within(10, || {
        ensure!(!one.answers()?, "a floating IP that leads nowhere answers");
        Ok(())
    })?;
    // With its server goes where it leads.
    ensure!(rest.delete(&format!("/compute/v2.1/servers/{azure}"))? == 204, "delete");
    cloud.wait_gone(&rest, &azure)?;
    let left = rest.shown(&format!("{NETWORK}/floatingips/{}", two.id))?;
    ensure!(left["floatingip"]["port_id"].is_null() && left["floatingip"]["router_id"].is_null(), "{left}");
    for server in [ruby, garnet] {
        rest.delete(&format!("/compute/v2.1/servers/{server}"))?;
        cloud.wait_gone(&rest, &server)?;
    }
    ensure!(namespaces(&cloud)?.len() == 2, "{:?}", namespaces(&cloud)?);
    red.remove(&rest)?;
    blue.remove(&rest)?;
    within(10, || {
        let left = namespaces(&cloud)?;
        ensure!(left.is_empty(), "left: {left:?}");
        Ok(())
    })?;
    ensure!(cloud.down()?.status.success(), "wisp down");
    Remains::look()?.nothing_new_since(&before)
}

/// A floating IP with a policy does not let all of a burst through and marks what leaves, and does neither once that is gone.
fn is_held(rest: &Rest, floating: &Floating) -> Result<()> {
    let path = format!("{NETWORK}/floatingips/{}", floating.id);
    const MARK: u8 = 10;
    let policy = qos::policy(rest, "egress", MARK)?;
    for (taken, is_held) in [(json!(policy), true), (Value::Null, false)] {
        let status = rest.put(&path, &json!({"floatingip": {"qos_policy_id": taken}}))?;
        ensure!(status == 200, "the floating IP's policy: {status}");
        within(20, || {
            let marks = qos::answered(floating.address)?;
            let (answered, mark) = (marks.len(), if is_held { MARK } else { 0 });
            ensure!(answered > 0 && (answered < qos::SENT) == is_held, "{answered} answers, held: {is_held}");
            ensure!(
                marks.iter().all(|found| *found == mark),
                "answers are marked {marks:?}, held: {is_held}"
            );
            Ok(())
        })?;
    }
    ensure!(rest.delete(&format!("{NETWORK}/qos/policies/{policy}"))? == 204, "delete the policy");
    Ok(())
}

/// A label that counts all that goes out.
fn label(rest: &Rest) -> Result<String> {
    let made =
        rest.made(&format!("{NETWORK}/metering/metering-labels"), &json!({"metering_label": {"name": "l"}}))?;
    let label = made["metering_label"]["id"].as_str().context("the label has no id")?.to_owned();
    let rule = json!({"metering_label_rule": {
        "metering_label_id": label, "direction": "egress", "destination_ip_prefix": "0.0.0.0/0",
    }});
    rest.made(&format!("{NETWORK}/metering/metering-label-rules"), &rule)?;
    Ok(label)
}

/// What has passed a server, its router, its floating address and by a label is told.
fn is_counted(rest: &Rest, server: &str, router: &str, address: Ipv4Addr, label: &str) -> Result<()> {
    let text = rest.text("/metrics")?;
    let counted = |name: &str, labels: &[(&str, &str)]| {
        let is_it = |line: &&str| {
            line.starts_with(&format!("{name}{{"))
                && labels.iter().all(|(key, value)| line.contains(&format!("{key}=\"{value}\"")))
        };
        let line = text.lines().find(is_it).and_then(|line| line.rsplit_once(' '));
        line.and_then(|(_, value)| value.parse::<u64>().ok()).unwrap_or(0)
    };
    let address = address.to_string();
    let inward =
        counted("wisp_floating_ip_receive_packets_total", &[("address", &address), ("router", router)]);
    let outward =
        counted("wisp_floating_ip_transmit_bytes_total", &[("address", &address), ("router", router)]);
    let labelled = counted("wisp_metering_label_packets_total", &[("label", label), ("router", router)]);
    ensure!(inward > 0 && outward > 0 && labelled > 0, "{inward} {outward} {labelled} in\n{text}");
    let shown = rest.shown_in("compute 2.48", &format!("/compute/v2.1/servers/{server}/diagnostics"))?;
    let number = |value: &Value| value.as_u64().unwrap_or(0);
    let nic = &shown["nic_details"][0];
    let told = [&nic["rx_octets"], &nic["tx_packets"], &shown["memory_details"]["used"]];
    ensure!(told.into_iter().all(|value| number(value) > 0), "{shown}");
    // It is told in whole hundredths of a second.
    ensure!(shown["cpu_details"][0]["time"].is_u64(), "{shown}");
    Ok(())
}

fn traffic_goes_on() -> Result<()> {
    isolate()?;
    let before = Remains::look()?;
    let mut cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    cloud.open_default_group(&rest)?;
    let site = Site::new(&cloud, &rest, "net", "10.8.0.0/24")?;
    let server = running(&cloud, &rest, "server", &site.network, "")?;
    let floating = Floating::new(&cloud, &rest)?;
    floating.lead_to(&rest, Some(&server))?;
    page(floating.address)?;
    let stop = Arc::new(AtomicBool::new(false));
    let pinger = {
        let (stop, address) = (stop.clone(), floating.address);
        std::thread::spawn(move || ping_until(&stop, address))
    };
    cloud.kill_all_but_guests()?;
    std::thread::sleep(Duration::from_millis(300));
    cloud.up()?;
    let rest = cloud.rest()?;
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    // A change by the new agent, of the router that it found.
    let second = Floating::new(&cloud, &rest)?;
    let forwarding = json!({"port_forwarding": {
        "protocol": "tcp", "external_port": 8080, "internal_port": 80,
        "internal_port_id": rest.shown(&format!("{NETWORK}/ports?device_id={server}"))?["ports"][0]["id"],
    }});
    rest.made(&format!("{NETWORK}/floatingips/{}/port_forwardings", second.id), &forwarding)?;
    within(10, || {
        let url = format!("http://{}:8080/", second.address);
        let page = ureq::get(&url).call()?.into_body().read_to_string()?;
        ensure!(page.contains("hostname"), "{page}");
        Ok(())
    })?;
    std::thread::sleep(Duration::from_millis(700));
    stop.store(true, Ordering::Relaxed);
    let (sent, lost) = pinger.join().map_err(|_| anyhow!("the pinger panicked"))??;
    ensure!(lost == 0 && sent > 50, "{lost} of {sent} pings were lost");
    // What somebody removes by hand comes back by itself.
    let names = namespaces(&cloud)?;
    let [name] = names.as_slice() else { return Err(anyhow!("not one router: {names:?}")) };
    net::namespace::remove(name)?;
    within(30, || {
        ensure!(namespaces(&cloud)? == names && floating.answers()?, "the router did not come back");
        Ok(())
    })?;
    // A whole cloud goes with everything in it.
    let tag = std::fs::read_to_string(cloud.state().join("run/cloud-tag"))?;
    ensure!(cloud.down()?.status.success(), "wisp down");
    let left: Vec<_> =
        net::namespace::names()?.into_iter().filter(|name| name.starts_with(&format!("wn{tag}-"))).collect();
    ensure!(left.is_empty(), "left: {left:?}");
    Remains::look()?.nothing_new_since(&before)
}

fn agent_killed_at_any_time() -> Result<()> {
    isolate()?;
    let cloud = Cloud::start()?;
    let mut rest = cloud.rest()?;
    cloud.open_default_group(&rest)?;
    let network = cloud.network(&rest, "net", "10.8.0.0/24")?;
    let server = running(&cloud, &rest, "server", &network, "")?;
    // From before the agent hears of the change until after it is all made or gone. Few times: `wisp up` waits longer
    // before each new start.
    for delay_ms in [0, 4, 10, 24] {
        let killer = kill_agent_after(&cloud, Duration::from_millis(delay_ms))?;
        let made = attempt(&cloud, &mut rest, |rest| site_of(&cloud, rest, &network, &server))?;
        killer.join().map_err(|_| anyhow!("the killer panicked"))??;
        let (site, floating) = made;
        let mut rest_now = cloud_rest(&cloud)?;
        within(20, || {
            ensure!(floating.answers()?, "{} does not answer after {delay_ms} ms", floating.address);
            Ok(())
        })?;
        ensure!(namespaces(&cloud)?.len() == 1, "{:?}", namespaces(&cloud)?);
        let killer = kill_agent_after(&cloud, Duration::from_millis(delay_ms))?;
        attempt(&cloud, &mut rest_now, |rest| {
            let gone = rest.delete(&format!("{NETWORK}/floatingips/{}", floating.id))?;
            ensure!(gone == 204 || gone == 404, "delete the floating IP: {gone}");
            let path = format!("{NETWORK}/routers/{}", site.router);
            if rest.get(&path)?.0 == 404 {
                return Ok(());
            }
            let body = json!({"subnet_id": site.subnet});
            let gone = rest.put(&format!("{path}/remove_router_interface"), &body)?;
            ensure!(gone == 200 || gone == 404, "remove the interface: {gone}");
            ensure!(rest.delete(&path)? == 204, "delete the router");
            Ok(())
        })?;
        killer.join().map_err(|_| anyhow!("the killer panicked"))??;
        within(20, || {
            let left = namespaces(&cloud)?;
            ensure!(left.is_empty() && !floating.answers()?, "left after {delay_ms} ms: {left:?}");
            Ok(())
        })?;
        rest = cloud_rest(&cloud)?;
    }
    Ok(())
}

fn site_of(cloud: &Cloud, rest: &Rest, network: &str, server: &str) -> Result<(Site, Floating)> {
    let subnet = rest.shown(&format!("{NETWORK}/networks/{network}"))?["network"]["subnets"][0].clone();
    let subnet = subnet.as_str().context("no subnet")?.to_owned();
    // What an earlier attempt has made is gone on with.
    let public = cloud.public_network(rest)?;
    let routers = rest.shown(&format!("{NETWORK}/routers"))?;
    let router = match routers["routers"][0]["id"].as_str() {
        Some(id) => id.to_owned(),
        None => {
            let body = json!({"router": {"external_gateway_info": {"network_id": public}}});
            let made = rest.made(&format!("{NETWORK}/routers"), &body)?;
            made["router"]["id"].as_str().context("no id")?.to_owned()
        }
    };
    let site = Site { network: network.to_owned(), subnet, router };
    let ports = rest.shown(&format!("{NETWORK}/ports?device_id={}", site.router))?;
    let owners = ports["ports"].as_array().context("no ports")?.iter().map(|port| &port["device_owner"]);
    if !owners.into_iter().any(|owner| owner == "network:router_interface") {
        site.interface(rest, "add")?;
    }
    let all = rest.shown(&format!("{NETWORK}/floatingips"))?;
    let floating = match &all["floatingips"][0] {
        Value::Null => Floating::new(cloud, rest)?,
        found => Floating {
            id: found["id"].as_str().context("no id")?.to_owned(),
            address: found["floating_ip_address"].as_str().context("no address")?.parse()?,
        },
    };
    floating.lead_to(rest, Some(server))?;
    Ok((site, floating))
}

/// Logs in, as soon as the cloud answers.
fn cloud_rest(cloud: &Cloud) -> Result<Rest> {
    within(20, || cloud.rest())
}

/// Does something that may be cut off, until it is done: control ends with its agent and comes back.
fn attempt<T>(cloud: &Cloud, rest: &mut Rest, mut work: impl FnMut(&Rest) -> Result<T>) -> Result<T> {
    within(30, || {
        work(rest).inspect_err(|_| {
            if let Ok(anew) = cloud.rest() {
                *rest = anew;
            }
        })
    })
}

/// Kills the cloud's agent after a while.
fn kill_agent_after(cloud: &Cloud, delay: Duration) -> Result<std::thread::JoinHandle<Result<()>>> {
    let up = cloud.pid().context("the cloud does not run")?;
    let agents = processes("wisp agent --handover")?;
    let own = agents.into_iter().find(|(pid, _)| parent(*pid) == Some(up.as_raw()));
    let (pid, _) = own.context("the cloud has no agent")?;
    Ok(std::thread::spawn(move || {
        std::thread::sleep(delay);
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            .context("kill the agent")
    }))
}

fn parent(pid: i32) -> Option<i32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    status.lines().find_map(|line| line.strip_prefix("PPid:")?.trim().parse().ok())
}
