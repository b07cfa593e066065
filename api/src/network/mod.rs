//! The network service (Neutron). Its discovery documents are in [`crate::discovery`].

use axum::Router;

use crate::context::AppState;

/// The routes below `/network`.
pub fn routes() -> Router<AppState> {
    Router::new()
}
