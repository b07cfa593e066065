//! One line in the log for every request that would change something: who, what, the outcome and the request's ids.
//! Never a query, a header or a body: there are the secrets.

use std::sync::{Arc, OnceLock};

use axum::extract::Request;
use axum::http::{HeaderMap, Method, StatusCode};
use control::caller::{Caller, Scope};

use crate::context::Service;

/// The most characters of a path that are written: no resource's own is longer.
const PATH_CHARS_MAX: usize = 256;
/// The id by which a client, or another service, follows one action through several requests.
const GLOBAL_REQUEST_ID: &str = "x-openstack-request-id";

/// Where the request's handler says who asks, once it knows.
#[derive(Debug, Clone, Default)]
pub struct Seat(Arc<OnceLock<Who>>);

#[derive(Debug)]
struct Who {
    user_id: String,
    scope: String,
}

impl Seat {
    /// The request is this caller's.
    pub fn take(&self, caller: &Caller) {
        let scope = match &caller.scope {
            Scope::Unscoped => "unscoped".to_owned(),
            Scope::Project(id) => format!("project {id}"),
            Scope::Domain(id) => format!("domain {id}"),
            Scope::System => "system".to_owned(),
        };
        self.set(&caller.user_id, scope);
    }

    /// The request is this user's, who has no token yet.
    pub fn take_user(&self, user_id: &str) {
        self.set(user_id, "login".to_owned());
    }

    fn set(&self, user_id: &str, scope: String) {
        // Who is said first holds: one request is one caller's.
        let _ = self.0.set(Who { user_id: user_id.to_owned(), scope });
    }
}

/// A request that would change something, until its outcome is known.
#[derive(Debug)]
pub(crate) struct Audit {
    seat: Seat,
    method: Method,
    path: String,
    global_request_id: Option<String>,
}

impl Audit {
    /// The request, if it is of the kind that changes something; it gets a [`Seat`].
    pub(crate) fn of(request: &mut Request, path: &str) -> Option<Self> {
        if matches!(*request.method(), Method::GET | Method::HEAD | Method::OPTIONS) {
            return None;
        }
        let seat = Seat::default();
        request.extensions_mut().insert(seat.clone());
        Some(Self {
            seat,
            method: request.method().clone(),
            path: path.chars().take(PATH_CHARS_MAX).collect(),
            global_request_id: global_request_id(request.headers()).map(str::to_owned),
        })
    }

    /// Writes the line.
    pub(crate) fn write(self, service: Service, status: StatusCode, request_id: &str) {
        let who = self.seat.0.get();
        tracing::info!(
            user.id = who.map_or("-", |who| who.user_id.as_str()),
            scope = who.map_or("-", |who| who.scope.as_str()),
            service = ?service,
            method = %self.method,
            path = self.path,
            status = status.as_u16(),
            request.id = request_id,
            request.global_id = self.global_request_id.as_deref().unwrap_or("-"),
            "asked for a change"
        );
    }
}

/// The global request id a client sent, if it has the form that all services give theirs: `req-<uuid>`. Anything else is
/// nobody's id, and is not repeated in a log.
pub(crate) fn global_request_id(headers: &HeaderMap) -> Option<&str> {
    let text = headers.get(GLOBAL_REQUEST_ID)?.to_str().ok()?;
    let id = text.strip_prefix("req-")?;
    let whole = id.len() == 36 && uuid::Uuid::try_parse(id).is_ok();
    (whole && !id.bytes().any(|byte| byte.is_ascii_uppercase())).then_some(text)
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::sync::Mutex;

    use axum::http::HeaderValue;
    use serde_json::json;

    use super::*;
    use crate::harness::{ADMIN_PASSWORD, Harness};

    #[test]
    fn only_ids_of_the_services_form_are_taken() {
        let taken = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(GLOBAL_REQUEST_ID, HeaderValue::from_static(text));
            global_request_id(&headers).is_some()
        };
        assert!(taken("req-0123abcd-0123-4abc-8abc-0123456789ab"));
        for text in ["", "req-", "req-1", "0123abcd-0123-4abc-8abc-0123456789ab", "req-x status=200"] {
            assert!(!taken(text), "{text}");
        }
    }

    /// What was logged, as one text.
    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[tokio::test]
    async fn a_change_is_written_with_who_and_outcome_and_without_secrets() {
        let cloud = Harness::new().await;
        let token = cloud.admin_token().await;
        // The line's place in the code is known from here on: another test's thread, which does not log, would say for all
        // that nobody wants it.
        cloud.call(Method::DELETE, "/identity/v3/users/nobody", &[], json!(null)).await;
        let log = Log::default();
        let writer = log.clone();
        let subscriber =
            tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
        // For all threads: a subscriber of one thread misses what another thread was the first to come by.
        tracing::subscriber::set_global_default(subscriber).unwrap();
        let global = "req-0123abcd-0123-4abc-8abc-0123456789ab";
        let headers = [("x-auth-token", token.as_str()), ("x-openstack-request-id", global)];
        let body = json!({"user": {"name": "u", "password": "the secret"}});
        let reply = cloud.call(Method::POST, "/identity/v3/users?x=hidden", &headers, body).await;
        assert_eq!(reply.status, 201);
        cloud.get("/identity/v3/users", &headers).await;
        let stranger = [("x-openstack-request-id", global)];
        let reply = cloud.call(Method::DELETE, "/identity/v3/users/nobody", &stranger, json!(null)).await;
        assert_eq!(reply.status, 401);
        let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<&str> = text.lines().filter(|line| line.contains(global)).collect();
        assert_eq!(lines.len(), 2, "{text}");
        assert!(lines[0].contains("POST") && lines[0].contains("status=201"), "{}", lines[0]);
        assert!(lines[0].contains("scope=\"project ") && !lines[0].contains("user.id=\"-\""), "{}", lines[0]);
        assert!(lines[1].contains("status=401") && lines[1].contains("user.id=\"-\""), "{}", lines[1]);
        for secret in ["the secret", token.as_str(), "hidden", ADMIN_PASSWORD] {
            assert!(!text.contains(secret), "{text}");
        }
    }
}
