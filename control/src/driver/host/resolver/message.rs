//! Messages (RFC 1035 §4, RFC 6891): what a guest asks, what it is told, what others are asked in its place. Pure; the one
//! place that knows how they are written.
//!
//! A question is made anew for others: of what the guest wrote, its name, type, class and three flags go on.

use std::net::IpAddr;

use domain::base::iana::{Class, Opcode, Rcode, Rtype};
use domain::base::message_builder::{AdditionalBuilder, AnswerBuilder};
use domain::base::{Message, MessageBuilder, ToName as _, Ttl};
use domain::rdata::{A, Aaaa, Ptr};

use super::zone::OwnName;

/// How long names of ports may be remembered: they change as servers come and go.
const TTL: Ttl = Ttl::from_secs(5);
/// What fits any datagram if nothing else was said (RFC 1035 §4.2.1).
const PLAIN_BYTES_MAX: usize = 512;
/// What we take by UDP, in bytes: what passes everywhere in one piece (DNS flag day 2020).
pub(super) const UDP_BYTES_MAX: u16 = 1232;

/// One question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Asked {
    id: u16,
    recursion_desired: bool,
    checking_disabled: bool,
    pub(super) name: OwnName,
    pub(super) kind: Rtype,
    class: Class,
    extension: Option<Extension>,
}

/// What was said by EDNS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Extension {
    bytes_max: u16,
    dnssec_ok: bool,
}

/// What a guest's message is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Heard {
    /// Nothing that has an answer.
    Nothing,
    /// It is refused with this answer.
    Refused(Vec<u8>),
    /// A question.
    Question(Asked),
}

/// Reads what a guest wrote.
pub(super) fn read(bytes: &[u8]) -> Heard {
    let Ok(message) = Message::from_octets(bytes) else { return Heard::Nothing };
    let header = message.header();
    if header.qr() {
        return Heard::Nothing;
    }
    let refused = |rcode| {
        let mut builder = MessageBuilder::new_vec();
        let answer = builder.header_mut();
        answer.set_id(header.id());
        answer.set_qr(true);
        answer.set_opcode(header.opcode());
        answer.set_rd(header.rd());
        answer.set_rcode(rcode);
        Heard::Refused(builder.finish())
    };
    if header.opcode() != Opcode::QUERY {
        return refused(Rcode::NOTIMP);
    }
    let Ok(question) = message.sole_question() else { return refused(Rcode::FORMERR) };
    let extension = message.opt();
    if extension.as_ref().is_some_and(|extension| extension.version() > 0) {
        return refused(Rcode::FORMERR);
    }
    Heard::Question(Asked {
        id: header.id(),
        recursion_desired: header.rd(),
        checking_disabled: header.cd(),
        name: question.qname().to_vec(),
        kind: question.qtype(),
        class: question.qclass(),
        extension: extension.map(|extension| Extension {
            bytes_max: extension.udp_payload_size(),
            dnssec_ok: extension.dnssec_ok(),
        }),
    })
}

impl Asked {
    /// Whether it is about the internet's names: others are nobody's here.
    pub(super) fn is_internet(&self) -> bool {
        self.class == Class::IN
    }

    /// Whether it asks for a whole zone, which is nobody's business here.
    pub(super) fn is_transfer(&self) -> bool {
        [Rtype::AXFR, Rtype::IXFR].contains(&self.kind)
    }

    /// What its answer may be long by UDP, in bytes, where the guest can be given `bytes_max`.
    pub(super) fn datagram_bytes_max(&self, bytes_max: usize) -> usize {
        let said = self.extension.map_or(0, |extension| usize::from(extension.bytes_max));
        said.max(PLAIN_BYTES_MAX).min(bytes_max)
    }

    /// An answer without records.
    pub(super) fn without(&self, rcode: Rcode) -> Vec<u8> {
        self.ended(self.begun(rcode, false))
    }

    /// An answer with the addresses of the name.
    pub(super) fn with_addresses(&self, addresses: &[IpAddr]) -> Vec<u8> {
        let mut answer = self.begun(Rcode::NOERROR, true);
        for address in addresses {
            let name = &self.name;
            // As many as fit; nothing has thousands.
            let pushed = match *address {
                IpAddr::V4(address) => answer.push((name, TTL, A::new(address))),
                IpAddr::V6(address) => answer.push((name, TTL, Aaaa::new(address))),
            };
            if pushed.is_err() {
                break;
            }
        }
        self.ended(answer)
    }

    /// An answer with the name of the address.
    pub(super) fn with_name(&self, name: &OwnName) -> Vec<u8> {
        let mut answer = self.begun(Rcode::NOERROR, true);
        let _ = answer.push((&self.name, TTL, Ptr::new(name)));
        self.ended(answer)
    }

