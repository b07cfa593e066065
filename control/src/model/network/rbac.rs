//! Rows of RBAC policies.

use serde::{Deserialize, Serialize};

/// What can be shared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ObjectType {
    /// A network.
    Network,
    /// A security group.
    SecurityGroup,
    /// An address scope.
    AddressScope,
    /// A subnet pool.
    Subnetpool,
    /// An address group.
    AddressGroup,
    /// A QoS policy.
    QosPolicy,
}

/// What a policy lets its target do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    /// Use it as if it were its own.
    AccessAsShared,
    /// Use a network as one that leads outside.
    AccessAsExternal,
}

/// That an object is shared with a project, or with all.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RbacPolicy {
    /// `{object}/{id}`, so that an object's policies are found at once.
    pub key: String,
    /// Its id.
    pub id: String,
    /// The owner's project.
    pub project_id: String,
    /// What kind of thing is shared.
    pub object_type: ObjectType,
    /// Which one.
    pub object_id: String,
    /// What for.
    pub action: Access,
    /// With which project; `*` is all.
    pub target: String,
    /// It says what the object itself says (`shared`), and is no quota's matter.
    pub implied: bool,
}
