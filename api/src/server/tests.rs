//! Connections as clients, good and bad, make them.

use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;

#[tokio::test]
async fn shutdown_lets_the_request_under_way_end_and_takes_no_more() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route(
        "/slow",
        axum::routing::get(async || {
            tokio::time::sleep(Duration::from_millis(300)).await;
            "done"
        }),
    );
    let (end, ended) = tokio::sync::oneshot::channel::<()>();
    let server = tokio::spawn(serve(listener, None, router, async {
        let _ = ended.await;
    }));
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"GET /slow HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    // An idle connection and one that never ends its head do not hold the shutdown up either.
    let _idle = TcpStream::connect(address).await.unwrap();
    let mut loris = TcpStream::connect(address).await.unwrap();
    loris.write_all(b"GET / HT").await.unwrap();
    tokio::time::sleep(Duration::from_millis(100)).await;
    end.send(()).unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
    tokio::time::timeout(DRAIN_TIMEOUT * 2, server).await.unwrap().unwrap();
    assert!(TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn head_that_is_too_long_is_refused() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(serve(listener, None, Router::new(), std::future::pending()));
    let mut client = TcpStream::connect(address).await.unwrap();
    let head = format!("GET /{} HTTP/1.1\r\nhost: h\r\n\r\n", "a".repeat(2 * HEAD_BYTES_MAX));
    // The server may close before it has all of it.
    let _ = client.write_all(head.as_bytes()).await;
    let mut answer = Vec::new();
    let _ = client.read_to_end(&mut answer).await;
    let answer = String::from_utf8_lossy(&answer);
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 4"), "{answer}");
}

/// The begin of an HTTP/2 connection with one request, `GET /` (RFC 9113 §3.4, §6.2; RFC 7541 appendix A).
fn http2_request() -> Vec<u8> {
    let mut bytes = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    bytes.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    let head = [0x82, 0x86, 0x84, 0x41, 1, b'h'];
    bytes.extend([0, 0, head.len() as u8, 1, 5, 0, 0, 0, 1]);
    bytes.extend(head);
    bytes
}

/// Reads frames until one of headers; the first byte of its block, which for an indexed status says it.
async fn http2_status(client: &mut (impl AsyncRead + Unpin)) -> u8 {
    loop {
        let mut head = [0; 9];
        client.read_exact(&mut head).await.unwrap();
        let mut payload = vec![0; usize::from(head[1]) << 8 | usize::from(head[2])];
        client.read_exact(&mut payload).await.unwrap();
        if head[3] == 1 {
            return payload[0];
        }
    }
}

/// `:status 200` in HPACK's static table, indexed.
const STATUS_200: u8 = 0x88;

async fn started(tls: Option<Arc<Tls>>) -> std::net::SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let router = Router::new().route("/", axum::routing::get(async || "here"));
    tokio::spawn(serve(listener, tls, router, std::future::pending()));
    address
}

#[tokio::test]
async fn http2_is_spoken_by_prior_knowledge_and_http1_beside_it() {
    let address = started(None).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(&http2_request()).await.unwrap();
    assert_eq!(http2_status(&mut client).await, STATUS_200);
    let mut client = TcpStream::connect(address).await.unwrap();
    // Two requests on one connection.
    for last in ["", "connection: close\r\n"] {
        client.write_all(format!("GET / HTTP/1.1\r\nhost: h\r\n{last}\r\n").as_bytes()).await.unwrap();
    }
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer.matches("HTTP/1.1 200").count(), 2, "{answer}");
}

/// A certificate for `names` with its key, in files of a directory.
fn certificate(directory: &std::path::Path, names: &[&str]) -> Vec<u8> {
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let made = rcgen::generate_simple_self_signed(names).unwrap();
    std::fs::write(directory.join("cert.pem"), made.cert.pem()).unwrap();
    std::fs::write(directory.join("key.pem"), made.signing_key.serialize_pem()).unwrap();
    made.cert.der().to_vec()
}

#[tokio::test]
async fn tls_shows_the_certificate_of_now_and_speaks_http2_by_alpn() {
    use tokio_rustls::TlsConnector;
    use tokio_rustls::rustls::crypto::ring;
    use tokio_rustls::rustls::{ClientConfig, RootCertStore};

    let directory = tempfile::tempdir().unwrap();
    let (file, key) = (directory.path().join("cert.pem"), directory.path().join("key.pem"));
    let first = certificate(directory.path(), &["cloud.test"]);
    let tls = Arc::new(Tls::open(&file, &key).unwrap());
    let address = started(Some(tls.clone())).await;
    let connect = async |trusted: &[u8], protocols: &[&[u8]]| {
        let mut roots = RootCertStore::empty();
        roots.add(trusted.to_vec().into()).unwrap();
        let mut config = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = protocols.iter().map(|name| name.to_vec()).collect();
        let stream = TcpStream::connect(address).await.unwrap();
        TlsConnector::from(Arc::new(config)).connect("cloud.test".try_into().unwrap(), stream).await
    };
    let mut client = connect(&first, &[b"h2", b"http/1.1"]).await.unwrap();
    assert_eq!(client.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
    client.write_all(&http2_request()).await.unwrap();
    assert_eq!(http2_status(&mut client).await, STATUS_200);
    let mut plain = connect(&first, &[]).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: h\r\nconnection: close\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = plain.read_to_end(&mut answer).await;
    assert!(answer.starts_with(b"HTTP/1.1 200"));
    // What cannot be used changes nothing; what can is shown to whoever comes next, and nobody is cut off.
    std::fs::write(&file, "nonsense").unwrap();
    assert!(tls.reload(&file, &key).is_err());
    assert!(connect(&first, &[]).await.is_ok());
    let second = certificate(directory.path(), &["cloud.test"]);
    tls.reload(&file, &key).unwrap();
    assert!(connect(&first, &[]).await.is_err());
    assert!(connect(&second, &[]).await.is_ok());
    // Who speaks no TLS is not answered in the clear.
    let mut clear = TcpStream::connect(address).await.unwrap();
    clear.write_all(b"GET / HTTP/1.1\r\nhost: h\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = clear.read_to_end(&mut answer).await;
    assert!(!answer.starts_with(b"HTTP"));
}
