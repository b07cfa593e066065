//! The control process: the store, the reconcilers and the API, without any privilege.

use std::fs::File;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use ::control::agent::link::{Agents, LinkError};
use ::control::driver::provider::Provider;
use ::control::policy::Policy;
use ::control::store::RedbStore;
use ::control::{Control, Settings};
use anyhow::Context;
use ipnet::Ipv4Net;
use net::names::OwnerTag;
use serde::{Deserialize, Serialize};
use storage::backup::serve_objects;
use storage::store::S3Objects;
use tokio::net::{TcpListener, UnixStream};
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinError, JoinSet};
use zeroize::Zeroizing;

use super::bucket::Bucket;
use super::certificates;
use super::handover::{self, Inherited};
use super::keystone_conf::KeystoneConf;
use super::privileges::{self, User};
use super::terminal;
use crate::context::AppState;
use crate::router::router;
use crate::server;
use crate::server::tls::Tls;

/// `public` is the first free /24 from 172.24.4.0 on, where people who know OpenStack expect it.
const PUBLIC_THIRD_OCTET: u8 = 4;

/// How long the store may stay with a control process that was killed.
const STORE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the agents are waited for before the cloud is ready.
const HOSTS_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is looked whether they are there.
const HOSTS_INTERVAL: Duration = Duration::from_millis(5);

/// What the supervisor hands over. The process runs in the cloud's directory and reaches its files from there.
#[derive(Debug, Serialize, Deserialize)]
pub struct Handover {
    /// The supervisor's process number.
    pub parent: i32,
    /// What is logged.
    pub log: String,
    /// Whom to become.
    pub user: User,
    /// The listening socket of the API.
    pub listener: Inherited,
    /// Each host's name with the line to its agent.
    pub hosts: Vec<(String, Inherited)>,
    /// A pipe that takes one byte when the API answers.
    pub ready: Inherited,
    /// The URL that clients reach the API by.
    pub public_url: String,
    /// The physical networks that hosts are on.
    pub providers: Vec<Provider>,
    /// TLS is spoken, with the certificate that lies in the directory.
    pub tls: bool,
    /// The administrator's password at the first start.
    pub admin_password: String,
    /// The text of the policy file, or nothing.
    pub policy: String,
    /// From where images come and where they are kept, besides the defaults.
    pub images: ImageOptions,
    /// The text of the keystone.conf, or nothing.
    pub identity: String,
    /// The bucket of backups, with the line on which the agent asks for its objects.
    pub backups: Option<(Bucket, Inherited)>,
}

/// From where images may come, and where they are kept besides this host's files.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct ImageOptions {
    /// Hosts, or `host:port`, that images may be fetched from though their addresses are not public.
    pub sources: Vec<String>,
    /// A bucket of an S3-compatible service.
    pub bucket: Option<Bucket>,
}

/// Everything taken over, owned.
struct Parts {
    listener: std::net::TcpListener,
    hosts: Vec<(String, std::os::unix::net::UnixStream)>,
    ready: File,
    public_url: String,
    providers: Vec<Provider>,
    tls: bool,
    admin_password: String,
    policy: Policy,
    images: ImageOptions,
    identity: KeystoneConf,
    backups: Option<(Bucket, std::os::unix::net::UnixStream)>,
}

/// Runs until SIGTERM, or until a line to an agent ends.
pub fn main(handover: i32) -> anyhow::Result<()> {
    let handover: Handover = handover::receive(handover)?;
    let take = |fd: Inherited| -> anyhow::Result<OwnedFd> { fd.take().context("take over a descriptor") };
    let mut hosts = Vec::new();
    for (name, line) in handover.hosts {
        hosts.push((name, take(line)?.into()));
    }
    let parts = Parts {
        listener: take(handover.listener)?.into(),
        hosts,
        ready: File::from(take(handover.ready)?),
        public_url: handover.public_url,
        providers: handover.providers,
        tls: handover.tls,
        admin_password: handover.admin_password,
        policy: Policy::parse(&handover.policy).context("read the policy")?,
        images: handover.images,
        identity: KeystoneConf::parse(&handover.identity).context("read the rules of identity")?,
        backups: match handover.backups {
            Some((bucket, line)) => Some((bucket, take(line)?.into())),
            None => None,
        },
    };
    terminal::log(&handover.log)?;
    nix::sys::signal::SigSet::empty().thread_set_mask().context("let signals through")?;
    privileges::become_user(handover.user)?;
    privileges::die_with_parent(handover.parent)?;
    privileges::raise_open_files();
    rustix::process::umask(rustix::fs::Mode::from_raw_mode(0o077));
    // Before anything else is done, since it may take a while: SIGTERM ends the wait.
    let store = RedbStore::open_once_free(Path::new("control/store.redb"), STORE_PATIENCE)
        .context("open the store")?;
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("start the runtime")?;
    runtime.block_on(serve(parts, store))
}

