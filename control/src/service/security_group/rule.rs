//! Rules of security groups as pure functions: what a rule may say, when two say the same, what a host is told of one.
//!
//! Must never know: who asks.

use std::sync::Arc;

use ipnet::IpNet;
use net::names::short_id;
use net::spec::{Direction, Remote, Rule};

use crate::error::{Error, Result};
use crate::model::network::address_group::AddressGroup;
use crate::model::network::{Port, SecurityGroupRule};
use crate::store::{Cache, Stored};

/// In [`net::spec::Rule::ports`] of an ICMP rule: any code.
pub const ICMP_CODE_ANY: u16 = u16::MAX;

/// What a rule is made from; `api` has read names and numbers, not judged them.
#[derive(Debug, Clone)]
pub struct RuleCreate {
    /// The group.
    pub security_group_id: String,
    /// Seen from the guest.
    pub direction: Direction,
    /// 4 or 6.
    pub ip_version: u8,
    /// A name or a number.
    pub protocol: Option<String>,
    /// First port, or ICMP type.
    pub port_range_min: Option<u16>,
    /// Last port, or ICMP code.
    pub port_range_max: Option<u16>,
    /// The other side by prefix.
    pub remote_ip_prefix: Option<IpNet>,
    /// The other side by group.
    pub remote_group_id: Option<String>,
    /// The other side by address group.
    pub remote_address_group_id: Option<String>,
    /// Free text.
    pub description: String,
}

/// A rule as the host's filter knows it: none for a protocol that stands in the store but not in our table, one for each
/// address of an address group.
pub(super) fn resolve(rule: &SecurityGroupRule, ports: &[Arc<Stored<Port>>], cache: &Cache) -> Vec<Rule> {
    let Some(id) = &rule.remote_address_group_id else {
        return resolve_one(rule, ports).into_iter().collect();
    };
    let group = cache.get::<AddressGroup>(id);
    let addresses = group.iter().flat_map(|group| &group.row.addresses);
    let own = addresses.filter(|prefix| prefix.addr().is_ipv4() == (rule.ip_version == 4));
    let of = |prefix: &IpNet| {
        let rule = SecurityGroupRule { remote_ip_prefix: Some(*prefix), ..rule.clone() };
        resolve_one(&rule, ports)
    };
    own.filter_map(of).collect()
}

fn resolve_one(rule: &SecurityGroupRule, ports: &[Arc<Stored<Port>>]) -> Option<Rule> {
    let protocol = match &rule.protocol {
        None => None,
        Some(name) => Some(protocol_number(name, rule.ip_version)?),
    };
    let remote = match (&rule.remote_group_id, rule.remote_ip_prefix) {
        (Some(group), _) => Remote::Members(
            short_id(group.as_bytes()),
            ports
                .iter()
                .filter(|port| port.row.security_groups.contains(group))
                .flat_map(|port| &port.row.fixed_ips)
                .filter(|ip| ip.ip_address.is_ipv4() == (rule.ip_version == 4))
                .map(|ip| IpNet::from(ip.ip_address))
                .collect(),
        ),
        (None, Some(prefix)) if prefix.prefix_len() > 0 => Remote::Prefix(prefix),
        (None, _) => Remote::Any,
    };
    let ports = match (rule.port_range_min, rule.port_range_max) {
        (Some(kind), None) if is_icmp(protocol) => Some((kind, ICMP_CODE_ANY)),
        (Some(min), max) => Some((min, max.unwrap_or(min))),
        (None, _) => None,
    };
    Some(Rule { direction: rule.direction, ip_version: rule.ip_version, protocol, ports, remote })
}

fn is_icmp(protocol: Option<u8>) -> bool {
    matches!(protocol, Some(1 | 58))
}

