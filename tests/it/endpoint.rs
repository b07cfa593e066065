//! What a guest without a cloud is answered on its taps: an address and metadata, given anew where it goes on.

use std::io::{BufRead as _, BufReader};
use std::process::Stdio;
use std::sync::mpsc::{Receiver, channel};

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::Trial;

use crate::booted::{Files, Guest, PATIENCE, booting, refused, vmm};
use crate::harness::{Need, ip, isolate, trial};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![trial(
        "endpoint::guest_of_a_command_has_address_and_metadata_and_others_where_it_goes_on",
        &[Need::Root, Need::Kvm, Need::Tun],
        guest_has_address_and_metadata,
    )]
}

/// A guest whose console is read line by line.
struct Heard {
    _guest: Guest,
    lines: Receiver<String>,
}

impl Heard {
    fn boot(arguments: &[&str]) -> Result<Self> {
        let mut guest = Guest::start(booting(arguments).stdout(Stdio::piped()))?;
        let console = BufReader::new(guest.0.stdout.take().context("the console")?);
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            console.lines().map_while(Result::ok).try_for_each(|line| sender.send(line))
        });
        Ok(Self { _guest: guest, lines })
    }

    /// The first line from here on that begins so.
    fn line(&self, beginning: &str) -> Result<String> {
        let mut heard = Vec::new();
        while let Ok(line) = self.lines.recv_timeout(PATIENCE) {
            if line.starts_with(beginning) {
                return Ok(line);
            }
            heard.push(line);
        }
        bail!("it never says {beginning:?}: {}", heard.join("\n"))
    }
}

/// Metadata in OpenStack's form, of which the guest tells.
fn write_metadata(directory: &str, uuid: &str) -> Result<()> {
    let latest = format!("{directory}/openstack/latest");
    std::fs::create_dir_all(&latest)?;
    let text = format!(r#"{{"uuid": "{uuid}", "hostname": "web", "name": "web"}}"#);
    Ok(std::fs::write(format!("{latest}/meta_data.json"), text)?)
}

fn guest_has_address_and_metadata() -> Result<()> {
    isolate()?;
    ip("link add b0 type bridge")?;
    ip("addr add 10.0.0.1/24 dev b0")?;
    for tap in ["t0", "t1", "t2"] {
        ip(&format!("tuntap add mode tap vnet_hdr {tap}"))?;
        ip(&format!("link set {tap} master b0 up"))?;
    }
    ip("link set b0 up")?;
    let files = Files::new()?;
    let path = |name: &str| files.path(name);
    let (kernel, control, snapshot) = (path("tiny.elf"), path("control"), path("snapshot"));
    let uuids = ["1", "2", "3"].map(|last| format!("0b2f1f0e-1111-4222-8333-44445555666{last}"));
    let metadata = ["first", "second", "third"].map(path);
    for (directory, uuid) in metadata.iter().zip(&uuids) {
        write_metadata(directory, uuid)?;
    }
    for (words, why) in [
        (["--tap", "t0,gateway=10.0.0.1", "--metadata", &metadata[0]], "say `address=A/N` too"),
        (["--tap", "t0,address=10.0.0.5", "--metadata", &metadata[0]], "as 10.0.0.5/24"),
        (["--tap", "t0,address=10.0.0.5/24", "--metadata", &path("none")], "read the metadata in"),
    ] {
        let said = refused(&[&["boot", "--kernel", &kernel][..], &words].concat())?;
        ensure!(said.contains(why), "{said}");
    }

    let tap = "t0,address=10.0.0.5/24,gateway=10.0.0.1,hostname=web,dns=10.0.0.2";
    let boot = ["--kernel", &kernel, "--mem", "64", "--transport", "pci", "--control", &control];
    let first = Heard::boot(&[&boot[..], &["--tap", tap, "--metadata", &metadata[0]]].concat())?;
    let address = first.line("net: address")?;
    ensure!(address == "net: address 10.0.0.5/24 gateway 10.0.0.1 mtu 1500", "{address}");
    ensure!(first.line("metadata: uuid")?.ends_with(&uuids[0]), "it is told another id");

    // What comes while it runs is answered, too.
    let tap = "t1,address=10.1.0.5/24,mac=02:00:00:00:00:07";
    vmm(&["attach-nic", &control, tap, "--metadata", &metadata[1]])?;
    let address = first.line("net1: address")?;
    ensure!(address == "net1: address 10.1.0.5/24 gateway none mtu 1500", "{address}");
    vmm(&["detach", &control, "02:00:00:00:00:07"])?;

    // Where it goes on it is another: its address, its id and all that it is told.
    vmm(&["snapshot", &control, &snapshot])?;
    let tap = "t2,address=10.0.0.6/24,gateway=10.0.0.1,mac=02:00:00:00:00:09";
    let second = Heard::boot(&["--restore", &snapshot, "--tap", tap, "--metadata", &metadata[2]])?;
    let address = second.line("net: address")?;
    ensure!(address == "net: address 10.0.0.6/24 gateway 10.0.0.1 mtu 1500", "{address}");
    ensure!(second.line("metadata: uuid")?.ends_with(&uuids[2]), "it is told the id of the one before");
    Ok(())
}
