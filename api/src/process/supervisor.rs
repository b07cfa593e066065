//! `wisp up`: starts the control process and the agent with a socket pair between them, starts both anew when one
//! ends unasked, and ends both when told to. It listens, so that its children's restarts refuse no client, but
//! never accepts; instances are nobody's children and run on.
//!
//! One thread and no runtime: children live and die with the thread that started them (prctl(2),
//! `PR_SET_PDEATHSIG`).
//!
//! Must never know: what its children say to each other.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Child;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::process::{Pid, PidfdFlags};

use super::agent::DriverKind;
use super::bucket::Bucket;
use super::certificates::Source;
use super::control::ImageOptions;
use super::handover::{self, AsFdDyn, Inherited};
use super::privileges::User;
use super::state_directory::StateDirectory;
use ::control::driver::host::Forwarders;
use ::control::driver::process_id;
use ::control::driver::provider::Provider;
use ::control::driver::tunnel::Tunnel;
use ::control::driver::volumes::NamedPlace;

use super::{agent, certificates, control, credentials, privileges};

/// How long a child may take to end when asked.
const END_PATIENCE: Duration = Duration::from_secs(15);
/// How long after one child's end the other's is awaited before it is asked to.
const CULPRIT_PATIENCE: Duration = Duration::from_millis(300);
/// The pause before the first restart; it doubles with each that follows soon.
const PAUSE_MIN: Duration = Duration::from_millis(100);
/// The longest pause between two restarts.
const PAUSE_MAX: Duration = Duration::from_secs(10);
/// Children that lived so long were fine: the next pause is short again.
const LIVED: Duration = Duration::from_secs(60);
/// The most simulated hosts: two descriptors each, in two processes.
pub const FAKE_HOSTS_MAX: u32 = 4096;

/// What `wisp up` is told.
#[derive(Debug)]
pub struct Options {
    /// The cloud's directory.
    pub directory: StateDirectory,
    /// Where to listen.
    pub listen: SocketAddr,
    /// The URL that clients reach the API by, if it differs from the address.
    pub public_url: Option<String>,
    /// Whose certificate is shown, if TLS is spoken.
    pub tls: Option<Source>,
    /// What drives the host.
    pub driver: DriverKind,
    /// How many hosts the fake driver simulates.
    pub fake_hosts: u32,
    /// What keeps the disks of volumes.
    pub volumes: Vec<NamedPlace>,
    /// The physical networks that hosts are on.
    pub providers: Vec<Provider>,
    /// How networks get to other hosts, if they do.
    pub tunnel: Option<Tunnel>,
    /// Who knows the names that are not the cloud's own.
    pub forwarders: Forwarders,
    /// The bucket that backups go to, if not into a directory.
    pub backups: Option<Bucket>,
    /// The text of the policy file, or nothing.
    pub policy: String,
    /// From where images come and where they are kept, besides the defaults.
    pub images: ImageOptions,
    /// The text of the keystone.conf, or nothing.
    pub identity: String,
    /// What the children log.
    pub log: String,
}

/// Runs the cloud until SIGTERM or SIGINT.
pub fn run(options: &Options) -> anyhow::Result<()> {
    let directory = &options.directory;
    directory.create()?;
    let _lock = match directory.lock()? {
        Ok(lock) => lock,
        Err(Some(holder)) => bail!(
            "a cloud already runs on {} (process {}); end it, or choose another --state",
            directory.path().display(),
            holder.pid
        ),
        Err(None) => bail!("a cloud already runs on {}", directory.path().display()),
    };
    let user = directory.control_user()?;
    directory.create_parts(user)?;
    privileges::raise_open_files();
    let signals = signals(options.tls.is_some())?;
    let listener =
        TcpListener::bind(options.listen).with_context(|| format!("listen on {}", options.listen))?;
    let address = listener.local_addr().context("read the listener's address")?;
    let scheme = if options.tls.is_some() { "https" } else { "http" };
    let public_url =
        options.public_url.clone().unwrap_or_else(|| format!("{scheme}://{}", reachable(address)));
    let mut cloud = Cloud {
        options,
        user,
        listener,
        password: credentials::password(&directory.clouds_yaml()),
        public_url,
        scheme,
        address,
        authority: None,
    };
    cloud.authority = cloud.provide_certificate()?;
    cloud.supervise(&signals)
}

