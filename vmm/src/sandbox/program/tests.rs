//! The programs are run as the kernel would, and compared with those that the `seccompiler` crate makes of the same rules.

use std::collections::BTreeMap;

use proptest::prelude::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule,
    TargetArch, sock_filter,
};

use super::*;
use crate::sandbox::filter::{self, Thread};

const ALLOW: u32 = libc::SECCOMP_RET_ALLOW;
const KILL: u32 = libc::SECCOMP_RET_KILL_PROCESS;
/// The bit that says a call is one of x32.
const X32: u32 = 0x4000_0000;

/// What a filter sees.
#[derive(Debug, Clone, Copy)]
struct Seen {
    number: u32,
    convention: u32,
    arguments: [u64; 6],
}

/// Runs a program; its answer, and how many instructions that took.
fn run(program: &[sock_filter], seen: Seen) -> (u32, usize) {
    let (mut at, mut held, mut steps) = (0, 0_u32, 0);
    loop {
        let line = &program[at];
        steps += 1;
        at += 1;
        let mut jump = |holds: bool| at += usize::from(if holds { line.jt } else { line.jf });
        match line.code {
            LOAD => held = word(seen, line.k),
            AND => held &= line.k,
            JUMP_IF_EQUAL => jump(held == line.k),
            JUMP_IF_NOT_BELOW => jump(held >= line.k),
            // The crate's own: a jump without a condition.
            0x05 => at += usize::try_from(line.k).unwrap(),
            RETURN => return (line.k, steps),
            other => panic!("instruction {other:#x}"),
        }
    }
}

fn word(seen: Seen, at: u32) -> u32 {
    let argument = |at: u32| seen.arguments[usize::try_from(at / 8).unwrap()] >> (at % 8 * 8);
    match at {
        NUMBER_AT => seen.number,
        CONVENTION_AT => seen.convention,
        // Truncation is the point: one half of an argument.
        at => argument(at - ARGUMENTS_AT) as u32,
    }
}

/// What the crate makes of the same verdicts; it knows no third one, so those calls are left out.
fn other(verdicts: &BTreeMap<u32, Verdict>) -> BpfProgram {
    let rule = |Condition { argument, mask, value }: Condition| {
        let operator =
            if mask == u32::MAX { SeccompCmpOp::Eq } else { SeccompCmpOp::MaskedEq(u64::from(mask)) };
        let length = SeccompCmpArgLen::Dword;
        let condition = SeccompCondition::new(argument, length, operator, u64::from(value)).unwrap();
        SeccompRule::new(vec![condition]).unwrap()
    };
    let rules = verdicts.iter().filter_map(|(number, verdict)| match verdict {
        Verdict::Allow => Some((i64::from(*number), Vec::new())),
        Verdict::AllowIf(conditions) => {
            Some((i64::from(*number), conditions.iter().copied().map(rule).collect()))
        }
        Verdict::Unknown => None,
    });
    let (kill, allow) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules.collect(), kill, allow, TargetArch::x86_64).unwrap().try_into().unwrap()
}

/// Arguments at and around what is asked of any.
fn telling_arguments(verdict: Option<&Verdict>) -> Vec<u64> {
    let mut all = vec![0, 1, u64::MAX, 1 << 32];
    if let Some(Verdict::AllowIf(conditions)) = verdict {
        for Condition { mask, value, .. } in conditions {
            let (mask, value) = (u64::from(*mask), u64::from(*value));
            all.extend([value, value | !mask, value ^ mask, value | 1 << 40]);
            all.extend((0..32).map(|bit| value ^ (1 << bit)));
        }
    }
    all
}

#[test]
fn filters_judge_each_call_as_another_compiler_does() {
    for thread in [Thread::Main, Thread::Vcpu] {
        let verdicts = filter::verdicts(thread);
        let (ours, other) = (filter::build(thread), other(&verdicts));
        let numbers = (0..1000).chain([X32, u32::MAX]).chain(verdicts.keys().map(|number| number | X32));
        for number in numbers {
            let verdict = verdicts.get(&number);
            for value in telling_arguments(verdict) {
                let seen = Seen { number, convention: CONVENTION, arguments: [value; 6] };
                let answer = match verdict {
                    Some(Verdict::Unknown) => libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(),
                    _ => run(&other, seen).0,
                };
                assert_eq!(run(&ours, seen).0, answer, "{thread:?}: call {number}, {value:#x}");
            }
        }
    }
}

#[test]
fn calls_by_another_machines_convention_end_the_process() {
    for thread in [Thread::Main, Thread::Vcpu] {
        let program = filter::build(thread);
        for number in 0..1000 {
            for convention in [0x4000_0003, 0xc000_00b7, 0, u32::MAX] {
                let seen = Seen { number, convention, arguments: [0; 6] };
                assert_eq!(run(&program, seen).0, KILL, "{number} by {convention:#x}");
            }
        }
    }
}

#[test]
fn no_call_takes_more_than_a_few_instructions() {
    /// Entering the guest (`KVM_RUN`), whose argument the kernel has to ask for each time.
    const RUN: u64 = 0xae80;
    let enter = Seen {
        number: u32::try_from(libc::SYS_ioctl).unwrap(),
        convention: CONVENTION,
        arguments: [3, RUN, 0, 0, 0, 0],
    };
    for thread in [Thread::Main, Thread::Vcpu] {
        let program = filter::build(thread);
        let (answer, steps) = run(&program, enter);
        assert_eq!(answer, ALLOW);
        assert!(steps < 16, "{thread:?}: {steps}");
        let deepest = (0..500).map(|number| {
            let seen = Seen { number, convention: CONVENTION, arguments: [u64::MAX; 6] };
            run(&program, seen).1
        });
        assert!(deepest.max().is_some_and(|steps| steps < 40));
    }
}

fn verdict() -> impl Strategy<Value = Verdict> {
    let condition = (0..6_u8, any::<u32>(), any::<u32>()).prop_map(|(argument, mask, value)| Condition {
        argument,
        mask,
        value: value & mask,
    });
    prop_oneof![
        Just(Verdict::Allow),
        Just(Verdict::Unknown),
        prop::collection::vec(condition, 1..4).prop_map(Verdict::AllowIf)
    ]
}

proptest! {
    #[test]
    fn any_verdicts_hold(
        verdicts in prop::collection::btree_map(0..80_u32, verdict(), 1..25),
        arguments in any::<[u64; 6]>(),
    ) {
        let program = assemble(&verdicts);
        for number in 0..100 {
            let seen = Seen { number, convention: CONVENTION, arguments };
            let expected = match verdicts.get(&number) {
                None => KILL,
                Some(Verdict::Allow) => ALLOW,
                Some(Verdict::Unknown) => libc::SECCOMP_RET_ERRNO | libc::ENOSYS.cast_unsigned(),
                Some(Verdict::AllowIf(conditions)) => {
                    let holds = conditions.iter().any(|condition| {
                        // Truncation is the point: the lower half.
                        arguments[usize::from(condition.argument)] as u32 & condition.mask == condition.value
                    });
                    if holds { ALLOW } else { KILL }
                }
            };
            prop_assert_eq!(run(&program, seen).0, expected);
        }
    }
}
