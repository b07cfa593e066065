//! Users.

use std::collections::BTreeMap;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use control::model::identity::User;
use control::service::user::UserChange;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use zeroize::Zeroizing;

use super::{done, given, project, secret};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::page::{Direction, Page, SortValue};

#[derive(Deserialize)]
pub(super) struct UserBody {
    user: Wanted,
}

#[derive(Deserialize)]
struct Wanted {
    name: Option<String>,
    domain_id: Option<String>,
    enabled: Option<bool>,
    #[serde(default, deserialize_with = "given")]
    default_project_id: Option<Option<String>>,
    #[serde(default, deserialize_with = "secret")]
    password: Option<Zeroizing<String>>,
    #[serde(flatten)]
    extra: Map<String, Value>,
}

impl Wanted {
    fn change(self) -> Result<UserChange, Fault> {
        let mut extra = BTreeMap::new();
        for (key, value) in self.extra {
            match value {
                Value::String(text) => extra.insert(key, Some(text)),
                Value::Null => extra.insert(key, None),
                // Keystone's own switches of password rules, none of which is there to be switched.
                Value::Object(options) if key == "options" && options.is_empty() => None,
                _ => return Err(Fault::malformed(format!("the value of {key} is not a string"))),
            };
        }
        Ok(UserChange {
            name: self.name,
            domain_id: self.domain_id,
            enabled: self.enabled,
            default_project_id: self.default_project_id,
            password: self.password,
            extra,
        })
    }
}

#[derive(Deserialize)]
pub(super) struct PasswordBody {
    user: PasswordChange,
}

#[derive(Deserialize)]
struct PasswordChange {
    #[serde(default, deserialize_with = "secret")]
    password: Option<Zeroizing<String>>,
    #[serde(default, deserialize_with = "secret")]
    original_password: Option<Zeroizing<String>>,
}

fn show_user(state: &AppState, user: &User) -> Value {
    let mut body: Map<String, Value> =
        user.extra.iter().map(|(key, value)| (key.clone(), Value::from(value.as_str()))).collect();
    body.insert("id".into(), json!(user.id));
    body.insert("name".into(), json!(user.name));
    body.insert("domain_id".into(), json!(user.domain_id));
    body.insert("enabled".into(), json!(user.enabled));
    body.insert("password_expires_at".into(), Value::Null);
    body.insert("options".into(), json!({}));
    if let Some(project) = &user.default_project_id {
        body.insert("default_project_id".into(), json!(project));
    }
    let own = format!("{}/identity/v3/users/{}", state.public_url(), user.id);
    body.insert("links".into(), json!({"self": own}));
    Value::Object(body)
}

/// Identity API v3: list users.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let page = Page::of(&filters, &[("name", Direction::Ascending)])?;
    let enabled = filters.flag("enabled")?;
    let mut rows = state.control.user_list(&caller).await?;
    rows.retain(|stored| {
        let row = &stored.row;
        filters.allow("name", &row.name)
            && filters.allow("domain_id", &row.domain_id)
            && enabled.is_none_or(|enabled| enabled == row.enabled)
    });
    let slice = page.cut(
        rows,
        |stored| &stored.row.id,
        |stored, key| match key {
            "name" => Some(SortValue::from(stored.row.name.as_str())),
            "id" => Some(SortValue::from(stored.row.id.as_str())),
            _ => None,
        },
    )?;
    Ok(Json(slice.keystone("users", &url, |stored| show_user(&state, &stored.row))))
}

/// Identity API v3: show user details.
pub(super) async fn show(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<Value> {
    let stored = state.control.user_get(&caller, &id).await?;
    Ok(Json(json!({"user": show_user(&state, &stored.row)})))
}

/// Identity API v3: create user.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<UserBody>,
) -> Result<Response, Fault> {
    let stored = state.control.user_create(&caller, body.user.change()?).await?;
    Ok((StatusCode::CREATED, Json(json!({"user": show_user(&state, &stored.row)}))).into_response())
}

/// Identity API v3: update user.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<UserBody>,
) -> Answer<Value> {
    let stored = state.control.user_update(&caller, &id, body.user.change()?).await?;
    Ok(Json(json!({"user": show_user(&state, &stored.row)})))
}

/// Identity API v3: delete user.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Response, Fault> {
    state.control.user_delete(&caller, &id).await?;
    Ok(done())
}

/// Identity API v3: change password for user. Keystone asks for no token here; the token's user must be the same.
pub(super) async fn password(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<PasswordBody>,
) -> Result<Response, Fault> {
    let missing = |what: &str| Fault::malformed(format!("'{what}' is a required property"));
    let original = body.user.original_password.ok_or_else(|| missing("original_password"))?;
    let password = body.user.password.ok_or_else(|| missing("password"))?;
    state.control.user_password(&caller, &id, original, password).await?;
    Ok(done())
}

/// Identity API v3: list projects for user.
pub(super) async fn projects(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let page = Page::of(&filters, &[("name", Direction::Ascending)])?;
    state.control.user_get(&caller, &id).await?;
    let of = control::caller::Caller { user_id: id, ..caller };
    let rows = state.control.projects_of(&of).await?;
    let slice = page.cut(
        rows,
        |stored| &stored.row.id,
        |stored, key| match key {
            "name" => Some(SortValue::from(stored.row.name.as_str())),
            _ => None,
        },
    )?;
    Ok(Json(slice.keystone("projects", &url, |stored| project::show_project(&state, &stored.row))))
}
