//! Taps as options of `wisp vmm` name them: what a guest is told of the network device, and how much may go through it.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::os::fd::OwnedFd;

use anyhow::Context;
use vmm::config::{Addressing, Traffic, TransferLimits};
use vmm::document::Document;
use vmm::interactive::TapOption;
use vmm::virtio::net::{MTU_MIN, PAIRS_MAX};

use super::endpoint;
use super::words::{self, Said};

/// A tap with what is said of it.
pub(super) const TAP: &str = "NAME[,queues=N][,mac=M][,mtu=N][,address=A/N][,gateway=A][,dns=A][,hostname=H][,to-guest-bytes=R][,to-guest-packets=R][,from-guest-bytes=R][,from-guest-packets=R]";
/// A network device with the limits that it shall have.
pub(super) const LIMITED: &str =
    "MAC[,to-guest-bytes=R][,to-guest-packets=R][,from-guest-bytes=R][,from-guest-packets=R]";

/// What [`TAP`] says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::command) struct Tap {
    name: String,
    queues: u16,
    pub(super) mac: Option<[u8; 6]>,
    pub(super) mtu: Option<u16>,
    pub(super) traffic: Traffic,
    /// What DHCP gives the guest.
    pub(super) addressing: Option<Box<Addressing>>,
}

impl Tap {
    /// Its queues, in their order.
    pub(super) fn open(&self) -> anyhow::Result<Vec<OwnedFd>> {
        net::tap::open_queues(&self.name, self.queues).with_context(|| format!("open the tap {}", self.name))
    }

    /// The network device of a guest that starts, which is told this metadata.
    pub(super) fn option(&self, metadata: &BTreeMap<String, Document>) -> anyhow::Result<TapOption> {
        let Self { mac, mtu, traffic, .. } = *self;
        let endpoint = endpoint::endpoint(self.addressing.as_deref(), metadata);
        Ok(TapOption { queues: self.open()?, mac, mtu, traffic, endpoint })
    }
}

/// Of [`TAP`].
///
/// # Errors
/// As [`words::split`], or a value is none.
pub(super) fn tap(text: &OsStr) -> Result<Tap, String> {
    let (name, said) = words::split(text, TAP)?;
    let name = name.to_str().ok_or("a tap's name is text")?.to_owned();
    let queues = number(&said, "queues", 1..=PAIRS_MAX)?.unwrap_or(1);
    let mtu = number(&said, "mtu", MTU_MIN..=u16::MAX)?;
    let mac = said.get("mac").map(|mac| mac.to_str().map_or(Err(NO_MAC.to_owned()), mac_of_device));
    let (mac, traffic, addressing) =
        (mac.transpose()?, traffic(&said)?, endpoint::addressing(&said)?.map(Box::new));
    Ok(Tap { name, queues, mac, mtu, traffic, addressing })
}

/// Of [`LIMITED`].
///
/// # Errors
/// As of [`tap`].
pub(super) fn limited(text: &OsStr) -> Result<([u8; 6], Traffic), String> {
    let (mac, said) = words::split(text, LIMITED)?;
    let mac = mac.to_str().and_then(parse_mac).ok_or(NO_MAC)?;
    Ok((mac, traffic(&said)?))
}

fn number(
    said: &Said<'_>,
    word: &str,
    allowed: std::ops::RangeInclusive<u16>,
) -> Result<Option<u16>, String> {
    let Some(text) = said.get(word) else { return Ok(None) };
    let number = text.to_str().and_then(|text| text.parse().ok()).filter(|number| allowed.contains(number));
    let wrong = || format!("{word}=N takes a number from {} to {}", allowed.start(), allowed.end());
    number.map(Some).ok_or_else(wrong)
}

fn traffic(said: &Said<'_>) -> Result<Traffic, String> {
    let limits = |bytes, packets| {
        let (bytes, operations) = (words::rate(said, bytes)?, words::rate(said, packets)?);
        Ok::<_, String>(TransferLimits { bytes, operations })
    };
    Ok(Traffic {
        ingress: limits("to-guest-bytes", "to-guest-packets")?,
        egress: limits("from-guest-bytes", "from-guest-packets")?,
        dscp: None,
    })
}

/// What a network device is held to, as [`LIMITED`] takes it behind the MAC address; nothing of one that is held to nothing.
pub(super) fn spelled(Traffic { ingress, egress, .. }: &Traffic) -> String {
    words::spelled_rates(&[
        ("to-guest-bytes", ingress.bytes),
        ("to-guest-packets", ingress.operations),
        ("from-guest-bytes", egress.bytes),
        ("from-guest-packets", egress.operations),
    ])
}

const NO_MAC: &str = "a MAC address is six pairs of digits, as 02:57:49:53:50:00";

