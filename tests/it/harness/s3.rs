//! A real server of S3, moto from PyPI, with a bucket.

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};

use anyhow::{Context, Result};

use super::{venv, within};

/// The server; ended when dropped.
pub(crate) struct S3Server {
    /// Its URL.
    pub endpoint: String,
    process: Child,
}

impl S3Server {
    /// Starts one with a bucket by this name, on a port of this network namespace.
    pub(crate) fn start(bucket: &str) -> Result<Self> {
        // Free when asked; nobody else listens there in the meantime but by accident.
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let process = Command::new(venv::moto()?)
            .args(["--host", "127.0.0.1", "--port", &port.to_string()])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .context("start moto_server")?;
        let server = Self { endpoint: format!("http://127.0.0.1:{port}"), process };
        // The service takes it without a signature.
        let url = format!("{}/{bucket}", server.endpoint);
        within(60, || Ok(ureq::put(&url).send_empty().map(drop)?))?;
        Ok(server)
    }

    /// How many objects a bucket has whose names begin so.
    pub(crate) fn objects(&self, bucket: &str, prefix: &str) -> Result<usize> {
        let url = format!("{}/{bucket}?list-type=2&prefix={prefix}", self.endpoint);
        let listed = ureq::get(&url).call()?.body_mut().read_to_string()?;
        Ok(listed.matches("<Key>").count())
    }
}

impl Drop for S3Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
