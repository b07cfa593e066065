//! What a scheduling decision costs among a thousand hosts, beside one among a single host.

mod measure;

use std::hint::black_box;
use std::time::Instant;

use control::scheduler::{HostState, Request, Resources, Scheduler};
use measure::{Line, Samples};

/// How many hosts a large cloud has.
const HOSTS: usize = 1000;
/// Decisions measured.
const DECISIONS: usize = 1000;

fn main() {
    // Only `cargo bench` says so; `cargo test --all-targets` is not after numbers.
    if !std::env::args().any(|argument| argument == "--bench") {
        println!("skipped: run by cargo bench");
        return;
    }
    let one = decisions(1);
    let many = decisions(HOSTS);
    for (share, name) in [(0.5, "p50"), (0.9, "p90")] {
        Line {
            what: &format!("placement among {HOSTS} hosts, {name} of {DECISIONS}"),
            unit: "us",
            value: many.quantile(share),
            baseline: one.quantile(share),
            of: "among one host",
        }
        .print();
    }
}

/// The time of each decision in microseconds; every server is claimed, so that the next one sees it.
fn decisions(count: usize) -> Samples {
    let scheduler = Scheduler::default();
    let mut hosts: Vec<HostState> = (0..count).map(host).collect();
    let request = Request {
        resources: Resources { vcpus: 1, memory_mib: 128, disk_gib: 1 },
        zone: Some("nova".to_owned()),
        ..Request::default()
    };
    let mut samples = Samples::default();
    for _ in 0..DECISIONS {
        let start = Instant::now();
        let chosen = black_box(scheduler.place(black_box(&hosts), &request));
        samples.push(start.elapsed().as_secs_f64() * 1e6);
        if let Ok(index) = chosen {
            hosts[index].claimed = hosts[index].claimed.plus(request.resources);
        }
    }
    samples
}

/// Hosts of a few sizes, each with something on it.
fn host(number: usize) -> HostState {
    let size = 1 + number as u64 % 4;
    HostState {
        name: format!("host-{number:04}"),
        zone: "nova".to_owned(),
        alive: !number.is_multiple_of(50) || number == 0,
        enabled: true,
        architecture: "x86_64".to_owned(),
        cpus: 32 * size,
        capacity: Resources { vcpus: 4096 * size, memory_mib: 262_144 * size, disk_gib: 4096 * size },
        claimed: Resources { vcpus: number as u64 % 64, memory_mib: 128 * (number as u64 % 64), disk_gib: 0 },
    }
}
