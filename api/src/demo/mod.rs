//! `wisp demo`: a cloud from nothing, and over its REST API all that a person would do with it, each step a line
//! with its time; at the end the proof that nothing is left.
//!
//! Must never know: anything of the cloud but its command line, its files `clouds.yaml` and its REST API.

mod cloud;
mod guest;
pub mod ping;
mod remains;
mod rest;
mod screen;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow, bail, ensure};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Value, json};

use self::cloud::Cloud;
pub use self::guest::Guest;
use self::ping::Pinger;
use self::remains::Host;
use self::rest::Rest;
use self::screen::{Screen, bytes_style, milliseconds};

/// Between two looks at a server's state.
const POLL: Duration = Duration::from_millis(2);

/// What the demo made, for the steps after.
struct Made {
    guest: Guest,
    /// Where the private key is, for a guest that one can log in to.
    key_file: PathBuf,
    image: String,
    flavor: String,
    key: String,
    network: String,
    subnet: String,
    group: String,
    public: String,
    server: String,
    address: Option<Ipv4Addr>,
}

/// The times that matter, from the moment the request for the server was sent.
struct Times {
    accepted: Duration,
    first_instruction: Option<Duration>,
    answers: Duration,
}

/// Runs the demo.
///
/// # Errors
/// The first step that does not hold; whatever was made until then is taken down, unless `keep`.
pub fn run(guest: Guest, keep: bool) -> Result<()> {
    println!("wisp demo: a cloud from nothing, one server, and nothing left behind\n");
    let screen = Screen::new();
    let before = Host::look()?;
    let mut cloud = screen.step("start a cloud", |_| {
        let cloud = Cloud::start()?;
        let detail = format!("{} in {}", cloud.url, cloud.state().display());
        Ok((cloud, detail))
    })?;
    let mut made = Made::new(guest, cloud.state().join("demo-key"));
    let outcome = drive(&screen, &cloud, &mut made);
    match outcome {
        Ok(times) if keep => {
            print_table(&times, screen.elapsed());
            cloud.keep();
            println!("\nThe cloud goes on. Next:\n");
            println!("  export OS_CLIENT_CONFIG_FILE={}/clouds.yaml OS_CLOUD=wisp", cloud.state().display());
            println!("  openstack server list");
            println!("  wisp down --state {}", cloud.state().display());
            Ok(())
        }
        Ok(times) => {
            clean_up(&screen, &cloud, &made)?;
            take_down(&screen, cloud, &before)?;
            print_table(&times, screen.elapsed());
            println!("\nNext: a cloud that stays, and the tools you have:\n");
            println!("  wisp up --state ./cloud");
            println!(
                "  OS_CLIENT_CONFIG_FILE=./cloud/clouds.yaml openstack --os-cloud wisp server create \\"
            );
            println!("      --image tiny --flavor m1.nano --nic net-id=public --wait first");
            Ok(())
        }
        Err(error) => {
            if keep {
                cloud.keep();
                println!("\nThe cloud is kept in {}; `wisp down --state` ends it.", cloud.state().display());
            } else if let Err(second) = take_down(&screen, cloud, &before) {
                println!("taking the cloud down failed too: {second:#}");
            }
            Err(error)
        }
    }
}

/// All steps up to a server that was stopped and started again.
fn drive(screen: &Screen, cloud: &Cloud, made: &mut Made) -> Result<Times> {
    let mut rest = Rest::new(&cloud.url);
    screen.step("token", |_| {
        let token = rest.log_in("admin", cloud.password(), "admin")?;
        let services = token["catalog"].as_array().map_or(0, Vec::len);
        Ok(((), format!("{services} services in the catalog")))
    })?;
    upload(screen, &rest, made)?;
    flavor(screen, &rest, made)?;
    made.key = made.guest.key(screen, &rest, &made.key_file)?;
    network(screen, &rest, made)?;
    let (sent, accepted) = create(screen, &rest, made)?;
    let answered = first_answer(screen, &rest, made, sent)?;
    let times =
        Times { accepted, first_instruction: first_instruction(&rest, made, sent)?, answers: answered };
    guest::look_inside(screen, &rest, made)?;
    stop_and_start(screen, &rest, made)?;
    Ok(times)
}

