//! Groups and their members.

use super::fields::Result;
use axum::extract::State;
use axum::response::Response;
use control::caller::Caller;
use control::model::identity::Group;
use control::model::random_hex_id;
use serde_json::{Map, Value, json};

use super::done;
use super::fields::Fields;
use super::resource::{Resource, extra, fits, page, with};
use super::user::Users;
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl, Segments};
use crate::error::Fault;

/// Groups as clients see them.
pub(super) struct Groups;

impl Resource for Groups {
    type Row = Group;
    const ONE: &'static str = "group";
    const MANY: &'static str = "groups";
    const PATH: &'static str = "groups";

    fn show(_: &AppState, row: &Group) -> Map<String, Value> {
        let own = json!({
            "id": row.id, "name": row.name, "domain_id": row.domain_id, "description": row.description,
        });
        with(extra(&row.extra), own)
    }

    fn wanted(filters: &Filters, row: &Group) -> Result<bool, Fault> {
        Ok(fits(filters, "name", &row.name) && filters.allow("domain_id", &row.domain_id))
    }

    fn blank(state: &AppState, caller: &Caller, fields: &mut Fields) -> Result<Group> {
        let domain = fields.nullable("domain_id")?.flatten();
        let domain_id = domain.unwrap_or_else(|| state.control.domain_of(caller));
        Ok(Group { id: random_hex_id(), domain_id, ..Group::default() })
    }

    fn apply(row: &mut Group, mut fields: Fields) -> Result<()> {
        fields.name_if_given("domain_id", &mut row.domain_id)?;
        fields.name("name", &mut row.name)?;
        fields.text("description", &mut row.description)?;
        fields.rest(&mut row.extra);
        Ok(())
    }
}

type Membership = (String, String);

/// Identity API v3: add user to group.
pub(super) async fn add(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((group, user)): Segments<Membership>,
) -> Result<Response, Fault> {
    state.control.group_add(&caller, &group, &user).await?;
    Ok(done())
}

/// Identity API v3: check whether user belongs to group.
pub(super) async fn check(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((group, user)): Segments<Membership>,
) -> Result<Response, Fault> {
    state.control.group_check(&caller, &group, &user).await?;
    Ok(done())
}

/// Identity API v3: remove user from group.
pub(super) async fn remove(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((group, user)): Segments<Membership>,
) -> Result<Response, Fault> {
    state.control.group_remove(&caller, &group, &user).await?;
    Ok(done())
}

/// Identity API v3: list users in group.
pub(super) async fn users(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(group): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let mut users = Vec::new();
    for stored in state.control.group_users(&caller, &group).await? {
        if Users::wanted(&filters, &stored.row)? {
            users.push(stored);
        }
    }
    page::<Users>(&state, &filters, &url, users)
}

/// Identity API v3: list groups to which a user belongs.
pub(super) async fn of_user(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(user): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Value> {
    let mut groups = Vec::new();
    for stored in state.control.user_groups(&caller, &user).await? {
        if Groups::wanted(&filters, &stored.row)? {
            groups.push(stored);
        }
    }
    page::<Groups>(&state, &filters, &url, groups)
}
