//! What a request for a token says: by what its caller proves who it is, and for what scope.

use control::service::auth::oauth::OauthRequest;
use control::service::auth::{ApplicationCredentialRef, Credential, DomainRef, NamedRef, ScopeWanted};
use serde::Deserialize;
use serde_json::Value;
use zeroize::Zeroizing;

use crate::error::Fault;
use crate::identity::secret;

#[derive(Deserialize)]
pub(crate) struct AuthBody {
    pub(super) auth: Auth,
}

#[derive(Deserialize)]
pub(super) struct Auth {
    pub(super) identity: Identity,
    pub(super) scope: Option<ScopeBody>,
}

#[derive(Deserialize)]
pub(super) struct Identity {
    methods: Vec<String>,
    password: Option<PasswordBody>,
    token: Option<TokenBody>,
    application_credential: Option<ApplicationCredentialBody>,
}

#[derive(Deserialize)]
struct ApplicationCredentialBody {
    id: Option<String>,
    name: Option<String>,
    user: Option<UserBody>,
    #[serde(default, deserialize_with = "secret")]
    secret: Option<Zeroizing<String>>,
}

#[derive(Deserialize)]
struct PasswordBody {
    user: UserBody,
}

#[derive(Deserialize)]
struct UserBody {
    id: Option<String>,
    name: Option<String>,
    domain: Option<DomainBody>,
    #[serde(default, deserialize_with = "secret")]
    password: Option<Zeroizing<String>>,
}

#[derive(Deserialize)]
struct TokenBody {
    #[serde(default, deserialize_with = "secret")]
    id: Option<Zeroizing<String>>,
}

#[derive(Deserialize)]
struct DomainBody {
    id: Option<String>,
    name: Option<String>,
}

#[derive(Deserialize)]
struct ProjectBody {
    id: Option<String>,
    name: Option<String>,
    domain: Option<DomainBody>,
}

#[derive(Deserialize)]
#[serde(untagged)]
pub(super) enum ScopeBody {
    Word(String),
    Parts(Box<Parts>),
}

#[derive(Deserialize)]
pub(super) struct Parts {
    project: Option<ProjectBody>,
    domain: Option<DomainBody>,
    system: Option<SystemBody>,
    #[serde(rename = "OS-TRUST:trust")]
    trust: Option<TrustBody>,
    /// The same word as `"unscoped"` alone.
    unscoped: Option<Value>,
}

#[derive(Deserialize)]
struct TrustBody {
    id: String,
}

#[derive(Deserialize)]
struct SystemBody {
    all: bool,
}

fn missing(what: &str) -> Fault {
    Fault::malformed(format!("Expecting to find {what} in the request body."))
}

fn domain_ref(body: Option<DomainBody>) -> Result<DomainRef, Fault> {
    match body {
        Some(DomainBody { id: Some(id), .. }) => Ok(DomainRef::Id(id)),
        Some(DomainBody { name: Some(name), .. }) => Ok(DomainRef::Name(name)),
        _ => Err(missing("domain")),
    }
}

fn named_ref(
    what: &str,
    id: Option<String>,
    name: Option<String>,
    domain: Option<DomainBody>,
) -> Result<NamedRef, Fault> {
    match (id, name) {
        (Some(id), _) => Ok(NamedRef::Id(id)),
        (None, Some(name)) => Ok(NamedRef::Name(name, domain_ref(domain)?)),
        (None, None) => Err(missing(what)),
    }
}

/// The proofs of a login; `oauth`: what its request says of a signature of OAuth.
pub(super) fn credentials(
    identity: Identity,
    oauth: impl Fn() -> Result<OauthRequest, Fault>,
) -> Result<Vec<Credential>, Fault> {
    let Identity { methods, mut password, mut token, mut application_credential } = identity;
    let mut credentials = Vec::new();
    for method in methods {
        match method.as_str() {
            "password" => {
                let Some(PasswordBody { user }) = password.take() else { return Err(missing("password")) };
                let password = user.password.ok_or_else(|| missing("user password"))?;
                let user = named_ref("user", user.id, user.name, user.domain)?;
                credentials.push(Credential::Password { user, password });
            }
            "token" => {
                let id = token.take().and_then(|token| token.id).ok_or_else(|| missing("token"))?;
                credentials.push(Credential::Token(id));
            }
            "application_credential" => {
                let given = application_credential.take().ok_or_else(|| missing("application_credential"))?;
                credentials.push(by_application_credential(given)?);
            }
            "oauth1" => credentials.push(Credential::Oauth(Box::new(oauth()?))),
            // Keystone's own answer to a method that is not configured.
            _ => return Err(Fault::unauthorized("Attempted to authenticate with an unsupported method.")),
        }
    }
    if credentials.is_empty() { Err(missing("methods")) } else { Ok(credentials) }
}

fn by_application_credential(given: ApplicationCredentialBody) -> Result<Credential, Fault> {
    let secret = given.secret.ok_or_else(|| missing("application credential secret"))?;
    let credential = match (given.id, given.name, given.user) {
        (Some(id), _, _) => ApplicationCredentialRef::Id(id),
        (None, Some(name), Some(user)) => {
            ApplicationCredentialRef::Name(named_ref("user", user.id, user.name, user.domain)?, name)
        }
        _ => return Err(missing("application credential id, or name and user")),
    };
    Ok(Credential::ApplicationCredential { credential, secret })
}

/// The scope that is asked for.
pub(super) fn scope_wanted(scope: Option<ScopeBody>) -> Result<ScopeWanted, Fault> {
    let wrong =
        || Fault::malformed("scope must be one of project, domain, system, OS-TRUST:trust or \"unscoped\"");
    let parts = match scope {
        None => return Ok(ScopeWanted::Default),
        Some(ScopeBody::Word(word)) if word == "unscoped" => return Ok(ScopeWanted::Unscoped),
        Some(ScopeBody::Word(_)) => return Err(wrong()),
        Some(ScopeBody::Parts(parts)) => *parts,
    };
    match parts {
        Parts { project: Some(project), domain: None, system: None, trust: None, unscoped: None } => {
            let project = named_ref("project", project.id, project.name, project.domain)?;
            Ok(ScopeWanted::Project(project))
        }
        Parts { project: None, domain: Some(domain), system: None, trust: None, unscoped: None } => {
            Ok(ScopeWanted::Domain(domain_ref(Some(domain))?))
        }
        Parts {
            project: None,
            domain: None,
            system: Some(SystemBody { all: true }),
            trust: None,
            unscoped: None,
        } => Ok(ScopeWanted::System),
        Parts { project: None, domain: None, system: None, trust: Some(trust), unscoped: None } => {
            Ok(ScopeWanted::Trust(trust.id))
        }
        Parts { project: None, domain: None, system: None, trust: None, unscoped: Some(_) } => {
            Ok(ScopeWanted::Unscoped)
        }
        _ => Err(wrong()),
    }
}
