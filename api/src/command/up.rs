//! `wisp up`: checks that the host can do it, then supervises.

use std::io::Read;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, bail};
use control::driver::host::Forwarders;
use control::driver::provider::{Provider, check_providers};
use control::driver::tunnel::Tunnel;
use control::driver::volumes::{NamedPlace, check_places};
use control::service::network::PUBLIC_NAME;

use crate::process::agent::DriverKind;
use crate::process::bucket::Bucket;
use crate::process::certificates::Source;
use crate::process::control::ImageOptions;
use crate::process::keystone_conf::{self, KeystoneConf};
use crate::process::state_directory::StateDirectory;
use crate::process::supervisor::{self, Options};

/// Start the cloud of this machine and serve until SIGTERM.
///
/// When all is ready, one line says where: `ready http://ADDR:PORT clouds.yaml=DIR/clouds.yaml`. With TLS, SIGHUP has the
/// certificate read or made anew while connections run. The first start makes
/// the administrator, flavors, the network `public` and the image `tiny`. Instances outlive the command; the next
/// `wisp up` on the same directory takes them over. `wisp down` removes them.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  \
    sudo wisp up\n  \
    sudo wisp up --state ./cloud --listen 127.0.0.1:0\n  \
    sudo wisp up --listen 0.0.0.0:5000 --public-url https://cloud.example:5000 --tls generate\n  \
    wisp up --driver fake --state /tmp/cloud      the whole API without root, KVM or guests\n\n\
    The administrator's password is taken from WISP_ADMIN_PASSWORD, or generated once.")]
pub(super) struct Arguments {
    /// The cloud's directory; made if missing.
    #[arg(long, value_name = "DIR", default_value_os_t = StateDirectory::default_path())]
    state: PathBuf,
    /// Where to serve the API; port 0 takes a free one.
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:5000")]
    listen: String,
    /// The URL that clients reach the API by, if it is another than the address.
    #[arg(long, value_name = "URL")]
    public_url: Option<String>,
    /// Speak TLS, with a certificate by an authority of the cloud's own (DIR/ca.pem), made at the first start.
    #[arg(long, value_enum, value_name = "HOW", conflicts_with = "tls_cert")]
    tls: Option<TlsHow>,
    /// Speak TLS with this certificate: a PEM file, the server's own first.
    #[arg(long, value_name = "FILE", requires = "tls_key")]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key: a PEM file.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_key: Option<PathBuf>,
    /// The authority that clouds.yaml tells clients to trust, if they do not anyway.
    #[arg(long, value_name = "FILE", requires = "tls_cert")]
    tls_ca: Option<PathBuf>,
    /// What runs the instances.
    #[arg(long, value_enum, default_value_t = DriverKind::Kvm)]
    driver: DriverKind,
    /// Serve passwords and tokens unencrypted to other machines.
    #[arg(long)]
    insecure: bool,
    /// Who may do what, over the defaults: rules in oslo.policy's YAML form, by the services' own names.
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// A host that images may be fetched from though its address is not public; may be given several times.
    #[arg(long, value_name = "HOST[:PORT]")]
    image_source: Vec<String>,
    /// A bucket of an S3-compatible service as a second image store, `s3`. Its keys are taken from WISP_S3_ACCESS_KEY and
    /// WISP_S3_SECRET_KEY, its region from WISP_S3_REGION.
    #[arg(long, value_name = "URL/BUCKET[/PREFIX]")]
    image_bucket: Option<String>,
    /// Kinds and lives of tokens and rules of passwords: the sections [token] and [security_compliance] of a keystone.conf.
    #[arg(long, value_name = "FILE")]
    identity: Option<PathBuf>,
    /// What keeps the disks of volumes: `file` beside the rest, `file:DIRECTORY` elsewhere (on NFS, say), thin volumes of
    /// LVM, `lvm:GROUP/POOL`, in a pool that is there, or, in a program built with the feature `ceph`, images of Ceph's,
    /// `ceph:POOL[/USER]`. Several may be given, each with a name, which volume types ask for as
    /// `volume_backend_name`: `fast=lvm:vg/pool`. One that has volumes must stay.
    #[arg(long, value_name = "[NAME=]BACKEND", default_value = "file")]
    volumes: Vec<NamedPlace>,
    /// An interface of this host that is on a physical network, for networks of type `flat` and `vlan`; may be given several
    /// times. For flat networks the cloud has the interface for itself: it must have no addresses and be in no bridge. From
    /// FIRST to LAST are the VLANs of networks that name none.
    #[arg(long, value_name = "NAME=INTERFACE[,FIRST-LAST]")]
    provider: Vec<Provider>,
    /// An address of this host at which other hosts of the cloud reach it: networks of type `vxlan` are joined to their ports
    /// there. With `,shared` all networks share one VXLAN device, which needs a kernel with VLANs on bridges.
    #[arg(long, value_name = "ADDR[,shared]")]
    tunnel: Option<Tunnel>,
    /// A name server for the names that guests ask for and that are not the cloud's own; up to three may be given, `none` for
    /// nobody. Unless one is, the host's own (/etc/resolv.conf).
    #[arg(long, value_name = "ADDR[:PORT]")]
    dns_forwarder: Vec<String>,
    /// A bucket of an S3-compatible service that backups of volumes go to, instead of a directory of the host. Keys and region
    /// are taken from where --image-bucket takes them. Backups in the directory stay good.
    #[arg(long, value_name = "URL/BUCKET[/PREFIX]")]
    backup_bucket: Option<String>,
    /// How many hosts the fake driver simulates.
    #[arg(long, hide = true, default_value_t = 1, value_name = "N")]
    fake_hosts: u32,
}

