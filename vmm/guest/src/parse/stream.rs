//! One TCP connection (RFC 9293) that carries a load one way: as many bytes as the other end takes, of which nobody looks at any.
//!
//! It is as small as a measure of devices and networks allows. A sender has as much under way as the other's window and its own bound
//! allow, in segments that a device cuts; it has no congestion control, so it belongs on networks that drop little. What was lost is
//! sent again from where it was lost. A receiver keeps nothing that is out of order. Connections end by being cut.
//!
//! Must never know: frames, time but as numbers.

use super::segment::{ACK, FIN, Flow, PUSH, RESET, SYN, Segment};

/// Bytes under way, and the window that a receiver opens: even cut into packets they fit into a tap's queue, which takes 500.
pub const WINDOW_BYTES: u32 = 512 << 10;
/// The most bytes of one segment, before a device cuts it: what an IPv4 packet can say, without headers.
pub const SEGMENT_BYTES_MAX: u32 = 65_535 - 40;
/// Windows are shifted by so much.
const SHIFT: u8 = 5;
/// The largest segment taken of who names none (RFC 9293 §3.7.1).
const LARGEST_DEFAULT: u16 = 536;
/// How long an answer is waited for before something is sent again, in nanoseconds.
const AGAIN_NS: u64 = 200_000_000;
/// How often in a row.
const AGAIN_MAX: u32 = 10;
/// Acknowledgements of the same byte that mean that what follows it was lost (RFC 5681 §3.2).
const REPEATED: u32 = 3;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// We asked for it.
    Asked,
    /// The other end did.
    Answered,
    Open,
    Closed,
}

/// One connection.
#[derive(Debug, Clone)]
pub struct Stream {
    /// Its ends.
    pub flow: Flow,
    state: State,
    /// Whether we send; the other end does if not.
    sends: bool,
    /// The most bytes of a segment on the wire.
    segment_bytes: u32,
    /// The first byte that is not acknowledged, the next to send, and the end of what was ever sent.
    acknowledged: u32,
    next: u32,
    sent: u32,
    peer_window: u32,
    peer_shift: Option<u8>,
    /// The same acknowledgement, so often; nothing is sent again for it before this byte is acknowledged.
    repeated: u32,
    repaired: u32,
    /// When something is sent again, and how often it was.
    again_at_ns: Option<u64>,
    again: u32,
    /// The next byte that we expect, and how many acknowledgements are due.
    expected: u32,
    due: u32,
    /// Payload that was acknowledged or received.
    pub bytes: u64,
    /// How often something was sent again.
    pub repairs: u32,
}

/// Whether `one` is before `other`.
fn is_before(one: u32, other: u32) -> bool {
    (one.wrapping_sub(other) as i32) < 0
}

impl Stream {
    /// One that we ask for; `first` is where our numbers begin, `segment_bytes` what we take at a time.
    pub fn ask(flow: Flow, segment_bytes: u16, first: u32, sends: bool) -> Self {
        Self::new(flow, State::Asked, segment_bytes, first, sends)
    }

    /// One that `asked` asks for.
    pub fn answer(flow: Flow, segment_bytes: u16, first: u32, sends: bool, asked: &Segment) -> Self {
        let mut stream = Self::new(flow, State::Answered, segment_bytes, first, sends);
        stream.begin(asked);
        stream
    }

    fn new(flow: Flow, state: State, segment_bytes: u16, first: u32, sends: bool) -> Self {
        Stream {
            flow,
            state,
            sends,
            segment_bytes: segment_bytes.into(),
            acknowledged: first,
            next: first,
            sent: first,
            peer_window: 0,
            peer_shift: None,
            repeated: 0,
            repaired: first,
            again_at_ns: None,
            again: 0,
            expected: 0,
            due: 0,
            bytes: 0,
            repairs: 0,
        }
    }

    fn begin(&mut self, segment: &Segment) {
        self.expected = segment.sequence.wrapping_add(1);
        let largest = segment.largest.unwrap_or(LARGEST_DEFAULT);
        self.segment_bytes = self.segment_bytes.min(largest.max(1).into());
        self.peer_shift = segment.shift;
        self.peer_window = segment.window.into();
    }

    /// The most bytes of a segment on the wire.
    pub fn segment_bytes(&self) -> u16 {
        self.segment_bytes as u16
    }

    /// Whether it carries something.
    pub fn is_open(&self) -> bool {
        self.state == State::Open
    }

