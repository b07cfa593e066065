//! A container image in a cloud in the lab: an OCI archive of real layers, booted with the slim kernel.

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use tar::{Builder, EntryType, Header};

use super::linux::busybox;
use crate::harness::{Cloud, Need, NewServer, Rest, isolate, slim_kernel, trial, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![trial(
        "lab::container::image_runs_its_command_and_powers_off_with_it",
        &[Need::Root, Need::Tun, Need::Lab, Need::SlimKernel],
        image_runs_its_command_and_powers_off_with_it,
    )]
}

/// Seconds a guest may take: the machine is emulated twice over, and may have much else to do.
const GUEST_SECONDS_MAX: u64 = 600;

/// What the image runs: says what it found; told to `wait`, it ends when it is asked to.
const APP: &str = "#!/bin/sh\n\
    echo \"app: $GREETING as $(id -u):$(id -g) in $(pwd)\"\n\
    echo \"app: on $(hostname) at $(ip -4 -o address show eth0)\"\n\
    echo \"app: names by $(grep -c nameserver /etc/resolv.conf)\"\n\
    [ -e /secret ] || echo 'app: no secret'\n\
    echo \"app: root of $(df -m / | tail -n 1)\"\n\
    [ \"$1\" = wait ] || exit 7\n\
    trap 'echo app: asked; exit 3' QUIT\n\
    while :; do sleep 1; done\n";

fn image_runs_its_command_and_powers_off_with_it() -> Result<()> {
    let files = tempfile::tempdir()?;
    let kernel = std::fs::read(slim_kernel(files.path())?)?;
    let busybox = std::fs::read(busybox()?)?;
    // From now on Debian's packages cannot be reached.
    isolate()?;
    let cloud = Cloud::start_in_lab(1024)?;
    let rest = cloud.rest()?;
    let kernel =
        image(&rest, &json!({"name": "kernel", "disk_format": "aki", "container_format": "aki"}), &kernel)?;
    let described = |name: &str| json!({"name": name, "disk_format": "raw", "container_format": "docker"});
    let once = archive(files.path(), &busybox, "once")?;

    // Without a kernel it is refused, with the way to one.
    let bare = image(&rest, &described("bare"), &once)?;
    let network = cloud.public_network(&rest)?;
    let flavor = json!({"flavor": {"name": "box", "ram": 128, "vcpus": 1, "disk": 1}});
    let flavor = rest.made("/compute/v2.1/flavors", &flavor)?["flavor"]["id"].clone();
    let wish = json!({"name": "x", "imageRef": bare, "flavorRef": flavor, "networks": [{"uuid": network}]});
    let (code, said) = rest.post("/compute/v2.1/servers", &json!({"server": wish}))?;
    ensure!(code == 400 && said.to_string().contains("wisp guest kernel"), "{code} {said}");
    // What is no archive is refused at once.
    let broken = rest.made("/image/v2/images", &described("broken"))?;
    let broken = broken["id"].as_str().context("an id")?.to_owned();
    let code = rest.put_data(&format!("/image/v2/images/{broken}/file"), &once[..once.len() / 2])?;
    ensure!(code == 400, "half an archive: {code}");

    let boot = |name: &str, archive: &[u8]| -> Result<String> {
        let mut described = described(name);
        described["kernel_id"] = json!(kernel);
        let image = image(&rest, &described, archive)?;
        let new = NewServer { name, image: &image, flavor: "box", network: &network, user_data: "" };
        cloud.server(&rest, &new)
    };
    let first = boot("first", &once)?;
    off(&cloud, &rest, &first)?;
    let said = cloud.console(&rest, &first)?;
    let address = cloud.address(&rest, &first)?;
    let at = format!("app: on first at 2: eth0    inet {address}/");
    let all = [
        "app: hello from the image as 33:34 in /srv",
        &at,
        "app: no secret",
        "wisp: /app ended with 7",
        "reboot: Power down",
    ];
    for wanted in all {
        ensure!(said.contains(wanted), "no `{wanted}` in:\n{said}");
    }
    // The root has grown from its 128 MiB to the flavor's disk.
    let root = said.lines().find_map(|line| line.split_once("app: root of ")).context("no root")?.1;
    let size: u32 = root.split_whitespace().nth(1).context("no size")?.parse()?;
    ensure!(size > 900, "the root has {size} MiB:\n{said}");

    let second = boot("second", &archive(files.path(), &busybox, "wait")?)?;
    within(GUEST_SECONDS_MAX, || {
        let said = cloud.console(&rest, &second)?;
        ensure!(said.contains("app: root of"), "it has not begun:\n{said}");
        Ok(())
    })?;
    let (code, said) =
        rest.post(&format!("/compute/v2.1/servers/{second}/action"), &json!({"os-stop": null}))?;
    ensure!(code == 202, "{code} {said}");
    off(&cloud, &rest, &second)?;
    let said = cloud.console(&rest, &second)?;
    for wanted in ["wisp: the machine is asked to end", "app: asked", "wisp: /app ended with 3"] {
        ensure!(said.contains(wanted), "no `{wanted}` in:\n{said}");
    }
    Ok(())
}

