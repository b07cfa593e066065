//! What the host's kernel can do for networks, tried for real in a network namespace that is thrown away: nothing on
//! the host changes.

use std::io;
use std::net::Ipv4Addr;
use std::thread;

use nix::sched::{CloneFlags, unshare};

use crate::keeper::sentence;
use crate::names::OwnerTag;
use crate::netlink::{self, Request};
use crate::nftables::Tracking;
use crate::spec::{Nat, Outside};
use crate::{nftables, tap};

/// One thing a host can do or cannot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facility {
    /// Its short name, such as `vxlan`.
    pub name: &'static str,
    /// Whether it works.
    pub works: bool,
    /// One sentence: what follows, and what to do if it does not work.
    pub sentence: String,
}

/// What went wrong before anything could be tried.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No network namespace of our own: it needs root or `CAP_SYS_ADMIN`.
    #[error("make a network namespace")]
    Namespace(#[source] io::Error),
    /// The thread that tries.
    #[error("start a thread")]
    Thread(#[source] io::Error),
    /// No rtnetlink.
    #[error("open rtnetlink")]
    Netlink(#[source] netlink::Error),
    /// The trial ended early.
    #[error("the trial of the network ended early")]
    EndedEarly,
}

const TAG: OwnerTag = OwnerTag::new(0);

/// Tries everything, in a fixed order. Takes some milliseconds, or longer where the kernel loads modules.
///
/// # Errors
/// Only if nothing can be tried at all.
pub fn probe() -> Result<Vec<Facility>, Error> {
    let trial = || {
        unshare(CloneFlags::CLONE_NEWNET).map_err(|errno| Error::Namespace(errno.into()))?;
        let mut links = netlink::Client::open().map_err(Error::Netlink)?;
        Ok(try_all(&mut links))
    };
    let thread =
        thread::Builder::new().name("network-probe".to_owned()).spawn(trial).map_err(Error::Thread)?;
    thread.join().unwrap_or(Err(Error::EndedEarly))
}

/// Whether this kernel carries VLANs (802.1Q), as far as we may ask. Changes nothing: a device is asked for on a link that
/// is not there. A kernel that has it as a module loads it.
#[must_use]
pub fn carries_vlans() -> bool {
    const NO_LINK: u32 = i32::MAX as u32;
    let trial = Request::create_vlan(&TAG.vlan(u32::MAX), [2, 0, 0, 0, 0, 3], NO_LINK, 1);
    let refused = netlink::Client::open().and_then(|mut links| links.send(vec![trial]));
    let has_not = |error: &netlink::Error| matches!(error.refusal(), Some(libc::EOPNOTSUPP | libc::EPERM));
    refused.is_ok_and(|refused| !refused.iter().any(has_not))
}

/// Whether all networks can share one VXLAN device here, as far as we may ask; tried as [`probe`] tries it.
#[must_use]
pub fn shares_vxlan() -> bool {
    let facilities = probe().unwrap_or_default();
    facilities.iter().any(|facility| facility.name == "shared vxlan" && facility.works)
}

fn try_all(links: &mut netlink::Client) -> Vec<Facility> {
    let name = TAG.tap(1);
    let tun = tap::create(&name).map(drop);
    let bridge = links.execute(vec![Request::create_bridge(&TAG.bridge(1), [2, 0, 0, 0, 0, 1])]);
    let parent = if bridge.is_ok() { TAG.bridge(1) } else { "lo".to_owned() };
    let vxlan = Request::create_vxlan(&TAG.vxlan(1), [2, 0, 0, 0, 0, 2], Some(1), Ipv4Addr::LOCALHOST);
    let vxlan = links.execute(vec![vxlan]);
    let [fabric, shared] = TAG.fabric();
    let shared =
        links.execute(vec![Request::create_aware_bridge(&fabric, [2, 0, 0, 0, 0, 4])]).and_then(|()| {
            let local = Ipv4Addr::LOCALHOST;
            links.execute(vec![Request::create_vxlan(&shared, [2, 0, 0, 0, 0, 5], None, local)])
        });
    let vlan = match links.link(&parent) {
        Ok(Some(link)) => {
            links.execute(vec![Request::create_vlan(&TAG.vlan(1), [2, 0, 0, 0, 0, 3], link.index, 5)])
        }
        Ok(None) => links.execute(vec![Request::create_vlan(&TAG.vlan(1), [2, 0, 0, 0, 0, 3], 0, 5)]),
        Err(error) => Err(error),
    };
    let nftables = nftables::Client::open(TAG).and_then(|mut filters| filters.rebuild(&Default::default()));
    let tracking = nftables::Client::open(TAG).and_then(|mut filters| filters.tracking());
    let conntrack = match &tracking {
        Ok(Tracking::Bridge) => Ok(()),
        Ok(Tracking::Inet) => Err(Lacks("nf_conntrack_bridge")),
        Err(_) => Err(Lacks("nf_tables")),
    };
    let nat = Nat {
        outside: Some(Outside { link: TAG.router_link(1), hide_behind: Some(Ipv4Addr::LOCALHOST) }),
        ..Nat::default()
    };
    let translation = nftables::nat::Client::open().and_then(|mut client| client.rebuild(&nat));
    vec![
        facility(
            "tun",
            tun,
            "Guests get taps.",
            "Guests can have no network: load the module `tun`, and let /dev/net/tun be opened",
        ),
        facility(
            "bridge",
            bridge,
            "Networks get bridges.",
            "There can be no networks: load the module `bridge`",
        ),
        facility(
            "vxlan",
            vxlan,
            "Networks can span hosts.",
            "Networks cannot span hosts: load the module `vxlan`",
        ),
        facility(
            "shared vxlan",
            shared,
            "All networks can share one VXLAN device.",
            "Each network that spans hosts has a VXLAN device of its own: one for all needs a kernel with VLANs on bridges",
        ),
        facility(
            "vlan",
            vlan,
            "Provider networks can be VLANs (802.1Q), and trunks carry ports in VLANs.",
            "Provider networks cannot be VLANs, and trunks stay down: load the module `8021q`",
        ),
        facility(
            "nftables",
            nftables,
            "Guests are held to their own addresses.",
            "No port with port security can come up: load the module `nf_tables` and those of its bridge family",
        ),
        facility(
            "nat",
            translation,
            "Routers hide their networks, and floating IPs lead in.",
            "Routers translate no addresses: load the modules `nf_nat`, `nft_nat` and `nft_chain_nat`",
        ),
        facility(
            "bridge conntrack",
            conntrack,
            "Security groups are stateful by the bridge family's own tracking.",
            "Security groups track connections through br_netfilter instead",
        ),
        bridge_netfilter(matches!(tracking, Ok(Tracking::Bridge))),
    ]
}

/// What a kernel lacks.
#[derive(Debug, thiserror::Error)]
#[error("no {0}")]
struct Lacks(&'static str);

fn bridge_netfilter(is_spare: bool) -> Facility {
    let works = crate::apply::has_bridge_netfilter();
    let sentence = if is_spare {
        "Nothing follows: the bridge family tracks connections itself."
    } else if works {
        "Security groups are stateful."
    } else {
        "Replies pass security groups only where a rule lets them in: load the module `br_netfilter`."
    };
    Facility { name: "br_netfilter", works, sentence: sentence.to_owned() }
}

fn facility<E: std::error::Error>(
    name: &'static str,
    result: Result<(), E>,
    then: &str,
    otherwise: &str,
) -> Facility {
    let sentence = match &result {
        Ok(()) => then.to_owned(),
        Err(error) => format!("{otherwise} ({}).", sentence(error)),
    };
    Facility { name, works: result.is_ok(), sentence }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn probe_tries_everything_and_leaves_nothing() {
        crate::testing::in_own_network(|| {
            let before = netlink::Client::open().unwrap().links().unwrap();
            let facilities = probe().unwrap();
            for Facility { name, works, sentence } in &facilities {
                println!("{name}: {works}. {sentence}");
            }
            let works = |name| facilities.iter().any(|facility| facility.name == name && facility.works);
            assert!(works("tun") && works("bridge") && works("nftables") && works("nat"));
            assert_eq!(facilities.len(), 9);
            assert_eq!(netlink::Client::open().unwrap().links().unwrap(), before);
        });
    }
}
