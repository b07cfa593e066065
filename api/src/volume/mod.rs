//! The block storage service (Cinder). Its discovery documents are in [`crate::discovery`].

use axum::Router;

use crate::context::AppState;

/// The routes below `/volume`.
pub fn routes() -> Router<AppState> {
    Router::new()
}
