//! Who asks: what a validated token says, in the words of policy.

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
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Scope {
    /// Only for asking for another token.
    Unscoped,
    /// One project.
    Project(String),
    /// One domain.
    Domain(String),
    /// The whole deployment.
    System,
}

/// The one who asks, for the length of one request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// The user's id.
    pub user_id: String,
    /// The token's scope.
    pub scope: Scope,
    /// The strongest role in that scope; absent if unscoped.
    pub role: Option<RoleLevel>,
    /// The request's id, `req-<uuid>`, for logs and for what the request leaves behind.
    pub request_id: String,
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

    /// Whether the caller may see what belongs to `project_id`.
    pub fn may_read(&self, project_id: &str) -> bool {
        self.is_admin() || (self.project_id() == Some(project_id) && self.role.is_some())
    }

    /// Whether the caller may change what belongs to `project_id`.
    pub fn may_write(&self, project_id: &str) -> bool {
        self.is_admin() || (self.project_id() == Some(project_id) && self.role >= Some(RoleLevel::Member))
    }
}
