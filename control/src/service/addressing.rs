//! Addresses of subnets and ports: gateways, pools, the next free address, MAC addresses. Pure.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::error::{Error, Result};

/// The prefix of every MAC address made here (Neutron's `base_mac`).
pub const MAC_PREFIX: [u8; 3] = [0xfa, 0x16, 0x3e];

/// An inclusive range of addresses of one family.
pub type Pool = (IpAddr, IpAddr);

/// The first usable address of a subnet, which is its gateway unless another is named; none in a subnet of one.
pub fn default_gateway(cidr: IpNet) -> Option<IpAddr> {
    let first = number(cidr.network());
    match cidr {
        IpNet::V4(net) if net.prefix_len() >= 31 => None,
        IpNet::V6(net) if net.prefix_len() >= 127 => None,
        _ => Some(address(cidr, first + 1)),
    }
}

/// The pools of a subnet for which none were named: all usable addresses without the gateway.
pub fn default_pools(cidr: IpNet, gateway: Option<IpAddr>) -> Vec<Pool> {
    let (first, last) = usable(cidr);
    match gateway.map(number) {
        Some(gateway) if gateway >= first && gateway <= last => {
            let below = (gateway > first).then(|| (address(cidr, first), address(cidr, gateway - 1)));
            let above = (gateway < last).then(|| (address(cidr, gateway + 1), address(cidr, last)));
            below.into_iter().chain(above).collect()
        }
        _ => vec![(address(cidr, first), address(cidr, last))],
    }
}

/// Checks pools against their subnet and each other, and against the gateway, which no pool may hold.
pub fn check_pools(cidr: IpNet, gateway: Option<IpAddr>, pools: &[Pool]) -> Result<()> {
    let mut sorted = Vec::with_capacity(pools.len());
    for (start, end) in pools {
        if !cidr.contains(start) || !cidr.contains(end) {
            return Err(Error::invalid(
                "OutOfBoundsAllocationPool",
                format!("The allocation pool {start}-{end} spans beyond the subnet cidr {cidr}."),
            ));
        }
        if number(*start) > number(*end) {
            return Err(Error::invalid(
                "InvalidAllocationPool",
                format!("The allocation pool {start}-{end} is not valid."),
            ));
        }
        if let Some(gateway) = gateway
            && (number(*start)..=number(*end)).contains(&number(gateway))
        {
            return Err(Error::conflict(
                "GatewayConflictWithAllocationPools",
                format!("Gateway ip {gateway} conflicts with allocation pool {start}-{end}."),
            ));
        }
        sorted.push((number(*start), number(*end)));
    }
    sorted.sort_unstable();
    if let Some(pair) = sorted.windows(2).find(|pair| pair[1].0 <= pair[0].1) {
        return Err(Error::conflict(
            "OverlappingAllocationPools",
            format!(
                "Found overlapping allocation pools: {}-{} and {}-{} for subnet {cidr}.",
                address(cidr, pair[0].0),
                address(cidr, pair[0].1),
                address(cidr, pair[1].0),
                address(cidr, pair[1].1)
            ),
        ));
    }
    Ok(())
}

/// The lowest address of the pools that is not taken.
pub fn next_free(cidr: IpNet, pools: &[Pool], taken: &BTreeSet<IpAddr>) -> Option<IpAddr> {
    // At most one step more per pool than addresses are taken, so the walk ends even in a /64.
    pools.iter().find_map(|(start, end)| {
        (number(*start)..=number(*end)).map(|n| address(cidr, n)).find(|candidate| !taken.contains(candidate))
    })
}

/// How many addresses a pool has.
pub fn pool_size((start, end): &Pool) -> u128 {
    number(*end).saturating_sub(number(*start)).saturating_add(1)
}

/// Whether a guest can have this address in this subnet: not its network, not its broadcast address.
pub fn is_usable(cidr: IpNet, candidate: IpAddr) -> bool {
    let (first, last) = usable(cidr);
    cidr.contains(&candidate) && (first..=last).contains(&number(candidate))
}

/// The address that a MAC address gives in a prefix of 64 bits: the modified EUI-64 (RFC 4291 appendix A).
pub fn eui64(cidr: IpNet, mac: [u8; 6]) -> IpAddr {
    let [a, b, c, d, e, f] = mac;
    let interface = u64::from_be_bytes([a ^ 2, b, c, 0xff, 0xfe, d, e, f]);
    address(cidr, number(cidr.network()) | u128::from(interface))
}

/// A random MAC address under [`MAC_PREFIX`].
pub fn random_mac() -> [u8; 6] {
    let random = uuid::Uuid::new_v4();
    let [a, b, c] = MAC_PREFIX;
    let [x, y, z, ..] = *random.as_bytes();
    [a, b, c, x, y, z]
}

/// A MAC address as text, as the network service writes it.
pub fn mac_text(mac: [u8; 6]) -> String {
    let [a, b, c, d, e, f] = mac;
    format!("{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{f:02x}")
}

