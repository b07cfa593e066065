//! The compute service (Nova). Its discovery documents are in [`crate::discovery`].

use axum::Router;

use crate::context::AppState;

/// The routes below `/compute`. A project id after the version is taken out before routing.
pub fn routes() -> Router<AppState> {
    Router::new()
}
