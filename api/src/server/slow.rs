//! Requests whose bodies come slowly: a peer has so many of them at once and no more, so that no one peer takes all
//! connections by sending a byte now and then. What arrives at a pace is not counted, however long it is.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv6Addr};
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Buf;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::Sleep;

/// How often it is looked at how much of a body came.
pub(super) const LOOK_EVERY: Duration = Duration::from_secs(2);
/// A body of which less came meanwhile, and which is waited for, is slow: 8 KiB a second.
pub(super) const PACE_BYTES_MIN: usize = 16 << 10;
/// The most slow bodies of one peer at once: an eighth of all connections. One that is more is refused.
pub(super) const SLOW_OF_ONE_PEER_MAX: usize = super::CONNECTIONS_MAX / 8;

/// A body that came too slowly while its peer had too many such.
#[derive(Debug, thiserror::Error)]
#[error("the peer sends too many bodies slowly")]
pub(crate) struct TooSlow;

/// The peers that are connected. No more than there are connections.
#[derive(Debug, Clone, Default)]
pub(super) struct Peers(Arc<Mutex<HashMap<IpAddr, Arc<Semaphore>>>>);

impl Peers {
    fn all(&self) -> MutexGuard<'_, HashMap<IpAddr, Arc<Semaphore>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer at an address; one network of IPv6 (a /64) is one peer, since it is one host's to choose from.
    pub(super) fn peer(&self, address: IpAddr) -> Peer {
        let address = match address.to_canonical() {
            IpAddr::V6(address) => {
                let [a, b, c, d, ..] = address.segments();
                IpAddr::V6(Ipv6Addr::new(a, b, c, d, 0, 0, 0, 0))
            }
            other => other,
        };
        let new = || Arc::new(Semaphore::new(SLOW_OF_ONE_PEER_MAX));
        let slow = self.all().entry(address).or_insert_with(new).clone();
        Peer(Arc::new(Connected { peers: self.clone(), address, slow }))
    }
}

/// One connection's peer.
#[derive(Debug, Clone)]
pub(super) struct Peer(Arc<Connected>);

#[derive(Debug)]
struct Connected {
    peers: Peers,
    address: IpAddr,
    slow: Arc<Semaphore>,
}

impl Drop for Connected {
    fn drop(&mut self) {
        let mut all = self.peers.all();
        // The map's own, and this one.
        if Arc::strong_count(&self.slow) <= 2 {
            all.remove(&self.address);
        }
    }
}

/// A body, and how it comes.
#[derive(Debug)]
pub(super) struct Paced<B> {
    body: B,
    peer: Peer,
    every: Duration,
    look: Option<Pin<Box<Sleep>>>,
    /// What came since it was looked at.
    came_bytes: usize,
    slow: Option<OwnedSemaphorePermit>,
}

impl<B> Paced<B> {
    pub(super) fn new(body: B, peer: Peer) -> Self {
        Self { body, peer, every: LOOK_EVERY, look: None, came_bytes: 0, slow: None }
    }

    /// Counts the body as slow while it is; whether its peer may have one more.
    fn may_wait(&mut self, context: &mut Context<'_>) -> bool {
        let every = self.every;
        let look = self.look.get_or_insert_with(|| Box::pin(tokio::time::sleep(every)));
        while look.as_mut().poll(context).is_ready() {
            look.as_mut().reset(tokio::time::Instant::now() + every);
            let came_bytes = std::mem::take(&mut self.came_bytes);
            if came_bytes >= PACE_BYTES_MIN {
                self.slow = None;
            } else if self.slow.is_none() {
                self.slow = Arc::clone(&self.peer.0.slow).try_acquire_owned().ok();
                if self.slow.is_none() {
                    return false;
                }
            }
        }
        true
    }
}

impl<B> Body for Paced<B>
where
    B: Body + Unpin,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    type Data = B::Data;
    type Error = Box<dyn std::error::Error + Send + Sync>;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        match Pin::new(&mut self.body).poll_frame(context) {
            Poll::Ready(frame) => {
                let came = frame.as_ref().and_then(|frame| frame.as_ref().ok()).and_then(Frame::data_ref);
                self.came_bytes += came.map_or(0, Buf::remaining);
                Poll::Ready(frame.map(|frame| frame.map_err(Into::into)))
            }
            Poll::Pending if self.may_wait(context) => Poll::Pending,
            Poll::Pending => Poll::Ready(Some(Err(Box::new(TooSlow)))),
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;
    use http_body_util::BodyExt;
    use http_body_util::combinators::BoxBody;

    use super::*;

    const EVERY: Duration = Duration::from_millis(20);

    /// Looked at more often.
    fn paced<B>(body: B, peer: Peer) -> Paced<B> {
        Paced { every: EVERY, ..Paced::new(body, peer) }
    }

    /// A body of which nothing ever comes.
    struct Never;

    impl Body for Never {
        type Data = Bytes;
        type Error = std::convert::Infallible;

        fn poll_frame(
            self: Pin<&mut Self>,
            _: &mut Context<'_>,
        ) -> Poll<Option<Result<Frame<Bytes>, Self::Error>>> {
            Poll::Pending
        }
    }

    fn address(last: u8) -> IpAddr {
        IpAddr::from([10, 0, 0, last])
    }

    #[tokio::test]
    async fn peer_has_so_many_slow_bodies_and_others_have_theirs() {
        let peers = Peers::default();
        let (one, other) = (peers.peer(address(1)), peers.peer(address(2)));
        let mut waiting = tokio::task::JoinSet::new();
        for _ in 0..SLOW_OF_ONE_PEER_MAX {
            let body = paced(Never, one.clone());
            waiting.spawn(async move { body.collect().await.map(drop) });
        }
        tokio::time::sleep(EVERY * 5).await;
        let refused = paced(Never, one.clone()).collect().await.map(drop).unwrap_err();
        assert!(refused.is::<TooSlow>());
        let more = tokio::time::timeout(EVERY * 5, paced(Never, other).collect()).await;
        assert!(more.is_err(), "another peer's body is waited for");
        // Whole bodies pass all the same.
        let whole: BoxBody<Bytes, std::convert::Infallible> =
            http_body_util::Full::new(Bytes::from_static(b"whole")).boxed();
        assert_eq!(paced(whole, one.clone()).collect().await.unwrap().to_bytes(), "whole");
        waiting.shutdown().await;
        let again = tokio::time::timeout(EVERY * 5, paced(Never, one).collect()).await;
        assert!(again.is_err(), "there is room again");
    }

    #[tokio::test]
    async fn peers_are_known_while_they_are_connected() {
        let peers = Peers::default();
        let one = peers.peer(address(1));
        let again = peers.peer(address(1));
        let network =
            [peers.peer("2001:db8::1".parse().unwrap()), peers.peer("2001:db8::2".parse().unwrap())];
        assert_eq!(peers.all().len(), 2);
        drop(one);
        assert_eq!(peers.all().len(), 2);
        drop(again);
        drop(network);
        assert!(peers.all().is_empty());
    }
}
