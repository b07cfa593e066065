//! The other end of a guest's load, on the host's sockets: echo (RFC 862), discard (RFC 863) and chargen (RFC 864); and the same load
//! asked for by a host.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use rustix::net::{AddressFamily, SocketFlags, SocketType, sockopt};

use crate::measure::Samples;

const ECHO: u16 = 7;
const DISCARD: u16 = 9;
const CHARGEN: u16 = 19;
/// Bytes of a round trip, as the guest's.
const ECHO_BYTES: usize = 32;
/// Bytes of one call.
const CALL_BYTES: usize = 128 << 10;
/// How streams are held back: as most hosts do it. One that goes by its own measure of the way, as BBR, sends as fast as it believes
/// that it may, and says little of the way itself.
const CONGESTION_CONTROL: &str = "cubic";
/// A round trip that takes longer is lost.
const LOST: Duration = Duration::from_millis(100);

/// What became of a load: microseconds of a round trip, and gigabits a second each way.
#[derive(Debug, Clone, Default)]
pub(crate) struct Outcome {
    /// The middle one.
    pub trip_us: Samples,
    /// That which one in a hundred takes longer than.
    pub late_us: Samples,
    /// From who measures.
    pub sent: Samples,
    /// To it.
    pub received: Samples,
}

/// Gigabits a second.
pub(crate) fn gigabits(bytes: u64, seconds: f64) -> f64 {
    bytes as f64 * 8.0 / 1e9 / seconds
}

/// Serves in this thread's network namespace, in threads that end with the process.
pub(crate) fn serve() -> Result<()> {
    let echo = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, ECHO)).context("serve echo")?;
    std::thread::spawn(move || {
        let mut bytes = [0; 2048];
        while let Ok((length, from)) = echo.recv_from(&mut bytes) {
            // Whoever is gone has no use for it.
            let _ = echo.send_to(&bytes[..length], from);
        }
    });
    accept(DISCARD, discard)?;
    accept(CHARGEN, chargen)
}

fn accept(port: u16, serve: fn(TcpStream)) -> Result<()> {
    let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).context("serve a stream")?;
    // Connections have it of who accepts them.
    hold_back(&listener)?;
    std::thread::spawn(move || listener.incoming().flatten().for_each(serve));
    Ok(())
}

/// Sets how streams are held back. One that exists already would still be paced as it was.
fn hold_back(socket: impl AsFd) -> Result<()> {
    sockopt::set_tcp_congestion(socket, CONGESTION_CONTROL)
        .with_context(|| format!("hold streams back by {CONGESTION_CONTROL}; is its module loaded?"))
}

fn connect(target: Ipv4Addr, port: u16) -> Result<TcpStream> {
    let socket =
        rustix::net::socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    hold_back(&socket)?;
    rustix::net::connect(&socket, &SocketAddrV4::new(target, port))
        .with_context(|| format!("connect to {target}, port {port}"))?;
    Ok(socket.into())
}

fn discard(mut stream: TcpStream) {
    let mut bytes = vec![0; CALL_BYTES];
    while stream.read(&mut bytes).is_ok_and(|length| length > 0) {}
}

fn chargen(mut stream: TcpStream) {
    let bytes = vec![b'w'; CALL_BYTES];
    while stream.write_all(&bytes).is_ok() {}
}

/// The same load as a guest's, from here; for so long each.
pub(crate) fn measure(target: Ipv4Addr, part: Duration, outcome: &mut Outcome) -> Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    socket.connect((target, ECHO))?;
    socket.set_read_timeout(Some(LOST))?;
    let mut trips = Samples::default();
    let (started, mut bytes) = (Instant::now(), [0; ECHO_BYTES]);
    while started.elapsed() < part {
        let sent = Instant::now();
        socket.send(&bytes)?;
        if socket.recv(&mut bytes).is_ok() {
            trips.push(sent.elapsed().as_secs_f64() * 1e6);
        }
    }
    ensure!(trips.quantile(0.5) > 0.0, "{target} does not answer");
    outcome.trip_us.push(trips.quantile(0.5));
    outcome.late_us.push(trips.quantile(0.99));

    let mut bytes = vec![b'w'; CALL_BYTES];
    let mut stream = connect(target, DISCARD)?;
    let (started, mut count) = (Instant::now(), 0);
    while started.elapsed() < part {
        stream.write_all(&bytes)?;
        count += bytes.len() as u64;
    }
    outcome.sent.push(gigabits(count, started.elapsed().as_secs_f64()));
    drop(stream);
    let mut stream = connect(target, CHARGEN)?;
    let (started, mut count) = (Instant::now(), 0);
    while started.elapsed() < part {
        let length = stream.read(&mut bytes)?;
        ensure!(length > 0, "{target} has no more to say");
        count += length as u64;
    }
    outcome.received.push(gigabits(count, started.elapsed().as_secs_f64()));
    Ok(())
}

/// Reads what a guest says of its load, line by line; whether that was all of a measure.
pub(crate) fn hear(line: &str, outcome: &mut Outcome) -> Result<bool> {
    let words: Vec<&str> = line.split_whitespace().collect();
    match words[..] {
        ["traffic:", "end", "echo", .., "p50", middle, "ns", "p99", late, "ns"] => {
            outcome.trip_us.push(middle.parse::<f64>()? / 1e3);
            outcome.late_us.push(late.parse::<f64>()? / 1e3);
        }
        ["traffic:", "end", way, count, "bytes", again, "again", us, "us"] => {
            if again != "0" {
                println!("{line}");
            }
            let rate = gigabits(count.parse()?, us.parse::<f64>()? / 1e6);
            if way == "send" { outcome.sent.push(rate) } else { outcome.received.push(rate) }
        }
        ["traffic:", "done"] => return Ok(true),
        ["traffic:", "failed:", ..] => anyhow::bail!("{line}"),
        _ => {}
    }
    Ok(false)
}
