//! Messages: what went wrong in the background, for the owner to read (Block Storage API: messages).

use std::sync::Arc;

use jiff::Timestamp;

use crate::Control;
use crate::caller::Caller;
use crate::error::Result;
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

impl Control {
    /// The project's messages.
    ///
    /// # Errors
    /// `Forbidden`.
    pub async fn volume_messages(&self, caller: &Caller) -> Result<Vec<Arc<Stored<VolumeMessage>>>> {
        require_list(caller, "message:get_all")?;
        self.db.caught_up().await?;
        let project = caller.project_id();
        Ok(self.db.cache().filter::<VolumeMessage>(|message| project == Some(message.project_id.as_str())))
    }

    /// One message.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn volume_message(&self, caller: &Caller, id: &str) -> Result<Arc<Stored<VolumeMessage>>> {
        self.db.caught_up().await?;
        let stored = self.stored::<VolumeMessage>(id, "Message")?;
        require_read(caller, (&stored.row.project_id, None), "message:get", "Message", id)?;
        Ok(stored)
    }

    /// Deletes a message.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`.
    pub async fn volume_message_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        let stored = self.stored::<VolumeMessage>(id, "Message")?;
        require_write(caller, &stored.row.project_id, "message:delete", "Message", id)?;
        self.db
            .transact(|cache| {
                let stored = cache.get::<VolumeMessage>(id);
                Ok(stored.map_or_else(Txn::new, |stored| Txn::new().delete(&stored)))
            })
            .await
    }
}
