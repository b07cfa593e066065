//! The socket device (VIRTIO 1.3 §5.10): streams between ports of the guest and Unix sockets of the host.
//!
//! Whoever connects to the host's socket of the device and says `CONNECT PORT` and a line feed is connected to that port of
//! the guest, and hears `OK PORT` with a port of the host's own; who is refused is hung up on. Where the guest connects to,
//! a port of the host's, is for the connector (`crate::connector`) to know.
//!
//! The guest is told how many bytes it may send, and one that sends more is reset; what goes to it waits in the host's
//! sockets. Must never know: paths, who is at the other end.

mod caller;
mod connection;
mod packet;
mod table;

use std::os::fd::AsRawFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use serde::{Deserialize, Serialize};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::timerfd::TimerFd;

use super::queue::{Chain, Handled, Progress, QueueError};
use super::spec::{device_type, vsock as spec};
use super::state::decode;
use super::{Activation, DeviceState, Error, StateError, VirtioDevice};
use crate::backlog::Backlog;

use table::{HOST_PORT_START, Table};

pub use connection::BUFFER_BYTES_MAX;
pub use packet::Header;
pub use table::{CONNECTIONS_MAX, REPLIES_MAX};

/// Descriptors per queue of packets: as Linux asks for its buffers.
pub const QUEUE_SIZE_MAX: u16 = 256;
/// Descriptors of the queue of events, of which there is one at a time.
const EVENT_QUEUE_SIZE_MAX: u16 = 16;
/// Packets of one direction before the event loop serves its other devices.
const BATCH_PACKETS_MAX: u16 = 64;
/// The most data of one packet, either way.
pub const PACKET_BYTES_MAX: u32 = 64 << 10;
/// The smallest address that a guest can have (§5.10.4); the largest is one below that which means any.
pub const CID_MIN: u32 = 3;

/// One socket device.
pub struct Vsock {
    cid: u32,
    queue_events: Vec<EventFd>,
    timer: TimerFd,
    timer_for: Option<Instant>,
    active: Option<Activation>,
    chain: Chain,
    /// The data of one packet to the guest.
    data: Vec<u8>,
    table: Table,
    /// The guest has to hear that all its connections are gone.
    event_due: bool,
    held: bool,
}

/// Makes the socket device of the guest whose address is `cid`. The connector's socket is non-blocking.
///
/// # Errors
/// No guest can have that address, or the kernel gives no event descriptor or timer.
pub fn build_vsock(
    cid: u32,
    listener: Option<UnixListener>,
    connector: Option<UnixStream>,
) -> Result<Arc<Mutex<Vsock>>, Error> {
    if !(CID_MIN..u32::MAX).contains(&cid) {
        let allowed = "3 to 4294967294";
        return Err(Error::Config { what: "guest's CID", value: cid.to_string(), allowed });
    }
    let backlog = listener.map(|listener| Backlog::new(listener, "a socket device"));
    let backlog = backlog.transpose().map_err(Error::EventFd)?;
    Ok(Arc::new(Mutex::new(Vsock {
        cid,
        queue_events: super::queue_event_fds(3)?,
        timer: TimerFd::new().map_err(|errno| Error::EventFd(errno.into()))?,
        timer_for: None,
        active: None,
        chain: Chain::new(),
        data: Vec::new(),
        table: Table::new(cid.into(), backlog, connector),
        event_due: false,
        held: false,
    })))
}

/// The address in a device's saved state.
///
/// # Errors
/// It is none.
pub fn saved_cid(own: &[u8]) -> Result<u32, StateError> {
    let OwnState { cid, .. } = decode(own)?;
    let is_one = (CID_MIN..u32::MAX).contains(&cid);
    if is_one { Ok(cid) } else { Err(StateError::Invalid("its address is one that no guest has")) }
}

/// What a socket device saves.
#[derive(Serialize, Deserialize)]
struct OwnState {
    cid: u32,
    /// The host's port of the next connection that the host begins.
    next_port: u32,
}

impl Vsock {
    /// Ends all connections, and tells the guest that they are gone (§5.10.6.7): it is not where they were.
    pub fn forget_connections(&mut self) {
        self.table.clear();
        self.event_due = true;
        self.queue_events.iter().for_each(super::kick);
    }

    fn work(&mut self) {
        if self.held {
            return;
        }
        let Some(mut active) = self.active.take() else { return };
        match self.work_off(&mut active) {
            Ok(()) => self.active = Some(active),
            Err(error) => {
                super::broken(&active, device_type::VSOCK, error);
                self.table.clear();
            }
        }
    }

    fn work_off(&mut self, active: &mut Activation) -> Result<(), QueueError> {
        let waits = self.transmit(active)? == Progress::Waiting;
        self.receive(active)?;
        if waits && self.table.has_room() {
            super::kick(&self.queue_events[spec::QUEUE_TX]);
        }
        if self.event_due {
            self.tell(active)?;
        }
        Ok(())
    }

