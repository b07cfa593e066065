//! What a program that holds its C library leaves out of it.
#![expect(unsafe_code, reason = "a function of the C library is replaced")]

use std::ffi::{CStr, c_char, c_uint, c_void};
use std::ptr::null_mut;

unsafe extern "C" {
    /// getrandom(2).
    fn getrandom(buffer: *mut c_void, bytes: usize, flags: c_uint) -> isize;
}

/// Looks for a function by its name, as dlsym(3). Who asks wants to know whether the C library is new enough to have it:
/// what has to be found is found here, and all others have an answer without. The C library's own `dlsym` would load the
/// machine's `libc.so.6` beside the one that is here, at the first thread of every process.
// SAFETY: it answers a name that ends with a zero byte, as it is asked to, with that function or with none.
#[unsafe(no_mangle)]
unsafe extern "C" fn dlsym(_handle: *mut c_void, name: *const c_char) -> *mut c_void {
    // SAFETY: so says the caller.
    match unsafe { CStr::from_ptr(name) }.to_bytes() {
        // Else randomness would be read from a file, which a confined process cannot open.
        b"getrandom" => getrandom as *mut c_void,
        _ => null_mut(),
    }
}
