//! The end of a server: first it is wanted gone, then, once its host has nothing of it, its row, its ports, its claim
//! and its quota go in one transaction.

use jiff::Timestamp;

use super::create::charge_server;
use super::find_for_change;
use super::lifecycle::{ask_deletion, record};
use super::power::action_record;
use super::volume::release_volumes;
use crate::Control;
use crate::agent::protocol::{InstanceState, Power};
use crate::caller::Caller;
use crate::error::Result;
use crate::model::compute::{HostClaims, Server};
use crate::store::{Cache, Stored, Txn};

impl Control {
    /// Writes down that a server shall be gone; one that no host has is gone at once.
    ///
    /// # Errors
    /// `NotFound`, `Forbidden`; `Conflict` if it is locked.
    pub async fn server_delete(&self, caller: &Caller, id: &str) -> Result<()> {
        self.db.caught_up().await?;
        find_for_change(self.db.cache(), caller, id, "os_compute_api:servers:delete")?;
        self.server_want_deleted(id, Some(caller)).await
    }

    /// As [`Control::server_delete`] by the cloud itself; nothing if the server is not there.
    pub(crate) async fn server_want_deleted(&self, id: &str, caller: Option<&Caller>) -> Result<()> {
        self.db
            .transact(|cache| {
                let Some(stored) = cache.get::<Server>(id) else { return Ok(Txn::new()) };
                if let Some(caller) = caller {
                    find_for_change(cache, caller, id, "os_compute_api:servers:delete")?;
                }
                if stored.row.host.is_none() {
                    return Ok(removal(cache, &stored));
                }
                let mut server = stored.row.clone();
                if server.power != Power::Deleted
                    && let Some(caller) = caller
                {
                    record(&mut server, action_record(caller, "delete"));
                }
                ask_deletion(&mut server, Timestamp::now());
                Ok(if server == stored.row { Txn::new() } else { Txn::new().update(&stored, &server) })
            })
            .await
    }

    /// Takes away what remains of a server whose host says that it has nothing of it any more: everything, or for one
    /// that failed before it ran, everything but the row.
    pub(crate) async fn server_gone_from_host(&self, id: &str) -> Result<()> {
        self.db
            .transact(|cache| {
                let Some(stored) = cache.get::<Server>(id) else { return Ok(Txn::new()) };
                let gone = stored.row.observed == Some(InstanceState::Deleted) || stored.row.host.is_none();
                match stored.row.power {
                    Power::Deleted if gone => Ok(removal(cache, &stored)),
                    _ if stored.row.discard && gone => {
                        Ok(abandonment(cache, Txn::new(), &stored, stored.row.clone()))
                    }
                    _ => Ok(Txn::new()),
                }
            })
            .await
    }
}

/// The removal of the row with all that belongs to it.
fn removal(cache: &Cache, stored: &Stored<Server>) -> Txn {
    let txn = release(cache, Txn::new().delete(stored), &stored.row);
    let txn = release_volumes(cache, txn, &stored.row);
    charge_server(txn, &stored.row, -1)
}

/// `server`, which `stored` becomes, stays in ERROR and on no host; its ports and its claim go. Its quota stays taken
/// until it is deleted, as for every server that is there.
pub(crate) fn abandonment(cache: &Cache, txn: Txn, stored: &Stored<Server>, mut server: Server) -> Txn {
    server.host = None;
    server.observed = None;
    server.discard = false;
    server.port_ids.clear();
    server.nic_tags.clear();
    release(cache, txn.update(stored, &server), &stored.row)
}

fn release(cache: &Cache, txn: Txn, server: &Server) -> Txn {
    let txn = Control::release_server_ports(cache, txn, &server.id);
    if let Some(claims) = server.host.as_ref().and_then(|host| cache.get::<HostClaims>(host))
        && claims.row.servers.contains_key(&server.id)
    {
        let mut left = claims.row.clone();
        left.servers.remove(&server.id);
        return txn.update(&claims, &left);
    }
    txn
}
