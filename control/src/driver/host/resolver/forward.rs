//! Asking others: each question from a port of its own and under a number of its own, both drawn at random, so that whoever
//! does not see it cannot answer it (RFC 5452). Nothing is remembered: no guest can make another one believe anything.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::{Instant, timeout, timeout_at};

use super::message::{Asked, UDP_BYTES_MAX, is_cut};

/// How long one server may take.
const SERVER_TIMEOUT: Duration = Duration::from_secs(3);
/// The most servers that are asked, one after the other (resolv.conf(5), `MAXNS`).
const SERVERS_MAX: usize = 3;
/// The longest file of servers that is read, in bytes.
const FILE_BYTES_MAX: u64 = 64 << 10;
/// The port of name servers.
const PORT: u16 = 53;

/// Who knows the names that are not the cloud's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Forwarders {
    /// The servers in a file as resolv.conf(5) describes it, as it is when it is needed.
    File(PathBuf),
    /// These.
    Listed(Vec<SocketAddr>),
}

impl Forwarders {
    /// The host's own.
    #[must_use]
    pub fn of_host() -> Self {
        Self::File("/etc/resolv.conf".into())
    }

    /// As a command line names them: addresses, each with a port or without, or `none`; the host's own if nothing is said.
    ///
    /// # Errors
    /// The first that is none, in one sentence.
    pub fn parse(words: &[String]) -> Result<Self, String> {
        match words {
            [] => return Ok(Self::of_host()),
            [word] if word == "none" => return Ok(Self::Listed(Vec::new())),
            _ => {}
        }
        let servers = words.iter().map(|word| {
            let address = || word.parse::<IpAddr>().ok().map(|address| SocketAddr::new(address, PORT));
            let parsed = word.parse::<SocketAddr>().ok().or_else(address);
            parsed.ok_or_else(|| format!("`{word}` is no address of a name server"))
        });
        let servers = servers.collect::<Result<Vec<_>, _>>()?;
        if servers.len() > SERVERS_MAX {
            return Err(format!("at most {SERVERS_MAX} name servers are asked"));
        }
        Ok(Self::Listed(servers))
    }

    async fn servers(&self) -> Vec<SocketAddr> {
        match self {
            Self::Listed(servers) => servers.iter().copied().take(SERVERS_MAX).collect(),
            Self::File(path) => {
                let Ok(file) = tokio::fs::File::open(path).await else { return Vec::new() };
                let mut text = Vec::new();
                if file.take(FILE_BYTES_MAX).read_to_end(&mut text).await.is_err() {
                    return Vec::new();
                }
                listed(&String::from_utf8_lossy(&text))
            }
        }
    }
}

/// The servers of a file as resolv.conf(5) describes it.
fn listed(text: &str) -> Vec<SocketAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let address = words.next().filter(|word| *word == "nameserver").and(words.next())?;
        Some(SocketAddr::new(address.parse().ok()?, PORT))
    });
    servers.take(SERVERS_MAX).collect()
}

/// Asks one server after the other; none if nobody answers. By UDP an answer may be cut.
pub(super) async fn ask(
    forwarders: &Forwarders,
    asked: &Asked,
    tcp: bool,
    bytes_max: usize,
) -> Option<Vec<u8>> {
    for server in forwarders.servers().await {
        let answer = if tcp { by_tcp(server, asked, bytes_max).await } else { by_udp(server, asked).await };
        match answer {
            Ok(answer) => return Some(answer),
            Err(error) => tracing::debug!(%server, %error, "a name server does not answer"),
        }
    }
    None
}

async fn by_udp(server: SocketAddr, asked: &Asked) -> io::Result<Vec<u8>> {
    let any =
        if server.is_ipv4() { IpAddr::from(Ipv4Addr::UNSPECIFIED) } else { Ipv6Addr::UNSPECIFIED.into() };
    // The kernel draws the port, and a socket that is connected hears that server alone.
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    let id = number()?;
    socket.send(&asked.for_others(id)).await?;
    let deadline = Instant::now() + SERVER_TIMEOUT;
    let mut bytes = vec![0; usize::from(UDP_BYTES_MAX)];
    loop {
        let length = timeout_at(deadline, socket.recv(&mut bytes)).await??;
        if let Some(answer) = asked.answer_of(id, &bytes[..length]) {
            // A longer one that the kernel cut is cut by its server as well, or of no use.
            return Ok(answer);
        }
    }
}

async fn by_tcp(server: SocketAddr, asked: &Asked, bytes_max: usize) -> io::Result<Vec<u8>> {
    let exchange = async {
        let mut stream = TcpStream::connect(server).await?;
        let id = number()?;
        let question = asked.for_others(id);
        let length = u16::try_from(question.len()).map_err(io::Error::other)?;
        stream.write_all(&[&length.to_be_bytes()[..], &question].concat()).await?;
        let length = usize::from(stream.read_u16().await?);
        if length > bytes_max {
            return Err(io::Error::other("its answer is too long"));
        }
        let mut bytes = vec![0; length];
        stream.read_exact(&mut bytes).await?;
        let answer = asked.answer_of(id, &bytes).filter(|answer| !is_cut(answer));
        answer.ok_or_else(|| io::Error::other("what it says is no answer"))
    };
    timeout(SERVER_TIMEOUT, exchange).await?
}

/// A number that nobody can guess.
fn number() -> io::Result<u16> {
    let mut bytes = [0; 2];
    rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())?;
    Ok(u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn servers_are_read_from_the_file_and_from_words() {
        let text = "# c\nsearch x\nnameserver 9.9.9.9\nnameserver  2620:fe::fe \nnameserver x\nnameserver 1.1.1.1\nnameserver 8.8.8.8";
        let found: Vec<_> = listed(text).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["9.9.9.9:53", "[2620:fe::fe]:53", "1.1.1.1:53"]);
        let parse = |words: &[&str]| {
            Forwarders::parse(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>())
        };
        let servers = ["127.0.0.1:5353", "[2620:fe::fe]:53"].map(|text| text.parse().unwrap());
        assert_eq!(parse(&["127.0.0.1:5353", "2620:fe::fe"]), Ok(Forwarders::Listed(servers.into())));
        assert_eq!(parse(&["none"]), Ok(Forwarders::Listed(Vec::new())));
        assert_eq!(parse(&[]), Ok(Forwarders::of_host()));
        assert_eq!(parse(&["dns.example"]).unwrap_err(), "`dns.example` is no address of a name server");
        assert!(parse(&["1.1.1.1"; 4]).is_err());
    }
}
