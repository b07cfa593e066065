//! A disk whose bytes lie encrypted: AES-XTS (IEEE 1619-2018) by sectors of 512 bytes, the sector's number as the tweak,
//! little-endian. This is what dm-crypt calls `aes-xts-plain64` and keeps without a header: byte for byte, what lies below
//! is a dm-crypt device in the plain format.
//!
//! # Sectors without a byte set
//! A sector that is stored as zeros is one of zeros: holes stay holes, whatever is copied, discarded or grown. So who sees
//! the stored bytes sees which sectors were never written. That a written sector is stored as zeros has a chance of one in
//! 2^4096. XTS knows no authentication: who can write the stored bytes can put back what they were, or zeros, or noise.
//!
//! Must never know: paths, where a key comes from.

#[cfg(test)]
mod tests;

use std::fmt;
use std::io;
use std::os::fd::BorrowedFd;

use aes::cipher::KeyInit as _;
use aes::{Aes128, Aes256};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use ring::rand::{SecureRandom as _, SystemRandom};
use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use xts_mode::{Xts128, get_tweak_default};
use zeroize::Zeroizing;

use super::{Disk, check_within, length_of, write_zeros};

/// What is encrypted at once.
pub const SECTOR_BYTES: usize = 512;
/// How much is encrypted in one piece: as much as the block device writes at once.
const PIECE_BYTES: usize = 64 << 10;
/// The cipher's name in dm-crypt's words.
pub const CIPHER: &str = "aes-xts-plain64";
/// The sizes of keys in bits: for AES-128 and AES-256, each with as many for the tweak.
pub const KEY_BITS: [u32; 2] = [256, 512];

/// A disk's key. It shows itself to nobody, and no copy stays in memory after it.
#[derive(Clone, PartialEq, Eq)]
pub struct DiskKey(Zeroizing<Vec<u8>>);

impl DiskKey {
    /// The key of these bytes; none unless there are as many as one of [`KEY_BITS`] says.
    #[must_use]
    pub fn new(bytes: Zeroizing<Vec<u8>>) -> Option<Self> {
        let fits = KEY_BITS.iter().any(|bits| *bits as usize == bytes.len() * 8);
        fits.then_some(Self(bytes))
    }

    /// A new random key of one of [`KEY_BITS`]; none for another size, or if the system has no randomness.
    #[must_use]
    pub fn random(bits: u32) -> Option<Self> {
        let mut key = Self::new(Zeroizing::new(vec![0; bits as usize / 8]))?;
        SystemRandom::new().fill(&mut key.0).ok()?;
        Some(key)
    }

    /// The bytes, to be sealed.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Debug for DiskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DiskKey(…)")
    }
}

/// As base64, for the lines between processes; not for a file.
impl Serialize for DiskKey {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&Zeroizing::new(STANDARD.encode(&*self.0)))
    }
}

impl<'de> Deserialize<'de> for DiskKey {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let text = Zeroizing::new(String::deserialize(deserializer)?);
        // The text stays out of the error.
        let bytes = STANDARD.decode(&*text).map_err(|_| D::Error::custom("a key is not in base64"))?;
        Self::new(Zeroizing::new(bytes)).ok_or_else(|| D::Error::custom("a key is of another size"))
    }
}

/// The key made ready; both ciphers wipe themselves.
enum Cipher {
    Aes128(Box<Xts128<Aes128>>),
    Aes256(Box<Xts128<Aes256>>),
}

/// An encrypted disk as it is stored. What is read and written where [`Self::disk`] says lies encrypted there, by whole sectors.
#[derive(Clone, Copy)]
pub struct Stored<'d> {
    /// What it lies on.
    pub disk: &'d dyn Disk,
    cipher: &'d Cipher,
}

impl Stored<'_> {
    /// Whether a part of the disk is of whole sectors; no other is encrypted or decrypted by itself.
    #[must_use]
    pub fn is_whole(offset: u64, length: u64) -> bool {
        offset.is_multiple_of(SECTOR_BYTES as u64) && length.is_multiple_of(SECTOR_BYTES as u64)
    }

    /// Encrypts what is to be stored from `offset` on.
    pub fn encrypt(&self, sectors: &mut [u8], offset: u64) {
        debug_assert!(Self::is_whole(offset, length_of(sectors)), "whole sectors");
        self.cipher.encrypt(sectors, number_of(offset));
    }

    /// Decrypts what is stored from `offset` on.
    pub fn decrypt(&self, sectors: &mut [u8], offset: u64) {
        debug_assert!(Self::is_whole(offset, length_of(sectors)), "whole sectors");
        self.cipher.decrypt(sectors, number_of(offset));
    }
}

impl Cipher {
    fn new(DiskKey(bytes): &DiskKey) -> Self {
        let (data, tweak) = bytes.split_at(bytes.len() / 2);
        let size = "invariant: a disk's key has one of two sizes";
        if let (Ok(data), Ok(tweak)) = (Aes128::new_from_slice(data), Aes128::new_from_slice(tweak)) {
            return Self::Aes128(Box::new(Xts128::new(data, tweak)));
        }
        let [data, tweak] = [data, tweak].map(|half| Aes256::new_from_slice(half).expect(size));
        Self::Aes256(Box::new(Xts128::new(data, tweak)))
    }

    fn encrypt(&self, sectors: &mut [u8], first: u128) {
        match self {
            Self::Aes128(xts) => xts.encrypt_area(sectors, SECTOR_BYTES, first, get_tweak_default),
            Self::Aes256(xts) => xts.encrypt_area(sectors, SECTOR_BYTES, first, get_tweak_default),
        }
    }

