use proptest::prelude::*;

use super::*;
use crate::service::server::status::status;
use crate::service::server::test::server;

fn now() -> Timestamp {
    Timestamp::from_second(1_800_000_000).unwrap()
}

fn report(server: &Server, state: InstanceState) -> InstanceObserved {
    InstanceObserved {
        id: server.id.clone(),
        generation: server.generation,
        boot: server.boot,
        state,
        first_run_us: Some(1_790_000_000_123_456),
        fault: None,
        devices: Default::default(),
    }
}

/// A server that runs on a host.
fn active() -> Server {
    let mut server = server();
    server.host = Some("h".to_owned());
    let running = report(&server, InstanceState::Running);
    assert!(observe(&mut server, &running, now()));
    server
}

#[test]
fn new_server_is_spawned_and_becomes_active_with_its_launch_to_the_microsecond() {
    let mut server = server();
    server.host = Some("h".to_owned());
    let preparing = InstanceObserved { first_run_us: None, ..report(&server, InstanceState::Preparing) };
    observe(&mut server, &preparing, now());
    assert_eq!((status(&server).status, server.task.as_deref()), ("BUILD", Some("spawning")));
    let running = report(&server, InstanceState::Running);
    observe(&mut server, &running, now());
    let seen = status(&server);
    assert_eq!(
        (seen.status, seen.vm_state, seen.task_state, seen.power_state),
        ("ACTIVE", "active", None, 1)
    );
    assert_eq!(server.launched_at.unwrap().as_microsecond(), 1_790_000_000_123_456);
}

#[test]
fn same_report_twice_changes_nothing_and_an_older_one_neither() {
    let mut server = active();
    let running = report(&server, InstanceState::Running);
    assert!(!observe(&mut server, &running, now()));
    let older = InstanceObserved { generation: 0, ..report(&server, InstanceState::Failed) };
    assert!(!observe(&mut server, &older, now()));
    assert_eq!(status(&server).status, "ACTIVE");
}

#[test]
fn action_ends_when_its_host_is_done_and_says_whether_it_failed() {
    let asked = |server: &mut Server, action: Action| {
        ask(server, action, now()).unwrap();
        let name = action.name().to_owned();
        let (request_id, user_id, project_id) = ("req-2".to_owned(), "u".to_owned(), "p".to_owned());
        let started_at = now();
        let (message, finished_at) = (None, None);
        record(
            server,
            ActionRecord { action: name, request_id, user_id, project_id, started_at, message, finished_at },
        );
    };
    let last =
        |server: &Server| server.actions.last().map(|one| (one.finished_at.is_some(), one.message.clone()));
    let mut server = active();
    asked(&mut server, Action::Stop);
    let running = report(&server, InstanceState::Running);
    observe(&mut server, &running, now());
    assert_eq!(last(&server), Some((false, None)));
    let stopped = report(&server, InstanceState::Stopped);
    observe(&mut server, &stopped, now());
    assert_eq!(last(&server), Some((true, None)));
    asked(&mut server, Action::Start);
    let failed = report(&server, InstanceState::Failed);
    observe(&mut server, &failed, now());
    assert_eq!(last(&server), Some((true, Some("Error".to_owned()))));
    assert_eq!(server.actions[0].message, None);
}

#[test]
fn build_that_no_host_begins_ends_its_action_with_an_error() {
    let mut server = server();
    let (request_id, user_id, project_id) = ("req-1".to_owned(), "u".to_owned(), "p".to_owned());
    let (action, started_at, message, finished_at) = ("create".to_owned(), now(), None, None);
    record(
        &mut server,
        ActionRecord { action, request_id, user_id, project_id, started_at, message, finished_at },
    );
    let message = "No valid host was found.".to_owned();
    fail_building(&mut server, Fault { code: 500, message, details: String::new(), created_at: now() });
    let ended = &server.actions[0];
    assert_eq!((ended.finished_at, ended.message.as_deref()), (Some(now()), Some("Error")));
}

