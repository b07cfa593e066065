//! Limits of disks on the real VMM: the tiny guest writes sector after sector, and what its console tells of within any
//! time is no more than burst and rate allow. Nothing depends on how fast anything is: whatever is late only
//! makes the time longer in which it was allowed.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use base64::Engine as _;
use libtest_mimic::Trial;
use serde_json::{Value, json};

use crate::harness::{Cloud, KVM_CLOUD, Rest, isolate, trial, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("limits::guest_writes_no_more_than_type_and_flavor_allow", KVM_CLOUD, guest_is_limited),
        trial("limits::what_waits_goes_on_when_limits_change", KVM_CLOUD, limits_change),
    ]
}

/// Sectors written to a disk with limits, and to one without.
const LIMITED: usize = 12;
const FREE: usize = 200;
/// What both limits come to, in sectors a second.
const RATE: f64 = 2.0;
/// The largest of their bursts, in sectors.
const BURST: f64 = 2.0;
/// Writes may be done before their lines are on the console, which the guest sends while it waits for the next: those
/// of a burst, that of the last wait.
const UNTOLD: f64 = BURST + 1.0;

/// How many writes to each disk the console told of, somewhere between two times.
struct Seen {
    before: Instant,
    after: Instant,
    writes: [usize; 3],
}

impl Seen {
    /// Most that a limited disk may have moved since `earlier`.
    fn allowed_since(&self, earlier: &Self) -> f64 {
        BURST + RATE * (self.after - earlier.before).as_secs_f64()
    }
}

fn made(rest: &Rest, path: &str, kind: &str, fields: Value) -> Result<String> {
    let body = rest.made(path, &json!({ kind: fields }))?;
    Ok(body[kind]["id"].as_str().with_context(|| format!("no id: {body}"))?.to_owned())
}

/// A volume that is there.
fn volume(rest: &Rest, fields: Value) -> Result<String> {
    let id = made(rest, "/volume/v3/volumes", "volume", fields)?;
    within(60, || {
        let shown = rest.shown(&format!("/volume/v3/volumes/{id}"))?;
        ensure!(shown["volume"]["status"] == "available", "{shown}");
        Ok(())
    })?;
    Ok(id)
}

/// A type whose volumes the hypervisor limits, and the id of the specification that says how.
fn limited_type(
    rest: &Rest,
    name: &str,
    (limit, value): (&str, &str),
    burst: &str,
) -> Result<(String, String)> {
    let kind = made(rest, "/volume/v3/types", "volume_type", json!({"name": name}))?;
    let mut specs = json!({"name": name, "consumer": "front-end", limit: value});
    if !burst.is_empty() {
        specs[format!("{limit}_max")] = burst.into();
    }
    let qos = made(rest, "/volume/v3/qos-specs", "qos_specs", specs)?;
    let (code, body) = rest.get(&format!("/volume/v3/qos-specs/{qos}/associate?vol_type_id={kind}"))?;
    ensure!(code == 202, "associate: {code} {body}");
    Ok((kind, qos))
}

/// A flavor whose root disk takes two sectors a second.
fn limited_flavor(rest: &Rest) -> Result<String> {
    let size = json!({"name": "slow", "ram": 64, "vcpus": 1, "disk": 1});
    let flavor = made(rest, "/compute/v2.1/flavors", "flavor", size)?;
    let specs = json!({"quota:disk_write_bytes_sec": "1024", "quota:disk_write_bytes_sec_max": "1024"});
    rest.made(&format!("/compute/v2.1/flavors/{flavor}/os-extra_specs"), &json!({"extra_specs": specs}))?;
    Ok(flavor)
}

fn guest_is_limited() -> Result<()> {
    isolate()?;
    let cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    // A write a second for each GiB.
    let (kind, _) = limited_type(&rest, "slow", ("write_iops_sec_per_gb", "1"), "")?;
    let flavor = limited_flavor(&rest)?;
    let slow = volume(&rest, json!({"size": 2, "volume_type": kind}))?;
    let free = volume(&rest, json!({"size": 1}))?;
    let connect = json!({"os-initialize_connection": {"connector": {"host": "elsewhere"}}});
    for (id, specs) in [(&slow, json!({"write_iops_sec": 2})), (&free, Value::Null)] {
        let shown = rest.made(&format!("/volume/v3/volumes/{id}/action"), &connect)?;
        ensure!(shown["connection_info"]["data"]["qos_specs"] == specs, "{shown}");
    }

    let server = server(&cloud, &rest, &flavor, (&[&slow, &free], &writes()))?;
    let seen = watch(&cloud, &rest, &server)?;
    for (index, later) in seen.iter().enumerate() {
        for earlier in &seen[..index] {
            let allowed = later.allowed_since(earlier) + UNTOLD;
            for disk in [0, 1] {
                let moved = later.writes[disk] - earlier.writes[disk];
                ensure!(
                    moved as f64 <= allowed,
                    "disk {disk} moved {moved} sectors where {allowed} were allowed"
                );
            }
        }
    }
    let (first, last) = (&seen[0], seen.last().context("nothing was seen")?);
    let free = seen.iter().find(|seen| seen.writes[2] == FREE).unwrap_or(last);
    let allowed = free.allowed_since(first);
    ensure!(
        FREE as f64 > allowed,
        "the disk without limits moved no more than the {allowed} of one with them"
    );
    println!(
        "limited disks took {:.1} s for {LIMITED} sectors each",
        (last.after - free.before).as_secs_f64()
    );
    Ok(())
}

