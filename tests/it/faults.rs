//! Servers that cannot be: each ends in ERROR with a fault that says why, and leaves nothing behind.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Cloud, KVM_CLOUD, NewServer, Remains, Rest, isolate, processes, trial};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("faults::servers_that_cannot_be_say_why_and_leave_nothing", KVM_CLOUD, servers_that_cannot_be),
        trial("faults::broken_upload_leaves_nothing", KVM_CLOUD, broken_upload_leaves_nothing),
    ]
}

fn servers_that_cannot_be() -> Result<()> {
    isolate()?;
    let mut cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let network = cloud.public_network(&rest)?;
    // The bridge of `public` comes with its first server and stays as long as the cloud.
    let warm = NewServer { name: "warm", image: "", flavor: "m1.nano", network: &network, user_data: "" };
    let warm = cloud.server(&rest, &warm)?;
    cloud.wait_status(&rest, &warm, "ACTIVE")?;
    ensure!(rest.delete(&format!("/compute/v2.1/servers/{warm}"))? == 204, "delete");
    cloud.wait_gone(&rest, &warm)?;
    let before = Remains::look()?;
    let huge = json!({"flavor": {"name": "huge", "vcpus": 1, "ram": 1 << 24, "disk": 1}});
    rest.made("/compute/v2.1/flavors", &huge)?;
    rest_quota(&cloud, &rest)?;
    let broken = cloud.image(&rest, "broken", &b"this is no kernel and no disk ".repeat(1000))?;
    let dying = cloud.image(&rest, "dying", &elf_that_dies())?;
    let cases = [
        ("broken-image", broken.as_str(), "m1.nano", "no partition table"),
        ("vmm-dies", dying.as_str(), "m1.nano", "triple fault"),
        ("no-memory", "", "huge", "No valid host"),
    ];
    for (name, image, flavor, why) in cases {
        let new = NewServer { name, image, flavor, network: &network, user_data: "" };
        let server = cloud.server(&rest, &new)?;
        let shown = cloud.wait_status(&rest, &server, "ERROR")?;
        let message =
            shown["fault"]["message"].as_str().with_context(|| format!("{name}: no fault in {shown}"))?;
        ensure!(message.contains(why), "{name}: the fault does not say `{why}`: {message}");
        let left = processes(&server)?;
        ensure!(left.is_empty(), "{name}: {left:?}");
        Remains::look()?.nothing_new_since(&before).with_context(|| format!("{name} in ERROR"))?;
        ensure!(rest.delete(&format!("/compute/v2.1/servers/{server}"))? == 204, "{name}: delete");
        cloud.wait_gone(&rest, &server)?;
        ensure!(!cloud.state().join("run").join(&server).exists(), "{name}: the run directory is left");
    }
    let (status, body) = rest.post("/compute/v2.1/servers", &server_on_no_network(&rest)?)?;
    ensure!(status == 400, "a network that is gone: {status} {body}");
    let ports = rest.shown("/network/v2.0/ports?device_owner=compute:nova")?;
    ensure!(ports["ports"].as_array().is_some_and(Vec::is_empty), "left: {ports}");
    ensure!(cloud.down()?.status.success(), "wisp down");
    Ok(())
}

/// Lets the administrator's project have the huge flavor, so that the scheduler is what refuses it.
fn rest_quota(cloud: &Cloud, rest: &Rest) -> Result<()> {
    let project = rest.shown("/identity/v3/projects?name=admin")?;
    let project = project["projects"][0]["id"].as_str().context("no project")?.to_owned();
    let body = json!({"quota_set": {"ram": -1}});
    let status = rest.put(&format!("/compute/v2.1/os-quota-sets/{project}"), &body)?;
    ensure!(status == 200, "raise the quota of {}: {status}", cloud.url);
    Ok(())
}

fn server_on_no_network(rest: &Rest) -> Result<Value> {
    let images = rest.shown("/image/v2/images?name=tiny")?;
    let flavors = rest.shown("/compute/v2.1/flavors")?;
    Ok(json!({"server": {
        "name": "no-network", "imageRef": images["images"][0]["id"], "flavorRef": flavors["flavors"][0]["id"],
        "networks": [{"uuid": "00000000-0000-0000-0000-000000000000"}],
    }}))
}

/// A 64-bit ELF kernel whose first instruction is invalid, with no handler for that: a triple fault.
fn elf_that_dies() -> Vec<u8> {
    const LOAD: u64 = 0x10_0000;
    const HEADERS: u64 = 64 + 56;
    let code = [0x0f, 0x0b];
    let mut elf = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    elf.extend_from_slice(&2u16.to_le_bytes());
    elf.extend_from_slice(&62u16.to_le_bytes());
    elf.extend_from_slice(&1u32.to_le_bytes());
    for word in [LOAD, 64, 0] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(&0u32.to_le_bytes());
    for half in [64u16, 56, 1, 0, 0, 0] {
        elf.extend_from_slice(&half.to_le_bytes());
    }
    elf.extend_from_slice(&1u32.to_le_bytes());
    elf.extend_from_slice(&5u32.to_le_bytes());
    for word in [HEADERS, LOAD, LOAD, code.len() as u64, code.len() as u64, 0x1000] {
        elf.extend_from_slice(&word.to_le_bytes());
    }
    elf.extend_from_slice(&code);
    elf.resize(4096, 0);
    elf
}

fn broken_upload_leaves_nothing() -> Result<()> {
    use std::io::{Read, Write};
    isolate()?;
    let cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let body = json!({"name": "cut", "disk_format": "raw", "container_format": "bare"});
    let image = rest.made("/image/v2/images", &body)?["id"].as_str().context("no id")?.to_owned();
    let address = cloud.url.strip_prefix("http://").context("no address")?;
    let mut stream = std::net::TcpStream::connect(address)?;
    let head = format!(
        "PUT /image/v2/images/{image}/file HTTP/1.1\r\nHost: {address}\r\nX-Auth-Token: {}\r\n\
         Content-Type: application/octet-stream\r\nContent-Length: 1000000\r\n\r\n",
        rest.token()
    );
    stream.write_all(head.as_bytes())?;
    stream.write_all(&[7; 100_000])?;
    stream.shutdown(std::net::Shutdown::Write)?;
    let mut rest_of_it = Vec::new();
    // Whatever is answered, if anything: the client is gone.
    let _ = stream.read_to_end(&mut rest_of_it);
    crate::harness::within(20, || {
        let shown = rest.shown(&format!("/image/v2/images/{image}"))?;
        ensure!(shown["status"] == "queued", "the image is {}", shown["status"]);
        let files: Vec<_> = std::fs::read_dir(cloud.state().join("control/images"))?
            .flatten()
            .map(|entry| entry.path())
            .collect();
        ensure!(!files.iter().any(|path| path.to_string_lossy().contains(&image)), "left: {files:?}");
        Ok(())
    })
}
