//! Taps, and what carries VLANs of their frames: devices of ours on them that are ports like taps.
//!
//! A tap takes what is on it along when it goes, so what is on one comes after it.

use super::{Observed, ObservedVlan, Operation, plan_port};
use crate::spec::{HostNetwork, InterfaceName, Subport};

/// The taps that nobody wants, and what is on a tap that nobody wants as it is.
pub(super) fn superfluous<'a>(wanted: &'a HostNetwork, observed: &'a Observed) -> Vec<&'a InterfaceName> {
    let taps = observed.taps.keys().filter(|name| !is_tap(wanted, name));
    let stays = |(name, present): &(&InterfaceName, &ObservedVlan)| {
        let on = wanted.taps.get(*name).and_then(|tap| tap.vlan.as_ref());
        on.is_some_and(|on| is_same(present, on))
    };
    let subports = observed.subports.iter().filter(|found| !stays(found)).map(|(name, _)| name);
    subports.chain(taps).collect()
}

/// Whether a tap of this name is wanted, rather than something on one.
fn is_tap(wanted: &HostNetwork, name: &str) -> bool {
    wanted.taps.get(name).is_some_and(|tap| tap.vlan.is_none())
}

fn is_same(present: &ObservedVlan, on: &Subport) -> bool {
    present.interface.as_ref() == Some(&on.parent) && present.vlan == on.id
}

pub(super) fn plan_taps(operations: &mut Vec<Operation>, wanted: &HostNetwork, observed: &Observed) {
    for (name, tap) in wanted.taps.iter().filter(|(_, tap)| tap.vlan.is_none()) {
        let present = observed.taps.get(name);
        if present.is_none() {
            operations.push(Operation::CreateTap { name: name.clone() });
        }
        plan_port(operations, name, &tap.bridge, tap.mtu, present);
    }
    for (name, tap) in &wanted.taps {
        let Some(on) = &tap.vlan else { continue };
        let present = observed.subports.get(name).filter(|present| is_same(present, on));
        // It went with its tap.
        let present =
            present.filter(|_| observed.taps.contains_key(&on.parent) && is_tap(wanted, &on.parent));
        if present.is_none() {
            operations.push(Operation::CreateSubport { name: name.clone(), on: on.clone() });
        }
        plan_port(operations, name, &tap.bridge, tap.mtu, present.map(|present| &present.port));
    }
}
