//! What an owner asks of a server's power, its lock and its console.

use jiff::Timestamp;

use super::lifecycle::{Action, ask, record};
use super::{find, find_for_change};
use crate::Control;
use crate::agent::link::QueryError;
use crate::agent::protocol::{Answer, Power, Query};
use crate::caller::Caller;
use crate::driver::CONSOLE_BYTES_MAX;
use crate::error::{Error, Result};
use crate::model::compute::{ActionRecord, Fault, Server, VmState};
use crate::policy::require_admin;
use crate::store::Txn;

/// The longest reason for a lock in characters (Compute API: lock server, microversion 2.73).
const LOCK_REASON_CHARS_MAX: usize = 255;

impl Control {
    /// Writes down that the server shall be started, stopped, rebooted, paused or unpaused.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Conflict` if the server's state does not allow it.
    pub async fn server_act(&self, caller: &Caller, id: &str, action: Action) -> Result<()> {
        self.server_change(caller, id, "os_compute_api:servers:action", |server| {
            ask(server, action, Timestamp::now())?;
            record(server, action_record(caller, action.name()));
            Ok(())
        })
        .await
        .map(drop)
    }

    /// Locks a server, or unlocks it; a server that an administrator locked can be unlocked by administrators only,
    /// since nobody else may change it.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`, `Invalid`.
    pub async fn server_lock(
        &self,
        caller: &Caller,
        id: &str,
        locked: bool,
        reason: Option<&str>,
    ) -> Result<()> {
        if reason.is_some_and(|reason| !(1..=LOCK_REASON_CHARS_MAX).contains(&reason.chars().count())) {
            let message = format!("locked_reason has 1 to {LOCK_REASON_CHARS_MAX} characters.");
            return Err(Error::invalid("InvalidInput", message));
        }
        self.db.caught_up().await?;
        self.db
            .transact(|cache| {
                let stored = find(cache, caller, id)?;
                crate::policy::require_write(
                    caller,
                    &stored.row.project_id,
                    "os_compute_api:os-lock-server:lock",
                    "Instance",
                    id,
                )?;
                let mut server = stored.row.clone();
                server.locked = locked;
                server.locked_reason = if locked { reason.map(str::to_owned) } else { None };
                record(&mut server, action_record(caller, if locked { "lock" } else { "unlock" }));
                Ok(Txn::new().update(&stored, &server))
            })
            .await
    }

    /// Sets a server's state to ACTIVE or ERROR without touching what its host does (`os-resetState`).
    ///
    /// # Errors
    /// `Forbidden` unless the caller is an administrator; `NotFound`; `Conflict` before the server has a host.
    pub async fn server_reset_state(&self, caller: &Caller, id: &str, state: VmState) -> Result<()> {
        let action = "os_compute_api:os-admin-actions:reset_state";
        require_admin(caller, action)?;
        self.server_change(caller, id, action, |server| {
            if state == VmState::Active && server.host.is_none() {
                return Err(Error::conflict("InstanceInvalidState", format!("Instance {id} has no host.")));
            }
            if server.power != Power::Deleted {
                let now = Timestamp::now();
                server.vm_state = state;
                server.task = None;
                if state == VmState::Error && server.fault.is_none() {
                    let message = "An administrator set the state to error.".to_owned();
                    server.fault =
                        Some(Fault { code: 500, message, details: String::new(), created_at: now });
                }
                server.updated_at = now;
                record(server, action_record(caller, "resetState"));
            }
            Ok(())
        })
        .await
        .map(drop)
    }

    /// The end of the console: the last `lines`, or as much as is kept.
    ///
    /// # Errors
    /// `NotFound`; `Conflict` before the server has a host; `Unavailable` if its host does not answer.
    pub async fn server_console(&self, caller: &Caller, id: &str, lines: Option<usize>) -> Result<String> {
        self.db.caught_up().await?;
        let stored = find(self.db.cache(), caller, id)?;
        let host = stored.row.host.as_deref().filter(|_| !stored.row.discard);
        let host =
            host.ok_or_else(|| Error::conflict("InstanceNotReady", format!("Instance {id} is not ready")))?;
        let query = Query::Console { instance: id.to_owned(), bytes_max: CONSOLE_BYTES_MAX };
        match self.agents().query(host, query).await {
            Ok(Answer::Console { text }) => Ok(match lines {
                Some(lines) => last_lines(&text, lines).to_owned(),
                None => text,
            }),
            Ok(_) => Err(Error::Unavailable(format!("Host {host} gave another answer."))),
            Err(QueryError::Refused(why)) => Err(Error::conflict("ConsoleNotAvailable", why)),
            Err(error) => Err(Error::Unavailable(format!("Unable to get console log: {error}."))),
        }
    }

    /// Changes a server's row by one who may.
    pub(crate) async fn server_change(
        &self,
        caller: &Caller,
        id: &str,
        action: &'static str,
        change: impl Fn(&mut Server) -> Result<()>,
    ) -> Result<Server> {
        self.db.caught_up().await?;
        self.db
            .transact_with(|cache| {
                let stored = find_for_change(cache, caller, id, action)?;
                let mut server = stored.row.clone();
                change(&mut server)?;
                let txn = if server == stored.row { Txn::new() } else { Txn::new().update(&stored, &server) };
                Ok((txn, server))
            })
            .await
    }
}

/// Who asked for `action`, and when.
pub(crate) fn action_record(caller: &Caller, action: &str) -> ActionRecord {
    ActionRecord {
        action: action.to_owned(),
        request_id: caller.request_id.clone(),
        user_id: caller.user_id.clone(),
        project_id: caller.project_id().unwrap_or_default().to_owned(),
        started_at: Timestamp::now(),
        message: None,
        finished_at: None,
    }
}

/// As Nova counts them: what follows the end of the last line is one, even if it is nothing.
fn last_lines(text: &str, lines: usize) -> &str {
    if lines == 0 {
        return "";
    }
    let start = text.rmatch_indices('\n').nth(lines - 1).map_or(0, |(index, _)| index + 1);
    &text[start..]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_lines_are_the_last_ones() {
        assert_eq!(last_lines("a\nb\nc\n", 2), "c\n");
        assert_eq!(last_lines("a\nb\nc", 1), "c");
        assert_eq!(last_lines("a\n", 5), "a\n");
        assert_eq!(last_lines("a\n", 0), "");
        assert_eq!(last_lines("", 3), "");
    }
}
