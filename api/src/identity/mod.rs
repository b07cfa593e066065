//! The identity service (Keystone, Identity API v3). Its discovery documents are in [`crate::discovery`].

mod catalog;
mod project;
mod role;
mod token;
mod user;

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use crate::error::Fault;
use crate::openapi::{Routes, get, post, put};

/// The routes below `/identity`.
pub fn routes() -> Routes {
    let grant = put(role::grant).get(role::check).delete(role::revoke);
    Routes::new()
        .route("/v3/auth/tokens", post(token::issue).get(token::show).delete(token::revoke))
        .route("/v3/auth/catalog", get(token::catalog))
        .route("/v3/auth/projects", get(token::projects))
        .route("/v3/domains", get(project::list_domains).post(project::create_domain))
        .route(
            "/v3/domains/{id}",
            get(project::show_domain).patch(project::update_domain).delete(project::delete_domain),
        )
        .route("/v3/projects", get(project::list).post(project::create))
        .route("/v3/projects/{id}", get(project::show).patch(project::update).delete(project::delete))
        .route("/v3/users", get(user::list).post(user::create))
        .route("/v3/users/{id}", get(user::show).patch(user::update).delete(user::delete))
        .route("/v3/users/{id}/password", post(user::password))
        .route("/v3/users/{id}/projects", get(user::projects))
        .route("/v3/roles", get(role::list).post(role::create))
        .route("/v3/roles/{id}", get(role::show).delete(role::delete))
        .route("/v3/role_inferences", get(role::inferences))
        .route("/v3/role_assignments", get(role::assignments))
        .route("/v3/{target}/{target_id}/users/{user_id}/roles", get(role::granted))
        .route("/v3/{target}/{target_id}/users/{user_id}/roles/{role_id}", grant.clone())
        .route("/v3/system/users/{user_id}/roles", get(role::granted_system))
        .route(
            "/v3/system/users/{user_id}/roles/{role_id}",
            put(role::grant_system).get(role::check_system).delete(role::revoke_system),
        )
        .route("/v3/services", get(catalog::list_services).post(not_stored))
        .route("/v3/services/{id}", get(catalog::show_service).patch(not_stored).delete(not_stored))
        .route("/v3/endpoints", get(catalog::list_endpoints).post(not_stored))
        .route("/v3/endpoints/{id}", get(catalog::show_endpoint).patch(not_stored).delete(not_stored))
        .route("/v3/regions", get(catalog::list_regions).post(not_stored))
        .route("/v3/regions/{id}", get(catalog::show_region).patch(not_stored).delete(not_stored))
}

/// The catalog follows from the public URL and cannot be changed.
async fn not_stored() -> Fault {
    Fault::not_implemented("changing the catalog")
}

/// No content, which is what most of Keystone's changes answer.
fn done() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// Times as Keystone writes them.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string()
}

/// Reads a secret so that no copy of ours stays in memory.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Zeroizing<String>>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Zeroizing::new))
}

/// Tells an absent field from one that is null.
fn given<'de, D: Deserializer<'de>, T: Deserialize<'de>>(
    deserializer: D,
) -> Result<Option<Option<T>>, D::Error> {
    Ok(Some(Option::deserialize(deserializer)?))
}

#[cfg(test)]
mod tests;
