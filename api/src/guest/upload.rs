//! An image file into a cloud's image service, with the credentials that the `openstack` command would use: `OS_*`
//! variables, or the cloud `OS_CLOUD` of `clouds.yaml`.
//!
//! Must never know: how images are built.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Deserialize;
use serde_json::{Value, json};

use super::progress::Progress;

/// The largest `clouds.yaml`, in bytes.
const CLOUDS_BYTES_MAX: u64 = 1 << 20;
/// The longest answer read, in bytes: a catalog is a few kilobytes.
const ANSWER_BYTES_MAX: u64 = 4 << 20;
/// How long connecting may take, and waiting for an answer once all is sent.
const TIMEOUT: Duration = Duration::from_secs(60);

/// Why an image is not in the cloud.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No credentials.
    #[error(
        "no credentials for a cloud: set OS_CLOUD (and OS_CLIENT_CONFIG_FILE if clouds.yaml is elsewhere than here, \
         in ~/.config/openstack or in /etc/openstack), or OS_AUTH_URL, OS_USERNAME, OS_PASSWORD and OS_PROJECT_NAME"
    )]
    NoCredentials,
    /// A file.
    #[error("read {}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
    /// `clouds.yaml` is not what it should be.
    #[error("{} is no clouds.yaml: {reason}", path.display())]
    Clouds {
        /// Which file.
        path: PathBuf,
        /// What is wrong.
        reason: String,
    },
    /// The cloud is not in it.
    #[error("{} has no cloud {cloud}", path.display())]
    NoCloud {
        /// Which file.
        path: PathBuf,
        /// The cloud's name.
        cloud: String,
    },
    /// The cloud cannot be reached.
    #[error("{what}")]
    Http {
        /// What was tried.
        what: String,
        /// Why it failed.
        #[source]
        source: Box<ureq::Error>,
    },
    /// It says no.
    #[error("{what}: the cloud answers {status} {body}")]
    Refused {
        /// What was tried.
        what: String,
        /// The status.
        status: u16,
        /// The answer.
        body: String,
    },
    /// It has no image service.
    #[error("the cloud's catalog has no public image service")]
    NoService,
}

/// Who uploads, and where to.
#[derive(Deserialize, Clone, PartialEq, Eq)]
struct Credentials {
    auth_url: String,
    username: String,
    password: String,
    project_name: String,
    #[serde(default = "default_domain")]
    user_domain_name: String,
    #[serde(default = "default_domain")]
    project_domain_name: String,
}

fn default_domain() -> String {
    "Default".to_owned()
}

#[derive(Deserialize)]
struct Clouds {
    clouds: BTreeMap<String, Cloud>,
}

#[derive(Deserialize)]
struct Cloud {
    auth: Credentials,
}

/// Uploads `file`, whose format OpenStack calls `format`, as the image `name`; its id.
///
/// # Errors
/// No credentials, or the cloud refuses; then no image is left behind.
pub fn upload(file: &Path, format: &str, name: &str, progress: &Progress) -> Result<String, Error> {
    let credentials = credentials(&|name| std::env::var(name).ok().filter(|value| !value.is_empty()))?;
    let stage = progress.stage("upload", None);
    let agent = agent();
    let (token, catalog) = log_in(&agent, &credentials)?;
    let endpoint = image_endpoint(&catalog).ok_or(Error::NoService)?;
    let body = json!({"name": name, "disk_format": format, "container_format": "bare"});
    let request = agent.post(format!("{endpoint}/v2/images")).header("X-Auth-Token", &token);
    let image = answer("create the image", request.send_json(&body))?.1;
    let id = image["id"].as_str().unwrap_or_default().to_owned();
    let data = File::open(file).map_err(|source| Error::Read { path: file.to_owned(), source })?;
    let url = format!("{endpoint}/v2/images/{id}");
    let request = agent.put(format!("{url}/file")).header("X-Auth-Token", &token);
    let sent = request.content_type("application/octet-stream").send(data);
    if let Err(error) = answer("send the image's data", sent) {
        let removed = agent.delete(&url).header("X-Auth-Token", &token).call();
        if let Err(error) = answer("remove the image", removed) {
            tracing::warn!(image.id = %id, %error, "an image without data stays in the cloud");
        }
        return Err(error);
    }
    stage.done(&format!("{name} {id}"));
    Ok(id)
}

