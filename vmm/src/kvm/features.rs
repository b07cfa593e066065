//! What of a processor a guest knows of, so that it goes on only where all of that is there.
//!
//! Features are bits of CPUID (Intel SDM volume 2, CPUID; AMD APM volume 3, appendix E), by the names that Linux's
//! `/proc/cpuinfo` has for them where there is one.

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

/// A register of a leaf, and bits of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FeatureWord {
    /// The leaf.
    pub function: u32,
    /// Its subleaf.
    pub index: u32,
    /// EAX, EBX, ECX, EDX from zero.
    pub register: u8,
    /// The bits.
    pub bits: u32,
}

/// The most words that a snapshot has.
pub const WORDS_MAX: usize = 32;

/// What a guest was shown.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CpuNeeds {
    /// The processor's maker (CPUID leaf 0), which decides how system calls are entered, among other things.
    pub vendor: [u8; 12],
    /// Features.
    pub words: Vec<FeatureWord>,
}

/// Why a guest cannot go on here.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Lacking {
    /// Another maker.
    #[error("the snapshot's guest runs on a processor by {saved}, and this host's is by {here}")]
    Vendor {
        /// The guest's.
        saved: String,
        /// The host's.
        here: String,
    },
    /// Features, by name.
    #[error("this host's processor lacks {0}, which the snapshot's guest was shown")]
    Features(String),
}

const EAX: u8 = 0;
const EBX: u8 = 1;
const ECX: u8 = 2;
const EDX: u8 = 3;

/// The words that are compared: leaf, subleaf, register.
const WORDS: [(u32, u32, u8); 16] = [
    (0x1, 0, ECX),
    (0x1, 0, EDX),
    (0x6, 0, EAX),
    (0x7, 0, EBX),
    (0x7, 0, ECX),
    (0x7, 0, EDX),
    (0x7, 1, EAX),
    (0x7, 1, EDX),
    // The extended states that can be switched on, and how they are saved.
    (0xd, 0, EAX),
    (0xd, 0, EDX),
    (0xd, 1, EAX),
    (0x8000_0001, 0, ECX),
    (0x8000_0001, 0, EDX),
    (0x8000_0007, 0, EDX),
    (0x8000_0008, 0, EBX),
    (0x8000_0021, 0, EAX),
];

/// Bits that show what a guest does, not what a processor has: `OSXSAVE`, `OSPKE`.
const DYNAMIC: [(u32, u32, u8, u32); 2] = [(0x1, 0, ECX, 1 << 27), (0x7, 0, ECX, 1 << 4)];

/// Bits with their names.
type Names = &'static [(u32, &'static str)];

/// Names of bits, those that people know: leaf, subleaf, register, names.
const NAMES: [(u32, u32, u8, Names); 6] = [
    (
        0x1,
        0,
        ECX,
        &[
            (0, "SSE3"),
            (1, "PCLMULQDQ"),
            (9, "SSSE3"),
            (12, "FMA"),
            (13, "CMPXCHG16B"),
            (17, "PCID"),
            (19, "SSE4.1"),
            (20, "SSE4.2"),
            (21, "x2APIC"),
            (22, "MOVBE"),
            (23, "POPCNT"),
            (24, "the TSC-deadline timer"),
            (25, "AES"),
            (26, "XSAVE"),
            (28, "AVX"),
            (29, "F16C"),
            (30, "RDRAND"),
        ],
    ),
    (
        0x7,
        0,
        EBX,
        &[
            (0, "FSGSBASE"),
            (3, "BMI1"),
            (5, "AVX2"),
            (7, "SMEP"),
            (8, "BMI2"),
            (9, "ERMS"),
            (10, "INVPCID"),
            (11, "RTM"),
            (16, "AVX512F"),
            (17, "AVX512DQ"),
            (18, "RDSEED"),
            (19, "ADX"),
            (20, "SMAP"),
            (23, "CLFLUSHOPT"),
            (24, "CLWB"),
            (28, "AVX512CD"),
            (29, "SHA"),
            (30, "AVX512BW"),
            (31, "AVX512VL"),
        ],
    ),
    (
        0x7,
        0,
        ECX,
        &[
            (1, "AVX512VBMI"),
            (2, "UMIP"),
            (3, "PKU"),
            (6, "AVX512VBMI2"),
            (8, "GFNI"),
            (9, "VAES"),
            (10, "VPCLMULQDQ"),
            (11, "AVX512VNNI"),
            (12, "AVX512BITALG"),
            (14, "AVX512VPOPCNTDQ"),
            (16, "five-level paging"),
            (22, "RDPID"),
        ],
    ),
    (0x7, 0, EDX, &[(4, "FSRM"), (22, "AMX-BF16"), (23, "AVX512FP16"), (24, "AMX-TILE"), (25, "AMX-INT8")]),
    (
        0x8000_0001,
        0,
        ECX,
        &[(0, "LAHF"), (5, "LZCNT"), (6, "SSE4A"), (8, "PREFETCHW"), (22, "topology extensions")],
    ),
    (
        0x8000_0001,
        0,
        EDX,
        &[(11, "SYSCALL"), (20, "NX"), (26, "pages of 1 GiB"), (27, "RDTSCP"), (29, "long mode")],
    ),
];

