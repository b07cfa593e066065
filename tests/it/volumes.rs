//! Volumes through the real VMM: what the tiny guest writes to one is there at its next start, in a snapshot and in a
//! clone; servers boot from volumes; and no volume is lost when all of Wisp's processes are killed in the midst.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::harness::{Cloud, KVM_CLOUD, Need, NewServer, Rest, isolate, processes, trial, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "volumes::what_a_guest_writes_stays_through_restart_snapshot_and_clone",
            KVM_CLOUD,
            guest_writes,
        ),
        trial("volumes::wishes_outlive_kill_9_at_any_time", &[Need::Root], wishes_outlive),
        trial(
            "volumes::qcow2_image_becomes_a_volume_whatever_is_killed_meanwhile",
            &[Need::Root, Need::QemuImg],
            qcow2_becomes_a_volume,
        ),
    ]
}

fn status(rest: &Rest, path: &str, kind: &str) -> Result<Option<String>> {
    let (code, body) = rest.get(path)?;
    if code == 404 {
        return Ok(None);
    }
    ensure!(code == 200, "{path}: {code} {body}");
    Ok(body[kind]["status"].as_str().map(str::to_owned))
}

fn until(rest: &Rest, kind: &str, id: &str, wanted: Option<&str>) -> Result<()> {
    within(60, || {
        let found = status(rest, &format!("/volume/v3/{kind}s/{id}"), kind)?;
        ensure!(found.as_deref() == wanted, "{kind} {id} is {found:?}, not {wanted:?}");
        Ok(())
    })
}

fn made(rest: &Rest, kind: &str, fields: Value) -> Result<String> {
    let body = rest.made(&format!("/volume/v3/{kind}s"), &json!({ kind: fields }))?;
    Ok(body[kind]["id"].as_str().context("no id")?.to_owned())
}

fn act(rest: &Rest, server: &str, action: &str) -> Result<()> {
    rest.made(&format!("/compute/v2.1/servers/{server}/action"), &json!({action: null})).map(drop)
}

fn guest_writes() -> Result<()> {
    isolate()?;
    let cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let network = cloud.public_network(&rest)?;
    let user_data = "#wisp\ndisk-read 1 8\ndisk-write 1 8 kept\n";
    let new = NewServer { name: "one", image: "", flavor: "m1.nano", network: &network, user_data };
    let server = cloud.server(&rest, &new)?;
    let volume = made(&rest, "volume", json!({"size": 1, "name": "v"}))?;
    until(&rest, "volume", &volume, Some("available"))?;
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    let attachments = format!("/compute/v2.1/servers/{server}/os-volume_attachments");
    let attach = json!({"volumeAttachment": {"volumeId": volume}});
    let (code, body) = rest.post(&attachments, &attach)?;
    let says = body["conflictingRequest"]["message"].as_str().unwrap_or_default();
    ensure!(code == 409 && says.contains("cannot plug"), "a running guest gets a disk: {code} {body}");

    act(&rest, &server, "os-stop")?;
    cloud.wait_status(&rest, &server, "SHUTOFF")?;
    let attached = rest.made(&attachments, &attach)?;
    ensure!(attached["volumeAttachment"]["device"] == "/dev/vdb", "{attached}");
    until(&rest, "volume", &volume, Some("in-use"))?;
    act(&rest, &server, "os-start")?;
    let console = cloud.wait_console(&rest, &server, "command: disk-write 1 8 ok")?;
    let disk = format!("disk 1: {} bytes rw serial {}", 1u64 << 30, &volume[..20]);
    ensure!(console.contains(&disk), "no {disk:?} on the console: {console}");

    act(&rest, &server, "os-stop")?;
    cloud.wait_status(&rest, &server, "SHUTOFF")?;
    let snapshot = made(&rest, "snapshot", json!({"volume_id": volume, "force": true}))?;
    until(&rest, "snapshot", &snapshot, Some("available"))?;
    act(&rest, &server, "os-start")?;
    cloud.wait_console(&rest, &server, "command: disk-read 1 8 ok kept")?;
    ensure!(rest.delete(&format!("{attachments}/{volume}"))? == 409, "a running guest loses a disk");

    let clone = made(&rest, "volume", json!({"snapshot_id": snapshot, "size": 2}))?;
    until(&rest, "volume", &clone, Some("available"))?;
    boots_from_a_volume(&cloud, &rest, &network, &clone)?;
    act(&rest, &server, "os-stop")?;
    cloud.wait_status(&rest, &server, "SHUTOFF")?;
    ensure!(rest.delete(&format!("{attachments}/{volume}"))? == 202, "detach");
    until(&rest, "volume", &volume, Some("available"))?;
    ensure!(rest.delete(&format!("/volume/v3/snapshots/{snapshot}"))? == 202, "delete the snapshot");
    until(&rest, "snapshot", &snapshot, None)?;
    for id in [&volume, &clone] {
        ensure!(rest.delete(&format!("/volume/v3/volumes/{id}"))? == 202, "delete a volume");
        until(&rest, "volume", id, None)?;
    }
    Ok(())
}

