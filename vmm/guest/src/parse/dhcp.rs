//! The DHCP options that the IP stack leaves to its user.

use core::net::Ipv4Addr;

/// One route of a lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LeaseRoute {
    /// The destination's address.
    pub destination: Ipv4Addr,
    /// Length of its prefix in bits, at most 32.
    pub prefix_len: u8,
    /// The next hop; 0.0.0.0 means on the link (RFC 3442).
    pub next_hop: Ipv4Addr,
}

/// The routes in the data of option 121 (RFC 3442), up to the first malformed one.
pub fn classless_routes(mut data: &[u8]) -> impl Iterator<Item = LeaseRoute> {
    core::iter::from_fn(move || {
        let (&prefix_len, rest) = data.split_first()?;
        if prefix_len > 32 {
            return None;
        }
        let (significant, rest) = rest.split_at_checked(usize::from(prefix_len).div_ceil(8))?;
        let (next_hop, rest) = rest.split_first_chunk::<4>()?;
        let mut destination = [0; 4];
        destination[..significant.len()].copy_from_slice(significant);
        data = rest;
        Some(LeaseRoute { destination: destination.into(), prefix_len, next_hop: (*next_hop).into() })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_of_every_prefix_length_are_read() {
        let data = [32, 169, 254, 169, 254, 10, 0, 0, 2, 0, 10, 0, 0, 1, 12, 172, 16, 0, 0, 0, 0];
        let routes: Vec<_> = classless_routes(&data).collect();
        let route = |destination: [u8; 4], prefix_len, next_hop: [u8; 4]| LeaseRoute {
            destination: destination.into(),
            prefix_len,
            next_hop: next_hop.into(),
        };
        let expected = [
            route([169, 254, 169, 254], 32, [10, 0, 0, 2]),
            route([0; 4], 0, [10, 0, 0, 1]),
            route([172, 16, 0, 0], 12, [0; 4]),
        ];
        assert_eq!(routes, expected);
    }

    #[test]
    fn malformed_routes_end_the_list() {
        assert_eq!(classless_routes(&[33, 1, 2, 3, 4, 5, 1, 2, 3, 4]).count(), 0);
        assert_eq!(classless_routes(&[24, 10, 0]).count(), 0);
        assert_eq!(classless_routes(&[0, 10, 0, 0, 1, 8]).count(), 1);
    }
}
