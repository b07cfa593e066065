//! Trusts (OS-TRUST).

use super::fields::Result;
use axum::Json;
use axum::extract::State;
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use control::error::Error;
use control::model::delegation::Trust;
use control::model::identity::Role;
use control::service::identity::trust::TrustWanted;
use serde_json::{Value, json};

use super::application_credential::roles;
use super::fields::Fields;
use super::resource::{Object, body, extra, own_url, whole, with};
use super::role::Roles;
use super::{done, role, time};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;

fn show(state: &AppState, row: &Trust, with_roles: bool) -> Value {
    let own = own_url(state, "OS-TRUST/trusts", &row.id);
    let mut shown = json!({
        "id": row.id,
        "trustor_user_id": row.trustor_user_id,
        "trustee_user_id": row.trustee_user_id,
        "project_id": row.project_id,
        "impersonation": row.impersonation,
        "expires_at": row.expires_at.map(time),
        "remaining_uses": row.remaining_uses,
        "redelegation_count": row.redelegation_count,
        "redelegated_trust_id": row.redelegated_trust_id,
        "deleted_at": null,
        "links": {"self": own},
    });
    if with_roles {
        let roles = state.control.roles_by_id(&row.roles);
        shown["roles"] = roles.iter().map(|role| body::<Roles>(state, &role.row)).collect();
        shown["roles_links"] = json!({"self": format!("{own}/roles"), "next": null, "previous": null});
    }
    Value::Object(with(extra(&row.extra), shown))
}

/// Identity API v3: create trust.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Object>,
) -> Result<Response, Fault> {
    let mut fields = Fields::of(body, "trust", true)?;
    let mut wanted = TrustWanted {
        trustor_user_id: fields.must("trustor_user_id")?,
        trustee_user_id: fields.must("trustee_user_id")?,
        roles: roles(&mut fields)?.unwrap_or_default(),
        expires_at: fields.time("expires_at")?,
        remaining_uses: fields.count("remaining_uses")?,
        redelegation_count: fields.count("redelegation_count")?,
        ..TrustWanted::default()
    };
    if !fields.has("impersonation") {
        return Err(Fault::malformed("'impersonation' is a required property"));
    }
    fields.flag("impersonation", &mut wanted.impersonation)?;
    fields.flag("allow_redelegation", &mut wanted.allow_redelegation)?;
    fields.optional("project_id", &mut wanted.project_id)?;
    fields.rest(&mut wanted.extra);
    let stored = state.control.trust_create(&caller, wanted).await?;
    Ok((StatusCode::CREATED, Json(json!({"trust": show(&state, &stored.row, true)}))).into_response())
}

/// Identity API v3: list trusts: all for an administrator, else those of the trustor or trustee that is named.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let named = ["trustor_user_id", "trustee_user_id"].iter().find_map(|key| filters.get(key));
    let own = named == Some(caller.user_id.as_str());
    if !own && !caller.reads_system() {
        return Err(Error::Forbidden { action: "identity:list_trusts" }.into());
    }
    let rows = state.control.entity_list::<Trust>(&caller).await?;
    let wanted = rows.iter().filter(|row| {
        filters.allow("trustor_user_id", &row.row.trustor_user_id)
            && filters.allow("trustee_user_id", &row.row.trustee_user_id)
    });
    Ok(whole("trusts", wanted.map(|row| show(&state, &row.row, false)).collect(), &url))
}

/// Identity API v3: get trust.
pub(super) async fn get(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let row = usable(&state, &caller, &id).await?;
    Ok(Json(json!({"trust": show(&state, &row, true)})))
}

/// Identity API v3: delete trust.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Response, Fault> {
    state.control.entity_get::<Trust>(&caller, &id).await?;
    state.control.entity_delete::<Trust>(&caller, &id).await?;
    Ok(done())
}

/// Identity API v3: list roles delegated by a trust.
pub(super) async fn roles_of(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    url: RequestUrl,
) -> Answer<Value> {
    let row = usable(&state, &caller, &id).await?;
    Ok(role::listed(&state, &state.control.roles_by_id(&row.roles), &url))
}

/// Identity API v3: get, and check, a role delegated by a trust.
pub(super) async fn role_of(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, role_id)): Segments<(String, String)>,
    method: Method,
) -> Result<Response, Fault> {
    let row = usable(&state, &caller, &id).await?;
    let role = state.control.look_up::<Role>(&role_id).filter(|_| row.roles.contains(&role_id));
    let role = role.ok_or_else(|| Error::not_found("Role", &role_id))?;
    if method == Method::HEAD {
        return Ok(StatusCode::OK.into_response());
    }
    Ok(Json(json!({"role": body::<Roles>(&state, &role.row)})).into_response())
}

/// A trust without remaining uses is as none.
async fn usable(state: &AppState, caller: &control::caller::Caller, id: &str) -> Result<Trust> {
    let stored = state.control.entity_get::<Trust>(caller, id).await?;
    if stored.row.remaining_uses == Some(0) {
        return Err(Error::not_found("Trust", id));
    }
    Ok(stored.row.clone())
}
