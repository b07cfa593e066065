//! Images fetched from the web, on behalf of people who must not reach what this host reaches: only public addresses,
//! only the web's ports, checked for the name's every address and again at each redirect, bounded in bytes and time.
//!
//! Must never know: who asks, what the image is for.

use std::io::Read as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ureq::http::Uri;
use ureq::unversioned::resolver::{DefaultResolver, ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};

/// How many redirects are followed.
const REDIRECTS_MAX: u32 = 5;
/// How long a connection may take to be there.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long the other side may take to begin its answer.
const RESPONSE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a download may take: a terabyte never comes in so slowly that this matters.
const TIMEOUT: Duration = Duration::from_secs(4 * 3600);
/// Bytes read at once.
const READ_BYTES: usize = 256 << 10;
/// The longest address of an image in bytes.
pub const URL_BYTES_MAX: usize = 2048;

/// From where images may come.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// Hosts, or `host:port`, that are allowed whatever their address and port.
    allowed: Arc<[String]>,
}

/// Why an image could not be fetched.
#[derive(Debug, thiserror::Error)]
pub enum DownloadError {
    /// The address is none that images may come from.
    #[error("URI for web-download does not pass filtering: {url}: {why}")]
    Refused {
        /// The address.
        url: String,
        /// Why.
        why: &'static str,
    },
    /// The other side, or the way there, failed.
    #[error("download {url}")]
    Failed {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: Box<ureq::Error>,
    },
    /// The data broke off or came too slowly.
    #[error("read the data of {url}")]
    Broken {
        /// The address.
        url: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is longer than it may be.
    #[error("the image is longer than {bytes_max} bytes")]
    TooLarge {
        /// How long it may be.
        bytes_max: u64,
    },
}

impl Sources {
    /// Public addresses, and these hosts.
    #[must_use]
    pub fn with_allowed(allowed: Vec<String>) -> Self {
        Self { allowed: allowed.into() }
    }

    /// Checks an address as far as can be told without asking anybody.
    ///
    /// # Errors
    /// [`DownloadError::Refused`].
    pub fn check(&self, url: &str) -> Result<(), DownloadError> {
        let refused = |why| DownloadError::Refused { url: url.chars().take(URL_BYTES_MAX).collect(), why };
        if url.len() > URL_BYTES_MAX {
            return Err(refused("it is too long"));
        }
        let uri: Uri = url.parse().map_err(|_| refused("it is no URL"))?;
        let host = self.check_target(&uri).map_err(refused)?;
        if let Some(host) = host
            && let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>()
            && !is_public(address)
        {
            return Err(refused("its address is not public"));
        }
        Ok(())
    }

    /// Checks scheme, host and port; the host, unless it is allowed whatever its address.
    fn check_target<'u>(&self, uri: &'u Uri) -> Result<Option<&'u str>, &'static str> {
        let default = match uri.scheme_str() {
            Some("http") => 80,
            Some("https") => 443,
            _ => return Err("only http and https are taken"),
        };
        let host = uri.host().filter(|host| !host.is_empty()).ok_or("it names no host")?;
        if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
            return Err("it carries credentials");
        }
        let port = uri.port_u16().unwrap_or(default);
        let exact = format!("{host}:{port}");
        if self.allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(host) || *allowed == exact) {
            return Ok(None);
        }
        if uri.port().is_some() && !matches!(port, 80 | 443) {
            return Err("only the ports 80 and 443 are taken");
        }
        Ok(Some(host))
    }

    /// Fetches what is at `url`, at most `bytes_max` bytes, and hands it to `take` piece by piece until that is false.
    ///
    /// # Errors
    /// [`DownloadError`]; what was handed over is then not the whole.
    pub fn fetch(
        &self,
        url: &str,
        bytes_max: u64,
        mut take: impl FnMut(Bytes) -> bool,
    ) -> Result<(), DownloadError> {
        self.check(url)?;
        let config = ureq::config::Config::builder()
            .max_redirects(REDIRECTS_MAX)
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(RESPONSE_TIMEOUT))
            .timeout_global(Some(TIMEOUT))
            // Through a proxy the addresses would be somebody else's to check.
            .proxy(None)
            .user_agent("wisp")
            .build();
        let resolver = Checked { sources: self.clone(), inner: DefaultResolver::default() };
        let agent = ureq::Agent::with_parts(config, DefaultConnector::new(), resolver);
        let broken = |source| DownloadError::Broken { url: url.to_owned(), source };
        let response = agent.get(url).call().map_err(|error| failed(url, error))?;
        let announced = response.headers().get("content-length").and_then(|value| value.to_str().ok());
        if announced.and_then(|length| length.parse::<u64>().ok()).is_some_and(|length| length > bytes_max) {
            return Err(DownloadError::TooLarge { bytes_max });
        }
        let mut body = response.into_body().into_with_config().limit(u64::MAX).reader();
        let mut left = bytes_max;
        let mut buffer = vec![0; READ_BYTES];
        loop {
            let count = body.read(&mut buffer).map_err(broken)?;
            if count == 0 {
                return Ok(());
            }
            left = left.checked_sub(count as u64).ok_or(DownloadError::TooLarge { bytes_max })?;
            if !take(Bytes::copy_from_slice(&buffer[..count])) {
                return Ok(());
            }
        }
    }
}

