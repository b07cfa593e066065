//! Every answer that a test of handlers gets is held to the description of its service: its status is among those that the
//! operation has, and its body fits the schema.

use std::collections::HashMap;
use std::sync::{Arc, LazyLock, Mutex};

use axum::http::{Method, StatusCode};
use jsonschema::Validator;
use serde_json::{Value, json};

use crate::router::{canonical, services};

static DOCUMENTS: LazyLock<HashMap<&'static str, Value>> = LazyLock::new(|| {
    let document = |service: crate::context::Service, routes: super::Routes| {
        let (_, description) = routes.into_parts();
        (service.path(), description.document(service, "http://cloud.test"))
    };
    services().into_iter().map(|(service, routes)| document(service, routes)).collect()
});

/// By service and place in its document: making one takes longer than most tests have.
static VALIDATORS: LazyLock<Mutex<HashMap<String, Arc<Validator>>>> = LazyLock::new(Mutex::default);

/// The description of a service.
pub(crate) fn document(service: &str) -> &'static Value {
    &DOCUMENTS[service]
}

/// Holds an answer to its description. What is nowhere described answers 404, and 405 by a method that is not.
pub(crate) fn check(method: &Method, path: &str, status: StatusCode, bytes: &[u8]) {
    let (path, _) = canonical(path);
    let mut parts = path.trim_start_matches('/').splitn(2, '/');
    let (Some(name), below) = (parts.next(), parts.next().unwrap_or_default()) else { return };
    let Some((&service, document)) = DOCUMENTS.get_key_value(name) else { return };
    if below == "openapi.json" {
        return;
    }
    let said = format!("{method} /{service}/{below}: {status}");
    let Some((template, item)) = described(document, below) else {
        // Below no route; what cannot be read at all is refused before one is looked for.
        assert!(status.is_client_error(), "{said}, at no path that is described");
        return;
    };
    let method_name = method.as_str().to_ascii_lowercase();
    let name = if item.get(&method_name).is_none() && *method == Method::HEAD { "get" } else { &method_name };
    let Some(operation) = item.get(name) else {
        assert!(status.is_client_error(), "{said}, by a method that is not described");
        return;
    };
    let responses = &operation["responses"];
    let code = status.as_str();
    if status == StatusCode::METHOD_NOT_ALLOWED {
        return;
    }
    let mut place =
        format!("/paths/{}/{name}/responses/{code}", template.replace('~', "~0").replace('/', "~1"));
    let mut response = &responses[code];
    if response.is_null() {
        let untold = status.is_success() && responses.get("2XX").is_some();
        assert!(
            untold,
            "{said} is not described: {}",
            responses
                .as_object()
                .map(|all| { all.keys().cloned().collect::<Vec<_>>().join(" ") })
                .unwrap_or_default()
        );
        return;
    }
    if let Some(shared) = response["$ref"].as_str() {
        place = shared.trim_start_matches('#').to_owned();
        response = document.pointer(&place).expect("a reference leads to what it names");
    }
    let content = &response["content"];
    if *method == Method::HEAD {
        return;
    }
    if content.is_null() {
        assert!(bytes.is_empty(), "{said} has content, and none is described");
        return;
    }
    if content["application/json"].is_null() || bytes.is_empty() && !response["x-wisp-content"].is_null() {
        return;
    }
    let body: Value = serde_json::from_slice(bytes).unwrap_or_else(|_| panic!("{said} without JSON"));
    let validator = validator(service, document, &place, &content["application/json"]["schema"]);
    if let Err(error) = validator.validate(&body) {
        panic!("{said} does not fit its description at '{}': {error}", error.instance_path());
    }
}

fn validator(service: &str, document: &Value, place: &str, schema: &Value) -> Arc<Validator> {
    let mut all = VALIDATORS.lock().unwrap_or_else(|broken| broken.into_inner());
    let made = all.entry(format!("{service} {place}")).or_insert_with(|| {
        let whole = json!({
            "$schema": "https://json-schema.org/draft/2020-12/schema",
            "components": {"schemas": document["components"]["schemas"]},
            "allOf": [schema],
        });
        Arc::new(jsonschema::validator_for(&whole).unwrap_or_else(|error| panic!("{place}: {error}")))
    });
    made.clone()
}

/// The path of a document that a request's is one of; words win over names.
fn described<'a>(document: &'a Value, below: &str) -> Option<(&'a String, &'a Value)> {
    let asked: Vec<&str> = below.split('/').filter(|part| !part.is_empty()).collect();
    let paths = document["paths"].as_object()?;
    let fits = |template: &str| -> Option<Vec<bool>> {
        let parts: Vec<&str> = template.split('/').filter(|part| !part.is_empty()).collect();
        let rest = parts.last() == Some(&"{rest}");
        if parts.len() != asked.len() && !(rest && parts.len() <= asked.len()) {
            return None;
        }
        let named = |part: &str| part.starts_with('{');
        let fit = parts.iter().zip(&asked).all(|(part, asked)| named(part) || part == asked);
        fit.then(|| parts.iter().map(|part| !named(part)).collect())
    };
    let found = paths.iter().filter_map(|(template, item)| Some((fits(template)?, (template, item))));
    found.max_by(|(a, _), (b, _)| a.cmp(b)).map(|(_, found)| found)
}
