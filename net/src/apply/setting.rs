//! The kernel's settings per interface (`/proc/sys/net`) that our own links need. Host-wide ones are never touched.

use std::path::Path;

use super::Error;

/// Whether bridged packets can be shown to the host's IP filters, as security groups need.
pub(crate) fn has_bridge_netfilter() -> bool {
    Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
}

/// Opens a bridge to the host or closes it.
///
/// Without an address of its own on the bridge the host would answer ARP there for all its other addresses.
pub(super) fn set_bridge_reach(name: &str, has_host: bool, has_ipv6: bool) -> Result<(), Error> {
    set_ipv6(name, has_ipv6)?;
    write_setting(&format!("/proc/sys/net/ipv4/conf/{name}/arp_ignore"), if has_host { "1" } else { "8" })
}

/// Allows the host's own IPv6 on a link of ours, without autoconfiguration, or forbids it.
pub(super) fn set_ipv6(name: &str, is_on: bool) -> Result<(), Error> {
    let directory = format!("/proc/sys/net/ipv6/conf/{name}");
    if !Path::new(&directory).exists() {
        return Ok(());
    }
    write_setting(&format!("{directory}/accept_ra"), "0")?;
    write_setting(&format!("{directory}/disable_ipv6"), if is_on { "0" } else { "1" })
}

fn write_setting(path: &str, value: &str) -> Result<(), Error> {
    std::fs::write(path, value).map_err(|source| Error::Setting { path: path.to_owned(), source })
}
