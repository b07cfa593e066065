//! Where volumes, their backups and their images lie: several backends of one host, buckets, and disks that are given up and
//! taken over.

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use storage::backend::Backend as _;
use storage::file::FileBackend;

use super::{made, until};
use crate::harness::{Cloud, Need, S3Server, isolate, trial};

/// The tests.
pub(super) fn trials() -> Vec<Trial> {
    vec![
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
