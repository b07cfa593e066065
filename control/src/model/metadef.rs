//! Rows of the image service's catalogue of metadata definitions: which properties images, flavors and volumes may
//! have, and what they mean. The cloud only keeps them; what they say is between those who write and read them.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

/// A namespace of definitions.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetadefNamespace {
    /// Its id, which nobody sees: the name may change, its entries stay.
    pub id: String,
    /// Its name, unique in the cloud.
    pub name: String,
    /// What people call it.
    pub display_name: Option<String>,
    /// What it is about.
    pub description: Option<String>,
    /// `public` or `private`.
    pub visibility: String,
    /// Refuses deletion of it and of what is in it.
    pub protected: bool,
    /// The owner's project.
    pub owner: String,
    /// The resources that it is about.
    pub resource_types: Vec<ResourceTypeAssociation>,
    /// How many entries it has; counted here so that one added while it is deleted is a conflict.
    pub entries: u32,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// That a namespace is about a kind of resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceTypeAssociation {
    /// The kind, such as `OS::Glance::Image`.
    pub name: String,
    /// What its properties' names begin with on such a resource.
    pub prefix: Option<String>,
    /// Which of several sets of properties is meant (`image` or `volume` metadata of a volume).
    pub properties_target: Option<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What an entry of a namespace is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MetadefKind {
    /// A group of properties.
    Object,
    /// One property.
    Property,
    /// A word.
    Tag,
}

impl MetadefKind {
    /// As it stands in ids.
    pub fn name(self) -> &'static str {
        match self {
            Self::Object => "object",
            Self::Property => "property",
            Self::Tag => "tag",
        }
    }
}

/// An entry of a namespace.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct MetadefEntry {
    /// `{namespace}/{kind}/{name}`.
    pub id: String,
    /// The namespace's id.
    pub namespace_id: String,
    /// What it is.
    pub kind: MetadefKind,
    /// Its name, unique among its kind in the namespace.
    pub name: String,
    /// What it says: a property's JSON schema; an object's description, required names and properties.
    pub body: Map<String, Value>,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

impl MetadefEntry {
    /// The id of an entry.
    pub fn key(namespace_id: &str, kind: MetadefKind, name: &str) -> String {
        format!("{}{name}", Self::prefix(namespace_id, kind))
    }

    /// What the ids of a namespace's entries of a kind begin with.
    pub fn prefix(namespace_id: &str, kind: MetadefKind) -> String {
        format!("{namespace_id}/{}/", kind.name())
    }
}
