//! What hosts say of their routers, taken into the rows: which ports are up, which floating IPs are translated.

use crate::Control;
use crate::agent::protocol::RouterObserved;
use crate::error::Result;
use crate::model::compute::Host;
use crate::model::network::Port;
use crate::model::router::{Router, RouterState};
use crate::service::network::touch;
use crate::service::router::wanted::host_of;
use crate::service::router::{OWNER_GATEWAY, OWNER_INTERFACE};
use crate::store::Txn;

impl Control {
    /// Takes in what a host says of a router. Of one that is another host's, or nobody's, it is passed over.
    pub(crate) async fn router_observed(&self, host: &str, report: &RouterObserved) -> Result<()> {
        self.db
            .transact(|cache| {
                let Some(router) = cache.get::<Router>(&report.id) else { return Ok(Txn::new()) };
                if host_of(&cache.list::<Host>(), &report.id).as_deref() != Some(host) {
                    return Ok(Txn::new());
                }
                let state = RouterState {
                    id: report.id.clone(),
                    host: host.to_owned(),
                    ports: report.ports.clone(),
                    floating: report.floating.clone(),
                    fault: report.fault.clone(),
                };
                // A router that is deleted meanwhile leaves no state behind.
                let mut txn = Txn::new().require(&router);
                txn = match cache.get::<RouterState>(&report.id) {
                    Some(stored) => txn.update(&stored, &state),
                    None => txn.create(&state),
                };
                let mut ports = cache.found_by::<Port>(&report.id);
                ports.retain(|port| {
                    port.row.device_id == report.id
                        && matches!(port.row.device_owner.as_str(), OWNER_INTERFACE | OWNER_GATEWAY)
                });
                for stored in ports {
                    let active = report.ports.contains(&stored.row.standard.id);
                    if stored.row.active == active && stored.row.host.as_deref() == Some(host) {
                        continue;
                    }
                    let mut port = stored.row.clone();
                    port.active = active;
                    port.host = Some(host.to_owned());
                    touch(&mut port.standard);
                    txn = txn.update(&stored, &port);
                }
                Ok(txn)
            })
            .await
    }
}
