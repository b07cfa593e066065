//! Routers, floating IPs and port forwardings on the wire.

use super::*;

/// An external network; its id.
async fn outside(cloud: &Harness) -> String {
    let body = json!({"network": {
        "name": "outside", "router:external": true, "provider:network_type": "flat",
        "provider:physical_network": "outside",
    }});
    let id = text(&create(cloud, "networks", body).await, "id");
    let body = json!({"subnet": {"network_id": id, "cidr": "203.0.113.0/24", "ip_version": 4}});
    create(cloud, "subnets", body).await;
    id
}

#[tokio::test]
async fn router_is_made_connected_changed_and_deleted() {
    let cloud = Harness::new().await;
    let outside = outside(&cloud).await;
    let (network, subnet) = network(&cloud, "n", "10.0.0.0/24").await;
    let body = json!({"router": {
        "name": "r", "external_gateway_info": {"network_id": outside}, "availability_zone_hints": ["nova"],
        "tags": ["t"], "distributed": false,
    }});
    let made = create(&cloud, "routers", body).await;
    has(
        &made,
        json!({
            "name": "r", "description": "", "admin_state_up": true, "status": "ACTIVE", "routes": [],
            "availability_zone_hints": ["nova"], "availability_zones": ["nova"], "flavor_id": null, "tags": ["t"],
            "revision_number": 0,
        }),
    );
    let gateway = &made["external_gateway_info"];
    has(gateway, json!({"network_id": outside, "enable_snat": true}));
    assert_eq!(gateway["external_fixed_ips"][0]["ip_address"], "203.0.113.3");
    let path = format!("routers/{}", text(&made, "id"));
    let add = format!("{path}/add_router_interface");
    let reply = ask(&cloud, Method::PUT, &add, json!({"subnet_id": subnet})).await;
    assert_eq!(reply.status, 200, "{}", reply.json());
    let change = reply.json();
    has(
        &change,
        json!({
            "id": made["id"], "tenant_id": made["tenant_id"], "network_id": network, "subnet_id": subnet,
            "subnet_ids": [subnet],
        }),
    );
    let port =
        ask(&cloud, Method::GET, &format!("ports/{}", text(&change, "port_id")), Value::Null).await.json();
    has(
        &port["port"],
        json!({
            "device_owner": "network:router_interface", "device_id": made["id"], "security_groups": [],
            "fixed_ips": [{"subnet_id": subnet, "ip_address": "10.0.0.1"}],
        }),
    );
    refused(&cloud, Method::PUT, &add, json!({"subnet_id": subnet}), 400, "BadRequest").await;
    refused(&cloud, Method::DELETE, &path, Value::Null, 409, "RouterInUse").await;
    let routes = json!({"router": {"routes": [{"destination": "10.9.0.0/24", "nexthop": "10.0.0.9"}]}});
    let reply = ask(&cloud, Method::PUT, &format!("{path}/add_extraroutes"), routes.clone()).await;
    assert_eq!(reply.json()["router"]["routes"], routes["router"]["routes"], "{}", reply.json());
    let reply = ask(&cloud, Method::PUT, &path, routes.clone()).await;
    assert_eq!(reply.json()["router"]["routes"], routes["router"]["routes"]);
    let reply = ask(&cloud, Method::PUT, &format!("{path}/remove_extraroutes"), routes).await;
    assert_eq!(reply.json()["router"]["routes"], json!([]));
    let remove = format!("{path}/remove_router_interface");
    assert_eq!(ask(&cloud, Method::PUT, &remove, json!({"subnet_id": subnet})).await.json(), change);
    refused(
        &cloud,
        Method::PUT,
        &remove,
        json!({"subnet_id": subnet}),
        404,
        "RouterInterfaceForSubnetNotFound",
    )
    .await;
    let body = json!({"router": {"external_gateway_info": {}, "name": "s"}});
    let reply = ask(&cloud, Method::PUT, &path, body).await;
    has(&reply.json()["router"], json!({"external_gateway_info": null, "name": "s"}));
    assert_eq!(ask(&cloud, Method::DELETE, &path, Value::Null).await.status, 204);
    refused(&cloud, Method::GET, &path, Value::Null, 404, "RouterNotFound").await;
}

#[tokio::test]
async fn router_that_cannot_be_is_refused() {
    let cloud = Harness::new().await;
    let (network, _) = network(&cloud, "n", "10.0.0.0/24").await;
    for (fields, status, kind) in [
        (json!({"external_gateway_info": {"network_id": network}}), 400, "BadRequest"),
        (json!({"external_gateway_info": {"network_id": "none"}}), 404, "NetworkNotFound"),
        (json!({"external_gateway_info": {"enable_snat": true}}), 400, "InvalidInput"),
        (json!({"availability_zone_hints": ["elsewhere"]}), 404, "AvailabilityZoneNotFound"),
        (json!({"distributed": true}), 501, "NotImplementedError"),
        (json!({"ha": true}), 501, "NotImplementedError"),
        (json!({"name": "x".repeat(256)}), 400, "InvalidInput"),
    ] {
        refused(&cloud, Method::POST, "routers", json!({"router": fields}), status, kind).await;
    }
    let made = create(&cloud, "routers", json!({"router": {}})).await;
    let path = format!("routers/{}", text(&made, "id"));
    for (destination, nexthop, kind) in [
        ("10.9.0.1/24", "10.0.0.9", "InvalidInput"),
        ("10.9.0.0", "10.0.0.9", "InvalidInput"),
        ("10.9.0.0/24", "here", "InvalidInput"),
        ("10.9.0.0/24", "10.0.0.9", "InvalidRoutes"),
    ] {
        let body = json!({"router": {"routes": [{"destination": destination, "nexthop": nexthop}]}});
        refused(&cloud, Method::PUT, &path, body, 400, kind).await;
    }
}