/// Who waits for a limit waits for minutes here, unless that changes: each disk takes one sector, and the other one after the limit
/// of before has gone.
fn limits_change() -> Result<()> {
    isolate()?;
    let cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let (slow, slow_qos) = limited_type(&rest, "slow", ("write_bytes_sec", "1"), "512")?;
    let (sized, _) = limited_type(&rest, "sized", ("write_bytes_sec_per_gb", "1"), "")?;
    let volume_of = |kind: &str| volume(&rest, json!({"size": 1, "volume_type": kind}));
    let volumes = [volume_of(&slow)?, volume_of(&sized)?, volume_of(&slow)?];

    let mut user_data = "#wisp\n".to_owned();
    (1..=3).for_each(|disk| user_data.push_str(&format!("disk-write {disk} 0 a\ndisk-write {disk} 8 b\n")));
    let server = server(&cloud, &rest, "42", (&volumes.each_ref().map(String::as_str), &user_data))?;
    let wrote = |disk: usize, sector: usize| {
        cloud.wait_console(&rest, &server, &format!("command: disk-write {disk} {sector} ok"))
    };
    let waits = |disk: usize| -> Result<()> {
        let console = wrote(disk, 0)?;
        ensure!(!console.contains(&format!("disk-write {disk} 8 ok")), "it did not wait: {console}");
        Ok(())
    };
    let act = |volume: &str, action: Value| -> Result<()> {
        let path = format!("/volume/v3/volumes/{volume}/action");
        let (code, body) = rest.post_in("volume 3.42", &path, &action)?;
        ensure!(code == 202, "{action}: {code} {body}");
        Ok(())
    };
    waits(1)?;
    act(&volumes[0], json!({"os-retype": {"new_type": sized, "migration_policy": "never"}}))?;
    wrote(1, 8)?;
    waits(2)?;
    act(&volumes[1], json!({"os-extend": {"new_size": 2}}))?;
    wrote(2, 8)?;
    waits(3)?;
    let specs = json!({"qos_specs": {"write_bytes_sec": "2"}});
    let code = rest.put(&format!("/volume/v3/qos-specs/{slow_qos}"), &specs)?;
    ensure!(code == 200, "change the specs: {code}");
    wrote(3, 8)?;
    Ok(())
}

/// The user data by which a guest writes to its disks: to the one without limits first.
fn writes() -> String {
    let mut user_data = "#wisp\n".to_owned();
    for (disk, sectors) in [(2, FREE), (1, LIMITED), (0, LIMITED)] {
        // Behind the kernel, which is at the beginning of the root disk.
        (0..sectors)
            .for_each(|index| user_data.push_str(&format!("disk-write {disk} {} x\n", 1_000_000 + index)));
    }
    user_data
}

/// A server with these volumes that does what its user data says.
fn server(cloud: &Cloud, rest: &Rest, flavor: &str, (volumes, user_data): (&[&str], &str)) -> Result<String> {
    let images = rest.shown("/image/v2/images?name=tiny")?;
    let image = &images["images"][0]["id"];
    let mut disks = vec![json!({
        "uuid": image, "boot_index": 0, "source_type": "image", "destination_type": "local",
    })];
    disks.extend(volumes.iter().map(
        |id| json!({"uuid": id, "boot_index": -1, "source_type": "volume", "destination_type": "volume"}),
    ));
    let server = json!({
        "name": "slow", "imageRef": image, "flavorRef": flavor, "networks": [{"uuid": cloud.public_network(rest)?}],
        "user_data": base64::engine::general_purpose::STANDARD.encode(user_data), "block_device_mapping_v2": disks,
    });
    made(rest, "/compute/v2.1/servers", "server", server)
}

/// Looks at the console until all is written; the first look is before the guest has begun.
fn watch(cloud: &Cloud, rest: &Rest, server: &str) -> Result<Vec<Seen>> {
    let mut seen = vec![];
    within(180, || {
        let before = Instant::now();
        let console = cloud.console(rest, server).unwrap_or_default();
        let writes = [0, 1, 2].map(|disk| {
            let (begin, end) = (format!("command: disk-write {disk} "), " ok");
            console.lines().filter(|line| line.starts_with(&begin) && line.contains(end)).count()
        });
        seen.push(Seen { before, after: Instant::now(), writes });
        ensure!(writes == [LIMITED, LIMITED, FREE], "{writes:?} sectors were written:\n{console}");
        Ok(())
    })?;
    Ok(seen)
}
