//! The documents of the metadata service, as path and body: OpenStack's tree and EC2's, as cloud-init and the tiny
//! guest read them at `http://169.254.169.254`. Pure.
//!
//! A path has its leading slash and no trailing one; what is absent answers 404, which is how "no user data" is said.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;

use ipnet::IpNet;
use serde_json::{Value, json};
use vmm::document::Document;

use crate::agent::protocol::{Ipv6NetworkWanted, NicWanted};
use crate::model::compute::Server;

/// The OpenStack metadata versions offered beside `latest`: the newest one that every cloud-init in use knows.
const OPENSTACK_VERSION: &str = "2018-08-27";
/// The EC2 metadata versions offered beside `latest`: the one every client asks for.
const EC2_VERSION: &str = "2009-04-04";

/// All documents of one server.
pub(crate) fn documents(server: &Server, zone: &str, nics: &[NicWanted]) -> BTreeMap<String, Document> {
    let mut documents = BTreeMap::new();
    let mut put = |path: String, body: Document| {
        documents.insert(path, body);
    };
    put("/openstack".to_owned(), format!("{OPENSTACK_VERSION}\nlatest").into());
    for version in [OPENSTACK_VERSION, "latest"] {
        let base = format!("/openstack/{version}");
        put(format!("{base}/meta_data.json"), meta_data(server, zone, nics).to_string().into());
        put(format!("{base}/network_data.json"), network_data(nics).to_string().into());
        put(format!("{base}/vendor_data.json"), "{}".into());
        put(format!("{base}/vendor_data2.json"), "{}".into());
        let mut names = "meta_data.json\nnetwork_data.json\nvendor_data.json\nvendor_data2.json".to_owned();
        if let Some(user_data) = &server.user_data {
            put(format!("{base}/user_data"), user_data.clone());
            names.push_str("\nuser_data");
        }
        put(base, names.into());
    }
    let ec2 = ec2_meta_data(server, zone, nics);
    for version in [EC2_VERSION, "latest"] {
        put(
            format!("/{version}"),
            if server.user_data.is_some() { "meta-data/\nuser-data" } else { "meta-data/" }.into(),
        );
        put(format!("/{version}/meta-data"), ec2_listing(&ec2).into());
        if let Some((name, _)) = &server.key {
            put(format!("/{version}/meta-data/public-keys"), format!("0={name}").into());
            put(format!("/{version}/meta-data/public-keys/0"), "openssh-key".into());
        }
        put(format!("/{version}/meta-data/placement"), "availability-zone".into());
        for (name, value) in &ec2 {
            put(format!("/{version}/meta-data/{name}"), value.clone().into());
        }
        if let Some(user_data) = &server.user_data {
            put(format!("/{version}/user-data"), user_data.clone());
        }
    }
    documents
}

/// The devices that their owner has tagged (Nova: device role tagging). Which bus they are on is not known here, for which
/// Nova says `none`.
fn devices(server: &Server, nics: &[NicWanted]) -> Vec<Value> {
    let nics = nics.iter().filter_map(|nic| {
        let tag = server.nic_tags.get(&nic.port_id)?;
        Some(
            json!({"type": "nic", "mac": mac_text(nic.mac), "bus": "none", "address": "none", "tags": [tag]}),
        )
    });
    let volumes = server.volumes.iter().filter_map(|volume| {
        let serial = &volume.volume_id;
        let tag = volume.tag.as_ref()?;
        Some(json!({"type": "disk", "serial": serial, "bus": "none", "address": "none", "tags": [tag]}))
    });
    nics.chain(volumes).collect()
}

fn meta_data(server: &Server, zone: &str, nics: &[NicWanted]) -> Value {
    let mut document = json!({
        "uuid": server.id,
        "name": server.name,
        "hostname": server.hostname,
        "project_id": server.project_id,
        "launch_index": server.launch_index,
        "availability_zone": zone,
        "devices": devices(server, nics),
        "dedicated_cpus": [],
    });
    if !server.metadata.is_empty() {
        document["meta"] = json!(server.metadata);
    }
    if let Some((name, key)) = &server.key {
        document["public_keys"] = json!({ name: key });
        document["keys"] = json!([{ "name": name, "type": "ssh", "data": key }]);
    }
    document
}

/// `network_data.json` (Nova: metadata, network_data).
fn network_data(nics: &[NicWanted]) -> Value {
    let mut links = Vec::with_capacity(nics.len());
    let mut networks = Vec::with_capacity(nics.len());
    let mut services: Vec<Value> = Vec::new();
    for nic in nics {
        let link = link_name(nic);
        links.push(json!({
            "id": link,
            "vif_id": nic.port_id,
            "type": "bridge",
            "mtu": nic.mtu,
            "ethernet_mac_address": mac_text(nic.mac),
        }));
        let described = nic
            .address
            .map(|address| ipv4_network(nic, address))
            .into_iter()
            .chain(nic.ipv6_networks.iter().map(ipv6_network));
        for mut network in described {
            network["id"] = json!(format!("network{}", networks.len()));
            network["link"] = json!(link);
            network["network_id"] = json!(nic.network_id);
            services.extend(network["services"].as_array().cloned().unwrap_or_default());
            networks.push(network);
        }
    }
    json!({ "links": links, "networks": networks, "services": services })
}

