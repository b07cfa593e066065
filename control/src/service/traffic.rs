//! What has passed all hosts' ports and routers, for whoever watches the cloud.

use std::collections::BTreeMap;

use futures_util::future::join_all;

use crate::Control;
use crate::agent::figures::HostTraffic;
use crate::agent::protocol::{Answer, Query};
use crate::caller::Caller;
use crate::error::Result;
use crate::model::compute::Host;
use crate::policy::require_admin;

impl Control {
    /// What each host has counted; nothing of one that does not answer.
    ///
    /// # Errors
    /// `Forbidden` unless an administrator asks.
    pub async fn traffic(&self, caller: &Caller) -> Result<BTreeMap<String, Option<HostTraffic>>> {
        require_admin(caller, "get_metrics")?;
        self.db.caught_up().await?;
        let hosts = self.db.cache().list::<Host>();
        let asked = hosts.iter().map(async |host| {
            let name = host.row.name.clone();
            let answer = self.agents().query(&name, Query::Traffic).await;
            let counted = match answer {
                Ok(Answer::Traffic(counted)) => Some(counted),
                Ok(_) => None,
                Err(error) => {
                    tracing::warn!(host = name, %error, "a host does not tell what it has counted");
                    None
                }
            };
            (name, counted)
        });
        Ok(join_all(asked).await.into_iter().collect())
    }
}
