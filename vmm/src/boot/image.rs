//! Kernel images as bytes: where they are read from, what is checked before the loader sees them, and the loading.

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use linux_loader::elf::{Elf64_Ehdr, Elf64_Phdr, PT_LOAD, PT_NOTE};
use linux_loader::loader::bootparam::setup_header;
use linux_loader::loader::{BzImage, Elf, KernelLoader, KernelLoaderResult, PvhBootCapability};
use storage::format::Disk;
use vm_memory::bitmap::BitmapSlice;
use vm_memory::{
    Address, ByteValued, GuestAddress, GuestMemory as _, Permissions, ReadVolatile, VolatileMemoryError,
    VolatileSlice,
};

use super::{Error, KERNEL_BYTES_MAX, identify};
use crate::kvm::Entry;
use crate::memory::{self, GuestMemory};

/// Bytes that can be read at any offset, without a position shared with anyone.
pub trait Image {
    /// The size in bytes.
    ///
    /// # Errors
    /// The file's.
    fn size_bytes(&self) -> io::Result<u64>;
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// The file's; `UnexpectedEof` beyond the end.
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// The file whose bytes these are, from its beginning on, if they are one's: what is large is read from it at once.
    fn as_file(&self) -> Option<BorrowedFd<'_>> {
        None
    }
}

impl Image for File {
    fn size_bytes(&self) -> io::Result<u64> {
        // Reads go to offsets, so the position is nobody's concern; and a confined process cannot stat.
        let mut file = self;
        file.seek(SeekFrom::End(0))
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        FileExt::read_exact_at(self, buffer, offset)
    }
    fn as_file(&self) -> Option<BorrowedFd<'_>> {
        Some(self.as_fd())
    }
}

impl Image for &[u8] {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.len() as u64)
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let range =
            usize::try_from(offset).ok().and_then(|start| Some(start..start.checked_add(buffer.len())?));
        let bytes = range.and_then(|range| self.get(range)).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }
}

/// A whole disk as an image.
pub struct DiskImage(pub Arc<dyn Disk>);

impl Image for DiskImage {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.0.size_bytes())
    }
    fn read_exact_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_at(buffer, offset)
    }
}

/// Whether `image` begins like an ELF file.
///
/// # Errors
/// The image cannot be read.
pub fn begins_with_elf(image: &dyn Image) -> io::Result<bool> {
    if image.size_bytes()? < ELF_MAGIC.len() as u64 {
        return Ok(false);
    }
    let mut magic = [0; ELF_MAGIC.len()];
    image.read_exact_at(&mut magic, 0)?;
    Ok(magic == ELF_MAGIC)
}

const ELF_MAGIC: [u8; 4] = *b"\x7fELF";
/// The most program headers: vmlinux has five.
pub(super) const PROGRAM_HEADERS_MAX: u16 = 64;
/// The largest note segment in bytes: vmlinux's is under a page.
pub(super) const NOTE_BYTES_MAX: u64 = 64 << 10;
/// How much is copied at once: little enough to stay in a processor's cache, where a copy costs next to nothing.
const COPY_BYTES: usize = 64 << 10;

/// A kernel in guest memory.
#[derive(Debug)]
pub(super) struct Kernel {
    /// How to enter it.
    pub(super) entry: Entry,
    /// The first address above it that is free for others.
    pub(super) end: GuestAddress,
    /// Where the initial ramdisk must end at the latest.
    pub(super) initrd_end_max: u64,
    /// A bzImage's own header, to be handed back to it.
    pub(super) header: Option<setup_header>,
}

/// Copies the first `bytes` bytes of `image` to `start`.
pub(super) fn copy_to_guest(
    guest: &GuestMemory,
    image: &dyn Image,
    bytes: u64,
    start: GuestAddress,
    what: &'static str,
) -> Result<(), Error> {
    let length = usize::try_from(bytes).map_err(|_| Error::Broken("it wants to lie beyond all memory"))?;
    let mut at = 0;
    for slice in guest.get_slices(start, length, Permissions::Write)? {
        let slice = slice?;
        fill(image, &slice, at).map_err(|source| Error::Read { what, source })?;
        at += slice.len() as u64;
    }
    Ok(())
}

