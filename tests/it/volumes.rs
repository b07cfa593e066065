//! Volumes through the real VMM: what the tiny guest writes to one is there at its next start, in a snapshot and in a
//! clone; servers boot from volumes; and no volume is lost when all of Wisp's processes are killed in the midst.

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

use crate::harness::{Cloud, KVM_CLOUD, Need, NewServer, Rest, S3Server, isolate, processes, trial, within};

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
            "volumes::full_disk_is_an_error_and_loses_nothing",
            &[Need::Root, Need::QemuImg, Need::DiskTools],
            full_disk,
        ),
        trial(
            "volumes::qcow2_image_becomes_a_volume_whatever_is_killed_meanwhile",
            &[Need::Root, Need::QemuImg],
            qcow2_becomes_a_volume,
        ),
        trial(
            "volumes::backups_lie_in_a_bucket_and_come_back_from_it",
            &[Need::Root, Need::Moto],
            backups_lie_in_a_bucket,
        ),
        trial(
            "volumes::image_that_only_a_bucket_has_becomes_a_volume",
            &[Need::Root, Need::Moto],
            image_in_a_bucket,
        ),
        trial(
            "volumes::move_between_backends_and_keep_what_they_have",
            &[Need::Root, Need::OpenStack],
            move_between_backends,
        ),
        trial(
            "volumes::given_up_and_taken_over_by_the_openstack_command",
            &[Need::Root, Need::OpenStack],
            given_up_and_taken_over,
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
        let told = || rest.shown_in("volume 3.71", "/volume/v3/messages").unwrap_or_default();
        ensure!(found.as_deref() == wanted, "{kind} {id} is {found:?}, not {wanted:?}; {}", told());
        Ok(())
    })
}

fn made(rest: &Rest, kind: &str, fields: Value) -> Result<String> {
    let body = rest.made(&format!("/volume/v3/{kind}s"), &json!({ kind: fields }))?;
    Ok(body[kind]["id"].as_str().context("no id")?.to_owned())
}

/// Two backends of one host: types choose between them, and a volume moves from one to the other by `volume migrate` and
/// by a type that asks for the other.
fn move_between_backends() -> Result<()> {
    let elsewhere = tempfile::tempdir()?;
    let other = format!("other=file:{}", elsewhere.path().display());
    let cloud = Cloud::start_fake_with(&["--volumes", "file", "--volumes", &other])?;
    let rest = cloud.rest()?;
    let pools = rest.shown("/volume/v3/scheduler-stats/get_pools")?;
    let pools = pools["pools"].as_array().context("no pools")?;
    let names: Vec<_> = pools.iter().filter_map(|pool| pool["name"].as_str()).collect();
    let [first, second] = names[..] else { bail!("{names:?}") };
    ensure!(first.ends_with("@file#file") && second.ends_with("@other#other"), "{names:?}");
    let host = first.split('@').next().unwrap_or_default();
    let at = |id: &str| -> Result<Value> {
        Ok(rest.shown(&format!("/volume/v3/volumes/{id}"))?["volume"]["os-vol-host-attr:host"].clone())
    };
    let content = [7; 4096];
    let image = cloud.image(&rest, "content", &content)?;
    let volume = made(&rest, "volume", json!({"size": 1, "imageRef": image}))?;
    until(&rest, "volume", &volume, Some("available"))?;
    ensure!(at(&volume)? == first, "it is not in the first backend");
    let holds = |directory: &std::path::Path| -> Result<()> {
        let exported = FileBackend::open(directory)?.export(&volume, true)?.open(true)?;
        let mut read = [0; 4096];
        exported.read_at(&mut read, 0)?;
        ensure!(read == content, "something else is in {}", directory.display());
        Ok(())
    };
    let (here, there) =
        (cloud.state().join("volumes").join(host).join("disks"), elsewhere.path().join(host).join("disks"));
    holds(&here)?;

    cloud.openstack(&["volume", "migrate", "--host", second, &volume])?;
    until(&rest, "volume", &volume, Some("available"))?;
    ensure!(at(&volume)? == second, "it has not moved");
    holds(&there)?;
    ensure!(holds(&here).is_err(), "the first backend has it still");
    // A copy is where its source is.
    let copy = made(&rest, "volume", json!({"size": 1, "source_volid": volume}))?;
    until(&rest, "volume", &copy, Some("available"))?;
    ensure!(at(&copy)? == second, "the copy is elsewhere");

    cloud.openstack(&["volume", "type", "create", "back", "--property", "volume_backend_name=file"])?;
    let never =
        cloud.openstack(&["volume", "set", "--type", "back", &volume]).err().map(|e| format!("{e:#}"));
    ensure!(at(&volume)? == second, "it has moved though nobody said so: {never:?}");
    cloud.openstack(&["volume", "set", "--type", "back", "--retype-policy", "on-demand", &volume])?;
    until(&rest, "volume", &volume, Some("available"))?;
    let shown = rest.shown(&format!("/volume/v3/volumes/{volume}"))?;
    ensure!(shown["volume"]["volume_type"] == "back" && at(&volume)? == first, "{shown}");
    holds(&here)?;
    let snapshot = made(&rest, "snapshot", json!({"volume_id": volume}))?;
    until(&rest, "snapshot", &snapshot, Some("available"))?;
    let migrate = json!({"os-migrate_volume": {"host": second}});
    let (code, body) = rest.post(&format!("/volume/v3/volumes/{volume}/action"), &migrate)?;
    ensure!(code == 400 && body.to_string().contains("without snapshots"), "{code} {body}");
    Ok(())
}

