//! Credentials, EC2 access keys, and the requests that their secrets signed.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::HeaderValue;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE;
use control::caller::Caller;
use control::model::delegation::StoredCredential;
use control::model::identity::{Extra, User};
use control::service::auth::ec2::SignedRequest;
use control::service::identity::credential::Ec2Key;
use control::store::Stored;
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::Value;

use super::fields::{Fields, Result, invalid};
use super::resource::{Links, Object, One, Resource, new_row, one};
use super::token::{TokenAnswer, token_body};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{Created, DONE, Done, Status};
use crate::page::KeystoneLinks;

/// The most parameters and headers of a signed request.
const PAIRS_MAX: usize = 256;

/// Credentials as their users see them.
pub(super) struct Credentials;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnCredential {
    id: String,
    #[serde(rename = "type")]
    kind: String,
    user_id: String,
    project_id: Option<String>,
    blob: Option<String>,
}

impl Resource for Credentials {
    type Row = StoredCredential;
    type Own = OwnCredential;
    const ONE: &'static str = "credential";
    const MANY: &'static str = "credentials";
    const PATH: &'static str = "credentials";

    fn show(state: &AppState, row: &StoredCredential) -> OwnCredential {
        // A blob under a lost master key is shown as none; the key's loss is in the log of the start.
        let blob = state.control.credential_blob(row).ok();
        OwnCredential {
            id: row.id.clone(),
            kind: row.kind.clone(),
            user_id: row.user_id.clone(),
            project_id: row.project_id.clone(),
            blob: blob.map(|blob| blob.to_string()),
        }
    }

    fn extra(row: &StoredCredential) -> Option<&Extra> {
        Some(&row.extra)
    }

    fn wanted(filters: &Filters, row: &StoredCredential) -> Result<bool, Fault> {
        Ok(filters.allow("user_id", &row.user_id) && filters.allow("type", &row.kind))
    }

    fn blank(_: &AppState, caller: &Caller, _: &mut Fields) -> Result<StoredCredential> {
        Ok(StoredCredential { user_id: caller.user_id.clone(), ..StoredCredential::default() })
    }

    fn apply(row: &mut StoredCredential, mut fields: Fields) -> Result<()> {
        fields.name("type", &mut row.kind)?;
        fields.name_if_given("user_id", &mut row.user_id)?;
        fields.optional("project_id", &mut row.project_id)?;
        fields.rest(&mut row.extra);
        Ok(())
    }
}

/// Identity API v3: create credential.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Object>,
) -> Result<Created<One<Credentials>>, Fault> {
    let mut fields = Fields::of(body, "credential", true)?;
    let blob = fields.secret("blob")?.ok_or_else(|| invalid("'blob' is a required property"))?;
    let row = new_row::<Credentials>(&state, &caller, fields)?;
    let stored = state.control.credential_create(&caller, row, &blob).await?;
    Ok(Status(one(&state, &stored)))
}

/// Identity API v3: update credential.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Object>,
) -> Answer<One<Credentials>> {
    let mut fields = Fields::of(body, "credential", false)?;
    let blob = fields.secret("blob")?;
    let change = |row: &mut StoredCredential| Credentials::apply(row, fields.clone());
    let blob = blob.as_ref().map(|blob| blob.as_str());
    let stored = state.control.credential_update(&caller, &id, change, blob).await?;
    Ok(one::<Credentials>(&state, &stored))
}

/// An EC2 access key.
#[derive(Serialize, JsonSchema)]
struct AccessKey {
    access: String,
    secret: String,
    tenant_id: Option<String>,
    user_id: String,
    trust_id: Option<String>,
    links: Links,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneAccessKey {
    credential: AccessKey,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct AccessKeys {
    credentials: Vec<AccessKey>,
    links: KeystoneLinks,
}

fn ec2(state: &AppState, row: &Stored<StoredCredential>, key: &Ec2Key) -> AccessKey {
    let row = &row.row;
    let url = format!("{}/identity/v3/users/{}", state.public_url(), row.user_id);
    AccessKey {
        access: key.access.clone(),
        secret: key.secret.to_string(),
        tenant_id: row.project_id.clone(),
        user_id: row.user_id.clone(),
        trust_id: key.trust_id.clone(),
        links: Links { own: format!("{url}/credentials/OS-EC2/{}", key.access) },
    }
}

/// Identity API v3: create an EC2 access key.
pub(super) async fn ec2_create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(user): Segments<String>,
    Body(body): Body<Object>,
) -> Result<Created<OneAccessKey>, Fault> {
    let mut fields = Fields::inside(Value::Object(body), "body")?;
    let project = fields.must("tenant_id")?;
    let stored = state.control.ec2_create(&caller, &user, &project).await?;
    let rows = state.control.ec2_list(&caller, &user).await?;
    let made = rows.iter().find(|(row, _)| row.row.id == stored.row.id);
    let (row, key) = made.ok_or_else(|| control::error::Error::not_found("Credential", &stored.row.id))?;
    Ok(Status(Json(OneAccessKey { credential: ec2(&state, row, key) })))
}

/// Identity API v3: list a user's EC2 access keys.
pub(super) async fn ec2_list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(user): Segments<String>,
    url: RequestUrl,
) -> Answer<AccessKeys> {
    state.control.entity_seen::<User>(&caller, &user, "identity:ec2_list_credentials").await?;
    let rows = state.control.ec2_list(&caller, &user).await?;
    let credentials = rows.iter().map(|(row, key)| ec2(&state, row, key)).collect();
    Ok(Json(AccessKeys { credentials, links: KeystoneLinks::whole(&url) }))
}