    fn decrypt(&self, sectors: &mut [u8], first: u128) {
        for (number, sector) in (first..).zip(sectors.chunks_exact_mut(SECTOR_BYTES)) {
            if *sector == [0; SECTOR_BYTES] {
                continue;
            }
            match self {
                Self::Aes128(xts) => xts.decrypt_sector(sector, get_tweak_default(number)),
                Self::Aes256(xts) => xts.decrypt_sector(sector, get_tweak_default(number)),
            }
        }
    }
}

/// A disk in the clear over one that holds it encrypted. A tail of that one shorter than a sector stays out of reach.
///
/// Reading and writing parts of sectors is possible; two writes to parts of one sector at the same time would undo one
/// another, but guests write whole sectors (VIRTIO 1.3 §5.2.6), and copies go from one thread.
pub struct EncryptedDisk<D> {
    disk: D,
    cipher: Cipher,
}

impl<D: Disk> EncryptedDisk<D> {
    /// The disk that lies on `disk` encrypted with `key`.
    #[must_use]
    pub fn new(disk: D, key: &DiskKey) -> Self {
        Self { disk, cipher: Cipher::new(key) }
    }

    fn read_sectors(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.disk.read_at(buffer, offset)?;
        self.cipher.decrypt(buffer, number_of(offset));
        Ok(())
    }

    fn write_sectors(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        let mut piece = Vec::with_capacity(buffer.len().min(PIECE_BYTES));
        let mut at = offset;
        for part in buffer.chunks(PIECE_BYTES) {
            piece.clear();
            piece.extend_from_slice(part);
            self.cipher.encrypt(&mut piece, number_of(at));
            self.disk.write_at(&piece, at)?;
            at += length_of(part);
        }
        Ok(())
    }
}

fn number_of(offset: u64) -> u128 {
    u128::from(offset / SECTOR_BYTES as u64)
}

/// How many bytes of a buffer of `length` are to be done next: whole sectors, or a part of one, and where in it they begin.
fn next(length: usize, offset: u64) -> (usize, Option<usize>) {
    // Below a sector's size, so it fits.
    let inside = (offset % SECTOR_BYTES as u64) as usize;
    if inside == 0 && length >= SECTOR_BYTES {
        (length - length % SECTOR_BYTES, None)
    } else {
        (length.min(SECTOR_BYTES - inside), Some(inside))
    }
}

impl<D: Disk> Disk for EncryptedDisk<D> {
    fn size_bytes(&self) -> u64 {
        self.disk.size_bytes() / SECTOR_BYTES as u64 * SECTOR_BYTES as u64
    }

    fn file(&self) -> Option<BorrowedFd<'_>> {
        self.disk.file()
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        check_within(self.size_bytes(), offset, length_of(buffer))?;
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            let (count, inside) = next(rest.len(), at);
            let (part, after) = rest.split_at_mut(count);
            match inside {
                None => self.read_sectors(part, at)?,
                Some(inside) => {
                    let mut sector = [0; SECTOR_BYTES];
                    self.read_sectors(&mut sector, at - inside as u64)?;
                    part.copy_from_slice(&sector[inside..inside + count]);
                }
            }
            (rest, at) = (after, at + count as u64);
        }
        Ok(())
    }

    /// Sectors that were never written are zeros here too.
    fn next_data(&self, offset: u64) -> io::Result<u64> {
        let found = self.disk.next_data(offset)?;
        Ok(found.min(self.size_bytes()))
    }

    fn write_at(&self, buffer: &[u8], offset: u64) -> io::Result<()> {
        check_within(self.size_bytes(), offset, length_of(buffer))?;
        let (mut rest, mut at) = (buffer, offset);
        while !rest.is_empty() {
            let (count, inside) = next(rest.len(), at);
            let (part, after) = rest.split_at(count);
            match inside {
                None => self.write_sectors(part, at)?,
                Some(inside) => {
                    let mut sector = [0; SECTOR_BYTES];
                    self.read_sectors(&mut sector, at - inside as u64)?;
                    sector[inside..inside + count].copy_from_slice(part);
                    self.write_sectors(&sector, at - inside as u64)?;
                }
            }
            (rest, at) = (after, at + count as u64);
        }
        Ok(())
    }

    fn flush(&self) -> io::Result<()> {
        self.disk.flush()
    }

    fn stored(&self) -> Option<Stored<'_>> {
        Some(Stored { disk: &self.disk, cipher: &self.cipher })
    }

    /// Of whole sectors alone: those become zeros or stay, and so do they here.
    fn discard(&self, offset: u64, length: u64) -> io::Result<()> {
        check_within(self.size_bytes(), offset, length)?;
        let first = offset.next_multiple_of(SECTOR_BYTES as u64);
        let end = (offset + length) / SECTOR_BYTES as u64 * SECTOR_BYTES as u64;
        if first < end { self.disk.discard(first, end - first) } else { Ok(()) }
    }

    /// Whole sectors of zeros are stored as such; see the module.
    fn write_zeroes(&self, offset: u64, length: u64, free: bool) -> io::Result<()> {
        check_within(self.size_bytes(), offset, length)?;
        let first = offset.next_multiple_of(SECTOR_BYTES as u64);
        let end = (offset + length) / SECTOR_BYTES as u64 * SECTOR_BYTES as u64;
        if first >= end {
            return write_zeros(self, offset, length);
        }
        write_zeros(self, offset, first - offset)?;
        self.disk.write_zeroes(first, end - first, free)?;
        write_zeros(self, end, offset + length - end)
    }
}
