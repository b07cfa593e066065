//! How bridges are joined to physical networks: by an interface that is not ours, or by a VLAN device of ours on it.
//!
//! Of such an interface only its bridge is changed, and that it is up. It is named in the host's configuration; that is
//! what makes it ours to use.

use super::{ObservedPort, Operation, plan_port};
use crate::spec::{Bridge, HostNetwork, InterfaceName, Uplink};

use super::Observed;

/// A VLAN device of ours.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObservedVlan {
    /// The interface that it is on, if there is one of a name.
    pub interface: Option<InterfaceName>,
    /// The VLAN identifier.
    pub vlan: u16,
    /// It as a port.
    pub port: ObservedPort,
}

/// One step about an uplink.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UplinkOperation {
    /// Make somebody's interface a port of a bridge and set it up. Refused while it has addresses or another's bridge.
    Attach {
        /// The bridge.
        bridge: InterfaceName,
    },
    /// Take somebody's interface out of our bridge.
    Release,
    /// Set somebody's interface up, which a VLAN device of ours is on.
    SetUp,
    /// Make a VLAN device with our alias; it is down.
    CreateVlan {
        /// The interface.
        interface: InterfaceName,
        /// The VLAN identifier.
        vlan: u16,
    },
}

/// The VLAN devices that no bridge wants, or not as they are.
pub(super) fn superfluous<'a>(
    wanted: &'a HostNetwork,
    observed: &'a Observed,
) -> impl Iterator<Item = &'a InterfaceName> {
    observed.vlans.iter().filter(|(name, present)| !is_wanted(wanted, name, present)).map(|(name, _)| name)
}

fn is_wanted(wanted: &HostNetwork, name: &str, present: &ObservedVlan) -> bool {
    wanted.bridges.values().any(|bridge| match &bridge.uplink {
        Some(Uplink::Vlan { interface, vlan, device }) => {
            device == name && present.interface.as_ref() == Some(interface) && present.vlan == *vlan
        }
        _ => false,
    })
}

pub(super) fn plan_uplinks(operations: &mut Vec<Operation>, wanted: &HostNetwork, observed: &Observed) {
    // An interface may go from one bridge to another.
    for (name, bridge) in &wanted.bridges {
        if let Some(Uplink::Flat { interface }) = &bridge.uplink {
            release_others(operations, name, interface, observed);
        }
    }
    for (name, bridge) in &wanted.bridges {
        match &bridge.uplink {
            None => {}
            Some(Uplink::Flat { interface }) => {
                let present = observed.foreign.get(interface);
                if !present.is_some_and(|port| port.is_up && port.bridge.as_ref() == Some(name)) {
                    let operation = UplinkOperation::Attach { bridge: name.clone() };
                    operations.push(Operation::Uplink(interface.clone(), operation));
                }
            }
            Some(Uplink::Vlan { interface, vlan, device }) => {
                plan_vlan(operations, (name, bridge), (interface, *vlan, device), observed);
            }
        }
    }
}

/// Takes interfaces out of a bridge that is another's now.
fn release_others(operations: &mut Vec<Operation>, bridge: &str, interface: &str, observed: &Observed) {
    for (other, port) in &observed.foreign {
        if other != interface && port.bridge.as_deref() == Some(bridge) {
            operations.push(Operation::Uplink(other.clone(), UplinkOperation::Release));
        }
    }
}

fn plan_vlan(
    operations: &mut Vec<Operation>,
    (name, bridge): (&str, &Bridge),
    (interface, vlan, device): (&InterfaceName, u16, &InterfaceName),
    observed: &Observed,
) {
    if !observed.foreign.get(interface).is_some_and(|port| port.is_up) {
        operations.push(Operation::Uplink(interface.clone(), UplinkOperation::SetUp));
    }
    let present = observed.vlans.get(device);
    let present =
        present.filter(|present| present.interface.as_ref() == Some(interface) && present.vlan == vlan);
    if present.is_none() {
        let operation = UplinkOperation::CreateVlan { interface: interface.clone(), vlan };
        operations.push(Operation::Uplink(device.clone(), operation));
    }
    plan_port(operations, device, name, bridge.mtu, present.map(|present| &present.port));
}
