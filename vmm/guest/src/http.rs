//! The guest's own HTTP server (RFC 9112): one request a connection, the routes of `parse::route`.
//!
//! Must never know: how packets travel.

use alloc::format;
use alloc::rc::Rc;
use alloc::string::String;
use alloc::vec;
use alloc::vec::Vec;
use core::fmt::Write as _;

use crate::disk::SECTOR_SIZE;
use crate::machine::Machine;
use crate::parse::route::{Route, RouteError};
use crate::stack::Stack;
use crate::tcp::{Connection, Error};
use crate::{disk, fetch, ping};

/// The port.
const PORT: u16 = 80;
/// Connections at the same time; more are refused.
pub const CONNECTIONS: usize = 16;
/// The largest request taken, head and body, in bytes.
const REQUEST_BYTES_MAX: usize = 4096;
/// The most header fields in a request.
const HEADERS_MAX: usize = 48;
/// Bytes buffered on the way in and on the way out.
const RECEIVE_BYTES: usize = 1536;
const SEND_BYTES: usize = 3072;

/// Serves one connection after the other.
pub async fn serve(machine: &'static Machine, stack: Rc<Stack>) {
    let mut connection = Connection::new(machine, &stack, RECEIVE_BYTES, SEND_BYTES);
    loop {
        connection.accept(PORT).await;
        // A peer that is gone needs no answer; the next one may.
        let answered = answer(machine, &stack, &mut connection).await;
        connection.close().await;
        if answered == Ok(Next::PowerOff) {
            machine.off();
        }
    }
}

/// What follows an answer.
#[derive(Debug, PartialEq, Eq)]
enum Next {
    Serve,
    PowerOff,
}

/// A status line, a type, a body.
struct Response {
    status: &'static str,
    content_type: &'static str,
    body: Vec<u8>,
}

impl Response {
    fn text(status: &'static str, body: impl Into<Vec<u8>>) -> Self {
        Response { status, content_type: "text/plain; charset=utf-8", body: body.into() }
    }
}

const OK: &str = "200 OK";

async fn answer(
    machine: &'static Machine,
    stack: &Rc<Stack>,
    connection: &mut Connection,
) -> Result<Next, Error> {
    let mut bytes = Vec::new();
    let response = match read(connection, &mut bytes).await? {
        Err(status) => Response::text(status, format!("{status}\n")),
        Ok(request) => {
            let route = Route::of(request.method, request.target);
            let response = match route {
                Ok(route) => respond(machine, stack, route, request.body).await,
                Err(RouteError::NotFound) => Response::text("404 Not Found", "no such path\n"),
                Err(RouteError::MethodNotAllowed) => {
                    Response::text("405 Method Not Allowed", "not for this path\n")
                }
                Err(RouteError::Malformed) => {
                    Response::text("400 Bad Request", "number, address or URL malformed\n")
                }
            };
            send(connection, &response, request.method == "HEAD").await?;
            return Ok(if route == Ok(Route::PowerOff) { Next::PowerOff } else { Next::Serve });
        }
    };
    send(connection, &response, false).await?;
    Ok(Next::Serve)
}

async fn send(connection: &mut Connection, response: &Response, head_only: bool) -> Result<(), Error> {
    let Response { status, content_type, body } = response;
    let len = body.len();
    let head = format!(
        "HTTP/1.1 {status}\r\nContent-Type: {content_type}\r\nContent-Length: {len}\r\nConnection: close\r\n\r\n"
    );
    let mut message = head.into_bytes();
    if !head_only {
        message.extend_from_slice(body);
    }
    connection.write(&message).await
}

/// A request, borrowed from the bytes it came in.
struct Request<'a> {
    method: &'a str,
    target: &'a str,
    body: &'a [u8],
}

/// Reads until a request is whole; `Err` inside is the status to refuse it with.
async fn read<'a>(
    connection: &mut Connection,
    bytes: &'a mut Vec<u8>,
) -> Result<Result<Request<'a>, &'static str>, Error> {
    let mut part = vec![0; 1024];
    let mut continued = false;
    loop {
        let count = connection.read(&mut part).await?;
        if count == 0 {
            return Err(Error::Closed);
        }
        bytes.extend_from_slice(&part[..count]);
        match progress(bytes) {
            Ok(Progress::Whole) => break,
            Ok(Progress::Partial { wants_continue }) => {
                if wants_continue && !continued {
                    continued = true;
                    connection.write(b"HTTP/1.1 100 Continue\r\n\r\n").await?;
                }
            }
            Err(status) => return Ok(Err(status)),
        }
        if bytes.len() >= REQUEST_BYTES_MAX {
            return Ok(Err("413 Content Too Large"));
        }
    }
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let parsed = request.parse(bytes);
    let (Ok(httparse::Status::Complete(start)), Some(method), Some(target)) =
        (parsed, request.method, request.path)
    else {
        return Ok(Err("400 Bad Request"));
    };
    let len = content_length(request.headers).unwrap_or(0);
    Ok(Ok(Request { method, target, body: &bytes[start..start + len] }))
}

enum Progress {
    Whole,
    Partial { wants_continue: bool },
}

fn progress(bytes: &[u8]) -> Result<Progress, &'static str> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let start = match request.parse(bytes) {
        Ok(httparse::Status::Complete(start)) => start,
        Ok(httparse::Status::Partial) => return Ok(Progress::Partial { wants_continue: false }),
        Err(_) => return Err("400 Bad Request"),
    };
    let has = |name: &str| request.headers.iter().any(|header| header.name.eq_ignore_ascii_case(name));
    if has("transfer-encoding") {
        return Err("411 Length Required");
    }
    let len = content_length(request.headers)?;
    if len > REQUEST_BYTES_MAX - start.min(REQUEST_BYTES_MAX) {
        return Err("413 Content Too Large");
    }
    let whole = bytes.len() >= start + len;
    Ok(if whole { Progress::Whole } else { Progress::Partial { wants_continue: has("expect") } })
}

