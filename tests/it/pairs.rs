//! Network devices with several pairs of queues: of one guest by its command line, and of a cloud's servers.

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::json;

use crate::booted::{Files, Guest, booting, refused, vmm};
use crate::harness::{Cloud, KVM_CLOUD, Need, NewServer, ip, isolate, trial, within};

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial(
            "pairs::flows_of_a_guest_are_on_two_queues_of_its_tap_and_status_counts_them",
            &[Need::Root, Need::Tun, Need::Kvm],
            flows_are_on_two_queues,
        ),
        trial(
            "pairs::server_has_a_pair_for_each_processor_where_its_flavor_says_so",
            KVM_CLOUD,
            server_has_a_pair_for_each_processor,
        ),
    ]
}

/// The number before a word, in a part of a line that begins so.
fn number_before(word: &str, part: &str) -> Option<u64> {
    part.split_once(word)?.0.split_whitespace().next_back()?.parse().ok()
}

/// One guest serves a load and another makes it, each in a VMM of its own.
fn flows_are_on_two_queues() -> Result<()> {
    isolate()?;
    let files = Files::new()?;
    let path = |name: &str| files.path(name);
    let kernel = path("tiny.elf");
    // Both guests have the same MAC address, so the host is between them: it answers either in the other's name.
    let setting = |name: &str| std::fs::write(format!("/proc/sys/net/ipv4/{name}"), "1").context("a setting");
    for (tap, kind, guest) in [("queues2", "multi_queue", "10.77.0.1"), ("queues1", "", "10.77.0.2")] {
        ip(&format!("tuntap add mode tap vnet_hdr {kind} {tap}"))?;
        ip(&format!("link set {tap} up"))?;
        ip(&format!("route add {guest}/32 dev {tap}"))?;
        setting(&format!("conf/{tap}/proxy_arp"))?;
    }
    setting("ip_forward")?;
    let few = refused(&["boot", "--kernel", &kernel, "--tap", "queues1,queues=2"])?;
    ensure!(few.contains("tap queues1 was made to have one queue") && few.contains("multi_queue"), "{few}");
    let many = refused(&["boot", "--kernel", &kernel, "--tap", "queues2,queues=9"])?;
    ensure!(many.contains("from 1 to 8"), "{many}");
    let boot = |tap: &str, control: &str, load: &str| {
        let mut boot = booting(&["--kernel", &kernel, "--mem", "64", "--tap", tap, "--control", control]);
        Guest::start(boot.args(["--cmdline", &format!("traffic={load}")]))
    };
    let (serving, asking) = (path("serving"), path("asking"));
    let _serves = boot("queues2,queues=2", &serving, "10.77.0.1,serve,600000")?;
    within(30, || vmm(&["status", &serving]))?;
    let busy = refused(&["boot", "--kernel", &kernel, "--tap", "queues2,queues=2"])?;
    ensure!(busy.contains("busy"), "{busy}");
    let _asks = boot("queues1", &asking, "10.77.0.2,10.77.0.1,100")?;

    let said = within(60, || {
        let said = vmm(&["status", &serving])?;
        let used = "nic 02:57:49:53:50:00 pairs of queues: 2, used by the guest: 2\n";
        ensure!(said.contains(used), "{said}");
        for pair in ["  pair 0 ", "  pair 1 "] {
            let line = said.lines().find(|line| line.starts_with(pair)).context("no such pair")?;
            let (received, sent) = line.split_once("; sent").context("nothing sent")?;
            for part in [received, sent] {
                ensure!(number_before(" packets", part).is_some_and(|packets| packets > 10), "{said}");
            }
        }
        Ok(said)
    })?;
    ensure!(vmm(&["status", &asking])?.contains("pairs of queues: 1, used by the guest: 1\n"), "{said}");
    Ok(())
}

/// A pair's packets to the guest or from it, as Prometheus reads them.
fn counted(metrics: &str, way: &str, queue: u32) -> Option<u64> {
    let (start, queue) = (format!("wisp_port_queue_{way}_packets_total{{"), format!("queue=\"{queue}\"}} "));
    let line = metrics.lines().find(|line| line.starts_with(&start) && line.contains(&queue))?;
    line.rsplit_once(' ')?.1.parse().ok()
}

fn server_has_a_pair_for_each_processor() -> Result<()> {
    isolate()?;
    let (mut cloud, rest, network) = Cloud::start_open()?;
    let size = json!({"flavor": {"name": "two", "ram": 64, "vcpus": 2, "disk": 1}});
    let made = rest.made("/compute/v2.1/flavors", &size)?;
    let specs = format!(
        "/compute/v2.1/flavors/{}/os-extra_specs",
        made["flavor"]["id"].as_str().context("no flavor")?
    );
    let wish = |value: &str| json!({"extra_specs": {"hw:vif_multiqueue_enabled": value}});
    let (code, body) = rest.post(&specs, &wish("many"))?;
    ensure!(code == 400 && body.to_string().contains("is not a boolean"), "{code} {body}");
    rest.made(&specs, &wish("true"))?;
    let new = NewServer { name: "pairs", image: "", flavor: "two", network: &network, user_data: "" };
    let server = cloud.server(&rest, &new)?;
    cloud.wait_status(&rest, &server, "ACTIVE")?;
    cloud.wait_console(&rest, &server, "ready")?;
    let is_counted = |rest: &crate::harness::Rest| {
        let metrics = rest.text("/metrics")?;
        let some = |way, queue| counted(&metrics, way, queue);
        // The stack of this guest uses the first pair alone.
        ensure!(some("transmit", 0).is_some_and(|packets| packets > 0), "{metrics}");
        ensure!(some("receive", 0).is_some_and(|packets| packets > 0), "{metrics}");
        ensure!(some("receive", 1) == Some(0) && some("receive", 2).is_none(), "{metrics}");
        Ok(())
    };
    // A VMM that does not answer its host soon is left out, as one may be where others have the processors.
    within(30, || is_counted(&rest))?;
    // An agent that comes later adopts the guest with its queues.
    cloud.kill_all_but_guests()?;
    cloud.up()?;
    let rest = cloud.rest()?;
    within(30, || is_counted(&rest))?;
    for (action, status) in [("os-stop", "SHUTOFF"), ("os-start", "ACTIVE")] {
        let (code, body) =
            rest.post(&format!("/compute/v2.1/servers/{server}/action"), &json!({action: null}))?;
        ensure!(code == 202, "{action}: {code} {body}");
        cloud.wait_status(&rest, &server, status)?;
    }
    within(30, || is_counted(&rest))
}
