//! Names of ports in DNS (Network API v2.0: DNS integration): what a port is called on its network, and what hosts are told
//! of it, as a pure function of the rows.
//!
//! A port's name is its `dns_name`, or made of each of its addresses, in its network's domain or the cloud's. Guests are
//! told the names of their own project on the network that they ask on, and of the network itself: on a network that
//! several share, nobody can take a name from another.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use crate::Control;
use crate::agent::protocol::ZoneWanted;
use crate::error::{Error, Result};
use crate::model::network::{Network, Port, Subnet};
use crate::store::{Cache, Stored};

/// The domain of names on networks that have none of their own (Neutron's `dns_domain`).
pub const DOMAIN: &str = "openstacklocal";
/// Bytes of a name with its domain, at most (RFC 1035 §2.3.4).
pub const NAME_BYTES_MAX: usize = 255;
/// Bytes of one label of it.
const LABEL_BYTES_MAX: usize = 63;

/// What one address of a port is called.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Assignment {
    /// In the domain.
    pub hostname: String,
    /// The address.
    pub address: IpAddr,
    /// The whole name, with a dot at its end.
    pub fqdn: String,
}

/// The domain of a network's names, without a dot at its end.
pub fn domain_of(network: &Network) -> &str {
    match network.dns_domain.trim_end_matches('.') {
        "" => DOMAIN,
        own => own,
    }
}

/// What a port is called.
pub fn assignments(port: &Port, network: &Network) -> Vec<Assignment> {
    let domain = domain_of(network);
    let assignment = |address: IpAddr| {
        let hostname = hostname(port, address, domain);
        Assignment { fqdn: format!("{hostname}.{domain}."), hostname, address }
    };
    port.fixed_ips.iter().map(|ip| assignment(ip.ip_address)).collect()
}

fn hostname(port: &Port, address: IpAddr, domain: &str) -> String {
    let name = port.dns_name.as_str();
    let whole = name.strip_suffix('.').and_then(|name| name.strip_suffix(domain)?.strip_suffix('.'));
    match whole.unwrap_or(name.trim_end_matches('.')) {
        "" => match address {
            IpAddr::V4(address) => format!("host-{}", address.to_string().replace('.', "-")),
            // Written out, since a label neither begins nor ends with a dash.
            IpAddr::V6(address) => {
                format!("host-{}", address.segments().map(|part| format!("{part:x}")).join("-"))
            }
        },
        own => own.to_owned(),
    }
}

