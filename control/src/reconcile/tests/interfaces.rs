//! Network devices that servers get and lose after they were made.

use std::collections::BTreeSet;

use ipnet::IpNet;

use super::*;
use crate::service::nic::nics_wanted;
use crate::service::port::PortCreate;
use crate::service::server::interface::NewInterface;

fn on_network(id: &str) -> NewInterface {
    NewInterface { network_id: Some(id.to_owned()), ..NewInterface::default() }
}

pub(super) fn of_port(id: &str) -> NewInterface {
    NewInterface { port_id: Some(id.to_owned()), ..NewInterface::default() }
}

impl Cloud {
    pub(super) async fn port(&self) -> String {
        let request = PortCreate { network_id: self.network.clone(), ..PortCreate::default() };
        self.control.port_create(&self.admin, request).await.unwrap().row.standard.id.clone()
    }

    fn port_row(&self, id: &str) -> Option<Port> {
        self.control.db.get::<Port>(id).map(|stored| stored.row.clone())
    }

    /// Waits until the host has reached what is wanted of the server.
    pub(super) async fn until_reached(&self, id: &str) -> Server {
        let reached =
            |server: &Server| server.observed_generation == server.generation && server.task.is_none();
        self.until(id, |server| server.is_some_and(reached)).await.unwrap()
    }

