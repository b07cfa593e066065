//! What every handler is given: the state, who asks, the request's body, path and query. Extractors refuse with a
//! [`Fault`], which the frame of each service writes in that service's own form.
//!
//! Must never know: any one resource.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{FromRef, FromRequest, FromRequestParts, Query, Request};
use axum::http::request::Parts;
use axum::http::{HeaderMap, Method, Uri, header};
use control::Control;
use control::boolean;
use control::caller::Caller;
use http_body_util::{BodyExt, Limited};
use serde::de::DeserializeOwned;

use crate::audit::Seat;
use crate::error::Fault;
use crate::server::slow::TooSlow;
use crate::wording;

/// The longest JSON body in bytes: Nova's own limit is 112 KiB; user data and injected keys fit several times.
pub const JSON_BYTES_MAX: usize = 512 << 10;
/// How long a client may take to send a JSON body.
pub const JSON_TIMEOUT: Duration = Duration::from_secs(30);
/// The most query parameters one request may have; a name filter with hundreds of ids is still below.
pub const QUERY_PAIRS_MAX: usize = 1000;
/// The longest token in bytes: Keystone's Fernet tokens are at most 255, its JWS tokens a few kilobytes.
pub const TOKEN_BYTES_MAX: usize = 4096;

/// What all handlers share.
#[derive(Clone)]
pub struct AppState {
    /// The cloud.
    pub control: Arc<Control>,
}

impl AppState {
    /// The state of an API that serves `control`.
    pub fn new(control: Arc<Control>) -> Self {
        Self { control }
    }

    /// The URL that clients reach the port by, without a slash at the end.
    pub fn public_url(&self) -> &str {
        self.control.public_url()
    }
}

/// The services behind the one port. Each has its own way of saying what went wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Service {
    /// Keystone.
    Identity,
    /// Nova.
    Compute,
    /// Neutron.
    Network,
    /// Cinder.
    Volume,
    /// Glance.
    Image,
    /// Placement.
    Placement,
}

impl Service {
    /// Where it is on the one port.
    pub fn path(self) -> &'static str {
        match self {
            Self::Identity => "identity",
            Self::Compute => "compute",
            Self::Network => "network",
            Self::Volume => "volume",
            Self::Image => "image",
            Self::Placement => "placement",
        }
    }
}

/// The request's id, `req-<uuid>`; the frame makes it.
#[derive(Debug, Clone)]
pub struct RequestId(pub Arc<str>);

/// The request's target as the client wrote it, before slashes and project ids were taken out.
#[derive(Debug, Clone)]
pub struct OriginalTarget(pub Uri);

/// The project id that stood in the path (`/compute/v2.1/{project_id}/servers`).
#[derive(Debug, Clone)]
pub struct PathProject(pub String);

/// The one who asks, by a token that holds.
#[derive(Debug, Clone)]
pub struct Authenticated(pub Caller);

/// The token of the request as it came.
pub(crate) fn token_of(headers: &HeaderMap) -> Result<&str, Fault> {
    let missing = || Fault::unauthorized("The request you have made requires authentication.");
    let token = headers.get("x-auth-token").ok_or_else(missing)?;
    if token.is_empty() || token.len() > TOKEN_BYTES_MAX {
        return Err(missing());
    }
    token.to_str().map_err(|_| missing())
}

/// The request's id, for what is asked outside a frame too.
pub(crate) fn request_id_of(parts: &Parts) -> String {
    parts.extensions.get::<RequestId>().map(|id| id.0.to_string()).unwrap_or_else(new_request_id)
}

/// A new request id.
pub(crate) fn new_request_id() -> String {
    format!("req-{}", uuid::Uuid::new_v4().hyphenated())
}

impl FromRequestParts<AppState> for Authenticated {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Fault> {
        let token = token_of(&parts.headers)?;
        let mut caller = state.control.token_caller(token, request_id_of(parts)).await?;
        if matches!(parts.method, Method::PUT | Method::DELETE) {
            caller.if_revision = if_revision(&parts.headers)?;
        }
        if let Some(seat) = parts.extensions.get::<Seat>() {
            seat.take(&caller);
        }
        let path =
            parts.extensions.get::<OriginalTarget>().map_or(&parts.uri, |OriginalTarget(uri)| uri).path();
        if !may_request(&caller, parts.method.as_str(), path) {
            return Err(Fault::unauthorized("The token's access rules do not allow this request."));
        }
        // Nova and Cinder take a project id in the path, and it must be the token's.
        if let Some(PathProject(id)) = parts.extensions.get::<PathProject>()
            && caller.project_id() != Some(id)
            && !caller.is_admin()
        {
            return Err(Fault::malformed(format!(
                "Malformed request URL: URL's project_id '{id}' doesn't match Context's project_id '{}'",
                caller.project_id().unwrap_or("None")
            )));
        }
        Ok(Self(caller))
    }
}

