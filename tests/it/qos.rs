//! QoS policies on the real VMM: a guest that runs is held to the limits that its port gets, both ways, and its packets are
//! marked. Nothing depends on how fast anything is: whatever is late only makes the time longer in which it was
//! allowed, and what waited comes when the policy goes.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto, sockopt};
use serde_json::{Value, json};

use crate::harness::{Cloud, KVM_CLOUD, NewServer, Remains, Rest, isolate, trial};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![trial("qos::running_guest_is_held_to_its_ports_policy_both_ways", KVM_CLOUD, guest_is_held)]
}

const NETWORK: &str = "/network/v2.0";
/// Far longer than anything here takes.
const PATIENCE: Duration = Duration::from_secs(60);
/// Kilobits a second, and at once.
const KBPS: u32 = 8;
/// The same in bytes.
const BYTES: f64 = 1000.0;
/// What is sent along with each echo request.
const PAYLOAD_BYTES: usize = 400;
/// A frame of them: Ethernet, IPv4, ICMP.
const FRAME_BYTES: f64 = (14 + 20 + 8 + PAYLOAD_BYTES) as f64;
/// Requests of which answers are watched, and those sent in all.
const WATCHED: usize = 8;
pub(crate) const SENT: usize = 20;

/// Echo requests to one address, by hand: answers come with their IP headers.
struct Echo {
    socket: OwnedFd,
    target: Ipv4Addr,
    number: u16,
}

impl Echo {
    fn open(target: Ipv4Addr) -> Result<Self> {
        let socket = rustix::net::socket(AddressFamily::INET, SocketType::RAW, Some(ipproto::ICMP))?;
        sockopt::set_socket_timeout(&socket, sockopt::Timeout::Recv, Some(Duration::from_secs(1)))?;
        Ok(Self { socket, target, number: 0 })
    }

    /// Sends one; its number.
    fn send(&mut self) -> Result<u16> {
        self.number += 1;
        let mut message = vec![8, 0, 0, 0, 0x77, 0x71];
        message.extend(self.number.to_be_bytes());
        message.resize(8 + PAYLOAD_BYTES, 0);
        let words = message.chunks(2).map(|pair| u32::from(u16::from_be_bytes([pair[0], pair[1]])));
        let sum = words.sum::<u32>();
        let sum = (sum & 0xffff) + (sum >> 16);
        message[2..4].copy_from_slice(&(!(sum as u16)).to_be_bytes());
        let to = SocketAddrV4::new(self.target, 0);
        rustix::net::sendto(&self.socket, &message, SendFlags::empty(), &to)?;
        Ok(self.number)
    }

    /// The next answer within a second: its number and its code point.
    fn answer(&self) -> Option<(u16, u8)> {
        let end = Instant::now() + Duration::from_secs(1);
        while Instant::now() < end {
            let mut packet = [0; 2000];
            let Ok((length, _)) = rustix::net::recv(&self.socket, &mut packet, RecvFlags::empty()) else {
                continue;
            };
            if length >= 28 && packet[20] == 0 && packet[24..26] == [0x77, 0x71] {
                return Some((u16::from_be_bytes([packet[26], packet[27]]), packet[1] >> 2));
            }
        }
        None
    }

    /// Waits until what is sent comes back with a code point, and nothing more is under way.
    fn until_marked(&mut self, dscp: u8) -> Result<()> {
        let end = Instant::now() + PATIENCE;
        let mut seen = None;
        while seen != Some(dscp) {
            ensure!(Instant::now() < end, "answers have the code point {seen:?}, not {dscp}");
            let number = self.send()?;
            while let Some((answered, mark)) = self.answer() {
                seen = Some(mark);
                if answered == number {
                    break;
                }
            }
        }
        Ok(())
    }
}

/// Of a number of requests sent at once, the code points of the answers.
pub(crate) fn answered(address: Ipv4Addr) -> Result<Vec<u8>> {
    let mut echo = Echo::open(address)?;
    for _ in 0..SENT {
        echo.send()?;
    }
    Ok(std::iter::from_fn(|| echo.answer()).map(|(_, code_point)| code_point).collect())
}

