//! What all resources share: lists, tags, revisions, bulk creation.

use super::*;

async fn names(cloud: &Harness, query: &str) -> Vec<String> {
    let reply = ask(cloud, Method::GET, &format!("networks?{query}"), Value::Null).await;
    assert_eq!(reply.status, 200, "{}", reply.json());
    reply.json()["networks"].as_array().unwrap().iter().map(|row| text(row, "name")).collect()
}

async fn three(cloud: &Harness) -> Vec<Value> {
    let networks = json!({"networks": [
        {"name": "b", "tags": ["red"]},
        {"name": "a", "mtu": 1400, "tags": ["red", "blue"], "description": "first"},
        {"name": "c", "mtu": 1400},
    ]});
    let reply = ask(cloud, Method::POST, "networks", networks).await;
    assert_eq!(reply.status, 201, "{}", reply.json());
    reply.json()["networks"].as_array().unwrap().clone()
}

#[tokio::test]
async fn lists_are_sorted_by_several_keys_and_cut_into_pages_both_ways() {
    let cloud = Harness::new().await;
    three(&cloud).await;
    assert_eq!(names(&cloud, "sort_key=name&sort_dir=desc").await, ["c", "b", "a"]);
    let query = "sort_key=mtu&sort_dir=asc&sort_key=name&sort_dir=desc";
    assert_eq!(names(&cloud, query).await, ["c", "a", "b"]);
    let first =
        ask(&cloud, Method::GET, "networks?sort_key=name&sort_dir=asc&limit=2", Value::Null).await.json();
    assert_eq!(first["networks"][1]["name"], "b");
    let links = first["networks_links"].as_array().unwrap();
    let next = links.iter().find(|link| link["rel"] == "next").unwrap()["href"].as_str().unwrap();
    let next = next.strip_prefix("http://cloud.test").unwrap();
    let second = cloud.admin(Method::GET, next, Value::Null).await.json();
    assert_eq!(second["networks"][0]["name"], "c");
    let marker = text(&second["networks"][0], "id");
    let query = format!("sort_key=name&sort_dir=asc&limit=1&marker={marker}&page_reverse=True");
    assert_eq!(names(&cloud, &query).await, ["b"]);
    for (query, kind) in [
        ("sort_key=name", "HTTPBadRequest"),
        ("sort_key=nothing&sort_dir=asc", "HTTPBadRequest"),
        ("sort_key=name&sort_dir=up", "HTTPBadRequest"),
        ("limit=-1", "HTTPBadRequest"),
        ("changed_since=yesterday", "InvalidInput"),
    ] {
        refused(&cloud, Method::GET, &format!("networks?{query}"), Value::Null, 400, kind).await;
    }
}

#[tokio::test]
async fn lists_are_filtered_by_attributes_tags_and_times() {
    let cloud = Harness::new().await;
    three(&cloud).await;
    for (query, expected) in [
        ("mtu=1400", vec!["a", "c"]),
        ("description=first", vec!["a"]),
        ("revision_number=0&name=a&name=c", vec!["a", "c"]),
        ("tags=red", vec!["a", "b"]),
        ("tags=red,blue", vec!["a"]),
        ("tags-any=blue,green", vec!["a"]),
        ("not-tags=red,blue", vec!["b", "c"]),
        ("not-tags-any=red,green", vec!["c"]),
        ("changed_since=2001-01-01T00:00:00", vec!["a", "b", "c"]),
        ("changed_since=2101-01-01T00:00:00Z", vec![]),
    ] {
        assert_eq!(names(&cloud, &format!("sort_key=name&sort_dir=asc&{query}")).await, expected, "{query}");
    }
    let reply = ask(&cloud, Method::GET, "networks?name=a&fields=name&fields=tags", Value::Null).await;
    assert_eq!(reply.json(), json!({"networks": [{"name": "a", "tags": ["blue", "red"]}]}));
}

