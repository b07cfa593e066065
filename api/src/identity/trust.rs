//! Trusts (OS-TRUST).

use std::borrow::Cow;

use axum::Json;
use axum::extract::State;
use control::error::Error;
use control::model::delegation::Trust;
use control::model::identity::{Extra, Role};
use control::service::identity::trust::TrustWanted;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::ser::Error as _;
use serde::{Serialize, Serializer};

use super::application_credential::roles;
use super::fields::{Fields, Result};
use super::resource::{Links, Many, Object, One, Shown, beside, body, own_url};
use super::role::Roles;
use super::{role, time};
use crate::context::{Answer, AppState, Authenticated, Body, Filters, RequestUrl, Segments};
use crate::error::Fault;
use crate::openapi::answer::{Created, DONE, Done, Status};
use crate::page::KeystoneLinks;

#[derive(Serialize, JsonSchema)]
struct OwnTrust {
    id: String,
    trustor_user_id: String,
    trustee_user_id: String,
    project_id: Option<String>,
    impersonation: bool,
    expires_at: Option<String>,
    remaining_uses: Option<u32>,
    redelegation_count: u32,
    redelegated_trust_id: Option<String>,
    /// Always null.
    deleted_at: Option<String>,
    links: Links,
    #[serde(skip_serializing_if = "Option::is_none")]
    roles: Option<Vec<Shown<Roles>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    roles_links: Option<KeystoneLinks>,
}

/// A trust, with what else was given with it beside its own fields.
struct ShownTrust {
    own: OwnTrust,
    extra: Extra,
}

impl Serialize for ShownTrust {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        beside(&self.extra, &self.own).map_err(S::Error::custom)?.serialize(serializer)
    }
}

impl JsonSchema for ShownTrust {
    fn schema_name() -> Cow<'static, str> {
        "Trust".into()
    }

    fn json_schema(generator: &mut SchemaGenerator) -> Schema {
        let mut schema = OwnTrust::json_schema(generator);
        schema.insert("additionalProperties".into(), true.into());
        schema
    }
}

#[derive(Serialize, JsonSchema)]
pub(super) struct OneTrust {
    trust: ShownTrust,
}

#[derive(Serialize, JsonSchema)]
pub(super) struct Trusts {
    trusts: Vec<ShownTrust>,
    links: KeystoneLinks,
}

fn show(state: &AppState, row: &Trust, with_roles: bool) -> ShownTrust {
    let url = own_url(state, "OS-TRUST/trusts", &row.id);
    let roles = with_roles.then(|| state.control.roles_by_id(&row.roles));
    let own = OwnTrust {
        id: row.id.clone(),
        trustor_user_id: row.trustor_user_id.clone(),
        trustee_user_id: row.trustee_user_id.clone(),
        project_id: row.project_id.clone(),
        impersonation: row.impersonation,
        expires_at: row.expires_at.map(time),
        remaining_uses: row.remaining_uses,
        redelegation_count: row.redelegation_count,
        redelegated_trust_id: row.redelegated_trust_id.clone(),
        deleted_at: None,
        roles: roles.map(|roles| roles.iter().map(|role| body(state, &role.row)).collect()),
        roles_links: with_roles.then(|| KeystoneLinks::at(format!("{url}/roles"))),
        links: Links { own: url },
    };
    ShownTrust { own, extra: row.extra.clone() }
}

/// Identity API v3: create trust.
pub(super) async fn create(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Body(body): Body<Object>,
) -> Result<Created<OneTrust>, Fault> {
    let mut fields = Fields::of(body, "trust", true)?;
    let mut wanted = TrustWanted {
        trustor_user_id: fields.must("trustor_user_id")?,
        trustee_user_id: fields.must("trustee_user_id")?,
        roles: roles(&mut fields)?.unwrap_or_default(),
        expires_at: fields.time("expires_at")?,
        remaining_uses: fields.count("remaining_uses")?,
        redelegation_count: fields.count("redelegation_count")?,
        ..TrustWanted::default()
    };
    if !fields.has("impersonation") {
        return Err(Fault::malformed("'impersonation' is a required property"));
    }
    fields.flag("impersonation", &mut wanted.impersonation)?;
    fields.flag("allow_redelegation", &mut wanted.allow_redelegation)?;
    fields.optional("project_id", &mut wanted.project_id)?;
    fields.rest(&mut wanted.extra);
    let stored = state.control.trust_create(&caller, wanted).await?;
    Ok(Status(Json(OneTrust { trust: show(&state, &stored.row, true) })))
}

/// Identity API v3: list trusts: all for an administrator, else those of the trustor or trustee that is named.
pub(super) async fn list(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    filters: Filters,
    url: RequestUrl,
) -> Answer<Trusts> {
    let named = ["trustor_user_id", "trustee_user_id"].iter().find_map(|key| filters.get(key));
    let own = named == Some(caller.user_id.as_str());
    if !own && !caller.reads_system() {
        return Err(Error::Forbidden { action: "identity:list_trusts" }.into());
    }
    let rows = state.control.entity_list::<Trust>(&caller).await?;
    let wanted = rows.iter().filter(|row| {
        filters.allow("trustor_user_id", &row.row.trustor_user_id)
            && filters.allow("trustee_user_id", &row.row.trustee_user_id)
    });
    let trusts = wanted.map(|row| show(&state, &row.row, false)).collect();
    Ok(Json(Trusts { trusts, links: KeystoneLinks::whole(&url) }))
}

/// Identity API v3: get trust.
pub(super) async fn get(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Answer<OneTrust> {
    let row = usable(&state, &caller, &id).await?;
    Ok(Json(OneTrust { trust: show(&state, &row, true) }))
}

/// Identity API v3: delete trust.
pub(super) async fn delete(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
) -> Result<Done, Fault> {
    state.control.entity_get::<Trust>(&caller, &id).await?;
    state.control.entity_delete::<Trust>(&caller, &id).await?;
    Ok(DONE)
}

/// Identity API v3: list roles delegated by a trust.
pub(super) async fn roles_of(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments(id): Segments<String>,
    url: RequestUrl,
) -> Answer<Many<Roles>> {
    let row = usable(&state, &caller, &id).await?;
    Ok(role::listed(&state, &state.control.roles_by_id(&row.roles), &url))
}

/// Identity API v3: get, and check, a role delegated by a trust.
pub(super) async fn role_of(
    State(state): State<AppState>,
    Authenticated(caller): Authenticated,
    Segments((id, role_id)): Segments<(String, String)>,
) -> Answer<One<Roles>> {
    let row = usable(&state, &caller, &id).await?;
    let role = state.control.look_up::<Role>(&role_id).filter(|_| row.roles.contains(&role_id));
    let role = role.ok_or_else(|| Error::not_found("Role", &role_id))?;
    Ok(Json(One(body(&state, &role.row))))
}

/// A trust without remaining uses is as none.
async fn usable(state: &AppState, caller: &control::caller::Caller, id: &str) -> Result<Trust> {
    let stored = state.control.entity_get::<Trust>(caller, id).await?;
    if stored.row.remaining_uses == Some(0) {
        return Err(Error::not_found("Trust", id));
    }
    Ok(stored.row.clone())
}
