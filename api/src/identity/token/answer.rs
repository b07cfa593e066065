//! A token as its holder sees it: who it is, for what scope, with which roles.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use control::model::identity::{Domain, Role};
use control::service::auth::{ScopeFacts, TokenFacts};
use schemars::JsonSchema;
use serde::Serialize;

use super::System;
use crate::context::AppState;
use crate::identity::application_credential::{ShownRule, shown_rules};
use crate::identity::catalog::CatalogEntry;
use crate::identity::{catalog, time};

/// A token's facts in their envelope.
#[derive(Serialize, JsonSchema)]
pub(in crate::identity) struct TokenAnswer {
    token: ShownToken,
}

#[derive(Serialize, JsonSchema)]
struct NamedDomain {
    id: String,
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct TokenUser {
    domain: NamedDomain,
    id: String,
    name: String,
    password_expires_at: Option<String>,
}

#[derive(Serialize, JsonSchema)]
struct TokenProject {
    domain: NamedDomain,
    id: String,
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct TokenRole {
    id: String,
    name: String,
}

#[derive(Serialize, JsonSchema)]
struct UserId {
    id: String,
}

#[derive(Serialize, JsonSchema)]
struct TokenTrust {
    id: String,
    trustor_user: UserId,
    trustee_user: UserId,
    impersonation: bool,
}

#[derive(Serialize, JsonSchema)]
struct TokenCredential {
    id: String,
    name: String,
    restricted: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    access_rules: Option<Vec<ShownRule>>,
}

#[derive(Serialize, JsonSchema)]
struct TokenOauth {
    access_token_id: String,
    consumer_id: String,
}

#[derive(Serialize, JsonSchema)]
struct ShownToken {
    methods: Vec<&'static str>,
    user: TokenUser,
    audit_ids: Vec<String>,
    expires_at: String,
    issued_at: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    project: Option<TokenProject>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_domain: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    domain: Option<NamedDomain>,
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<System>,
    #[serde(skip_serializing_if = "Option::is_none")]
    roles: Option<Vec<TokenRole>>,
    #[serde(rename = "OS-TRUST:trust", skip_serializing_if = "Option::is_none")]
    trust: Option<TokenTrust>,
    #[serde(skip_serializing_if = "Option::is_none")]
    application_credential: Option<TokenCredential>,
    #[serde(rename = "OS-OAUTH1", skip_serializing_if = "Option::is_none")]
    oauth: Option<TokenOauth>,
    #[serde(skip_serializing_if = "Option::is_none")]
    catalog: Option<Vec<CatalogEntry>>,
}

pub(in crate::identity) fn token_body(
    state: &AppState,
    facts: &TokenFacts,
    with_catalog: bool,
) -> TokenAnswer {
    let domain = |domain: &Domain| NamedDomain { id: domain.id.clone(), name: domain.name.clone() };
    let user = &facts.user.row;
    let mut token = ShownToken {
        methods: facts.methods.iter().map(|method| method.name()).collect(),
        user: TokenUser {
            domain: domain(&facts.user_domain.row),
            id: user.id.clone(),
            name: user.name.clone(),
            password_expires_at: state.control.password_expires_at(user).map(time),
        },
        audit_ids: facts.audit_ids.iter().map(|id| URL_SAFE_NO_PAD.encode(id)).collect(),
        expires_at: time(facts.expires_at),
        issued_at: time(facts.issued_at),
        project: None,
        is_domain: None,
        domain: None,
        system: None,
        roles: None,
        trust: None,
        application_credential: None,
        oauth: None,
        catalog: None,
    };
    match &facts.scope {
        ScopeFacts::Unscoped => return TokenAnswer { token },
        ScopeFacts::Project(project, of) => {
            let (id, name) = (project.row.id.clone(), project.row.name.clone());
            token.project = Some(TokenProject { domain: domain(&of.row), id, name });
            token.is_domain = Some(false);
        }
        ScopeFacts::Domain(scope) => token.domain = Some(domain(&scope.row)),
        ScopeFacts::System => token.system = Some(System { all: true }),
    }
    let role = |role: &Role| TokenRole { id: role.id.clone(), name: role.name.clone() };
    token.roles = Some(facts.roles.iter().map(|stored| role(&stored.row)).collect());
    token.trust = facts.trust.as_ref().map(|trust| TokenTrust {
        id: trust.row.id.clone(),
        trustor_user: UserId { id: trust.row.trustor_user_id.clone() },
        trustee_user: UserId { id: trust.row.trustee_user_id.clone() },
        impersonation: trust.row.impersonation,
    });
    token.application_credential = facts.application_credential.as_ref().map(|credential| TokenCredential {
        id: credential.row.id.clone(),
        name: credential.row.name.clone(),
        restricted: !credential.row.unrestricted,
        access_rules: credential.row.access_rules.as_deref().map(|ids| shown_rules(state, ids)),
    });
    token.oauth = facts.access_token.as_ref().map(|granted| TokenOauth {
        access_token_id: granted.row.id.clone(),
        consumer_id: granted.row.consumer_id.clone(),
    });
    if with_catalog {
        let project = match &facts.scope {
            ScopeFacts::Project(project, _) => Some(project.row.id.as_str()),
            _ => None,
        };
        token.catalog = Some(catalog::shown(state, &user.id, project));
    }
    TokenAnswer { token }
}
