//! Trunks of servers' ports.

use super::interfaces::of_port;
use super::*;
use crate::model::network::trunk::{SubPort, Trunk};
use crate::service::nic::nics_wanted;
use crate::service::trunk::TrunkCreate;

impl Cloud {
    async fn trunk(&self, port: &str, carried: &[(u16, &str)]) -> Trunk {
        let sub_ports =
            carried.iter().map(|(vlan, port)| SubPort { port_id: (*port).to_owned(), vlan: *vlan }).collect();
        let request = TrunkCreate {
            name: "t".to_owned(),
            description: String::new(),
            project_id: None,
            port_id: port.to_owned(),
            admin_state_up: true,
            sub_ports,
            tags: Default::default(),
        };
        self.control.trunk_create(&self.admin, request).await.unwrap().row.clone()
    }

    /// The VLANs and ports that a host is told to have a port's device carry.
    fn carried_by(&self, port: &str) -> Vec<(u16, String)> {
        let wanted = nics_wanted(self.control.db.cache(), "7e57", &[port.to_owned()]).unwrap();
        assert!(wanted.networks.iter().any(|network| network.id == self.network));
        let carried = wanted.nics[0].sub_ports.iter();
        carried.map(|sub_port| (sub_port.vlan, sub_port.port.port_id.clone())).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trunk_is_active_while_its_ports_server_runs_on_a_host_that_can_carry_it() {
    let cloud = Cloud::with_host().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let (parent, one, two) = (cloud.port().await, cloud.port().await, cloud.port().await);
    let trunk = cloud.trunk(&parent, &[(5, &one)]).await;
    let id = trunk.standard.id.clone();
    assert!(!control.trunk_is_active(&trunk), "nobody has its port");
    assert_eq!(cloud.carried_by(&parent), [(5, one.clone())]);
    let server = cloud.create().await;
    cloud.until_status(&server, "ACTIVE").await;
    control.server_interface_attach(admin, &server, &of_port(&parent)).await.unwrap();
    cloud.until_reached(&server).await;
    assert!(control.trunk_is_active(&trunk));
    let is_carried = |port: &str| control.port_is_carried(&control.db.get::<Port>(port).unwrap().row);
    let host = control.db.get::<Port>(&parent).unwrap().row.host.clone();
    assert_eq!((is_carried(&one), is_carried(&two)), (host, None));
    let more = [SubPort { port_id: two.clone(), vlan: 6 }];
    control.trunk_add(admin, &id, &more).await.unwrap();
    assert_eq!(cloud.carried_by(&parent), [(5, one.clone()), (6, two)]);
    let down = control.trunk_update(admin, &id, (None, None), Some(false)).await.unwrap();
    assert!(!control.trunk_is_active(&down.row));
    assert_eq!(is_carried(&one), None);
    assert_eq!(cloud.carried_by(&parent), [], "what is switched off carries nothing");
    control.server_delete(admin, &server).await.unwrap();
    cloud.until(&server, |server| server.is_none()).await;
    let up = control.trunk_update(admin, &id, (None, None), Some(true)).await.unwrap();
    assert!(!control.trunk_is_active(&up.row));
}

#[tokio::test(flavor = "multi_thread")]
async fn port_that_was_made_for_a_server_stays_where_it_is_a_trunks() {
    let cloud = Cloud::new().await;
    let (control, admin) = (&cloud.control, &cloud.admin);
    let server = cloud.create().await;
    let port = control.db.get::<Server>(&server).unwrap().row.port_ids[0].clone();
    let trunk = cloud.trunk(&port, &[]).await;
    control.server_delete(admin, &server).await.unwrap();
    cloud.until(&server, |server| server.is_none()).await;
    let left = control.db.get::<Port>(&port).expect("the trunk's port").row.clone();
    assert!(left.device_id.is_empty() && !left.owned_by_server, "{left:?}");
    control.trunk_delete(admin, &trunk.standard.id).await.unwrap();
    control.port_delete(admin, &port).await.unwrap();
}
