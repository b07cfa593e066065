//! One layer: a tar file, plain or packed by gzip or zstd, read entry by entry (POSIX.1-2024 "pax", and GNU's long names).
//!
//! All that a head can claim is bounded before room is made for it. Extended heads are read here, and not by the crate
//! `tar`, which would hold them whatever their size.

use std::io::{self, BufReader, Read};

use flate2::bufread::MultiGzDecoder;
use ring::digest::{Context, SHA256};
use ruzstd::decoding::{FrameDecoder, StreamingDecoder};

use super::ContainerError;
use super::archive::{Archive, Slice};
use super::manifest::Layer;
use crate::format::ext4::{CAPABILITY_BYTES_MAX, Metadata};
use crate::hexadecimal::hexadecimal;

/// The largest extended head in bytes: Go's reader of tar files, which made most images, takes as much.
const EXTENSION_BYTES_MAX: u64 = 1 << 20;
/// The most memory that a zstd frame may ask for: what the highest level of compression does.
const WINDOW_BYTES_MAX: u64 = 128 << 20;
const BUFFER_BYTES: usize = 256 << 10;

/// What an entry of a layer is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum EntryKind {
    Directory,
    File(u64),
    HardLink(Vec<u8>),
    Symlink(Vec<u8>),
    Character(u32, u32),
    Block(u32, u32),
    Fifo,
}

/// An entry of a layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) name: Vec<u8>,
    pub(super) kind: EntryKind,
    pub(super) metadata: Metadata,
    pub(super) capability: Box<[u8]>,
    /// Which entry of its layer it is.
    pub(super) ordinal: u64,
}

/// What follows an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Next {
    /// The next entry.
    Entry,
    /// Nothing more is needed of this layer.
    Enough,
}

/// Who is told of each entry, and may read its content.
pub(super) type Visit<'v> = dyn FnMut(Entry, &mut dyn Read) -> Result<Next, ContainerError> + 'v;

/// Reads a layer for the first time: all of it, checked against its digests. What it unpacks to is taken from `left`.
pub(super) fn read_checked(
    archive: &Archive<'_>,
    (index, layer): (usize, &Layer),
    left: &mut u64,
    visit: &mut Visit<'_>,
) -> Result<(), ContainerError> {
    let mut stream = Stream::open(archive, (index, layer), *left, true)?;
    stream.entries(index, visit)?;
    // Padding.
    let drained = io::copy(&mut stream, &mut io::sink());
    drained.map_err(|source| stream.failed(index, source))?;
    *left = stream.left;
    let unpacked = stream.unpacked.finish();
    let mut packed = stream.unpacker.into_inner();
    io::copy(&mut packed, &mut io::sink())
        .map_err(|source| ContainerError::Layer { layer: index + 1, source })?;
    let packed = packed.into_inner().hash.finish();
    let damaged = || ContainerError::Damaged { part: layer.part.clone(), mark: "digest" };
    if layer.digest.as_ref().is_some_and(|digest| *digest != packed) || layer.unpacked_digest != unpacked {
        return Err(damaged());
    }
    Ok(())
}

/// Reads a layer again, which was found whole.
pub(super) fn read_again(
    archive: &Archive<'_>,
    (index, layer): (usize, &Layer),
    visit: &mut Visit<'_>,
) -> Result<(), ContainerError> {
    Stream::open(archive, (index, layer), u64::MAX, false)?.entries(index, visit)
}

/// A digest that may not be asked for.
struct Hash(Option<Context>);

impl Hash {
    fn update(&mut self, bytes: &[u8]) {
        if let Some(context) = &mut self.0 {
            context.update(bytes);
        }
    }

    fn finish(self) -> String {
        self.0.map(|hash| format!("sha256:{}", hexadecimal(hash.finish().as_ref()))).unwrap_or_default()
    }
}

struct Hashed<R> {
    inner: R,
    hash: Hash,
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hash.update(&buffer[..count]);
        Ok(count)
    }
}

type Packed<'f> = BufReader<Hashed<Slice<'f>>>;

