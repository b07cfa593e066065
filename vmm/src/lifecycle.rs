//! The life of a guest as one pure function: which state an event leads to, and what has to be done on the way.
//!
//! ```text
//! Created ──Start──► Running ◄──Resume── Paused        any ──Kill──► Stopped
//!    │                │    └───Pause────►  │           Running, Paused, Stopping ──End──► Stopped
//!    │ PowerButton    │ PowerButton
//!    ▼                ▼
//! Stopped          Stopping
//! ```

use crate::rpc::VmState;

/// What can happen to a guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Event {
    /// Asked to run for the first time.
    Start,
    /// Asked to stand still.
    Pause,
    /// Asked to go on.
    Resume,
    /// Asked to end by itself.
    PowerButton,
    /// Asked to end at once.
    Kill,
    /// The guest ended: power off, reset, or crash.
    End,
}

/// What has to be done for a transition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nothing.
    None,
    /// Let the vCPUs run.
    Run,
    /// Hold the vCPUs, and return when all stand still.
    Hold,
    /// Press the guest's power button.
    PressPowerButton,
    /// End the process.
    Finish,
}

/// Why an event is not possible in a state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// It runs already, or is over.
    #[error("the guest was started before")]
    StartedBefore,
    /// It never ran.
    #[error("the guest has not been started")]
    NotStarted,
    /// It stands still and cannot answer its power button.
    #[error("the guest is paused; resume it first, or force the stop")]
    Paused,
    /// It is shutting down.
    #[error("the guest is stopping")]
    Stopping,
    /// It is over.
    #[error("the guest is stopped")]
    Stopped,
}

/// The state after `event`, and what to do.
///
/// # Errors
/// The event is not possible in `state`; nothing changes.
pub fn next(state: VmState, event: Event) -> Result<(VmState, Effect), Refused> {
    use Effect as Do;
    use VmState::{Created, Paused, Running, Stopped, Stopping};
    Ok(match (state, event) {
        (Stopped, Event::Kill | Event::End) => (Stopped, Do::None),
        (Stopped, _) => return Err(Refused::Stopped),
        (_, Event::Kill | Event::End) => (Stopped, Do::Finish),

        (Created, Event::Start) => (Running, Do::Run),
        (_, Event::Start) => return Err(Refused::StartedBefore),
        // There is no guest yet that could be asked.
        (Created, Event::PowerButton) => (Stopped, Do::Finish),
        (Created, Event::Pause | Event::Resume) => return Err(Refused::NotStarted),

        (Running, Event::Pause) => (Paused, Do::Hold),
        (Paused, Event::Resume) => (Running, Do::Run),
        (Running, Event::Resume) => (Running, Do::None),
        (Paused, Event::Pause) => (Paused, Do::None),

        // Pressed again, in case the guest overheard the first.
        (Running | Stopping, Event::PowerButton) => (Stopping, Do::PressPowerButton),
        (Paused, Event::PowerButton) => return Err(Refused::Paused),
        (Stopping, Event::Pause | Event::Resume) => return Err(Refused::Stopping),
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const EVENTS: [Event; 6] =
        [Event::Start, Event::Pause, Event::Resume, Event::PowerButton, Event::Kill, Event::End];

    fn events() -> impl Strategy<Value = Vec<Event>> {
        proptest::collection::vec(proptest::sample::select(&EVENTS[..]), 0..30)
    }

    proptest! {
        /// Whatever is asked in whatever order: the vCPUs run exactly when the state says so.
        #[test]
        fn vcpus_run_exactly_in_running_and_stopping(events in events()) {
            let (mut state, mut running, mut finished) = (VmState::Created, false, 0);
            for event in events {
                let Ok((next_state, effect)) = next(state, event) else { continue };
                match effect {
                    Effect::None => {}
                    Effect::Run => running = true,
                    Effect::Hold => running = false,
                    Effect::PressPowerButton => prop_assert!(running),
                    Effect::Finish => { running = false; finished += 1; }
                }
                state = next_state;
                prop_assert_eq!(running, matches!(state, VmState::Running | VmState::Stopping));
                prop_assert_eq!(finished == 1, state == VmState::Stopped);
            }
        }

        #[test]
        fn nothing_leaves_stopped_and_kill_always_reaches_it(events in events()) {
            let mut state = VmState::Created;
            for event in events {
                let before = state;
                if let Ok((after, _)) = next(state, event) {
                    state = after;
                }
                prop_assert!(before != VmState::Stopped || state == VmState::Stopped);
                prop_assert_eq!(next(state, Event::Kill).map(|(state, _)| state), Ok(VmState::Stopped));
            }
        }
    }

    #[test]
    fn pause_and_resume_are_idempotent() {
        assert_eq!(next(VmState::Paused, Event::Pause), Ok((VmState::Paused, Effect::None)));
        assert_eq!(next(VmState::Running, Event::Resume), Ok((VmState::Running, Effect::None)));
    }

    #[test]
    fn start_is_refused_the_second_time() {
        assert_eq!(next(VmState::Running, Event::Start), Err(Refused::StartedBefore));
        assert_eq!(next(VmState::Stopped, Event::Start), Err(Refused::Stopped));
    }
}
