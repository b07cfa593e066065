//! Groups, trees, inherited and implied roles, and what is listed of them.

use axum::http::Method;
use serde_json::{Value, json};

use super::{login, project};
use crate::harness::Harness;

/// Makes something as the administrator; its id.
pub(super) async fn made(cloud: &Harness, kind: &str, path: &str, body: Value) -> String {
    let reply = cloud.admin(Method::POST, &format!("/identity/v3/{path}"), json!({ kind: body })).await;
    assert_eq!(reply.status, 201, "{path}: {:?}", reply.json());
    reply.json()[kind]["id"].as_str().unwrap().to_owned()
}

/// The status of a request of the administrator's without a body.
pub(super) async fn status(cloud: &Harness, method: Method, path: &str) -> u16 {
    cloud.admin(method, &format!("/identity/v3/{path}"), Value::Null).await.status.as_u16()
}

pub(super) async fn role(cloud: &Harness, name: &str) -> String {
    let path = format!("/identity/v3/roles?name={name}");
    let roles = cloud.admin(Method::GET, &path, Value::Null).await.json();
    roles["roles"][0]["id"].as_str().unwrap().to_owned()
}

#[tokio::test]
async fn group_gives_its_members_a_role_and_takes_it_with_it() {
    let cloud = Harness::new().await;
    let user = made(&cloud, "user", "users", json!({"name": "u", "password": "geheim"})).await;
    let group = made(&cloud, "group", "groups", json!({"name": "g"})).await;
    let place = made(&cloud, "project", "projects", json!({"name": "p"})).await;
    let member = role(&cloud, "member").await;
    let membership = format!("groups/{group}/users/{user}");
    assert_eq!(status(&cloud, Method::HEAD, &membership).await, 404);
    assert_eq!(status(&cloud, Method::PUT, &membership).await, 204);
    assert_eq!(status(&cloud, Method::HEAD, &membership).await, 204);
    let grant = format!("projects/{place}/groups/{group}/roles/{member}");
    assert_eq!(status(&cloud, Method::PUT, &grant).await, 204);
    let body = login("u", "geheim", project("p"));
    let reply = cloud.call(Method::POST, "/identity/v3/auth/tokens", &[], body).await;
    assert_eq!(reply.status, 201);
    let token = reply.header("x-subject-token").unwrap().to_owned();
    let listed = format!("/identity/v3/role_assignments?effective&include_names&user.id={user}");
    let listed = cloud.admin(Method::GET, &listed, Value::Null).await.json();
    let rows = listed["role_assignments"].as_array().unwrap();
    let mut names: Vec<&str> = rows.iter().map(|row| row["role"]["name"].as_str().unwrap()).collect();
    names.sort_unstable();
    assert_eq!(names, ["member", "reader"]);
    assert!(rows.iter().all(|row| row["links"]["membership"].as_str().unwrap().ends_with(&membership)));
    assert_eq!(status(&cloud, Method::DELETE, &format!("groups/{group}")).await, 204);
    assert_eq!(cloud.get("/identity/v3/auth/projects", &[("x-auth-token", &token)]).await.status, 401);
}

#[tokio::test]
async fn inherited_role_holds_below_its_target_and_not_in_it() {
    let cloud = Harness::new().await;
    let user = made(&cloud, "user", "users", json!({"name": "u", "password": "geheim"})).await;
    let top = made(&cloud, "project", "projects", json!({"name": "top"})).await;
    let low = made(&cloud, "project", "projects", json!({"name": "low", "parent_id": top})).await;
    let reader = role(&cloud, "reader").await;
    let grant = format!("OS-INHERIT/projects/{top}/users/{user}/roles/{reader}/inherited_to_projects");
    assert_eq!(status(&cloud, Method::PUT, &grant).await, 204);
    assert_eq!(status(&cloud, Method::HEAD, &grant).await, 204);
    for (name, wanted) in [("top", 401), ("low", 201)] {
        let body = login("u", "geheim", project(name));
        let reply = cloud.call(Method::POST, "/identity/v3/auth/tokens", &[], body).await;
        assert_eq!(reply.status, wanted, "{name}");
    }
    let query = format!("/identity/v3/role_assignments?effective=True&user.id={user}");
    let rows = cloud.admin(Method::GET, &query, Value::Null).await.json();
    let row = &rows["role_assignments"][0];
    assert_eq!(row["scope"]["project"]["id"], low);
    assert_eq!(row["scope"]["OS-INHERIT:inherited_to"], "projects");
    assert!(row["links"]["assignment"].as_str().unwrap().ends_with(&grant));
    let query = format!("/identity/v3/projects/{low}?parents_as_ids");
    let shown = cloud.admin(Method::GET, &query, Value::Null).await.json();
    assert_eq!(shown["project"]["parents"][&top]["default"], Value::Null);
    assert_eq!(shown["project"]["parent_id"], top);
    let query = format!("/identity/v3/projects/{top}?subtree_as_list");
    let shown = cloud.admin(Method::GET, &query, Value::Null).await;
    assert_eq!(shown.json()["project"]["subtree"][0]["project"]["id"], low);
    assert_eq!(status(&cloud, Method::DELETE, &format!("projects/{top}")).await, 403);
}

