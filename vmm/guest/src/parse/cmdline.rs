//! The kernel command line: where the virtio devices are, what memory is written to again and again, how often a sign of life is
//! given, for how long a disk is loaded, and how a network is.

use core::net::Ipv4Addr;

/// One `virtio_mmio.device=SIZE@BASE:IRQ[:ID]` (Linux `Documentation/admin-guide/kernel-parameters.txt`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MmioDevice {
    /// Bytes of its register window.
    pub size: u64,
    /// Physical address of the window.
    pub base: u64,
    /// The global system interrupt it raises.
    pub gsi: u32,
}

/// The devices named on `cmdline`, in order; what is malformed is passed over.
pub fn mmio_devices(cmdline: &str) -> impl Iterator<Item = MmioDevice> {
    cmdline.split_ascii_whitespace().filter_map(|word| mmio_device(word.strip_prefix("virtio_mmio.device=")?))
}

/// How many KiB of memory the guest writes to ten times a second, by `touch=KIB`: work for those who look at what
/// a guest writes. At most [`TOUCHED_KIB_MAX`].
pub fn touched_kib(cmdline: &str) -> usize {
    let word = cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix("touch="));
    word.and_then(|text| text.parse().ok()).unwrap_or(0).min(TOUCHED_KIB_MAX)
}

/// Half of the heap.
pub const TOUCHED_KIB_MAX: usize = 8 << 10;

/// How many microseconds pass between two signs of life on the console, by `say=MICROSECONDS`; none unless asked for.
pub fn say_us(cmdline: &str) -> Option<u64> {
    cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix("say="))?.parse().ok()
}

/// For how many milliseconds each part of a load of the first disk runs, by `load=MILLISECONDS`; none unless asked for.
pub fn load_ms(cmdline: &str) -> u64 {
    let word = cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix("load="));
    word.and_then(|text| text.parse().ok()).unwrap_or(0).min(LOAD_MS_MAX)
}

/// A minute.
pub const LOAD_MS_MAX: u64 = 60_000;

/// A load of the first network device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Traffic {
    /// The address of ours.
    pub own: Ipv4Addr,
    /// Who is measured, on the same link; nobody if others measure us.
    pub peer: Option<Ipv4Addr>,
    /// How long we serve, or each part of a measure takes.
    pub milliseconds: u64,
    /// How long we wait awake before we sleep, in microseconds.
    pub awake_us: u64,
}

/// The load of the first network device, by `traffic=ADDRESS,PEER,MILLISECONDS[,AWAKE_US]`, with `serve` for PEER if we serve; none
/// unless asked for.
pub fn traffic(cmdline: &str) -> Option<Traffic> {
    let word = cmdline.split_ascii_whitespace().find_map(|word| word.strip_prefix("traffic="))?;
    let mut parts = word.split(',');
    let own = parts.next()?.parse().ok()?;
    let peer = match parts.next()? {
        "serve" => None,
        address => Some(address.parse().ok()?),
    };
    let milliseconds = parts.next()?.parse().ok().filter(|&ms| ms <= TRAFFIC_MS_MAX)?;
    let awake_us = awake_us(parts.next())?;
    parts.next().is_none().then_some(Traffic { own, peer, milliseconds, awake_us })
}

/// How long who loads a network waits awake, if that is said.
pub fn awake_us(word: Option<&str>) -> Option<u64> {
    const DEFAULT: u64 = 50;
    const MAX: u64 = 1_000_000;
    word.map_or(Some(DEFAULT), |word| word.parse().ok().filter(|&us| us <= MAX))
}

/// An hour: who measures ends the guest that serves.
pub const TRAFFIC_MS_MAX: u64 = 3_600_000;

fn mmio_device(text: &str) -> Option<MmioDevice> {
    let (size, rest) = text.split_once('@')?;
    let mut parts = rest.split(':');
    let device = MmioDevice {
        size: number(size)?,
        base: number(parts.next()?)?,
        gsi: number(parts.next()?)?.try_into().ok()?,
    };
    // A window of registers that ends below 4 GiB, aligned as its 32-bit registers are.
    let end = device.base.checked_add(device.size)?;
    (device.size >= 0x100 && device.base.is_multiple_of(4) && device.base != 0 && end <= 1 << 32)
        .then_some(device)
}