    /// The same question for somebody else, under another number.
    pub(super) fn for_others(&self, id: u16) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        let header = builder.header_mut();
        header.set_id(id);
        header.set_rd(true);
        header.set_cd(self.checking_disabled);
        let mut question = builder.question();
        question.push((&self.name, self.kind, self.class)).expect("invariant: a vector has room for a name");
        self.extended(question.additional()).finish()
    }

    /// The answer for the guest in what somebody else answered to [`Self::for_others`]; none if it is no answer to that.
    pub(super) fn answer_of(&self, id: u16, bytes: &[u8]) -> Option<Vec<u8>> {
        let message = Message::from_octets(bytes).ok()?;
        let header = message.header();
        let question = message.sole_question().ok()?;
        let is_answer = header.qr()
            && header.id() == id
            && header.opcode() == Opcode::QUERY
            && question.qname().name_eq(&self.name)
            && (question.qtype(), question.qclass()) == (self.kind, self.class);
        let mut message = Message::from_octets(bytes.to_vec()).ok().filter(|_| is_answer)?;
        let header = message.header_mut();
        header.set_id(self.id);
        header.set_rd(self.recursion_desired);
        header.set_ra(true);
        header.set_aa(false);
        Some(message.into_octets())
    }

    /// An answer cut to what fits, which says so: whoever asked asks again by TCP.
    pub(super) fn cut(&self, answer: Vec<u8>, bytes_max: usize) -> Vec<u8> {
        if answer.len() <= bytes_max {
            return answer;
        }
        let mut begun = self.begun(Rcode::NOERROR, false);
        begun.header_mut().set_tc(true);
        self.ended(begun)
    }

    fn begun(&self, rcode: Rcode, authoritative: bool) -> AnswerBuilder<Vec<u8>> {
        let mut builder = MessageBuilder::new_vec();
        let header = builder.header_mut();
        header.set_id(self.id);
        header.set_qr(true);
        header.set_aa(authoritative);
        header.set_rd(self.recursion_desired);
        header.set_ra(true);
        header.set_cd(self.checking_disabled);
        header.set_rcode(rcode);
        let mut question = builder.question();
        question.push((&self.name, self.kind, self.class)).expect("invariant: a vector has room for a name");
        question.answer()
    }

    fn ended(&self, answer: AnswerBuilder<Vec<u8>>) -> Vec<u8> {
        self.extended(answer.additional()).finish()
    }

    /// Who speaks EDNS is answered so (RFC 6891 §6.1.1).
    fn extended(&self, mut additional: AdditionalBuilder<Vec<u8>>) -> AdditionalBuilder<Vec<u8>> {
        if let Some(Extension { dnssec_ok, .. }) = self.extension {
            let added = additional.opt(|opt| {
                opt.set_udp_payload_size(UDP_BYTES_MAX);
                opt.set_dnssec_ok(dnssec_ok);
                Ok(())
            });
            added.expect("invariant: a vector has room for eleven bytes");
        }
        additional
    }
}

/// Whether an answer is cut.
pub(super) fn is_cut(answer: &[u8]) -> bool {
    Message::from_octets(answer).is_ok_and(|message| message.header().tc())
}

/// A name of this text; for tests.
#[cfg(test)]
pub(super) fn name(text: &str) -> OwnName {
    domain::base::Name::vec_from_str(text).unwrap()
}

#[cfg(test)]
mod tests {
    use domain::base::Record;
    use domain::base::name::ParsedName;
    use domain::rdata::AllRecordData;
    use proptest::prelude::*;

    use super::*;

