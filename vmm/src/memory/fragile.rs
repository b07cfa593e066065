//! Copies of bytes that may turn out not to be there: of a mapped file that was cut short, whose medium fails or has no room
//! left, or of guest memory that nobody backs. The processor's fault ends such a copy, not the process.
//!
//! A fault comes as a signal on the thread that copies. Its handler knows the one instruction that copies, steps over it, and
//! leaves every other fault to whoever handled it before.
#![expect(unsafe_code, reason = "an instruction that may fault, and the handler of its fault")]

use std::arch::naked_asm;
use std::ffi::{c_int, c_void};
use std::io;
use std::sync::OnceLock;

/// The signals of faults: nothing is mapped or access is denied; what is mapped cannot be had.
const SIGNALS: [c_int; 2] = [libc::SIGSEGV, libc::SIGBUS];
/// How long [`copy_bytes`]' first instruction is.
const COPY_INSTRUCTION_BYTES: i64 = 2;

/// Who handled [`SIGNALS`] before; there once our handler may be called.
static BEFORE: OnceLock<[libc::sigaction; 2]> = OnceLock::new();

/// The right to copy: faults are handled.
#[derive(Debug, Clone, Copy)]
pub struct Fragile(());

impl Fragile {
    /// Has faults handled from now on, in the whole process.
    ///
    /// # Errors
    /// The host's.
    pub fn new() -> io::Result<Self> {
        static INSTALLED: OnceLock<Result<(), i32>> = OnceLock::new();
        let install = || install().map_err(|error| error.raw_os_error().unwrap_or(libc::EINVAL));
        INSTALLED.get_or_init(install).map_err(io::Error::from_raw_os_error)?;
        Ok(Self(()))
    }

    /// Copies `bytes` bytes, in which others may read and write meanwhile; false if some are not there. Those before them are
    /// copied then.
    ///
    /// # Safety
    /// The addresses are of memory of this process that nobody holds a reference to, or of none.
    #[must_use]
    pub unsafe fn copy(self, from: *const u8, to: *mut u8, bytes: usize) -> bool {
        // SAFETY: as the caller says; a fault is handled, as this exists.
        unsafe { copy_bytes(to, from, 0, bytes) == 0 }
    }
}

/// Copies as far as possible; how many bytes are left. The instruction takes its operands as they are passed, so it is the
/// function's first, and keeps them as far as it came when it faults (Intel SDM volume 2, `REP`).
#[unsafe(naked)]
unsafe extern "sysv64" fn copy_bytes(to: *mut u8, from: *const u8, _unused: usize, bytes: usize) -> usize {
    naked_asm!("rep movsb", "mov rax, rcx", "ret")
}

