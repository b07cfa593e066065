//! What a host is and has, as its kernel says.

use std::fs;
use std::net::UdpSocket;
use std::path::Path;

use crate::agent::protocol::HostReport;

/// Looks at everything; what cannot be read is reported as nothing.
pub(super) fn host_report(name: &str, run: &Path) -> HostReport {
    let disk = rustix::fs::statvfs(run).ok();
    let gib = |blocks: u64, size: u64| blocks.saturating_mul(size) >> 30;
    HostReport {
        name: name.to_string(),
        driver: "kvm".into(),
        vcpus: std::thread::available_parallelism().map_or(1, |count| count.get() as u32),
        memory_mib: first_number(&read("/proc/meminfo"), "MemTotal:") >> 10,
        disk_gib: disk.as_ref().map_or(0, |disk| gib(disk.f_blocks, disk.f_frsize)),
        disk_free_gib: disk.as_ref().map_or(0, |disk| gib(disk.f_bavail, disk.f_frsize)),
        cpu_model: cpu_model(&read("/proc/cpuinfo")),
        address: address(),
        hot_plug: true,
        carries_vlans: false,
        tunnel_address: None,
        pools: Vec::new(),
        uptime_s: read("/proc/uptime").split('.').next().and_then(|text| text.parse().ok()).unwrap_or(0),
    }
}

fn read(path: &str) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

/// The number after a word at the beginning of a line.
pub(super) fn first_number(text: &str, word: &str) -> u64 {
    let line = text.lines().find_map(|line| line.strip_prefix(word));
    line.and_then(|line| line.split_whitespace().next()?.parse().ok()).unwrap_or(0)
}

fn cpu_model(cpuinfo: &str) -> String {
    let line = cpuinfo.lines().find_map(|line| line.strip_prefix("model name"));
    line.and_then(|line| Some(line.split_once(':')?.1.trim())).unwrap_or("unknown").to_string()
}

/// The address from which this host would reach others; nothing is sent to find it.
fn address() -> String {
    // TEST-NET-1 (RFC 5737) stands for any other host.
    let socket = UdpSocket::bind("0.0.0.0:0").and_then(|socket| {
        socket.connect("192.0.2.1:9")?;
        socket.local_addr()
    });
    socket.map_or_else(|_| "127.0.0.1".into(), |address| address.ip().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read_from_the_kernels_own_lines() {
        assert_eq!(first_number("MemFree: 1 kB\nMemTotal:       2048 kB\n", "MemTotal:"), 2048);
        assert_eq!(cpu_model("processor\t: 0\nmodel name\t: A CPU\n"), "A CPU");
        assert_eq!(cpu_model(""), "unknown");
    }

    #[test]
    fn this_host_has_something_of_everything() {
        let report = host_report("here", Path::new("/"));
        assert!(report.vcpus > 0 && report.memory_mib > 0 && report.disk_gib > 0, "{report:?}");
    }
}