async fn serve(parts: Parts, store: RedbStore) -> anyhow::Result<()> {
    let mut terminated = signal(SignalKind::terminate()).context("wait for signals")?;
    let mut hung_up = signal(SignalKind::hangup()).context("wait for signals")?;
    let (certificate, key) = (Path::new(certificates::CERTIFICATE), Path::new(certificates::KEY));
    let tls = parts.tls.then(|| Tls::open(certificate, key).map(Arc::new)).transpose()?;
    let mut settings = Settings {
        providers: parts.providers,
        image_sources: parts.images.sources,
        image_bucket: parts.images.bucket.map(Into::into),
        backups_in_bucket: parts.backups.is_some(),
        identity: parts.identity.identity,
        policy: Arc::new(parts.policy),
        ..Settings::new(parts.public_url, "control")
    };
    settings.token_lifetime_s = parts.identity.token_lifetime_s.unwrap_or(settings.token_lifetime_s);
    let control = Control::open(Arc::new(store), settings).await.context("open the cloud")?;

    first_start(&control, parts.admin_password).await.context("make what a new cloud begins with")?;
    if let Some((bucket, line)) = parts.backups {
        serve_backups(bucket, line)?;
    }
    let agents = control.agents().clone();
    let hosts = parts.hosts.len();
    let mut lines = JoinSet::new();
    for (name, line) in parts.hosts {
        line.set_nonblocking(true)?;
        let line = UnixStream::from_std(line).context("use a line to an agent")?;
        let agents = agents.clone();
        lines.spawn(async move { (agents.serve(line, Some(&name)).await, name) });
    }
    let _reconcilers = control.start_reconcilers();

    parts.listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(parts.listener).context("use the listener")?;
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let router = router(AppState::new(control));
    let mut server = tokio::spawn(server::serve(listener, tls.clone(), router, async {
        // Told to, or whoever would tell is gone: an end either way.
        let _ = ended.await;
    }));
    wait_for_hosts(&agents, hosts).await;
    let mut ready = parts.ready;
    ready.write_all(b"1").context("say that the cloud is ready")?;
    drop(ready);

    let outcome = loop {
        tokio::select! {
            _ = terminated.recv() => break Ok(()),
            line = lines.join_next() => break Err(line_ended(line)),
            server = &mut server => break server.context("serve the API"),
            _ = hung_up.recv() => {
                if let Some(Err(error)) = tls.as_ref().map(|tls| tls.reload(certificate, key)) {
                    let error = anyhow::Error::new(error);
                    tracing::error!("the certificate stays as it is: {error:#}");
                }
            }
        }
    };
    drop(end);
    if !server.is_finished() {
        server.await.context("serve the API")?;
    }
    outcome
}

/// Makes what every cloud begins with, as far as it is not there: the administrator, flavors, the network `public`.
async fn first_start(control: &Control, password: String) -> anyhow::Result<()> {
    control.bootstrap(Zeroizing::new(password)).await.context("make the administrator")?;
    control.bootstrap_flavors().await.context("make the flavors")?;
    if control.needs_public_network() {
        let cidr = free_public_prefix().context("choose a prefix for the network `public`")?;
        let administrator = control.bootstrap_caller()?;
        control.bootstrap_public_network(&administrator, cidr).await.context("make the network `public`")?;
    }
    Ok(())
}

/// The first of the prefixes meant for `public` that nothing on this host uses.
fn free_public_prefix() -> anyhow::Result<Ipv4Net> {
    let mut host = net::apply::Host::open(OwnerTag::derive(b"prefix"), net::keeper::Namespaces::Own)?;
    let candidates = (PUBLIC_THIRD_OCTET..=u8::MAX)
        .map(|octet| Ipv4Net::new_assert(std::net::Ipv4Addr::new(172, 24, octet, 0), 24));
    host.free_ipv4_subnet(candidates)?.context("172.24.4.0/24 to 172.24.255.0/24 are all in use on this host")
}

/// Waits until all agents have said who they are, so that a server asked for at once finds its host; but not for
/// long, since the API can do without.
async fn wait_for_hosts(agents: &Agents, hosts: usize) {
    let all = async {
        while agents.connected().len() < hosts {
            tokio::time::sleep(HOSTS_INTERVAL).await;
        }
    };
    if tokio::time::timeout(HOSTS_PATIENCE, all).await.is_err() {
        tracing::warn!("not all agents are there yet");
    }
}

/// How a line ended, and to which host it was.
type LineEnd = (Result<(), LinkError>, String);

/// Why a line's end ends the process: the supervisor starts both ends anew.
fn line_ended(line: Option<Result<LineEnd, JoinError>>) -> anyhow::Error {
    match line {
        Some(Ok((Err(error), name))) => anyhow::Error::new(error).context(format!("host {name}")),
        Some(Ok((Ok(()), name))) => anyhow::anyhow!("the agent of host {name} has ended"),
        Some(Err(error)) => anyhow::Error::new(error).context("the worker of a line"),
        None => anyhow::anyhow!("there is no line to any agent"),
    }
}

/// Fetches and keeps the objects of backups for the agent, which has no way to the network, until the agent ends.
fn serve_backups(bucket: Bucket, mut line: std::os::unix::net::UnixStream) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Handle::current();
    let objects = S3Objects::new(&bucket.into(), runtime).context("use the bucket of backups")?;
    let serve = move || {
        if let Err(error) = serve_objects(&mut line, &objects) {
            tracing::error!(%error, "the line for backups has ended");
        }
    };
    std::thread::Builder::new().name("backups".to_owned()).spawn(serve).context("serve the backups")?;
    Ok(())
}
