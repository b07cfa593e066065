//! A load over the network for whoever measures it: round trips of small datagrams, one after the other, and one TCP connection each
//! way. The other end is a guest that serves, or any host with the services of old: echo (RFC 862), discard (RFC 863) and chargen (RFC 864).
//!
//! A load has the device for itself, with the offloads that Linux uses, and whatever else the guest does waits for it: DHCP,
//! pings, its pages. It ends with its time, or when the power button is pressed.
//!
//! Must never know: who measures.

use core::fmt;
use core::net::Ipv4Addr;

use alloc::vec;
use alloc::vec::Vec;

use crate::clock::{Clock, counter};
use crate::entry::acpi_interrupts_taken;
use crate::parse::segment::{
    self, ACK, Flow, Host, IP_END, Packet, RESET, SYN, Segment, TCP_CHECKSUM, TCP_END, UDP_CHECKSUM, UDP_END,
};
use crate::parse::stream::Stream;
use crate::wire::{Offload, Wire};
use crate::{console, println};

const ECHO: u16 = 7;
const DISCARD: u16 = 9;
const CHARGEN: u16 = 19;
/// What a round trip carries, in bytes.
const ECHO_BYTES: u16 = 32;
/// Datagrams whose headers and payload are answered; a longer one is not.
const ECHO_BYTES_MAX: usize = 64;
/// How long an answer is waited for, and how often the link is asked for an address, in nanoseconds.
const LOST_NS: u64 = 100_000_000;
/// How long the other end may take to be there, and to take what is under way at the end, in nanoseconds.
const PATIENCE_NS: u64 = 20_000_000_000;
/// Round trips whose times are kept; later ones are counted.
const TIMES_MAX: usize = 1 << 18;
/// Connections served at a time; the oldest goes for another one.
const STREAMS_MAX: usize = 4;

/// Why a load came to nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Error {
    /// The device cannot do what Linux has it do.
    Device,
    /// There is no IPv4 address.
    NoAddress,
    /// Nobody on the link has the address of the next hop.
    Silent,
    /// The other end does not answer, or cut the connection.
    Refused,
    /// The power button was pressed.
    Pressed,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Error::Device => "the device lacks offloads",
            Error::NoAddress => "no address",
            Error::Silent => "nobody has the next address",
            Error::Refused => "no answer",
            Error::Pressed => "the power button was pressed",
        })
    }
}

/// Who is measured.
#[derive(Debug, Clone, Copy)]
pub struct Target {
    /// The other end.
    pub address: Ipv4Addr,
    /// Who passes on what is for it: itself, on the same link.
    pub hop: Ipv4Addr,
}

/// A device under load.
pub struct Traffic<'a> {
    wire: Wire,
    clock: &'a Clock,
    own: Host,
    /// The largest segment on this link.
    segment_bytes: u16,
    streams: Vec<Stream>,
    /// How long frames are waited for awake, in nanoseconds.
    awake_ns: u64,
    presses: u32,
}

impl<'a> Traffic<'a> {
    /// A load over `wire`, with this address, in packets of at most `mtu` bytes; it waits awake for so long.
    pub fn new(wire: Wire, clock: &'a Clock, address: Ipv4Addr, mtu: usize, awake_us: u64) -> Self {
        let own = Host { mac: wire.mac(), address };
        let segment_bytes = (mtu - 40) as u16;
        let (awake_ns, presses) = (awake_us * 1000, acpi_interrupts_taken());
        Traffic { wire, clock, own, segment_bytes, streams: vec![], awake_ns, presses }
    }

    /// Serves the other end of a measure for so long.
    pub fn serve(&mut self, milliseconds: u64) -> Result<(), Error> {
        let until = self.clock.now_ns() + milliseconds * 1_000_000;
        while self.clock.now_ns() < until {
            self.step(until)?;
        }
        Ok(())
    }

    /// Measures all there is, for so long each, and says on the console when each part begins and what came of it.
    pub fn measure(&mut self, target: Target, milliseconds: u64) -> Result<(), Error> {
        let peer = Host { mac: self.find(target.hop)?, address: target.address };
        self.round_trips(peer, milliseconds * 1_000_000)?;
        for (name, port) in [("send", DISCARD), ("receive", CHARGEN)] {
            self.stream(name, peer, port, milliseconds * 1_000_000)?;
        }
        println!("traffic: done");
        console::flush();
        Ok(())
    }