/// What a [`Checked`] resolver refused is told by the word it put into its error.
fn failed(url: &str, error: ureq::Error) -> DownloadError {
    let reason = match &error {
        ureq::Error::Io(io) => io.get_ref().and_then(|inner| inner.downcast_ref::<Refusal>()).copied(),
        _ => None,
    };
    match reason {
        Some(Refusal(why)) => DownloadError::Refused { url: url.to_owned(), why },
        None => DownloadError::Failed { url: url.to_owned(), source: Box::new(error) },
    }
}

#[derive(Debug, Clone, Copy, thiserror::Error)]
#[error("{0}")]
struct Refusal(&'static str);

/// A resolver that gives out addresses only where images may come from. It is asked for every connection, so for every
/// redirect too, and its answer is what is connected to.
#[derive(Debug)]
struct Checked {
    sources: Sources,
    inner: DefaultResolver,
}

impl Resolver for Checked {
    fn resolve(
        &self,
        uri: &Uri,
        config: &ureq::config::Config,
        timeout: NextTimeout,
    ) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let refused = |why| ureq::Error::Io(std::io::Error::other(Refusal(why)));
        let checked = self.sources.check_target(uri).map_err(refused)?;
        let addresses = self.inner.resolve(uri, config, timeout)?;
        let public = |address: &SocketAddr| is_public(address.ip());
        if checked.is_some() && !addresses.iter().all(public) {
            return Err(refused("its address is not public"));
        }
        Ok(addresses)
    }
}

