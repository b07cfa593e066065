//! A small REST client: what a person's tools would send, with a token once there is one.

use std::io::Read;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

/// The longest answer read into memory, in bytes: far above any page or document of the demo.
const ANSWER_BYTES_MAX: u64 = 16 << 20;
/// How long one request may take.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long an upload may take: a disk on an emulated host takes minutes.
const UPLOAD_TIMEOUT: Duration = Duration::from_secs(600);
/// The microversion the demo speaks to the compute service.
const COMPUTE_VERSION: &str = "compute 2.100";

/// A client of one cloud.
pub(super) struct Rest {
    agent: ureq::Agent,
    base: String,
    token: String,
}

impl Rest {
    /// A client without a token.
    pub(super) fn new(base: &str) -> Self {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(REQUEST_TIMEOUT))
            .build();
        Self { agent: config.new_agent(), base: base.trim_end_matches('/').to_owned(), token: String::new() }
    }

    /// Logs in with a password, scoped to a project of the default domain.
    pub(super) fn log_in(&mut self, user: &str, password: &str, project: &str) -> Result<Value> {
        let domain = json!({"id": "default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {
                "user": {"name": user, "domain": domain, "password": password}
            }},
            "scope": {"project": {"name": project, "domain": domain}}
        }});
        let url = format!("{}/identity/v3/auth/tokens", self.base);
        let mut response = self.agent.post(&url).send_json(&body).context("ask for a token")?;
        let token = response.headers().get("x-subject-token").and_then(|value| value.to_str().ok());
        let token = token.map(str::to_owned);
        let answer = read(&mut response)?;
        match token {
            Some(token) if response.status() == 201 => {
                self.token = token;
                Ok(answer["token"].clone())
            }
            _ => bail!("the identity service refused the password: {} {answer}", response.status()),
        }
    }

    /// Reads.
    pub(super) fn get(&self, path: &str) -> Result<Value> {
        let (status, body) = self.try_get(path)?;
        if status != 200 { bail!("GET {path}: {status} {body}") } else { Ok(body) }
    }

    /// Reads what may not be there: the status decides.
    pub(super) fn try_get(&self, path: &str) -> Result<(u16, Value)> {
        let request = self.agent.get(format!("{}{path}", self.base));
        let request =
            request.header("X-Auth-Token", &self.token).header("OpenStack-API-Version", COMPUTE_VERSION);
        let mut response = request.call().with_context(|| format!("GET {path}"))?;
        Ok((response.status().as_u16(), read(&mut response)?))
    }

    /// Makes something, or asks for an action.
    pub(super) fn post(&self, path: &str, body: &Value) -> Result<Value> {
        self.post_as(COMPUTE_VERSION, path, body)
    }

    /// The same in another microversion.
    pub(super) fn post_as(&self, version: &str, path: &str, body: &Value) -> Result<Value> {
        let request = self.agent.post(format!("{}{path}", self.base));
        let request = request.header("X-Auth-Token", &self.token).header("OpenStack-API-Version", version);
        let mut response = request.send_json(body).with_context(|| format!("POST {path}"))?;
        let answer = read(&mut response)?;
        if !response.status().is_success() {
            bail!("POST {path}: {} {answer}", response.status());
        }
        Ok(answer)
    }

    /// Streams data to a path.
    pub(super) fn put_data(&self, path: &str, mut data: impl Read) -> Result<()> {
        let request = self.agent.put(format!("{}{path}", self.base));
        let request = request.header("X-Auth-Token", &self.token).content_type("application/octet-stream");
        let request = request.config().timeout_global(Some(UPLOAD_TIMEOUT)).build();
        let body = ureq::SendBody::from_reader(&mut data);
        let mut response = request.send(body).with_context(|| format!("PUT {path}"))?;
        let answer = read(&mut response)?;
        if !response.status().is_success() {
            bail!("PUT {path}: {} {answer}", response.status());
        }
        Ok(())
    }

    /// Deletes.
    pub(super) fn delete(&self, path: &str) -> Result<()> {
        let request = self.agent.delete(format!("{}{path}", self.base)).header("X-Auth-Token", &self.token);
        let mut response = request.call().with_context(|| format!("DELETE {path}"))?;
        let answer = read(&mut response)?;
        if !response.status().is_success() {
            bail!("DELETE {path}: {} {answer}", response.status());
        }
        Ok(())
    }
}

/// A page of a guest, as any browser would get it.
pub(super) fn page(url: &str) -> Result<String> {
    let config = ureq::Agent::config_builder().timeout_global(Some(Duration::from_secs(5))).build();
    let mut response = config.new_agent().get(url).call().with_context(|| format!("GET {url}"))?;
    response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string().context("read the page")
}

fn read(response: &mut ureq::http::Response<ureq::Body>) -> Result<Value> {
    let text = response.body_mut().with_config().limit(ANSWER_BYTES_MAX).read_to_string();
    let text = text.context("read the answer")?;
    if text.is_empty() {
        return Ok(Value::Null);
    }
    Ok(serde_json::from_str(&text).unwrap_or(Value::String(text)))
}
