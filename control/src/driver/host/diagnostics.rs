//! How an instance fares, as its process and its taps show it.

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vmm::rpc::{Client, DeviceName};

use super::directory::{Directory, Record};
use super::figures::first_number;
use super::{HostDriver, adopt_process, sentence};
use crate::agent::figures::PairStatus;
use crate::agent::protocol::{Diagnostics, InstanceWanted};
use crate::driver::DriverError;

/// How long a VMM may take to tell its counts: one that is busy with a snapshot is left out.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long all of them may take together: less than [`QUERY_TIMEOUT`](crate::agent::link::QUERY_TIMEOUT), after which the counts of
/// the whole host would be lost.
const ALL_ANSWERS_TIMEOUT: Duration = Duration::from_secs(4);
/// How many are asked at a time: in all the time there is, that is enough for 64 which do not answer.
const ASKED_AT_ONCE_MAX: usize = 8;
/// `USER_HZ`, in which Linux tells processor times everywhere (proc(5)).
const TICK_NS: u64 = 10_000_000;

impl HostDriver {
    /// What has passed the queues of the devices that have several pairs, by their ports' ids, as their VMMs tell; one that does not
    /// answer in time is left out, and others do not wait for it. As with [`Self::diagnose`], nobody is waited for who works on an
    /// instance.
    pub(super) fn queue_counts(&self) -> BTreeMap<String, Vec<PairStatus>> {
        let ids = Directory::ids(&self.run).unwrap_or_else(|error| {
            tracing::warn!(%error, "no counts of queues: the run directory cannot be read");
            Vec::new()
        });
        let counting: Vec<_> = ids.iter().filter_map(|id| self.counting(id)).collect();
        let deadline = Instant::now() + ALL_ANSWERS_TIMEOUT;
        ask_all(&counting, deadline, Counting::counts).into_iter().flatten().collect()
    }

    /// An instance whose VMM has something to tell.
    fn counting(&self, instance: &str) -> Option<Counting> {
        let directory = Directory::of(&self.run, instance).ok()?;
        // Before its guest runs, a VMM has nothing to tell and is at work.
        let counts = |record: &Record| record.started && record.wanted.queue_pairs > 1;
        let record = directory.record().filter(counts)?;
        directory.process()?;
        Some(Counting { wanted: record.wanted, socket: directory.control_socket() })
    }

    /// Reads what is written down of the instance, so that nobody is waited for who works on it.
    pub(super) fn diagnose(&self, instance: &str) -> Result<Diagnostics, DriverError> {
        let unknown = || DriverError::NoInstance(instance.to_owned());
        let directory = Directory::of(&self.run, instance).map_err(|_| unknown())?;
        let record = directory.record().ok_or_else(unknown)?;
        let process = directory.process().and_then(|process| adopt_process(instance, process));
        let vcpus = usize::from(record.wanted.vcpus);
        let ports = match self.network.tap_counts(&record.wanted.nics) {
            Ok(ports) => ports,
            Err(error) => {
                tracing::warn!(instance.id = instance, error = sentence(&error), "no counts of ports");
                BTreeMap::new()
            }
        };
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_micros();
        let ran_us =
            record.first_run_us.map(|first| u64::try_from(now).unwrap_or(u64::MAX).saturating_sub(first));
        Ok(match process {
            None => Diagnostics { vcpu_times_ns: vec![None; vcpus], ports, ..Diagnostics::default() },
            Some(process) => Diagnostics {
                uptime_s: ran_us.map(|us| us / 1_000_000),
                vcpu_times_ns: vcpu_times(process.id.pid, vcpus),
                memory_used_mib: resident_mib(process.id.pid),
                ports,
            },
        })
    }
}

/// An instance whose VMM counts what passes several pairs of queues.
struct Counting {
    wanted: InstanceWanted,
    socket: PathBuf,
}

impl Counting {
    /// Asks the VMM, which has so long.
    fn counts(&self, patience: Duration) -> Vec<(String, Vec<PairStatus>)> {
        let status = Client::connect(&self.socket).and_then(|mut client| {
            client.set_timeout(patience)?;
            client.status()
        });
        let devices = match status {
            Ok(status) => status.devices.unwrap_or_default(),
            Err(error) => {
                tracing::debug!(
                    instance.id = self.wanted.id,
                    error = sentence(&error),
                    "no counts of queues"
                );
                return Vec::new();
            }
        };
        let counts = devices.into_iter().filter_map(|device| {
            let DeviceName::Nic(mac) = device.device else { return None };
            let port = self.wanted.nics.iter().find(|nic| nic.mac == mac)?;
            Some((port.port_id.clone(), device.nic?.pairs))
        });
        counts.collect()
    }
}