fn install() -> io::Result<()> {
    let mut before = [0; 2].map(|_: u8| {
        // SAFETY: plain data, for which zeros are a value.
        unsafe { std::mem::zeroed::<libc::sigaction>() }
    });
    for (signal, before) in SIGNALS.into_iter().zip(&mut before) {
        // SAFETY: it is only asked.
        if unsafe { libc::sigaction(signal, std::ptr::null(), before) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    let before = BEFORE.get_or_init(|| before);
    for (signal, before) in SIGNALS.into_iter().zip(before) {
        let mut ours = *before;
        ours.sa_sigaction = on_fault as extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) as usize;
        ours.sa_flags = libc::SA_SIGINFO | libc::SA_ONSTACK;
        // SAFETY: the handler is one, and does only what a handler may.
        if unsafe { libc::sigaction(signal, &raw const ours, std::ptr::null_mut()) } != 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

extern "C" fn on_fault(signal: c_int, info: *mut libc::siginfo_t, context: *mut c_void) {
    // SAFETY: the kernel calls this with the interrupted context, which is ours to change.
    let registers = unsafe { &mut (*context.cast::<libc::ucontext_t>()).uc_mcontext.gregs };
    let place = &mut registers[libc::REG_RIP as usize];
    let copies = copy_bytes as unsafe extern "sysv64" fn(*mut u8, *const u8, usize, usize) -> usize;
    if *place == copies as usize as i64 {
        *place += COPY_INSTRUCTION_BYTES;
        return;
    }
    let before = SIGNALS.iter().position(|&known| known == signal).zip(BEFORE.get());
    let Some(before) = before.map(|(index, all)| all[index]) else { return };
    match before.sa_sigaction {
        // The instruction is taken up again, and faults with nobody to handle it.
        libc::SIG_DFL | libc::SIG_IGN => {
            // SAFETY: it sets what was there before.
            unsafe { libc::sigaction(signal, &raw const before, std::ptr::null_mut()) };
        }
        handler if before.sa_flags & libc::SA_SIGINFO != 0 => {
            // SAFETY: whoever set it said that it is a handler of this form.
            let handler: extern "C" fn(c_int, *mut libc::siginfo_t, *mut c_void) =
                unsafe { std::mem::transmute(handler) };
            handler(signal, info, context);
        }
        handler => {
            // SAFETY: as above, of the form without a context.
            let handler: extern "C" fn(c_int) = unsafe { std::mem::transmute(handler) };
            handler(signal);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;
    use std::os::unix::process::ExitStatusExt as _;

    use super::*;

    const PAGE_BYTES: usize = 4096;

    fn map(access: c_int, flags: c_int, fd: c_int) -> *mut u8 {
        // SAFETY: a new mapping of the kernel's choice.
        let start = unsafe { libc::mmap(std::ptr::null_mut(), 2 * PAGE_BYTES, access, flags, fd, 0) };
        assert_ne!(start, libc::MAP_FAILED);
        start.cast()
    }

    fn anonymous(access: c_int) -> *mut u8 {
        map(access, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS, -1)
    }

    #[test]
    fn what_is_there_is_copied_and_what_is_not_ends_the_copy() {
        let fragile = Fragile::new().unwrap();
        let both = libc::PROT_READ | libc::PROT_WRITE;
        let (here, denied) = (anonymous(both), anonymous(libc::PROT_NONE));
        let file = tempfile::tempfile().unwrap();
        file.set_len(PAGE_BYTES as u64).unwrap();
        let cut = map(both, libc::MAP_SHARED, file.as_raw_fd());
        // SAFETY: the mappings are the test's alone, and are never taken apart.
        unsafe {
            here.write_bytes(7, PAGE_BYTES);
            assert!(fragile.copy(here, here.add(PAGE_BYTES), PAGE_BYTES));
            assert_eq!(here.add(2 * PAGE_BYTES - 1).read_volatile(), 7);
            assert!(fragile.copy(here, cut, PAGE_BYTES));
            assert!(fragile.copy(here, cut, 0));
            // The page behind the file's end, and what comes before it.
            assert!(!fragile.copy(here, cut.add(PAGE_BYTES), 1));
            assert!(!fragile.copy(here, cut.add(PAGE_BYTES - 10), 20));
            assert!(!fragile.copy(cut.add(PAGE_BYTES), here, 1));
            file.set_len(0).unwrap();
            assert!(!fragile.copy(cut, here, 1));
            assert!(!fragile.copy(denied, here, 1));
            assert!(!fragile.copy(here, denied, 1));
            assert!(!fragile.copy(here, std::ptr::null_mut(), 1));
        }
    }

    /// Another fault ends the process as ever: in a process of its own, which this test is called in again.
    #[test]
    fn every_other_fault_is_what_it_was_before() {
        const ASKED: &str = "WISP_TEST_FAULTS";
        if std::env::var_os(ASKED).is_some() {
            let fragile = Fragile::new().unwrap();
            let denied = anonymous(libc::PROT_NONE);
            // SAFETY: it is to fault.
            unsafe {
                assert!(!fragile.copy(denied, denied, 1));
                denied.read_volatile();
            }
            return;
        }
        let name = "memory::fragile::tests::every_other_fault_is_what_it_was_before";
        let this = std::env::current_exe().unwrap();
        let ended =
            std::process::Command::new(this).args([name, "--exact"]).env(ASKED, "1").output().unwrap();
        assert_eq!(ended.status.signal(), Some(libc::SIGSEGV), "{ended:?}");
    }
}
