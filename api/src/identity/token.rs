//! Tokens: getting, checking and revoking them, and what the caller's token shows.

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control::model::identity::Domain;
use control::service::auth::{
    ApplicationCredentialRef, Credential, DomainRef, Expired, NamedRef, ScopeFacts, ScopeWanted, TokenFacts,
};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::domain::Domains;
use super::project::Projects;
use super::resource::{page, whole};
use super::{catalog, done, secret, time};
use crate::audit::Seat;
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl};
use crate::error::Fault;

#[derive(Deserialize)]
pub(super) struct AuthBody {
    auth: Auth,
}

#[derive(Deserialize)]
struct Auth {
    identity: Identity,
    scope: Option<ScopeBody>,
}

#[derive(Deserialize)]
struct Identity {
    methods: Vec<String>,
    password: Option<PasswordBody>,
    token: Option<TokenBody>,
    application_credential: Option<ApplicationCredentialBody>,
}

#[derive(Deserialize)]
struct ApplicationCredentialBody {
    id: Option<String>,
    name: Option<String>,
    user: Option<UserBody>,
    #[serde(default, deserialize_with = "secret")]
    secret: Option<Zeroizing<String>>,
}

#[derive(Deserialize)]
struct PasswordBody {
    user: UserBody,
}

#[derive(Deserialize)]
struct UserBody {
    id: Option<String>,
    name: Option<String>,
    domain: Option<DomainBody>,
    #[serde(default, deserialize_with = "secret")]
    password: Option<Zeroizing<String>>,
}

#[derive(Deserialize)]
struct TokenBody {
    #[serde(default, deserialize_with = "secret")]
    id: Option<Zeroizing<String>>,
}

