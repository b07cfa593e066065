//! The placement service. Its discovery documents are in [`crate::discovery`].

use axum::Router;

use crate::context::AppState;

/// The routes below `/placement`.
pub fn routes() -> Router<AppState> {
    Router::new()
}
