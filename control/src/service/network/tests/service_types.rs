//! Subnets that are for ports of some owners.

use super::*;
use crate::service::subnet::SubnetUpdate;

const COMPUTE: &str = "compute:nova";

impl Cloud {
    /// A network with a subnet for servers and one for whom `rest` names.
    async fn divided(&self, admin: &Caller, rest: &[&str]) -> (String, String) {
        let network = self.control.network_create(admin, NetworkCreate::default()).await.unwrap();
        let network = network.row.standard.id.clone();
        let mut last = String::new();
        for (cidr, types) in [("10.1.0.0/24", &[COMPUTE][..]), ("10.2.0.0/24", rest)] {
            let service_types = types.iter().map(|&owner| owner.to_owned()).collect();
            let cidr = cidr.parse().unwrap();
            let request = SubnetCreate { service_types, ..SubnetCreate::new(network.clone(), cidr, "") };
            let subnet = self.control.subnet_create(admin, request).await.unwrap();
            assert_eq!(subnet.row.service_types, types);
            last.clone_from(&subnet.row.standard.id);
        }
        (network, last)
    }

    async fn owned_port(
        &self,
        caller: &Caller,
        network_id: &str,
        device_owner: &str,
        fixed_ips: Option<Vec<FixedIpWish>>,
    ) -> Result<String> {
        let (network_id, device_owner) = (network_id.to_owned(), device_owner.to_owned());
        let request = PortCreate { network_id, device_owner, fixed_ips, ..PortCreate::default() };
        let port = self.control.port_create(caller, request).await?;
        Ok(port.row.fixed_ips[0].ip_address.to_string())
    }
}

#[tokio::test]
async fn ports_get_addresses_of_subnets_for_their_owner_or_for_all() {
    let cloud = Cloud::new().await;
    let admin = caller("a", RoleLevel::Admin);
    let (network, _) = cloud.divided(&admin, &[]).await;
    assert_eq!(cloud.owned_port(&admin, &network, COMPUTE, None).await.unwrap(), "10.1.0.3");
    assert_eq!(cloud.owned_port(&admin, &network, "", None).await.unwrap(), "10.2.0.3");
    // What is named is given whatever it is for.
    let wish = FixedIpWish { subnet_id: None, ip_address: Some("10.1.0.9".parse().unwrap()) };
    let refused = cloud.owned_port(&admin, &network, "", Some(vec![wish.clone()])).await.unwrap_err();
    assert_eq!(reason(refused), "InvalidIpForNetwork");
    let subnets = cloud.control.subnet_list(&admin).await.unwrap();
    let first = subnets.iter().find(|subnet| !subnet.row.service_types.is_empty()).unwrap();
    let wish = FixedIpWish { subnet_id: Some(first.row.standard.id.clone()), ..wish };
    assert_eq!(cloud.owned_port(&admin, &network, "", Some(vec![wish])).await.unwrap(), "10.1.0.9");
}

#[tokio::test]
async fn port_that_no_subnet_is_for_is_refused_until_one_is() {
    let cloud = Cloud::new().await;
    let admin = caller("a", RoleLevel::Admin);
    let (network, second) = cloud.divided(&admin, &["network:router_gateway"]).await;
    let refused = cloud.owned_port(&admin, &network, "", None).await.unwrap_err();
    assert_eq!(reason(refused), "IpAddressGenerationFailureNoMatchingSubnet");
    assert_eq!(cloud.owned_port(&admin, &network, COMPUTE, None).await.unwrap(), "10.1.0.3");
    let update = |types: &[&str]| SubnetUpdate {
        service_types: Some(types.iter().map(|&owner| owner.to_owned()).collect()),
        ..SubnetUpdate::default()
    };
    let changed = cloud.control.subnet_update(&admin, &second, update(&[COMPUTE, COMPUTE])).await.unwrap();
    assert_eq!(changed.row.service_types, [COMPUTE]);
    cloud.control.subnet_update(&admin, &second, update(&[])).await.unwrap();
    assert_eq!(cloud.owned_port(&admin, &network, "", None).await.unwrap(), "10.2.0.3");
}

#[tokio::test]
async fn service_types_are_owners_of_ports_and_an_administrators_to_say() {
    let cloud = Cloud::new().await;
    let (admin, alice) = (caller("a", RoleLevel::Admin), member("a"));
    let network = cloud.network(&alice, "10.0.0.0/24").await;
    let request = |types: Vec<String>| SubnetCreate {
        service_types: types,
        ..SubnetCreate::new(network.clone(), "10.3.0.0/24".parse().unwrap(), "")
    };
    for wrong in [vec!["storage:disk".to_owned()], vec![String::new()]] {
        let refused = cloud.control.subnet_create(&admin, request(wrong)).await.unwrap_err();
        assert_eq!(reason(refused), "InvalidSubnetServiceType");
    }
    let many = (0..33).map(|number| format!("compute:{number}")).collect();
    assert_eq!(reason(cloud.control.subnet_create(&admin, request(many)).await.unwrap_err()), "InvalidInput");
    let refused = cloud.control.subnet_create(&alice, request(vec![COMPUTE.to_owned()])).await.unwrap_err();
    assert_eq!(reason(refused), "Forbidden");
    cloud.control.subnet_create(&alice, request(Vec::new())).await.unwrap();
}
