//! IPv6 subnets: how hosts on them come to their addresses, and the ports of subnets on which they choose these themselves.

use ipnet::IpNet;

use crate::Control;
use crate::error::{Error, Result};
use crate::model::network::{Ipv6Mode, Port, Subnet};
use crate::service::network::touch;
use crate::service::port::{self, auto_address};
use crate::store::{Cache, Stored, Txn};

/// The length of prefixes on which hosts choose the rest of their addresses (RFC 4862 §5.5.3, RFC 4291 §2.5.1).
const AUTO_PREFIX_BITS: u8 = 64;
/// Ports that are changed in one transaction: each has a row and up to two keys.
const PORTS_AT_ONCE: usize = 20;

/// Refuses modes that do not go together, or not with the rest of the subnet.
pub(super) fn check_modes(
    cidr: &IpNet,
    enable_dhcp: bool,
    (ra_mode, address_mode): (Option<Ipv6Mode>, Option<Ipv6Mode>),
) -> Result<()> {
    let invalid =
        |what: String| Err(Error::invalid("InvalidInput", format!("Invalid input for operation: {what}.")));
    if cidr.addr().is_ipv4() {
        return match (ra_mode, address_mode) {
            (None, None) => Ok(()),
            (Some(_), _) => invalid("ipv6_ra_mode is not valid when ip_version is 4".into()),
            (None, Some(_)) => invalid("ipv6_address_mode is not valid when ip_version is 4".into()),
        };
    }
    let modes = [ra_mode, address_mode];
    if !enable_dhcp && modes.iter().any(Option::is_some) {
        return invalid(
            "ipv6_ra_mode or ipv6_address_mode cannot be set when enable_dhcp is set to False".into(),
        );
    }
    if let (Some(ra), Some(address)) = (ra_mode, address_mode)
        && ra != address
    {
        return invalid(format!(
            "ipv6_ra_mode set to '{}' with ipv6_address_mode set to '{}' is not valid. If both attributes are set, \
             they must be the same value",
            ra.name(),
            address.name()
        ));
    }
    let auto = modes.into_iter().flatten().any(Ipv6Mode::is_auto);
    if auto && cidr.prefix_len() != AUTO_PREFIX_BITS {
        return invalid(format!(
            "Invalid CIDR {cidr} for IPv6 address mode. OpenStack uses the EUI-64 address format, which requires the \
             prefix to be /64"
        ));
    }
    Ok(())
}

impl Control {
    /// Gives the ports that are on the network of a new subnet the addresses that their hosts choose there.
    pub(super) async fn auto_addresses_add(&self, subnet: &Subnet) -> Result<()> {
        if !subnet.is_auto() {
            return Ok(());
        }
        loop {
            let left = self
                .db
                .transact_with(|cache| {
                    if cache.get::<Subnet>(&subnet.standard.id).is_none() {
                        return Ok((Txn::new(), false));
                    }
                    let lacks = |port: &Port| {
                        port.network_id == subnet.network_id
                            && !port.device_owner.starts_with("network:")
                            && !port.fixed_ips.iter().any(|ip| ip.subnet_id == subnet.standard.id)
                    };
                    let ports = cache.filter::<Port>(lacks);
                    let txn = ports.iter().take(PORTS_AT_ONCE).fold(Txn::new(), |txn, stored| {
                        let mut changed = stored.row.clone();
                        changed.fixed_ips.push(auto_address(subnet, changed.mac));
                        touch(&mut changed.standard);
                        port::change_port(txn, stored, &changed)
                    });
                    Ok((txn, ports.len() > PORTS_AT_ONCE))
                })
                .await?;
            if !left {
                return Ok(());
            }
        }
    }

    /// Takes the addresses of a subnet on which hosts choose them from their ports, which stay.
    pub(super) async fn auto_addresses_remove(&self, subnet: &Subnet) -> Result<()> {
        if !subnet.is_auto() {
            return Ok(());
        }
        loop {
            let left = self
                .db
                .transact_with(|cache| {
                    let ports = with_addresses(cache, &subnet.standard.id);
                    let txn = ports.iter().take(PORTS_AT_ONCE).fold(Txn::new(), |txn, stored| {
                        let mut changed = stored.row.clone();
                        changed.fixed_ips.retain(|ip| ip.subnet_id != subnet.standard.id);
                        touch(&mut changed.standard);
                        port::change_port(txn, stored, &changed)
                    });
                    Ok((txn, ports.len() > PORTS_AT_ONCE))
                })
                .await?;
            if !left {
                return Ok(());
            }
        }
    }
}

/// The ports with addresses of a subnet that are not the network's own.
fn with_addresses(cache: &Cache, subnet_id: &str) -> Vec<std::sync::Arc<Stored<Port>>> {
    cache.filter::<Port>(|port| {
        !port.device_owner.starts_with("network:")
            && port.fixed_ips.iter().any(|ip| ip.subnet_id == subnet_id)
    })
}