fn id(value: &Value) -> Result<String> {
    value["id"].as_str().map(str::to_owned).with_context(|| format!("no id in {value}"))
}

/// A policy that limits one direction and marks.
pub(crate) fn policy(rest: &Rest, direction: &str, dscp: u8) -> Result<String> {
    let made = rest.made(&format!("{NETWORK}/qos/policies"), &json!({"policy": {"name": direction}}))?;
    let policy = id(&made["policy"])?;
    let rules = format!("{NETWORK}/qos/policies/{policy}");
    let limit = json!({"max_kbps": KBPS, "max_burst_kbps": KBPS, "direction": direction});
    rest.made(&format!("{rules}/bandwidth_limit_rules"), &json!({"bandwidth_limit_rule": limit}))?;
    let mark = json!({"dscp_marking_rule": {"dscp_mark": dscp}});
    rest.made(&format!("{rules}/dscp_marking_rules"), &mark)?;
    Ok(policy)
}

fn take(rest: &Rest, port: &str, policy: Option<&str>) -> Result<()> {
    let status = rest.put(&format!("{NETWORK}/ports/{port}"), &json!({"port": {"qos_policy_id": policy}}))?;
    ensure!(status == 200, "the port's policy: {status}");
    Ok(())
}

fn guest_is_held() -> Result<()> {
    isolate()?;
    let before = Remains::look()?;
    let (mut cloud, rest, network) = Cloud::start_open()?;
    let new = NewServer { name: "s", image: "", flavor: "m1.nano", network: &network, user_data: "" };
    let server = cloud.server(&rest, &new)?;
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    cloud.wait_console(&rest, &server, "ready")?;
    let ports = rest.shown(&format!("{NETWORK}/ports?device_id={server}"))?;
    let port = id(&ports["ports"][0])?;
    let address = ports["ports"][0]["fixed_ips"][0]["ip_address"].as_str().context("no address")?;
    let mut echo = Echo::open(address.parse()?)?;
    echo.until_marked(0)?;
    for (direction, dscp) in [("egress", 46), ("ingress", 10)] {
        let policy = policy(&rest, direction, dscp)?;
        take(&rest, &port, Some(&policy))?;
        held(&rest, &mut echo, &port, dscp).with_context(|| direction)?;
        ensure!(rest.delete(&format!("{NETWORK}/qos/policies/{policy}"))? == 204);
    }
    ensure!(rest.delete(&format!("/compute/v2.1/servers/{server}"))? == 204);
    cloud.wait_gone(&rest, &server)?;
    cloud.down()?;
    Remains::look()?.nothing_new_since(&before)
}

/// Watches a limited guest's answers, and takes the limit away under the rest of them.
fn held(rest: &Rest, echo: &mut Echo, port: &str, dscp: u8) -> Result<()> {
    echo.until_marked(dscp)?;
    let start = Instant::now();
    let first = echo.number + 1;
    for _ in 0..SENT {
        echo.send()?;
    }
    let mut answered = Vec::new();
    while answered.len() < SENT {
        let elapsed = start.elapsed();
        ensure!(elapsed < PATIENCE, "only {} of {SENT} were answered", answered.len());
        let Some((number, _)) = echo.answer().filter(|(number, _)| *number >= first) else { continue };
        answered.push(number);
        if answered.len() <= WATCHED {
            let moved = FRAME_BYTES * answered.len() as f64;
            let allowed = BYTES + BYTES * start.elapsed().as_secs_f64();
            ensure!(moved <= allowed, "{moved} bytes went where {allowed} were allowed");
        }
        if answered.len() == WATCHED {
            take(rest, port, None)?;
        }
    }
    ensure!(answered == (first..first + SENT as u16).collect::<Vec<_>>(), "out of order: {answered:?}");
    println!("{WATCHED} answers were held, the others came when the policy had gone");
    echo.until_marked(0)
}