/// Fills `target`, of a guest's memory, from `offset` of `image`.
fn fill<B: BitmapSlice>(image: &dyn Image, target: &VolatileSlice<'_, B>, offset: u64) -> io::Result<()> {
    if let Some(file) = image.as_file() {
        return memory::file::fill(file, target, offset);
    }
    let mut buffer = vec![0; target.len().min(COPY_BYTES)];
    let mut done = 0;
    while done < target.len() {
        let part = (target.len() - done).min(COPY_BYTES);
        image.read_exact_at(&mut buffer[..part], offset + done as u64)?;
        target.subslice(done, part).map_err(io::Error::other)?.copy_from(&buffer[..part]);
        done += part;
    }
    Ok(())
}

/// Loads an ELF image or a bzImage.
pub(super) fn load_kernel(guest: &GuestMemory, image: &dyn Image) -> Result<Kernel, Error> {
    let size = image.size_bytes().map_err(|source| Error::Read { what: "kernel", source })?;
    if begins_with_elf(image).map_err(|source| Error::Read { what: "kernel", source })? {
        load_elf(guest, image, size)
    } else {
        load_bzimage(guest, image, size)
    }
}

pub(super) fn read_struct<T: ByteValued + Default>(image: &dyn Image, offset: u64) -> Result<T, Error> {
    let mut value = T::default();
    image
        .read_exact_at(value.as_mut_slice(), offset)
        .map_err(|source| Error::Read { what: "kernel's headers", source })?;
    Ok(value)
}

fn load_elf(guest: &GuestMemory, image: &dyn Image, size: u64) -> Result<Kernel, Error> {
    check_elf(guest, image, size)?;
    let mut cursor = Cursor { image, size, position: 0 };
    let loaded = Elf::load(guest, None, &mut cursor, Some(memory::HIGH_RAM_START)).map_err(Error::Load)?;
    let entry = match loaded.pvh_boot_cap {
        PvhBootCapability::PvhEntryPresent(start) => Entry::Pvh { start },
        _ => Entry::Linux64 { start: loaded.kernel_load },
    };
    Ok(Kernel { entry, end: GuestAddress(loaded.kernel_end), initrd_end_max: u64::MAX, header: None })
}

/// Refuses what the loader trusts: offsets that overflow, segments outside the file or outside guest memory.
fn check_elf(guest: &GuestMemory, image: &dyn Image, size: u64) -> Result<(), Error> {
    const CLASS_64: u8 = 2;
    const LITTLE_ENDIAN: u8 = 1;
    const X86_64: u16 = 62;
    let header: Elf64_Ehdr = read_struct(image, 0)?;
    if header.e_ident[4] != CLASS_64 || header.e_ident[5] != LITTLE_ENDIAN || header.e_machine != X86_64 {
        return Err(other_kernel(image));
    }
    if header.e_phnum == 0 || header.e_phnum > PROGRAM_HEADERS_MAX {
        return Err(Error::Broken("it has no program headers, or more than a kernel has"));
    }
    if usize::from(header.e_phentsize) != size_of::<Elf64_Phdr>() {
        return Err(Error::Broken("its program headers have another size than ELF's"));
    }
    let ram_end = memory::low_ram_end(guest).raw_value();
    let mut loadable = 0_u64;
    for index in 0..u64::from(header.e_phnum) {
        let offset = header.e_phoff.checked_add(index * size_of::<Elf64_Phdr>() as u64);
        let offset = offset.ok_or(Error::Broken("its program headers lie outside the file"))?;
        let segment: Elf64_Phdr = read_struct(image, offset)?;
        if segment.p_type != PT_LOAD && segment.p_type != PT_NOTE {
            continue;
        }
        if segment.p_offset.checked_add(segment.p_filesz).is_none_or(|end| end > size) {
            return Err(Error::Broken("a segment lies outside the file"));
        }
        if segment.p_type == PT_NOTE {
            if segment.p_filesz > NOTE_BYTES_MAX {
                return Err(Error::Broken("its notes are larger than a kernel's"));
            }
            continue;
        }
        if segment.p_filesz > segment.p_memsz {
            return Err(Error::Broken("a segment is larger in the file than in memory"));
        }
        if segment.p_memsz == 0 {
            continue;
        }
        if segment.p_paddr < memory::HIGH_RAM_START.raw_value() {
            return Err(Error::Broken("a segment wants to lie in the first MiB"));
        }
        loadable = loadable.saturating_add(segment.p_filesz);
        let end = segment.p_paddr.checked_add(segment.p_memsz);
        if end.is_none_or(|end| end > ram_end) {
            let needed_bytes = end.unwrap_or(u64::MAX);
            return Err(Error::TooLarge { what: "the kernel", needed_bytes, memory_bytes: ram_end });
        }
    }
    if loadable == 0 {
        return Err(Error::Broken("it has nothing to load"));
    }
    if loadable > KERNEL_BYTES_MAX {
        return Err(Error::Broken("it is larger than any kernel"));
    }
    Ok(())
}

