//! An OpenAPI description of each service, made of what serves it: the routes as they are added, the types that the
//! handlers read, and those that they answer. A module that adds its routes by [`Routes`] is described; nothing else is to
//! be done.
//!
//! Must never know: any one resource.

pub(crate) mod answer;
#[cfg(test)]
pub(crate) mod conform;
#[cfg(test)]
mod hostile;
pub(crate) mod probe;

use std::collections::BTreeMap;
use std::convert::Infallible;

use axum::extract::{Request, State};
use axum::handler::Handler;
use axum::http::HeaderMap;
use axum::routing::{MethodFilter, MethodRouter, Route};
use schemars::SchemaGenerator;
use serde::de::DeserializeOwned;
use serde_json::{Map, Value, json};
use tower::Layer;

use self::answer::{Answered, Answers};
use crate::context::{AppState, Authenticated, Body, Filters, RequestUrl, Segments, Service};
use crate::microversion::{self, Microversion};

/// The parameters that lists of all services take.
const LIST_PARAMETERS: [(&str, &str); 4] =
    [("limit", "integer"), ("marker", "string"), ("sort_key", "string"), ("sort_dir", "string")];

/// The methods that clients of the services use.
const METHODS: [&str; 6] = ["get", "post", "put", "patch", "delete", "head"];

/// Routes with their descriptions.
#[derive(Debug, Clone, Default)]
pub struct Routes {
    router: axum::Router<AppState>,
    paths: BTreeMap<String, Methods>,
}

impl Routes {
    /// None.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds what is at a path.
    #[must_use]
    pub fn route(mut self, path: &str, at: At) -> Self {
        self.router = self.router.route(path, at.router);
        self.paths.entry(path.to_owned()).or_default().extend(at.methods);
        self
    }

    /// Adds all of these.
    #[must_use]
    pub fn merge(mut self, other: Self) -> Self {
        self.router = self.router.merge(other.router);
        for (path, methods) in other.paths {
            self.paths.entry(path).or_default().extend(methods);
        }
        self
    }

    /// Adds all of these below a path.
    #[must_use]
    pub fn nest(mut self, below: &str, other: Self) -> Self {
        self.router = self.router.nest(below, other.router);
        for (path, methods) in other.paths {
            let path = format!("{below}{}", path.trim_end_matches('/'));
            self.paths.entry(path).or_default().extend(methods);
        }
        self
    }

    /// The routes and what is known of them.
    pub(crate) fn into_parts(self) -> (axum::Router<AppState>, Description) {
        (self.router, Description { paths: self.paths })
    }
}

type Methods = BTreeMap<&'static str, Operation>;

/// What is at a path, by method.
#[derive(Debug, Clone, Default)]
pub struct At {
    router: MethodRouter<AppState>,
    methods: Methods,
}

macro_rules! methods {
    ($($name:ident $filter:ident),* $(,)?) => {
        $(
            #[doc = concat!("`", stringify!($filter), "` of a path.")]
            pub fn $name<H: Described<M>, M: 'static>(handler: H) -> At {
                At::default().$name(handler)
            }
        )*

        impl At {
            $(
                #[doc = concat!("`", stringify!($filter), "` of the path, too.")]
                #[must_use]
                pub fn $name<H: Described<M>, M: 'static>(self, handler: H) -> Self {
                    self.on(stringify!($name), MethodFilter::$filter, handler)
                }
            )*
        }
    };
}

/// Every method of a path.
pub fn any<H: Described<M>, M: 'static>(handler: H) -> At {
    let mut operation = Operation::default();
    H::describe(&mut operation);
    let methods = METHODS.into_iter().map(|name| (name, operation.clone())).collect();
    At { router: axum::routing::any(handler), methods }
}

methods! { get GET, post POST, put PUT, patch PATCH, delete DELETE, head HEAD }

impl At {
    fn on<H: Described<M>, M: 'static>(
        mut self,
        name: &'static str,
        filter: MethodFilter,
        handler: H,
    ) -> Self {
        let mut operation = Operation::default();
        H::describe(&mut operation);
        self.methods.insert(name, operation);
        self.router = self.router.on(filter, handler);
        self
    }

    /// Wraps what is at the path.
    #[must_use]
    pub fn layer<L>(mut self, layer: L) -> Self
    where
        L: Layer<Route> + Clone + Send + Sync + 'static,
        L::Service: tower::Service<Request, Error = Infallible> + Clone + Send + Sync + 'static,
        <L::Service as tower::Service<Request>>::Response: axum::response::IntoResponse + 'static,
        <L::Service as tower::Service<Request>>::Future: Send + 'static,
    {
        self.router = self.router.layer(layer);
        self
    }
}

