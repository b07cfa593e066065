//! The identity service (Keystone). Its discovery documents are in [`crate::discovery`].

use axum::Router;

use crate::context::AppState;

/// The routes below `/identity`.
pub fn routes() -> Router<AppState> {
    Router::new()
}
