//! Frames on the line between control and an agent: four bytes of big-endian length, then one JSON document.
//!
//! Must never know: what the documents mean.

use std::io;

use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use zeroize::Zeroizing;

use super::protocol::FRAME_BYTES_MAX;

/// Bytes set aside for a frame before any of it has come; a longer one grows as it arrives, so that four bytes
/// of a hostile peer cannot make us set aside [`FRAME_BYTES_MAX`].
const FRAME_BYTES_INITIAL_MAX: u32 = 64 << 10;

/// Why a frame could not be read or written.
#[derive(Debug, thiserror::Error)]
pub enum FrameError {
    /// The connection failed, or ended within a frame.
    #[error("the connection failed")]
    Connection(#[from] io::Error),
    /// The other side announced, or we were about to send, more than [`FRAME_BYTES_MAX`].
    #[error("a frame of {0} bytes is longer than allowed")]
    TooLong(u64),
    /// The frame is not a document of the protocol.
    #[error("a frame is not a document of the protocol")]
    Document(#[from] serde_json::Error),
}

/// Reads one document; `None` where the connection ends between two frames.
pub async fn read<T: DeserializeOwned>(
    stream: &mut (impl AsyncRead + Unpin),
) -> Result<Option<T>, FrameError> {
    let mut prefix = [0; 4];
    match stream.read(&mut prefix).await? {
        0 => return Ok(None),
        4 => {}
        n => {
            stream.read_exact(&mut prefix[n..]).await?;
        }
    }
    let length = u32::from_be_bytes(prefix);
    if length > FRAME_BYTES_MAX {
        return Err(FrameError::TooLong(u64::from(length)));
    }
    // It may hold keys of disks.
    let mut document = Zeroizing::new(Vec::with_capacity(length.min(FRAME_BYTES_INITIAL_MAX) as usize));
    let read = stream.take(u64::from(length)).read_to_end(&mut document).await?;
    if read < length as usize {
        return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
    }
    Ok(Some(serde_json::from_slice(&document)?))
}

/// Writes one document.
pub async fn write<T: Serialize>(
    stream: &mut (impl AsyncWrite + Unpin),
    document: &T,
) -> Result<(), FrameError> {
    let mut frame = Zeroizing::new(vec![0; 4]);
    serde_json::to_writer(&mut *frame, document)?;
    let length = u32::try_from(frame.len() - 4)
        .ok()
        .filter(|length| *length <= FRAME_BYTES_MAX)
        .ok_or(FrameError::TooLong(frame.len() as u64))?;
    frame[..4].copy_from_slice(&length.to_be_bytes());
    stream.write_all(&frame).await?;
    stream.flush().await?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::agent::protocol::{Query, ToAgent};

    fn query() -> ToAgent {
        ToAgent::Query { number: 7, query: Query::Console { instance: "a".into(), bytes_max: 10 } }
    }

    #[tokio::test]
    async fn written_document_is_read_back_and_end_is_none() {
        let mut wire = Vec::new();
        write(&mut wire, &query()).await.unwrap();
        write(&mut wire, &query()).await.unwrap();
        let mut wire = wire.as_slice();
        assert_eq!(read::<ToAgent>(&mut wire).await.unwrap(), Some(query()));
        assert_eq!(read::<ToAgent>(&mut wire).await.unwrap(), Some(query()));
        assert_eq!(read::<ToAgent>(&mut wire).await.unwrap(), None);
    }

    #[tokio::test]
    async fn end_within_a_frame_is_an_error() {
        let mut wire = Vec::new();
        write(&mut wire, &query()).await.unwrap();
        for cut in 1..wire.len() {
            let error = read::<ToAgent>(&mut &wire[..cut]).await.unwrap_err();
            assert!(matches!(error, FrameError::Connection(_)), "cut at {cut}: {error}");
        }
    }

    #[tokio::test]
    async fn announced_length_beyond_the_limit_is_refused_at_once() {
        let error = read::<ToAgent>(&mut [0xff; 4].as_slice()).await.unwrap_err();
        assert!(matches!(error, FrameError::TooLong(_)), "{error}");
    }

    #[tokio::test]
    async fn foreign_document_is_refused() {
        let error = read::<ToAgent>(&mut [0, 0, 0, 2, b'{', b'}'].as_slice()).await.unwrap_err();
        assert!(matches!(error, FrameError::Document(_)), "{error}");
    }
}