/// The address to tell clients for one that listens on all.
fn reachable(mut address: SocketAddr) -> SocketAddr {
    if address.ip().is_unspecified() {
        match address {
            SocketAddr::V4(_) => address.set_ip(std::net::Ipv4Addr::LOCALHOST.into()),
            SocketAddr::V6(_) => address.set_ip(std::net::Ipv6Addr::LOCALHOST.into()),
        }
        tracing::warn!("listening on every address: clients elsewhere need --public-url");
    }
    address
}

/// The signals that mean something. SIGHUP is another word for ending, unless there is a certificate to renew.
fn signals(renews: bool) -> anyhow::Result<SignalFd> {
    let mut set = SigSet::empty();
    set.add(Signal::SIGTERM);
    set.add(Signal::SIGINT);
    if renews {
        set.add(Signal::SIGHUP);
    }
    set.thread_block().context("block signals")?;
    SignalFd::with_flags(&set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context("wait for signals")
}

struct Cloud<'a> {
    options: &'a Options,
    user: User,
    listener: TcpListener,
    address: SocketAddr,
    public_url: String,
    scheme: &'static str,
    /// Whom clients trust the certificate by, if they do not anyway.
    authority: Option<PathBuf>,
    password: String,
}

/// Both children and the pipe on which control says that it is ready.
struct Pair {
    control: Process,
    agent: Process,
    ready: File,
    started: Instant,
}

struct Process {
    name: &'static str,
    child: Child,
    pidfd: OwnedFd,
}

/// What woke the supervisor.
#[derive(PartialEq, Eq)]
enum Woken {
    Told,
    Renew,
    Ready,
    Ended,
    Timeout,
}

