//! What the bytes of an image say that it is, and whether that is safe to open: the signatures of disk formats and the
//! parts of their headers that name other files or sizes. As OpenStack's own inspection does, it trusts no declaration.
//!
//! A hint for clear messages and a reason to refuse, never a reason to treat a file as something: a guest writes its own
//! disk's first bytes.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt as _;

/// What an image's bytes say it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Apparent {
    /// No bytes at all.
    Empty,
    /// An ELF file, such as an uncompressed kernel.
    Elf,
    /// An x86 Linux kernel image (`bzImage`).
    LinuxKernel,
    /// A disk with a GUID partition table.
    Gpt,
    /// A disk with a master boot record.
    Mbr,
    /// An ext2, ext3 or ext4 filesystem without partitions.
    Ext,
    /// An XFS filesystem without partitions.
    Xfs,
    /// A Btrfs filesystem without partitions.
    Btrfs,
    /// A qcow2 disk image.
    Qcow2,
    /// A QED disk image.
    Qed,
    /// A VMware disk image.
    Vmdk,
    /// A VirtualBox disk image.
    Vdi,
    /// A Virtual PC disk image.
    Vhd,
    /// A Hyper-V disk image.
    Vhdx,
    /// An encrypted disk (LUKS).
    Luks,
    /// An optical disc image (ISO 9660).
    Iso,
    /// A gzip, xz, zstd or bzip2 file.
    Compressed,
    /// None of these.
    Unknown,
}

impl std::fmt::Display for Apparent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Empty => "an empty file",
            Self::Elf => "an ELF file",
            Self::LinuxKernel => "a Linux kernel",
            Self::Gpt => "a disk with a GUID partition table",
            Self::Mbr => "a disk with a master boot record",
            Self::Ext => "an ext filesystem",
            Self::Xfs => "an XFS filesystem",
            Self::Btrfs => "a Btrfs filesystem",
            Self::Qcow2 => "a qcow2 image",
            Self::Qed => "a QED image",
            Self::Vmdk => "a VMDK image",
            Self::Vdi => "a VDI image",
            Self::Vhd => "a VHD image",
            Self::Vhdx => "a VHDX image",
            Self::Luks => "a LUKS volume",
            Self::Iso => "an ISO 9660 image",
            Self::Compressed => "a compressed file",
            Self::Unknown => "of no format that is known here",
        })
    }
}

impl Apparent {
    /// The name of the disk format, where it is one of those that hold a disk in a form of their own.
    #[must_use]
    pub fn disk_format(self) -> Option<&'static str> {
        match self {
            Self::Qcow2 => Some("qcow2"),
            Self::Qed => Some("qed"),
            Self::Vmdk => Some("vmdk"),
            Self::Vdi => Some("vdi"),
            Self::Vhd => Some("vhd"),
            Self::Vhdx => Some("vhdx"),
            Self::Luks => Some("luks"),
            Self::Iso => Some("iso"),
            _ => None,
        }
    }
}

/// The marks, in the order in which they are looked for: offset, bytes, meaning. Those that a boot sector may carry
/// besides come before it.
const MARKS: &[(u64, &[u8], Apparent)] = &[
    (0, b"\x7fELF", Apparent::Elf),
    (0, b"QFI\xfb", Apparent::Qcow2),
    (0, b"QED\0", Apparent::Qed),
    (0, b"KDMV", Apparent::Vmdk),
    (0, b"# Disk DescriptorFile", Apparent::Vmdk),
    (0, b"vhdxfile", Apparent::Vhdx),
    (0, b"conectix", Apparent::Vhd),
    (0, b"LUKS\xba\xbe", Apparent::Luks),
    (64, b"\x7f\x10\xda\xbe", Apparent::Vdi),
    (0, b"\x1f\x8b", Apparent::Compressed),
    (0, b"\xfd7zXZ\0", Apparent::Compressed),
    (0, b"\x28\xb5\x2f\xfd", Apparent::Compressed),
    (0, b"BZh", Apparent::Compressed),
    (0x202, b"HdrS", Apparent::LinuxKernel),
    (512, b"EFI PART", Apparent::Gpt),
    (4096, b"EFI PART", Apparent::Gpt),
    (0, b"XFSB", Apparent::Xfs),
    (0x1_0040, b"_BHRfS_M", Apparent::Btrfs),
    (1080, b"\x53\xef", Apparent::Ext),
    (0x8001, b"CD001", Apparent::Iso),
    (510, b"\x55\xaa", Apparent::Mbr),
];
const MARK_BYTES_MAX: usize = 21;

