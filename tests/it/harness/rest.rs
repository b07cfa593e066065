//! A REST client for what the `openstack` command does not say, or says too slowly.

use std::io::Read as _;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use serde_json::{Value, json};

/// A client with an administrator's token.
pub(crate) struct Rest {
    agent: ureq::Agent,
    base: String,
    token: String,
}

impl Rest {
    /// Logs in as an administrator.
    pub(crate) fn log_in(base: &str, password: &str) -> Result<Self> {
        Self::log_in_as(base, "admin", password, "admin")
    }

    /// Logs in as anyone of the default domain.
    pub(crate) fn log_in_as(base: &str, user: &str, password: &str, project: &str) -> Result<Self> {
        let config = ureq::Agent::config_builder()
            .http_status_as_error(false)
            .timeout_global(Some(Duration::from_secs(30)))
            .build();
        let mut rest = Self { agent: config.new_agent(), base: base.to_owned(), token: String::new() };
        rest.token = rest.new_token(user, password, project)?;
        Ok(rest)
    }

    /// Another token of anyone of the default domain.
    pub(crate) fn new_token(&self, user: &str, password: &str, project: &str) -> Result<String> {
        let base = &self.base;
        let domain = json!({"id": "default"});
        let body = json!({"auth": {
            "identity": {"methods": ["password"], "password": {
                "user": {"name": user, "domain": domain, "password": password}
            }},
            "scope": {"project": {"name": project, "domain": domain}}
        }});
        let response = self.agent.post(format!("{base}/identity/v3/auth/tokens")).send_json(&body)?;
        ensure!(response.status() == 201, "log in: {}", response.status());
        let token = response.headers().get("x-subject-token").context("no token in the answer")?;
        Ok(token.to_str().context("read the token")?.to_owned())
    }

    /// Reads: status and body.
    pub(crate) fn get(&self, path: &str) -> Result<(u16, Value)> {
        answer(self.with_headers(self.agent.get(self.url(path))).call()?)
    }

    /// Reads what must be there.
    pub(crate) fn shown(&self, path: &str) -> Result<Value> {
        let (status, body) = self.get(path)?;
        ensure!(status == 200, "GET {path}: {status} {body}");
        Ok(body)
    }

    /// As [`Rest::shown`], in a microversion of another service than Nova: `volume 3.71`.
    pub(crate) fn shown_in(&self, version: &str, path: &str) -> Result<Value> {
        let request = self.agent.get(self.url(path)).header("X-Auth-Token", &self.token);
        let (status, body) = answer(request.header("OpenStack-API-Version", version).call()?)?;
        ensure!(status == 200, "GET {path}: {status} {body}");
        Ok(body)
    }

    /// Makes something, or asks for an action: status and body.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<(u16, Value)> {
        answer(self.with_headers(self.agent.post(self.url(path))).send_json(body)?)
    }

    /// What is answered to a POST in a version of its service.
    pub(crate) fn post_in(&self, version: &str, path: &str, body: &Value) -> Result<(u16, Value)> {
        let request = self.agent.post(self.url(path)).header("X-Auth-Token", &self.token);
        answer(request.header("OpenStack-API-Version", version).send_json(body)?)
    }

    /// As [`Rest::post`], which must succeed.
    pub(crate) fn made(&self, path: &str, body: &Value) -> Result<Value> {
        let (status, answer) = self.post(path, body)?;
        ensure!((200..300).contains(&status), "POST {path}: {status} {answer}");
        Ok(answer)
    }

    /// Sends data.
    pub(crate) fn put_data(&self, path: &str, data: &[u8]) -> Result<u16> {
        let request = self.with_headers(self.agent.put(self.url(path)));
        Ok(request.content_type("application/octet-stream").send(data)?.status().as_u16())
    }

    /// The first bytes of data.
    pub(crate) fn data(&self, path: &str, bytes: usize) -> Result<Vec<u8>> {
        let mut response = self.with_headers(self.agent.get(self.url(path))).call()?;
        ensure!(response.status() == 200, "GET {path}: {}", response.status());
        let mut data = vec![0; bytes];
        response.body_mut().as_reader().read_exact(&mut data).context("read data")?;
        Ok(data)
    }

    /// Reads text that must be there.
    pub(crate) fn text(&self, path: &str) -> Result<String> {
        let mut response = self.with_headers(self.agent.get(self.url(path))).call()?;
        ensure!(response.status() == 200, "GET {path}: {}", response.status());
        Ok(response.body_mut().read_to_string()?)
    }

    /// Changes: status.
    pub(crate) fn put(&self, path: &str, body: &Value) -> Result<u16> {
        Ok(self.with_headers(self.agent.put(self.url(path))).send_json(body)?.status().as_u16())
    }

    /// Asks for another token by this one; its answer.
    pub(crate) fn rescope(&self) -> Result<Value> {
        let body = json!({"auth": {
            "identity": {"methods": ["token"], "token": {"id": self.token}},
            "scope": {"project": {"name": "admin", "domain": {"id": "default"}}}
        }});
        self.made("/identity/v3/auth/tokens", &body)
    }

    /// The token itself, for a request made by hand.
    pub(crate) fn token(&self) -> &str {
        &self.token
    }

    /// Deletes: status.
    pub(crate) fn delete(&self, path: &str) -> Result<u16> {
        Ok(self.with_headers(self.agent.delete(self.url(path))).call()?.status().as_u16())
    }

    fn url(&self, path: &str) -> String {
        format!("{}{path}", self.base)
    }

    fn with_headers<B>(&self, request: ureq::RequestBuilder<B>) -> ureq::RequestBuilder<B> {
        request
            .header("X-Auth-Token", &self.token)
            .header("X-Subject-Token", &self.token)
            .header("OpenStack-API-Version", "compute 2.100")
    }
}

fn answer(mut response: ureq::http::Response<ureq::Body>) -> Result<(u16, Value)> {
    let text = response.body_mut().read_to_string()?;
    let body = if text.is_empty() {
        Value::Null
    } else {
        serde_json::from_str(&text).unwrap_or(Value::String(text))
    };
    Ok((response.status().as_u16(), body))
}
