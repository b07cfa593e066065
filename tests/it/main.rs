//! System tests on real parts: real KVM, taps, bridges and filters in network namespaces of their own, real store
//! files, the real `openstack` command. And the house rules, as tests.
//!
//! What a test needs and this machine lacks makes it `ignored`, with the reason; with `WISP_REQUIRE_ALL=1` that is a
//! failure.

mod booted;
mod commands;
mod disk;
mod encryption;
mod endpoint;
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
mod pairs;
mod peripherals;
mod processes;
mod providers;
mod qos;
mod routers;
mod sandbox;
mod server_images;
mod serving;
mod snapshots;
mod survive;
mod tenants;
mod tidy;
mod upgrades;
mod volumes;
mod waiting;

use std::num::NonZero;

use libtest_mimic::Arguments;

use crate::harness::{Need, preparation};

fn main() {
    if let Some(backend) = std::env::var_os(lab::INSIDE) {
        return lab::inside(&backend);
    }
    let mut arguments = Arguments::from_args();
    // Those that take longest are begun first, and those last that need what takes longest to prepare.
    let trials = [
        lab::longest(),
        tidy::trials(),
        commands::trials(),
        disk::trials(),
        processes::trials(),
        pairs::trials(),
        peripherals::trials(),
        snapshots::trials(),
        upgrades::trials(),
        waiting::trials(),
        faults::trials(),
        firmware::trials(),
        tenants::trials(),
        providers::trials(),
        routers::trials(),
        sandbox::trials(),
        survive::trials(),
        volumes::trials(),
        server_images::trials(),
        limits::trials(),
        qos::trials(),
        names::trials(),
        interfaces::trials(),
        encryption::trials(),
        endpoint::trials(),
        openstack::trials(),
        serving::trials(),
        images::trials(),
        ipv6::trials(),
        lab::trials(),
        guests::trials(),
    ];
    let trials: Vec<_> = trials.into_iter().flatten().collect();
    let selected = |name: &str| {
        !arguments.list && arguments.filter.as_deref().is_none_or(|filter| name.contains(filter))
    };
    let needs = |need| harness::any_needs(need, selected);
    if needs(Need::OpenStack) {
        preparation::OPENSTACK.begin(harness::prepare_openstack);
    }
    if needs(Need::Moto) {
        preparation::S3.begin(harness::prepare_s3);
    }
    if needs(Need::Lab) {
        preparation::LAB.begin(harness::prepare_lab);
    }
    if needs(Need::Debian) {
        preparation::DEBIAN.begin(lab::prepare);
    }
    if trials.iter().any(|trial| trial.name().starts_with("guests::") && selected(trial.name())) {
        preparation::SLIM.begin(guests::prepare);
    } else if needs(Need::SlimKernel) {
        preparation::SLIM.begin(harness::prepare_slim_kernel);
    }
    // Most tests wait for most of their time.
    arguments
        .test_threads
        .get_or_insert_with(|| 2 + std::thread::available_parallelism().map_or(1, NonZero::get));
    let conclusion = libtest_mimic::run(&arguments, trials);
    preparation::wait_for_all();
    conclusion.exit();
}