fn upload(screen: &Screen, rest: &Rest, made: &mut Made) -> Result<()> {
    let (mut image, length) = made.guest.image()?;
    made.image = screen.step("image upload", |bar| {
        let body = json!({"name": "demo", "disk_format": "raw", "container_format": "bare", "visibility": "private"});
        let id = id_of(&rest.post("/image/v2/images", &body)?)?;
        bar.set_style(bytes_style());
        bar.set_length(length);
        rest.put_data(&format!("/image/v2/images/{id}/file"), bar.wrap_read(&mut image))?;
        let shown = rest.get(&format!("/image/v2/images/{id}"))?;
        ensure!(shown["status"] == "active", "the image is {}, not active", shown["status"]);
        ensure!(shown["size"] == length, "the image has {} bytes, {length} were sent", shown["size"]);
        Ok((id, format!("{length} bytes, md5 {}", text(&shown["checksum"]))))
    })?;
    Ok(())
}

fn flavor(screen: &Screen, rest: &Rest, made: &mut Made) -> Result<()> {
    made.flavor = screen.step("flavor", |_| {
        let (ram_mib, disk_gib) = made.guest.size();
        let body = json!({"flavor": {"name": "demo", "vcpus": 1, "ram": ram_mib, "disk": disk_gib}});
        let flavor = rest.post("/compute/v2.1/flavors", &body)?;
        let disk = if disk_gib == 0 { "the image's disk".to_owned() } else { format!("{disk_gib} GiB") };
        Ok((id_of(&flavor["flavor"])?, format!("1 vCPU, {ram_mib} MiB, {disk}")))
    })?;
    Ok(())
}

fn network(screen: &Screen, rest: &Rest, made: &mut Made) -> Result<()> {
    made.network = screen.step("network", |_| {
        let body = json!({"network": {"name": "demo"}});
        let network = rest.post("/network/v2.0/networks", &body)?;
        let network = &network["network"];
        Ok((
            id_of(network)?,
            format!("vxlan {}, mtu {}", network["provider:segmentation_id"], network["mtu"]),
        ))
    })?;
    made.subnet = screen.step("subnet", |_| {
        let body = json!({"subnet": {"name": "demo", "network_id": made.network, "ip_version": 4, "cidr": "10.20.30.0/24"}});
        let subnet = rest.post("/network/v2.0/subnets", &body)?;
        Ok((id_of(&subnet["subnet"])?, "10.20.30.0/24".to_owned()))
    })?;
    made.group = screen.step("security group", |_| {
        let port = made.guest.port();
        let body = json!({"security_group": {"name": "demo", "description": "ping and one service"}});
        let id = id_of(&rest.post("/network/v2.0/security-groups", &body)?["security_group"])?;
        for rule in [
            json!({"protocol": "icmp"}),
            json!({"protocol": "tcp", "port_range_min": port, "port_range_max": port}),
        ] {
            let mut rule = rule;
            rule["security_group_id"] = json!(id);
            rule["direction"] = json!("ingress");
            rest.post("/network/v2.0/security-group-rules", &json!({"security_group_rule": rule}))?;
        }
        Ok((id, format!("lets in ping and TCP port {port}")))
    })?;
    let networks = rest.get("/network/v2.0/networks?name=public")?;
    made.public = id_of(&networks["networks"][0]).context("the network `public`")?;
    Ok(())
}

