//! What images cost: data in and out beside what `cp` moves on the same disk, with the memory it takes; a page of a long
//! list; a root disk of a large image.
//!
//! Runs in the directory that `TMPDIR` names, so give it one on the disk in question.

mod measure;

#[path = "../tests/it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the system tests use the rest")]
mod harness;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, ensure};
use api::context::AppState;
use api::router::router;
use control::service::quota::Resource;
use control::store::RedbStore;
use control::{Control, Settings};
use serde_json::json;
use storage::image::ImageFiles;
use storage::root_disk::create_root_disk;
use tower::ServiceExt as _;

use crate::harness::Cloud;
use crate::measure::{Samples, line};

/// The image that is moved, in MiB.
const MOVED_MIB: u64 = 512;
/// Images in the long list.
const LISTED: u32 = 10_000;
/// Pages of it that are asked for.
const PAGES: u32 = 40;
/// The image that a root disk is made of.
const ROOT_BYTES: u64 = 2 << 30;
const ROOTS: u32 = 20;

fn main() -> Result<()> {
    // Only `cargo bench` says so; `cargo test --all-targets` is not after numbers.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("skipped: run by cargo bench");
        return Ok(());
    }
    moved()?;
    tokio::runtime::Runtime::new()?.block_on(listed())?;
    root_disks()
}

fn mib_per_second(started: Instant) -> f64 {
    MOVED_MIB as f64 / started.elapsed().as_secs_f64()
}

/// Up and down through a cloud's API.
fn moved() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let (source, copy) = (directory.path().join("source"), directory.path().join("copy"));
    let mut file = File::create(&source)?;
    for number in 0..MOVED_MIB * 16 {
        file.write_all(&number.to_le_bytes().repeat(8192))?;
    }
    file.sync_all()?;
    let mut copied = Samples::default();
    for _ in 0..3 {
        let started = Instant::now();
        std::fs::copy(&source, &copy)?;
        File::open(&copy)?.sync_all()?;
        copied.push(mib_per_second(started));
        std::fs::remove_file(&copy)?;
    }
    let baseline = copied.quantile(0.5);
    let mut stored = Samples::default();
    let store = ImageFiles::open(&directory.path().join("store"))?;
    for _ in 0..3 {
        let started = Instant::now();
        let mut file = File::open(&source)?;
        let mut upload = store.begin("moved", u64::MAX)?;
        for _ in 0..MOVED_MIB {
            let mut piece = vec![0; 1 << 20];
            file.read_exact(&mut piece)?;
            upload.write(piece.into())?;
        }
        upload.seal()?;
        stored.push(mib_per_second(started));
    }
    let stored = stored.quantile(0.5);
    let cloud = Cloud::start_fake()?;
    let rest = cloud.rest()?;
    let control = control_process(&cloud).context("find the control process")?;
    let before = peak_kib(control)?;
    let [mut up, mut down, mut thrown] = std::array::from_fn(|_| Samples::default());
    for round in 0..3 {
        let body = json!({"name": "moved", "disk_format": "raw", "container_format": "bare"});
        let image = rest.made("/image/v2/images", &body)?["id"].as_str().context("no id")?.to_owned();
        let url = format!("{}/image/v2/images/{image}/file", cloud.url);
        let started = Instant::now();
        let sent = ureq::put(&url)
            .header("x-auth-token", rest.token())
            .header("content-type", "application/octet-stream")
            .send(File::open(&source)?)?;
        ensure!(sent.status() == 204, "upload {round}: {}", sent.status());
        up.push(mib_per_second(started));
        thrown.push(download(&url, rest.token(), None)?);
        down.push(download(&url, rest.token(), Some(&copy))?);
        std::fs::remove_file(&copy)?;
        ensure!(rest.delete(&format!("/image/v2/images/{image}"))? == 204, "delete");
    }
    let grown = peak_kib(control)?.saturating_sub(before) as f64 / 1024.0;
    line("image upload, digests and sync included", "MiB/s", up.quantile(0.5), baseline, "cp and sync");
    line("the same", "MiB/s", up.quantile(0.5), stored, "into the store, no API");
    line("image download, thrown away", "MiB/s", thrown.quantile(0.5), baseline, "cp and sync");
    line("image download into a file, sync included", "MiB/s", down.quantile(0.5), baseline, "cp and sync");
    line("memory that both add to the control process, peak", "MiB", grown, 32.0, "what is allowed");
    Ok(())
}