/// A server whose root disk is a new volume of the image, with `other` beside it.
fn boots_from_a_volume(cloud: &Cloud, rest: &Rest, network: &str, other: &str) -> Result<()> {
    let images = rest.shown("/image/v2/images?name=tiny")?;
    let flavors = rest.shown("/compute/v2.1/flavors")?;
    let flavors = flavors["flavors"].as_array().context("no list of flavors")?;
    let flavor = flavors.iter().find(|flavor| flavor["name"] == "m1.nano").context("no such flavor")?;
    // `#wisp`, `disk-read 1 8`, in base64.
    let server = json!({
        "name": "two", "imageRef": "", "flavorRef": flavor["id"], "networks": [{"uuid": network}],
        "user_data": "I3dpc3AKZGlzay1yZWFkIDEgOAo=",
        "block_device_mapping_v2": [
            {"boot_index": 0, "source_type": "image", "uuid": images["images"][0]["id"], "volume_size": 1,
             "destination_type": "volume", "delete_on_termination": true},
            {"boot_index": -1, "source_type": "volume", "uuid": other, "destination_type": "volume"},
        ],
    });
    let answer = rest.made("/compute/v2.1/servers", &json!({"server": server}))?;
    let id = answer["server"]["id"].as_str().context("no id")?.to_owned();
    cloud.wait_status(rest, &id, "ACTIVE")?;
    let console = cloud.wait_console(rest, &id, "command: disk-read 1 8 ok kept")?;
    let shown = rest.shown(&format!("/compute/v2.1/servers/{id}"))?["server"].clone();
    ensure!(shown["image"] == "", "it says it has an image: {shown}");
    let volumes = shown["os-extended-volumes:volumes_attached"].as_array().context("no volumes")?.clone();
    let root = volumes[0]["id"].as_str().context("no id")?;
    let disk = format!("disk 0: {} bytes rw serial {}", 1u64 << 30, &root[..20]);
    ensure!(console.contains(&disk), "no {disk:?} on the console: {console}");
    ensure!(rest.delete(&format!("/compute/v2.1/servers/{id}"))? == 204, "delete the server");
    cloud.wait_gone(rest, &id)?;
    until(rest, "volume", root, None)?;
    until(rest, "volume", other, Some("available"))
}

fn wishes_outlive() -> Result<()> {
    let mut cloud = Cloud::start_fake()?;
    let mut rest = cloud.rest()?;
    for delay_ms in [0, 1, 3, 8, 20, 50] {
        let volume = made(&rest, "volume", json!({"size": 1}))?;
        std::thread::sleep(Duration::from_millis(delay_ms));
        rest = restarted(&mut cloud)?;
        until(&rest, "volume", &volume, Some("available"))?;
        let snapshot = made(&rest, "snapshot", json!({"volume_id": volume}))?;
        std::thread::sleep(Duration::from_millis(delay_ms));
        rest = restarted(&mut cloud)?;
        until(&rest, "snapshot", &snapshot, Some("available"))?;
        ensure!(rest.delete(&format!("/volume/v3/volumes/{volume}?cascade=True"))? == 202, "delete");
        std::thread::sleep(Duration::from_millis(delay_ms));
        rest = restarted(&mut cloud)?;
        until(&rest, "snapshot", &snapshot, None)?;
        until(&rest, "volume", &volume, None)?;
    }
    let quota = rest.shown("/volume/v3/limits")?["limits"]["absolute"].clone();
    ensure!(quota["totalGigabytesUsed"] == 0 && quota["totalSnapshotsUsed"] == 0, "quota is held: {quota}");
    for host in std::fs::read_dir(cloud.state().join("volumes"))? {
        let disks = host?.path().join("disks");
        ensure!(std::fs::read_dir(&disks)?.count() == 0, "{} is not empty", disks.display());
    }
    Ok(())
}

