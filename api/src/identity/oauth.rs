//! OAuth 1.0a (OS-OAUTH1): consumers, requests that they sign, and what users granted them.

use axum::Json;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, HeaderName, header};
use control::caller::Caller;
use control::error::Error;
use control::model::identity::{Extra, Role};
use control::model::oauth::{OauthAccessToken, OauthConsumer};
use control::service::auth::oauth::OauthRequest;
use control::service::identity::oauth::NewOauthToken;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::application_credential::roles as roles_of_body;
use super::fields::{Fields, Result, invalid};
use super::resource::{Many, Object, One, Resource, body, list as list_all, own_url, single};
use super::role::{self, Roles};
use crate::context::{
    Answer, AppState, Authenticated, Body, Filters, JSON_BYTES_MAX, OriginalTarget, RequestUrl, Segments,
    body_bytes,
};
use crate::error::Fault;
use crate::openapi::answer::{Created, DONE, Done, Form, Status};
use crate::openapi::{Routes, get, post, put};
use crate::page::KeystoneLinks;

/// Consumers as clients see them.
pub(super) struct Consumers;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnConsumer {
    id: String,
    description: Option<String>,
    /// When it is made, and never again.
    #[serde(skip_serializing_if = "Option::is_none")]
    secret: Option<String>,
}

impl Resource for Consumers {
    type Row = OauthConsumer;
    type Own = OwnConsumer;
    const ONE: &'static str = "consumer";
    const MANY: &'static str = "consumers";
    const PATH: &'static str = "OS-OAUTH1/consumers";

    fn show(_: &AppState, row: &OauthConsumer) -> OwnConsumer {
        OwnConsumer { id: row.id.clone(), description: row.description.clone(), secret: None }
    }

    fn extra(row: &OauthConsumer) -> Option<&Extra> {
        Some(&row.extra)
    }

    fn wanted(_: &Filters, _: &OauthConsumer) -> Result<bool, Fault> {
        Ok(true)
    }

    fn blank(_: &AppState, _: &Caller, _: &mut Fields) -> Result<OauthConsumer> {
        Ok(OauthConsumer::default())
    }

    fn apply(row: &mut OauthConsumer, mut fields: Fields) -> Result<()> {
        if fields.has("secret") {
            return Err(invalid("a consumer's secret is not the client's to choose"));
        }
        fields.optional("description", &mut row.description)?;
        fields.rest(&mut row.extra);
        Ok(())
    }
}

/// All routes of the extension.
pub(super) fn routes() -> Routes {
    let own = "/v3/users/{user_id}/OS-OAUTH1/access_tokens";
    Routes::new()
        .route("/v3/OS-OAUTH1/consumers", get(list_all::<Consumers>).post(create))
        .route("/v3/OS-OAUTH1/consumers/{consumer_id}", single::<Consumers>())
        .route("/v3/OS-OAUTH1/request_token", post(request_token))
        .route("/v3/OS-OAUTH1/authorize/{request_token_id}", put(authorize))
        .route("/v3/OS-OAUTH1/access_token", post(access_token))
        .route(own, get(list))
        .route(&format!("{own}/{{access_token_id}}"), get(show).delete(delete))
        .route(&format!("{own}/{{access_token_id}}/roles"), get(roles))
        .route(&format!("{own}/{{access_token_id}}/roles/{{role_id}}"), get(role_of))
}

/// Identity API v3, OS-OAUTH1: create consumer.
async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(given): Body<Object>,
) -> Result<Created<One<Consumers>>, Fault> {
    let mut row = OauthConsumer::default();
    Consumers::apply(&mut row, Fields::of(given, "consumer", true)?)?;
    let (stored, secret) = state.control.oauth_consumer_create(&caller, row).await?;
    let mut shown = body::<Consumers>(&state, &stored.row);
    shown.own.secret = Some(secret.to_string());
    Ok(Status(Json(One(shown))))
}

/// What a request that a consumer signed says of itself. `form`: its body, where that is a form.
pub(super) fn signed_request(
    state: &AppState,
    method: &str,
    target: &axum::http::Uri,
    headers: &HeaderMap,
    form: &str,
) -> Result<OauthRequest, Fault> {
    let text = |name: HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let (scheme, _) = state.public_url().split_once("://").unwrap_or(("http", ""));
    // The cloud's own URL, and the name that the client knows it by.
    let uris = vec![
        format!("{}{}", state.public_url(), target.path()),
        format!("{scheme}://{}{}", text(header::HOST), target.path()),
    ];
    let mut pairs = Filters::of(target)?.pairs().to_vec();
    let form = format!("/?{form}").parse().map_err(|_| Fault::malformed("the body is no form"))?;
    pairs.extend(Filters::of(&form)?.pairs().iter().cloned());
    let authorization = text(header::AUTHORIZATION).to_owned();
    Ok(OauthRequest { method: method.to_owned(), uris, authorization, pairs })
}