impl Cloud<'_> {
    fn supervise(&self, signals: &SignalFd) -> anyhow::Result<()> {
        let mut announced = false;
        let mut pause = PAUSE_MIN;
        loop {
            let mut pair = self.start()?;
            let mut waits_for_ready = true;
            let told = loop {
                match pair.wait(signals, waits_for_ready)? {
                    Woken::Told => break true,
                    Woken::Ended => break false,
                    Woken::Renew => self.renew_certificate(&pair),
                    Woken::Ready if !pair.is_ready()? => waits_for_ready = false,
                    Woken::Ready => {
                        waits_for_ready = false;
                        if !announced {
                            self.announce()?;
                            announced = true;
                        }
                    }
                    Woken::Timeout => {}
                }
            };
            let lived = pair.started.elapsed();
            let ended = pair.end(told);
            if told {
                tracing::info!("told to end; instances run on");
                return Ok(());
            }
            if !announced {
                bail!("the cloud could not start: {ended}");
            }
            if lived >= LIVED {
                pause = PAUSE_MIN;
            }
            tracing::error!(pause_ms = pause.as_millis(), "{ended}; starting both anew");
            if wait_for_signal(signals, pause)? {
                return Ok(());
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    fn provide_certificate(&self) -> anyhow::Result<Option<PathBuf>> {
        match &self.options.tls {
            None => Ok(None),
            Some(source) => {
                let names = certificates::names(self.address, &self.public_url);
                source.provide(&self.options.directory, self.user, &names).context("provide a certificate")
            }
        }
    }

    /// Has control show the certificate that is there now; if it cannot be used, the one before stays.
    fn renew_certificate(&self, pair: &Pair) {
        let told = self.provide_certificate().and_then(|_| {
            rustix::process::pidfd_send_signal(&pair.control.pidfd, rustix::process::Signal::HUP)
                .context("tell the control process")
        });
        match told {
            Ok(()) => tracing::info!("the certificate is renewed"),
            Err(error) => tracing::error!("the certificate stays as it is: {error:#}"),
        }
    }

    fn start(&self) -> anyhow::Result<Pair> {
        let parent = rustix::process::getpid().as_raw_pid();
        let mut lines = Vec::new();
        for name in self.host_names() {
            let (ours, theirs) = UnixStream::pair().context("make a line between control and agent")?;
            lines.push((name, ours, theirs));
        }
        let (ready, ready_writer) = io::pipe().context("make the pipe on which control says it is ready")?;

        let backups = match &self.options.backups {
            Some(bucket) => Some((bucket, UnixStream::pair().context("make the line for backups")?)),
            None => None,
        };

        let keeper = match self.options.driver {
            DriverKind::Kvm => Some(start_keeper()?),
            DriverKind::Fake => None,
        };
        let handover = agent::Handover {
            parent,
            log: self.options.log.clone(),
            driver: self.options.driver,
            volumes: self.options.volumes.clone(),
            providers: self.options.providers.clone(),
            tunnel: self.options.tunnel,
            forwarders: self.options.forwarders.clone(),
            backups: backups.as_ref().map(|(_, (_, line))| Inherited::of(line)),
            namespaces: keeper.as_ref().map(Inherited::of),
            hosts: lines.iter().map(|(name, _, line)| (name.clone(), Inherited::of(line))).collect(),
        };
        let mut fds: Vec<&dyn AsFdDyn> = lines.iter().map(|(_, _, line)| line as &dyn AsFdDyn).collect();
        fds.extend(backups.as_ref().map(|(_, (_, line))| line as &dyn AsFdDyn));
        fds.extend(keeper.as_ref().map(|line| line as &dyn AsFdDyn));
        let agent = self.start_child("agent", &handover, &fds)?;

        let handover = control::Handover {
            parent,
            log: self.options.log.clone(),
            user: self.user,
            listener: Inherited::of(&self.listener),
            hosts: lines.iter().map(|(name, line, _)| (name.clone(), Inherited::of(line))).collect(),
            ready: Inherited::of(&ready_writer),
            public_url: self.public_url.clone(),
            providers: self.options.providers.clone(),
            tls: self.options.tls.is_some(),
            admin_password: self.password.clone(),
            policy: self.options.policy.clone(),
            images: self.options.images.clone(),
            identity: self.options.identity.clone(),
            backups: backups.as_ref().map(|(bucket, (line, _))| ((*bucket).clone(), Inherited::of(line))),
        };
        let mut fds: Vec<&dyn AsFdDyn> = lines.iter().map(|(_, line, _)| line as &dyn AsFdDyn).collect();
        fds.push(&self.listener);
        fds.push(&ready_writer);
        fds.extend(backups.as_ref().map(|(_, (line, _))| line as &dyn AsFdDyn));
        let control = self.start_child("control", &handover, &fds)?;
        let ready = File::from(OwnedFd::from(ready));
        Ok(Pair { control, agent, ready, started: Instant::now() })
    }

    fn start_child<T: serde::Serialize>(
        &self,
        name: &'static str,
        handover: &T,
        fds: &[&dyn AsFdDyn],
    ) -> anyhow::Result<Process> {
        let mut child = handover::spawn(name, handover, fds, self.options.directory.path())?;
        let pid = i32::try_from(child.id()).ok().and_then(Pid::from_raw);
        let pidfd = pid
            .ok_or(rustix::io::Errno::SRCH)
            .and_then(|pid| rustix::process::pidfd_open(pid, PidfdFlags::empty()));
        match pidfd {
            Ok(pidfd) => Ok(Process { name, child, pidfd }),
            Err(error) => {
                // Nothing can be done about a child that can neither be watched nor killed.
                let _ = child.kill();
                let _ = child.wait();
                Err(error).with_context(|| format!("watch the {name} process"))
            }
        }
    }

    /// This host's name, or those of the simulated ones.
    fn host_names(&self) -> Vec<String> {
        let hostname = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        let hostname = match hostname.trim() {
            "" => "localhost".into(),
            name => name.to_string(),
        };
        match self.options.fake_hosts {
            0 | 1 => vec![hostname],
            hosts => (0..hosts.min(FAKE_HOSTS_MAX)).map(|n| format!("fake-{n:04}")).collect(),
        }
    }

    /// Writes the credentials and says the one line that tells that all is ready.
    fn announce(&self) -> anyhow::Result<()> {
        let directory = &self.options.directory;
        let owner = directory.credentials_user();
        let clouds_yaml = directory.clouds_yaml();
        let authority = self.authority.as_deref();
        let text = credentials::clouds_yaml(&self.public_url, &self.password, authority);
        directory.write_secret(&clouds_yaml, owner, &text)?;
        let text = credentials::openrc(&self.public_url, &self.password, authority);
        directory.write_secret(&directory.openrc(), owner, &text)?;
        let mut stdout = io::stdout().lock();
        let (scheme, address) = (self.scheme, self.address);
        let written = writeln!(stdout, "ready {scheme}://{address} clouds.yaml={}", clouds_yaml.display())
            .and_then(|()| stdout.flush());
        if let Err(error) = written {
            tracing::warn!(%error, "nobody reads that the cloud is ready");
        }
        Ok(())
    }
}

impl Pair {
    fn wait(&self, signals: &SignalFd, waits_for_ready: bool) -> anyhow::Result<Woken> {
        let mut fds = vec![
            PollFd::new(signals, PollFlags::IN),
            PollFd::new(&self.control.pidfd, PollFlags::IN),
            PollFd::new(&self.agent.pidfd, PollFlags::IN),
        ];
        if waits_for_ready {
            fds.push(PollFd::new(&self.ready, PollFlags::IN));
        }
        match rustix::event::poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => return Ok(Woken::Timeout),
            Err(error) => return Err(error).context("wait for the children"),
        }
        let woken = |index: usize| fds.get(index).is_some_and(|fd| !fd.revents().is_empty());
        Ok(if woken(0) {
            told(signals)?
        } else if woken(3) {
            Woken::Ready
        } else if woken(1) || woken(2) {
            Woken::Ended
        } else {
            Woken::Timeout
        })
    }

    /// Whether control said that it is ready, rather than that it ended.
    fn is_ready(&mut self) -> anyhow::Result<bool> {
        let mut byte = [0];
        Ok(self.ready.read(&mut byte).context("read whether control is ready")? == 1)
    }

    /// Ends both and says which had ended by itself and how.
    fn end(mut self, told: bool) -> String {
        let mut sentences = Vec::new();
        // When one ends, the other does too: the culprit may be the slower one.
        let patience = if told { Duration::ZERO } else { CULPRIT_PATIENCE };
        for process in [&self.control, &self.agent] {
            let _ = process_id::has_ended_within(&process.pidfd, patience);
        }
        for process in [&mut self.control, &mut self.agent] {
            match process.child.try_wait() {
                Ok(Some(status)) => {
                    sentences.push(format!("the {} process ended with {status}", process.name))
                }
                _ => {
                    if let Err(error) = process_id::end(&process.pidfd, END_PATIENCE) {
                        tracing::error!(%error, process = process.name, "the process cannot be ended");
                    }
                    // Reaps it; it has ended, or cannot be ended at all.
                    let _ = process.child.try_wait();
                }
            }
        }
        sentences.join(", ")
    }
}

/// What a signal that is there tells.
fn told(signals: &SignalFd) -> anyhow::Result<Woken> {
    let signal = signals.read_signal().context("read a signal")?.map(|signal| signal.ssi_signo);
    Ok(match signal {
        None => Woken::Timeout,
        Some(number) if number == Signal::SIGHUP as u32 => Woken::Renew,
        Some(_) => Woken::Told,
    })
}

/// Waits at most so long; whether it was told to end.
fn wait_for_signal(signals: &SignalFd, timeout: Duration) -> anyhow::Result<bool> {
    let timeout = Timespec::try_from(timeout).context("wait")?;
    let fd = signals.as_fd();
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    match rustix::event::poll(&mut fds, Some(&timeout)) {
        // Whatever starts next reads the certificate anyway.
        Ok(woken) => Ok(woken > 0 && told(signals)? == Woken::Told),
        Err(rustix::io::Errno::INTR) => Ok(false),
        Err(error) => Err(error).context("wait for signals"),
    }
}

/// Starts the keeper of namespaces for one agent, on a thread that ends with the line: the line's other end. It is a
/// thread and no process, since making namespaces is the one right that the agent lacks and this process has anyhow.
fn start_keeper() -> anyhow::Result<OwnedFd> {
    let (ours, theirs) = net::keeper::line().context("make the line to the keeper of namespaces")?;
    let keep = move || {
        if let Err(error) = net::keeper::serve(&ours) {
            tracing::error!(%error, "the keeper of namespaces has ended");
        }
    };
    std::thread::Builder::new().name("namespaces".to_owned()).spawn(keep).context("start the keeper")?;
    Ok(theirs)
}
