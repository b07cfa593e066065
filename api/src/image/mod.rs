//! The image service (Glance, Image API v2). Its discovery documents are in [`crate::discovery`].

mod data;
mod description;
mod import;
mod info;
mod list;
mod location;
mod member;
mod metadef;
mod patch;
#[cfg(test)]
mod reads;
mod schema;

use jiff::Timestamp;

use crate::openapi::{Routes, delete, get, post, put};

pub(crate) use list::is_listed;

/// The routes below `/image`.
pub fn routes() -> Routes {
    Routes::new()
        .route("/v2/images", get(list::list).post(description::create))
        .route(
            "/v2/images/{id}",
            get(description::show).patch(description::update).delete(description::delete),
        )
        .route("/v2/images/{id}/file", put(data::upload).get(data::download))
        .route("/v2/images/{id}/actions/deactivate", post(description::deactivate))
        .route("/v2/images/{id}/actions/reactivate", post(description::reactivate))
        .route("/v2/images/{id}/tags/{tag}", put(description::tag).delete(description::untag))
        .route("/v2/images/{id}/members", get(member::list).post(member::add))
        .route(
            "/v2/images/{id}/members/{project}",
            get(member::show).put(member::update).delete(member::remove),
        )
        .route("/v2/images/{id}/locations", get(location::list).post(location::add))
        .route("/v2/schemas/{name}", get(schema::show))
        .route("/v2/schemas/metadefs/{name}", get(schema::show_metadef))
        .route("/v2/images/{id}/stage", put(data::stage))
        .route("/v2/images/{id}/import", post(import::import))
        .route("/v2/images/{id}/tasks", get(import::tasks_of))
        .route("/v2/tasks", get(import::list_tasks).post(import::create))
        .route("/v2/tasks/{id}", get(import::show).delete(import::delete))
        .route("/v2/stores/{store}/{id}", delete(import::delete_from_store))
        .route("/v2/info/import", get(import::methods))
        .route("/v2/info/stores", get(info::stores))
        .route("/v2/info/stores/detail", get(info::stores_detail))
        .route("/v2/info/usage", get(info::usage))
        .route("/v2/cache", get(info::no_cache).delete(info::no_cache))
        .route("/v2/cache/{id}", put(info::no_cache).delete(info::no_cache))
        .route("/v2/cached_images", get(info::no_cache).delete(info::no_cache))
        .nest("/v2/metadefs", metadef::routes())
}

/// Times as Glance writes them.
fn time(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests;
