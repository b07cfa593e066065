//! Images of servers on the real VMM: what a guest wrote to its disk is in the image that is made while it runs, and
//! another server boots from that and reads it. The guest goes on, whatever is killed meanwhile.

use std::collections::BTreeSet;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use api::demo::ping::Pinger;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Cloud, KVM_CLOUD, NewServer, Rest, isolate, processes, trial, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "server_images::what_a_guest_wrote_is_read_by_another_that_boots_from_its_image",
            KVM_CLOUD,
            guest_writes_and_another_reads,
        ),
        trial(
            "server_images::volumes_of_a_server_that_is_off_become_those_of_another",
            KVM_CLOUD,
            volumes_become_anothers,
        ),
        trial("server_images::wishes_and_guests_outlive_kill_9_at_any_time", KVM_CLOUD, outlive_kill),
    ]
}

/// A sector behind the tiny guest, on the disk of its image.
const SECTOR: u32 = 1500;
/// Bytes of the image, and so of the disks: a server's own flavor would have a GiB digested in a debug build.
const DISK_BYTES: usize = 1 << 20;
const WAIT_SECONDS_MAX: u64 = 120;

/// An image of the tiny guest with room behind it, and a flavor whose disk is its image's.
fn prepare(cloud: &Cloud, rest: &Rest) -> Result<String> {
    let mut bytes = vmm::guest::TINY.to_vec();
    bytes.resize(DISK_BYTES, 0);
    let flavor = json!({"flavor": {"name": "bare", "vcpus": 1, "ram": 64, "disk": 0}});
    rest.made("/compute/v2.1/flavors", &flavor)?;
    cloud.open_default_group(rest)?;
    cloud.image(rest, "roomy", &bytes)
}

fn server(cloud: &Cloud, rest: &Rest, name: &str, image: &str, user_data: &str) -> Result<String> {
    let network = cloud.public_network(rest)?;
    let id = cloud.server(rest, &NewServer { name, image, flavor: "bare", network: &network, user_data })?;
    cloud.wait_status(rest, &id, "ACTIVE")?;
    Ok(id)
}

/// Asks for an image of a server; where it is.
fn image_of(rest: &Rest, server: &str, name: &str) -> Result<String> {
    let path = format!("/compute/v2.1/servers/{server}/action");
    let (code, body) = rest.post(&path, &json!({"createImage": {"name": name, "metadata": {"a": "b"}}}))?;
    ensure!(code == 202, "createImage: {code} {body}");
    let listed = rest.shown(&format!("/image/v2/images?name={name}"))?;
    Ok(listed["images"][0]["id"].as_str().context("no image")?.to_owned())
}

fn until_active(rest: &Rest, image: &str, server: &str) -> Result<Value> {
    within(WAIT_SECONDS_MAX, || {
        let (code, body) = rest.get(&format!("/image/v2/images/{image}"))?;
        ensure!(code == 200 && body["status"] == "active", "the image: {code} {body}");
        let shown = rest.shown(&format!("/compute/v2.1/servers/{server}"))?;
        let task = &shown["server"]["OS-EXT-STS:task_state"];
        ensure!(task.is_null(), "the server is in {task}");
        Ok(body)
    })
}

fn answers(cloud: &Cloud, rest: &Rest, server: &str) -> Result<()> {
    let address = cloud.address(rest, server)?;
    let answered = Pinger::open(address)?.until_answer(Duration::from_secs(30))?;
    answered.with_context(|| format!("{address} does not answer")).map(drop)
}

fn names(directory: &Path) -> Result<BTreeSet<String>> {
    let entries = std::fs::read_dir(directory).with_context(|| directory.display().to_string())?;
    entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned())).collect()
}

/// Nothing on its way out of any host, and in the server's directory what every server has.
fn nothing_left(cloud: &Cloud, server: &str) -> Result<()> {
    for host in names(&cloud.state().join("volumes"))? {
        let outgoing = cloud.state().join("volumes").join(host).join("outgoing");
        within(30, || {
            let left = names(&outgoing)?;
            ensure!(left.is_empty(), "left: {left:?}");
            Ok(())
        })?;
    }
    let disks = names(&cloud.state().join("run").join(server).join("disk"))?;
    ensure!(!disks.contains("root.frozen"), "left: {disks:?}");
    Ok(())
}

