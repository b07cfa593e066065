//! Images on real parts: a qcow2 image that boots, one that must not, and stores on a directory and on a real server of
//! S3.

use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;
use storage::image::{ImageError, ImageFiles, Sealed};
use storage::store::{ImageStore, S3Settings, S3Store};

use crate::booted::export;
use crate::harness::{Cloud, KVM_CLOUD, Need, NewServer, S3Server, isolate, trial};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    let needs: &'static [Need] = &[Need::Root, Need::Kvm, Need::Tun, Need::QemuImg];
    debug_assert!(needs.starts_with(KVM_CLOUD));
    vec![
        trial("images::qcow2_of_the_tiny_guest_boots", needs, qcow2_of_the_tiny_guest_boots),
        trial("images::directory_is_a_store", &[], directory_is_a_store),
        trial("images::bucket_is_a_store", &[Need::Moto], bucket_is_a_store),
    ]
}

fn qcow2_of_the_tiny_guest_boots() -> Result<()> {
    isolate()?;
    let cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let files = tempfile::tempdir()?;
    let (raw, qcow2) = (files.path().join("tiny"), files.path().join("tiny.qcow2"));
    export(&raw)?;
    let convert = |options: &[&str]| -> Result<Vec<u8>> {
        let made = Command::new("qemu-img")
            .args(["convert", "-f", "raw", "-O", "qcow2", "-c"])
            .args(options)
            .args([&raw, &qcow2])
            .status()?;
        ensure!(made.success(), "qemu-img: {made}");
        Ok(std::fs::read(&qcow2)?)
    };
    let described = |name: &str| json!({"name": name, "disk_format": "qcow2", "container_format": "bare"});
    let image = rest.made("/image/v2/images", &described("tiny-qcow2"))?["id"].clone();
    let image = image.as_str().context("no id")?;
    ensure!(rest.put_data(&format!("/image/v2/images/{image}/file"), &convert(&[])?)? == 204, "upload");
    let shown = rest.shown(&format!("/image/v2/images/{image}"))?;
    ensure!(shown["virtual_size"].as_u64() >= Some(std::fs::metadata(&raw)?.len()), "{shown}");
    let network = cloud.network(&rest, "net", "10.3.0.0/24")?;
    let new = NewServer { name: "q", image, flavor: "m1.tiny", network: &network, user_data: "" };
    let server = cloud.server(&rest, &new)?;
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    cloud.wait_console(&rest, &server, "WISP-GUEST")?;
    // An image over another file is refused when it comes, and nothing of it is left.
    let over = rest.made("/image/v2/images", &described("over"))?["id"].clone();
    let over = over.as_str().context("no id")?;
    let made = Command::new("qemu-img")
        .args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b", "/etc/passwd"])
        .arg(&qcow2)
        .arg("1M")
        .status()?;
    ensure!(made.success(), "qemu-img: {made}");
    let refused = rest.put_data(&format!("/image/v2/images/{over}/file"), &std::fs::read(&qcow2)?)?;
    ensure!(refused == 400, "a backing file: {refused}");
    let shown = rest.shown(&format!("/image/v2/images/{over}"))?;
    ensure!(shown["status"] == "queued", "{shown}");
    // The disk outlives its image.
    ensure!(rest.delete(&format!("/image/v2/images/{image}"))? == 204, "delete the image");
    cloud.wait_console(&rest, &server, "WISP-GUEST")?;
    rest.delete(&format!("/compute/v2.1/servers/{server}"))?;
    cloud.wait_gone(&rest, &server)
}

fn directory_is_a_store() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let files = ImageFiles::open(directory.path())?;
    runtime()?.block_on(conforms(&files, &files))?;
    ensure!(std::fs::read_dir(directory.path())?.count() == 0, "something is left");
    Ok(())
}

fn bucket_is_a_store() -> Result<()> {
    let server = S3Server::start("images")?;
    let settings = S3Settings {
        endpoint: server.endpoint.clone(),
        bucket: "images".into(),
        prefix: "cloud-1".into(),
        region: "us-east-1".into(),
        access_key: "key".into(),
        secret_key: "secret".to_owned().into(),
    };
    let directory = tempfile::tempdir()?;
    let files = ImageFiles::open(directory.path())?;
    let store = S3Store::new(&settings)?;
    runtime()?.block_on(conforms(&store, &files))?;
    // Who may not, is told; nothing hangs.
    let closed = S3Settings { endpoint: "http://127.0.0.1:1".into(), ..settings };
    let closed = S3Store::new(&closed)?;
    let refused = runtime()?.block_on(async {
        tokio::time::timeout(Duration::from_secs(60), closed.list()).await.map(|listed| listed.is_err())
    });
    ensure!(refused == Ok(true), "a service that is not there");
    Ok(())
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().context("a runtime")
}

fn sealed(files: &ImageFiles, id: &str, content: Vec<u8>) -> Result<Sealed> {
    let mut upload = files.begin(id, 1 << 30)?;
    upload.write(content.into())?;
    Ok(upload.seal()?)
}

async fn read(store: &dyn ImageStore, name: &str, range: std::ops::Range<u64>) -> Result<Vec<u8>> {
    use futures_util::TryStreamExt as _;
    let pieces: Vec<bytes::Bytes> = store.read(name, range).await?.try_collect().await?;
    Ok(pieces.concat())
}

/// What every store must do: put twice, read whole and in part, list, delete twice. Data is sealed in `spool`.
async fn conforms(store: &dyn ImageStore, spool: &ImageFiles) -> Result<()> {
    let small = sealed(spool, "u1", b"0123456789".to_vec())?;
    // Longer than one part of an upload to a service.
    let content: Vec<u8> = (0..9_000_000_u32).map(|number| (number % 251) as u8).collect();
    let large = sealed(spool, "u2", content.clone())?;
    let empty = sealed(spool, "u3", Vec::new())?;
    for data in [&small, &large, &empty] {
        let name = data.digest().name();
        store.put(name, data).await?;
        store.put(name, data).await?;
    }
    ensure!(read(store, small.digest().name(), 0..10).await? == b"0123456789", "whole");
    ensure!(read(store, small.digest().name(), 3..5).await? == b"34", "a part");
    ensure!(read(store, empty.digest().name(), 0..0).await?.is_empty(), "nothing");
    ensure!(read(store, large.digest().name(), 0..9_000_000).await? == content, "large");
    let across = read(store, large.digest().name(), 8_388_600..8_388_700).await?;
    ensure!(across == content[8_388_600..8_388_700], "across parts");
    let mut names: Vec<String> =
        [small, large, empty].iter().map(|data| data.digest().name().to_owned()).collect();
    names.sort();
    let mut listed = store.list().await?;
    // Sealed data of the same directory has no name of its own.
    listed.sort();
    ensure!(listed == names, "{listed:?}");
    for name in &names {
        store.delete(name).await?;
        store.delete(name).await?;
        let gone = store.read(name, 0..1).await.err();
        ensure!(matches!(gone, Some(ImageError::Missing { .. })), "{gone:?}");
    }
    ensure!(store.list().await?.is_empty(), "something is left");
    Ok(())
}