    /// What does not fit of servers' devices, ports and the quota of ports.
    fn audit_devices(&self) -> Vec<String> {
        let db = &self.control.db;
        let mut wrong = Vec::new();
        let ports = db.list::<Port>();
        for server in db.list::<Server>() {
            let id = &server.row.id;
            let named: BTreeSet<&String> = server.row.port_ids.iter().collect();
            let bound: BTreeSet<&String> = ports
                .iter()
                .filter(|port| port.row.device_id == *id)
                .map(|port| &port.row.standard.id)
                .collect();
            if named != bound {
                wrong.push(format!("{id} names {named:?}, and {bound:?} are bound to it"));
            }
            let tagged = server.row.nic_tags.keys().find(|port| !named.contains(port));
            wrong.extend(tagged.map(|port| format!("{id} has a tag for {port}")));
        }
        let owned = ports.iter().filter(|port| port.row.standard.project_id == "p").count();
        let used = db.get::<Usage>(&Usage::key("p", "port")).map_or(0, |usage| usage.row.used);
        if usize::try_from(used) != Ok(owned) {
            wrong.push(format!("{used} ports are counted of {owned}"));
        }
        wrong
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn server_takes_network_devices_and_gives_them_back() {
    let cloud = Cloud::with_host().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let id = cloud.create().await;
    cloud.until_status(&id, "ACTIVE").await;
    let tagged = NewInterface { tag: Some("data".to_owned()), ..on_network(&cloud.network) };
    let made = control.server_interface_attach(admin, &id, &tagged).await.unwrap();
    let made = made.row.standard.id.clone();
    let own = cloud.port().await;
    control.server_interface_attach(admin, &id, &of_port(&own)).await.unwrap();
    let server = cloud.until_reached(&id).await;
    assert_eq!(server.port_ids[1..], [made.clone(), own.clone()], "the guest sees them last");
    for port in [&made, &own] {
        let port = cloud.port_row(port).unwrap();
        assert!(port.active && port.host.as_deref() == Some("fake-0") && port.device_id == id, "{port:?}");
    }
    let done: Vec<_> =
        server.actions.iter().map(|action| (&*action.action, action.finished_at.is_some())).collect();
    assert_eq!(done[1..], [("attach_interface", true), ("attach_interface", true)]);
    let again = control.server_interface_attach(admin, &id, &of_port(&own)).await;
    assert!(matches!(again, Err(Error::Conflict { reason: "PortInUse", .. })), "{again:?}");

    for port in [&made, &own] {
        control.server_interface_detach(admin, &id, port).await.unwrap();
    }
    assert!(cloud.port_row(&made).is_none(), "made for the server, gone from it");
    let free = cloud.port_row(&own).unwrap();
    assert!(free.device_id.is_empty() && free.host.is_none() && !free.active, "{free:?}");
    let gone = control.server_interface_detach(admin, &id, &own).await;
    assert!(matches!(gone, Err(Error::NotFound { kind: "Port", .. })), "{gone:?}");
    assert_eq!(cloud.audit_devices(), Vec::<String>::new());

    let several = (0..6).map(|_| control.server_interface_attach(admin, &id, &tagged));
    let several = futures_util::future::join_all(several).await;
    assert_eq!(several.iter().filter(|made| made.is_ok()).count(), 5, "six in all, whoever comes first");
    control.server_delete(admin, &id).await.unwrap();
    cloud.until(&id, |server| server.is_none()).await;
    assert_eq!(cloud.left(), (0, 0, 0, 0));
    assert_eq!(cloud.audit_devices(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn port_that_is_deleted_is_unplugged_from_its_server() {
    let cloud = Cloud::with_host().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let id = cloud.create().await;
    let server = cloud.until_status(&id, "ACTIVE").await;
    control.port_delete(admin, &server.port_ids[0]).await.unwrap();
    let server = cloud.until_reached(&id).await;
    assert!(server.port_ids.is_empty());
    assert_eq!(status(&server).status, "ACTIVE");
    assert_eq!(cloud.audit_devices(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn host_that_cannot_plug_gets_devices_with_the_next_start() {
    let mut cloud = Cloud::new().await;
    cloud.connect(Arc::new(FakeDriver::new("fake-0", None).unwrap().without_hot_plug()));
    let (control, admin) = (&cloud.control, &cloud.admin);
    let id = cloud.create().await;
    let server = cloud.until_status(&id, "ACTIVE").await;
    let own = cloud.port().await;
    let refused = control.server_interface_attach(admin, &id, &of_port(&own)).await;
    assert!(matches!(refused, Err(Error::Conflict { reason: "InstanceCannotPlug", .. })), "{refused:?}");
    let refused = control.server_interface_detach(admin, &id, &server.port_ids[0]).await;
    assert!(matches!(refused, Err(Error::Conflict { reason: "InstanceCannotPlug", .. })), "{refused:?}");
    let refused = control.port_delete(admin, &server.port_ids[0]).await;
    assert!(matches!(refused, Err(Error::Conflict { reason: "PortInUse", .. })), "{refused:?}");
    control.server_act(admin, &id, Action::Stop).await.unwrap();
    cloud.until_status(&id, "SHUTOFF").await;
    control.server_interface_attach(admin, &id, &of_port(&own)).await.unwrap();
    control.port_delete(admin, &server.port_ids[0]).await.unwrap();
    cloud.until_reached(&id).await;
    assert!(!cloud.port_row(&own).unwrap().active, "nothing runs");
    control.server_act(admin, &id, Action::Start).await.unwrap();
    let server = cloud.until_status(&id, "ACTIVE").await;
    assert_eq!(server.port_ids, std::slice::from_ref(&own));
    assert!(cloud.port_row(&own).unwrap().active);
    assert_eq!(cloud.audit_devices(), Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn device_without_a_network_named_is_on_the_only_one() {
    let cloud = Cloud::with_host().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let id = cloud.create().await;
    cloud.until_status(&id, "ACTIVE").await;
    let made = control.server_interface_attach(admin, &id, &NewInterface::default()).await.unwrap();
    assert_eq!(made.row.network_id, cloud.network);
    let stranger = caller("q", RoleLevel::Member);
    let refused = control.server_interface_attach(&stranger, &id, &NewInterface::default()).await;
    assert!(matches!(refused, Err(Error::NotFound { .. })), "{refused:?}");
    let foreign = PortCreate {
        project_id: Some("q".to_owned()),
        network_id: cloud.network.clone(),
        ..PortCreate::default()
    };
    let foreign = control.port_create(admin, foreign).await.unwrap().row.standard.id.clone();
    let refused = control.server_interface_attach(admin, &id, &of_port(&foreign)).await;
    assert!(matches!(refused, Err(Error::Invalid { reason: "PortNotUsable", .. })), "{refused:?}");
    let second = NetworkCreate { name: "second".to_owned(), ..NetworkCreate::default() };
    let second = control.network_create(admin, second).await.unwrap().row.standard.id.clone();
    let subnet = SubnetCreate::new(second, "10.2.0.0/24".parse().unwrap(), "sub");
    control.subnet_create(admin, subnet).await.unwrap();
    let refused = control.server_interface_attach(admin, &id, &NewInterface::default()).await;
    assert!(matches!(refused, Err(Error::Invalid { reason: "NetworkAmbiguous", .. })), "{refused:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn addresses_come_to_a_servers_device_and_go_from_it() {
    let cloud = Cloud::with_host().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let id = cloud.create().await;
    let server = cloud.until_status(&id, "ACTIVE").await;
    control.server_fixed_ip_add(admin, &id, &cloud.network).await.unwrap();
    let port = cloud.port_row(&server.port_ids[0]).unwrap();
    assert_eq!(port.fixed_ips.len(), 2);
    let first = port.fixed_ips[0].ip_address;
    control.server_fixed_ip_remove(admin, &id, first).await.unwrap();
    assert_eq!(cloud.port_row(&server.port_ids[0]).unwrap().fixed_ips, port.fixed_ips[1..]);
    let again = control.server_fixed_ip_remove(admin, &id, first).await;
    assert!(matches!(again, Err(Error::Invalid { .. })), "{again:?}");
    let elsewhere = control.server_fixed_ip_add(admin, &id, "elsewhere").await;
    assert!(matches!(elsewhere, Err(Error::NotFound { .. })), "{elsewhere:?}");
}

/// One of what owners do to devices; what it answers once it has been done already is an answer too.
async fn act(cloud: &Cloud, action: &str, server: &str, port: &str) -> Result<()> {
    let (control, admin) = (&cloud.control, &cloud.admin);
    match action {
        "new port" => {
            control.server_interface_attach(admin, server, &on_network(&cloud.network)).await.map(drop)
        }
        "own port" => control.server_interface_attach(admin, server, &of_port(port)).await.map(drop),
        "detach" => {
            let first = cloud.server(server).and_then(|server| server.port_ids.first().cloned());
            match first {
                Some(first) => control.server_interface_detach(admin, server, &first).await,
                None => Ok(()),
            }
        }
        _ => {
            let first = cloud.server(server).and_then(|server| server.port_ids.first().cloned());
            match first {
                Some(first) => control.port_delete(admin, &first).await,
                None => Ok(()),
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn devices_cut_off_at_each_commit_are_whole_or_not_there() {
    for action in ["new port", "own port", "detach", "port delete"] {
        for commits in 0..10 {
            let mut cloud = Cloud::with_host().await;
            let server = cloud.create().await;
            cloud.until_status(&server, "ACTIVE").await;
            let port = cloud.port().await;
            cloud.process.dies_after(commits);
            let answer = act(&cloud, action, &server, &port).await;
            if answer.is_ok() {
                // Its host's part too, as far as the process lives.
                let reached = async {
                    while !cloud.process.is_dead() {
                        let row = cloud.server(&server).unwrap();
                        if row.observed_generation == row.generation {
                            break;
                        }
                        tokio::time::sleep(Duration::from_millis(2)).await;
                    }
                };
                tokio::time::timeout(Duration::from_secs(10), reached).await.unwrap();
            }
            let died = cloud.process.is_dead();
            assert!(died || answer.is_ok(), "{action} is refused: {answer:?}");
            cloud.die().await;
            cloud.reopen().await;
            cloud.tasks = cloud.control.start_reconcilers();
            cloud.connect(Arc::new(FakeDriver::new("fake-0", None).unwrap()));
            cloud.control.db.caught_up().await.unwrap();
            assert_eq!(cloud.audit_devices(), Vec::<String>::new(), "{action}, cut off at {commits}");
            if answer.is_err() {
                let again = act(&cloud, action, &server, &port).await;
                assert!(!matches!(again, Err(Error::Store(_))), "{action} again: {again:?}");
            }
            cloud.until_reached(&server).await;
            cloud.control.server_delete(&cloud.admin, &server).await.unwrap();
            cloud.until(&server, |server| server.is_none()).await;
            assert_eq!(cloud.left(), (0, 0, 0, 0));
            assert_eq!(cloud.audit_devices(), Vec::<String>::new(), "{action}, {commits}, gone");
            if !died {
                break;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn guest_may_send_from_what_pairs_allow_its_own_mac_address_and_no_other() {
    let cloud = Cloud::new().await;
    let pair = |prefix: &str, mac| (prefix.parse().unwrap(), mac);
    let mac = [0xfa, 0x16, 0x3e, 9, 9, 9];
    let allowed_address_pairs = vec![
        pair("10.7.0.0/24", [0; 6]),
        pair("2001:db8:7::7/128", mac),
        pair("10.8.0.1/32", [0, 0, 0x5e, 0, 1, 1]),
    ];
    let request = PortCreate {
        network_id: cloud.network.clone(),
        mac: Some(mac),
        allowed_address_pairs,
        ..PortCreate::default()
    };
    let port = cloud.control.port_create(&cloud.admin, request).await.unwrap();
    let own = port.row.fixed_ips.iter().map(|ip| IpNet::from(ip.ip_address));
    let pairs = ["10.7.0.0/24", "2001:db8:7::7/128"].map(|prefix| prefix.parse::<IpNet>().unwrap());
    let wanted = nics_wanted(cloud.control.db.cache(), "7e57", std::slice::from_ref(&port.row.standard.id));
    assert_eq!(wanted.unwrap().nics[0].allowed_addresses, own.chain(pairs).collect());
}
