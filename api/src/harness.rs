//! For the tests of handlers: the whole router over a cloud of its own on a store in a temporary directory.

use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use control::service::auth::{Credential, DomainRef, NamedRef, ScopeWanted};
use control::settings::IdentitySettings;
use control::{Control, Settings};
use http_body_util::BodyExt;
use serde_json::Value;
use tokio::sync::OnceCell;
use tower::ServiceExt;

use crate::context::AppState;
use crate::router::router;

/// The administrator's password in every test.
pub(crate) const ADMIN_PASSWORD: &str = "correct horse";

/// A cloud for one test, with its administrator.
pub(crate) struct Harness {
    pub(crate) control: Arc<Control>,
    router: Router,
    admin_token: OnceCell<String>,
    directory: tempfile::TempDir,
}

/// An answer.
#[derive(Debug)]
pub(crate) struct Reply {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) bytes: bytes::Bytes,
}

impl Reply {
    /// The body as JSON; null if there is none.
    pub(crate) fn json(&self) -> Value {
        serde_json::from_slice(&self.bytes).unwrap_or(Value::Null)
    }

    /// A header.
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Harness {
    /// A cloud after its bootstrap.
    pub(crate) async fn new() -> Self {
        Self::with(IdentitySettings::default()).await
    }

    /// A cloud with rules of its own.
    pub(crate) async fn with(identity: IdentitySettings) -> Self {
        let directory = tempfile::tempdir().unwrap();
        let store = control::store::RedbStore::open(&directory.path().join("store.redb")).unwrap();
        let settings = Settings { identity, ..Settings::new("http://cloud.test", directory.path()) };
        let control = Control::open(Arc::new(store), settings).await.unwrap();
        control.bootstrap(ADMIN_PASSWORD.to_owned().into()).await.unwrap();
        let router = router(AppState::new(control.clone()));
        Self { control, router, admin_token: OnceCell::new(), directory }
    }

    /// Where the cloud keeps its files.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Sends a request.
    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Reply { status: parts.status, headers: parts.headers, bytes }
    }

    /// Sends a request with these headers and a JSON body, unless that is null.
    pub(crate) async fn call(
        &self,
        method: Method,
        path: &str,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Reply {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let body = if body.is_null() { Body::empty() } else { Body::from(body.to_string()) };
        self.send(request.header("content-type", "application/json").body(body).unwrap()).await
    }

    /// A token of the administrator's, scoped to the project `admin`; got once per cloud.
    pub(crate) async fn admin_token(&self) -> String {
        self.admin_token
            .get_or_init(|| async {
                let user = NamedRef::Name("admin".into(), DomainRef::Id("default".into()));
                let password = ADMIN_PASSWORD.to_owned().into();
                let credentials = vec![Credential::Password { user, password }];
                let (token, _) = self.control.token_issue(credentials, ScopeWanted::Default).await.unwrap();
                token.to_string()
            })
            .await
            .clone()
    }

    /// Sends a request as the administrator.
    pub(crate) async fn admin(&self, method: Method, path: &str, body: Value) -> Reply {
        let token = self.admin_token().await;
        self.call(method, path, &[("x-auth-token", &token)], body).await
    }

    /// GET with these headers.
    pub(crate) async fn get(&self, path: &str, headers: &[(&str, &str)]) -> Reply {
        self.call(Method::GET, path, headers, Value::Null).await
    }
}