/// The revision that a change is for (Network API: `If-Match: revision_number=N`); other conditions are nobody's here.
fn if_revision(headers: &HeaderMap) -> Result<Option<u64>, Fault> {
    let text = headers.get(header::IF_MATCH).and_then(|value| value.to_str().ok());
    let number = text.and_then(|text| text.trim().trim_matches('"').strip_prefix("revision_number="));
    let invalid = |_| Fault::malformed("Bad If-Match header: revision_number is not a number.");
    number.map(|number| number.trim().parse().map_err(invalid)).transpose()
}

/// Whether a token is good for a request: one of an application credential may be bounded to some. The rules name paths
/// as the service has them, without the prefix that it has on the one port.
fn may_request(caller: &Caller, method: &str, path: &str) -> bool {
    let (prefix, below) = path.trim_start_matches('/').split_once('/').unwrap_or((path, ""));
    let service = match prefix {
        "volume" => "block-storage",
        other => other,
    };
    let below = format!("/{below}");
    caller.may_request(service, method, &below)
        // Cinder's older types, which rules of other clouds name.
        || service == "block-storage"
            && ["volumev3", "volume"].iter().any(|service| caller.may_request(service, method, &below))
}

/// A JSON body, bounded in size and in time. Its form is `T`'s; what does not fit answers 400 in the service's form.
#[derive(Debug, Clone)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Fault;

    async fn from_request(request: Request, _: &S) -> Result<Self, Fault> {
        if !is_json(request.headers()) {
            return Err(Fault::UnsupportedMediaType);
        }
        let bytes = body_bytes(request, JSON_BYTES_MAX).await?;
        wording::read(&bytes).map(Body)
    }
}

/// Reads a whole body of at most `bytes_max` within [`JSON_TIMEOUT`].
pub(crate) async fn body_bytes(request: Request, bytes_max: usize) -> Result<bytes::Bytes, Fault> {
    let collected =
        tokio::time::timeout(JSON_TIMEOUT, Limited::new(request.into_body(), bytes_max).collect());
    match collected.await {
        Err(_) => Err(Fault::TimedOut),
        Ok(Ok(body)) => Ok(body.to_bytes()),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => {
            Err(control::error::Error::TooLarge { what: "the request body", limit_bytes: bytes_max as u64 }
                .into())
        }
        Ok(Err(error)) => Err(broken_off(error.as_ref())),
    }
}

/// Why a body came to no end.
pub(crate) fn broken_off(error: &(dyn std::error::Error + 'static)) -> Fault {
    let mut cause = Some(error);
    while let Some(error) = cause {
        if error.is::<TooSlow>() {
            return Fault::TimedOut;
        }
        cause = error.source();
    }
    Fault::malformed("the request body ended early")
}

/// What of a JSON body did not fit, in words that say nothing of Rust.
pub(crate) fn json_message(error: &serde_json::Error) -> String {
    format!("Invalid input for the request body: {error}")
}

/// Absent counts as JSON, since several clients leave it out; so does every `+json` (Glance's patches).
fn is_json(headers: &HeaderMap) -> bool {
    let Some(value) = headers.get(header::CONTENT_TYPE) else { return true };
    let Ok(value) = value.to_str() else { return false };
    let essence = value.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    essence == "application/json"
        || essence.starts_with("application/") && essence.ends_with("+json")
        || essence.starts_with("application/openstack-images-")
}

/// The segments of the path that the route names, decoded. What cannot be decoded is nothing we know: 404.
#[derive(Debug, Clone)]
pub struct Segments<T>(pub T);

impl<T: DeserializeOwned + Send, S: Send + Sync> FromRequestParts<S> for Segments<T> {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, Fault> {
        match axum::extract::Path::<T>::from_request_parts(parts, state).await {
            Ok(axum::extract::Path(segments)) => Ok(Self(segments)),
            Err(_) => Err(Fault::NoRoute),
        }
    }
}

/// The query's parameters in order; a key may come several times.
#[derive(Debug, Clone, Default)]
pub struct Filters {
    pairs: Vec<(String, String)>,
}

impl<S: Send + Sync> FromRequestParts<S> for Filters {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Fault> {
        Self::of(&parts.uri)
    }
}

impl Filters {
    /// The parameters of a URI.
    pub fn of(uri: &Uri) -> Result<Self, Fault> {
        let Query(pairs) = Query::<Vec<(String, String)>>::try_from_uri(uri)
            .map_err(|_| Fault::malformed("the query string is not UTF-8 in percent-encoding"))?;
        if pairs.len() > QUERY_PAIRS_MAX {
            return Err(Fault::malformed(format!("at most {QUERY_PAIRS_MAX} query parameters are allowed")));
        }
        Ok(Self { pairs })
    }

    /// All pairs.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.pairs
    }

    /// The last value of `key`, as Nova and Keystone take it.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.pairs.iter().rev().find(|(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether `key` is there at all.
    pub fn has(&self, key: &str) -> bool {
        self.pairs.iter().any(|(name, _)| name == key)
    }

    /// Every value of `key`, as Neutron takes it (any of them may match).
    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(name, _)| name == key).map(|(_, value)| value.as_str())
    }

    /// Whether a row whose `key` has this value is wanted: no such filter, or one that says so.
    pub fn allow(&self, key: &str, value: &str) -> bool {
        !self.has(key) || self.all(key).any(|wanted| wanted == value)
    }

    /// A yes or no, as Nova, Neutron and Cinder read it: by oslo's rule, strictly, so an empty text is neither.
    pub fn flag(&self, key: &str) -> Result<Option<bool>, Fault> {
        let Some(value) = self.get(key) else { return Ok(None) };
        boolean::from_text(value).map(Some).ok_or_else(|| {
            Fault::malformed(format!("Invalid value for query parameter {key}: {value} is not a boolean"))
        })
    }
}