    /// Whether it is over.
    pub fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    /// Whether all that was sent has arrived.
    pub fn has_arrived(&self) -> bool {
        self.acknowledged == self.sent
    }

    /// Nothing new is sent from now on.
    pub fn stop(&mut self) {
        self.sends = false;
    }

    /// Takes a segment of this connection.
    pub fn take(&mut self, segment: &Segment, now_ns: u64) {
        let is_answer = segment.flags & ACK != 0;
        if segment.flags & RESET != 0 {
            // Of no connection that is not this one: no stranger can know our numbers.
            let is_ours = if self.state == State::Asked {
                is_answer && segment.acknowledgement == self.sent
            } else {
                segment.sequence == self.expected
            };
            if is_ours {
                self.state = State::Closed;
            }
            return;
        }
        match self.state {
            State::Closed => return,
            State::Asked => {
                if segment.flags & (SYN | ACK) != SYN | ACK || segment.acknowledgement != self.sent {
                    return;
                }
                self.begin(segment);
                self.open(segment);
                self.due = 1;
                return;
            }
            State::Answered => {
                if segment.flags & SYN != 0 || !is_answer || segment.acknowledgement != self.sent {
                    return;
                }
                self.open(segment);
                self.peer_window = self.window_of(segment);
            }
            State::Open if segment.flags & SYN != 0 => {
                // Our last word of the beginning was lost.
                self.due = 1;
                return;
            }
            State::Open => {}
        }
        if is_answer {
            self.acknowledge(segment, now_ns);
        }
        self.receive(segment);
    }

    fn open(&mut self, segment: &Segment) {
        self.state = State::Open;
        self.acknowledged = segment.acknowledgement;
        self.next = self.sent;
        self.repaired = self.sent;
        self.again_at_ns = None;
        self.again = 0;
    }

    fn window_of(&self, segment: &Segment) -> u32 {
        u32::from(segment.window) << self.peer_shift.unwrap_or(0)
    }

    fn acknowledge(&mut self, segment: &Segment, now_ns: u64) {
        let acknowledged = segment.acknowledgement;
        let window = self.window_of(segment);
        if is_before(self.sent, acknowledged) || is_before(acknowledged, self.acknowledged) {
            return;
        }
        let more = acknowledged.wrapping_sub(self.acknowledged);
        if more > 0 {
            self.bytes += u64::from(more);
            self.acknowledged = acknowledged;
            if is_before(self.next, acknowledged) {
                self.next = acknowledged;
            }
            self.repeated = 0;
            self.again = 0;
            self.again_at_ns = (acknowledged != self.sent).then_some(now_ns + AGAIN_NS);
        } else if segment.bytes == 0 && window == self.peer_window && acknowledged != self.sent {
            self.repeated += 1;
            if self.repeated == REPEATED && !is_before(acknowledged, self.repaired) {
                self.repair(now_ns);
            }
        }
        self.peer_window = window;
    }

    fn repair(&mut self, now_ns: u64) {
        self.repairs += 1;
        self.repaired = self.sent;
        self.next = self.acknowledged;
        self.again_at_ns = Some(now_ns + AGAIN_NS);
    }

    fn receive(&mut self, segment: &Segment) {
        if segment.bytes > 0 {
            let old = self.expected.wrapping_sub(segment.sequence);
            if old < segment.bytes {
                self.expected = segment.sequence.wrapping_add(segment.bytes);
                self.bytes += u64::from(segment.bytes - old);
                self.due = self.due.max(1);
            } else {
                // Each that is out of order is answered, so that its sender learns what was lost.
                self.due = self.due.saturating_add(1).min(REPEATED + 1);
            }
        }
        let end = segment.sequence.wrapping_add(segment.bytes);
        if segment.flags & FIN != 0 && end == self.expected {
            self.state = State::Closed;
        }
    }

    /// When [`Self::next`] has something to say though nothing came in.
    pub fn due_at_ns(&self) -> Option<u64> {
        self.again_at_ns
    }