/// What a handler takes and answers.
#[derive(Debug, Clone, Default)]
pub struct Operation {
    answers: Answers,
    body: Option<Value>,
    raw: bool,
    token: bool,
    listed: bool,
    queries: BTreeMap<String, Value>,
}

impl Operation {
    /// A word of the query, with the schema of its value.
    pub(crate) fn query(&mut self, word: &str, schema: Value) {
        self.queries.insert(word.to_owned(), schema);
    }
}

/// A handler that can say what it takes and answers: every one whose arguments are [`Extracted`] and whose answer is
/// [`Answered`].
pub trait Described<M>: Handler<M, AppState> {
    /// Says it.
    fn describe(operation: &mut Operation);
}

/// An argument of a handler.
pub trait Extracted {
    /// What it adds to the description.
    fn describe(_: &mut Operation) {}
}

impl Extracted for State<AppState> {}
impl Extracted for Microversion {}
impl Extracted for RequestUrl {}
impl Extracted for HeaderMap {}
impl Extracted for axum::extract::OriginalUri {}
impl Extracted for axum::http::Method {}
impl Extracted for crate::audit::Seat {}
impl<T> Extracted for Segments<T> {}
impl<T> Extracted for axum::Extension<T> {}

impl Extracted for Authenticated {
    fn describe(operation: &mut Operation) {
        operation.token = true;
        operation.answers.refuses();
    }
}

impl Extracted for Filters {
    fn describe(operation: &mut Operation) {
        operation.listed = true;
    }
}

impl Extracted for Request {
    fn describe(operation: &mut Operation) {
        operation.raw = true;
    }
}

impl<T: DeserializeOwned> Extracted for Body<T> {
    fn describe(operation: &mut Operation) {
        operation.body = Some(probe::schema::<T>());
    }
}

impl<T: Extracted> Extracted for Option<T> {
    fn describe(operation: &mut Operation) {
        T::describe(operation);
    }
}

impl<H, F, R> Described<((),)> for H
where
    H: Handler<((),), AppState> + FnOnce() -> F,
    F: Future<Output = R>,
    R: Answered,
{
    fn describe(operation: &mut Operation) {
        R::describe(&mut operation.answers);
    }
}

macro_rules! described {
    ($($argument:ident)*) => {
        impl<Fn, Made, Said, M, $($argument: Extracted),*> Described<(M, $($argument,)*)> for Fn
        where
            Fn: Handler<(M, $($argument,)*), AppState> + FnOnce($($argument),*) -> Made,
            Made: Future<Output = Said>,
            Said: Answered,
        {
            fn describe(operation: &mut Operation) {
                $($argument::describe(operation);)*
                Said::describe(&mut operation.answers);
            }
        }
    };
}

described! { A }
described! { A B }
described! { A B C }
described! { A B C D }
described! { A B C D E }
described! { A B C D E F }
described! { A B C D E F G }
described! { A B C D E F G I }

/// What is known of a service's routes.
#[derive(Debug, Clone)]
pub(crate) struct Description {
    paths: BTreeMap<String, Methods>,
}

impl Description {
    /// The OpenAPI document (OpenAPI 3.1).
    pub(crate) fn document(&self, service: Service, url: &str) -> Value {
        let mut schemas = answer::generator();
        let faults = answer::faults(service, &mut schemas);
        let item = |(path, methods): (&String, &Methods)| {
            (path.replace("{*", "{"), path_item(service, path, methods, &mut schemas))
        };
        let paths: Map<String, Value> = self.paths.iter().map(item).collect();
        json!({
            "openapi": "3.1.0",
            "info": {
                "title": format!("Wisp: {service:?}"),
                "version": env!("CARGO_PKG_VERSION"),
                "description": "What is served, as the routes and the types that read and answer say.",
            },
            "servers": [{"url": url}],
            "paths": paths,
            "components": {
                "securitySchemes": {"token": {"type": "apiKey", "in": "header", "name": "X-Auth-Token"}},
                "responses": faults,
                "schemas": schemas.take_definitions(true),
            },
        })
    }
}

fn path_item(service: Service, path: &str, methods: &Methods, schemas: &mut SchemaGenerator) -> Value {
    let names = path.split('/').filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'));
    let mut parameters: Vec<Value> = names
        .map(|name| {
            let name = name.trim_start_matches('*');
            json!({"name": name, "in": "path", "required": true, "schema": {"type": "string", "minLength": 1}})
        })
        .collect();
    if let Some(offer) = microversion::offer(service) {
        let example = format!("{} {}", offer.name, offer.maximum);
        parameters.push(json!({
            "name": "OpenStack-API-Version", "in": "header", "schema": {"type": "string"}, "example": example,
        }));
    }
    let mut item: Map<String, Value> = methods
        .iter()
        .map(|(name, operation)| {
            let body = operation.body.is_some() || operation.raw;
            let responses = operation.answers.responses(service, body, schemas);
            ((*name).to_owned(), operation_item(name, path, operation, responses))
        })
        .collect();
    if !parameters.is_empty() {
        item.insert("parameters".into(), json!(parameters));
    }
    Value::Object(item)
}

