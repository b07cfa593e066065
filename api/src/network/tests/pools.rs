//! Subnet pools and address scopes.

use super::*;

async fn pool(cloud: &Harness, fields: Value) -> Value {
    create(cloud, "subnetpools", json!({"subnetpool": fields})).await
}

async fn cut(cloud: &Harness, network: &str, mut fields: Value) -> Reply {
    fields["network_id"] = json!(network);
    ask(cloud, Method::POST, "subnets", json!({"subnet": fields})).await
}

#[tokio::test]
async fn pools_have_their_families_bounds_and_say_what_does_not_fit() {
    let cloud = Harness::new().await;
    let made =
        pool(&cloud, json!({"name": "p", "prefixes": ["10.1.0.0/24", "10.0.0.0/24", "10.0.1.0/24"]})).await;
    let fields = json!({
        "name": "p", "prefixes": ["10.0.0.0/23", "10.1.0.0/24"], "ip_version": 4, "min_prefixlen": 8,
        "max_prefixlen": 32, "default_prefixlen": 8, "default_quota": null, "address_scope_id": null,
        "is_default": false, "shared": false, "tags": [], "revision_number": 0, "description": "",
    });
    has(&made, fields);
    let six =
        pool(&cloud, json!({"name": "six", "prefixes": ["2001:db8::/32"], "default_prefixlen": "96"})).await;
    has(&six, json!({"ip_version": 6, "min_prefixlen": 64, "max_prefixlen": 128, "default_prefixlen": 96}));
    for (fields, kind) in [
        (json!({"prefixes": []}), "EmptySubnetPoolPrefixList"),
        (json!({"prefixes": ["10.0.0.0/8", "2001:db8::/32"]}), "PrefixVersionMismatch"),
        (json!({"prefixes": ["10.0.0.1/8"]}), "InvalidInput"),
        (json!({"prefixes": ["ten"]}), "InvalidInput"),
        (json!({"prefixes": ["10.0.0.0/8"], "max_prefixlen": 33}), "IllegalSubnetPoolPrefixBounds"),
        (
            json!({"prefixes": ["10.0.0.0/8"], "min_prefixlen": 25, "max_prefixlen": 24}),
            "IllegalSubnetPoolPrefixBounds",
        ),
        (json!({"prefixes": ["10.0.0.0/8"], "default_prefixlen": 4}), "IllegalSubnetPoolPrefixBounds"),
    ] {
        let mut fields = fields;
        fields["name"] = json!("bad");
        refused(&cloud, Method::POST, "subnetpools", json!({"subnetpool": fields}), 400, kind).await;
    }
    let path = format!("subnetpools/{}", text(&made, "id"));
    let put = |fields: Value| json!({"subnetpool": fields});
    let body = put(json!({"prefixes": ["10.0.0.0/24"]}));
    refused(&cloud, Method::PUT, &path, body, 400, "IllegalSubnetPoolPrefixUpdate").await;
    let reply = ask(&cloud, Method::PUT, &path, put(json!({"prefixes": ["10.0.0.0/15"], "name": "q"}))).await;
    has(&reply.json()["subnetpool"], json!({"prefixes": ["10.0.0.0/15"], "name": "q", "revision_number": 1}));
    let reply =
        ask(&cloud, Method::PUT, &format!("{path}/add_prefixes"), json!({"prefixes": ["10.2.0.0/15"]})).await;
    assert_eq!(reply.json(), json!({"prefixes": ["10.0.0.0/14"]}));
    let reply =
        ask(&cloud, Method::PUT, &format!("{path}/remove_prefixes"), json!({"prefixes": ["10.3.0.0/16"]}))
            .await;
    assert_eq!(reply.json(), json!({"prefixes": ["10.0.0.0/15", "10.2.0.0/16"]}));
    assert_eq!(ask(&cloud, Method::PUT, &format!("{path}/tags"), json!({"tags": ["t"]})).await.status, 200);
    assert_eq!(ask(&cloud, Method::DELETE, &path, Value::Null).await.status, 204);
    refused(&cloud, Method::GET, &path, Value::Null, 404, "SubnetPoolNotFound").await;
}

