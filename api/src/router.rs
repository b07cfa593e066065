//! Every route in one table, and the frame around each service: request id, microversion, panics caught, and faults
//! written in the service's own form.

use std::panic::AssertUnwindSafe;
use std::sync::{Arc, LazyLock};

use axum::extract::{Request, State};
use axum::http::{HeaderName, HeaderValue, Uri, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::{Extension, Router};
use bytes::Bytes;
use futures_util::FutureExt;
use tower::ServiceExt;

use crate::audit::Audit;
use crate::context::{AppState, OriginalTarget, PathProject, RequestId, Service, new_request_id};
use crate::error::{Fault, render};
use crate::microversion;
use crate::openapi::Routes;
use crate::{compute, discovery, identity, image, metrics, network, placement, volume};

const REQUEST_ID: HeaderName = HeaderName::from_static("x-openstack-request-id");
const REQUEST_ID_COMPUTE: HeaderName = HeaderName::from_static("x-compute-request-id");

/// The whole API.
pub fn router(state: AppState) -> Router {
    let nest = |router: Router<AppState>, (service, routes): (Service, Routes)| {
        let served = framed(service, described(service, routes, &state), &state);
        router.nest(&format!("/{}", service.path()), served)
    };
    let services = services()
        .into_iter()
        .fold(Router::new(), nest)
        // What is below no service answers as Keystone, where every client begins.
        .merge(framed(
            Service::Identity,
            Router::new().route("/metrics", axum::routing::get(metrics::show)),
            &state,
        ))
        .with_state(state);
    // Around the router, not a layer in it: routes are chosen by the rewritten path.
    Router::new().fallback(move |request: Request| {
        let services = services.clone();
        async move {
            match services.oneshot(rewritten(request)).await {
                Ok(response) => response,
                Err(never) => match never {},
            }
        }
    })
}

/// The services and their routes.
pub(crate) fn services() -> [(Service, Routes); 6] {
    [
        (Service::Identity, discovery::identity().merge(identity::routes())),
        (Service::Compute, discovery::compute().merge(compute::routes())),
        (Service::Network, discovery::network().merge(network::routes())),
        (Service::Volume, discovery::volume().merge(volume::routes())),
        (Service::Image, discovery::image().merge(image::routes())),
        (Service::Placement, discovery::placement().merge(placement::routes())),
    ]
}

/// The routes, and beside them the description of them all, which is made when it is first asked for.
fn described(service: Service, routes: Routes, state: &AppState) -> Router<AppState> {
    let (router, description) = routes.into_parts();
    let url = format!("{}/{}", state.public_url(), service.path());
    let document =
        Arc::new(LazyLock::new(move || Bytes::from(description.document(service, &url).to_string())));
    let answer = async move || ([(header::CONTENT_TYPE, "application/json")], Bytes::clone(&document));
    router.route("/openapi.json", axum::routing::get(answer))
}

fn framed(service: Service, routes: Router<AppState>, state: &AppState) -> Router<AppState> {
    routes
        .fallback(async || Fault::NoRoute)
        .method_not_allowed_fallback(no_method)
        .layer(middleware::from_fn_with_state((service, state.clone()), frame))
}

/// A slash at the end of a collection is the beginning of an id, of which nothing follows: nothing is there.
async fn no_method(target: Option<Extension<OriginalTarget>>) -> Fault {
    match target {
        Some(Extension(OriginalTarget(uri))) if uri.path().ends_with('/') => Fault::NoRoute,
        _ => Fault::NoMethod,
    }
}

/// What every request of a service goes through.
async fn frame(
    State((service, state)): State<(Service, AppState)>,
    mut request: Request,
    next: Next,
) -> Response {
    let request_id = new_request_id();
    request.extensions_mut().insert(RequestId(request_id.as_str().into()));
    let path = request.extensions().get::<OriginalTarget>().map_or(request.uri(), |OriginalTarget(uri)| uri);
    let path = path.path().to_owned();
    let audit = Audit::of(&mut request, &path);
    let offer = microversion::offer(service);
    let asked = offer.map(|offer| offer.asked(request.headers())).transpose();
    let mut response = match &asked {
        Ok(version) => {
            if let Some(version) = version {
                request.extensions_mut().insert(*version);
            }
            caught(next.run(request)).await
        }
        Err(_) => Fault::Panicked.into_response(),
    };
    let version = match asked {
        Ok(version) => version,
        Err(fault) => {
            response = fault.into_response();
            None
        }
    };
    if let Some(fault) = response.extensions_mut().remove::<Arc<Fault>>() {
        let allow = response.headers_mut().remove(header::ALLOW);
        response = render(service, &fault, &request_id, state.public_url());
        if let Some(allow) = allow {
            response.headers_mut().insert(header::ALLOW, allow);
        }
    }
    let headers = response.headers_mut();
    if let Some(offer) = offer {
        offer.echo(version, headers);
    }
    if service == Service::Identity {
        headers.append(header::VARY, HeaderValue::from_static("X-Auth-Token"));
    }
    if let Ok(value) = HeaderValue::from_str(&request_id) {
        if matches!(service, Service::Compute | Service::Volume) {
            headers.insert(REQUEST_ID_COMPUTE, value.clone());
        }
        headers.insert(REQUEST_ID, value);
    }
    if let Some(audit) = audit {
        audit.write(service, response.status(), &request_id);
    }
    response
}

/// A handler that panics breaks one request, not the API.
async fn caught(response: impl Future<Output = Response>) -> Response {
    AssertUnwindSafe(response).catch_unwind().await.unwrap_or_else(|_| Fault::Panicked.into_response())
}

/// Takes trailing slashes out of the path, and a project id after Nova's and Cinder's version; keeps the original.
fn rewritten(mut request: Request) -> Request {
    let original = request.uri().clone();
    let (path, project) = canonical(original.path());
    if path != original.path() {
        let target = match original.query() {
            Some(query) => format!("{path}?{query}"),
            None => path,
        };
        // Every part was a part of a valid URI.
        if let Ok(uri) = target.parse::<Uri>() {
            *request.uri_mut() = uri;
        }
    }
    if let Some(project) = project {
        request.extensions_mut().insert(PathProject(project));
    }
    request.extensions_mut().insert(OriginalTarget(original));
    request
}

pub(crate) fn canonical(path: &str) -> (String, Option<String>) {
    // Glance takes a slash after a collection for the start of an id.
    let whole = path.strip_prefix("/image/v2/").is_some_and(|below| !below.is_empty());
    let trimmed = if whole { path } else { path.trim_end_matches('/') };
    let trimmed = if trimmed.is_empty() { "/" } else { trimmed };
    for prefix in ["/compute/v2.1/", "/volume/v3/"] {
        if let Some(rest) = trimmed.strip_prefix(prefix) {
            let (first, below) = rest.split_once('/').map_or((rest, ""), |(first, below)| (first, below));
            if is_project_id(first) {
                let whole = format!("{prefix}{below}");
                return (whole.trim_end_matches('/').to_owned(), Some(first.to_owned()));
            }
        }
    }
    (trimmed.to_owned(), None)
}

/// Keystone's ids are 32 hexadecimal digits; no resource's name is.
fn is_project_id(segment: &str) -> bool {
    let digits = segment.bytes().filter(|byte| *byte != b'-');
    digits.clone().count() == 32 && digits.clone().all(|byte| byte.is_ascii_hexdigit())
}

#[cfg(test)]
mod tests;