/// The request's own URL, for `links`, and the same with another marker.
#[derive(Debug, Clone)]
pub struct RequestUrl {
    public_url: String,
    path: String,
    pairs: Vec<(String, String)>,
}

impl FromRequestParts<AppState> for RequestUrl {
    type Rejection = Fault;

    async fn from_request_parts(parts: &mut Parts, state: &AppState) -> Result<Self, Fault> {
        let original = parts.extensions.get::<OriginalTarget>().map_or(&parts.uri, |OriginalTarget(uri)| uri);
        Ok(Self {
            public_url: AppState::from_ref(state).public_url().to_owned(),
            path: original.path().to_owned(),
            pairs: Filters::of(original)?.pairs,
        })
    }
}

impl RequestUrl {
    /// Path and query below the public URL with `marker` in the place of any other.
    pub fn target_with_marker(&self, marker: Option<&str>) -> String {
        let kept = self.pairs.iter().filter(|(key, _)| key != "marker" && key != "page_reverse");
        let mut query = String::new();
        for (key, value) in kept.map(|(k, v)| (k.as_str(), v.as_str())).chain(marker.map(|m| ("marker", m))) {
            query.push(if query.is_empty() { '?' } else { '&' });
            percent_encode(key, &mut query);
            query.push('=');
            percent_encode(value, &mut query);
        }
        format!("{}{query}", self.path)
    }

    /// The whole URL with `marker` in the place of any other.
    pub fn with_marker(&self, marker: &str) -> String {
        format!("{}{}", self.public_url, self.target_with_marker(Some(marker)))
    }

    /// The whole URL as it was asked for.
    pub fn itself(&self) -> String {
        let marker = self.pairs.iter().find(|(key, _)| key == "marker").map(|(_, value)| value.as_str());
        format!("{}{}", self.public_url, self.target_with_marker(marker))
    }
}

/// Percent-encodes all but RFC 3986's unreserved characters.
fn percent_encode(text: &str, into: &mut String) {
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            into.push(char::from(byte));
        } else {
            into.push_str(&format!("%{byte:02X}"));
        }
    }
}

/// What most handlers answer.
pub type Answer<T> = Result<Json<T>, Fault>;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_take_python_booleans_and_repeated_keys() {
        let filters = Filters::of(&"/x?a=True&a=2&b=no&name=x%20y".parse().unwrap()).unwrap();
        assert_eq!(filters.get("a"), Some("2"));
        assert_eq!(filters.all("a").count(), 2);
        assert_eq!(filters.flag("b").unwrap(), Some(false));
        assert!(filters.allow("name", "x y") && !filters.allow("name", "z") && filters.allow("absent", "z"));
        assert!(filters.flag("name").is_err());
        let filters = Filters::of(&"/x?a=&b=maybe&c=%20T&d".parse().unwrap()).unwrap();
        assert_eq!((filters.flag("c").unwrap(), filters.flag("absent").unwrap()), (Some(true), None));
        for neither in ["a", "b", "d"] {
            assert!(filters.flag(neither).is_err(), "{neither}");
        }
    }

    #[test]
    fn marker_is_replaced_and_encoded() {
        let url = RequestUrl {
            public_url: "http://h".into(),
            path: "/a".into(),
            pairs: vec![("limit".into(), "1".into()), ("marker".into(), "old".into())],
        };
        assert_eq!(url.with_marker("a b"), "http://h/a?limit=1&marker=a%20b");
        assert_eq!(url.itself(), "http://h/a?limit=1&marker=old");
    }
}
