//! The placement service. Only its discovery document, in [`crate::discovery`], is there: hosts and what is taken of
//! them are the compute service's own, and this says so.

use crate::context::Authenticated;
use crate::error::Fault;
use crate::openapi::{Routes, any};

/// What Placement has and this cloud has not: any request to it answers 501.
const ABSENT: [&str; 7] = [
    "allocation_candidates",
    "allocations",
    "reshaper",
    "resource_classes",
    "resource_providers",
    "traits",
    "usages",
];

/// The routes below `/placement`.
pub fn routes() -> Routes {
    ABSENT.iter().fold(Routes::new(), |routes, name| {
        routes.route(&format!("/{name}"), any(absent)).route(&format!("/{name}/{{*rest}}"), any(absent))
    })
}

async fn absent(_: Authenticated) -> Fault {
    Fault::not_implemented("resource placement by clients")
}
