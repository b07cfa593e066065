//! Bytes with descriptors over a stream (unix(7), `SCM_RIGHTS`).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;

use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags,
};

use super::REQUEST_FDS_MAX;

/// Sends `bytes`, or as many as go at once, with all of `descriptors`; how many bytes were sent.
///
/// # Errors
/// The socket's, or more descriptors than [`REQUEST_FDS_MAX`].
pub(crate) fn send(stream: &UnixStream, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    if descriptors.len() > REQUEST_FDS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "more descriptors than a request has"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REQUEST_FDS_MAX))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        let fits = ancillary.push(SendAncillaryMessage::ScmRights(descriptors));
        assert!(fits, "invariant: there is room for as many as a request has");
    }
    loop {
        match rustix::net::sendmsg(stream, &[IoSlice::new(bytes)], &mut ancillary, SendFlags::NOSIGNAL) {
            Err(Errno::INTR) => {}
            sent => return Ok(sent?),
        }
    }
}

/// Receives what is there into `buffer`, and the descriptors that came with it into `descriptors`; how many bytes.
///
/// # Errors
/// The socket's, or more descriptors than [`REQUEST_FDS_MAX`] in all.
pub(crate) fn receive(
    stream: &UnixStream,
    buffer: &mut [u8],
    descriptors: &mut Vec<OwnedFd>,
) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(REQUEST_FDS_MAX))];
    let mut ancillary = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::net::recvmsg(
        stream,
        &mut [IoSliceMut::new(buffer)],
        &mut ancillary,
        RecvFlags::CMSG_CLOEXEC,
    )?;
    for message in ancillary.drain() {
        if let RecvAncillaryMessage::ScmRights(passed) = message {
            descriptors.extend(passed);
        }
    }
    if received.flags.contains(ReturnFlags::CTRUNC) || descriptors.len() > REQUEST_FDS_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "it passed too many descriptors"));
    }
    Ok(received.bytes)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::fd::AsFd as _;

    use super::*;

    #[test]
    fn descriptors_arrive_with_their_bytes_and_too_many_are_refused() {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let (mut reader, writer) = io::pipe().unwrap();
        assert_eq!(send(&ours, b"take this", &[writer.as_fd()]).unwrap(), 9);
        drop(writer);
        let (mut buffer, mut passed) = ([0; 64], Vec::new());
        assert_eq!(receive(&theirs, &mut buffer, &mut passed).unwrap(), 9);
        std::fs::File::from(passed.pop().unwrap()).write_all(b"x").unwrap();
        let mut read = String::new();
        reader.read_to_string(&mut read).unwrap();
        assert_eq!(read, "x");

        let many = [ours.as_fd(); REQUEST_FDS_MAX];
        send(&ours, b"one", &many).unwrap();
        send(&ours, b"two", &many[..1]).unwrap();
        receive(&theirs, &mut buffer, &mut passed).unwrap();
        assert!(receive(&theirs, &mut buffer, &mut passed).is_err());
        assert!(send(&ours, b"one", &[ours.as_fd(); REQUEST_FDS_MAX + 1]).is_err());
    }
}