/// An IPv4 network: with DHCP there is nothing to say of it.
fn ipv4_network(nic: &NicWanted, (address, prefix): (Ipv4Addr, u8)) -> Value {
    if nic.dhcp {
        return json!({ "type": "ipv4_dhcp" });
    }
    let default = nic.gateway.map(|gateway| (Ipv4Addr::UNSPECIFIED, 0, gateway));
    let routes = default.into_iter().chain(nic.routes.iter().copied());
    let route = |(network, prefix, gateway): (Ipv4Addr, u8, Ipv4Addr)| json!({ "network": network, "netmask": netmask(prefix), "gateway": gateway });
    json!({
        "type": "ipv4",
        "ip_address": address,
        "netmask": netmask(prefix),
        "routes": routes.map(route).collect::<Vec<Value>>(),
        "services": nic.dns.iter().map(name_server).collect::<Vec<Value>>(),
    })
}

/// An IPv6 network: of addresses by DHCPv6 alone, without a mode, there is nothing to say.
fn ipv6_network(network: &Ipv6NetworkWanted) -> Value {
    let mode = network.mode.as_deref();
    if mode == Some("dhcp") {
        return json!({ "type": "ipv6_dhcp" });
    }
    let default =
        network.gateway.map(|gateway| json!({ "network": "::", "netmask": "::", "gateway": gateway }));
    let further = network.routes.iter().map(
        |(destination, gateway)| json!({ "network": destination.network(), "netmask": destination.netmask(), "gateway": gateway }),
    );
    let netmask = IpNet::new(network.address.into(), network.prefix_len).map(|net| net.netmask());
    json!({
        "type": mode.map_or_else(|| "ipv6".to_owned(), |mode| format!("ipv6_{mode}")),
        "ip_address": network.address,
        "netmask": netmask.ok(),
        "routes": default.into_iter().chain(further).collect::<Vec<Value>>(),
        "services": network.dns.iter().map(name_server).collect::<Vec<Value>>(),
    })
}

fn name_server(address: &impl serde::Serialize) -> Value {
    json!({ "type": "dns", "address": address })
}

fn ec2_meta_data(server: &Server, zone: &str, nics: &[NicWanted]) -> BTreeMap<&'static str, String> {
    let mut items = BTreeMap::from([
        ("ami-id", format!("ami-{}", ec2_number(&server.image_id))),
        ("ami-launch-index", server.launch_index.to_string()),
        ("hostname", server.hostname.clone()),
        ("instance-id", format!("i-{}", ec2_number(&server.id))),
        ("instance-type", server.flavor.name.clone()),
        ("local-hostname", server.hostname.clone()),
        ("placement/availability-zone", zone.to_owned()),
        ("public-hostname", server.hostname.clone()),
        ("reservation-id", server.reservation_id.clone()),
        ("security-groups", server.security_groups.join("\n")),
    ]);
    if let Some((address, _)) = nics.iter().find_map(|nic| nic.address) {
        items.insert("local-ipv4", address.to_string());
    }
    if let Some((_, key)) = &server.key {
        items.insert("public-keys/0/openssh-key", key.clone());
    }
    items
}

fn ec2_listing(items: &BTreeMap<&'static str, String>) -> String {
    let mut names: Vec<String> = Vec::new();
    for item in items.keys() {
        let name =
            item.split_once('/').map_or_else(|| (*item).to_owned(), |(directory, _)| format!("{directory}/"));
        if names.last() != Some(&name) {
            names.push(name);
        }
    }
    names.join("\n")
}

/// EC2 ids are eight hexadecimal digits; a UUID's first eight are as good as a counter.
fn ec2_number(id: &str) -> String {
    id.chars().filter(char::is_ascii_hexdigit).take(8).collect()
}

/// As Nova names a link: `tap` and the port id's first eleven characters.
fn link_name(nic: &NicWanted) -> String {
    format!("tap{}", nic.port_id.chars().take(11).collect::<String>())
}

fn mac_text(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}

