//! The block storage service (Cinder, Block Storage API v3): its quotas, limits and zone. Volumes themselves are not
//! there, and say so. Its discovery documents are in [`crate::discovery`].

mod quota;

use axum::routing::{any, get};
use axum::{Json, Router};
use serde_json::{Value, json};

use crate::context::{Answer, AppState, Authenticated};
use crate::error::Fault;

/// What Cinder has and this cloud has not: any request to it answers 501.
const ABSENT: [&str; 16] = [
    "attachments",
    "backups",
    "cgsnapshots",
    "consistencygroups",
    "group_snapshots",
    "group_types",
    "groups",
    "messages",
    "os-services",
    "os-volume-transfer",
    "qos-specs",
    "scheduler-stats",
    "snapshots",
    "types",
    "volume-transfers",
    "volumes",
];

/// The routes below `/volume`. A project id after the version is taken out before routing.
pub fn routes() -> Router<AppState> {
    let routes = Router::new()
        .route("/v3/limits", get(quota::limits))
        .route("/v3/os-quota-sets/{project}", get(quota::show).put(quota::update).delete(quota::reset))
        .route("/v3/os-quota-sets/{project}/defaults", get(quota::defaults))
        .route("/v3/os-availability-zone", get(zones))
        .route("/v3/extensions", get(extensions));
    ABSENT.iter().fold(routes, |routes, name| {
        routes.route(&format!("/v3/{name}"), any(absent)).route(&format!("/v3/{name}/{{*rest}}"), any(absent))
    })
}

async fn absent(_: Authenticated) -> Fault {
    Fault::not_implemented("block storage")
}

/// Block Storage API v3: get availability zone information.
async fn zones(_: Authenticated) -> Answer<Value> {
    Ok(Json(json!({"availabilityZoneInfo": [{"zoneName": "nova", "zoneState": {"available": true}}]})))
}

/// Block Storage API v3: list known API extensions.
async fn extensions(_: Authenticated) -> Answer<Value> {
    Ok(Json(json!({"extensions": []})))
}

#[cfg(test)]
mod tests {
    use axum::http::Method;
    use serde_json::{Value, json};

    use crate::harness::Harness;

    #[tokio::test]
    async fn quotas_are_there_with_and_without_a_project_in_the_path_and_volumes_are_not() {
        let cloud = Harness::new().await;
        let token = cloud.admin_token().await;
        let caller = cloud.control.token_caller(&token, String::new()).await.unwrap();
        let id = caller.project_id().unwrap();
        let set = format!("/volume/v3/{id}/os-quota-sets/{id}");
        let changed = cloud.admin(Method::PUT, &set, json!({"quota_set": {"volumes": 20}})).await;
        assert_eq!(changed.json()["quota_set"]["volumes"], 20);
        let shown =
            cloud.admin(Method::GET, &format!("/volume/v3/os-quota-sets/{id}?usage=True"), Value::Null).await;
        assert_eq!(shown.json()["quota_set"]["volumes"], json!({"limit": 20, "in_use": 0, "reserved": 0}));
        assert_eq!(cloud.admin(Method::DELETE, &set, Value::Null).await.status, 200);
        let limits = cloud.admin(Method::GET, "/volume/v3/limits", Value::Null).await.json();
        assert_eq!(limits["limits"]["absolute"]["maxTotalVolumes"], 10);
        let refused = cloud.admin(Method::PUT, &set, json!({"quota_set": {"bananas": 1}})).await;
        assert_eq!(
            (refused.status.as_u16(), refused.json()["badRequest"]["code"].clone()),
            (400, json!(400))
        );
        let absent = cloud.admin(Method::GET, "/volume/v3/volumes/detail", Value::Null).await;
        assert_eq!(
            (absent.status.as_u16(), absent.json()["notImplemented"]["code"].clone()),
            (501, json!(501))
        );
        let other = "/volume/v3/0123456789abcdef0123456789abcdef/limits";
        assert_eq!(cloud.get(other, &[("x-auth-token", "nonsense")]).await.status, 401);
    }
}
