//! Groups and their members.

use super::fields::Result;
use axum::extract::State;
use control::caller::Caller;
use control::model::identity::{Extra, Group};
use control::model::random_hex_id;
use schemars::JsonSchema;
use serde::Serialize;

use super::fields::Fields;
use super::resource::{Many, Resource, fits, page};
use super::user::Users;
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{DONE, Done};

/// Groups as clients see them.
pub(super) struct Groups;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnGroup {
    id: String,
    name: String,
    domain_id: String,
    description: String,
}

impl Resource for Groups {
    type Row = Group;
    type Own = OwnGroup;
    const ONE: &'static str = "group";
    const MANY: &'static str = "groups";
    const PATH: &'static str = "groups";

    fn show(_: &AppState, row: &Group) -> OwnGroup {
        OwnGroup {
            id: row.id.clone(),
            name: row.name.clone(),
            domain_id: row.domain_id.clone(),
            description: row.description.clone(),
        }
    }

    fn extra(row: &Group) -> Option<&Extra> {
        Some(&row.extra)
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
) -> Result<Done, Fault> {
    state.control.group_add(&caller, &group, &user).await?;
    Ok(DONE)
}

/// Identity API v3: check whether user belongs to group.
pub(super) async fn check(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((group, user)): Segments<Membership>,
) -> Result<Done, Fault> {
    state.control.group_check(&caller, &group, &user).await?;
    Ok(DONE)
}

/// Identity API v3: remove user from group.
pub(super) async fn remove(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((group, user)): Segments<Membership>,
) -> Result<Done, Fault> {
    state.control.group_remove(&caller, &group, &user).await?;
    Ok(DONE)
}

/// Identity API v3: list users in group.
pub(super) async fn users(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(group): Segments<String>,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Many<Users>> {
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
) -> Answer<Many<Groups>> {
    let mut groups = Vec::new();
    for stored in state.control.user_groups(&caller, &user).await? {
        if Groups::wanted(&filters, &stored.row)? {
            groups.push(stored);
        }
    }
    page::<Groups>(&state, &filters, &url, groups)
}