/// Waits until a server is off.
fn off(cloud: &Cloud, rest: &Rest, server: &str) -> Result<()> {
    within(GUEST_SECONDS_MAX, || {
        let shown = rest.shown(&format!("/compute/v2.1/servers/{server}"))?;
        let server = &shown["server"];
        ensure!(server["status"] == "SHUTOFF", "it is {}: {}", server["status"], server["fault"]);
        Ok(())
    })
    .with_context(|| cloud.console(rest, server).unwrap_or_default())
}

fn image(rest: &Rest, described: &Value, data: &[u8]) -> Result<String> {
    let made = rest.made("/image/v2/images", described)?;
    let id = made["id"].as_str().context("an id")?.to_owned();
    let status = rest.put_data(&format!("/image/v2/images/{id}/file"), data)?;
    ensure!(status == 204, "upload: {status}");
    Ok(id)
}

/// An OCI image layout: busybox, a user, and the program in one layer; a whiteout in the next, which gzip packs.
fn archive(directory: &Path, busybox: &[u8], word: &str) -> Result<Vec<u8>> {
    let links = ["sh", "id", "pwd", "hostname", "ip", "grep", "df", "tail", "sleep"];
    let mut base = Builder::new(Vec::new());
    put(&mut base, "bin/busybox", 0o755, busybox)?;
    for link in links {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::Symlink);
        header.set_size(0);
        base.append_link(&mut header, format!("bin/{link}"), "busybox")?;
    }
    put(&mut base, "app", 0o755, APP.as_bytes())?;
    put(&mut base, "etc/passwd", 0o644, b"root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv:/bin/sh\n")?;
    put(&mut base, "secret", 0o644, b"of the layer below")?;
    let base = base.into_inner()?;
    let mut above = Builder::new(Vec::new());
    put(&mut above, ".wh.secret", 0o644, b"")?;
    let above = above.into_inner()?;

    let mut archive = Builder::new(Vec::new());
    let mut blob = |bytes: &[u8], kind: &str| -> Result<Value> {
        let digest = sha256(directory, bytes)?;
        put(&mut archive, &format!("blobs/sha256/{digest}"), 0o644, bytes)?;
        let media_type = format!("application/vnd.oci.image.{kind}");
        Ok(json!({"mediaType": media_type, "digest": format!("sha256:{digest}"), "size": bytes.len()}))
    };
    let diff_ids = [&base, &above].map(|layer| sha256(directory, layer));
    let diff_ids =
        diff_ids.into_iter().map(|id| Ok(format!("sha256:{}", id?))).collect::<Result<Vec<_>>>()?;
    let configuration = json!({
        "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids},
        "config": {
            "Entrypoint": ["/app"], "Cmd": [word], "Env": ["PATH=/bin", "GREETING=hello from the image"],
            "WorkingDir": "/srv", "User": "web", "StopSignal": "SIGQUIT",
        },
    });
    let config = blob(configuration.to_string().as_bytes(), "config.v1+json")?;
    let layers = [blob(&base, "layer.v1.tar")?, blob(&gzip(directory, &above)?, "layer.v1.tar+gzip")?];
    let manifest = json!({"schemaVersion": 2, "config": config, "layers": layers});
    let manifest = blob(manifest.to_string().as_bytes(), "manifest.v1+json")?;
    put(&mut archive, "oci-layout", 0o644, br#"{"imageLayoutVersion":"1.0.0"}"#)?;
    let index = json!({"schemaVersion": 2, "manifests": [manifest]});
    put(&mut archive, "index.json", 0o644, index.to_string().as_bytes())?;
    Ok(archive.into_inner()?)
}

fn put(tar: &mut Builder<Vec<u8>>, name: &str, mode: u32, content: &[u8]) -> Result<()> {
    let mut header = Header::new_gnu();
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    Ok(tar.append_data(&mut header, name, content)?)
}

/// By the tool, so that our own digest is not checked against itself.
fn sha256(directory: &Path, bytes: &[u8]) -> Result<String> {
    let said = tool(directory, bytes, "sha256sum")?;
    let said = String::from_utf8(said)?;
    Ok(said.split_whitespace().next().context("no digest")?.to_owned())
}

fn gzip(directory: &Path, bytes: &[u8]) -> Result<Vec<u8>> {
    tool(directory, bytes, "gzip")
}

/// What a tool makes of these bytes.
fn tool(directory: &Path, bytes: &[u8], name: &str) -> Result<Vec<u8>> {
    let file = directory.join("bytes");
    std::fs::write(&file, bytes)?;
    let output = Command::new(name)
        .stdin(std::fs::File::open(&file)?)
        .output()
        .with_context(|| format!("run {name}"))?;
    ensure!(output.status.success(), "{name}: {}", output.status);
    Ok(output.stdout)
}
