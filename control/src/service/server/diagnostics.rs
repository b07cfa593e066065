//! How a server fares, as its host tells when it is asked.

use std::sync::Arc;

use net::spec::LinkCounts;

use super::lifecycle::wrong_state;
use super::status::status;
use crate::Control;
use crate::agent::link::QueryError;
use crate::agent::protocol::{Answer, Diagnostics, InstanceState, Query};
use crate::caller::Caller;
use crate::error::{Error, Result};
use crate::model::compute::Server;
use crate::model::network::Port;
use crate::policy::{Default, Target, require};
use crate::store::Stored;

/// How a server fares.
#[derive(Debug)]
pub struct ServerDiagnostics {
    /// The server.
    pub server: Arc<Stored<Server>>,
    /// What its host tells.
    pub figures: Diagnostics,
    /// Its network devices in order: MAC, and what has passed as the host sees it.
    pub nics: Vec<([u8; 6], Option<LinkCounts>)>,
}

impl Control {
    /// How a running server fares.
    ///
    /// # Errors
    /// `NotFound`; `Forbidden` unless an administrator asks; `Conflict` where it does not run.
    pub async fn server_diagnostics(&self, caller: &Caller, id: &str) -> Result<ServerDiagnostics> {
        let server = self.server(caller, id).await?;
        let keys = [("project_id", server.row.project_id.as_str()), ("user_id", server.row.user_id.as_str())];
        require("os_compute_api:os-server-diagnostics", Default::Admin, caller, &Target::of(&keys))?;
        let host = server.row.host.as_deref().filter(|_| !server.row.discard);
        let host =
            host.ok_or_else(|| Error::conflict("InstanceNotReady", format!("Instance {id} is not ready")))?;
        if !matches!(server.row.observed, Some(InstanceState::Running | InstanceState::Stopping)) {
            let state = match status(&server.row).power_state {
                3 => "paused",
                4 => "shutdown",
                6 => "crashed",
                _ => "pending",
            };
            return Err(wrong_state(&server.row, "get_diagnostics", "power state", state));
        }
        let query = Query::Diagnostics { instance: id.to_owned() };
        let figures = match self.agents().query(host, query).await {
            Ok(Answer::Diagnostics(figures)) => figures,
            Ok(_) => return Err(Error::Unavailable(format!("Host {host} gave another answer."))),
            Err(QueryError::Refused(_)) => {
                return Err(Error::conflict("InstanceNotReady", format!("Instance {id} is not ready")));
            }
            Err(error) => return Err(Error::Unavailable(format!("Unable to get diagnostics: {error}."))),
        };
        let ports = server.row.port_ids.iter().filter_map(|id| self.db.cache().get::<Port>(id));
        let nics =
            ports.map(|port| (port.row.mac, figures.ports.get(&port.row.standard.id).copied())).collect();
        Ok(ServerDiagnostics { server, figures, nics })
    }
}