#[tokio::test]
async fn subnets_of_a_pool_never_overlap_and_what_is_deleted_is_cut_again() {
    let cloud = Harness::new().await;
    let fields =
        json!({"name": "p", "prefixes": ["10.0.0.0/22"], "default_prefixlen": 24, "min_prefixlen": 23});
    let id = text(&pool(&cloud, fields).await, "id");
    let mut subnets = Vec::new();
    for expected in ["10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24"] {
        let network = text(&create(&cloud, "networks", json!({"network": {}})).await, "id");
        let made =
            cut(&cloud, &network, json!({"subnetpool_id": id, "ip_version": 4})).await.json()["subnet"]
                .clone();
        has(&made, json!({"cidr": expected, "subnetpool_id": id}));
        assert_eq!(text(&made, "gateway_ip"), expected.replace("0/24", "1"));
        subnets.push(text(&made, "id"));
    }
    let network = text(&create(&cloud, "networks", json!({"network": {}})).await, "id");
    for (fields, status, kind) in [
        (json!({"prefixlen": 23}), 409, "SubnetAllocationError"),
        (json!({"prefixlen": 22}), 400, "MinPrefixSubnetAllocationError"),
        (json!({"prefixlen": 33}), 400, "MaxPrefixSubnetAllocationError"),
        (json!({"cidr": "10.0.1.0/25"}), 409, "SubnetAllocationError"),
        (json!({"cidr": "10.9.0.0/24"}), 409, "SubnetAllocationError"),
        (json!({"cidr": "10.0.3.0/24", "prefixlen": 24}), 400, "BadRequest"),
        (json!({"ip_version": 6}), 400, "BadRequest"),
        (json!({"use_default_subnetpool": true}), 400, "BadRequest"),
        (json!({"allocation_pools": []}), 400, "BadRequest"),
    ] {
        let mut fields = fields;
        fields["subnetpool_id"] = json!(id);
        let reply = cut(&cloud, &network, fields.clone()).await;
        assert_eq!(refusal(&reply), (status, kind.to_owned()), "{fields}");
    }
    assert_eq!(refusal(&cut(&cloud, &network, json!({"ip_version": 4})).await), (400, "BadRequest".into()));
    let path = format!("subnetpools/{id}");
    refused(&cloud, Method::DELETE, &path, Value::Null, 400, "SubnetPoolDeleteError").await;
    let body = json!({"prefixes": ["10.0.1.0/28"]});
    refused(
        &cloud,
        Method::PUT,
        &format!("{path}/remove_prefixes"),
        body,
        400,
        "IllegalSubnetPoolPrefixUpdate",
    )
    .await;
    let gone = format!("subnets/{}", subnets[1]);
    assert_eq!(ask(&cloud, Method::DELETE, &gone, Value::Null).await.status, 204);
    let made = cut(&cloud, &network, json!({"subnetpool_id": id, "prefixlen": 25})).await.json();
    has(&made["subnet"], json!({"cidr": "10.0.1.0/25"}));
    let reply = cut(&cloud, &network, json!({"cidr": "10.7.0.0/24"})).await;
    assert_eq!(refusal(&reply), (400, "NetworkSubnetPoolAffinityError".into()));
}

#[tokio::test]
async fn default_pools_and_quotas_of_pools_hold() {
    let cloud = Harness::new().await;
    let network = text(&create(&cloud, "networks", json!({"network": {}})).await, "id");
    let wish = json!({"use_default_subnetpool": true, "ip_version": 4, "prefixlen": 26});
    assert_eq!(refusal(&cut(&cloud, &network, wish.clone()).await), (400, "BadRequest".into()));
    let fields = json!({"name": "d", "prefixes": ["10.0.0.0/16"], "is_default": true, "default_quota": 100});
    let id = text(&pool(&cloud, fields.clone()).await, "id");
    refused(&cloud, Method::POST, "subnetpools", json!({"subnetpool": fields}), 400, "InvalidInput").await;
    has(&cut(&cloud, &network, wish.clone()).await.json()["subnet"], json!({"subnetpool_id": id}));
    assert_eq!(refusal(&cut(&cloud, &network, wish.clone()).await), (409, "SubnetPoolQuotaExceeded".into()));
    let body = json!({"subnetpool": {"is_default": false, "default_quota": null}});
    assert_eq!(ask(&cloud, Method::PUT, &format!("subnetpools/{id}"), body).await.status, 200);
    let body = json!({"subnet": {"network_id": network, "subnetpool_id": id, "prefixlen": 26}});
    create(&cloud, "subnets", body).await;
    let project = text(&create(&cloud, "networks", json!({"network": {}})).await, "project_id");
    let quota = json!({"quota": {"subnetpool": 1}});
    assert_eq!(ask(&cloud, Method::PUT, &format!("quotas/{project}"), quota).await.status, 200);
    let body = json!({"subnetpool": {"name": "x", "prefixes": ["10.9.0.0/16"]}});
    refused(&cloud, Method::POST, "subnetpools", body, 409, "OverQuota").await;
}

