//! For the tests of handlers: the whole router over a cloud of its own on a store in a temporary directory.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Method, Request, StatusCode};
use control::agent::host;
use control::driver::fake::FakeDriver;
use control::policy::Policy;
use control::service::auth::{Credential, DomainRef, NamedRef, ScopeWanted};
use control::settings::IdentitySettings;
use control::{Control, Settings};
use http_body_util::BodyExt;
use serde_json::{Value, json};
use tokio::sync::OnceCell;
use tower::ServiceExt;

use crate::context::AppState;
use crate::openapi::conform;
use crate::router::router;

/// The administrator's password in every test.
pub(crate) const ADMIN_PASSWORD: &str = "correct horse";

/// A cloud for one test, with its administrator.
pub(crate) struct Harness {
    pub(crate) control: Arc<Control>,
    router: Router,
    admin_token: OnceCell<String>,
    store: Arc<control::store::RedbStore>,
    directory: Arc<tempfile::TempDir>,
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
        let directory = Arc::new(tempfile::tempdir().unwrap());
        let store = control::store::RedbStore::open(&directory.path().join("store.redb")).unwrap();
        let volumes_dir = directory.path().join("volumes");
        // Fake hosts are on whichever interfaces are said.
        let providers = ["outside=eth1", "physnet1=eth2,100-101"].map(|text| text.parse().unwrap()).into();
        let settings = Settings {
            identity,
            volumes_dir,
            providers,
            ..Settings::new("http://cloud.test", directory.path())
        };
        let cloud = Self::open(Arc::new(store), directory, settings).await;
        cloud.control.bootstrap(ADMIN_PASSWORD.to_owned().into()).await.unwrap();
        cloud
    }

    /// The same cloud, with all that is in it, under a policy file.
    pub(crate) async fn ruled(&self, policy: &str) -> Self {
        let policy = Arc::new(Policy::parse(policy).unwrap());
        let settings = Settings { policy, ..Settings::new("http://cloud.test", self.directory.path()) };
        Self::open(self.store.clone(), self.directory.clone(), settings).await
    }

    async fn open(
        store: Arc<control::store::RedbStore>,
        directory: Arc<tempfile::TempDir>,
        settings: Settings,
    ) -> Self {
        let control = Control::open(store.clone(), settings).await.unwrap();
        let router = router(AppState::new(control.clone()));
        Self { control, router, admin_token: OnceCell::new(), store, directory }
    }

    /// Gives the cloud a host that pretends, and what works towards what is wanted.
    pub(crate) async fn start_host(&self, driver: FakeDriver) {
        self.control.start_reconcilers();
        let (near, far) = tokio::io::duplex(1 << 20);
        let agents = self.control.agents().clone();
        tokio::spawn(async move { agents.serve(near, None).await });
        tokio::spawn(host::serve(far, Arc::new(driver)));
        for _ in 0..500 {
            let hosts = self.admin(Method::GET, "/compute/v2.1/os-hypervisors", Value::Null).await;
            if !hosts.json()["hypervisors"][0].is_null() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("the host does not appear");
    }

    /// A token of a new user who has this role in the administrator's project.
    pub(crate) async fn user_token(&self, name: &str, role: &str) -> String {
        let found = |reply: Reply, many: &str| {
            let id = reply.json()[many][0]["id"].as_str().map(str::to_owned);
            id.unwrap_or_else(|| panic!("one of {many}"))
        };
        let user = json!({"user": {"name": name, "password": ADMIN_PASSWORD}});
        let made = self.admin(Method::POST, "/identity/v3/users", user).await.json();
        let user = made["user"]["id"].as_str().unwrap();
        let role = self.admin(Method::GET, &format!("/identity/v3/roles?name={role}"), Value::Null).await;
        let project = self.admin(Method::GET, "/identity/v3/projects?name=admin", Value::Null).await;
        let (role, project) = (found(role, "roles"), found(project, "projects"));
        let grant = format!("/identity/v3/projects/{project}/users/{user}/roles/{role}");
        assert_eq!(self.admin(Method::PUT, &grant, Value::Null).await.status, 204);
        let auth = json!({"auth": {
            "identity": {
                "methods": ["password"],
                "password": {"user": {"id": user, "password": ADMIN_PASSWORD}},
            },
            "scope": {"project": {"id": project}},
        }});
        let reply = self.call(Method::POST, "/identity/v3/auth/tokens", &[], auth).await;
        reply.header("x-subject-token").unwrap().to_owned()
    }

    /// Where the cloud keeps its files.
    pub(crate) fn directory(&self) -> &std::path::Path {
        self.directory.path()
    }

    /// Sends a request, and holds the answer to its description.
    pub(crate) async fn send(&self, request: Request<Body>) -> Reply {
        let (method, path) = (request.method().clone(), request.uri().path().to_owned());
        let response = self.router.clone().oneshot(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        conform::check(&method, &path, parts.status, &bytes);
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