#[test]
fn stop_and_start_go_round_and_each_start_is_a_new_boot() {
    let mut server = active();
    ask(&mut server, Action::Stop, now()).unwrap();
    assert_eq!((server.shutdown_timeout_ms, server.task.as_deref()), (60_000, Some("powering-off")));
    assert_eq!(status(&server).status, "ACTIVE");
    let stopped = report(&server, InstanceState::Stopped);
    observe(&mut server, &stopped, now());
    assert_eq!((status(&server).status, status(&server).power_state), ("SHUTOFF", 4));
    ask(&mut server, Action::Start, now()).unwrap();
    assert_eq!(server.boot, 2);
    let running = report(&server, InstanceState::Running);
    observe(&mut server, &running, now());
    assert_eq!(status(&server).status, "ACTIVE");
}

#[test]
fn report_from_before_a_stop_does_not_end_it() {
    let mut server = active();
    let running = report(&server, InstanceState::Running);
    ask(&mut server, Action::Stop, now()).unwrap();
    observe(&mut server, &running, now());
    assert_eq!(server.task.as_deref(), Some("powering-off"));
}

#[test]
fn reboots_show_their_own_status_and_only_the_soft_one_asks_the_guest() {
    let mut server = active();
    ask(&mut server, Action::RebootSoft, now()).unwrap();
    assert_eq!((status(&server).status, server.shutdown_timeout_ms), ("REBOOT", 60_000));
    ask(&mut server, Action::RebootHard, now()).unwrap();
    assert_eq!((status(&server).status, server.shutdown_timeout_ms, server.boot), ("HARD_REBOOT", 0, 3));
    let running = report(&server, InstanceState::Running);
    observe(&mut server, &running, now());
    assert_eq!(status(&server).status, "ACTIVE");
}

#[test]
fn running_guest_of_an_older_boot_does_not_end_a_reboot() {
    let mut server = active();
    ask(&mut server, Action::RebootHard, now()).unwrap();
    let old_boot = InstanceObserved { boot: 1, ..report(&server, InstanceState::Running) };
    observe(&mut server, &old_boot, now());
    assert_eq!(status(&server).status, "HARD_REBOOT");
}

#[test]
fn guest_that_turns_itself_off_is_wanted_off() {
    let mut server = active();
    let stopped = report(&server, InstanceState::Stopped);
    observe(&mut server, &stopped, now());
    assert_eq!((status(&server).status, server.power, server.generation), ("SHUTOFF", Power::Stopped, 2));
}

#[test]
fn failure_before_the_first_run_discards_what_is_on_the_host() {
    let mut server = server();
    server.host = Some("h".to_owned());
    let failed = InstanceObserved {
        fault: Some("The image is broken.".to_owned()),
        ..report(&server, InstanceState::Failed)
    };
    observe(&mut server, &failed, now());
    assert_eq!((status(&server).status, server.discard, server.generation), ("ERROR", true, 2));
    assert_eq!(server.fault.as_ref().unwrap().message, "The image is broken.");
    let error = ask(&mut server, Action::Stop, now()).unwrap_err();
    assert_eq!(error.to_string(), "Cannot 'stop' an instance which has never been active");
}

#[test]
fn failure_after_the_first_run_keeps_the_disk_and_a_hard_reboot_mends_it() {
    let mut server = active();
    let failed = report(&server, InstanceState::Failed);
    observe(&mut server, &failed, now());
    assert_eq!((status(&server).status, server.discard, server.power), ("ERROR", false, Power::Stopped));
    let stopped = report(&server, InstanceState::Stopped);
    observe(&mut server, &stopped, now());
    assert_eq!(status(&server).status, "ERROR", "being off does not mend it");
    ask(&mut server, Action::RebootHard, now()).unwrap();
    let running = report(&server, InstanceState::Running);
    observe(&mut server, &running, now());
    assert_eq!(status(&server).status, "ACTIVE");
}

#[test]
fn wrong_state_is_a_conflict_in_novas_words() {
    let mut server = active();
    let refused = |server: &mut Server, action| ask(server, action, now()).unwrap_err().to_string();
    assert_eq!(
        refused(&mut server, Action::Start),
        format!("Cannot 'start' instance {} while it is in vm_state active", server.id)
    );
    ask(&mut server, Action::Pause, now()).unwrap();
    assert_eq!(
        refused(&mut server, Action::Stop),
        format!("Cannot 'stop' instance {} while it is in task_state pausing", server.id)
    );
}

