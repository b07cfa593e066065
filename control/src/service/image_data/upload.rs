//! An upload under way: from a client's pieces to what writes them, with no more of them between than a few.

use bytes::{Bytes, BytesMut};
use storage::image::{Sealed, Upload};
use tokio::sync::{mpsc, oneshot};

use crate::error::{Error, Result};

/// How many pieces of an upload may wait for the disk; a client that is faster waits.
const PIECES_MAX: usize = 8;
/// How large one is, but the last.
const PIECE_BYTES: usize = 256 << 10;

/// An upload under way. Dropped before [`ImageUpload::finish`], the image has no data again.
#[derive(Debug)]
pub struct ImageUpload {
    /// What came since the last whole piece.
    begun: BytesMut,
    pieces: mpsc::Sender<Piece>,
    outcome: oneshot::Receiver<Result<()>>,
}

#[derive(Debug)]
enum Piece {
    Bytes(Bytes),
    End,
}

/// The other end: what comes of an upload.
pub(super) struct Incoming(mpsc::Receiver<Piece>);

impl ImageUpload {
    /// One that has just begun, where its pieces come out, and whom to tell how it ended.
    pub(super) fn begin() -> (Self, Incoming, oneshot::Sender<Result<()>>) {
        let (pieces, incoming) = mpsc::channel(PIECES_MAX);
        let (done, outcome) = oneshot::channel();
        (Self { begun: BytesMut::new(), pieces, outcome }, Incoming(incoming), done)
    }

    /// Appends bytes, waiting while the disk is behind. False once the upload has failed; `finish` says why.
    pub async fn write(&mut self, bytes: Bytes) -> bool {
        // What a socket gives at once is little: a copy of it costs less than to wake those who digest it for each.
        self.begun.extend_from_slice(&bytes);
        self.begun.len() < PIECE_BYTES || self.send().await
    }

    async fn send(&mut self) -> bool {
        let piece = std::mem::replace(&mut self.begun, BytesMut::with_capacity(PIECE_BYTES * 2)).freeze();
        self.pieces.send(Piece::Bytes(piece)).await.is_ok()
    }

    /// Ends the upload: the image is active now, or its data staged.
    ///
    /// # Errors
    /// Why it failed; the image is queued again then, and nothing of the data is left.
    pub async fn finish(mut self) -> Result<()> {
        self.send().await;
        // If the other end has gone, it says why in the outcome.
        let _ = self.pieces.send(Piece::End).await;
        self.outcome.await.unwrap_or_else(|_| Err(Error::Unavailable("the upload was cut off".to_owned())))
    }

    /// Takes it all back; the image is queued again once this returns.
    pub async fn abandon(self) {
        drop(self.pieces);
        // Why it failed is known: it was cut off here.
        let _ = self.outcome.await;
    }
}

impl Incoming {
    /// Writes what comes until its end; an end that does not come takes it all back.
    pub(super) fn write_all(mut self, mut upload: Upload) -> Result<Sealed> {
        loop {
            match self.0.blocking_recv() {
                Some(Piece::Bytes(bytes)) => upload.write(bytes)?,
                Some(Piece::End) => return Ok(upload.seal()?),
                None => return Err(Error::Unavailable("the upload was cut off".to_owned())),
            }
        }
    }
}