fn register(entry: &kvm_cpuid_entry2, register: u8) -> u32 {
    [entry.eax, entry.ebx, entry.ecx, entry.edx].get(usize::from(register)).copied().unwrap_or(0)
}

fn find(shown: &CpuId, function: u32, index: u32) -> Option<&kvm_cpuid_entry2> {
    shown.as_slice().iter().find(|entry| entry.function == function && entry.index == index)
}

impl CpuNeeds {
    /// What a guest to which `shown` is shown may rely on.
    #[must_use]
    pub(super) fn of(shown: &CpuId) -> Self {
        let mut vendor = [0; 12];
        if let Some(leaf) = find(shown, 0, 0) {
            for (part, value) in vendor.chunks_exact_mut(4).zip([leaf.ebx, leaf.edx, leaf.ecx]) {
                part.copy_from_slice(&value.to_le_bytes());
            }
        }
        let word = |&(function, index, number): &(u32, u32, u8)| {
            let dynamic = DYNAMIC.iter().find(|(f, i, r, _)| (*f, *i, *r) == (function, index, number));
            let bits =
                register(find(shown, function, index)?, number) & !dynamic.map_or(0, |dynamic| dynamic.3);
            (bits != 0).then_some(FeatureWord { function, index, register: number, bits })
        };
        Self { vendor, words: WORDS.iter().filter_map(word).collect() }
    }

    /// Whether all of it is in what a guest here would be shown.
    ///
    /// # Errors
    /// What is missing.
    pub(super) fn check(&self, here: &CpuId) -> Result<(), Lacking> {
        let offered = Self::of(here);
        if offered.vendor != self.vendor {
            let text = |vendor: &[u8]| String::from_utf8_lossy(vendor).escape_debug().to_string();
            return Err(Lacking::Vendor { saved: text(&self.vendor), here: text(&offered.vendor) });
        }
        let mut names = Vec::new();
        for word in &self.words {
            let same = |other: &&FeatureWord| {
                (other.function, other.index, other.register) == (word.function, word.index, word.register)
            };
            let has = offered.words.iter().find(same).map_or(0, |other| other.bits);
            let lacking = word.bits & !has;
            names.extend((0..32).filter(|bit| lacking >> bit & 1 != 0).map(|bit| name(word, bit)));
        }
        if names.is_empty() { Ok(()) } else { Err(Lacking::Features(names.join(", "))) }
    }
}

fn name(word: &FeatureWord, bit: u32) -> String {
    let place = (word.function, word.index, word.register);
    let names = NAMES.iter().find(|(function, index, register, _)| (*function, *index, *register) == place);
    let known = names.and_then(|names| names.3.iter().find(|(at, _)| *at == bit));
    match known {
        Some((_, name)) => (*name).to_owned(),
        None => {
            let register =
                ["EAX", "EBX", "ECX", "EDX"].get(usize::from(word.register)).copied().unwrap_or("?");
            format!("CPUID leaf {:#x}.{} {register} bit {bit}", word.function, word.index)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn leaf(function: u32, index: u32, [eax, ebx, ecx, edx]: [u32; 4]) -> kvm_cpuid_entry2 {
        kvm_cpuid_entry2 { function, index, eax, ebx, ecx, edx, ..Default::default() }
    }

    fn shown(vendor: u32, leaves: &[kvm_cpuid_entry2]) -> CpuId {
        let all = [&[leaf(0, 0, [0xd, vendor, 0, 0])], leaves].concat();
        CpuId::from_entries(&all).unwrap()
    }

    #[test]
    fn guest_goes_on_where_everything_it_was_shown_is_there_and_more() {
        let less = shown(7, &[leaf(1, 0, [9, 9, 1 | 1 << 20, 1]), leaf(7, 0, [0, 1 << 5, 0, 0])]);
        let more = shown(7, &[leaf(1, 0, [8, 8, 1 | 1 << 20 | 1 << 28, 3]), leaf(7, 0, [2, 0xffff, 2, 0])]);
        assert_eq!(CpuNeeds::of(&less).check(&more), Ok(()));
        let error = CpuNeeds::of(&more).check(&less).unwrap_err();
        assert!(
            matches!(&error, Lacking::Features(names) if names.contains("AVX,") && names.contains("AVX512VBMI"))
        );
        assert!(error.to_string().contains("CPUID leaf 0x1.0 EDX bit 1"), "{error}");
    }

    #[test]
    fn what_a_guest_switched_on_itself_does_not_count_and_another_maker_does() {
        let on = shown(7, &[leaf(1, 0, [0, 0, 1 << 26 | 1 << 27, 0])]);
        let off = shown(7, &[leaf(1, 0, [0, 0, 1 << 26, 0])]);
        assert_eq!(CpuNeeds::of(&on).check(&off), Ok(()));
        let error = CpuNeeds::of(&on).check(&shown(u32::from_le_bytes(*b"Auth"), &[])).unwrap_err();
        assert!(matches!(&error, Lacking::Vendor { here, .. } if here.starts_with("Auth")), "{error}");
    }

    #[test]
    fn words_fit_where_they_are_kept() {
        assert!(WORDS.len() <= WORDS_MAX);
    }
}
