//! Users.

use super::fields::Result;
use axum::extract::State;
use control::caller::Caller;
use control::model::identity::{Extra, User};
use control::model::random_hex_id;
use jiff::Timestamp;
use schemars::JsonSchema;
use serde::Serialize;

use super::fields::Fields;
use super::project::Projects;
use super::resource::{Many, Object, One, Resource, fits, fits_flag, new_row, one, page};
use super::time;
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{Created, DONE, Done, Status};

/// Users as clients see them.
pub(super) struct Users;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnUser {
    id: String,
    name: String,
    domain_id: String,
    enabled: bool,
    password_expires_at: Option<String>,
    options: Extra,
    #[serde(skip_serializing_if = "Option::is_none")]
    default_project_id: Option<String>,
}

impl Resource for Users {
    type Row = User;
    type Own = OwnUser;
    const ONE: &'static str = "user";
    const MANY: &'static str = "users";
    const PATH: &'static str = "users";

    fn show(state: &AppState, row: &User) -> OwnUser {
        OwnUser {
            id: row.id.clone(),
            name: row.name.clone(),
            domain_id: row.domain_id.clone(),
            enabled: row.enabled,
            password_expires_at: state.control.password_expires_at(row).map(time),
            options: row.options.clone(),
            default_project_id: row.default_project_id.clone(),
        }
    }

    fn extra(row: &User) -> Option<&Extra> {
        Some(&row.extra)
    }

    fn wanted(filters: &Filters, row: &User) -> Result<bool, Fault> {
        Ok(fits(filters, "name", &row.name)
            && filters.allow("domain_id", &row.domain_id)
            && fits_flag(filters, "enabled", row.enabled))
    }

    fn blank(state: &AppState, caller: &Caller, fields: &mut Fields) -> Result<User> {
        let domain = fields.nullable("domain_id")?.flatten();
        let domain_id = domain.unwrap_or_else(|| state.control.domain_of(caller));
        Ok(User { id: random_hex_id(), domain_id, enabled: true, ..User::default() })
    }

    fn apply(row: &mut User, mut fields: Fields) -> Result<()> {
        fields.name_if_given("domain_id", &mut row.domain_id)?;
        fields.name("name", &mut row.name)?;
        fields.flag("enabled", &mut row.enabled)?;
        fields.optional("default_project_id", &mut row.default_project_id)?;
        fields.options(&mut row.options)?;
        for text in ["description", "email"] {
            if let Some(Some(value)) = fields.nullable(text)? {
                row.extra.insert(text.to_owned(), value.into());
            }
        }
        fields.take("password_expires_at");
        fields.rest(&mut row.extra);
        Ok(())
    }
}

/// Identity API v3: list users; `password_expires_at` may be compared with a time.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Many<Users>> {
    let expiry = filters.get("password_expires_at").map(Comparison::of).transpose()?;
    let mut rows = Vec::new();
    for stored in state.control.entity_list::<User>(&caller).await? {
        let expires_at = state.control.password_expires_at(&stored.row);
        let fits = expiry.as_ref().is_none_or(|expiry| expires_at.is_some_and(|at| expiry.holds(at)));
        if fits && Users::wanted(&filters, &stored.row)? {
            rows.push(stored);
        }
    }
    page::<Users>(&state, &filters, &url, rows)
}

/// `lt:2030-01-01T00:00:00Z` and the like.
struct Comparison<'a>(&'a str, Timestamp);

impl<'a> Comparison<'a> {
    fn of(text: &'a str) -> Result<Self, Fault> {
        let (operator, at) = match text.split_once(':') {
            Some((operator, at)) if ["lt", "lte", "gt", "gte", "eq", "neq"].contains(&operator) => {
                (operator, at)
            }
            _ => ("eq", text),
        };
        let at = at.parse().map_err(|_| Fault::malformed(format!("{at} is no time of ISO 8601")))?;
        Ok(Self(operator, at))
    }

    fn holds(&self, at: Timestamp) -> bool {
        match self.0 {
            "lt" => at < self.1,
            "lte" => at <= self.1,
            "gt" => at > self.1,
            "gte" => at >= self.1,
            "neq" => at != self.1,
            _ => at == self.1,
        }
    }
}

/// Identity API v3: create user.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Object>,
) -> Result<Created<One<Users>>, Fault> {
    let mut fields = Fields::of(body, "user", true)?;
    let password = fields.secret("password")?;
    let row = new_row::<Users>(&state, &caller, fields)?;
    let stored = state.control.user_create(&caller, row, password).await?;
    Ok(Status(one::<Users>(&state, &stored)))
}

/// Identity API v3: update user.
pub(super) async fn update(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    Body(body): Body<Object>,
) -> Answer<One<Users>> {
    let mut fields = Fields::of(body, "user", false)?;
    let password = fields.secret("password")?;
    let change = |row: &mut User| Users::apply(row, fields.clone());
    let stored = state.control.user_update(&caller, &id, change, password).await?;
    Ok(one::<Users>(&state, &stored))
}

/// Identity API v3: change password for user. As in Keystone no token is asked for: the old password is the proof.
pub(super) async fn password(
    State(state): State<AppState>,
    Segments(id): Segments<String>,
    Body(body): Body<Object>,
) -> Result<Done, Fault> {
    let mut fields = Fields::of(body, "user", true)?;
    let missing = |what: &str| Fault::malformed(format!("'{what}' is a required property"));
    let original = fields.secret("original_password")?.ok_or_else(|| missing("original_password"))?;
    let password = fields.secret("password")?.ok_or_else(|| missing("password"))?;
    state.control.user_password(&id, original, password).await?;
    Ok(DONE)
}

/// Identity API v3: list projects for user.
pub(super) async fn projects(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Many<Projects>> {
    state.control.entity_seen::<User>(&caller, &id, "identity:list_user_projects").await?;
    let of = Caller { user_id: id, ..Caller::default() };
    let mut rows = Vec::new();
    for stored in state.control.projects_of(&of).await? {
        if Projects::wanted(&filters, &stored.row)? {
            rows.push(stored);
        }
    }
    page::<Projects>(&state, &filters, &url, rows)
}
