//! CPU profiles: how much of its host's processor a guest is shown.
//!
//! A guest that may go on elsewhere must not know of what only some hosts have. The baseline is `x86-64-v2`, as the x86-64
//! psABI defines it (every server processor since 2009), with what KVM adds by itself, and with the means by which a guest
//! protects itself from its processor's faults where the host has them. Intel SDM volume 2, CPUID; AMD APM volume 3,
//! appendix E.

use std::fmt;

use kvm_bindings::{CpuId, kvm_cpuid_entry2};

use super::HostKind;
use crate::config::CpuProfile;

/// What a guest is shown on a host.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Profile {
    /// All that the host's KVM supports.
    Host,
    /// The same, without what a software KVM says and cannot run.
    Software,
    /// `x86-64-v2`.
    Baseline,
}

impl Profile {
    /// What `wanted` is on a host of this kind that supports `supported`.
    ///
    /// # Errors
    /// The baseline cannot be kept here.
    pub(super) fn choose(wanted: CpuProfile, kind: HostKind, supported: &CpuId) -> Result<Self, Unsuited> {
        match (wanted, kind) {
            (CpuProfile::Host, HostKind::Hardware) => Ok(Self::Host),
            (CpuProfile::Host, HostKind::Software) => Ok(Self::Software),
            (CpuProfile::Baseline, HostKind::Software) => Err(Unsuited::Software),
            (CpuProfile::Baseline, HostKind::Hardware) => match missing(supported) {
                names if names.is_empty() => Ok(Self::Baseline),
                names => Err(Unsuited::Lacks(names.join(", "))),
            },
        }
    }
}

impl fmt::Display for Profile {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Host => "host",
            Self::Software => "software",
            Self::Baseline => "baseline",
        })
    }
}

/// Why a host cannot offer the baseline.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum Unsuited {
    /// Its guests' user mode runs on the processor itself, which tells its own features.
    #[error(
        "the CPU profile `baseline` needs a KVM in hardware: a software KVM cannot hide what its processor has; use `host`"
    )]
    Software,
    /// Features, by name.
    #[error("this host's processor is less than the CPU profile `baseline`: it lacks {0}; use `host`")]
    Lacks(String),
}

/// A register of a CPUID leaf.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

/// A word of features: a register of a leaf, what of it the baseline promises, and what it may show besides.
struct Word {
    function: u32,
    register: Register,
    /// Name and bit.
    promised: &'static [(&'static str, u32)],
    /// Bits that are shown where they are.
    allowed: &'static [u32],
}

/// All words of features that the baseline does not show as the host has them.
const WORDS: [Word; 16] = [
    Word {
        function: 0x1,
        register: Register::Ecx,
        promised: &[
            ("SSE3", 0),
            ("SSSE3", 9),
            ("CMPXCHG16B", 13),
            ("SSE4.1", 19),
            ("SSE4.2", 20),
            ("POPCNT", 23),
        ],
        // x2APIC, TSC deadline, hypervisor: KVM's own.
        allowed: &[21, 24, 31],
    },
    Word {
        function: 0x1,
        register: Register::Edx,
        promised: &[
            ("FPU", 0),
            ("TSC", 4),
            ("MSR", 5),
            ("PAE", 6),
            ("CMPXCHG8B", 8),
            ("APIC", 9),
            ("PGE", 13),
            ("CMOV", 15),
            ("PAT", 16),
            ("CLFLUSH", 19),
            ("MMX", 23),
            ("FXSR", 24),
            ("SSE", 25),
            ("SSE2", 26),
        ],
        // VME, DE, PSE, MCE, SEP, MTRR, MCA, PSE-36, HTT: what the architecture grew up with.
        allowed: &[1, 2, 3, 7, 11, 12, 14, 17, 28],
    },
    // ARAT: the local APIC's timer runs always, by KVM.
    Word { function: 0x6, register: Register::Eax, promised: &[], allowed: &[2] },
    // MD_CLEAR, IBRS and IBPB, STIBP, L1D_FLUSH, ARCH_CAPABILITIES, SSBD.
    Word { function: 0x7, register: Register::Edx, promised: &[], allowed: &[10, 26, 27, 28, 29, 31] },
    Word { function: 0x8000_0001, register: Register::Ecx, promised: &[("LAHF", 0)], allowed: &[] },
    Word {
        function: 0x8000_0001,
        register: Register::Edx,
        promised: &[("SYSCALL", 11), ("NX", 20), ("long mode", 29)],
        // AMD's copies of leaf 1.
        allowed: &[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 12, 13, 14, 15, 16, 17, 23, 24],
    },
    // IBPB, IBRS, STIBP and when it is on, SSBD and its like, PSFD, BTC_NO, IBPB_RET.
    Word {
        function: 0x8000_0008,
        register: Register::Ebx,
        promised: &[],
        allowed: &[12, 14, 15, 17, 24, 25, 26, 28, 29, 30],
    },
    // LFENCE serialises; what faults of branch prediction are not there, or have means.
    Word { function: 0x8000_0021, register: Register::Eax, promised: &[], allowed: &[2, 27, 28, 29] },
    Word { function: 0x8000_0021, register: Register::Ecx, promised: &[], allowed: &[1, 2] },
    Word::hidden(0x6, Register::Ebx),
    Word::hidden(0x6, Register::Ecx),
    Word::hidden(0x6, Register::Edx),
    // How many more leaves of its kind there are, and what they have.
    Word::hidden(0x7, Register::Eax),
    Word::hidden(0x7, Register::Ebx),
    Word::hidden(0x7, Register::Ecx),
    Word::hidden(0x8000_0021, Register::Ebx),
];
/// Leaves that the baseline has not: of performance counters, extended states, traces, enclaves, tiles, frequencies and
/// power, which are nothing without their features.
const ABSENT_LEAVES: [u32; 16] = [
    0xa,
    0xd,
    0xf,
    0x10,
    0x12,
    0x14,
    0x15,
    0x16,
    0x19,
    0x1d,
    0x1e,
    0x24,
    0x8000_0007,
    0x8000_001b,
    0x8000_001d,
    0x8000_0022,
];