#[tokio::test]
async fn scopes_hold_pools_without_overlap_and_networks_together() {
    let cloud = Harness::new().await;
    let scope =
        create(&cloud, "address-scopes", json!({"address_scope": {"name": "s", "ip_version": 4}})).await;
    has(&scope, json!({"name": "s", "ip_version": 4, "shared": false}));
    let scope = text(&scope, "id");
    let one =
        pool(&cloud, json!({"name": "1", "prefixes": ["10.0.0.0/16"], "address_scope_id": scope})).await;
    let body = json!({"subnetpool": {"name": "2", "prefixes": ["10.0.3.0/24"], "address_scope_id": scope}});
    refused(&cloud, Method::POST, "subnetpools", body, 409, "AddressScopePrefixConflict").await;
    let body = json!({"subnetpool": {"name": "2", "prefixes": ["2001:db8::/32"], "address_scope_id": scope}});
    let kind = "IllegalSubnetPoolIpVersionAssociationToAddressScope";
    refused(&cloud, Method::POST, "subnetpools", body, 400, kind).await;
    let body = json!({"subnetpool": {"name": "2", "prefixes": ["10.1.0.0/16"], "address_scope_id": "none"}});
    refused(&cloud, Method::POST, "subnetpools", body, 404, "AddressScopeNotFound").await;
    let two =
        pool(&cloud, json!({"name": "2", "prefixes": ["10.1.0.0/16"], "address_scope_id": scope})).await;
    let network = text(&create(&cloud, "networks", json!({"network": {}})).await, "id");
    for pool in [&one, &two] {
        let reply = cut(&cloud, &network, json!({"subnetpool_id": pool["id"], "prefixlen": 24})).await;
        assert_eq!(reply.status, 201, "{}", reply.json());
    }
    let reply = ask(&cloud, Method::GET, &format!("networks/{network}"), Value::Null).await.json();
    has(&reply["network"], json!({"ipv4_address_scope": scope, "ipv6_address_scope": null}));
    let reply = cut(&cloud, &network, json!({"cidr": "10.7.0.0/24"})).await;
    assert_eq!(refusal(&reply), (400, "NetworkAddressScopeAffinityError".into()));
    let path = format!("address-scopes/{scope}");
    refused(&cloud, Method::DELETE, &path, Value::Null, 409, "AddressScopeInUse").await;
    let share = |shared: bool| json!({"address_scope": {"shared": shared}});
    assert_eq!(ask(&cloud, Method::PUT, &path, share(true)).await.status, 200);
    refused(&cloud, Method::PUT, &path, share(false), 400, "AddressScopeUpdateError").await;
}

#[tokio::test]
async fn a_network_s_subnets_come_into_a_pool() {
    let cloud = Harness::new().await;
    let (network, subnet) = network(&cloud, "n", "10.5.0.0/24").await;
    let id = text(&pool(&cloud, json!({"name": "p", "prefixes": ["10.4.0.0/16"]})).await, "id");
    let path = format!("subnetpools/{id}/onboard_network_subnets");
    let reply = ask(&cloud, Method::PUT, &path, json!({"network_id": network})).await;
    assert_eq!((reply.status.as_u16(), reply.json()), (200, json!({})));
    let reply = ask(&cloud, Method::GET, &format!("subnets/{subnet}"), Value::Null).await.json();
    has(&reply["subnet"], json!({"subnetpool_id": id}));
    let reply = ask(&cloud, Method::GET, &format!("subnetpools/{id}"), Value::Null).await.json();
    has(&reply["subnetpool"], json!({"prefixes": ["10.4.0.0/16", "10.5.0.0/24"]}));
    let (other, _) = super::network(&cloud, "o", "10.5.0.0/25").await;
    refused(&cloud, Method::PUT, &path, json!({"network_id": other}), 400, "IllegalSubnetPoolUpdate").await;
}

#[tokio::test]
async fn members_make_pools_of_their_own_and_share_nothing() {
    let cloud = Harness::new().await;
    let member = cloud.user_token("m", "member").await;
    let reader = cloud.user_token("r", "reader").await;
    let post = async |token: &str, fields: Value| {
        let headers = [("x-auth-token", token)];
        cloud.call(Method::POST, "/network/v2.0/subnetpools", &headers, json!({"subnetpool": fields})).await
    };
    let fields = json!({"name": "p", "prefixes": ["10.0.0.0/16"]});
    assert_eq!(post(&member, fields.clone()).await.status, 201);
    assert_eq!(refusal(&post(&reader, fields).await), (403, "PolicyNotAuthorized".into()));
    for (flag, rule) in
        [("shared", "create_subnetpool:shared"), ("is_default", "create_subnetpool:is_default")]
    {
        let reply = post(&member, json!({"name": "p", "prefixes": ["10.0.0.0/16"], flag: true})).await;
        assert_eq!(reply.status, 403);
        assert!(reply.json()["NeutronError"]["message"].as_str().unwrap().contains(rule));
    }
}
