//! Asking a name server for the address of a name (RFC 1035), by UDP.
//!
//! Must never know: why.

use alloc::rc::Rc;
use alloc::vec;
use core::fmt;
use core::net::IpAddr;

use smoltcp::socket::dns::{GetQueryResultError, Socket, StartQueryError};
use smoltcp::wire::{DnsQueryType, IpAddress};

use crate::machine::Machine;
use crate::stack::Stack;

/// How long an answer is waited for, in nanoseconds; it is asked for again meanwhile.
const TIMEOUT_NS: u64 = 3_000_000_000;

/// Why there is no address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// Nobody said whom to ask.
    NoServer,
    /// It cannot be a name.
    NoName,
    /// It has none, or there is no such name.
    Nothing,
    /// No answer came in time.
    Timeout,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::NoServer => "no name server",
            Error::NoName => "not a name",
            Error::Nothing => "no such name",
            Error::Timeout => "timeout",
        })
    }
}

/// An address of `name`: by IPv6 where that is all there is.
pub async fn address(machine: &'static Machine, stack: &Rc<Stack>, name: &str) -> Result<IpAddr, Error> {
    let server = stack.name_server().ok_or(Error::NoServer)?;
    let kind = if stack.lease().is_some() { DnsQueryType::A } else { DnsQueryType::Aaaa };
    if let IpAddr::V4(server) = server {
        stack.seek(server, &machine.clock);
    }
    let handle = stack.add(Socket::new(&[IpAddress::from(server)], vec![None]));
    let started = stack.with(handle, |socket: &mut Socket<'static>, context| {
        socket.start_query(context, name, kind).map_err(|error| match error {
            StartQueryError::NoFreeSlot => Error::Timeout,
            StartQueryError::InvalidName | StartQueryError::NameTooLong => Error::NoName,
        })
    });
    let query = match started {
        Ok(query) => query,
        Err(error) => {
            stack.remove(handle);
            return Err(error);
        }
    };
    let answered = || {
        stack.with(handle, |socket: &mut Socket<'static>, _| match socket.get_query_result(query) {
            Ok(addresses) => Some(addresses.first().copied().map(IpAddr::from).ok_or(Error::Nothing)),
            Err(GetQueryResultError::Pending) => None,
            Err(GetQueryResultError::Failed) => Some(Err(Error::Nothing)),
        })
    };
    let found = machine.wait_until(machine.clock.now_ns() + TIMEOUT_NS, answered).await;
    stack.remove(handle);
    found.unwrap_or(Err(Error::Timeout))
}
