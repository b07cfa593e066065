//! One virtual CPU: what it runs until, and how it is made to come back.

use std::os::fd::AsRawFd as _;
use std::ptr::NonNull;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use kvm_ioctls::{VcpuExit, VcpuFd};

use super::{Entry, Error, HostKind, fault, x86_64};
use crate::bus::Bus;
use crate::memory::GuestMemory;

/// What made a vCPU come back.
#[derive(Debug, PartialEq, Eq)]
pub enum Exit {
    /// Device access; it is done, run again.
    Handled,
    /// A signal or [`ExitRequest`]; look at what is wanted.
    Interrupted,
    /// The guest cannot go on; one sentence for a person.
    Broken(String),
}

/// One virtual CPU.
pub struct Vcpu {
    pub(super) fd: VcpuFd,
    pub(super) kind: HostKind,
    /// Those that the host lists as part of a guest's state.
    pub(super) msrs: Arc<[u32]>,
    /// For what is said of a guest that broke.
    pub(super) memory: GuestMemory,
}

impl Vcpu {
    /// Sets the registers with which the boot CPU enters the guest.
    ///
    /// # Errors
    /// The kernel's.
    pub fn set_entry(&self, entry: &Entry) -> Result<(), Error> {
        x86_64::set_entry(&self.fd, entry)
    }

    /// The means to make [`Self::run`] return from another thread.
    ///
    /// # Errors
    /// The page cannot be mapped.
    pub fn exit_request(&self) -> Result<ExitRequest, Error> {
        ExitRequest::map(&self.fd)
    }

    /// Tells the guest's clock that the guest was held, so that its watchdogs stay quiet. Best effort.
    pub fn was_held(&self) {
        if let Err(error) = self.fd.kvmclock_ctrl() {
            tracing::debug!(%error, "the guest's clock was not told of the pause");
        }
    }

    /// Runs the guest until it needs something, and serves device accesses through the buses.
    pub fn run(&mut self, ports: &Bus, registers: &Bus) -> Exit {
        // The size of one item of string I/O is not in the exit, only in the shared page.
        let run: *const kvm_bindings::kvm_run = self.fd.get_kvm_run();
        // SAFETY: called only while an exit for port I/O is being served: the kernel has then filled `io`, and the
        // page is mapped as long as `self.fd` lives.
        let item_bytes = || usize::from(unsafe { (*run).__bindgen_anon_1.io.size });
        match self.fd.run() {
            Ok(VcpuExit::IoOut(port, data)) => ports.write_string(u64::from(port), item_bytes(), data),
            Ok(VcpuExit::IoIn(port, data)) => ports.read_string(u64::from(port), item_bytes(), data),
            Ok(VcpuExit::MmioWrite(address, data)) => registers.write(address, data),
            Ok(VcpuExit::MmioRead(address, data)) => registers.read(address, data),
            Ok(VcpuExit::Intr) => return Exit::Interrupted,
            Ok(VcpuExit::Shutdown) => return Exit::Broken(fault::triple_fault(&self.fd)),
            Ok(VcpuExit::InternalError) => return Exit::Broken(self.internal_error()),
            Ok(VcpuExit::FailEntry(reason, _)) => {
                return Exit::Broken(format!(
                    "the processor refused to enter the guest (reason {reason:#x})"
                ));
            }
            Ok(other) => {
                let what = format!("KVM returned with an exit this VMM does not know: {other:?}");
                return Exit::Broken(what);
            }
            // EAGAIN: a CPU that waited for its start-up interrupt got it.
            Err(error) if error.errno() == libc::EINTR || error.errno() == libc::EAGAIN => {
                return Exit::Interrupted;
            }
            Err(error) => return Exit::Broken(format!("KVM cannot run the guest: {error}")),
        }
        Exit::Handled
    }

    fn internal_error(&mut self) -> String {
        // SAFETY: the exit reason is KVM_EXIT_INTERNAL_ERROR, for which the kernel fills `internal`.
        let internal = unsafe { self.fd.get_kvm_run().__bindgen_anon_1.internal };
        let told = internal.data.len().min(usize::try_from(internal.ndata).unwrap_or(0));
        let data = (internal.suberror, &internal.data[..told]);
        fault::internal_error(&self.fd, &self.memory, self.kind, data)
    }
}

/// Makes a vCPU's next or current run return as soon as its thread gets a signal, without a race: a second mapping
/// of the page a vCPU shares with the kernel, of which only `immediate_exit` is used.
pub struct ExitRequest {
    page: NonNull<u8>,
}

/// The shared page's used part; `kvm_run` begins in it.
const RUN_PAGE_BYTES: usize = 4096;

// SAFETY: the page is shared memory that lives until drop, and is only reached as an atomic byte.
unsafe impl Send for ExitRequest {}
// SAFETY: as above.
unsafe impl Sync for ExitRequest {}

impl ExitRequest {
    fn map(vcpu: &VcpuFd) -> Result<Self, Error> {
        // SAFETY: a new mapping at an address of the kernel's choice; the descriptor is open.
        let page = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                RUN_PAGE_BYTES,
                libc::PROT_READ | libc::PROT_WRITE,
                libc::MAP_SHARED,
                vcpu.as_raw_fd(),
                0,
            )
        };
        if page == libc::MAP_FAILED {
            return Err(Error::MapRun(std::io::Error::last_os_error()));
        }
        Ok(Self { page: NonNull::new(page.cast()).expect("invariant: mmap never maps page zero unasked") })
    }

    fn flag(&self) -> &AtomicU8 {
        let offset = std::mem::offset_of!(kvm_bindings::kvm_run, immediate_exit);
        // SAFETY: the offset lies within the mapped page, a byte is always aligned, the mapping lives as long as
        // `self`, and the kernel itself reads the byte as one that may change at any time.
        unsafe { AtomicU8::from_ptr(self.page.as_ptr().add(offset)) }
    }

    /// From now on the vCPU returns at once; follow it with a signal to its thread.
    pub fn set(&self) {
        self.flag().store(1, Ordering::SeqCst);
    }

    /// The vCPU may run again.
    pub fn clear(&self) {
        self.flag().store(0, Ordering::SeqCst);
    }
}

impl Drop for ExitRequest {
    fn drop(&mut self) {
        // SAFETY: the mapping was made with this address and length, and nothing borrows from it any more.
        unsafe { libc::munmap(self.page.as_ptr().cast(), RUN_PAGE_BYTES) };
    }
}
