//! Volumes through the real VMM: what the tiny guest writes to one is there at its next start, in a snapshot and in a
//! clone; servers boot from volumes; and no volume is lost when all of Wisp's processes are killed in the midst.

mod places;
mod plug;

use std::io::{Seek as _, SeekFrom, Write as _};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use storage::backend::Backend as _;
use storage::file::FileBackend;

use crate::harness::{Cloud, KVM_CLOUD, Need, NewServer, Rest, isolate, processes, trial, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    let own = vec![
        trial(
            "volumes::what_a_guest_writes_stays_through_restart_snapshot_and_clone",
            KVM_CLOUD,
            guest_writes,
        ),
        trial("volumes::wishes_outlive_kill_9_at_any_time", &[Need::Root], wishes_outlive),
        trial(
            "volumes::full_disk_is_an_error_and_loses_nothing",
            &[Need::Root, Need::QemuImg, Need::DiskTools],
            full_disk,
        ),
        trial(
            "volumes::qcow2_image_becomes_a_volume_whatever_is_killed_meanwhile",
            &[Need::Root, Need::QemuImg],
            qcow2_becomes_a_volume,
        ),
    ];
    own.into_iter().chain(places::trials()).chain(plug::trials()).collect()
}

/// Seconds for what takes a moment on an idle machine: a GiB is read and digested in a debug build, with labs beside it.
const WAIT_SECONDS_MAX: u64 = 240;

fn status(rest: &Rest, path: &str, kind: &str) -> Result<Option<String>> {
    let (code, body) = rest.get(path)?;
    if code == 404 {
        return Ok(None);
    }
    ensure!(code == 200, "{path}: {code} {body}");
    Ok(body[kind]["status"].as_str().map(str::to_owned))
}

