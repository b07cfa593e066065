//! The image service (Glance). Its discovery documents are in [`crate::discovery`].

use axum::Router;

use crate::context::AppState;

/// The routes below `/image`.
pub fn routes() -> Router<AppState> {
    Router::new()
}