fn netmask(prefix: u8) -> Ipv4Addr {
    Ipv4Addr::from_bits(u32::MAX.checked_shl(32 - u32::from(prefix.min(32))).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::service::server::test::server;

    fn nic() -> NicWanted {
        NicWanted {
            port_id: "0123456789abcdef".to_owned(),
            network_id: "net".to_owned(),
            mac: [0xfa, 0x16, 0x3e, 0, 0, 1],
            address: Some((Ipv4Addr::new(10, 0, 0, 5), 24)),
            allowed_addresses: std::collections::BTreeSet::new(),
            gateway: Some(Ipv4Addr::new(10, 0, 0, 1)),
            dhcp: true,
            dhcp_server: Some(Ipv4Addr::new(10, 0, 0, 2)),
            dns: vec![Ipv4Addr::new(9, 9, 9, 9)],
            routes: vec![],
            mtu: 1450,
            port_security: true,
            groups: std::collections::BTreeSet::new(),
            domain: "openstacklocal".to_owned(),
            dhcp_options: Vec::new(),
            ipv6: Default::default(),
            ipv6_networks: Vec::new(),
            sub_ports: Vec::new(),
            traffic: Default::default(),
            zone: String::new(),
        }
    }

    #[test]
    fn both_trees_name_the_instance_its_key_and_its_address() {
        let mut server = server();
        server.key = Some(("k".to_owned(), "ssh-ed25519 AAAA".to_owned()));
        let documents = documents(&server, "nova", &[nic()]);
        let meta: Value =
            serde_json::from_slice(documents["/openstack/latest/meta_data.json"].as_bytes()).unwrap();
        assert_eq!(meta["uuid"], server.id);
        assert_eq!(meta["public_keys"]["k"], "ssh-ed25519 AAAA");
        assert_eq!(meta["keys"][0]["type"], "ssh");
        assert_eq!(documents["/latest/meta-data/local-ipv4"], Document::from("10.0.0.5"));
        assert_eq!(
            documents["/latest/meta-data/public-keys/0/openssh-key"],
            Document::from("ssh-ed25519 AAAA")
        );
        assert_eq!(documents["/latest/meta-data/public-keys"], Document::from("0=k"));
        let listing = String::from_utf8_lossy(documents["/2009-04-04/meta-data"].as_bytes());
        assert!(listing.contains("public-keys/\n"), "{listing}");
        assert!(documents.keys().all(|path| path.starts_with('/') && !path.ends_with('/')));
    }

    #[test]
    fn user_data_is_there_only_if_it_was_given() {
        let mut server = server();
        assert!(!documents(&server, "nova", &[]).contains_key("/openstack/latest/user_data"));
        server.user_data = Some("#cloud-config\n".into());
        let documents = documents(&server, "nova", &[]);
        assert_eq!(documents["/openstack/2018-08-27/user_data"], Document::from("#cloud-config\n"));
        assert_eq!(documents["/latest/user-data"], Document::from("#cloud-config\n"));
    }

    #[test]
    fn network_without_dhcp_is_described_in_full() {
        let mut fixed = nic();
        fixed.dhcp = false;
        let data = network_data(&[fixed]);
        assert_eq!(data["networks"][0]["type"], "ipv4");
        assert_eq!(data["networks"][0]["netmask"], "255.255.255.0");
        assert_eq!(data["networks"][0]["routes"][0]["gateway"], "10.0.0.1");
        assert_eq!(data["links"][0]["ethernet_mac_address"], "fa:16:3e:00:00:01");
        assert_eq!(network_data(&[nic()])["networks"][0]["type"], "ipv4_dhcp");
    }

    #[test]
    fn ipv6_is_described_by_its_mode() {
        let network = |mode: Option<&str>| Ipv6NetworkWanted {
            mode: mode.map(str::to_owned),
            address: "2001:db8::7".parse().unwrap(),
            prefix_len: 64,
            gateway: Some("2001:db8::1".parse().unwrap()),
            routes: Vec::new(),
            dns: vec!["2620:fe::fe".parse().unwrap()],
        };
        let modes = [Some("slaac"), Some("dhcpv6-stateful"), Some("dhcp"), None];
        let data = network_data(&[NicWanted { ipv6_networks: modes.map(network).into(), ..nic() }]);
        let described = data["networks"].as_array().unwrap();
        let types: Vec<_> = described.iter().map(|network| network["type"].as_str().unwrap()).collect();
        assert_eq!(types, ["ipv4_dhcp", "ipv6_slaac", "ipv6_dhcpv6-stateful", "ipv6_dhcp", "ipv6"]);
        assert_eq!(
            described[1],
            json!({
                "id": "network1", "link": link_name(&nic()),
                "network_id": "net", "type": "ipv6_slaac", "ip_address": "2001:db8::7",
                "netmask": "ffff:ffff:ffff:ffff::",
                "routes": [{"network": "::", "netmask": "::", "gateway": "2001:db8::1"}],
                "services": [{"type": "dns", "address": "2620:fe::fe"}],
            })
        );
        assert_eq!(described[3].get("ip_address"), None);
    }

    #[test]
    fn netmasks_cover_both_ends() {
        assert_eq!(netmask(0), Ipv4Addr::UNSPECIFIED);
        assert_eq!(netmask(32), Ipv4Addr::BROADCAST);
        assert_eq!(netmask(200), Ipv4Addr::BROADCAST);
    }
}