    /// The MAC address of somebody on the link.
    fn find(&mut self, address: Ipv4Addr) -> Result<[u8; 6], Error> {
        let until = self.clock.now_ns() + PATIENCE_NS;
        let (own, nobody) = (self.own, Host { mac: [0xff; 6], address });
        while self.clock.now_ns() < until {
            self.wire.send(PLAIN, 0, |frame| segment::write_arp(frame, true, own, nobody));
            let again = self.clock.now_ns() + LOST_NS;
            while self.clock.now_ns() < again {
                if let Some(Packet::Arp { from, .. }) = self.step(again)?
                    && from.address == address
                {
                    return Ok(from.mac);
                }
            }
        }
        Err(Error::Silent)
    }

    fn round_trips(&mut self, peer: Host, ns: u64) -> Result<(), Error> {
        let flow = Flow { own: self.own, own_port: port(), peer, peer_port: ECHO };
        let first_until = self.clock.now_ns() + PATIENCE_NS;
        // The first finds its way: addresses are asked for, the other end may still have to start.
        while self.round_trip(&flow)?.is_none() {
            if self.clock.now_ns() > first_until {
                return Err(Error::Refused);
            }
        }
        begin("echo");
        let (mut times, mut lost, mut count) = (Vec::with_capacity(TIMES_MAX), 0_u64, 0_u64);
        let started = self.clock.now_ns();
        while self.clock.now_ns() < started + ns {
            match self.round_trip(&flow)? {
                Some(time) => {
                    count += 1;
                    if times.len() < TIMES_MAX {
                        times.push(time.min(u32::MAX.into()) as u32);
                    }
                }
                None => lost += 1,
            }
        }
        let us = (self.clock.now_ns() - started) / 1000;
        times.sort_unstable();
        let quantile = |percent: usize| {
            let at = times.len().saturating_sub(1) * percent / 100;
            times.get(at).copied().unwrap_or(0)
        };
        println!(
            "traffic: end echo {count} round trips {lost} lost {us} us p50 {} ns p99 {} ns",
            quantile(50),
            quantile(99)
        );
        console::flush();
        Ok(())
    }

    /// One datagram there and back; how long it took, unless it was lost.
    fn round_trip(&mut self, flow: &Flow) -> Result<Option<u64>, Error> {
        let started = self.clock.now_ns();
        self.datagram(flow, ECHO_BYTES);
        while self.clock.now_ns() < started + LOST_NS {
            if let Some(Packet::Datagram(from, _)) = self.step(started + LOST_NS)?
                && (from.own_port, from.peer_port) == (flow.own_port, flow.peer_port)
                && from.peer.address == flow.peer.address
            {
                return Ok(Some(self.clock.now_ns() - started));
            }
        }
        Ok(None)
    }

    /// One connection to `port` for so long.
    fn stream(&mut self, name: &str, peer: Host, to_port: u16, ns: u64) -> Result<(), Error> {
        let flow = Flow { own: self.own, own_port: port(), peer, peer_port: to_port };
        let sends = to_port == DISCARD;
        self.streams = vec![Stream::ask(flow, self.segment_bytes, counter() as u32, sends)];
        self.until(PATIENCE_NS, Stream::is_open)?;
        begin(name);
        let started = self.clock.now_ns();
        while self.clock.now_ns() < started + ns && !self.streams[0].is_closed() {
            self.step(started + ns)?;
        }
        if sends && self.streams[0].is_open() {
            self.streams[0].stop();
            self.until(PATIENCE_NS, Stream::has_arrived)?;
        }
        let us = (self.clock.now_ns() - started) / 1000;
        let stream = &mut self.streams[0];
        let is_whole = stream.is_open();
        println!("traffic: end {name} {} bytes {} again {us} us", stream.bytes, stream.repairs);
        let cut = stream.cut();
        self.segment(&flow, &cut, None);
        self.wire.tell();
        self.streams.clear();
        console::flush();
        if is_whole { Ok(()) } else { Err(Error::Refused) }
    }

    /// Waits until the only connection is as it shall be.
    fn until(&mut self, ns: u64, is_so: impl Fn(&Stream) -> bool) -> Result<(), Error> {
        let deadline = self.clock.now_ns() + ns;
        while !is_so(&self.streams[0]) {
            if self.streams[0].is_closed() || self.clock.now_ns() > deadline {
                return Err(Error::Refused);
            }
            self.step(deadline)?;
        }
        Ok(())
    }

