//! How a host's networks get to other hosts, as the command line says it.

use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// By VXLAN (RFC 7348).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Tunnel {
    /// The host's address, where other hosts send frames.
    pub address: Ipv4Addr,
    /// All networks share one device, rather than each having its own.
    pub is_shared: bool,
}

/// As it is written on a command line: `ADDRESS`, or `ADDRESS,shared`.
impl FromStr for Tunnel {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (address, is_shared) = match text.split_once(',') {
            None => (text, false),
            Some((address, "shared")) => (address, true),
            Some(_) => return Err(format!("`{text}` is not ADDRESS or ADDRESS,shared")),
        };
        let parsed: Ipv4Addr = address.parse().map_err(|_| format!("`{address}` is no IPv4 address"))?;
        if parsed.is_unspecified() || parsed.is_multicast() || parsed.is_broadcast() {
            return Err(format!("`{address}` is no address of one host"));
        }
        Ok(Self { address: parsed, is_shared })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tunnels_are_read_as_they_are_written() {
        let address = Ipv4Addr::new(198, 51, 100, 7);
        assert_eq!("198.51.100.7".parse(), Ok(Tunnel { address, is_shared: false }));
        assert_eq!("198.51.100.7,shared".parse(), Ok(Tunnel { address, is_shared: true }));
        for wrong in ["", "eth0", "0.0.0.0", "224.0.0.1", "198.51.100.7,", "198.51.100.7,own", "2001:db8::1"]
        {
            assert!(wrong.parse::<Tunnel>().is_err(), "{wrong}");
        }
    }
}
