//! From a kernel image to a guest that can be entered: the image into memory, the initial ramdisk, the command line,
//! the boot parameters.
//!
//! Every byte of an image is foreign: sizes are bounded, and a bad image is one clear error.
//!
//! Must never know: where images come from, KVM.

pub mod disk;
pub mod identify;
pub mod image;
mod params;

use vm_memory::{Address, Bytes, GuestAddress};

use crate::kvm::Entry;
use crate::memory::{self, GuestMemory, PAGE_BYTES};
use image::{Image, Kernel};

/// The largest kernel file in bytes that is read: several times the largest distribution kernel with its symbols.
pub const KERNEL_BYTES_MAX: u64 = 1 << 30;
/// The largest initial ramdisk in bytes: it must lie below the device hole together with the kernel anyway.
pub const INITRD_BYTES_MAX: u64 = 2 << 30;

/// Why a guest cannot be booted.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A file or disk cannot be read.
    #[error("read the {what}")]
    Read {
        /// Which.
        what: &'static str,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The file is no kernel that can be booted here, but something else.
    #[error("the kernel is neither an ELF image for x86-64 nor a bzImage but {0}")]
    NotAKernel(&'static str),
    /// It is a kernel, but not one for this machine.
    #[error("the kernel is {0}; only 64-bit kernels from Linux 3.8 on are booted")]
    OtherKernel(&'static str),
    /// The disk boots nothing.
    #[error("boot from the first disk")]
    Disk(#[from] disk::Error),
    /// What the disk boots cannot be loaded.
    #[error("boot {description}")]
    DiskKernel {
        /// The entry, the kernel and where it lies.
        description: String,
        /// Why.
        #[source]
        source: Box<Error>,
    },
    /// The configuration names the disk as the kernel's source, and there is none.
    #[error("the guest shall boot from its first disk, and has none")]
    NoDisk,
    /// A firmware that is entered in another way, or none.
    #[error(
        "the firmware has to be an ELF image with a PVH entry, such as hypervisor-fw or CLOUDHV.fd; one for the reset \
         vector (SeaBIOS, OVMF for QEMU) is not supported"
    )]
    Firmware(#[source] Option<Box<Error>>),
    /// A field of the kernel image cannot be right.
    #[error("the kernel image is broken: {0}")]
    Broken(&'static str),
    /// The loader found the image wrong.
    #[error("load the kernel")]
    Load(#[source] linux_loader::loader::Error),
    /// The kernel, the ramdisk and the guest's memory do not fit.
    #[error("{what} needs {needed_bytes} bytes, which {memory_bytes} bytes of guest memory cannot hold")]
    TooLarge {
        /// What.
        what: &'static str,
        /// Its size.
        needed_bytes: u64,
        /// The memory below the device hole.
        memory_bytes: u64,
    },
    /// The command line is too long, or holds a zero byte.
    #[error("the kernel's command line has {0} bytes or a zero byte in it; at most {max} are allowed", max = memory::CMDLINE_BYTES_MAX - 1)]
    CommandLine(usize),
    /// Guest memory refuses a structure; it is too small.
    #[error("write the boot structures into guest memory")]
    Write(#[from] vm_memory::GuestMemoryError),
}

/// What a guest is booted from.
pub struct Source<'a> {
    /// The kernel image.
    pub kernel: &'a dyn Image,
    /// The initial ramdisk.
    pub initrd: Option<&'a dyn Image>,
    /// The whole command line.
    pub cmdline: &'a str,
}

/// Puts all of `source` into `memory`; the ACPI tables must lie at [`memory::RSDP_START`] before the guest runs.
///
/// # Errors
/// Anything wrong with the images, or too little memory.
pub fn load(guest: &GuestMemory, source: &Source<'_>) -> Result<Entry, Error> {
    let kernel = image::load_kernel(guest, source.kernel)?;
    let initrd = match source.initrd {
        Some(image) => Some(load_initrd(guest, image, &kernel)?),
        None => None,
    };
    write_cmdline(guest, source.cmdline)?;
    write_page_tables(guest)?;
    for (index, descriptor) in (0_u64..).zip(crate::kvm::descriptor_table(&kernel.entry)) {
        guest.write_obj(descriptor, memory::GDT_START.unchecked_add(index * 8))?;
    }
    match kernel.entry {
        Entry::Linux64 { .. } => params::write_zero_page(guest, &kernel, initrd, source.cmdline)?,
        Entry::Pvh { .. } => params::write_pvh_info(guest, initrd)?,
    }
    Ok(kernel.entry)
}

/// Where the initial ramdisk lies.
#[derive(Debug, Clone, Copy)]
struct Initrd {
    start: GuestAddress,
    bytes: u64,
}

/// Reads the ramdisk into the highest place below the device hole that the kernel can use.
fn load_initrd(guest: &GuestMemory, image: &dyn Image, kernel: &Kernel) -> Result<Initrd, Error> {
    let bytes = image.size_bytes().map_err(|source| Error::Read { what: "initial ramdisk", source })?;
    let top = memory::low_ram_end(guest).raw_value().min(kernel.initrd_end_max);
    let too_large = Error::TooLarge {
        what: "the initial ramdisk above the kernel",
        needed_bytes: bytes,
        memory_bytes: top.saturating_sub(kernel.end.raw_value()),
    };
    if bytes > INITRD_BYTES_MAX {
        return Err(too_large);
    }
    let Some(start) = top.checked_sub(bytes).map(|start| start & !(PAGE_BYTES - 1)) else {
        return Err(too_large);
    };
    if start < kernel.end.raw_value() {
        return Err(too_large);
    }
    let start = GuestAddress(start);
    image::copy_to_guest(guest, image, bytes, start, "initial ramdisk")?;
    Ok(Initrd { start, bytes })
}

fn write_cmdline(guest: &GuestMemory, cmdline: &str) -> Result<(), Error> {
    if cmdline.len() >= memory::CMDLINE_BYTES_MAX || cmdline.bytes().any(|byte| byte == 0) {
        return Err(Error::CommandLine(cmdline.len()));
    }
    guest.write_slice(cmdline.as_bytes(), memory::CMDLINE_START)?;
    guest.write_obj(0_u8, memory::CMDLINE_START.unchecked_add(cmdline.len() as u64))?;
    Ok(())
}

/// An identity map of the first GiB with pages of 2 MiB, which the 64-bit boot protocol asks for.
fn write_page_tables(guest: &GuestMemory) -> Result<(), Error> {
    const PRESENT_WRITABLE: u64 = 3;
    const LARGE: u64 = 1 << 7;
    let [top, middle, bottom] =
        [0, 1, 2].map(|page| memory::PAGE_TABLES_START.unchecked_add(page * PAGE_BYTES));
    guest.write_obj(middle.raw_value() | PRESENT_WRITABLE, top)?;
    guest.write_obj(bottom.raw_value() | PRESENT_WRITABLE, middle)?;
    let mut entries = [0_u8; 4096];
    for (index, entry) in (0_u64..).zip(entries.chunks_exact_mut(8)) {
        entry.copy_from_slice(&((index << 21) | LARGE | PRESENT_WRITABLE).to_le_bytes());
    }
    guest.write_slice(&entries, bottom)?;
    Ok(())
}

/// What a kernel needs to know of the machine, as command-line words.
///
/// `devices` are the virtio-mmio windows: address and GSI. `console` is the guest's main console. `own` are the words that the disk's boot loader would give;
/// they come behind the machine's, so that they win; those of `extra`, which the machine's owner gave, come last. The
/// main console is the system's console unless `own` chooses consoles.
#[must_use]
pub fn cmdline(devices: &[(GuestAddress, u32)], console: &str, own: &str, extra: &str) -> String {
    use std::fmt::Write as _;
    let chooses = own.split_whitespace().any(|word| word.starts_with("console="));
    let mut line = if chooses { String::new() } else { format!("console={console} ") };
    line.push_str("reboot=k panic=-1 tsc=reliable no_timer_check");
    for (address, gsi) in devices {
        write!(line, " virtio_mmio.device=4K@{:#x}:{gsi}", address.raw_value())
            .expect("invariant: writing to a string never fails");
    }
    for words in [own, extra].into_iter().filter(|words| !words.is_empty()) {
        line.push(' ');
        line.push_str(words);
    }
    line
}

#[cfg(test)]
pub(crate) mod tests;