/// Reads a unicast MAC address with colons or dashes.
pub fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let mut mac = [0; 6];
    let mut parts = text.split([':', '-']);
    for byte in &mut mac {
        let part =
            parts.next().filter(|part| part.len() == 2 && part.bytes().all(|b| b.is_ascii_hexdigit()))?;
        *byte = u8::from_str_radix(part, 16).ok()?;
    }
    (parts.next().is_none() && mac[0] & 1 == 0 && mac != [0; 6]).then_some(mac)
}

/// First and last address that hosts may have.
fn usable(cidr: IpNet) -> (u128, u128) {
    let (first, last) = (number(cidr.network()), number(cidr.broadcast()));
    match cidr {
        IpNet::V4(net) if net.prefix_len() < 31 => (first + 1, last - 1),
        // The first address of an IPv6 subnet is the routers' anycast address (RFC 4291 §2.6.1).
        IpNet::V6(net) if net.prefix_len() < 127 => (first + 1, last),
        _ => (first, last),
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => u128::from(u32::from(v4)),
        IpAddr::V6(v6) => u128::from(v6),
    }
}

fn address(family: IpNet, number: u128) -> IpAddr {
    match family {
        IpNet::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpNet::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn net(text: &str) -> IpNet {
        text.parse().unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn pools_leave_out_gateway_network_and_broadcast() {
        let cidr = net("10.0.0.0/29");
        assert_eq!(default_gateway(cidr), Some(ip("10.0.0.1")));
        assert_eq!(default_pools(cidr, Some(ip("10.0.0.1"))), [(ip("10.0.0.2"), ip("10.0.0.6"))]);
        assert_eq!(
            default_pools(cidr, Some(ip("10.0.0.4"))),
            [(ip("10.0.0.1"), ip("10.0.0.3")), (ip("10.0.0.5"), ip("10.0.0.6"))]
        );
        assert_eq!(default_pools(cidr, None), [(ip("10.0.0.1"), ip("10.0.0.6"))]);
    }

    #[test]
    fn subnets_of_one_or_two_addresses_have_no_gateway() {
        assert_eq!(default_gateway(net("10.0.0.0/31")), None);
        assert_eq!(default_pools(net("10.0.0.7/32"), None), [(ip("10.0.0.7"), ip("10.0.0.7"))]);
        assert_eq!(default_pools(net("10.0.0.0/31"), None), [(ip("10.0.0.0"), ip("10.0.0.1"))]);
    }

    #[test]
    fn next_free_is_the_lowest_and_ends() {
        let cidr = net("10.0.0.0/30");
        let pools = default_pools(cidr, Some(ip("10.0.0.1")));
        let mut taken = BTreeSet::new();
        assert_eq!(next_free(cidr, &pools, &taken), Some(ip("10.0.0.2")));
        taken.insert(ip("10.0.0.2"));
        assert_eq!(next_free(cidr, &pools, &taken), None);
        let wide = net("2001:db8::/64");
        assert_eq!(next_free(wide, &default_pools(wide, None), &taken), Some(ip("2001:db8::1")));
    }

    #[test]
    fn bad_pools_are_refused() {
        let cidr = net("10.0.0.0/24");
        let gateway = Some(ip("10.0.0.1"));
        let check = |pools: &[Pool]| check_pools(cidr, gateway, pools).map_err(|error| error.to_string());
        assert!(check(&[(ip("10.0.0.2"), ip("10.0.0.9")), (ip("10.0.0.10"), ip("10.0.0.19"))]).is_ok());
        assert!(check(&[(ip("10.0.0.2"), ip("10.0.0.9")), (ip("10.0.0.9"), ip("10.0.0.19"))]).is_err());
        assert!(check(&[(ip("10.0.0.1"), ip("10.0.0.9"))]).is_err());
        assert!(check(&[(ip("10.0.0.9"), ip("10.0.0.2"))]).is_err());
        assert!(check(&[(ip("10.0.1.2"), ip("10.0.1.9"))]).is_err());
    }

    #[test]
    fn mac_address_gives_the_modified_eui_64() {
        let mac = [0xfa, 0x16, 0x3e, 0x01, 0x02, 0x03];
        assert_eq!(eui64(net("2001:db8:1::/64"), mac), ip("2001:db8:1:0:f816:3eff:fe01:203"));
    }

    #[test]
    fn mac_addresses_read_back() {
        let mac = random_mac();
        assert_eq!(parse_mac(&mac_text(mac)), Some(mac));
        assert_eq!(parse_mac("FA-16-3E-00-00-01"), Some([0xfa, 0x16, 0x3e, 0, 0, 1]));
        for bad in [
            "",
            "fa:16:3e:00:00",
            "fa:16:3e:00:00:01:02",
            "01:00:5e:00:00:01",
            "g0:00:00:00:00:00",
            "+1:00:00:00:00:00",
        ] {
            assert_eq!(parse_mac(bad), None, "{bad}");
        }
    }
}