enum Unpacker<'f> {
    Plain(Packed<'f>),
    Gzip(MultiGzDecoder<Packed<'f>>),
    Zstd(Zstd<Packed<'f>>),
}

impl<'f> Unpacker<'f> {
    fn into_inner(self) -> Packed<'f> {
        match self {
            Self::Plain(packed) => packed,
            Self::Gzip(gzip) => gzip.into_inner(),
            Self::Zstd(zstd) => zstd.into_inner(),
        }
    }
}

/// A layer as it is unpacked.
struct Stream<'f> {
    unpacker: Unpacker<'f>,
    unpacked: Hash,
    left: u64,
    expands: bool,
}

impl Read for Stream<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = match &mut self.unpacker {
            Unpacker::Plain(plain) => plain.read(buffer)?,
            Unpacker::Gzip(gzip) => gzip.read(buffer)?,
            Unpacker::Zstd(zstd) => zstd.read(buffer)?,
        };
        let Some(left) = self.left.checked_sub(count as u64) else {
            self.expands = true;
            return Err(io::Error::other("more comes out than may"));
        };
        self.left = left;
        self.unpacked.update(&buffer[..count]);
        Ok(count)
    }
}

impl<'f> Stream<'f> {
    fn open(
        archive: &Archive<'f>,
        (index, layer): (usize, &Layer),
        left: u64,
        checked: bool,
    ) -> Result<Self, ContainerError> {
        let hash = || Hash(checked.then(|| Context::new(&SHA256)));
        let slice = archive.open(&layer.part)?;
        // What it begins with says how it is packed: `docker save` says it nowhere.
        let mut mark = Vec::new();
        let marked = slice.clone().take(4).read_to_end(&mut mark);
        marked.map_err(|source| ContainerError::Layer { layer: index + 1, source })?;
        let packed = BufReader::with_capacity(BUFFER_BYTES, Hashed { inner: slice, hash: hash() });
        let unpacker = match mark.as_slice() {
            [0x1f, 0x8b, ..] => Unpacker::Gzip(MultiGzDecoder::new(packed)),
            [0x28, 0xb5, 0x2f, 0xfd] | [0x50..=0x5f, 0x2a, 0x4d, 0x18] => Unpacker::Zstd(Zstd::new(packed)),
            _ => Unpacker::Plain(packed),
        };
        Ok(Self { unpacker, unpacked: hash(), left, expands: false })
    }

    fn failed(&self, index: usize, source: io::Error) -> ContainerError {
        if self.expands {
            ContainerError::Expands
        } else {
            ContainerError::Layer { layer: index + 1, source }
        }
    }

    fn entries(&mut self, index: usize, visit: &mut Visit<'_>) -> Result<(), ContainerError> {
        let mut tar = tar::Archive::new(&mut *self);
        let told = entries(&mut tar, index, visit);
        match told {
            Err(Told::Refused(error)) if !self.expands => Err(error),
            Err(Told::Refused(_)) => Err(ContainerError::Expands),
            Err(Told::Broken(source)) => Err(self.failed(index, source)),
            Ok(()) => Ok(()),
        }
    }
}

/// Why a layer is not read any further.
enum Told {
    Broken(io::Error),
    Refused(ContainerError),
}

impl From<io::Error> for Told {
    fn from(error: io::Error) -> Self {
        Self::Broken(error)
    }
}

impl From<ContainerError> for Told {
    fn from(error: ContainerError) -> Self {
        Self::Refused(error)
    }
}

