//! What a policy file hides: each rule of a read, what it refuses, and that it refuses nothing else.

use axum::http::Method;
use serde_json::{Value, json};

use super::assignments::{made, role};
use crate::harness::Harness;

/// Each rule, and what it refuses. What ends with `!` is asked for by HEAD.
fn reads([user, group, project, role]: [&str; 4]) -> Vec<(&'static str, String)> {
    vec![
        ("identity:list_users", "users".to_owned()),
        ("identity:get_user", format!("users/{user}")),
        ("identity:list_user_projects", format!("users/{user}/projects")),
        ("identity:list_groups_for_user", format!("users/{user}/groups")),
        ("identity:ec2_list_credentials", format!("users/{user}/credentials/OS-EC2")),
        ("identity:list_groups", "groups".to_owned()),
        ("identity:get_group", format!("groups/{group}")),
        ("identity:list_users_in_group", format!("groups/{group}/users")),
        ("identity:check_user_in_group", format!("groups/{group}/users/{user}!")),
        ("identity:list_projects", "projects".to_owned()),
        ("identity:get_project", format!("projects/{project}")),
        ("identity:list_project_tags", format!("projects/{project}/tags")),
        ("identity:get_project_tag", format!("projects/{project}/tags/tag!")),
        ("identity:list_roles", "roles".to_owned()),
        ("identity:list_role_inference_rules", "role_inferences".to_owned()),
        ("identity:list_implied_roles", format!("roles/{role}/implies")),
        ("identity:list_role_assignments", "role_assignments".to_owned()),
        (
            "identity:list_role_assignments_for_tree",
            format!("role_assignments?include_subtree=True&scope.project.id={project}"),
        ),
        ("identity:list_grants", format!("projects/{project}/users/{user}/roles")),
        ("identity:check_grant", format!("projects/{project}/users/{user}/roles/{role}!")),
        ("identity:list_system_grants_for_user", format!("system/users/{user}/roles")),
        ("identity:list_revoke_events", "OS-REVOKE/events".to_owned()),
        ("identity:list_services", "services".to_owned()),
        ("identity:list_endpoints", "endpoints".to_owned()),
        ("identity:list_domains", "domains".to_owned()),
        ("identity:list_credentials", "credentials".to_owned()),
    ]
}

async fn read(cloud: &Harness, token: &str, path: &str) -> u16 {
    let (method, path) = match path.strip_suffix('!') {
        Some(path) => (Method::HEAD, path),
        None => (Method::GET, path),
    };
    let headers = [("x-auth-token", token)];
    cloud.call(method, &format!("/identity/v3/{path}"), &headers, Value::Null).await.status.as_u16()
}

/// A user with a role in a tagged project, in a group; their ids.
async fn things(cloud: &Harness) -> [String; 4] {
    let user = made(cloud, "user", "users", json!({"name": "u"})).await;
    let group = made(cloud, "group", "groups", json!({"name": "g"})).await;
    let project = made(cloud, "project", "projects", json!({"name": "p", "tags": ["tag"]})).await;
    let role = role(cloud, "member").await;
    for path in
        [format!("groups/{group}/users/{user}"), format!("projects/{project}/users/{user}/roles/{role}")]
    {
        let put = cloud.admin(Method::PUT, &format!("/identity/v3/{path}"), Value::Null).await;
        assert_eq!(put.status, 204, "{path}");
    }
    [user, group, project, role]
}

#[tokio::test]
async fn file_that_forbids_a_read_hides_that_and_nothing_else() {
    let cloud = Harness::new().await;
    let ids = things(&cloud).await;
    let reads = reads(ids.each_ref().map(String::as_str));
    let token = cloud.admin_token().await;
    for (rule, refused) in &reads {
        let ruled = cloud.ruled(&format!("\"{rule}\": \"!\"\n")).await;
        for path in reads.iter().map(|(_, path)| path) {
            let status = read(&ruled, &token, path).await;
            if refused == path {
                assert_eq!(status, 403, "{rule}: {path}");
            } else {
                assert!(matches!(status, 200 | 204), "{rule}: {path}: {status}");
            }
        }
    }
}

#[tokio::test]
async fn file_may_let_others_read_and_grant_and_without_one_they_do_not() {
    let cloud = Harness::new().await;
    let ids = things(&cloud).await;
    let [user, group, project, role] = ids.each_ref().map(String::as_str);
    let member = cloud.user_token("m", "member").await;
    let policy = "\"identity:list_users_in_group\": \"role:member\"\n\
                  \"identity:list_role_assignments\": \"\"\n\
                  \"identity:create_grant\": \"role:member and 'default':%(domain_id)s\"\n";
    let ruled = cloud.ruled(policy).await;
    let users = format!("groups/{group}/users");
    assert_eq!((read(&cloud, &member, &users).await, read(&ruled, &member, &users).await), (403, 200));
    let headers = [("x-auth-token", member.as_str())];
    let assignments = async |cloud: &Harness| {
        let reply = cloud.get("/identity/v3/role_assignments", &headers).await;
        reply.json()["role_assignments"].as_array().map_or(0, Vec::len)
    };
    assert_eq!(assignments(&cloud).await, 1, "its own");
    assert!(assignments(&ruled).await > 2, "all");
    let grant = format!("/identity/v3/projects/{project}/groups/{group}/roles/{role}");
    assert_eq!(cloud.call(Method::PUT, &grant, &headers, Value::Null).await.status, 403);
    assert_eq!(ruled.call(Method::PUT, &grant, &headers, Value::Null).await.status, 204);
    let system = format!("/identity/v3/system/users/{user}/roles/{role}");
    assert_eq!(ruled.call(Method::PUT, &system, &headers, Value::Null).await.status, 403);
}

#[tokio::test]
async fn file_says_whose_tokens_are_shown_and_ended() {
    let cloud = Harness::new().await;
    let member = cloud.user_token("m", "member").await;
    let admin = cloud.admin_token().await;
    let of = async |cloud: &Harness, method: Method, caller: &str, subject: &str| {
        let headers = [("x-auth-token", caller), ("x-subject-token", subject)];
        cloud.call(method, "/identity/v3/auth/tokens", &headers, Value::Null).await.status.as_u16()
    };
    let policy = "\"identity:validate_token\": \"user_id:%(target.token.user_id)s\"\n\
                  \"identity:revoke_token\": \"!\"\n";
    let ruled = cloud.ruled(policy).await;
    assert_eq!(of(&ruled, Method::GET, &member, &member).await, 200);
    assert_eq!(of(&ruled, Method::GET, &admin, &member).await, 403);
    assert_eq!(of(&ruled, Method::DELETE, &admin, &member).await, 403);
    assert_eq!(of(&cloud, Method::GET, &member, &admin).await, 403);
    assert_eq!(of(&cloud, Method::GET, &admin, &member).await, 200);
    assert_eq!(of(&cloud, Method::DELETE, &admin, &member).await, 204);
}