/// Looks at an image's marks.
///
/// # Errors
/// Where the file cannot be read.
pub fn sniff(file: &File) -> io::Result<Apparent> {
    let mut first = [0; 1];
    if read_up_to(file, &mut first, 0)? == 0 {
        return Ok(Apparent::Empty);
    }
    for (offset, mark, meaning) in MARKS {
        let mut buffer = [0; MARK_BYTES_MAX];
        let buffer = &mut buffer[..mark.len()];
        if read_up_to(file, buffer, *offset)? == mark.len() && buffer == *mark {
            return Ok(*meaning);
        }
    }
    Ok(Apparent::Unknown)
}

/// Whether the file also has an ISO 9660 descriptor: discs that boot from disks too begin with a partition table.
fn has_disc(file: &File) -> io::Result<bool> {
    let mut mark = [0; 5];
    Ok(read_up_to(file, &mut mark, 0x8001)? == mark.len() && mark == *b"CD001")
}

/// Why an image is not what it is declared to be, or not safe to open.
#[derive(Debug, thiserror::Error)]
pub enum InspectError {
    /// It cannot be read.
    #[error("read the image")]
    Read(#[from] io::Error),
    /// It is something else.
    #[error("Image content does not match disk_format {declared}: it is {found}")]
    Mismatch {
        /// As what it was declared.
        declared: String,
        /// What it is.
        found: Apparent,
    },
    /// It is that, but of a kind that is refused.
    #[error("Image of disk_format {declared} is refused: {why}")]
    Unsafe {
        /// As what it was declared.
        declared: String,
        /// Why.
        why: &'static str,
    },
}

/// The largest disk in bytes that a header may claim: 2^43, 8 TiB; what servers' disks can be is far less.
pub const VIRTUAL_BYTES_MAX: u64 = 1 << 43;

/// Checks an image's data against the disk format it was declared to have, and says how large a disk a guest would see,
/// where the format says that. Formats that are none of a disk's own forms (`ami`, `aki`, `ari`, `ploop`) hold anything
/// that is no disk image of another kind.
///
/// # Errors
/// [`InspectError`].
pub fn inspect(file: &File, declared: &str) -> Result<Option<u64>, InspectError> {
    let found = sniff(file)?;
    let mismatch = || InspectError::Mismatch { declared: declared.to_owned(), found };
    let refuse = |why| InspectError::Unsafe { declared: declared.to_owned(), why };
    let size_bytes = file.metadata()?.len();
    let virtual_bytes = match declared {
        "raw" => match found.disk_format() {
            None => Some(size_bytes),
            Some(_) => return Err(mismatch()),
        },
        "iso" if found == Apparent::Iso || has_disc(file)? => Some(size_bytes),
        "qcow2" if found == Apparent::Qcow2 => Some(qcow2(file, size_bytes)?.map_err(refuse)?),
        "vmdk" if found == Apparent::Vmdk => Some(vmdk(file)?.map_err(refuse)?),
        "vdi" if found == Apparent::Vdi => Some(little_endian(file, 0x170)?),
        "vhd" if found == Apparent::Vhd => Some(big_endian(file, 48)?),
        "vhd" if has_vhd_footer(file, size_bytes)? => Some(big_endian(file, size_bytes - 512 + 48)?),
        "vhdx" if found == Apparent::Vhdx => None,
        "ami" | "ari" | "aki" | "ploop" if found.disk_format().is_none() => Some(size_bytes),
        _ => return Err(mismatch()),
    };
    match virtual_bytes {
        Some(bytes) if bytes > VIRTUAL_BYTES_MAX => Err(refuse("it claims to be larger than 8 TiB")),
        other => Ok(other),
    }
}

/// A fixed VHD has its description at its end only.
fn has_vhd_footer(file: &File, size_bytes: u64) -> io::Result<bool> {
    let mut mark = [0; 8];
    let Some(at) = size_bytes.checked_sub(512) else { return Ok(false) };
    Ok(read_up_to(file, &mut mark, at)? == mark.len() && mark == *b"conectix")
}

/// The virtual size of a qcow2 image whose header is safe (qcow2 specification, "Header"), or why it is not.
fn qcow2(file: &File, size_bytes: u64) -> io::Result<Result<u64, &'static str>> {
    let version = big_endian_32(file, 4)?;
    if !matches!(version, 2 | 3) {
        return Ok(Err("its version is neither 2 nor 3"));
    }
    if big_endian(file, 8)? != 0 {
        return Ok(Err("it has a backing file"));
    }
    if big_endian_32(file, 32)? != 0 {
        return Ok(Err("it is encrypted"));
    }
    let cluster_bits = big_endian_32(file, 20)?;
    if !(9..=21).contains(&cluster_bits) {
        return Ok(Err("the size of its clusters cannot be"));
    }
    if version == 3 {
        // Dirty, corrupt, external data file, compression type, extended L2 entries; all else is unknown.
        let incompatible = big_endian(file, 72)?;
        if incompatible & (1 << 2) != 0 {
            return Ok(Err("it has an external data file"));
        }
        if incompatible & (1 << 1) != 0 {
            return Ok(Err("it is marked as corrupt"));
        }
        // What the library reads besides: an image that was not closed.
        if incompatible & (1 << 3) != 0 && bytes_at::<1>(file, 104)? != [0] {
            return Ok(Err("it is compressed by another method than deflate"));
        }
        if incompatible & (1 << 4) != 0 {
            return Ok(Err("it has extended tables (extended_l2)"));
        }
        if incompatible & !0b1_1011 != 0 {
            return Ok(Err("it has features that are unknown"));
        }
    }
    let virtual_bytes = big_endian(file, 24)?;
    let (l1_entries, l1_at) = (u64::from(big_endian_32(file, 36)?), big_endian(file, 40)?);
    // An L2 table has a cluster of 8-byte entries, or of 16-byte ones; each entry says where a cluster is.
    let covered = 1_u64.checked_shl(2 * cluster_bits - 4).unwrap_or(u64::MAX).max(1);
    if l1_entries < virtual_bytes.div_ceil(covered << 1) {
        return Ok(Err("its tables are too small for the size it claims"));
    }
    let l1_end = l1_entries.checked_mul(8).and_then(|bytes| bytes.checked_add(l1_at));
    if l1_entries > 0 && l1_end.is_none_or(|end| end > size_bytes) {
        return Ok(Err("its tables lie beyond its end"));
    }
    Ok(Ok(virtual_bytes))
}