#[derive(Deserialize)]
struct DomainBody {
    id: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct ProjectBody {
    id: Option<String>,
    name: Option<String>,
    domain: Option<DomainBody>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum ScopeBody {
    Word(String),
    Parts(Box<Parts>),
}

#[derive(Deserialize)]
struct Parts {
    project: Option<ProjectBody>,
    domain: Option<DomainBody>,
    system: Option<SystemBody>,
    #[serde(rename = "OS-TRUST:trust")]
    trust: Option<TrustBody>,
    /// The same word as `"unscoped"` alone.
    unscoped: Option<Value>,
}

#[derive(Deserialize)]
struct TrustBody {
    id: String,
}

#[derive(Deserialize)]
struct SystemBody {
    all: bool,
}

fn missing(what: &str) -> Fault {
    Fault::malformed(format!("Expecting to find {what} in the request body."))
}

fn domain_ref(body: Option<DomainBody>) -> Result<DomainRef, Fault> {
    match body {
        Some(DomainBody { id: Some(id), .. }) => Ok(DomainRef::Id(id)),
        Some(DomainBody { name: Some(name), .. }) => Ok(DomainRef::Name(name)),
        _ => Err(missing("domain")),
    }
}

fn named_ref(
    what: &str,
    id: Option<String>,
    name: Option<String>,
    domain: Option<DomainBody>,
) -> Result<NamedRef, Fault> {
    match (id, name) {
        (Some(id), _) => Ok(NamedRef::Id(id)),
        (None, Some(name)) => Ok(NamedRef::Name(name, domain_ref(domain)?)),
        (None, None) => Err(missing(what)),
    }
}

fn credentials(identity: Identity) -> Result<Vec<Credential>, Fault> {
    let Identity { methods, mut password, mut token, mut application_credential } = identity;
    let mut credentials = Vec::new();
    for method in methods {
        match method.as_str() {
            "password" => {
                let Some(PasswordBody { user }) = password.take() else { return Err(missing("password")) };
                let password = user.password.ok_or_else(|| missing("user password"))?;
                let user = named_ref("user", user.id, user.name, user.domain)?;
                credentials.push(Credential::Password { user, password });
            }
            "token" => {
                let id = token.take().and_then(|token| token.id).ok_or_else(|| missing("token"))?;
                credentials.push(Credential::Token(id));
            }
            "application_credential" => {
                let given = application_credential.take().ok_or_else(|| missing("application_credential"))?;
                credentials.push(by_application_credential(given)?);
            }
            // Keystone's own answer to a method that is not configured.
            _ => return Err(Fault::unauthorized("Attempted to authenticate with an unsupported method.")),
        }
    }
    if credentials.is_empty() { Err(missing("methods")) } else { Ok(credentials) }
}

fn by_application_credential(given: ApplicationCredentialBody) -> Result<Credential, Fault> {
    let secret = given.secret.ok_or_else(|| missing("application credential secret"))?;
    let credential = match (given.id, given.name, given.user) {
        (Some(id), _, _) => ApplicationCredentialRef::Id(id),
        (None, Some(name), Some(user)) => {
            ApplicationCredentialRef::Name(named_ref("user", user.id, user.name, user.domain)?, name)
        }
        _ => return Err(missing("application credential id, or name and user")),
    };
    Ok(Credential::ApplicationCredential { credential, secret })
}

fn scope_wanted(scope: Option<ScopeBody>) -> Result<ScopeWanted, Fault> {
    let wrong =
        || Fault::malformed("scope must be one of project, domain, system, OS-TRUST:trust or \"unscoped\"");
    let parts = match scope {
        None => return Ok(ScopeWanted::Default),
        Some(ScopeBody::Word(word)) if word == "unscoped" => return Ok(ScopeWanted::Unscoped),
        Some(ScopeBody::Word(_)) => return Err(wrong()),
        Some(ScopeBody::Parts(parts)) => *parts,
    };
    match parts {
        Parts { project: Some(project), domain: None, system: None, trust: None, unscoped: None } => {
            let project = named_ref("project", project.id, project.name, project.domain)?;
            Ok(ScopeWanted::Project(project))
        }
        Parts { project: None, domain: Some(domain), system: None, trust: None, unscoped: None } => {
            Ok(ScopeWanted::Domain(domain_ref(Some(domain))?))
        }
        Parts {
            project: None,
            domain: None,
            system: Some(SystemBody { all: true }),
            trust: None,
            unscoped: None,
        } => Ok(ScopeWanted::System),
        Parts { project: None, domain: None, system: None, trust: Some(trust), unscoped: None } => {
            Ok(ScopeWanted::Trust(trust.id))
        }
        Parts { project: None, domain: None, system: None, trust: None, unscoped: Some(_) } => {
            Ok(ScopeWanted::Unscoped)
        }
        _ => Err(wrong()),
    }
}

/// Identity API v3: password and token authentication.
pub(super) async fn issue(
    State(state): State<AppState>,
    seat: Option<Extension<Seat>>,
    filters: Filters,
    Body(body): Body<AuthBody>,
) -> Result<Response, Fault> {
    let wanted = scope_wanted(body.auth.scope)?;
    let (token, facts) = state.control.token_issue(credentials(body.auth.identity)?, wanted).await?;
    if let Some(Extension(seat)) = seat {
        seat.take_user(&facts.user.row.id);
    }
    let body = token_body(&state, &facts, !filters.has("nocatalog"));
    Ok((StatusCode::CREATED, [("x-subject-token", subject(&token)?)], Json(body)).into_response())
}

pub(super) fn subject(token: &str) -> Result<HeaderValue, Fault> {
    let mut value =
        HeaderValue::from_str(token).map_err(|_| Fault::malformed("the token is not one line of text"))?;
    value.set_sensitive(true);
    Ok(value)
}

fn subject_of(headers: &HeaderMap) -> Result<&str, Fault> {
    let token = headers.get("x-subject-token").and_then(|value| value.to_str().ok());
    token.ok_or_else(|| control::error::Error::not_found("Token", "without X-Subject-Token").into())
}

/// Identity API v3: validate and show information for token; HEAD is the same without a body.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    let token = subject_of(&headers)?;
    let expired =
        if filters.flag("allow_expired")? == Some(true) { Expired::Shown } else { Expired::Refused };
    let facts = state.control.token_show(&caller, token, expired).await?;
    let body = token_body(&state, &facts, !filters.has("nocatalog"));
    Ok(([("x-subject-token", subject(token)?)], Json(body)).into_response())
}

/// Identity API v3: revoke token.
pub(super) async fn revoke(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    headers: HeaderMap,
) -> Result<Response, Fault> {
    state.control.token_revoke(&caller, subject_of(&headers)?).await?;
    Ok(done())
}

/// Identity API v3: get available project scopes.
pub(super) async fn projects(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    page::<Projects>(&state, &filters, &url, state.control.projects_of(&caller).await?)
}

/// Identity API v3: get available domain scopes.
pub(super) async fn domains(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    page::<Domains>(&state, &filters, &url, state.control.domains_of(&caller).await?)
}

/// Identity API v3: get available system scopes.
pub(super) async fn system(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    url: RequestUrl,
) -> Answer<Value> {
    let all = state.control.has_system_role(&caller).await?;
    Ok(whole("system", if all { vec![json!({"all": true})] } else { Vec::new() }, &url))
}

/// Identity API v3, OS-REVOKE: list revocation events.
pub(super) async fn revocations(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    url: RequestUrl,
) -> Answer<Value> {
    let events = state.control.revocation_list(&caller).await?;
    let event = |row: &control::model::identity::Revocation| {
        let mut event = Map::new();
        match row.id.split_once('/') {
            Some((kind, id)) => event.insert(format!("{kind}_id"), json!(id)),
            None => {
                let bytes = uuid::Uuid::try_parse(&row.id).unwrap_or_default().into_bytes();
                event.insert("audit_id".into(), json!(URL_SAFE_NO_PAD.encode(bytes)))
            }
        };
        event.insert("issued_before".into(), json!(time(row.issued_before.unwrap_or(row.expires_at))));
        Value::Object(event)
    };
    Ok(whole("events", events.iter().map(|stored| event(&stored.row)).collect(), &url))
}

/// Wisp's own: rotates the keys that tokens are made with.
pub(super) async fn rotate_keys(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<Value> {
    Ok(Json(json!({"token_keys": state.control.token_keys_rotate(&caller).await?})))
}

pub(super) fn token_body(state: &AppState, facts: &TokenFacts, with_catalog: bool) -> Value {
    let domain = |domain: &Domain| json!({"id": domain.id, "name": domain.name});
    let mut token = Map::new();
    let methods: Vec<&str> = facts.methods.iter().map(|method| method.name()).collect();
    token.insert("methods".into(), json!(methods));
    token.insert(
        "user".into(),
        json!({
            "domain": domain(&facts.user_domain.row),
            "id": facts.user.row.id,
            "name": facts.user.row.name,
            "password_expires_at": state.control.password_expires_at(&facts.user.row).map(time),
        }),
    );
    let audit_ids: Vec<String> = facts.audit_ids.iter().map(|id| URL_SAFE_NO_PAD.encode(id)).collect();
    token.insert("audit_ids".into(), json!(audit_ids));
    token.insert("expires_at".into(), json!(time(facts.expires_at)));
    token.insert("issued_at".into(), json!(time(facts.issued_at)));
    match &facts.scope {
        ScopeFacts::Unscoped => return json!({ "token": token }),
        ScopeFacts::Project(project, of) => {
            let project = json!({"domain": domain(&of.row), "id": project.row.id, "name": project.row.name});
            token.insert("project".into(), project);
            token.insert("is_domain".into(), json!(false));
        }
        ScopeFacts::Domain(scope) => {
            token.insert("domain".into(), domain(&scope.row));
        }
        ScopeFacts::System => {
            token.insert("system".into(), json!({"all": true}));
        }
    }
    let roles: Vec<Value> =
        facts.roles.iter().map(|role| json!({"id": role.row.id, "name": role.row.name})).collect();
    token.insert("roles".into(), json!(roles));
    if let Some(trust) = &facts.trust {
        let trust = &trust.row;
        let shown = json!({
            "id": trust.id,
            "trustor_user": {"id": trust.trustor_user_id},
            "trustee_user": {"id": trust.trustee_user_id},
            "impersonation": trust.impersonation,
        });
        token.insert("OS-TRUST:trust".into(), shown);
    }
    if let Some(credential) = &facts.application_credential {
        let row = &credential.row;
        let mut shown = json!({"id": row.id, "name": row.name, "restricted": !row.unrestricted});
        if let Some(ids) = &row.access_rules {
            let rules = state.control.access_rules_by_id(ids);
            let rule = |rule: &control::model::delegation::AccessRule| json!({"id": rule.id, "service": rule.service, "method": rule.method, "path": rule.path});
            shown["access_rules"] = rules.iter().map(|stored| rule(&stored.row)).collect();
        }
        token.insert("application_credential".into(), shown);
    }
    if with_catalog {
        let project = match &facts.scope {
            ScopeFacts::Project(project, _) => Some(project.row.id.as_str()),
            _ => None,
        };
        token.insert("catalog".into(), catalog::shown(state, &facts.user.row.id, project));
    }
    json!({ "token": token })
}