/// The magic of a bzImage's header, "HdrS", and where the header lies (Linux, Documentation/arch/x86/boot.rst).
pub(super) const HEADER_MAGIC: u32 = 0x5372_6448;
const HEADER_OFFSET: u64 = 0x1f1;

fn load_bzimage(guest: &GuestMemory, image: &dyn Image, size: u64) -> Result<Kernel, Error> {
    /// `xloadflags`: there is a 64-bit entry point 0x200 bytes above the load address.
    const XLF_KERNEL_64: u16 = 1;
    const ENTRY_64_OFFSET: u64 = 0x200;
    /// The protocol version that brought `xloadflags` and `init_size`.
    const VERSION_MIN: u16 = 0x020c;
    if size < HEADER_OFFSET + size_of::<setup_header>() as u64 {
        return Err(other_kernel(image));
    }
    if size > KERNEL_BYTES_MAX {
        return Err(Error::Broken("it is larger than any kernel"));
    }
    let header: setup_header = read_struct(image, HEADER_OFFSET)?;
    if { header.header } != HEADER_MAGIC {
        return Err(other_kernel(image));
    }
    if { header.version } < VERSION_MIN {
        return Err(Error::OtherKernel("too old (its boot protocol is older than 2.12)"));
    }
    if { header.xloadflags } & XLF_KERNEL_64 == 0 {
        return Err(Error::OtherKernel("a 32-bit kernel (its bzImage has no 64-bit entry point)"));
    }
    // What the header counts: sectors of set-up code, four where it says none, and the rest in units of 16 bytes.
    let setup_sectors = if header.setup_sects == 0 { 4 } else { u64::from(header.setup_sects) };
    if size < (setup_sectors + 1) * 512 + u64::from(header.syssize) * 16 {
        return Err(Error::Broken("the file is shorter than its header says"));
    }
    let ram_end = memory::low_ram_end(guest).raw_value();
    // The kernel unpacks itself to its preferred address, or to where it was loaded if that is higher.
    let preferred = u64::max(header.pref_address, memory::HIGH_RAM_START.raw_value());
    let end = preferred.saturating_add(u64::from(header.init_size));
    let loaded_end = memory::HIGH_RAM_START.raw_value() + size;
    let end = u64::max(end, loaded_end);
    if end > ram_end {
        return Err(Error::TooLarge { what: "the kernel", needed_bytes: end, memory_bytes: ram_end });
    }
    let mut cursor = Cursor { image, size, position: 0 };
    let loaded: KernelLoaderResult =
        BzImage::load(guest, Some(memory::HIGH_RAM_START), &mut cursor, Some(memory::HIGH_RAM_START))
            .map_err(Error::Load)?;
    Ok(Kernel {
        entry: Entry::Linux64 { start: loaded.kernel_load.unchecked_add(ENTRY_64_OFFSET) },
        end: GuestAddress(end),
        initrd_end_max: u64::from(header.initrd_addr_max) + 1,
        header: Some(header),
    })
}

/// What an image is that is no kernel for us.
fn other_kernel(image: &dyn Image) -> Error {
    Error::NotAKernel(identify::describe(image))
}

/// An image with a position, as the loader wants it.
struct Cursor<'a> {
    image: &'a dyn Image,
    size: u64,
    position: u64,
}

impl Read for Cursor<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let rest = self.size.saturating_sub(self.position);
        let part = usize::try_from(rest).map_or(buffer.len(), |rest| rest.min(buffer.len()));
        self.image.read_exact_at(&mut buffer[..part], self.position)?;
        self.position += part as u64;
        Ok(part)
    }
}

impl Seek for Cursor<'_> {
    fn seek(&mut self, target: SeekFrom) -> io::Result<u64> {
        let position = match target {
            SeekFrom::Start(offset) => Some(offset),
            SeekFrom::End(offset) => self.size.checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

impl ReadVolatile for Cursor<'_> {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        target: &mut VolatileSlice<'_, B>,
    ) -> Result<usize, VolatileMemoryError> {
        // All that there is: guest memory takes a short read for the end of the image.
        let rest = usize::try_from(self.size.saturating_sub(self.position)).unwrap_or(usize::MAX);
        let target = target.subslice(0, target.len().min(rest))?;
        fill(self.image, &target, self.position).map_err(VolatileMemoryError::IOError)?;
        self.position += target.len() as u64;
        Ok(target.len())
    }
}