    /// A question as a guest writes it.
    fn question(text: &str, kind: Rtype, edns: Option<u16>) -> Vec<u8> {
        let mut builder = MessageBuilder::new_vec();
        builder.header_mut().set_id(0x1234);
        builder.header_mut().set_rd(true);
        let mut question = builder.question();
        question.push((name(text), kind)).unwrap();
        let mut additional = question.additional();
        if let Some(bytes_max) = edns {
            let set = |opt: &mut domain::base::message_builder::OptBuilder<'_, Vec<u8>>| {
                opt.set_udp_payload_size(bytes_max);
                Ok(())
            };
            additional.opt(set).unwrap();
        }
        additional.finish()
    }

    fn asked(text: &str, kind: Rtype, edns: Option<u16>) -> Asked {
        match read(&question(text, kind, edns)) {
            Heard::Question(asked) => asked,
            other => panic!("{other:?}"),
        }
    }

    fn records(bytes: &[u8]) -> Vec<String> {
        let message = Message::from_octets(bytes).unwrap();
        let answer = message.answer().unwrap().limit_to::<AllRecordData<_, ParsedName<_>>>();
        answer.map(|record: Result<Record<_, _>, _>| record.unwrap().to_string()).collect()
    }

    #[test]
    fn addresses_and_names_are_answered_under_the_number_of_the_question() {
        let ask = asked("web.example.org", Rtype::A, None);
        let answer = ask.with_addresses(&["10.0.0.5".parse().unwrap(), "2001:db8::5".parse().unwrap()]);
        let header = Message::from_octets(&answer[..]).unwrap().header();
        assert_eq!(
            (header.id(), header.qr(), header.rd(), header.ra(), header.aa()),
            (0x1234, true, true, true, true)
        );
        assert_eq!(header.rcode(), Rcode::NOERROR);
        let found = records(&answer);
        assert!(found[0].ends_with("A 10.0.0.5") && found[1].ends_with("AAAA 2001:db8::5"), "{found:?}");
        let ask = asked("5.0.0.10.in-addr.arpa", Rtype::PTR, Some(4096));
        let answer = ask.with_name(&name("web.example.org"));
        assert!(records(&answer)[0].contains("web.example.org"), "{:?}", records(&answer));
        assert!(Message::from_octets(&answer[..]).unwrap().opt().is_some());
    }

    #[test]
    fn what_is_no_question_is_refused_or_not_heard() {
        assert_eq!(read(&[0; 11]), Heard::Nothing);
        let mut answer = question("a", Rtype::A, None);
        answer[2] |= 0x80;
        assert_eq!(read(&answer), Heard::Nothing);
        let mut update = question("a", Rtype::A, None);
        update[2] |= 5 << 3;
        let rcode = |bytes: &[u8]| match read(bytes) {
            Heard::Refused(answer) => Message::from_octets(answer).unwrap().header().rcode(),
            other => panic!("{other:?}"),
        };
        assert_eq!(rcode(&update), Rcode::NOTIMP);
        let mut two = question("a", Rtype::A, None);
        two[5] = 2;
        assert_eq!(rcode(&two), Rcode::FORMERR);
        // A name that points to itself.
        assert_eq!(rcode(b"\x12\x34\0\0\0\x01\0\0\0\0\0\0\xc0\x0c\0\x01\0\x01"), Rcode::FORMERR);
    }

    #[test]
    fn answers_of_others_are_taken_only_for_what_was_asked() {
        let ask = asked("example.com", Rtype::A, Some(4096));
        let sent = ask.for_others(0xbeef);
        let seen = match read(&sent) {
            Heard::Question(seen) => seen,
            other => panic!("{other:?}"),
        };
        assert_eq!((seen.id, &seen.name, seen.kind), (0xbeef, &ask.name, Rtype::A));
        assert_eq!(seen.extension.unwrap().bytes_max, UDP_BYTES_MAX);
        let answer = seen.with_addresses(&["192.0.2.1".parse().unwrap()]);
        let taken = ask.answer_of(0xbeef, &answer).unwrap();
        assert_eq!(Message::from_octets(&taken[..]).unwrap().header().id(), 0x1234);
        assert!(records(&taken)[0].ends_with("192.0.2.1"));
        assert_eq!(ask.answer_of(0xbeee, &answer), None, "another number");
        assert_eq!(asked("example.net", Rtype::A, None).answer_of(0xbeef, &answer), None, "another name");
        assert_eq!(asked("example.com", Rtype::AAAA, None).answer_of(0xbeef, &answer), None, "another type");
        assert_eq!(ask.answer_of(0xbeef, &sent), None, "a question");
        assert_eq!(ask.answer_of(0xbeef, &answer[..20]), None, "a part");
    }

    #[test]
    fn long_answers_are_cut_to_what_the_guest_takes() {
        let many: Vec<IpAddr> = (0..100).map(|last| IpAddr::from([10, 0, 0, last])).collect();
        let plain = asked("many.example.org", Rtype::A, None);
        assert_eq!(plain.datagram_bytes_max(1232), 512);
        let answer = plain.with_addresses(&many);
        assert!(answer.len() > 1232 && !is_cut(&answer));
        let cut = plain.cut(answer.clone(), 512);
        assert!(is_cut(&cut) && cut.len() <= 512 && records(&cut).is_empty());
        assert_eq!(asked("a", Rtype::A, Some(4096)).datagram_bytes_max(1232), 1232);
        assert_eq!(asked("a", Rtype::A, Some(100)).datagram_bytes_max(1232), 512);
        assert_eq!(plain.cut(answer.clone(), answer.len()), answer);
    }

    proptest! {
        /// Whatever is heard, nothing panics, and what is answered can be read.
        #[test]
        fn any_bytes_are_read_and_answered(mut bytes in prop::collection::vec(any::<u8>(), 0..600), flags in any::<bool>()) {
            if flags && bytes.len() > 12 {
                bytes[2..6].copy_from_slice(&[1, 0, 0, 1]);
            }
            match read(&bytes) {
                Heard::Nothing => {}
                Heard::Refused(answer) => prop_assert!(Message::from_octets(answer).unwrap().header().qr()),
                Heard::Question(asked) => {
                    prop_assert!(Message::from_octets(asked.without(Rcode::SERVFAIL)).is_ok());
                    prop_assert!(matches!(read(&asked.for_others(7)), Heard::Question(_)));
                    prop_assert!(asked.answer_of(7, &bytes).is_none(), "a question is no answer");
                }
            }
        }
    }
}
