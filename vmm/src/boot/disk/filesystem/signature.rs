//! What a range of a disk holds, by its magic numbers.

use std::io;

use super::super::source::Source;

pub(super) const EXT: &str = "ext4";
pub(super) const XFS: &str = "XFS";
pub(super) const BTRFS: &str = "Btrfs";
pub(super) const FAT: &str = "FAT";

/// What a range of a disk holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in super::super) enum Signature {
    /// A filesystem that is read here.
    Filesystem(&'static str),
    /// Something that is known and not read.
    Known(&'static str),
    /// Nothing but zeros at its beginning.
    Empty,
    /// Something unknown: its first bytes.
    Unknown([u8; 8]),
}

/// Places, magic numbers and what they say, the filesystems that are read first.
const SIGNATURES: &[(u64, &[u8], Signature)] = &[
    (0x1_0040, b"_BHRfS_M", Signature::Filesystem(BTRFS)),
    (0, b"XFSB", Signature::Filesystem(XFS)),
    (0x438, b"\x53\xef", Signature::Filesystem(EXT)),
    (0, b"LUKS\xba\xbe", Signature::Known("an encrypted volume (LUKS)")),
    (0x200, b"LABELONE", Signature::Known("an LVM physical volume")),
    (0, b"LABELONE", Signature::Known("an LVM physical volume")),
    (0x400, b"LABELONE", Signature::Known("an LVM physical volume")),
    (0x600, b"LABELONE", Signature::Known("an LVM physical volume")),
    (0x1000, b"\xfc\x4e\x2b\xa9", Signature::Known("a member of a Linux RAID")),
    (0, b"\xfc\x4e\x2b\xa9", Signature::Known("a member of a Linux RAID")),
    (3, b"NTFS    ", Signature::Known("NTFS, as Windows has it")),
    (3, b"-FVE-FS-", Signature::Known("an encrypted volume (BitLocker)")),
    (3, b"EXFAT   ", Signature::Known("exFAT")),
    (0xff6, b"SWAPSPACE2", Signature::Known("swap")),
    (0, b"hsqs", Signature::Known("SquashFS")),
    (0x400, b"\xe2\xe1\xf5\xe0", Signature::Known("EROFS")),
    (0x400, b"\x10\x20\xf5\xf2", Signature::Known("F2FS")),
    (0x8001, b"CD001", Signature::Known("ISO 9660, a CD's filesystem")),
    (0x1018, b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca", Signature::Known("bcachefs")),
    (0x1_0034, b"ReIsEr", Signature::Known("ReiserFS")),
    (0x8000, b"JFS1", Signature::Known("JFS")),
    (0x1_055c, b"\x19\x01\x54\x19", Signature::Known("UFS, as FreeBSD has it")),
    (0x255c, b"\x19\x01\x54\x19", Signature::Known("UFS, as a BSD has it")),
    (0x2_1000, b"\x0c\xb1\xba\x00", Signature::Known("ZFS")),
    (0x20, b"NXSB", Signature::Known("APFS, as macOS has it")),
];

/// Recognises what `source` holds.
///
/// # Errors
/// The disk cannot be read.
pub(super) fn recognise(source: &Source) -> io::Result<Signature> {
    let mut buffer = [0; 16];
    for (place, magic, says) in SIGNATURES {
        let bytes = &mut buffer[..magic.len()];
        if place + (magic.len() as u64) <= source.size_bytes() {
            source.read(bytes, *place)?;
            if bytes == *magic {
                return Ok(says.clone());
            }
        }
    }
    if source.size_bytes() < 512 {
        return Ok(Signature::Empty);
    }
    let sector: [u8; 512] = source.array(0)?;
    if super::fat::is_boot_sector(&sector) {
        return Ok(Signature::Filesystem(FAT));
    }
    let mut first = [0; 8];
    first.copy_from_slice(&sector[..8]);
    Ok(if sector.iter().all(|&byte| byte == 0) { Signature::Empty } else { Signature::Unknown(first) })
}
