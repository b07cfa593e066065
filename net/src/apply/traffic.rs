//! What has passed a host's ports and routers, as the kernel has counted it.

use std::collections::BTreeMap;

use super::{Error, Host};
use crate::names::LinkKind;
use crate::spec::{InterfaceName, LinkCounts, RouterTraffic};

impl Host {
    /// What has passed one port's tap; nothing if there is none.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn tap_counts(&mut self, name: &str) -> Result<Option<LinkCounts>, Error> {
        self.check_name(LinkKind::Tap, name)?;
        self.links.counts(name).map_err(Error::Link)
    }

    /// What has passed each tap that is ours.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn taps_counts(&mut self) -> Result<BTreeMap<InterfaceName, LinkCounts>, Error> {
        let tag = self.tag;
        let mut taps = self.links.all_counts().map_err(Error::Link)?;
        taps.retain(|name, _| tag.kind_of(name) == Some(LinkKind::Tap));
        Ok(taps)
    }

    /// What has passed a router; nothing if there is none.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn router_traffic(&mut self, name: &str) -> Result<Option<RouterTraffic>, Error> {
        self.check_namespace(name)?;
        let tag = self.tag;
        let Some(inside) = self.inside(name)? else { return Ok(None) };
        let mut links = inside.links.all_counts().map_err(Error::Link)?;
        links.retain(|name, _| tag.kind_of(name) == Some(LinkKind::Router));
        let floating = inside.nat.counts().map_err(Error::Filter)?;
        let meters = inside.nat.meter_counts().map_err(Error::Filter)?;
        Ok(Some(RouterTraffic { links, floating, meters }))
    }
}