fn content_length(headers: &[httparse::Header<'_>]) -> Result<usize, &'static str> {
    let Some(header) = headers.iter().find(|header| header.name.eq_ignore_ascii_case("content-length"))
    else {
        return Ok(0);
    };
    str::from_utf8(header.value).ok().and_then(|text| text.trim().parse().ok()).ok_or("400 Bad Request")
}

async fn respond(machine: &'static Machine, stack: &Rc<Stack>, route: Route<'_>, body: &[u8]) -> Response {
    match route {
        Route::Page => Response {
            status: OK,
            content_type: "text/html; charset=utf-8",
            body: page(machine, stack).into_bytes(),
        },
        Route::Metadata => match &*machine.metadata.borrow() {
            Some(metadata) => {
                Response { status: OK, content_type: "application/json", body: metadata.document.clone() }
            }
            None => Response::text("404 Not Found", "no metadata\n"),
        },
        Route::Identity => Response::text(OK, identity(machine)),
        Route::PowerOff => Response::text(OK, "powering off\n"),
        Route::Ping(target) => match ping::ping(machine, stack, target).await {
            Some(ns) => {
                Response::text(OK, format!("{target} {}.{:03} ms\n", ns / 1_000_000, ns / 1000 % 1000))
            }
            None => Response::text("504 Gateway Timeout", format!("{target} timeout\n")),
        },
        Route::Fetch(url) => match fetch::get(machine, stack, url).await {
            Ok(answer) if answer.status == 200 => Response::text(OK, answer.body),
            Ok(answer) => Response::text("502 Bad Gateway", format!("status {}\n", answer.status)),
            Err(error) => Response::text("502 Bad Gateway", format!("{error}\n")),
        },
        Route::Disks => {
            let mut list = String::new();
            for (index, disk) in machine.disks() {
                let mode = if disk.read_only() { "ro" } else { "rw" };
                // Writing to a string cannot fail.
                let _ = writeln!(list, "{index} {} {mode} {}", disk.bytes(), disk.serial());
            }
            Response::text(OK, list)
        }
        Route::Disk(index) => match machine.disk(index) {
            Ok(disk) => Response::text(OK, format!("{}\n", disk.bytes())),
            Err(error) => refused(error),
        },
        Route::ReadSector(index, sector) => {
            let mut data = [0; SECTOR_SIZE];
            match machine.disk(index).and_then(|disk| disk.read(&machine.clock, sector, &mut data)) {
                Ok(()) => {
                    Response { status: OK, content_type: "application/octet-stream", body: data.into() }
                }
                Err(error) => refused(error),
            }
        }
        Route::WriteSector(index, sector) => {
            let mut data = [0; SECTOR_SIZE];
            let Some(start) = data.get_mut(..body.len()) else {
                return Response::text("413 Content Too Large", "more than a sector\n");
            };
            start.copy_from_slice(body);
            match machine.disk(index).and_then(|disk| disk.write(&machine.clock, sector, &data)) {
                Ok(()) => Response::text(OK, "written\n"),
                Err(error) => refused(error),
            }
        }
    }
}

/// Who this guest is: generation id, a number drawn, nanoseconds since the Unix epoch (0: nobody knows).
fn identity(machine: &Machine) -> String {
    let (random, time_ns) = (machine.generation.random(), machine.generation.time_ns().unwrap_or(0));
    format!("{} {random:016x} {time_ns}\n", machine.generation)
}

fn refused(error: disk::Error) -> Response {
    let status = match error {
        disk::Error::NoDisk | disk::Error::PastEnd => "404 Not Found",
        disk::Error::ReadOnly => "403 Forbidden",
        disk::Error::Device(_) => "500 Internal Server Error",
    };
    Response::text(status, format!("{error}\n"))
}

fn page(machine: &Machine, stack: &Stack) -> String {
    let metadata = machine.metadata.borrow();
    let or_none = |text: Option<&str>| String::from(text.filter(|text| !text.is_empty()).unwrap_or("none"));
    let hostname = escaped(&or_none(metadata.as_ref().map(|metadata| &*metadata.hostname)));
    let uuid = escaped(&or_none(metadata.as_ref().map(|metadata| &*metadata.uuid)));
    let address = stack.address().map_or(String::from("none"), |address| format!("{address}"));
    let uptime_ms = machine.clock.now_ns() / 1_000_000;
    format!(
        "<!doctype html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{hostname}</title></head>\n<body>\n\
         <h1>Hello from {hostname}</h1>\n<p>This is Wisp's tiny guest. It is up and well.</p>\n<dl>\n\
         <dt>hostname</dt><dd>{hostname}</dd>\n<dt>uuid</dt><dd>{uuid}</dd>\n<dt>address</dt><dd>{address}</dd>\n\
         <dt>disks</dt><dd>{}</dd>\n<dt>uptime</dt><dd>{}.{:03} s</dd>\n</dl>\n</body>\n</html>\n",
        machine.disks().len(),
        uptime_ms / 1000,
        uptime_ms % 1000,
    )
}

/// Text as HTML: metadata is foreign.
fn escaped(text: &str) -> String {
    let mut html = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '<' => html.push_str("&lt;"),
            '>' => html.push_str("&gt;"),
            '&' => html.push_str("&amp;"),
            '"' => html.push_str("&quot;"),
            other => html.push(other),
        }
    }
    html
}
