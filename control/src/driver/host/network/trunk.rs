//! The ports that instances' devices carry in VLANs: trunks.

use net::names::{OwnerTag, short_id};
use net::spec::Subport;

use super::{Error, State, network_or_bare};
use crate::agent::protocol::NicWanted;
use crate::driver::Surroundings;

/// The ports that a device carries, each as it were with a device of its own.
pub(in crate::driver::host) fn carried(nic: &NicWanted) -> impl Iterator<Item = &NicWanted> {
    nic.sub_ports.iter().map(|sub_port| &sub_port.port)
}

/// The ports that no device carries any more of those that are still there.
pub(in crate::driver::host) fn dropped(before: &[NicWanted], now: &[NicWanted]) -> Vec<NicWanted> {
    let is_carried =
        |port: &&NicWanted| now.iter().flat_map(carried).any(|kept| kept.port_id == port.port_id);
    before.iter().flat_map(carried).filter(|port| !is_carried(port)).cloned().collect()
}

impl State {
    /// Takes over what is wanted of the ports that a device carries, where the kernel can carry them.
    pub(super) fn want_carried(
        &mut self,
        tag: OwnerTag,
        surroundings: &Surroundings,
        nic: &NicWanted,
    ) -> Result<(), Error> {
        if !self.carries_vlans {
            return Ok(());
        }
        let parent = tag.tap(short_id(nic.port_id.as_bytes()));
        for sub_port in &nic.sub_ports {
            let on = Subport { parent: parent.clone(), id: sub_port.vlan };
            let network = network_or_bare(surroundings, &sub_port.port);
            self.want_port(tag, surroundings, &network, &sub_port.port, Some(on))?;
        }
        Ok(())
    }

    /// Has a device whose tap is there carry them.
    pub(super) fn carry(&mut self, tag: OwnerTag, nic: &NicWanted) -> Result<(), Error> {
        if !self.carries_vlans && !nic.sub_ports.is_empty() {
            tracing::warn!(
                port.id = nic.port_id,
                "the port's trunk stays down: this kernel has no 802.1Q (module `8021q`)"
            );
            return Ok(());
        }
        let Self { host, wanted, .. } = self;
        let host = host.as_mut().expect("invariant: opened by every caller");
        for port in carried(nic) {
            host.add_subport(wanted, &tag.tap(short_id(port.port_id.as_bytes())))?;
        }
        Ok(())
    }
}
