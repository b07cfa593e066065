//! Names of ports: whose are whose, and what servers make of them.

use super::*;
use crate::service::names::zones_wanted;

impl Cloud {
    async fn named(&self, caller: &Caller, network_id: &str, name: &str) -> Arc<Stored<Port>> {
        let request = PortCreate {
            network_id: network_id.to_owned(),
            dns_name: name.to_owned(),
            ..PortCreate::default()
        };
        self.control.port_create(caller, request).await.unwrap()
    }
}

#[tokio::test]
async fn on_a_shared_network_each_project_has_its_own_names() {
    let cloud = Cloud::new().await;
    let admin = caller("a", RoleLevel::Admin);
    let request =
        NetworkCreate { shared: true, dns_domain: "lan.example.".into(), ..NetworkCreate::default() };
    let network = cloud.control.network_create(&admin, request).await.unwrap().row.standard.id.clone();
    let subnet = SubnetCreate::new(network.clone(), "10.0.0.0/24".parse().unwrap(), "sub");
    cloud.control.subnet_create(&admin, subnet).await.unwrap();
    let (alice, bob) = (member("a"), member("b"));
    let hers = cloud.named(&alice, &network, "Web").await;
    let his = cloud.named(&bob, &network, "web").await;
    let unnamed = cloud.port(&bob, &network).await.unwrap();
    let ids = [&hers, &his].map(|port| port.row.standard.id.clone());
    let zones = zones_wanted(cloud.control.db.cache(), &ids);
    assert_eq!(zones.len(), 2);
    let zone_of =
        |project: &str| zones.iter().find(|zone| zone.id == format!("{network}.{project}")).unwrap();
    let address = |port: &Stored<Port>| port.row.fixed_ips[0].ip_address;
    for (project, port) in [("a", &hers), ("b", &his)] {
        let zone = zone_of(project);
        assert_eq!(zone.names["web"], BTreeSet::from([address(port)]), "{project}");
        assert_eq!(zone.domain, "lan.example");
        assert_eq!(zone.prefixes.iter().next().unwrap().to_string(), "10.0.0.0/24");
    }
    let made = format!("host-{}", address(&unnamed).to_string().replace('.', "-"));
    assert_eq!(zone_of("b").names[&made], BTreeSet::from([address(&unnamed)]));
    assert!(!zone_of("a").names.contains_key(&made));
    assert_eq!(zones_wanted(cloud.control.db.cache(), &ids[1..]).len(), 1, "nobody asks for the other");
}

#[tokio::test]
async fn ports_have_their_servers_name_while_they_are_its() {
    let cloud = Cloud::new().await;
    let alice = member("a");
    let network = cloud.network(&alice, "10.0.0.0/24").await;
    let groups = cloud.control.resolve_groups("a", &[]).await.unwrap();
    let server = server_of_ports(&groups);
    let bound = async |name: &str| {
        let port = cloud.named(&alice, &network, name).await.row.standard.id.clone();
        let requests = [NicRequest::on(&network), NicRequest::Port { id: port, tag: None }];
        let db = &cloud.control.db;
        db.transact_with(|cache| Control::add_server_ports(cache, Txn::new(), &alice, &server, &requests))
            .await
    };
    let name_of = |id: &str| cloud.control.db.get::<Port>(id).map(|port| port.row.dns_name.clone());
    assert_eq!(bound("another").await.map_err(reason), Err("PortNotUsableDNS"));
    let ids = bound("").await.unwrap();
    assert_eq!([name_of(&ids[0]), name_of(&ids[1])], [Some("one".into()), Some("one".into())]);
    let release = |cache: &Cache| Ok(Control::release_server_ports(cache, Txn::new(), "server-1"));
    cloud.control.db.transact(release).await.unwrap();
    assert_eq!([name_of(&ids[0]), name_of(&ids[1])], [None, Some(String::new())]);
}