fn guest_writes_and_another_reads() -> Result<()> {
    isolate()?;
    let cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let image = prepare(&cloud, &rest)?;
    let writes = format!("#wisp\ndisk-write 0 {SECTOR} kept\n");
    let first = server(&cloud, &rest, "first", &image, &writes)?;
    cloud.wait_console(&rest, &first, &format!("command: disk-write 0 {SECTOR} ok"))?;
    let vmm = processes(&first)?;
    let copy = image_of(&rest, &first, "while-it-runs")?;
    let (code, body) = rest.post(
        &format!("/compute/v2.1/servers/{first}/action"),
        &json!({"createImage": {"name": "too-soon"}}),
    )?;
    ensure!(matches!(code, 202 | 409), "a second one: {code} {body}");
    let shown = until_active(&rest, &copy, &first)?;
    ensure!(shown["size"] == DISK_BYTES, "{shown}");
    for (name, value) in [
        ("image_type", "snapshot"),
        ("instance_uuid", first.as_str()),
        ("base_image_ref", image.as_str()),
        ("visibility", "private"),
        ("a", "b"),
    ] {
        ensure!(shown[name] == value, "{name} is not {value}: {shown}");
    }
    answers(&cloud, &rest, &first)?;
    ensure!(processes(&first)? == vmm, "it is another process");
    nothing_left(&cloud, &first)?;

    let reads = format!("#wisp\ndisk-read 0 {SECTOR}\n");
    let second = server(&cloud, &rest, "second", &copy, &reads)?;
    cloud.wait_console(&rest, &second, &format!("command: disk-read 0 {SECTOR} ok kept"))?;
    let actions = format!("/compute/v2.1/servers/{first}/os-instance-actions");
    let actions = rest.shown(&actions)?;
    let recorded = actions["instanceActions"].as_array().context("no actions")?;
    ensure!(recorded.iter().any(|action| action["action"] == "createImage"), "{actions}");

    rest.made(&format!("/compute/v2.1/servers/{second}/action"), &json!({"os-stop": null}))?;
    cloud.wait_status(&rest, &second, "SHUTOFF")?;
    let again = image_of(&rest, &second, "while-it-is-off")?;
    let shown = until_active(&rest, &again, &second)?;
    ensure!(shown["base_image_ref"] == image.as_str(), "the image at its bottom: {shown}");
    let data = rest.data(&format!("/image/v2/images/{again}/file"), DISK_BYTES)?;
    let at = 512 * usize::try_from(SECTOR)?;
    ensure!(data.len() == DISK_BYTES && &data[at..at + 5] == b"kept\0", "the bytes are not the disk's");
    Ok(())
}

/// A server that boots from a new volume of the image.
fn server_of_volume(cloud: &Cloud, rest: &Rest, name: &str, more: Value) -> Result<String> {
    let flavors = rest.shown("/compute/v2.1/flavors")?;
    let flavors = flavors["flavors"].as_array().context("no list of flavors")?;
    let flavor = flavors.iter().find(|flavor| flavor["name"] == "bare").context("no such flavor")?;
    let mut server = json!({
        "name": name, "flavorRef": flavor["id"], "networks": [{"uuid": cloud.public_network(rest)?}],
    });
    if let (Some(fields), Value::Object(more)) = (server.as_object_mut(), more) {
        fields.extend(more);
    }
    let made = rest.made("/compute/v2.1/servers", &json!({"server": server}))?;
    let id = made["server"]["id"].as_str().context("no id")?.to_owned();
    cloud.wait_status(rest, &id, "ACTIVE")?;
    Ok(id)
}

fn volumes_become_anothers() -> Result<()> {
    use base64::Engine as _;
    isolate()?;
    let cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let image = prepare(&cloud, &rest)?;
    let encoded = |text: String| base64::engine::general_purpose::STANDARD.encode(text);
    let writes = encoded(format!("#wisp\ndisk-write 0 {SECTOR} kept\n"));
    let root = json!([{"boot_index": 0, "source_type": "image", "uuid": image, "volume_size": 1,
        "destination_type": "volume", "delete_on_termination": true}]);
    let more = json!({"imageRef": "", "user_data": writes, "block_device_mapping_v2": root});
    let first = server_of_volume(&cloud, &rest, "first", more)?;
    cloud.wait_console(&rest, &first, &format!("command: disk-write 0 {SECTOR} ok"))?;
    rest.made(&format!("/compute/v2.1/servers/{first}/action"), &json!({"os-stop": null}))?;
    cloud.wait_status(&rest, &first, "SHUTOFF")?;
    let copy = image_of(&rest, &first, "of-volumes")?;
    let shown = until_active(&rest, &copy, &first)?;
    ensure!(shown["size"] == 0 && shown["bdm_v2"] == "True", "{shown}");
    rest.data(&format!("/image/v2/images/{copy}/file"), 0)?;
    within(WAIT_SECONDS_MAX, || {
        let snapshots = rest.shown("/volume/v3/snapshots")?;
        ensure!(snapshots["snapshots"][0]["status"] == "available", "{snapshots}");
        Ok(())
    })?;
    let reads = encoded(format!("#wisp\ndisk-read 0 {SECTOR}\n"));
    let more = json!({"imageRef": copy, "user_data": reads});
    let second = server_of_volume(&cloud, &rest, "second", more)?;
    cloud.wait_console(&rest, &second, &format!("command: disk-read 0 {SECTOR} ok kept"))?;
    Ok(())
}

fn outlive_kill() -> Result<()> {
    isolate()?;
    let mut cloud = Cloud::start()?;
    let mut rest = cloud.rest()?;
    let image = prepare(&cloud, &rest)?;
    let writes = format!("#wisp\ndisk-write 0 {SECTOR} kept\n");
    let server = server(&cloud, &rest, "first", &image, &writes)?;
    cloud.wait_console(&rest, &server, &format!("command: disk-write 0 {SECTOR} ok"))?;
    let vmm = processes(&server)?;
    for delay_ms in [0, 2, 5, 10, 20, 40, 80] {
        let copy = image_of(&rest, &server, &format!("after-{delay_ms}"))?;
        std::thread::sleep(Duration::from_millis(delay_ms));
        cloud.kill_all_but_guests()?;
        cloud.up()?;
        rest = cloud.rest()?;
        until_active(&rest, &copy, &server)?;
        answers(&cloud, &rest, &server)?;
        ensure!(processes(&server)? == vmm, "it is another process");
        let data = rest.data(&format!("/image/v2/images/{copy}/file"), DISK_BYTES)?;
        let at = 512 * usize::try_from(SECTOR)?;
        ensure!(&data[at..at + 5] == b"kept\0", "after {delay_ms} ms: the bytes are not the disk's");
        nothing_left(&cloud, &server)?;
    }
    Ok(())
}