/// The address of one device, and of no group of them (IEEE 802: the first byte's lowest bit).
///
/// # Errors
/// It is none.
pub(super) fn mac_of_device(text: &str) -> Result<[u8; 6], String> {
    let mac = parse_mac(text).ok_or_else(|| format!("`{text}` is none: {NO_MAC}"))?;
    if mac[0] & 1 != 0 || mac == [0; 6] {
        return Err(format!(
            "`{text}` is no device's MAC address: its first byte is an even one, and one byte is not 0"
        ));
    }
    Ok(mac)
}

pub(super) fn parse_mac(text: &str) -> Option<[u8; 6]> {
    let byte = |part: &str| {
        let is_one = part.len() == 2 && part.bytes().all(|digit| digit.is_ascii_hexdigit());
        u8::from_str_radix(part, 16).ok().filter(|_| is_one)
    };
    text.split(':').map(byte).collect::<Option<Vec<u8>>>()?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use vmm::config::RateLimit;

    use super::*;

    fn read(text: &str) -> Result<Tap, String> {
        tap(OsStr::new(text))
    }

    #[test]
    fn tap_has_one_queue_and_no_limits_unless_they_are_asked_for() {
        let one = Tap {
            name: "t0".to_owned(),
            queues: 1,
            mac: None,
            mtu: None,
            traffic: Traffic::default(),
            addressing: None,
        };
        assert_eq!(read("t0"), Ok(one.clone()));
        let addressed = read("t0,address=10.0.0.5/24,gateway=10.0.0.1").unwrap();
        assert_eq!(addressed.addressing.unwrap().ipv4.unwrap().prefix_len, 24);
        assert_eq!(read("t0,queues=8"), Ok(Tap { queues: 8, ..one.clone() }));
        let limit = |per_second, burst| Some(RateLimit { per_second, burst });
        let traffic = Traffic {
            ingress: TransferLimits { bytes: limit(1000, Some(5)), operations: None },
            egress: TransferLimits { bytes: None, operations: limit(7, None) },
            dscp: None,
        };
        let all = Tap { mac: Some([2, 0, 0, 0, 0, 0xab]), mtu: Some(9000), traffic, ..one };
        let text = "t0,mtu=9000,mac=02:00:00:00:00:AB,to-guest-bytes=1000:5,from-guest-packets=7";
        assert_eq!(read(text), Ok(all));
        let text = "02:00:00:00:00:ab,from-guest-packets=7,to-guest-bytes=1000:5";
        assert_eq!(limited(OsStr::new(text)), Ok(([2, 0, 0, 0, 0, 0xab], traffic)));
        assert_eq!(spelled(&traffic), "to-guest-bytes=1000:5,from-guest-packets=7");
        assert_eq!(spelled(&Traffic::default()), "");
        assert_eq!(limited(OsStr::new("02:00:00:00:00:ab")).map(|limited| limited.1), Ok(Traffic::default()));
    }

    #[test]
    fn what_is_no_value_of_a_word_is_refused_with_what_is_one() {
        for (wrong, why) in [
            ("t0,queues=0", "from 1 to 8"),
            ("t0,queues=9", "from 1 to 8"),
            ("t0,queues=x", "from 1 to 8"),
            ("t0,mtu=67", "from 68 to 65535"),
            ("t0,mtu=65536", "from 68 to 65535"),
            ("t0,mac=02:00", "six pairs"),
            ("t0,mac=03:00:00:00:00:01", "even"),
            ("t0,mac=00:00:00:00:00:00", "not 0"),
            ("t0,address=10.0.0.5", "as 10.0.0.5/24"),
            ("t0,to-guest-bytes=0", "RATE[:BURST]"),
            ("t0,to-guest-bytes=1:", "RATE[:BURST]"),
            ("t0,from-guest-packets=1:x", "RATE[:BURST]"),
            ("t0,ro", "no word of this option"),
            ("t0,queues=2,ro", "no word of this option"),
            ("t0,serial=x", "no word of this option"),
            (",queues=2", "nothing is named"),
        ] {
            let error = read(wrong).unwrap_err();
            assert!(error.contains(why), "{wrong}: {error}");
        }
        for wrong in ["t0", "02:00:00:00:00:ab,queues=2", "02:00:00:00:00:ab,mtu=1500", ""] {
            assert!(limited(OsStr::new(wrong)).is_err(), "{wrong}");
        }
    }

    #[test]
    fn mac_addresses_are_six_pairs_of_digits() {
        assert_eq!(parse_mac("02:57:49:53:50:ff"), Some([0x02, 0x57, 0x49, 0x53, 0x50, 0xff]));
        for wrong in [
            "",
            "02:57:49:53:50",
            "2:57:49:53:50:ff",
            "02:57:49:53:50:fg",
            "02:57:49:53:50:ff:0",
            "02:57:49:53:50:+f",
        ] {
            assert_eq!(parse_mac(wrong), None, "{wrong}");
        }
    }
}