    /// The next segment to send, if there is one.
    pub fn next(&mut self, now_ns: u64) -> Option<Segment> {
        let is_late = !self.is_closed() && self.again_at_ns.is_some_and(|at| at <= now_ns);
        if is_late {
            self.again += 1;
            if self.again > AGAIN_MAX {
                self.state = State::Closed;
            }
        }
        match self.state {
            State::Closed => None,
            State::Asked | State::Answered => {
                if self.again_at_ns.is_some() && !is_late {
                    return None;
                }
                self.again_at_ns = Some(now_ns + AGAIN_NS);
                self.sent = self.acknowledged.wrapping_add(1);
                let is_answer = self.state == State::Answered;
                let shift = (!is_answer || self.peer_shift.is_some()).then_some(SHIFT);
                Some(Segment {
                    sequence: self.acknowledged,
                    acknowledgement: self.expected,
                    flags: if is_answer { SYN | ACK } else { SYN },
                    window: u16::MAX,
                    largest: Some(self.segment_bytes()),
                    shift,
                    bytes: 0,
                })
            }
            State::Open => {
                if is_late && self.acknowledged != self.sent {
                    self.repair(now_ns);
                }
                self.data(now_ns, is_late).or_else(|| {
                    self.due = self.due.checked_sub(1)?;
                    Some(self.segment(0))
                })
            }
        }
    }

    fn data(&mut self, now_ns: u64, is_late: bool) -> Option<Segment> {
        let repairs = is_before(self.next, self.sent);
        if !self.sends && !repairs {
            return None;
        }
        let under_way = self.next.wrapping_sub(self.acknowledged);
        let mut room = self.peer_window.min(WINDOW_BYTES).saturating_sub(under_way);
        if !self.sends {
            room = room.min(self.sent.wrapping_sub(self.next));
        }
        // Whole segments, as long as the rest of the window opens later.
        let whole = room.min(SEGMENT_BYTES_MAX) / self.segment_bytes * self.segment_bytes;
        let bytes = match (whole, under_way) {
            (0, 0) if room == 0 && is_late => 1,
            (0, 0) => room,
            (0, _) if !self.sends => room,
            (whole, _) => whole,
        };
        if bytes == 0 {
            if self.again_at_ns.is_none() {
                // Who opens a window again may say so in vain.
                self.again_at_ns = Some(now_ns + AGAIN_NS);
            }
            return None;
        }
        let segment = self.segment(bytes);
        self.next = self.next.wrapping_add(bytes);
        if is_before(self.sent, self.next) {
            self.sent = self.next;
        }
        if self.again_at_ns.is_none() || is_late {
            self.again_at_ns = Some(now_ns + AGAIN_NS);
        }
        self.due = 0;
        Some(segment)
    }

    fn segment(&self, bytes: u32) -> Segment {
        let window = if self.peer_shift.is_some() { (WINDOW_BYTES >> SHIFT) as u16 } else { u16::MAX };
        Segment {
            sequence: self.next,
            acknowledgement: self.expected,
            flags: if bytes > 0 { ACK | PUSH } else { ACK },
            window,
            bytes,
            ..Segment::default()
        }
    }

    /// What cuts it.
    pub fn cut(&mut self) -> Segment {
        self.state = State::Closed;
        Segment { flags: RESET | ACK, ..self.segment(0) }
    }
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use super::super::segment::Host;
    use super::*;

    fn flow() -> Flow {
        let host = |last| Host { mac: [2, 0, 0, 0, 0, last], address: Ipv4Addr::new(10, 0, 0, last) };
        Flow { own: host(1), own_port: 4000, peer: host(2), peer_port: 9 }
    }

    /// Both ends of a connection, on a wire that loses what it is told to, and what each said so far.
    struct Pair {
        ends: [Stream; 2],
        now_ns: u64,
        said: u64,
        lost: fn(u64) -> bool,
    }

    impl Pair {
        /// The first end asks, and sends or not; its numbers are about to begin anew.
        fn new(sends: bool, lost: fn(u64) -> bool) -> Self {
            let mut asks = Stream::ask(flow(), 1460, u32::MAX - 5_000, sends);
            let first = asks.next(0).unwrap();
            let answers = Stream::answer(flow(), 1410, 77, !sends, &first);
            Pair { ends: [asks, answers], now_ns: 0, said: 0, lost }
        }

        /// Everything that both have to say now, each one's in one go.
        fn exchange(&mut self) {
            for from in [1, 0] {
                while let Some(segment) = self.ends[from].next(self.now_ns) {
                    self.said += 1;
                    if !(self.lost)(self.said) {
                        self.ends[1 - from].take(&segment, self.now_ns);
                    }
                }
            }
        }

        fn run(&mut self, rounds: u32) {
            for _ in 0..rounds {
                self.exchange();
                self.now_ns += AGAIN_NS / 4;
            }
        }
    }

