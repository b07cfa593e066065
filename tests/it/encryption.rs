//! Encrypted volumes on the real VMM: a guest boots from one and writes to another, the host's files hold none of it,
//! no key is written down beside it, and another guest reads what the first one wrote.

use std::fs;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::booted::{Files, refused, vmm};
use crate::harness::{Cloud, KVM_CLOUD, Need, NewServer, Rest, isolate, trial, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("encryption::guests_read_in_the_clear_what_the_host_keeps_encrypted", KVM_CLOUD, guests_read),
        trial(
            "encryption::disk_is_in_the_clear_to_a_guest_without_a_cloud_by_its_key_alone",
            &[Need::Kvm],
            clear_by_its_key_alone,
        ),
    ]
}

/// What the guest writes.
const SECRET: &str = "nobody-on-the-host-shall-read-this";
/// What the tiny guest's image has.
const IN_THE_IMAGE: &[u8] = b"WISP-GUEST";
/// How much of a file is looked through: the image and what was written are at the beginning.
const LOOKED_AT_BYTES: usize = 4 << 20;

fn made(rest: &Rest, path: &str, kind: &str, fields: &Value) -> Result<String> {
    let body = rest.made(path, &json!({ kind: fields }))?;
    Ok(body[kind]["id"].as_str().with_context(|| format!("no id: {body}"))?.to_owned())
}

/// A volume that is there.
fn volume(rest: &Rest, fields: &Value) -> Result<String> {
    let id = made(rest, "/volume/v3/volumes", "volume", fields)?;
    until_available(rest, &id)?;
    Ok(id)
}

fn until_available(rest: &Rest, id: &str) -> Result<()> {
    within(60, || {
        let shown = rest.shown(&format!("/volume/v3/volumes/{id}"))?;
        ensure!(shown["volume"]["status"] == "available", "{shown}");
        Ok(())
    })
}

fn files_below(directory: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(directory).with_context(|| directory.display().to_string())? {
        let path = entry?.path();
        if path.is_dir() { files.extend(files_below(&path)?) } else { files.push(path) }
    }
    Ok(files)
}

/// The beginning of all files that a volume has.
fn stored(cloud: &Cloud, volume: &str) -> Result<Vec<u8>> {
    let mut bytes = Vec::new();
    for path in files_below(&cloud.state().join("volumes"))? {
        if path.to_string_lossy().contains(volume) {
            let mut begin = vec![0; LOOKED_AT_BYTES];
            let count = fs::File::open(path)?.read_at(&mut begin, 0)?;
            bytes.extend_from_slice(&begin[..count]);
        }
    }
    ensure!(bytes.iter().any(|byte| *byte != 0), "volume {volume} has nothing");
    Ok(bytes)
}

fn holds(bytes: &[u8], text: &[u8]) -> bool {
    bytes.windows(text.len()).any(|window| window == text)
}

fn act(cloud: &Cloud, rest: &Rest, server: &str, action: &str, status: &str) -> Result<()> {
    rest.made(&format!("/compute/v2.1/servers/{server}/action"), &json!({ action: null }))?;
    cloud.wait_status(rest, server, status).map(drop)
}

/// A server that boots from a volume and has another.
fn boots_from(cloud: &Cloud, rest: &Rest, [root, data]: [&str; 2]) -> Result<String> {
    let flavors = rest.shown("/compute/v2.1/flavors")?;
    let flavors = flavors["flavors"].as_array().context("no list of flavors")?;
    let flavor = flavors.iter().find(|flavor| flavor["name"] == "m1.nano").context("no such flavor")?;
    let user_data = format!("#wisp\ndisk-read 1 8\ndisk-write 1 8 {SECRET}\n");
    let disk = |index: i32, id: &str| json!({"boot_index": index, "source_type": "volume", "uuid": id, "destination_type": "volume"});
    let server = json!({
        "name": "one", "imageRef": "", "flavorRef": flavor["id"], "user_data": STANDARD.encode(user_data),
        "networks": [{"uuid": cloud.public_network(rest)?}],
        "block_device_mapping_v2": [disk(0, root), disk(-1, data)],
    });
    made(rest, "/compute/v2.1/servers", "server", &server)
}

