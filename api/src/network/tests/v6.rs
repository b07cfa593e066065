//! IPv6 subnets, and the addresses of ports.

use super::*;

async fn subnet(cloud: &Harness, network: &str, fields: Value) -> Value {
    let mut subnet = json!({"network_id": network, "ip_version": 6});
    subnet.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
    create(cloud, "subnets", json!({"subnet": subnet})).await
}

fn addresses(port: &Value) -> Vec<String> {
    port["fixed_ips"].as_array().unwrap().iter().map(|ip| text(ip, "ip_address")).collect()
}

const MAC: &str = "fa:16:3e:01:02:03";

#[tokio::test]
async fn modes_go_together_or_are_refused() {
    let cloud = Harness::new().await;
    let network = text(&create(&cloud, "networks", json!({"network": {}})).await, "id");
    let of = |ra: Option<&str>, address: Option<&str>, cidr: &str| json!({"subnet": {"network_id": network, "cidr": cidr, "ipv6_ra_mode": ra, "ipv6_address_mode": address}});
    for (ra, address) in [
        ("dhcpv6-stateless", "dhcpv6-stateful"),
        ("dhcpv6-stateless", "slaac"),
        ("slaac", "dhcpv6-stateful"),
        ("dhcpv6-stateful", "slaac"),
    ] {
        let body = of(Some(ra), Some(address), "2001:db8::/64");
        refused(&cloud, Method::POST, "subnets", body, 400, "InvalidInput").await;
    }
    for body in [
        of(Some("slaac"), None, "2001:db8::/80"),
        of(Some("slaac"), None, "10.0.0.0/24"),
        of(None, Some("slaac"), "10.0.0.0/24"),
        json!({"subnet": {"network_id": network, "cidr": "2001:db8::/64", "enable_dhcp": false, "ipv6_ra_mode": "slaac"}}),
    ] {
        refused(&cloud, Method::POST, "subnets", body, 400, "InvalidInput").await;
    }
    let body = of(Some("other"), None, "2001:db8::/64");
    refused(&cloud, Method::POST, "subnets", body, 400, "HTTPBadRequest").await;
    let made = subnet(&cloud, &network, json!({"cidr": "2001:db8::/64", "ipv6_ra_mode": "dhcpv6-stateless", "ipv6_address_mode": "dhcpv6-stateless"})).await;
    has(
        &made,
        json!({
            "ipv6_ra_mode": "dhcpv6-stateless", "ipv6_address_mode": "dhcpv6-stateless", "gateway_ip": "2001:db8::1",
        }),
    );
    let body = json!({"subnet": {"enable_dhcp": false}});
    refused(&cloud, Method::PUT, &format!("subnets/{}", text(&made, "id")), body, 400, "InvalidInput").await;
}

#[tokio::test]
async fn ports_have_what_their_hosts_will_choose() {
    let cloud = Harness::new().await;
    let network = text(&create(&cloud, "networks", json!({"network": {}})).await, "id");
    let before = create(&cloud, "ports", json!({"port": {"network_id": network}})).await;
    let auto = subnet(&cloud, &network, json!({"cidr": "2001:db8::/64", "ipv6_address_mode": "slaac"})).await;
    let stateful =
        subnet(&cloud, &network, json!({"cidr": "2001:db8:1::/64", "ipv6_address_mode": "dhcpv6-stateful"}))
            .await;
    let body = json!({"subnet": {"network_id": network, "cidr": "10.0.0.0/24"}});
    let v4 = text(&create(&cloud, "subnets", body).await, "id");
    let port = create(&cloud, "ports", json!({"port": {"network_id": network, "mac_address": MAC}})).await;
    let own = "2001:db8::f816:3eff:fe01:203";
    assert_eq!(addresses(&port), ["10.0.0.3", "2001:db8:1::2", own]);
    let body = json!({"port": {"network_id": network, "fixed_ips": [{"subnet_id": v4}]}});
    assert_eq!(addresses(&create(&cloud, "ports", body).await).len(), 2, "beside what is wished");
    let body = json!({"port": {"network_id": network, "fixed_ips": [{"ip_address": "2001:db8::7"}]}});
    refused(&cloud, Method::POST, "ports", body, 400, "InvalidInput").await;
    let body = json!({"port": {"network_id": network, "fixed_ips": [{"ip_address": "2001:db8:1::2"}]}});
    refused(&cloud, Method::POST, "ports", body, 409, "IpAddressAlreadyAllocated").await;
    let row = ask(&cloud, Method::GET, &format!("ports/{}", text(&before, "id")), Value::Null).await.json();
    assert_eq!(row["port"]["fixed_ips"][0]["subnet_id"], auto["id"], "what was there before the subnet");
    let path = format!("ports/{}", text(&port, "id"));
    let body = json!({"port": {"mac_address": "fa:16:3e:01:02:04"}});
    let moved = ask(&cloud, Method::PUT, &path, body).await.json();
    assert_eq!(addresses(&moved["port"]), ["10.0.0.3", "2001:db8:1::2", "2001:db8::f816:3eff:fe01:204"]);
    let gone = format!("subnets/{}", text(&stateful, "id"));
    refused(&cloud, Method::DELETE, &gone, Value::Null, 409, "SubnetInUse").await;
    let gone = format!("subnets/{}", text(&auto, "id"));
    assert_eq!(ask(&cloud, Method::DELETE, &gone, Value::Null).await.status, 204);
    let left = ask(&cloud, Method::GET, &path, Value::Null).await.json();
    assert_eq!(addresses(&left["port"]), ["10.0.0.3", "2001:db8:1::2"]);
    refused(&cloud, Method::DELETE, &format!("networks/{network}"), Value::Null, 409, "NetworkInUse").await;
}

