//! The objects of a bucket, as [`super::BucketBackups`] needs them: from the service itself, or by way of a line to a
//! process that may talk to it. Who touches disks needs neither a network nor the bucket's keys.
//!
//! On the line, a request is an operation (1 byte), the length of the name (2 bytes), a number (8 bytes: the length of what
//! is put, the most that is got, else 0), the name and what is put; an answer is its kind (1 byte), the length of what
//! follows (8 bytes), and that: what was got, or what went wrong. All numbers are little-endian.

use std::io::{self, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};

use bytes::Bytes;

use super::INDEX_BYTES_MAX;
use super::bucket::OBJECT_BYTES;

/// The objects below one prefix of a bucket. All calls hold their thread up.
pub trait Objects: Send + Sync + std::fmt::Debug {
    /// Keeps an object, instead of what was there by its name.
    ///
    /// # Errors
    /// What the service says; so for all.
    fn put(&self, name: &str, content: Bytes) -> io::Result<()>;

    /// A whole object, if there is one; one that is longer than `bytes_max` is an error of the kind `FileTooLarge`.
    ///
    /// # Errors
    /// See [`Self::put`].
    fn get(&self, name: &str, bytes_max: u64) -> io::Result<Option<Bytes>>;

    /// Deletes an object; no error if there is none.
    ///
    /// # Errors
    /// See [`Self::put`].
    fn delete(&self, name: &str) -> io::Result<()>;

    /// Deletes all objects whose names go on after this one and a `/`.
    ///
    /// # Errors
    /// See [`Self::put`].
    fn delete_below(&self, name: &str) -> io::Result<()>;
}

const PUT: u8 = 1;
const GET: u8 = 2;
const DELETE: u8 = 3;
const DELETE_BELOW: u8 = 4;

const DONE: u8 = 0;
const NOTHING: u8 = 1;
const TOO_LONG: u8 = 2;
const FAILED: u8 = 3;

const REQUEST_BYTES: usize = 11;
const ANSWER_BYTES: usize = 9;
/// The longest object either way, as a bound on what one end can make the other keep.
const CONTENT_BYTES_MAX: u64 =
    if INDEX_BYTES_MAX > OBJECT_BYTES as u64 { INDEX_BYTES_MAX } else { OBJECT_BYTES as u64 };

/// The objects at the other end of a line. One request at a time: a bucket is slower than a line.
#[derive(Debug)]
pub struct LineObjects {
    line: Mutex<UnixStream>,
}

impl LineObjects {
    /// Takes over a line whose other end [`serve_objects`] serves.
    pub fn new(line: UnixStream) -> Self {
        Self { line: Mutex::new(line) }
    }

    fn ask(&self, operation: u8, name: &str, number: u64, content: &[u8]) -> io::Result<Option<Bytes>> {
        let length = u16::try_from(name.len()).map_err(io::Error::other)?;
        let mut request = vec![operation];
        request.extend(length.to_le_bytes());
        request.extend(number.to_le_bytes());
        request.extend(name.as_bytes());
        // One that was left in the middle of an exchange is of no use: the exchange fails, and says so.
        let mut line = self.line.lock().unwrap_or_else(PoisonError::into_inner);
        line.write_all(&request)?;
        line.write_all(content)?;
        let mut head = [0; ANSWER_BYTES];
        line.read_exact(&mut head)?;
        let content = read_content(&mut line, number_at(&head, 1))?;
        match head[0] {
            DONE => Ok(Some(content.into())),
            NOTHING => Ok(None),
            TOO_LONG => Err(io::ErrorKind::FileTooLarge.into()),
            _ => Err(io::Error::other(String::from_utf8_lossy(&content).into_owned())),
        }
    }
}

impl Objects for LineObjects {
    fn put(&self, name: &str, content: Bytes) -> io::Result<()> {
        self.ask(PUT, name, content.len() as u64, &content).map(drop)
    }

    fn get(&self, name: &str, bytes_max: u64) -> io::Result<Option<Bytes>> {
        self.ask(GET, name, bytes_max, &[])
    }

    fn delete(&self, name: &str) -> io::Result<()> {
        self.ask(DELETE, name, 0, &[]).map(drop)
    }

    fn delete_below(&self, name: &str) -> io::Result<()> {
        self.ask(DELETE_BELOW, name, 0, &[]).map(drop)
    }
}

