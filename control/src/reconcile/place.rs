//! Placing: each server that has no host gets one, or an honest ERROR. The decision and the claim on the host are one
//! transaction, so two deciders cannot promise the same memory twice.

use std::collections::BTreeMap;
use std::sync::Arc;

use jiff::Timestamp;

use crate::Control;
use crate::agent::protocol::Power;
use crate::error::Result;
use crate::model::compute::{Fault, HostClaims, Server, VmState};
use crate::scheduler::{HostState, NoValidHost, Request};
use crate::service::host::{Hosts, host_states};
use crate::service::server::lifecycle::fail_building;
use crate::service::server::remove::abandonment;
use crate::service::server::volume::host_of_volumes;
use crate::store::{Cache, Stored, Txn};

/// The most changes after which no further server joins a transaction: with the last one's ports it still fits into
/// the store's limit of 128.
const CHANGES_MAX: usize = 64;

/// Whether a server waits for a host.
pub(crate) fn waits_for_host(server: &Server) -> bool {
    server.host.is_none()
        && server.vm_state == VmState::Building
        && server.power != Power::Deleted
        && !server.discard
}

impl Control {
    /// Places all servers that wait for a host, oldest first. With `patient`, those that find none go on waiting,
    /// since hosts may still be about to connect; otherwise they are in ERROR. Returns whether some still wait.
    pub(crate) async fn place_waiting(&self, patient: bool) -> Result<bool> {
        loop {
            let waiting = oldest_first(self.db.cache());
            if waiting.is_empty() {
                return Ok(false);
            }
            let decided = self
                .db
                .transact_with(|cache| {
                    let round = Round::new(self, cache);
                    Ok(round.place(&waiting, patient))
                })
                .await?;
            if decided == 0 {
                return Ok(true);
            }
        }
    }
}

fn oldest_first(cache: &Cache) -> Vec<String> {
    let mut waiting = cache.filter::<Server>(waits_for_host);
    waiting.sort_by(|a, b| (a.row.created_at, &a.row.id).cmp(&(b.row.created_at, &b.row.id)));
    waiting.iter().map(|server| server.row.id.clone()).collect()
}

/// One transaction's worth of placing.
struct Round<'a> {
    control: &'a Control,
    cache: &'a Cache,
    hosts: Vec<HostState>,
    claims: Vec<Option<Arc<Stored<HostClaims>>>>,
    /// By the host's index: its claims as they will be.
    claimed: BTreeMap<usize, HostClaims>,
    txn: Txn,
    decided: usize,
}

impl<'a> Round<'a> {
    fn new(control: &'a Control, cache: &'a Cache) -> Self {
        let alive = |name: &str| control.host_is_alive(name);
        let Hosts { states: hosts, claims } = host_states(cache, &control.compute.allocation, alive);
        Self { control, cache, hosts, claims, claimed: BTreeMap::new(), txn: Txn::new(), decided: 0 }
    }

    fn place(mut self, waiting: &[String], patient: bool) -> (Txn, usize) {
        for id in waiting {
            if self.txn.changes() + self.claimed.len() >= CHANGES_MAX {
                break;
            }
            let Some(stored) = self.cache.get::<Server>(id).filter(|stored| waits_for_host(&stored.row))
            else {
                continue;
            };
            if !self.control.images.has_all(&stored.row) {
                // Its files are being made; whoever makes them asks again.
                continue;
            }
            match self.control.compute.scheduler.place(&self.hosts, &request_of(self.cache, &stored.row)) {
                Ok(index) => self.claim(&stored, index),
                Err(_) if patient => {}
                Err(error) => self.refuse(&stored, &error),
            }
        }
        for (index, claims) in self.claimed {
            self.txn = match &self.claims[index] {
                Some(stored) => self.txn.update(stored, &claims),
                None => self.txn.create(&claims),
            };
        }
        (self.txn, self.decided)
    }

    fn claim(&mut self, stored: &Stored<Server>, index: usize) {
        let host = &mut self.hosts[index];
        let resources = stored.row.flavor.resources();
        host.claimed = host.claimed.plus(resources);
        let before = self.claims[index].as_ref().map(|claims| claims.row.clone());
        let claims = self.claimed.entry(index).or_insert_with(|| {
            before.unwrap_or_else(|| HostClaims { host: host.name.clone(), ..HostClaims::default() })
        });
        claims.servers.insert(stored.row.id.clone(), resources);
        let mut server = stored.row.clone();
        server.host = Some(host.name.clone());
        server.task = Some("spawning".to_owned());
        server.updated_at = Timestamp::now();
        let txn = std::mem::take(&mut self.txn).update(stored, &server);
        self.txn = Control::bind_server_ports(self.cache, txn, &server.id, server.host.as_deref(), false);
        self.decided += 1;
    }

    fn refuse(&mut self, stored: &Stored<Server>, error: &NoValidHost) {
        let mut server = stored.row.clone();
        let now = Timestamp::now();
        fail_building(
            &mut server,
            Fault { code: 500, message: error.to_string(), details: error.details(), created_at: now },
        );
        tracing::info!(
            server.id = server.id,
            details = error.details(),
            "no valid host was found for a server"
        );
        self.txn = abandonment(self.cache, std::mem::take(&mut self.txn), stored, server);
        self.decided += 1;
    }
}

/// A server with volumes goes where they are.
fn request_of(cache: &Cache, server: &Server) -> Request {
    Request {
        resources: server.flavor.resources(),
        zone: server.availability_zone.clone(),
        host: host_of_volumes(cache, server).or_else(|| server.wished_host.clone()),
        image_properties: server.image_properties.clone(),
    }
}
