//! Tokens: getting, checking and revoking them, and what the caller's token shows.

use std::collections::BTreeMap;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control::model::identity::{Domain, Role};
use control::service::auth::oauth::OauthRequest;
use control::service::auth::{
    ApplicationCredentialRef, Credential, DomainRef, Expired, NamedRef, ScopeFacts, ScopeWanted, TokenFacts,
};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zeroize::Zeroizing;

use super::application_credential::{ShownRule, shown_rules};
use super::catalog::CatalogEntry;
use super::domain::Domains;
use super::project::Projects;
use super::resource::{Many, asks, page};
use super::{catalog, oauth, secret, time};
use crate::audit::Seat;
use crate::context::{Answer, AppState, Authenticated, Body, Filters, OriginalTarget, RequestUrl};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done, Status};
use crate::page::KeystoneLinks;

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

/// The proofs of a login; `oauth`: what its request says of a signature of OAuth.
fn credentials(
    identity: Identity,
    oauth: impl Fn() -> Result<OauthRequest, Fault>,
) -> Result<Vec<Credential>, Fault> {
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
            "oauth1" => credentials.push(Credential::Oauth(Box::new(oauth()?))),
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

/// A token's facts, with the token itself in the header.
type Shown = ([(&'static str, HeaderValue); 1], Json<TokenAnswer>);

/// Identity API v3: password and token authentication.
pub(super) async fn issue(
    State(state): State<AppState>,
    seat: Option<Extension<Seat>>,
    Extension(OriginalTarget(uri)): Extension<OriginalTarget>,
    headers: HeaderMap,
    Body(body): Body<AuthBody>,
) -> Result<Status<201, Shown>, Fault> {
    let wanted = scope_wanted(body.auth.scope)?;
    let filters = Filters::of(&uri)?;
    let oauth = || oauth::signed_request(&state, "POST", &uri, &headers, "");
    let (token, facts) = state.control.token_issue(credentials(body.auth.identity, oauth)?, wanted).await?;
    if let Some(Extension(seat)) = seat {
        seat.take_user(&facts.user.row.id);
    }
    let body = token_body(&state, &facts, !filters.has("nocatalog"));
    Ok(Status(([("x-subject-token", subject(&token)?)], Json(body))))
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
) -> Result<Shown, Fault> {
    let token = subject_of(&headers)?;
    let expired = if asks(&filters, "allow_expired") { Expired::Shown } else { Expired::Refused };
    let facts = state.control.token_show(&caller, token, expired).await?;
    let body = token_body(&state, &facts, !filters.has("nocatalog"));
    Ok(([("x-subject-token", subject(token)?)], Json(body)))
}

/// Identity API v3: revoke token.
pub(super) async fn revoke(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    headers: HeaderMap,
) -> Result<Done, Fault> {
    state.control.token_revoke(&caller, subject_of(&headers)?).await?;
    Ok(DONE)
}

/// Identity API v3: get available project scopes.
pub(super) async fn projects(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Many<Projects>> {
    page::<Projects>(&state, &filters, &url, state.control.projects_of(&caller).await?)
}

/// Identity API v3: get available domain scopes.
pub(super) async fn domains(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Many<Domains>> {
    page::<Domains>(&state, &filters, &url, state.control.domains_of(&caller).await?)
}

/// The whole cloud as a scope, if it is one of the caller's.
#[derive(Serialize, JsonSchema)]
pub(super) struct SystemScopes {
    system: Vec<System>,
    links: KeystoneLinks,
}

#[derive(Serialize, JsonSchema)]
struct System {
    all: bool,
}

/// Identity API v3: get available system scopes.
pub(super) async fn system(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    url: RequestUrl,
) -> Answer<SystemScopes> {
    let all = state.control.has_system_role(&caller).await?;
    let system = all.then_some(System { all }).into_iter().collect();
    Ok(Json(SystemScopes { system, links: KeystoneLinks::whole(&url) }))
}

/// Tokens that hold no longer.
#[derive(Serialize, JsonSchema)]
pub(super) struct Revocations {
    events: Vec<Event>,
    links: KeystoneLinks,
}

/// Which, by one id of theirs.
#[derive(Serialize, JsonSchema)]
struct Event {
    #[serde(flatten)]
    of: BTreeMap<String, String>,
    issued_before: String,
}

/// Identity API v3, OS-REVOKE: list revocation events.
pub(super) async fn revocations(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    url: RequestUrl,
) -> Answer<Revocations> {
    let events = state.control.revocation_list(&caller).await?;
    let event = |row: &control::model::identity::Revocation| {
        let of = match row.id.split_once('/') {
            Some((kind, id)) => (format!("{kind}_id"), id.to_owned()),
            None => {
                let bytes = uuid::Uuid::try_parse(&row.id).unwrap_or_default().into_bytes();
                ("audit_id".to_owned(), URL_SAFE_NO_PAD.encode(bytes))
            }
        };
        let issued_before = time(row.issued_before.unwrap_or(row.expires_at));
        Event { of: BTreeMap::from([of]), issued_before }
    };
    let events = events.iter().map(|stored| event(&stored.row)).collect();
    Ok(Json(Revocations { events, links: KeystoneLinks::whole(&url) }))
}

/// Which keys there are.
#[derive(Serialize, JsonSchema)]
pub(super) struct TokenKeys {
    token_keys: Vec<u32>,
}

/// Wisp's own: rotates the keys that tokens are made with.
pub(super) async fn rotate_keys(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
) -> Answer<TokenKeys> {
    Ok(Json(TokenKeys { token_keys: state.control.token_keys_rotate(&caller).await? }))
}

/// A token's facts in their envelope.
#[derive(Serialize, JsonSchema)]
pub(super) struct TokenAnswer {
    token: ShownToken,
}

#[derive(Serialize, JsonSchema)]
struct NamedDomain {
    id: String,
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct TokenUser {
    domain: NamedDomain,
    id: String,
    name: String,
    password_expires_at: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct TokenProject {
    domain: NamedDomain,
    id: String,
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct TokenRole {
    id: String,
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct UserId {
    id: String,
}

#[derive(Serialize, JsonSchema)]
struct TokenTrust {
    id: String,
    trustor_user: UserId,
    trustee_user: UserId,
    impersonation: bool,
}

#[derive(Serialize, JsonSchema)]
struct TokenCredential {
    id: String,
    name: String,
    restricted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_rules: Option<Vec<ShownRule>>,
}

#[derive(Serialize, JsonSchema)]
struct TokenOauth {
    access_token_id: String,
    consumer_id: String,
}

#[derive(Serialize, JsonSchema)]
struct ShownToken {
    methods: Vec<&'static str>,
    user: TokenUser,
    audit_ids: Vec<String>,
    expires_at: String,
    issued_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<TokenProject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_domain: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<NamedDomain>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<System>,
    #[serde(skip_serializing_if = "Option::is_none")]
    roles: Option<Vec<TokenRole>>,
    #[serde(rename = "OS-TRUST:trust", skip_serializing_if = "Option::is_none")]
    trust: Option<TokenTrust>,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_credential: Option<TokenCredential>,
    #[serde(rename = "OS-OAUTH1", skip_serializing_if = "Option::is_none")]
    oauth: Option<TokenOauth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    catalog: Option<Vec<CatalogEntry>>,
}

pub(super) fn token_body(state: &AppState, facts: &TokenFacts, with_catalog: bool) -> TokenAnswer {
    let domain = |domain: &Domain| NamedDomain { id: domain.id.clone(), name: domain.name.clone() };
    let user = &facts.user.row;
    let mut token = ShownToken {
        methods: facts.methods.iter().map(|method| method.name()).collect(),
        user: TokenUser {
            domain: domain(&facts.user_domain.row),
            id: user.id.clone(),
            name: user.name.clone(),
            password_expires_at: state.control.password_expires_at(user).map(time),
        },
        audit_ids: facts.audit_ids.iter().map(|id| URL_SAFE_NO_PAD.encode(id)).collect(),
        expires_at: time(facts.expires_at),
        issued_at: time(facts.issued_at),
        project: None,
        is_domain: None,
        domain: None,
        system: None,
        roles: None,
        trust: None,
        application_credential: None,
        oauth: None,
        catalog: None,
    };
    match &facts.scope {
        ScopeFacts::Unscoped => return TokenAnswer { token },
        ScopeFacts::Project(project, of) => {
            let (id, name) = (project.row.id.clone(), project.row.name.clone());
            token.project = Some(TokenProject { domain: domain(&of.row), id, name });
            token.is_domain = Some(false);
        }
        ScopeFacts::Domain(scope) => token.domain = Some(domain(&scope.row)),
        ScopeFacts::System => token.system = Some(System { all: true }),
    }
    let role = |role: &Role| TokenRole { id: role.id.clone(), name: role.name.clone() };
    token.roles = Some(facts.roles.iter().map(|stored| role(&stored.row)).collect());
    token.trust = facts.trust.as_ref().map(|trust| TokenTrust {
        id: trust.row.id.clone(),
        trustor_user: UserId { id: trust.row.trustor_user_id.clone() },
        trustee_user: UserId { id: trust.row.trustee_user_id.clone() },
        impersonation: trust.row.impersonation,
    });
    token.application_credential = facts.application_credential.as_ref().map(|credential| TokenCredential {
        id: credential.row.id.clone(),
        name: credential.row.name.clone(),
        restricted: !credential.row.unrestricted,
        access_rules: credential.row.access_rules.as_deref().map(|ids| shown_rules(state, ids)),
    });
    token.oauth = facts.access_token.as_ref().map(|granted| TokenOauth {
        access_token_id: granted.row.id.clone(),
        consumer_id: granted.row.consumer_id.clone(),
    });
    if with_catalog {
        let project = match &facts.scope {
            ScopeFacts::Project(project, _) => Some(project.row.id.as_str()),
            _ => None,
        };
        token.catalog = Some(catalog::shown(state, &user.id, project));
    }
    TokenAnswer { token }
}