/// Asks for the server; when the request was sent, and how long until it was accepted.
fn create(screen: &Screen, rest: &Rest, made: &mut Made) -> Result<(SystemTime, Duration)> {
    let body = json!({"server": {
        "name": "demo", "imageRef": made.image, "flavorRef": made.flavor, "key_name": made.key,
        "networks": [{"uuid": made.public}], "security_groups": [{"name": "demo"}],
        "user_data": STANDARD.encode(made.guest.user_data()), "metadata": {"made-by": "wisp demo"},
    }});
    let sent = SystemTime::now();
    let (id, accepted) = screen.step("server: request accepted", |_| {
        let started = Instant::now();
        let server = rest.post("/compute/v2.1/servers", &body)?;
        let accepted = started.elapsed();
        let id = id_of(&server["server"])?;
        Ok(((id.clone(), accepted), id))
    })?;
    made.server = id;
    let ports = rest.get(&format!("/network/v2.0/ports?device_id={}", made.server))?;
    let address = text(&ports["ports"][0]["fixed_ips"][0]["ip_address"]);
    made.address = Some(address.parse().with_context(|| format!("the server's address `{address}`"))?);
    Ok((sent, accepted))
}

/// Waits until the guest itself answers: how long after the request was sent.
fn first_answer(screen: &Screen, rest: &Rest, made: &Made, sent: SystemTime) -> Result<Duration> {
    let address = made.address()?;
    let patience = made.guest.patience();
    wait_status(screen, rest, made, "ACTIVE", "server: active")?;
    screen.step("guest answers a ping", |_| {
        let mut pinger = Pinger::open(address)?;
        pinger
            .until_answer(patience)?
            .ok_or_else(|| anyhow!("{address} did not answer within {patience:?}"))?;
        let since = sent.elapsed().unwrap_or_default();
        let round_trip = pinger.once(Duration::from_secs(1))?;
        let detail = round_trip
            .map_or_else(String::new, |time| format!(", then round trips of {}", milliseconds(time)));
        Ok((since, format!("{address}{detail}")))
    })
}

/// When the first guest instruction ran, after the request was sent.
fn first_instruction(rest: &Rest, made: &Made, sent: SystemTime) -> Result<Option<Duration>> {
    let shown = rest.get(&format!("/compute/v2.1/servers/{}", made.server))?;
    let Some(launched) = shown["server"]["OS-SRV-USG:launched_at"].as_str() else { return Ok(None) };
    let launched: jiff::civil::DateTime = launched.parse().context("read launched_at")?;
    let launched = launched.to_zoned(jiff::tz::TimeZone::UTC).context("read launched_at")?.timestamp();
    let sent_us = sent.duration_since(UNIX_EPOCH).context("read the clock")?.as_micros();
    let after_us = i128::from(launched.as_microsecond()) - i128::try_from(sent_us).unwrap_or(i128::MAX);
    Ok(u64::try_from(after_us).ok().map(Duration::from_micros))
}

fn stop_and_start(screen: &Screen, rest: &Rest, made: &Made) -> Result<()> {
    let action = format!("/compute/v2.1/servers/{}/action", made.server);
    rest.post(&action, &json!({"os-stop": null}))?;
    wait_status(screen, rest, made, "SHUTOFF", "stop: the guest powers off")?;
    rest.post(&action, &json!({"os-start": null}))?;
    wait_status(screen, rest, made, "ACTIVE", "start")?;
    screen.step("guest answers again", |_| {
        let answered = Pinger::open(made.address()?)?.until_answer(made.guest.patience())?;
        answered.ok_or_else(|| anyhow!("the guest did not come back"))?;
        Ok(((), String::new()))
    })
}

/// Deletes everything that was made, and looks that nothing of the server is left.
fn clean_up(screen: &Screen, cloud: &Cloud, made: &Made) -> Result<()> {
    let rest = {
        let mut rest = Rest::new(&cloud.url);
        rest.log_in("admin", cloud.password(), "admin")?;
        rest
    };
    screen.step("delete the server", |_| {
        let path = format!("/compute/v2.1/servers/{}", made.server);
        rest.delete(&path)?;
        patiently(made.guest.patience(), || match rest.try_get(&path)?.0 {
            404 => Ok(()),
            status => bail!("the server is still there ({status})"),
        })?;
        let left = remains::of_server(cloud.state(), &made.server);
        ensure!(left.is_empty(), "left of the server: {}", left.join(", "));
        Ok(((), "no process, no file".to_owned()))
    })?;
    screen.step("delete the rest", |_| {
        rest.delete(&format!("/network/v2.0/security-groups/{}", made.group))?;
        rest.delete(&format!("/network/v2.0/subnets/{}", made.subnet))?;
        rest.delete(&format!("/network/v2.0/networks/{}", made.network))?;
        rest.delete(&format!("/compute/v2.1/os-keypairs/{}", made.key))?;
        rest.delete(&format!("/compute/v2.1/flavors/{}", made.flavor))?;
        rest.delete(&format!("/image/v2/images/{}", made.image))?;
        let left = remains::of_server(cloud.state(), &made.image);
        ensure!(left.is_empty(), "left of the image: {}", left.join(", "));
        Ok(((), "group, subnet, network, key, flavor, image".to_owned()))
    })
}