fn until(rest: &Rest, kind: &str, id: &str, wanted: Option<&str>) -> Result<()> {
    within(WAIT_SECONDS_MAX, || {
        let found = status(rest, &format!("/volume/v3/{kind}s/{id}"), kind)?;
        let told = || rest.shown_in("volume 3.71", "/volume/v3/messages").unwrap_or_default();
        ensure!(found.as_deref() == wanted, "{kind} {id} is {found:?}, not {wanted:?}; {}", told());
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
    ensure!(
        rest.delete(&format!("{attachments}/{volume}"))? == 409,
        "a running guest loses a disk of its start, which is on virtio-mmio"
    );

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

/// An image of this format; its id.
fn image(rest: &Rest, format: &str, content: &[u8]) -> Result<String> {
    let described = json!({"name": format, "disk_format": format, "container_format": "bare"});
    let id = rest.made("/image/v2/images", &described)?["id"].as_str().context("no id")?.to_owned();
    let status = rest.put_data(&format!("/image/v2/images/{id}/file"), content)?;
    ensure!(status == 204, "upload: {status}");
    Ok(id)
}

/// The first bytes of a volume, from the host's files; nothing is being made meanwhile.
fn first_bytes(cloud: &Cloud, volume: &str, bytes: usize) -> Result<Vec<u8>> {
    for host in std::fs::read_dir(cloud.state().join("volumes"))? {
        let backend = FileBackend::open(&host?.path().join("disks"))?;
        if backend.size_bytes(volume)?.is_some() {
            let mut content = vec![0; bytes];
            backend.export(volume, true)?.open(true)?.read_at(&mut content, 0)?;
            return Ok(content);
        }
    }
    bail!("no host has volume {volume}")
}

fn full_disk() -> Result<()> {
    const DISK_BYTES: u64 = 3 << 30;
    let cloud = Cloud::start_fake_on(DISK_BYTES)?;
    let rest = cloud.rest()?;
    const CONTENT_BYTES: usize = 80 << 20;
    // Two images, and the second as qcow2.
    let contents =
        [1_u8, 2].map(|seed| (0..CONTENT_BYTES).map(|at| (at % 251) as u8 ^ seed).collect::<Vec<u8>>());
    let files = tempfile::tempdir()?;
    let (raw, qcow2) = (files.path().join("raw"), files.path().join("qcow2"));
    std::fs::write(&raw, &contents[1])?;
    let made_of_raw =
        Command::new("qemu-img").args(["convert", "-O", "qcow2"]).args([&raw, &qcow2]).status()?;
    ensure!(made_of_raw.success(), "qemu-img: {made_of_raw}");
    let first = image(&rest, "raw", &contents[0])?;
    let second = image(&rest, "raw", &contents[1])?;
    let packed = image(&rest, "qcow2", &std::fs::read(&qcow2)?)?;
    let volume_of = |image: &str| made(&rest, "volume", json!({"size": 1, "imageRef": image}));
    let old = volume_of(&first)?;
    let other = volume_of(&second)?;
    until(&rest, "volume", &old, Some("available"))?;
    until(&rest, "volume", &other, Some("available"))?;
    let backup = made(&rest, "backup", json!({"volume_id": other}))?;
    until(&rest, "backup", &backup, Some("available"))?;
    until(&rest, "volume", &other, Some("available"))?;

    // All but so much is somebody else's.
    let filler = cloud.state().join("filler");
    let leave = |bytes: u64| -> Result<()> {
        let _ = std::fs::remove_file(&filler);
        // What was freed just now is to be had from the next commit of the journal on.
        nix::unistd::syncfs(std::fs::File::open(cloud.state())?)?;
        let free = nix::sys::statvfs::statvfs(cloud.state())?;
        let free = free.blocks_available() * free.fragment_size();
        let mut file = std::fs::File::create(&filler)?;
        let mut length = i64::try_from(free.saturating_sub(bytes))?;
        // The file system keeps some for itself.
        while let Err(error) = fallocate(&file, FallocateFlags::empty(), 0, length) {
            ensure!(error == Errno::ENOSPC && length > 1 << 20, "fill the disk: {error}");
            length -= 1 << 20;
        }
        if bytes == 0 {
            file.seek(SeekFrom::End(0))?;
            while file.write_all(&[7; 4096]).is_ok() {}
        }
        Ok(())
    };
    // Room for the rows, not for data.
    leave(36 << 20)?;
    let restored = format!("/volume/v3/backups/{backup}/restore");
    rest.made(&restored, &json!({"restore": {"volume_id": old}}))?;
    until(&rest, "volume", &old, Some("error_restoring"))?;
    let broken = volume_of(&packed)?;
    until(&rest, "volume", &broken, Some("error"))?;
    let told = rest.shown_in("volume 3.71", "/volume/v3/messages")?;
    let told = told["messages"].as_array().context("no messages")?;
    let about = |id: &str| told.iter().find(|one| one["resource_uuid"] == id).cloned();
    let message = about(&old).with_context(|| format!("nobody was told of {old}"))?;
    ensure!(message["user_message"].as_str().is_some_and(|text| text.contains("space")), "{message}");
    // Where the host has said meanwhile that it has no room, nobody tried.
    ensure!(about(&broken).is_some(), "nobody was told of {broken}");
    let failed = made(&rest, "backup", json!({"volume_id": other, "name": "whole"}))?;
    until(&rest, "backup", &failed, Some("error"))?;
    until(&rest, "volume", &other, Some("available"))?;
    let queued = rest.made(
        "/image/v2/images",
        &json!({"name": "late", "disk_format": "raw", "container_format": "bare"}),
    )?;
    let path = format!("/image/v2/images/{}", queued["id"].as_str().context("no id")?);
    // Told before all is sent, a client may see the line cut instead.
    if let Ok(refused) = rest.put_data(&format!("{path}/file"), &contents[0][1..]) {
        ensure!(refused == 503, "an upload: {refused}");
    }
    within(WAIT_SECONDS_MAX, || {
        let shown = rest.shown(&path)?;
        ensure!(shown["status"] == "queued", "{shown}");
        Ok(())
    })?;
    ensure!(first_bytes(&cloud, &old, CONTENT_BYTES)? == contents[0], "a failed restoring took the old data");
    ensure!(first_bytes(&cloud, &other, CONTENT_BYTES)? == contents[1], "a failed backup changed its volume");

    // Not a byte is left: what cannot be written down is refused, and nobody falls over.
    leave(0)?;
    let mut statuses = Vec::new();
    for number in 0..20 {
        let (status, _) =
            rest.post("/volume/v3/volumes", &json!({"volume": {"size": 1, "name": format!("v{number}")}}))?;
        statuses.push(status);
    }
    ensure!(statuses.iter().all(|status| *status == 503), "with no room for a row: {statuses:?}");
    ensure!(rest.get("/volume/v3/volumes/detail")?.0 == 200, "reading while the disk is full");

    // There is room again.
    std::fs::remove_file(&filler)?;
    within(WAIT_SECONDS_MAX, || {
        let pools = rest.shown("/volume/v3/scheduler-stats/get_pools?detail=true")?;
        let free = pools["pools"][0]["capabilities"]["free_capacity_gb"].as_u64();
        ensure!(free > Some(0), "the pool stays full: {pools}");
        Ok(())
    })?;
    let new = volume_of(&packed)?;
    until(&rest, "volume", &new, Some("available"))?;
    ensure!(first_bytes(&cloud, &new, CONTENT_BYTES)? == contents[1], "a new volume differs");
    ensure!(first_bytes(&cloud, &old, CONTENT_BYTES)? == contents[0], "the old data is gone");
    for id in [&failed, &backup] {
        ensure!(rest.delete(&format!("/volume/v3/backups/{id}"))? == 202, "delete backup {id}");
        until(&rest, "backup", id, None)?;
    }
    let left = rest.shown("/volume/v3/volumes")?;
    for volume in left["volumes"].as_array().context("no volumes")? {
        let id = volume["id"].as_str().context("no id")?;
        within(WAIT_SECONDS_MAX, || {
            let status = rest.delete(&format!("/volume/v3/volumes/{id}"))?;
            ensure!(status == 202, "delete volume {id}: {status}");
            Ok(())
        })?;
        until(&rest, "volume", id, None)?;
    }
    let quota = rest.shown("/volume/v3/limits")?["limits"]["absolute"].clone();
    let held = ["totalVolumesUsed", "totalGigabytesUsed", "totalBackupsUsed", "totalBackupGigabytesUsed"];
    ensure!(held.iter().all(|name| quota[name] == 0), "quota is held: {quota}; answers: {statuses:?}");
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
    within(WAIT_SECONDS_MAX, || {
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
