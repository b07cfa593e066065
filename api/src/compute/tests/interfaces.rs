//! Network devices of servers as Nova shows them.

use super::*;

impl Cloud {
    async fn network(&self, name: &str, cidr: &str) -> String {
        let post = async |path: &str, body| {
            let made = self.harness.admin(Method::POST, &format!("/network/v2.0/{path}"), body).await;
            assert_eq!(made.status, 201, "{:?}", made.json());
            made.json()
        };
        let made = post("networks", json!({"network": {"name": name}})).await;
        let id = made["network"]["id"].as_str().unwrap().to_owned();
        post("subnets", json!({"subnet": {"network_id": id, "ip_version": 4, "cidr": cidr}})).await;
        id
    }

    async fn delete(&self, path: &str) -> u16 {
        self.call(Method::DELETE, path, "2.70", Value::Null).await.status.as_u16()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn interface_is_attached_shown_and_detached_by_versions() {
    let cloud = Cloud::with_host().await;
    let network = cloud.network("n", "10.0.0.0/24").await;
    let id = cloud.server(&cloud.image().await, json!({})).await;
    cloud.until(&id, "ACTIVE").await;
    let path = format!("/servers/{id}/os-interface");
    let wish = |fields: Value| json!({"interfaceAttachment": fields});
    let body = wish(json!({"net_id": network, "fixed_ips": [{"ip_address": "10.0.0.7"}], "tag": "t"}));
    assert_eq!(cloud.post(&path, "2.48", body.clone()).await.status, 400, "tags came with 2.49");
    let made = cloud.post(&path, "2.70", body.clone()).await;
    assert_eq!(made.status, 200, "{:?}", made.json());
    let made = made.json()["interfaceAttachment"].take();
    assert_eq!(members(&made), ["fixed_ips", "mac_addr", "net_id", "port_id", "port_state", "tag"]);
    assert_eq!(made["fixed_ips"][0]["ip_address"], "10.0.0.7");
    let port = made["port_id"].as_str().unwrap().to_owned();
    let one = format!("{path}/{port}");
    let old = cloud.get(&one, "2.69").await.json()["interfaceAttachment"].take();
    assert_eq!(members(&old), ["fixed_ips", "mac_addr", "net_id", "port_id", "port_state"]);
    assert_eq!(cloud.get(&path, "2.70").await.json()["interfaceAttachments"][0]["tag"], "t");
    assert_eq!(cloud.post(&path, "2.70", body).await.status, 409, "the address is taken");

    for bad in [
        json!({"net_id": network, "port_id": port}),
        json!({"fixed_ips": [{"ip_address": "10.0.0.8"}]}),
        json!({"net_id": network, "fixed_ips": []}),
        json!({"net_id": network, "fixed_ips": [{"ip_address": "x"}]}),
        json!({"net_id": network, "tag": "a,b"}),
        json!({"net_id": network, "nonsense": 1}),
    ] {
        assert_eq!(cloud.post(&path, "2.70", wish(bad.clone())).await.status, 400, "{bad}");
    }
    assert_eq!(cloud.post(&path, "2.70", wish(json!({"net_id": "none"}))).await.status, 404);
    assert_eq!(cloud.post(&path, "2.70", wish(json!({"port_id": port}))).await.status, 409);

    assert_eq!(cloud.delete(&one).await, 202);
    assert_eq!(cloud.delete(&one).await, 404);
    assert_eq!(cloud.get(&one, "2.70").await.status, 404);
    let actions = cloud.get(&format!("/servers/{id}/os-instance-actions"), "2.84").await.json();
    let newest = &actions["instanceActions"][0];
    assert_eq!(newest["action"], "detach_interface");
    let request = newest["request_id"].as_str().unwrap();
    let event = format!("/servers/{id}/os-instance-actions/{request}");
    for _ in 0..500 {
        let shown = cloud.get(&event, "2.84").await.json()["instanceAction"]["events"].take();
        if shown[0]["event"] == "compute_detach_interface" {
            assert_eq!(shown[0]["result"], "Success");
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("the host is never done");
}

#[tokio::test(flavor = "multi_thread")]
async fn server_may_have_two_devices_on_one_network_each_with_its_tag() {
    let cloud = Cloud::with_host().await;
    let network = cloud.network("n", "10.0.0.0/24").await;
    let image = cloud.image().await;
    let networks = json!({"networks": [{"uuid": network, "tag": "a"}, {"uuid": network, "tag": "b"}]});
    let id = cloud.server(&image, networks.clone()).await;
    cloud.until(&id, "ACTIVE").await;
    let shown = cloud.get(&format!("/servers/{id}/os-interface"), "2.70").await.json();
    let tags: Vec<_> =
        shown["interfaceAttachments"].as_array().unwrap().iter().map(|one| &one["tag"]).collect();
    assert_eq!(tags, [&json!("a"), &json!("b")]);
    for (version, status) in [("2.37", 400), ("2.31", 400), ("2.36", 202), ("2.42", 202)] {
        let mut server = json!({"name": "s", "imageRef": image, "flavorRef": "42"});
        server.as_object_mut().unwrap().extend(networks.as_object().unwrap().clone());
        let made = cloud.post("/servers", version, json!({ "server": server })).await;
        assert_eq!(made.status, status, "{version}: {:?}", made.json());
    }
    let action = format!("/servers/{id}/action");
    let more = json!({"addFixedIp": {"networkId": network}});
    assert_eq!(cloud.post(&action, "2.44", more.clone()).await.status, 404);
    assert_eq!(cloud.post(&action, "2.43", more).await.status, 202);
    let addresses = cloud.get(&format!("/servers/{id}/ips/n"), "2.1").await.json();
    assert_eq!(addresses["n"].as_array().unwrap().len(), 3);
    let less = json!({"removeFixedIp": {"address": addresses["n"][0]["addr"]}});
    assert_eq!(cloud.post(&action, "2.43", less.clone()).await.status, 202);
    assert_eq!(cloud.post(&action, "2.43", less).await.status, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn floating_ip_leads_to_a_server_by_the_older_action() {
    let cloud = Cloud::with_host().await;
    let network = cloud.network("n", "10.0.0.0/24").await;
    let post = async |path: &str, body: Value| {
        let made = cloud.harness.admin(Method::POST, &format!("/network/v2.0/{path}"), body).await;
        assert_eq!(made.status, 201, "{:?}", made.json());
        made.json()
    };
    let outside = post("networks", json!({"network": {"router:external": true}})).await;
    let outside = outside["network"]["id"].clone();
    post("subnets", json!({"subnet": {"network_id": outside, "ip_version": 4, "cidr": "203.0.113.0/24"}}))
        .await;
    let router = post("routers", json!({"router": {"external_gateway_info": {"network_id": outside}}})).await;
    let subnets = format!("/network/v2.0/subnets?network_id={network}");
    let subnets = cloud.harness.admin(Method::GET, &subnets, Value::Null).await.json();
    let router = router["router"]["id"].as_str().unwrap();
    let add = format!("/network/v2.0/routers/{router}/add_router_interface");
    let added =
        cloud.harness.admin(Method::PUT, &add, json!({"subnet_id": subnets["subnets"][0]["id"]})).await;
    assert_eq!(added.status, 200, "{:?}", added.json());
    let floating = post("floatingips", json!({"floatingip": {"floating_network_id": outside}})).await;
    let address = floating["floatingip"]["floating_ip_address"].clone();

    let id = cloud.server(&cloud.image().await, json!({"networks": [{"uuid": network}]})).await;
    cloud.until(&id, "ACTIVE").await;
    let act = async |version, body| {
        cloud.post(&format!("/servers/{id}/action"), version, body).await.status.as_u16()
    };
    let add = json!({"addFloatingIp": {"address": address}});
    let remove = json!({"removeFloatingIp": {"address": address}});
    assert_eq!(act("2.44", add.clone()).await, 404);
    assert_eq!(act("2.43", remove.clone()).await, 409, "it does not lead there yet");
    assert_eq!(act("2.43", json!({"addFloatingIp": {"address": "203.0.113.250"}})).await, 404);
    let elsewhere = json!({"addFloatingIp": {"address": address, "fixed_address": "10.0.0.250"}});
    assert_eq!(act("2.43", elsewhere).await, 400);
    assert_eq!(act("2.43", add).await, 202);
    let addresses =
        async || cloud.get(&format!("/servers/{id}"), "2.1").await.json()["server"]["addresses"]["n"].take();
    assert_eq!(addresses().await[1]["addr"], address);
    assert_eq!(act("2.43", remove).await, 202);
    assert_eq!(addresses().await.as_array().unwrap().len(), 1);
}
