//! The tiny guest and its watchdog, whose registers it finds in ACPI's table.

use vmm::config::WatchdogAction;
use vmm::rpc::{VmState, WatchdogStatus};

use super::peripherals::{Typist, console_socket, has_kvm};
use super::*;

fn start(action: WatchdogAction) -> Instance {
    Instance::start_with(4096, |config, directory| {
        config.peripherals.console = Some(console_socket(directory));
        config.peripherals.watchdog = Some(action);
    })
}

fn status(instance: &Instance) -> (VmState, WatchdogStatus) {
    let status = instance.client().status().unwrap();
    (status.state, status.watchdog.unwrap())
}

/// Waits until `is_so`; how the watchdog is then.
fn until(instance: &Instance, is_so: impl Fn(VmState, WatchdogStatus) -> bool) -> WatchdogStatus {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let (state, watchdog) = status(instance);
        if is_so(state, watchdog) {
            return watchdog;
        }
        assert!(Instant::now() < deadline, "{state:?} {watchdog:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn guest_that_leaves_its_watchdog_alone_ends_as_was_said() {
    if !has_kvm() {
        return;
    }
    for (action, reason, said) in [
        (WatchdogAction::Reset, ExitReason::Reset, "the guest's watchdog ran out, which resets the guest"),
        (
            WatchdogAction::PowerOff,
            ExitReason::PoweredOff,
            "the guest's watchdog ran out, which powers the guest off",
        ),
    ] {
        let instance = start(action);
        let mut typist = Typist::connect(&instance);
        assert_eq!(typist.say("watchdog arm 60000"), "command: watchdog arm 60000 ok 60000 ms left");
        assert_eq!(typist.say("watchdog feed"), "command: watchdog feed ok 60000 ms left");
        let armed = status(&instance).1;
        assert_eq!((armed.action, armed.armed, armed.timeout_ms, armed.expiries), (action, true, 60_000, 0));
        assert!(armed.left_ms.is_some_and(|left| left <= 60_000), "{armed:?}");
        typist.say("watchdog arm 200");
        let report = instance.end();
        assert_eq!(report.reason, reason);
        assert!(report.message.starts_with(said), "{}", report.message);
    }
}

#[test]
fn guest_is_paused_by_its_watchdog_and_goes_on_with_all_of_its_time() {
    if !has_kvm() {
        return;
    }
    let instance = start(WatchdogAction::Pause);
    let mut typist = Typist::connect(&instance);
    typist.say("watchdog arm 500");
    let paused = until(&instance, |state, _| state == VmState::Paused);
    assert_eq!(paused.expiries, 1);
    assert!(paused.left_ms.is_some_and(|left| (1..=500).contains(&left)), "{paused:?}");
    std::thread::sleep(Duration::from_millis(600));
    assert_eq!(status(&instance), (VmState::Paused, paused), "it stands still with its guest");
    instance.client().resume().unwrap();
    until(&instance, |state, watchdog| state == VmState::Paused && watchdog.expiries == 2);
    instance.client().stop(true).unwrap();
    instance.end();
}

#[test]
fn watchdog_that_runs_out_is_only_counted_where_nothing_else_is_wanted() {
    if !has_kvm() {
        return;
    }
    let instance = start(WatchdogAction::Report);
    let mut typist = Typist::connect(&instance);
    typist.say("watchdog arm 100");
    until(&instance, |state, watchdog| state == VmState::Running && watchdog.expiries >= 2);
    assert!(typist.say("watchdog stop").starts_with("command: watchdog stop ok "));
    let stopped = status(&instance).1;
    assert_eq!((stopped.armed, stopped.left_ms), (false, None));
    instance.client().stop(false).unwrap();
    assert_eq!(instance.end().reason, ExitReason::PoweredOff);
}

#[test]
fn watchdog_of_a_guest_that_goes_on_has_what_was_left() {
    if !has_kvm() {
        return;
    }
    let instance = start(WatchdogAction::Report);
    let mut typist = Typist::connect(&instance);
    typist.say("watchdog arm 30000");
    std::thread::sleep(Duration::from_millis(150));
    instance.client().pause().unwrap();
    let left = status(&instance).1.left_ms.unwrap();
    assert!((20_000..29_850).contains(&left), "{left}");
    let file = tempfile::tempfile().unwrap();
    instance.client().snapshot(&file, false, false).unwrap();
    instance.client().stop(true).unwrap();
    instance.end();

    let go_on = |action: Option<WatchdogAction>| {
        let boot = Boot::Snapshot {
            files: vec![inherit(file.try_clone().unwrap())],
            track: false,
            working_set: None,
        };
        Instance::boot_with(boot, 4096, |config, directory| {
            config.memory_mib = 0;
            config.peripherals.console = Some(console_socket(directory));
            config.peripherals.watchdog = action;
        })
    };
    let restored = go_on(None);
    let watchdog = status(&restored).1;
    assert_eq!((watchdog.action, watchdog.armed, watchdog.expiries), (WatchdogAction::Report, true, 0));
    assert!(watchdog.left_ms.is_some_and(|now| now <= left && now + 20_000 > left), "{left}: {watchdog:?}");
    restored.client().stop(true).unwrap();
    restored.end();
    // What it does is said anew.
    let restored = go_on(Some(WatchdogAction::Reset));
    Typist::connect(&restored).say("watchdog arm 100");
    assert_eq!(restored.end().reason, ExitReason::Reset);
}

#[test]
fn guest_without_a_watchdog_finds_none() {
    if !has_kvm() {
        return;
    }
    let instance = Instance::start_with(4096, |config, directory| {
        config.peripherals.console = Some(console_socket(directory));
    });
    let said = Typist::connect(&instance).say("watchdog left");
    assert_eq!(said, "command: watchdog left failed: no watchdog");
    assert_eq!(instance.client().status().unwrap().watchdog, None);
    instance.client().stop(true).unwrap();
    instance.end();
}
