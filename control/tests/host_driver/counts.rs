//! What a driver tells of the queues of its instances' network devices.

use std::sync::Mutex;

use control::agent::protocol::{InstanceState, Power};
use control::driver::Driver;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::{Host, eventually};

/// The driver tells of an instance that it works on while it is asked, which is where it says that the guest runs.
pub(super) fn while_worked_on(host: &Host) {
    let (driver, _ends) = host.driver();
    let mut wanted = host.wanted();
    wanted.queue_pairs = 2;
    let count_of_pairs = || {
        let queues = driver.traffic().unwrap().queues;
        queues.into_iter().map(|(port, pairs)| (port, pairs.len())).collect::<Vec<_>>()
    };
    let mut both: Vec<_> = wanted.nics.iter().map(|nic| (nic.port_id.clone(), 2)).collect();
    both.sort();
    let counted = Mutex::new(Vec::new());
    let applied = driver.apply(&wanted, &host.surroundings, &|observed| {
        counted.lock().unwrap().push((observed.state, count_of_pairs()));
    });
    assert_eq!(applied.observed.state, InstanceState::Running, "{:?}", applied.observed);
    assert_eq!(
        counted.into_inner().unwrap(),
        [(InstanceState::Preparing, Vec::new()), (InstanceState::Running, both.clone())],
        "while it is worked on"
    );
    assert_eq!(count_of_pairs(), both);
    let send = |signal| kill(Pid::from_raw(host.pid().unwrap()), signal).unwrap();
    send(Signal::SIGSTOP);
    assert_eq!(count_of_pairs(), [], "one that does not answer is left out");
    send(Signal::SIGCONT);
    eventually("it is counted again", || count_of_pairs() == both);
    wanted.power = Power::Stopped;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Stopped);
    assert_eq!(count_of_pairs(), []);
    wanted.power = Power::Deleted;
    assert_eq!(host.apply(&driver, &wanted).state, InstanceState::Deleted);
}
