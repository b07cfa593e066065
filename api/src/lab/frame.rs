//! What goes over the line between a lab's host and the outside.
//!
//! A frame on the wire: its kind (1 byte), the length of its body (4 bytes, little-endian, at most [`BODY_MAX`]), the body.
//!
//! Must never know: what carries it.

use std::io::{self, Read, Write};

/// Bytes of a frame's body: a pipe's worth, so that output comes as it is written.
pub(super) const BODY_MAX: usize = 64 << 10;

/// One message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Frame {
    /// The command has been started.
    Started,
    /// The command wrote this to its standard output.
    Output(Vec<u8>),
    /// The command wrote this to its standard error.
    Error(Vec<u8>),
    /// A file that is brought out begins: its place in the list, and its permissions.
    FileBegin {
        /// Its place in the job's list.
        index: u32,
        /// Its permissions.
        mode: u32,
    },
    /// The next bytes of that file.
    FileData(Vec<u8>),
    /// That file is complete.
    FileEnd,
    /// A file cannot be brought out.
    FileMissing {
        /// Its place in the job's list.
        index: u32,
        /// Why.
        said: String,
    },
    /// The command ended with this code, and all of its files have been brought out.
    Exit(u8),
    /// The command could not be run.
    Failure(String),
    /// To the command: its standard input.
    Input(Vec<u8>),
    /// To the command: its standard input is at its end.
    InputEnd,
    /// To the host: nothing but the interrupt that it comes by.
    Knock,
}

impl Frame {
    /// Writes the frame.
    ///
    /// # Errors
    /// The line's.
    pub(super) fn write(&self, out: &mut impl Write) -> io::Result<()> {
        let (kind, body): (u8, &[u8]) = match self {
            Self::Started => (1, &[]),
            Self::Output(bytes) => (2, bytes),
            Self::Error(bytes) => (3, bytes),
            Self::FileBegin { index, mode } => {
                return write(out, 4, &[index.to_le_bytes(), mode.to_le_bytes()].concat());
            }
            Self::FileData(bytes) => (5, bytes),
            Self::FileEnd => (6, &[]),
            Self::FileMissing { index, said } => {
                return write(out, 7, &[&index.to_le_bytes(), said.as_bytes()].concat());
            }
            Self::Exit(code) => (8, &[*code]),
            Self::Failure(said) => (9, said.as_bytes()),
            Self::Input(bytes) => (10, bytes),
            Self::InputEnd => (11, &[]),
            Self::Knock => (12, &[]),
        };
        write(out, kind, body)
    }

    /// Reads the next frame; none at the line's end.
    ///
    /// # Errors
    /// The line's, and what is no frame.
    pub(super) fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut head = [0; 5];
        match from.read_exact(&mut head[..1]) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            other => other?,
        }
        from.read_exact(&mut head[1..])?;
        let length = u32::from_le_bytes([head[1], head[2], head[3], head[4]]) as usize;
        if length > BODY_MAX {
            return Err(invalid());
        }
        let mut body = vec![0; length];
        from.read_exact(&mut body)?;
        Self::parse(head[0], body).map(Some).ok_or_else(invalid)
    }

    fn parse(kind: u8, body: Vec<u8>) -> Option<Self> {
        let number = |at: usize| Some(u32::from_le_bytes(*body.get(at..)?.first_chunk()?));
        Some(match kind {
            1 => Self::Started,
            2 => Self::Output(body),
            3 => Self::Error(body),
            4 => Self::FileBegin { index: number(0)?, mode: number(4)? },
            5 => Self::FileData(body),
            6 => Self::FileEnd,
            7 => Self::FileMissing {
                index: number(0)?,
                said: String::from_utf8_lossy(&body[4..]).into_owned(),
            },
            8 => Self::Exit(*body.first()?),
            9 => Self::Failure(String::from_utf8_lossy(&body).into_owned()),
            10 => Self::Input(body),
            11 => Self::InputEnd,
            12 => Self::Knock,
            _ => return None,
        })
    }
}

fn write(out: &mut impl Write, kind: u8, body: &[u8]) -> io::Result<()> {
    if body.len() > BODY_MAX {
        return Err(invalid());
    }
    // In one write, so that frames of several threads stay whole behind one lock.
    let mut bytes = Vec::with_capacity(5 + body.len());
    bytes.push(kind);
    bytes.extend_from_slice(&(body.len() as u32).to_le_bytes());
    bytes.extend_from_slice(body);
    out.write_all(&bytes)
}

fn invalid() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "not a frame of the lab's")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_as_they_were_written() {
        let frames = [
            Frame::Started,
            Frame::Output(b"out".into()),
            Frame::Error(vec![7; BODY_MAX]),
            Frame::FileBegin { index: 3, mode: 0o755 },
            Frame::FileData(Vec::new()),
            Frame::FileEnd,
            Frame::FileMissing { index: 1, said: "gone".into() },
            Frame::Exit(255),
            Frame::Failure("why".into()),
            Frame::Input(b"in".into()),
            Frame::InputEnd,
            Frame::Knock,
        ];
        let mut line = Vec::new();
        for frame in &frames {
            frame.write(&mut line).unwrap();
        }
        let mut line = &line[..];
        for frame in frames {
            assert_eq!(Frame::read(&mut line).unwrap(), Some(frame));
        }
        assert_eq!(Frame::read(&mut line).unwrap(), None);
    }

    #[test]
    fn what_is_no_frame_is_an_error() {
        for wrong in
            [&[2, 255, 255, 255, 255][..], &[99, 0, 0, 0, 0], &[4, 1, 0, 0, 0, 0], &[7, 0, 0, 0, 0], &[2, 9]]
        {
            assert!(Frame::read(&mut &*wrong).is_err(), "{wrong:?}");
        }
        assert!(Frame::Output(vec![0; BODY_MAX + 1]).write(&mut Vec::new()).is_err());
    }
}
