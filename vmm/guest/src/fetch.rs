//! An HTTP client, as much as metadata services need: one GET, one answer (RFC 9112).
//!
//! Must never know: what is fetched.

use alloc::format;
use alloc::rc::Rc;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt;
use core::net::IpAddr;

use crate::machine::Machine;
use crate::parse::route::Url;
use crate::stack::Stack;
use crate::tcp::{self, Connection};

/// The largest answer taken, head and body, in bytes: user data has at most 64 KiB.
pub const ANSWER_BYTES_MAX: usize = 72 << 10;
/// How long connecting may take, in seconds.
const CONNECT_S: u64 = 3;
/// The most header fields in an answer.
const HEADERS_MAX: usize = 32;
/// Bytes buffered in each direction.
const BUFFER_BYTES: usize = 4096;

/// Why there is no answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// The connection failed.
    Tcp(tcp::Error),
    /// It was closed before the answer was whole.
    Truncated,
    /// The answer is larger than [`ANSWER_BYTES_MAX`].
    TooLarge,
    /// It is not HTTP, or in chunks.
    Malformed,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Error::Tcp(error) => error.fmt(f),
            Error::Truncated => f.write_str("answer is cut short"),
            Error::TooLarge => f.write_str("answer is too large"),
            Error::Malformed => f.write_str("answer is not understood"),
        }
    }
}

impl From<tcp::Error> for Error {
    fn from(error: tcp::Error) -> Self {
        Error::Tcp(error)
    }
}

/// An answer.
pub struct Answer {
    /// The status code.
    pub status: u16,
    /// The body.
    pub body: Vec<u8>,
}

/// Gets `url`.
pub async fn get(machine: &'static Machine, stack: &Rc<Stack>, url: Url<'_>) -> Result<Answer, Error> {
    let mut connection = Connection::new(machine, stack, BUFFER_BYTES, BUFFER_BYTES);
    connection.connect(url.address, url.port, CONNECT_S).await?;
    let Url { address, target, .. } = url;
    let host = match address {
        IpAddr::V4(address) => format!("{address}"),
        IpAddr::V6(address) => format!("[{address}]"),
    };
    let request =
        format!("GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\nAccept: */*\r\n\r\n");
    connection.write(request.as_bytes()).await?;
    let answer = read(&mut connection).await;
    connection.close().await;
    answer
}

async fn read(connection: &mut Connection) -> Result<Answer, Error> {
    let mut bytes = Vec::new();
    let mut part = vec![0; 1024];
    loop {
        let count = connection.read(&mut part).await?;
        bytes.extend_from_slice(&part[..count]);
        let head = head(&bytes)?;
        let end = match head {
            Some(Head { start, body_len: Some(len), .. }) => start.saturating_add(len),
            _ => usize::MAX,
        };
        if let Some(head) = head
            && (bytes.len() >= end || count == 0 && head.body_len.is_none())
        {
            bytes.truncate(end);
            bytes.drain(..head.start);
            return Ok(Answer { status: head.status, body: bytes });
        }
        if count == 0 {
            return Err(Error::Truncated);
        }
        if bytes.len() > ANSWER_BYTES_MAX || end > ANSWER_BYTES_MAX && end != usize::MAX {
            return Err(Error::TooLarge);
        }
    }
}

/// What the head of an answer says.
struct Head {
    status: u16,
    /// Where the body starts.
    start: usize,
    /// Its length, if it does not just end with the connection.
    body_len: Option<usize>,
}

/// Reads the head, once all of it is there.
fn head(bytes: &[u8]) -> Result<Option<Head>, Error> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let httparse::Status::Complete(start) = response.parse(bytes).map_err(|_| Error::Malformed)? else {
        return Ok(None);
    };
    let mut head = Head { status: response.code.ok_or(Error::Malformed)?, start, body_len: None };
    for header in response.headers {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(Error::Malformed);
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let len = str::from_utf8(header.value).ok().and_then(|text| text.trim().parse().ok());
            head.body_len = Some(len.ok_or(Error::Malformed)?);
        }
    }
    Ok(Some(head))
}
