//! For whose ports a subnet is: by what owns them, whose names begin as the services' do (Neutron's extension
//! `subnet-service-types`).

use crate::error::{Error, Result};
use crate::model::network::Subnet;
use crate::service::port::OWNER_DHCP;

/// The most service types of one subnet.
const SERVICE_TYPES_MAX: usize = 32;
/// The longest service type in characters, as a port's `device_owner`.
const LENGTH_MAX: usize = 255;
/// How owners of ports begin.
const PREFIXES: [&str; 5] = ["network:", "compute:", "neutron:", "baremetal:", "trunk:"];

/// Refuses what owns no port.
pub(super) fn check(service_types: &[String]) -> Result<()> {
    if service_types.len() > SERVICE_TYPES_MAX {
        return Err(Error::invalid(
            "InvalidInput",
            format!("At most {SERVICE_TYPES_MAX} service_types are possible."),
        ));
    }
    for service_type in service_types {
        let is_owner = PREFIXES.iter().any(|prefix| service_type.starts_with(prefix));
        if !is_owner || service_type.chars().count() > LENGTH_MAX {
            let shown: String = service_type.chars().take(LENGTH_MAX).collect();
            return Err(Error::invalid(
                "InvalidSubnetServiceType",
                format!("Subnet service type {shown} does not correspond to a valid device owner."),
            ));
        }
    }
    Ok(())
}

/// Each once, in the order in which they are given.
pub(super) fn distinct(service_types: &[String]) -> Vec<String> {
    let mut kept: Vec<String> = Vec::with_capacity(service_types.len());
    for service_type in service_types {
        if !kept.contains(service_type) {
            kept.push(service_type.clone());
        }
    }
    kept
}

/// Whether ports of this owner get addresses of the subnet that nobody asks for.
pub(crate) fn serves(subnet: &Subnet, device_owner: &str) -> bool {
    subnet.service_types.is_empty()
        || subnet.service_types.iter().any(|service_type| service_type == device_owner)
        || (device_owner == OWNER_DHCP && subnet.enable_dhcp)
}