/// The same of a request with its body.
async fn whole_request(state: &AppState, request: Request) -> Result<OauthRequest, Fault> {
    let original = request.extensions().get::<OriginalTarget>().map(|OriginalTarget(uri)| uri.clone());
    let target = original.unwrap_or_else(|| request.uri().clone());
    let (method, headers) = (request.method().as_str().to_owned(), request.headers().clone());
    let bytes = body_bytes(request, JSON_BYTES_MAX).await?;
    let kind = headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let form = match kind.starts_with("application/x-www-form-urlencoded") {
        true => str::from_utf8(&bytes).map_err(|_| Fault::malformed("the body is no form"))?,
        false => "",
    };
    signed_request(state, &method, &target, &headers, form)
}

fn given(token: &NewOauthToken) -> Status<201, Form> {
    let at = token.expires_at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ");
    let secret = token.secret.as_str();
    Status(Form(format!("oauth_token={}&oauth_token_secret={secret}&oauth_expires_at={at}", token.id)))
}

/// Identity API v3, OS-OAUTH1: create request token.
async fn request_token(State(state): State<AppState>, request: Request) -> Result<Status<201, Form>, Fault> {
    let project = request.headers().get("requested-project-id").and_then(|value| value.to_str().ok());
    let missing = || Fault::malformed("Expecting to find Requested-Project-Id in request.");
    let project = project.filter(|id| !id.is_empty()).ok_or_else(missing)?.to_owned();
    let signed = whole_request(&state, request).await?;
    Ok(given(&state.control.oauth_request_token(&signed, &project).await?))
}

/// Identity API v3, OS-OAUTH1: create access token.
async fn access_token(State(state): State<AppState>, request: Request) -> Result<Status<201, Form>, Fault> {
    let signed = whole_request(&state, request).await?;
    Ok(given(&state.control.oauth_access_token(&signed).await?))
}

/// The word for the consumer.
#[derive(Serialize, JsonSchema)]
struct Authorized {
    token: Verifier,
}

#[derive(Serialize, JsonSchema)]
struct Verifier {
    oauth_verifier: String,
}

/// Identity API v3, OS-OAUTH1: authorize request token.
async fn authorize(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(given): Body<Object>,
) -> Answer<Authorized> {
    let mut fields = Fields::inside(Value::Object(given), "body")?;
    let roles = roles_of_body(&mut fields)?.ok_or_else(|| invalid("'roles' is a required property"))?;
    let oauth_verifier = state.control.oauth_authorize(&caller, &id, &roles).await?;
    Ok(Json(Authorized { token: Verifier { oauth_verifier } }))
}

/// What a user granted.
#[derive(Serialize, JsonSchema)]
struct Granted {
    id: String,
    consumer_id: String,
    project_id: String,
    authorizing_user_id: String,
    expires_at: String,
    links: GrantedLinks,
}

#[derive(Serialize, JsonSchema)]
struct GrantedLinks {
    #[serde(rename = "self")]
    own: String,
    roles: String,
}

#[derive(Serialize, JsonSchema)]
struct OneGranted {
    access_token: Granted,
}

#[derive(Serialize, JsonSchema)]
struct AllGranted {
    access_tokens: Vec<Granted>,
    links: KeystoneLinks,
}

fn granted(state: &AppState, row: &OauthAccessToken) -> Granted {
    let own = own_url(state, &format!("users/{}/OS-OAUTH1/access_tokens", row.user_id), &row.id);
    Granted {
        id: row.id.clone(),
        consumer_id: row.consumer_id.clone(),
        project_id: row.project_id.clone(),
        authorizing_user_id: row.user_id.clone(),
        expires_at: row.expires_at.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        links: GrantedLinks { roles: format!("{own}/roles"), own },
    }
}

/// Identity API v3, OS-OAUTH1: list access tokens.
async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(user): Segments<String>,
    url: RequestUrl,
) -> Answer<AllGranted> {
    let rows = state.control.oauth_access_list(&caller, &user).await?;
    let access_tokens = rows.iter().map(|stored| granted(&state, &stored.row)).collect();
    Ok(Json(AllGranted { access_tokens, links: KeystoneLinks::whole(&url) }))
}

/// Identity API v3, OS-OAUTH1: get access token.
async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, id)): Segments<(String, String)>,
) -> Answer<OneGranted> {
    let stored = state.control.oauth_access(&caller, &user, &id, "identity:get_access_token").await?;
    Ok(Json(OneGranted { access_token: granted(&state, &stored.row) }))
}

/// Identity API v3, OS-OAUTH1: revoke access token.
async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, id)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    state.control.oauth_access_delete(&caller, &user, &id).await?;
    Ok(DONE)
}

/// Identity API v3, OS-OAUTH1: list roles for an access token.
async fn roles(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, id)): Segments<(String, String)>,
    url: RequestUrl,
) -> Answer<Many<Roles>> {
    let stored = state.control.oauth_access(&caller, &user, &id, "identity:list_access_token_roles").await?;
    Ok(role::listed(&state, &state.control.roles_by_id(&stored.row.roles), &url))
}

/// Identity API v3, OS-OAUTH1: show role details for an access token.
async fn role_of(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, id, role_id)): Segments<(String, String, String)>,
) -> Answer<One<Roles>> {
    let stored = state.control.oauth_access(&caller, &user, &id, "identity:get_access_token_role").await?;
    let role = state.control.look_up::<Role>(&role_id).filter(|_| stored.row.roles.contains(&role_id));
    let role = role.ok_or_else(|| Error::not_found("Role", &role_id))?;
    Ok(Json(One(body(&state, &role.row))))
}
