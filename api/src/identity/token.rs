//! Tokens: getting, checking and revoking them, and what the caller's token shows.

mod answer;
mod request;

use std::collections::BTreeMap;

use axum::Extension;
use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control::service::auth::Expired;
use schemars::JsonSchema;
use serde::Serialize;

use self::request::{AuthBody, credentials, scope_wanted};
use super::domain::Domains;
use super::project::Projects;
use super::resource::{Many, asks, page};
use super::{oauth, time};
use crate::audit::Seat;
use crate::context::{Answer, AppState, Authenticated, Body, Filters, OriginalTarget, RequestUrl};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done, Status};
use crate::page::KeystoneLinks;

pub(super) use self::answer::{TokenAnswer, token_body};

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
