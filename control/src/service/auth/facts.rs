//! What a token stands for: its payload held against what is true now.

use jiff::{SignedDuration, Timestamp};

use super::{EXPIRED_WINDOW, Expired, Found, audit_hex, enabled_domain, project_of, refused};
use crate::Control;
use crate::caller::{AllowedRequest, Caller, Delegation, RoleLevel, Scope};
use crate::error::{Error, Result};
use crate::model::delegation::{ApplicationCredential, StoredToken, Trust};
use crate::model::identity::{AssignmentTarget, Domain, Project, Revocation, Role, User};
use crate::model::oauth::OauthAccessToken;
use crate::service::identity::assignment::effective_roles;
use crate::service::identity::oauth::granted_roles;
use crate::service::identity::role::{role_level, with_implied};
use crate::service::identity::trust::{holds, trustor_roles};
use crate::store::Cache;
use crate::token::{Method, Payload, TokenScope, Via};

/// What a token is good for, as rows.
#[derive(Debug, Clone)]
pub enum ScopeFacts {
    /// Only for asking for another token.
    Unscoped,
    /// A project and its domain.
    Project(Found<Project>, Found<Domain>),
    /// A domain.
    Domain(Found<Domain>),
    /// The whole deployment.
    System,
}

/// What a token stands for now.
#[derive(Debug, Clone)]
pub struct TokenFacts {
    /// How it was got.
    pub methods: Vec<Method>,
    /// Whose it is.
    pub user: Found<User>,
    /// The user's domain.
    pub user_domain: Found<Domain>,
    /// What it is good for.
    pub scope: ScopeFacts,
    /// The roles there, implied ones included.
    pub roles: Vec<Found<Role>>,
    /// The trust it was made by.
    pub trust: Option<Found<Trust>>,
    /// The application credential it was made by.
    pub application_credential: Option<Found<ApplicationCredential>>,
    /// The access token of OAuth that it was made by.
    pub access_token: Option<Found<OauthAccessToken>>,
    /// Its own audit id, then its first ancestor's.
    pub audit_ids: Vec<[u8; 16]>,
    /// When it was issued.
    pub issued_at: Timestamp,
    /// Until when it holds.
    pub expires_at: Timestamp,
}

impl Control {
    /// The one who asks with such a token.
    pub(super) fn caller_of(&self, facts: &TokenFacts, request_id: String) -> Caller {
        let scope = match &facts.scope {
            ScopeFacts::Unscoped => Scope::Unscoped,
            ScopeFacts::Project(project, _) => Scope::Project(project.row.id.clone()),
            ScopeFacts::Domain(domain) => Scope::Domain(domain.row.id.clone()),
            ScopeFacts::System => Scope::System,
        };
        let role: Option<RoleLevel> = facts.roles.iter().filter_map(|role| role_level(&role.row.name)).max();
        let delegation = match (&facts.application_credential, &facts.trust) {
            _ if facts.access_token.is_some() => Delegation::Oauth {
                access_token_id: facts
                    .access_token
                    .as_ref()
                    .map(|found| found.row.id.clone())
                    .unwrap_or_default(),
            },
            (Some(credential), _) => Delegation::ApplicationCredential {
                id: credential.row.id.clone(),
                unrestricted: credential.row.unrestricted,
                allowed: credential.row.access_rules.as_ref().map(|ids| {
                    let rules = self.access_rules_by_id(ids).into_iter();
                    let rules = rules.map(|rule| AllowedRequest {
                        service: rule.row.service.clone(),
                        method: rule.row.method.clone(),
                        path: rule.row.path.clone(),
                    });
                    rules.collect()
                }),
            },
            (None, Some(trust)) => Delegation::Trust {
                id: trust.row.id.clone(),
                trustee_user_id: trust.row.trustee_user_id.clone(),
            },
            (None, None) if facts.methods.contains(&Method::Ec2Credential) => Delegation::Ec2,
            (None, None) => Delegation::None,
        };
        Caller {
            user_id: facts.user.row.id.clone(),
            user_domain_id: facts.user_domain.row.id.clone(),
            scope,
            role,
            roles: facts.roles.iter().map(|role| role.row.name.clone()).collect(),
            delegation,
            request_id,
            if_revision: None,
            policy: self.settings.policy.clone(),
        }
    }

