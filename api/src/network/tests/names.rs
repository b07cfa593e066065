//! Names of ports and domains of networks.

use super::*;

#[tokio::test]
async fn ports_have_names_in_their_networks_domain_or_the_clouds() {
    let cloud = Harness::new().await;
    let network = create(&cloud, "networks", json!({"network": {}})).await;
    has(&network, json!({"dns_domain": ""}));
    let id = text(&network, "id");
    for (version, cidr) in [(4, "10.0.0.0/24"), (6, "2001:db8::/64")] {
        create(&cloud, "subnets", json!({"subnet": {"network_id": id, "ip_version": version, "cidr": cidr}}))
            .await;
    }
    let ips = json!([{"ip_address": "10.0.0.9"}, {"ip_address": "2001:db8::9"}]);
    let port = create(&cloud, "ports", json!({"port": {"network_id": id, "fixed_ips": ips}})).await;
    let (v4, v6) = ("host-10-0-0-9", "host-2001-db8-0-0-0-0-0-9");
    let named = |v4: &str, v6: &str, domain: &str| {
        json!([
            {"hostname": v4, "ip_address": "10.0.0.9", "fqdn": format!("{v4}.{domain}")},
            {"hostname": v6, "ip_address": "2001:db8::9", "fqdn": format!("{v6}.{domain}")},
        ])
    };
    has(&port, json!({"dns_name": "", "dns_assignment": named(v4, v6, "openstacklocal.")}));
    let (on_network, on_port) = (format!("networks/{id}"), format!("ports/{}", text(&port, "id")));
    let body = json!({"network": {"dns_domain": "Example.org."}});
    has(
        &ask(&cloud, Method::PUT, &on_network, body).await.json()["network"],
        json!({"dns_domain": "Example.org."}),
    );
    for name in ["web", "web.Example.org."] {
        let reply = ask(&cloud, Method::PUT, &on_port, json!({"port": {"dns_name": name}})).await;
        has(
            &reply.json()["port"],
            json!({"dns_name": name, "dns_assignment": named("web", "web", "Example.org.")}),
        );
    }
    for name in
        ["-web", "a..b", "web.example.net.", "Example.org.", &"a".repeat(64), &["abcdefg"; 31].join(".")]
    {
        let body = json!({"port": {"dns_name": name}});
        refused(&cloud, Method::PUT, &on_port, body, 400, "InvalidInput").await;
        let body = json!({"port": {"network_id": id, "dns_name": name}});
        refused(&cloud, Method::POST, "ports", body, 400, "InvalidInput").await;
    }
    for domain in ["example.org", "a..b.", "."] {
        let body = json!({"network": {"dns_domain": domain}});
        refused(&cloud, Method::PUT, &on_network, body.clone(), 400, "InvalidInput").await;
        refused(&cloud, Method::POST, "networks", body, 400, "InvalidInput").await;
    }
}