fn guests_read() -> Result<()> {
    isolate()?;
    let mut cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let kind = made(&rest, "/volume/v3/types", "volume_type", &json!({"name": "secret"}))?;
    let spec = json!({"provider": "plain", "cipher": "aes-xts-plain64", "key_size": 512,
        "control_location": "front-end"});
    rest.made(&format!("/volume/v3/types/{kind}/encryption"), &json!({"encryption": spec}))?;
    let images = rest.shown("/image/v2/images?name=tiny")?;
    let image = &images["images"][0]["id"];
    let root = volume(&rest, &json!({"size": 1, "volume_type": kind, "imageRef": image}))?;
    let data = volume(&rest, &json!({"size": 1, "volume_type": kind}))?;
    let clear = volume(&rest, &json!({"size": 1, "imageRef": image}))?;
    ensure!(holds(&stored(&cloud, &clear)?, IN_THE_IMAGE), "this is how the clear would be found");
    shows_its_key_id(&rest, &data, &clear)?;

    let server = boots_from(&cloud, &rest, [&root, &data])?;
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    let console = cloud.wait_console(&rest, &server, "command: disk-write 1 8 ok")?;
    let read = format!("command: disk-read 1 8 ok {SECRET}");
    ensure!(!console.contains(&read), "it is there before it was written: {console}");
    // The agent's own notes are enough to find the guest again, and not to read its disks.
    let spec = fs::read_to_string(cloud.state().join("run").join(&server).join("spec.json"))?;
    ensure!(spec.matches(r#""cipher":"lost""#).count() == 2 && !spec.contains(r#""key":""#), "{spec}");
    cloud.kill_all_but_guests()?;
    cloud.up()?;
    let rest = cloud.rest()?;
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    act(&cloud, &rest, &server, "os-stop", "SHUTOFF")?;
    act(&cloud, &rest, &server, "os-start", "ACTIVE")?;
    cloud.wait_console(&rest, &server, &read)?;
    act(&cloud, &rest, &server, "os-stop", "SHUTOFF")?;
    for (volume, text) in [(&data, SECRET.as_bytes()), (&root, IN_THE_IMAGE)] {
        ensure!(!holds(&stored(&cloud, volume)?, text), "the host has volume {volume} in the clear");
    }

    ensure!(rest.delete(&format!("/compute/v2.1/servers/{server}"))? == 204, "delete");
    cloud.wait_gone(&rest, &server)?;
    until_available(&rest, &data)?;
    reads_elsewhere(&cloud, &rest, &data)
}

/// The API tells that a volume has a key, and which by its id alone.
fn shows_its_key_id(rest: &Rest, encrypted: &str, clear: &str) -> Result<()> {
    let path = format!("/volume/v3/volumes/{encrypted}");
    let shown = rest.shown_in("volume 3.64", &path)?["volume"].clone();
    let told = rest.shown(&format!("{path}/encryption"))?;
    let key = shown["encryption_key_id"].as_str().context("no id of a key")?;
    ensure!(shown["encrypted"] == true && told["encryption_key_id"] == key, "{shown} {told}");
    ensure!(told["cipher"] == "aes-xts-plain64" && told["key_size"] == 512, "{told}");
    ensure!(rest.shown(&format!("{path}/encryption/encryption_key_id"))? == key, "the item");
    ensure!(rest.get(&format!("{path}/encryption/no"))?.0 == 404, "an item that is none");
    let before = rest.shown_in("volume 3.63", &path)?["volume"].clone();
    ensure!(before.get("encryption_key_id").is_none(), "{before}");
    let path = format!("/volume/v3/volumes/{clear}");
    let shown = rest.shown_in("volume 3.64", &path)?["volume"].clone();
    ensure!(shown["encrypted"] == false && shown.get("encryption_key_id").is_none(), "{shown}");
    ensure!(rest.shown(&format!("{path}/encryption"))? == json!({"encryption_key_id": null}), "{shown}");
    Ok(())
}

/// Another server reads what the first one wrote.
fn reads_elsewhere(cloud: &Cloud, rest: &Rest, data: &str) -> Result<()> {
    let network = cloud.public_network(rest)?;
    let user_data = "#wisp\ndisk-read 1 8\n";
    let new = NewServer { name: "two", image: "", flavor: "m1.nano", network: &network, user_data };
    let server = cloud.server(rest, &new)?;
    cloud.wait_status(rest, &server, "ACTIVE")?;
    act(cloud, rest, &server, "os-stop", "SHUTOFF")?;
    let attach = json!({"volumeAttachment": {"volumeId": data}});
    rest.made(&format!("/compute/v2.1/servers/{server}/os-volume_attachments"), &attach)?;
    act(cloud, rest, &server, "os-start", "ACTIVE")?;
    cloud.wait_console(rest, &server, &format!("command: disk-read 1 8 ok {SECRET}")).map(drop)
}

fn clear_by_its_key_alone() -> Result<()> {
    let files = Files::new()?;
    let (disk, kernel) = (files.path("disk"), files.path("tiny.elf"));
    fs::write(&disk, vec![0; 1 << 20])?;
    for (name, bytes) in [("key", 64), ("other", 32), ("short", 31), ("line", 65)] {
        fs::write(files.path(name), (0..bytes).collect::<Vec<u8>>())?;
    }
    let with = |key: &str| format!("{disk},key-file={}", files.path(key));
    for (key, sentence) in
        [("none", "read a disk's key from"), ("short", "has no disk's key"), ("line", "has no disk's key")]
    {
        let said = refused(&["boot", "--kernel", &kernel, "--disk", &with(key)])?;
        ensure!(said.contains(sentence) && said.contains(&files.path(key)) && said.contains("64"), "{said}");
    }
    let said = refused(&["boot", "--kernel", &kernel, "--pmem", &with("key")])?;
    ensure!(said.contains("`key-file=") && said.contains("takes FILE[,ro]"), "memory has no key: {said}");

    let (guest, mut typist) = files.boot(&["--kernel", &kernel, "--mem", "32", "--disk", &with("key")])?;
    ensure!(typist.say(&format!("disk-write 0 5 {SECRET}"))? == "command: disk-write 0 5 ok", "not written");
    let clear = format!("command: disk-read 0 5 ok {SECRET}");
    ensure!(typist.say("disk-read 0 5")? == clear, "it reads something else");
    drop((guest, typist));
    let stored = fs::read(&disk)?;
    ensure!(!holds(&stored, SECRET.as_bytes()), "the host has it in the clear");
    ensure!(stored[5 * 512..6 * 512].iter().filter(|byte| **byte == 0).count() < 100, "that is no noise");
    for (disk, is_clear) in [(disk.clone(), false), (with("other"), false), (with("key"), true)] {
        let (_guest, mut typist) = files.boot(&["--kernel", &kernel, "--mem", "32", "--disk", &disk])?;
        let said = typist.say("disk-read 0 5")?;
        ensure!(
            said.starts_with("command: disk-read 0 5 ok") && (said == clear) == is_clear,
            "{disk}: {said}"
        );
    }
    let (_guest, mut typist) = files.boot(&["--kernel", &kernel, "--mem", "32"])?;
    vmm(&["attach-disk", &files.path("control"), &with("key")])?;
    within(30, || {
        let said = typist.say("disk-read 0 5")?;
        ensure!(said == clear, "of a disk that came later: {said}");
        Ok(())
    })?;
    let (control, plain) = (files.path("control"), files.path("plain"));
    fs::write(&plain, vec![0; 1 << 20])?;
    vmm(&["attach-disk", &control, &plain])?;
    for file in [&disk, &plain] {
        fs::OpenOptions::new().write(true).open(file)?.set_len(2 << 20)?;
    }
    for (file, sentence) in [
        (disk.clone(), "is encrypted: give its key"),
        (format!("{plain},key-file={}", files.path("key")), "is not encrypted: give it without"),
    ] {
        let said = refused(&["resize-disk", &control, &file])?;
        ensure!(said.contains(sentence), "{said}");
    }
    vmm(&["resize-disk", &control, &with("key")])?;
    vmm(&["resize-disk", &control, &plain])?;
    let said = typist.say("disk-read 0 5")?;
    ensure!(said == clear, "of a disk that became larger: {said}");
    Ok(())
}
