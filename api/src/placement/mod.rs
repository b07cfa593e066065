//! The placement service. Only its discovery document, in [`crate::discovery`], is there: hosts and what is taken of
//! them are the compute service's own, and this says so.

use axum::Router;
use axum::routing::any;

use crate::context::{AppState, Authenticated};
use crate::error::Fault;

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
pub fn routes() -> Router<AppState> {
    ABSENT.iter().fold(Router::new(), |routes, name| {
        routes.route(&format!("/{name}"), any(absent)).route(&format!("/{name}/{{*rest}}"), any(absent))
    })
}

async fn absent(_: Authenticated) -> Fault {
    Fault::not_implemented("resource placement by clients")
}
