//! Key pairs on the wire (Compute API: keypairs).

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use control::model::compute::Keypair;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{microseconds, number_of};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::microversion::Microversion;
use crate::page::{Direction, Page};

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct CreateBody {
    keypair: CreateFields,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct CreateFields {
    name: String,
    public_key: Option<String>,
    #[serde(rename = "type")]
    key_type: Option<String>,
    user_id: Option<String>,
}

/// `GET /os-keypairs`.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let keypairs = state.control.keypairs(&caller, user(&filters, version)).await?;
    let rows: Vec<Keypair> = keypairs.iter().map(|stored| stored.row.clone()).collect();
    let page = Page::of(&filters, &[("name", Direction::Ascending)])?;
    let slice =
        page.cut(rows, |row| &row.name, |row, key| (key == "name").then(|| row.name.as_str().into()))?;
    Ok(Json(slice.nova("keypairs", &url, |row| json!({"keypair": base(&row, version)}))))
}

/// `GET /os-keypairs/{name}`.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    Segments(name): Segments<String>,
) -> Answer<Value> {
    let keypair = state.control.keypair(&caller, user(&filters, version), &name).await?;
    let keypair = &keypair.row;
    let mut shown = base(keypair, version);
    shown["user_id"] = json!(keypair.user_id);
    shown["deleted"] = json!(false);
    shown["created_at"] = json!(microseconds(keypair.created_at));
    shown["updated_at"] = Value::Null;
    shown["deleted_at"] = Value::Null;
    shown["id"] = json!(number_of(&keypair.id));
    Ok(Json(json!({"keypair": shown})))
}

/// `POST /os-keypairs`.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    Body(body): Body<CreateBody>,
) -> Result<(StatusCode, Json<Value>), Fault> {
    let fields = body.keypair;
    let unexpected = (fields.key_type.is_some() && !version.at_least(2, 2))
        || (fields.user_id.is_some() && !version.at_least(2, 10));
    if unexpected {
        return Err(Fault::malformed("Additional properties are not allowed in this microversion."));
    }
    let key_type = fields.key_type.as_deref().unwrap_or("ssh");
    let user = fields.user_id.as_deref();
    let mut private_key = None;
    let keypair = if let Some(public_key) = fields.public_key {
        state.control.keypair_create(&caller, user, &fields.name, key_type, &public_key).await?
    } else {
        if version.at_least(2, 92) {
            return Err(Fault::malformed(
                "Invalid input for field/attribute keypair. 'public_key' is a required property",
            ));
        }
        let (keypair, made) = state.control.keypair_generate(&caller, user, &fields.name, key_type).await?;
        private_key = Some(made);
        keypair
    };
    let mut shown = base(&keypair, version);
    shown["user_id"] = json!(keypair.user_id);
    if let Some(private_key) = private_key {
        shown["private_key"] = json!(*private_key);
    }
    let status = if version.at_least(2, 2) { StatusCode::CREATED } else { StatusCode::OK };
    Ok((status, Json(json!({"keypair": shown}))))
}

/// `DELETE /os-keypairs/{name}`.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    version: Microversion,
    filters: Filters,
    Segments(name): Segments<String>,
) -> Result<StatusCode, Fault> {
    state.control.keypair_delete(&caller, user(&filters, version), &name).await?;
    Ok(if version.at_least(2, 2) { StatusCode::NO_CONTENT } else { StatusCode::ACCEPTED })
}

/// Another user's, since 2.10.
fn user(filters: &Filters, version: Microversion) -> Option<&str> {
    filters.get("user_id").filter(|_| version.at_least(2, 10))
}

fn base(keypair: &Keypair, version: Microversion) -> Value {
    let mut shown = json!({
        "name": keypair.name,
        "public_key": keypair.public_key,
        "fingerprint": keypair.fingerprint,
    });
    if version.at_least(2, 2) {
        shown["type"] = json!(keypair.key_type);
    }
    shown
}