    pub(super) fn facts_of(&self, token: &str, expired: Expired) -> Result<TokenFacts> {
        if token.len() == 32 {
            let id = crate::service::identity::credential::ec2_id(token);
            let stored = self.db.get::<StoredToken>(&id).ok_or_else(refused)?;
            let bytes = base64::Engine::decode(
                &base64::engine::general_purpose::STANDARD,
                stored.row.payload.as_bytes(),
            );
            let payload = Payload::unpack(&bytes.map_err(|_| refused())?).map_err(|_| refused())?;
            return self.facts(payload, stored.row.issued_at_s, expired);
        }
        let (payload, issued_at_s) = self.tokens.open_token(token).map_err(|_| refused())?;
        self.facts(payload, issued_at_s, expired)
    }

    /// Holds a token's payload against what is true now.
    pub(super) fn facts(&self, payload: Payload, issued_at_s: u64, expired: Expired) -> Result<TokenFacts> {
        let cache = self.db.cache();
        let expires_at = timestamp(payload.expires_at_s).ok_or_else(refused)?;
        let issued_at = i64::try_from(issued_at_s).ok().and_then(|s| Timestamp::from_second(s).ok());
        let issued_at = issued_at.ok_or_else(refused)?;
        let kept = match expired {
            Expired::Refused => SignedDuration::ZERO,
            Expired::Shown => EXPIRED_WINDOW,
        };
        let revoked = payload.audit_ids.iter().take(1);
        if Timestamp::now() >= expires_at.checked_add(kept).map_err(|_| refused())?
            || revoked.into_iter().any(|id| cache.get::<Revocation>(&audit_hex(id)).is_some())
            || ended_up_to(cache, &payload.user_id, &payload.scope)
                .is_some_and(|from| issued_at.as_second() <= from.as_second())
        {
            return Err(refused());
        }
        let user = enabled_user(cache, &payload.user_id)?;
        let user_domain = enabled_domain(cache, &user.row.domain_id)?;
        let (mut trust, mut application_credential, mut access_token) = (None, None, None);
        let (scope, roles) = match (&payload.scope, &payload.via) {
            (TokenScope::Unscoped, _) => (ScopeFacts::Unscoped, Vec::new()),
            (TokenScope::Project(id), via) => {
                let (project, domain) = project_of(cache, id)?;
                let roles = match via {
                    Via::Own => effective_roles(cache, &user.row.id, &AssignmentTarget::Project(id.clone())),
                    Via::Trust(trust_id) => {
                        let lent = self::trust(cache, trust_id)?;
                        let roles = lent_roles(cache, &lent.row, id)?;
                        trust = Some(lent);
                        roles
                    }
                    Via::ApplicationCredential(credential_id) => {
                        let credential = self::application_credential(cache, credential_id)?;
                        let roles = credential_roles(cache, &credential.row, &user.row.id, id)?;
                        application_credential = Some(credential);
                        roles
                    }
                    Via::Oauth(granted_id) => {
                        let granted = oauth_grant(cache, granted_id, &user.row.id, id)?;
                        let roles = granted_roles(cache, &granted.row).ok_or_else(refused)?;
                        access_token = Some(granted);
                        roles
                    }
                };
                (ScopeFacts::Project(project, domain), roles)
            }
            (TokenScope::Domain(id), _) => {
                let target = AssignmentTarget::Domain(id.clone());
                let roles = effective_roles(cache, &user.row.id, &target);
                (ScopeFacts::Domain(enabled_domain(cache, id)?), roles)
            }
            (TokenScope::System, _) => {
                (ScopeFacts::System, effective_roles(cache, &user.row.id, &AssignmentTarget::System))
            }
        };
        if roles.is_empty() && !matches!(scope, ScopeFacts::Unscoped) {
            return Err(refused());
        }
        Ok(TokenFacts {
            methods: payload.methods,
            user,
            user_domain,
            scope,
            roles,
            trust,
            application_credential,
            access_token,
            audit_ids: payload.audit_ids,
            issued_at,
            expires_at,
        })
    }
}

