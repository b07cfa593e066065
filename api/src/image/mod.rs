//! The image service (Glance, Image API v2). Its discovery documents are in [`crate::discovery`].

mod data;
mod image;
mod list;
mod member;
mod patch;
mod schema;

use axum::Router;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post, put};
use jiff::Timestamp;

use crate::context::AppState;

/// The routes below `/image`.
pub fn routes() -> Router<AppState> {
    Router::new()
        .route("/v2/images", get(list::list).post(image::create))
        .route("/v2/images/{id}", get(image::show).patch(image::update).delete(image::delete))
        .route("/v2/images/{id}/file", put(data::upload).get(data::download))
        .route("/v2/images/{id}/actions/deactivate", post(image::deactivate))
        .route("/v2/images/{id}/actions/reactivate", post(image::reactivate))
        .route("/v2/images/{id}/tags/{tag}", put(image::tag).delete(image::untag))
        .route("/v2/images/{id}/members", get(member::list).post(member::add))
        .route(
            "/v2/images/{id}/members/{project}",
            get(member::show).put(member::update).delete(member::remove),
        )
        .route("/v2/schemas/{name}", get(schema::show))
        .route("/v2/info/import", get(schema::import))
}

/// No content.
fn done() -> Response {
    StatusCode::NO_CONTENT.into_response()
}

/// Times as Glance writes them.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests;
