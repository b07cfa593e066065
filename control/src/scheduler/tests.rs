use proptest::prelude::*;

use super::*;

fn host(name: &str, capacity: Resources) -> HostState {
    HostState {
        name: name.to_owned(),
        zone: "nova".to_owned(),
        alive: true,
        enabled: true,
        architecture: "x86_64".to_owned(),
        cpus: capacity.vcpus,
        capacity,
        claimed: Resources::default(),
    }
}

fn resources(vcpus: u64, memory_mib: u64, disk_gib: u64) -> Resources {
    Resources { vcpus, memory_mib, disk_gib }
}

fn request(resources: Resources) -> Request {
    Request { resources, ..Request::default() }
}

#[test]
fn default_ratios_keep_half_a_gibibyte_for_the_host_and_share_cpus_sixteen_ways() {
    let capacity = Allocation::default().capacity(resources(8, 4096, 100));
    assert_eq!(capacity, resources(128, 3584, 100));
    assert_eq!(Allocation::default().capacity(resources(1, 256, 1)).memory_mib, 0);
}

#[test]
fn the_host_with_more_room_wins() {
    let hosts = [host("a", resources(4, 1024, 10)), host("b", resources(4, 2048, 10))];
    assert_eq!(Scheduler::default().place(&hosts, &request(resources(1, 64, 1))), Ok(1));
}

#[test]
fn equal_hosts_are_taken_in_order() {
    let hosts = [host("a", resources(4, 1024, 10)), host("b", resources(4, 1024, 10))];
    assert_eq!(Scheduler::default().place(&hosts, &request(resources(1, 64, 1))), Ok(0));
}

#[test]
fn closed_dead_and_foreign_hosts_are_struck_out_and_counted() {
    let mut dead = host("dead", resources(4, 1024, 10));
    dead.alive = false;
    let mut closed = host("closed", resources(4, 1024, 10));
    closed.enabled = false;
    let mut elsewhere = host("elsewhere", resources(4, 1024, 10));
    elsewhere.zone = "az2".to_owned();
    let full = host("full", resources(4, 32, 10));
    let mut asked = request(resources(1, 64, 1));
    asked.zone = Some("nova".to_owned());
    let error = Scheduler::default().place(&[dead, closed, elsewhere, full], &asked).unwrap_err();
    assert_eq!(
        error.details(),
        "Filter results: ComputeFilter: (start: 4, end: 2), RequestedHostFilter: (start: 2, end: 2), \
         AvailabilityZoneFilter: (start: 2, end: 1), RamFilter: (start: 1, end: 0)"
    );
    assert!(error.to_string().starts_with("No valid host was found."));
}

#[test]
fn without_hosts_the_details_say_so() {
    let error = Scheduler::default().place(&[], &Request::default()).unwrap_err();
    assert_eq!(error.details(), "There are no hosts.");
}

#[test]
fn one_guest_never_gets_more_cpus_than_the_host_has() {
    let mut small = host("a", resources(16, 4096, 10));
    small.cpus = 4;
    assert!(Scheduler::default().place(std::slice::from_ref(&small), &request(resources(5, 64, 0))).is_err());
    assert!(Scheduler::default().place(&[small], &request(resources(4, 64, 0))).is_ok());
}

#[test]
fn images_for_another_architecture_or_hypervisor_find_no_host() {
    let hosts = [host("a", resources(4, 1024, 10))];
    let place = |key: &str, value: &str| {
        let mut asked = request(resources(1, 64, 1));
        asked.image_properties.insert(key.to_owned(), value.to_owned());
        Scheduler::default().place(&hosts, &asked).is_ok()
    };
    assert!(place("hw_architecture", "x86_64"));
    assert!(place("architecture", "amd64"));
    assert!(!place("architecture", "aarch64"));
    assert!(place("img_hv_type", "kvm"));
    assert!(!place("hypervisor_type", "xen"));
    assert!(!place("hw_vm_mode", "exe"));
}

fn any_host() -> impl Strategy<Value = HostState> {
    (0..64u64, 0..65_536u64, 0..2_000u64, 0..64u64, 0..65_536u64, any::<bool>(), any::<bool>()).prop_map(
        |(vcpus, memory, disk, used_vcpus, used_memory, alive, enabled)| {
            let mut state = host("h", resources(vcpus, memory, disk));
            state.claimed = resources(used_vcpus, used_memory, 0);
            state.alive = alive;
            state.enabled = enabled;
            state
        },
    )
}

proptest! {
    #[test]
    fn a_chosen_host_always_holds_the_request(
        hosts in proptest::collection::vec(any_host(), 0..40),
        vcpus in 1..16u64, memory in 1..16_384u64, disk in 0..100u64,
    ) {
        let asked = request(resources(vcpus, memory, disk));
        if let Ok(index) = Scheduler::default().place(&hosts, &asked) {
            let chosen = &hosts[index];
            prop_assert!(chosen.alive && chosen.enabled);
            prop_assert!(chosen.free().holds(asked.resources));
        } else {
            let fits = |h: &HostState| {
                h.alive && h.enabled && h.free().holds(asked.resources) && h.cpus >= asked.resources.vcpus
            };
            prop_assert!(!hosts.iter().any(fits), "a host was free, none was chosen");
        }
    }

    #[test]
    fn filling_the_hosts_never_claims_more_than_there_is(
        mut hosts in proptest::collection::vec(any_host(), 1..10),
        sizes in proptest::collection::vec((1..8u64, 1..8_192u64, 0..50u64), 0..60),
    ) {
        for (vcpus, memory, disk) in sizes {
            let asked = request(resources(vcpus, memory, disk));
            if let Ok(index) = Scheduler::default().place(&hosts, &asked) {
                let before = hosts[index].claimed;
                hosts[index].claimed = before.plus(asked.resources);
                prop_assert!(hosts[index].capacity.holds(hosts[index].claimed));
            }
        }
    }

    #[test]
    fn normalised_weights_stay_between_zero_and_the_multiplier(raw in proptest::collection::vec(-1e6..1e6f64, 1..50)) {
        let mut totals = vec![0.0; raw.len()];
        add_normalised(&mut totals, &raw, 2.0);
        prop_assert!(totals.iter().all(|total| (0.0..=2.0).contains(total)));
    }
}
