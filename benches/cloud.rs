//! What a user of the cloud waits for: a server that answers, a token, a list.

mod measure;

#[path = "../tests/it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the system tests use the rest")]
mod harness;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use api::demo::ping::Pinger;
use serde_json::json;

use crate::harness::{Cloud, NewServer, Rest, isolate};
use crate::measure::{Samples, line};

/// Servers made one after the other.
const ONE_BY_ONE: usize = 10;
/// Servers asked for at once.
const AT_ONCE: usize = 20;
/// Tokens issued, and tokens validated.
const TOKENS: u32 = 200;
/// Servers in the long list.
const LISTED: u32 = 1000;

fn main() -> Result<()> {
    isolate()?;
    servers()?;
    tokens_and_lists()
}

/// POST /servers → the guest answers a ping.
fn servers() -> Result<()> {
    let cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    raise_quotas(&rest)?;
    cloud.open_default_group(&rest)?;
    let network = cloud.public_network(&rest)?;
    let mut alone = Samples::default();
    for _ in 0..ONE_BY_ONE {
        let started = Instant::now();
        let (server, address) = create(&cloud, &rest, &network)?;
        wait_answer(address)?;
        alone.push(started.elapsed().as_secs_f64() * 1e3);
        rest.delete(&format!("/compute/v2.1/servers/{server}"))?;
        cloud.wait_gone(&rest, &server)?;
    }
    // The anchor is a rival's published mean for create, end to end, at 50 at once, on its own hardware.
    line(
        "POST /servers to the guest's answer, one, p50",
        "ms",
        alone.quantile(0.5),
        67.0,
        "CubeSandbox, published",
    );
    let together = at_once(&cloud, &rest, &network)?;
    line(
        "POST /servers to the guest's answer, 20 at once, p50",
        "ms",
        together.quantile(0.5),
        alone.quantile(0.5),
        "one alone",
    );
    line(
        "POST /servers to the guest's answer, 20 at once, last",
        "ms",
        together.quantile(1.0),
        alone.quantile(0.5),
        "one alone",
    );
    Ok(())
}

fn at_once(cloud: &Cloud, rest: &Rest, network: &str) -> Result<Samples> {
    let started = Instant::now();
    let mut servers = Vec::new();
    std::thread::scope(|scope| {
        let makers: Vec<_> = (0..AT_ONCE)
            .map(|_| {
                scope.spawn(|| {
                    let (server, address) = create(cloud, rest, network)?;
                    wait_answer(address)?;
                    anyhow::Ok((server, started.elapsed().as_secs_f64() * 1e3))
                })
            })
            .collect();
        for maker in makers {
            servers.push(maker.join().map_err(|_| anyhow!("a maker panicked"))??);
        }
        anyhow::Ok(())
    })?;
    let mut samples = Samples::default();
    for (server, time_ms) in servers {
        samples.push(time_ms);
        rest.delete(&format!("/compute/v2.1/servers/{server}"))?;
    }
    Ok(samples)
}

fn create(cloud: &Cloud, rest: &Rest, network: &str) -> Result<(String, Ipv4Addr)> {
    let new = NewServer { name: "bench", image: "", flavor: "m1.nano", network, user_data: "" };
    let server = cloud.server(rest, &new)?;
    let address = cloud.address(rest, &server)?;
    Ok((server, address))
}

fn wait_answer(address: Ipv4Addr) -> Result<()> {
    Pinger::open(address)?
        .until_answer(Duration::from_secs(60))?
        .with_context(|| format!("{address} is silent"))?;
    Ok(())
}

fn tokens_and_lists() -> Result<()> {
    let cloud = Cloud::start_fake()?;
    let rest = cloud.rest()?;
    raise_quotas(&rest)?;
    let requests = per_second(TOKENS, || rest.shown("/identity").map(drop).or(Ok(())))?;
    let issued = per_second(TOKENS, || rest.rescope().map(drop))?;
    line(
        "tokens issued from a token, one client",
        "1/s",
        issued,
        requests,
        "discovery requests in the same run",
    );
    let validated = per_second(TOKENS, || rest.shown("/identity/v3/auth/tokens").map(drop))?;
    line("tokens validated, one client", "1/s", validated, requests, "discovery requests in the same run");
    let image = &rest.shown("/image/v2/images?name=tiny")?["images"][0]["id"];
    let flavor = &rest.shown("/compute/v2.1/flavors")?["flavors"][0]["id"];
    for _ in 0..LISTED / 100 {
        let body = json!({"server": {
            "name": "listed", "imageRef": image, "flavorRef": flavor, "min_count": 100, "max_count": 100,
            "networks": "none",
        }});
        rest.made("/compute/v2.1/servers", &body)?;
    }
    let started = Instant::now();
    let list = rest.shown("/compute/v2.1/servers/detail?limit=1000")?;
    let all_ms = started.elapsed().as_secs_f64() * 1e3;
    let count = list["servers"].as_array().map_or(0, Vec::len);
    ensure!(count == LISTED as usize, "{count} servers are listed");
    let started = Instant::now();
    rest.shown("/compute/v2.1/servers/detail?limit=1")?;
    let one_ms = started.elapsed().as_secs_f64() * 1e3;
    line("list of 1000 servers with details", "ms", all_ms, one_ms, "a list of one");
    Ok(())
}

/// No quota is in the way of a benchmark.
fn raise_quotas(rest: &Rest) -> Result<()> {
    let projects = rest.shown("/identity/v3/projects?name=admin")?;
    let project = projects["projects"][0]["id"].as_str().context("no project")?;
    let body = json!({"quota_set": {"instances": -1, "cores": -1, "ram": -1}});
    ensure!(rest.put(&format!("/compute/v2.1/os-quota-sets/{project}"), &body)? == 200, "compute quotas");
    let body = json!({"quota": {"port": -1}});
    ensure!(rest.put(&format!("/network/v2.0/quotas/{project}"), &body)? == 200, "network quotas");
    Ok(())
}

fn per_second(count: u32, mut run: impl FnMut() -> Result<()>) -> Result<f64> {
    let started = Instant::now();
    for _ in 0..count {
        run()?;
    }
    Ok(f64::from(count) / started.elapsed().as_secs_f64())
}