/// The virtual size of a VMDK image that is all in one file (VMware Virtual Disk Format 1.1), or why it is refused.
fn vmdk(file: &File) -> io::Result<Result<u64, &'static str>> {
    /// The most bytes of a descriptor that are looked at; real ones have some hundreds.
    const DESCRIPTOR_BYTES_MAX: u64 = 64 << 10;
    let mut mark = [0; 4];
    read_up_to(file, &mut mark, 0)?;
    if mark != *b"KDMV" {
        return Ok(Err("it is a descriptor that names other files"));
    }
    let sectors = little_endian(file, 12)?;
    let at = little_endian(file, 28)?.saturating_mul(512);
    let length = little_endian(file, 36)?.saturating_mul(512).min(DESCRIPTOR_BYTES_MAX);
    let mut descriptor = vec![0; usize::try_from(length).unwrap_or(0)];
    let read = read_up_to(file, &mut descriptor, at)?;
    let text = String::from_utf8_lossy(&descriptor[..read]);
    let kind = text.lines().find_map(|line| line.trim().strip_prefix("createType="));
    match kind.map(|kind| kind.trim().trim_matches('"')) {
        Some("monolithicSparse" | "streamOptimized") => {}
        _ => return Ok(Err("it is of a kind that names other files, or of none that is known")),
    }
    // Every extent is a part of this very file.
    let extents = text
        .lines()
        .filter(|line| ["RW ", "RDONLY ", "NOACCESS "].iter().any(|access| line.starts_with(access)));
    let inside =
        |line: &str| line.split('"').nth(1).is_some_and(|name| !name.contains('/') && !name.is_empty());
    if !extents.into_iter().all(inside) {
        return Ok(Err("it names another file"));
    }
    Ok(Ok(sectors.saturating_mul(512)))
}

fn bytes_at<const N: usize>(file: &File, offset: u64) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    read_up_to(file, &mut bytes, offset)?;
    Ok(bytes)
}

/// A number that the file does not have is 0.
fn big_endian(file: &File, offset: u64) -> io::Result<u64> {
    bytes_at(file, offset).map(u64::from_be_bytes)
}

fn big_endian_32(file: &File, offset: u64) -> io::Result<u32> {
    bytes_at(file, offset).map(u32::from_be_bytes)
}

fn little_endian(file: &File, offset: u64) -> io::Result<u64> {
    bytes_at(file, offset).map(u64::from_le_bytes)
}

