//! How an instance fares, as its process and its taps show it.

use std::collections::BTreeMap;
use std::fs;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use vmm::rpc::{Client, DeviceName};

use super::directory::{Directory, Record};
use super::figures::first_number;
use super::{HostDriver, adopt_process, sentence};
use crate::agent::figures::PairStatus;
use crate::agent::protocol::Diagnostics;
use crate::driver::DriverError;

/// How long a VMM may take to tell its counts: one that is busy with a snapshot is left out.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// How long all of them may take together: less than [`QUERY_TIMEOUT`](crate::agent::link::QUERY_TIMEOUT), after which the counts of
/// the whole host would be lost.
const ALL_ANSWERS_TIMEOUT: Duration = Duration::from_secs(4);
/// `USER_HZ`, in which Linux tells processor times everywhere (proc(5)).
const TICK_NS: u64 = 10_000_000;

impl HostDriver {
    /// What has passed the queues of the devices that have several pairs, by their ports' ids, as their VMMs tell; one that does not
    /// answer in time is left out. As with [`Self::diagnose`], nobody is waited for who works on an instance.
    pub(super) fn queue_counts(&self) -> BTreeMap<String, Vec<PairStatus>> {
        let ids = Directory::ids(&self.run).unwrap_or_else(|error| {
            tracing::warn!(%error, "no counts of queues: the run directory cannot be read");
            Vec::new()
        });
        let deadline = Instant::now() + ALL_ANSWERS_TIMEOUT;
        ids.iter().flat_map(|id| self.queues_of(id, deadline)).collect()
    }

    fn queues_of(&self, instance: &str, deadline: Instant) -> Vec<(String, Vec<PairStatus>)> {
        let Ok(directory) = Directory::of(&self.run, instance) else { return Vec::new() };
        // Before its guest runs, a VMM has nothing to tell and is at work.
        let counts = |record: &Record| record.started && record.wanted.queue_pairs > 1;
        let Some(Record { wanted, .. }) = directory.record().filter(counts) else { return Vec::new() };
        if directory.process().is_none() {
            return Vec::new();
        }
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            tracing::debug!(instance.id = instance, "no counts of queues: others took all the time there is");
            return Vec::new();
        }
        let status = Client::connect(&directory.control_socket()).and_then(|mut client| {
            client.set_timeout(ANSWER_TIMEOUT.min(left))?;
            client.status()
        });
        let devices = match status {
            Ok(status) => status.devices.unwrap_or_default(),
            Err(error) => {
                tracing::debug!(instance.id = instance, error = sentence(&error), "no counts of queues");
                return Vec::new();
            }
        };
        let counts = devices.into_iter().filter_map(|device| {
            let DeviceName::Nic(mac) = device.device else { return None };
            let port = wanted.nics.iter().find(|nic| nic.mac == mac)?;
            Some((port.port_id.clone(), device.nic?.pairs))
        });
        counts.collect()
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
    use super::*;

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