    /// Guest to host.
    fn transmit(&mut self, active: &mut Activation) -> Result<Progress, QueueError> {
        let Self { chain, table, .. } = self;
        let now = Instant::now();
        let queue = &mut active.queues[spec::QUEUE_TX];
        let progress = queue.work_off(chain, BATCH_PACKETS_MAX, |memory, chain| {
            if !table.has_room() {
                return Ok(Handled::Later);
            }
            let mut bytes = [0; spec::HEADER_BYTES];
            if chain.read_at(memory, 0, &mut bytes) < bytes.len() {
                // What is no packet is none.
                return Ok(Handled::Used(0));
            }
            let mut header = Header::parse(&bytes);
            let sent = chain.readable_bytes() - spec::HEADER_BYTES as u64;
            if u64::from(header.length) > sent || header.length > PACKET_BYTES_MAX {
                // No room is as large as this, so the connection is reset.
                header.length = u32::MAX;
            }
            let data = || {
                let mut data = vec![0; header.length as usize];
                chain.read_at(memory, spec::HEADER_BYTES as u64, &mut data);
                data
            };
            table.take(&header, data, now);
            Ok(Handled::Used(0))
        })?;
        active.settle(spec::QUEUE_TX, progress, &self.queue_events)
    }

    /// Host to guest.
    fn receive(&mut self, active: &mut Activation) -> Result<(), QueueError> {
        let Self { chain, table, data, .. } = self;
        data.resize(PACKET_BYTES_MAX as usize, 0);
        let now = Instant::now();
        let queue = &mut active.queues[spec::QUEUE_RX];
        let progress = queue.work_off(chain, BATCH_PACKETS_MAX, |memory, chain| {
            let header_bytes = spec::HEADER_BYTES as u64;
            let room = chain.writable_bytes().checked_sub(header_bytes).ok_or(QueueError::Outcome)?;
            let room = usize::try_from(room).unwrap_or(usize::MAX).min(data.len());
            let Some(header) = table.next(&mut data[..room], now) else { return Ok(Handled::Later) };
            chain.write_at(memory, 0, &header.encode());
            chain.write_at(memory, header_bytes, &data[..header.length as usize]);
            Ok(Handled::Used(spec::HEADER_BYTES as u32 + header.length))
        })?;
        active.settle(spec::QUEUE_RX, progress, &self.queue_events)?;
        Ok(())
    }

    /// Says that the connections are gone, when the guest has a buffer for that.
    fn tell(&mut self, active: &mut Activation) -> Result<(), QueueError> {
        let Self { chain, event_due, .. } = self;
        let queue = &mut active.queues[spec::QUEUE_EVENT];
        queue.work_off(chain, 1, |memory, chain| {
            if !std::mem::take(event_due) {
                return Ok(Handled::Later);
            }
            let written = chain.write_at(memory, 0, &spec::EVENT_TRANSPORT_RESET.to_le_bytes());
            // Four bytes.
            Ok(Handled::Used(written as u32))
        })?;
        active.signal(spec::QUEUE_EVENT);
        Ok(())
    }

    fn settle(&mut self, ops: &mut EventOps<'_>) {
        self.table.settle(ops);
        let deadline = self.table.deadline().filter(|_| !self.held);
        if deadline != self.timer_for {
            let delay = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            super::arm(&mut self.timer, delay);
            self.timer_for = deadline;
        }
    }
}

impl VirtioDevice for Vsock {
    fn device_type(&self) -> u32 {
        device_type::VSOCK
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE_SIZE_MAX, QUEUE_SIZE_MAX, EVENT_QUEUE_SIZE_MAX]
    }

    fn queue_events(&self) -> &[EventFd] {
        &self.queue_events
    }

    fn features(&self) -> u64 {
        spec::F_STREAM
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        super::read_config_bytes(&u64::from(self.cid).to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) {
        self.active = Some(activation);
    }

    fn reset(&mut self) {
        self.active = None;
        self.table.clear();
        // The event loop has streams to forget.
        self.queue_events.iter().for_each(super::kick);
    }

    /// The guest's address. Connections do not go on, and no new one has a port of one that the guest may still think of.
    fn save(&self) -> DeviceState {
        let own = OwnState { cid: self.cid, next_port: self.table.next_port };
        DeviceState::of(self.active.as_ref()).with(&own)
    }

    /// A guest that goes on has the address that it is given now, and hears that its connections are gone.
    fn restore(&mut self, own: &[u8]) -> Result<(), StateError> {
        saved_cid(own)?;
        self.table.next_port = decode::<OwnState>(own)?.next_port.max(HOST_PORT_START);
        self.event_due = true;
        Ok(())
    }

    fn hold(&mut self, held: bool) {
        self.held = held;
        if !held {
            self.table.renew(Instant::now());
            self.queue_events.iter().for_each(super::kick);
        }
    }
}

impl MutEventSubscriber for Vsock {
    fn init(&mut self, ops: &mut EventOps<'_>) {
        for event in &self.queue_events {
            super::watch(ops, event, EventSet::IN);
        }
        super::watch(ops, &self.timer, EventSet::IN);
        self.table.start(ops);
    }

    fn process(&mut self, events: Events, ops: &mut EventOps<'_>) {
        let now = Instant::now();
        if let Some(event) = self.queue_events.iter().find(|event| event.as_raw_fd() == events.fd()) {
            super::drain(event);
        } else if self.timer.as_raw_fd() == events.fd() {
            super::arm(&mut self.timer, None);
            self.timer_for = None;
            if !self.held {
                self.table.expire(now);
            }
        } else {
            self.table.happened(events, now);
        }
        self.work();
        self.settle(ops);
    }
}
