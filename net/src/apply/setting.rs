//! The kernel's settings per interface (`/proc/sys/net`) that our own links need. Host-wide ones are never touched.

use std::path::Path;

use super::Error;
use crate::plan::Ipv6Reach;

/// Whether bridged packets can be shown to the host's IP filters, as security groups need.
pub(crate) fn has_bridge_netfilter() -> bool {
    Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables").exists()
}

/// Opens a bridge to the host or closes it.
///
/// Without an address of its own on the bridge the host would answer ARP there for all its other addresses.
pub(super) fn set_bridge_reach(name: &str, has_host: bool, ipv6: Ipv6Reach) -> Result<(), Error> {
    match ipv6 {
        Ipv6Reach::Off => set_ipv6(name, false)?,
        Ipv6Reach::Neighbours => know_ipv6_neighbours(name)?,
        Ipv6Reach::Host => {
            set_link_local(name, true)?;
            set_ipv6(name, true)?;
        }
    }
    write_setting(&format!("/proc/sys/net/ipv4/conf/{name}/arp_ignore"), if has_host { "1" } else { "8" })
}

/// Lets a bridge know the MACs of IPv6 addresses; the host has no address of its own there.
pub(super) fn know_ipv6_neighbours(name: &str) -> Result<(), Error> {
    set_link_local(name, false)?;
    set_ipv6(name, true)
}

/// Allows the host's own IPv6 on a link of ours, without autoconfiguration, or forbids it.
pub(super) fn set_ipv6(name: &str, is_on: bool) -> Result<(), Error> {
    let Some(directory) = ipv6_directory(name) else { return Ok(()) };
    write_setting(&format!("{directory}/accept_ra"), "0")?;
    write_setting(&format!("{directory}/disable_ipv6"), if is_on { "0" } else { "1" })
}

/// Whether a link gives itself a link-local address when IPv6 is allowed on it (`addr_gen_mode`).
fn set_link_local(name: &str, is_on: bool) -> Result<(), Error> {
    let Some(directory) = ipv6_directory(name) else { return Ok(()) };
    write_setting(&format!("{directory}/addr_gen_mode"), if is_on { "0" } else { "1" })
}

/// The settings of IPv6 on a link, unless this kernel has no IPv6.
fn ipv6_directory(name: &str) -> Option<String> {
    let directory = format!("/proc/sys/net/ipv6/conf/{name}");
    Path::new(&directory).exists().then_some(directory)
}

fn write_setting(path: &str, value: &str) -> Result<(), Error> {
    std::fs::write(path, value).map_err(|source| Error::Setting { path: path.to_owned(), source })
}