/// Asks the identity service of a cloud of `clouds.yaml` for something of its administrator's, which `path` names; its
/// answer.
///
/// # Errors
/// No such cloud, or it refuses.
pub(crate) fn administer(clouds: &Path, cloud: &str, path: &str) -> Result<Value, Error> {
    let credentials = cloud_in(clouds, cloud)?;
    let agent = agent();
    let (token, _) = log_in(&agent, &credentials)?;
    let request = agent.post(format!("{}/{path}", identity_url(&credentials))).header("X-Auth-Token", &token);
    Ok(answer("ask the identity service", request.send_empty())?.1)
}

fn agent() -> ureq::Agent {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(TIMEOUT))
        .timeout_recv_response(Some(TIMEOUT))
        .build();
    config.new_agent()
}

/// The identity service's version 3.
fn identity_url(credentials: &Credentials) -> String {
    let base = credentials.auth_url.trim_end_matches('/');
    if base.ends_with("/v3") { base.to_owned() } else { format!("{base}/v3") }
}

/// A token and its catalog.
fn log_in(agent: &ureq::Agent, credentials: &Credentials) -> Result<(String, Value), Error> {
    let base = identity_url(credentials);
    let body = json!({"auth": {
        "identity": {"methods": ["password"], "password": {"user": {
            "name": credentials.username,
            "domain": {"name": credentials.user_domain_name},
            "password": credentials.password,
        }}},
        "scope": {"project": {
            "name": credentials.project_name,
            "domain": {"name": credentials.project_domain_name},
        }},
    }});
    let (token, answer) = answer("log in", agent.post(format!("{base}/auth/tokens")).send_json(&body))?;
    Ok((token, answer["token"]["catalog"].clone()))
}

fn image_endpoint(catalog: &Value) -> Option<String> {
    let service = catalog.as_array()?.iter().find(|service| service["type"] == "image")?;
    let endpoint =
        service["endpoints"].as_array()?.iter().find(|endpoint| endpoint["interface"] == "public")?;
    let url = endpoint["url"].as_str()?.trim_end_matches('/');
    Some(url.strip_suffix("/v2").unwrap_or(url).to_owned())
}

/// The token that an answer carries, if it does, and its body.
fn answer(
    what: &str,
    response: Result<ureq::http::Response<ureq::Body>, ureq::Error>,
) -> Result<(String, Value), Error> {
    let failed = |source| Error::Http { what: what.to_owned(), source: Box::new(source) };
    let mut response = response.map_err(failed)?;
    let token = response.headers().get("x-subject-token").and_then(|value| value.to_str().ok());
    let token = token.unwrap_or_default().to_owned();
    let body = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string().map_err(failed)?;
    if !response.status().is_success() {
        return Err(Error::Refused { what: what.to_owned(), status: response.status().as_u16(), body });
    }
    Ok((token, serde_json::from_str(&body).unwrap_or(Value::Null)))
}

