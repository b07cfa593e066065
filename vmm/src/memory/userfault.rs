//! Memory that is filled when somebody first touches it, whoever that is: a device, a processor, the kernel
//! (userfaultfd(2), `linux/userfaultfd.h`).
#![expect(unsafe_code, reason = "the kernel is told addresses, by calls that nothing safer wraps")]

use std::io;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, FromRawFd as _, OwnedFd};

use vm_memory::{GuestMemoryBackend as _, GuestMemoryRegion as _};

use super::GuestMemory;

/// The version of the interface that there is.
const API: u64 = 0xaa;
/// Requests, as the kernel numbers them: direction, size of the argument, type, number.
const UFFDIO_API: libc::c_ulong = 0xc018_aa3f;
const UFFDIO_REGISTER: libc::c_ulong = 0xc020_aa00;
const UFFDIO_WAKE: libc::c_ulong = 0x8010_aa02;
const UFFDIO_COPY: libc::c_ulong = 0xc028_aa03;
/// Only pages that are not there at all are asked for.
const MODE_MISSING: u64 = 1;
/// What is read: somebody waits for a page.
const EVENT_PAGEFAULT: u8 = 0x12;
/// Bytes of what is read at a time.
const MESSAGE_BYTES: usize = 32;
/// Where the address stands in it.
const ADDRESS_AT: usize = 16;

/// What learns who waits for which page, and gives it to them.
#[derive(Debug)]
pub struct Userfault(OwnedFd);

/// A range of memory that is filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Filled {
    /// Its address in this process.
    pub(crate) start: u64,
    /// Its length.
    pub(crate) bytes: u64,
}

impl Userfault {
    /// Opens one for memory of this process that the kernel reads and writes too, which takes a right that a confined
    /// process has not: CAP_SYS_PTRACE, or the sysctl `vm.unprivileged_userfaultfd`.
    ///
    /// # Errors
    /// The kernel has none, or does not allow it.
    pub fn open() -> io::Result<Self> {
        // SAFETY: a system call that takes two flags and gives a new descriptor.
        let number = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC | libc::O_NONBLOCK) };
        let number = i32::try_from(number).ok().filter(|number| *number >= 0);
        let number = number.ok_or_else(io::Error::last_os_error)?;
        // SAFETY: it was just made and is nobody else's.
        let opened = Self(unsafe { OwnedFd::from_raw_fd(number) });
        opened.request(UFFDIO_API, &mut [API, 0, 0])?;
        Ok(opened)
    }

    /// Has all of a guest's memory filled from here on. None of it may have been touched.
    ///
    /// # Errors
    /// The kernel refuses.
    pub(crate) fn watch(&self, memory: &GuestMemory) -> io::Result<Vec<Filled>> {
        let range = |region: &vm_memory::GuestRegionMmap<_>| {
            let filled = Filled { start: region.as_ptr() as u64, bytes: region.len() };
            self.request(UFFDIO_REGISTER, &mut [filled.start, filled.bytes, MODE_MISSING, 0])?;
            Ok(filled)
        };
        memory.iter().map(range).collect()
    }

    /// The address of a page that somebody waits for; nothing if nobody does.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn next(&self) -> io::Result<Option<u64>> {
        let mut message = [0; MESSAGE_BYTES];
        match rustix::io::read(&self.0, &mut message) {
            Ok(MESSAGE_BYTES) if message[0] == EVENT_PAGEFAULT => {
                let address = std::array::from_fn(|index| message[ADDRESS_AT + index]);
                Ok(Some(u64::from_le_bytes(address)))
            }
            // Nothing else was asked for.
            Ok(_) => Ok(None),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Puts `pages` where nothing is yet, whole pages at the address of one, and wakes who waits for them. What somebody
    /// put there before stays.
    ///
    /// # Errors
    /// The kernel's; nowhere but in memory that is watched does anything change.
    pub(crate) fn put(&self, address: u64, pages: &[u8]) -> io::Result<()> {
        let bytes = pages.len() as u64;
        let mut done = 0;
        while done < bytes {
            let mut copy = [address + done, pages.as_ptr() as u64 + done, bytes - done, 0, 0];
            match self.request(UFFDIO_COPY, &mut copy) {
                Ok(()) => return Ok(()),
                Err(error) => match error.raw_os_error() {
                    Some(libc::EEXIST) => return self.wake(address + done, bytes - done),
                    // So much of it, and then something else was changed about the process's memory.
                    Some(libc::EAGAIN) => done += u64::try_from(copy[4].cast_signed()).unwrap_or(0),
                    _ => return Err(error),
                },
            }
        }
        Ok(())
    }

    /// Wakes who waits for a page there; who finds none waits anew.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn wake(&self, address: u64, bytes: u64) -> io::Result<()> {
        self.request(UFFDIO_WAKE, &mut [address, bytes])
    }

    fn request<const N: usize>(&self, request: libc::c_ulong, argument: &mut [u64; N]) -> io::Result<()> {
        // SAFETY: each request's argument is so many 64-bit words, which are read and written; the ranges that they name are
        // only changed where this process registered them, which is guest memory: bytes that may change at any time.
        let result = unsafe { libc::ioctl(self.0.as_raw_fd(), request, argument.as_mut_ptr()) };
        if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
    }
}

impl AsFd for Userfault {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes as _, GuestAddress};

    use super::*;

    #[test]
    fn who_touches_a_page_waits_until_it_is_there() {
        let userfault = match Userfault::open() {
            Ok(userfault) => userfault,
            Err(error) => {
                crate::testing::skipped(&error.to_string());
                return;
            }
        };
        let memory = crate::memory::allocate(1).unwrap();
        let filled = userfault.watch(&memory).unwrap();
        assert_eq!((filled.len(), filled[0].bytes), (1, 1 << 20));
        assert_eq!(userfault.next().unwrap(), None);
        userfault.put(filled[0].start + 8192, &[9; 8192]).unwrap();
        // Nothing is written over.
        userfault.put(filled[0].start + 8192, &[1; 8192]).unwrap();
        let toucher = {
            let memory = memory.clone();
            std::thread::spawn(move || {
                [0x5008, 0x2000].map(|at| memory.read_obj::<u64>(GuestAddress(at)).unwrap())
            })
        };
        let address = loop {
            if let Some(address) = userfault.next().unwrap() {
                break address;
            }
        };
        assert_eq!(address & !0xfff, filled[0].start + 0x5000);
        userfault.put(address & !0xfff, &[7; 4096]).unwrap();
        assert_eq!(toucher.join().unwrap(), [0x0707_0707_0707_0707, 0x0909_0909_0909_0909]);
        // Memory that nobody watches is left alone.
        let other = crate::memory::allocate(1).unwrap();
        let start = other.iter().next().unwrap().as_ptr() as u64;
        assert!(userfault.put(start, &[1; 4096]).is_err());
    }
}
