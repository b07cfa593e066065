//! Application credentials and access rules of a user.

use super::fields::Result;
use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use control::error::Error;
use control::model::delegation::{AccessRule, ApplicationCredential};
use control::model::identity::User;
use control::service::identity::application_credential::{ApplicationCredentialWanted, RoleRef};
use serde_json::{Value, json};

use super::done;
use super::fields::{Fields, invalid};
use super::resource::{Object, whole};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;

fn show_rule(state: &AppState, row: &AccessRule) -> Value {
    let url = format!("{}/identity/v3/users/{}/access_rules/{}", state.public_url(), row.user_id, row.id);
    json!({
        "id": row.id, "service": row.service, "method": row.method, "path": row.path, "links": {"self": url},
    })
}

fn show(state: &AppState, row: &ApplicationCredential) -> Value {
    let roles = state.control.roles_by_id(&row.roles);
    let roles = roles
        .iter()
        .map(|role| json!({"id": role.row.id, "name": role.row.name, "domain_id": role.row.domain_id}));
    let base = format!("{}/identity/v3/users/{}", state.public_url(), row.user_id);
    let mut body = json!({
        "id": row.id,
        "name": row.name,
        "description": row.description,
        "user_id": row.user_id,
        "project_id": row.project_id,
        "system": null,
        "roles": roles.collect::<Vec<_>>(),
        // Without a zone, unlike all other times: so Keystone writes it.
        "expires_at": row.expires_at.map(|at| at.strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string()),
        "unrestricted": row.unrestricted,
        "links": {"self": format!("{base}/application_credentials/{}", row.id)},
    });
    if let Some(ids) = &row.access_rules {
        let rules = state.control.access_rules_by_id(ids);
        let rules = rules.iter().map(|rule| {
            let row = &rule.row;
            json!({"id": row.id, "service": row.service, "method": row.method, "path": row.path})
        });
        body["access_rules"] = rules.collect();
    }
    body
}

/// Roles by id or by name.
pub(super) fn roles(fields: &mut Fields) -> Result<Option<Vec<RoleRef>>> {
    let Some(roles) = fields.objects("roles")? else { return Ok(None) };
    let role = |mut role: Fields| match (role.nullable("id")?.flatten(), role.nullable("name")?.flatten()) {
        (Some(id), _) => Ok(RoleRef::Id(id)),
        (None, Some(name)) => Ok(RoleRef::Name(name)),
        (None, None) => Err(invalid("a role has an id or a name")),
    };
    roles.into_iter().map(role).collect::<Result<_>>().map(Some)
}

fn rules(fields: &mut Fields) -> Result<Option<Vec<AccessRule>>> {
    let Some(rules) = fields.objects("access_rules")? else { return Ok(None) };
    // The `openstack` command sends an empty list for "anything".
    if rules.is_empty() {
        return Ok(None);
    }
    let rule = |mut rule: Fields| {
        let mut row = AccessRule::default();
        match rule.nullable("id")?.flatten() {
            Some(id) => row.id = id,
            None => {
                row.service = rule.must("service")?;
                row.method = rule.must("method")?;
                row.path = rule.must("path")?;
            }
        }
        Ok(row)
    };
    rules.into_iter().map(rule).collect::<Result<_>>().map(Some)
}

/// Identity API v3: create application credential.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(user): Segments<String>,
    Body(body): Body<Object>,
) -> Result<Response, Fault> {
    let mut fields = Fields::of(body, "application_credential", true)?;
    let mut wanted = ApplicationCredentialWanted {
        name: fields.must("name")?,
        description: None,
        secret: fields.secret("secret")?,
        roles: roles(&mut fields)?.filter(|roles| !roles.is_empty()),
        expires_at: fields.time("expires_at")?,
        unrestricted: false,
        access_rules: rules(&mut fields)?,
    };
    fields.optional("description", &mut wanted.description)?;
    fields.flag("unrestricted", &mut wanted.unrestricted)?;
    let (stored, secret) = state.control.application_credential_create(&caller, &user, wanted).await?;
    let mut shown = show(&state, &stored.row);
    shown["secret"] = json!(secret.as_str());
    Ok((StatusCode::CREATED, Json(json!({"application_credential": shown}))).into_response())
}

/// Identity API v3: list application credentials.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(user): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    state.control.entity_get::<User>(&caller, &user).await?;
    let rows = state.control.entity_list::<ApplicationCredential>(&caller).await?;
    let own = rows.iter().filter(|row| row.row.user_id == user && filters.allow("name", &row.row.name));
    Ok(whole("application_credentials", own.map(|row| show(&state, &row.row)).collect(), &url))
}

/// Identity API v3: show application credential details.
pub(super) async fn get(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, id)): Segments<(String, String)>,
) -> Answer<Value> {
    let row = of_user(&state, &caller, &user, &id).await?;
    Ok(Json(json!({"application_credential": show(&state, &row)})))
}

/// Identity API v3: delete application credential.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, id)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    of_user(&state, &caller, &user, &id).await?;
    state.control.entity_delete::<ApplicationCredential>(&caller, &id).await?;
    Ok(done())
}

async fn of_user(
    state: &AppState,
    caller: &control::caller::Caller,
    user: &str,
    id: &str,
) -> Result<ApplicationCredential> {
    let stored = state.control.entity_get::<ApplicationCredential>(caller, id).await?;
    if stored.row.user_id != user {
        return Err(Error::not_found("Application Credential", id));
    }
    Ok(stored.row.clone())
}

/// Identity API v3: list access rules.
pub(super) async fn list_rules(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(user): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    state.control.entity_get::<User>(&caller, &user).await?;
    let rows = state.control.entity_list::<AccessRule>(&caller).await?;
    let own = rows.iter().filter(|row| {
        let row = &row.row;
        row.user_id == user
            && filters.allow("service", &row.service)
            && filters.allow("method", &row.method)
            && filters.allow("path", &row.path)
    });
    Ok(whole("access_rules", own.map(|row| show_rule(&state, &row.row)).collect(), &url))
}

/// Identity API v3: show access rule details.
pub(super) async fn get_rule(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, id)): Segments<(String, String)>,
) -> Answer<Value> {
    let stored = state.control.entity_get::<AccessRule>(&caller, &id).await?;
    if stored.row.user_id != user {
        return Err(Error::not_found("Access Rule", id).into());
    }
    Ok(Json(json!({"access_rule": show_rule(&state, &stored.row)})))
}

/// Identity API v3: delete access rule.
pub(super) async fn delete_rule(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, id)): Segments<(String, String)>,
) -> Result<Response, Fault> {
    let stored = state.control.entity_get::<AccessRule>(&caller, &id).await?;
    if stored.row.user_id != user {
        return Err(Error::not_found("Access Rule", id).into());
    }
    state.control.entity_delete::<AccessRule>(&caller, &id).await?;
    Ok(done())
}
