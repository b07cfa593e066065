//! What would confine a VMM process on this host, tried on a process that does nothing else.
#![expect(unsafe_code, reason = "a process has to be made that confines itself")]

use std::io::{self, Read as _, Write as _};

use super::cell::{self, Cell};
use super::{Namespaces, Sandbox};
use crate::rpc::ProtectionStatus;

/// Confines a process as an instance's would be: in `cell`, if there is one, and as `user`, if it can change users.
///
/// Only for a process with one thread: what the new one does needs the allocator.
///
/// # Errors
/// It cannot be confined at all, or no process can be made.
pub fn probe(cell: Option<&Cell>, user: Option<u32>) -> io::Result<Vec<ProtectionStatus>> {
    let namespaces = if cell.is_some() { Namespaces::Cell } else { Namespaces::Stay };
    let sandbox = Sandbox { uid: user, gid: user, namespaces };
    let (mut said, mut say) = io::pipe()?;
    let handles = cell.map(Cell::handles);
    // SAFETY: this process has one thread, says the caller: nobody holds a lock or the allocator at the fork.
    let child = unsafe {
        cell::in_child(move || {
            if handles.is_some_and(|handles| cell::join(handles).is_err()) {
                return;
            }
            // The first of its PID namespace.
            let inner = cell::in_child(move || {
                if let Ok(held) = sandbox.enter() {
                    // Who reads finds nothing then.
                    let _ = say.write_all(&serde_json::to_vec(&held.protections).unwrap_or_default());
                }
            });
            let _ = inner.map(cell::wait_for);
        })
    }?;
    let mut text = Vec::new();
    said.read_to_end(&mut text)?;
    cell::wait_for(child)?;
    serde_json::from_slice(&text).map_err(|_| io::Error::other("the process could not confine itself"))
}