/// The number of a protocol by name (Neutron's `IP_PROTOCOL_MAP`) or by number.
pub fn protocol_number(name: &str, ip_version: u8) -> Option<u8> {
    Some(match name.to_ascii_lowercase().as_str() {
        "icmp" if ip_version == 6 => 58,
        "icmp" => 1,
        "icmpv6" | "ipv6-icmp" => 58,
        "igmp" => 2,
        "ipip" | "ipv6-encap" => return Some(if name.eq_ignore_ascii_case("ipip") { 4 } else { 41 }),
        "tcp" => 6,
        "egp" => 8,
        "udp" => 17,
        "dccp" => 33,
        "ipv6-route" => 43,
        "ipv6-frag" => 44,
        "rsvp" => 46,
        "gre" => 47,
        "esp" => 50,
        "ah" => 51,
        "ipv6-nonxt" => 59,
        "ipv6-opts" => 60,
        "ospf" => 89,
        "pgm" => 113,
        "vrrp" => 112,
        "sctp" => 132,
        "udplite" => 136,
        number => number.parse().ok()?,
    })
}

pub(super) fn check_rule(rule: &RuleCreate) -> Result<()> {
    let invalid = |reason, message: String| Err(Error::invalid(reason, message));
    let remotes = [
        rule.remote_ip_prefix.is_some(),
        rule.remote_group_id.is_some(),
        rule.remote_address_group_id.is_some(),
    ];
    if remotes.into_iter().filter(|given| *given).count() > 1 {
        return invalid(
            "SecurityGroupMultipleRemoteEntites",
            "Only remote_ip_prefix or remote_group_id or remote_address_group_id may be provided.".into(),
        );
    }
    if let Some(prefix) = rule.remote_ip_prefix
        && prefix.addr().is_ipv4() != (rule.ip_version == 4)
    {
        return invalid(
            "SecurityGroupRuleParameterConflict",
            format!("Conflicting value ethertype IPv{} for CIDR {prefix}.", rule.ip_version),
        );
    }
    let protocol = match &rule.protocol {
        None => None,
        Some(name) => match protocol_number(name, rule.ip_version) {
            Some(number) => Some(number),
            None => {
                return invalid(
                    "SecurityGroupRuleInvalidProtocol",
                    format!("Security group rule protocol {name} not supported."),
                );
            }
        },
    };
    let has_ports = rule.port_range_min.is_some() || rule.port_range_max.is_some();
    match protocol {
        None if has_ports => invalid(
            "SecurityGroupProtocolRequiredWithPorts",
            "Must also specify protocol if port range is given.".into(),
        ),
        Some(1 | 58) => {
            for (field, value) in [("type", rule.port_range_min), ("code", rule.port_range_max)] {
                if value.is_some_and(|value| value > 255) {
                    return invalid(
                        "SecurityGroupInvalidIcmpValue",
                        format!("Invalid value for ICMP {field}. It must be 0 to 255."),
                    );
                }
            }
            if rule.port_range_max.is_some() && rule.port_range_min.is_none() {
                return invalid(
                    "SecurityGroupMissingIcmpType",
                    "ICMP code (port-range-max) is provided but ICMP type (port-range-min) is missing."
                        .into(),
                );
            }
            Ok(())
        }
        Some(6 | 17 | 33 | 132 | 136) if has_ports => match (rule.port_range_min, rule.port_range_max) {
            (Some(min), Some(max)) if min <= max && (min > 0 || protocol != Some(6)) => Ok(()),
            _ => invalid(
                "SecurityGroupInvalidPortRange",
                "For TCP/UDP protocols, port_range_min must be <= port_range_max, and both must be given."
                    .into(),
            ),
        },
        Some(number) if has_ports => invalid(
            "SecurityGroupInvalidProtocolForPort",
            format!(
                "Invalid protocol {number} for port range, only supported for TCP, UDP, UDPLITE, SCTP and DCCP."
            ),
        ),
        _ => Ok(()),
    }
}

pub(super) fn same(a: &SecurityGroupRule, b: &SecurityGroupRule) -> bool {
    a.security_group_id == b.security_group_id
        && a.direction == b.direction
        && a.ip_version == b.ip_version
        && a.protocol == b.protocol
        && a.port_range_min == b.port_range_min
        && a.port_range_max == b.port_range_max
        && a.remote_ip_prefix == b.remote_ip_prefix
        && a.remote_group_id == b.remote_group_id
        && a.remote_address_group_id == b.remote_address_group_id
}
