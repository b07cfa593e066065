//! Who asks: what a validated token says, in the words of policy.

use std::sync::Arc;

use crate::policy::Policy;

/// The roles every cloud has; each implies the next.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum RoleLevel {
    /// Reads its project's resources.
    Reader,
    /// Makes and changes them.
    Member,
    /// Also assigns roles below its own within its domain.
    Manager,
    /// Everything, in every project.
    Admin,
}

/// What a token is good for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Scope {
    /// Only for asking for another token.
    #[default]
    Unscoped,
    /// One project.
    Project(String),
    /// One domain.
    Domain(String),
    /// The whole deployment.
    System,
}

/// One kind of request that a token is bounded to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AllowedRequest {
    /// The service's type, for example `compute`.
    pub service: String,
    /// `GET` and the like.
    pub method: String,
    /// The path, with `{name}` and `*` for one part and `**` for any number.
    pub path: String,
}

impl AllowedRequest {
    /// Whether this request is of the kind.
    pub fn allows(&self, service: &str, method: &str, path: &str) -> bool {
        let segments =
            |path: &'_ str| path.trim_matches('/').split('/').map(str::to_owned).collect::<Vec<_>>();
        self.service == service
            && self.method.eq_ignore_ascii_case(method)
            && path_matches(&segments(&self.path), &segments(path))
    }
}

/// `**` takes any number of segments, so what follows it is tried at each; patterns are short (see their `_MAX`).
fn path_matches(pattern: &[String], path: &[String]) -> bool {
    match pattern.split_first() {
        None => path.is_empty(),
        Some((first, rest)) if first == "**" => (0..=path.len()).any(|at| path_matches(rest, &path[at..])),
        Some((first, rest)) => {
            let any = first == "*" || first.starts_with('{') && first.ends_with('}');
            path.split_first()
                .is_some_and(|(segment, path)| (any || first == segment) && path_matches(rest, path))
        }
    }
}

/// On whose behalf a token is used, where it is not simply its user's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Delegation {
    /// The user logged in.
    #[default]
    None,
    /// By an application credential.
    ApplicationCredential {
        /// Its id.
        id: String,
        /// May make further credentials and trusts.
        unrestricted: bool,
        /// What alone it may be used for.
        allowed: Option<Vec<AllowedRequest>>,
    },
    /// By a trust.
    Trust {
        /// Its id.
        id: String,
        /// Who logged in; the user is the trustor if the trust impersonates.
        trustee_user_id: String,
    },
    /// By an EC2 credential.
    Ec2,
    /// By an access token of OAuth.
    Oauth {
        /// Its id.
        access_token_id: String,
    },
}

/// The one who asks, for the length of one request.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Caller {
    /// The user's id.
    pub user_id: String,
    /// The user's domain.
    pub user_domain_id: String,
    /// The token's scope.
    pub scope: Scope,
    /// The strongest role in that scope; absent if unscoped.
    pub role: Option<RoleLevel>,
    /// The names of all roles in that scope, implied ones included.
    pub roles: Vec<String>,
    /// On whose behalf.
    pub delegation: Delegation,
    /// The request's id, `req-<uuid>`, for logs and for what the request leaves behind.
    pub request_id: String,
    /// The revision that the request's resource must have, where the request says so (Network API: `If-Match`).
    pub if_revision: Option<u64>,
    /// The rules of the cloud that is asked.
    pub policy: Arc<Policy>,
}

impl Caller {
    /// The project the token is scoped to.
    pub fn project_id(&self) -> Option<&str> {
        match &self.scope {
            Scope::Project(id) => Some(id),
            _ => None,
        }
    }

    /// Whether everything in every project is allowed.
    pub fn is_admin(&self) -> bool {
        self.role == Some(RoleLevel::Admin)
    }

    /// Whether the token carries this role, given or implied.
    pub fn has_role(&self, name: &str) -> bool {
        self.roles.iter().any(|role| role == name)
    }