#[tokio::test]
async fn tags_are_put_on_and_taken_off_any_resource() {
    let cloud = Harness::new().await;
    let (network, subnet) = network(&cloud, "n", "10.0.0.0/24").await;
    let port = text(&create(&cloud, "ports", json!({"port": {"network_id": network}})).await, "id");
    let body = json!({"security_group": {"name": "g"}});
    let group = text(&create(&cloud, "security-groups", body).await, "id");
    for path in [
        format!("networks/{network}/tags"),
        format!("subnets/{subnet}/tags"),
        format!("ports/{port}/tags"),
        format!("security-groups/{group}/tags"),
    ] {
        let tags = async || ask(&cloud, Method::GET, &path, Value::Null).await.json();
        assert_eq!(tags().await, json!({"tags": []}));
        let reply = ask(&cloud, Method::PUT, &path, json!({"tags": ["a", "b"]})).await;
        assert_eq!((reply.status.as_u16(), reply.json()), (200, json!({"tags": ["a", "b"]})));
        let reply = ask(&cloud, Method::POST, &path, json!({"tags": ["b", "c"]})).await;
        assert_eq!((reply.status.as_u16(), reply.json()), (201, json!({"tags": ["b", "c"]})));
        assert_eq!(ask(&cloud, Method::PUT, &format!("{path}/d"), Value::Null).await.status, 201);
        assert_eq!(ask(&cloud, Method::GET, &format!("{path}/d"), Value::Null).await.status, 204);
        assert_eq!(ask(&cloud, Method::DELETE, &format!("{path}/a"), Value::Null).await.status, 204);
        assert_eq!(tags().await, json!({"tags": ["b", "c", "d"]}));
        refused(&cloud, Method::GET, &format!("{path}/a"), Value::Null, 404, "TagNotFound").await;
        refused(&cloud, Method::DELETE, &format!("{path}/a"), Value::Null, 404, "TagNotFound").await;
        let many: Vec<String> = (0..51).map(|n| n.to_string()).collect();
        refused(&cloud, Method::PUT, &path, json!({"tags": many}), 400, "BadRequest").await;
        refused(&cloud, Method::PUT, &path, json!({"tags": ["x".repeat(256)]}), 400, "InvalidInput").await;
        refused(&cloud, Method::PUT, &path, json!({"tags": 1}), 400, "HTTPBadRequest").await;
        assert_eq!(ask(&cloud, Method::DELETE, &path, Value::Null).await.status, 204);
        assert_eq!(tags().await, json!({"tags": []}));
    }
    refused(&cloud, Method::GET, "networks/none/tags", Value::Null, 404, "TagResourceNotFound").await;
}

#[tokio::test]
async fn a_change_for_another_revision_is_refused() {
    let cloud = Harness::new().await;
    let row = create(&cloud, "networks", json!({"network": {"name": "n"}})).await;
    let path = format!("/network/v2.0/networks/{}", text(&row, "id"));
    let token = cloud.admin_token().await;
    let with = async |method, revision: &str, body| {
        let headers = [("x-auth-token", token.as_str()), ("if-match", revision)];
        cloud.call(method, &path, &headers, body).await
    };
    let name = |name: &str| json!({"network": {"name": name}});
    let reply = with(Method::PUT, "revision_number=0", name("m")).await;
    assert_eq!((reply.status.as_u16(), &reply.json()["network"]["revision_number"]), (200, &json!(1)));
    let stale = with(Method::PUT, "revision_number=0", name("o")).await;
    assert_eq!(refusal(&stale), (412, "RevisionNumberConstraintFailed".into()));
    let stale = with(Method::DELETE, "revision_number=7", Value::Null).await;
    assert_eq!(refusal(&stale), (412, "RevisionNumberConstraintFailed".into()));
    assert_eq!(with(Method::PUT, "revision_number=x", name("o")).await.status, 400);
    assert_eq!(with(Method::DELETE, "revision_number=1", Value::Null).await.status, 204);
}