#[test]
fn image_says_how_long_its_guest_needs_to_shut_down() {
    let mut server = active();
    server.image_properties.insert("os_shutdown_timeout".to_owned(), "5".to_owned());
    ask(&mut server, Action::Stop, now()).unwrap();
    assert_eq!(server.shutdown_timeout_ms, 5_000);
}

#[test]
fn deletion_is_asked_for_once_and_nothing_reported_later_undoes_it() {
    let mut server = active();
    ask_deletion(&mut server, now());
    let generation = server.generation;
    ask_deletion(&mut server, now());
    assert_eq!((server.generation, server.power), (generation, Power::Deleted));
    for state in
        [InstanceState::Running, InstanceState::Failed, InstanceState::Stopped, InstanceState::Deleted]
    {
        let seen = report(&server, state);
        observe(&mut server, &seen, now());
        assert_eq!((server.power, server.task.as_deref()), (Power::Deleted, Some("deleting")));
    }
}

#[test]
fn only_the_newest_actions_are_kept() {
    let mut server = server();
    for number in 0..ACTIONS_MAX + 3 {
        let request_id = format!("req-{number}");
        let (user_id, project_id) = ("u".to_owned(), "p".to_owned());
        record(
            &mut server,
            ActionRecord {
                action: "stop".to_owned(),
                request_id,
                user_id,
                project_id,
                started_at: now(),
                message: None,
                finished_at: None,
            },
        );
    }
    assert_eq!((server.actions.len(), server.actions[0].request_id.as_str()), (ACTIONS_MAX, "req-3"));
}

#[derive(Debug, Clone)]
enum Step {
    Ask(Action),
    Delete,
    Report { state: InstanceState, behind: u64, boot_behind: u64 },
}

fn any_step() -> impl Strategy<Value = Step> {
    let actions = proptest::sample::select(vec![
        Action::Start,
        Action::Stop,
        Action::RebootSoft,
        Action::RebootHard,
        Action::Pause,
        Action::Unpause,
    ]);
    let states = proptest::sample::select(vec![
        InstanceState::Preparing,
        InstanceState::Running,
        InstanceState::Paused,
        InstanceState::Stopping,
        InstanceState::Stopped,
        InstanceState::Failed,
        InstanceState::Deleted,
    ]);
    prop_oneof![
        8 => actions.prop_map(Step::Ask),
        1 => Just(Step::Delete),
        12 => (states, 0..3u64, 0..2u64).prop_map(|(state, behind, boot_behind)| Step::Report { state, behind, boot_behind }),
    ]
}

proptest! {
    #[test]
    fn whatever_happens_generations_grow_deletion_is_final_and_a_report_is_idempotent(
        steps in proptest::collection::vec(any_step(), 0..60),
    ) {
        let mut server = server();
        server.host = Some("h".to_owned());
        for step in steps {
            let before = server.clone();
            match step {
                Step::Ask(action) => {
                    if ask(&mut server, action, now()).is_err() {
                        prop_assert_eq!(&server, &before);
                    }
                }
                Step::Delete => ask_deletion(&mut server, now()),
                Step::Report { state, behind, boot_behind } => {
                    let mut seen = report(&server, state);
                    seen.generation = seen.generation.saturating_sub(behind);
                    seen.boot = seen.boot.saturating_sub(boot_behind);
                    observe(&mut server, &seen, now());
                    let once = server.clone();
                    prop_assert!(!observe(&mut server, &seen, now()), "the second time changed something");
                    prop_assert_eq!(&server, &once);
                }
            }
            prop_assert!(server.generation >= before.generation);
            prop_assert!(server.boot >= before.boot);
            prop_assert!(server.observed_generation <= server.generation);
            prop_assert!(before.power != Power::Deleted || server.power == Power::Deleted);
            prop_assert!(!(status(&server).status == "ERROR" && server.fault.is_none()));
            prop_assert!(crate::service::server::status::STATUSES.contains(&status(&server).status));
        }
    }
}