/// Where a certificate comes from, if not from files.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum TlsHow {
    /// From an authority of the cloud's own.
    Generate,
}

impl Arguments {
    fn tls(&self) -> Option<Source> {
        match (&self.tls, &self.tls_cert, &self.tls_key) {
            (Some(TlsHow::Generate), ..) => Some(Source::Generated),
            (None, Some(certificate), Some(key)) => Some(Source::Files {
                certificate: certificate.clone(),
                key: key.clone(),
                authority: self.tls_ca.clone(),
            }),
            _ => None,
        }
    }
}

pub(super) fn run(arguments: Arguments, log: String) -> anyhow::Result<ExitCode> {
    let tls = arguments.tls();
    let listen = listen_address(&arguments.listen, arguments.insecure || tls.is_some())?;
    let public_url = arguments.public_url.as_deref().map(public_url).transpose()?;
    match arguments.driver {
        DriverKind::Kvm if arguments.fake_hosts != 1 => bail!("--fake-hosts goes with --driver fake"),
        DriverKind::Kvm => check_host()?,
        DriverKind::Fake if !(1..=supervisor::FAKE_HOSTS_MAX).contains(&arguments.fake_hosts) => {
            bail!("--fake-hosts takes 1 to {}", supervisor::FAKE_HOSTS_MAX)
        }
        DriverKind::Fake => {}
    }
    check_places(&arguments.volumes).map_err(|why| anyhow::anyhow!("--volumes: {why}"))?;
    check_providers(&arguments.provider, PUBLIC_NAME).map_err(|why| anyhow::anyhow!("--provider: {why}"))?;
    if arguments.driver == DriverKind::Kvm {
        check_interfaces(&arguments.provider)?;
        arguments.tunnel.map_or(Ok(()), check_tunnel)?;
    }
    supervisor::run(&Options {
        directory: StateDirectory::at(&arguments.state)?,
        listen,
        public_url,
        tls,
        driver: arguments.driver,
        fake_hosts: arguments.fake_hosts,
        volumes: arguments.volumes,
        providers: arguments.provider,
        tunnel: arguments.tunnel,
        forwarders: Forwarders::parse(&arguments.dns_forwarder)
            .map_err(|why| anyhow::anyhow!("--dns-forwarder: {why}"))?,
        images: ImageOptions {
            sources: arguments.image_source,
            bucket: option_bucket("--image-bucket", arguments.image_bucket.as_deref())?,
        },
        backups: option_bucket("--backup-bucket", arguments.backup_bucket.as_deref())?,
        identity: arguments.identity.as_deref().map(identity).transpose()?.unwrap_or_default(),
        policy: arguments.policy.as_deref().map(policy).transpose()?.unwrap_or_default(),
        log,
    })?;
    Ok(ExitCode::SUCCESS)
}

