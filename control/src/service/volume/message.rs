//! Messages: what went wrong in the background, for the owner to read (Block Storage API: messages).

use std::sync::Arc;

use jiff::{SignedDuration, Timestamp};

use crate::Control;
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::random_uuid;
use crate::model::volume::VolumeMessage;
use crate::policy::{require_list, require_read, require_write};
use crate::store::{Stored, Txn};

/// How long a message is kept, in days, as Cinder's `message_ttl`.
pub const DAYS_KEPT: i64 = 30;

/// Leaves a message in the transaction that changes what it is about.
pub(crate) fn tell(
    txn: Txn,
    project_id: &str,
    request_id: &str,
    (resource_type, resource_id): (&str, &str),
    event_id: &str,
    text: &str,
) -> Txn {
    txn.create(&VolumeMessage {
        id: random_uuid(),
        project_id: project_id.to_owned(),
        request_id: request_id.to_owned(),
        resource_type: resource_type.to_owned(),
        resource_id: resource_id.to_owned(),
        event_id: event_id.to_owned(),
        text: text.chars().take(super::TEXT_CHARS_MAX).collect(),
        created_at: Timestamp::now(),
    })
}

/// Whether a message has been kept for as long as was promised.
fn is_over(message: &VolumeMessage) -> bool {
    let kept = SignedDuration::from_hours(24 * DAYS_KEPT);
    message.created_at.checked_add(kept).is_ok_and(|until| until <= Timestamp::now())
}

impl Control {
    /// Deletes the messages that were kept for as long as was promised.
    pub(crate) async fn volume_messages_forget(&self) -> Result<()> {
        for stored in self.db.cache().filter::<VolumeMessage>(is_over) {
            let id = stored.row.id.clone();
            let forget = |stored: Option<Arc<Stored<VolumeMessage>>>| match stored {
                Some(stored) => Txn::new().delete(&stored),
                None => Txn::new(),
            };
            self.db.transact(|cache| Ok(forget(cache.get(&id)))).await?;
        }
        Ok(())
    }

    /// The project's messages.
    ///
    /// # Errors
    /// `Forbidden`.
    pub async fn volume_messages(&self, caller: &Caller) -> Result<Vec<Arc<Stored<VolumeMessage>>>> {
        require_list(caller, "message:get_all")?;
        self.db.caught_up().await?;
        let project = caller.project_id();
        let own = |message: &VolumeMessage| project == Some(message.project_id.as_str()) && !is_over(message);
        Ok(self.db.cache().filter::<VolumeMessage>(own))
    }

    /// One message.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn volume_message(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<VolumeMessage>>> {
        self.db.caught_up().await?;
        let stored = self.volume_message_kept(id)?;
        require_read(caller, (&stored.row.project_id, None), "message:get", "Message", id)?;
        Ok(stored)
    }

    fn volume_message_kept(&self, id: &str) -> Result<Arc<Stored<VolumeMessage>>> {
        let stored = self.stored::<VolumeMessage>(id, "Message")?;
        if is_over(&stored.row) { Err(Error::not_found("Message", id)) } else { Ok(stored) }
    }

    /// Deletes a message.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn volume_message_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        let stored = self.volume_message_kept(id)?;
        require_write(caller, &stored.row.project_id, "message:delete", "Message", id)?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<VolumeMessage>(id);
                Ok(stored.map_or_else(Txn::new, |stored| Txn::new().delete(&stored)))
            })
            .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_is_kept_for_as_long_as_was_promised() {
        let told = |days_ago: i64| VolumeMessage {
            id: random_uuid(),
            project_id: "p".to_owned(),
            request_id: "req-1".to_owned(),
            resource_type: "VOLUME".to_owned(),
            resource_id: random_uuid(),
            event_id: "VOLUME_VOLUME_001_001".to_owned(),
            text: "it failed".to_owned(),
            created_at: Timestamp::now().checked_sub(SignedDuration::from_hours(24 * days_ago)).unwrap(),
        };
        assert!(!is_over(&told(0)) && !is_over(&told(DAYS_KEPT - 1)) && is_over(&told(DAYS_KEPT)));
    }
}