/// Asks all of them, up to [`ASKED_AT_ONCE_MAX`] at a time; each has [`ANSWER_TIMEOUT`] or what is left until `deadline`, after which
/// nobody is asked any more. The answers are in no order.
fn ask_all<T: Sync, A: Send>(all: &[T], deadline: Instant, ask: impl Fn(&T, Duration) -> A + Sync) -> Vec<A> {
    let next = AtomicUsize::new(0);
    let work = || {
        let mut answers = Vec::new();
        while let Some(one) = all.get(next.fetch_add(1, Ordering::Relaxed)) {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                tracing::debug!("no counts of queues of some: others took all the time there is");
                break;
            }
            answers.push(ask(one, ANSWER_TIMEOUT.min(left)));
        }
        answers
    };
    std::thread::scope(|scope| {
        // This thread is one of them.
        let others = 1..all.len().min(ASKED_AT_ONCE_MAX);
        // Where the host has no thread left, those that there are do it.
        let spawn = |_| std::thread::Builder::new().name("counts".to_owned()).spawn_scoped(scope, work).ok();
        let others: Vec<_> = others.filter_map(spawn).collect();
        let mut answers = work();
        for other in others {
            answers.extend(other.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        answers
    })
}

/// The processor time of each `vcpuN` thread. The process is another user's, of whom these files tell all the same.
fn vcpu_times(pid: i32, vcpus: usize) -> Vec<Option<u64>> {
    let mut times = vec![None; vcpus];
    let Ok(threads) = fs::read_dir(format!("/proc/{pid}/task")) else { return times };
    for thread in threads.filter_map(Result::ok) {
        let stat = fs::read_to_string(thread.path().join("stat")).unwrap_or_default();
        if let Some((number, time)) = vcpu_time(&stat)
            && let Some(slot) = times.get_mut(number)
        {
            *slot = Some(time);
        }
    }
    times
}

/// A thread's number and its time in nanoseconds, if it is a virtual CPU's: of `/proc/PID/task/TID/stat` the name in
/// parentheses, and fields 14 and 15 (user and system time; a guest's time is in the first).
fn vcpu_time(stat: &str) -> Option<(usize, u64)> {
    let (head, rest) = stat.rsplit_once(')')?;
    let number = head.split_once('(')?.1.strip_prefix("vcpu")?.parse().ok()?;
    let mut fields = rest.split_whitespace().skip(11).map(str::parse::<u64>);
    let ticks = fields.next()?.ok()?.saturating_add(fields.next()?.ok()?);
    Some((number, ticks.saturating_mul(TICK_NS)))
}

/// What of a process is in the host's memory.
fn resident_mib(pid: i32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    Some(first_number(&status, "VmRSS:") >> 10)
}

#[cfg(test)]
mod tests {
    use std::sync::{Condvar, Mutex};

    use super::*;

    /// Long enough for whatever a busy machine does; nothing waits for it where all are asked at a time.
    const FOR_EVER: Duration = Duration::from_secs(60);

    /// The silent ones are silent until the last one has been asked, which nobody would do who waits for one of them.
    #[test]
    fn those_that_answer_are_asked_while_others_are_silent() {
        let has_answered = (Mutex::new(false), Condvar::new());
        let all: Vec<usize> = (1..ASKED_AT_ONCE_MAX).chain([0]).collect();
        let answers = ask_all(&all, Instant::now() + FOR_EVER, |&one, patience| {
            assert_eq!(patience, ANSWER_TIMEOUT);
            let mut answered = has_answered.0.lock().unwrap();
            if one == 0 {
                *answered = true;
                has_answered.1.notify_all();
                return Some(one);
            }
            let waited =
                has_answered.1.wait_timeout_while(answered, FOR_EVER, |answered| !*answered).unwrap().1;
            assert!(!waited.timed_out(), "the last one has to wait for silent ones");
            None
        });
        assert_eq!(answers.iter().flatten().collect::<Vec<_>>(), [&0]);
        assert_eq!(answers.len(), all.len());
    }

    #[test]
    fn each_is_asked_once_and_none_after_the_deadline() {
        let all: Vec<usize> = (0..5 * ASKED_AT_ONCE_MAX).collect();
        let mut answers = ask_all(&all, Instant::now() + FOR_EVER, |&one, _| one);
        answers.sort_unstable();
        assert_eq!(answers, all);
        assert_eq!(ask_all(&all, Instant::now(), |&one, _| one), Vec::<usize>::new());
        assert_eq!(ask_all(&[], Instant::now() + FOR_EVER, |&one: &usize, _| one), Vec::<usize>::new());
    }

    #[test]
    fn time_of_a_virtual_cpu_is_told_from_other_threads_by_its_name() {
        let of = |name: &str| format!("77 ({name}) S 1 77 77 0 -1 4194560 9 0 0 0 150 50 0 0 20 0 3 0 99");
        assert_eq!(vcpu_time(&of("vcpu1")), Some((1, 2_000_000_000)));
        assert_eq!(vcpu_time(&of("wisp")), None);
        assert_eq!(vcpu_time(&of("vcpu")), None);
        assert_eq!(vcpu_time("77 (vcpu0) S"), None);
    }

    #[test]
    fn memory_of_this_process_is_told() {
        assert!(resident_mib(std::process::id() as i32).is_some_and(|mib| mib > 0));
    }
}