    /// Takes what came in up to what only the caller can have asked for, sends what is due, and waits if there was nothing.
    fn step(&mut self, deadline_ns: u64) -> Result<Option<Packet>, Error> {
        if acpi_interrupts_taken() != self.presses {
            return Err(Error::Pressed);
        }
        let mut came = false;
        while let Some(received) = self.wire.receive() {
            came = true;
            let (head, length) = self.wire.head(&received);
            self.wire.release(received);
            if let Some(packet) = segment::read(&head[..length], received.length)
                && let Some(packet) = self.take(packet)
            {
                self.speak();
                return Ok(Some(packet));
            }
        }
        self.speak();
        if !came {
            let due = self.streams.iter().filter_map(Stream::due_at_ns).min();
            let deadline = due.map_or(deadline_ns, |due| due.min(deadline_ns));
            self.wire.wait(self.clock, self.awake_ns, deadline);
        }
        Ok(None)
    }

    /// Does what a packet asks for; those that nobody but the caller knows about are left to it.
    fn take(&mut self, packet: Packet) -> Option<Packet> {
        match &packet {
            Packet::Arp { asks: true, from, target } if *target == self.own.address => {
                let (own, to) = (self.own, *from);
                self.wire.send(PLAIN, 0, |frame| segment::write_arp(frame, false, own, to));
                None
            }
            Packet::Datagram(flow, payload)
                if flow.own_port == ECHO && flow.own.address == self.own.address =>
            {
                if payload.len() <= ECHO_BYTES_MAX {
                    self.datagram(flow, payload.len() as u16);
                }
                None
            }
            Packet::Segment(flow, segment) if flow.own.address == self.own.address => {
                self.take_segment(flow, segment);
                None
            }
            _ => Some(packet),
        }
    }

    fn take_segment(&mut self, flow: &Flow, segment: &Segment) {
        let now = self.clock.now_ns();
        let key = |flow: &Flow| (flow.own_port, flow.peer.address, flow.peer_port);
        if let Some(stream) = self.streams.iter_mut().find(|stream| key(&stream.flow) == key(flow)) {
            return stream.take(segment, now);
        }
        if segment.flags & RESET != 0 {
            return;
        }
        self.streams.retain(|stream| !stream.is_closed());
        if matches!(flow.own_port, DISCARD | CHARGEN) && segment.flags & (SYN | ACK) == SYN {
            // Whoever is gone may have said so in vain.
            if self.streams.len() == STREAMS_MAX {
                self.streams.remove(0);
            }
            let sends = flow.own_port == CHARGEN;
            let first = counter() as u32;
            self.streams.push(Stream::answer(*flow, self.segment_bytes, first, sends, segment));
            return;
        }
        // Of no connection of ours (RFC 9293 §3.10.7.1).
        let end = segment.sequence.wrapping_add(segment.bytes + u32::from(segment.flags & SYN != 0));
        let reset = Segment {
            sequence: segment.acknowledgement,
            acknowledgement: end,
            flags: RESET | ACK,
            ..Segment::default()
        };
        self.segment(flow, &reset, None);
    }

    /// Sends what the connections have to say, as far as the device takes it.
    fn speak(&mut self) {
        let now = self.clock.now_ns();
        for at in 0..self.streams.len() {
            while self.wire.can_send()
                && let Some(segment) = self.streams[at].next(now)
            {
                let (flow, size) = (self.streams[at].flow, self.streams[at].segment_bytes());
                self.segment(&flow, &segment, Some(size));
            }
        }
        self.wire.tell();
    }

    fn segment(&mut self, flow: &Flow, segment: &Segment, segment_bytes: Option<u16>) {
        let checksum = Some((IP_END as u16, TCP_CHECKSUM));
        let offload = Offload { checksum, segment_bytes };
        debug_assert!(segment.bytes as usize <= u16::MAX as usize - TCP_END);
        self.wire.send(offload, segment.bytes as usize, |frame| segment::write_segment(frame, flow, segment));
    }

    fn datagram(&mut self, flow: &Flow, bytes: u16) {
        let offload = Offload { checksum: Some((IP_END as u16, UDP_CHECKSUM)), segment_bytes: None };
        self.wire.send(offload, bytes.into(), |frame| {
            segment::write_datagram(frame, flow, bytes);
            UDP_END
        });
        self.wire.tell();
    }
}

/// A frame that is whole.
const PLAIN: Offload = Offload { checksum: None, segment_bytes: None };

/// A port of ours (RFC 6335 §6).
fn port() -> u16 {
    49152 | counter() as u16 & 0x3fff
}

fn begin(name: &str) {
    println!("traffic: begin {name}");
    console::flush();
}