#[tokio::test]
async fn several_are_made_in_one_request_or_none() {
    let cloud = Harness::new().await;
    let made = three(&cloud).await;
    assert_eq!(
        made.iter().map(|row| text(row, "name")).collect::<Vec<_>>(),
        ["b", "a", "c"],
        "in their order"
    );
    let (one, two) = (text(&made[0], "id"), text(&made[1], "id"));
    let subnet = |network: &str, cidr: &str| json!({"network_id": network, "cidr": cidr, "ip_version": 4});
    let body = json!({"subnets": [subnet(&one, "10.1.0.0/24"), subnet(&one, "10.1.0.128/25")]});
    refused(&cloud, Method::POST, "subnets", body, 400, "InvalidInput").await;
    assert!(
        ask(&cloud, Method::GET, "subnets", Value::Null).await.json()["subnets"]
            .as_array()
            .unwrap()
            .is_empty()
    );
    let body = json!({"subnets": [subnet(&one, "10.1.0.0/24"), subnet(&two, "10.1.0.0/24")]});
    assert_eq!(ask(&cloud, Method::POST, "subnets", body).await.status, 201);
    let port = json!({"network_id": one});
    let reply = ask(&cloud, Method::POST, "ports", json!({"ports": [port, port, port]})).await.json();
    let addresses: Vec<_> = (0..3).map(|n| text(&reply["ports"][n]["fixed_ips"][0], "ip_address")).collect();
    assert_eq!(addresses, ["10.1.0.3", "10.1.0.4", "10.1.0.5"]);
    let body = json!({"ports": [port, {"network_id": "none"}]});
    refused(&cloud, Method::POST, "ports", body, 404, "NetworkNotFound").await;
    let reply = ask(&cloud, Method::GET, "ports?device_owner=", Value::Null).await.json();
    assert_eq!(reply["ports"].as_array().unwrap().len(), 3);
    let body = json!({"security_groups": [{"name": "x"}, {"name": "y"}]});
    let groups = ask(&cloud, Method::POST, "security-groups", body).await.json()["security_groups"].clone();
    let rule = |n: u16| {
        json!({"security_group_id": groups[0]["id"], "direction": "ingress", "protocol": "tcp",
               "port_range_min": n, "port_range_max": n})
    };
    let body = json!({"security_group_rules": [rule(1), rule(1)]});
    refused(&cloud, Method::POST, "security-group-rules", body, 409, "DuplicateSecurityGroupRuleInPost")
        .await;
    let body = json!({"security_group_rules": [rule(1), rule(2)]});
    let reply = ask(&cloud, Method::POST, "security-group-rules", body).await;
    assert_eq!(reply.json()["security_group_rules"][1]["port_range_min"], 2);
}

#[tokio::test]
async fn a_bulk_over_the_quota_or_over_what_fits_makes_nothing() {
    let cloud = Harness::new().await;
    let project = ask(&cloud, Method::GET, "security-groups", Value::Null).await.json();
    let project = text(&project["security_groups"][0], "project_id");
    let quota = |n: i64| json!({"quota": {"network": n}});
    assert_eq!(ask(&cloud, Method::PUT, &format!("quotas/{project}"), quota(2)).await.status, 200);
    let many = |n: usize| json!({"networks": vec![json!({}); n]});
    refused(&cloud, Method::POST, "networks", many(3), 409, "OverQuota").await;
    assert_eq!(ask(&cloud, Method::PUT, &format!("quotas/{project}"), quota(-1)).await.status, 200);
    refused(&cloud, Method::POST, "networks", many(80), 400, "InvalidInput").await;
    assert!(names(&cloud, "").await.is_empty());
}

#[tokio::test]
async fn a_policy_file_says_who_reads_networks() {
    let cloud = Harness::new().await;
    three(&cloud).await;
    let id = text(&three(&cloud).await[0], "id");
    let ruled = cloud.ruled("\"get_network\": \"!\"\n").await;
    assert!(names(&ruled, "").await.is_empty());
    refused(&ruled, Method::GET, &format!("networks/{id}"), Value::Null, 404, "NetworkNotFound").await;
}

#[tokio::test]
async fn numbers_may_be_texts() {
    let cloud = Harness::new().await;
    let body = json!({"network": {"mtu": "1400", "provider:network_type": "vxlan", "provider:segmentation_id": "77"}});
    let row = create(&cloud, "networks", body).await;
    has(&row, json!({"mtu": 1400, "provider:segmentation_id": 77}));
    let body = json!({"subnet": {"network_id": row["id"], "ip_version": "4", "cidr": "10.0.0.0/24"}});
    create(&cloud, "subnets", body).await;
    let body = json!({"network": {"mtu": "many"}});
    refused(&cloud, Method::POST, "networks", body, 400, "HTTPBadRequest").await;
}

#[tokio::test]
async fn extensions_are_listed_once_each_and_shown() {
    let cloud = Harness::new().await;
    let rows = ask(&cloud, Method::GET, "extensions", Value::Null).await.json()["extensions"].clone();
    let aliases: Vec<String> = rows.as_array().unwrap().iter().map(|row| text(row, "alias")).collect();
    let unique: std::collections::BTreeSet<_> = aliases.iter().collect();
    assert_eq!(unique.len(), aliases.len(), "{aliases:?}");
    for there in ["address-group", "qos", "rbac-policies", "subnet_allocation", "trunk", "revision-if-match"]
    {
        let row = ask(&cloud, Method::GET, &format!("extensions/{there}"), Value::Null).await.json();
        assert_eq!(row["extension"]["alias"], there);
    }
    for absent in ["segment", "tag"] {
        refused(&cloud, Method::GET, &format!("extensions/{absent}"), Value::Null, 404, "ExtensionNotFound")
            .await;
    }
}
