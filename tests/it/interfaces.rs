//! Network devices of servers on the real VMM: what is given to a server that is off is in its guest at the next start, what
//! is taken is not; a guest that runs gets and loses them at once, but for those of a start by virtio-mmio.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::demo::ping::Pinger;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Cloud, KVM_CLOUD, NewServer, Remains, Rest, isolate, trial, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("interfaces::devices_come_and_go_with_the_next_start", KVM_CLOUD, devices_come_and_go),
        trial("interfaces::devices_come_to_a_guest_that_runs_and_go_from_it", KVM_CLOUD, while_it_runs),
    ]
}

/// How long a guest may take until it answers.
const PATIENCE: Duration = Duration::from_secs(20);

struct Site<'a> {
    cloud: &'a Cloud,
    rest: &'a Rest,
    server: String,
}

impl Site<'_> {
    fn path(&self, below: &str) -> String {
        format!("/compute/v2.1/servers/{}{below}", self.server)
    }

    fn power(&self, action: &str, status: &str) -> Result<()> {
        let (code, body) = self.rest.post(&self.path("/action"), &json!({ action: null }))?;
        ensure!(code == 202, "{action}: {code} {body}");
        self.cloud.wait_status(self.rest, &self.server, status)?;
        Ok(())
    }

    fn attach(&self, fields: Value) -> Result<(u16, Value)> {
        self.rest.post(&self.path("/os-interface"), &json!({"interfaceAttachment": fields}))
    }

    /// The lines that the guest says of its network devices, in the boot that is.
    fn devices(&self) -> Result<Vec<String>> {
        let console = self.cloud.wait_console(self.rest, &self.server, "ready")?;
        Ok(console.lines().filter(|line| line.contains(": mac ")).map(str::to_owned).collect())
    }
}

fn devices_come_and_go() -> Result<()> {
    isolate()?;
    let before = Remains::look()?;
    let mut cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    cloud.open_default_group(&rest)?;
    let inner = cloud.network(&rest, "inner", "10.7.0.0/24")?;
    let public = cloud.public_network(&rest)?;
    let new = NewServer { name: "s", image: "", flavor: "m1.nano", network: &inner, user_data: "" };
    let server = cloud.server(&rest, &new)?;
    let site = Site { cloud: &cloud, rest: &rest, server };
    cloud.wait_status(&rest, &site.server, "ACTIVE")?;
    ensure!(site.devices()?.len() == 1);
    let ports = rest.shown(&format!("/network/v2.0/ports?device_id={}", site.server))?;
    let first = ports["ports"][0]["id"].as_str().context("no port")?.to_owned();
    let status = rest.delete(&site.path(&format!("/os-interface/{first}")))?;
    ensure!(status == 409, "a guest that runs keeps what it has by virtio-mmio: {status}");

    site.power("os-stop", "SHUTOFF")?;
    let (code, body) = site.attach(json!({"net_id": public}))?;
    ensure!(code == 200, "{code} {body}");
    let attached = &body["interfaceAttachment"];
    let second = attached["port_id"].as_str().context("no port")?.to_owned();
    let address = attached["fixed_ips"][0]["ip_address"].as_str().context("no address")?.parse()?;
    site.power("os-start", "ACTIVE")?;
    let devices = site.devices()?;
    let mac = attached["mac_addr"].as_str().context("no MAC address")?;
    ensure!(devices.len() == 2 && devices[1].contains(mac), "{devices:?}, not {mac} last");
    ensure!(Pinger::open(address)?.until_answer(PATIENCE)?.is_some(), "{address} does not answer");

    site.power("os-stop", "SHUTOFF")?;
    // The port that was made for the server goes by its own deletion, and from the server.
    ensure!(rest.delete(&format!("/network/v2.0/ports/{first}"))? == 204);
    site.power("os-start", "ACTIVE")?;
    let devices = site.devices()?;
    ensure!(devices.len() == 1 && devices[0].contains(mac), "{devices:?}, not {mac} alone");
    ensure!(Pinger::open(address)?.until_answer(PATIENCE)?.is_some(), "{address} does not answer");
    site.power("os-stop", "SHUTOFF")?;
    ensure!(rest.delete(&site.path(&format!("/os-interface/{second}")))? == 202);
    site.power("os-start", "ACTIVE")?;
    ensure!(site.devices()?.is_empty());

    ensure!(rest.delete(&site.path(""))? == 204);
    cloud.wait_gone(&rest, &site.server)?;
    cloud.down()?;
    Remains::look()?.nothing_new_since(&before)
}

fn while_it_runs() -> Result<()> {
    isolate()?;
    let before = Remains::look()?;
    let mut cloud = Cloud::start()?;
    let mut rest = cloud.rest()?;
    cloud.open_default_group(&rest)?;
    let inner = cloud.network(&rest, "inner", "10.7.0.0/24")?;
    let public = cloud.public_network(&rest)?;
    let new = NewServer { name: "s", image: "", flavor: "m1.nano", network: &inner, user_data: "" };
    let server = cloud.server(&rest, &new)?;
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    for round in 1..=2 {
        let site = Site { cloud: &cloud, rest: &rest, server: server.clone() };
        site.devices()?;
        let (code, body) = site.attach(json!({"net_id": public}))?;
        ensure!(code == 200, "{code} {body}");
        let attached = &body["interfaceAttachment"];
        let port = attached["port_id"].as_str().context("no port")?.to_owned();
        let address = attached["fixed_ips"][0]["ip_address"].as_str().context("no address")?.parse()?;
        let answers = || Ok::<_, anyhow::Error>(Pinger::open(address)?.until_answer(PATIENCE)?.is_some());
        ensure!(answers()?, "{address} does not answer");
        // Whoever comes anew finds it so.
        cloud.kill_all_but_guests()?;
        cloud.up()?;
        rest = cloud.rest()?;
        let site = Site { cloud: &cloud, rest: &rest, server: server.clone() };
        ensure!(answers()?, "{address} does not answer any more");
        within(60, || {
            let shown = rest.shown(&format!("/network/v2.0/ports/{port}"))?["port"].clone();
            ensure!(shown["status"] == "ACTIVE" && shown["device_id"] == server.as_str(), "{shown}");
            Ok(())
        })?;
        if round == 1 {
            ensure!(rest.delete(&site.path(&format!("/os-interface/{port}")))? == 202);
        } else {
            ensure!(rest.delete(&format!("/network/v2.0/ports/{port}"))? == 204);
        }
        within(60, || {
            let console = cloud.console(&rest, &server)?;
            ensure!(console.matches("net 1: gone").count() == round, "{console}");
            Ok(())
        })?;
        ensure!(rest.get(&format!("/network/v2.0/ports/{port}"))?.0 == 404);
    }
    ensure!(rest.delete(&format!("/compute/v2.1/servers/{server}"))? == 204);
    cloud.wait_gone(&rest, &server)?;
    cloud.down()?;
    Remains::look()?.nothing_new_since(&before)
}
