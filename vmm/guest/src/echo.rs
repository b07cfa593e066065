//! TCP echo (RFC 862).
//!
//! Must never know: what is echoed.

use alloc::rc::Rc;
use alloc::vec;

use crate::machine::Machine;
use crate::stack::Stack;
use crate::tcp::{Connection, Error};

/// The port (RFC 862).
const PORT: u16 = 7;
/// Connections at the same time; more are refused.
pub const CONNECTIONS: usize = 2;
/// Bytes buffered in each direction.
const BUFFER_BYTES: usize = 8192;

/// Serves one connection after the other.
pub async fn serve(machine: &'static Machine, stack: Rc<Stack>) {
    let mut connection = Connection::new(machine, &stack, BUFFER_BYTES, BUFFER_BYTES);
    loop {
        connection.accept(PORT).await;
        // A peer that is gone has nothing more to say; the next one may.
        let _ = echo(&mut connection).await;
        connection.close().await;
    }
}

async fn echo(connection: &mut Connection) -> Result<(), Error> {
    let mut bytes = vec![0; 1024];
    loop {
        match connection.read(&mut bytes).await? {
            0 => return Ok(()),
            count => connection.write(&bytes[..count]).await?,
        }
    }
}