/// Identity API v3: show an EC2 access key.
pub(super) async fn ec2_show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, access)): Segments<(String, String)>,
) -> Answer<OneAccessKey> {
    let (row, key) = state.control.ec2_get(&caller, &user, &access).await?;
    Ok(Json(OneAccessKey { credential: ec2(&state, &row, &key) }))
}

/// Identity API v3: delete an EC2 access key.
pub(super) async fn ec2_delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((user, access)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    state.control.ec2_delete(&caller, &user, &access).await?;
    Ok(DONE)
}

/// The object under any of the names that Keystone takes.
fn signed(body: Object) -> Result<Fields, Fault> {
    let mut body = body;
    let given = ["credentials", "credential", "ec2Credentials"].iter().find_map(|key| body.remove(*key));
    let given = given.ok_or_else(|| Fault::unauthorized("EC2 Signature not supplied"))?;
    let fields = Fields::inside(given, "credentials")?;
    if !fields.has("access") || !fields.has("signature") {
        return Err(Fault::unauthorized("EC2 Signature not supplied"));
    }
    Ok(fields)
}

fn pairs(fields: &mut Fields, key: &str) -> Result<BTreeMap<String, String>> {
    let Some(value) = fields.take(key) else { return Ok(BTreeMap::new()) };
    let wrong = || invalid(format!("Invalid input for field '{key}': it is not an object of strings"));
    let Value::Object(map) = value else { return Err(wrong()) };
    if map.len() > PAIRS_MAX {
        return Err(invalid(format!("'{key}' has more than {PAIRS_MAX} members")));
    }
    let text = |value: Value| match value {
        Value::String(text) => Some(text),
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    };
    map.into_iter().map(|(key, value)| Some((key, text(value)?))).collect::<Option<_>>().ok_or_else(wrong)
}

/// Identity API v3: the token of a request that an EC2 secret signed.
pub(super) async fn ec2_token(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Object>,
) -> Result<Signed, Fault> {
    let mut fields = signed(body)?;
    let mut request = SignedRequest {
        access: fields.must("access")?,
        signature: fields.must("signature")?,
        params: pairs(&mut fields, "params")?,
        headers: pairs(&mut fields, "headers")?,
        ..SignedRequest::default()
    };
    fields.text("verb", &mut request.verb)?;
    fields.text("host", &mut request.host)?;
    fields.text("path", &mut request.path)?;
    fields.text("body_hash", &mut request.body_hash)?;
    answer(&state, &caller, &request).await
}

/// Identity API v3: the token of a string that an S3 request signed.
pub(super) async fn s3_token(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Object>,
) -> Result<Signed, Fault> {
    let mut fields = signed(body)?;
    let text = fields.must("token")?;
    let text = URL_SAFE.decode(text.replace('+', "-").replace('/', "_"));
    let text = text.map_err(|_| invalid("Invalid input for field 'token': it is not base64"))?;
    let request = SignedRequest {
        access: fields.must("access")?,
        signature: fields.must("signature")?,
        string_to_sign: Some(text),
        ..SignedRequest::default()
    };
    answer(&state, &caller, &request).await
}

/// A token for a signature.
type Signed = ([(&'static str, HeaderValue); 1], Json<TokenAnswer>);

async fn answer(state: &AppState, caller: &Caller, request: &SignedRequest) -> Result<Signed, Fault> {
    let (token, facts) = state.control.token_of_signature(caller, request).await?;
    let headers = [("x-subject-token", super::token::subject(&token)?)];
    Ok((headers, Json(token_body(state, &facts, true))))
}