/// A qcow2 image of 256 MiB, of which the first 64 say something.
fn qcow2_becomes_a_volume() -> Result<()> {
    const DISK_BYTES: usize = 256 << 20;
    const SAID_BYTES: usize = 64 << 20;
    let files = tempfile::tempdir()?;
    let (raw, qcow2) = (files.path().join("raw"), files.path().join("qcow2"));
    let mut content: Vec<u8> = (0..SAID_BYTES).map(|at| (at % 251) as u8).collect();
    content.resize(DISK_BYTES, 0);
    std::fs::write(&raw, &content)?;
    let made_of_raw = Command::new("qemu-img")
        .args(["convert", "-f", "raw", "-O", "qcow2"])
        .args([&raw, &qcow2])
        .status()?;
    ensure!(made_of_raw.success(), "qemu-img: {made_of_raw}");
    let mut cloud = Cloud::start_fake()?;
    let mut rest = cloud.rest()?;
    let described = json!({"name": "q", "disk_format": "qcow2", "container_format": "bare"});
    let image = rest.made("/image/v2/images", &described)?["id"].as_str().context("no id")?.to_owned();
    let path = format!("/image/v2/images/{image}/file");
    ensure!(rest.put_data(&path, &std::fs::read(&qcow2)?)? == 204, "upload");
    for delay_ms in [0, 5, 50, 200] {
        let fields = json!({"volume": {"size": 1, "imageRef": image}});
        let (code, body) = rest.post("/volume/v3/volumes", &fields)?;
        ensure!(code == 202, "{code} {body}");
        let volume = body["volume"]["id"].as_str().context("no id")?.to_owned();
        std::thread::sleep(Duration::from_millis(delay_ms));
        rest = restarted(&mut cloud)?;
        until(&rest, "volume", &volume, Some("available"))?;
        ensure!(content_of(&rest, &volume, SAID_BYTES)? == content[..SAID_BYTES], "the disk differs");
        // The next one is converted anew: nobody keeps the disk that nobody needs over a start.
        ensure!(rest.delete(&format!("/volume/v3/volumes/{volume}"))? == 202, "delete");
        until(&rest, "volume", &volume, None)?;
        rest = restarted(&mut cloud)?;
    }
    let quota = rest.shown("/volume/v3/limits")?["limits"]["absolute"].clone();
    ensure!(quota["totalGigabytesUsed"] == 0 && quota["totalVolumesUsed"] == 0, "quota is held: {quota}");
    Ok(())
}

/// The first bytes of a volume, by way of an image of it, which goes again.
fn content_of(rest: &Rest, volume: &str, bytes: usize) -> Result<Vec<u8>> {
    let upload = json!({"os-volume_upload_image": {"image_name": "of-volume", "disk_format": "raw", "container_format": "bare"}});
    let made = rest.made(&format!("/volume/v3/volumes/{volume}/action"), &upload)?;
    let image = made["os-volume_upload_image"]["image_id"].as_str().context("no image")?.to_owned();
    let path = format!("/image/v2/images/{image}");
    within(60, || {
        let shown = rest.shown(&path)?;
        ensure!(shown["status"] == "active", "{shown}");
        Ok(())
    })?;
    until(rest, "volume", volume, Some("available"))?;
    let content = rest.data(&format!("{path}/file"), bytes)?;
    ensure!(rest.delete(&path)? == 204, "delete the image");
    Ok(content)
}

/// `kill -9` of all the cloud's processes, then another `wisp up`.
fn restarted(cloud: &mut Cloud) -> Result<Rest> {
    let state = cloud.state().to_string_lossy().into_owned();
    for (pid, line) in processes(&state)? {
        kill(Pid::from_raw(pid), Signal::SIGKILL).with_context(|| line.clone())?;
    }
    cloud.reap()?;
    cloud.up()?;
    cloud.rest()
}
