//! The identity service (Keystone, Identity API v3). Its discovery documents are in [`crate::discovery`].

mod application_credential;
mod assignment;
mod catalog;
mod credential;
mod domain;
mod domain_config;
mod endpoint_filter;
mod fields;
mod group;
mod limit;
mod oauth;
mod project;
mod resource;
mod role;
mod token;
mod trust;
mod user;

use jiff::Timestamp;
use serde::{Deserialize, Deserializer};
use zeroize::Zeroizing;

use self::resource::{collection, single};
use crate::openapi::{Routes, get, post, put};

/// The routes below `/identity`.
pub fn routes() -> Routes {
    Routes::new()
        .merge(auth_routes())
        .merge(resource_routes())
        .merge(user_routes())
        .merge(assignment::routes())
        .merge(endpoint_filter::routes())
        .merge(domain_config::routes())
        .merge(oauth::routes())
}

fn auth_routes() -> Routes {
    Routes::new()
        .route("/v3/auth/tokens", post(token::issue).get(token::show).delete(token::revoke))
        .route("/v3/auth/catalog", get(catalog::of_token))
        .route("/v3/auth/projects", get(token::projects))
        .route("/v3/auth/domains", get(token::domains))
        .route("/v3/auth/system", get(token::system))
        .route("/v3/OS-REVOKE/events", get(token::revocations))
        .route("/v3/OS-WISP/token_keys", post(token::rotate_keys))
        .route("/v3/ec2tokens", post(credential::ec2_token))
        .route("/v3/s3tokens", post(credential::s3_token))
        .route("/v3/OS-TRUST/trusts", get(trust::list).post(trust::create))
        .route("/v3/OS-TRUST/trusts/{trust_id}", get(trust::get).delete(trust::delete))
        .route("/v3/OS-TRUST/trusts/{trust_id}/roles", get(trust::roles_of))
        .route("/v3/OS-TRUST/trusts/{trust_id}/roles/{role_id}", get(trust::role_of))
}

fn resource_routes() -> Routes {
    let tags = get(project::tags).put(project::set_tags).delete(project::clear_tags);
    let tag = put(project::add_tag).get(project::has_tag).delete(project::remove_tag);
    let projects = get(project::list).post(project::create);
    let project = get(project::show).patch(project::update).delete(project::delete);
    let implies = put(role::imply).get(role::implication).delete(role::imply_not);
    let credentials = get(resource::list::<credential::Credentials>).post(credential::create);
    let credential = get(resource::show::<credential::Credentials>)
        .patch(credential::update)
        .delete(resource::delete::<credential::Credentials>);
    let registered =
        get(resource::list::<limit::RegisteredLimits>).post(limit::create::<limit::RegisteredLimits>);
    let limits = get(resource::list::<limit::Limits>).post(limit::create::<limit::Limits>);
    let endpoints = get(resource::list::<catalog::Endpoints>).post(catalog::create_endpoint);
    let endpoint = get(resource::show::<catalog::Endpoints>)
        .patch(catalog::update_endpoint)
        .delete(resource::delete::<catalog::Endpoints>);
    Routes::new()
        .route("/v3/domains", collection::<domain::Domains>())
        .route("/v3/domains/{domain_id}", single::<domain::Domains>())
        .route("/v3/projects", projects)
        .route("/v3/projects/{project_id}", project)
        .route("/v3/projects/{project_id}/tags", tags)
        .route("/v3/projects/{project_id}/tags/{tag}", tag)
        .route("/v3/groups", collection::<group::Groups>())
        .route("/v3/groups/{group_id}", single::<group::Groups>())
        .route("/v3/groups/{group_id}/users", get(group::users))
        .route(
            "/v3/groups/{group_id}/users/{user_id}",
            put(group::add).get(group::check).delete(group::remove),
        )
        .route("/v3/roles", collection::<role::Roles>())
        .route("/v3/roles/{role_id}", single::<role::Roles>())
        .route("/v3/roles/{role_id}/implies", get(role::implied))
        .route("/v3/roles/{role_id}/implies/{implied_id}", implies)
        .route("/v3/role_inferences", get(role::inferences))
        .route("/v3/services", collection::<catalog::Services>())
        .route("/v3/services/{service_id}", single::<catalog::Services>())
        .route("/v3/endpoints", endpoints)
        .route("/v3/endpoints/{endpoint_id}", endpoint)
        .route("/v3/regions", collection::<catalog::Regions>())
        .route("/v3/regions/{region_id}", single::<catalog::Regions>().put(catalog::put_region))
        .route("/v3/policies", collection::<catalog::Policies>())
        .route("/v3/policies/{policy_id}", single::<catalog::Policies>())
        .route("/v3/credentials", credentials)
        .route("/v3/credentials/{credential_id}", credential)
        .route("/v3/registered_limits", registered)
        .route("/v3/registered_limits/{limit_id}", single::<limit::RegisteredLimits>())
        .route("/v3/limits", limits)
        .route("/v3/limits/model", get(limit::model))
        .route("/v3/limits/{limit_id}", single::<limit::Limits>())
}

fn user_routes() -> Routes {
    let user = get(resource::show::<user::Users>).patch(user::update).delete(resource::delete::<user::Users>);
    let keys = get(credential::ec2_list).post(credential::ec2_create);
    let key = get(credential::ec2_show).delete(credential::ec2_delete);
    let credentials = get(application_credential::list).post(application_credential::create);
    let credential = get(application_credential::get).delete(application_credential::delete);
    let rule = get(application_credential::get_rule).delete(application_credential::delete_rule);
    Routes::new()
        .route("/v3/users", get(user::list).post(user::create))
        .route("/v3/users/{user_id}", user)
        .route("/v3/users/{user_id}/password", post(user::password))
        .route("/v3/users/{user_id}/projects", get(user::projects))
        .route("/v3/users/{user_id}/groups", get(group::of_user))
        .route("/v3/users/{user_id}/credentials/OS-EC2", keys)
        .route("/v3/users/{user_id}/credentials/OS-EC2/{access}", key)
        .route("/v3/users/{user_id}/application_credentials", credentials)
        .route("/v3/users/{user_id}/application_credentials/{credential_id}", credential)
        .route("/v3/users/{user_id}/access_rules", get(application_credential::list_rules))
        .route("/v3/users/{user_id}/access_rules/{rule_id}", rule)
}

/// Times as Keystone writes them.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%S.000000Z").to_string()
}

/// Reads a secret so that no copy of ours stays in memory.
fn secret<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Zeroizing<String>>, D::Error> {
    Ok(Option::<String>::deserialize(deserializer)?.map(Zeroizing::new))
}

#[cfg(test)]
mod tests;
