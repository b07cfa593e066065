//! Application credentials and access rules of a user.

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::model::delegation::{AccessRule, ApplicationCredential};
use control::model::identity::User;
use control::service::identity::application_credential::{ApplicationCredentialWanted, RoleRef};
use schemars::JsonSchema;
use serde::Serialize;

use super::fields::{Fields, Result, invalid};
use super::resource::{Links, Object};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{Created, DONE, Done, Status};
use crate::page::KeystoneLinks;

/// An access rule; within a credential without links.
#[derive(Serialize, JsonSchema)]
pub(super) struct ShownRule {
    id: String,
    service: String,
    method: String,
    path: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    links: Option<Links>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneRule {
    access_rule: ShownRule,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Rules {
    access_rules: Vec<ShownRule>,
    links: KeystoneLinks,
}

#[derive(Serialize, JsonSchema)]
struct RoleOfCredential {
    id: String,
    name: String,
    domain_id: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct ShownCredential {
    id: String,
    name: String,
    description: Option<String>,
    user_id: String,
    project_id: String,
    /// Always null.
    system: Option<String>,
    roles: Vec<RoleOfCredential>,
    expires_at: Option<String>,
    unrestricted: bool,
    links: Links,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_rules: Option<Vec<ShownRule>>,
    /// When it is made, and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneCredential {
    application_credential: ShownCredential,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Credentials {
    application_credentials: Vec<ShownCredential>,
    links: KeystoneLinks,
}

fn rule_of(row: &AccessRule, links: Option<Links>) -> ShownRule {
    ShownRule {
        id: row.id.clone(),
        service: row.service.clone(),
        method: row.method.clone(),
        path: row.path.clone(),
        links,
    }
}

fn show_rule(state: &AppState, row: &AccessRule) -> ShownRule {
    let own = format!("{}/identity/v3/users/{}/access_rules/{}", state.public_url(), row.user_id, row.id);
    rule_of(row, Some(Links { own }))
}

/// Rules as what they bound names them.
pub(super) fn shown_rules(state: &AppState, ids: &[String]) -> Vec<ShownRule> {
    state.control.access_rules_by_id(ids).iter().map(|rule| rule_of(&rule.row, None)).collect()
}

fn show(state: &AppState, row: &ApplicationCredential) -> ShownCredential {
    let roles = state.control.roles_by_id(&row.roles);
    let roles = roles.iter().map(|role| RoleOfCredential {
        id: role.row.id.clone(),
        name: role.row.name.clone(),
        domain_id: role.row.domain_id.clone(),
    });
    let base = format!("{}/identity/v3/users/{}", state.public_url(), row.user_id);
    ShownCredential {
        id: row.id.clone(),
        name: row.name.clone(),
        description: row.description.clone(),
        user_id: row.user_id.clone(),
        project_id: row.project_id.clone(),
        system: None,
        roles: roles.collect(),
        // Without a zone, unlike all other times: so Keystone writes it.
        expires_at: row.expires_at.map(|at| at.strftime("%Y-%m-%dT%H:%M:%S.%6f").to_string()),
        unrestricted: row.unrestricted,
        links: Links { own: format!("{base}/application_credentials/{}", row.id) },
        access_rules: row.access_rules.as_deref().map(|ids| shown_rules(state, ids)),
        secret: None,
    }
}

/// Roles by id or by name.
pub(super) fn roles(fields: &mut Fields) -> Result<Option<Vec<RoleRef>>> {
    let Some(roles) = fields.objects("roles")? else { return Ok(None) };
    let role = |mut role: Fields| {
        let named = (role.nullable("id")?.flatten(), role.nullable("name")?.flatten());
        role.end()?;
        match named {
            (Some(id), _) => Ok(RoleRef::Id(id)),
            (None, Some(name)) => Ok(RoleRef::Name(name)),
            (None, None) => Err(invalid("a role has an id or a name")),
        }
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
        // Shown back by clients: with its id goes what it is.
        for own in ["service", "method", "path"] {
            rule.take(own);
        }
        rule.end()?;
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
) -> Result<Created<OneCredential>, Fault> {
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
    let shown = ShownCredential { secret: Some(secret.to_string()), ..show(&state, &stored.row) };
    Ok(Status(Json(OneCredential { application_credential: shown })))
}

/// Identity API v3: list application credentials.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(user): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Credentials> {
    state.control.entity_get::<User>(&caller, &user).await?;
    let rows = state.control.entity_list::<ApplicationCredential>(&caller).await?;
    let own = rows.iter().filter(|row| row.row.user_id == user && filters.allow("name", &row.row.name));
    let application_credentials = own.map(|row| show(&state, &row.row)).collect();
    Ok(Json(Credentials { application_credentials, links: KeystoneLinks::whole(&url) }))
}

/// Identity API v3: show application credential details.
pub(super) async fn get(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, id)): Segments<(String, String)>,
) -> Answer<OneCredential> {
    let row = of_user(&state, &caller, &user, &id).await?;
    Ok(Json(OneCredential { application_credential: show(&state, &row) }))
}

/// Identity API v3: delete application credential.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, id)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    of_user(&state, &caller, &user, &id).await?;
    state.control.entity_delete::<ApplicationCredential>(&caller, &id).await?;
    Ok(DONE)
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
) -> Answer<Rules> {
    state.control.entity_get::<User>(&caller, &user).await?;
    let rows = state.control.entity_list::<AccessRule>(&caller).await?;
    let own = rows.iter().filter(|row| {
        let row = &row.row;
        row.user_id == user
            && filters.allow("service", &row.service)
            && filters.allow("method", &row.method)
            && filters.allow("path", &row.path)
    });
    let access_rules = own.map(|row| show_rule(&state, &row.row)).collect();
    Ok(Json(Rules { access_rules, links: KeystoneLinks::whole(&url) }))
}

/// Identity API v3: show access rule details.
pub(super) async fn get_rule(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, id)): Segments<(String, String)>,
) -> Answer<OneRule> {
    let stored = state.control.entity_get::<AccessRule>(&caller, &id).await?;
    if stored.row.user_id != user {
        return Err(Error::not_found("Access Rule", id).into());
    }
    Ok(Json(OneRule { access_rule: show_rule(&state, &stored.row) }))
}

/// Identity API v3: delete access rule.
pub(super) async fn delete_rule(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, id)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    let stored = state.control.entity_get::<AccessRule>(&caller, &id).await?;
    if stored.row.user_id != user {
        return Err(Error::not_found("Access Rule", id).into());
    }
    state.control.entity_delete::<AccessRule>(&caller, &id).await?;
    Ok(DONE)
}
