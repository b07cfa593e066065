//! The endpoints of one network device: its own, and one for each VLAN that it carries (IEEE 802.1Q), which sees frames of
//! that VLAN as if they had no tag. A frame with another tag is nobody's here, and goes where frames go.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use super::metadata::MetadataTree;
use super::{Addressing, Endpoint, EndpointConfig, Question, Verdict};
use crate::config::VlanAddressing;

/// Where a frame's tag is: after both its addresses.
const TAG_AT: usize = 12;
/// What a tag takes: 0x8100, then priority (4 bits) and VLAN identifier (12 bits).
const TAG_BYTES: usize = 4;
/// The shortest frame with a tag.
const TAGGED_BYTES_MIN: usize = 18;
const TAG: [u8; 2] = [0x81, 0x00];
const VLAN_BITS: u16 = 0x0fff;

/// See the module.
pub struct Endpoints {
    own: Endpoint,
    vlans: BTreeMap<u16, InVlan>,
    metadata: MetadataTree,
}

struct InVlan {
    mac: [u8; 6],
    mtu: u16,
    endpoint: Endpoint,
}

impl Endpoints {
    /// Those for a guest with `guest_mac` and an MTU of `mtu` bytes.
    pub fn new(config: EndpointConfig, guest_mac: [u8; 6], mtu: u16) -> Self {
        let EndpointConfig { mut addressing, metadata } = config;
        let vlans = std::mem::take(&mut addressing.vlans);
        let metadata = MetadataTree::new(metadata);
        let own = Endpoint::telling(metadata.clone(), addressing, guest_mac, mtu);
        let mut endpoints = Self { own, vlans: BTreeMap::new(), metadata };
        endpoints.carry(vlans, Instant::now());
        endpoints
    }

    /// As [`Endpoint::know_guest`]: in VLANs the guest has the MAC addresses that it gave itself there.
    pub fn know_guest(&mut self, mac: [u8; 6], now: Instant) {
        self.own.know_guest(mac, now);
    }

    /// As [`Endpoint::readdress`]; VLANs come and go with it.
    pub fn readdress(&mut self, mut addressing: Addressing, now: Instant) {
        let vlans = std::mem::take(&mut addressing.vlans);
        self.own.readdress(addressing, now);
        self.carry(vlans, now);
    }

    fn carry(&mut self, vlans: BTreeMap<u16, VlanAddressing>, now: Instant) {
        self.vlans.retain(|vlan, present| {
            vlans.get(vlan).is_some_and(|wanted| (wanted.mac, wanted.mtu) == (present.mac, present.mtu))
        });
        for (vlan, VlanAddressing { mac, mtu, addressing }) in vlans {
            match self.vlans.get_mut(&vlan) {
                Some(present) => present.endpoint.readdress(addressing, now),
                None => {
                    let endpoint = Endpoint::telling(self.metadata.clone(), addressing, mac, mtu);
                    self.vlans.insert(vlan, InVlan { mac, mtu, endpoint });
                }
            }
        }
    }

    /// The next question that somebody else has to answer.
    pub fn next_question(&mut self) -> Option<Question> {
        let in_vlans = self.vlans.iter_mut().find_map(|(vlan, carried)| {
            Some(Question { vlan: Some(*vlan), ..carried.endpoint.next_question()? })
        });
        in_vlans.or_else(|| self.own.next_question())
    }

    /// Carries the answer to a question to who asked in that VLAN, or in none.
    pub fn answered(&mut self, vlan: Option<u16>, number: u32, message: &[u8], now: Instant) {
        let endpoint = match vlan {
            None => Some(&mut self.own),
            Some(vlan) => self.vlans.get_mut(&vlan).map(|carried| &mut carried.endpoint),
        };
        if let Some(endpoint) = endpoint {
            endpoint.answered(number, message, now);
        }
    }

    /// Looks at one frame of the guest, and leaves it as it is.
    pub fn from_guest(&mut self, frame: &mut [u8], now: Instant) -> Verdict {
        match self.vlan_of(frame) {
            Some(carried) => without_tag(frame, |frame| carried.endpoint.from_guest(frame, now)),
            None => self.own.from_guest(frame, now),
        }
    }

    /// Whether a frame of the guest that begins so is nobody's here, whatever else is in it; as few as that can be said of
    /// without the rest.
    pub fn lets_by(&self, head: &[u8]) -> bool {
        self.own.lets_by(head)
    }

    /// Whether a frame of the link may reach the guest. It is left as it is.
    pub fn from_link(&mut self, frame: &mut [u8]) -> bool {
        match self.vlan_of(frame) {
            Some(carried) => without_tag(frame, |frame| carried.endpoint.from_link(frame)),
            None => self.own.from_link(frame),
        }
    }

    /// Whether there is a frame for the guest, or somebody here who may have one at any time.
    pub fn may_answer(&self) -> bool {
        self.own.may_answer() || self.vlans.values().any(|carried| carried.endpoint.may_answer())
    }

    /// The next frame for the guest.
    pub fn next_answer(&mut self, now: Instant) -> Option<Vec<u8>> {
        let in_vlans = self
            .vlans
            .iter_mut()
            .find_map(|(vlan, carried)| Some(with_tag(carried.endpoint.next_answer(now)?, *vlan)));
        in_vlans.or_else(|| self.own.next_answer(now))
    }

    /// Lets time pass.
    pub fn poll(&mut self, now: Instant) {
        self.all().for_each(|endpoint| endpoint.poll(now));
    }

    /// When [`Self::poll`] is due, if ever.
    pub fn poll_delay(&mut self, now: Instant) -> Option<Duration> {
        self.all().filter_map(|endpoint| endpoint.poll_delay(now)).min()
    }

    fn all(&mut self) -> impl Iterator<Item = &mut Endpoint> {
        [&mut self.own].into_iter().chain(self.vlans.values_mut().map(|carried| &mut carried.endpoint))
    }

    fn vlan_of(&mut self, frame: &[u8]) -> Option<&mut InVlan> {
        let is_tagged = frame.len() >= TAGGED_BYTES_MIN && frame[TAG_AT..TAG_AT + 2] == TAG;
        let vlan = u16::from_be_bytes([*frame.get(TAG_AT + 2)?, *frame.get(TAG_AT + 3)?]) & VLAN_BITS;
        self.vlans.get_mut(&vlan).filter(|_| is_tagged)
    }
}

/// Shows a frame without its tag, in its own place: its addresses are moved over the tag for as long.
fn without_tag<R>(frame: &mut [u8], look: impl FnOnce(&[u8]) -> R) -> R {
    let mut head = [0; TAG_AT + TAG_BYTES];
    head.copy_from_slice(&frame[..TAG_AT + TAG_BYTES]);
    frame.copy_within(..TAG_AT, TAG_BYTES);
    let seen = look(&frame[TAG_BYTES..]);
    frame[..TAG_AT + TAG_BYTES].copy_from_slice(&head);
    seen
}

fn with_tag(mut frame: Vec<u8>, vlan: u16) -> Vec<u8> {
    let [high, low] = vlan.to_be_bytes();
    frame.splice(TAG_AT..TAG_AT, [TAG[0], TAG[1], high, low]);
    frame
}
