//! The little of HTTP that metadata needs: requests without a body, GET and HEAD, versions 1.0 and 1.1
//! (RFC 9112). Pure: bytes in, bytes out.

use super::metadata::{MetadataTree, Node};

/// The longest request head in bytes; metadata clients send a few hundred.
pub(super) const REQUEST_BYTES_MAX: usize = 4096;
/// Header fields in one request.
const HEADERS_MAX: usize = 32;

/// What the bytes received so far amount to.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// More bytes are needed.
    Incomplete,
    /// A response, and how many bytes the request took.
    Answer(Response, usize),
}

/// One response.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Response {
    /// Status line, fields, the empty line, and what of the body is made for this response.
    pub(super) bytes: Vec<u8>,
    /// The path whose body follows.
    pub(super) body_of: Option<String>,
    /// No further request is taken.
    pub(super) close: bool,
}

/// Answers the first request in `received`.
pub(super) fn answer(received: &[u8], tree: &MetadataTree) -> Parsed {
    let mut fields = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut fields);
    let taken = match request.parse(received) {
        Ok(httparse::Status::Complete(taken)) => taken,
        Ok(httparse::Status::Partial) if received.len() < REQUEST_BYTES_MAX => return Parsed::Incomplete,
        Ok(httparse::Status::Partial) | Err(httparse::Error::TooManyHeaders) => {
            return refuse("431 Request Header Fields Too Large", "", received.len());
        }
        Err(httparse::Error::Version) => return refuse("505 HTTP Version Not Supported", "", received.len()),
        Err(_) => return refuse("400 Bad Request", "", received.len()),
    };
    let has_body = request.headers.iter().any(|field| {
        field.name.eq_ignore_ascii_case("transfer-encoding")
            || (field.name.eq_ignore_ascii_case("content-length") && field.value.trim_ascii() != b"0")
    });
    let head = match request.method {
        Some("GET") => false,
        Some("HEAD") => true,
        _ => return refuse("405 Method Not Allowed", "Allow: GET, HEAD\r\n", received.len()),
    };
    let keep = request.version == Some(1) && !has_body && !asks_to_close(request.headers);
    let path = request.path.unwrap_or("/");
    Parsed::Answer(respond(path, head, !keep, tree), if has_body { received.len() } else { taken })
}

fn respond(path: &str, head: bool, close: bool, tree: &MetadataTree) -> Response {
    match tree.find(path) {
        Some(Node::Body(path, body)) => {
            let kind = if path.ends_with(".json") {
                "application/json"
            } else if std::str::from_utf8(body).is_ok() {
                "text/plain; charset=utf-8"
            } else {
                "application/octet-stream"
            };
            Response {
                bytes: response_head("200 OK", kind, "", body.len(), close),
                body_of: (!head).then(|| path.to_owned()),
                close,
            }
        }
        Some(Node::Directory) => {
            let kind = "text/plain; charset=utf-8";
            whole("200 OK", kind, "", &tree.listing(path), head, close)
        }
        None => whole("404 Not Found", "text/plain; charset=utf-8", "", "404 Not Found\n", head, close),
    }
}

fn asks_to_close(fields: &[httparse::Header<'_>]) -> bool {
    fields.iter().any(|field| {
        field.name.eq_ignore_ascii_case("connection")
            && field
                .value
                .split(|&byte| byte == b',')
                .any(|token| token.trim_ascii().eq_ignore_ascii_case(b"close"))
    })
}

/// After this nothing is known of where the next request would begin: the connection ends.
fn refuse(status: &str, fields: &str, taken: usize) -> Parsed {
    Parsed::Answer(
        whole(status, "text/plain; charset=utf-8", fields, &format!("{status}\n"), false, true),
        taken,
    )
}

fn whole(status: &str, kind: &str, fields: &str, body: &str, head: bool, close: bool) -> Response {
    let mut bytes = response_head(status, kind, fields, body.len(), close);
    if !head {
        bytes.extend_from_slice(body.as_bytes());
    }
    Response { bytes, body_of: None, close }
}

fn response_head(status: &str, kind: &str, fields: &str, length: usize, close: bool) -> Vec<u8> {
    let connection = if close { "close" } else { "keep-alive" };
    format!(
        "HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n{fields}Connection: {connection}\r\n\r\n"
    )
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> MetadataTree {
        MetadataTree::new([("/a/b.json".to_owned(), "{}".into())].into())
    }

    fn text(request: &str) -> (String, bool) {
        match answer(request.as_bytes(), &tree()) {
            Parsed::Answer(response, _) => (String::from_utf8(response.bytes).unwrap(), response.close),
            Parsed::Incomplete => panic!("incomplete: {request}"),
        }
    }

    #[test]
    fn get_answers_the_body_and_keeps_the_connection() {
        let Parsed::Answer(response, taken) =
            answer(b"GET /a/b.json HTTP/1.1\r\nHost: x\r\n\r\nGET", &tree())
        else {
            panic!("incomplete");
        };
        assert_eq!(taken, 35);
        assert_eq!(response.body_of.as_deref(), Some("/a/b.json"));
        assert!(!response.close);
        let head = String::from_utf8(response.bytes).unwrap();
        assert!(
            head.starts_with("HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 2\r\n"),
            "{head}"
        );
    }

    #[test]
    fn head_has_the_length_but_no_body() {
        let (answer, _) = text("HEAD /a HTTP/1.1\r\n\r\n");
        assert!(answer.contains("Content-Length: 6\r\n") && answer.ends_with("\r\n\r\n"), "{answer}");
    }

    #[test]
    fn old_version_and_connection_close_end_the_connection() {
        assert!(text("GET /a HTTP/1.0\r\n\r\n").1);
        assert!(text("GET /a HTTP/1.1\r\nConnection: foo, Close\r\n\r\n").1);
    }

    #[test]
    fn what_is_not_served_is_refused_with_its_own_status() {
        assert!(text("GET /nope HTTP/1.1\r\n\r\n").0.starts_with("HTTP/1.1 404 "));
        let (put, close) = text("PUT /latest/api/token HTTP/1.1\r\nContent-Length: 4\r\n\r\nabcd");
        assert!(put.starts_with("HTTP/1.1 405 ") && put.contains("Allow: GET, HEAD\r\n") && close);
        assert!(text("GET /a HTTP/2.0\r\n\r\n").0.starts_with("HTTP/1.1 505 "));
        assert!(text("\0\0\0\0 / HTTP/1.1\r\n\r\n").0.starts_with("HTTP/1.1 400 "));
        assert!(text(&format!("GET /{} HTTP/1.1\r\n", "a".repeat(5000))).0.starts_with("HTTP/1.1 431 "));
    }

    #[test]
    fn request_with_a_body_is_answered_and_ends_the_connection() {
        let request = b"GET /a HTTP/1.1\r\nContent-Length: 4\r\n\r\nab";
        let Parsed::Answer(response, taken) = answer(request, &tree()) else { panic!("incomplete") };
        assert_eq!((response.close, taken), (true, request.len()));
    }

    #[test]
    fn part_of_a_request_waits_for_the_rest() {
        assert_eq!(answer(b"GET /a HTTP/1.1\r\nHo", &tree()), Parsed::Incomplete);
    }
}
