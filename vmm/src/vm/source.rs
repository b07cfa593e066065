//! What a machine boots, wherever it comes from, or what it goes on from.

use std::fs::File;
use std::sync::Arc;

use storage::format::Disk;

use crate::boot::image::{DiskImage, Image, begins_with_elf};
use crate::ending::EndingSignal;
use crate::memory::shared::Shared;
use crate::memory::userfault::Userfault;
use crate::snapshot::{Form, Lazily, Snapshot, read_header};
use crate::{boot, kvm, memory};

/// Where the kernel comes from.
pub enum BootSource {
    /// Files.
    Kernel {
        /// The kernel.
        kernel: Box<dyn Image>,
        /// The initial ramdisk.
        initrd: Option<Box<dyn Image>>,
    },
    /// A firmware, which boots from the disks by itself.
    Firmware(Box<dyn Image>),
    /// The first disk.
    Disk,
    /// Nothing is booted: a guest goes on from a snapshot.
    Snapshot(SnapshotSource),
}

/// What a guest goes on from.
pub struct SnapshotSource {
    /// A full snapshot and those with differences to it.
    pub files: Vec<File>,
    /// Keeps what the guest asks for first of packed memory.
    pub working_set: Option<File>,
    /// What says who waits for memory that is still packed. Without one all is unpacked before the guest goes on.
    pub userfault: Option<Userfault>,
}

impl SnapshotSource {
    /// Of these, with all that the kernel allows to a process that is not confined yet. Memory that goes to a file, `into`, is
    /// unpacked at once.
    #[must_use]
    pub fn new(files: Vec<File>, working_set: Option<File>, into: Option<&Shared>) -> Self {
        let is_packed = files.first().is_some_and(crate::snapshot::says_packed);
        let opened = (is_packed && into.is_none()).then(Userfault::open);
        if let Some(Err(error)) = &opened {
            tracing::debug!(%error, "packed memory is unpacked at once");
        }
        Self { files, working_set, userfault: opened.and_then(Result::ok) }
    }

    /// The snapshot, opened; if its memory cannot be had later, `ending` learns it. Memory that is no file's goes where `kvm` has a
    /// place for it.
    pub(super) fn open(
        self,
        into: Option<&Shared>,
        kvm: &kvm::Kvm,
        ending: &EndingSignal,
    ) -> Result<Snapshot, crate::snapshot::Error> {
        let Self { files, working_set, userfault } = self;
        if let Some(shared) = into {
            return Snapshot::open_into(files, shared);
        }
        // One of flat memory, for which nothing was opened.
        if let (Some(full), Some(_)) = (files.first(), &working_set)
            && read_header(full)?.form == Form::Flat
        {
            return Err(crate::snapshot::Error::NoWorkingSet);
        }
        let lazily = userfault.map(|userfault| Lazily { userfault, working_set, ending: ending.clone() });
        Snapshot::open_at(files, lazily, |ram_mib| kvm.place(ram_mib))
    }
}

/// What is booted, wherever it comes from.
pub(super) struct Bootable {
    pub(super) kernel: Box<dyn Image>,
    initrd: Option<Box<dyn Image>>,
    /// The words that the disk has for it.
    pub(super) cmdline: String,
    /// What it is, for people, if a disk's configuration chose it.
    description: Option<String>,
    is_firmware: bool,
}

impl Bootable {
    pub(super) fn find(source: BootSource, disk: Option<&Arc<dyn Disk>>) -> Result<Self, boot::Error> {
        let given = |kernel, initrd, is_firmware| Self {
            kernel,
            initrd,
            cmdline: String::new(),
            description: None,
            is_firmware,
        };
        let disk = match source {
            BootSource::Kernel { kernel, initrd } => return Ok(given(kernel, initrd, false)),
            BootSource::Firmware(firmware) => return Ok(given(firmware, None, true)),
            BootSource::Disk | BootSource::Snapshot(_) => disk.ok_or(boot::Error::NoDisk)?.clone(),
        };
        let whole = DiskImage(disk.clone());
        if begins_with_elf(&whole).map_err(|source| boot::Error::Read { what: "first disk", source })? {
            return Ok(given(Box::new(whole), None, false));
        }
        let boot::disk::Plan { kernel, initrd, cmdline, description } = boot::disk::find(disk)?;
        tracing::info!("booting {description}");
        Ok(Self { kernel, initrd, cmdline, description: Some(description), is_firmware: false })
    }

    /// Whether the kernel is an ELF image, as those that somebody built for microVMs are. A firmware looks for PCI.
    pub(super) fn is_small(&self) -> Result<bool, boot::Error> {
        let is_elf = begins_with_elf(&*self.kernel);
        Ok(!self.is_firmware && is_elf.map_err(|source| boot::Error::Read { what: "kernel", source })?)
    }

    /// Puts all of it into guest memory.
    pub(super) fn load(&self, guest: &memory::GuestMemory, cmdline: &str) -> Result<kvm::Entry, boot::Error> {
        let source = boot::Source { kernel: &*self.kernel, initrd: self.initrd.as_deref(), cmdline };
        let loaded = boot::load(guest, &source);
        if self.is_firmware && !matches!(loaded, Ok(kvm::Entry::Pvh { .. })) {
            return Err(boot::Error::Firmware(loaded.err().map(Box::new)));
        }
        loaded.map_err(|source| match &self.description {
            Some(description) => {
                boot::Error::DiskKernel { description: description.clone(), source: Box::new(source) }
            }
            None => source,
        })
    }
}