fn entries<R: Read>(tar: &mut tar::Archive<R>, index: usize, visit: &mut Visit<'_>) -> Result<(), Told> {
    let mut pending = Pending::default();
    for (ordinal, entry) in (0..).zip(tar.entries()?.raw(true)) {
        let mut entry = entry?;
        let kind = entry.header().entry_type();
        if kind.is_pax_local_extensions() || kind.is_gnu_longname() || kind.is_gnu_longlink() {
            let refused =
                |why| ContainerError::Entry { layer: index + 1, name: "extended head".to_owned(), why };
            if entry.size() > EXTENSION_BYTES_MAX {
                return Err(refused("it is longer than 1 MiB").into());
            }
            let mut bytes = Vec::new();
            entry.read_to_end(&mut bytes)?;
            if (bytes.len() as u64) < entry.size() {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            if kind.is_pax_local_extensions() {
                pending.read(&bytes).map_err(refused)?;
            } else {
                let text = bytes.split(|&byte| byte == 0).next().unwrap_or_default().to_vec();
                let place =
                    if kind.is_gnu_longname() { &mut pending.gnu_name } else { &mut pending.gnu_target };
                *place = Some(text);
            }
            continue;
        }
        // Comments for the whole file.
        if kind.is_pax_global_extensions() {
            continue;
        }
        let told = std::mem::take(&mut pending).entry(entry.header(), ordinal, entry.size());
        let told =
            told.map_err(|(name, why)| ContainerError::Entry { layer: index + 1, name: shown(&name), why })?;
        if visit(told, &mut entry)? == Next::Enough {
            return Ok(());
        }
    }
    Ok(())
}

/// A name as an error shows it.
pub(super) fn shown(name: &[u8]) -> String {
    const CHARS_MAX: usize = 120;
    String::from_utf8_lossy(name).chars().take(CHARS_MAX).collect()
}

/// What extended heads say of the entry that follows them.
#[derive(Default)]
struct Pending {
    name: Option<Vec<u8>>,
    target: Option<Vec<u8>>,
    gnu_name: Option<Vec<u8>>,
    gnu_target: Option<Vec<u8>>,
    uid: Option<u64>,
    gid: Option<u64>,
    modified_s: Option<i64>,
    size: Option<u64>,
    capability: Box<[u8]>,
    sparse: bool,
}

impl Pending {
    /// Reads the records of a pax head: `LENGTH NAME=VALUE\n`, where values may have any bytes.
    fn read(&mut self, mut bytes: &[u8]) -> Result<(), &'static str> {
        const BROKEN: &str = "its records are broken";
        while !bytes.is_empty() {
            let space = bytes.iter().position(|&byte| byte == b' ').ok_or(BROKEN)?;
            let length: usize = number(&bytes[..space]).ok_or(BROKEN)?;
            let record = bytes.get(space + 1..length).ok_or(BROKEN)?;
            let record = record.strip_suffix(b"\n").ok_or(BROKEN)?;
            let equals = record.iter().position(|&byte| byte == b'=').ok_or(BROKEN)?;
            let (name, value) = (&record[..equals], &record[equals + 1..]);
            match name {
                b"path" => self.name = Some(value.to_vec()),
                b"linkpath" => self.target = Some(value.to_vec()),
                b"uid" => self.uid = Some(number(value).ok_or(BROKEN)?),
                b"gid" => self.gid = Some(number(value).ok_or(BROKEN)?),
                b"size" => self.size = Some(number(value).ok_or(BROKEN)?),
                b"mtime" => {
                    let whole = value.split(|&byte| byte == b'.').next().unwrap_or_default();
                    self.modified_s = Some(number(whole).ok_or(BROKEN)?);
                }
                b"SCHILY.xattr.security.capability" => {
                    if value.len() > CAPABILITY_BYTES_MAX {
                        return Err("its capability is longer than 24 bytes");
                    }
                    self.capability = value.into();
                }
                name if name.starts_with(b"GNU.sparse.") => self.sparse = true,
                _ => {}
            }
            bytes = &bytes[length..];
        }
        Ok(())
    }

    /// The entry with this head; or its name, and why it is refused.
    fn entry(self, header: &tar::Header, ordinal: u64, size: u64) -> Result<Entry, (Vec<u8>, &'static str)> {
        let name = self.name.or(self.gnu_name).unwrap_or_else(|| header.path_bytes().into_owned());
        let target = self.target.or(self.gnu_target);
        let target = || target.or_else(|| header.link_name_bytes().map(std::borrow::Cow::into_owned));
        let device = || {
            let part = |part: io::Result<Option<u32>>| part.ok().flatten().unwrap_or(0);
            (part(header.device_major()), part(header.device_minor()))
        };
        let kind = header.entry_type();
        // Readers that disagree on where the next head is see different files.
        if self.size.is_some_and(|said| said != size) {
            return Err((name, "its two heads do not agree on its length"));
        }
        let kind = match kind {
            tar::EntryType::Regular | tar::EntryType::Continuous if self.sparse => {
                return Err((name, "it is a sparse file in GNU's form"));
            }
            // Before POSIX, a directory was a file whose name ends so.
            tar::EntryType::Regular if name.ends_with(b"/") => EntryKind::Directory,
            tar::EntryType::Regular | tar::EntryType::Continuous => EntryKind::File(size),
            tar::EntryType::Directory => EntryKind::Directory,
            tar::EntryType::Link => EntryKind::HardLink(target().unwrap_or_default()),
            tar::EntryType::Symlink => EntryKind::Symlink(target().unwrap_or_default()),
            tar::EntryType::Fifo => EntryKind::Fifo,
            tar::EntryType::Char => {
                let (major, minor) = device();
                EntryKind::Character(major, minor)
            }
            tar::EntryType::Block => {
                let (major, minor) = device();
                EntryKind::Block(major, minor)
            }
            tar::EntryType::GNUSparse => return Err((name, "it is a sparse file in GNU's form")),
            _ => return Err((name, "it is of a kind that no image has")),
        };
        let id =
            |pax: Option<u64>, header: io::Result<u64>| u32::try_from(pax.or(header.ok()).unwrap_or(0)).ok();
        let (Some(uid), Some(gid)) = (id(self.uid, header.uid()), id(self.gid, header.gid())) else {
            return Err((name, "its owner's number has more than 32 bits"));
        };
        let mode = header.mode().unwrap_or(0o644) & 0o7777;
        let modified_s = self.modified_s.unwrap_or_else(|| header.mtime().unwrap_or(0).cast_signed());
        let metadata =
            Metadata { mode: u16::try_from(mode).expect("invariant: 12 bits"), uid, gid, modified_s };
        Ok(Entry { name, kind, metadata, capability: self.capability, ordinal })
    }
}