/// MiB a second of a download, into a file that is synced or into nothing.
fn download(url: &str, token: &str, to: Option<&Path>) -> Result<f64> {
    let started = Instant::now();
    let got = ureq::get(url).header("x-auth-token", token).call()?;
    let mut reader = got.into_body().into_with_config().limit(u64::MAX).reader();
    let mut out = to.map(File::create).transpose()?;
    let mut buffer = vec![0; 1 << 20];
    loop {
        let count = reader.read(&mut buffer)?;
        if count == 0 {
            break;
        }
        if let Some(out) = &mut out {
            out.write_all(&buffer[..count])?;
        }
    }
    if let Some(out) = &mut out {
        out.sync_all()?;
    }
    Ok(mib_per_second(started))
}

/// The process that serves the API: a child of `wisp up` that is told so.
fn control_process(cloud: &Cloud) -> Option<u32> {
    let up = cloud.pid()?.as_raw();
    let children = std::fs::read_to_string(format!("/proc/{up}/task/{up}/children")).ok()?;
    let mut children = children.split_whitespace().filter_map(|pid| pid.parse().ok());
    children.find(|pid: &u32| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line.split(|byte| *byte == 0).nth(1) == Some(b"control")
    })
}

fn peak_kib(pid: u32) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches(" kB").parse()?)
}

/// A page of a long list, through the router: no network, all else.
async fn listed() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let control = cloud(directory.path()).await?;
    let caller = control.bootstrap_caller()?;
    let project = caller.project_id().context("no project")?.to_owned();
    control.quota_set(&caller, &project, &[(Resource::Images, i64::from(LISTED) + 10)]).await?;
    for round in 0..LISTED / 100 {
        let many = (0..100).map(|_| control.image_create(&caller, None, Vec::new()));
        futures_util::future::try_join_all(many).await.with_context(|| format!("round {round}"))?;
    }
    let token = issue(&control).await?;
    let router = router(AppState::new(control));
    let mut pages = Samples::default();
    let mut target = "/image/v2/images?limit=100".to_owned();
    let mut seen = 0;
    for _ in 0..PAGES {
        let request = axum::http::Request::get(&target).header("x-auth-token", &token);
        let started = Instant::now();
        let answer = router.clone().oneshot(request.body(axum::body::Body::empty())?).await?;
        let bytes = axum::body::to_bytes(answer.into_body(), 1 << 24).await?;
        pages.push(started.elapsed().as_secs_f64() * 1e3);
        let body: serde_json::Value = serde_json::from_slice(&bytes)?;
        seen += body["images"].as_array().map_or(0, Vec::len);
        target = format!("/image{}", body["next"].as_str().context("no next page")?);
    }
    ensure!(seen == PAGES as usize * 100, "{seen} images in the pages");
    line("a page of 100 of 10,000 images, p50", "ms", pages.quantile(0.5), 5.0, "what is allowed");
    Ok(())
}

async fn cloud(directory: &Path) -> Result<Arc<Control>> {
    let store = RedbStore::open(&directory.join("store.redb"))?;
    let control = Control::open(Arc::new(store), Settings::new("http://cloud.test", directory)).await?;
    control.bootstrap("password".to_owned().into()).await?;
    Ok(control)
}

async fn issue(control: &Control) -> Result<String> {
    use control::service::auth::{Credential, DomainRef, NamedRef, ScopeWanted};
    let user = NamedRef::Name("admin".into(), DomainRef::Id("default".into()));
    let credentials = vec![Credential::Password { user, password: "password".to_owned().into() }];
    Ok(control.token_issue(credentials, ScopeWanted::Default).await?.0.to_string())
}

fn root_disks() -> Result<()> {
    let directory = tempfile::tempdir()?;
    let path = directory.path().join("base");
    let base = File::create(&path)?;
    base.set_len(ROOT_BYTES)?;
    (&base).write_all(&[7; 1 << 20])?;
    base.sync_all()?;
    let base = File::open(&path)?;
    let mut made = Samples::default();
    for number in 0..ROOTS {
        let disk = directory.path().join(number.to_string());
        std::fs::create_dir(&disk)?;
        let started = Instant::now();
        create_root_disk(&disk, &base, 20 << 30)?;
        made.push(started.elapsed().as_secs_f64() * 1e3);
    }
    line("root disk of 20 GiB from an image of 2 GiB, p50", "ms", made.quantile(0.5), 5.0, "what is allowed");
    Ok(())
}