fn listen_address(text: &str, allowed: bool) -> anyhow::Result<SocketAddr> {
    let mut addresses =
        text.to_socket_addrs().with_context(|| format!("--listen {text} is not an address with a port"))?;
    let address = addresses.next().with_context(|| format!("--listen {text} names no address"))?;
    if !address.ip().is_loopback() && !allowed {
        bail!(
            "--listen {text} would serve passwords and tokens unencrypted to other machines: say --tls generate, \
             listen on 127.0.0.1, or say --insecure"
        );
    }
    Ok(address)
}

/// A bucket as an option says it, with its keys from the environment.
fn option_bucket(option: &str, text: Option<&str>) -> anyhow::Result<Option<Bucket>> {
    text.map(|text| bucket(option, text)).transpose()
}

fn bucket(option: &str, text: &str) -> anyhow::Result<Bucket> {
    let form = || format!("{option} {text} is not http(s)://HOST[:PORT]/BUCKET[/PREFIX]");
    let (scheme, rest) = text.split_once("://").with_context(form)?;
    let (host, path) = rest.split_once('/').with_context(form)?;
    let (name, prefix) = path.split_once('/').unwrap_or((path, ""));
    if !["http", "https"].contains(&scheme) || host.is_empty() || host.contains('@') || name.is_empty() {
        bail!(form());
    }
    let key =
        |name: &str| std::env::var(name).with_context(|| format!("{option} needs {name} in the environment"));
    Ok(Bucket {
        endpoint: format!("{scheme}://{host}"),
        name: name.to_owned(),
        prefix: prefix.trim_matches('/').to_owned(),
        region: key("WISP_S3_REGION").unwrap_or_else(|_| "us-east-1".to_owned()),
        access_key: key("WISP_S3_ACCESS_KEY")?,
        secret_key: key("WISP_S3_SECRET_KEY")?,
    })
}

/// The text of a file, and a byte more than it may have if it is longer.
fn read(path: &Path, bytes_max: u64) -> anyhow::Result<String> {
    let mut text = String::new();
    let file = std::fs::File::open(path).with_context(|| format!("open {}", path.display()))?;
    file.take(bytes_max + 1).read_to_string(&mut text).with_context(|| format!("read {}", path.display()))?;
    Ok(text)
}

/// The text of a keystone.conf whose rules can be kept.
fn identity(path: &Path) -> anyhow::Result<String> {
    let text = read(path, keystone_conf::FILE_BYTES_MAX)?;
    if text.len() as u64 > keystone_conf::FILE_BYTES_MAX {
        bail!("{} has more than {} bytes", path.display(), keystone_conf::FILE_BYTES_MAX);
    }
    KeystoneConf::parse(&text).with_context(|| format!("--identity {}", path.display()))?;
    Ok(text)
}

/// The text of a policy file, which holds rules that can be read: whoever starts the cloud is told, not its log.
fn policy(path: &Path) -> anyhow::Result<String> {
    let text = read(path, control::policy::FILE_BYTES_MAX as u64)?;
    control::policy::Policy::parse(&text).with_context(|| format!("--policy {}", path.display()))?;
    Ok(text)
}

fn public_url(text: &str) -> anyhow::Result<String> {
    let trimmed = text.trim_end_matches('/');
    let rest = trimmed.strip_prefix("http://").or_else(|| trimmed.strip_prefix("https://"));
    let plain =
        |rest: &str| !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_graphic() && byte != b'\'');
    if !rest.is_some_and(plain) {
        bail!("--public-url {text} is not an http or https URL");
    }
    Ok(trimmed.to_string())
}