/// A decimal number.
fn number<N: std::str::FromStr>(text: &[u8]) -> Option<N> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

/// Frames of zstd one after another, and what may be skipped between them (RFC 8878 §3.1).
struct Zstd<R: Read> {
    state: ZstdState<R>,
}

type ZstdFrame<R> = StreamingDecoder<io::Chain<io::Cursor<[u8; 4]>, R>, FrameDecoder>;

enum ZstdState<R: Read> {
    Between(R),
    Frame(Box<ZstdFrame<R>>),
    /// A frame could not be begun; its source is gone with it.
    Broken,
}

impl<R: Read> Zstd<R> {
    fn new(source: R) -> Self {
        Self { state: ZstdState::Between(source) }
    }

    /// What follows the last frame.
    fn into_inner(self) -> R {
        match self.state {
            ZstdState::Between(source) => source,
            ZstdState::Frame(frame) => frame.into_inner().into_inner().1,
            ZstdState::Broken => unreachable!("invariant: a stream that failed is not asked for its end"),
        }
    }

    /// Begins the next frame; whether there is one.
    fn begin(&mut self) -> io::Result<bool> {
        let ZstdState::Between(source) = &mut self.state else { return Ok(true) };
        let mut magic = [0; 4];
        loop {
            if source.read(&mut magic[..1])? == 0 {
                return Ok(false);
            }
            source.read_exact(&mut magic[1..])?;
            if !matches!(magic, [0x50..=0x5f, 0x2a, 0x4d, 0x18]) {
                break;
            }
            let mut length = [0; 4];
            source.read_exact(&mut length)?;
            let length = u64::from(u32::from_le_bytes(length));
            if io::copy(&mut source.take(length), &mut io::sink())? != length {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let ZstdState::Between(source) = std::mem::replace(&mut self.state, ZstdState::Broken) else {
            return Ok(true);
        };
        let source = io::Cursor::new(magic).chain(source);
        let frame = StreamingDecoder::new_with_max_window_size(source, WINDOW_BYTES_MAX);
        self.state = ZstdState::Frame(Box::new(frame.map_err(io::Error::other)?));
        Ok(true)
    }
}

impl<R: Read> Read for Zstd<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if buffer.is_empty() {
            return Ok(0);
        }
        while self.begin()? {
            let ZstdState::Frame(frame) = &mut self.state else {
                return Err(io::Error::other("a frame before it is broken"));
            };
            let count = frame.read(buffer)?;
            if count > 0 {
                return Ok(count);
            }
            if let ZstdState::Frame(frame) = std::mem::replace(&mut self.state, ZstdState::Broken) {
                self.state = ZstdState::Between(frame.into_inner().into_inner().1);
            }
        }
        Ok(0)
    }
}