/// Serves a line until its other end is closed.
///
/// # Errors
/// What is wrong with the line, or with what came over it.
pub fn serve_objects(line: &mut UnixStream, objects: &dyn Objects) -> io::Result<()> {
    loop {
        let mut head = [0; REQUEST_BYTES];
        match line.read_exact(&mut head) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(()),
            read => read?,
        }
        let number = number_at(&head, 3);
        let mut name = vec![0; usize::from(u16::from_le_bytes([head[1], head[2]]))];
        line.read_exact(&mut name)?;
        let name = String::from_utf8(name).map_err(io::Error::other)?;
        let answer = match head[0] {
            PUT => {
                let content = read_content(line, number)?;
                objects.put(&name, content.into()).map(|()| Some(Bytes::new()))
            }
            GET => objects.get(&name, number.min(CONTENT_BYTES_MAX)),
            DELETE => objects.delete(&name).map(|()| Some(Bytes::new())),
            DELETE_BELOW => objects.delete_below(&name).map(|()| Some(Bytes::new())),
            _ => return Err(io::Error::new(io::ErrorKind::InvalidData, "no such operation")),
        };
        let (kind, content) = match answer {
            Ok(Some(content)) => (DONE, content),
            Ok(None) => (NOTHING, Bytes::new()),
            Err(error) if error.kind() == io::ErrorKind::FileTooLarge => (TOO_LONG, Bytes::new()),
            Err(error) => {
                // Addresses and accounts are not for the owners of backups, whom the answer reaches.
                tracing::warn!(error = &error as &dyn std::error::Error, object = name, "the bucket failed");
                (FAILED, Bytes::from_static(b"the bucket cannot be reached or refuses; the log says why"))
            }
        };
        let mut answer = vec![kind];
        answer.extend((content.len() as u64).to_le_bytes());
        line.write_all(&answer)?;
        line.write_all(&content)?;
    }
}

/// What follows a head that promised so many bytes; memory is taken as they come.
fn read_content(line: &mut UnixStream, length: u64) -> io::Result<Vec<u8>> {
    if length > CONTENT_BYTES_MAX {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "too much for one object"));
    }
    let mut content = Vec::new();
    line.take(length).read_to_end(&mut content)?;
    if content.len() as u64 == length { Ok(content) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
}

fn number_at(head: &[u8], at: usize) -> u64 {
    let mut number = [0; 8];
    number.copy_from_slice(&head[at..at + 8]);
    u64::from_le_bytes(number)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::super::bucket::tests::bucket;
    use super::super::{BucketBackups, conformance};
    use super::*;

    #[test]
    fn line_conforms_and_tells_failures() {
        let (objects, _runtime) = bucket();
        let (near, mut far) = UnixStream::pair().unwrap();
        std::thread::scope(|scope| {
            let served = objects.clone();
            let server = scope.spawn(move || serve_objects(&mut far, &*served));
            let end = near.try_clone().unwrap();
            let line = Arc::new(LineObjects::new(near));
            conformance::conforms(&BucketBackups::new(line.clone()));
            assert_eq!(objects.names(), Vec::<String>::new());
            line.put("a/b", Bytes::from_static(b"content")).unwrap();
            assert_eq!(line.get("a/b", 7).unwrap().unwrap(), "content");
            assert_eq!(line.get("a/b", 6).unwrap_err().kind(), io::ErrorKind::FileTooLarge);
            assert_eq!(line.get("a", 7).unwrap(), None);
            line.delete_below("a").unwrap();
            assert_eq!(line.get("a/b", 7).unwrap(), None);
            // The conformance test leaks what a dead process would hold.
            end.shutdown(std::net::Shutdown::Both).unwrap();
            server.join().unwrap().unwrap();
        });
    }

    #[test]
    fn nonsense_ends_a_line() {
        let (objects, _runtime) = bucket();
        for nonsense in [&[9; REQUEST_BYTES][..], &[PUT, 0, 0, 255, 255, 255, 255, 255, 255, 255, 255]] {
            let (mut near, mut far) = UnixStream::pair().unwrap();
            near.write_all(nonsense).unwrap();
            near.shutdown(std::net::Shutdown::Write).unwrap();
            assert!(serve_objects(&mut far, &*objects).is_err());
        }
    }

    #[test]
    fn end_of_the_other_process_is_an_error() {
        let (near, far) = UnixStream::pair().unwrap();
        drop(far);
        assert!(LineObjects::new(near).get("a", 1).is_err());
    }
}
