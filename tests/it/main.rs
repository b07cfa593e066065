//! System tests on real parts: real KVM, taps, bridges and filters in network namespaces of their own, real store
//! files, the real `openstack` command. And the house rules, as tests.
//!
//! What a test needs and this machine lacks makes it `ignored`, with the reason; with `WISP_REQUIRE_ALL=1` that is a
//! failure.

mod commands;
mod disk;
mod encryption;
mod faults;
mod firmware;
mod guests;
#[allow(dead_code, reason = "the benchmarks use the rest")]
mod harness;
mod images;
mod interfaces;
mod ipv6;
mod lab;
mod limits;
mod names;
mod openstack;
mod processes;
mod providers;
mod qos;
mod routers;
mod server_images;
mod serving;
mod survive;
mod tenants;
mod tidy;
mod volumes;

use libtest_mimic::Arguments;

fn main() {
    if let Some(backend) = std::env::var_os(lab::INSIDE) {
        return lab::inside(&backend);
    }
    let arguments = Arguments::from_args();
    let trials = [
        lab::trials(),
        tidy::trials(),
        commands::trials(),
        disk::trials(),
        processes::trials(),
        faults::trials(),
        firmware::trials(),
        tenants::trials(),
        providers::trials(),
        routers::trials(),
        survive::trials(),
        volumes::trials(),
        server_images::trials(),
        limits::trials(),
        qos::trials(),
        names::trials(),
        interfaces::trials(),
        encryption::trials(),
        openstack::trials(),
        serving::trials(),
        images::trials(),
        ipv6::trials(),
        guests::trials(),
    ];
    let trials: Vec<_> = trials.into_iter().flatten().collect();
    let selected = |name: &str| arguments.filter.as_deref().is_none_or(|filter| name.contains(filter));
    let begins = |begin: &str| {
        !arguments.list
            && trials.iter().any(|trial| trial.name().starts_with(begin) && selected(trial.name()))
    };
    // Before any test has moved its thread into a network namespace, from which neither PyPI nor Debian's packages can be
    // reached; side by side, since much of it waits for the network and the disk.
    std::thread::scope(|scope| {
        if ["openstack::", "commands_of_services::", "serving::", "volumes::"].into_iter().any(begins) {
            scope.spawn(harness::prepare_openstack);
        }
        if ["images::", "volumes::"].into_iter().any(begins) {
            scope.spawn(harness::prepare_s3);
        }
        if begins("lab::") || begins("guests::") {
            scope.spawn(harness::prepare_lab);
        }
        if begins("guests::") {
            scope.spawn(|| {
                harness::prepare_guests(&guests::IMAGES);
                // The test says what it came to.
                let _ = guests::verified();
            });
        }
        if begins("lab::cloud::") || begins("lab::generic::") {
            scope.spawn(lab::prepare);
        }
    });
    libtest_mimic::run(&arguments, trials).exit();
}
