//! What has passed a host's ports and routers, as the kernel has counted it.

use super::{Error, Host};
use crate::names::LinkKind;
use crate::spec::{LinkCounts, RouterTraffic, Traffic};

impl Host {
    /// What has passed one port's tap; nothing if there is none.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn tap_counts(&mut self, name: &str) -> Result<Option<LinkCounts>, Error> {
        self.check_name(LinkKind::Tap, name)?;
        self.links.counts(name).map_err(Error::Link)
    }

    /// What has passed each tap and router that is ours.
    ///
    /// # Errors
    /// The kernel's answer.
    pub fn traffic(&mut self) -> Result<Traffic, Error> {
        let tag = self.tag;
        let mut taps = self.links.all_counts().map_err(Error::Link)?;
        taps.retain(|name, _| tag.kind_of(name) == Some(LinkKind::Tap));
        let mut traffic = Traffic { taps, ..Traffic::default() };
        for name in self.router_names()? {
            let Some(inside) = self.inside(&name)? else { continue };
            let mut links = inside.links.all_counts().map_err(Error::Link)?;
            links.retain(|name, _| tag.kind_of(name) == Some(LinkKind::Router));
            let floating = inside.nat.counts().map_err(Error::Filter)?;
            let meters = inside.nat.meter_counts().map_err(Error::Filter)?;
            traffic.routers.insert(name, RouterTraffic { links, floating, meters });
        }
        Ok(traffic)
    }
}