    /// Whether what belongs to `project_id` can be the caller's to see, whatever the policy says: its own project's,
    /// and for administrators all.
    pub fn reaches(&self, project_id: &str) -> bool {
        self.is_admin() || self.project_id() == Some(project_id)
    }

    /// Whether the caller may see what belongs to `project_id`.
    pub fn may_read(&self, project_id: &str) -> bool {
        self.is_admin() || (self.project_id() == Some(project_id) && self.role.is_some())
    }

    /// Whether the caller may change what belongs to `project_id`.
    pub fn may_write(&self, project_id: &str) -> bool {
        self.is_admin() || (self.project_id() == Some(project_id) && self.role >= Some(RoleLevel::Member))
    }

    /// Whether the caller may see all that the identity service knows.
    pub fn reads_system(&self) -> bool {
        self.is_admin() || (self.scope == Scope::System && self.role.is_some())
    }

    /// Whether the caller may see users, groups and projects of a domain.
    pub fn reads_domain(&self, domain_id: &str) -> bool {
        self.reads_system() || (self.is_in_domain(domain_id) && self.role.is_some())
    }

    /// Whether the caller may change users, groups and projects of a domain.
    pub fn manages_domain(&self, domain_id: &str) -> bool {
        self.is_admin() || (self.is_in_domain(domain_id) && self.role >= Some(RoleLevel::Manager))
    }

    fn is_in_domain(&self, domain_id: &str) -> bool {
        matches!(&self.scope, Scope::Domain(id) if id == domain_id)
    }

    /// Whether the token may make or change what hands rights on: one that was handed on itself may not, unless its
    /// application credential is unrestricted.
    pub fn may_delegate(&self) -> bool {
        match &self.delegation {
            Delegation::None | Delegation::Trust { .. } => true,
            Delegation::ApplicationCredential { unrestricted, .. } => *unrestricted,
            Delegation::Ec2 | Delegation::Oauth { .. } => false,
        }
    }

    /// Whether the token is good for this request to a service of this type.
    pub fn may_request(&self, service: &str, method: &str, path: &str) -> bool {
        match &self.delegation {
            Delegation::ApplicationCredential { allowed: Some(rules), .. } => {
                rules.iter().any(|rule| rule.allows(service, method, path))
            }
            _ => true,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(path: &str) -> AllowedRequest {
        AllowedRequest { service: "compute".into(), method: "GET".into(), path: path.into() }
    }

    #[test]
    fn access_rules_take_names_stars_and_double_stars() {
        assert!(rule("/v2.1/servers").allows("compute", "GET", "/v2.1/servers"));
        assert!(!rule("/v2.1/servers").allows("compute", "POST", "/v2.1/servers"));
        assert!(!rule("/v2.1/servers").allows("image", "GET", "/v2.1/servers"));
        assert!(!rule("/v2.1/servers").allows("compute", "GET", "/v2.1/servers/1"));
        assert!(rule("/v2.1/servers/{server_id}/ips").allows("compute", "GET", "/v2.1/servers/1/ips"));
        assert!(rule("/v2.1/*/1").allows("compute", "GET", "/v2.1/servers/1"));
        assert!(rule("/v2.1/**").allows("compute", "GET", "/v2.1/servers/1/ips"));
        assert!(rule("**").allows("compute", "GET", "/"));
    }

    #[test]
    fn domains_are_read_and_managed_by_their_own_only() {
        let caller =
            Caller { scope: Scope::Domain("d".into()), role: Some(RoleLevel::Manager), ..Caller::default() };
        assert!(caller.manages_domain("d") && !caller.manages_domain("e") && !caller.reads_domain("e"));
        let reader = Caller { role: Some(RoleLevel::Reader), ..caller };
        assert!(reader.reads_domain("d") && !reader.manages_domain("d") && !reader.reads_system());
    }
}
