//! A guest that sends what it likes over its socket device, to a host whose processes come, talk and go.

use std::io::{Read as _, Write as _};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use vmm::connector;
use vmm::virtio::mock::{BUFFERS_START, MockDescriptor, MockGuest, MockQueue};
use vmm::virtio::vsock::{Header, build_vsock};
use vmm::virtio::{Shared, VirtioDevice as _};

use crate::input::Reader;

/// Operations per input.
const OPERATIONS_MAX: usize = 256;
/// The guest's address.
const CID: u32 = 3;
/// The processes of the host at a time.
const PEERS_MAX: usize = 8;
/// Where the guest's packets are written, behind its receive buffers.
const PACKET: u64 = BUFFERS_START + 0x8_0000;

struct World {
    device: std::sync::Arc<std::sync::Mutex<vmm::virtio::vsock::Vsock>>,
    guest: MockGuest,
    queues: Vec<MockQueue>,
    /// The connector's end, until it is gone.
    connector: Option<OwnedFd>,
    /// The host's ends of connections.
    peers: Vec<UnixStream>,
}

pub(crate) fn run(input: &[u8]) {
    let mut reader = Reader::new(input);
    let (near, far) = connector::pair().expect("the fuzzer needs sockets");
    let near = UnixStream::from(near);
    near.set_nonblocking(true).expect("invariant: an open socket");
    let device = build_vsock(CID, None, Some(near)).expect("the fuzzer needs eventfds");
    let guest = MockGuest::new(device.clone() as Shared).expect("the fuzzer needs eventfds");
    let mut world = World { device, guest, queues: Vec::new(), connector: Some(far), peers: Vec::new() };
    world.bring_up();
    for _ in 0..OPERATIONS_MAX {
        if reader.is_empty() {
            break;
        }
        world.step(&mut reader);
    }
    assert!(world.guest.run(), "the device does not come to rest");
}

impl World {
    fn bring_up(&mut self) {
        self.queues = self.guest.bring_up(1, &[16, 16, 4]);
    }

    fn step(&mut self, reader: &mut Reader<'_>) {
        match reader.u8() % 12 {
            0..=3 => self.send(reader),
            4 | 5 => self.offer(reader),
            6 | 7 => self.answer(reader),
            8 | 9 => self.talk(reader),
            10 => {
                let held = reader.u8() % 2 == 1;
                self.device.lock().expect("invariant: nobody panicked").hold(held);
            }
            _ => match reader.u8() % 8 {
                0 => self.bring_up(),
                1 => self.device.lock().expect("invariant: nobody panicked").forget_connections(),
                2 => self.connector = None,
                3 => self.peers.clear(),
                _ => {}
            },
        }
        self.guest.run();
    }

    /// A packet that is nearly one, between few ports.
    fn send(&mut self, reader: &mut Reader<'_>) {
        let data = reader.u16();
        let header = Header {
            src_cid: if reader.u8() == 255 { reader.u64() } else { CID.into() },
            dst_cid: if reader.u8() == 255 { reader.u64() } else { 2 },
            src_port: u32::from(reader.u8() % 4),
            // Those of the host's own begin so.
            dst_port: u32::from(reader.u8() % 4) + if reader.u8() % 4 == 3 { 1 << 30 } else { 0 },
            length: if reader.u8() % 8 == 7 { reader.u32() } else { data.into() },
            kind: if reader.u8() % 16 == 15 { reader.u16() } else { 1 },
            op: u16::from(reader.u8() % 9),
            flags: reader.u8().into(),
            buf_alloc: if reader.u8().is_multiple_of(2) { 1 << 16 } else { reader.u32() },
            fwd_cnt: reader.u16().into(),
        };
        self.guest.put(PACKET, &header.encode());
        let chain =
            [MockDescriptor::readable(PACKET, 44), MockDescriptor::readable(BUFFERS_START, data.into())];
        self.queues[1].submit(&self.guest.memory, &chain);
        self.guest.kick(1);
    }

    fn offer(&mut self, reader: &mut Reader<'_>) {
        let (queue, length) = (usize::from(reader.u8() % 3) & 2, u32::from(reader.u16()));
        // Now and then too short for a header, which breaks the device until it is brought up again.
        let length = if reader.u8() % 16 == 15 { length } else { length.max(64) };
        let buffer = MockDescriptor::writable(BUFFERS_START, length);
        self.queues[queue].submit(&self.guest.memory, &[buffer]);
        self.guest.kick(queue as u16);
        if self.guest.needs_reset() {
            self.bring_up();
        }
    }

    /// Answers what the guest asked, or what it did not.
    fn answer(&mut self, reader: &mut Reader<'_>) {
        let Some(connector) = &self.connector else { return };
        let mut message = [0; 8];
        let flags = rustix::net::RecvFlags::DONTWAIT;
        let asked = rustix::net::recv(connector, &mut message, flags).is_ok();
        if !asked || reader.u8() % 8 == 7 {
            message.copy_from_slice(&reader.u64().to_le_bytes());
        }
        let refused = reader.u8() % 4 == 3;
        message[4..].copy_from_slice(&u32::from(refused).to_le_bytes());
        let (ours, theirs) = UnixStream::pair().expect("the fuzzer needs sockets");
        ours.set_nonblocking(true).expect("invariant: an open socket");
        let length = if reader.u8() % 32 == 31 { 3 } else { message.len() };
        let descriptors: &[&UnixStream] = if refused { &[] } else { &[&theirs] };
        send(connector, &message[..length], descriptors);
        if self.peers.len() < PEERS_MAX {
            self.peers.push(ours);
        }
    }

    fn talk(&mut self, reader: &mut Reader<'_>) {
        if self.peers.is_empty() {
            return;
        }
        let index = usize::from(reader.u8()) % self.peers.len();
        let peer = &mut self.peers[index];
        // A socket that is full, or has nothing, is as good as any.
        match reader.u8() % 5 {
            0 => drop(peer.write(&vec![7; reader.u16().into()])),
            1 => drop(peer.read(&mut vec![0; reader.u16().into()])),
            2 => drop(peer.shutdown(Shutdown::Write)),
            3 => drop(peer.shutdown(Shutdown::Read)),
            _ => drop(self.peers.swap_remove(index)),
        }
    }
}

/// Sends a message with descriptors, if the socket takes it.
fn send(socket: &OwnedFd, message: &[u8], descriptors: &[&UnixStream]) {
    use std::io::IoSlice;
    use std::mem::MaybeUninit;
    use std::os::fd::{AsFd as _, BorrowedFd};

    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags};
    let descriptors: Vec<BorrowedFd<'_>> = descriptors.iter().map(|stream| stream.as_fd()).collect();
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut ancillary = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        ancillary.push(SendAncillaryMessage::ScmRights(&descriptors));
    }
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let _ = rustix::net::sendmsg(socket, &[IoSlice::new(message)], &mut ancillary, flags);
}
