//! How a network's frames travel: chosen when it is made, as no other's do, and kept for its life.

use std::collections::BTreeSet;
use std::ops::RangeInclusive;

use super::{NetworkCreate, PUBLIC_NAME};
use crate::driver::provider::{Provider, VLANS};
use crate::error::{Error, Result};
use crate::model::network::{Network, NetworkKind};
use crate::store::Cache;

/// The MTU of networks whose frames travel as they are.
pub const MTU_FLAT: u32 = 1500;
/// The MTU of networks in VXLAN over a 1500-byte path: the outer IPv4, UDP and VXLAN headers and the inner
/// Ethernet header take 50 bytes (RFC 7348 §5).
pub const MTU_VXLAN: u32 = 1450;
/// The greatest VXLAN network identifier: 24 bits.
const VNI_MAX: u32 = (1 << 24) - 1;

/// What fits the kind.
pub(super) fn default_mtu(kind: &NetworkKind) -> u32 {
    match kind {
        NetworkKind::Flat { .. } | NetworkKind::Vlan { .. } => MTU_FLAT,
        NetworkKind::Vxlan { .. } => MTU_VXLAN,
    }
}

/// The key that keeps a kind's identifier unique.
pub(super) fn kind_key(kind: &NetworkKind) -> String {
    match kind {
        NetworkKind::Flat { physical_network } => format!("unique/physical-network/{physical_network}"),
        NetworkKind::Vlan { physical_network, vlan } => format!("unique/vlan/{physical_network}/{vlan}"),
        NetworkKind::Vxlan { vni } => format!("unique/vni/{vni}"),
    }
}

/// How the network's frames shall travel, as no other's do. Neutron's `type_flat`, `type_vlan` and `type_tunnel` say
/// what is refused and how.
pub(super) fn choose_kind(
    cache: &Cache,
    providers: &[Provider],
    siblings: &[Network],
    request: &NetworkCreate,
) -> Result<NetworkKind> {
    let stored = cache.list::<Network>();
    let networks: Vec<&Network> = stored.iter().map(|stored| &stored.row).chain(siblings).collect();
    let kind = match request.network_type.as_deref() {
        None | Some("vxlan") => {
            if request.physical_network.is_some() {
                return Err(bad("provider:physical_network specified for vxlan network."));
            }
            NetworkKind::Vxlan { vni: choose_vni(&networks, request.segmentation_id)? }
        }
        Some("flat") => choose_flat(providers, request)?,
        Some("vlan") => choose_vlan(providers, &networks, request)?,
        Some(other) => {
            return Err(bad(&format!("Invalid network type '{other}'; flat, vlan and vxlan are known.")));
        }
    };
    if !networks.iter().any(|network| network.kind == kind) {
        return Ok(kind);
    }
    Err(match &kind {
        NetworkKind::Flat { physical_network } => Error::conflict(
            "FlatNetworkInUse",
            format!("Unable to create the flat network. Physical network {physical_network} is in use."),
        ),
        NetworkKind::Vlan { physical_network, vlan } => Error::conflict(
            "VlanIdInUse",
            format!(
                "Unable to create the network. The VLAN {vlan} on physical network {physical_network} is in use."
            ),
        ),
        NetworkKind::Vxlan { vni } => Error::conflict(
            "TunnelIdInUse",
            format!("Unable to create the network. The tunnel ID {vni} is in use."),
        ),
    })
}

fn bad(what: &str) -> Error {
    Error::invalid("InvalidInput", format!("Invalid input for operation: {what}"))
}

fn none_left() -> Error {
    Error::conflict(
        "NoNetworkAvailable",
        "Unable to create the network. No tenant network is available for allocation.",
    )
}

fn choose_flat(providers: &[Provider], request: &NetworkCreate) -> Result<NetworkKind> {
    let name = request.physical_network.as_deref();
    let name = name.ok_or_else(|| bad("physical_network required for flat provider network."))?;
    if request.segmentation_id.is_some() {
        return Err(bad("segmentation_id specified for flat provider network."));
    }
    // The host's own network is on no interface.
    if name != PUBLIC_NAME && !providers.iter().any(|provider| provider.name == name) {
        return Err(bad(&format!("physical_network '{name}' unknown for flat provider network.")));
    }
    Ok(NetworkKind::Flat { physical_network: name.to_owned() })
}

/// The wished VLAN of a physical network, or the lowest free one of those to be given.
fn choose_vlan(
    providers: &[Provider],
    networks: &[&Network],
    request: &NetworkCreate,
) -> Result<NetworkKind> {
    let named = match request.physical_network.as_deref() {
        Some(name) => {
            let provider = providers.iter().find(|provider| provider.name == name);
            let unknown = || bad(&format!("physical_network '{name}' unknown for VLAN provider network."));
            std::slice::from_ref(provider.ok_or_else(unknown)?)
        }
        None if request.segmentation_id.is_some() => {
            return Err(bad("segmentation_id requires physical_network for VLAN provider network."));
        }
        None => providers,
    };
    if let (Some(id), [provider]) = (request.segmentation_id, named) {
        let vlan = u16::try_from(id).ok().filter(|vlan| VLANS.contains(vlan)).ok_or_else(|| {
            bad(&format!("segmentation_id out of range ({} through {}).", VLANS.start(), VLANS.end()))
        })?;
        return Ok(NetworkKind::Vlan { physical_network: provider.name.clone(), vlan });
    }
    let free = named.iter().find_map(|provider| {
        let vlan = free_vlan(networks, &provider.name, provider.vlans.clone()?)?;
        Some(NetworkKind::Vlan { physical_network: provider.name.clone(), vlan })
    });
    free.ok_or_else(none_left)
}

fn free_vlan(networks: &[&Network], name: &str, mut vlans: RangeInclusive<u16>) -> Option<u16> {
    let taken: BTreeSet<u16> = networks
        .iter()
        .filter_map(|network| match &network.kind {
            NetworkKind::Vlan { physical_network, vlan } if physical_network == name => Some(*vlan),
            _ => None,
        })
        .collect();
    vlans.find(|vlan| !taken.contains(vlan))
}

/// The wished VXLAN network identifier, or the lowest that no network has.
fn choose_vni(networks: &[&Network], wished: Option<u32>) -> Result<u32> {
    match wished {
        Some(vni) if (1..=VNI_MAX).contains(&vni) => Ok(vni),
        Some(vni) => Err(bad(&format!("segmentation_id {vni} is not between 1 and {VNI_MAX}."))),
        None => {
            let taken: BTreeSet<u32> = networks
                .iter()
                .filter_map(|network| match network.kind {
                    NetworkKind::Vxlan { vni } => Some(vni),
                    NetworkKind::Flat { .. } | NetworkKind::Vlan { .. } => None,
                })
                .collect();
            (1..=VNI_MAX).find(|vni| !taken.contains(vni)).ok_or_else(none_left)
        }
    }
}
