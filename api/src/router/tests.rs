//! The frame around every service.

use axum::http::Method;
use serde_json::{Value, json};

use crate::harness::Harness;

use super::*;

#[test]
fn project_ids_and_trailing_slashes_leave_the_path() {
    let id = "0123456789abcdef0123456789abcdef";
    let cases = [
        (format!("/compute/v2.1/{id}/servers/detail/"), "/compute/v2.1/servers/detail", Some(id)),
        (format!("/volume/v3/{id}"), "/volume/v3", Some(id)),
        ("/volume/v3/".to_owned(), "/volume/v3", None),
        ("/".to_owned(), "/", None),
        (format!("/image/v2/images/{id}"), &format!("/image/v2/images/{id}"), None),
    ];
    for (path, wanted, project) in cases {
        assert_eq!(canonical(&path), (wanted.to_owned(), project.map(str::to_owned)), "{path}");
    }
}

#[tokio::test]
async fn discovery_answers_with_the_statuses_clients_expect() {
    let cloud = Harness::new().await;
    for (path, status) in [
        ("/identity", 300),
        ("/identity/", 300),
        ("/identity/v3", 200),
        ("/compute", 200),
        ("/compute/v2.1", 200),
        ("/volume", 300),
        ("/volume/v3/", 200),
        ("/image", 300),
        ("/image/versions", 200),
        ("/network", 200),
        ("/placement", 200),
    ] {
        let reply = cloud.get(path, &[]).await;
        assert_eq!(reply.status, status, "{path}");
        assert!(reply.header("x-openstack-request-id").is_some_and(|id| id.starts_with("req-")), "{path}");
    }
    let nova = cloud.get("/compute/v2.1", &[]).await;
    assert_eq!(nova.json()["version"]["version"], "2.100");
    assert!(nova.header("x-compute-request-id").is_some());
}

#[tokio::test]
async fn unknown_paths_and_methods_answer_in_each_services_form() {
    let cloud = Harness::new().await;
    let body = |reply: crate::harness::Reply| (reply.status.as_u16(), reply.json());
    let (status, json) = body(cloud.get("/compute/v2.1/nonsense", &[]).await);
    assert_eq!((status, &json["itemNotFound"]["code"]), (404, &json!(404)));
    let (status, json) = body(cloud.get("/network/v2.0/nonsense", &[]).await);
    assert_eq!((status, &json["NeutronError"]["type"]), (404, &json!("HTTPNotFound")));
    let (status, json) = body(cloud.get("/identity/v3/nonsense", &[]).await);
    assert_eq!((status, &json["error"]["title"]), (404, &json!("Not Found")));
    let (status, json) = body(cloud.get("/nonsense", &[]).await);
    assert_eq!((status, &json["error"]["code"]), (404, &json!(404)));
    let (status, json) = body(cloud.get("/placement/nonsense", &[]).await);
    assert_eq!((status, &json["errors"][0]["status"]), (404, &json!(404)));
    let reply = cloud.call(Method::PUT, "/identity/v3/auth/catalog", &[], Value::Null).await;
    assert_eq!((reply.status.as_u16(), reply.json()["error"]["code"].clone()), (405, json!(405)));
    assert!(reply.header("allow").is_some());
}

#[tokio::test]
async fn microversion_is_echoed_on_success_and_error_and_refused_out_of_range() {
    let cloud = Harness::new().await;
    let headers = [("openstack-api-version", "compute 2.47")];
    for path in ["/compute/v2.1", "/compute/v2.1/nonsense"] {
        let reply = cloud.get(path, &headers).await;
        assert_eq!(reply.header("openstack-api-version"), Some("compute 2.47"), "{path}");
        assert_eq!(reply.header("x-openstack-nova-api-version"), Some("2.47"));
        assert_eq!(reply.header("vary"), Some("OpenStack-API-Version"));
    }
    let refused = cloud.get("/compute/v2.1", &[("openstack-api-version", "compute 2.101")]).await;
    assert_eq!((refused.status.as_u16(), refused.json()["computeFault"]["code"].clone()), (406, json!(406)));
    let malformed = cloud.get("/volume/v3", &[("openstack-api-version", "volume x")]).await;
    assert_eq!(
        (malformed.status.as_u16(), malformed.json()["badRequest"]["code"].clone()),
        (400, json!(400))
    );
}

#[tokio::test]
async fn bodies_that_are_too_long_or_no_json_are_refused() {
    let cloud = Harness::new().await;
    let long = Value::from("x".repeat(crate::context::JSON_BYTES_MAX));
    let reply = cloud.call(Method::POST, "/identity/v3/auth/tokens", &[], long).await;
    assert_eq!(reply.status, 413);
    let request = Request::builder().method("POST").uri("/identity/v3/auth/tokens");
    let reply = cloud.send(request.body("{".into()).unwrap()).await;
    assert_eq!((reply.status.as_u16(), reply.json()["error"]["code"].clone()), (400, json!(400)));
    let request = Request::builder().method("POST").uri("/identity/v3/auth/tokens");
    let reply = cloud.send(request.header("content-type", "text/plain").body("{}".into()).unwrap()).await;
    assert_eq!(reply.status, 415);
}

#[tokio::test]
async fn panic_in_a_handler_is_a_500_in_form() {
    let cloud = Harness::new().await;
    let broken = Router::new().route("/x", axum::routing::get(async || -> Response { panic!("on purpose") }));
    let state = AppState::new(cloud.control.clone());
    let router = framed(Service::Network, broken, &state).with_state(state);
    let response = router.oneshot(Request::get("/x").body(axum::body::Body::empty()).unwrap()).await.unwrap();
    assert_eq!(response.status(), 500);
}

#[tokio::test]
async fn slash_at_the_end_of_a_collection_is_an_id_that_is_empty() {
    let cloud = Harness::new().await;
    for (method, path, status) in [
        (Method::DELETE, "/compute/v2.1/images", 405),
        (Method::DELETE, "/compute/v2.1/images/", 404),
        (Method::PATCH, "/identity/v3/users/", 404),
        (Method::GET, "/compute/v2.1/images/", 200),
    ] {
        assert_eq!(cloud.admin(method.clone(), path, Value::Null).await.status, status, "{method} {path}");
    }
}