/// A volume and its snapshot become mere disks, which are listed and become a volume and its snapshot again.
fn given_up_and_taken_over() -> Result<()> {
    let cloud = Cloud::start_fake()?;
    let rest = cloud.rest()?;
    let volume = made(&rest, "volume", json!({"size": 1}))?;
    until(&rest, "volume", &volume, Some("available"))?;
    let snapshot = made(&rest, "snapshot", json!({"volume_id": volume}))?;
    until(&rest, "snapshot", &snapshot, Some("available"))?;
    let shown = rest.shown(&format!("/volume/v3/volumes/{volume}"))?;
    let pool = shown["volume"]["os-vol-host-attr:host"].as_str().context("it is nowhere")?.to_owned();
    let free = |kind: &str| -> Result<Vec<String>> {
        let list = ["block", "storage", kind, "manageable", "list", &pool, "-f", "json"];
        let said = cloud.openstack(&[&["--os-volume-api-version", "3.8"][..], &list].concat())?;
        let listed: Vec<Value> = serde_json::from_str(&said)?;
        let free =
            listed.iter().filter(|disk| disk["Safe To Manage"] == true || disk["safe_to_manage"] == true);
        Ok(free.map(|disk| disk.to_string()).collect())
    };
    ensure!(free("volume")?.is_empty() && free("snapshot")?.is_empty(), "what is taken is offered");

    cloud.openstack(&["volume", "snapshot", "delete", "--remote", &snapshot])?;
    cloud.openstack(&["volume", "delete", "--remote", &volume])?;
    let listed = free("volume")?;
    ensure!(listed.len() == 2 && listed.iter().any(|disk| disk.contains(&volume)), "{listed:?}");
    let source = |disk: &str| format!("source-name={disk}");
    let create = ["volume", "create", "--remote-source", &source(&volume), "--host", &pool];
    let back = cloud.openstack(&[&create[..], &["again", "-f", "value", "-c", "id"]].concat())?;
    let create = ["volume", "snapshot", "create", "--remote-source", &source(&snapshot), "--volume", "again"];
    cloud.openstack(&[&create[..], &["frozen"]].concat())?;
    until(&rest, "volume", back.trim(), Some("available"))?;
    ensure!(free("volume")?.is_empty() && free("snapshot")?.is_empty(), "what is taken is offered");
    let again =
        cloud.openstack(&["volume", "create", "--remote-source", &source(&volume), "--host", &pool, "twice"]);
    let refused = again.err().map(|error| format!("{error:#}")).unwrap_or_default();
    ensure!(refused.contains("is a volume or a snapshot already"), "{refused}");
    Ok(())
}

/// The first bytes of a volume in the first backend of a cloud's only host.
fn beginning(cloud: &Cloud, volume: &str, bytes: usize) -> Result<Vec<u8>> {
    let host = std::fs::read_dir(cloud.state().join("volumes"))?.next().context("no host")??.path();
    let exported = FileBackend::open(&host.join("disks"))?.export(volume, true)?.open(true)?;
    let mut read = vec![0; bytes];
    exported.read_at(&mut read, 0)?;
    Ok(read)
}

