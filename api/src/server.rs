//! Serving HTTP/1.1 and HTTP/2 on a listener, plain or by TLS: how many connections, how long each may dawdle, and how
//! it ends. HTTP/2 is spoken to who begins with it: by ALPN, or by prior knowledge without TLS.
//!
//! Must never know: what is served.

mod idle;
pub(crate) mod slow;
pub mod tls;
mod write_limit;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tower::ServiceExt;

use self::idle::{Idle, Seat};
use self::slow::{Paced, Peer, Peers};
use self::tls::Tls;
pub use self::write_limit::WRITE_TIMEOUT;
use self::write_limit::WriteLimit;

/// The most connections at once. Whoever comes when there are so many takes the place of the one that has been idle
/// longest, so that connections that ask for nothing keep nobody out; the process raises its limit of open files.
pub const CONNECTIONS_MAX: usize = 2048;
/// How long a client may take to send a request's head, or leave a connection idle between two requests.
pub const HEAD_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take to agree on TLS.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// The longest head of a request in bytes, the query with hundreds of ids included.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// The most header lines of a request: clients send a dozen, proxies add some.
pub const HEADERS_MAX: usize = 100;
/// The most requests at once on one HTTP/2 connection: hyper's own bound.
pub const STREAMS_MAX: u32 = 200;
/// How often an HTTP/2 peer is asked whether it is still there.
const PING_INTERVAL: Duration = Duration::from_secs(30);
/// How long requests under way may take to end after a shutdown was asked for.
pub const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// How long to wait when no connection can be accepted (too many open files): asking again at once would only spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until `shutdown` resolves, then lets the requests under way end.
pub async fn serve(
    listener: TcpListener,
    tls: Option<Arc<Tls>>,
    router: Router,
    shutdown: impl Future<Output = ()>,
) {
    let permits = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let idle = Idle::default();
    let peers = Peers::default();
    let (ending, _) = watch::channel(false);
    tokio::pin!(shutdown);
    loop {
        let accepted = tokio::select! {
            () = &mut shutdown => break,
            accepted = listener.accept() => accepted,
        };
        let (stream, address) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(error = &error as &dyn std::error::Error, "a connection cannot be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let permit = tokio::select! {
            () = &mut shutdown => break,
            permit = permit(&permits, &idle) => permit,
        };
        let peer = peers.peer(address.ip());
        let connection =
            Connection { router: router.clone(), ending: ending.subscribe(), seat: idle.seat(), peer };
        let tls = tls.clone();
        tokio::spawn(async move {
            // Small answers go out at once; a socket that refuses the option still works.
            let _ = stream.set_nodelay(true);
            match tls {
                None => connection.serve(stream).await,
                Some(tls) => connection.serve_by(&tls, stream).await,
            }
            drop(permit);
        });
    }
    drop(listener);
    ending.send_replace(true);
    let all = u32::try_from(CONNECTIONS_MAX).unwrap_or(u32::MAX);
    // Whoever is not done by then is cut off.
    let _ = tokio::time::timeout(DRAIN_TIMEOUT, permits.acquire_many(all)).await;
}

/// A place for one more connection, if need be that of the one that has been idle longest.
async fn permit(permits: &Arc<Semaphore>, idle: &Idle) -> OwnedSemaphorePermit {
    if let Ok(permit) = Arc::clone(permits).try_acquire_owned() {
        return permit;
    }
    idle.evict_one();
    Arc::clone(permits).acquire_owned().await.expect("invariant: the semaphore is never closed")
}

struct Connection {
    router: Router,
    ending: watch::Receiver<bool>,
    seat: Seat,
    peer: Peer,
}

impl Connection {
    async fn serve_by(self, tls: &Tls, stream: TcpStream) {
        let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, tls.accept(stream));
        let stream = tokio::select! {
            () = self.seat.evicted() => return,
            stream = handshake => stream,
        };
        // Who speaks no TLS, or does not trust us, is no event of ours.
        if let Ok(Ok(stream)) = stream {
            self.serve(stream).await;
        }
    }

    async fn serve(mut self, stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static) {
        let mut builder = auto::Builder::new(TokioExecutor::new());
        builder
            .http1()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_TIMEOUT)
            .max_headers(HEADERS_MAX)
            .max_buf_size(HEAD_BYTES_MAX);
        builder
            .http2()
            .timer(TokioTimer::new())
            .max_concurrent_streams(STREAMS_MAX)
            .max_header_list_size(HEAD_BYTES_MAX as u32)
            .keep_alive_interval(PING_INTERVAL)
            .keep_alive_timeout(HANDSHAKE_TIMEOUT);
        let (router, seat, peer) = (self.router, self.seat.clone(), self.peer);
        let service = hyper::service::service_fn(move |request: Request<Incoming>| {
            let (router, busy) = (router.clone(), seat.busy());
            let request = request.map(|body| Paced::new(body, peer.clone()));
            async move {
                let response = router.oneshot(request).await;
                drop(busy);
                response
            }
        });
        let connection = builder.serve_connection(TokioIo::new(WriteLimit::new(stream)), service);
        tokio::pin!(connection);
        let silent = tokio::time::sleep(HEAD_TIMEOUT);
        tokio::pin!(silent);
        let mut begins = true;
        loop {
            tokio::select! {
                // A client that breaks off is no event of ours.
                _ = &mut connection => return,
                _ = self.ending.wait_for(|ending| *ending) => break,
                () = self.seat.evicted() => break,
                () = &mut silent, if begins => begins = false,
            }
            // It has said nothing, or not even whether it speaks HTTP/2: hyper's own limit is not on yet.
            if !self.seat.has_asked() {
                return;
            }
        }
        // A connection without any request has nothing to end.
        if self.seat.has_asked() {
            connection.as_mut().graceful_shutdown();
            let _ = connection.await;
        }
    }
}

#[cfg(test)]
mod tests;
