//! System tests on real parts: real KVM, taps, bridges and filters in network namespaces of their own, real store
//! files, the real `openstack` command. And the house rules, as tests.
//!
//! What a test needs and this machine lacks makes it `ignored`, with the reason; with `WISP_REQUIRE_ALL=1` that is a
//! failure.

mod commands;
mod disk;
mod faults;
mod firmware;
mod guests;
#[allow(dead_code, reason = "the benchmarks use the rest")]
mod harness;
mod lab;
mod openstack;
mod processes;
mod survive;
mod tenants;
mod tidy;

use libtest_mimic::Arguments;

fn main() {
    let arguments = Arguments::from_args();
    let trials = [
        tidy::trials(),
        commands::trials(),
        disk::trials(),
        processes::trials(),
        faults::trials(),
        firmware::trials(),
        tenants::trials(),
        survive::trials(),
        openstack::trials(),
        lab::trials(),
        guests::trials(),
    ];
    let trials: Vec<_> = trials.into_iter().flatten().collect();
    let selected = |name: &str| arguments.filter.as_deref().is_none_or(|filter| name.contains(filter));
    if !arguments.list
        && trials.iter().any(|trial| trial.name().starts_with("openstack::") && selected(trial.name()))
    {
        // Before any test has moved its thread into a network namespace, from which PyPI cannot be reached.
        harness::prepare_openstack();
    }
    if !arguments.list
        && trials.iter().any(|trial| {
            ["lab::", "guests::"].iter().any(|start| trial.name().starts_with(start))
                && selected(trial.name())
        })
    {
        // For the same reason: Debian's packages are downloaded.
        harness::prepare_lab();
    }
    libtest_mimic::run(&arguments, trials).exit();
}
