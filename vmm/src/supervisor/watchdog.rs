//! What is done about a guest whose watchdog ran out.

use super::Supervisor;
use crate::config::WatchdogAction;
use crate::lifecycle::Event;
use crate::rpc::ExitReason;

impl Supervisor {
    /// Looks whether it has run out.
    pub(super) fn look_at_watchdog(&mut self) {
        let expiry = self.machine.watchdog().and_then(|mut watchdog| watchdog.take_expiry());
        match expiry {
            None | Some(WatchdogAction::Report) => {}
            Some(WatchdogAction::Reset) => {
                self.ending.say(ExitReason::Reset, "the guest's watchdog ran out, which resets the guest");
            }
            Some(WatchdogAction::PowerOff) => {
                let why = "the guest's watchdog ran out, which powers the guest off";
                self.ending.say(ExitReason::PoweredOff, why);
            }
            Some(WatchdogAction::Pause) => {
                if let Err(refused) = self.machine.apply(Event::Pause) {
                    tracing::debug!(%refused, "the guest is not paused by its watchdog");
                }
            }
        }
    }
}
