//! Every operation of every description, asked for with a body and a query that fit, and again with each of their places
//! spoilt: an answer in the service's form, and never 500.

use axum::http::Method;
use serde_json::{Value, json};

use crate::harness::{Harness, Reply};

const SERVICES: [&str; 6] = ["identity", "compute", "network", "volume", "image", "placement"];
/// After a few rotations the token that asks would hold no longer, and all else would answer 401.
const LEFT_OUT: &str = "/v3/OS-WISP/token_keys";
/// The most places of one body that are spoilt; the largest has some 40.
const PLACES_MAX: usize = 60;

/// What a place may not have.
fn spoilt() -> [Value; 9] {
    [
        json!(null),
        json!(-1),
        json!(1.5),
        json!(u64::MAX),
        json!(""),
        json!("\u{0}"),
        json!([1, "a", null]),
        json!({"": {"b": "c"}}),
        json!("x".repeat(300)),
    ]
}

/// Values of a word of the query, in percent-encoding.
const QUERIES: [&str; 6] = ["", "nonsense", "-1", "99999999999999999999", "%00", "%F0%9F%92%A9"];

/// What fits a schema.
fn fitting(schema: &Value) -> Value {
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds[0].as_str(),
        kind => kind.as_str(),
    };
    match kind {
        Some("object") => {
            let mut fields = serde_json::Map::new();
            for (name, of) in schema["properties"].as_object().into_iter().flatten() {
                fields.insert(name.clone(), fitting(of));
            }
            if schema["additionalProperties"].is_object() {
                fields.insert("key".into(), fitting(&schema["additionalProperties"]));
            }
            Value::Object(fields)
        }
        Some("array") => json!([fitting(&schema["items"])]),
        Some("integer" | "number") => json!(1),
        Some("boolean") => json!(true),
        Some("null") => Value::Null,
        _ => schema["enum"].get(0).cloned().unwrap_or_else(|| json!("text")),
    }
}

/// The places of a body, outermost first.
fn places(body: &Value, at: &str, into: &mut Vec<String>) {
    into.push(at.to_owned());
    let mut inner = |name: &str, value: &Value| {
        let name = name.replace('~', "~0").replace('/', "~1");
        places(value, &format!("{at}/{name}"), into);
    };
    match body {
        Value::Object(fields) => fields.iter().for_each(|(name, value)| inner(name, value)),
        Value::Array(items) => items.iter().enumerate().for_each(|(i, value)| inner(&i.to_string(), value)),
        _ => {}
    }
}

/// An operation of a service.
struct Asked<'a> {
    cloud: &'a Harness,
    method: Method,
    path: String,
    version: Option<&'a str>,
}

impl Asked<'_> {
    async fn with(&self, query: &str, body: Value) -> Reply {
        let token = self.cloud.admin_token().await;
        let mut headers = vec![("x-auth-token", token.as_str())];
        headers.extend(self.version.map(|version| ("openstack-api-version", version)));
        let path = format!("{}{query}", self.path);
        let said = format!("{} {path} {body}", self.method).chars().take(400).collect::<String>();
        let reply = self.cloud.call(self.method.clone(), &path, &headers, body).await;
        let status = reply.status.as_u16();
        assert!(status < 500 || matches!(status, 501 | 503), "{said}: {status}");
        let formed = status < 400 || self.method == Method::HEAD || !reply.bytes.is_empty();
        assert!(formed, "{said}: {status} without a word");
        reply
    }

    async fn spoil(&self, operation: &Value) {
        let content = &operation["requestBody"]["content"];
        let body = match &content["application/json"]["schema"] {
            Value::Null => Value::Null,
            schema => fitting(schema),
        };
        self.with("", body.clone()).await;
        if !body.is_null() {
            let mut all = Vec::new();
            places(&body, "", &mut all);
            for place in all.iter().take(PLACES_MAX) {
                for wrong in spoilt() {
                    let mut changed = body.clone();
                    *changed.pointer_mut(place).expect("a place of the body") = wrong;
                    self.with("", changed).await;
                }
            }
        }
        for parameter in operation["parameters"].as_array().into_iter().flatten() {
            let word = parameter["name"].as_str().expect("parameters have names");
            for fits in parameter["schema"]["enum"].as_array().into_iter().flatten() {
                let fits = fits.as_str().expect("choices are texts");
                let status = self.with(&format!("?{word}={fits}"), Value::Null).await.status;
                assert_eq!(status, 200, "{}?{word}={fits}", self.path);
            }
            for wrong in QUERIES {
                self.with(&format!("?{word}={wrong}"), Value::Null).await;
            }
        }
    }
}

