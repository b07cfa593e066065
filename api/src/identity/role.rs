//! Roles, and which comes with which.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use control::caller::Caller;
use control::error::Error;
use control::model::identity::Role;
use control::model::random_hex_id;
use control::store::Stored;
use serde_json::{Map, Value, json};

use super::done;
use super::fields::{Fields, Result};
use super::resource::{Resource, body, extra, fits, whole, with};
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl, Segments};
use crate::error::Fault;

/// Roles as clients see them.
pub(super) struct Roles;

impl Resource for Roles {
    type Row = Role;
    const ONE: &'static str = "role";
    const MANY: &'static str = "roles";
    const PATH: &'static str = "roles";

    fn show(_: &AppState, row: &Role) -> Map<String, Value> {
        let own = json!({
            "id": row.id,
            "name": row.name,
            "domain_id": row.domain_id,
            "description": row.description,
            "options": row.options,
        });
        with(extra(&row.extra), own)
    }

    /// Without a domain, the whole cloud's roles alone.
    fn wanted(filters: &Filters, row: &Role) -> Result<bool, Fault> {
        let domain = filters.get("domain_id").filter(|id| !id.is_empty());
        Ok(fits(filters, "name", &row.name) && row.domain_id.as_deref() == domain)
    }

    fn blank(_: &AppState, _: &Caller, _: &mut Fields) -> Result<Role> {
        Ok(Role { id: random_hex_id(), ..Role::default() })
    }

    fn apply(row: &mut Role, mut fields: Fields) -> Result<()> {
        fields.optional("domain_id", &mut row.domain_id)?;
        fields.name("name", &mut row.name)?;
        fields.text("description", &mut row.description)?;
        fields.options(&mut row.options)?;
        fields.rest(&mut row.extra);
        Ok(())
    }
}

/// A role as a rule names it.
fn brief(state: &AppState, role: &Role) -> Value {
    let link = super::resource::own_url(state, "roles", &role.id);
    json!({"id": role.id, "name": role.name, "domain_id": role.domain_id, "links": {"self": link}})
}

fn rule(state: &AppState, prior: &Role, implied: &Role) -> Value {
    let link = format!("{}/identity/v3/roles/{}/implies/{}", state.public_url(), prior.id, implied.id);
    let inference = json!({"prior_role": brief(state, prior), "implies": brief(state, implied)});
    json!({"role_inference": inference, "links": {"self": link}})
}

/// Identity API v3: list all role inference rules.
pub(super) async fn inferences(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    url: RequestUrl,
) -> Answer<Value> {
    let rules = state.control.implied_list(&caller, "identity:list_role_inference_rules").await?;
    let ids: BTreeSet<&String> =
        rules.iter().flat_map(|rule| [&rule.row.prior_id, &rule.row.implied_id]).collect();
    let ids: Vec<String> = ids.into_iter().cloned().collect();
    let roles = state.control.roles_by_id(&ids);
    let find = |id: &str| roles.iter().find(|role| role.row.id == id);
    let listed = roles.iter().filter_map(|prior| {
        let implied = rules.iter().filter(|rule| rule.row.prior_id == prior.row.id);
        let implied: Vec<Value> = implied
            .filter_map(|rule| find(&rule.row.implied_id))
            .map(|role| brief(&state, &role.row))
            .collect();
        (!implied.is_empty()).then(|| json!({"prior_role": brief(&state, &prior.row), "implies": implied}))
    });
    Ok(whole("role_inferences", listed.collect(), &url))
}

/// Identity API v3: list implied (inference) roles for role.
pub(super) async fn implied(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    url: RequestUrl,
) -> Answer<Value> {
    let rules = state.control.implied_list(&caller, "identity:list_implied_roles").await?;
    let prior = state.control.look_up::<Role>(&id).ok_or_else(|| Error::not_found("Role", id.clone()))?;
    let ids: Vec<String> =
        rules.iter().filter(|rule| rule.row.prior_id == id).map(|rule| rule.row.implied_id.clone()).collect();
    let implied: Vec<Value> =
        state.control.roles_by_id(&ids).iter().map(|role| brief(&state, &role.row)).collect();
    let inference = json!({"prior_role": brief(&state, &prior.row), "implies": implied});
    Ok(Json(json!({"role_inference": inference, "links": {"self": url.itself()}})))
}

/// Identity API v3: create role inference rule.
pub(super) async fn imply(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((prior, implied)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    let (prior, implied) = state.control.implied_create(&caller, &prior, &implied).await?;
    Ok((StatusCode::CREATED, Json(rule(&state, &prior.row, &implied.row))).into_response())
}

/// Identity API v3: get, and confirm, a role inference rule.
pub(super) async fn implication(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((prior, implied)): Segments<(String, String)>,
    method: Method,
) -> Result<Response, Fault> {
    let head = method == Method::HEAD;
    let asked = if head { "identity:check_implied_role" } else { "identity:get_implied_role" };
    let (prior, implied) = state.control.implied_get(&caller, (&prior, &implied), asked).await?;
    if head {
        return Ok(done());
    }
    Ok(Json(rule(&state, &prior.row, &implied.row)).into_response())
}

/// Identity API v3: delete role inference rule.
pub(super) async fn imply_not(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((prior, implied)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    state.control.implied_delete(&caller, &prior, &implied).await?;
    Ok(done())
}

/// Roles in the envelope of a list.
pub(super) fn listed(state: &AppState, roles: &[Arc<Stored<Role>>], url: &RequestUrl) -> Json<Value> {
    whole("roles", roles.iter().map(|role| body::<Roles>(state, &role.row)).collect(), url)
}
