//! RBAC policies on the wire (Network API v2.0: rbac-policies).

use axum::Json;
use axum::extract::State;
use control::model::network::rbac::{Access, ObjectType, RbacPolicy};
use control::service::rbac::{EVERYONE, RbacCreate};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::{Chosen, Created, Listed, One, Shown, invalid, listing, shown};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done, Status};
use crate::openapi::{Routes, get};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateBody {
    rbac_policy: CreateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    object_type: String,
    object_id: String,
    action: String,
    target_tenant: Option<String>,
    target_project: Option<String>,
    project_id: Option<String>,
    tenant_id: Option<String>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateBody {
    rbac_policy: UpdateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct UpdateFields {
    target_tenant: Option<String>,
    target_project: Option<String>,
}

/// The routes of RBAC policies.
pub(super) fn routes() -> Routes {
    Routes::new()
        .route("/v2.0/rbac-policies", get(list).post(create))
        .route("/v2.0/rbac-policies/{id}", get(show).put(update).delete(delete))
}

fn read_target(target: Option<String>) -> Result<String, Fault> {
    let target = target.ok_or_else(|| invalid("Invalid input for target_tenant. Reason: it is required."))?;
    if target == EVERYONE || uuid::Uuid::parse_str(&target).is_ok() {
        return Ok(target);
    }
    Err(invalid(format!(
        "Invalid input for operation: '{target}' is not a valid target project ID; expected a UUID or '*'."
    )))
}

impl TryFrom<CreateFields> for RbacCreate {
    type Error = Fault;

    fn try_from(fields: CreateFields) -> Result<Self, Fault> {
        let kind = json!(fields.object_type.trim().to_lowercase());
        let object_type: ObjectType = serde_json::from_value(kind).map_err(|_| {
            let kind = &fields.object_type;
            invalid(format!("Invalid input for operation: '{kind}' is not a valid RBAC object type."))
        })?;
        let action: Access = serde_json::from_value(json!(fields.action)).map_err(|_| {
            control::error::Error::invalid(
                "InvalidActionForType",
                format!("Invalid action '{}' for object type '{}'.", fields.action, fields.object_type),
            )
        })?;
        Ok(Self {
            project_id: fields.project_id.or(fields.tenant_id),
            object_type,
            object_id: fields.object_id,
            action,
            target: read_target(fields.target_tenant.or(fields.target_project))?,
        })
    }
}

/// An RBAC policy as it is shown.
#[derive(Serialize, JsonSchema)]
#[schemars(rename = "RbacPolicy")]
struct ShownPolicy {
    id: String,
    project_id: String,
    tenant_id: String,
    #[schemars(with = "String")]
    object_type: ObjectType,
    object_id: String,
    #[schemars(with = "String")]
    action: Access,
    target_tenant: String,
    target_project: String,
}

impl Shown for ShownPolicy {
    const NAMES: &'static [&'static str; 2] = &["rbac_policy", "rbac_policies"];
}

fn view(policy: &RbacPolicy) -> ShownPolicy {
    ShownPolicy {
        id: policy.id.clone(),
        project_id: policy.project_id.clone(),
        tenant_id: policy.project_id.clone(),
        object_type: policy.object_type,
        object_id: policy.object_id.clone(),
        action: policy.action,
        target_tenant: policy.target.clone(),
        target_project: policy.target.clone(),
    }
}

async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<CreateBody>,
) -> Created<One<ShownPolicy>> {
    let policy = state.control.rbac_create(&caller, body.rbac_policy.try_into()?).await?;
    Ok(Status(Json(One(view(&policy)))))
}

async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Listed<ShownPolicy>> {
    let policies = state.control.rbac_list(&caller).await?;
    listing(policies.iter().map(|policy| view(&policy.row)), &filters, &url)
}

async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
) -> Answer<One<Chosen<ShownPolicy>>> {
    let policy = state.control.rbac_get(&caller, &id).await?;
    Ok(shown(&view(&policy.row), &filters))
}

async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UpdateBody>,
) -> Answer<One<ShownPolicy>> {
    let target = read_target(body.rbac_policy.target_tenant.or(body.rbac_policy.target_project))?;
    let policy = state.control.rbac_update(&caller, &id, &target).await?;
    Ok(Json(One(view(&policy))))
}

async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.rbac_delete(&caller, &id).await?;
    Ok(DONE)
}
