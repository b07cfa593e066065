//! What a driver asks of a block device (VIRTIO 1.3 §5.2.6), read from its chain once and checked before anything is
//! done: what was counted is what is executed, whatever the guest does to its memory meanwhile.

use super::super::limiter::{Cost, Direction};
use super::super::queue::Chain;
use super::super::spec::block as spec;
use super::{DISCARD_RANGES_MAX, DISCARD_SECTORS_MAX, Failure, WRITE_ZEROES_SECTORS_MAX};
use crate::memory::GuestMemory;

/// A request that the device may execute.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Request {
    /// Bytes to the guest.
    Read(Range),
    /// Bytes from the guest.
    Write(Range),
    /// What was written becomes durable.
    Flush,
    /// The serial, as much of it as there is room for.
    Identify { bytes: usize },
    /// Ranges whose content is not needed any more.
    Discard(Vec<Range>),
    /// A range of zeros; its room may be given back.
    WriteZeroes { range: Range, free: bool },
}

/// A range in bytes, checked to lie on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Range {
    pub(super) offset: u64,
    pub(super) length: u64,
}

impl Request {
    /// What it takes of the device's limits. A flush and the serial take nothing, so that neither ever waits for
    /// more than the requests before it; a discard moves no bytes.
    pub(super) fn cost(&self) -> Option<Cost> {
        let (direction, bytes) = match self {
            Self::Read(range) => (Direction::Read, range.length),
            Self::Write(range) | Self::WriteZeroes { range, .. } => (Direction::Write, range.length),
            Self::Discard(_) => (Direction::Write, 0),
            Self::Flush | Self::Identify { .. } => return None,
        };
        Some(Cost { direction, bytes, operations: 1 })
    }
}

/// What requests of one device have to keep to.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rules {
    pub(super) disk_bytes: u64,
    pub(super) read_only: bool,
    /// As negotiated.
    pub(super) features: u64,
}

impl Rules {
    /// Reads the request of `chain`, whose writable part has `data_in` bytes before the status.
    pub(super) fn parse(
        &self,
        memory: &GuestMemory,
        chain: &Chain,
        data_in: u64,
    ) -> Result<Request, Failure> {
        let mut header = [0; spec::REQUEST_HEADER_BYTES];
        if chain.read_at(memory, 0, &mut header) != header.len() {
            return Err(Failure::Io);
        }
        let kind = u32::from_le_bytes(array(&header, 0));
        let sector = u64::from_le_bytes(array(&header, 8));
        let data_out = chain.readable_bytes() - header.len() as u64;
        Ok(match kind {
            spec::T_IN => Request::Read(self.range(sector, data_in)?),
            spec::T_OUT => {
                self.writable()?;
                Request::Write(self.range(sector, data_out)?)
            }
            spec::T_FLUSH => Request::Flush,
            spec::T_GET_ID => Request::Identify {
                bytes: spec::ID_BYTES.min(usize::try_from(data_in).unwrap_or(usize::MAX)),
            },
            spec::T_DISCARD if self.features & spec::F_DISCARD != 0 => {
                self.writable()?;
                let bounds = (DISCARD_SECTORS_MAX, DISCARD_RANGES_MAX);
                Request::Discard(self.ranges(memory, chain, data_out, bounds, 0)?.0)
            }
            spec::T_WRITE_ZEROES if self.features & spec::F_WRITE_ZEROES != 0 => {
                self.writable()?;
                let (bounds, flags) = ((WRITE_ZEROES_SECTORS_MAX, 1), spec::WRITE_ZEROES_FLAG_UNMAP);
                let (ranges, flags) = self.ranges(memory, chain, data_out, bounds, flags)?;
                Request::WriteZeroes { range: ranges[0], free: flags & spec::WRITE_ZEROES_FLAG_UNMAP != 0 }
            }
            _ => return Err(Failure::Unsupported),
        })
    }

    fn writable(&self) -> Result<(), Failure> {
        if self.read_only { Err(Failure::Io) } else { Ok(()) }
    }

    /// `length` bytes from `sector`, if all of them exist.
    fn range(&self, sector: u64, length: u64) -> Result<Range, Failure> {
        let offset = sector.checked_mul(spec::SECTOR_BYTES).ok_or(Failure::Io)?;
        let end = offset.checked_add(length).ok_or(Failure::Io)?;
        let usable = self.disk_bytes / spec::SECTOR_BYTES * spec::SECTOR_BYTES;
        let whole = length.is_multiple_of(spec::SECTOR_BYTES);
        if whole && end <= usable { Ok(Range { offset, length }) } else { Err(Failure::Io) }
    }

    /// The segments of a discard or zero request, at least one, each with `flags_allowed` at most; and their flags.
    fn ranges(
        &self,
        memory: &GuestMemory,
        chain: &Chain,
        length: u64,
        (sectors_max, ranges_max): (u32, usize),
        flags_allowed: u32,
    ) -> Result<(Vec<Range>, u32), Failure> {
        let count = usize::try_from(length).map_err(|_| Failure::Io)? / spec::RANGE_BYTES;
        if count == 0 || count > ranges_max || !length.is_multiple_of(spec::RANGE_BYTES as u64) {
            return Err(Failure::Io);
        }
        let mut ranges = Vec::with_capacity(count);
        let mut flags = 0;
        for index in 0..count {
            let mut bytes = [0; spec::RANGE_BYTES];
            let at = spec::REQUEST_HEADER_BYTES + index * spec::RANGE_BYTES;
            chain.read_at(memory, at as u64, &mut bytes);
            let sector = u64::from_le_bytes(array(&bytes, 0));
            let sectors = u32::from_le_bytes(array(&bytes, 8));
            if sectors > sectors_max {
                return Err(Failure::Io);
            }
            ranges.push(self.range(sector, u64::from(sectors) * spec::SECTOR_BYTES)?);
            flags |= u32::from_le_bytes(array(&bytes, 12));
        }
        if flags & !flags_allowed == 0 { Ok((ranges, flags)) } else { Err(Failure::Unsupported) }
    }
}

/// `N` bytes of `bytes` from `at`; callers name offsets inside the fixed layouts above.
fn array<const N: usize>(bytes: &[u8; 16], at: usize) -> [u8; N] {
    bytes[at..at + N].try_into().expect("invariant: a slice of N bytes")
}