/// An image whose data no file of the host holds.
fn image_in_a_bucket() -> Result<()> {
    isolate()?;
    let server = S3Server::start("images")?;
    let cloud = Cloud::start_fake_with(&["--image-bucket", &format!("{}/images/cloud-1", server.endpoint)])?;
    let rest = cloud.rest()?;
    // Longer than a part of an upload to a bucket.
    let content: Vec<u8> = (0..10_u32 << 18).flat_map(|number| (number | 1).to_le_bytes()).collect();
    let upload = |content: &[u8]| -> Result<String> {
        let body = json!({"name": "far", "disk_format": "raw", "container_format": "bare"});
        let image = rest.made("/image/v2/images", &body)?["id"].as_str().context("no id")?.to_owned();
        let sent = ureq::put(format!("{}/image/v2/images/{image}/file", cloud.url))
            .header("x-auth-token", rest.token())
            .header("x-image-meta-store", "s3")
            .content_type("application/octet-stream")
            .send(content)?;
        ensure!(sent.status() == 204, "upload: {}", sent.status());
        Ok(image)
    };
    let (image, other) = (upload(&content)?, upload(b"another one")?);
    let shown = rest.shown(&format!("/image/v2/images/{image}"))?;
    ensure!(shown["status"] == "active" && shown["stores"] == "s3", "{shown}");
    ensure!(server.objects("images", "cloud-1")? == 2, "they are not in the bucket");

    let volume = made(&rest, "volume", json!({"size": 1, "imageRef": image}))?;
    until(&rest, "volume", &volume, Some("available"))?;
    ensure!(beginning(&cloud, &volume, content.len())? == content, "the volume is not what the image is");
    // A service that is gone is said to be, and the volume can be deleted.
    drop(server);
    let failed = made(&rest, "volume", json!({"size": 1, "imageRef": other}))?;
    until(&rest, "volume", &failed, Some("error"))?;
    let told = rest.shown_in("volume 3.71", "/volume/v3/messages")?.to_string();
    ensure!(told.contains(&failed), "nobody says why: {told}");
    ensure!(rest.delete(&format!("/volume/v3/volumes/{failed}"))? == 202, "delete it");
    until(&rest, "volume", &failed, None)
}

/// Whole and differing backups in a real server's bucket: what was written comes back, in a new volume and over an old
/// one; a service that is gone is an error that says so, and nothing is left of deleted ones.
fn backups_lie_in_a_bucket() -> Result<()> {
    isolate()?;
    let server = S3Server::start("backups")?;
    let place = format!("{}/backups/cloud-1", server.endpoint);
    let cloud = Cloud::start_fake_with(&["--backup-bucket", &place])?;
    let rest = cloud.rest()?;
    // More than one object holds, none of it zeros, all of it different.
    let content: Vec<u8> = (0..20_u32 << 18).flat_map(|number| (number | 1).to_le_bytes()).collect();
    let image = cloud.image(&rest, "content", &content)?;
    let volume = made(&rest, "volume", json!({"size": 1, "imageRef": image}))?;
    until(&rest, "volume", &volume, Some("available"))?;
    let whole = made(&rest, "backup", json!({"volume_id": volume}))?;
    until(&rest, "backup", &whole, Some("available"))?;
    // Two of data, the index.
    ensure!(server.objects("backups", &format!("cloud-1/{whole}"))? == 3, "the backup has other objects");
    let differing = made(&rest, "backup", json!({"volume_id": volume, "incremental": true}))?;
    until(&rest, "backup", &differing, Some("available"))?;
    ensure!(server.objects("backups", &format!("cloud-1/{differing}"))? == 2, "nothing has changed");

    let empty = made(&rest, "volume", json!({"size": 1}))?;
    until(&rest, "volume", &empty, Some("available"))?;
    let path = format!("/volume/v3/backups/{differing}/restore");
    let over = rest.made(&path, &json!({"restore": {"volume_id": empty}}))?;
    ensure!(over["restore"]["volume_id"] == *empty, "{over}");
    until(&rest, "volume", &empty, Some("available"))?;
    let new = rest.made(&format!("/volume/v3/backups/{whole}/restore"), &json!({"restore": {}}))?;
    let new = new["restore"]["volume_id"].as_str().context("no id")?.to_owned();
    until(&rest, "volume", &new, Some("available"))?;
    for id in [&empty, &new] {
        ensure!(beginning(&cloud, id, content.len())? == content, "{id} is not what was backed up");
    }

    for backup in [&differing, &whole] {
        ensure!(rest.delete(&format!("/volume/v3/backups/{backup}"))? == 202, "delete a backup");
        until(&rest, "backup", backup, None)?;
    }
    ensure!(server.objects("backups", "cloud-1")? == 0, "something is left in the bucket");
    drop(server);
    let failed = made(&rest, "backup", json!({"volume_id": volume}))?;
    until(&rest, "backup", &failed, Some("error"))?;
    let shown = rest.shown(&format!("/volume/v3/backups/{failed}"))?;
    let reason = shown["backup"]["fail_reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("the bucket cannot be reached") && !reason.contains("127.0.0.1"), "{shown}");
    until(&rest, "volume", &volume, Some("available"))
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
    within(60, || {
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
    within(60, || {
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
        within(60, || {
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
