//! A filter of system calls as a short program: a search among the calls' numbers, not a comparison with each.
//!
//! The kernel runs a new filter once for every call that there is, translates and compiles it; and a call whose arguments
//! count, such as each entry into the guest, passes the program whenever it is made. So the length is time of every start,
//! and the depth time of every exit.
//!
//! Must never know: which calls are allowed, and why.

use std::collections::BTreeMap;

use seccompiler::{BpfProgram, sock_filter};

/// Load 32 bits from a place in what the filter sees; keep the bits of a mask; compare; return (seccomp(2),
/// `linux/bpf_common.h`).
const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_NOT_BELOW: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Where the call's number, its convention and the lower half of its first argument are (`struct seccomp_data`).
const NUMBER_AT: u32 = 0;
const CONVENTION_AT: u32 = 4;
const ARGUMENTS_AT: u32 = 16;
const ARGUMENT_BYTES: u32 = 8;
/// `AUDIT_ARCH_X86_64` (`linux/audit.h`).
const CONVENTION: u32 = 0xc000_003e;

/// What is asked of a call's argument: its lower 32 bits, of which some count.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    /// Which argument, from zero.
    pub(super) argument: u8,
    /// The bits that count.
    pub(super) mask: u32,
    /// What they have to be.
    pub(super) value: u32,
}

/// What becomes of a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is made.
    Allow,
    /// It is made if any of these holds; else the process ends.
    AllowIf(Vec<Condition>),
    /// It fails as one that the kernel does not know.
    Unknown,
}

/// The program that judges the calls of these numbers so. All others, and every call by another machine's convention, end
/// the process.
///
/// # Panics
/// There are so many calls that a jump is too far for the kernel's instruction, which a test would have met.
pub(super) fn assemble(verdicts: &BTreeMap<u32, Verdict>) -> BpfProgram {
    let mut assembler = Assembler::default();
    let kill = assembler.label();
    let (allow, unknown) = (assembler.label(), assembler.label());
    let mut conditional = Vec::new();
    // Each number from which on another verdict holds.
    let mut places = vec![(0, kill)];
    for (number, verdict) in verdicts {
        let label = match verdict {
            Verdict::Allow => allow,
            Verdict::Unknown => unknown,
            Verdict::AllowIf(conditions) => {
                let label = assembler.label();
                conditional.push((label, conditions));
                label
            }
        };
        if places.last().is_some_and(|(from, _)| from == number) {
            places.pop();
        }
        places.push((*number, label));
        places.push((number.saturating_add(1), kill));
    }
    places.dedup_by(|next, before| next.1 == before.1);
    assembler.load(CONVENTION_AT);
    let search = assembler.label();
    assembler.jump(JUMP_IF_EQUAL, CONVENTION, search, kill);
    assembler.place(search);
    assembler.load(NUMBER_AT);
    assembler.search(&places);
    for (label, conditions) in conditional {
        assembler.place(label);
        assembler.conditions(conditions, allow, kill);
    }
    for (label, action) in [
        (kill, libc::SECCOMP_RET_KILL_PROCESS),
        (allow, libc::SECCOMP_RET_ALLOW),
        (unknown, libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned()),
    ] {
        assembler.place(label);
        assembler.lines.push(Line { code: RETURN, k: action, jumps: None });
    }
    assembler.finish()
}

/// A place in the program, known later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Label(usize);

struct Line {
    code: u16,
    k: u32,
    /// Where a comparison leads, if it holds and if not.
    jumps: Option<[Label; 2]>,
}

#[derive(Default)]
struct Assembler {
    lines: Vec<Line>,
    /// Which line each label is at.
    labels: Vec<Option<usize>>,
}

impl Assembler {
    fn label(&mut self) -> Label {
        self.labels.push(None);
        Label(self.labels.len() - 1)
    }

    fn place(&mut self, label: Label) {
        self.labels[label.0] = Some(self.lines.len());
    }

    fn load(&mut self, at: u32) {
        self.lines.push(Line { code: LOAD, k: at, jumps: None });
    }

    fn jump(&mut self, code: u16, k: u32, holds: Label, else_to: Label) {
        self.lines.push(Line { code, k, jumps: Some([holds, else_to]) });
    }

    /// Leads to the label of the last of `places` that begins at or below the number that was loaded; there are two at
    /// least.
    fn search(&mut self, places: &[(u32, Label)]) {
        let (below, from) = places.split_at(places.len() / 2);
        let [below_label, from_label] = [below, from].map(|half| match half {
            [(_, label)] => *label,
            _ => self.label(),
        });
        self.jump(JUMP_IF_NOT_BELOW, from[0].0, from_label, below_label);
        for (half, label) in [(below, below_label), (from, from_label)] {
            if half.len() > 1 {
                self.place(label);
                self.search(half);
            }
        }
    }

    fn conditions(&mut self, conditions: &[Condition], allow: Label, kill: Label) {
        let mut loaded = None;
        for (index, Condition { argument, mask, value }) in conditions.iter().enumerate() {
            if loaded != Some(*argument) {
                self.load(ARGUMENTS_AT + u32::from(*argument) * ARGUMENT_BYTES);
                loaded = Some(*argument);
            }
            if *mask != u32::MAX {
                self.lines.push(Line { code: AND, k: *mask, jumps: None });
                loaded = None;
            }
            let is_last = index + 1 == conditions.len();
            let next = if is_last { kill } else { self.label() };
            self.jump(JUMP_IF_EQUAL, *value, allow, next);
            if !is_last {
                self.place(next);
            }
        }
    }

    fn finish(self) -> BpfProgram {
        let Self { lines, labels } = self;
        let distance = |from: usize, label: Label| {
            let to = labels[label.0].expect("invariant: every label is placed");
            u8::try_from(to - from - 1).expect("invariant: programs are shorter than a jump")
        };
        let lines = lines.iter().enumerate().map(|(at, line)| {
            let [jt, jf] = line.jumps.map_or([0, 0], |jumps| jumps.map(|label| distance(at, label)));
            sock_filter { code: line.code, jt, jf, k: line.k }
        });
        lines.collect()
    }
}

#[cfg(test)]
mod tests;
