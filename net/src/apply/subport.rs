//! VLANs of a tap's frames as ports of their own (IEEE 802.1Q).
//!
//! The kernel hands a tagged frame to the device of its VLAN before the tap's bridge sees it, and what it has no device for
//! is dropped there as any frame with a tag.

use super::{Error, Host, setting::set_ipv6};
use crate::names::{LinkKind, link_mac};
use crate::netlink::Request;
use crate::spec::{HostNetwork, Subport};
use crate::tap;

impl Host {
    /// Makes one port that is a VLAN of a tap's frames ready: as [`Host::add_port`], which has made the tap.
    ///
    /// # Errors
    /// As [`Error`] says.
    pub fn add_subport(&mut self, wanted: &HostNetwork, name: &str) -> Result<(), Error> {
        let port = wanted.taps.get(name).ok_or_else(|| Error::NotWanted(name.to_owned()))?;
        let on = port.vlan.as_ref().ok_or_else(|| Error::NotWanted(name.to_owned()))?;
        let bridge = wanted.bridges.get(&port.bridge).ok_or_else(|| Error::NotWanted(port.bridge.clone()))?;
        self.check_name(LinkKind::Tap, name)?;
        self.check_name(LinkKind::Bridge, &port.bridge)?;
        self.set_port_filter(name, Some(wanted))?;
        self.bridges.insert(name.to_owned(), port.bridge.clone());
        let master = self.ensure_bridge(&port.bridge, bridge, wanted)?;
        let parent = self.existing(&on.parent)?;
        let present = self.owned(name)?;
        let fits =
            present.as_ref().is_some_and(|link| link.vlan == Some(on.id) && link.parent == Some(parent));
        if !fits {
            self.delete_link(name)?;
            self.create_subport(name, on)?;
        }
        self.execute([Request::configure(name, port.mtu, Some(master))])?;
        tap::settle(name).map_err(Error::Tap)
    }

    pub(super) fn create_subport(&mut self, name: &str, on: &Subport) -> Result<(), Error> {
        self.check_name(LinkKind::Tap, name)?;
        self.check_name(LinkKind::Tap, &on.parent)?;
        let parent = self.existing(&on.parent)?;
        self.execute([Request::create_vlan(name, link_mac(name), parent, on.id)])?;
        self.execute([self.alias(name)])?;
        set_ipv6(name, false)
    }
}