async fn spoil_all_of(service: &str) {
    let cloud = Harness::new().await;
    let document = cloud.get(&format!("/{service}/openapi.json"), &[]).await.json();
    let mut asked = 0;
    for (path, item) in document["paths"].as_object().expect("a description has paths") {
        if path == LEFT_OUT {
            continue;
        }
        let mut at = String::new();
        for part in path.split('/').skip(1) {
            at.push('/');
            at.push_str(if part.starts_with('{') { "nonsense" } else { part });
        }
        let headers = item["parameters"].as_array().into_iter().flatten();
        let version = headers.filter_map(|parameter| parameter["example"].as_str()).next();
        for (method, operation) in item.as_object().expect("paths are objects") {
            if method == "parameters" {
                continue;
            }
            let method = method.to_uppercase().parse().expect("a method");
            let path = format!("/{service}{}", at.trim_end_matches('/'));
            Asked { cloud: &cloud, method, path, version }.spoil(operation).await;
            asked += 1;
        }
    }
    assert!(asked > 0, "{service}");
    let holds = cloud.admin(Method::GET, "/identity/v3/users", Value::Null).await.status;
    assert_eq!(holds, 200, "what was asked of {service} was asked with a token that held");
}

macro_rules! services {
    ($($name:ident $service:literal),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $name() {
                spoil_all_of($service).await;
            }
        )*

        #[test]
        fn all_services_are_asked() {
            assert_eq!(SERVICES, [$($service),*]);
        }
    };
}

services! {
    nothing_that_does_not_fit_breaks_identity "identity",
    nothing_that_does_not_fit_breaks_compute "compute",
    nothing_that_does_not_fit_breaks_networks "network",
    nothing_that_does_not_fit_breaks_volumes "volume",
    nothing_that_does_not_fit_breaks_images "image",
    nothing_that_does_not_fit_breaks_placement "placement",
}

#[tokio::test]
async fn every_path_says_what_can_be_done_there() {
    let cloud = Harness::new().await;
    for service in SERVICES {
        let document = cloud.get(&format!("/{service}/openapi.json"), &[]).await.json();
        let paths = document["paths"].as_object().expect("a description has paths");
        assert!(paths.contains_key("/"), "{service} describes where it is discovered");
        for (path, item) in paths {
            let operations = item.as_object().expect("paths are objects").keys();
            assert!(operations.filter(|key| *key != "parameters").count() > 0, "{service}{path}");
        }
    }
    let volume = cloud.get("/volume/openapi.json", &[]).await.json();
    let list = &volume["paths"]["/v3/volumes/detail"]["get"];
    let words: Vec<&str> =
        list["parameters"].as_array().unwrap().iter().map(|word| word["name"].as_str().unwrap()).collect();
    assert!(["sort_key", "all_tenants", "availability_zone"].iter().all(|word| words.contains(word)));
    let create = &volume["paths"]["/v3/volumes"]["post"]["requestBody"]["content"]["application/json"];
    let fields = &create["schema"]["properties"]["volume"]["properties"];
    assert_eq!(fields["imageRef"]["type"], json!(["string", "null"]));
    let placement = cloud.get("/placement/openapi.json", &[]).await.json();
    assert_eq!(placement["paths"]["/traits"]["put"]["security"], json!([{"token": []}]));
}
