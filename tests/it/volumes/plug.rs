//! Volumes of servers that run: what one guest writes another reads, whatever is killed meanwhile.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;

use super::{WAIT_SECONDS_MAX, act, made, until};
use crate::harness::{Cloud, KVM_CLOUD, NewServer, Remains, Rest, isolate, processes, trial, within};

/// The tests.
pub(super) fn trials() -> Vec<Trial> {
    vec![
        trial("volumes::go_from_one_running_server_to_another", KVM_CLOUD, go_to_another),
        trial("volumes::come_and_go_whatever_is_killed_meanwhile", KVM_CLOUD, whatever_is_killed),
    ]
}

/// How long a guest's web server may take.
const PATIENCE: Duration = Duration::from_secs(20);

/// A running server whose guest answers by HTTP.
struct Running {
    id: String,
    address: Ipv4Addr,
}

impl Running {
    fn start(cloud: &Cloud, rest: &Rest, network: &str, name: &str) -> Result<Self> {
        let new = NewServer { name, image: "", flavor: "m1.nano", network, user_data: "" };
        let id = cloud.server(rest, &new)?;
        cloud.wait_status(rest, &id, "ACTIVE")?;
        let address = cloud.address(rest, &id)?;
        cloud.wait_console(rest, &id, "ready http")?;
        Ok(Self { id, address })
    }

    fn attachments(&self) -> String {
        format!("/compute/v2.1/servers/{}/os-volume_attachments", self.id)
    }

    fn attach(&self, rest: &Rest, volume: &str) -> Result<()> {
        let attached = rest.made(&self.attachments(), &json!({"volumeAttachment": {"volumeId": volume}}))?;
        ensure!(attached["volumeAttachment"]["device"] == "/dev/vdb", "{attached}");
        Ok(())
    }

    fn detach(&self, rest: &Rest, volume: &str) -> Result<u16> {
        rest.delete(&format!("{}/{volume}", self.attachments()))
    }

    fn ask(&self, method: &str, sector: u64, body: &str) -> Result<(String, String)> {
        let mut stream = TcpStream::connect_timeout(&SocketAddr::from((self.address, 80)), PATIENCE)?;
        stream.set_read_timeout(Some(PATIENCE))?;
        let length = body.len();
        write!(
            stream,
            "{method} /disk/1/{sector} HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n{body}"
        )?;
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer)?;
        let answer = String::from_utf8_lossy(&answer);
        let (head, body) = answer.split_once("\r\n\r\n").context("no answer")?;
        let status = head.lines().next().unwrap_or_default().to_owned();
        Ok((status, body.trim_end_matches('\0').to_owned()))
    }

    fn write(&self, text: &str) -> Result<()> {
        within(WAIT_SECONDS_MAX, || {
            let (status, said) = self.ask("PUT", 8, text)?;
            ensure!(status.contains("200"), "{status} {said}");
            Ok(())
        })
    }

    fn reads(&self, text: &str) -> Result<()> {
        within(WAIT_SECONDS_MAX, || {
            let (status, said) = self.ask("GET", 8, "")?;
            ensure!(status.contains("200") && said == text, "{status} {said:?}, not {text:?}");
            Ok(())
        })
    }
}