/// Ends the cloud, and proves that the host is as it was.
fn take_down(screen: &Screen, cloud: Cloud, before: &Host) -> Result<()> {
    screen.step("take the cloud down", |_| {
        let state = cloud.state().to_path_buf();
        cloud.down()?;
        let mut left = Host::look()?.new_since(before);
        left.extend(remains::of_cloud(&state));
        if state.exists() {
            left.push(format!("file {}", state.display()));
        }
        ensure!(left.is_empty(), "left on the host: {}", left.join(", "));
        Ok(((), "no link, no rule, no process, no file is left".to_owned()))
    })
}

fn wait_status(screen: &Screen, rest: &Rest, made: &Made, wanted: &str, step: &str) -> Result<()> {
    let server = &made.server;
    screen.step(step, |bar| {
        let started = Instant::now();
        loop {
            let shown = rest.get(&format!("/compute/v2.1/servers/{server}"))?;
            let shown = &shown["server"];
            let status = text(&shown["status"]);
            if status == wanted {
                return Ok(((), String::new()));
            }
            if status == "ERROR" {
                bail!("the server is in ERROR: {}", text(&shown["fault"]["message"]));
            }
            if started.elapsed() > made.guest.patience() {
                bail!("the server is still {status}");
            }
            bar.set_message(format!("{status} {}", text(&shown["OS-EXT-STS:task_state"])));
            std::thread::sleep(POLL);
        }
    })
}

fn console(rest: &Rest, server: &str) -> Result<String> {
    let action = json!({"os-getConsoleOutput": {"length": 100}});
    let answer = rest.post(&format!("/compute/v2.1/servers/{server}/action"), &action)?;
    Ok(text(&answer["output"]).to_owned())
}

/// Tries until it holds, or says why the last try did not.
fn patiently<T>(patience: Duration, mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    let deadline = Instant::now() + patience;
    loop {
        match attempt() {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() > deadline => return Err(error),
            Err(_) => std::thread::sleep(POLL * 5),
        }
    }
}

fn print_table(times: &Times, all: Duration) {
    let mut table = comfy_table::Table::new();
    table.load_style(comfy_table::presets::UTF8_HORIZONTAL_ONLY);
    table.set_header(["from the request for the server", "time"]);
    table.add_row(["→ request accepted", &milliseconds(times.accepted)]);
    let first = times.first_instruction.map_or_else(|| "unknown".to_owned(), milliseconds);
    table.add_row(["→ first guest instruction", &first]);
    table.add_row(["→ guest answers on the network", &milliseconds(times.answers)]);
    println!("\n{table}\nall steps in {:.1} s", all.as_secs_f64());
}

impl Made {
    fn new(guest: Guest, key_file: PathBuf) -> Self {
        let nothing = String::new;
        Self {
            guest,
            key_file,
            image: nothing(),
            flavor: nothing(),
            key: nothing(),
            network: nothing(),
            subnet: nothing(),
            group: nothing(),
            public: nothing(),
            server: nothing(),
            address: None,
        }
    }

    fn address(&self) -> Result<Ipv4Addr> {
        self.address.ok_or_else(|| anyhow!("the server has no address"))
    }
}

fn id_of(value: &Value) -> Result<String> {
    value["id"].as_str().map(str::to_owned).ok_or_else(|| anyhow!("no id in {value}"))
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or_default()
}
