//! QoS specifications (Block Storage API: quality of service specifications).

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use control::model::volume::QosSpec;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::{Link, links, properties};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, Segments};
use crate::error::Fault;
use crate::openapi::answer::{TAKEN, Taken};

#[derive(Serialize, JsonSchema)]
#[schemars(rename = "QosSpecs")]
struct Shown {
    id: String,
    name: String,
    consumer: String,
    specs: BTreeMap<String, String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneQosSpecs {
    qos_specs: Shown,
    links: [Link; 2],
}

#[derive(Serialize, JsonSchema)]
pub(super) struct AllQosSpecs {
    qos_specs: Vec<Shown>,
}

/// What was said of them.
#[derive(Serialize, JsonSchema)]
pub(super) struct ChangedSpecs {
    qos_specs: BTreeMap<String, String>,
}

#[derive(Serialize, JsonSchema)]
struct QosAssociation {
    association_type: &'static str,
    name: String,
    id: String,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct QosAssociations {
    qos_associations: Vec<QosAssociation>,
}

fn full(spec: &QosSpec) -> Shown {
    Shown {
        id: spec.id.clone(),
        name: spec.name.clone(),
        consumer: spec.consumer.clone(),
        specs: spec.specs.clone(),
    }
}

fn with_links(state: &AppState, spec: &QosSpec) -> Answer<OneQosSpecs> {
    Ok(Json(OneQosSpecs { qos_specs: full(spec), links: links(state, "qos-specs", &spec.id) }))
}

/// `GET /qos-specs`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<AllQosSpecs> {
    let rows = state.control.volume_qos_list(&caller).await?;
    Ok(Json(AllQosSpecs { qos_specs: rows.iter().map(|stored| full(&stored.row)).collect() }))
}

/// `GET /qos-specs/{id}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<OneQosSpecs> {
    with_links(&state, &state.control.volume_qos(&caller, &id).await?.row)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SpecsBody {
    qos_specs: Map<String, Value>,
}

impl SpecsBody {
    /// The texts, of which `taken` are not limits.
    fn texts(&self) -> Result<BTreeMap<String, String>, Fault> {
        properties(&Value::Object(self.qos_specs.clone()))
    }
}

/// `POST /qos-specs`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<SpecsBody>,
) -> Answer<OneQosSpecs> {
    let mut specs = body.texts()?;
    let name = specs.remove("name").unwrap_or_default();
    let consumer = specs.remove("consumer").unwrap_or_else(|| "back-end".to_owned());
    let made = state.control.volume_qos_create(&caller, name.trim(), &consumer, specs).await?;
    with_links(&state, &made.row)
}

/// `PUT /qos-specs/{id}`.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<SpecsBody>,
) -> Answer<ChangedSpecs> {
    let mut specs = body.texts()?;
    let answer = specs.clone();
    let consumer = specs.remove("consumer");
    state.control.volume_qos_change(&caller, &id, consumer.as_deref(), specs, &[]).await?;
    Ok(Json(ChangedSpecs { qos_specs: answer }))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct KeysBody {
    keys: Vec<String>,
}

/// `PUT /qos-specs/{id}/delete_keys`.
pub(super) async fn delete_keys(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<KeysBody>,
) -> Result<Taken, Fault> {
    state.control.volume_qos_change(&caller, &id, None, BTreeMap::new(), &body.keys).await?;
    Ok(TAKEN)
}

/// `DELETE /qos-specs/{id}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Result<Taken, Fault> {
    let force = filters.flag("force")?.unwrap_or(false);
    state.control.volume_qos_delete(&caller, &id, force).await?;
    Ok(TAKEN)
}

