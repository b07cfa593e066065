//! Every target over a fixed number of inputs from a fixed seed.

use vmm_fuzz::Target;

/// A seed of the project's own; another one is worth trying whenever a target changes.
const SEED: u64 = 20;

fn survive(target: Target, inputs: u64) {
    for index in 0..inputs {
        let input = target.generate(SEED, index);
        let outcome = std::panic::catch_unwind(|| target.run(&input));
        assert!(outcome.is_ok(), "{} fails on input {index} of seed {SEED}", target.name());
    }
}

#[test]
fn hostile_drivers_are_survived() {
    survive(Target::Queue, 3000);
}

#[test]
fn hostile_pci_guests_are_survived() {
    survive(Target::Pci, 3000);
}

#[test]
fn hostile_socket_devices_drivers_are_survived() {
    survive(Target::Vsock, 1500);
}

#[test]
fn hostile_guests_at_the_plug_controller_are_survived() {
    survive(Target::Plug, 400);
}

#[test]
fn hostile_frames_are_survived() {
    survive(Target::Endpoint, 5000);
}

#[test]
fn broken_kernel_images_are_survived() {
    survive(Target::Boot, 1500);
}

#[test]
fn broken_disks_are_survived() {
    survive(Target::Disk, 1500);
}

#[test]
fn arbitrary_boot_loader_configurations_are_survived() {
    survive(Target::Script, 1500);
}

#[test]
fn hostile_container_images_are_survived() {
    survive(Target::Container, 1500);
}

#[test]
fn changed_snapshots_are_survived() {
    survive(Target::Snapshot, 1500);
}