/// Fills as much of `buffer` as the file has at `offset`; how much.
pub(crate) fn read_up_to(file: &File, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match file.read_at(&mut buffer[done..], offset.saturating_add(done as u64)) {
            Ok(0) => break,
            Ok(count) => done += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            // An offset that no file can have has nothing.
            Err(error) if error.kind() == io::ErrorKind::InvalidInput => break,
            Err(error) => return Err(error),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(content: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        for (offset, bytes) in content {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    /// A version 3 header of 64 KiB clusters and a disk of 1 GiB, with room for its tables.
    fn qcow2_header(changes: &[(u64, &[u8])]) -> File {
        let mut parts: Vec<(u64, &[u8])> = vec![
            (0, b"QFI\xfb\0\0\0\x03"),
            (20, &[0, 0, 0, 16]),
            (24, &[0, 0, 0, 0, 0x40, 0, 0, 0]),
            (36, &[0, 0, 0, 2]),
            (40, &[0, 0, 0, 0, 0, 3, 0, 0]),
            (0x3_ffff, &[0]),
        ];
        parts.extend_from_slice(changes);
        file(&parts)
    }

    #[test]
    fn apparent_format_follows_the_marks() {
        let sniffed = |content: &[(u64, &[u8])]| sniff(&file(content)).unwrap();
        for (offset, mark, meaning) in MARKS {
            assert_eq!(sniffed(&[(*offset, mark)]), *meaning);
            assert_ne!(sniffed(&[(*offset, &mark[..mark.len() - 1])]), *meaning, "cut off");
            assert!(mark.len() <= MARK_BYTES_MAX);
        }
        assert_eq!(sniffed(&[]), Apparent::Empty);
        assert_eq!(sniffed(&[(0, b"#!/bin/sh")]), Apparent::Unknown);
        assert_eq!(sniffed(&[(510, b"\x55\xaaEFI PART")]), Apparent::Gpt, "with its protective record");
        assert_eq!(sniffed(&[(510, b"\x55\xaa\x00\x00"), (0x202, b"HdrS")]), Apparent::LinuxKernel);
        assert_eq!(sniffed(&[(510, b"\x55\xaa"), (1080, b"\x53\xef")]), Apparent::Ext);
    }

    #[test]
    fn declared_formats_must_be_what_the_bytes_say() {
        let raw = file(&[(510, b"\x55\xaa")]);
        assert_eq!(inspect(&raw, "raw").unwrap(), Some(512));
        assert_eq!(inspect(&raw, "aki").unwrap(), Some(512));
        for declared in ["qcow2", "vmdk", "vdi", "vhd", "vhdx", "iso"] {
            assert!(matches!(inspect(&raw, declared), Err(InspectError::Mismatch { .. })), "{declared}");
        }
        assert!(matches!(inspect(&qcow2_header(&[]), "raw"), Err(InspectError::Mismatch { .. })));
        let hybrid = file(&[(510, b"\x55\xaa"), (0x8001, b"CD001")]);
        assert!(inspect(&hybrid, "iso").is_ok());
        let fixed = file(&[(4096 - 512, b"conectix"), (4095, b"\0")]);
        assert_eq!(inspect(&fixed, "vhd").unwrap(), Some(0));
    }

    #[test]
    fn qcow2_headers_that_name_other_files_or_lie_are_refused() {
        assert_eq!(inspect(&qcow2_header(&[]), "qcow2").unwrap(), Some(1 << 30));
        for (why, change) in [
            ("backing file", (8, &[0, 0, 0, 0, 0, 0, 4, 0][..])),
            ("encrypted", (32, &[0, 0, 0, 1])),
            ("external data file", (72, &[0, 0, 0, 0, 0, 0, 0, 4])),
            ("unknown", (72, &[0x80, 0, 0, 0, 0, 0, 0, 0])),
            ("extended_l2", (72, &[0, 0, 0, 0, 0, 0, 0, 16])),
            ("corrupt", (72, &[0, 0, 0, 0, 0, 0, 0, 2])),
            ("clusters", (20, &[0, 0, 0, 63])),
            ("too small", (24, &[0, 0, 1, 0, 0, 0, 0, 0])),
            ("too small", (24, &[0xff; 8])),
            ("beyond its end", (40, &[0, 0, 0, 1, 0, 0, 0, 0])),
            ("beyond its end", (40, &[0xff; 8])),
            ("neither", (4, &[0, 0, 0, 4])),
        ] {
            let refused = inspect(&qcow2_header(&[change]), "qcow2").unwrap_err().to_string();
            assert!(refused.contains(why), "{why}: {refused}");
        }
    }

    #[test]
    fn vmdk_that_names_another_file_is_refused() {
        let sparse = |text: &str| {
            file(&[
                (0, b"KDMV"),
                (12, &8_u64.to_le_bytes()),
                (28, &1_u64.to_le_bytes()),
                (36, &1_u64.to_le_bytes()),
                (512, text.as_bytes()),
            ])
        };
        let good = "createType=\"monolithicSparse\"\nRW 8 SPARSE \"disk.vmdk\"\n";
        assert_eq!(inspect(&sparse(good), "vmdk").unwrap(), Some(4096));
        for bad in [
            "createType=\"monolithicFlat\"\nRW 8 FLAT \"/etc/passwd\" 0\n",
            "createType=\"monolithicSparse\"\nRW 8 SPARSE \"/etc/passwd\"\n",
            "nothing",
        ] {
            assert!(matches!(inspect(&sparse(bad), "vmdk"), Err(InspectError::Unsafe { .. })), "{bad}");
        }
        assert!(inspect(&file(&[(0, b"# Disk DescriptorFile\n")]), "vmdk").is_err());
    }
}