/// `GET /qos-specs/{id}/associations`.
pub(super) async fn associations(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<QosAssociations> {
    let types = state.control.volume_qos_types(&caller, &id).await?;
    let shown = types.iter().map(|kind| QosAssociation {
        association_type: "volume_type",
        name: kind.row.name.clone(),
        id: kind.row.id.clone(),
    });
    Ok(Json(QosAssociations { qos_associations: shown.collect() }))
}

async fn give(
    state: &AppState,
    caller: &control::caller::Caller,
    id: &str,
    filters: &Filters,
    give: bool,
) -> Result<Taken, Fault> {
    let missing = || Fault::malformed("Volume Type id must not be None.");
    let kind = filters.get("vol_type_id").filter(|kind| !kind.is_empty()).ok_or_else(missing)?;
    state.control.volume_type_qos(caller, id, kind, give).await?;
    Ok(TAKEN)
}

/// `GET /qos-specs/{id}/associate`.
pub(super) async fn associate(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Result<Taken, Fault> {
    give(&state, &caller, &id, &filters, true).await
}

/// `GET /qos-specs/{id}/disassociate`.
pub(super) async fn disassociate(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Result<Taken, Fault> {
    give(&state, &caller, &id, &filters, false).await
}

/// `GET /qos-specs/{id}/disassociate_all`.
pub(super) async fn disassociate_all(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Taken, Fault> {
    state.control.volume_qos_release(&caller, &id).await?;
    Ok(TAKEN)
}

#[cfg(test)]
mod tests {
    use axum::http::{Method, StatusCode};
    use serde_json::{Value, json};

    use crate::harness::{Harness, Reply};

    async fn ask(cloud: &Harness, method: Method, path: &str, body: Value) -> Reply {
        let token = cloud.admin_token().await;
        let headers = [("x-auth-token", token.as_str()), ("openstack-api-version", "volume 3.71")];
        cloud.call(method, &format!("/volume/v3/{path}"), &headers, body).await
    }

    async fn made(cloud: &Harness, path: &str, body: Value) -> Value {
        let reply = ask(cloud, Method::POST, path, body).await;
        assert!(reply.status.is_success(), "{path}: {}", reply.json());
        reply.json()
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn connection_info_has_the_limits_that_are_the_hypervisors_matter() {
        let cloud = Harness::new().await;
        let kind =
            made(&cloud, "types", json!({"volume_type": {"name": "slow"}})).await["volume_type"]["id"].take();
        let specs = json!({"name": "q", "consumer": "front-end", "read_iops_sec": "5", "total_bytes_sec_per_gb": "7"});
        let qos = made(&cloud, "qos-specs", json!({"qos_specs": specs})).await["qos_specs"]["id"].take();
        let (kind, qos) = (kind.as_str().unwrap(), qos.as_str().unwrap());
        let associate = format!("qos-specs/{qos}/associate?vol_type_id={kind}");
        assert_eq!(ask(&cloud, Method::GET, &associate, Value::Null).await.status, StatusCode::ACCEPTED);
        let volume = json!({"volume": {"size": 3, "volume_type": kind}});
        let volume = made(&cloud, "volumes", volume).await["volume"]["id"].take();
        let volume = volume.as_str().unwrap();
        let action = format!("volumes/{volume}/action");
        let free = json!({"os-reset_status": {"status": "available"}});
        assert!(ask(&cloud, Method::POST, &action, free).await.status.is_success());

        let attachment = json!({"attachment": {"volume_uuid": volume, "connector": {"host": "h"}}});
        let attachment = made(&cloud, "attachments", attachment).await["attachment"].take();
        let expected = json!({"read_iops_sec": "5", "total_bytes_sec": 21});
        assert_eq!(attachment["connection_info"]["qos_specs"], expected);
        let connect = json!({"os-initialize_connection": {"connector": {"host": "h"}}});
        let shown = made(&cloud, &action, connect).await;
        assert_eq!(shown["connection_info"]["data"]["qos_specs"], expected);

        let change = json!({"qos_specs": {"consumer": "back-end"}});
        assert!(ask(&cloud, Method::PUT, &format!("qos-specs/{qos}"), change).await.status.is_success());
        let path = format!("attachments/{}", attachment["id"].as_str().unwrap());
        let shown = ask(&cloud, Method::GET, &path, Value::Null).await.json();
        assert_eq!(shown["attachment"]["connection_info"]["qos_specs"], Value::Null);
    }

    #[tokio::test(flavor = "multi_thread")]
    async fn limits_that_are_none_are_refused_unless_they_are_the_storages_matter() {
        let cloud = Harness::new().await;
        for (consumer, value, status) in [
            ("front-end", "0", 400),
            ("both", "fast", 400),
            ("front-end", "1", 200),
            ("back-end", "fast", 200),
        ] {
            let specs =
                json!({"name": format!("{consumer} {value}"), "consumer": consumer, "read_iops_sec": value});
            let reply = ask(&cloud, Method::POST, "qos-specs", json!({"qos_specs": specs})).await;
            assert_eq!(reply.status, status, "{consumer} {value}: {}", reply.json());
            if status == 400 {
                let message = reply.json()["badRequest"]["message"].as_str().unwrap().to_owned();
                assert!(message.contains("read_iops_sec") && message.contains(value), "{message}");
            }
        }
    }
}