/// Up to when tokens of a user for something were ended by an event.
pub(super) fn ended_up_to(cache: &Cache, user_id: &str, scope: &TokenScope) -> Option<Timestamp> {
    let user = cache.get::<User>(user_id).and_then(|user| user.row.tokens_from);
    let event = |key: String| cache.get::<Revocation>(&key).and_then(|event| event.row.issued_before);
    let place = match scope {
        TokenScope::Project(id) => event(format!("project/{id}")),
        TokenScope::Domain(id) => event(format!("domain/{id}")),
        _ => None,
    };
    user.max(place)
}

pub(super) fn enabled_user(cache: &Cache, id: &str) -> Result<Found<User>> {
    cache.get::<User>(id).filter(|user| user.row.enabled).ok_or_else(refused)
}

/// A trust that still holds.
pub(super) fn trust(cache: &Cache, id: &str) -> Result<Found<Trust>> {
    let trust = cache.get::<Trust>(id).ok_or_else(|| Error::not_found("Trust", id))?;
    if !holds(cache, &trust.row) {
        return Err(refused());
    }
    let people = [&trust.row.trustor_user_id, &trust.row.trustee_user_id];
    for id in people {
        let user = enabled_user(cache, id)?;
        enabled_domain(cache, &user.row.domain_id)?;
    }
    Ok(trust)
}

/// An application credential that still holds.
pub(super) fn application_credential(cache: &Cache, id: &str) -> Result<Found<ApplicationCredential>> {
    let credential = cache.get::<ApplicationCredential>(id).ok_or_else(refused)?;
    let expired = credential.row.expires_at.is_some_and(|at| at <= Timestamp::now());
    if expired { Err(refused()) } else { Ok(credential) }
}

/// What a user granted to a consumer of OAuth, as long as it holds.
fn oauth_grant(cache: &Cache, id: &str, user_id: &str, project_id: &str) -> Result<Found<OauthAccessToken>> {
    let found = cache.get::<OauthAccessToken>(id).filter(|found| {
        let granted = &found.row;
        granted.user_id == user_id
            && granted.project_id == project_id
            && granted.expires_at > Timestamp::now()
    });
    found.ok_or_else(refused)
}

/// What a trust lends, with what comes with it, as long as its trustor has all of it.
fn lent_roles(cache: &Cache, trust: &Trust, project_id: &str) -> Result<Vec<Found<Role>>> {
    if trust.project_id.as_deref() != Some(project_id) {
        return Err(refused());
    }
    let held = trustor_roles(cache, &trust.trustor_user_id, project_id);
    let lent = with_implied(cache, trust.roles.iter().cloned());
    if lent.iter().any(|role| !held.contains(role)) {
        return Err(Error::Forbidden { action: "a trust of roles that its trustor does not have any more" });
    }
    let roles = lent.iter().filter_map(|id| cache.get::<Role>(id));
    Ok(roles.filter(|role| role.row.domain_id.is_none()).collect())
}

/// What an application credential is good for, as long as its user has all of it.
fn credential_roles(
    cache: &Cache,
    credential: &ApplicationCredential,
    user_id: &str,
    project_id: &str,
) -> Result<Vec<Found<Role>>> {
    if credential.project_id != project_id || credential.user_id != user_id {
        return Err(refused());
    }
    let held = effective_roles(cache, user_id, &AssignmentTarget::Project(project_id.to_owned()));
    let find = |id: &String| held.iter().find(|role| role.row.id == *id).cloned().ok_or_else(refused);
    credential.roles.iter().map(find).collect()
}

fn timestamp(seconds: f64) -> Option<Timestamp> {
    // Bounds that every date of ours is within, so that the conversion is exact enough and defined.
    (0.0..1e11)
        .contains(&seconds)
        .then(|| Timestamp::from_millisecond((seconds * 1000.0) as i64).ok())
        .flatten()
}