/// From the environment that `variable` reads.
fn credentials(variable: &dyn Fn(&str) -> Option<String>) -> Result<Credentials, Error> {
    if let Some(cloud) = variable("OS_CLOUD") {
        let places = match variable("OS_CLIENT_CONFIG_FILE") {
            Some(path) => vec![PathBuf::from(path)],
            None => {
                let home =
                    variable("HOME").map(|home| PathBuf::from(home).join(".config/openstack/clouds.yaml"));
                let here = PathBuf::from("clouds.yaml");
                [Some(here), home, Some("/etc/openstack/clouds.yaml".into())].into_iter().flatten().collect()
            }
        };
        let path = places.into_iter().find(|path| path.exists()).ok_or(Error::NoCredentials)?;
        return cloud_in(&path, &cloud);
    }
    let needed = |name: &str| variable(name).ok_or(Error::NoCredentials);
    Ok(Credentials {
        auth_url: needed("OS_AUTH_URL")?,
        username: needed("OS_USERNAME")?,
        password: needed("OS_PASSWORD")?,
        project_name: needed("OS_PROJECT_NAME")?,
        user_domain_name: variable("OS_USER_DOMAIN_NAME").unwrap_or_else(default_domain),
        project_domain_name: variable("OS_PROJECT_DOMAIN_NAME").unwrap_or_else(default_domain),
    })
}

fn cloud_in(path: &Path, cloud: &str) -> Result<Credentials, Error> {
    let read = |source| Error::Read { path: path.to_owned(), source };
    let mut text = String::new();
    fs::File::open(path).map_err(read)?.take(CLOUDS_BYTES_MAX).read_to_string(&mut text).map_err(read)?;
    let parsed: Result<Clouds, _> = serde_saphyr::from_str(&text);
    // The parser's own words may quote the file, and so a password: only the place is told.
    let mut clouds = parsed.map_err(|error| Error::Clouds {
        path: path.to_owned(),
        reason: match error.location() {
            Some(place) => format!("line {}, column {}", place.line(), place.column()),
            None => "not YAML, or a field is missing".to_owned(),
        },
    })?;
    let found = clouds.clouds.remove(cloud).map(|cloud| cloud.auth);
    found.ok_or_else(|| Error::NoCloud { path: path.to_owned(), cloud: cloud.to_owned() })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(pairs: &[(&str, &str)]) -> Result<Credentials, Error> {
        let pairs: BTreeMap<_, _> =
            pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
        credentials(&|name| pairs.get(name).cloned())
    }

    #[test]
    fn credentials_come_from_variables_or_from_the_cloud_they_name() {
        let variables =
            [("OS_AUTH_URL", "u"), ("OS_USERNAME", "n"), ("OS_PASSWORD", "p"), ("OS_PROJECT_NAME", "j")];
        assert_eq!(environment(&variables).unwrap().user_domain_name, "Default");
        assert!(matches!(environment(&variables[..3]), Err(Error::NoCredentials)));
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clouds.yaml");
        fs::write(&path, crate::process::credentials::clouds_yaml("http://h:1", "a \"b\"", None)).unwrap();
        let path = path.to_str().unwrap();
        let found = environment(&[("OS_CLOUD", "wisp"), ("OS_CLIENT_CONFIG_FILE", path)]).unwrap();
        assert_eq!((&*found.auth_url, &*found.password), ("http://h:1/identity", "a \"b\""));
        let error = environment(&[("OS_CLOUD", "other"), ("OS_CLIENT_CONFIG_FILE", path)]).err().unwrap();
        assert!(matches!(error, Error::NoCloud { .. }), "{error}");
    }

    #[test]
    fn broken_file_is_named_without_its_secrets() {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("clouds.yaml");
        fs::write(&path, "clouds: {wisp: {auth: {password: [secret]}}}").unwrap();
        let error = cloud_in(&path, "wisp").err().unwrap().to_string();
        assert!(error.contains("clouds.yaml") && !error.contains("secret"), "{error}");
    }

    #[test]
    fn image_service_is_found_in_the_catalog() {
        let catalog = json!([
            {"type": "identity", "endpoints": [{"interface": "public", "url": "http://h/identity"}]},
            {"type": "image", "endpoints": [
                {"interface": "internal", "url": "http://i/image"},
                {"interface": "public", "url": "http://h/image/"},
            ]},
        ]);
        assert_eq!(image_endpoint(&catalog).as_deref(), Some("http://h/image"));
        assert_eq!(image_endpoint(&json!([])), None);
    }
}