/// Checks a name of labels: a whole domain, which ends with a dot, or one below some domain (RFC 1123 §2.1).
///
/// # Errors
/// `Invalid`, as Neutron says it.
pub fn check(field: &str, text: &str, is_domain: bool) -> Result<()> {
    let invalid = |what: String| {
        Err(Error::invalid("InvalidInput", format!("Invalid input for {field}. Reason: {what}.")))
    };
    if text.is_empty() {
        return Ok(());
    }
    if is_domain && !text.ends_with('.') {
        return invalid(format!("'{text}' is not a FQDN"));
    }
    let labels: Vec<&str> = text.strip_suffix('.').unwrap_or(text).split('.').collect();
    let fits = |label: &&str| {
        (1..=LABEL_BYTES_MAX).contains(&label.len())
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    let is_number = |label: &&str| label.bytes().all(|byte| byte.is_ascii_digit());
    let ends_with_number = labels.len() > 1 && labels.last().is_some_and(is_number);
    if text.len() <= NAME_BYTES_MAX && labels.iter().all(fits) && !ends_with_number {
        return Ok(());
    }
    invalid(format!("'{text}' not a valid PQDN or FQDN"))
}

/// Checks a port's name: with its network's domain it is not too long, and a whole name is in that domain.
///
/// # Errors
/// As [`check`].
pub fn check_port(name: &str, network: &Network) -> Result<()> {
    check("dns_name", name, false)?;
    let domain = domain_of(network);
    let in_domain =
        |whole: &str| whole.strip_suffix(domain).is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'));
    let fits = match name.strip_suffix('.') {
        Some(whole) => in_domain(whole),
        None => name.len() + domain.len() + 2 <= NAME_BYTES_MAX,
    };
    if name.is_empty() || fits {
        return Ok(());
    }
    let message = format!(
        "Invalid input for dns_name. Reason: '{name}' is no name in the domain '{domain}.', or is too long with it."
    );
    Err(Error::invalid("InvalidInput", message))
}

impl Control {
    /// [`assignments`] of a port, for showing it.
    pub fn names_of_port(&self, port: &Port) -> Vec<Assignment> {
        let network = self.db.cache().get::<Network>(&port.network_id);
        network.map(|network| assignments(port, &network.row)).unwrap_or_default()
    }
}

/// What a port's guest asks its names of.
pub(crate) fn zone_of(port: &Port) -> String {
    format!("{}.{}", port.network_id, port.standard.project_id)
}

/// The zones of one network, by the projects that ask there.
struct NetworkZones {
    network: Arc<Stored<Network>>,
    zones: BTreeMap<String, ZoneWanted>,
}

/// The names that the guests with these ports may ask for.
pub(crate) fn zones_wanted<'a>(
    cache: &Cache,
    port_ids: impl IntoIterator<Item = &'a String>,
) -> Vec<ZoneWanted> {
    let mut asking: BTreeMap<String, NetworkZones> = BTreeMap::new();
    for port in port_ids.into_iter().filter_map(|id| cache.get::<Port>(id)) {
        let (port, Some(network)) = (&port.row, cache.get::<Network>(&port.row.network_id)) else { continue };
        let of_network = asking
            .entry(port.network_id.clone())
            .or_insert_with(|| NetworkZones { network, zones: BTreeMap::new() });
        let domain = domain_of(&of_network.network.row);
        let zone = || ZoneWanted { id: zone_of(port), domain: domain.to_owned(), ..ZoneWanted::default() };
        of_network.zones.entry(port.standard.project_id.clone()).or_insert_with(zone);
    }
    if asking.is_empty() {
        return Vec::new();
    }
    for subnet in cache.filter::<Subnet>(|subnet| asking.contains_key(&subnet.network_id)) {
        let Some(NetworkZones { zones, .. }) = asking.get_mut(&subnet.row.network_id) else { continue };
        for zone in zones.values_mut() {
            zone.prefixes.insert(subnet.row.cidr);
        }
    }
    let networks: Vec<String> = asking.keys().cloned().collect();
    for port in networks.iter().flat_map(|network| cache.found_by::<Port>(network)) {
        let Some(NetworkZones { network, zones }) = asking.get_mut(&port.row.network_id) else { continue };
        let owner = &port.row.standard.project_id;
        // What belongs to no project is the network's own.
        for (_, zone) in zones.iter_mut().filter(|(project, _)| owner.is_empty() || *project == owner) {
            for Assignment { hostname, address, .. } in assignments(&port.row, &network.row) {
                zone.names.entry(hostname.to_ascii_lowercase()).or_default().insert(address);
            }
        }
    }
    asking.into_values().flat_map(|of_network| of_network.zones.into_values()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_labels_and_domains_end_with_a_dot() {
        for (text, is_domain) in
            [("", true), ("web", false), ("a.b-1", false), ("a.b.", false), ("example.org.", true)]
        {
            assert!(check("x", text, is_domain).is_ok(), "{text}");
        }
        let long = format!("{}.", ["a".repeat(63).as_str(); 4].join("."));
        for (text, is_domain) in [
            ("example.org", true),
            ("-a", false),
            ("a-", false),
            ("a..b", false),
            ("a_b", false),
            ("a.1", false),
            (".", true),
            (&"a".repeat(64), false),
            (&long, true),
        ] {
            assert!(check("x", text, is_domain).is_err(), "{text}");
        }
    }
}
