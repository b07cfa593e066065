//! A terminal as a guest's console: raw while a guest runs, as it was afterwards.
#![expect(unsafe_code, reason = "terminal modes are read and set through libc")]

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};

/// A terminal in raw mode; dropping it restores its former mode.
pub struct RawTerminal {
    fd: OwnedFd,
    former: libc::termios,
}

impl RawTerminal {
    /// Makes `terminal` raw, except that output still turns line feeds into new lines; `None` if it is no terminal.
    ///
    /// # Errors
    /// The terminal's.
    pub fn new(terminal: impl AsFd) -> io::Result<Option<Self>> {
        let fd = terminal.as_fd().try_clone_to_owned()?;
        let mut former = MaybeUninit::<libc::termios>::uninit();
        // SAFETY: the descriptor is open and the pointer is to memory of the right type.
        if unsafe { libc::tcgetattr(fd.as_raw_fd(), former.as_mut_ptr()) } != 0 {
            return Ok(None);
        }
        // SAFETY: tcgetattr succeeded, so it has filled the structure.
        let former = unsafe { former.assume_init() };
        let mut raw = former;
        // SAFETY: the structure is initialised; the call only changes its flags.
        unsafe { libc::cfmakeraw(&raw mut raw) };
        raw.c_oflag = former.c_oflag;
        set(&fd, &raw)?;
        Ok(Some(Self { fd, former }))
    }
}

/// How many columns and rows the terminal `fd` has; nothing if it is none, or does not know.
#[must_use]
pub fn size(fd: RawFd) -> Option<(u16, u16)> {
    let mut size = MaybeUninit::<libc::winsize>::zeroed();
    // SAFETY: the request writes one `winsize`, to which the pointer is; any descriptor may be asked.
    if unsafe { libc::ioctl(fd, libc::TIOCGWINSZ, size.as_mut_ptr()) } != 0 {
        return None;
    }
    // SAFETY: zeros are a size, and the call has written another one.
    let size = unsafe { size.assume_init() };
    (size.ws_col > 0 && size.ws_row > 0).then_some((size.ws_col, size.ws_row))
}

fn set(fd: &OwnedFd, mode: &libc::termios) -> io::Result<()> {
    // SAFETY: the descriptor is open and the structure initialised.
    match unsafe { libc::tcsetattr(fd.as_raw_fd(), libc::TCSANOW, mode) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        if let Err(error) = set(&self.fd, &self.former) {
            tracing::warn!(%error, "the terminal's mode cannot be restored; `stty sane` does");
        }
    }
}