#[tokio::test]
async fn domain_goes_with_all_that_is_in_it_once_it_is_disabled() {
    let cloud = Harness::new().await;
    let domain = made(&cloud, "domain", "domains", json!({"name": "d"})).await;
    let of = |name: &str| json!({"name": name, "domain_id": domain});
    let member = role(&cloud, "member").await;
    for number in 0..40 {
        let user = made(&cloud, "user", "users", of(&format!("u{number}"))).await;
        let place = made(&cloud, "project", "projects", of(&format!("p{number}"))).await;
        let grant = format!("projects/{place}/users/{user}/roles/{member}");
        assert_eq!(status(&cloud, Method::PUT, &grant).await, 204);
    }
    let path = format!("domains/{domain}");
    assert_eq!(status(&cloud, Method::DELETE, &path).await, 403);
    let disable = json!({"domain": {"enabled": false}});
    assert_eq!(cloud.admin(Method::PATCH, &format!("/identity/v3/{path}"), disable).await.status, 200);
    assert_eq!(status(&cloud, Method::DELETE, &path).await, 204);
    for kind in ["users", "projects"] {
        let path = format!("/identity/v3/{kind}?domain_id={domain}");
        assert_eq!(cloud.admin(Method::GET, &path, Value::Null).await.json()[kind], json!([]));
    }
    // Every name is free again.
    made(&cloud, "domain", "domains", json!({"name": "d"})).await;
}

#[tokio::test]
async fn domains_role_gives_what_it_implies_and_is_never_in_a_token() {
    let cloud = Harness::new().await;
    let user = made(&cloud, "user", "users", json!({"name": "u", "password": "geheim"})).await;
    let place = made(&cloud, "project", "projects", json!({"name": "p"})).await;
    let own = made(&cloud, "role", "roles", json!({"name": "own", "domain_id": "default"})).await;
    let listed = cloud.admin(Method::GET, "/identity/v3/roles?name=own", Value::Null).await.json();
    assert_eq!(listed["roles"], json!([]));
    let reader = role(&cloud, "reader").await;
    assert_eq!(status(&cloud, Method::PUT, &format!("roles/{own}/implies/{reader}")).await, 201);
    assert_eq!(status(&cloud, Method::PUT, &format!("roles/{reader}/implies/{own}")).await, 403);
    assert_eq!(status(&cloud, Method::HEAD, &format!("roles/{own}/implies/{reader}")).await, 204);
    let admin = role(&cloud, "admin").await;
    assert_eq!(status(&cloud, Method::PUT, &format!("roles/{reader}/implies/{admin}")).await, 403);
    assert_eq!(status(&cloud, Method::PUT, &format!("system/users/{user}/roles/{own}")).await, 400);
    let grant = format!("projects/{place}/users/{user}/roles/{own}");
    assert_eq!(status(&cloud, Method::PUT, &grant).await, 204);
    let body = login("u", "geheim", project("p"));
    let reply = cloud.call(Method::POST, "/identity/v3/auth/tokens", &[], body).await.json();
    let roles = reply["token"]["roles"].as_array().unwrap();
    assert_eq!(roles.iter().map(|role| &role["name"]).collect::<Vec<_>>(), ["reader"]);
}

#[tokio::test]
async fn tags_and_filters_of_projects_are_keystones() {
    let cloud = Harness::new().await;
    let one = made(&cloud, "project", "projects", json!({"name": "one", "tags": ["red", "blue"]})).await;
    made(&cloud, "project", "projects", json!({"name": "two", "tags": ["red"]})).await;
    let count = async |query: &str| {
        let path = format!("/identity/v3/projects?{query}");
        let rows = cloud.admin(Method::GET, &path, Value::Null).await.json();
        rows["projects"].as_array().unwrap().len()
    };
    assert_eq!(count("tags=red,blue").await, 1);
    assert_eq!(count("tags-any=red,blue").await, 2);
    assert_eq!(count("not-tags=red,blue&name__startswith=t").await, 1);
    assert_eq!(count("not-tags-any=red").await, 2);
    assert_eq!(status(&cloud, Method::PUT, &format!("projects/{one}/tags/green")).await, 201);
    assert_eq!(status(&cloud, Method::HEAD, &format!("projects/{one}/tags/green")).await, 204);
    assert_eq!(status(&cloud, Method::DELETE, &format!("projects/{one}/tags/green")).await, 204);
    assert_eq!(status(&cloud, Method::DELETE, &format!("projects/{one}/tags/green")).await, 404);
    let path = format!("/identity/v3/projects/{one}/tags");
    for bad in [json!({"tags": ["a,b"]}), json!({"tags": ["a", "a"]}), json!({"tags": [1]}), json!({})] {
        assert_eq!(cloud.admin(Method::PUT, &path, bad.clone()).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn bad_bodies_are_400_and_make_nothing() {
    let cloud = Harness::new().await;
    for (path, body) in [
        ("users", json!({"user": {"name": 5}})),
        ("users", json!({"user": {}})),
        ("users", json!({"user": {"name": "x", "options": {"nothing": true}}})),
        ("users", json!({"user": {"name": "x", "enabled": "yes"}})),
        ("users", json!({"user": [1]})),
        ("users", json!([])),
        ("projects", json!({"project": {"name": ""}})),
        ("projects", json!({"project": {"name": "x".repeat(65)}})),
        ("roles", json!({"role": {"name": "x", "options": {"immutable": 1}}})),
        ("services", json!({"service": {"type": ""}})),
        ("endpoints", json!({"endpoint": {"service_id": "no", "interface": "public", "url": "http://x"}})),
        ("limits", json!({"limits": []})),
        ("credentials", json!({"credential": {"type": "ec2", "blob": "no"}})),
    ] {
        let reply = cloud.admin(Method::POST, &format!("/identity/v3/{path}"), body.clone()).await;
        assert_eq!(reply.status, 400, "{path} {body}: {:?}", reply.json());
        assert_eq!(reply.json()["error"]["title"], "Bad Request");
    }
}
