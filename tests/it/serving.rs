//! How the API is served: TLS, a policy of the operator's, and clients that do all they can to keep others out.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::signal::{Signal, kill};
use serde_json::json;

use crate::harness::{Cloud, Need, trial, within};

/// How many connections ask for nothing.
const IDLE_CONNECTIONS: usize = 10_000;
/// How many dawdle over a head, and how many over a body.
const SLOW_CONNECTIONS: usize = 200;
/// How long an answer may take beside them, on a busy machine.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// The tests.
pub(crate) fn trials() -> Vec<Trial> {
    vec![
        trial("serving::idle_and_slow_connections_keep_nobody_out", &[], idle_and_slow_connections),
        trial("serving::policy_file_says_who_may", &[], policy_file_says_who_may),
        trial("serving::tls_is_spoken_and_renewed", &[Need::OpenStack], tls_is_spoken_and_renewed),
    ]
}

fn idle_and_slow_connections() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard).context("raise the limit of open files")?;
    ensure!(hard > IDLE_CONNECTIONS as u64 + 1000, "at most {hard} files can be open: too few for this test");
    let cloud = Cloud::start_fake()?;
    let rest = cloud.rest()?;
    let address = cloud.url.trim_start_matches("http://").to_owned();
    let connect = || TcpStream::connect(&address).context("connect");
    let mut slow = Vec::new();
    for _ in 0..SLOW_CONNECTIONS {
        let mut head = connect()?;
        head.write_all(b"GET /identity HT")?;
        slow.push(head);
        let mut body = connect()?;
        let begin = "POST /identity/v3/auth/tokens HTTP/1.1\r\nhost: h\r\ncontent-type: application/json\r\n";
        body.write_all(format!("{begin}content-length: 1000\r\n\r\n{{").as_bytes())?;
        slow.push(body);
    }
    let mut idle = Vec::new();
    for number in 0..IDLE_CONNECTIONS {
        idle.push(connect().with_context(|| format!("connection {number}"))?);
    }
    for _ in 0..20 {
        let asked = Instant::now();
        rest.shown("/identity/v3/users")?;
        rest.rescope()?;
        cloud.rest()?;
        ensure!(asked.elapsed() < ANSWER_MAX, "an answer took {:?}", asked.elapsed());
    }
    // Those that came first made room.
    let mut first = &idle[0];
    first.set_read_timeout(Some(Duration::from_secs(10)))?;
    ensure!(first.read(&mut [0])? == 0, "the connection that was idle longest is still there");
    drop((idle, slow));
    rest.shown("/identity/v3/users").map(drop)
}

fn policy_file_says_who_may() -> Result<()> {
    let files = tempfile::tempdir()?;
    let policy = files.path().join("policy.yaml");
    std::fs::write(&policy, "# nobody, not even administrators\n\"create_network\": \"!\"\n")?;
    let cloud = Cloud::start_fake_with(&["--policy", policy.to_str().context("a path in UTF-8")?])?;
    let rest = cloud.rest()?;
    let (status, body) = rest.post("/network/v2.0/networks", &json!({"network": {"name": "n"}}))?;
    ensure!(status == 403 && body["NeutronError"]["type"] == "PolicyNotAuthorized", "{status} {body}");
    let (status, body) = rest.post("/identity/v3/roles", &json!({"role": {"name": "r"}}))?;
    ensure!(status == 201, "{status} {body}");
    Ok(())
}

fn tls_is_spoken_and_renewed() -> Result<()> {
    let cloud = Cloud::start_fake_with(&["--tls", "generate"])?;
    ensure!(cloud.url.starts_with("https://127.0.0.1:"), "{}", cloud.url);
    let catalog = cloud.openstack(&["catalog", "list", "-f", "json"])?;
    ensure!(!catalog.contains("http:") && catalog.contains(&cloud.url), "{catalog}");
    let shown = cloud.state().join("control/tls-certificate.pem");
    let before = std::fs::read(&shown)?;
    kill(cloud.pid().context("no process")?, Signal::SIGHUP)?;
    within(20, || {
        ensure!(std::fs::read(&shown)? != before, "the certificate is still the same");
        Ok(())
    })?;
    cloud.openstack(&["token", "issue"]).map(drop)
}