fn go_to_another() -> Result<()> {
    isolate()?;
    let before = Remains::look()?;
    let (mut cloud, rest, network) = Cloud::start_open()?;
    let one = Running::start(&cloud, &rest, &network, "one")?;
    let two = Running::start(&cloud, &rest, &network, "two")?;
    let volume = made(&rest, "volume", json!({"size": 1, "name": "v"}))?;
    until(&rest, "volume", &volume, Some("available"))?;

    one.attach(&rest, &volume)?;
    until(&rest, "volume", &volume, Some("in-use"))?;
    one.write("written by one")?;
    let (code, body) = rest.post(&two.attachments(), &json!({"volumeAttachment": {"volumeId": volume}}))?;
    ensure!(code == 400, "another's is taken: {code} {body}");
    ensure!(one.detach(&rest, &volume)? == 202);
    until(&rest, "volume", &volume, Some("available"))?;
    ensure!(one.ask("GET", 8, "")?.0.contains("404"), "it has gone from the guest");
    ensure!(one.detach(&rest, &volume)? == 404);

    two.attach(&rest, &volume)?;
    until(&rest, "volume", &volume, Some("in-use"))?;
    two.reads("written by one")?;
    let shown = rest.shown(&format!("/volume/v3/volumes/{volume}"))?["volume"]["attachments"].clone();
    ensure!(shown[0]["server_id"] == two.id.as_str() && shown[0]["device"] == "/dev/vdb", "{shown}");

    // A guest that stands still lets nothing go; asked again, it is asked again.
    act(&rest, &two.id, "pause")?;
    cloud.wait_status(&rest, &two.id, "PAUSED")?;
    for _ in 0..2 {
        ensure!(two.detach(&rest, &volume)? == 202);
        until(&rest, "volume", &volume, Some("detaching"))?;
    }
    let listed = rest.shown(&two.attachments())?["volumeAttachments"].clone();
    ensure!(listed[0]["volumeId"] == volume.as_str(), "its server has it still: {listed}");
    act(&rest, &two.id, "unpause")?;
    cloud.wait_status(&rest, &two.id, "ACTIVE")?;
    until(&rest, "volume", &volume, Some("available"))?;

    // What came while it ran is there after a reboot, and then as long as it runs.
    two.attach(&rest, &volume)?;
    two.reads("written by one")?;
    let reboot = json!({"reboot": {"type": "HARD"}});
    rest.made(&format!("/compute/v2.1/servers/{}/action", two.id), &reboot)?;
    cloud.wait_status(&rest, &two.id, "ACTIVE")?;
    two.reads("written by one")?;
    let path = format!("{}/{volume}", two.attachments());
    within(WAIT_SECONDS_MAX, || {
        let status = rest.delete(&path)?;
        ensure!(status == 409, "a disk of its start goes from virtio-mmio: {status}");
        Ok(())
    })?;
    act(&rest, &two.id, "os-stop")?;
    cloud.wait_status(&rest, &two.id, "SHUTOFF")?;
    ensure!(two.detach(&rest, &volume)? == 202);
    until(&rest, "volume", &volume, Some("available"))?;
    for server in [&one, &two] {
        ensure!(rest.delete(&format!("/compute/v2.1/servers/{}", server.id))? == 204);
        cloud.wait_gone(&rest, &server.id)?;
    }
    ensure!(cloud.down()?.status.success(), "wisp down");
    Remains::look()?.nothing_new_since(&before)
}

fn whatever_is_killed() -> Result<()> {
    isolate()?;
    let before = Remains::look()?;
    let mut cloud = Cloud::start()?;
    let mut rest = cloud.rest()?;
    cloud.open_default_group(&rest)?;
    let network = cloud.public_network(&rest)?;
    let server = Running::start(&cloud, &rest, &network, "s")?;
    let pids = processes(&server.id)?;
    let volume = made(&rest, "volume", json!({"size": 1, "name": "v"}))?;
    until(&rest, "volume", &volume, Some("available"))?;
    for delay_ms in [0, 1, 2, 4, 8, 16, 40] {
        server.attach(&rest, &volume)?;
        std::thread::sleep(Duration::from_millis(delay_ms));
        cloud.kill_all_but_guests()?;
        cloud.up()?;
        rest = cloud.rest()?;
        until(&rest, "volume", &volume, Some("in-use"))?;
        let text = format!("after {delay_ms} ms");
        server.write(&text)?;
        server.reads(&text)?;
        let status = server.detach(&rest, &volume)?;
        ensure!(status == 202, "detach: {status}");
        std::thread::sleep(Duration::from_millis(delay_ms));
        cloud.kill_all_but_guests()?;
        cloud.up()?;
        rest = cloud.rest()?;
        until(&rest, "volume", &volume, Some("available"))?;
        within(WAIT_SECONDS_MAX, || {
            let (status, said) = server.ask("GET", 8, "")?;
            ensure!(status.contains("404"), "the guest has it: {status} {said}");
            Ok(())
        })?;
    }
    ensure!(processes(&server.id)? == pids, "the guest is another one");
    ensure!(rest.delete(&format!("/compute/v2.1/servers/{}", server.id))? == 204);
    cloud.wait_gone(&rest, &server.id)?;
    ensure!(cloud.down()?.status.success(), "wisp down");
    Remains::look()?.nothing_new_since(&before)
}