fn operation_item(method: &str, path: &str, operation: &Operation, responses: Value) -> Value {
    let mut item = json!({"operationId": format!("{method} {path}"), "responses": responses});
    if operation.token {
        item["security"] = json!([{"token": []}]);
    }
    let body = match (&operation.body, operation.raw, method) {
        (Some(schema), ..) => Some(json!({"application/json": {"schema": schema}})),
        (None, true, "post" | "put" | "patch") => {
            Some(json!({"application/octet-stream": {"schema": {}}, "application/json": {"schema": {}}}))
        }
        _ => None,
    };
    if let Some(content) = body {
        item["requestBody"] = json!({"content": content});
    }
    let mut queries: Vec<(&str, Value)> =
        operation.queries.iter().map(|(name, schema)| (name.as_str(), schema.clone())).collect();
    if operation.listed && method == "get" && !path.ends_with('}') {
        queries.extend(LIST_PARAMETERS.map(|(name, kind)| (name, json!({"type": kind}))));
    }
    if !queries.is_empty() {
        let parameter =
            |(name, schema): (&str, Value)| json!({"name": name, "in": "query", "schema": schema});
        item["parameters"] = queries.into_iter().map(parameter).collect();
    }
    item
}

#[cfg(test)]
mod tests {
    use super::conform;
    use crate::harness::Harness;

    #[tokio::test]
    async fn every_service_describes_its_own_routes_and_bodies() {
        let cloud = Harness::new().await;
        for service in ["identity", "compute", "network", "volume", "image", "placement"] {
            let reply = cloud.get(&format!("/{service}/openapi.json"), &[]).await;
            assert_eq!(reply.status, 200, "{service}");
            let document = reply.json();
            assert_eq!(document["openapi"], "3.1.0");
            let server = document["servers"][0]["url"].as_str().unwrap_or_default();
            assert_eq!(server, format!("http://cloud.test/{service}"));
            assert!(document["paths"].as_object().is_some_and(|paths| !paths.is_empty()), "{service}");
        }
        let document = cloud.get("/network/openapi.json", &[]).await.json();
        let create = &document["paths"]["/v2.0/networks"]["post"];
        let schema = &create["requestBody"]["content"]["application/json"]["schema"];
        assert_eq!(schema["properties"]["network"]["properties"]["mtu"]["type"][0], "integer");
        assert_eq!(schema["properties"]["network"]["additionalProperties"], false);
        assert_eq!(create["security"][0]["token"], serde_json::json!([]));
        let show = &document["paths"]["/v2.0/networks/{id}"];
        assert_eq!(show["parameters"][0]["name"], "id");
    }

    /// What is not told of a service's answers, by method and path.
    fn untold(service: &str) -> Vec<String> {
        let paths = conform::document(service)["paths"].as_object().expect("a description has paths");
        let operations = paths.iter().flat_map(|(path, item)| {
            let operations = item.as_object().expect("paths are objects").iter();
            operations.filter(|(key, _)| *key != "parameters").map(move |(name, of)| (path, name, of))
        });
        let told = |response: &serde_json::Value| match &response["content"]["application/json"] {
            serde_json::Value::Null => true,
            content => !matches!(content["schema"], serde_json::Value::Bool(_)),
        };
        let untold = operations.filter(|(_, _, operation)| {
            let responses = operation["responses"].as_object().expect("an operation has responses");
            responses.contains_key("2XX") || !responses.values().all(told)
        });
        untold.map(|(path, name, _)| format!("{name} {path}")).collect()
    }

    #[test]
    fn answers_are_told_to_their_last_field() {
        for service in ["identity", "image", "volume", "network", "compute", "placement"] {
            assert_eq!(untold(service), Vec::<String>::new(), "{service}");
        }
        let document = conform::document("identity");
        let shown = &document["paths"]["/v3/users/{user_id}"]["get"]["responses"];
        let user = &shown["200"]["content"]["application/json"]["schema"]["properties"]["user"];
        assert_eq!(user["$ref"], "#/components/schemas/User");
        let user = &document["components"]["schemas"]["User"];
        assert_eq!(user["properties"]["password_expires_at"]["type"], serde_json::json!(["string", "null"]));
        assert_eq!(user["additionalProperties"], true);
        assert_eq!(shown["404"]["$ref"], "#/components/responses/NotFound");
        assert!(shown.get("415").is_none() && shown.get("412").is_none());
        let fault = &document["components"]["schemas"]["KeystoneFault"];
        assert_eq!(fault["required"], serde_json::json!(["code", "message", "title"]));
        assert_eq!(fault["additionalProperties"], false);
    }
}