/// A number as Linux's `memparse` reads it: decimal, `0x` hexadecimal, and a suffix K, M or G.
fn number(text: &str) -> Option<u64> {
    let (digits, shift) = match text.as_bytes().last()? {
        b'K' | b'k' => (&text[..text.len() - 1], 10),
        b'M' | b'm' => (&text[..text.len() - 1], 20),
        b'G' | b'g' => (&text[..text.len() - 1], 30),
        _ => (text, 0),
    };
    let value = match digits.strip_prefix("0x").or(digits.strip_prefix("0X")) {
        Some(hex) => u64::from_str_radix(hex, 16).ok()?,
        None => digits.parse().ok()?,
    };
    value.checked_mul(1 << shift)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_found_in_order_between_other_words() {
        let cmdline =
            "console=ttyS0 virtio_mmio.device=4K@0xd0000000:5 quiet virtio_mmio.device=512@0xd0001000:6:1";
        let devices: Vec<_> = mmio_devices(cmdline).collect();
        let expected = [
            MmioDevice { size: 4096, base: 0xd000_0000, gsi: 5 },
            MmioDevice { size: 512, base: 0xd000_1000, gsi: 6 },
        ];
        assert_eq!(devices, expected);
    }

    #[test]
    fn memory_to_be_touched_is_bounded_and_none_unless_asked_for() {
        assert_eq!(touched_kib("quiet touch=1024 x"), 1024);
        assert_eq!(touched_kib("touch=99999999"), TOUCHED_KIB_MAX);
        assert_eq!((touched_kib(""), touched_kib("touch=x"), touched_kib("nottouch=5")), (0, 0, 0));
    }

    #[test]
    fn signs_of_life_are_given_if_they_are_asked_for() {
        assert_eq!((say_us("quiet say=250"), say_us("say=0")), (Some(250), Some(0)));
        assert_eq!((say_us(""), say_us("say=x"), say_us("essay=5")), (None, None, None));
    }

    #[test]
    fn load_is_bounded_and_none_unless_asked_for() {
        assert_eq!((load_ms("quiet load=250"), load_ms("load=9999999")), (250, LOAD_MS_MAX));
        assert_eq!((load_ms(""), load_ms("load=x"), load_ms("upload=5")), (0, 0, 0));
    }

    #[test]
    fn traffic_is_measured_or_served_and_bounded() {
        let own = Ipv4Addr::new(10, 0, 0, 1);
        let peer = Some(Ipv4Addr::new(10, 0, 0, 2));
        let cmdline = "quiet traffic=10.0.0.1,10.0.0.2,500 x";
        assert_eq!(traffic(cmdline), Some(Traffic { own, peer, milliseconds: 500, awake_us: 50 }));
        let served = Traffic { own, peer: None, milliseconds: TRAFFIC_MS_MAX, awake_us: 0 };
        assert_eq!(traffic("traffic=10.0.0.1,serve,3600000,0"), Some(served));
        for word in [
            "",
            "x",
            "10.0.0.1",
            "10.0.0.1,serve",
            "10.0.0.1,serve,3600001",
            "10.0.0.1,serve,5,1000001",
            "10.0.0.1,x,5",
            "x,serve,5",
            "10.0.0.1,serve,5,6,7",
        ] {
            assert_eq!(traffic(&format!("traffic={word}")), None, "{word}");
        }
        assert_eq!(traffic("notraffic=10.0.0.1,serve,5"), None);
    }

    #[test]
    fn malformed_devices_are_passed_over() {
        for word in [
            "",
            "4K",
            "4K@",
            "4K@0xd0000000",
            "4K@0xd0000000:",
            "4K@0xd0000000:x",
            "1@0xd0000000:5",
            "4K@0xffffffff000:5",
            "4K@0xd0000002:5",
            "99999999999999999999@1:5",
            "16777216G@0x10:5",
            "4K@0:5",
        ] {
            let cmdline = format!("virtio_mmio.device={word}");
            assert_eq!(mmio_devices(&cmdline).count(), 0, "{word}");
        }
    }
}
