//! Tokens: getting, checking and revoking them, and what the caller's token shows.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control::service::auth::{Credential, DomainRef, NamedRef, ScopeFacts, ScopeWanted, TokenFacts};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{done, project, secret, time};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl};
use crate::error::Fault;
use crate::page::{Direction, Page, SortValue};

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
    Parts { project: Option<ProjectBody>, domain: Option<DomainBody>, system: Option<SystemBody> },
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
    let Identity { methods, mut password, mut token } = identity;
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
            // Keystone's own answer to a method that is not configured.
            _ => return Err(Fault::unauthorized("Attempted to authenticate with an unsupported method.")),
        }
    }
    if credentials.is_empty() { Err(missing("methods")) } else { Ok(credentials) }
}

fn scope_wanted(scope: Option<ScopeBody>) -> Result<ScopeWanted, Fault> {
    match scope {
        None => Ok(ScopeWanted::Default),
        Some(ScopeBody::Word(word)) if word == "unscoped" => Ok(ScopeWanted::Unscoped),
        Some(ScopeBody::Parts { project: Some(project), domain: None, system: None }) => {
            let project = named_ref("project", project.id, project.name, project.domain)?;
            Ok(ScopeWanted::Project(project))
        }
        Some(ScopeBody::Parts { project: None, domain: Some(domain), system: None }) => {
            Ok(ScopeWanted::Domain(domain_ref(Some(domain))?))
        }
        Some(ScopeBody::Parts { project: None, domain: None, system: Some(SystemBody { all: true }) }) => {
            Ok(ScopeWanted::System)
        }
        Some(_) => Err(Fault::malformed("scope must be one of project, domain, system or \"unscoped\"")),
    }
}

/// Identity API v3: password and token authentication.
pub(super) async fn issue(
    State(state): State<AppState>,
    filters: Filters,
    Body(body): Body<AuthBody>,
) -> Result<Response, Fault> {
    let wanted = scope_wanted(body.auth.scope)?;
    let (token, facts) = state.control.token_issue(credentials(body.auth.identity)?, wanted).await?;
    let body = token_body(&state, &facts, !filters.has("nocatalog"));
    Ok((StatusCode::CREATED, [("x-subject-token", subject(&token)?)], Json(body)).into_response())
}

fn subject(token: &str) -> Result<HeaderValue, Fault> {
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
    let facts = state.control.token_show(&caller, token).await?;
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

/// Identity API v3: get service catalog.
pub(super) async fn catalog(
    State(state): State<AppState>,
    _: Authenticated,
    url: RequestUrl,
) -> Answer<Value> {
    Ok(Json(json!({"catalog": catalog_body(&state), "links": {"self": url.itself()}})))
}

/// Identity API v3: get available project scopes.
pub(super) async fn projects(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let page = Page::of(&filters, &[("id", Direction::Ascending)])?;
    let rows = state.control.projects_of(&caller).await?;
    let slice = page.cut(
        rows,
        |stored| &stored.row.id,
        |stored, key| (key == "id").then(|| SortValue::from(stored.row.id.as_str())),
    )?;
    Ok(Json(slice.keystone("projects", &url, |stored| project::show_project(&state, &stored.row))))
}

fn catalog_body(state: &AppState) -> Value {
    let region = state.control.region();
    let service = |service: control::service::catalog::CatalogService| {
        let endpoint = |endpoint: &control::service::catalog::CatalogEndpoint| {
            json!({
                "id": endpoint.id,
                "interface": endpoint.interface,
                "region": region,
                "region_id": region,
                "url": service.url,
            })
        };
        json!({
            "id": service.id,
            "type": service.kind,
            "name": service.name,
            "endpoints": service.endpoints.iter().map(endpoint).collect::<Vec<_>>(),
        })
    };
    state.control.catalog().into_iter().map(service).collect()
}

fn token_body(state: &AppState, facts: &TokenFacts, catalog: bool) -> Value {
    let domain = |domain: &control::model::identity::Domain| json!({"id": domain.id, "name": domain.name});
    let mut token = Map::new();
    let methods: Vec<&str> = facts.methods.iter().map(|method| method.name()).collect();
    token.insert("methods".into(), json!(methods));
    token.insert(
        "user".into(),
        json!({
            "domain": domain(&facts.user_domain.row),
            "id": facts.user.row.id,
            "name": facts.user.row.name,
            "password_expires_at": null,
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
    if catalog {
        token.insert("catalog".into(), catalog_body(state));
    }
    json!({ "token": token })
}
