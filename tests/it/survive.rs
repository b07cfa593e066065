//! Instances outlive everything but their owner's wish: `kill -9` of all of Wisp's processes but the VMMs loses no
//! ping, the next `wisp up` adopts the same processes, and deleting them then leaves nothing.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use api::demo::ping::Pinger;
use libtest_mimic::Trial;

use crate::harness::{Cloud, KVM_CLOUD, NewServer, Remains, isolate, processes, trial};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("survive::instances_outlive_the_control_plane_and_are_adopted", KVM_CLOUD, instances_outlive),
        trial("survive::down_removes_everything_and_nothing_else", KVM_CLOUD, down_removes_everything),
    ]
}

fn instances_outlive() -> Result<()> {
    isolate()?;
    let before = Remains::look()?;
    let (mut cloud, rest, network) = Cloud::start_open()?;
    let mut servers = Vec::new();
    for name in ["one", "two"] {
        let new = NewServer { name, image: "", flavor: "m1.nano", network: &network, user_data: "" };
        servers.push(cloud.server(&rest, &new)?);
    }
    let mut addresses = Vec::new();
    for server in &servers {
        cloud.wait_status(&rest, server, "ACTIVE")?;
        let address = cloud.address(&rest, server)?;
        let answered = Pinger::open(address)?.until_answer(Duration::from_secs(30))?;
        answered.with_context(|| format!("{address} does not answer"))?;
        addresses.push(address);
    }
    let vmms = vmm_pids(&servers)?;
    let stop = Arc::new(AtomicBool::new(false));
    let pingers: Vec<_> = addresses
        .iter()
        .map(|address| {
            let (stop, address) = (stop.clone(), *address);
            std::thread::spawn(move || ping_until(&stop, address))
        })
        .collect();
    cloud.kill_all_but_guests()?;
    std::thread::sleep(Duration::from_millis(500));
    cloud.up()?;
    let rest = cloud.rest()?;
    for server in &servers {
        cloud.wait_status(&rest, server, "ACTIVE")?;
    }
    std::thread::sleep(Duration::from_millis(500));
    stop.store(true, Ordering::Relaxed);
    for pinger in pingers {
        let (sent, lost) = pinger.join().map_err(|_| anyhow!("the pinger panicked"))??;
        ensure!(lost == 0 && sent > 50, "{lost} of {sent} pings were lost");
    }
    ensure!(vmm_pids(&servers)? == vmms, "the processes are not the same");
    for server in &servers {
        ensure!(cloud.console(&rest, server)?.contains("WISP-GUEST"), "the adopted console");
        ensure!(rest.delete(&format!("/compute/v2.1/servers/{server}"))? == 204, "delete");
        cloud.wait_gone(&rest, server)?;
        let left = processes(server)?;
        ensure!(left.is_empty(), "{left:?}");
        ensure!(!cloud.state().join("run").join(server).exists(), "the run directory is left");
    }
    ensure!(cloud.down()?.status.success(), "wisp down");
    Remains::look()?.nothing_new_since(&before)
}

fn down_removes_everything() -> Result<()> {
    isolate()?;
    let mut netlink = net::netlink::Client::open()?;
    netlink.execute(vec![net::netlink::Request::create_bridge("foreign0", [2, 0, 0, 0, 0, 1])])?;
    let before = Remains::look()?;
    let mut cloud = Cloud::start()?;
    let rest = cloud.rest()?;
    let network = cloud.network(&rest, "net", "10.3.0.0/24")?;
    let new = NewServer { name: "left", image: "", flavor: "m1.nano", network: &network, user_data: "" };
    let server = cloud.server(&rest, &new)?;
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    ensure!(cloud.down()?.status.success(), "wisp down");
    let left = processes(&cloud.state().to_string_lossy())?;
    ensure!(left.is_empty() && processes(&server)?.is_empty(), "{left:?}");
    let after = Remains::look()?;
    after.nothing_new_since(&before)?;
    before.nothing_new_since(&after).context("what Wisp did not make is gone")
}

/// The VMM processes of these servers.
fn vmm_pids(servers: &[String]) -> Result<Vec<i32>> {
    let mut pids = Vec::new();
    for server in servers {
        let found = processes(server)?;
        ensure!(found.len() == 1 && found[0].1.contains(&format!("vmm run {server}")), "{found:?}");
        pids.push(found[0].0);
    }
    Ok(pids)
}

/// Pings every 10 ms until told to stop: how many were sent, how many found no answer within a second.
pub(crate) fn ping_until(stop: &AtomicBool, address: std::net::Ipv4Addr) -> Result<(u32, u32)> {
    let mut pinger = Pinger::open(address)?;
    let (mut sent, mut lost) = (0, 0);
    while !stop.load(Ordering::Relaxed) {
        sent += 1;
        if pinger.once(Duration::from_secs(1))?.is_none() {
            lost += 1;
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    Ok((sent, lost))
}
