//! Roles, and which comes with which.

use std::collections::BTreeSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::Method;
use control::caller::Caller;
use control::error::Error;
use control::model::identity::{Extra, Role};
use control::model::random_hex_id;
use control::store::Stored;
use schemars::JsonSchema;
use serde::Serialize;

use super::fields::{Fields, Result};
use super::resource::{Links, Many, Resource, body, fits, whole};
use crate::context::{Answer, AppState, Authenticated, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{Created, DONE, Done, Either, Status};
use crate::page::KeystoneLinks;

/// Roles as clients see them.
pub(super) struct Roles;

#[derive(Serialize, JsonSchema)]
pub(super) struct OwnRole {
    id: String,
    name: String,
    domain_id: Option<String>,
    description: String,
    options: Extra,
}

impl Resource for Roles {
    type Row = Role;
    type Own = OwnRole;
    const ONE: &'static str = "role";
    const MANY: &'static str = "roles";
    const PATH: &'static str = "roles";

    fn show(_: &AppState, row: &Role) -> OwnRole {
        OwnRole {
            id: row.id.clone(),
            name: row.name.clone(),
            domain_id: row.domain_id.clone(),
            description: row.description.clone(),
            options: row.options.clone(),
        }
    }

    fn extra(row: &Role) -> Option<&Extra> {
        Some(&row.extra)
    }

    /// Without a domain, the whole cloud's roles alone.
    fn wanted(filters: &Filters, row: &Role) -> Result<bool, Fault> {
        let domain = filters.get("domain_id").filter(|id| !id.is_empty());
        Ok(fits(filters, "name", &row.name) && row.domain_id.as_deref() == domain)
    }

    fn blank(_: &AppState, _: &Caller, _: &mut Fields) -> Result<Role> {
        Ok(Role { id: random_hex_id(), ..Role::default() })
    }

    fn apply(row: &mut Role, mut fields: Fields) -> Result<()> {
        fields.optional("domain_id", &mut row.domain_id)?;
        fields.name("name", &mut row.name)?;
        fields.text("description", &mut row.description)?;
        fields.options(&mut row.options)?;
        fields.rest(&mut row.extra);
        Ok(())
    }
}

/// A role as a rule names it.
#[derive(Serialize, JsonSchema)]
pub(super) struct BriefRole {
    id: String,
    name: String,
    domain_id: Option<String>,
    links: Links,
}

#[derive(Serialize, JsonSchema)]
struct Implication {
    prior_role: BriefRole,
    implies: BriefRole,
}

/// A rule.
#[derive(Serialize, JsonSchema)]
pub(super) struct Rule {
    role_inference: Implication,
    links: Links,
}

#[derive(Serialize, JsonSchema)]
struct Implications {
    prior_role: BriefRole,
    implies: Vec<BriefRole>,
}

/// All rules of one role.
#[derive(Serialize, JsonSchema)]
pub(super) struct RulesOfRole {
    role_inference: Implications,
    links: Links,
}

/// All rules.
#[derive(Serialize, JsonSchema)]
pub(super) struct Rules {
    role_inferences: Vec<Implications>,
    links: KeystoneLinks,
}

fn brief(state: &AppState, role: &Role) -> BriefRole {
    let own = super::resource::own_url(state, "roles", &role.id);
    BriefRole {
        id: role.id.clone(),
        name: role.name.clone(),
        domain_id: role.domain_id.clone(),
        links: Links { own },
    }
}

fn rule(state: &AppState, prior: &Role, implied: &Role) -> Rule {
    let own = format!("{}/identity/v3/roles/{}/implies/{}", state.public_url(), prior.id, implied.id);
    let role_inference = Implication { prior_role: brief(state, prior), implies: brief(state, implied) };
    Rule { role_inference, links: Links { own } }
}

/// Identity API v3: list all role inference rules.
pub(super) async fn inferences(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    url: RequestUrl,
) -> Answer<Rules> {
    let rules = state.control.implied_list(&caller, "identity:list_role_inference_rules").await?;
    let ids: BTreeSet<&String> =
        rules.iter().flat_map(|rule| [&rule.row.prior_id, &rule.row.implied_id]).collect();
    let ids: Vec<String> = ids.into_iter().cloned().collect();
    let roles = state.control.roles_by_id(&ids);
    let find = |id: &str| roles.iter().find(|role| role.row.id == id);
    let listed = roles.iter().filter_map(|prior| {
        let implied = rules.iter().filter(|rule| rule.row.prior_id == prior.row.id);
        let implies: Vec<BriefRole> = implied
            .filter_map(|rule| find(&rule.row.implied_id))
            .map(|role| brief(&state, &role.row))
            .collect();
        (!implies.is_empty()).then(|| Implications { prior_role: brief(&state, &prior.row), implies })
    });
    Ok(Json(Rules { role_inferences: listed.collect(), links: KeystoneLinks::whole(&url) }))
}

/// Identity API v3: list implied (inference) roles for role.
pub(super) async fn implied(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    url: RequestUrl,
) -> Answer<RulesOfRole> {
    let rules = state.control.implied_list(&caller, "identity:list_implied_roles").await?;
    let prior = state.control.look_up::<Role>(&id).ok_or_else(|| Error::not_found("Role", id.clone()))?;
    let ids: Vec<String> =
        rules.iter().filter(|rule| rule.row.prior_id == id).map(|rule| rule.row.implied_id.clone()).collect();
    let implies = state.control.roles_by_id(&ids).iter().map(|role| brief(&state, &role.row)).collect();
    let role_inference = Implications { prior_role: brief(&state, &prior.row), implies };
    Ok(Json(RulesOfRole { role_inference, links: Links { own: url.itself() } }))
}

/// Identity API v3: create role inference rule.
pub(super) async fn imply(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((prior, implied)): Segments<(String, String)>,
) -> Result<Created<Rule>, Fault> {
    let (prior, implied) = state.control.implied_create(&caller, &prior, &implied).await?;
    Ok(Status(Json(rule(&state, &prior.row, &implied.row))))
}

/// Identity API v3: get, and confirm, a role inference rule.
pub(super) async fn implication(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((prior, implied)): Segments<(String, String)>,
    method: Method,
) -> Result<Either<Json<Rule>, Done>, Fault> {
    let head = method == Method::HEAD;
    let asked = if head { "identity:check_implied_role" } else { "identity:get_implied_role" };
    let (prior, implied) = state.control.implied_get(&caller, (&prior, &implied), asked).await?;
    if head {
        return Ok(Either::Other(DONE));
    }
    Ok(Either::One(Json(rule(&state, &prior.row, &implied.row))))
}

/// Identity API v3: delete role inference rule.
pub(super) async fn imply_not(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((prior, implied)): Segments<(String, String)>,
) -> Result<Done, Fault> {
    state.control.implied_delete(&caller, &prior, &implied).await?;
    Ok(DONE)
}

/// Roles in the envelope of a list.
pub(super) fn listed(state: &AppState, roles: &[Arc<Stored<Role>>], url: &RequestUrl) -> Json<Many<Roles>> {
    whole(roles.iter().map(|role| body(state, &role.row)).collect(), url)
}
