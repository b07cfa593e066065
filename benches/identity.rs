//! What everybody waits for first: a token, and whether it holds.

mod measure;

#[path = "../tests/it/harness/mod.rs"]
#[allow(dead_code, unused_imports, reason = "the system tests use the rest")]
mod harness;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use control::service::auth::{Credential, DomainRef, NamedRef, ScopeWanted};
use control::store::RedbStore;
use control::{Control, Settings};

use crate::harness::{Cloud, Rest};
use crate::measure::{Samples, line};

/// Logins whose times are looked at.
const LOGINS: usize = 300;
/// How long tokens are validated for.
const DURATION: Duration = Duration::from_secs(3);
/// Clients at once; a few more than cores.
const CLIENTS: usize = 8;
/// The administrator's password.
const PASSWORD: &str = "correct horse battery staple";

fn main() -> Result<()> {
    in_process()?;
    over_http()
}

/// One thread asks what one token stands for.
fn in_process() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let directory = tempfile::tempdir()?;
        let store = RedbStore::open(&directory.path().join("store.redb"))?;
        let settings = Settings::new("http://cloud.test", directory.path());
        let control = Control::open(Arc::new(store), settings).await?;
        control.bootstrap(PASSWORD.to_owned().into()).await?;
        let admin = NamedRef::Name("admin".into(), DomainRef::Id("default".into()));
        let credential = Credential::Password { user: admin, password: PASSWORD.to_owned().into() };
        let (token, _) = control.token_issue(vec![credential], ScopeWanted::Default).await?;
        let started = Instant::now();
        let mut validated = 0_u32;
        while started.elapsed() < DURATION {
            control.token_caller(&token, String::new()).await?;
            validated += 1;
        }
        let rate = f64::from(validated) / started.elapsed().as_secs_f64();
        line("tokens validated in the process, one core", "1/s", rate, 50_000.0, "the aim");
        anyhow::Ok(())
    })
}

fn over_http() -> Result<()> {
    let cloud = Cloud::start_fake()?;
    let mut logins = Samples::default();
    Rest::log_in(&cloud.url, PASSWORD)?;
    let rest = cloud.rest()?;
    for _ in 0..LOGINS {
        let started = Instant::now();
        rest.new_token("admin", PASSWORD, "admin")?;
        logins.push(started.elapsed().as_secs_f64() * 1e3);
    }
    line("token by a password that was verified before, p50", "ms", logins.quantile(0.5), 1.0, "the aim");
    line("the same, p99", "ms", logins.quantile(0.99), 1.0, "the aim");
    let discovered = together(&cloud, |rest| rest.shown("/identity/v3").map(drop))?;
    let validated = together(&cloud, |rest| rest.shown("/identity/v3/auth/tokens?nocatalog").map(drop))?;
    line("tokens validated over HTTP, 8 clients", "1/s", validated, 10_000.0, "the aim");
    line("the same", "1/s", validated, discovered, "discovery requests of the same clients");
    let whole = together(&cloud, |rest| rest.shown("/identity/v3/auth/tokens").map(drop))?;
    line("tokens validated with the catalog, 8 clients", "1/s", whole, validated, "without it");
    Ok(())
}

/// How many requests a second all clients get through together.
fn together(cloud: &Cloud, run: impl Fn(&Rest) -> Result<()> + Sync) -> Result<f64> {
    let clients: Vec<Rest> = (0..CLIENTS).map(|_| cloud.rest()).collect::<Result<_>>()?;
    let started = Instant::now();
    let mut all = 0_u32;
    std::thread::scope(|scope| {
        let (run, started) = (&run, &started);
        let threads: Vec<_> = clients
            .iter()
            .map(|rest| {
                scope.spawn(move || {
                    let mut done = 0_u32;
                    while started.elapsed() < DURATION {
                        run(rest)?;
                        done += 1;
                    }
                    anyhow::Ok(done)
                })
            })
            .collect();
        for thread in threads {
            all += thread.join().map_err(|_| anyhow!("a client panicked"))??;
        }
        anyhow::Ok(())
    })?;
    Ok(f64::from(all) / started.elapsed().as_secs_f64())
}