/// Whether an address is one of the public internet's, by the registries of special-purpose addresses (RFC 6890).
#[must_use]
pub fn is_public(address: IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => is_public_v4(address),
        IpAddr::V6(address) => is_public_v6(address),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    let special = match (a, b, c) {
        (0 | 10 | 127, ..) | (169, 254, _) | (192, 168, _) => true,
        (100, 64..=127, _) | (172, 16..=31, _) | (198, 18 | 19, _) => true,
        (192, 0, 0 | 2) | (192, 88, 99) | (198, 51, 100) | (203, 0, 113) => true,
        // Multicast, reserved, broadcast.
        (224..=255, ..) => true,
        _ => false,
    };
    !special
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let segments = address.segments();
    let embedded = |high: u16, low: u16| {
        let [a, b] = high.to_be_bytes();
        let [c, d] = low.to_be_bytes();
        is_public_v4(Ipv4Addr::new(a, b, c, d))
    };
    match segments {
        // Mapped and compatible IPv4, and what translators and tunnels carry it in.
        [0, 0, 0, 0, 0, 0xffff | 0, high, low] => embedded(high, low),
        [0x64, 0xff9b, 0, 0, 0, 0, high, low] => embedded(high, low),
        [0x2002, high, low, ..] => embedded(high, low),
        [0x64, 0xff9b, ..] | [0x100, 0, 0, 0, ..] => false,
        // Teredo, benchmarking, ORCHID and all of 2001::/23; documentation.
        [0x2001, 0..=0x1ff, ..] | [0x2001, 0xdb8, ..] | [0x3fff, ..] => false,
        // All else outside of 2000::/3 is local, multicast or not given out.
        [first, ..] => first & 0xe000 == 0x2000,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn only_public_addresses_are_public() {
        for private in [
            "0.0.0.0",
            "10.1.2.3",
            "100.64.0.1",
            "127.0.0.1",
            "169.254.169.254",
            "172.31.255.255",
            "192.0.0.8",
            "192.168.0.1",
            "198.18.0.1",
            "224.0.0.1",
            "255.255.255.255",
            "::",
            "::1",
            "::ffff:127.0.0.1",
            "::ffff:169.254.169.254",
            "64:ff9b::7f00:1",
            "2002:7f00:1::",
            "fe80::1",
            "fc00::1",
            "fd00:ec2::254",
            "ff02::1",
            "2001:db8::1",
            "2001::1",
            "::127.0.0.1",
        ] {
            assert!(!is_public(private.parse().unwrap()), "{private}");
        }
        for public in ["1.1.1.1", "8.8.8.8", "172.32.0.1", "2606:4700::1111", "::ffff:8.8.8.8"] {
            assert!(is_public(public.parse().unwrap()), "{public}");
        }
    }

    #[test]
    fn addresses_are_checked_before_anybody_is_asked() {
        let sources = Sources::with_allowed(vec!["127.0.0.1:8080".to_owned(), "mirror".to_owned()]);
        for good in [
            "http://example.org/x",
            "https://example.org/x",
            "http://example.org:443/x",
            "http://127.0.0.1:8080/x",
            "http://mirror:9/x",
        ] {
            assert!(sources.check(good).is_ok(), "{good}");
        }
        for bad in [
            "ftp://example.org/x",
            "file:///etc/passwd",
            "/etc/passwd",
            "",
            "http:///x",
            "http://127.0.0.1/x",
            "http://127.0.0.1:8081/x",
            "http://[::1]/x",
            "http://169.254.169.254/x",
            "http://example.org:22/x",
            "http://user:word@example.org/x",
            "http://mirror@127.0.0.1/x",
        ] {
            assert!(sources.check(bad).is_err(), "{bad}");
        }
    }

    /// A server that says this to each who connects; its address.
    fn server(answers: Vec<String>) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for answer in answers {
                let (mut stream, _) = listener.accept().unwrap();
                let mut head = [0; 4096];
                let _ = stream.read(&mut head);
                let _ = stream.write_all(answer.as_bytes());
            }
        });
        address.to_string()
    }

    fn fetch(sources: &Sources, url: &str, bytes_max: u64) -> Result<Vec<u8>, DownloadError> {
        let mut content = Vec::new();
        sources.fetch(url, bytes_max, |bytes| {
            content.extend_from_slice(&bytes);
            true
        })?;
        Ok(content)
    }

    fn whole(body: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}", body.len())
    }

    #[test]
    fn redirect_to_an_address_that_is_not_public_is_refused() {
        let inner = server(vec![whole("secret")]);
        let redirect =
            format!("HTTP/1.1 302 Found\r\nLocation: http://{inner}/\r\nContent-Length: 0\r\n\r\n");
        let outer = server(vec![redirect]);
        let sources = Sources::with_allowed(vec![outer.clone()]);
        let refused = fetch(&sources, &format!("http://{outer}/"), 100);
        assert!(matches!(refused, Err(DownloadError::Refused { .. })), "{refused:?}");
        let name = Sources::default().fetch("http://localhost/", 100, |_| true);
        assert!(matches!(name, Err(DownloadError::Refused { .. })), "{name:?}");
    }

    #[test]
    fn downloads_are_whole_or_fail() {
        let address = server(vec![
            whole("hello"),
            whole("hello"),
            "HTTP/1.1 200 OK\r\nContent-Length: 9\r\nConnection: close\r\n\r\nhello".to_owned(),
            "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".to_owned(),
            "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\nhello".to_owned(),
        ]);
        let sources = Sources::with_allowed(vec![address.clone()]);
        let url = format!("http://{address}/");
        assert_eq!(fetch(&sources, &url, 5).unwrap(), b"hello");
        assert!(matches!(fetch(&sources, &url, 4), Err(DownloadError::TooLarge { bytes_max: 4 })));
        assert!(matches!(fetch(&sources, &url, 9), Err(DownloadError::Broken { .. })), "cut off");
        assert!(matches!(fetch(&sources, &url, 9), Err(DownloadError::Failed { .. })));
        assert!(matches!(fetch(&sources, &url, 4), Err(DownloadError::TooLarge { .. })), "of unknown length");
    }
}
