//! Rows of quotas: what is used and what may be.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// How many of one resource an owner has. It changes in the transactions that change the resource.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// `{owner}/{resource}`.
    pub id: String,
    /// How many.
    pub used: u64,
}

impl Usage {
    /// The id of the row of an owner and a resource.
    pub fn key(owner: &str, resource: &str) -> String {
        format!("{owner}/{resource}")
    }
}

/// Limits of one owner that differ from the defaults.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct QuotaLimits {
    /// The owner: a project.
    pub id: String,
    /// By the resource's name; −1 is without limit.
    pub limits: BTreeMap<String, i64>,
}