#[tokio::test]
async fn a_port_s_addresses_are_changed_and_given_back() {
    let cloud = Harness::new().await;
    let (network, one) = network(&cloud, "n", "10.0.0.0/24").await;
    let body = json!({"subnet": {"network_id": network, "cidr": "10.0.1.0/24", "enable_dhcp": false}});
    let two = text(&create(&cloud, "subnets", body).await, "id");
    let both = json!([{"subnet_id": one}, {"subnet_id": two}]);
    let body = json!({"port": {"network_id": network, "fixed_ips": both}});
    let port = create(&cloud, "ports", body).await;
    assert_eq!(addresses(&port), ["10.0.0.3", "10.0.1.2"]);
    let path = format!("ports/{}", text(&port, "id"));
    let put = async |fixed_ips: Value| {
        ask(&cloud, Method::PUT, &path, json!({"port": {"fixed_ips": fixed_ips}})).await.json()["port"]
            .clone()
    };
    assert_eq!(addresses(&put(json!([{"subnet_id": one}])).await), ["10.0.0.3"]);
    let body = json!({"port": {"network_id": network, "fixed_ips": [{"ip_address": "10.0.1.2"}]}});
    create(&cloud, "ports", body).await;
    assert_eq!(addresses(&put(both).await), ["10.0.0.3", "10.0.1.3"]);
    assert_eq!(addresses(&put(json!([{"ip_address": "10.0.0.9"}])).await), ["10.0.0.9"]);
    let body = json!({"port": {"fixed_ips": [{"ip_address": "10.0.1.2"}]}});
    refused(&cloud, Method::PUT, &path, body, 409, "IpAddressAlreadyAllocated").await;
    let body = json!({"port": {"binding:host_id": "h"}});
    let bound = ask(&cloud, Method::PUT, &path, body).await.json();
    has(&bound["port"], json!({"binding:host_id": "h", "binding:vif_type": "bridge"}));
    let body = json!({"port": {"mac_address": MAC}});
    refused(&cloud, Method::PUT, &path, body, 409, "PortBound").await;
    let token = cloud.user_token("m", "member").await;
    let headers = [("x-auth-token", token.as_str())];
    for body in [
        json!({"network_id": network, "binding:host_id": "h"}),
        json!({"network_id": network, "device_owner": "network:dhcp"}),
    ] {
        let reply = cloud.call(Method::POST, "/network/v2.0/ports", &headers, json!({"port": body})).await;
        assert_eq!(refusal(&reply), (403, "PolicyNotAuthorized".into()));
    }
    let body = json!({"subnet": {"enable_dhcp": true}});
    assert_eq!(ask(&cloud, Method::PUT, &format!("subnets/{two}"), body).await.status, 200);
    let ports = ask(&cloud, Method::GET, "ports?device_owner=network:dhcp", Value::Null).await.json();
    assert_eq!(ports["ports"].as_array().unwrap().len(), 2, "DHCP is answered there now, too");
}

#[tokio::test]
async fn ports_have_dhcp_options_of_their_own() {
    let cloud = Harness::new().await;
    let network = text(&create(&cloud, "networks", json!({"network": {}})).await, "id");
    let options = json!([
        {"opt_name": "bootfile-name", "opt_value": "pxelinux.0"},
        {"opt_name": "dns-server", "opt_value": "2001:db8::53", "ip_version": "6"},
    ]);
    let body = json!({"port": {"network_id": network, "extra_dhcp_opts": options}});
    let port = create(&cloud, "ports", body).await;
    let kept = json!([
        {"opt_name": "bootfile-name", "opt_value": "pxelinux.0", "ip_version": 4},
        {"opt_name": "dns-server", "opt_value": "2001:db8::53", "ip_version": 6},
    ]);
    assert_eq!(port["extra_dhcp_opts"], kept);
    let path = format!("ports/{}", text(&port, "id"));
    let change = json!([{"opt_name": "bootfile-name", "opt_value": null}]);
    let body = json!({"port": {"extra_dhcp_opts": change}});
    let changed = ask(&cloud, Method::PUT, &path, body).await.json();
    assert_eq!(changed["port"]["extra_dhcp_opts"], json!([kept[1]]));
    for refusal in [
        json!([{"opt_name": "mtu"}]),
        json!([{"opt_name": "", "opt_value": "x"}]),
        json!([{"opt_name": "mtu", "opt_value": ""}]),
        json!([{"opt_name": "mtu", "opt_value": "1", "ip_version": 5}]),
    ] {
        let body = json!({"port": {"extra_dhcp_opts": refusal}});
        refused(&cloud, Method::PUT, &path, body, 400, "InvalidInput").await;
    }
}
