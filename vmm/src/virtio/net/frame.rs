//! Ethernet frames: what they carry.

/// Where an Ethernet frame says what it carries.
const ETHER_TYPE: usize = 12;
/// Bytes of a tag (IEEE 802.1Q).
const TAG_BYTES: usize = 4;
/// Tags that are looked behind: one of a provider's and one of a customer's.
const TAGS_MAX: usize = 2;

/// The EtherType of a frame and what follows it, behind its tags; nothing of one that is too short.
pub(super) fn carried(frame: &mut [u8]) -> Option<([u8; 2], &mut [u8])> {
    let mut at = ETHER_TYPE;
    for _ in 0..TAGS_MAX {
        match frame.get(at..at + 2) {
            Some([0x81, 0x00] | [0x88, 0xa8]) => at += TAG_BYTES,
            _ => break,
        }
    }
    let (kind, packet) = frame.get_mut(at..)?.split_first_chunk_mut()?;
    Some((*kind, packet))
}