#[tokio::test]
async fn floating_ip_leads_to_a_port_and_shows_it() {
    let cloud = Harness::new().await;
    let outside = outside(&cloud).await;
    let (network, subnet) = network(&cloud, "n", "10.0.0.0/24").await;
    let port =
        text(&create(&cloud, "ports", json!({"port": {"network_id": network, "name": "p"}})).await, "id");
    let body = json!({"floatingip": {"floating_network_id": outside, "port_id": port}});
    refused(&cloud, Method::POST, "floatingips", body.clone(), 404, "ExternalGatewayForFloatingIPNotFound")
        .await;
    let router = json!({"router": {"external_gateway_info": {"network_id": outside}}});
    let router = text(&create(&cloud, "routers", router).await, "id");
    let add = format!("routers/{router}/add_router_interface");
    assert_eq!(ask(&cloud, Method::PUT, &add, json!({"subnet_id": subnet})).await.status, 200);
    let made = create(&cloud, "floatingips", body).await;
    has(
        &made,
        json!({
            "floating_network_id": outside, "floating_ip_address": "203.0.113.4", "port_id": port,
            "fixed_ip_address": "10.0.0.3", "router_id": router, "status": "DOWN", "description": "", "tags": [],
            "port_forwardings": [],
        }),
    );
    has(&made["port_details"], json!({"name": "p", "network_id": network, "device_owner": ""}));
    let path = format!("floatingips/{}", text(&made, "id"));
    for (fields, status, kind) in [
        (json!({"port_id": null, "fixed_ip_address": "10.0.0.3"}), 400, "BadRequest"),
        (json!({"fixed_ip_address": "10.0.0.4"}), 400, "BadRequest"),
        (json!({"port_id": "none"}), 404, "PortNotFound"),
    ] {
        refused(&cloud, Method::PUT, &path, json!({"floatingip": fields}), status, kind).await;
    }
    // What a change does not say stays.
    let reply = ask(&cloud, Method::PUT, &path, json!({"floatingip": {"description": "d"}})).await;
    has(&reply.json()["floatingip"], json!({"description": "d", "port_id": port}));
    let reply = ask(&cloud, Method::PUT, &path, json!({"floatingip": {"port_id": null}})).await;
    has(&reply.json()["floatingip"], json!({"port_id": null, "fixed_ip_address": null, "router_id": null}));
    let listed =
        ask(&cloud, Method::GET, "floatingips?floating_ip_address=203.0.113.4", Value::Null).await.json();
    assert_eq!(listed["floatingips"].as_array().unwrap().len(), 1);
    let body = json!({"floatingip": {"floating_network_id": network}});
    refused(&cloud, Method::POST, "floatingips", body, 400, "BadRequest").await;
    let body = json!({"floatingip": {"floating_network_id": outside, "floating_ip_address": "203.0.113.4"}});
    refused(&cloud, Method::POST, "floatingips", body, 409, "IpAddressAlreadyAllocated").await;
    assert_eq!(ask(&cloud, Method::DELETE, &path, Value::Null).await.status, 204);
    refused(&cloud, Method::GET, &path, Value::Null, 404, "FloatingIPNotFound").await;
}