impl Word {
    /// One of which nothing is shown.
    const fn hidden(function: u32, register: Register) -> Self {
        Self { function, register, promised: &[], allowed: &[] }
    }

    fn promised_bits(&self) -> u32 {
        self.promised.iter().fold(0, |bits, (_, bit)| bits | 1 << bit)
    }

    fn shown_bits(&self) -> u32 {
        self.allowed.iter().fold(self.promised_bits(), |bits, bit| bits | 1 << bit)
    }
}

fn register(entry: &mut kvm_cpuid_entry2, register: Register) -> &mut u32 {
    match register {
        Register::Eax => &mut entry.eax,
        Register::Ebx => &mut entry.ebx,
        Register::Ecx => &mut entry.ecx,
        Register::Edx => &mut entry.edx,
    }
}

/// The features that the baseline promises and a host does not have.
fn missing(supported: &CpuId) -> Vec<&'static str> {
    let has = |word: &Word, bit: u32| {
        let entry = supported.as_slice().iter().find(|entry| entry.function == word.function);
        entry.is_some_and(|entry| *register(&mut { *entry }, word.register) & 1 << bit != 0)
    };
    let lacked = |word: &'static Word| word.promised.iter().filter(move |(_, bit)| !has(word, *bit));
    WORDS.iter().flat_map(lacked).map(|(name, _)| *name).collect()
}

/// An entry as the baseline shows it; nothing of a leaf that it has not.
pub(super) fn baseline(mut entry: kvm_cpuid_entry2) -> Option<kvm_cpuid_entry2> {
    let function = entry.function;
    if ABSENT_LEAVES.contains(&function) || (function == 0x7 && entry.index > 0) {
        return None;
    }
    for word in WORDS.iter().filter(|word| word.function == function) {
        *register(&mut entry, word.register) &= word.shown_bits();
    }
    Some(entry)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A host that has every bit of every leaf.
    fn everything() -> CpuId {
        let leaf = |function: u32, index: u32| kvm_cpuid_entry2 {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
            ..Default::default()
        };
        let leaves = [
            leaf(0x0, 0),
            leaf(0x1, 0),
            leaf(0x6, 0),
            leaf(0x7, 0),
            leaf(0x7, 1),
            leaf(0xd, 0),
            leaf(0x4000_0001, 0),
            leaf(0x8000_0001, 0),
            leaf(0x8000_0008, 0),
        ];
        CpuId::from_entries(&leaves).unwrap()
    }

    fn shown(function: u32) -> Option<kvm_cpuid_entry2> {
        let all = everything();
        let entry = all.as_slice().iter().find(|entry| entry.function == function && entry.index == 0);
        baseline(*entry.unwrap())
    }

    #[test]
    fn baseline_is_x86_64_v2_and_no_more() {
        const AVX: u32 = 1 << 28;
        const XSAVE: u32 = 1 << 26;
        const AES: u32 = 1 << 25;
        let features = shown(0x1).unwrap();
        assert_eq!(features.ecx & (AVX | XSAVE | AES), 0);
        assert_eq!(features.ecx, 0x81b8_2201);
        let structured = shown(0x7).unwrap();
        assert_eq!((structured.eax, structured.ebx, structured.ecx), (0, 0, 0));
        assert_eq!(structured.edx, 0xbc00_0400);
        assert_eq!(shown(0xd), None);
        let second =
            everything().as_slice().iter().find(|entry| (entry.function, entry.index) == (7, 1)).copied();
        assert_eq!(baseline(second.unwrap()), None);
        assert_eq!(shown(0x8000_0001).unwrap().ecx, 1);
    }

    #[test]
    fn what_is_no_feature_is_as_the_host_says() {
        for function in [0x0, 0x4000_0001] {
            assert_eq!(shown(function).unwrap().ecx, u32::MAX, "{function:#x}");
        }
        assert_eq!(shown(0x1).unwrap().eax, u32::MAX, "family, model and stepping");
        assert_eq!(shown(0x8000_0008).unwrap().eax, u32::MAX, "address bits");
    }

    #[test]
    fn what_a_host_lacks_has_a_name() {
        let mut less = everything().as_slice().to_vec();
        for entry in &mut less {
            match entry.function {
                0x1 => entry.ecx &= !(1 << 20),
                0x8000_0001 => entry.edx &= !(1 << 20),
                _ => {}
            }
        }
        let less = CpuId::from_entries(&less).unwrap();
        let choose = |wanted, kind, supported| Profile::choose(wanted, kind, supported);
        let error = choose(CpuProfile::Baseline, HostKind::Hardware, &less).unwrap_err();
        assert_eq!(error, Unsuited::Lacks("SSE4.2, NX".to_owned()));
        assert!(error.to_string().contains("it lacks SSE4.2, NX"), "{error}");
        assert_eq!(choose(CpuProfile::Host, HostKind::Hardware, &less), Ok(Profile::Host));
        assert_eq!(choose(CpuProfile::Baseline, HostKind::Hardware, &everything()), Ok(Profile::Baseline));
    }

    #[test]
    fn software_kvm_has_a_profile_of_its_own_and_no_baseline() {
        let all = everything();
        let choose = |wanted| Profile::choose(wanted, HostKind::Software, &all);
        assert_eq!(choose(CpuProfile::Host), Ok(Profile::Software));
        assert_eq!(choose(CpuProfile::Baseline), Err(Unsuited::Software));
    }
}