/// Says what is missing on this host, and what works instead.
pub(super) fn check_host() -> anyhow::Result<()> {
    const FAKE: &str = "`wisp up --driver fake` serves the whole API without running guests";
    for (path, what) in [("/dev/kvm", "KVM"), ("/dev/net/tun", "the tun driver")] {
        if !Path::new(path).exists() {
            bail!("this host has no {path} ({what}), which instances need; {FAKE}; `wisp doctor` says more");
        }
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("making taps and bridges needs root; run: sudo {}\n      or: {FAKE}", command_line());
    }
    for path in ["/dev/kvm", "/dev/net/tun"] {
        std::fs::OpenOptions::new().read(true).write(true).open(path).with_context(|| {
            format!("{path} is there but cannot be used; {FAKE}; `wisp doctor` says more")
        })?;
    }
    Ok(())
}

/// Says which interface of a physical network is missing.
fn check_interfaces(providers: &[Provider]) -> anyhow::Result<()> {
    for Provider { name, interface, .. } in providers {
        if nix::net::if_::if_nametoindex(interface.as_str()).is_err() {
            bail!(
                "--provider {name}={interface}: this host has no interface {interface}; `ip link` lists them"
            );
        }
    }
    Ok(())
}

/// Says why networks cannot get to other hosts as they shall.
fn check_tunnel(Tunnel { address, is_shared }: Tunnel) -> anyhow::Result<()> {
    if std::net::UdpSocket::bind((address, 0)).is_err() {
        bail!("--tunnel {address}: this host has no such address; `ip address` lists them");
    }
    if is_shared && !net::probe::shares_vxlan() {
        bail!("--tunnel {address},shared: this host's kernel has no VLANs on bridges; leave `,shared` out");
    }
    Ok(())
}

/// This very command, as it can be typed after `sudo` (which may not search the same places for programs).
fn command_line() -> String {
    let program = std::env::current_exe().map_or_else(|_| "wisp".into(), |path| path.display().to_string());
    let words = std::env::args().skip(1).map(|word| quoted(&word));
    std::iter::once(quoted(&program)).chain(words).collect::<Vec<_>>().join(" ")
}

fn quoted(word: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_./:=,@%+".contains(&byte);
    if !word.is_empty() && word.bytes().all(plain) {
        word.to_string()
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn address_beyond_loopback_needs_insecure_and_the_error_says_so() {
        assert!(listen_address("127.0.0.1:0", false).is_ok());
        assert!(listen_address("[::1]:5000", false).is_ok());
        assert!(listen_address("0.0.0.0:5000", true).is_ok());
        let error = listen_address("0.0.0.0:5000", false).unwrap_err();
        assert!(error.to_string().contains("--insecure"), "{error}");
    }

    #[test]
    fn public_url_loses_its_last_slash_and_must_be_http() {
        assert_eq!(public_url("https://cloud.example/").unwrap(), "https://cloud.example");
        assert!(public_url("cloud.example").is_err());
        assert!(public_url("http://a\nb").is_err());
    }

    #[test]
    fn policy_that_cannot_be_read_says_file_and_line() {
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("policy.yaml");
        std::fs::write(&file, "create_network: 'role:admin or'\n").unwrap();
        let error = format!("{:#}", policy(&file).unwrap_err());
        assert!(error.contains("policy.yaml: line 1: rule create_network: a check is missing"), "{error}");
        std::fs::write(&file, "create_network: 'role:admin'\n").unwrap();
        assert!(policy(&file).is_ok());
    }

    #[test]
    fn words_with_blanks_are_quoted_for_the_shell() {
        assert_eq!(quoted("--state"), "--state");
        assert_eq!(quoted("a b"), "'a b'");
        assert_eq!(quoted("it's"), r"'it'\''s'");
    }
}