#[tokio::test]
async fn ports_are_forwarded_by_single_ports_and_by_ranges() {
    let cloud = Harness::new().await;
    let outside = outside(&cloud).await;
    let (network, subnet) = network(&cloud, "n", "10.0.0.0/24").await;
    let port = text(&create(&cloud, "ports", json!({"port": {"network_id": network}})).await, "id");
    let router = json!({"router": {"external_gateway_info": {"network_id": outside}}});
    let router = text(&create(&cloud, "routers", router).await, "id");
    let add = format!("routers/{router}/add_router_interface");
    ask(&cloud, Method::PUT, &add, json!({"subnet_id": subnet})).await;
    let body = json!({"floatingip": {"floating_network_id": outside}});
    let floating = text(&create(&cloud, "floatingips", body).await, "id");
    let all = format!("floatingips/{floating}/port_forwardings");
    let body = json!({"port_forwarding": {
        "protocol": "tcp", "external_port": 2222, "internal_port": 22, "internal_port_id": port, "description": "d",
    }});
    let made = create(&cloud, &all, body.clone()).await;
    has(
        &made,
        json!({
            "protocol": "tcp", "external_port": 2222, "internal_port": 22, "internal_port_id": port,
            "internal_ip_address": "10.0.0.3", "external_port_range": "2222:2222", "internal_port_range": "22:22",
            "description": "d",
        }),
    );
    refused(&cloud, Method::POST, &all, body, 400, "BadRequest").await;
    for (fields, kind) in [
        (json!({"protocol": "sctp"}), "InvalidInput"),
        (json!({"protocol": "tcp", "external_port": 1, "internal_port": 1}), "HTTPBadRequest"),
        (json!({"protocol": "tcp", "external_port": 1, "external_port_range": "1:2"}), "InvalidInput"),
        (json!({"protocol": "tcp", "external_port_range": "1-2"}), "InvalidInput"),
    ] {
        refused(&cloud, Method::POST, &all, json!({"port_forwarding": fields}), 400, kind).await;
    }
    let body = json!({"port_forwarding": {
        "protocol": "udp", "external_port_range": "5000:5002", "internal_port_range": "53:55", "internal_port_id": port,
    }});
    let range = create(&cloud, &all, body).await;
    has(&range, json!({"external_port_range": "5000:5002", "internal_port_range": "53:55"}));
    assert_eq!(range.get("external_port"), None);
    let shown = ask(&cloud, Method::GET, &format!("floatingips/{floating}"), Value::Null).await.json();
    has(&shown["floatingip"], json!({"router_id": router, "port_id": null}));
    assert_eq!(shown["floatingip"]["port_forwardings"].as_array().unwrap().len(), 2);
    let path = format!("{all}/{}", text(&made, "id"));
    let reply = ask(&cloud, Method::PUT, &path, json!({"port_forwarding": {"external_port": 2223}})).await;
    has(
        &reply.json()["port_forwarding"],
        json!({"external_port": 2223, "internal_port": 22, "description": "d"}),
    );
    assert_eq!(ask(&cloud, Method::DELETE, &path, Value::Null).await.status, 204);
    refused(&cloud, Method::GET, &path, Value::Null, 404, "PortForwardingNotFound").await;
}

#[tokio::test]
async fn floating_ips_have_names_and_policies_that_stay_while_they_are_used() {
    let cloud = Harness::new().await;
    let outside = outside(&cloud).await;
    let policy = text(&create(&cloud, "qos/policies", json!({"policy": {"name": "p"}})).await, "id");
    let wish = |fields: Value| {
        let mut floating = json!({"floating_network_id": outside});
        floating.as_object_mut().unwrap().extend(fields.as_object().unwrap().clone());
        json!({"floatingip": floating})
    };
    let body = wish(json!({"dns_name": "web", "dns_domain": "example.org.", "qos_policy_id": policy}));
    let made = create(&cloud, "floatingips", body).await;
    has(
        &made,
        json!({
            "dns_name": "web", "dns_domain": "example.org.", "qos_policy_id": policy, "qos_network_policy_id": null,
        }),
    );
    has(
        &create(&cloud, "floatingips", wish(json!({}))).await,
        json!({"dns_name": "", "dns_domain": "", "qos_policy_id": null}),
    );
    for bad in [json!({"dns_name": "-x"}), json!({"dns_domain": "example.org"}), json!({"dns_name": "a..b"})]
    {
        assert_eq!(ask(&cloud, Method::POST, "floatingips", wish(bad.clone())).await.status, 400, "{bad}");
    }
    let unknown = wish(json!({"qos_policy_id": "none"}));
    refused(&cloud, Method::POST, "floatingips", unknown, 404, "QosPolicyNotFound").await;
    let gateway = json!({"network_id": outside, "qos_policy_id": policy});
    let router = create(&cloud, "routers", json!({"router": {"external_gateway_info": gateway}})).await;
    assert_eq!(router["external_gateway_info"]["qos_policy_id"], json!(policy));
    let policy_path = format!("qos/policies/{policy}");
    refused(&cloud, Method::DELETE, &policy_path, Value::Null, 409, "QosPolicyInUse").await;
    let path = format!("floatingips/{}", text(&made, "id"));
    let reply = ask(&cloud, Method::PUT, &path, json!({"floatingip": {"qos_policy_id": null}})).await;
    assert_eq!((&reply.json()["floatingip"]["qos_policy_id"], reply.status.as_u16()), (&Value::Null, 200));
    refused(&cloud, Method::DELETE, &policy_path, Value::Null, 409, "QosPolicyInUse").await;
    let path = format!("routers/{}", text(&router, "id"));
    let plain = |fields: Value| json!({"router": {"external_gateway_info": fields}});
    let reply = ask(&cloud, Method::PUT, &path, plain(json!({"network_id": outside}))).await;
    assert_eq!(reply.json()["router"]["external_gateway_info"]["qos_policy_id"], json!(policy), "as it was");
    let none = plain(json!({"network_id": outside, "qos_policy_id": null}));
    let reply = ask(&cloud, Method::PUT, &path, none).await;
    assert_eq!(reply.json()["router"]["external_gateway_info"]["qos_policy_id"], Value::Null);
    assert_eq!(ask(&cloud, Method::DELETE, &policy_path, Value::Null).await.status, 204);
}
