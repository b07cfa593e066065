//! What is held of QoS policies: limits both ways and the mark, by each guest's network device and by routers for addresses
//! outside. Nothing is reserved anywhere, so rules of least rates are refused where they would have to hold.

use std::net::IpAddr;

use net::spec::{AddressLimit, Direction, LimitUnit};
use vmm::config::{LIMIT_MAX, RateLimit, Traffic, TransferLimits};

use super::type_name;
use crate::error::{Error, Result};
use crate::model::network::qos::{QosPolicy, QosRule, QosRuleKind};
use crate::model::network::{Network, Port};
use crate::store::Cache;

/// Bytes a second in a kilobit a second, as Neutron's drivers take it.
const BYTES_PER_KILOBIT: u64 = 125;
/// Packets in a thousand.
const PACKETS_PER_THOUSAND: u64 = 1000;
/// A burst that nobody gave is this part of what the rate allows in a second (Neutron's `DEFAULT_BURST_RATE`).
const BURST_PERCENT: u64 = 80;

/// Who has a policy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Holder<'a> {
    /// The port by this id.
    Port(&'a str),
    /// The network by this id.
    Network(&'a str),
    /// A floating IP or a router's way out.
    Outside,
}

/// The policy of a floating IP or a router's way out, if it has one.
pub(crate) fn outside(policy: &Option<String>) -> impl Iterator<Item = (Holder<'_>, &String)> {
    policy.iter().map(|policy| (Holder::Outside, policy))
}

/// Refuses a policy with a rule that cannot be held where somebody would have it.
///
/// # Errors
/// `Conflict` (`QosRuleNotSupported`, `QosRuleNotSupportedByNetwork`).
pub(super) fn check_held(policy: &QosPolicy, holder: Holder<'_>) -> Result<()> {
    let unheld = policy.rules.iter().find(|rule| !is_held(&rule.kind)).map(|rule| type_name(&rule.kind));
    let Some(name) = unheld else { return Ok(()) };
    let refused = |reason, by: &str, id: &str| {
        Err(Error::conflict(reason, format!("Rule {name} is not supported by {by} {id}")))
    };
    match holder {
        Holder::Port(id) => refused("QosRuleNotSupported", "port", id),
        Holder::Network(id) => refused("QosRuleNotSupportedByNetwork", "network", id),
        Holder::Outside => Ok(()),
    }
}

/// The same where a policy that somebody has already is about to have other rules.
///
/// # Errors
/// As [`check_held`].
pub(super) fn check_users(cache: &Cache, policy: &QosPolicy) -> Result<()> {
    let has = |id: &Option<String>| id.as_ref() == Some(&policy.standard.id);
    if let Some(network) = cache.find::<Network>(|network| has(&network.qos_policy_id)) {
        check_held(policy, Holder::Network(&network.row.standard.id))?;
    }
    if let Some(port) = cache.find::<Port>(|port| has(&port.qos_policy_id)) {
        check_held(policy, Holder::Port(&port.row.standard.id))?;
    }
    Ok(())
}

/// Whether guests are held to rules of this kind.
fn is_held(kind: &QosRuleKind) -> bool {
    match kind {
        QosRuleKind::BandwidthLimit { .. }
        | QosRuleKind::PacketRateLimit { .. }
        | QosRuleKind::DscpMarking { .. } => true,
        QosRuleKind::MinimumBandwidth { .. } | QosRuleKind::MinimumPacketRate { .. } => false,
    }
}

/// What a port's guest is held to: its own policy's rules, or else its network's.
pub(crate) fn of_port(cache: &Cache, port: &Port, network: &Network) -> Traffic {
    let policy = port.qos_policy_id.as_ref().or(network.qos_policy_id.as_ref());
    let policy = policy.and_then(|id| cache.get::<QosPolicy>(id));
    policy.map(|policy| traffic(&policy.row.rules)).unwrap_or_default()
}

/// What an address outside is held to, a floating IP's or a router's own, and the code point of what leaves from it: by its own
/// policy, or else that of the network that it is on, as in Neutron.
pub(crate) fn of_address(
    cache: &Cache,
    own: Option<&String>,
    network_id: &str,
    address: IpAddr,
) -> (Vec<AddressLimit>, Option<u8>) {
    let network = cache.get::<Network>(network_id);
    let policy = own.or(network.as_ref().and_then(|network| network.row.qos_policy_id.as_ref()));
    let Some(policy) = policy.and_then(|id| cache.get::<QosPolicy>(id)) else { return (Vec::new(), None) };
    let Traffic { ingress, egress, dscp } = traffic(&policy.row.rules);
    let limits = [
        (Direction::Ingress, LimitUnit::Bytes, ingress.bytes),
        (Direction::Ingress, LimitUnit::Packets, ingress.operations),
        (Direction::Egress, LimitUnit::Bytes, egress.bytes),
        (Direction::Egress, LimitUnit::Packets, egress.operations),
    ];
    let held = limits.into_iter().filter_map(|(direction, unit, limit)| {
        let RateLimit { per_second, burst } = limit?;
        Some(AddressLimit { address, direction, unit, per_second, burst: burst.unwrap_or(per_second) })
    });
    (held.collect(), dscp)
}

/// A rate of zero limits nothing, as with Neutron's drivers.
fn traffic(rules: &[QosRule]) -> Traffic {
    let mut traffic = Traffic::default();
    let way = |traffic: &mut Traffic, direction, set: &dyn Fn(&mut TransferLimits)| match direction {
        Direction::Ingress => set(&mut traffic.ingress),
        Direction::Egress => set(&mut traffic.egress),
    };
    for rule in rules {
        match rule.kind {
            QosRuleKind::BandwidthLimit { max_kbps, max_burst_kbps, direction } => {
                let limit = limit(max_kbps, max_burst_kbps, BYTES_PER_KILOBIT);
                way(&mut traffic, direction, &|limits| limits.bytes = limit);
            }
            QosRuleKind::PacketRateLimit { max_kpps, max_burst_kpps, direction } => {
                let limit = limit(max_kpps, max_burst_kpps, PACKETS_PER_THOUSAND);
                way(&mut traffic, direction, &|limits| limits.operations = limit);
            }
            QosRuleKind::DscpMarking { dscp_mark } => traffic.dscp = Some(dscp_mark),
            QosRuleKind::MinimumBandwidth { .. } | QosRuleKind::MinimumPacketRate { .. } => {}
        }
    }
    traffic
}

fn limit(max: u32, burst: u32, unit: u64) -> Option<RateLimit> {
    let per_second = (u64::from(max) * unit).min(LIMIT_MAX);
    let burst = match burst {
        0 => (per_second * BURST_PERCENT / 100).max(1),
        burst => (u64::from(burst) * unit).min(LIMIT_MAX),
    };
    (per_second > 0).then_some(RateLimit { per_second, burst: Some(burst) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rules(kinds: impl IntoIterator<Item = QosRuleKind>) -> Vec<QosRule> {
        kinds.into_iter().map(|kind| QosRule { id: String::new(), kind }).collect()
    }

    #[test]
    fn rules_are_limits_in_bytes_and_packets_with_neutrons_burst() {
        let (max_burst_kbps, max_burst_kpps) = (0, 0);
        let found = traffic(&rules([
            QosRuleKind::BandwidthLimit { max_kbps: 1000, max_burst_kbps, direction: Direction::Egress },
            QosRuleKind::BandwidthLimit { max_kbps: 8, max_burst_kbps: 4, direction: Direction::Ingress },
            QosRuleKind::PacketRateLimit { max_kpps: 2, max_burst_kpps, direction: Direction::Ingress },
            QosRuleKind::DscpMarking { dscp_mark: 26 },
            QosRuleKind::MinimumBandwidth { min_kbps: 5, direction: Direction::Egress },
        ]));
        let rate = |per_second, burst| Some(RateLimit { per_second, burst: Some(burst) });
        let ingress = TransferLimits { bytes: rate(1000, 500), operations: rate(2000, 1600) };
        let egress = TransferLimits { bytes: rate(125_000, 100_000), operations: None };
        assert_eq!(found, Traffic { ingress, egress, dscp: Some(26) });
    }

    #[test]
    fn extremes_are_limits_that_a_device_takes_and_zero_is_none() {
        let direction = Direction::Egress;
        let most = QosRuleKind::BandwidthLimit {
            max_kbps: i32::MAX as u32,
            max_burst_kbps: i32::MAX as u32,
            direction,
        };
        let RateLimit { per_second, burst } = traffic(&rules([most])).egress.bytes.unwrap();
        assert!(per_second < LIMIT_MAX && burst.unwrap() < LIMIT_MAX);
        let most = QosRuleKind::PacketRateLimit {
            max_kpps: i32::MAX as u32,
            max_burst_kpps: i32::MAX as u32,
            direction,
        };
        let RateLimit { per_second, burst } = traffic(&rules([most])).egress.operations.unwrap();
        assert_eq!((per_second, burst), (LIMIT_MAX, Some(LIMIT_MAX)));
        let none = QosRuleKind::BandwidthLimit { max_kbps: 0, max_burst_kbps: 9, direction };
        assert_eq!(traffic(&rules([none])), Traffic::default());
    }
}
