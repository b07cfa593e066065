//! A snapshot of everything but memory, for another process of the same host: header and state section, as a file has them.

use super::header::{HEADER_BYTES, Header, STATE_BYTES_MAX};
use super::{Description, Error, MachineState, read, write};

/// Bytes of the header.
pub(crate) const HEAD_BYTES: usize = HEADER_BYTES;

/// Header and state section of a guest with so many MiB, and so many of these that come and go.
///
/// # Errors
/// It cannot be named.
pub(crate) fn encode(
    memory_mib: (u32, u32),
    description: Description,
    state: &MachineState,
) -> Result<([u8; HEAD_BYTES], Vec<u8>), Error> {
    let (header, state) = write::describe(memory_mib, description, state)?;
    Ok((header.encode(), state))
}

/// What a header says, checked as that of any snapshot, with the length of the state section behind it.
///
/// # Errors
/// It is of another version, or none.
pub(crate) fn decode_head(bytes: &[u8; HEAD_BYTES]) -> Result<(Header, usize), Error> {
    let header = Header::decode(bytes)?;
    let length = header.state.0;
    debug_assert!(length <= STATE_BYTES_MAX, "the header was checked");
    Ok((header, usize::try_from(length).expect("invariant: bounded")))
}

/// The state section, checked against its header.
///
/// # Errors
/// It is damaged, or none.
pub(crate) fn decode_state(header: &Header, bytes: &[u8]) -> Result<MachineState, Error> {
    if crc32fast::hash(bytes) != header.state.1 {
        return Err(Error::Damaged("state"));
    }
    let state = read::parse_state(bytes)?;
    if state.vcpus.len() != usize::from(header.vcpus) {
        return Err(Error::Invalid("its number of vCPUs"));
    }
    Ok(state)
}