    #[test]
    fn bytes_go_one_way_in_whole_segments_and_all_of_them_are_acknowledged() {
        for sends in [true, false] {
            let mut pair = Pair::new(sends, |_| false);
            pair.run(50);
            assert!(pair.ends.iter().all(Stream::is_open));
            let sender = usize::from(!sends);
            assert_eq!(pair.ends[sender].segment_bytes(), 1410);
            pair.ends[sender].stop();
            pair.run(2);
            assert!(pair.ends[sender].has_arrived());
            let [one, other] = [&pair.ends[0], &pair.ends[1]];
            assert_eq!(one.bytes, other.bytes);
            assert!(
                one.bytes > 20 * u64::from(WINDOW_BYTES) && one.bytes.is_multiple_of(1410),
                "{}",
                one.bytes
            );
            assert_eq!(one.repairs + other.repairs, 0);
        }
    }

    #[test]
    fn no_more_is_under_way_than_both_allow() {
        let mut pair = Pair::new(true, |_| false);
        pair.exchange();
        pair.exchange();
        let [asks, answers] = &mut pair.ends;
        while let Some(segment) = answers.next(0) {
            asks.take(&segment, 0);
        }
        let mut under_way = 0;
        while let Some(segment) = asks.next(0) {
            assert!(segment.bytes <= SEGMENT_BYTES_MAX && segment.bytes.is_multiple_of(1410));
            under_way += segment.bytes;
        }
        assert!(under_way <= WINDOW_BYTES && under_way + 1410 > WINDOW_BYTES, "{under_way}");
        // A receiver that has no room is asked again and again, and then it has gone.
        let answer =
            Segment { flags: ACK, acknowledgement: asks.next, sequence: asks.expected, ..Segment::default() };
        asks.take(&answer, 0);
        assert_eq!(asks.next(0), None);
        assert_eq!(asks.next(AGAIN_NS).unwrap().bytes, 1);
        for round in 2..=20 {
            asks.next(round * AGAIN_NS);
        }
        assert!(asks.is_closed());
    }

    #[test]
    fn what_is_lost_is_sent_again() {
        let losses: [fn(u64) -> bool; 4] = [
            |said| said.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61 == 0,
            |said| said.wrapping_mul(0xd1b5_4a32_d192_ed03) >> 62 == 0,
            |said| (20..30).contains(&said),
            |said| said < 3,
        ];
        for lost in losses {
            for sends in [true, false] {
                let mut pair = Pair::new(sends, lost);
                pair.run(300);
                let sender = usize::from(!sends);
                pair.ends[sender].stop();
                pair.lost = |_| false;
                pair.run(20);
                assert!(pair.ends[sender].has_arrived(), "{:?}", pair.ends);
                assert_eq!(pair.ends[0].bytes, pair.ends[1].bytes);
                assert!(pair.ends[0].bytes > u64::from(WINDOW_BYTES), "{}", pair.ends[0].bytes);
            }
        }
    }

    #[test]
    fn connection_ends_when_it_is_cut_refused_or_nobody_is_there() {
        let mut pair = Pair::new(true, |_| false);
        pair.run(3);
        let cut = pair.ends[0].cut();
        // From the middle of nowhere it does nothing.
        pair.ends[1].take(&Segment { sequence: cut.sequence.wrapping_add(9), ..cut }, 0);
        assert!(pair.ends[1].is_open());
        pair.ends[1].take(&cut, 0);
        assert!(pair.ends.iter().all(Stream::is_closed));

        let mut asks = Stream::ask(flow(), 1460, 5, true);
        asks.next(0);
        asks.take(&Segment { flags: RESET | ACK, acknowledgement: 7, ..Segment::default() }, 0);
        assert!(!asks.is_closed());
        asks.take(&Segment { flags: RESET | ACK, acknowledgement: 6, ..Segment::default() }, 0);
        assert!(asks.is_closed());

        let mut asks = Stream::ask(flow(), 1460, 5, true);
        let asked = (0..100).filter(|round| asks.next(round * AGAIN_NS).is_some()).count();
        assert_eq!((asked, asks.is_closed()), (1 + AGAIN_MAX as usize, true));

        let mut pair = Pair::new(true, |_| false);
        pair.run(3);
        let fin = Segment { flags: FIN | ACK, sequence: pair.ends[0].expected, ..Segment::default() };
        pair.ends[0].take(&fin, 0);
        assert!(pair.ends[0].is_closed());
    }
}
